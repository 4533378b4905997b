"""What is trained, measured and judged for a row, by calls written out by hand and networks that are not trained."""

import dataclasses
import math

import cases
import pandas as pd
import pytest
import torch
from attrobust import attacks, curvature, data, experiments, models, regularizers, training
from attrobust.experiments import Experiment, Measurement, explanations, measure
from attrobust.rows import ATTACKED
from torch import nn

BASE = {"dataset": "digits", "step_size": 0.05, "batch_size": 8, "epochs": 1, "seed": 3, "side": 4, "n_train": 20}
SMALL = Measurement(
    radii=(8,), effort=attacks.Effort(steps=1, restarts=1), n_attacked=4, trace_products=6, maps=("saliency",),
    readouts=("logit",),
)  # fmt: skip
NO_LINES = pd.DataFrame(columns=[*ATTACKED[1:]])
FIT = training.Fit(steps=3, halvings=1, train_loss=0.5, train_accuracy=1.0, late_change=0.05)


def one(**changes):
    return Experiment(**BASE | {"protocol": "plateau"} | changes)


def test_a_data_set_is_loaded_as_it_is_asked_for(monkeypatch):
    asked, found = [], data.load("digits", side=4, n_train=20)
    monkeypatch.setattr(data, "load", lambda *given, **how: asked.append((given, how)) or found)
    measure.dataset.__wrapped__("digits", 4, 20, 10, "meta")
    assert asked == [(("digits",), {"side": 4, "n_train": 20, "n_test": 10, "device": "meta"})]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"side": None},
        {"architecture": "convnet", "activation": "relu"},
        {"initial": "narrow"},
        {"architecture": "vit", "attention": "gaussian", "dim": 8},
    ],
)
def test_an_untrained_network_is_built_as_its_experiment_says(change):
    e = one(**change)
    how = {"seed": 3, "activation": e.activation, "initial": e.initial}
    if e.architecture == "vit":
        how |= {"attention": "gaussian", "patch": 2, "dim": 8, "depth": 2}
    shape = (1, 8, 8) if e.side is None else (1, 4, 4)
    own = models.build(e.architecture, input_shape=shape, classes=10, mean=0.305, std=0.376, **how)
    found, x = experiments.build(e), cases.images(3, shape=shape).float()
    for name, weight in own.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name
    assert torch.equal(found(x), own(x))
    assert found(x).shape == (3, 10)


def test_a_small_transformer_of_another_library_has_the_sizes_that_are_asked_for():
    pytest.importorskip("transformers")
    found = measure.small_vit("mnist", "the test", seed=1, side=6, patch=3, dim=8, spread=0.5)
    config = found.model.config
    sizes = (config.image_size, config.patch_size, config.num_channels, config.hidden_size, config.intermediate_size)
    assert sizes == (6, 3, 1, 8, 16)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_labels) == (2, 4, 10)
    assert config._attn_implementation == "eager"
    assert (float(found.mean), float(found.std)) == pytest.approx((0.131, 0.308))
    assert not any(part.training for part in found.modules())
    drawn = torch.cat([part.weight.detach().flatten() for part in found.modules() if isinstance(part, nn.Linear)])
    assert 0.4 < drawn.std() < 0.6
    assert found(torch.zeros(2, 1, 6, 6)).shape == (2, 10)
    seeds = [measure.small_vit("mnist", "the test", seed=s, side=6, patch=3, dim=8, spread=0.5) for s in (1, 2)]
    weights = [net.model.classifier.weight for net in seeds]
    assert torch.equal(weights[0], found.model.classifier.weight)
    assert not torch.equal(*weights)


