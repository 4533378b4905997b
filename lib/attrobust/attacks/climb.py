"""The one ascent: projected gradient steps with momentum inside a norm ball, every iterate judged.

    v <- momentum v + d / |d|_1
    x <- project(x + a_t steepest(v)),   a_t annealed from `relative_step` x radius to zero by a half cosine

where d is the gradient of the objective through the map, and for an iterate that has lost its prediction the way back
across the decision boundary, and onward along it. Madry et al. 2018; momentum on the l1-normalised gradient after Dong
et al. 2018, "Boosting adversarial attacks with momentum".

Several objectives climb side by side: small networks cost by the step, not by the image.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn

from attrobust.attacks.clean import Clean, Rows
from attrobust.attacks.effort import Effort
from attrobust.attacks.judge import Judge
from attrobust.attacks.objectives import Objective
from attrobust.attacks.problem import Problem, along, still_open
from attrobust.attacks.streams import each
from attrobust.shapes import Maps, PerImage

#: Pixels that climb at once; more objectives than fit take turns, so that large images do not fill the memory.
SIDE_BY_SIDE = 2**20


def climb(
    problem: Problem, judge: Judge, network: nn.Module, goals: Mapping[str, Objective], *, rows: Rows, effort: Effort
) -> int:
    """Ascend `goals` on a network (the judged one, or a twin) for some images; broken ones leave.

    Goals go by the name of their part; they and the restarts climb side by side, and the judge sees every iterate.
    Returned is how many iterates had lost their prediction and were steered back.
    """
    pixels = max(1, len(rows) * effort.restarts * problem.x[0].numel())
    together, parts = max(1, SIDE_BY_SIDE // pixels), list(goals)
    groups = [parts[i : i + together] for i in range(0, len(parts), together)]
    return sum(_climb(problem, judge, network, {p: goals[p] for p in group}, rows, effort) for group in groups)


def _climb(
    problem: Problem, judge: Judge, network: nn.Module, goals: Mapping[str, Objective], rows: Rows, effort: Effort
) -> int:
    parts, steps, restarts, lost = list(goals), effort.steps, effort.restarts, 0
    for part in parts:
        images = judge.open(part, rows)
    if not len(images):
        return 0
    turns = [problem.ball.boundary if turn % 2 else problem.ball.sample for turn in range(restarts)]
    draws = [[problem.streams(i, f"{p} {t}") for i in images.tolist()] for p in parts for t in range(restarts)]
    kicks = torch.cat([each(turn, problem.x[images], own) for turn, own in zip(turns * len(parts), draws, strict=True)])
    of = torch.arange(len(parts), device=images.device).repeat_interleave(restarts * len(images))
    rows, streams = images.repeat(restarts * len(parts)), [stream for own in draws for stream in own]
    at, velocity = problem.moved(rows, kicks), torch.zeros_like(kicks)
    for step in range(steps + 1):
        rows, of, at, velocity, streams = still_open(judge, rows, of, at, velocity, streams)
        if not len(rows):
            break
        if step == steps:
            problem.see(judge, parts, at, rows, of)
            break
        goal = partial(_climbed, list(goals.values()), judge.clean, of)
        _, slope, astray, back = problem.climbed(
            judge, network, goal, at, rows, parts=parts, of=of, streams=streams, eot=effort.eot
        )
        lost += len(astray)
        slope[astray] = along(back, slope[astray])
        length = slope.flatten(1).abs().sum(1).clamp_min(torch.finfo(slope.dtype).tiny)
        velocity = slope.div_(length.view(-1, 1, 1, 1)).add_(velocity, alpha=effort.momentum)
        size = effort.relative_step * problem.ball.radius * 0.5 * (1 + math.cos(math.pi * step / steps))
        ahead = problem.ball.steepest(velocity).mul_(size).add_(at)
        at = problem.moved(rows, ahead.sub_(problem.x.index_select(0, rows)))
    return lost


def _climbed(goals: Sequence[Objective], clean: Clean, of: Rows, rows: Rows, maps: Maps) -> PerImage:
    """Each row's own goal; rows of one goal stand together."""
    counts = torch.bincount(of, minlength=len(goals)).tolist()
    parts = zip(goals, rows.split(counts), maps.split(counts), strict=True)
    return torch.cat([goal(clean[own], there) for goal, own, there in parts if len(own)])
