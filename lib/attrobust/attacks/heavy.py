"""The judge of strength: an attack of another kind, many times dearer than `auto`.

`auto` climbs with a step size fixed beforehand. This one adapts it, row by row, as APGD does (Croce and Hein 2020): the
step starts at twice the radius and is halved at checkpoints where the objective rose too seldom, the ascent then going
on from the best point so far. It climbs the objectives of `auto`, the first results' two others and two wanted maps,
from starts of its own, and then each objective again from the images that were worst under the other measures. If it
takes off no more than `auto`, `auto` was strong enough.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from attrobust import checks
from attrobust.attacks.clean import Clean, Rows
from attrobust.attacks.effort import BETAS, CLIMBABLE, Heavy
from attrobust.attacks.judge import Judge
from attrobust.attacks.objectives import Objective, match_map
from attrobust.attacks.problem import Goal, Problem
from attrobust.attacks.streams import Streams, each
from attrobust.attacks.suite import Found, found, opened, passing
from attrobust.attributions import pixelwise
from attrobust.balls import Ball
from attrobust.shapes import Attribution, Images, Maps, OnePlane, PerImage
from attrobust.versions import versioned

#: Croce and Hein 2020: the first checkpoint, how much intervals shrink, the least of them, and the share of rising
#: steps below which a step is halved.
FIRST, SHRINK, LEAST, RISING = 0.22, 0.03, 0.06, 0.75

#: Share of the new step in the next move; the rest is the last move.
NEW = 0.75

#: Measures whose worst images every objective starts from again.
SEEDS = ("top_k", "spearman", "cosine", "pearson")


@versioned(2)
def heavy(
    attribution: Attribution, model: nn.Module, x: Images, ball: Ball, *, k: int,
    generator: torch.Generator | Streams, effort: Heavy | None = None,
    ascend_on: Sequence[nn.Module] | None = None, held: float | None = None,
) -> Found:  # fmt: skip
    """Attack the maps of the predicted classes by another and much longer attack than `auto`.

    `effort.steps` gradient steps from each of `effort.starts` random starts of each objective (`Heavy()` if None), and
    as many from each measure's worst images; the other arguments, the result and what is refused are those of `auto`,
    and a map that draws random numbers is refused too. Parts carry the objective's name, and "again" in the second
    round.

    Example:
        >>> from attrobust import attributions, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> ball, draw = Ball("linf", 0.1), torch.Generator()
        >>> found = heavy(attributions.saliency, model, x, ball, k=4, effort=Heavy(steps=5, starts=2), generator=draw)
        >>> bool(found.counted.all())
        True
    """
    effort = effort or Heavy()
    checks.kind("effort", effort, Heavy)
    steps, starts = effort.steps, effort.starts
    problem = Problem.of(attribution, model, x, ball, generator, held=held)
    if problem.stochastic:
        raise ValueError("attribution draws random numbers; the heavy attack judges maps that do not")
    judge, audits, lost = opened(problem, k=k), {}, 0
    networks = passing(problem, ascend_on, audits, betas=BETAS)
    goals = {name: partial(_climbed, objective, judge.clean) for name, objective in CLIMBABLE.items()}
    for name, maps in _wanted(judge.clean.maps).items():
        goals[name] = partial(_climbed, match_map, Clean(judge.clean.maps, k=k, wanted=maps))

    for name, goal in goals.items():
        for suffix, network in networks.items():
            rows = judge.open(name + suffix, audits[suffix].passed.nonzero().flatten())
            draws = [[problem.streams(i, f"heavy {name} {s}") for i in rows.tolist()] for s in range(starts)]
            moves = torch.cat([each(ball.sample, x[rows], own) for own in draws])
            lost += _ascend(problem, judge, name + suffix, network, goal, rows.repeat(starts), moves, steps)
    worst = torch.stack([judge.x[measure] - x for measure in SEEDS])
    for name in CLIMBABLE:
        for suffix, network in networks.items():
            part = f"{name} again{suffix}"
            rows = judge.open(part, audits[suffix].passed.nonzero().flatten())
            moves = worst[:, rows].flatten(0, 1)
            lost += _ascend(problem, judge, part, network, goals[name], rows.repeat(len(SEEDS)), moves, steps)
    return found(judge, networks, audits, lost)


def _climbed(objective: Objective, clean: Clean, rows: Rows, maps: Maps) -> PerImage:
    return objective(clean[rows], maps)


def _wanted(clean: Maps) -> dict[str, OnePlane]:
    """Maps to move towards: the clean map's importances in reverse order, and the next image's map."""
    importances = pixelwise(clean)[:, None]
    reverse = importances.flatten(1).amax(1).view(-1, 1, 1, 1) - importances
    others = importances.roll(1, 0)
    # A constant map has no reverse, a zero map cannot be wanted: a flat map stands in.
    return {
        name: torch.where((m.flatten(1) > 0).any(1).view(-1, 1, 1, 1), m, torch.ones_like(m))
        for name, m in (("reversed", reverse), ("another's", others))
    }


def _ascend(
    problem: Problem, judge: Judge, part: str, network: nn.Module, goal: Goal, rows: Rows, moves: Tensor, steps: int
) -> int:
    """Adaptive ascent from x + moves; how many iterates had lost the prediction."""
    at, lost = problem.moved(rows, moves), 0
    size = torch.full((len(rows),), 2.0 * problem.ball.radius, dtype=at.dtype, device=at.device)
    before, best_at = at.clone(), at.clone()
    best = torch.full_like(size, -torch.inf)
    last, rises, halved, best_then = best.clone(), torch.zeros_like(size), torch.zeros_like(size, dtype=bool), best
    best_slope, checkpoint, interval = torch.zeros_like(at), max(1, round(FIRST * steps)), FIRST
    began = 0
    for step in range(steps + 1):
        value, slope, astray, back = problem.climbed(judge, network, goal, at, rows, parts=[part])
        value = value.nan_to_num(nan=-torch.inf).index_fill(0, astray, -torch.inf)  # below every value of the goal
        slope[astray] = back
        lost += len(astray)
        if step == steps:
            break
        rises += (value > last).to(rises)
        better = value > best
        best = torch.where(better, value, best)
        best_at = torch.where(better.view(-1, 1, 1, 1), at, best_at)
        best_slope = torch.where(better.view(-1, 1, 1, 1), slope, best_slope)
        last = value
        if step == checkpoint:
            seldom = rises < RISING * (step - began)
            stuck = ~halved & (best <= best_then)
            halved = seldom | stuck
            size = torch.where(halved, size / 2, size)
            wide = halved.view(-1, 1, 1, 1)
            slope = torch.where(wide, best_slope, slope)
            at, before = torch.where(wide, best_at, at), torch.where(wide, best_at, before)
            last = torch.where(halved, best, last)
            best_then, rises, began = best.clone(), torch.zeros_like(rises), step
            interval = max(interval - SHRINK, LEAST)
            checkpoint = step + max(1, round(interval * steps))
        ahead = problem.moved(rows, at + size.view(-1, 1, 1, 1) * problem.ball.steepest(slope) - problem.x[rows])
        following = at + NEW * (ahead - at) + (1 - NEW) * (at - before)
        before, at = at, problem.moved(rows, following - problem.x[rows])
    return lost