def test_a_student_is_fitted_to_the_maps_of_its_own_teacher_drawn_by_the_teachers_seed(monkeypatch):
    group = [one(seed=s, penalty="interpretation", wanted="smooth_grad", strength=0.5) for s in (3, 5)]
    asked, given = [], {}

    def teacher(e):
        asked.append(e)
        return cases.filled(experiments.build(e), e.seed).float()

    def fit(networks, x, y, recipe, **how):
        given.update(how, recipe=recipe, x=x, y=y)
        return [FIT] * len(networks)

    monkeypatch.setattr(training, "fit", fit)
    networks, fits = measure.train(group, network=teacher)
    assert (len(networks), fits) == (2, [FIT] * 2)
    assert asked == [e.teacher for e in group]
    assert [g.initial_seed() for g in given["generators"]] == [3, 5]
    for e, wanted in zip(group, given["wanted"], strict=True):
        draw, net = cases.generator(e.seed + 1_000_000), cases.filled(experiments.build(e.teacher), e.seed + 1_000_000)
        own = regularizers.wanted_maps(net.float(), given["x"], given["y"], kind="smooth_grad", generator=draw)
        assert torch.equal(wanted, own)
    asked.clear()
    measure.train([dataclasses.replace(e, strength=0.0) for e in group], network=teacher)
    assert (asked, given["wanted"]) == ([], None)  # no teacher is trained of whom nothing is learnt
    measure.train([one()], network=teacher)
    assert (asked, given["wanted"], given["recipe"]) == ([], None, one().recipe)


def test_a_teacher_that_nobody_has_is_trained_on_the_same_device(monkeypatch):
    student, plain, seen = one(penalty="interpretation", wanted="gradient", strength=0.5), measure.train, []

    def train(group, device="cpu", **how):
        seen.append((group, device))
        return [cases.filled(experiments.build(e), 0).float() for e in group], [FIT]

    monkeypatch.setattr(training, "fit", lambda networks, *_, **__: [FIT for _ in networks])
    monkeypatch.setattr(measure, "train", train)
    usual, build = measure.dataset, measure.build
    monkeypatch.setattr(measure, "dataset", lambda *given: usual(*given[:-1], "cpu"))
    monkeypatch.setattr(measure, "build", lambda e, device="cpu": build(e))
    plain([student], "elsewhere")
    assert seen == [([student.teacher], "elsewhere")]


@pytest.mark.parametrize(("share", "k"), [(0.01, 1), (0.1, 2), (0.5, 8), (1.0, 16)])
def test_maps_of_pixels_are_compared_by_their_share_of_the_largest_and_by_one_at_least(monkeypatch, share, k):
    seen = []
    monkeypatch.setattr(
        measure, "_attacked", lambda model, x, m, maps, patch, k, seed: seen.append((patch, k, seed)) or NO_LINES
    )
    net = experiments.build(one()).eval()
    measure.measure(one(), dataclasses.replace(SMALL, k_share=share, curvature=False), net, FIT)
    assert seen == [(None, k, 3)]


@pytest.mark.parametrize(("share", "k"), [(0.05, 1), (0.25, 1), (0.5, 2)])
def test_maps_of_patches_are_compared_by_their_share_of_the_patches(monkeypatch, share, k):
    seen, inside = [], []
    monkeypatch.setattr(
        measure, "_attacked", lambda model, x, m, maps, patch, k, seed: seen.append((patch, k, seed)) or NO_LINES
    )
    monkeypatch.setattr(explanations, "inside", lambda model, x, **how: inside.append(how) or {})
    e = one(architecture="vit", dim=4, depth=1)
    measure.measure(e, dataclasses.replace(SMALL, k_share=share, curvature=False), experiments.build(e).eval(), FIT)
    assert seen == [(2, k, 3)]
    assert inside == [{"patch": 2, "k": k}]


