"""What a row must look like, on rows written out by hand: nothing is trained or measured."""

import itertools
import math

import pytest
from attrobust.experiments import Experiment, Measurement, measure, schema

LINEAR = {"dataset": "digits", "step_size": 0.5, "batch_size": 8, "epochs": 2, "seed": 3}
DENSE = Experiment(**LINEAR)
TRANSFORMER = Experiment(**LINEAR, architecture="vit", attention="gaussian")
ASKED = Measurement(radii=(8,), radii_of=(("saliency", 16),), n_attacked=4, maps=("saliency",), readouts=("logit",))

SHARES = ("train_accuracy", "test_accuracy", "entropy", "empty")
ANY = ("late_change", "sharpness", "trace", "margin")
SIZES = (
    "steps", "halvings", "train_loss", "weight_norm", "first_layer_norm", "spectral_product", "distance",
    "sharpness_error", "trace_error", "invariant_flatness", "logit_gradient", "logit_input_curvature",
    "logit_relative_curvature", "log_probability_gradient", "log_probability_input_curvature",
    "log_probability_relative_curvature",
)  # fmt: skip
INSIDE = (
    "norm", "mass", "score_sensitivity", "score_relative", "map_sensitivity", "map_relative", "saliency_sensitivity",
    "saliency_relative",
)  # fmt: skip
CORRELATIONS, TOP = ("spearman", "cosine", "pearson"), ("top_k", "counted")
DISTANCES = ("top_k_share", "displacement", "relative_displacement", "center_shift")


def whole(experiment=DENSE, **changes):
    """Columns of a run with half of everything."""
    run = measure.columns(experiment) | {"comparable": True, "reason": ""} | dict.fromkeys((*SIZES, *ANY), 0.5)
    run |= dict.fromkeys(("train_accuracy", "test_accuracy"), 0.5)
    if experiment is TRANSFORMER:
        run |= dict.fromkeys((*INSIDE, "entropy", "empty"), 0.5)
        run.pop("invariant_flatness")
    return run | changes


def line(metric, attack="noise", radius=8.0, **changes):
    images = "0.5 0.5 0.5 0.5" if (attack, metric) == ("worst", "spearman") else ""
    told = {"readout": "logit", "map": "saliency", "attack": attack, "metric": metric, "radius": radius}
    return {**told, "value": 0.5, "n": 4, "images": images, **changes}


def attacked(change=None, **changes):
    """The lines of a row; those of one attack and metric, or of one that is named by its radius too, with changes."""
    every = itertools.product((*CORRELATIONS, *TOP, *DISTANCES), ("noise", "worst"), (8.0, 16.0))
    lines = [line(*told) for told in every]
    lines += [line(name, "clean", 0.0) for name in ("between", "contrast", "entropy", "occlusion")]
    return [
        {**told, **changes} if (told["metric"], told["attack"], told["radius"]) == change else told for told in lines
    ]


def fault(run=None, lines=None, experiment=DENSE):
    return schema.fault(run or whole(experiment), attacked() if lines is None else lines, experiment, ASKED)


@pytest.mark.parametrize("experiment", [DENSE, TRANSFORMER])
def test_rows_written_out_by_hand_are_whole(experiment):
    assert fault(experiment=experiment) == ""


LIMITS = {"shares": (SHARES, 0, 1), "any": (ANY, -math.inf, math.inf), "sizes": ((*SIZES, *INSIDE), 0, math.inf)}


@pytest.mark.parametrize(("names", "low", "high"), LIMITS.values(), ids=LIMITS)
def test_every_column_has_its_range_and_the_room_of_a_rounded_mean_above_it(names, low, high):
    for name in names:
        experiment = DENSE if name in whole(DENSE) else TRANSFORMER
        for value, inside in (
            (0, True),
            (1, True),
            (1 + 1e-5, True),
            (-1e-9, low < 0),
            (1.00002, high > 1),
            (-9, low < 0),
        ):
            found = fault(whole(experiment, **{name: value}), experiment=experiment)
            assert found == ("" if inside else f"column {name!r} is {value!r}; it must lie in [{low:g}, {high:g}]")


