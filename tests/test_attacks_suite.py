"""The suite: never weaker than its parts, an image's result its own, nothing dropped, every pass counted."""

import dataclasses
import functools
import itertools
import math
from functools import partial

import cases
import numpy as np
import pandas as pd
import pytest
import torch
from attrobust import attacks, attributions, models, robustness
from attrobust.attacks import MEASURES, Effort, auto, passes
from attrobust.balls import Ball
from benchmarks.suite import Counting
from torch import nn
from torch.nn import functional as F

EPS = torch.finfo(torch.float64).eps
NORMS = ("linf", "l2")
QUICK = Effort(steps=3, restarts=2, draws=2, walk=2)
RADIUS = {"linf": 0.05, "l2": 0.2}


def smooth_grad(model, x, target, *, generator):
    return attributions.smooth_grad(model, x, target, sigma=0.05, samples=3, generator=generator)


def attack(model=None, x=None, *, norm="linf", attribution=attributions.saliency, seed=0, **changes):
    x = cases.images(5) if x is None else x
    how = {"ball": Ball(norm, RADIUS[norm]), "k": 2, "effort": QUICK, "generator": cases.generator(seed)} | changes
    ball = how.pop("ball")
    attacked = attacks.heavy if isinstance(how["effort"], attacks.Heavy) else auto
    return attacked(attribution, model or cases.conv(), x, ball, **how)


def worst_first(table):
    """The measures of a table, larger = worse."""
    names = [name for name in MEASURES if name in table]
    return table[names] * [MEASURES[name] for name in names]


def part(found, name):
    return found.table[found.table["part"] == name].set_index("image")


def relu_network(seed=0):
    return cases.mlp(nn.ReLU(), width=16, seed=seed)


# ------------------------------------------------------------------ what is returned


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attribution", [attributions.saliency, smooth_grad])
def test_the_worst_case_is_never_weaker_than_any_part_on_any_image_under_any_measure(norm, attribution):
    x = cases.images(5)
    found = attack(x=x, norm=norm, attribution=attribution, wanted=attacks.frame(x))
    worst = worst_first(part(found, "worst"))
    parts = [name for name in found.table["part"].unique() if name != "worst"]
    assert parts == [*attacks.OBJECTIVES, "match", "noise", "walk"]
    assert (part(found, "worst")["counted"] == 1).all()
    for name in parts:
        assert (worst >= worst_first(part(found, name))).all(axis=None)
    assert list(worst.columns) == list(MEASURES)
    for measure in MEASURES:
        for image, winner in enumerate(found.winners[measure]):
            if winner:
                mine = part(found, winner).loc[image, measure]
                assert mine == pytest.approx(part(found, "worst").loc[image, measure], rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["smooth", "relu"])
def test_every_worst_number_is_that_of_an_image_in_the_ball_with_the_clean_prediction(norm, kind):
    x = torch.rand(6, *cases.SHAPE, generator=cases.generator(3), dtype=torch.float64)
    x = torch.where(x < 0.1, 0.0, torch.where(x > 0.9, 1.0, x))
    model = cases.conv() if kind == "smooth" else relu_network()
    found = attack(model, x, norm=norm)
    for measure, moved in found.x.items():
        assert 0 <= moved.min() <= moved.max() <= 1
        flat = (moved - x).flatten(1)
        size = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
        assert (size <= RADIUS[norm] * (1 + 8 * EPS) + 4 * EPS).all()
        again = robustness.compare(model, attributions.saliency, x, moved, k=2)
        assert (again["kept"] == 1).all()
        if measure in again:
            assert part(found, "worst")[measure].tolist() == pytest.approx(again[measure].tolist())


