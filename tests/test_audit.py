"""Laws of an audit: what is measured of each map, how it is resumed, and what advice may say."""

import itertools
import json
from functools import partial
from types import SimpleNamespace

import cases
import numpy as np
import pandas as pd
import pytest
import torch
from attrobust import attacks, attributions, audit, curvature, faithfulness
from attrobust.audit import advice, batches, certificate
from attrobust.balls import Ball
from attrobust.experiments.store import Store
from attrobust.models.readouts import predictions
from torch import nn

EFFORT, BALL = attacks.Effort(steps=4, restarts=1, draws=4, walk=2), Ball("linf", 0.05)
HOW = {"ball": BALL, "k": 5, "effort": EFFORT}
MAPS = {"saliency": attributions.saliency, "input x gradient": attributions.input_x_gradient}


def measured(model, x, attribution, **changes):
    options = {"others": x.roll(-1, 0), "generator": cases.generator(), **HOW}
    return audit.attacked(model, x, attribution, **options | changes)


def of(table, compared):
    return table[table["compared"] == compared].set_index("image")


# ------------------------------------------------------------------ one map


def test_the_row_of_an_attack_is_the_worst_that_the_suite_finds_and_the_output_change_is_that_of_its_image():
    model, x = cases.conv(), cases.images(5)
    found = measured(model, x, attributions.saliency)
    suite = attacks.auto(attributions.saliency, model, x, BALL, k=5, generator=cases.generator(), effort=EFFORT)
    worst, row = suite.table[suite.table["part"] == "worst"], of(found.table, "attack")
    for name in ("top_k", "spearman", "cosine"):
        assert row[name].to_numpy() == pytest.approx(worst[name].to_numpy())
    change = (model(found.x).softmax(1) - model(x).softmax(1)).abs().amax(1)
    assert row["output"].to_numpy() == pytest.approx(change.detach().numpy())
    assert (row["kept"] == 1).all()
    assert torch.equal(predictions(model, found.x), predictions(model, x))
    assert (found.x - x).abs().max() <= 0.05 + 1e-9
    again = attacks.measure(found.clean, found.moved, k=5)["top_k"]
    assert row["top_k"].to_numpy() == pytest.approx(again.numpy())


def test_noise_and_other_images_stand_beside_the_attack():
    model, x = cases.conv(), cases.images(6)
    found = measured(model, x, attributions.saliency).table
    assert of(found, "noise of the same size")["top_k"].mean() > of(found, "attack")["top_k"].mean()
    own = attributions.saliency(model, x, predictions(model, x)).detach()
    other = attacks.measure(own, own.roll(-1, 0), k=5)
    for name in ("top_k", "spearman", "cosine"):
        assert of(found, "other image")[name].to_numpy() == pytest.approx(other[name].numpy())
    assert len(found) == 18


def same_everywhere(model, x, target):
    """A map that tells nothing of the image, but can be differentiated."""
    ramp = torch.linspace(1, 2, x[0].numel(), dtype=x.dtype).view_as(x[:1])
    return ramp + 1e-6 * attributions.saliency(model, x, target)


def test_a_map_that_is_the_same_for_every_image_keeps_everything_and_stays_by_nothing():
    table = measured(cases.conv(), cases.images(6), same_everywhere).table.assign(map="same")
    assert (of(table, "attack")["top_k"] == 1).all()
    assert (advice.stays(table, "same") == 0).all()


def test_others_of_another_shape_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"others has shape \(2, 2, 3, 3\); it must be that of x"):
        measured(cases.conv(), cases.images(3), attributions.saliency, others=cases.images(2))


# ------------------------------------------------------------------ all maps, batch by batch


@pytest.fixture
def store(tmp_path):
    return Store("09_x", out=tmp_path / "out", committed=False)


def whole(model, x, store, maps=MAPS, **changes):
    return batches.audited(
        model, x, maps, **{"radius": 0.05, "leading": 0.55, "effort": EFFORT, "seed": 0, "store": store} | changes
    )


