import copy
import dataclasses
import itertools
import math
import os
import re
import shutil
import signal

import cases
import numpy as np
import pandas as pd
import pytest
import torch
from attrobust import (
    attacks,
    attention,
    attributions,
    curvature,
    data,
    experiments,
    models,
    paths,
    regularizers,
    robustness,
    training,
)
from attrobust.balls import Ball
from attrobust.experiments import Experiment, Measurement, explanations, keys, measure, schema, sweep
from attrobust.experiments.store import EvidenceError, Store, load_weights, read_json, write_csv, write_json
from attrobust.rows import Rows
from torch.nn import functional as F

BASE = {"dataset": "digits", "step_size": 0.05, "batch_size": 16, "epochs": 2, "seed": 0, "side": 4, "n_train": 48}
SMALL = Measurement(radii=(8,), effort=attacks.Effort(steps=2, restarts=1), n_attacked=4, trace_products=6)


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

    def spy(group, device="cpu", **how):
        seen.append([e.seed for e in group])
        return train(group, device, **how)

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
        (
            {"architecture": "vgg"},
            "architecture is 'vgg'; it must be one of mlp, .*, vit",
        ),
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
        ({"effort": attacks.Effort(steps=0)}, "effort.steps is 0; it must be a whole number of at least 1"),
        ({"n_attacked": 0}, "n_attacked is 0; it must be a whole number of at least 1"),
        ({"k_share": 0.0}, r"k_share is 0.0; it must lie in \(0, 1\]"),
        ({"radii_of": (("saliency", -1.0),)}, "radius is -1.0; it must be a finite number of at least 0"),
        ({"radii_of": (("salency", 1.0),)}, "a map of radii_of is 'salency'; .*did you mean 'saliency'"),
        ({"held": 0.0}, "held is 0.0; it must be a finite number above 0"),
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
OTHER_TRAINING = {
    "weight_decay": {"weight_decay": 0.1}, "penalty": {"penalty": "ssr"}, "trainer": {"trainer": "sam"},
    "strength": {"penalty": "ssr", "strength": 0.1}, "around": {"trainer": "sam", "around": 0.1},
    "wanted": {"penalty": "interpretation", "wanted": "gradient"},
    "teacher_trainer": {"penalty": "interpretation", "wanted": "gradient", "teacher_trainer": "adversarial"},
    "teacher_around": {
        "penalty": "interpretation", "wanted": "gradient", "teacher_trainer": "adversarial", "teacher_around": 8.0,
    },
}  # fmt: skip
OTHER_TRANSFORMER = {"attention": "another", "patch": 4, "dim": 8, "depth": 1}
OTHER_MEASURE = {
    "radii": (4,), "radii_of": (("saliency", 16),), "held": 0.1, "effort": attacks.Effort(steps=3, restarts=1),
    "n_attacked": 5, "k_share": 0.2, "trace_products": 9,
    "maps": ("rollout",), "readouts": ("logit",), "curvature": False,
}  # fmt: skip
OTHER_EFFORT = {
    "steps": 3, "restarts": 2, "draws": 1, "walk": 1, "eot": 2, "relative_step": 0.3, "momentum": 0.5,
    "objectives": ("cosine",), "betas": (5,),
}  # fmt: skip


def test_every_field_of_an_experiment_changes_its_keys(monkeypatch):
    monkeypatch.setitem(attention.KERNELS, "another", attention.KERNELS["softmax"])
    every = {f.name for f in dataclasses.fields(Experiment)}
    assert {*OTHER, *OTHER_TRAINING, *OTHER_TRANSFORMER} == every
    changed = [one(), *(one(**{n: v}) for n, v in OTHER.items()), one(architecture="vit")]
    changed += [one(**fields) for fields in OTHER_TRAINING.values()]
    changed += [one(architecture="vit", **{n: v}) for n, v in OTHER_TRANSFORMER.items()]
    found = [(experiments.network(e), experiments.key(e, SMALL)) for e in changed]
    assert len(set(itertools.chain.from_iterable(found))) == 2 * (1 + len(every) + 1)


def test_the_words_of_a_transformer_are_no_columns_of_other_networks():
    plain = {f.name for f in dataclasses.fields(Experiment)} - {*OTHER_TRANSFORMER, *OTHER_TRAINING}
    assert set(measure.columns(one())) == plain
    assert set(measure.columns(one(trainer="sam", around=0.1))) == plain | {"trainer", "around"}
    assert not {"attention", "patch", "dim", "depth"} & set(measure.columns(one()))


NETWORK_CONSTANTS = [
    (measure, "PIXELS", {"digits": (0.3, 0.4)}),
    (data, "fingerprint", lambda name: "other pixels"),
]
ROW_CONSTANTS = [
    (measure, "COMPARABLE_LOSS", 0.2),
    (measure, "COMPARABLE_ACCURACY", 0.99),
    (measure, "COMPARABLE_CHANGE", 0.2),
    (measure, "COMPARABLE_BLIND", 0.2),
]


@pytest.mark.parametrize(("module", "name", "value"), NETWORK_CONSTANTS + ROW_CONSTANTS)
def test_a_changed_constant_is_another_row(monkeypatch, module, name, value):
    matched = one(protocol="matched")
    network, row = experiments.network(matched), experiments.key(matched, SMALL)
    monkeypatch.setattr(module, name, value)
    assert experiments.key(matched, SMALL) != row
    assert (experiments.network(matched) != network) == ((module, name, value) in NETWORK_CONSTANTS)


def test_a_changed_default_is_another_row(monkeypatch):
    """Today's default run never takes the row of another default: its key says every value."""
    longer = dataclasses.make_dataclass("Measurement", [("n_attacked", int, 96)], bases=(Measurement,), frozen=True)
    assert experiments.key(one(), longer()) != experiments.key(one(), Measurement())
    assert experiments.key(one(), Measurement(n_attacked=64)) == experiments.key(one(), Measurement())


@pytest.mark.parametrize(
    ("protocol", "change"),
    [("matched", {"patience": 6}), ("plateau", {"warmup_share": 0.03}), ("plateau", {"momentum": 0.8})],
)
def test_every_field_of_the_recipe_is_part_of_the_key(monkeypatch, protocol, change):
    experiment = one(protocol=protocol)
    before, recipe = experiments.network(experiment), experiment.recipe
    monkeypatch.setattr(Experiment, "recipe", dataclasses.replace(recipe, **change))
    assert experiments.network(experiment) != before
    monkeypatch.setattr(Experiment, "recipe", recipe)
    assert experiments.network(experiment) == before