def test_the_share_the_leaders_keep_and_the_way_to_a_wanted_map_are_what_they_say():
    model, x = cases.conv(), cases.images(5)
    found = attack(model, x, wanted=attacks.frame(x))
    target = model(x).argmax(1)
    maps = {m: attributions.pixelwise(attributions.saliency(model, im, target).detach()) for m, im in found.x.items()}
    clean = attributions.pixelwise(attributions.saliency(model, x, target).detach())
    for i in range(5):
        leaders, a, b = clean[i].flatten().argsort(descending=True)[:2], clean[i], maps["top_k_share"][i]
        share = (b.flatten()[leaders].sum() / b.sum()) / (a.flatten()[leaders].sum() / a.sum())
        assert part(found, "worst").loc[i, "top_k_share"] == pytest.approx(share.item())
        frame = torch.tensor([[1.0, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=torch.float64) / 8
        a, b = a / a.sum(), maps["match"][i] / maps["match"][i].sum()
        way = 1 - (b - frame).square().sum() / (a - frame).square().sum()
        assert part(found, "worst").loc[i, "match"] == pytest.approx(way.item())


def test_a_map_that_another_image_shows_is_reached_where_the_image_may_become_that_image():
    model, x = cases.conv(), cases.images(4)
    target = model(x).argmax(1)
    assert len(set(target.tolist())) == 1
    wanted = attributions.saliency(model, x.roll(1, 0), target).detach()
    effort = Effort(steps=50, restarts=2, draws=0, walk=0)
    found = attack(model, x, wanted=wanted, ball=Ball("linf", 0.5), effort=effort)
    assert (part(found, "match")["match"] > 0.9).all()
    assert (part(found, "match")["match"] > part(found, "cosine")["match"] + 0.1).all()


def test_images_are_attacked_where_gradients_are_switched_off_and_the_model_is_left_as_found():
    model, x = cases.mlp(), cases.images(3)
    model[2].train()
    flags, kept = [m.training for m in model.modules()], x.clone()
    expected = attack(model, x).table
    with torch.no_grad():
        found = attack(model, x).table
    pd.testing.assert_frame_equal(found, expected)
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, kept)
    assert not x.requires_grad


# ------------------------------------------------------------------ an image's result is its own


def same(one, other, rows=None):
    """Largest difference of two tables' measures, image by image."""
    names = [*MEASURES, "counted"]
    names = [name for name in names if name in one]
    other = other if rows is None else other[other["image"].isin(rows)]
    first, second = (t.sort_values(["image", "part"])[names].to_numpy() for t in (one, other))
    assert (np.isnan(first) == np.isnan(second)).all()
    return np.nanmax(abs(first - second))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["smooth", "relu", "stochastic"])
def test_a_row_of_a_batch_is_a_batch_of_one(norm, kind):
    model = relu_network() if kind == "relu" else cases.conv()
    how = {"norm": norm, "attribution": smooth_grad if kind == "stochastic" else attributions.saliency}
    x = cases.images(3)
    together = attack(model, x, wanted=attacks.frame(x), **how)
    for i in (0, 2):
        one = x[i : i + 1]
        alone = attack(model, one, wanted=attacks.frame(one), **how)
        assert same(alone.table, together.table, [i]) < 1e-9
        for measure in MEASURES:
            assert (alone.x[measure] - together.x[measure][i]).abs().max() < 1e-9


def test_the_order_of_a_batch_does_not_matter():
    x = cases.images(5)
    forth, back = attack(x=x), attack(x=x.flip(0))
    table = back.table.assign(image=4 - back.table["image"])
    assert same(forth.table, table) < 1e-9


@pytest.mark.parametrize("measure", ["top_k", "cosine", "center_shift"])
def test_images_that_break_leave_and_the_others_do_not_notice(measure):
    x = cases.images(8)
    free = attack(x=x)
    values = part(free, "worst")[measure]
    level = float(values.median()) if measure != "top_k" else 0.5
    stopped = attack(x=x, goal=(measure, level))
    reached = torch.tensor((MEASURES[measure] * values >= MEASURES[measure] * level).to_numpy())
    assert torch.equal(stopped.broken, reached)
    assert 0 < stopped.success == reached.double().mean() < 1
    unbroken = [i for i in range(8) if not reached[i]]
    assert same(stopped.table[stopped.table["image"].isin(unbroken)], free.table, unbroken) < 1e-9
    late = stopped.table[stopped.table["image"].isin(set(range(8)) - set(unbroken)) & (stopped.table["tried"] == 0)]
    assert len(late) > 0
    assert (late["counted"] == 0).all()
    assert late["cosine"].isna().all()


def test_a_broken_image_costs_nothing_more():
    x = cases.images(8)
    model = met(Counting(cases.mlp()), x)
    attack(model, x, goal=("cosine", 1.0))
    stopped = model.forwards
    # The clean maps and predictions, the audit, and the first iterates of all ascents, whose maps bring the logits.
    assert stopped == 8 * (2 + 5 + len(QUICK.objectives) * QUICK.restarts)


def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    pd.testing.assert_frame_equal(attack().table, attack().table)
    assert same(attack().table, attack(seed=1).table) > 1e-6


def test_the_seed_decides_the_starts_of_the_ascent_and_not_only_noise_and_walk():
    climbs = Effort(steps=2, restarts=1, draws=0, walk=0)
    one, other = (attack(effort=climbs, seed=seed).table for seed in (0, 1))
    for name in attacks.OBJECTIVES:
        a, b = (t[t["part"] == name]["cosine"].to_numpy() for t in (one, other))
        assert (abs(a - b) > 1e-9).all()


@pytest.mark.parametrize(
    ("few", "more"),
    [
        (QUICK, Effort(steps=3, restarts=4, draws=2, walk=2)),
        (Effort(steps=0, draws=2, walk=0), Effort(steps=0, draws=9, walk=0)),
        (Effort(steps=0, draws=0, walk=2), Effort(steps=0, draws=0, walk=9)),
        (Effort(steps=0, draws=2, walk=0), Effort(steps=2, draws=2, walk=2)),
    ],
    ids=["restarts", "draws", "walk", "parts"],
)
def test_more_of_anything_that_is_tried_never_weakens_the_worst_case(few, more):
    few, more = attack(effort=few), attack(effort=more)
    gain = worst_first(part(more, "worst")) - worst_first(part(few, "worst"))
    assert (gain >= -1e-12).all(axis=None)
    assert (gain > 1e-6).any(axis=None)