def test_an_audit_does_not_depend_on_how_its_pictures_are_batched(tmp_path):
    model, x = cases.conv(), cases.images(5)
    one, other = (whole(model, x, Store("09_x", out=tmp_path / str(n), committed=False), batch=n) for n in (1, 5))
    assert len(one.table) == 2 * 3 * 5
    numbers = ["top_k", "spearman", "cosine", "output", "kept", "zero"]
    assert one.table[numbers].to_numpy() == pytest.approx(other.table[numbers].to_numpy(), abs=1e-9)
    named = ["map", "image", "compared"]
    for part in (one, other):
        assert set(map(tuple, part.table[named].to_numpy())) == {
            (name, i, c) for name in MAPS for i in range(5) for c in ("attack", "noise of the same size", "other image")
        }


def test_the_worst_pictures_are_kept_with_their_maps_the_worst_first(store):
    model, x = cases.conv(), cases.images(7)
    result = whole(model, x, store, batch=3)
    for name, kept in result.worst.items():
        told = of(result.table[result.table["map"] == name], "attack")["top_k"]
        assert told.loc[kept["index"]].is_monotonic_increasing
        assert told.loc[kept["index"]].max() <= told.drop(kept["index"]).min()
        assert np.array_equal(kept["x"], x.numpy()[kept["index"]])
        share = attacks.measure(torch.tensor(kept["clean"]), torch.tensor(kept["moved"]), k=5)["top_k"]
        assert share.numpy() == pytest.approx(told.loc[kept["index"]].to_numpy())


def test_what_is_finished_is_not_computed_again_and_a_changed_network_is(store, monkeypatch):
    model, x, calls = cases.conv(), cases.images(4), []
    attacked = batches.attacked

    def spy(*arguments, **options):
        calls.append(1)
        return attacked(*arguments, **options)

    spy.__name__, spy.version = "attacked", attacked.version
    monkeypatch.setattr(batches, "attacked", spy)
    first = whole(model, x, store, batch=2)
    assert len(calls) == 4
    again = whole(model, x, store, batch=2)
    assert len(calls) == 4
    pd.testing.assert_frame_equal(first.table, again.table)
    for name in MAPS:
        assert all(np.array_equal(first.worst[name][key], again.worst[name][key]) for key in first.worst[name])
    whole(nn.Sequential(model, Doubled()).eval(), x, store, batch=2)
    assert len(calls) == 8
    whole(model, x, store, batch=2, radius=0.04)
    assert len(calls) == 12


class Doubled(nn.Module):
    def forward(self, logits):
        return 2 * logits


def test_maps_that_differ_in_what_no_name_says_are_kept_apart(store):
    def scaled(by):
        return lambda model, x, target: attributions.saliency(model, by * x, target)

    model, x = cases.conv(), cases.images(4)
    maps = {"one": scaled(1.0), "half": scaled(0.5), **MAPS}
    layer = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    maps |= {f"cam {p}": partial(attributions.grad_cam, layer=layer, positive=p) for p in (False, True)}
    result = whole(model, x, store, maps)
    for name, attribution in maps.items():
        alone = measured(model, x, attribution, others=x[batches.others_of(predictions(model, x))]).table
        found = result.table[result.table["map"] == name]
        expected = of(alone, "other image")["top_k"]
        assert of(found, "other image")["top_k"].to_numpy() == pytest.approx(expected.to_numpy(), nan_ok=True), name


def test_other_images_are_of_another_class_where_there_is_one():
    model, x = cases.conv(), cases.images(12)
    given, others = predictions(model, x), batches.others_of(predictions(model, x))
    assert len(given.unique()) > 1
    assert (given[others] != given).all()
    alone = x[given == given[0]]
    assert batches.others_of(predictions(model, alone)).tolist() == [*range(1, len(alone)), 0]


