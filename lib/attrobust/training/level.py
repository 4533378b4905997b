"""When has a network come down to a loss level? The answer of a look at the whole set, at the price of a part of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attrobust.training.stacks import Look, Networks


class Level:
    """Looks at the loss on the whole training set once an epoch, and every other update while it may be near the level.

    It is near if the last batch or the last look lay below twice the level. A look ends once the loss is certain to be
    above the level; whether it was near is then settled only where nothing else tells, at the weights of that look.

    Args:
        level: where training stops.
        stack: the networks.
        x: training images.
        y: their labels.
        per_epoch: updates.
    """

    def __init__(self, level: float, stack: Networks, x: Tensor, y: Tensor, *, per_epoch: int) -> None:
        self.level, self.stack, self.x, self.y, self.per_epoch = level, stack, x, y, per_epoch
        self.near: dict[int, bool] = {}
        self.unsettled: dict[int, Look] = {}

    def reached(self, step: int, batch_losses: Tensor, running: Sequence[int]) -> dict[int, bool]:
        """Networks that stop after this update, and whether at the level or because their loss is not finite.

        Args:
            step: updates made.
            batch_losses: of this update, one per running network.
            running: networks that have not stopped.
        """
        low = zip(running, (batch_losses < 2 * self.level).tolist(), strict=True)
        self.near = {index: self.near.get(index, False) or below for index, below in low}
        due = list(running) if step % self.per_epoch == 0 else [i for i in running if step % 2 == 0 and self._near(i)]
        if not due:
            return {}
        self.unsettled.clear()
        stopped = {}
        for index, look in self.stack.looks(self.x, self.y, due).items():
            loss = look.until(self.level)
            if not loss >= self.level:
                stopped[index] = bool(torch.isfinite(loss))
            self.near[index] = look.over and bool(loss < 2 * self.level)
            if not look.over:
                self.unsettled[index] = look
        return stopped

    def _near(self, index: int) -> bool:
        if not self.near[index] and index in self.unsettled:
            self.near[index] = bool(self.unsettled.pop(index).until(2 * self.level) < 2 * self.level)
        return self.near[index]