@pytest.mark.parametrize("word", ["score", "link", "norm"])
def test_a_kernels_words_are_part_of_the_keys_of_transformers_alone(monkeypatch, word):
    transformer = one(architecture="vit", attention="gaussian")
    before = experiments.network(transformer), experiments.network(one())
    monkeypatch.setitem(attention.KERNELS, "gaussian", attention.KERNELS["gaussian"] | {word: "another"})
    assert experiments.network(transformer) != before[0]
    assert experiments.network(one()) == before[1]


@pytest.mark.parametrize(
    ("function", "networks", "rows"),
    [
        (data.load, "both", "both"),
        (measure.train, "both", "both"),
        (attention.kernel, "vit", "vit"),
        (measure.measure, "", "both"),
        (measure._flatness, "", "both"),
        (measure._input_side, "", "both"),
        (robustness.attribution_robustness, "", "both"),
        (measure._size, "", "both"),
        (experiments.under_attack, "", "both"),
        (experiments.controls, "", "both"),
        (attributions.occlusion, "", "both"),
        (experiments.inside, "", "vit"),
        (experiments.margins, "", ""),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_raised_version_is_another_key_of_exactly_what_the_function_makes(monkeypatch, function, networks, rows):
    kinds = {"mlp": one(), "vit": one(architecture="vit")}
    before = {k: (experiments.network(e), experiments.key(e, SMALL)) for k, e in kinds.items()}
    monkeypatch.setattr(function, "version", function.version + 1)
    for kind, e in kinds.items():
        assert (experiments.network(e) != before[kind][0]) == (networks in ("both", kind)), kind
        assert (experiments.key(e, SMALL) != before[kind][1]) == (rows in ("both", kind)), kind


def test_settings_of_averaged_maps_enter_the_key_of_what_they_made_alone(monkeypatch):
    averaged = dataclasses.replace(SMALL, maps=("saliency", "smooth_grad"))
    before = [experiments.key(one(), m) for m in (SMALL, averaged)]
    monkeypatch.setattr(explanations, "SIGMA", 0.2)
    after = [experiments.key(one(), m) for m in (SMALL, averaged)]
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("name", ["smooth_grad", "integrated_gradients"])
def test_a_raised_version_of_a_map_is_another_key_of_a_transformers_pooled_one_too(monkeypatch, name):
    few = [dataclasses.replace(SMALL, maps=maps) for maps in (("saliency",), ("saliency", name))]
    before = [experiments.key(one(architecture="vit"), m) for m in few]
    monkeypatch.setattr(getattr(attributions, name), "version", 2, raising=False)
    after = [experiments.key(one(architecture="vit"), m) for m in few]
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("field", ["loss", "augmentation", "schedule", "trainer"])
def test_a_raised_version_of_what_a_recipe_names_is_another_network_of_exactly_that_recipe(monkeypatch, field):
    registry = getattr(training, {"loss": "LOSSES"}.get(field, f"{field}s".upper()))
    recipes = [one(protocol=protocol) for protocol in ("matched", "plateau")]
    before = [(experiments.network(e), experiments.key(e, SMALL)) for e in recipes]
    for name, function in ((name, function) for name, function in registry.items() if function):
        with monkeypatch.context() as patch:
            patch.setattr(function, "version", 2, raising=False)
            for e, (network, row) in zip(recipes, before, strict=True):
                named = getattr(e.recipe, field) == name
                assert (experiments.network(e) != network) == (experiments.key(e, SMALL) != row) == named, name


def test_the_version_of_a_penalty_enters_the_key_of_what_it_trained_alone(monkeypatch):
    plain = experiments.network(one())
    penalised = dataclasses.replace(one().recipe, penalty="input_gradient", strength=0.1)

    def key(recipe=penalised):
        with monkeypatch.context() as patch:
            patch.setattr(Experiment, "recipe", recipe)
            return experiments.network(one())

    before = key()
    monkeypatch.setattr(regularizers.input_gradient, "version", 2)
    assert key() != before
    assert experiments.network(one()) == plain
    monkeypatch.setattr(regularizers.input_gradient, "version", None)
    with pytest.raises(ValueError, match="'input_gradient' has no version"):
        key()


MAPS_OF = {
    "saliency": ("mlp", "vit", "few"), "on_patches": ("vit", "few"), "raw_attention": ("vit", "few"),
    "rollout": ("vit", "few"), "gradient_attention": ("vit",), "relevance": ("vit",), "input_x_gradient": (),
    "integrated_gradients": (),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPS_OF)
def test_a_raised_version_of_an_attribution_is_another_row_of_exactly_what_used_it(monkeypatch, name):
    few = dataclasses.replace(SMALL, maps=("plain_rollout",))
    kinds = {"mlp": (one(), SMALL), "vit": (one(architecture="vit"), SMALL), "few": (one(architecture="vit"), few)}
    before = {kind: (experiments.network(e), experiments.key(e, m)) for kind, (e, m) in kinds.items()}
    table = keys.table("t", doubled, (2,), version=1, device="cpu")
    library = keys.table("t", experiments.margins, (2,), version=None, device="cpu")
    monkeypatch.setattr(getattr(attributions, name), "version", 2)
    for kind, (e, m) in kinds.items():
        assert experiments.network(e) == before[kind][0]
        assert (experiments.key(e, m) != before[kind][1]) == (kind in MAPS_OF[name]), kind
    assert keys.table("t", doubled, (2,), version=1, device="cpu") != table
    assert keys.table("t", experiments.margins, (2,), version=None, device="cpu") == library


def test_version_1_of_what_was_versioned_later_leaves_the_keys_as_they_were(monkeypatch):
    def found():
        rows = [experiments.key(e, SMALL) for e in (one(), one(architecture="vit"))]
        return [*rows, keys.table("t", doubled, (2,), version=1, device="cpu")]

    for function in keys.LATE_INSTRUMENTS:
        monkeypatch.setattr(function, "version", 1, raising=False)
    first = found()
    for function in keys.LATE_INSTRUMENTS:
        monkeypatch.delattr(function, "version")
    assert found() == first


def test_what_is_not_measured_is_not_in_the_key(monkeypatch):
    light = dataclasses.replace(SMALL, curvature=False)
    before = experiments.key(one(), light)
    monkeypatch.setattr(measure._flatness, "version", measure._flatness.version + 1)
    assert experiments.key(one(), light) == before


def test_another_device_is_another_network_and_row():
    assert experiments.network(one()) != experiments.network(one(), "cuda")
    assert experiments.key(one(), SMALL) != experiments.key(one(), SMALL, "cuda")


def test_neither_order_nor_kind_of_numbers_matters(unchecked):
    plain = Measurement(radii=(4, 8), effort=attacks.Effort(betas=(5, 10)), maps=("rollout", "saliency"))
    for other in (
        Measurement(radii=(8, 4.0), effort=attacks.Effort(betas=[5.0, 10.0]), maps=("saliency", "rollout")),
        Measurement(radii=[4, 8.0, 8], effort=attacks.Effort(betas=(5, 10.0)), maps=["rollout", "saliency"]),
    ):
        assert experiments.key(one(), plain) == experiments.key(one(), other)
    turned = dataclasses.replace(plain, effort=attacks.Effort(betas=(10, 5)))
    assert experiments.key(one(), plain) != experiments.key(one(), turned)
    assert experiments.network(one(step_size=1)) == experiments.network(one(step_size=1.0))


def test_a_transformer_is_trained_measured_and_its_words_are_columns(folder):
    store = Store("notebook", out=folder / "out")
    options = {"patch": 2, "dim": 4, "depth": 1}
    found = run(
        experiments.grid(**BASE | {"protocol": "plateau", "architecture": "vit", "seed": [0, 1]} | options), store
    )
    rows = found.runs
    assert rows[["attention", "patch", "dim", "depth"]].iloc[0].tolist() == ["softmax", 2, 4, 1]
    assert rows[["sharpness", "logit_input_curvature"]].notna().all(axis=None)
    assert found.wide(map="rollout", attack="worst", radius=8)["spearman"].notna().all()
    assert found.wide(map="saliency", readout="logit", attack="noise", radius=8)["spearman"].notna().all()
    assert set(zip(found.attacked["map"], found.attacked["readout"], strict=True)) == {
        *itertools.product(("saliency", "gradient_attention", "relevance"), ("logit", "log_probability")),
        ("raw_attention", "none"), ("rollout", "none"),
    }  # fmt: skip
    assert "invariant_flatness" not in rows
    alone = run(
        experiments.grid(**BASE | {"protocol": "plateau", "architecture": "vit"} | options),
        Store("alone", out=folder / "alone"),
    )
    assert_equal(alone, Rows(rows.iloc[:1], found.attacked[found.attacked["key"] == rows["key"][0]]))


def test_seeds_are_trained_together_where_that_is_faster_and_small_steps_begin(folder, trainings):
    common = BASE | {"protocol": "plateau", "seed": [0, 1], "step_size": [0.2, 0.05]}
    dense, store = experiments.grid(**common), Store("dense", out=folder / "dense")
    run(dense, store)
    assert trainings == [[0, 1], [0, 1]]
    trainings.clear()
    assert [len(g) for g in sweep._groups(dense, "cpu", store)] == [1] * 4  # stored networks are measured side by side
    options = {"architecture": "vit", "patch": 2, "dim": 4, "depth": 1}
    grid = experiments.grid(**common | options)
    assert [[(e.step_size, e.seed) for e in g] for g in sweep._groups(grid, "cpu", store)] == [
        [(0.05, 0)], [(0.05, 1)], [(0.2, 0)], [(0.2, 1)]
    ]  # fmt: skip
    assert [[e.seed for e in g] for g in sweep._groups(grid, "cuda", store)] == [[0, 1], [0, 1]]


def test_transformers_of_other_kernels_are_trained_and_measured_their_row_mass_too(folder):
    options = {"protocol": "plateau", "architecture": "vit", "patch": 2, "dim": 4, "depth": 1}
    grid = experiments.grid(**BASE | options | {"attention": ["softmax", "gaussian", "relu"]})
    light = dataclasses.replace(SMALL, effort=attacks.Effort(steps=1, restarts=1, betas=(5,)), n_attacked=2)
    found = experiments.run(grid, light, store=Store("notebook", out=folder / "out"), jobs=1)
    rows = found.runs.set_index("attention")
    assert rows.loc[["gaussian", "relu"], "mass"].notna().all()
    assert math.isnan(rows.loc["softmax", "mass"])
    shared = rows.columns.difference(["mass", "empty"])
    alone = experiments.run(grid[:1], light, store=Store("alone", out=folder / "alone"), jobs=1).runs
    alone = alone.set_index("attention")
    assert set(alone.columns) == set(shared)
    pd.testing.assert_frame_equal(alone, rows.loc[["softmax"], alone.columns])
    assert found.wide(attack="worst", map="rollout", radius=8)["spearman"].notna().all()
    assert found.wide(attack="noise", map="saliency", readout="logit", radius=8)["spearman"].notna().all()


@pytest.mark.parametrize("architecture", ["mlp", "vit"])
def test_a_map_that_could_only_be_climbed_blindly_is_a_row_without_a_number_and_stops_no_sweep(
    folder, monkeypatch, architecture
):
    def refused(*_, **__):
        raise attacks.BlindError("the derivative says nothing")

    monkeypatch.setattr(attacks, "auto", refused)
    options = {"patch": 2, "dim": 4, "depth": 1} if architecture == "vit" else {}
    grid = experiments.grid(**BASE | options | {"protocol": "plateau", "architecture": architecture})
    found = run(grid, Store("03_x"))
    worst, noise = (found.attacked[found.attacked["attack"] == attack] for attack in ("worst", "noise"))
    measures = worst[worst["metric"] != "counted"]
    assert measures["value"].isna().all()
    assert (measures["n"] == 0).all()
    assert not worst["value"].any(skipna=True)
    assert noise[noise["map"] == "saliency"]["value"].notna().all()
    assert len(worst) == len(noise) > 0
    assert_equal(run(grid, Store("03_x")), found)


def test_every_field_of_a_measurement_changes_the_row_and_not_the_network():
    assert set(OTHER_MEASURE) == {f.name for f in dataclasses.fields(Measurement)}
    others = [dataclasses.replace(SMALL, **{name: value}) for name, value in OTHER_MEASURE.items()]
    assert len({experiments.key(one(), m) for m in (SMALL, *others)}) == 1 + len(OTHER_MEASURE)


def test_single_maps_have_radii_of_their_own_and_share_the_common_ones(folder):
    maps = ("rollout", "saliency")
    measurement = dataclasses.replace(SMALL, maps=maps, radii=(8,), radii_of=(("rollout", 16.0), ("rollout", 8)))
    assert measurement.asked(maps) == {8: ["rollout", "saliency"], 16: ["rollout"]}
    grid = experiments.grid(**BASE | {"protocol": "plateau", "architecture": "vit", "patch": 2, "dim": 4, "depth": 1})
    found = experiments.run(grid, measurement, store=Store("03_x"), jobs=1)
    worst = found.attacked[(found.attacked["attack"] == "worst") & (found.attacked["metric"] == "spearman")]
    assert sorted({*worst[["map", "radius"]].itertuples(index=False, name=None)}) == [
        ("rollout", 8), ("rollout", 16), ("saliency", 8),
    ]  # fmt: skip
    assert_equal(experiments.run(grid, measurement, store=Store("03_x"), jobs=1), found)
    common = experiments.run(grid, dataclasses.replace(measurement, radii_of=()), store=Store("03_x"), jobs=1)
    at_both = worst[worst["radius"] == 8].set_index(["readout", "map"])["value"]
    again = common.attacked[(common.attacked["attack"] == "worst") & (common.attacked["metric"] == "spearman")]
    pd.testing.assert_series_equal(again.set_index(["readout", "map"])["value"], at_both)


def test_every_field_of_the_effort_changes_the_row():
    assert set(OTHER_EFFORT) == {f.name for f in dataclasses.fields(attacks.Effort)}
    efforts = [dataclasses.replace(SMALL.effort, **{name: value}) for name, value in OTHER_EFFORT.items()]
    others = [dataclasses.replace(SMALL, effort=effort) for effort in efforts]
    assert len({experiments.key(one(), m) for m in (SMALL, *others)}) == 1 + len(OTHER_EFFORT)


def test_another_recipe_is_another_network(monkeypatch):
    before = experiments.network(one())
    named = training.recipes.RECIPES
    monkeypatch.setitem(named, "plateau", named["plateau"] | {"weight_decay": 1e-6})
    assert experiments.network(one()) != before


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
    """One trained network with its row and its attacked similarities."""
    experiment = one(epochs=4)
    (model,), (fit,) = measure.train([experiment])
    return experiment, model, fit, *measure.measure(experiment, SMALL, model, fit)


def value(attacked, attack, metric):
    """The one number of the logit's saliency at the one radius."""
    index = ["map", "readout", "attack", "metric", "radius"]
    return attacked.set_index(index).loc[("saliency", "logit", attack, metric, 8), "value"]


@pytest.mark.parametrize("architecture", ["mlp", "convnet"])
def test_flatness_columns_are_drawn_by_the_experiments_own_seed(architecture):
    experiment = one(epochs=2, architecture=architecture, seed=3)
    (model,), (fit,) = measure.train([experiment])
    (once, _), (again, _) = (measure.measure(experiment, SMALL, model, fit) for _ in range(2))
    random = ["sharpness", "sharpness_error", "logit_input_curvature", "logit_relative_curvature"]
    random += ["trace", "trace_error"] if architecture == "convnet" else []
    assert all(once[name] == again[name] for name in [*random, "trace", "trace_error"])
    other, _ = measure.measure(dataclasses.replace(experiment, seed=4), SMALL, model, fit)
    for names in (["sharpness", "sharpness_error"], ["logit_input_curvature", "logit_relative_curvature"]):
        assert any(once[name] != other[name] for name in names)  # the errors of another start
    if architecture == "convnet":
        assert once["trace_error"] > 0
        assert once["trace"] != other["trace"]
        assert abs(once["trace"] - other["trace"]) <= 6 * max(once["trace_error"], other["trace_error"])
    else:
        assert (once["trace_error"], once["trace"]) == (0, other["trace"])


def test_columns_are_what_the_library_measures_on_the_trained_network(measured):
    experiment, model, fit, row, attacked_rows = measured
    digits = data.load("digits", side=4, n_train=48)
    attacked = experiments.shown(experiment, 4).x
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
        model, attacked, attributions={"saliency": attributions.saliency}, ball=Ball("linf", 8 / 255), k=2,
        effort=SMALL.effort, generator=cases.generator(experiment.seed),
    )  # fmt: skip
    for attack in ("worst", "noise"):
        rows = table[table["attack"] == attack]
        for name in ("top_k", "top_k_share", "cosine", "displacement", "counted"):
            assert value(attacked_rows, attack, name) == pytest.approx(rows[name].mean(), rel=1e-5)
    assert (attacked_rows["n"] == 4).all()
    with torch.no_grad():
        start = experiments.build(experiment)
        pairs = list(zip(model.parameters(), start.parameters(), strict=True))
        assert row["weight_norm"] == pytest.approx(torch.cat([w.flatten() for w, _ in pairs]).norm().item(), rel=1e-5)
        assert row["distance"] == pytest.approx(
            torch.cat([(w - v).flatten() for w, v in pairs]).norm().item(), rel=1e-5
        )
        layers = [layer.weight for layer in model.layers if hasattr(layer, "weight")]
        assert row["first_layer_norm"] == pytest.approx(layers[0].norm().item(), rel=1e-5)
        largest = [np.linalg.svd(weight.numpy(), compute_uv=False)[0] for weight in layers]
        assert row["spectral_product"] == pytest.approx(np.prod(largest), rel=1e-4)
        logits, y = model(digits.train.x), digits.train.y
        rest = logits.clone().scatter_(1, y[:, None], -math.inf).amax(1)
        assert row["margin"] == pytest.approx((logits.gather(1, y[:, None])[:, 0] - rest).mean().item(), rel=1e-5)
    log_p = attributions.saliency(model, attacked, target, readout=models.readouts.log_probability)
    assert row["log_probability_gradient"] == pytest.approx(log_p.flatten(1).norm(dim=1).mean().item(), rel=1e-5)


def test_images_are_a_seeds_own_balanced_draw_whatever_the_network():
    first = experiments.shown(one(), 40)
    assert torch.equal(first.x, experiments.shown(one(step_size=0.3, activation="relu", protocol="standard"), 40).x)
    assert first.y.bincount(minlength=10).tolist() == [4] * 10
    other = experiments.shown(one(seed=1), 40)
    assert not torch.equal(first.x, other.x)
    test = data.load("digits", side=4, n_train=48).test
    assert all((test.x == image).flatten(1).all(1).any() for image in other.x)


def test_the_deciding_line_keeps_every_image_and_no_other_line_does(measured):
    _, _, _, _, attacked = measured
    deciding = (attacked["attack"] == "worst") & (attacked["metric"] == "spearman")
    assert set(attacked.loc[~deciding, "images"]) == {""}
    for line in attacked[deciding].itertuples():
        values = [float(word) for word in line.images.split()]
        assert len(values) == 4
        assert sum(values) / 4 == pytest.approx(line.value, abs=1e-4)


def test_a_similarity_that_was_not_attacked_is_not_counted(measured, monkeypatch):
    experiment, model, fit, _, before = measured
    plain = robustness.attribution_robustness

    def partly(*arguments, **options):
        table = plain(*arguments, **options)
        return table.assign(spearman=table["spearman"].where(table["image"] != 1))

    monkeypatch.setattr(robustness, "attribution_robustness", partly)
    after = measure.measure(experiment, SMALL, model, fit)[1]
    counted = after[after["readout"] == "logit"].set_index(["attack", "metric"])
    assert counted.loc[("worst", "spearman"), "n"] == 3
    assert counted.loc[("worst", "spearman"), "images"].split()[1] == "nan"
    assert value(after, "worst", "top_k") == value(before, "worst", "top_k")


def test_a_networks_weights_do_not_depend_on_the_seeds_beside_it(measured):
    experiment, model, _, row, attacked = measured
    networks, fits = measure.train([dataclasses.replace(experiment, seed=s) for s in (2, 0)])
    for p, q in zip(networks[1].parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
    again, attacked_again = measure.measure(experiment, SMALL, networks[1], fits[1])
    assert again == row
    pd.testing.assert_frame_equal(attacked_again, attacked, check_exact=True)


def test_attack_and_noise_of_another_seed_draw_other_numbers(measured):
    experiment, model, fit, row, attacked = measured
    again, attacked_again = measure.measure(dataclasses.replace(experiment, seed=1), SMALL, model, fit)
    assert again["train_loss"] == row["train_loss"]
    for attack in ("noise", "worst"):
        assert value(attacked_again, attack, "displacement") != value(attacked, attack, "displacement")


def test_a_relu_network_is_attacked_through_its_twins():
    experiment = one(activation="relu")
    (model,), (fit,) = measure.train([experiment])
    _, attacked = measure.measure(experiment, SMALL, model, fit)
    assert value(attacked, "worst", "cosine") < value(attacked, "noise", "cosine")


def test_a_diverged_network_is_noted_and_not_measured():
    experiment = one(step_size=1e12, activation="relu", epochs=3)
    (model,), (fit,) = measure.train([experiment])
    row, attacked = measure.measure(experiment, SMALL, model, fit)
    assert fit.diverged
    assert attacked.empty
    assert (row["comparable"], row["reason"]) == (False, "diverged")
    assert "sharpness" not in row


def test_no_product_on_a_gpu_is_rounded_to_ten_bits_and_a_users_choice_is_put_back(monkeypatch):
    parts, seen = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn), []

    def words():
        return [part.fp32_precision for part in parts]

    def watched(found):
        def spy(*given, **how):
            seen.append(words())
            return found

        return spy

    monkeypatch.setattr(training, "fit", watched([training.Fit()]))
    monkeypatch.setattr(measure, "blind", watched(torch.ones(4, dtype=torch.bool)))
    before = words()
    try:
        for chosen in (before, ["ieee"] * 3, ["tf32"] * 3):
            for part, word in zip(parts, chosen, strict=True):
                part.fp32_precision = word
            networks, fits = measure.train([one()])
            measure.measure(one(), SMALL, networks[0], fits[0])
            assert words() == chosen
    finally:
        for part, word in zip(parts, before, strict=True):
            part.fp32_precision = word
    assert seen == [["ieee"] * 3] * 6


def test_what_trains_is_a_column_of_every_row_beside_another_and_read_again(folder):
    store = Store("a", committed=False)
    asked = [one(), one(penalty="input_gradient", strength=0.1), one(weight_decay=0.0, trainer="sam", around=0.1)]
    runs = experiments.run(asked, SMALL, store=store, jobs=1).runs
    assert runs["penalty"].tolist() == ["none", "input_gradient", "none"]
    assert runs["strength"].tolist() == [0.0, 0.1, 0.0]
    assert runs["trainer"].tolist() == ["sgd", "sgd", "sam"]
    assert runs["weight_decay"].isna().tolist() == [True, True, False]
    store.gather(experiments.run(asked, SMALL, store=store, jobs=1))
    read = pd.read_csv(store.out / "runs.csv").to_dict("records")
    lines = pd.read_csv(store.out / "attacked.csv")
    for e, row in zip(asked, read, strict=True):
        mine = lines[lines.key == row["key"]].drop(columns="key").to_dict("records")
        assert schema.fault(row, mine, e, SMALL) == ""
        assert schema.fault(row | {"penalty": "ssr"}, mine, e, SMALL) == (
            f"column 'penalty' holds 'ssr', but its key stands for {e.penalty!r}"
        )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"around": 8.0}, "around is 8.0; trainer 'sgd' takes none"),
        ({"strength": -1.0}, "strength is -1.0; it must be a finite number of at least 0"),
        ({"strength": 0.1}, "strength is 0.1; only a recipe with a penalty takes it"),
        ({"penalty": "srs"}, "penalty is 'srs'; it must be one of .*did you mean 'ssr'"),
        ({"weight_decay": -1}, "weight_decay is -1; it must be a finite number of at least 0"),
    ],
)
def test_training_that_does_not_go_together_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        one(**change)