def test_what_an_audit_found_can_be_written_whatever_it_is(store, tmp_path):
    def dead(model, x, target):
        return 0 * attributions.saliency(model, x, target)

    def detached(model, x, target):
        return attributions.saliency(model, x, target).detach()

    x = cases.images(3)
    for maps in ({"cut": detached}, {"dead": dead}, {"saliency": attributions.saliency, "dead": dead}):
        result = whole(cases.conv(), x, store, maps)
        told = {"accuracy": float("nan"), "place": tmp_path, "parameters": {"radius": np.float32(8)}}
        advised = audit.advise(result.table) if len(result.table) else []
        audit.write(tmp_path, result, advised, told=told, names=["a", "a", "b"])
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["accuracy"] is None
        assert set(report["refused"]) | {line["map"] for line in report["means"]} <= set(maps)
    worst = {path.name for path in (tmp_path / "worst").iterdir()}
    assert sum(name.endswith(".npz") for name in worst) == len(result.worst["saliency"]["index"]) + len(
        result.worst.get("dead", {"index": []})["index"]
    )
    assert len(audit.panels(result, "saliency", ["a", "a", "b"], model=cases.conv())) == 5 * 3


def test_a_map_that_cannot_be_climbed_is_refused_with_the_reason_and_the_others_go_on(store):
    def detached(model, x, target):
        return attributions.saliency(model, x, target).detach()

    lines = []
    result = whole(cases.conv(), cases.images(4), store, {"cut off": detached, **MAPS}, batch=2, say=lines.append)
    assert set(result.refused) == {"cut off"}
    assert len(result.refused["cut off"]) > 20
    assert set(result.table["map"]) == set(MAPS)
    assert len(lines) == 4
    assert lines[-1].startswith("input x gradient: 4 of 4 pictures, about 00:00")


@pytest.mark.parametrize(("blind", "refused"), [(1, False), (2, True)])
def test_where_a_picture_of_six_cannot_be_climbed_it_alone_is_not_attacked_and_of_two_the_map_is_refused(
    store, blind, refused
):
    x = cases.images(6)
    x[:, 0, 0, 0] = (torch.arange(6) < blind).to(x)

    result = whole(cases.conv(), x, store, {"partly": cases.partly_blind}, batch=1)
    assert set(result.refused) == ({"partly"} if refused else set())
    if not refused:
        told = result.table.set_index(["compared", "image"])["top_k"]
        assert told[advice.ATTACK].isna().tolist() == [True, *[False] * 5]
        assert told[[advice.NOISE, advice.OTHER]].notna().all()
        assert 0 not in result.worst["partly"]["index"]
        at_once = whole(cases.conv(), x, store, {"partly": cases.partly_blind}, batch=6).table
        noise = at_once.set_index(["compared", "image"])["top_k"]
        assert told[advice.NOISE].to_numpy() == pytest.approx(noise[advice.NOISE].to_numpy(), abs=1e-9)


def test_one_picture_is_refused_and_little_memory_leaves_one_at_a_time(store, monkeypatch):
    model = cases.conv()
    with pytest.raises(ValueError, match="x holds one picture"):
        whole(model, cases.images(1), store)
    assert batches.fitting(model, cases.images(9), EFFORT) == 9
    monkeypatch.setattr(batches, "FREE", 1e-12)
    assert batches.fitting(model, cases.images(9), EFFORT) == 1


