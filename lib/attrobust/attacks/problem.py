"""What every part of an attack shares: the map, the network that judges, the images, the ball, the random streams."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from attrobust import checks
from attrobust.attacks.audit import gradient
from attrobust.attacks.clean import Rows
from attrobust.attacks.judge import Judge
from attrobust.attacks.streams import Streams, explain, stochastic
from attrobust.attributions import with_logits
from attrobust.balls import Ball
from attrobust.shapes import Attribution, Images, Labels, Logits, Maps


@dataclass(frozen=True)
class Problem:
    """An attack's setting: the model judges every map and every prediction, `target` are the predicted classes."""

    attribution: Attribution
    model: nn.Module
    x: Images
    target: Labels
    ball: Ball
    streams: Streams

    @classmethod
    def of(
        cls, attribution: Attribution, model: nn.Module, x: Images, ball: Ball, generator: torch.Generator | Streams
    ) -> "Problem":
        """The problem of moving the maps of the predicted classes."""
        checks.images("x", x)
        with torch.no_grad():
            target = checks.logits("model", model(x), batch=len(x)).argmax(1)
        streams = generator if isinstance(generator, Streams) else Streams(x, generator=generator)
        return cls(attribution, model, x, target, ball, streams)

    @property
    def everyone(self) -> Rows:
        """All images."""
        return torch.arange(len(self.x), device=self.x.device)

    @property
    def stochastic(self) -> bool:
        """Whether the map draws random numbers."""
        return stochastic(self.attribution)

    def maps(self, network: nn.Module, at: Images, rows: Rows, draws: Sequence[torch.Generator] = ()) -> Maps:
        """Maps on a network; a stochastic one under the given streams, or its image's common draws."""
        return self.look(network, at, rows, draws)[0]

    def look(
        self, network: nn.Module, at: Images, rows: Rows, draws: Sequence[torch.Generator] = ()
    ) -> tuple[Maps, Logits | None]:
        """Maps as `maps` gives them, with the logits of the same forward pass if the attribution has them at hand."""
        if self.stochastic:
            draws = draws or self.streams.common(rows.tolist())
            return explain(self.attribution, network, at, self.target[rows], draws), None
        return with_logits(self.attribution, network, at, self.target[rows])

    def kept(self, at: Images, rows: Rows, logits: Logits | None = None) -> Bool[Tensor, " iterates"]:
        """Whether the judged network still predicts the clean class; `logits` if it has run already."""
        with torch.no_grad():
            return (self.model(at) if logits is None else logits).argmax(1) == self.target[rows]

    def way_back(self, at: Images, rows: Rows) -> Images:
        """Gradient of the clean class's lead over the best other class."""
        leaf = at.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.model(leaf)
            own = nn.functional.one_hot(self.target[rows], logits.shape[1]).bool()
            lead = logits[own] - logits.masked_fill(own, -math.inf).amax(1)
        return gradient(lead, leaf)

    def moved(self, rows: Rows, perturbation: Images) -> Images:
        """The images under a perturbation, pulled into the ball and into [0, 1]."""
        return (self.x[rows] + self.ball.project(perturbation)).clamp(0, 1)

    def see(self, judge: Judge, parts: Sequence[str], at: Images, rows: Rows, of: Rows | None = None) -> None:
        """Show iterates to the judge that nobody has explained yet; they come from one part unless `of` says."""
        of, (maps, logits) = torch.zeros_like(rows) if of is None else of, self.look(self.model, at, rows)
        judge.see(parts, at, rows, maps.detach(), self.kept(at, rows, logits), of)


def along(back: Images, slope: Images) -> Images:
    """Back across the decision boundary, and along it where the objective rises: unit normal plus unit tangent."""
    normal, uphill = (nn.functional.normalize(part.flatten(1), dim=1) for part in (back, slope))
    tangent = uphill - (uphill * normal).sum(1, keepdim=True) * normal
    return (normal + nn.functional.normalize(tangent, dim=1)).view_as(back)


def still_open(judge: Judge, rows: Rows, *others: Tensor | list) -> list:
    """Rows, and whatever belongs to them, without those of broken images."""
    stays = ~judge.broken[rows]
    if bool(stays.all()):
        return [rows, *others]
    keep = stays.nonzero().flatten()
    return [o[keep] if isinstance(o, Tensor) else [o[i] for i in keep.tolist()] for o in (rows, *others)]