def test_no_decay_is_no_decay_under_any_protocol():
    assert one(protocol="decay_held").recipe.decay > 0
    assert one(protocol="decay_held", weight_decay=0.0).recipe.decay == 0
    assert one(protocol="decay_held", weight_decay=0.2).recipe.decay == 0.2


def test_batch_norm_under_a_penalty_is_refused_before_anything_is_trained(folder, trainings):
    asked = [one(), one(architecture="convnet_bn", side=8, penalty="ssr", strength=0.1)]
    with pytest.raises(ValueError, match="architecture is 'convnet_bn' under 'ssr'; BatchNorm takes plain SGD"):
        experiments.run(asked, SMALL, store=Store("a", committed=False), jobs=1)
    assert not trainings


def test_the_first_layer_standardises_with_the_training_pixels_own_numbers():
    digits = data.load("digits").train.x
    assert measure.PIXELS["digits"] == pytest.approx((digits.mean().item(), digits.std().item()), abs=2e-3)
    layer = experiments.build(one()).layers[0]
    assert isinstance(layer, models.Standardize)
    assert (layer.mean.item(), layer.std.item()) == pytest.approx(measure.PIXELS["digits"])


# ------------------------------------------------------------------ sweeps


def assert_equal(first, second):
    for name in ("runs", "attacked"):
        left, right = (getattr(rows, name).reset_index(drop=True) for rows in (first, second))
        pd.testing.assert_frame_equal(left, right, check_exact=True)


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
    pd.testing.assert_frame_equal(again.runs.iloc[:3], first.runs)
    trainings.clear()
    assert_equal(run(GRID, Store("03_x")), again)
    assert trainings == []
    assert [(r.step_size, r.seed) for r in again.runs.itertuples()] == [(e.step_size, e.seed) for e in GRID]