class Heavy(nn.Module):
    """A network that keeps a large tensor for its backward pass, behind a small view, beside weights never used."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(10**6))

    def forward(self, x):
        wide = x.repeat(1, 1, 100, 100).sin()
        return wide[:, :1, :1, :4].exp().flatten(1)


def test_memory_is_told_by_what_is_kept_for_a_backward_pass_and_not_by_views_or_unused_weights(monkeypatch):
    x = cases.images(5)
    kept = x[0].numel() * 10**4 * x.element_size()
    rows = len(EFFORT.objectives) * EFFORT.restarts
    for pictures, found in ((7.5, 5), (4.5, 4), (3.5, 2), (1.5, 1), (0, 1)):
        free = pictures * kept * batches.TIMES * rows / batches.FREE
        monkeypatch.setattr(batches.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert batches.fitting(Heavy(), x, EFFORT) == found


def test_the_time_that_remains_counts_what_each_map_costs(store, monkeypatch):
    ticks, lines = itertools.count(0, 10), []
    monkeypatch.setattr(batches, "_seconds", lambda attribution, *_: 9.0 if attribution in dear else 1.0)
    monkeypatch.setattr(batches, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    dear = [MAPS["input x gradient"]]
    whole(cases.conv(), cases.images(4), store, say=lines.append)
    assert [line.split("about ")[1] for line in lines] == ["01:30 remain", "00:00 remain"]


# ------------------------------------------------------------------ advice


def rows(stay, *, noise=0.9, other=0.2, spread=0.05, n=40, seed=0, ranks=None):
    """A planted audit: maps by name with the share that stays under attack; `ranks` where their correlation differs."""
    draw, parts = np.random.default_rng(seed), []
    for name, value in stay.items():
        for compared, mean in (("attack", value), ("noise of the same size", noise), ("other image", other)):
            top = mean + spread * draw.standard_normal(n)
            rank = top if ranks is None or compared != "attack" else ranks[name] + spread * draw.standard_normal(n)
            told = {"map": name, "image": range(n), "compared": compared, "top_k": top, "spearman": rank, "zero": 0.0}
            parts.append(pd.DataFrame(told))
    return pd.concat(parts, ignore_index=True)


def told(table, about, **options):
    (found,) = [a for a in audit.advise(table, **options) if a.about == about]
    return found


def test_a_safer_map_is_advised_with_what_it_gains_on_pictures_that_did_not_choose_it():
    found = told(rows({"saliency": 0.3, "a": 0.5, "b": 0.35}), "map")
    assert found.says.startswith("Use a in place of saliency")
    assert found.use == "a"
    assert found.low < 0.2 < found.high
    assert found.pictures == 20


def test_where_no_map_is_safer_none_is_advised():
    assert told(rows({"saliency": 0.5, "a": 0.3, "b": 0.2}), "map").says.startswith("Keep saliency: of a")
    wide = told(rows({"saliency": 0.3, "a": 0.31, "b": 0.3}, spread=0.3), "map")
    assert wide.use == ""
    assert wide.says.startswith("Keep saliency: no map is shown to be safer")
    assert wide.low < 0 < wide.high
    assert told(rows({"saliency": 0.3}), "map").pictures == 0


def test_a_map_that_is_safer_by_one_measure_alone_is_not_advised():
    table = rows({"saliency": 0.3, "a": 0.5}, ranks={"saliency": 0.8, "a": 0.5})
    assert told(table, "map").says.startswith("Keep saliency: no map is shown to be safer")


@pytest.mark.parametrize(("shared", "begins"), [(0.3, "Use a"), (0.6, "Keep saliency: no map is shown")])
def test_ranks_that_rise_under_attack_may_be_shared_as_much_more_and_not_beyond(shared, begins):
    """Smoother networks have maps that are more alike all over: their ranks rise by what other pictures' ranks do."""
    table = rows({"saliency": 0.3, "a": 0.5}, ranks={"saliency": 0.7, "a": 0.8})
    other = (table["map"] == "a") & (table["compared"] == "other image")
    table.loc[other, "spearman"] += shared - 0.2
    assert told(table, "map").says.startswith(begins)


def test_chance_alone_seldom_makes_advice():
    names = ["saliency", *"abcd"]
    found = [told(rows(dict.fromkeys(names, 0.3), seed=seed), "map") for seed in range(60)]
    assert sum(a.says.startswith("Use") for a in found) <= 6  # 2.5 % of 60 are 1.5


def test_a_map_that_is_the_same_everywhere_is_never_advised():
    table = rows({"saliency": 0.4, "same": 1.0}, spread=0.0)
    other = (table["map"] == "same") & (table["compared"] == "other image")
    table.loc[other, ["top_k", "spearman"]] = 1.0
    assert told(table, "map").says.startswith("Keep saliency")


