"""What every part of an attack shares: the map, the network that judges, the images, the ball, the random streams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrobust import checks
from attrobust.attacks.audit import gradient
from attrobust.attacks.clean import Rows
from attrobust.attacks.judge import Judge
from attrobust.attacks.streams import Streams, alike, explain, stochastic
from attrobust.attributions import with_logits
from attrobust.attributions.importance import DRAWING, marked, name_of
from attrobust.balls import Ball
from attrobust.models import guards
from attrobust.models.readouts import lead, predictions
from attrobust.shapes import Attribution, Images, Labels, Logits, Maps, PerImage
from attrobust.similarity import unit

#: (rows, their maps) -> one number per row, to be increased.
Goal = Callable[[Rows, Maps], Float[Tensor, " iterates"]]

Lost = Int[Tensor, " lost"]


@dataclass(frozen=True)
class Problem:
    """An attack's setting: the model judges every map and every prediction, `target` are the predicted classes."""

    attribution: Attribution
    model: nn.Module
    x: Images
    target: Labels
    ball: Ball
    streams: Streams
    clean: Maps | None = None  # maps of the clean images
    heard: bool = True  # whether logits that a map brings along are those of the model
    held: float | None = None  # largest change of a class's probability that counts; None: any that keeps the class
    sure: Float[Tensor, "batch classes"] | None = None  # probabilities of the clean images, where they are held

    @classmethod
    def of(
        cls, attribution: Attribution, model: nn.Module, x: Images, ball: Ball, generator: torch.Generator | Streams, *,
        held: float | None = None,
    ) -> "Problem":  # fmt: skip
        """The problem of moving the maps of the predicted classes."""
        checks.images("x", x)
        checks.kind("ball", ball, Ball)
        checks.kind("generator", generator, torch.Generator, Streams)
        if held is not None:
            checks.positive("held", held)
        target = predictions(model, x)
        streams = generator if isinstance(generator, Streams) else Streams(x, generator=generator)
        problem = cls(attribution, model, x, target, ball, streams)
        clean, logits = problem.look(model, x, problem.everyone)
        checks.floating(f"the map of attribution {name_of(attribution)}", clean)
        if len(clean) != len(x):
            raise ValueError(f"the attribution gives {len(clean)} maps for {len(x)} images; it must give one for each")
        if not problem.stochastic or marked(attribution, DRAWING):  # others run image by image
            asked = alike(attribution) if problem.stochastic else attribution
            guards.each(f"attribution {name_of(attribution)}", asked, model, x, target)
        heard = logits is not None and torch.equal(logits.argmax(1), target)
        if held is not None:
            with torch.no_grad():
                problem = replace(problem, held=held, sure=model(x).softmax(1))
        return replace(problem, clean=clean.detach(), heard=heard)

    @property
    def everyone(self) -> Rows:
        """All images."""
        return torch.arange(len(self.x), device=self.x.device)

    @cached_property
    def stochastic(self) -> bool:
        """Whether the map draws random numbers."""
        return stochastic(self.attribution)

    def look(
        self, network: nn.Module, at: Images, rows: Rows, draws: Sequence[torch.Generator] = ()
    ) -> tuple[Maps, Logits | None]:
        """Maps on a network, with the logits of the same forward pass if they come along and are the judged network's.

        A stochastic map is made under the given streams, or under its image's common draws.
        """
        if self.stochastic:
            draws = draws or self.streams.common(rows.tolist())
            return explain(self.attribution, network, at, self.target[rows], draws), None
        maps, logits = with_logits(self.attribution, network, at, self.target[rows])
        return maps, logits if self.heard else None

    def way_back(self, at: Images, rows: Rows) -> Images:
        """Gradient of the clean class's lead over the best other class; of the largest change, where that is held."""
        leaf = at.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.model(leaf)
            if self.held is not None:
                return gradient(-shift(logits, self.sure[rows]), leaf)
            ahead = lead(logits, self.target[rows])
        return gradient(ahead, leaf)

    def moved(self, rows: Rows, perturbation: Images) -> Images:
        """The images under a perturbation, pulled into the ball and into [0, 1]."""
        return self.ball.project(perturbation).add(self.x.index_select(0, rows)).clamp_(0, 1)

    def see(self, judge: Judge, parts: Sequence[str], at: Images, rows: Rows, of: Rows | None = None) -> None:
        """Show iterates to the judge, of one part unless `of` says."""
        self._shown(judge, parts, at, rows, of, *self.look(self.model, at, rows))

    def climbed(
        self, judge: Judge, network: nn.Module, goal: Goal, at: Images, rows: Rows, *, parts: Sequence[str],
        of: Rows | None = None, streams: Sequence[torch.Generator] = (), eot: int = 1,
    ) -> tuple[Float[Tensor, " iterates"], Images, Lost, Float[Tensor, "lost channels height width"]]:  # fmt: skip
        """Judged iterates: the goal's value and slope on a network; those that lost their class, and their way back.

        The slope of a stochastic map is averaged over fresh draws of `streams`, `eot` times.
        """
        slopes = []
        for _ in range(eot if self.stochastic else 1):
            leaf = at.detach().requires_grad_()
            with torch.enable_grad():
                maps, logits = self.look(network, leaf, rows, streams)
                value = goal(rows, maps)
            slopes.append(gradient(value, leaf))
        if network is not self.model or self.stochastic:
            maps, logits = self.look(self.model, at, rows)
        lost = self._shown(judge, parts, at, rows, of, maps, logits)
        back = self.way_back(at[lost], rows[lost]) if len(lost) else at[:0]
        return value.detach(), sum(slopes[1:], slopes[0]), lost, back

    def _shown(
        self, judge: Judge, parts: Sequence[str], at: Images, rows: Rows, of: Rows | None, maps: Maps, logits: object
    ) -> Lost:
        with torch.no_grad():
            logits = self.model(at) if logits is None else logits
            kept = (logits.argmax(1) == self.target[rows]) & ~logits.isnan().any(1)
            if self.held is not None:
                kept &= shift(logits, self.sure[rows]) <= self.held
        judge.see(parts, at, rows, maps, kept, torch.zeros_like(rows) if of is None else of)
        return (~kept).nonzero().flatten()


def shift(logits: Logits, sure: Float[Tensor, "images classes"]) -> PerImage:
    """Largest change of a class's probability from those of the clean images, `sure`."""
    return (logits.softmax(1) - sure).abs().amax(1)


def along(back: Images, slope: Images) -> Images:
    """Back across the decision boundary, and along it where the objective rises: unit normal plus unit tangent."""
    normal, uphill = (unit(part.flatten(1)) for part in (back, slope))
    tangent = uphill - (uphill * normal).sum(1, keepdim=True) * normal
    return (normal + unit(tangent)).view_as(back)


def still_open(judge: Judge, rows: Rows, *others: Tensor | list[Any]) -> list[Any]:
    """Rows, and whatever belongs to them, without those of broken images."""
    stays = ~judge.broken[rows]
    if bool(stays.all()):
        return [rows, *others]
    keep = stays.nonzero().flatten()
    return [o[keep] if isinstance(o, Tensor) else [o[i] for i in keep.tolist()] for o in (rows, *others)]