def test_a_lost_row_comes_back_bit_for_bit(folder, trainings):
    store = Store("03_x")
    run(GRID[:2], store)
    path = store.out / "rows" / f"{experiments.key(GRID[1], SMALL)}.json"
    right = path.read_bytes()
    (model,), (fit,) = measure.train([GRID[1]])
    row, attacked = measure.measure(GRID[1], SMALL, model, fit)
    assert read_json(path) == {"run": measure.columns(GRID[1]) | row, "attacked": attacked.to_dict("records")}
    path.unlink()
    run(GRID[:2], store)
    assert path.read_bytes() == right


def test_rows_depend_neither_on_the_number_of_workers_nor_on_the_process(folder):
    here = run(GRID, Store("03_x", out=folder / "one"))
    there = run(GRID, Store("03_x", out=folder / "two"), jobs=2)
    assert_equal(here, there)


def commit(store):
    """Put what a store gathered among the committed files."""
    (paths.figures / "03_x").mkdir(parents=True, exist_ok=True)
    for name in ("runs.csv", "attacked.csv"):
        shutil.copy(store.out / name, paths.figures / "03_x" / name)


def test_committed_rows_are_reused_unless_that_is_forbidden(folder, trainings):
    store = Store("03_x", out=folder / "old")
    table = run(GRID[:2], store)
    store.gather(table)
    commit(store)
    trainings.clear()
    reader = Store("03_x", out=folder / "new")
    assert_equal(run(GRID[:2], reader), table)
    assert trainings == []
    assert (len(reader.trained), len(reader.reused)) == (0, 2)
    assert read_json(reader.out / "summary.json") == {"trained": 0, "reused": 2, "left_out": {}}
    fresh = Store("03_x", out=folder / "fresh", committed=False)
    assert_equal(run(GRID[:2], fresh), table)
    assert trainings == [[0, 1]]
    assert (len(fresh.trained), len(fresh.reused)) == (2, 0)


