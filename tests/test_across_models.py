"""Laws of conditions: each changes one thing, at the same noise of SGD, and is compared with what it names."""

import dataclasses

import pytest
from attrobust import experiments
from attrobust.studies import across_models

BASE = experiments.sized("mlp", "digits") | {"batch_size": 64, "epochs": 400}
STEPS, SEEDS = [0.003, 0.06], [0, 1, 2]


def networks(condition, base=BASE):
    return across_models.networks(condition, base, steps=STEPS, seeds=SEEDS)


def fields(experiment):
    """All that the weights depend on: of the recipe, not its name."""
    return dataclasses.asdict(experiment) | dataclasses.asdict(experiment.recipe) | {"protocol": ""}


@pytest.mark.parametrize("condition", across_models.CONDITIONS, ids=lambda c: f"{c.factor} {c.name}")
def test_a_condition_differs_from_its_base_in_one_choice_beside_the_step_that_goes_with_it(condition):
    found = networks(condition)
    assert list(found) == [(side, end) for side in across_models.SIDES for end in across_models.ENDS]
    for end in across_models.ENDS:
        for one, other in zip(found["base", end], found["condition", end], strict=True):
            assert one.seed == other.seed
            pairs = zip(fields(one).items(), fields(other).values(), strict=True)
            changed = {name for (name, mine), theirs in pairs if mine != theirs}
            changed -= {"step_size"} if condition.factor in ("batch", "momentum") else set()
            if condition.name == "fixed budget":  # no level, hence nothing that goes with one; annealed to the end
                assert changed == {"stop_loss", "stop_within", "patience", "schedule"}
            elif condition.factor == "weight decay":
                assert changed in ({"weight_decay"}, {"step_x_decay"})
            else:
                assert len(changed) == 1, changed


@pytest.mark.parametrize("base", [{}, {"batch_size": 32}, {"batch_size": 500, "momentum": 0.5}], ids=str)
@pytest.mark.parametrize("condition", across_models.CONDITIONS, ids=lambda c: f"{c.factor} {c.name}")
def test_the_noise_of_an_update_stays_what_it_was_whatever_the_base(condition, base):
    found = networks(condition, BASE | base)

    def noise(experiment):
        """Per image and update; a step of SGD with momentum m goes 1 / (1 - m) as far in the end."""
        return experiment.step_size / ((1 - experiment.momentum) * experiment.batch_size)

    for end in across_models.ENDS:
        one, other = (noise(found[side, end][0]) for side in across_models.SIDES)
        assert one == pytest.approx(other, rel=1e-9)


def test_a_base_that_has_made_the_choice_already_is_refused():
    for condition, made in ((0, {"activation": "relu"}), (4, {"batch_size": 512}), (8, {"protocol": "plateau"})):
        with pytest.raises(ValueError, match=r"base has .* already; it must be without it"):
            networks(across_models.CONDITIONS[condition], BASE | made)


def test_all_conditions_have_names_of_their_own_and_can_be_told_by_factor_and_name():
    named = [(c.factor, c.name) for c in across_models.CONDITIONS]
    assert len(set(named)) == len(named)


def test_steps_that_are_no_range_are_refused():
    for steps in ([0.1], [0.1, 0.1], [0.2, 0.1], [0.1, 0.2, 0.3]):
        with pytest.raises(ValueError, match="it must be the smallest and the largest step size"):
            across_models.networks(across_models.CONDITIONS[0], BASE, steps=steps, seeds=SEEDS)


def test_sizes_are_those_that_the_notebooks_train():
    assert experiments.sized("vit", "digits") == {"architecture": "vit", **experiments.VITS["digits"]}
    assert experiments.sized("mlp", "digits")["side"] is None
    assert experiments.sized("resnet", "cifar10_4k")["side"] == 16
    for dataset in ("digits", "mnist", "fashion_mnist", "cifar10_4k"):
        for architecture in ("mlp", "convnet", "convnet_bn", "resnet", "vit"):
            how = experiments.sized(architecture, dataset)
            model = experiments.build(experiments.Experiment(**how, step_size=0.1, batch_size=8, epochs=1, seed=0))
            assert sum(w.numel() for w in model.parameters()) > 1000
    with pytest.raises(ValueError, match="architecture is 'vgg'"):
        experiments.sized("vgg", "digits")
    with pytest.raises(ValueError, match="dataset is 'imagenet'"):
        experiments.sized("mlp", "imagenet")