@pytest.mark.parametrize("attack", ["noise", "worst", "clean"])
def test_every_metric_has_its_range_and_the_room_of_a_rounded_mean_around_it(attack):
    ranges = {-1: CORRELATIONS, 0: TOP, math.inf: DISTANCES}
    if attack == "clean":
        ranges = {-1: ("between", "occlusion"), 0: ("entropy",), math.inf: ("contrast",)}
    for kind, names in ranges.items():
        low, high = max(-1, kind) if kind <= 0 else 0, 1 if kind <= 0 else math.inf
        for name, value in itertools.product(names, (-1.00002, -1.00001, -1, -1e-9, 0, 1, 1.00001, 1.00002)):
            inside = (low and -1.00001 <= value <= 0) or 0 <= value <= (1.00001 if high == 1 else math.inf)
            images = " ".join([f"{value:.5f}"] * 4) if (attack, name) == ("worst", "spearman") else ""
            at = (name, attack, 0.0 if attack == "clean" else 8.0)
            found = fault(lines=attacked(at, value=value, images=images))
            assert found == ("" if inside else f"{name} is {value!r}; it must lie in [{low:g}, {high:g}]")


def test_a_number_of_a_comparable_run_is_missing_where_it_cannot_be():
    may = {"late_change", "entropy", "empty", *INSIDE}  # of rows without any mass, say
    for experiment in (DENSE, TRANSFORMER):
        for name in (n for n in whole(experiment) if n in (*SIZES, *ANY, *SHARES, *INSIDE)):
            for value in (math.nan, None):
                found = fault(whole(experiment, **{name: value}), experiment=experiment)
                assert found == ("" if name in may else f"column {name!r} is missing, or not finite")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"comparable": False, "reason": "diverged"}, ""),
        ({"comparable": False, "reason": "diverged", "trace": None}, ""),
        ({"comparable": "True", "reason": math.nan}, ""),
        ({"comparable": "False", "reason": "diverged"}, ""),
        ({"comparable": False}, "column 'reason' holds '' beside comparable False"),
        ({"reason": "diverged"}, "column 'reason' holds 'diverged' beside comparable True"),
        ({"comparable": False, "reason": 3}, "column 'reason' holds 3 beside comparable False"),
        ({"comparable": None, "reason": "diverged"}, "column 'comparable' holds None"),
        ({"steps": True}, "column 'steps' is True; it must be a number"),
        ({"late_change": "no"}, "column 'late_change' is 'no'; it must be a number"),
        ({"entropy": 0.5, "patch": 2}, "column 'patch' belongs to no run"),
        ({"seed": None}, "column 'seed' holds None, but its key stands for 3"),
        ({"penalty": "none", "around": 0.0}, ""),
        ({"around": 1.0}, "column 'around' holds 1.0, but its key stands for 0.0"),
        ({"key": "a"}, ""),
    ],
)  # fmt: skip
def test_a_run_is_believed_if_its_words_agree(changes, sentence):
    found = fault(whole(**changes))
    assert found.startswith(sentence)
    assert bool(found) == bool(sentence)


def test_a_run_without_lines_is_whole_if_it_is_not_comparable_and_any_other_has_them_all():
    left = whole(comparable=False, reason="diverged")
    assert fault(left, []) == ""
    absent = "the number of readout logit, map saliency, attack clean, metric between, radius 0.0 is missing"
    assert fault(whole(), []) == absent
    assert fault(left, attacked()[:1]) == absent