def test_a_map_no_better_than_random_pixels_is_neither_advised_nor_passed_over_in_silence():
    gaps = {"saliency": 0.5, "a": 0.01, "random": 0.0}
    draw = np.random.default_rng(0)
    parts = [
        pd.DataFrame({"image": range(30), "attribution": name, "deletion": 0.3, "insertion": 0.3 + gap})
        for name, gap in gaps.items()
    ]
    worth = pd.concat(parts, ignore_index=True)
    worth["insertion"] += 0.2 * draw.standard_normal(len(worth))
    table = rows({"saliency": 0.3, "a": 0.5})
    assert told(table, "map").says.startswith("Use a")
    assert told(table, "map", worth=worth).pictures == 0
    assert told(table, "worth", worth=worth).says.startswith("Do not use a")


def test_the_radius_advised_is_the_largest_at_which_half_of_the_leading_pixels_surely_stay():
    shares = {1 / 255: 0.9, 2 / 255: 0.7, 4 / 255: 0.5, 8 / 255: 0.8}
    curve = pd.concat([rows({"saliency": share}).assign(radius=radius) for radius, share in shares.items()])
    found = told(rows({"saliency": 0.5}), "radius", curve=curve)
    assert found.says.startswith("Up to a change of 2/255 at least half")
    assert found.value == pytest.approx(0.7, abs=0.05)
    every = told(rows({"saliency": 0.5}), "radius", curve=curve[curve["radius"] < 3 / 255])
    assert every.says.startswith("Up to a change of 2/255, the largest tried, at least half")
    none = told(rows({"saliency": 0.5}), "radius", curve=rows({"saliency": 0.3}).assign(radius=1 / 255))
    assert none.says.startswith("At no radius that was tried, from 1/255")


def test_an_attack_that_finds_no_more_than_noise_is_told_so():
    assert told(rows({"saliency": 0.4}), "fragility").says.endswith("an attack finds more than chance does.")
    assert told(rows({"saliency": 0.9}), "fragility").says.endswith("not shown to find more than chance.")


# ------------------------------------------------------------------ which maps there are