def test_own_rows_win_over_committed_ones(folder):
    store = Store("03_x")
    table = run(GRID[:1], store)
    store.gather(Rows(table.runs.assign(sharpness=-1.0), table.attacked))
    commit(store)
    assert run(GRID[:1], Store("03_x")).runs["sharpness"].tolist() == table.runs["sharpness"].tolist()
    assert run(GRID[:1], Store("03_x", out=folder / "new")).runs["sharpness"].tolist() == [-1.0]


# ------------------------------------------------------------------ rows that are not what they should be


def deciding(row):
    """The line that keeps its images."""
    return next(line for line in row["attacked"] if line["images"])


SPOILS = [
    (lambda r: r["run"].update(seed=1), "column 'seed' holds 1, but its key stands for 0"),
    (lambda r: r["run"].update(step_size=0.051), "column 'step_size' holds 0.051, but its key stands for 0.05"),
    (lambda r: r["run"].pop("trace"), "column 'trace' is missing, or not finite"),
    (lambda r: r["run"].update(trace=math.inf), "column 'trace' is missing, or not finite"),
    (lambda r: r["run"].update(test_accuracy=1.5), r"column 'test_accuracy' is 1.5; it must lie in \[0, 1\]"),
    (lambda r: r["run"].update(steps="many"), "column 'steps' is 'many'; it must be a number"),
    (lambda r: r["run"].update(comparable="yes"), "column 'comparable' holds 'yes'; it must be True or False"),
    (lambda r: r["run"].update(comparable=not r["run"]["comparable"]), "a run has a reason or is comparable"),
    (lambda r: r["run"].update(worst_top_k_8=0.5), "column 'worst_top_k_8' belongs to no run"),
    (lambda r: r["attacked"][1].update(images="0.1"), "only the line of worst spearman has any"),
    (lambda r: deciding(r).update(images="0.1 0.2 0.3"), "images holds 3 numbers of 3; 4 of 4 were counted"),
    (lambda r: deciding(r).update(images="9 9 9 9"), "images have the mean 9.0000, beside"),
    (lambda r: deciding(r).update(images="a b c d"), "images is 'a b c d'; it must be numbers"),
    (lambda r: r["attacked"][1].update(value=99), r"is 99; it must lie in \["),
    (lambda r: r["attacked"][1].update(value="high"), "is 'high'; it must be a number"),
    (lambda r: r["attacked"][1].update(value=math.nan), "it is missing if none counted"),
    (lambda r: r["attacked"][1].update(n=0), "it is missing if none counted"),
    (lambda r: r["attacked"][1].update(n=5), "n is 5; it must be a whole number from 0 to 4"),
    (lambda r: r["attacked"][1].update(metric="topk"), "metric is 'topk'; it must be one of"),
    (lambda r: deciding(r).update(radius=4), "the number of .*radius 8.0 is missing"),
    (lambda r: r["attacked"].append(r["attacked"][0]), "stands there twice"),
    (lambda r: r["attacked"].pop(), "the number of .* is missing"),
    (lambda r: r["attacked"].append({**r["attacked"][0], "map": "rollout"}), "map rollout.* belongs to no such run"),
]


