"""A gradient with the graph that differentiates it again; and the audit of both against the function itself.

Autograd says 0 where a path is cut (no_grad, detach, numpy), whatever a custom backward says, and for some operations
a wrong second derivative (weight_norm on a CPU). So the function f of a few examples is asked, in float64, at a random
point p beside the given one, so that no kink is met exactly, with random directions u and v:

    f(p + hv) - f(p - hv) = 2h g.v        g(p + hv) - g(p - hv) = 2h Hv        u.Hv = v.Hu

The second holds for each parameter and each image by itself. A difference that no step brings to the derivative, while
two steps agree about it, is the function's own word: a ReLU network passes at steps that cross no kink.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from attrobust.models import watched
from attrobust.models.weights import exchanged

#: Examples that the audit asks.
FEW = 4
#: What is said of a graph that is no longer the network's.
CHANGED = "model's weights changed since this Hessian was built; build another"
#: The function of a point, one number for each of its first examples.
Run = Callable[[Sequence[Tensor], int], Tensor]


@dataclass(frozen=True)
class Graph:
    """Gradients of a scalar with respect to `inputs`, with the graph that differentiates them again."""

    inputs: Sequence[Tensor]
    gradients: Sequence[Tensor]

    @classmethod
    def of(cls, total: Tensor, inputs: Sequence[Tensor]) -> "Graph":
        """The gradient of `total`; zero where it does not use an input."""
        if not total.requires_grad:
            return cls(inputs, [torch.zeros_like(piece) for piece in inputs])
        how = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        with _unhooked(inputs):
            return cls(inputs, torch.autograd.grad(total, inputs, **how))

    def times(self, vectors: Sequence[Tensor], *, retain: bool) -> Sequence[Tensor]:
        """Hessian times `vectors`, one piece per input; a gradient that is constant adds nothing."""
        live = [(g, v) for g, v in zip(self.gradients, vectors, strict=True) if g.requires_grad]
        if not live:
            return [torch.zeros_like(piece) for piece in self.inputs]
        outputs, directions = zip(*live, strict=True)
        how = {"retain_graph": retain, "allow_unused": True, "materialize_grads": True}
        with _unhooked(self.inputs):
            return torch.autograd.grad(outputs, self.inputs, directions, **how)


@contextmanager
def _unhooked(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Within, no hook of the inputs' own changes their gradients, which would be another function's."""
    hooks = [p._backward_hooks for p in inputs if p._backward_hooks]
    kept = [dict(hook) for hook in hooks]
    for hook in hooks:
        hook.clear()
    try:
        yield
    finally:
        for hook, before in zip(hooks, kept, strict=True):
            hook.update(before)