@pytest.mark.parametrize(
    ("at", "changes", "sentence"),
    [
        (("top_k", "noise", 8.0), {"n": 0, "value": math.nan}, ""),
        (("top_k", "noise", 8.0), {"n": 0, "value": None}, ""),
        (("top_k", "noise", 8.0), {"n": 0}, "value is 0.5 over 0 images; it is missing if none counted"),
        (("top_k", "noise", 8.0), {"n": 1, "value": None}, "value is None over 1 images"),
        (("top_k", "noise", 8.0), {"n": 1}, ""),
        (("top_k", "noise", 8.0), {"n": 4.0}, ""),
        (("top_k", "noise", 8.0), {"n": 2.5}, "n is 2.5; it must be a whole number from 0 to 4"),
        (("top_k", "noise", 8.0), {"n": 5}, "n is 5; it must be a whole number from 0 to 4"),
        (("top_k", "noise", 8.0), {"n": -1}, "n is -1; it must be a whole number from 0 to 4"),
        (("top_k", "noise", 8.0), {"n": "4"}, "n is '4'; it must be a whole number from 0 to 4"),
        (("top_k", "noise", 8.0), {"images": None}, ""),
        (("top_k", "worst", 8.0), {"images": "1"}, "images is '1'; only the line of worst spearman has any"),
        (("spearman", "noise", 8.0), {"images": "1"}, "images is '1'; only the line of worst spearman has any"),
        (("top_k", "noise", 8.0), {"place": "a.csv, line 2"}, ""),
        (("top_k", "noise", 8.0), {"place": "a.csv, line 2", "n": 5}, "a.csv, line 2: n is 5; it must be a whole"),
        (("top_k", "noise", 8.0), {"value": True}, "top_k is True; it must be a number"),
        (("top_k", "noise", 8.0), {"metric": "between"}, "metric is 'between'; it must be one of top_k, top_k_share,"),
        (("between", "clean", 0.0), {"metric": "top_k"}, "metric is 'top_k'; it must be one of between, contrast,"),
        (("between", "clean", 0.0), {"n": 1, "value": None}, ""),  # one map has none to be compared with
        (("between", "clean", 0.0), {"n": 1}, ""),
        (("between", "clean", 0.0), {"n": 2, "value": None}, "value is None over 2 images"),
        (("contrast", "clean", 0.0), {"n": 1, "value": None}, "value is None over 1 images"),
        (("spearman", "worst", 8.0), {"images": "0.5 0.5 nan 0.5", "n": 3}, ""),
        (("spearman", "worst", 8.0), {"images": "nan nan nan nan", "n": 0, "value": None}, ""),
        (("spearman", "worst", 8.0), {"images": "0.5 0.5 nan 0.5"}, "images holds 3 numbers of 4; 4 of 4 were counted"),
        (("spearman", "worst", 8.0), {"images": "0.5 0.5 0.5", "n": 3}, "images holds 3 numbers of 3; 3 of 4 were"),
        (("spearman", "worst", 8.0), {"images": "0.5 " * 5}, "images holds 5 numbers of 5; 4 of 4 were counted"),
        (("spearman", "worst", 8.0), {"images": None}, "images holds 0 numbers of 0; 4 of 4 were counted"),
        (("spearman", "worst", 8.0), {"images": 0.5}, "images is 0.5; it must be numbers"),
        (("spearman", "worst", 8.0), {"images": "0.5 a 0.5 0.5"}, "images is '0.5 a 0.5 0.5'; it must be numbers"),
        (("spearman", "worst", 8.0), {"value": 0.50009}, ""),
        (("spearman", "worst", 8.0), {"value": 0.49991}, ""),
        (("spearman", "worst", 8.0), {"value": 0.50011}, "images have the mean 0.5000, beside the value 0.5001"),
        (("spearman", "worst", 8.0), {"value": 0.4}, "images have the mean 0.5000, beside the value 0.4000"),
        (("spearman", "worst", 8.0), {"images": "0.9 0.1 nan 0.5", "n": 3}, ""),
        (("spearman", "worst", 8.0), {"images": "0.4 1.1 0.1 0.4"}, "images is 1.1; it must lie in [-1, 1]"),
    ],
)  # fmt: skip
def test_a_line_is_believed_if_its_numbers_agree(at, changes, sentence):
    found = fault(lines=attacked(at, **changes))
    assert found.startswith(sentence)
    assert bool(found) == bool(sentence)


def test_a_line_that_is_missing_or_too_much_is_named():
    lines = attacked()
    for k, told in enumerate(lines):
        name = ", ".join(f"{word} {told[word]}" for word in ("readout", "map", "attack", "metric", "radius"))
        assert fault(lines=lines[:k] + lines[k + 1 :]) == f"the number of {name} is missing"
        assert fault(lines=[*lines, told]) == f"the number of {name} stands there twice"
    strangers = [line("top_k", readout=readout) for readout in ("log_probability", None)]
    found = fault(lines=[*lines, *strangers])  # texts and what is none stand side by side
    assert found == (
        "the number of readout log_probability, map saliency, attack noise, metric top_k, radius 8.0"
        " belongs to no such run"
    )
    assert fault(lines=[*lines, line("top_k", radius=4)]).endswith("radius 4.0 belongs to no such run")


def test_an_attack_of_another_name_has_every_number_too():
    """Rows of the heavier attack hold its own line beside the others."""
    lines = [*attacked(), line("top_k", "other")]
    assert fault(lines=lines) == (
        "the number of readout logit, map saliency, attack other, metric center_shift, radius 16.0 is missing"
    )


def test_images_may_be_off_their_mean_by_as_much_as_their_digits_leave(monkeypatch):
    lines = attacked(("spearman", "worst", 8.0), images="0.25 0.25 0.25 0.25")
    monkeypatch.setattr(schema, "_DIGITS", 0.25)
    assert fault(lines=lines) == ""
    monkeypatch.setattr(schema, "_DIGITS", 0.2)
    assert fault(lines=lines) == "images have the mean 0.2500, beside the value 0.5000"
