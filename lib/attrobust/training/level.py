"""When has a network come down to a loss level? The answer of a look at the whole set, at the price of a part of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Examples that go through a network at once; and the fewest that are worth it.
CHUNK, LEAST = 256, 32


class Look:
    """The loss of one network, from indices of examples to their losses, looked at only as far as an answer needs it.

    `seen` holds the loss of each example when last looked at, updated in place; the largest are looked at first.
    """

    losses: Callable[[Tensor], Tensor]
    seen: Tensor
    rest: Tensor
    total: Tensor

    def __init__(self, seen: Tensor, losses: Callable[[Tensor], Tensor]) -> None:
        self.seen, self.losses = seen, losses
        self.rest = seen.argsort(descending=True, stable=True)
        self.total = seen.new_zeros(())

    @property
    def over(self) -> bool:
        """Whether all examples have been seen."""
        return not len(self.rest)

    @torch.no_grad()
    def until(self, enough: float) -> Tensor:
        """The loss; from `enough` on, a lower bound of it will do."""
        limit = enough * len(self.seen)
        while not self.over and not self.total > limit:
            # As many as would do if they were as hard as they were.
            short = (self.seen[self.rest].cumsum(0) <= limit - self.total).sum()
            part, self.rest = self.rest.tensor_split([min(max(LEAST, int(short) + 1), CHUNK)])
            self.seen[part] = self.losses(part)
            self.total += self.seen[part].sum()
        return self.seen.mean() if self.over else self.total / len(self.seen)


@dataclass
class Level:
    """Looks at the loss on the whole training set once an epoch, and every other update while it may be near the level.

    It is near if the last batch or the last look lay below twice the level. A look ends once the loss is certain to be
    above the level; whether it was near is then settled only where nothing else tells, at the weights of that look.
    A network that lands further below the level than `within`, a share of it, has overshot and does not stop.
    """

    level: float
    per_epoch: int
    seen: Sequence[Tensor]
    within: float = 1.0
    above: list[int] = field(default_factory=list)  # networks that the last call looked at and found above the level
    overshot: list[int] = field(default_factory=list)  # and those it found too far below
    near: dict[int, bool] = field(default_factory=dict)
    unsettled: dict[int, Look] = field(default_factory=dict)

    def reached(
        self, step: int, batch_losses: Tensor, running: Sequence[int], looks: Callable[..., list[Look]]
    ) -> dict[int, bool]:
        """Networks that stop after update `step`, and whether at the level or because their loss is not finite."""
        for index, below in zip(running, (batch_losses < 2 * self.level).tolist(), strict=True):
            self.near[index] = self.near.get(index, False) or below
        self.above, self.overshot = [], []
        due = list(running) if step % self.per_epoch == 0 else [i for i in running if step % 2 == 0 and self._near(i)]
        if not due:
            return {}
        self.unsettled.clear()
        stopped = {}
        found = looks([running.index(index) for index in due], [self.seen[index] for index in due])
        for index, look in zip(due, found, strict=True):
            loss = look.until(self.level)
            if loss >= self.level:
                self.above.append(index)
            elif loss < (1 - self.within) * self.level:
                self.overshot.append(index)
            else:
                stopped[index] = bool(torch.isfinite(loss))
            self.near[index] = look.over and bool(loss < 2 * self.level)
            if not look.over:
                self.unsettled[index] = look
        return stopped

    def _near(self, index: int) -> bool:
        if not self.near[index] and index in self.unsettled:
            self.near[index] = bool(self.unsettled.pop(index).until(2 * self.level) < 2 * self.level)
        return self.near[index]