# ------------------------------------------------------------------ passes


MAPS = {
    "saliency": (attributions.saliency, {"logits": True}),
    "integrated": (partial(attributions.integrated_gradients, steps=4), {"forward": 4, "backward": 4}),
    "stochastic": (smooth_grad, {"forward": 3, "backward": 3, "stochastic": True, "logits": True}),
}


def met(judged, x, attribution=attributions.saliency):
    """A counting network that has been looked at before, as is done once for every network and its maps."""
    many = x.repeat(1000 // len(x), 1, 1, 1)
    models.guards.classifier(judged, many)
    attribution = None if attribution is smooth_grad else attribution
    if attribution:
        models.guards.each("attribution", attribution, judged, x, torch.zeros(len(x), dtype=torch.int64))
    judged.forwards = judged.backwards = 0
    return judged


@pytest.mark.parametrize("kind", ["smooth", "twins", "built"])
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    "effort",
    [QUICK, Effort(steps=3, restarts=1, draws=0, walk=2, eot=2), Effort(steps=0, draws=2, walk=0)],
    ids=["all", "eot", "blind"],
)
def test_the_count_of_passes_on_paper_is_the_measured_one(kind, name, effort):
    attribution, price = MAPS[name]
    x = cases.images(3)
    judged = met(Counting(cases.mlp() if kind == "smooth" else relu_network()), x, attribution)
    effort = dataclasses.replace(effort, betas=(5.0, 10.0))
    options = {"smooth": {}, "built": {}}.get(kind)
    extra = {"smooth": {}, "built": {"twins": 2, "built": True}, "twins": {"twins": 2}}[kind]
    if options is None:
        options = {"ascend_on": [models.smooth_twin(judged, x, beta=b) for b in (5.0, 10.0)]}
        judged.forwards = judged.backwards = 0
    found = attack(judged, x, attribution=attribution, effort=effort, starts={"same": x}, **options)
    paper = passes(effort, images=3, starts=1, lost=found.lost, **price, **extra)
    assert (judged.forwards, judged.backwards) == (paper.forward, paper.backward)


def test_a_wanted_map_costs_one_objective_more():
    x = cases.images(2)
    judged = met(Counting(cases.mlp()), x)
    found = attack(judged, x, wanted=attacks.frame(x))
    paper = passes(QUICK, images=2, wanted=True, lost=found.lost, logits=True)
    assert (judged.forwards, judged.backwards) == (paper.forward, paper.backward)


def test_the_way_back_to_the_prediction_is_paid_for_only_where_it_was_lost():
    x = cases.images(20)
    judged = met(Counting(cases.quadratic()), x)
    effort = Effort(steps=5, restarts=2, draws=0, walk=0)
    found = attack(judged, x, ball=Ball("linf", 0.25), effort=effort)
    assert 0 < found.lost < 20 * 2 * 5 * 4
    paper = passes(effort, images=20, lost=found.lost, logits=True)
    assert (judged.forwards, judged.backwards) == (paper.forward, paper.backward)


def test_the_default_effort_has_the_price_of_the_first_version():
    def gradients(effort):
        return effort.steps * effort.restarts * len(effort.objectives)

    assert gradients(Effort()) == gradients(attacks.FIRST_VERSION) == 320


# ------------------------------------------------------------------ strength


class Bump(nn.Module):
    """A smooth random network of two or three pixels."""

    def __init__(self, pixels, seed):
        super().__init__()
        draw = partial(torch.randn, generator=cases.generator(seed), dtype=torch.float64)
        self.a, self.b, self.c = draw(pixels, 6) * (4 - pixels), draw(6), draw(6, 2)

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.a + self.b) @ self.c


def grid(x, ball, points):
    """Every perturbation of a fine grid over the ball, its boundary included."""
    ticks = torch.linspace(-ball.radius, ball.radius, points, dtype=torch.float64)
    moves = torch.tensor(list(itertools.product(ticks.tolist(), repeat=x[0].numel())), dtype=torch.float64)
    if ball.norm == "l2":
        length = moves.norm(dim=1, keepdim=True).clamp_min(1e-9)
        moves = torch.cat([moves[length[:, 0] <= ball.radius], moves / length * ball.radius])
    return (x + moves.view(-1, *x.shape[1:])).clamp(0, 1)


