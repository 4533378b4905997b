import dataclasses
import itertools
import math
import shutil

import cases
import pandas as pd
import pytest
import torch
from attrobust import attention, attributions, curvature, data, experiments, models, paths, robustness, training
from attrobust.balls import Ball
from attrobust.experiments import Experiment, Measurement, measure, sweep
from attrobust.store import Store, load_weights, read_csv, read_json, write_csv
from torch.nn import functional as F

BASE = {"dataset": "digits", "step_size": 0.05, "batch_size": 16, "epochs": 2, "seed": 0, "side": 4, "n_train": 48}
SMALL = Measurement(radii=(8,), attack_steps=2, restarts=1, n_attacked=4, trace_products=6)


def one(**changes):
    return Experiment(**(BASE | {"protocol": "plateau"} | changes))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place of its own for evidence, and a machine that holds the embedded data only."""
    monkeypatch.setattr(paths, "figures", tmp_path / "figures")
    monkeypatch.setattr(paths, "build", tmp_path / "build")
    monkeypatch.setattr(paths, "data", tmp_path / "no data")
    monkeypatch.delenv("ATTROBUST_DATA", raising=False)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "no home"))
    return tmp_path


@pytest.fixture
def trainings(monkeypatch):
    """Seeds of every group that is trained in this process."""
    seen, train = [], sweep.train

    def spy(group, device="cpu"):
        seen.append([e.seed for e in group])
        return train(group, device)

    monkeypatch.setattr(sweep, "train", spy)
    return seen


def run(grid, store, **options):
    return experiments.run(grid, SMALL, store=store, **({"jobs": 1} | options))


# ------------------------------------------------------------------ grids and keys


def test_a_grid_holds_every_combination_once_in_order():
    grid = experiments.grid(**(BASE | {"step_size": [0.1, 0.2], "seed": (0, 1, 2)}))
    assert [(e.step_size, e.seed) for e in grid] == list(itertools.product([0.1, 0.2], [0, 1, 2]))
    assert len(set(grid)) == 6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": 0.1}, "axis is 'lr'; it must be one of dataset, step_size"),
        ({"step_sizes": [0.1]}, "axis is 'step_sizes'; .*did you mean 'step_size'"),
        ({"dataset": "mist"}, "dataset is 'mist'; .*did you mean 'mnist'"),
        ({"protocol": "plato"}, "protocol is 'plato'; it must be one of matched, plateau, standard"),
        ({"architecture": "vgg"}, "architecture is 'vgg'; it must be one of mlp, convnet, vit"),
        ({"attention": "softmin"}, "attention is 'softmin'; it must be one of softmax.*did you mean 'softmax'"),
        ({"patch": 4}, "patch is 4; a network of architecture 'mlp' has none"),
        ({"dim": 0, "architecture": "vit"}, "dim is 0; it must be a whole number of at least 1"),
        ({"initial": "thin"}, "initial is 'thin'; it must be one of wide, narrow"),
        ({"activation": "swish"}, "activation is 'swish'; it must be one of relu, gelu"),
        ({"step_size": 0.0}, "step_size is 0.0; it must be a finite number above 0"),
        ({"batch_size": 49}, "batch_size is 49; it must be a whole number from 1 to 48"),
        ({"n_train": 0}, "n_train is 0; it must be a whole number of at least 1"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number of at least 1"),
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
    ],
)
def test_a_grid_of_what_cannot_be_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        experiments.grid(**(BASE | change))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"radii": (4.0, -1.0)}, "radius is -1.0; it must be a finite number of at least 0"),
        ({"attack_steps": 0}, "attack_steps is 0; it must be a whole number of at least 1"),
        ({"restarts": 0}, "restarts is 0; it must be a whole number of at least 1"),
        ({"n_attacked": 0}, "n_attacked is 0; it must be a whole number of at least 1"),
        ({"k_share": 0.0}, r"k_share is 0.0; it must lie in \(0, 1\]"),
        ({"k_share": 1.5}, r"k_share is 1.5; it must lie in \(0, 1\]"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Measurement(**change)


OTHER = {
    "dataset": "mnist", "step_size": 0.06, "batch_size": 8, "epochs": 3, "seed": 1, "protocol": "standard", "side": 2,
    "n_train": 40, "architecture": "convnet", "activation": "relu", "momentum": 0.5,
    "initial": "narrow",
}  # fmt: skip
OTHER_TRANSFORMER = {"attention": "another", "patch": 4, "dim": 8, "depth": 1}
OTHER_MEASURE = {
    "radii": (4,), "attack_steps": 3, "restarts": 2, "n_attacked": 5, "k_share": 0.2, "trace_products": 9,
    "betas": (5,), "maps": ("rollout",), "curvature": False,
}  # fmt: skip


def test_every_field_of_an_experiment_changes_its_keys(monkeypatch):
    monkeypatch.setitem(attention.KERNELS, "another", attention.KERNELS["softmax"])
    assert set(OTHER) | set(OTHER_TRANSFORMER) == {f.name for f in dataclasses.fields(Experiment)}
    changed = [one(), *(one(**{n: v}) for n, v in OTHER.items()), one(architecture="vit")]
    changed += [one(architecture="vit", **{n: v}) for n, v in OTHER_TRANSFORMER.items()]
    keys = [(e.training_key, experiments.key(e, SMALL)) for e in changed]
    assert len(set(itertools.chain.from_iterable(keys))) == 2 * (2 + len(OTHER) + len(OTHER_TRANSFORMER))


def test_a_field_added_for_transformers_leaves_the_keys_and_columns_of_other_networks():
    committed = read_csv(paths.figures / "03_sgd_flattens" / "runs.csv")
    row = committed[committed["dataset"] == "fashion_mnist"].iloc[0].to_dict()
    names = {f.name for f in dataclasses.fields(Experiment)} - set(OTHER_TRANSFORMER) - {"initial"}
    known = {n: int(row[n]) if n in ("side", "seed", "epochs", "batch_size", "n_train") else row[n] for n in names}
    experiment = Experiment(**known)
    assert set(measure.columns(experiment)) == names | {"initial"}
    assert experiment.model_options == {}
    assert experiments.key(experiment, Measurement()) == row["key"]


def test_a_transformer_is_trained_measured_and_its_words_are_columns(folder):
    store = Store("notebook", out=folder / "out")
    options = {"patch": 2, "dim": 4, "depth": 1}
    rows = run(
        experiments.grid(**BASE | {"protocol": "plateau", "architecture": "vit", "seed": [0, 1]} | options), store
    )
    assert rows[["attention", "patch", "dim", "depth"]].iloc[0].tolist() == ["softmax", 2, 4, 1]
    assert rows[["sharpness", "logit_input_curvature", "worst_saliency_spearman_8"]].notna().all(axis=None)
    assert "invariant_flatness" not in rows
    alone = run(
        experiments.grid(**BASE | {"protocol": "plateau", "architecture": "vit"} | options),
        Store("alone", out=folder / "alone"),
    )
    pd.testing.assert_frame_equal(alone, rows.iloc[:1])


def test_seeds_are_trained_together_where_that_is_faster_and_small_steps_begin(folder, trainings):
    common = BASE | {"protocol": "plateau", "seed": [0, 1], "step_size": [0.2, 0.05]}
    run(experiments.grid(**common), Store("dense", out=folder / "dense"))
    assert trainings == [[0, 1], [0, 1]]
    trainings.clear()
    options = {"architecture": "vit", "patch": 2, "dim": 4, "depth": 1}
    grid = experiments.grid(**common | options)
    assert [[(e.step_size, e.seed) for e in g] for g in sweep._groups(grid, "cpu")] == [
        [(0.05, 0)], [(0.05, 1)], [(0.2, 0)], [(0.2, 1)]
    ]  # fmt: skip
    assert [[e.seed for e in g] for g in sweep._groups(grid, "cuda")] == [[0, 1], [0, 1]]


def test_transformers_of_other_kernels_are_trained_and_measured_their_row_mass_too(folder):
    options = {"protocol": "plateau", "architecture": "vit", "patch": 2, "dim": 4, "depth": 1}
    grid = experiments.grid(**BASE | options | {"attention": ["softmax", "gaussian", "relu"]})
    light = dataclasses.replace(SMALL, attack_steps=1, betas=(5,), n_attacked=2)
    rows = experiments.run(grid, light, store=Store("notebook", out=folder / "out"), jobs=1).set_index("attention")
    assert rows.loc[["gaussian", "relu"], "mass"].notna().all()
    assert math.isnan(rows.loc["softmax", "mass"])
    shared = rows.columns.difference(["mass", "empty"])
    alone = experiments.run(grid[:1], light, store=Store("alone", out=folder / "alone"), jobs=1).set_index("attention")
    assert set(alone.columns) == set(shared)
    pd.testing.assert_frame_equal(alone, rows.loc[["softmax"], alone.columns])
    assert rows[["worst_rollout_spearman_8", "worst_saliency_spearman_8"]].notna().all(axis=None)


def test_every_field_of_a_measurement_changes_the_row_and_not_the_network():
    assert set(OTHER_MEASURE) == {f.name for f in dataclasses.fields(Measurement)}
    others = [dataclasses.replace(SMALL, **{name: value}) for name, value in OTHER_MEASURE.items()]
    assert len({experiments.key(one(), m) for m in (SMALL, *others)}) == 1 + len(OTHER_MEASURE)


def test_other_data_or_another_protocol_are_other_networks(monkeypatch):
    before = one().training_key
    monkeypatch.setattr(data, "fingerprint", lambda name: "other pixels")
    assert one().training_key != before
    monkeypatch.undo()
    named = training.recipes.RECIPES
    monkeypatch.setitem(named, "plateau", named["plateau"] | {"weight_decay": 1e-6})
    assert one().training_key != before


def test_matched_runs_have_patience_and_a_level_and_plateau_runs_neither():
    plateau, matched, standard = (one(protocol=p).recipe for p in ("plateau", "matched", "standard"))
    assert (plateau.most_epochs, matched.most_epochs) == (2, 10)
    assert (plateau.stop_loss, matched.stop_loss) == (None, 0.01)
    assert (plateau.decay, standard.decay) == (0.0, 5e-4)
    assert (plateau.schedule, matched.schedule) == ("cosine", "constant")


@pytest.mark.parametrize("protocol", training.recipes.RECIPES)
def test_an_experiments_recipe_holds_its_own_numbers(protocol):
    recipe = one(protocol=protocol, step_size=0.06, batch_size=8, epochs=3, momentum=0.5).recipe
    assert (recipe.step_size, recipe.batch_size, recipe.epochs, recipe.momentum) == (0.06, 8, 3, 0.5)
    assert recipe.decay == pytest.approx({"standard": 5e-4, "decay_held": 3e-5 / 0.06}.get(protocol, 0))


# ------------------------------------------------------------------ what stays in its arm

GOOD = {"steps": 10, "train_loss": 0.01, "train_accuracy": 1.0, "late_change": 0.05, "reached": True}


@pytest.mark.parametrize(
    ("protocol", "change", "reason"),
    [
        ("matched", {}, ""),
        ("matched", {"train_loss": 0.0124}, ""),
        ("matched", {"train_loss": 0.0076}, ""),
        ("matched", {"train_accuracy": 0.5, "late_change": math.nan}, ""),
        ("matched", {"train_loss": 0.0126}, "loss 0.0126 is 26% off the level"),
        ("matched", {"train_loss": 0.0074}, "loss 0.0074 is 26% off the level"),
        ("matched", {"reached": False, "train_loss": 0.3}, "loss 0.3 never reached 0.01"),
        ("matched", {"diverged": True, "reached": False}, "diverged"),
        ("plateau", {"reached": None}, ""),
        ("plateau", {"reached": None, "train_accuracy": 0.994}, "training accuracy 99.4%"),
        ("plateau", {"reached": None, "late_change": 0.11}, "loss still changed by 11%"),
        ("plateau", {"reached": None, "late_change": math.nan}, "loss still changed by nan%"),
        ("standard", {"reached": None, "diverged": True}, "diverged"),
    ],
)
def test_a_run_leaves_its_arm_for_the_stated_reasons_only(protocol, change, reason):
    fit = training.Fit(**(GOOD | change))
    assert measure.incomparable(one(protocol=protocol), fit, 0.0) == reason


# ------------------------------------------------------------------ measured columns


@pytest.fixture(scope="module")
def measured():
    """One trained network with its row."""
    experiment = one(epochs=4)
    (model,), (fit,) = measure.train([experiment])
    return experiment, model, fit, measure.measure(experiment, SMALL, model, fit)


@pytest.mark.parametrize("architecture", ["mlp", "convnet"])
def test_flatness_columns_are_drawn_by_the_experiments_own_seed(architecture):
    experiment = one(epochs=2, architecture=architecture, seed=3)
    (model,), (fit,) = measure.train([experiment])
    once, again = (measure.measure(experiment, SMALL, model, fit) for _ in range(2))
    random = ["sharpness", "sharpness_error", "logit_input_curvature", "relative_curvature"]
    random += ["trace", "trace_error"] if architecture == "convnet" else []
    assert all(once[name] == again[name] for name in [*random, "trace", "trace_error"])
    other = measure.measure(dataclasses.replace(experiment, seed=4), SMALL, model, fit)
    for names in (["sharpness", "sharpness_error"], ["logit_input_curvature", "relative_curvature"]):
        assert any(once[name] != other[name] for name in names)  # the errors of another start
    if architecture == "convnet":
        assert once["trace_error"] > 0
        assert once["trace"] != other["trace"]
        assert abs(once["trace"] - other["trace"]) <= 6 * max(once["trace_error"], other["trace_error"])
    else:
        assert (once["trace_error"], once["trace"]) == (0, other["trace"])


def test_columns_are_what_the_library_measures_on_the_trained_network(measured):
    experiment, model, fit, row = measured
    digits = data.load("digits", side=4, n_train=48)
    attacked = data.load("digits", side=4, n_train=48, n_test=4).test.x
    target = model(attacked).argmax(1)
    assert row["steps"] == fit.steps == 4 * 3
    assert row["train_loss"] == pytest.approx(F.cross_entropy(model(digits.train.x), digits.train.y).item(), rel=1e-5)
    share = (model(digits.test.x).argmax(1) == digits.test.y).double().mean().item()
    assert row["test_accuracy"] == pytest.approx(share)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    draw = cases.generator(experiment.seed)
    sharp = curvature.sharpness(
        curvature.ParameterHessian(model, training.cross_entropy, *digits.train), generator=draw
    )
    assert row["sharpness"] == pytest.approx(sharp.value, rel=1e-5)
    total = curvature.trace(
        curvature.ParameterHessian(model, training.cross_entropy, *digits.train), generator=draw, products=6
    )
    assert row["trace"] == pytest.approx(total.value, rel=1e-4)
    flat = curvature.invariant_flatness(curvature.GaussNewton(model, digits.train.x))
    assert row["invariant_flatness"] == pytest.approx(flat.value, rel=1e-5)
    gradient = attributions.saliency(model, attacked, target).flatten(1).norm(dim=1).mean().item()
    assert row["logit_gradient"] == pytest.approx(gradient, rel=1e-5)
    table = robustness.attribution_robustness(
        model, attacked, attributions={"saliency": attributions.saliency}, ball=Ball("linf", 8 / 255), k=2, steps=2,
        restarts=1, generator=cases.generator(experiment.seed),
    )  # fmt: skip
    for attack in ("worst", "noise"):
        rows = table[table["attack"] == attack]
        for name in ("top_k", "cosine", "displacement", "kept"):
            assert row[f"{attack}_{name}_8"] == pytest.approx(rows[name].mean(), rel=1e-5)


def test_a_networks_weights_do_not_depend_on_the_seeds_beside_it(measured):
    experiment, model, _, row = measured
    networks, fits = measure.train([dataclasses.replace(experiment, seed=s) for s in (2, 0)])
    for p, q in zip(networks[1].parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert measure.measure(experiment, SMALL, networks[1], fits[1]) == row


def test_a_relu_network_is_attacked_through_its_twins():
    experiment = one(activation="relu")
    (model,), (fit,) = measure.train([experiment])
    row = measure.measure(experiment, SMALL, model, fit)
    assert row["worst_cosine_8"] < row["noise_cosine_8"]


def test_a_diverged_network_is_noted_and_not_measured():
    experiment = one(step_size=1e12, activation="relu", epochs=3)
    (model,), (fit,) = measure.train([experiment])
    row = measure.measure(experiment, SMALL, model, fit)
    assert fit.diverged
    assert (row["comparable"], row["reason"]) == (False, "diverged")
    assert "sharpness" not in row


def test_the_first_layer_standardises_with_the_training_pixels_own_numbers():
    digits = data.load("digits").train.x
    assert measure.PIXELS["digits"] == pytest.approx((digits.mean().item(), digits.std().item()), abs=2e-3)
    layer = experiments.build(one()).layers[0]
    assert isinstance(layer, models.Standardize)
    assert (layer.mean.item(), layer.std.item()) == pytest.approx(measure.PIXELS["digits"])


# ------------------------------------------------------------------ sweeps

GRID = experiments.grid(**(BASE | {"protocol": "plateau", "step_size": [0.05, 0.2], "seed": [0, 1]}))


def test_missing_rows_only_are_computed(folder, trainings):
    store = Store("03_x")
    first = run(GRID[:3], store)
    assert sorted(trainings) == [[0], [0, 1]]
    assert len(store.trained) == 3
    files = {p: p.read_bytes() for p in (store.out / "rows").iterdir()}
    trainings.clear()
    again = run(GRID, Store("03_x"))
    assert trainings == [[1]]
    assert {p: p.read_bytes() for p in files} == files
    pd.testing.assert_frame_equal(again.iloc[:3], first)
    trainings.clear()
    pd.testing.assert_frame_equal(run(GRID, Store("03_x")), again)
    assert trainings == []
    assert [(r.step_size, r.seed) for r in again.itertuples()] == [(e.step_size, e.seed) for e in GRID]


def test_a_lost_row_comes_back_bit_for_bit_and_a_corrupted_one_is_told_from_it(folder, trainings):
    store = Store("03_x")
    run(GRID[:2], store)
    path = store.out / "rows" / f"{experiments.key(GRID[1], SMALL)}.json"
    right = path.read_bytes()
    (model,), (fit,) = measure.train([GRID[1]])
    assert read_json(path) == measure.columns(GRID[1]) | measure.measure(GRID[1], SMALL, model, fit)
    path.unlink()
    run(GRID[:2], store)
    assert path.read_bytes() == right
    path.write_bytes(right[:-9])
    with pytest.raises(ValueError, match=r"\.json is damaged"):
        run(GRID[:2], store)


def test_rows_depend_neither_on_the_number_of_workers_nor_on_the_process(folder):
    here = run(GRID, Store("03_x", out=folder / "one"))
    there = run(GRID, Store("03_x", out=folder / "two"), jobs=2)
    pd.testing.assert_frame_equal(here, there, check_exact=True)


def test_committed_rows_are_reused_unless_that_is_forbidden(folder, trainings):
    store = Store("03_x", out=folder / "old")
    table = run(GRID[:2], store)
    store.gather(table)
    (paths.figures / "03_x").mkdir(parents=True)
    shutil.copy(store.out / "runs.csv", paths.figures / "03_x" / "runs.csv")
    trainings.clear()
    reader = Store("03_x", out=folder / "new")
    pd.testing.assert_frame_equal(run(GRID[:2], reader), table, check_exact=True)
    assert trainings == []
    assert (len(reader.trained), len(reader.reused)) == (0, 2)
    assert read_json(reader.out / "summary.json") == {"trained": 0, "reused": 2, "left_out": {}}
    fresh = Store("03_x", out=folder / "fresh", committed=False)
    pd.testing.assert_frame_equal(run(GRID[:2], fresh), table, check_exact=True)
    assert trainings == [[0, 1]]
    assert (len(fresh.trained), len(fresh.reused)) == (2, 0)


def test_own_rows_win_over_committed_ones(folder):
    table = run(GRID[:1], Store("03_x"))
    write_csv(paths.figures / "03_x" / "runs.csv", table.assign(sharpness=-1.0))
    assert run(GRID[:1], Store("03_x"))["sharpness"].tolist() == table["sharpness"].tolist()


def test_a_data_set_that_is_not_there_is_left_out_loudly_and_the_rest_is_run(folder):
    store = Store("03_x")
    absent = [dataclasses.replace(e, dataset="mnist") for e in GRID]
    table = run([*absent, GRID[0]], store)
    assert table["dataset"].tolist() == ["digits"]
    assert store.left_out == {"data set 'mnist' is not on this machine": 4}
    assert read_json(store.out / "summary.json")["left_out"] == store.left_out


def test_stored_rows_need_no_data(folder, monkeypatch):
    mnist = dataclasses.replace(GRID[0], dataset="mnist")
    row = {
        "key": experiments.key(mnist, SMALL),
        **dataclasses.asdict(mnist),
        "comparable": True,
        "reason": "",
        "trace": 0.1,
    }
    write_csv(paths.figures / "03_x" / "runs.csv", pd.DataFrame([row]))
    store = Store("03_x")
    table = run([mnist], store)
    assert table["trace"].tolist() == [0.1]
    assert table["reason"].tolist() == [""]
    assert store.left_out == {}


def test_progress_is_told_once_per_network(folder):
    lines, store = [], Store("03_x")
    run(GRID[:2], store, show=lines.append)
    assert [line.split()[0] for line in lines] == ["1/2", "2/2"]
    assert (store.out / "progress.log").read_text().splitlines() == lines
    assert "about 00:00 remaining" in lines[-1]


def test_every_row_has_its_provenance_and_weights(folder):
    store = Store("03_x")
    table = run(GRID[:2], store)
    store.gather(table)
    known = pd.read_csv(store.out / "provenance.csv")
    assert known["key"].tolist() == table["key"].tolist()
    assert (known["seconds"] > 0).all()
    for e in GRID[:2]:
        assert store.network_file(e.training_key) is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"jobs": -1}, "jobs is -1; it must be a whole number of at least 0"),
        ({"device": "tpu"}, "device is 'tpu'; it must be one of cpu"),
    ],
)
def test_sweeps_refuse_what_they_cannot_do(folder, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(GRID, Store("03_x"), **change)
    assert not (folder / "build" / "03_x" / "rows").exists()


# ------------------------------------------------------------------ reference networks and tables


def test_a_trained_network_is_the_one_of_its_row(folder, trainings):
    store = Store("03_x")
    run(GRID[:2], store)
    trainings.clear()
    model = experiments.trained(GRID[1], store=store)
    assert trainings == []
    (plain,), _ = measure.train([GRID[1]])
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not p.requires_grad
    assert not model.training


def test_a_network_is_trained_where_none_is_stored_and_kept_for_the_next_time(folder, trainings):
    store = Store("03_x")
    first = experiments.trained(GRID[0], store=store)
    assert trainings == [[0]]
    again = experiments.trained(GRID[0], store=Store("03_x"))
    assert trainings == [[0]]
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    stored = load_weights(store.out / "networks" / f"{GRID[0].training_key}.safetensors")
    assert torch.equal(stored["layers.2.weight"], first.layers[2].weight)
    assert store.trained == {GRID[0].training_key}


def test_a_network_whose_data_is_missing_says_so(folder):
    with pytest.raises(data.DataError, match="data set 'mnist' is not on this machine"):
        experiments.trained(dataclasses.replace(GRID[0], dataset="mnist", side=None), store=Store("03_x"))


CALLS = []


def doubled(n, scale=2):
    CALLS.append(n)
    return pd.DataFrame({"n": [n], "value": [scale * n / 3]})


def tripled(n, scale=3):
    CALLS.append(n)
    return pd.DataFrame({"n": [n], "value": [scale * n / 3]})


def test_a_table_is_computed_once_for_its_function_and_arguments(folder):
    CALLS.clear()
    store = Store("03_x")
    assert experiments.table(store, "t", doubled, 2)["value"].tolist() == [4 / 3]
    assert experiments.table(Store("03_x"), "t", doubled, 2)["value"].tolist() == [4 / 3]
    assert CALLS == [2]
    experiments.table(store, "t", doubled, 5)
    experiments.table(store, "t", doubled, 2, 7)
    experiments.table(store, "u", doubled, 2)
    assert experiments.table(store, "t", tripled, 2)["value"].tolist() == [2.0]
    assert CALLS == [2, 5, 2, 2, 2]


def test_tables_are_joined_in_the_order_of_their_tasks(folder):
    CALLS.clear()
    store = Store("03_x")
    experiments.table(store, "t", doubled, 4)
    joined = experiments.tables(store, "t", doubled, [(3,), (4,), (1,)], jobs=1)
    assert joined["n"].tolist() == [3, 4, 1]
    assert sorted(CALLS) == [1, 3, 4]
    assert (store.out / "progress.log").read_text().splitlines()[-1] == "t: 2/2 computed"


def test_a_table_of_a_network_depends_on_everything_its_weights_depend_on(folder):
    CALLS.clear()
    store = Store("03_x")

    def steps(network, networks):
        CALLS.append(network.step_size)
        return pd.DataFrame({"steps": [network.step_size, *[n.step_size for n in networks]]})

    assert experiments.table(store, "s", steps, GRID[0], [GRID[2]])["steps"].tolist() == [0.05, 0.2]
    experiments.table(store, "s", steps, GRID[0], [GRID[2]])
    experiments.table(store, "s", steps, GRID[0], [GRID[3]])
    experiments.table(store, "s", steps, GRID[1], [GRID[2]])
    assert CALLS == [0.05] * 3


def test_no_tasks_need_no_workers():
    assert list(experiments.in_workers(doubled, [])) == []
