"""One call that attacks a map as hard as we know how: many objectives, twins, restarts, noise, worst case per image.

    parts    every objective, climbed by its gradient on the network or on each of its smooth twins
             noise (one-shot, best of many), a random-sign walk: for maps without a useful second derivative
             starts found elsewhere (on another map, another network), judged again
    judge    every iterate of every part, on the real network, under every similarity and distance

What AutoAttack is for predictions (Croce and Hein 2020), this is for attributions. An image's result depends on that
image alone, so images that are broken leave the batch and cost nothing more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attrobust import checks
from attrobust.attacks.effort import Effort
from attrobust.attacks.objectives import (
    Attribution,
    Objective,
    Wanted,
    lower_cosine,
    lower_pearson,
    match_map,
    shift_center,
    shift_topk,
    unseat_topk,
)
from attrobust.attacks.prediction import refuse_kinks
from attrobust.attacks.referee import MEASURES, Referee, Rows, on_maps
from attrobust.attacks.streams import Streams, each, explain, stochastic
from attrobust.balls import Ball
from attrobust.models import SmoothTwin, kinks, smooth_twin
from attrobust.versions import versioned

Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, " batch"]
PerImage = Float[Tensor, " batch"]

#: What is climbed; with wanted maps "match" too.
OBJECTIVES = ("top_k", "unseat", "center", "cosine", "pearson")

#: Step of the walk over the radius: half a grey level of eight (Ghorbani et al. 2019, public code).
WALK_STEP = 1 / 16


@dataclass(frozen=True)
class Found:
    """What `auto` found.

    Attributes:
        table: one row per image and part, and "worst"; every measure at its own worst counted iterate, `tried` (the
            image was not broken before), `counted` (an iterate kept the prediction), `blind` (the part never saw a
            gradient; for "worst", some part) and `zero` (the clean map is zero everywhere). Where nothing counted,
            the row is the clean image's.
        winners: one row per image, one column per measure: the part that found the worst, "" where none did.
        x: by measure, the worst images; the clean image where nothing counted.
        broken: images that reached the goal.
        counted: images of which some iterate kept the prediction.
    """

    table: pd.DataFrame
    winners: pd.DataFrame
    x: dict[str, Images]
    broken: Bool[Tensor, " batch"]
    counted: Bool[Tensor, " batch"]

    @property
    def success(self) -> float:
        """Share of all images that reached the goal; 0 without a goal."""
        return float(self.broken.double().mean())

    @property
    def fallback(self) -> float:
        """Share of images whose every iterate changed the prediction: in every table, as unmoved."""
        return float((~self.counted).double().mean())


@versioned(1)
def auto(
    attribution: Attribution,
    model: nn.Module,
    x: Images,
    ball: Ball,
    *,
    k: int,
    generator: torch.Generator | Streams,
    effort: Effort | None = None,
    wanted: Wanted | None = None,
    ascend_on: Sequence[nn.Module] | None = None,
    betas: Sequence[float] = (5, 10, 50),
    starts: Mapping[str, Images] | None = None,
    goal: tuple[str, float] | None = None,
) -> Found:
    """Attack the maps of the predicted classes by every means, and keep the worst of each image.

    Args:
        attribution: (model, x, target) -> map. If it also waits for a `generator`, each image draws from a stream of
            its own: fresh draws at every gradient step, the same ones at every judgement, clean and attacked.
        model: classifier in eval mode; every map and prediction is judged on it.
        x: clean images, pixels in [0, 1].
        ball: allowed perturbations.
        k: pixels of the top-k measures, from 1 to one less than the map has.
        generator: gives one number, from which every image's streams follow; or these streams.
        effort: how hard to try; `Effort()` if None.
        wanted: maps to move towards (see `match_map`); adds an objective and a measure.
        ascend_on: networks to climb on; if None, the model itself, or twins of it if it has kinks.
        betas: sharpness of the twins that are built; empty to refuse kinks instead.
        starts: name -> images found elsewhere, inside the ball and [0, 1].
        goal: measure and value; an image is broken, and leaves, once it is as bad as that.

    Returns:
        Found. Parts are named after their objective, with the twin's beta (or place in `ascend_on`), "noise",
        "walk", and the starts' own names.

    Raises:
        ValueError: for bad images or numbers, a model that returns no logits, a network with kinks that no twin
            replaces, a map that is not finite, starts outside the ball, an unknown measure in `goal`.

    Example:
        >>> from attrobust import attributions, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> ball, quick = Ball("linf", 0.1), Effort(steps=5, restarts=1, draws=5, walk=5)
        >>> found = auto(attributions.saliency, model, x, ball, k=4, effort=quick, generator=torch.Generator())
        >>> sorted(set(found.table["part"]))
        ['center', 'cosine', 'noise', 'pearson', 'top_k', 'unseat', 'walk', 'worst']
    """
    effort, starts = effort or Effort(), dict(starts or {})
    checks.images("x", x)
    if goal is not None:
        checks.one_of("goal", goal[0], [m for m in MEASURES if m != "match" or wanted is not None])
    for name, images in starts.items():
        _inside(name, images, x, ball)
    with torch.no_grad():
        target = checks.logits("model", model(x), batch=len(x)).argmax(1)
    streams = generator if isinstance(generator, Streams) else Streams(x, generator=generator)
    scene = _Scene(attribution, model, x, target, ball, streams, effort)
    everyone = torch.arange(len(x), device=x.device)
    clean = checks.maps(_name(attribution), scene.judged(x, everyone))
    checks.count("k", k, most=clean.shape[-1] * clean.shape[-2] - 1)
    referee = Referee(x, clean, k=k, wanted=wanted, goal=goal)
    if effort.steps:
        networks = _networks(model, x, ascend_on or (), betas)
        for objective, build in _goals(clean, k=k, wanted=wanted).items():
            for suffix, network in networks.items():
                scene.ascend(objective + suffix, referee, network, build)
    scene.noise("noise", referee)
    scene.walk("walk", referee)
    for name, images in starts.items():
        referee.open(f"start: {name}")
        scene.judge(f"start: {name}", referee, images, everyone)
    return Found(referee.table(), referee.winners(), referee.x, referee.broken, referee.counted)


@dataclass(frozen=True)
class _Scene:
    """Everything that the parts share."""

    attribution: Attribution
    model: nn.Module
    x: Images
    target: Labels
    ball: Ball
    streams: Streams
    effort: Effort

    def judged(self, at: Images, rows: Rows) -> Images:
        """Maps on the judged network; a stochastic one under its image's common draws."""
        common = self.streams.common(rows.tolist()) if stochastic(self.attribution) else []
        return explain(self.attribution, self.model, at, self.target[rows], common).detach()

    def ascend(self, part: str, referee: Referee, network: nn.Module, build: Callable[[Rows], Objective]) -> None:
        """Projected gradient ascent, all restarts side by side, for images that may leave.

        Starts lie inside the ball and on its boundary by turns. An iterate that has lost its prediction climbs back by
        the gradient of the margin, and onward along the decision boundary.
        """
        referee.open(part)
        n, steps, restarts, ball = len(self.x), self.effort.steps, self.effort.restarts, self.ball
        rows = torch.arange(n, device=self.x.device).repeat(restarts)
        draws = [self.streams(image, f"{part} {turn}") for turn in range(restarts) for image in range(n)]
        turns = [ball.boundary if turn % 2 else ball.sample for turn in range(restarts)]
        kicks = [each(turn, self.x, draws[i * n : (i + 1) * n]) for i, turn in enumerate(turns)]
        at, seen = self._moved(rows, torch.cat(kicks)), torch.zeros_like(referee.broken)
        for step in range(steps + 1):
            at, rows, draws = _still_open(referee, at, rows, draws)
            if not len(rows):
                break
            last = step == steps
            kept, back = self._margin(at, rows, last=last)
            maps, gradient = self._climb(network, at, rows, draws, build, last=last)
            referee.see(part, at, rows, self.judged(at, rows) if maps is None else maps, kept)
            seen[rows[gradient.flatten(1).any(1)]] = True
            direction = ball.steepest(torch.where(kept.view(-1, 1, 1, 1), gradient, _along(back, gradient)))
            size = self.effort.relative_step * ball.radius * 0.5 * (1 + math.cos(math.pi * step / steps))
            at = self._moved(rows, at + size * direction - self.x[rows])
        referee.blind(part, ~seen)

    def _margin(self, at: Images, rows: Rows, *, last: bool) -> tuple[Bool[Tensor, " rows"], Images]:
        """Whether the prediction is kept, and the gradient of the logit's lead over the others (zero at the last)."""
        leaf = at.detach().requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            logits = self.model(leaf)
            mine = torch.nn.functional.one_hot(self.target[rows], logits.shape[1]).bool()
            lead = logits[mine] - logits.masked_fill(mine, -math.inf).amax(1)
        kept = logits.argmax(1) == self.target[rows]
        return kept, torch.zeros_like(at) if last else _gradient(lead, leaf)

    def _climb(
        self,
        network: nn.Module,
        at: Images,
        rows: Rows,
        draws: Sequence[torch.Generator],
        build: Callable[[Rows], Objective],
        *,
        last: bool,
    ) -> tuple[Images | None, Images]:
        """The map, where the judge can use it, and the objective's gradient (zero at the last step)."""
        random, total = stochastic(self.attribution), torch.zeros_like(at)
        shared = network is self.model and not random
        if last:
            return (self.judged(at, rows) if shared else None), total
        for _ in range(self.effort.eot if random else 1):
            leaf = at.detach().requires_grad_()
            with torch.enable_grad():
                maps = explain(self.attribution, network, leaf, self.target[rows], draws)
                climbed = build(rows)(maps)
            total += _gradient(climbed, leaf)
        return (maps.detach() if shared else None), total

    def noise(self, part: str, referee: Referee) -> None:
        """One-shot perturbations of full size."""
        self._blindly(part, referee, self.effort.draws, lambda at, kick, rows: kick)

    def walk(self, part: str, referee: Referee) -> None:
        """Random-sign walk (random directions for l2) inside the ball; Ghorbani et al. 2019, random perturbation."""
        self._blindly(part, referee, self.effort.walk, lambda at, kick, rows: at + WALK_STEP * kick - self.x[rows])

    def _blindly(self, part: str, referee: Referee, count: int, step: Callable[..., Images]) -> None:
        if not count:
            return
        referee.open(part)
        at, rows = self.x, torch.arange(len(self.x), device=self.x.device)
        draws = [self.streams(image, part) for image in rows.tolist()]
        for _ in range(count):
            at, rows, draws = _still_open(referee, at, rows, draws)
            if not len(rows):
                return
            at = self._moved(rows, step(at, each(self.ball.boundary, at, draws), rows))
            self.judge(part, referee, at, rows)

    def judge(self, part: str, referee: Referee, at: Images, rows: Rows) -> None:
        """Show iterates that nobody climbed to the referee."""
        referee.see(part, at, rows, self.judged(at, rows), self._margin(at, rows, last=True)[0])

    def _moved(self, rows: Rows, perturbation: Images) -> Images:
        return (self.x[rows] + self.ball.project(perturbation)).clamp(0, 1)


