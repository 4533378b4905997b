"""The attack suite on a batch beside a loop over its images, and its passes beside the count on paper."""

import time
from collections.abc import Iterator

import torch
from attrobust import attacks, attributions, balls
from torch import Tensor, nn

from benchmarks import setting

IMAGES = 24
EFFORT = attacks.Effort(steps=5, restarts=2, draws=5, walk=5)


def rows(*, repetitions: int, networks: tuple[str, ...] = ("dense", "strided")) -> Iterator[dict]:
    """One row per network, way and repetition: seconds of this process's CPU time, passes counted and on paper."""
    x = setting.digits()[0][:IMAGES]
    for network in networks:
        model = Counting(setting.trained(network)).eval()
        ways = {"batch": [x], "one by one": list(x.split(1))}
        for repetition in range(repetitions):
            for way, parts in ways.items():
                model.forwards = model.backwards = 0
                begin = time.process_time()
                found = [attack(model, part) for part in parts]
                seconds = time.process_time() - begin
                worst = torch.cat([cosines(each) for each in found])
                counted = zip(parts, found, strict=True)
                paper = [attacks.passes(EFFORT, images=len(p), lost=f.lost, logits=True) for p, f in counted]
                yield {
                    "network": network,
                    "way": way,
                    "repetition": repetition,
                    "images": len(x),
                    "seconds": seconds,
                    "cosine": float(worst.mean()),
                    "forward": model.forwards,
                    "forward on paper": sum(p.forward for p in paper),
                    "backward": model.backwards,
                    "backward on paper": sum(p.backward for p in paper),
                }


def attack(model: nn.Module, x: Tensor) -> attacks.Found:
    """The whole suite."""
    ball, how = balls.Ball("linf", 8 / 255), {"k": 78, "effort": EFFORT, "generator": setting.seeded()}
    return attacks.auto(attributions.saliency, model, x, ball, **how)


def cosines(found: attacks.Found) -> Tensor:
    """Worst cosine of every image."""
    return torch.tensor(found.table.loc[found.table["part"] == "worst", "cosine"].to_numpy())


class Counting(nn.Module):
    """The network, counting images that go in and gradients that come back to them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.counts = model, [0, 0]  # a list: attributes are put back after a look at the network

    forwards, backwards = (
        property(lambda self, i=i: self.counts[i], lambda self, value, i=i: self.counts.__setitem__(i, value))
        for i in range(2)
    )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.forwards += len(x)
        return self.model(_Mark.apply(x, self))


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, owner):
        ctx.owner = owner
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.owner.backwards += len(gradient)
        return gradient, None
