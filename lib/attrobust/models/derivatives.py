"""Is there a gradient, and is it one? It must predict how the network changes; and torch may not know the next."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from attrobust.models import watched
from attrobust.models.watched import Model

Tries = tuple[tuple[tuple[float, ...], float, int], ...]

#: Steps of the difference quotient, in pixels, how much of the change the gradient may miss, and along how many ways:
#: one step that agrees is enough. The second are for networks that round inside (straight-through gradients of eight
#: bits agree, of two at no step; one way might agree by luck), and for those that do not run in double precision.
TRIES: Tries = (((1e-6, 1e-5, 1e-4), 0.02, 1), ((1e-3, 1 / 255, 0.03, 0.06, 0.1), 0.3, 4))
#: Weights up to which a network is also run in double precision.
DOUBLED = 2**26

#: What stands in the graph of a gradient where torch knows no further one: of its own operations, and of a Function's.
ENDS = {"torch::autograd::NotImplemented", "torch::autograd::Error"}


class NoSecondDerivative(ValueError):
    """A gradient that torch cannot differentiate."""


def twice_differentiable(nodes: Iterable[Node]) -> None:
    """Refuse a gradient graph with an operation whose own gradient torch does not know."""
    names = {node.name() for node in nodes}
    if names & ENDS:
        raise NoSecondDerivative(_sentence(names))


@contextmanager
def again(values: Tensor) -> Iterator[None]:
    """Where values that hold a gradient are differentiated: torch's error, if it cannot, in that sentence."""
    try:
        yield
    except RuntimeError as error:
        names = {node.name() for node in behind([values])}
        if "CompiledFunctionBackward" in names:
            raise NoSecondDerivative(
                "model was compiled, and torch.compile keeps no gradient that can be differentiated again; hand over"
                " what was compiled (model._orig_mod), or compute maps alone under torch.no_grad"
            ) from error
        if names & ENDS or isinstance(error, NotImplementedError):
            raise NoSecondDerivative(_sentence(names)) from error
        raise


def _sentence(names: set[str]) -> str:
    fused = sorted(name.removesuffix("Backward0") for name in names if name.startswith("ScaledDotProduct"))
    what, way = "an operation", "write it out in others"
    if fused:
        what, way = f"fused attention ({fused[0]})", (
            "write the attention out, in a model of transformers by attn_implementation='eager' or"
            " swap.attention(model, 'softmax'), or compute under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        )  # fmt: skip
    return f"model uses {what} without a second derivative; {way}"


def behind(values: Iterable[Tensor]) -> set[Node]:
    """Every node of the graph behind the values."""
    waiting, seen = [v.grad_fn for v in values if v.grad_fn is not None], set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [below for below, _ in node.next_functions if below is not None]
    return seen


class _Independent(Exception):
    """Nothing changes with the pixels, and no path leads to them."""


def differentiable(model: Model, x: Tensor, *, classes: Sequence[int] = ()) -> None:
    """Refuse a network whose gradient, of a random sum of its logits (of some classes), does not predict its change."""
    runs = [(x.dtype, TRIES if x.dtype == torch.float64 else TRIES[1:])]
    size = sum(w.numel() for w in watched.weights(model))
    if x.dtype != torch.float64 and isinstance(model, nn.Module) and size <= DOUBLED:
        runs = [(torch.float64, TRIES), *runs]
    for dtype, tries in runs:
        try:
            with watched.cast(model, dtype) if dtype != x.dtype else nullcontext():
                if any(_predicted(model, x.to(dtype), tries, seed, classes) for seed in range(2)):
                    return
            break
        except _Independent:
            raise ValueError("model's logits do not depend on x; there is nothing to explain") from None
        except (RuntimeError, TypeError, ValueError) as error:
            if dtype == x.dtype:
                raise ValueError(f"model's logits cannot be differentiated in x: {watched.said(error)}") from error
    with watched.untouched(model):
        found = watched.cut(model, lambda: watched.run(model, x[:1]))
    where = f" in {found[0]!r}" if found and found[0] else ""
    raise ValueError(
        f"model cuts the gradient off{where} or changes it (no_grad, detach, numpy, rounding, hooks, custom backward):"
        " that of its logits in x does not predict how they change; let it through, or explain what comes after"
    )


def _predicted(model: Model, x: Tensor, tries: Tries, seed: int, classes: Sequence[int]) -> bool:
    """Whether the gradient at points of one draw predicts the change along ways of that draw."""
    draw = torch.Generator().manual_seed(seed)
    # Off the images themselves, where kinks and ties lie in wait: a black patch without a bias is 0 before its ReLU.
    at = x + 0.1 * torch.rand(x.shape, generator=draw).to(x)
    ways = torch.empty(tries[-1][2], *x.shape).bernoulli_(generator=draw).mul_(2).sub_(1).to(at)
    leaf = at.requires_grad_()

    def chosen(logits: Tensor) -> Tensor:
        logits = logits[:, [*classes]] if classes else logits
        return torch.where(logits.isfinite(), logits, 0)  # a masked class

    with torch.enable_grad():
        logits = chosen(model(leaf.clone()))
        # No class may go under: every weight lies between 1/2 and 3/2, of either sign.
        mix = (torch.rand(logits.shape, generator=draw) + 0.5).to(logits)
        mix *= torch.empty(logits.shape).bernoulli_(generator=draw).mul_(2).sub_(1).to(logits)
        slope = torch.autograd.grad((mix * logits).sum(), leaf, allow_unused=True)[0] if logits.requires_grad else None
    here = (mix * logits.detach()).sum(1)
    predicted = torch.zeros(len(ways), 1).to(here) if slope is None else (slope * ways).flatten(2).sum(2)
    tries = tries if logits.dtype == torch.float64 else TRIES[1:]
    rounding = 30 * torch.finfo(logits.dtype).eps * (mix * logits.detach()).abs().sum(1)
    for steps, missing, count in tries:
        smooth = True
        for step in steps:
            moved = [[watched.run(model, at + sign * step * way).detach() for way in ways[:count]] for sign in (1, -1)]
            ahead, behind = (torch.stack([(mix * chosen(there)).sum(1) for there in side]) for side in moved)
            change, bend = (ahead - behind) / (2 * step), (ahead + behind - 2 * here) / (2 * step)
            if slope is None and not bool(change.any()):
                raise _Independent
            size, noise = torch.maximum(change.norm(), predicted[:count].norm()), (rounding / step).expand_as(change)
            if bool((change - predicted[:count]).norm() <= missing * size + noise.norm()):
                return True
            smooth &= bool(change.any()) and bool(bend.norm() <= 0.1 * change.norm())
        if smooth:  # no rounding inside: larger steps would tell no more
            return False
    return False