def _goals(clean: Images, *, k: int, wanted: Wanted | None) -> dict[str, Callable[[Rows], Objective]]:
    """The objectives, on maps, for any rows of the batch."""
    every = [partial(shift_topk, k=k), partial(unseat_topk, k=k), shift_center, lower_cosine, lower_pearson]

    def built(build: Callable[..., Objective], rows: Rows, **options: Images) -> Objective:
        return on_maps(build, clean[rows], **{name: maps[rows] for name, maps in options.items()})

    climbed = {name: partial(built, build) for name, build in zip(OBJECTIVES, every, strict=True)}
    return climbed | ({} if wanted is None else {"match": partial(built, match_map, wanted=wanted)})


def _networks(
    model: nn.Module, x: Images, ascend_on: Sequence[nn.Module], betas: Sequence[float]
) -> dict[str, nn.Module]:
    """What is climbed, by the suffix of its parts' names."""
    for network in ascend_on:
        refuse_kinks(network, x)
    if ascend_on:
        named = {f", β={n.beta:g}" if isinstance(n, SmoothTwin) else "": n for n in ascend_on}
        return named if len(named) == len(ascend_on) else {f", network {i}": n for i, n in enumerate(ascend_on)}
    if not kinks(model, x):
        return {"": model}
    if not betas:
        refuse_kinks(model, x)
    return {f", β={beta:g}": smooth_twin(model, x, beta=beta) for beta in betas}


