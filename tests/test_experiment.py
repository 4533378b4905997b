"""Experiments, measurements and grids as they are written out by hand; nothing is trained."""

import dataclasses
import itertools

import pytest
from attrobust import attacks, experiments
from attrobust.experiments import Experiment, Measurement, experiment
from attrobust.versions import as_before

BASE = {"dataset": "digits", "step_size": 0.05, "batch_size": 16, "epochs": 2, "seed": 3}
WANTED = {"penalty": "interpretation", "wanted": "gradient"}


def one(**changes):
    return Experiment(**BASE | changes)


def test_numbers_at_the_edge_of_what_is_accepted_are_accepted():
    edge = one(step_size=1e-9, batch_size=1000, epochs=1, seed=0, weight_decay=0, strength=0, around=0)
    assert (edge.weight_decay, edge.strength, edge.around, edge.teacher_around) == (0.0, 0.0, 0.0, 0.0)
    assert one(n_train=1, batch_size=1).n_train == 1
    small = one(architecture="vit", patch=1, dim=1, depth=1)
    assert (small.patch, small.dim, small.depth) == (1, 1, 1)
    assert one(penalty="ssr", strength=0.5).strength == 0.5
    assert one(trainer="sam", around=0.5).around == 0.5
    assert one(**WANTED, teacher_trainer="adversarial", teacher_around=0.5).teacher_around == 0.5
    assert one(weight_decay=0.5).weight_decay == 0.5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
        ({"weight_decay": -0.5}, "weight_decay is -0.5"),
        ({"penalty": "ssr", "strength": -0.5}, "strength is -0.5"),
        ({"trainer": "sam", "around": -0.5}, "around is -0.5"),
        ({**WANTED, "teacher_around": -0.5}, "teacher_around is -0.5"),
        ({"around": 0.5}, "around is 0.5; trainer 'sgd' takes none"),
        ({"penalty": "interpretation"}, "wanted is 'none' beside penalty 'interpretation'"),
        ({"wanted": "gradient"}, "wanted is 'gradient' beside penalty 'none'; 'interpretation' alone needs maps"),
        ({"teacher_trainer": "sam"}, "teacher_trainer is 'sam'; without wanted maps there is no teacher"),
        ({"teacher_around": 1.0}, "teacher_trainer is 'sgd'; without wanted maps there is no teacher"),
        ({**WANTED, "teacher_around": 1.0}, "around is 1.0; trainer 'sgd' takes none"),
        *(({"architecture": "convnet", name: 4}, f"{name} is 4; a network") for name in ("patch", "dim", "depth")),
    ],
)  # fmt: skip
def test_numbers_and_words_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        one(**changes)


def test_whole_numbers_are_kept_as_the_fractions_that_files_hold(unchecked):
    whole = one(step_size=1, momentum=0, weight_decay=1, penalty="ssr", strength=2, trainer="sam", around=3)
    kept = [getattr(whole, name) for name in ("step_size", "momentum", "weight_decay", "strength", "around")]
    assert kept == [1, 0, 1, 2, 3]
    assert {type(number) for number in kept} == {float}
    assert one().weight_decay is None


def test_a_recipe_holds_the_radius_in_weights_or_in_pixels():
    for trainer, radius in {"sam": 8.0, "adversarial": 8 / 255, "adversarial_l2": 8 / 255}.items():
        assert one(trainer=trainer, around=8.0).recipe.radius == pytest.approx(radius, rel=1e-12)
    told = one(penalty="ssr", strength=0.25, trainer="sam", around=0.5, momentum=0.75, weight_decay=0.125).recipe
    assert (told.penalty, told.strength, told.trainer, told.radius) == ("ssr", 0.25, "sam", 0.5)
    assert (told.step_size, told.batch_size, told.epochs, told.momentum) == (0.05, 16, 2, 0.75)
    assert (told.weight_decay, told.step_x_decay, told.decay) == (0.125, 0.0, 0.125)


def test_a_teacher_is_the_same_network_without_penalty_of_its_own_trainer_and_seed():
    student = one(**WANTED, strength=0.5, trainer="sam", around=0.25, teacher_trainer="adversarial", teacher_around=4.0)
    expected = one(trainer="adversarial", around=4.0, seed=1_000_003)
    assert student.teacher == expected
    assert expected.teacher is None
    assert expected.penalty == expected.wanted == "none"