#: measure -> (gain of a value over the clean image's)
GAINS = {
    "top_k_share": lambda v: 1 - v,
    "cosine": lambda v: 1 - v,
    "pearson": lambda v: 1 - v,
    "center_shift": lambda v: v,
    "match": lambda v: v,
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("pixels", "points", "seed"), [(2, 101, 0), (2, 101, 1), (3, 21, 0)])
def test_under_every_objective_the_gradient_parts_reach_the_optimum_of_a_fine_grid(norm, seed, pixels, points):
    model, ball = Bump(pixels, seed), Ball(norm, 0.2)
    x = 0.3 + 0.4 * torch.rand(1, 1, 1, pixels, generator=cases.generator(seed), dtype=torch.float64)
    wanted = torch.eye(pixels, dtype=torch.float64)[seed % pixels].view(1, 1, 1, pixels)
    effort = Effort(steps=40, restarts=12, draws=0, walk=0, objectives=tuple(attacks.CLIMBABLE))
    found = attack(model, x, k=1, ball=ball, effort=effort, wanted=wanted)
    everywhere = grid(x, ball, points)
    target = model(x).argmax(1)
    everywhere = everywhere[model(everywhere).argmax(1) == target]
    n = len(everywhere)
    clean, maps = (attributions.saliency(model, im, target.expand(len(im))).detach() for im in (x, everywhere))
    values = attacks.measure(clean.expand(n, -1, -1, -1), maps, k=1, wanted=wanted.expand(n, -1, -1, -1))
    for measure, gain in GAINS.items():
        best, reached = gain(values[measure]).max().item(), gain(part(found, "worst").loc[0, measure])
        assert reached >= 0.99 * best - 1e-9, (measure, reached, best)


@pytest.mark.parametrize(("norm", "seed", "image"), [("l2", 3, 3), ("linf", 5, 0)])
def test_next_to_the_decision_boundary_a_climb_comes_back_and_goes_along_it(norm, seed, image):
    model, ball = Bump(3, seed), Ball(norm, 0.2)
    x = 0.2 + 0.6 * torch.rand(400, 1, 1, 3, generator=cases.generator(seed), dtype=torch.float64)
    x = x[(model(x)[:, 0] - model(x)[:, 1]).abs() < 0.15][image : image + 1]
    everywhere, target = grid(x, ball, 25), model(x).argmax(1)
    everywhere = everywhere[model(everywhere).argmax(1) == target]
    n = len(everywhere)
    clean, maps = (attributions.saliency(model, im, target.expand(len(im))).detach() for im in (x, everywhere))
    best = 1 - attacks.measure(clean.expand(n, -1, -1, -1), maps, k=1)["cosine"].min().item()
    found = attack(model, x, k=1, ball=ball, effort=Effort(steps=40, restarts=2, draws=0, walk=0))
    assert 1 - part(found, "cosine").loc[0, "cosine"] >= 0.99 * best


@pytest.mark.parametrize("norm", NORMS)
def test_each_gradient_part_beats_a_long_random_walk_and_noise_of_equal_budget(norm):
    model, x = cases.conv(), cases.images(6)
    # A climbed iterate takes 5 passes (map, prediction, their gradients), a blind one 3: two restarts of 30 steps
    # take 306, 100 draws of noise 300, 300 steps of the walk 900.
    effort = Effort(steps=30, restarts=2, draws=100, walk=300, objectives=tuple(attacks.CLIMBABLE))
    found = attack(model, x, norm=norm, effort=effort, wanted=attacks.frame(x))
    arms = {
        "top_k_share": "top_k",
        "cosine": "cosine",
        "pearson": "pearson",
        "center_shift": "center",
        "match": "match",
    }
    for measure, gain in GAINS.items():
        climbed, walked, drawn = (gain(part(found, p)[measure]).mean() for p in (arms[measure], "walk", "noise"))
        assert climbed > 1.05 * walked, measure
        assert climbed > 1.05 * drawn, measure


def test_a_map_without_a_derivative_is_refused_and_can_be_searched_without_gradients():
    def detached(model, x, target):
        return attributions.saliency(model, x, target).detach()

    with pytest.raises(ValueError, match=r"model has a detached map whose derivative does not predict .* on 100% of"):
        attack(attribution=detached)
    found = attack(attribution=detached, effort=Effort(steps=0, draws=5, walk=5))
    assert not found.climbed.any()
    assert (part(found, "worst")["cosine"] < 0.999).all()
    assert attack().climbed.all()


def test_a_linear_network_s_map_stands_still_and_is_searched_only():
    found = attack(cases.linear())
    assert list(found.table["part"].unique()) == ["noise", "walk", "worst"]
    assert not found.climbed.any()
    assert part(found, "worst")["cosine"].tolist() == pytest.approx([1.0] * 5)


def test_starts_found_on_another_map_are_judged_again_on_this_one():
    x, model = cases.images(5), cases.conv()
    other = attack(model, x, attribution=attributions.input_x_gradient)
    found = attack(model, x, starts={"input_x_gradient": other.x["cosine"]})
    again = robustness.compare(model, attributions.saliency, x, other.x["cosine"], k=2)
    mine = part(found, "start: input_x_gradient")
    assert mine["cosine"].tolist() == pytest.approx(again["cosine"].tolist())
    assert (part(found, "worst")["cosine"] <= mine["cosine"]).all()


