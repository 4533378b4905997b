"""Laws of conditions: each changes one thing, at the same noise of SGD, and is compared with what it names."""

import dataclasses
import math
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from attrobust import attacks, attributions, experiments
from attrobust.balls import Ball
from attrobust.experiments import measure
from attrobust.models import readouts
from attrobust.studies import across_models
from scipy import stats

BASE = experiments.sized("mlp", "digits") | {"batch_size": 64, "epochs": 400}
STEPS, SEEDS = [0.003, 0.06], [0, 1, 2]


def networks(condition, base=BASE):
    able = {"architecture": condition.only or base["architecture"]}
    return across_models.networks(condition, base | able, steps=STEPS, seeds=SEEDS)


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
    for condition, made in ((0, {"activation": "relu"}), (6, {"batch_size": 512}), (10, {"protocol": "plateau"})):
        with pytest.raises(ValueError, match=r"base has .* already; it must be without it"):
            networks(across_models.CONDITIONS[condition], BASE | made)


def test_all_conditions_have_names_of_their_own_and_can_be_told_by_factor_and_name():
    named = [(c.factor, c.name) for c in across_models.CONDITIONS]
    assert len(set(named)) == len(named)


def test_a_choice_that_another_architecture_makes_is_refused():
    (lone,) = [c for c in across_models.CONDITIONS if c.only]
    with pytest.raises(ValueError, match="base is of architecture 'mlp'; only 'convnet' can be chosen"):
        across_models.networks(lone, BASE, steps=STEPS, seeds=SEEDS)
    assert lone not in across_models.conditions("mlp", 1000)
    assert lone in across_models.conditions("convnet", 1000)


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


SMALL = experiments.Experiment(**BASE | {"n_train": 100, "epochs": 20}, step_size=0.05, seed=3, protocol="plateau")
EFFORT = attacks.Effort(steps=4, restarts=1)


def network():
    (model,), _ = measure.train([SMALL])
    return model.requires_grad_(False), experiments.shown(SMALL, 8).x


def test_relevance_mass_is_the_share_of_importances_on_the_left_half_done_by_hand():
    model, x = network()
    table = across_models.relevance_mass(SMALL, ["saliency"], 16, EFFORT, 8, network=measure.trained_anew).set_index(
        "map"
    )
    target = model(x).argmax(1)
    for name, readout in (("logit", readouts.logit), ("log_probability", readouts.log_probability)):
        importances = attributions.saliency(model, x, target, readout=readout).detach().abs().sum(1)
        share = importances[:, :, :4].sum((1, 2)) / importances.sum((1, 2))
        found = table.loc[f"saliency, {name}"]
        assert found["mass"] == pytest.approx(float(share.mean()), rel=1e-5)
        draw, ball = torch.Generator().manual_seed(SMALL.seed), Ball("linf", 16 / 255)
        attack = attacks.auto(
            partial(attributions.saliency, readout=readout), model, x, ball, k=6, generator=draw, effort=EFFORT
        )
        at = attack.x["spearman"][attack.counted]
        moved = attributions.saliency(model, at, target[attack.counted], readout=readout).detach().abs().sum(1)
        share = moved[:, :, :4].sum((1, 2)) / moved.sum((1, 2))
        assert found["mass_attacked"] == pytest.approx(float(share.mean()), rel=1e-4)
        worst = attack.table[attack.table["part"] == "worst"]["spearman"].mean()
        assert found["spearman"] == pytest.approx(worst, abs=1e-5)
    assert torch.isnan(torch.tensor(table.loc["random", "mass"]))
    assert table["deletion"].between(0, 1).all()
    assert table["insertion"].between(0, 1).all()


def test_an_attack_moves_the_map_that_it_is_aimed_at_by_more_than_noise_does():
    names = ["saliency", "input_x_gradient"]
    table = across_models.transferred(SMALL, names, 16, EFFORT, 8, network=measure.trained_anew)
    wide = table.pivot(index="attacked", columns="measured", values="spearman")
    names = [f"{name}, {readout}" for name in ("saliency", "input_x_gradient") for readout in experiments.READOUTS]
    assert sorted(wide.columns) == sorted(names)
    assert sorted(wide.index) == sorted([*names, "noise"])
    for name in names:
        assert wide.loc[name, name] < wide.loc["noise", name]


