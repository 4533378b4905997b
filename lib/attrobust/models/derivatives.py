"""Operations whose gradient torch can compute but not differentiate again, found in the graph and refused by name."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.graph import Node

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