# ------------------------------------------------------------------ randomness of the map


def test_a_stochastic_map_is_judged_under_the_same_draws_clean_and_attacked():
    x = cases.images(3)
    still = attack(x=x, attribution=smooth_grad, ball=Ball("linf", 0.0))
    assert part(still, "worst")["cosine"].tolist() == pytest.approx([1.0] * 3)
    assert part(still, "worst")["displacement"].tolist() == pytest.approx([0.0] * 3, abs=1e-12)


def test_a_stochastic_map_is_climbed_under_fresh_draws_that_no_two_images_share():
    seen = []

    def spying(model, x, target, *, generator):
        seen.append(generator.get_state())
        return smooth_grad(model, x, target, generator=generator)

    x = cases.images(2)
    attack(x=x, attribution=spying, effort=Effort(steps=2, restarts=1, draws=0, walk=0, eot=3))
    states = {bytes(state.numpy()) for state in seen}
    judged = 2 * (1 + 5 + 4 * 3)  # the clean maps, the audit and three iterates of four ascents, two streams in all
    assert len(seen) == judged + 2 * 4 * 2 * 3
    assert len(states) == 2 + 2 * 4 * 2 * 3


# ------------------------------------------------------------------ nothing is dropped


def test_images_whose_every_iterate_changes_the_prediction_are_not_a_number_and_counted():
    model, x = cases.quadratic(), cases.images(20)
    found = attack(model, x, ball=Ball("linf", 0.25), effort=Effort(steps=0, draws=1, walk=0))
    lost = ~found.counted
    assert 0 < found.fallback == pytest.approx(lost.double().mean().item())
    assert found.fallback < 1
    worst = part(found, "worst")
    assert len(worst) == 20
    for i in lost.nonzero().flatten().tolist():
        assert worst.loc[i, [m for m in MEASURES if m != "match"]].isna().all()
        assert (found.winners.loc[i, [m for m in MEASURES if m != "match"]] == "").all()
        assert all(torch.equal(moved[i], x[i]) for moved in found.x.values())
    assert torch.equal(torch.tensor(worst["counted"].to_numpy()), found.counted.double())


@pytest.mark.parametrize("effort", [QUICK, attacks.Heavy(steps=20, starts=2)], ids=["auto", "heavy"])
@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_that_holds_the_output_moves_no_probability_further_and_reaches_less(norm, effort):
    model, x, held = cases.conv(), cases.images(12), 0.004
    free, tied = (attack(model, x, norm=norm, held=bound, effort=effort) for bound in (None, held))
    moved = [(model(at).softmax(1) - model(x).softmax(1)).abs().amax(1) for at in tied.x.values()]
    assert torch.stack(moved).max() <= held
    assert max((model(at).softmax(1) - model(x).softmax(1)).abs().max() for at in free.x.values()) > 2 * held
    assert tied.lost > free.lost
    both = tied.counted & free.counted
    assert both.any()
    for name in ("spearman", "cosine"):
        worst = [part(found, "worst")[name][both.numpy()].mean() for found in (free, tied)]
        assert worst[0] < worst[1]


def test_images_whose_output_cannot_be_held_come_back_along_the_largest_change():
    model, x = cases.conv(), cases.images(4)
    problem = attacks.problem.Problem.of(
        attributions.saliency, model, x, Ball("linf", 0.1), cases.generator(), held=0.01
    )
    at = (x + 0.05).clamp(0, 1)
    back = problem.way_back(at, problem.everyone)

    def change(images):
        return -(model(images).softmax(1) - model(x).softmax(1)).abs().amax(1).sum()

    direction = torch.randn(x.shape, generator=cases.generator(1), dtype=x.dtype)
    assert (back * direction).sum().item() == pytest.approx(cases.slope(change, at, direction).item(), rel=1e-5)


def test_attacks_of_radius_zero_move_nothing():
    found = attack(ball=Ball("l2", 0.0))
    worst = part(found, "worst")
    for name in MEASURES:
        if name in worst:
            assert worst[name].tolist() == pytest.approx([1.0 if MEASURES[name] < 0 else 0.0] * 5, abs=1e-7)


# ------------------------------------------------------------------ edges


class Functional(nn.Module):
    """A dense layer, F.relu that no list of modules shows, and a dense layer."""

    def __init__(self):
        super().__init__()
        self.layers = cases.mlp(width=16)

    def forward(self, x):
        return self.layers[3](F.relu(self.layers[1](x.flatten(1))))