@contextmanager
def spoken() -> Iterator[None]:
    """Torch's own error where a graph is built or differentiated, in one sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            raise ValueError(CHANGED) from error
        raise ValueError(f"model cannot be differentiated: {_reason(error)}") from error


def _reason(error: RuntimeError) -> str:
    if "use_reentrant" in str(error) or "Checkpointing is not compatible" in str(error):
        return "it runs under a reentrant checkpoint, which knows no torch.autograd.grad; use use_reentrant=False"
    return watched.said(error)


@dataclass(frozen=True)
class Audit:
    """Refuses, in one sentence, a function whose derivatives autograd does not know.

    `names` are those of the network's parameters that make up the point, and in which it then runs; without them the
    point is one tensor of examples.
    """

    #: What the function is called in the sentence.
    name: str
    run: Run
    point: Sequence[Tensor]
    examples: int
    network: nn.Module | None = None
    names: Sequence[str] = ()

    def __call__(self, *, order: int) -> None:
        """Compare the first derivatives, or the first two; in float64 unless the function cannot run so."""
        for double in (True, False):
            try:
                with torch.random.fork_rng(devices=[]):
                    return self._compare(order, double=double)
            except RuntimeError as error:
                reason = error
        raise ValueError(f"{self.name} has no derivative of order {order}: {_reason(reason)}") from reason

    def _compare(self, order: int, *, double: bool) -> None:
        few, draw = min(FEW, self.examples), torch.Generator().manual_seed(0)
        given = [p.detach() if self.names else p.detach()[:few] for p in self.point]
        given = [p.double() if double else p for p in given]
        u, v = ([_around(p, draw) for p in given] for _ in range(2))
        at = [torch.where(p == 0, d, p).mul_(0.01).add_(p) for p, d in zip(given, u, strict=True)]
        numbers, live, found = self._gradient(at, few, graph=order > 1)
        eps, size = torch.finfo(numbers.dtype).eps, numbers.abs().sum()
        with torch.no_grad(), self._held(at):
            single = self._values(at, 1)[0]
        if (single - numbers[0]).abs() > eps**0.5 * max(1.0, float(numbers.abs().max())):
            raise ValueError(
                f"{self.name} is random or couples the examples: one has {float(single):.6g} alone and"
                f" {float(numbers[0]):.6g} in a batch; it must be a fixed function of each example"
            )
        unused = [torch.zeros_like(d) if g is not None else d for g, d in zip(found, v, strict=True)]
        gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(at, found, strict=True)]
        said, rounding = [_dot(gradient, v)], [size]
        if order > 1:
            graph = Graph(live, gradient)
            with self._held(live):
                left, right = graph.times(u, retain=True), graph.times(v, retain=False)
            self._symmetric(u, v, left, right)
            said += self._blocks(right)
            rounding += [_dot(gradient, gradient).sqrt()] * (len(said) - 1)

        def quotients(step: float, along: Sequence[Tensor] = v, graph: bool = order > 1) -> list[Tensor]:
            ends = []
            for h in (step, -step):
                where = [torch.add(p, d, alpha=h) for p, d in zip(at, along, strict=True)]
                with torch.set_grad_enabled(graph), self._held(where):
                    value, _, slope = self._gradient(where, few) if graph else (self._values(where, few), None, [])
                ends.append([value.sum(), *(self._blocks(slope) if graph else [])])
            return [torch.sub(a, b).div_(2 * step) for a, b in zip(*ends, strict=True)]

        cut = any(g is None for g in found) and bool(quotients(0.01, unused, False)[0].abs() > eps**0.5 * size)
        wrong = [] if cut else _differing(said, quotients, [10 * eps * float(r) for r in rounding], eps)
        if cut or 0 in wrong:
            self._refuse_cut(at, [name for name, g in zip(self.names, found, strict=False) if g is None])
        if self.network is not None and not self.names and found[0] is None:
            raise ValueError(f"model answers alike whatever x is, so {self.name} has no derivative in x; let it read x")
        if wrong:
            raise ValueError(
                f"{self.name} has another second derivative than autograd says, by the difference quotient of its"
                " gradient: some backward is not differentiable (detached, or a custom one); write the operation out"
            )

    def _symmetric(
        self, u: Sequence[Tensor], v: Sequence[Tensor], left: Sequence[Tensor], right: Sequence[Tensor]
    ) -> None:
        """Refuse a product with u, on the left, and one with v that belong to no symmetric matrix."""
        skew, eps = (_dot(v, left) - _dot(u, right)).abs(), torch.finfo(u[0].dtype).eps
        sides = sum((_dot(a, a) * _dot(b, b)).sqrt() for a, b in ((v, left), (u, right)))
        if skew > (eps**0.25 / sum(d.numel() for d in u) ** 0.5 + 1e3 * eps) * sides + 1e3 * eps:
            raise ValueError(
                f"{self.name} has no symmetric Hessian, u.Hv - v.Hu is {float(skew):.3g}: torch differentiates an"
                " operation wrongly twice, as weight_norm on a CPU; write it out, or take it off"
            )

    def _held(self, at: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Within, the network has the parameters that make up the point."""
        return exchanged(self.network, dict(zip(self.names, at, strict=True))) if self.names else nullcontext()

    def _values(self, at: Sequence[Tensor], n: int) -> Tensor:
        with _Double() if at[0].dtype == torch.float64 else nullcontext():
            return self.run(at, n)

    def _gradient(
        self, at: Sequence[Tensor], few: int, *, graph: bool = False
    ) -> tuple[Tensor, list[Tensor], Sequence[Tensor | None]]:
        """The numbers at a point, the point as leaves, and the gradient of the sum; None where no path leads there."""
        live = [p.detach().requires_grad_() for p in at]
        with torch.enable_grad(), self._held(live):  # to the end: a checkpoint runs once more in the backward pass
            numbers = self._values(live, few)
            if not numbers.requires_grad:
                return numbers, live, [None] * len(live)
            found = torch.autograd.grad(numbers.sum(), live, create_graph=graph, allow_unused=True)
        return numbers.detach(), live, found

    def _blocks(self, pieces: Sequence[Tensor | None]) -> list[Tensor]:
        """A piece for each parameter, or for each example."""
        if not self.names and pieces[0] is None:
            return [torch.zeros_like(image) for image in self.point[0][:FEW]]
        whole = [torch.zeros_like(p) if g is None else g for p, g in zip(self.point, pieces, strict=True)]
        return whole if self.names else list(whole[0])

    def _refuse_cut(self, at: Sequence[Tensor], missed: Sequence[str]) -> NoReturn:
        """Say where: at the module that lets no gradient through, or at parameters that none reaches."""
        cut = watched.cut(self.network, lambda: self._gradient(at, 1), weights=True)
        where = f" in module {cut[0] or 'itself'} ({type(cut[1]).__name__})" if cut else ""
        rest = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
        what = ", ".join(missed[:3]) + rest if missed else "parameters" if self.names else "x"
        free = ", or freeze what shall not count by requires_grad_(False)" if self.names else ""
        raise ValueError(
            f"{self.name} changes with {what} and its gradient does not say so: the path is cut"
            f"{where} (no_grad, detach, .data, numpy, a custom backward); connect it{free}"
        )


