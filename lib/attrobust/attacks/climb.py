"""The one ascent: projected gradient steps with momentum inside a norm ball, every iterate judged.

    v <- momentum v + d / |d|_1
    x <- project(x + a_t steepest(v)),   a_t annealed from `relative_step` x radius to zero by a half cosine

where d is the gradient of the objective through the map, and for an iterate that has lost its prediction the way back
across the decision boundary, and onward along it. Madry et al. 2018; momentum on the l1-normalised gradient after Dong
et al. 2018, "Boosting adversarial attacks with momentum".
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from attrobust.attacks.audit import gradient
from attrobust.attacks.effort import Effort
from attrobust.attacks.judge import Judge, Rows
from attrobust.attacks.problem import Goal, Problem, along, still_open
from attrobust.attacks.streams import each
from attrobust.shapes import Images, Maps


def climb(
    problem: Problem, judge: Judge, part: str, network: nn.Module, goal: Goal, *, rows: Rows, effort: Effort
) -> int:
    """Ascend a goal for some images, all restarts side by side; images that are broken leave.

    Args:
        problem: the setting.
        judge: sees every iterate.
        part: name of the part, for the judge and the random streams.
        network: whose map is climbed; the judged one, or a smooth twin.
        goal: what is increased.
        rows: images to climb for.
        effort: how hard to try.

    Returns:
        How many iterates had lost their prediction and were steered back.
    """
    images, steps, restarts, lost = judge.open(part, rows), effort.steps, effort.restarts, 0
    if not len(images):
        return 0
    turns = [problem.ball.boundary if turn % 2 else problem.ball.sample for turn in range(restarts)]
    draws = [[problem.streams(i, f"{part} {turn}") for i in images.tolist()] for turn in range(restarts)]
    x = problem.x[images]
    kicks = torch.cat([each(turn, x, own) for turn, own in zip(turns, draws, strict=True)])
    rows, draws = images.repeat(restarts), [stream for own in draws for stream in own]
    at, velocity = problem.moved(rows, kicks), torch.zeros_like(kicks)
    for step in range(steps + 1):
        rows, at, velocity, draws = still_open(judge, rows, at, velocity, draws)
        if not len(rows):
            break
        if step == steps:
            problem.see(judge, part, at, rows)
            break
        maps, direction = _slope(problem, network, goal, at, rows, draws, eot=effort.eot)
        kept = problem.kept(at, rows)
        judge.see(part, at, rows, problem.judged(at, rows) if maps is None else maps, kept)
        astray = (~kept).nonzero().flatten()
        if len(astray):
            lost += len(astray)
            direction[astray] = along(problem.way_back(at[astray], rows[astray]), direction[astray])
        length = direction.flatten(1).abs().sum(1).clamp_min(torch.finfo(direction.dtype).tiny)
        velocity = effort.momentum * velocity + direction / length.view(-1, 1, 1, 1)
        size = effort.relative_step * problem.ball.radius * 0.5 * (1 + math.cos(math.pi * step / steps))
        at = problem.moved(rows, at + size * problem.ball.steepest(velocity) - problem.x[rows])
    return lost


def _slope(
    problem: Problem,
    network: nn.Module,
    goal: Goal,
    at: Images,
    rows: Rows,
    draws: Sequence[torch.Generator],
    *,
    eot: int,
) -> tuple[Maps | None, Images]:
    """The map, where the judge can use it, and the goal's gradient; averaged over fresh draws of a stochastic map."""
    total = torch.zeros_like(at)
    for _ in range(eot if problem.stochastic else 1):
        leaf = at.detach().requires_grad_()
        with torch.enable_grad():
            maps = problem.maps(network, leaf, rows, draws)
            climbed = goal(rows, maps)
        total += gradient(climbed, leaf)
    shared = network is problem.model and not problem.stochastic
    return (maps.detach() if shared else None), total