@pytest.mark.parametrize("network", [Functional, partial(cases.mlp, nn.ReLU(inplace=True), width=16)])
def test_hidden_and_in_place_relus_get_twins_or_are_refused_without(network):
    model = network() if network is not Functional else Functional().eval()
    found = attack(model, effort=dataclasses.replace(QUICK, betas=(5, 20)))
    parts = [f"{name}, β={beta}" for beta in (5, 20) for name in attacks.OBJECTIVES]
    assert list(found.table["part"].unique()) == [*parts, "noise", "walk", "worst"]
    assert part(found, "worst")["cosine"].mean() < part(found, "noise")["cosine"].mean()
    with pytest.raises(ValueError, match=r"model \(it runs relu_?\) has a saliency map whose derivative"):
        attack(model, effort=dataclasses.replace(QUICK, betas=()))


def test_networks_that_are_given_to_climb_are_named_and_must_pass_the_audit():
    model, x = relu_network(), cases.images(5)
    twins = [models.smooth_twin(model, x, beta=b) for b in (5.0, 50.0)]
    named = attack(model, x, ascend_on=twins).table["part"].unique()
    assert {"cosine, β=5", "cosine, β=50"} <= set(named)
    named = attack(model, x, ascend_on=[cases.conv(), cases.conv(seed=1)]).table["part"].unique()
    assert {"cosine, network 0", "cosine, network 1"} <= set(named)
    with pytest.raises(ValueError, match="derivative does not predict how the map changes"):
        attack(model, x, ascend_on=[model])


def test_of_several_networks_only_those_that_pass_are_climbed():
    model, x = relu_network(), cases.images(5)
    found = attack(model, x, ascend_on=[models.smooth_twin(model, x, beta=5), models.smooth_twin(model, x, beta=2000)])
    assert {"cosine, β=5"} <= set(found.table["part"])
    assert "cosine, β=2000" not in set(found.table["part"])
    assert found.audits[", β=2000"].refused


def test_a_model_that_returns_a_tuple_is_refused(unchecked):
    class Two(nn.Module):
        def forward(self, x):
            return x.flatten(1), x

    with pytest.raises(ValueError, match="model returned a tuple; wrap it to return logits"):
        attack(Two())
    with pytest.raises(ValueError, match=r"model returned shape \(8, 2, 3, 3\)"):
        attack(nn.Identity())


def test_a_zero_clean_map_has_no_measure_and_a_map_that_became_zero_is_unlike_any_other():
    zero, one = torch.zeros(1, *cases.SHAPE), torch.rand(1, *cases.SHAPE, generator=cases.generator())
    for there in (zero, one):
        assert all(value.isnan().all() for value in attacks.measure(zero, there, k=2).values())
    values = attacks.measure(one, zero, k=2)
    assert all(values[name].item() == 0 for name in values if MEASURES[name] < 0)
    model = cases.conv()
    with torch.no_grad():
        model[3].weight.zero_()
    worst = part(attack(model), "worst")
    assert (worst["zero"] == 1).all()
    assert worst[["top_k", "cosine", "spearman", "displacement"]].isna().all(axis=None)
    assert (part(attack(), "worst")["zero"] == 0).all()


def test_a_map_that_is_not_a_number_is_refused_by_the_name_of_its_attribution():
    def broken(model, x, target, *, scale):
        maps = attributions.saliency(model, x, target)
        return torch.cat([maps[:1] * math.nan, maps[1:]])

    with pytest.raises(ValueError, match="attribution broken gives NaN or infinity on 1 of 5 images; it must be"):
        attack(attribution=partial(broken, scale=1))