class _Double(TorchFunctionMode):
    """Runs in float64 what would run in float32, whatever the function itself asks for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ == "__get__":  # of an attribute, such as the dtype
            return _doubled(func(*args))
        func = Tensor.double if func is Tensor.float else func
        return _doubled(func(*_doubled(args), **_doubled(kwargs or {})))


def _doubled(value: object) -> object:
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    if type(value) in (tuple, list):
        return type(value)(map(_doubled, value))
    if type(value) is dict:
        return {key: _doubled(entry) for key, entry in value.items()}
    return torch.float64 if value is torch.float32 else value


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return sum(torch.dot(a.detach().flatten(), b.detach().flatten()) for a, b in zip(one, other, strict=True))


def _around(p: Tensor, draw: Generator) -> Tensor:
    """Random numbers of the tensor's own size; of size 1 where it is all zero."""
    size = float(p.norm()) / p.numel() ** 0.5 or 1.0
    return torch.rand(p.shape, generator=draw, dtype=p.dtype).sub_(0.5).mul_(12**0.5 * size).to(p.device)


def _differing(
    said: Sequence[Tensor], quotients: Callable[[float], Sequence[Tensor]], rounding: Sequence[float], eps: float
) -> list[int]:
    """Blocks whose quotients agree with each other at two steps, and at none with what autograd says."""

    def lengths(pieces: Sequence[Tensor]) -> Tensor:
        return torch.stack([piece.detach().norm() for piece in pieces]).cpu()

    def apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
        error = lengths([a - b for a, b in zip(one, other, strict=True)])
        return error - eps**0.25 * (lengths(one) + lengths(other))

    agreed, sure, last = torch.zeros(len(said)).bool(), torch.zeros(len(said)).bool(), None
    floor = torch.cat([torch.zeros(1), 1e-6 * lengths(said[1:]).norm().expand(len(said) - 1)]) if said[1:] else 0.0
    for step in (eps ** (1 / 2), eps ** (5 / 12), eps ** (1 / 3)):
        now = quotients(step)
        agreed |= apart(said, now) <= floor + 1e3 * eps + torch.tensor(rounding) / step
        if bool(agreed.all()):
            return []
        if last is not None:
            sure |= apart(last, now) <= 0
        last = now
    return torch.where(sure & ~agreed)[0].tolist()
