"""Input attributions, (model, x, target) -> signed map of the image's shape, all differentiable in x.

Maps stay in the autograd graph, so that an attack or a penalty can differentiate *through* them; captum's either are
detached or have a derivative that silently misses the second-order term, so captum serves as an oracle for values only.
Inputs do not interact: the gradient of the summed readout is each image's own. Examples may have any shape. Under
`no_grad` maps come without their graph.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks, similarity
from attrobust.attributions.importance import brings_logits, draws_for_each
from attrobust.balls import Ball
from attrobust.models import guards
from attrobust.models.derivatives import NoSecondDerivative, again, behind
from attrobust.models.readouts import OF_LOGITS, Readout, logit, usable
from attrobust.shapes import Inputs, Labels, Logits
from attrobust.versions import versioned

#: The batches whose maps are averaged, each as large as the one that they are made of.
Copies = Callable[[Inputs], Iterator[Inputs]]
#: One stream of random numbers for a batch, or one for each of its images.
Draws = torch.Generator | Sequence[torch.Generator]


def live(model: Callable[[Tensor], Tensor], x: Inputs, target: Labels, readout: Readout = logit) -> Inputs:
    """The images as part of a graph, as they are or as a leaf of their own, once all is fit to be explained."""
    guards.classifier(model, x, target)
    usable(readout, model, x, target)
    return x if x.requires_grad else x.detach().requires_grad_()


def explained(model: Callable[[Tensor], Tensor], x: Inputs, target: Labels, readout: Readout) -> Float[Tensor, ""]:
    """What is differentiated: the readout, one number per image, summed."""
    return checks.per_image("readout", readout(model, x, target), batch=len(x)).sum()


@brings_logits
@versioned(1)
def saliency(
    model: nn.Module, x: Inputs, target: Labels, *, readout: Readout = logit, logits: bool = False
) -> Inputs | tuple[Inputs, Logits | None]:
    """Gradient of the target's readout with respect to the pixels, signed; of the logit: dz_target / dx.

    With `logits`, those of the same forward pass stand beside the map; None under a readout of the caller's own.

    Simonyan et al. 2014, "Deep inside convolutional networks" (there with absolute values).

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> m = saliency(linear, torch.rand(1, 1, 2, 2), torch.tensor([2]))
        >>> torch.equal(m.flatten(), linear[1].weight[2])
        True
    """
    x, scores, lasting = live(model, x, target, readout), [], torch.is_grad_enabled()

    def run(images: Inputs) -> Logits:
        scores.append(model(images))
        return scores[-1]

    known = logits and any(readout is r for r in OF_LOGITS)
    with torch.enable_grad():
        chosen = explained(run if known else model, x, target, readout)
        with again(chosen):
            found = torch.autograd.grad(chosen, x, create_graph=lasting)[0]
    return (found, scores[0] if known else None) if logits else found


@versioned(1)
def input_x_gradient(model: nn.Module, x: Inputs, target: Labels, *, readout: Readout = logit) -> Inputs:
    """Pixel times gradient: x . dz_target / dx, the first-order share of each pixel in the readout.

    Shrikumar et al. 2017, "Learning important features through propagating activation differences".

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), torch.rand(1, 1, 2, 2)
        >>> torch.allclose(input_x_gradient(linear, x, torch.tensor([1])).sum(), linear(x)[0, 1])
        True
    """
    x = live(model, x, target, readout)
    return x * saliency(model, x, target, readout=readout)


@versioned(1)
def integrated_gradients(
    model: nn.Module, x: Inputs, target: Labels, *, baseline: float = 0.0, steps: int = 32, readout: Readout = logit,
    chunk: int | None = None,
) -> Inputs:  # fmt: skip
    """Gradient averaged along the straight path from a baseline, times the way travelled.

        (x - x0) . mean_k dz_target/dx at x0 + a_k (x - x0),   a_k = (k - 1/2) / steps

    x0 is an image of the constant `baseline`, black if 0 (our choice, the field's habit). The map sums to the readout's
    change from x0 to x as `steps` of the midpoint rule grow; 32 is our choice, the error falls with their square
    (Sundararajan et al. 2017, "Axiomatic attribution for deep networks", eq. 3). With `chunk`, at most so many images
    run at a time, whatever the steps: the same map up to the rounding of products of another height, in the memory of
    one chunk. Its gradient, for which every chunk runs again, cannot be differentiated once more.

    Raises:
        ValueError: `steps` or `chunk` below 1, or a `baseline` that is no finite number, or wants a gradient in chunks.

    Example:
        >>> squares = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.Softplus(), nn.Linear(2, 2))
        >>> x, black = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, 1, 1, 2)
        >>> m = integrated_gradients(squares, x, torch.tensor([1]))
        >>> torch.allclose(m.sum(), squares(x)[0, 1] - squares(black)[0, 1], atol=1e-4)
        True
    """
    checks.count("steps", steps)
    x = live(model, x, target, readout)
    checks.baseline("baseline", baseline, x)
    if chunk is not None and torch.is_grad_enabled() and getattr(baseline, "requires_grad", False):
        raise ValueError("baseline requires a gradient, which a map made in chunks does not hand on whole; detach it")
    shares = (torch.arange(steps, device=x.device, dtype=x.dtype) + 0.5) / steps

    def path(x: Inputs) -> Iterator[Inputs]:
        return (baseline + share * (x - baseline) for share in shares)

    return (x - baseline) * _averaged(model, x, path, target, readout, chunk)


@draws_for_each
@versioned(1)
def smooth_grad(
    model: nn.Module, x: Inputs, target: Labels, *, sigma: float, samples: int, generator: Draws,
    readout: Readout = logit, chunk: int | None = None,
) -> Inputs:  # fmt: skip
    """Gradient averaged over Gaussian noise: mean of dz_target/dx at x + n, n ~ N(0, sigma^2), in pixel units.

    Noisy pixels may leave [0, 1]. Seed the generator alike to compare maps under common noise; with a generator for
    each image its draws do not depend on the others. `chunk` as in `integrated_gradients` (Smilkov et al. 2017,
    "SmoothGrad: removing noise by adding noise").

    Raises:
        ValueError: a negative `sigma`, `samples` or `chunk` below 1, or a list of generators that is not one for each
            image.

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), torch.full((1, 1, 2, 2), 0.5)
        >>> draw = torch.Generator().manual_seed(0)
        >>> m = smooth_grad(linear, x, torch.tensor([2]), sigma=0.1, samples=4, generator=draw)
        >>> torch.allclose(m.flatten(), linear[1].weight[2])  # of a linear network the gradient is the same everywhere
        True
    """
    checks.at_least("sigma", sigma, 0)

    def noise(like: Inputs, draw: torch.Generator) -> Inputs:
        return sigma * torch.randn(like.shape, dtype=x.dtype, device=draw.device, generator=draw).to(x.device)

    return _noisy(model, x, target, readout, noise, samples, generator, chunk)


@draws_for_each
@versioned(1)
def uniform_grad(
    model: nn.Module, x: Inputs, target: Labels, *, ball: Ball, samples: int, generator: Draws,
    readout: Readout = logit, chunk: int | None = None,
) -> Inputs:  # fmt: skip
    """Gradient averaged uniformly over a ball: mean of dz_target/dx at x + n, n uniform in `ball`.

    Ball("linf", r) is the box of half-width r of the source (Wang et al. 2020, "Smoothed geometry for robust
    attribution", definition 6). Moved pixels may leave [0, 1]. One forward and one backward pass of `samples` images
    per image; `generator` as in `smooth_grad`, `chunk` as in `integrated_gradients`.

    Raises:
        ValueError: a `ball` that is no Ball, `samples` or `chunk` below 1, or a list of generators that is not one for
            each image.

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)), torch.full((1, 1, 2, 2), 0.5)
        >>> draw = torch.Generator().manual_seed(0)
        >>> m = uniform_grad(linear, x, torch.tensor([2]), ball=Ball("linf", 0.1), samples=4, generator=draw)
        >>> torch.allclose(m.flatten(), linear[1].weight[2])
        True
    """
    checks.kind("ball", ball, Ball)

    def noise(like: Inputs, draw: torch.Generator) -> Inputs:
        return ball.sample(like.detach(), generator=draw)

    return _noisy(model, x, target, readout, noise, samples, generator, chunk)


def _noisy(
    model: nn.Module, x: Inputs, target: Labels, readout: Readout,
    noise: Callable[[Inputs, torch.Generator], Inputs], samples: int, generator: Draws, chunk: int | None,
) -> Inputs:  # fmt: skip
    """Mean of the saliency maps under draws of `noise`, the same ones whenever the copies are made again."""
    checks.count("samples", samples)
    x = live(model, x, target, readout)
    draws = list(generator) if isinstance(generator, Sequence) else [generator]
    for one in draws:
        checks.kind("generator", one, torch.Generator)
    if isinstance(generator, Sequence) and len(draws) != len(x):
        raise ValueError(f"generator is a list of {len(draws)}; it must hold one for each of the {len(x)} images")
    if len(set(map(id, draws))) < len(draws):
        raise ValueError("generator holds one stream twice; each image must have a stream of its own")
    again, first = [one.clone_state() for one in draws], [draws]

    def copies(x: Inputs) -> Iterator[Inputs]:
        draws = first.pop() if first else [one.clone_state() for one in again]
        parts = x.split(1) if isinstance(generator, Sequence) else [x]
        return (x + torch.cat([noise(*of) for of in zip(parts, draws, strict=True)]) for _ in range(samples))

    return _averaged(model, x, copies, target, readout, chunk)


def _averaged(
    model: nn.Module, x: Inputs, copies: Copies, target: Labels, readout: Readout, chunk: int | None
) -> Inputs:
    """Mean of the saliency maps of some copies of the batch, all at once or `chunk` images at a time."""
    if chunk is None:
        every = torch.stack(list(copies(x)))
        return saliency(model, every.flatten(0, 1), target.repeat(len(every)), readout=readout).view_as(every).mean(0)
    checks.count("chunk", chunk)
    target = target.clone()

    def pieces(x: Inputs) -> Iterator[tuple[Tensor, Inputs]]:
        """Which images, and their maps: several copies side by side where they fit, else a part of one."""
        everyone, waiting = torch.arange(len(x), device=x.device), copies(x)
        while together := list(itertools.islice(waiting, max(1, chunk // len(x)))):
            rows = everyone.repeat(len(together))
            for some, at in zip(rows.split(chunk), torch.cat(together).split(chunk), strict=True):
                yield some, saliency(model, at, target[some], readout=readout)

    leaves: dict[Tensor, None] = {}
    if torch.is_grad_enabled():  # what else the maps depend on: weights, also of a readout, wherever they are held
        for images, labels in zip(x.detach().split(chunk), target.split(chunk), strict=True):
            probe = images.requires_grad_()
            nodes = behind([saliency(model, probe, labels, readout=readout)])
            leaves |= dict.fromkeys(n.variable for n in nodes if hasattr(n, "variable") and n.variable is not probe)
        weights = model.parameters() if isinstance(model, nn.Module) else ()
        leaves |= dict.fromkeys(w for w in weights if w.requires_grad)  # of other images on the way
    return _Chunked.apply(pieces, x, *leaves)


class _Chunked(torch.autograd.Function):
    """Mean of the maps of `pieces`, whose graphs are not kept: for the gradient they are made again, one by one."""

    @staticmethod
    def forward(ctx: Any, pieces: Callable, x: Inputs, *weights: Tensor) -> Inputs:
        # In half precision a long sum stops growing.
        total, count = similarity.exact(torch.zeros_like(x)), 0
        for rows, maps in pieces(x.detach()):
            total.index_add_(0, rows, maps.to(total))
            count += len(rows)
        ctx.pieces, ctx.share = pieces, len(x) / count
        ctx.save_for_backward(x, *weights)
        return (total * ctx.share).to(x)

    @staticmethod
    def backward(ctx: Any, slope: Inputs) -> tuple[Tensor | None, ...]:
        return None, *_ChunkedGradient.apply(ctx.pieces, ctx.share * slope, *ctx.saved_tensors)


class _ChunkedGradient(torch.autograd.Function):
    """What the gradient of `_Chunked` hands to the images and weights; not differentiated, least of all in silence."""

    @staticmethod
    def forward(ctx: Any, pieces: Callable, slope: Inputs, x: Inputs, *weights: Tensor) -> tuple[Tensor | None, ...]:
        leaves = [x.detach().requires_grad_(), *weights]
        sums: list[Tensor | None] = [None] * len(leaves)
        with torch.enable_grad():
            for rows, maps in pieces(leaves[0]):
                found = torch.autograd.grad(maps, leaves, slope[rows], retain_graph=True, allow_unused=True)
                wide = (one if one is None else similarity.exact(one) for one in found)
                parts = zip(sums, wide, strict=True)
                sums = [one if other is None else other if one is None else one + other for one, other in parts]
        return tuple(one if one is None else one.to(leaf) for one, leaf in zip(sums, leaves, strict=True))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> None:
        raise NoSecondDerivative("gradient of a map made in chunks cannot be differentiated once more; leave chunk out")