class Foreign(nn.Module):
    """A network in a style that is not ours: functional activations, a pooled head, names of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x):
        h = torch.nn.functional.silu(self.body(torch.nn.functional.silu(self.stem(x))))
        return self.head(h.mean((2, 3)))


def test_grad_cam_of_a_foreign_network_looks_at_its_last_feature_maps():
    with torch.random.fork_rng(devices=[]):
        model, x = cases.filled(Foreign().double(), 0).eval(), cases.images(3)
    assert audit.feature_maps(model, x) is model.body
    there, absent = audit.maps_of(model, x, ["grad_cam", "saliency"])
    target = predictions(model, x)
    expected = attributions.grad_cam(model, x, target, layer=model.body)
    assert torch.equal(there["grad_cam"](model, x, target), expected)
    assert absent == {}


def test_maps_that_a_network_does_not_have_are_told_with_the_reason():
    with torch.random.fork_rng(devices=[]):
        dense = nn.Linear(18, 4).double()
    model, x = nn.Sequential(nn.Flatten(), cases.filled(dense, 0)).eval(), cases.images(3)
    there, absent = audit.maps_of(model, x, ["saliency", "rollout", "grad_cam"])
    assert set(there) == {"saliency"}
    assert set(absent) == {"rollout", "grad_cam"}
    assert all(len(why) > 10 for why in absent.values())
    with pytest.raises(ValueError, match="names holds no map that this network has"):
        audit.maps_of(model, x, ["rollout"])
    with pytest.raises(ValueError, match="a name of names is 'lime'"):
        audit.maps_of(model, x, ["lime"])


def test_the_readout_asked_for_is_the_one_explained():
    model, x = cases.conv(), cases.images(2)
    target = predictions(model, x)
    (logit,), (sure,) = (
        audit.maps_of(model, x, ["saliency"], readout=r)[0].values() for r in ("logit", "log_probability")
    )
    score = model(x.requires_grad_()).log_softmax(1).gather(1, target[:, None]).sum()
    assert torch.allclose(sure(model, x.detach(), target), torch.autograd.grad(score, x)[0])
    assert not torch.allclose(sure(model, x.detach(), target), logit(model, x.detach(), target))


# ------------------------------------------------------------------ beside attacks


def test_what_maps_are_worth_and_how_sharply_they_turn_is_computed_once_and_anew_for_another_network(store):
    model, x, calls = cases.conv(), cases.images(4), []

    def counted(model, x, maps, *, seed):
        calls.append(seed)
        return audit.turns(model, x, maps, seed=seed)

    counted.version = 1
    first, again = (audit.remembered(store, counted, model, x, {}, named="", seed=0) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert calls == [0]
    audit.remembered(store, counted, nn.Sequential(model, Doubled()).eval(), x, {}, named="", seed=0)
    audit.remembered(store, counted, model, x, {"saliency": attributions.saliency}, named="", seed=0)
    assert calls == [0, 0, 0]


def test_worth_is_insertion_and_deletion_and_turns_are_relative_curvatures():
    model, x = cases.conv(), cases.images(4)
    expected = faithfulness.insertion_deletion(
        model, x, attributions=MAPS, generator=cases.generator(0), steps=x[0, 0].numel()
    )
    pd.testing.assert_frame_equal(audit.worth(model, x, MAPS, seed=0), expected)
    drawn = audit.worth(model, x, {"smooth": partial(attributions.smooth_grad, sigma=0.1, samples=3)}, seed=0)
    assert set(drawn["attribution"]) == {"smooth", "random"}
    hessian = curvature.InputHessian(model, x, predictions(model, x))
    dense = curvature.relative_curvature(hessian, generator=cases.generator(0)).value
    found = audit.turns(model, x, {}, seed=0)["relative_curvature"]
    assert found.to_numpy() == pytest.approx(dense.numpy(), rel=1e-6)


def test_a_network_that_ends_in_a_softmax_is_refused():
    model = nn.Sequential(cases.conv(), nn.Softmax(1)).eval()
    with pytest.raises(ValueError, match="model returns probabilities, rows sum to 1; it must return logits"):
        audit.check_classes(model, cases.images(3))


# ------------------------------------------------------------------ what no attack can break


class Two(nn.Module):
    """Two dense layers with an activation between them, behind a shift and a scale of the pixels."""

    def __init__(self, activation, hidden=6):
        super().__init__()
        self.act, self.first, self.head = activation, nn.Linear(18, hidden), nn.Linear(hidden, 3)

    def forward(self, x):
        return self.head(self.act(self.first((x.flatten(1) - 0.3) / 0.2)))


def test_within_the_certified_radius_no_attack_brings_the_cosine_below_its_floor_and_far_beyond_one_does():
    model, x = cases.filled(cases.isolated(Two)(nn.functional.softplus), 0), cases.images(6)
    radii, why = audit.certified(model, x)
    assert why == ""
    assert (radii > 0).all()
    for times, broken in ((1, False), (60, True)):
        cosines = []
        for i, radius in enumerate(radii):
            ball = Ball("l2", times * float(radius))
            how = {"k": 5, "generator": cases.generator(), "effort": EFFORT}
            found = attacks.auto(attributions.saliency, model, x[i : i + 1], ball, **how).table
            cosines.append(found[found["part"] == "worst"]["cosine"].item())
        assert (min(cosines) < certificate.COSINE) == broken


@pytest.mark.parametrize(
    "activation", [nn.functional.relu, nn.functional.gelu, lambda h: nn.functional.softplus(2 * h)]
)
def test_another_activation_or_depth_has_no_certificate_and_the_reason_is_told(activation):
    x = cases.images(3)

    def of_tokens():
        return nn.Sequential(nn.Flatten(2), nn.Linear(9, 4), nn.Softplus(), nn.Flatten(), nn.Linear(8, 3))

    tokens = cases.filled(cases.isolated(of_tokens)(), 0)
    for model in (cases.filled(cases.isolated(Two)(activation), 0), cases.conv(), tokens):
        radii, why = audit.certified(model, x)
        assert len(radii) == 0
        assert why.startswith("known only for two dense layers with softplus")
