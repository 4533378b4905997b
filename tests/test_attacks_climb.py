"""The audit of a derivative, the one ascent, and the heavy attack that judges its strength."""

import importlib
import math
from functools import partial

import cases
import pytest
import torch
from attrobust import attacks, attributions, models
from attrobust.attacks import Effort
from attrobust.attacks.climb import climb
from attrobust.attacks.problem import Problem, along
from attrobust.attacks.suite import opened
from attrobust.balls import Ball
from torch import nn

#: The module, whose name its function took.
HEAVY = importlib.import_module("attrobust.attacks.heavy")

EPS = torch.finfo(torch.float64).eps
NORMS = ("linf", "l2")


def size(perturbation, norm):
    flat = perturbation.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def beaten(found, name="worst"):
    return found.table[found.table["part"] == name].set_index("image")


# ------------------------------------------------------------------ audit


def audited(model, attribution=attributions.saliency, n=8):
    x = cases.images(n)
    target = model(x).argmax(1)
    signs = torch.randn(2, *x.shape, generator=cases.generator(1), dtype=x.dtype).sign()
    return attacks.audit(lambda at: attribution(model, at, target), x, signs), x, target, signs


def test_the_share_is_the_projection_of_the_jacobian_on_the_finite_difference():
    model = cases.mlp()
    found, x, target, signs = audited(model, n=3)
    for i in range(3):

        def explained(at, i=i):
            return attributions.saliency(model, at[None], target[i : i + 1])[0]

        jacobian = torch.autograd.functional.jacobian(explained, x[i]).reshape(18, 18)
        above = below = 0.0
        for v in signs[:, i]:
            fd = ((explained(x[i] + v / 255) - explained(x[i] - v / 255)) * 255 / 2).flatten()
            above, below = above + (jacobian @ v.flatten()) @ fd, below + fd @ fd
        assert found.share[i].item() == pytest.approx((above / below).item(), rel=1e-9)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Tanh(), nn.SiLU(), nn.Softplus(5), nn.Softplus(10)])
@pytest.mark.parametrize("network", [cases.mlp, cases.conv])
def test_smooth_networks_pass(network, activation):
    found = audited(network(activation))[0]
    assert found.failing == 0
    assert not found.refused


def gated(x):
    return x * (x > 0)