def _still_open(referee: Referee, at: Images, rows: Rows, draws: list) -> tuple[Tensor, Tensor, list]:
    """Iterates, their images and streams without those of broken images."""
    still = ~referee.broken[rows]
    return at[still], rows[still], [draw for draw, stays in zip(draws, still.tolist(), strict=True) if stays]


def _gradient(values: PerImage, leaf: Images) -> Images:
    """Gradient of each image's value; zero where there is none, or none that is finite."""
    if not values.requires_grad:
        return torch.zeros_like(leaf)
    ones = torch.ones_like(values)
    (gradient,) = torch.autograd.grad(values, leaf, ones, allow_unused=True, materialize_grads=True)
    return gradient.nan_to_num(posinf=0, neginf=0)


def _along(back: Images, gradient: Images) -> Images:
    """Back across the boundary, and along it where the objective rises: unit normal plus unit tangent."""
    normal, slope = (nn.functional.normalize(part.flatten(1), dim=1) for part in (back, gradient))
    tangent = slope - (slope * normal).sum(1, keepdim=True) * normal
    return (normal + nn.functional.normalize(tangent, dim=1)).view_as(back)


def _inside(name: str, images: Images, x: Images, ball: Ball) -> None:
    if images.shape != x.shape:
        raise ValueError(f"starts[{name!r}] has shape {tuple(images.shape)}; it must be that of x, {tuple(x.shape)}")
    checks.images(f"starts[{name!r}]", images)
    over = float((images - x - ball.project(images - x)).abs().max())
    if over > 1e-5:
        raise ValueError(f"starts[{name!r}] leaves the ball by {over:.3g}; it must lie inside {ball}")


def _name(attribution: Callable) -> str:
    """Name of an attribution, whatever it is wrapped in."""
    while isinstance(attribution, partial):
        attribution = attribution.func
    return getattr(attribution, "__name__", type(attribution).__name__)