@pytest.fixture(scope="module")
def good():
    """A whole row of one comparable network, as it is stored."""
    experiment = one()
    (model,), _ = measure.train([experiment])
    fit = training.Fit(steps=6, train_loss=0.2, train_accuracy=1.0, late_change=0.01)
    run, attacked = measure.measure(experiment, SMALL, model, fit)
    return {"run": measure.columns(experiment) | run, "attacked": attacked.to_dict("records")}


def test_a_good_row_has_no_fault(good):
    assert schema.fault(good["run"], good["attacked"], one(), SMALL) == ""


def test_a_run_that_is_not_comparable_may_lack_what_could_not_be_measured(good):
    names = [*measure.columns(one()), *schema.FIT, "comparable", "reason"]
    run = {name: good["run"][name] for name in names} | {"comparable": False, "reason": "diverged"}
    assert schema.fault(run | {"train_loss": math.nan}, [], one(), SMALL) == ""


@pytest.mark.parametrize(("spoil", "sentence"), SPOILS)
def test_a_wrong_row_is_computed_again_in_a_sweep_and_refused_among_committed_ones(folder, good, spoil, sentence):
    key, store = experiments.key(one(), SMALL), Store("03_x")
    row = copy.deepcopy(good)
    spoil(row)
    write_json(store.out / "rows" / f"{key}.json", row)
    assert re.search(sentence, schema.fault(row["run"], row["attacked"], one(), SMALL))
    found = sweep._believed(store, {one(): key}, SMALL)
    assert found == {}
    said = (store.out / "progress.log").read_text()
    assert re.search(rf"{key}\.json: .*{sentence}.*: it is computed again", said)
    write_csv(paths.figures / "03_x" / "runs.csv", pd.DataFrame([{"key": key, **row["run"]}]))
    lines = pd.DataFrame(row["attacked"])
    write_csv(paths.figures / "03_x" / "attacked.csv", lines.assign(key=key))
    with pytest.raises(EvidenceError, match=r"runs\.csv, line 2: .*: restore it by git"):
        run([one()], Store("03_x", out=folder / "new"))