def test_iterates_whose_map_is_not_a_number_never_count():
    x = cases.images(3)

    def fragile(model, at, target):
        maps = attributions.saliency(model, at, target)
        moved = (at[:, None] != x).flatten(2).any(2).all(1)
        return torch.where(moved.view(-1, 1, 1, 1), math.nan * maps, maps)

    found = attack(x=x, attribution=fragile, effort=Effort(steps=0, draws=3, walk=3))
    assert found.fallback == 1
    assert part(found, "worst")["cosine"].isna().all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": 9}, "k is 9; it must be a whole number from 1 to 8"),
        ({"x": 3 * cases.images()}, r"x spans .*; pixels must lie in \[0, 1\]"),
        ({"goal": ("cosin", 0.5)}, "goal is 'cosin'; it must be one of .*did you mean 'cosine'"),
        ({"goal": ("match", 0.5)}, "goal is 'match'; it must be one of top_k"),
        ({"goal": ("cosine",)}, r"goal is .*; it must be \(measure, value\)"),
        ({"goal": ("cosine", "low")}, "the value of goal is 'low'"),
        ({"goal": "cosine"}, "goal is a str; it must be a tuple or list"),
        ({"starts": [1]}, "starts is a list"),
        ({"effort": 3}, "effort is a int"),
        ({"held": 0.0}, "held is 0.0"),
        ({"starts": {"far": cases.images(5) + 0.1}}, r"starts\['far'\] leaves the ball by 0.05"),
        ({"starts": {"few": cases.images(4)}}, r"starts\['few'\] has shape \(4, 2, 3, 3\); it must be that of x"),
        ({"wanted": torch.zeros(5, 1, 3, 3)}, r"wanted has shape \(5, 1, 3, 3\); it must hold, for each of 5 images"),
        ({"wanted": torch.ones(5, 1, 3, 4)}, r"wanted has shape \(5, 1, 3, 4\); .*a finite map of 3 x 3"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(change, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        attack(**change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": -1}, "steps is -1; it must be a whole number of at least 0"),
        ({"restarts": 0}, "restarts is 0; it must be a whole number of at least 1"),
        ({"relative_step": 0.0}, "relative_step is 0.0; it must be a finite number above 0"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be below 1"),
        ({"objectives": ("cosin",)}, "objective is 'cosin'; it must be one of .*did you mean 'cosine'"),
        ({"betas": (0.0,)}, "beta is 0.0; it must be a finite number above 0"),
        ({"steps": 0, "draws": 0, "walk": 0}, "steps, draws and walk are all 0; one of them must be at least 1"),
    ],
)
def test_an_effort_out_of_range_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Effort(**change)


# ------------------------------------------------------------------ whose logits, and whose memory


class Turned(nn.Module):
    """A network that gives the logits to other classes than its `attend` does."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.attend = inner, inner.attend

    def forward(self, x):
        return self.inner(x).roll(1, 1)


def test_predictions_are_the_judged_networks_whatever_logits_a_map_brings_along():
    found = attack(Turned(cases.vit()), cases.images(3, shape=(2, 4, 6)), attribution=attributions.raw_attention, k=2)
    assert found.counted.all()
    assert found.lost == 0


@pytest.mark.parametrize("kind", ["wrapped", "its own logits", "partial of a wrapper"])
def test_only_marked_attributions_are_asked_for_logits(kind):
    @functools.wraps(attributions.saliency)
    def wrapped(model, x, target):
        return attributions.saliency(model, x, target).abs()

    def own(model, x, target, logits=None):
        assert logits is None
        return attributions.saliency(model, x, target)

    maps = {"wrapped": wrapped, "its own logits": own, "partial of a wrapper": partial(wrapped)}[kind]
    assert attack(attribution=maps).counted.all()


class Summed(nn.Module):
    """A smooth network of the sums over each channel: its input gradient is one number shown at every pixel."""

    def forward(self, x):
        first, second = torch.randn(2, 2, 3, generator=cases.generator(), dtype=x.dtype)
        h = x.sum((2, 3))
        return h.sin() @ first + h.square() @ second


@pytest.mark.parametrize("norm", NORMS)
def test_a_network_that_sums_pixels_is_climbed_as_any_other(norm):
    found = attack(Summed(), norm=norm, k=2, ball=Ball(norm, 1e-3))
    assert found.climbed.all()
    assert found.counted.all()


def test_maps_next_to_underflow_have_similarities_in_range():
    tiny, there = (scale * torch.randn(2, 1, 8, 8, generator=cases.generator()) for scale in (1e-25, 1.0))
    found = attacks.measure(tiny, there, k=5)
    assert all(found[name].abs().max() <= 1 + 1e-6 for name in ("cosine", "pearson", "spearman"))


def coupled(model, at, target):
    maps = attributions.saliency(model, at, target)
    return maps / maps.abs().max()


DRAW = cases.generator()


def noisy(model, at, target):
    maps = attributions.saliency(model, at, target)
    return maps + 0.01 * torch.rand(maps.shape, generator=DRAW, dtype=maps.dtype)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("attribution", "sentence"), [(coupled, "coupled .*couples the images"), (noisy, "noisy .*it is random")]
)
def test_a_map_that_is_random_or_couples_the_images_of_a_batch_is_refused(attribution, sentence, n):
    x, how = cases.images(n), {"ball": Ball("linf", 0.05), "k": 2, "generator": cases.generator()}
    for call in (
        lambda: auto(attribution, cases.mlp(), x, **how),
        lambda: attacks.heavy(attribution, cases.mlp(), x, **how),
        lambda: robustness.attribution_robustness(cases.mlp(), x, attributions={"own": attribution}, **how),
        lambda: robustness.compare(cases.mlp(), attribution, x, x, k=2),
    ):
        with pytest.raises(ValueError, match=f"^attribution {sentence}|^attribution .*({sentence.split('.*')[1]})"):
            call()


# ------------------------------------------------------------------ numbers of every size and kind


def scaled(scale):
    return lambda model, x, target: scale * attributions.saliency(model, x, target)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_maps_of_any_scale_are_attacked_alike(norm, scale):
    model, x = cases.conv().float(), cases.images(4).float()
    names = ["top_k", "top_k_share", "spearman", "cosine", "pearson", "relative_displacement", "center_shift"]
    plain, there = (attack(model, x, norm=norm, attribution=scaled(s)) for s in (1.0, scale))
    assert there.climbed.equal(plain.climbed) and there.climbed.any()
    for measured, expected in zip(*(part(f, "worst")[names].to_numpy() for f in (there, plain)), strict=True):
        assert measured == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_objectives_ignore_the_scale_of_the_attacked_map_and_of_the_clean_one():
    clean, there = (torch.randn(4, 2, 5, 5, generator=cases.generator(s)) for s in (0, 1))
    for objective in attacks.effort.CLIMBABLE.values():
        expected = objective(attacks.Clean(clean, k=5), there)
        for scale in (2.0**-110, 2.0**110):  # powers of two: the same bits
            assert torch.equal(objective(attacks.Clean(scale * clean, k=5), scale * there), expected)


def test_a_very_sure_network_has_a_map_that_is_attacked_as_in_double_precision():
    def sure(model, x, target):
        return attributions.saliency(model, x, target, readout=models.readouts.log_probability)

    model, x = cases.mlp(), cases.images(4)
    with torch.no_grad():
        model[-1].bias.copy_(60.0 * torch.eye(cases.CLASSES)[0])
    same = robustness.compare(model.float(), sure, x.float(), x.float(), k=2)
    assert same[["cosine", "pearson", "spearman"]].to_numpy() == pytest.approx(1)
    found = attack(model.float(), x.float(), attribution=sure)
    exact = attack(model.double(), x, attribution=sure)
    assert found.climbed.all() and exact.climbed.all()
    assert part(found, "worst")["cosine"].to_numpy() == pytest.approx(part(exact, "worst")["cosine"], abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_attacked_through_twins_and_at_random(dtype):
    model, x = relu_network().to(dtype), cases.images(4).to(dtype)
    for effort in (QUICK, Effort(steps=0, draws=3, walk=3)):
        found = attack(model, x, effort=effort)
        assert found.counted.all()
        assert found.table["cosine"].between(-1, 1).all()
        assert found.x["cosine"].dtype == dtype


@pytest.mark.parametrize(
    ("attribution", "dtype"),
    [(lambda model, x, target: (255 * x).long(), "int64"), (lambda model, x, target: x + 1j, "complex128")],
)
def test_maps_of_whole_or_complex_numbers_are_refused_by_name(attribution, dtype, unchecked):
    sentence = f"the map of attribution <lambda> has dtype torch.{dtype}; it must be floating-point"
    for run in (attack, lambda **how: robustness.compare(cases.conv(), how["attribution"], *2 * [cases.images()], k=2)):
        with pytest.raises(ValueError, match=sentence):
            run(attribution=attribution)


def test_maps_of_one_pixel_are_refused(unchecked):
    one = torch.rand(3, 2, 1, 1, generator=cases.generator(), dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), cases.isolated(nn.Linear)(2, 3).double(), nn.Tanh())
    with pytest.raises(ValueError, match="the maps have one pixel each"):
        attack(net, one, k=1)


@pytest.mark.parametrize("norm", NORMS)
def test_noise_and_walk_are_moves_of_full_size_and_of_a_sixteenth_drawn_for_each_image(norm):
    model, x, ball = cases.conv(), cases.images(3), Ball(norm, RADIUS[norm])
    found = attack(model, x, norm=norm, effort=Effort(steps=0, draws=4, walk=5))
    streams, target = attacks.Streams(x, generator=cases.generator()), model(x).argmax(1)
    clean = attributions.saliency(model, x, target).detach()
    for name, count in (("noise", 4), ("walk", 5)):
        at, draws, least = x, [streams(i, name) for i in range(3)], torch.ones(3, dtype=torch.float64)
        for _ in range(count):
            kick = torch.cat([ball.boundary(one, generator=own) for one, own in zip(x.split(1), draws, strict=True)])
            move = kick if name == "noise" else at + kick / 16 - x
            at = (x + ball.project(move)).clamp(0, 1)
            there = attributions.saliency(model, at, target).detach()
            cosine = nn.functional.cosine_similarity(clean.flatten(1), there.flatten(1))
            least = torch.where(model(at).argmax(1) == target, least.minimum(cosine), least)
        assert part(found, name)["cosine"].tolist() == pytest.approx(least.tolist(), abs=1e-12)


def test_a_start_may_lie_outside_the_ball_by_rounding_alone():
    x = cases.images(2).clamp(0.2, 0.8)
    for norm, over in itertools.product(NORMS, (0.9e-5, 1.2e-5)):
        move = torch.zeros_like(x)
        move[:, 0, 0, 0] = RADIUS[norm] + over
        how = {"x": x, "norm": norm, "starts": {"near": x + move}, "effort": Effort(steps=0, draws=1, walk=0)}
        if over < 1e-5:
            assert "start: near" in set(attack(**how).table["part"])
        else:
            with pytest.raises(ValueError, match=r"starts\['near'\] leaves the ball by 1.2e-05"):
                attack(**how)