class Straight(torch.autograd.Function):
    """A ReLU whose derivative is a step: no second derivative, and no operation with a name."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


KINKED = {
    "relu": nn.ReLU(),
    "a product with a mask": cases.Called(gated),
    "torch.where": cases.Called(lambda x: torch.where(x > 0, x, 0 * x)),
    "a custom function": cases.Called(Straight.apply),
    "maximum": cases.Called(lambda x: torch.maximum(x, 0 * x)),
    "softplus of 500": nn.Softplus(500),
}


@pytest.mark.parametrize("kind", KINKED)
def test_kinks_fail_however_they_are_written(kind):
    found = audited(cases.mlp(KINKED[kind], width=64), n=16)[0]
    assert found.refused, found.share


def test_a_map_that_was_detached_fails_and_one_that_cannot_move_has_no_share():
    def detached(model, x, target):
        return attributions.saliency(model, x, target).detach()

    found = audited(cases.mlp(), detached)[0]
    assert found.refused
    assert found.moved.all()
    assert found.share.tolist() == [0.0] * 8
    still = audited(cases.linear())[0]
    assert not still.moved.any()
    assert still.share.isnan().all()


def test_a_kink_that_no_twin_softens_is_refused_in_one_sentence():
    model, x = cases.mlp(KINKED["a custom function"], width=64), cases.images(8)
    with pytest.raises(attacks.BlindError, match=r"model's smooth twin has a gradient that misses .*% of its logits"):
        attacks.auto(attributions.saliency, model, x, Ball("linf", 0.05), k=2, generator=cases.generator())


def test_single_images_that_fail_are_not_climbed_for_and_are_nan_where_nothing_else_reached_them():
    model, x = cases.conv(), cases.images(10)

    def broken(model, at, target):
        """A map whose derivative is cut for the darkest of ten images."""
        maps = attributions.saliency(model, at, target)
        dark = at.flatten(1).mean(1) < sorted(x.flatten(1).mean(1).tolist())[0] + 2e-3
        return torch.where(dark.view(-1, 1, 1, 1), maps.detach(), maps)

    found = attacks.auto(
        broken, model, x, Ball("linf", 1e-3), k=2, generator=cases.generator(), effort=Effort(steps=3, draws=0, walk=0)
    )
    worst = found.table[found.table["part"] == "worst"].set_index("image")
    darkest = int(x.flatten(1).mean(1).argmin())
    assert found.climbed.tolist() == [i != darkest for i in range(10)]
    assert worst["cosine"].isna().tolist() == [i == darkest for i in range(10)]
    assert worst.loc[darkest, "counted"] == 0


# ------------------------------------------------------------------ the ascent


def climbing(model, x, ball, effort, goal="cosine"):
    """The problem, every iterate that the judge saw, and how many were lost."""
    problem = Problem.of(attributions.saliency, model, x, ball, cases.generator())
    judge, iterates = opened(problem, k=2), []
    see = judge.see

    def watched(parts, at, *others):
        iterates.append(at.detach().clone())
        see(parts, at, *others)

    judge.see = watched
    lost = climb(problem, judge, model, {goal: attacks.CLIMBABLE[goal]}, rows=problem.everyone, effort=effort)
    return problem, iterates, lost


@pytest.mark.parametrize("norm", NORMS)
def test_iterates_follow_the_momentum_recipe_written_out_by_hand(norm):
    model, x, ball = cases.conv(), cases.images(3), Ball(norm, 0.05)
    effort = Effort(steps=6, restarts=1, draws=0, walk=0, momentum=0.6, relative_step=0.4)
    problem, iterates, lost = climbing(model, x, ball, effort)
    assert lost == 0
    clean = attributions.saliency(model, x, problem.target).detach()
    at, velocity = iterates[0], torch.zeros_like(x)
    for step in range(6):
        assert torch.allclose(at, iterates[step], atol=1e-12)
        leaf = at.clone().requires_grad_()
        value = attacks.lower_cosine(
            attacks.Clean(clean, k=2), attributions.saliency(model, leaf, problem.target)
        ).sum()
        (slope,) = torch.autograd.grad(value, leaf)
        velocity = 0.6 * velocity + slope / slope.abs().sum((1, 2, 3), keepdim=True)
        # Half a cosine from the first step, 0.4 of the radius, towards zero after the last.
        length = 0.05 * 0.4 * (1 + math.cos(math.pi * step / 6)) / 2
        step_to = velocity.sign() if norm == "linf" else velocity / velocity.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        move = at + length * step_to - x
        if norm == "linf":
            move = move.clamp(-0.05, 0.05)
        else:
            move = move * (0.05 / move.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
        at = (x + move).clamp(0, 1)
    assert torch.allclose(at, iterates[6], atol=1e-12)
    assert len(iterates) == 7


@pytest.mark.parametrize("norm", NORMS)
def test_no_iterate_ever_leaves_the_ball_or_the_unit_box(norm):
    x = torch.rand(6, *cases.SHAPE, generator=cases.generator(3), dtype=torch.float64).round(decimals=1)
    iterates = climbing(cases.conv(), x, Ball(norm, 0.3), Effort(steps=5, restarts=3, draws=0, walk=0))[1]
    for at in iterates:
        assert 0 <= at.min() <= at.max() <= 1
        assert (size(at - x.repeat(3, 1, 1, 1), norm) <= 0.3 * (1 + 8 * EPS) + 4 * EPS).all()


@pytest.mark.parametrize("norm", NORMS)
def test_starts_lie_inside_the_ball_and_on_its_boundary_by_turns(norm):
    x = cases.images(6)
    iterates = climbing(cases.conv(), x, Ball(norm, 0.05), Effort(steps=1, restarts=4, draws=0, walk=0))[1]
    sizes = size(iterates[0] - x.repeat(4, 1, 1, 1), norm).view(4, 6)
    assert (sizes[1::2] >= 0.05 * (1 - 1e-9)).all()
    assert (sizes[::2] < 0.05).all()


def test_every_lost_iterate_is_steered_back_and_counted():
    model, x, ball = cases.quadratic(), cases.images(20), Ball("linf", 0.25)
    effort = Effort(steps=12, restarts=2, draws=0, walk=0)
    problem, iterates, lost = climbing(model, x, ball, effort)
    target = problem.target.repeat(2)
    astray = torch.stack([model(at).argmax(1) != target for at in iterates])
    assert lost == int(astray[:-1].sum()) > 0
    # Of those that were lost before the last third, more are home at the end than a coin would bring.
    before = astray[:8].any(0)
    assert (~astray[8:, before]).any(0).double().mean() > 0.5


def test_the_way_along_the_boundary_is_a_unit_normal_and_a_unit_tangent():
    back, slope = (torch.randn(4, 2, 3, 3, generator=cases.generator(s), dtype=torch.float64) for s in (0, 1))
    normal = back.flatten(1) / back.flatten(1).norm(dim=1, keepdim=True)
    tangent = along(back, slope).flatten(1) - normal
    assert tangent.norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert (tangent * normal).sum(1).tolist() == pytest.approx([0.0] * 4, abs=1e-12)
    assert ((tangent * slope.flatten(1)).sum(1) > 0).all()


def test_a_gradient_that_is_not_a_number_stops_its_own_image_only():
    model, x = cases.conv(), cases.images(3)

    def poisoned(model, at, target):
        """Right values everywhere; the slope is 0 / 0 beside the first image, but not at it."""
        away = (at.detach() - x[0]).abs().amax((1, 2, 3))
        bad = ((away > 0) & (away < 0.06)).view(-1, 1, 1, 1)
        root = torch.where(bad, at - at.detach(), 1).abs().sqrt()
        return attributions.saliency(model, at, target) + root - (~bad).to(root)

    effort = Effort(steps=4, restarts=2, draws=0, walk=0)
    found = attacks.auto(poisoned, model, x, Ball("linf", 0.05), k=2, effort=effort, generator=cases.generator())
    plain = attacks.auto(
        attributions.saliency, model, x, Ball("linf", 0.05), k=2, effort=effort, generator=cases.generator()
    )
    for measure in ("cosine", "spearman"):
        assert torch.allclose(found.x[measure][1:], plain.x[measure][1:])
        assert torch.isfinite(found.x[measure]).all()
    assert (beaten(found)["cosine"] < 1 - 1e-6).all()


# ------------------------------------------------------------------ the heavy attack


class OnALine:
    """A problem whose images are one number in [-1, 1] and whose objective is minus the distance from 0.3."""

    def __init__(self):
        self.x, self.ball, self.seen = torch.zeros(1, 1, 1, 1, dtype=torch.float64), Ball("linf", 1.0), []

    def moved(self, rows, moves):
        return self.x + moves.clamp(-1, 1)

    def climbed(self, judge, network, goal, at, rows, *, parts):
        self.seen.append(at.item())
        nothing = torch.zeros(0, dtype=torch.long)
        return -(at - 0.3).abs().flatten(), (0.3 - at).sign(), nothing, at[nothing]


def test_after_two_steps_it_is_too_early_to_halve_them(unchecked):
    problem, start = OnALine(), torch.full((1, 1, 1, 1), 0.2, dtype=torch.float64)
    HEAVY._ascend(problem, None, "part", nn.Identity(), None, torch.tensor([0]), start, 2)
    # 0.2 + 3/4 (1 - 0.2), then 0.8 + 3/4 (-1 - 0.8) + 1/4 (0.8 - 0.2): the second step, of the same size, turns back.
    assert problem.seen == pytest.approx([0.2, 0.8, -0.4])


class Fenced(OnALine):
    """Beyond 0.5 the prediction is lost; the way back is down."""

    def climbed(self, judge, network, goal, at, rows, *, parts):
        value, slope, *_ = super().climbed(judge, network, goal, at, rows, parts=parts)
        astray = (at.flatten() > 0.5).nonzero().flatten()
        return value, slope, astray, -torch.ones_like(at[astray])


@pytest.mark.parametrize("start", [0.2, -1.0, 1.0])
def test_the_heavy_attack_counts_the_iterates_that_lost_their_prediction(start, unchecked):
    problem, move = Fenced(), torch.full((1, 1, 1, 1), start, dtype=torch.float64)
    lost = HEAVY._ascend(problem, None, "part", nn.Identity(), None, torch.tensor([0]), move, 6)
    assert lost == sum(at > 0.5 for at in problem.seen)
    assert len(problem.seen) == 7


def adaptive(value, start, steps):
    """Ascent on a line by steps that adapt (Croce and Hein 2020, algorithm 1), one number at a time; all it visits."""
    checkpoints, interval, then = [], 0.22, max(1, round(0.22 * steps))
    while then < steps:
        checkpoints.append(then)
        interval = max(interval - 0.03, 0.06)
        then += max(1, round(interval * steps))
    at = before = max(-1, min(1, start))
    step, best, last, best_then, rises, halved, began, visited = 2.0, -math.inf, -math.inf, -math.inf, 0, False, 0, []
    for n in range(steps):
        visited.append(at)
        found, slope = value(at)
        rises += found > last
        last = found
        if found > best:
            best, best_at, best_slope = found, at, slope
        if n in checkpoints:
            halved = rises < 0.75 * (n - began) or (not halved and best == best_then)
            if halved:
                step, at, before, slope, last = step / 2, best_at, best_at, best_slope, best
            best_then, rises, began = best, 0, n
        ahead = max(-1, min(1, at + step * slope))
        at, before = max(-1, min(1, at + 0.75 * (ahead - at) + 0.25 * (at - before))), at
    return [*visited, at]


class Hilly(OnALine):
    """Many starts at once on a line with hills; beyond 0.5 the prediction is lost, and the way back is down."""

    fence = 0.5

    def value(self, at):
        found = math.cos(9 * at + 1) - 3 * abs(at - 0.3)
        slope = math.copysign(1, -9 * math.sin(9 * at + 1) - 3 * math.copysign(1, at - 0.3))
        return (-math.inf, -1.0) if at > self.fence else (found, slope)

    def climbed(self, judge, network, goal, at, rows, *, parts):
        self.seen.append(at.flatten().tolist())
        found = at.new_tensor([self.value(a) for a in self.seen[-1]])
        slopes = found[:, 1].view_as(at)
        astray = (at.flatten() > self.fence).nonzero().flatten()
        return found[:, 0].clamp_min(-99), torch.where(at > self.fence, 0, slopes), astray, slopes[astray]


@pytest.mark.parametrize("steps", [1, 3, 10, 57, 100])
@pytest.mark.parametrize("fence", [0.5, 2.0])
def test_the_heavy_attack_adapts_the_steps_of_every_row_as_written_out_by_hand(steps, fence, unchecked):
    problem, starts = Hilly(), torch.linspace(-1.1, 1.1, 12, dtype=torch.float64)
    problem.fence = fence
    HEAVY._ascend(problem, None, "part", nn.Identity(), None, torch.zeros(12).long(), starts.view(-1, 1, 1, 1), steps)
    for row, start in enumerate(starts.tolist()):
        assert [at[row] for at in problem.seen] == pytest.approx(adaptive(problem.value, start, steps), abs=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_the_heavy_attack_stays_in_the_ball_keeps_predictions_and_beats_a_small_suite(norm):
    model, x, ball = cases.conv(), cases.images(6), Ball(norm, 0.05 if norm == "linf" else 0.2)
    found = attacks.heavy(
        attributions.saliency,
        model,
        x,
        ball,
        k=2,
        effort=attacks.Heavy(steps=40, starts=4),
        generator=cases.generator(),
    )
    small = Effort(steps=5, restarts=1, draws=0, walk=0)
    quick = attacks.auto(attributions.saliency, model, x, ball, k=2, effort=small, generator=cases.generator())
    for at in found.x.values():
        assert (size(at - x, norm) <= ball.radius * (1 + 8 * EPS) + 4 * EPS).all()
        assert torch.equal(model(at).argmax(1), model(x).argmax(1))
    for measure in ("spearman", "cosine", "pearson"):
        assert beaten(found)[measure].mean() <= beaten(quick)[measure].mean() + 1e-9


def test_the_heavy_attack_climbs_every_objective_the_wanted_maps_and_all_objectives_again():
    x = cases.images(3)
    found = attacks.heavy(
        attributions.saliency,
        cases.conv(),
        x,
        Ball("linf", 0.05),
        k=2,
        effort=attacks.Heavy(steps=4, starts=2),
        generator=cases.generator(),
    )
    names = list(attacks.CLIMBABLE)
    parts = [*names, "reversed", "another's", *(f"{name} again" for name in names), "worst"]
    assert list(found.table["part"].unique()) == parts


def test_the_second_round_starts_where_the_first_ended():
    x = cases.images(4)
    how = {"k": 2, "effort": attacks.Heavy(steps=8, starts=1), "generator": cases.generator()}
    found = attacks.heavy(attributions.saliency, cases.conv(), x, Ball("linf", 0.05), **how)
    first = beaten(found, "cosine")["cosine"]
    for name in ("unseat", "spearman", "pearson"):  # each begins among others at the best image for cosine so far
        assert (beaten(found, f"{name} again")["cosine"] <= first + 1e-12).all()


def test_relu_networks_are_attacked_through_twins_and_stochastic_maps_are_refused():
    model, x = cases.mlp(nn.ReLU(), width=16), cases.images(3)
    how = {"k": 2, "effort": attacks.Heavy(steps=3, starts=1), "generator": cases.generator()}
    found = attacks.heavy(attributions.saliency, model, x, Ball("linf", 0.05), **how)
    assert "cosine, β=5" in set(found.table["part"])
    given = attacks.heavy(
        attributions.saliency, model, x, Ball("linf", 0.05), ascend_on=[models.smooth_twin(model, x, beta=7)], **how
    )
    assert "cosine, β=7" in set(given.table["part"])

    def drawing(model, x, target, *, generator):
        return attributions.smooth_grad(model, x, target, sigma=0.05, samples=3, generator=generator)

    with pytest.raises(ValueError, match="attribution draws random numbers"):
        attacks.heavy(partial(drawing), model, x, Ball("linf", 0.05), **how)


def test_the_heavy_attack_wants_the_reversed_map_and_the_neighbours_and_a_flat_one_where_these_are_empty():
    maps = torch.randn(4, 2, 3, 3, generator=cases.generator(), dtype=torch.float64)
    maps[1], maps[2] = 0, 0.5  # nothing, and the same everywhere
    found = HEAVY._wanted(maps)
    own = maps.abs().sum(1, keepdim=True)
    flat = torch.ones_like(own[0])
    expected = {
        "reversed": [own[0].max() - own[0], flat, flat, own[3].max() - own[3]],
        "another's": [own[3], own[0], flat, own[2]],
    }
    assert list(found) == list(expected)
    for name, wanted in expected.items():
        assert torch.allclose(found[name], torch.stack(wanted), rtol=0, atol=1e-12)


def test_the_heavy_attack_starts_in_the_ball_and_again_from_what_was_worst(monkeypatch):
    model, x, ball, begun = cases.conv(), cases.images(3), Ball("linf", 0.05), []
    lost, ascend = [], HEAVY._ascend

    def watched(problem, judge, part, network, goal, rows, moves, steps):
        begun.append((part, rows.tolist(), moves.clone(), {name: at.clone() for name, at in judge.x.items()}, steps))
        lost.append(ascend(problem, judge, part, network, goal, rows, moves, steps))
        return lost[-1]

    monkeypatch.setattr(HEAVY, "_ascend", watched)
    how = {"k": 2, "effort": attacks.Heavy(steps=3, starts=2), "generator": cases.generator()}
    found = attacks.heavy(attributions.saliency, model, x, ball, **how)
    streams = attacks.Streams(x, generator=cases.generator())
    worst = next(worst for part, _, _, worst, _ in begun if part.endswith("again"))  # as the first round left them
    for part, rows, moves, _, steps in begun:
        assert steps == 3
        if part.endswith("again"):
            assert rows == [0, 1, 2] * 4
            there = [worst[measure] - x for measure in ("top_k", "spearman", "cosine", "pearson")]
            assert torch.equal(moves, torch.cat(there))
        else:
            assert rows == [0, 1, 2] * 2
            own = [(streams(i, f"heavy {part} {s}"), x[i : i + 1]) for s in range(2) for i in range(3)]
            assert torch.equal(moves, torch.cat([ball.sample(one, generator=stream) for stream, one in own]))
    assert found.lost == sum(lost) > max(lost) > 0
    assert len(begun) == 6 + 2 + 6


#: Pixels of two starts of three images.
PIXELS = 3 * 2 * math.prod(cases.SHAPE)


@pytest.mark.parametrize(
    ("room", "sizes"), [(10**6, [3]), (2 * PIXELS, [2, 1]), (2 * PIXELS - 1, [1] * 3), (1, [1] * 3)]
)
def test_as_many_objectives_climb_side_by_side_as_there_is_room_for_and_find_the_same(room, sizes, monkeypatch):
    model, x, ball = cases.mlp(), cases.images(3), Ball("linf", 0.05)
    effort, goals = Effort(steps=3, restarts=2, draws=0, walk=0), ("unseat", "cosine", "pearson")

    def climbed():
        problem = Problem.of(attributions.saliency, model, x, ball, cases.generator())
        judge, seen = opened(problem, k=2), []
        see = judge.see
        judge.see = lambda parts, *others: (seen.append(list(parts)), see(parts, *others))[1]
        climb(problem, judge, model, {n: attacks.CLIMBABLE[n] for n in goals}, rows=problem.everyone, effort=effort)
        return judge.table(), [parts for i, parts in enumerate(seen) if i % 4 == 0]

    whole, _ = climbed()
    monkeypatch.setattr(importlib.import_module("attrobust.attacks.climb"), "SIDE_BY_SIDE", room)
    table, groups = climbed()
    assert [len(parts) for parts in groups] == sizes
    assert [part for parts in groups for part in parts] == list(goals)
    names = ["top_k", "cosine", "pearson", "displacement"]
    assert abs(table[names] - whole[names]).max(axis=None) < 1e-9


def test_lost_iterates_and_several_objectives_and_starts_climb_as_written_out_by_hand():
    model, x, ball = cases.quadratic(), cases.images(4), Ball("linf", 0.25)
    problem = Problem.of(attributions.saliency, model, x, ball, cases.generator())
    judge, iterates, effort = opened(problem, k=2), [], Effort(steps=5, restarts=3, draws=0, walk=0)
    see = judge.see
    judge.see = lambda parts, at, *others: (iterates.append(at.detach().clone()), see(parts, at, *others))[1]
    goals = {name: attacks.CLIMBABLE[name] for name in ("cosine", "pearson")}
    lost = climb(problem, judge, model, goals, rows=problem.everyone, effort=effort)
    streams, clean, target, astray = attacks.Streams(x, generator=cases.generator()), judge.clean, problem.target, 0
    starts = [(name, turn, i) for name in goals for turn in range(3) for i in range(4)]  # as they stand side by side
    for row, (name, turn, i) in enumerate(starts):
        own, kick = x[i : i + 1], ball.boundary if turn == 1 else ball.sample
        at, velocity = own + kick(own, generator=streams(i, f"{name} {turn}")), torch.zeros_like(own)
        at = at.clamp(0, 1)
        for step in range(6):
            assert torch.allclose(iterates[step][row : row + 1], at, rtol=0, atol=1e-9), (step, name, turn, i)
            leaf = at.clone().requires_grad_()
            value = goals[name](clean[torch.tensor([i])], attributions.saliency(model, leaf, target[i : i + 1]))
            (slope,) = torch.autograd.grad(value.sum(), leaf)
            logits = model(leaf := at.clone().requires_grad_())[0]
            if logits.argmax() != target[i] and step < 5:
                astray += 1
                others = [z for c, z in enumerate(logits) if c != target[i]]
                (back,) = torch.autograd.grad(logits[target[i]] - torch.stack(others).max(), leaf)
                normal = back / back.norm()
                tangent = slope / slope.norm() - (slope / slope.norm() * normal).sum() * normal
                slope = normal + tangent / tangent.norm()
            velocity = 0.75 * velocity + slope / slope.abs().sum()
            size = 0.5 * 0.25 * (1 + math.cos(math.pi * step / 5)) / 2
            at = (own + (at + size * velocity.sign() - own).clamp(-0.25, 0.25)).clamp(0, 1)
    assert lost == astray > 0


def test_the_slope_of_a_map_that_draws_is_the_sum_over_fresh_draws(monkeypatch):
    def noisy(model, x, target, *, generator):
        return attributions.smooth_grad(model, x, target, sigma=0.1, samples=1, generator=generator)

    model, x = cases.conv(), cases.images(1)
    problem = Problem.of(noisy, model, x, Ball("linf", 0.1), cases.generator())
    judge, rows = opened(problem, k=2), torch.tensor([0])
    judge.open("part", rows)

    def goal(rows, maps):
        return maps.square().sum((1, 2, 3))

    at = (x + 0.01).clamp(0, 1)
    how = {"parts": ["part"], "streams": [cases.generator(5)], "eot": 3}
    value, slope, lost, back = problem.climbed(judge, model, goal, at, rows, **how)
    draws, total = cases.generator(5), torch.zeros_like(x)
    for _ in range(3):
        leaf = at.clone().requires_grad_()
        last = goal(rows, noisy(model, leaf, problem.target, generator=draws))
        total += torch.autograd.grad(last.sum(), leaf)[0]
    assert torch.allclose(slope, total, rtol=0, atol=1e-9)
    assert value.item() == pytest.approx(last.item())
    assert len(lost) == len(back) == 0
    plain = Problem.of(attributions.saliency, model, x, Ball("linf", 0.1), cases.generator())
    counted = []
    plain.climbed(judge, model, lambda *given: (counted.append(1), goal(*given))[1], at, rows, **how)
    assert counted == [1]  # a map that draws nothing is climbed once, however often it is asked for


def test_the_way_back_is_the_slope_of_the_lead_or_of_the_largest_change_of_a_probability():
    model, x = cases.conv(), cases.images(3)
    at, rows = (x + 0.05).clamp(0, 1), torch.tensor([2, 0])
    free, tied = (
        Problem.of(attributions.saliency, model, x, Ball("linf", 0.1), cases.generator(), held=held)
        for held in (None, 0.1)
    )

    def lead(there):
        z = model(there)
        own = z.gather(1, free.target[rows][:, None])[:, 0]
        return own - z.scatter(1, free.target[rows][:, None], -math.inf).amax(1)

    def change(there):
        return -(model(there).softmax(1) - model(x[rows]).softmax(1)).abs().amax(1)

    direction = torch.randn(2, *x.shape[1:], generator=cases.generator(), dtype=x.dtype)
    for problem, function in ((free, lead), (tied, change)):
        back = problem.way_back(at[rows], rows)
        slopes = (function(at[rows] + 1e-6 * direction) - function(at[rows] - 1e-6 * direction)) / 2e-6
        assert torch.allclose((back * direction).flatten(1).sum(1), slopes, rtol=1e-5, atol=1e-8)


def test_a_slope_that_is_not_finite_counts_as_none():
    leaf = torch.tensor([[[[0.0, 2.0, 4.0]]]], dtype=torch.float64, requires_grad=True)
    gradient = importlib.import_module("attrobust.attacks.audit").gradient
    for values, slopes in (
        (leaf.sqrt() - leaf.log(), [0, 0.5 / math.sqrt(2) - 0.5, 0.25 - 0.25]),  # infinity less infinity at 0
        (leaf.sqrt(), [0, 0.5 / math.sqrt(2), 0.25]),
        (-leaf.sqrt(), [0, -0.5 / math.sqrt(2), -0.25]),
    ):
        assert gradient(values.sum((1, 2, 3)), leaf).flatten().tolist() == pytest.approx(slopes)