def test_a_wrong_attacked_line_is_named_by_file_and_line(folder, good):
    key = experiments.key(one(), SMALL)
    row = copy.deepcopy(good)
    row["attacked"][1]["value"] = 99
    write_csv(paths.figures / "03_x" / "runs.csv", pd.DataFrame([{"key": key, **row["run"]}]))
    write_csv(paths.figures / "03_x" / "attacked.csv", pd.DataFrame(row["attacked"]).assign(key=key))
    with pytest.raises(EvidenceError, match=r"attacked\.csv, line 3: .* is 99"):
        run([one()], Store("03_x"))


def test_a_row_that_was_cut_in_half_is_computed_again(folder, trainings):
    store = Store("03_x")
    table = run(GRID[:2], store)
    path = store.out / "rows" / f"{experiments.key(GRID[1], SMALL)}.json"
    right = path.read_bytes()
    path.write_bytes(right[:-9])
    trainings.clear()
    assert_equal(run(GRID[:2], store), table)
    assert trainings == []  # its network is there still
    assert path.read_bytes() == right
    assert f"{path} is damaged" in (store.out / "progress.log").read_text()


def test_another_networks_weights_end_in_a_sentence(folder):
    store = Store("03_x")
    run(GRID[:1], store)
    path = store.network_file(experiments.network(GRID[0]))
    other = Store("03_x", out=folder / "other")
    other.save_weights("k", cases.linear())
    shutil.copy(other.network_file("k"), path)
    with pytest.raises(ValueError, match=rf"{path} holds the weights of another network: delete it"):
        experiments.trained(GRID[0], store=store)


def test_a_grid_of_which_nothing_can_be_had_asks_for_the_data_set(folder):
    absent = [dataclasses.replace(e, dataset="mnist") for e in GRID]
    with pytest.raises(data.DataError, match=r"no network of this grid is stored.*run `make data DATASETS='mnist'`"):
        run(absent, Store("03_x", out=folder))


def test_a_table_whose_images_are_not_there_is_left_out_loudly_and_the_others_are_made(folder, capsys):
    store = Store("03_x", out=folder)
    tasks = [([dataclasses.replace(GRID[0], dataset="mnist")], 1), ([GRID[0]], 2)]
    table = experiments.tables(store, "names", named_set, tasks, version=1)
    assert table["dataset"].tolist() == ["digits"]
    reason = "names needs data set 'mnist', which is not on this machine"
    assert store.left_out == {reason: 1}
    assert capsys.readouterr().out == f"!!! LEFT OUT: 1 networks, because {reason}\n"
    assert experiments.tables(store, "names", named_set, tasks[:1], version=1).empty


def named_set(networks, number):
    return pd.DataFrame({"dataset": [e.dataset for e in networks], "number": number})


def test_a_killed_worker_ends_in_one_sentence_that_says_how_to_go_on():
    with pytest.raises(RuntimeError, match=r"killed, .*; the same command resumes where it stopped$"):
        list(experiments.in_workers(kill_worker, [(0,), (1,)], jobs=2))