def test_a_measurement_keeps_every_number_and_name_once_and_in_order(unchecked):
    told = Measurement(
        radii=(8.0, 4, 8, 0.5, 0), radii_of=(("saliency", 16.0), ("rollout", 2.5), ("saliency", 16)),
        maps=("saliency", "rollout", "saliency"), readouts=("logit", "log_probability", "logit"), k_share=1,
    )  # fmt: skip
    assert told.radii == (0, 0.5, 4, 8)
    assert [type(radius) for radius in told.radii] == [int, float, int, int]
    assert told.radii_of == (("rollout", 2.5), ("saliency", 16))
    assert [type(radius) for _, radius in told.radii_of] == [float, int]
    assert told.maps == ("rollout", "saliency")
    assert told.readouts == ("log_probability", "logit")
    assert told.asked(["saliency", "rollout", "grad_cam"]) == {
        0: ["saliency", "rollout", "grad_cam"], 0.5: ["saliency", "rollout", "grad_cam"], 2.5: ["rollout"],
        4: ["saliency", "rollout", "grad_cam"], 8: ["saliency", "rollout", "grad_cam"], 16: ["saliency"],
    }  # fmt: skip
    assert list(told.asked([])) == [0, 0.5, 2.5, 4, 8, 16]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"radii": (4, -0.5)}, "radius is -0.5; it must be a finite number of at least 0"),
        ({"radii_of": (("saliency", -0.5),)}, "radius is -0.5; it must be a finite number of at least 0"),
        ({"maps": ("saliency",), "radii_of": (("rollout", 4),)}, "a map of radii_of is 'rollout'; it must be"),
        ({"held": 0}, "held is 0; it must be a finite number above 0"),
        ({"held": -0.5}, "held is -0.5; it must be a finite number above 0"),
        ({"k_share": 0}, r"k_share is 0; it must lie in \(0, 1\]"),
        ({"k_share": 1.05}, r"k_share is 1.05; it must lie in \(0, 1\]"),
        ({"maps": ("attention",)}, "map is 'attention'; it must be one of saliency"),
        ({"readouts": ("margin",)}, "readout is 'margin'; it must be one of logit, log_probability"),
        ({"effort": 3}, "effort is a int; it must be a Effort or Heavy"),
    ],
)  # fmt: skip
def test_a_measurement_of_what_cannot_be_is_refused(unchecked, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Measurement(**changes)


def test_a_measurement_may_ask_for_any_map_and_little_of_everything():
    every = (*experiments.of_pixels(), *experiments.on_the_patch_grid(2))
    least = Measurement(
        maps=every, held=1e-9, k_share=1e-9, n_attacked=1, radii=(), effort=attacks.Effort(steps=1, restarts=1)
    )
    assert least.maps == tuple(sorted({*every}))
    assert least.asked(every) == {}
    assert Measurement(effort=attacks.Heavy(steps=1, starts=1)).held is None


def test_sizes_are_those_of_the_tables():
    for dataset, side in {"digits": None, "mnist": 14, "cifar10_4k": 16, "cifar10": None}.items():
        for architecture in ("mlp", "convnet", "resnet"):
            told = {"architecture": architecture, "dataset": dataset, "side": side}
            assert experiments.sized(architecture, dataset) == told
    assert experiments.sized("vit", "fashion_mnist_deep") == {
        "architecture": "vit", "dataset": "fashion_mnist", "patch": 4, "dim": 64, "depth": 4,
    }  # fmt: skip
    with pytest.raises(ValueError, match="dataset is 'two_digits'; it must be one of digits, mnist"):
        experiments.sized("vit", "two_digits")
    with pytest.raises(ValueError, match="dataset is 'cifar10_deep'; it must be one of"):
        experiments.sized("mlp", "cifar10_deep")


def test_maps_have_the_radius_of_their_pilots_and_others_are_refused_with_those_that_have_one():
    found = experiment.calibrated("vit", "digits", ["rollout", "saliency", "smooth_grad"])
    assert found == (("rollout", 24), ("saliency", 4), ("smooth_grad", 8))
    assert experiment.calibrated("mlp", "imagenet", []) == ()
    with pytest.raises(
        ValueError, match=r"map is 'grad_cam'; 'vit' on 'fashion_mnist' has .* for saliency, raw_attention, rollout$"
    ):
        experiment.calibrated("vit", "fashion_mnist", ["saliency", "grad_cam"])
    with pytest.raises(ValueError, match=r"map is 'saliency'; 'vit' on 'mnist' has a radius, by pilots, for none$"):
        experiment.calibrated("vit", "mnist", ["saliency"])


def test_a_grid_takes_lists_and_what_stands_alone():
    found = experiments.grid(
        **BASE | {"seed": (1, 0), "step_size": [0.2, 0.1], "activation": "relu", "momentum": [0.5]}
    )
    told = [(e.step_size, e.seed, e.activation, e.momentum) for e in found]
    assert told == [(step, seed, "relu", 0.5) for step, seed in itertools.product((0.2, 0.1), (1, 0))]
    assert experiments.grid(**BASE) == [one()]
    assert experiments.grid(**BASE | {"seed": []}) == []
    assert {f.name for f in dataclasses.fields(Experiment)} > {*BASE}


def test_later_fields_stand_as_before_where_they_say_nothing():
    later = {"penalty": "none", "strength": 0.0, "trainer": "sgd", "around": 0.0, "wanted": "none"}
    later |= {"weight_decay": None, "teacher_trainer": "sgd", "teacher_around": 0.0}
    assert {name: getattr(one(), name) for name in as_before(one())} == later
    assert set(as_before(one(weight_decay=0.0))) == {*later} - {"weight_decay"}
    told = one(**WANTED, strength=0.5, trainer="sam", around=0.5, teacher_trainer="sam", teacher_around=0.5)
    assert set(as_before(told)) == {"weight_decay"}


def test_neither_an_experiment_nor_a_measurement_is_changed_once_it_is_made():
    assert len({one(), one(), one(seed=4)}) == len({Measurement(), Measurement(), Measurement(held=0.5)}) == 2
    for made, name in ((one(), "seed"), (Measurement(), "held")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 1)
