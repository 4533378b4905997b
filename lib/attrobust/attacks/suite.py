"""One call that attacks a map as hard as we know how: many objectives, twins, restarts, noise, worst case per image.

    audit    is the derivative of the map worth climbing on, image by image? else smooth twins, else refusal
    parts    every objective, climbed on the network or on each of its smooth twins
             noise (one-shot, best of many), a random-sign walk
             starts found elsewhere (on another map, another network), judged again
    judge    every iterate of every part, on the real network, under every similarity and distance

What AutoAttack is for predictions (Croce and Hein 2020), this is for attributions. An image's result depends on that
image alone, so images that are broken leave the batch and cost nothing more.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from attrobust import checks, similarity
from attrobust.attacks.audit import Audit, BlindError, audit
from attrobust.attacks.clean import Clean
from attrobust.attacks.climb import climb
from attrobust.attacks.effort import CLIMBABLE, DIRECTIONS, Effort
from attrobust.attacks.judge import MEASURES, Judge
from attrobust.attacks.objectives import match_map
from attrobust.attacks.problem import Problem, still_open
from attrobust.attacks.streams import Streams, each
from attrobust.attributions.importance import name_of
from attrobust.balls import Ball
from attrobust.models import SmoothTwin, kinks, smooth_twin
from attrobust.shapes import Attribution, Images, Marks, Wanted
from attrobust.versions import versioned

#: Step of the walk over the radius: half a grey level of eight (Ghorbani et al. 2019, public code).
WALK_STEP = 1 / 16

#: Random moves of full size after which a map that a grey level does not move counts as constant; up to this rounding,
#: in units of the last place.
MOVES, ROUNDING = 8, 2**10


@dataclass(frozen=True)
class Found:
    """What an attack found.

    The table has one row per image and part, and "worst": every measure at its own worst counted iterate, `tried` (the
    part was tried on the image), `counted` (an iterate kept the prediction) and `zero` (the clean map is zero
    everywhere). Where nothing counted, the measures are NaN: the image was not attacked.

    Example:
        >>> from attrobust import attributions, models
        >>> from attrobust.attacks import Effort
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x, ball = torch.linspace(0.2, 0.8, 16).view(1, 1, 4, 4), Ball("linf", 0.1)
        >>> how = {"effort": Effort(steps=0, draws=2, walk=0), "generator": torch.Generator()}
        >>> found = auto(attributions.saliency, model, x, ball, k=4, **how)
        >>> found.table["part"].tolist(), found.x["cosine"].shape, found.fallback
        (['noise', 'worst'], torch.Size([1, 1, 4, 4]), 0.0)
    """

    table: pd.DataFrame
    winners: pd.DataFrame  # one row per image, one column per measure: the part that found the worst, "" where none did
    x: dict[str, Images]  # by measure, the worst images; the clean image where nothing counted
    broken: Marks  # images that reached the goal
    counted: Marks  # images of which some iterate kept the prediction
    climbed: Marks  # images that some gradient part could climb for
    audits: dict[str, Audit]  # by network (its suffix in the parts' names), what the audit of the derivative found
    lost: int  # iterates that had lost their prediction and were steered back, over all parts

    @property
    def success(self) -> float:
        """Share of all images that reached the goal; 0 without a goal."""
        return float(self.broken.double().mean())

    @property
    def fallback(self) -> float:
        """Share of images of which no iterate kept the prediction: NaN in every table."""
        return float((~self.counted).double().mean())


@versioned(3)
def auto(
    attribution: Attribution, model: nn.Module, x: Images, ball: Ball, *, k: int,
    generator: torch.Generator | Streams, effort: Effort | None = None, wanted: Wanted | None = None,
    ascend_on: Sequence[nn.Module] | None = None, starts: Mapping[str, Images] | None = None,
    goal: tuple[str, float] | None = None, held: float | None = None,
) -> Found:  # fmt: skip
    """Attack the maps of the predicted classes by every means, and keep the worst of each image.

    Args:
        attribution: (model, x, target) -> map. If it also waits for a `generator`, each image draws from a stream of
            its own: fresh draws at every gradient step, the same ones at every judgement, clean and attacked. One that
            `attributions.brings_logits` marks is asked for them too, which saves the predictions of iterates.
        model: classifier in eval mode; every map and prediction is judged on it.
        x, ball: clean images, pixels in [0, 1], and the allowed perturbations.
        k: pixels of the top-k measures, from 1 to one less than the map has.
        generator: gives one number, from which every image's streams follow; or these streams.
        effort: how hard to try, `Effort()` if None.
        wanted: maps to move towards (see `match_map`); adds an objective and a measure.
        ascend_on: networks to climb on; if None, the model itself, or twins of it if its derivative fails the audit.
        starts: name -> images found elsewhere, inside the ball and [0, 1].
        goal: measure and value; an image is broken, and leaves, once it is as bad as that.
        held: what counts. None: iterates that keep the predicted class; else those that also move no class's
            probability by more than this.

    Returns:
        Found. Parts are named after their objective, with the twin's beta (or place in `ascend_on`), "noise",
        "walk", and the starts' own names.

    Raises:
        BlindError: for a map whose derivative fails the audit on more than a fifth of the images of every network.
        ValueError: for bad images or numbers, a model that returns no logits, a map that is not finite, starts outside
            the ball, an unknown measure in `goal`.

    Example:
        >>> from attrobust import attributions, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> ball, quick = Ball("linf", 0.1), Effort(steps=5, restarts=1, draws=5, walk=5)
        >>> found = auto(attributions.saliency, model, x, ball, k=4, effort=quick, generator=torch.Generator())
        >>> sorted(set(found.table["part"]))
        ['cosine', 'noise', 'pearson', 'spearman', 'unseat', 'walk', 'worst']
    """
    effort = checks.kind("effort", Effort() if effort is None else effort, Effort)
    starts = dict(checks.kind("starts", {} if starts is None else starts, Mapping))
    if goal is not None:
        checks.kind("goal", goal, tuple, list)
        if len(goal) != 2:
            raise ValueError(f"goal is {checks.short(goal)}; it must be (measure, value)")
        checks.number("the value of goal", goal[1])
        checks.one_of("goal", goal[0], [m for m in MEASURES if m != "match" or wanted is not None])
    problem = Problem.of(attribution, model, x, ball, generator, held=held)
    for name, images in starts.items():
        _check_start(name, images, x, ball)
    judge = opened(problem, k=k, wanted=wanted, goal=goal)
    goals, audits, lost = {name: CLIMBABLE[name] for name in effort.objectives}, {}, 0
    if wanted is not None:
        goals["match"] = match_map
    networks = passing(problem, ascend_on, audits, betas=effort.betas) if effort.steps else {}
    for suffix, network in networks.items():
        named, rows = {name + suffix: g for name, g in goals.items()}, audits[suffix].passed.nonzero().flatten()
        lost += climb(problem, judge, network, named, rows=rows, effort=effort)
    _blindly(problem, judge, "noise", effort.draws, lambda at, kick, rows: kick)
    _blindly(problem, judge, "walk", effort.walk, lambda at, kick, rows: at + WALK_STEP * kick - x[rows])
    for name, images in starts.items():
        rows = judge.open(f"start: {name}", problem.everyone)
        problem.see(judge, [f"start: {name}"], images[rows], rows)
    return found(judge, networks, audits, lost)


def found(judge: Judge, networks: Mapping[str, nn.Module], audits: dict[str, Audit], lost: int) -> Found:
    """What a judge has seen, as a result."""
    passed = [audits[suffix].passed for suffix in networks]
    climbed = torch.stack([torch.zeros_like(judge.broken), *passed]).any(0)
    return Found(judge.table(), judge.winners(), judge.x, judge.broken, judge.counted, climbed, audits, lost)


def opened(problem: Problem, *, k: int, wanted: Wanted | None = None, goal: tuple[str, float] | None = None) -> Judge:
    """A judge that knows the clean maps, which must be finite."""
    checks.maps(name_of(problem.attribution), problem.clean)
    return Judge(problem.x, Clean(problem.clean, k=k, wanted=wanted), goal=goal)


def passing(
    problem: Problem, ascend_on: Sequence[nn.Module] | None, audits: dict[str, Audit], *, betas: Sequence[float]
) -> dict[str, nn.Module]:
    """Networks whose derivative passes the audit, by the suffix of their parts' names; `audits` is filled.

    Raises:
        BlindError: if there is none, unless no map moves at all, by a grey level or across the ball (a linear
            network's): then nothing can be climbed.
    """
    for network in checks.kind("ascend_on", () if ascend_on is None else ascend_on, tuple, list):
        checks.function("a network of ascend_on", network)
    if ascend_on:
        named = {f", β={n.beta:g}" if isinstance(n, SmoothTwin) else "": n for n in ascend_on}
        if len(named) < len(ascend_on):
            named = {f", network {i}": n for i, n in enumerate(ascend_on)}
    else:
        named = {"": problem.model}
    audits |= {suffix: _audit(problem, network) for suffix, network in named.items()}
    bent = [] if ascend_on or not audits[""].refused else kinks(problem.model, problem.x)
    refused = not ascend_on and audits[""].refused
    still = not any(bool(audits[suffix].moved.any()) for suffix in named)
    jumps = still and not bent and _moves(problem)
    if betas and refused and (bent or jumps or not still):
        named = _twins(problem, audits, betas)
    still = not jumps and not any(bool(audits[suffix].moved.any()) for suffix in named)
    climbed = {suffix: network for suffix, network in named.items() if not audits[suffix].refused}
    if not climbed and (bent or not still):
        least = min(audits[suffix].failing for suffix in named)
        lacking = [audits[suffix].lacking for suffix in named if audits[suffix].lacking]
        if lacking:
            raise BlindError(lacking[0])
        runs, name = f" (it runs {', '.join(bent)})" if bent else "", name_of(problem.attribution)
        raise BlindError(
            f"model{runs} has a {name} map whose derivative does not predict how the map changes"
            f" on {least:.0%} of the images, so an attack would climb blindly; pass ascend_on=[smooth networks that"
            " stand for it], or Effort(steps=0) to search without gradients"
        )
    return climbed


def _moves(problem: Problem) -> bool:
    """Whether a move of full size changes some map, beyond rounding: along the predictions' slope, and random ones."""
    draws, clean = [problem.streams(i, "moves") for i in problem.everyone.tolist()], problem.clean
    back = problem.ball.radius * problem.ball.steepest(problem.way_back(problem.x, problem.everyone))
    kicks = (each(problem.ball.boundary, problem.x, draws) for _ in range(MOVES))
    for kick in itertools.chain((-back, back), kicks):
        at = problem.moved(problem.everyone, kick)
        there = problem.look(problem.model, at, problem.everyone)[0].detach()
        if bool((similarity.relative_displacement(clean, there) > ROUNDING * torch.finfo(clean.dtype).eps).any()):
            return True
    return False


def _twins(problem: Problem, audits: dict[str, Audit], betas: Sequence[float]) -> dict[str, nn.Module]:
    """Twins of the judged network, audited: with its max-pools as they are or, if these do not pass, softened too."""
    named: dict[str, nn.Module] = {}
    for pools in (False, True):
        try:
            smooth_twin(problem.model, problem.x, beta=betas[0], pools=pools)
            twins = {f", β={beta:g}": SmoothTwin(problem.model, beta, pools=pools) for beta in betas}
            found = {suffix: _audit(problem, network) for suffix, network in twins.items()}
        except ValueError as error:  # no twin, or none that the map has rules for
            if pools and not named:
                raise BlindError(str(error)) from error
            continue
        named = twins
        audits |= found
        if not all(audits[suffix].refused for suffix in named):
            break
    return named


def _audit(problem: Problem, network: nn.Module) -> Audit:
    draws = [[problem.streams(i, f"audit {turn}") for i in range(len(problem.x))] for turn in range(DIRECTIONS)]
    signs = torch.stack([each(Ball("linf", 1.0).boundary, problem.x, own) for own in draws])
    return audit(lambda at: problem.look(network, at, problem.everyone)[0], problem.x, signs)


def _blindly(problem: Problem, judge: Judge, part: str, count: int, step: Callable[..., Images]) -> None:
    """Random moves: one-shot perturbations of full size, or a walk inside the ball (Ghorbani et al. 2019)."""
    if not count:
        return
    rows = judge.open(part, problem.everyone)
    at, draws = problem.x[rows], [problem.streams(image, part) for image in rows.tolist()]
    for _ in range(count):
        rows, at, draws = still_open(judge, rows, at, draws)
        if not len(rows):
            return
        at = problem.moved(rows, step(at, each(problem.ball.boundary, at, draws), rows))
        problem.see(judge, [part], at, rows)


def _check_start(name: str, images: Images, x: Images, ball: Ball) -> None:
    if checks.kind(f"starts[{name!r}]", images, torch.Tensor).shape != x.shape:
        raise ValueError(f"starts[{name!r}] has shape {tuple(images.shape)}; it must be that of x, {tuple(x.shape)}")
    checks.images(f"starts[{name!r}]", images)
    over = float((images - x - ball.project(images - x)).abs().max())
    if over > 1e-5:
        raise ValueError(f"starts[{name!r}] leaves the ball by {over:.3g}; it must lie inside {ball}")