def test_the_largest_stable_step_is_the_last_before_one_that_does_not_reach_the_level():
    reach = {0.1: True, 0.1 * 2**0.5: True, 0.2: False, 0.2 * 2**0.5: True}
    asked = []

    def train(group):
        (one,) = group
        asked.append(one)
        (step,) = [step for step in reach if step == pytest.approx(one.step_size)]
        return None, [SimpleNamespace(reached=reach[step])]

    experiment = experiments.Experiment(**BASE, step_size=0.01, seed=100)
    with mock.patch.object(across_models, "train", train):
        table = across_models.largest_stable(experiment, 0.1, 50)
        assert across_models.largest_stable(experiment, 0.2, 50)["step_size"].isna().all()
    assert table["step_size"].tolist() == pytest.approx([0.1 * 2**0.5])
    assert {e.recipe.most_epochs for e in asked} == {50}
    with pytest.raises(ValueError, match="experiment has protocol 'plateau'; it must stop at a level"):
        across_models.largest_stable(dataclasses.replace(experiment, protocol="plateau"), 0.1, 50)


@pytest.mark.parametrize(("names", "said"), [([], "names is"), (["grad_cam"], "names is"), (["rollout"], "names is")])
def test_maps_that_a_network_lacks_are_refused_before_it_is_trained(names, said):
    for function in (across_models.transferred, across_models.relevance_mass):
        with pytest.raises(ValueError, match=said):
            function(SMALL, names, 16, EFFORT, 8, network=measure.build)


def test_a_share_of_a_stochastic_map_is_refused_and_that_of_a_zero_map_is_nan():
    with pytest.raises(ValueError, match="names holds 'smooth_grad', which draws random numbers"):
        across_models.relevance_mass(SMALL, ["saliency", "smooth_grad"], 16, EFFORT, 8, network=measure.build)
    maps = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    shares = across_models._share(maps, torch.tensor([[True, False], [True, False]]))
    assert shares.tolist() == pytest.approx([math.nan, 0.5], nan_ok=True)


def test_a_plan_holds_every_condition_beside_its_base_and_a_range_that_ends_at_the_largest_stable_step():
    plan = across_models.plan(BASE, steps=STEPS, seeds=SEEDS, stable=0.8)
    made = plan.groupby(["factor", "choice", "role", "end"]).size()
    assert (made == len(SEEDS)).all()
    assert len(made) == 4 * (len(across_models.conditions("mlp", 1000)) + 1)
    last = plan[plan.factor == "steps"].set_index(["role", "end"]).experiment
    assert {e.step_size for e in last["condition", "large step"]} == {0.8}
    assert {e.step_size for e in last["condition", "small step"]} == {0.8 / 20}
    assert {e.step_size for e in last["base", "small step"]} == {0.003}
    for stable in (math.nan, STEPS[1]):  # none was found, or it is that of the base
        assert "steps" not in set(across_models.plan(BASE, steps=STEPS, seeds=SEEDS, stable=stable).factor)
    small = set(across_models.plan(BASE | {"batch_size": 16}, steps=STEPS, seeds=SEEDS).choice)
    assert set(plan.choice) - small == {"16 (step rescaled)", "up to the largest stable"}


def test_changes_are_log_ratios_of_properties_and_differences_of_robustness_between_the_ends():
    small, large = across_models.ENDS
    rows = pd.DataFrame(
        [
            ("a", 0, "middle", 0.5, 8.0), ("a", 0, small, 0.4, 2.0), ("a", 0, large, 0.7, 4.0),
            ("a", 1, small, 0.3, 1.0), ("a", 1, "middle", 0.9, 9.0), ("b", 0, small, 0.3, -1.0),
            ("b", 0, large, 0.2, 1.0),
            ("c", 0, small, math.nan, 1.0), ("c", 0, "middle", 0.2, 1.0), ("c", 0, large, 0.4, math.nan),
        ],
        columns=["kind", "seed", "end", "value", "norm"],
    )  # fmt: skip
    found = across_models.changes(rows, kind=["kind"], properties=["norm"])
    assert found[["kind", "seed"]].to_numpy().tolist() == [["a", 0], ["b", 0], ["c", 0]]  # one end alone is no change
    assert found["value"].tolist() == pytest.approx([0.3, -0.1, math.nan], nan_ok=True)
    assert found["norm"].tolist() == pytest.approx([math.log(2), math.nan, math.nan], nan_ok=True)


def test_mediation_has_the_worst_of_all_kinds_left_out_beside_the_rank_correlation():
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"kind": np.repeat([*"abcdef"], 5), "norm": draw.normal(size=30)})
    rows["value"] = rows["norm"] * np.where(rows["kind"] == "f", -1, 1)
    how = {"properties": ["norm"], "by": "kind", "generator": draw}
    (line,) = across_models.mediation(rows, kind=["kind"], **how).to_dict("records")
    assert line["carried_correlation"] == pytest.approx(-1)
    assert line["effect"] == pytest.approx(stats.spearmanr(rows["norm"], rows["value"]).statistic)
    assert (line["runs"], line["seeds"], line["word"]) == (30, 6, "positive" if line["low"] > 0 else "unclear")