def test_a_frozen_network_is_measured_like_any_other_and_frozen_after(monkeypatch):
    nets = [experiments.build(one()).eval() for _ in range(2)]
    rows = [
        measure.measure(one(), SMALL, net.requires_grad_(free), FIT)
        for net, free in zip(nets, (True, False), strict=True)
    ]
    assert not any(p.requires_grad for net in nets for p in net.parameters())
    assert rows[0][0] == rows[1][0]
    run, attacked = rows[0]
    assert [*run][:8] == [*measure.FIT, "comparable", "reason"]
    assert [run[name] for name in measure.FIT[:-1]] == [3, 1, 0.5, 1.0, 0.05]
    assert [*run][8:] == measure.names(one(), SMALL)
    pd.testing.assert_frame_equal(attacked, rows[1][1])
    assert list(attacked) == [*ATTACKED[1:]]
    assert list(attacked.index) == list(range(len(attacked)))
    assert sorted(set(zip(attacked["attack"], attacked["radius"], strict=True))) == [
        ("clean", 0.0), ("noise", 8.0), ("worst", 8.0),
    ]  # fmt: skip


@pytest.mark.parametrize(("number", "measured"), [(0, True), (1, True), (2, False)])
def test_a_run_is_measured_with_a_tenth_of_its_images_blind_and_no_more(monkeypatch, number, measured):
    monkeypatch.setattr(measure, "blind", lambda model, x: torch.arange(10) < number)
    light = dataclasses.replace(SMALL, n_attacked=10, curvature=False)
    run, attacked = measure.measure(one(), light, experiments.build(one()).eval(), FIT)
    assert run["comparable"] == measured == ("weight_norm" in run) == bool(len(attacked))
    assert list(attacked) == [*ATTACKED[1:]]


def test_a_run_that_stands_at_a_limit_stays_and_changes_as_much_as_the_limit_leaves(monkeypatch):
    off = abs(0.0125 / 0.01 - 1)
    matched, plateau = one(protocol="matched"), one()
    fit = training.Fit(steps=1, train_loss=0.0125, train_accuracy=0.995, late_change=0.09, reached=True)
    monkeypatch.setattr(measure, "COMPARABLE_LOSS", off)
    assert measure.incomparable(matched, fit, 0.0) == ""
    monkeypatch.setattr(measure, "COMPARABLE_LOSS", off * 0.999)
    assert measure.incomparable(matched, fit, 0.0) == "loss 0.0125 is 25% off the level"
    assert measure.incomparable(plateau, fit, 0.0) == measure.incomparable(plateau, fit, 0.1) == ""
    changed = dataclasses.replace(fit, late_change=0.1)
    assert measure.incomparable(plateau, changed, 0.0) == "loss still changed by 10%"
    assert measure.incomparable(plateau, fit, 0.999) == "collapsed: 100% of the images have no gradient"


@cases.isolated
def test_an_image_is_blind_where_the_change_is_no_more_than_the_rounding_of_its_logit():
    """One pixel, two classes: the first logit is 1, its slope what is asked."""
    layer, x = nn.Linear(1, 2).double(), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    eps = torch.finfo(torch.float64).eps
    for logit, slope, expected in ((1, eps, True), (1, 1.5 * eps, False), (4, 3 * eps, True), (4, 5 * eps, False),
                                   (0.25, eps / 3, False), (0.25, eps / 5, True)):  # fmt: skip
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[slope], [0.0]]))
            layer.bias.copy_(torch.tensor([logit, -1.0]))
        assert measure.blind(nn.Sequential(nn.Flatten(), layer), x).tolist() == [expected]


def test_input_columns_are_means_over_images_under_each_readout():
    model, x = cases.mlp(), cases.images(3)
    target, found = model(x).argmax(1), measure._input_side(model, x, 2)
    for name in ("logit", "log_probability"):

        def value(one, label, name=name):
            logits = model(one[None])[0]
            return (logits if name == "logit" else logits.log_softmax(0))[label]

        norms, bends = [], []
        for image, label in zip(x, target, strict=True):
            slope = torch.autograd.functional.jacobian(lambda at, c=label: value(at, c), image).flatten()
            bend = torch.autograd.functional.hessian(lambda at, c=label: value(at, c), image).reshape(18, 18)
            norms.append(slope.norm().item())
            bends.append(torch.linalg.eigvalsh(bend).abs().max().item())
        assert found[f"{name}_gradient"] == pytest.approx(sum(norms) / 3)
        assert found[f"{name}_input_curvature"] == pytest.approx(sum(bends) / 3, rel=1e-2)
    assert found["logit_gradient"] != pytest.approx(found["log_probability_gradient"], rel=1e-3)
    assert list(found) == [*measure.INPUT_SIDE]
    assert not any(math.isnan(number) for number in found.values())


