"""A random stream for every image of a batch, so that no image's attack depends on its neighbours.

A stream is named by the image's content, by who draws, and by one number from the caller's generator. A batch of
one, a batch in another order and a batch that shrinks all give an image the same draws.
"""

import inspect
import zlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from attrobust import checks
from attrobust.attributions.importance import DRAWING, marked
from attrobust.shapes import Attribution, Images, Labels, Maps

#: Values of images whose stochastic maps are made at a time: small images in one batch, photographs one by one.
TOGETHER = 2**14


class Streams:
    """Names the stream of each image; equal images have equal streams.

    Example:
        >>> x = torch.rand(3, 1, 2, 2)
        >>> three, one = (Streams(x[i:], generator=torch.Generator()) for i in (0, 2))
        >>> torch.equal(torch.rand(2, generator=three(2, "noise")), torch.rand(2, generator=one(0, "noise")))
        True
    """

    def __init__(self, x: Images, *, generator: torch.Generator) -> None:
        checks.kind("generator", generator, torch.Generator)
        checks.images("x", x)
        base = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        pixels = x.detach().cpu().contiguous().view(torch.uint8)  # numpy has no bfloat16
        self._names = [zlib.crc32(image.numpy().tobytes(), base) for image in pixels]

    def __call__(self, image: int, who: str) -> torch.Generator:
        """The stream of one image for one purpose, at its beginning."""
        return torch.Generator().manual_seed(zlib.crc32(who.encode(), self._names[image]))

    def common(self, images: Iterable[int] | None = None) -> list[torch.Generator]:
        """The streams under which stochastic maps are judged: the same draws at every judgement of an image."""
        return [self(image, "judge") for image in (range(len(self._names)) if images is None else images)]


def each(draw: Callable, like: Images, streams: Sequence[torch.Generator]) -> Images:
    """One draw per image, each from its own stream; `draw` is one such as `Ball.boundary`.

    Example:
        >>> from attrobust.balls import Ball
        >>> x = torch.zeros(2, 1, 1, 1)
        >>> each(Ball("linf", 0.5).boundary, x, [torch.Generator(), torch.Generator()]).abs().flatten().tolist()
        [0.5, 0.5]
    """
    return torch.cat([draw(one, generator=stream) for one, stream in zip(like.split(1), streams, strict=True)])


def waits_for(function: Callable, name: str) -> bool:
    """Whether a function has a parameter of this name without a value."""
    try:
        parameter = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is inspect.Parameter.empty


def stochastic(attribution: Callable) -> bool:
    """Whether an attribution waits for a generator."""
    return waits_for(attribution, "generator")


def alike(attribution: Callable) -> Attribution:
    """The same attribution under one and the same draw for every image."""
    return lambda model, x, target: attribution(model, x, target, generator=[torch.Generator() for _ in x])


def explain(
    attribution: Attribution, model: nn.Module, x: Images, target: Labels, streams: Sequence[torch.Generator]
) -> Maps:
    """Maps of a batch; of stochastic ones each image under its own stream.

    One that `draws_for_each` explains as many images at a time as have `TOGETHER` values, others one.

    Example:
        >>> x, draws = torch.ones(2, 1, 1, 1), [torch.Generator(), torch.Generator()]
        >>> explain(lambda model, x, target: 2 * x, nn.Flatten(), x, torch.zeros(2).long(), draws).flatten().tolist()
        [2.0, 2.0]
    """
    if not stochastic(attribution):
        return attribution(model, x, target)
    many = marked(attribution, DRAWING)
    size = max(1, TOGETHER // max(1, x[:1].numel())) if many else 1
    groups = [streams[i : i + size] for i in range(0, len(x), size)]
    parts = zip(x.split(size), target.split(size), groups, strict=True)
    return torch.cat([
        attribution(model, images, labels, generator=group if many else group[0]) for images, labels, group in parts
    ])  # fmt: skip