def kill_worker(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_data_set_that_is_not_there_is_left_out_loudly_and_the_rest_is_run(folder):
    store = Store("03_x")
    absent = [dataclasses.replace(e, dataset="mnist") for e in GRID]
    table = run([*absent, GRID[0]], store)
    assert table.runs["dataset"].tolist() == ["digits"]
    assert store.left_out == {"data set 'mnist' is not on this machine": 4}
    assert read_json(store.out / "summary.json")["left_out"] == store.left_out


def test_stored_rows_need_no_data(folder, good):
    mnist = dataclasses.replace(one(), dataset="mnist")
    row = {"key": experiments.key(mnist, SMALL), **good["run"], "dataset": "mnist", "reason": math.nan}
    write_csv(paths.figures / "03_x" / "runs.csv", pd.DataFrame([row]))
    attacked = pd.DataFrame(good["attacked"]).assign(key=row["key"])
    write_csv(paths.figures / "03_x" / "attacked.csv", attacked)
    store = Store("03_x")
    found = run([mnist], store)
    assert found.runs["trace"].tolist() == [good["run"]["trace"]]
    assert found.runs["reason"].tolist() == [""]
    assert found.runs["comparable"].tolist() == [True]
    assert len(found.attacked) == len(attacked)
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
    assert known["key"].tolist() == table.runs["key"].tolist()
    assert (known["seconds"] > 0).all()
    for e in GRID[:2]:
        assert store.network_file(experiments.network(e)) is not None


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
    stored = load_weights(store.out / "networks" / f"{experiments.network(GRID[0])}.safetensors")
    assert torch.equal(stored["layers.2.weight"], first.layers[2].weight)
    assert store.trained == {experiments.network(GRID[0])}


def test_another_measurement_of_the_same_networks_trains_none_and_gives_what_training_would(folder, trainings):
    grid = [*GRID[:2], one(architecture="vit", attention="gaussian", patch=2)]
    again = dataclasses.replace(SMALL, radii=(4,), curvature=False)
    run(grid, Store("03_x"))
    trainings.clear()
    found = experiments.run(grid, again, store=(store := Store("03_x")), jobs=1)
    assert trainings == []
    assert store.trained == {experiments.network(e) for e in grid}
    fresh = experiments.run(grid, again, store=Store("04_y"), jobs=1)
    assert len(trainings) == 2
    pd.testing.assert_frame_equal(found.runs, fresh.runs)
    pd.testing.assert_frame_equal(found.attacked, fresh.attacked)
    (store.out / "weights" / f"{experiments.network(grid[0])}.safetensors").write_bytes(b"broken")
    trainings.clear()
    experiments.run(grid, dataclasses.replace(again, radii=(2,)), store=store, jobs=1)
    assert trainings == [[grid[0].seed]]


def test_a_network_whose_data_is_missing_says_so(folder):
    with pytest.raises(data.DataError, match="data set 'mnist' is not on this machine"):
        experiments.trained(dataclasses.replace(GRID[0], dataset="mnist", side=None), store=Store("03_x"))


CALLS = []


def test_a_network_is_trained_on_the_stores_device(folder, monkeypatch):
    asked = []

    def train(group, device="cpu", **how):
        asked.append(device)
        return measure.train(group)

    monkeypatch.setattr(sweep, "train", train)
    experiments.trained(GRID[0], store=(store := Store("03_x", device="cuda")))
    assert asked == ["cuda"]
    assert store.network_file(experiments.network(GRID[0], "cuda")) is not None
    assert store.network_file(experiments.network(GRID[0])) is None


def doubled(n, scale=2):
    CALLS.append(n)
    return pd.DataFrame({"n": [n], "value": [scale * n / 3]})


def tripled(n, scale=3):
    CALLS.append(n)
    return pd.DataFrame({"n": [n], "value": [scale * n / 3]})


def table(store, name, function, *arguments, version=1):
    return experiments.table(store, name, function, *arguments, version=version)


def test_a_table_is_computed_once_for_its_function_version_and_arguments(folder):
    CALLS.clear()
    store = Store("03_x")
    assert table(store, "t", doubled, 2)["value"].tolist() == [4 / 3]
    assert table(Store("03_x"), "t", doubled, 2.0)["value"].tolist() == [4 / 3]
    assert CALLS == [2]
    table(store, "t", doubled, 5)
    table(store, "t", doubled, 2, 7)
    table(store, "u", doubled, 2)
    assert table(store, "t", tripled, 2)["value"].tolist() == [2.0]
    table(store, "t", doubled, 2, version=2)
    assert CALLS == [2, 5, 2, 2, 2, 2]


def test_a_remark_in_a_stored_function_recomputes_nothing(folder):
    CALLS.clear()

    def made(remark):
        space = {"pd": pd, "CALLS": CALLS, "__name__": "__main__"}
        exec(f"def f(n):\n    # {remark}\n    CALLS.append(n)\n    return pd.DataFrame({{'n': [n]}})", space)
        return space["f"]

    for remark in ("one", "another"):
        experiments.table(Store("03_x"), "t", made(remark), 1, version=1)
    assert CALLS == [1]


def test_a_stored_function_without_a_version_is_refused_in_one_sentence(folder):
    with pytest.raises(ValueError, match=r"'doubled' has no version; write .*, or give version=1"):
        experiments.table(Store("03_x"), "t", doubled, 2)
    with pytest.raises(ValueError, match="version is 2; 'margins' has its own, 1"):
        experiments.table(Store("03_x"), "t", experiments.margins, 2, version=2)


def test_a_raised_version_of_an_instrument_recomputes_what_a_notebook_made_with_it(monkeypatch):
    def key(function=doubled, version=1):
        return keys.table("t", function, (2,), version=version, device="cpu")

    before, library = key(), key(experiments.margins, None)
    for function in keys.INSTRUMENTS:
        with monkeypatch.context() as patch:
            patch.setattr(function, "version", function.version + 1)
            assert key() != before, function.__name__
            assert (key(experiments.margins, None) != library) == (function is experiments.margins)
    assert key() == before


def test_a_table_depends_on_where_its_networks_are_trained():
    on = [keys.table("t", doubled, ([GRID[0]],), version=1, device=device) for device in ("cpu", "cuda")]
    assert on[0] != on[1]
    on = [keys.table("t", doubled, (2,), version=1, device=device) for device in ("cpu", "cuda")]
    assert on[0] == on[1]


def test_an_argument_that_cannot_enter_a_key_is_refused(folder):
    with pytest.raises(TypeError, match="of type Tensor cannot enter a key"):
        table(Store("03_x"), "t", doubled, torch.zeros(2))


def test_tables_are_joined_in_the_order_of_their_tasks(folder):
    CALLS.clear()
    store = Store("03_x")
    table(store, "t", doubled, 4)
    joined = experiments.tables(store, "t", doubled, [(3,), (4,), (1,)], jobs=1, version=1)
    assert joined["n"].tolist() == [3, 4, 1]
    assert sorted(CALLS) == [1, 3, 4]
    assert (store.out / "progress.log").read_text().splitlines()[-1] == "t: 2/2 computed"


def test_a_table_of_a_network_depends_on_everything_its_weights_depend_on(folder):
    CALLS.clear()
    store = Store("03_x")

    def steps(network, networks):
        CALLS.append(network.step_size)
        return pd.DataFrame({"steps": [network.step_size, *[n.step_size for n in networks]]})

    assert table(store, "s", steps, GRID[0], [GRID[2]])["steps"].tolist() == [0.05, 0.2]
    table(store, "s", steps, GRID[0], [GRID[2]])
    table(store, "s", steps, GRID[0], [GRID[3]])
    table(store, "s", steps, GRID[1], [GRID[2]])
    assert CALLS == [0.05] * 3


def test_every_tasks_table_carries_its_own_label(folder):
    store = Store("03_x")
    labels = [{"arm": "b", "kind": 1}, {"arm": "a", "kind": 2}]
    for _ in range(2):
        found = experiments.tables(store, "labelled", doubled, [(3,), (1,)], version=1, jobs=1, labels=labels)
        assert found[["n", "arm", "kind"]].to_numpy().tolist() == [[3, "b", 1], [1, "a", 2]]
    assert "arm" not in experiments.tables(store, "labelled", doubled, [(3,), (1,)], version=1, jobs=1)


def test_no_tasks_need_no_workers():
    assert list(experiments.in_workers(doubled, [])) == []