def test_columns_beyond_training_are_those_of_the_networks_kind():
    size = ["weight_norm", "first_layer_norm", "spectral_product", "distance", "margin"]
    flat = ["sharpness", "sharpness_error", "trace", "trace_error"]
    pixels = [
        f"{r}_{what}"
        for r in ("logit", "log_probability")
        for what in ("gradient", "input_curvature", "relative_curvature")
    ]
    light = dataclasses.replace(SMALL, curvature=False)
    assert measure.names(one(), SMALL) == [*size, *flat, "invariant_flatness", *pixels]
    assert measure.names(one(architecture="convnet"), SMALL) == [*size, *flat, *pixels]
    assert measure.names(one(), light) == measure.names(one(architecture="convnet"), light) == size
    rows = [f"{name}_{rate}" for name in ("score", "map", "saliency") for rate in ("sensitivity", "relative")]
    vit, other = (one(architecture="vit", attention=kernel) for kernel in ("softmax", "doubly_stochastic"))
    assert measure.names(vit, SMALL) == [*size, *flat, *pixels, "entropy", "norm", "margin", *rows]
    assert measure.names(other, light) == [*size, "entropy", "margin", "mass", "empty", *rows]


def test_columns_of_an_experiment_are_those_that_say_something_of_it():
    plain = {"dataset", "step_size", "batch_size", "epochs", "seed", "protocol", "side", "n_train", "architecture",
             "activation", "initial", "momentum"}  # fmt: skip
    assert {*measure.columns(one())} == plain
    told = measure.columns(one(architecture="vit", dim=8, trainer="sam", around=0.5))
    assert told == {name: getattr(one(), name) for name in plain} | {
        "architecture": "vit", "attention": "softmax", "patch": 2, "dim": 8, "depth": 2, "trainer": "sam",
        "around": 0.5,
    }  # fmt: skip


def test_maps_of_a_row_are_those_that_its_network_has():
    asked = Measurement(maps=("rollout", "saliency", "lrp", "grad_cam"))
    both = [("saliency", "log_probability"), ("saliency", "logit")]
    assert list(measure.attacked_maps(one(), asked)) == [("lrp", "logit"), *both]
    found = list(measure.attacked_maps(one(architecture="convnet"), asked))
    assert found == [("grad_cam", "log_probability"), ("grad_cam", "logit"), ("lrp", "logit"), *both]
    vit = one(architecture="vit")
    maps = measure.attacked_maps(vit, asked)
    assert list(maps) == [("rollout", "none"), *both]
    model, x = experiments.build(vit).eval(), cases.images(2, shape=(1, 4, 4)).float()
    assert maps["saliency", "logit"](model, x, model(x).argmax(1)).shape == (2, 1, 2, 2)


def test_flatness_is_that_of_the_mean_loss_of_the_training_images():
    model = cases.filled(experiments.build(one(side=2)), 0)
    whole = data.load("digits", side=2, n_train=20).train
    examples = data.Examples(whole.x.double(), whole.y)
    found = measure._flatness(model, examples, SMALL, 1)
    assert list(found) == [*measure.FLATNESS]
    hessian, draw = curvature.ParameterHessian(model, training.cross_entropy, *examples), cases.generator(1)
    sharp = curvature.sharpness(hessian, generator=draw)
    total = curvature.trace(hessian, generator=draw, products=6)
    assert [found[name] for name in measure.FLATNESS[:4]] == [sharp.value, sharp.error, total.value, total.error]
