"""A gradient with the graph that differentiates it again; and the audit of both against the function itself.

Autograd says 0 where a path is cut (no_grad, detach, numpy), whatever a custom backward says, and for some operations
a wrong second derivative (weight_norm on a CPU). So the function f of a few examples is asked, in float64, at a random
point p beside the given one, so that no kink is met exactly, with random directions u and v:

    f(p + hv) - f(p - hv) = 2h g.v        g(p + hv) - g(p - hv) = 2h Hv        u.Hv = v.Hu

The second holds for each parameter and each image by itself. A difference that no step brings to the derivative, while
two steps agree about it, is the function's own word: a ReLU network passes at steps that cross no kink.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from attrobust.curvature import guards
from attrobust.curvature.spectra import normal

#: Examples that the audit asks.
FEW = 4
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
        return cls(inputs, torch.autograd.grad(total, inputs, **how))

    def times(self, vectors: Sequence[Tensor], *, retain: bool) -> Sequence[Tensor]:
        """Hessian times `vectors`, one piece per input; a gradient that is constant adds nothing."""
        live = [(g, v) for g, v in zip(self.gradients, vectors, strict=True) if g.requires_grad]
        if not live:
            return [torch.zeros_like(piece) for piece in self.inputs]
        outputs, directions = zip(*live, strict=True)
        how = {"retain_graph": retain, "allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(outputs, self.inputs, directions, **how)


@dataclass(frozen=True)
class Audit:
    """Refuses, in one sentence, a function whose derivatives autograd does not know.

    `names` are those of the parameters that make up the point; without them the point is one tensor of examples.
    """

    #: What the function is called in the sentence.
    name: str
    run: Run
    point: Sequence[Tensor]
    examples: int
    network: nn.Module | None = None
    names: Sequence[str] = ()

    def __call__(self, *, order: int) -> None:
        """Compare the first derivatives, or the first two, in float64; as they are where the function cannot do that."""
        for double in (True, False):
            try:
                with torch.random.fork_rng(devices=[]), _Double() if double else nullcontext():
                    return self._compare(order, double=double)
            except RuntimeError as error:
                reason = error
        raise ValueError(f"{self.name} has no derivative of order {order}: {guards.said(reason)}") from reason

    def _compare(self, order: int, *, double: bool) -> None:
        few, draw = min(FEW, self.examples), torch.Generator().manual_seed(0)
        given = [p.detach() if self.names else p.detach()[:few] for p in self.point]
        given = [p.double() if double else p for p in given]
        sizes = [p.square().mean().sqrt() for p in given]
        sizes = [torch.where(size > 0, size, torch.ones_like(size)) for size in sizes]
        noise = [normal(p, draw) for p in given]
        at = [p + 0.01 * r * torch.where(p == 0, s, p) for p, r, s in zip(given, noise, sizes, strict=True)]
        u, v = ([s * normal(p, draw) for p, s in zip(given, sizes, strict=True)] for _ in range(2))
        eps = torch.finfo(at[0].dtype).eps
        close = eps**0.25

        def moved(step: float, along: Sequence[Tensor | None] = v) -> list[Tensor]:
            return [p if d is None else p + step * d for p, d in zip(at, along, strict=True)]

        def total(where: Sequence[Tensor]) -> Tensor:
            with torch.no_grad():
                return self.run(where, few).sum()

        numbers, live, found = self._gradient(at, graph=order > 1)
        size = numbers.abs().sum()
        with torch.no_grad():
            single = self.run(at, 1)[0]
        if (single - numbers[0]).abs() > eps**0.5 * max(1.0, float(numbers.abs().max())):
            raise ValueError(
                f"{self.name} is random or couples the examples: one has {float(single):.6g} alone and"
                f" {float(numbers[0]):.6g} in a batch; it must be a fixed function of each example"
            )
        unused = [d if g is None else None for g, d in zip(found, v, strict=True)]
        gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(at, found, strict=True)]
        cut = any(d is not None for d in unused) and bool(
            (total(moved(0.01, unused)) - numbers.sum()).abs() > eps**0.5 * size
        )
        cut = cut or _differs(
            [_dot(gradient, v)],
            lambda h: [(total(moved(h)) - total(moved(-h))) / (2 * h)],
            steps=[eps ** (1 / 3) * 8**k for k in range(3)],
            rounding=10 * eps * size,
            close=close,
        )
        if cut:
            self._refuse_cut(at, unused)
        if order == 1:
            return
        graph = Graph(live, gradient)
        left, right = graph.times(u, retain=True), graph.times(v, retain=False)
        count, sides = sum(p.numel() for p in at), [(_dot(a, a) * _dot(b, b)).sqrt() for a, b in ((v, left), (u, right))]
        skew = (_dot(v, left) - _dot(u, right)).abs()
        if skew > (close / count**0.5 + 1e3 * eps) * sum(sides):
            raise ValueError(
                f"{self.name} has no symmetric Hessian, u.Hv - v.Hu is {float(skew):.3g}: torch differentiates an"
                " operation wrongly twice, as weight_norm on a CPU; write it out, or take it off"
            )
        if double and _differs(
            self._blocks(right),
            lambda h: [
                (a - b) / (2 * h)
                for a, b in zip(*(self._blocks(self._gradient(moved(s))[2]) for s in (h, -h)), strict=True)
            ],
            steps=[eps ** (1 / 2), eps ** (5 / 12), eps ** (1 / 3)],
            rounding=10 * eps * _dot(gradient, gradient).sqrt(),
            close=close,
        ):
            raise ValueError(
                f"{self.name} has another second derivative than autograd says, by the difference quotient of its"
                " gradient: some backward is not differentiable (detached, or a custom one); write the operation out"
            )

    @property
    def _few(self) -> int:
        return min(FEW, self.examples)

    def _gradient(self, at: Sequence[Tensor], *, graph: bool = False) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """The numbers at a point, the point as leaves, and the gradient of the sum; None where no path leads there."""
        live = [p.detach().requires_grad_() for p in at]
        with torch.enable_grad():
            numbers = self.run(live, self._few)
            if not numbers.requires_grad:
                return numbers, live, [None] * len(live)
            return numbers.detach(), live, list(
                torch.autograd.grad(numbers.sum(), live, create_graph=graph, allow_unused=True)
            )

    def _blocks(self, pieces: Sequence[Tensor | None]) -> list[Tensor]:
        """A piece for each parameter, or for each example."""
        whole = [torch.zeros_like(p) if g is None else g for p, g in zip(self.point, pieces, strict=True)]
        return whole if self.names else list(whole[0])

    def _refuse_cut(self, at: Sequence[Tensor], unused: Sequence[Tensor | None]) -> NoReturn:
        """Say where: at the module that lets no gradient through, or at parameters that none reaches."""
        cut, names = [], {m: n or "itself" for n, m in self.network.named_modules()} if self.network else {}

        def note(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            own = [*module.parameters(recurse=False), *tree_leaves((args, kwargs))]
            if _live(own) and not _live(tree_leaves(output)):
                cut.append(f" in module {names[module]} ({type(module).__name__})")

        handles = [m.register_forward_hook(note, with_kwargs=True) for m in names]
        try:
            self._gradient(at)
        finally:
            for handle in handles:
                handle.remove()
        missed = [name for name, d in zip(self.names, unused, strict=False) if d is not None]
        rest = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
        what = ", ".join(missed[:3]) + rest if missed else "parameters" if self.names else "x"
        free = ", or freeze what shall not count by requires_grad_(False)" if self.names else ""
        raise ValueError(
            f"{self.name} changes with {what} and its gradient does not say so: the path is cut"
            f"{cut[0] if cut else ''} (no_grad, detach, .data, numpy, a custom backward); connect it{free}"
        )


class _Double(TorchFunctionMode):
    """Runs in float64 what would run in float32, whatever the function itself asks for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        args, kwargs = tree_map(_doubled, (args, kwargs or {}))
        return tree_map(_doubled, (Tensor.double if func is Tensor.float else func)(*args, **kwargs))


def _doubled(value: object) -> object:
    if value is torch.float32:
        return torch.float64
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _live(values: Sequence[object]) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in values)


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return sum((a.detach() * b.detach()).sum() for a, b in zip(one, other, strict=True))


def _differs(
    said: Sequence[Tensor], quotient: Callable[[float], Sequence[Tensor]], *, steps: Sequence[float], rounding: Tensor,
    close: float,
) -> bool:  # fmt: skip
    """Whether some block has quotients that agree with each other at two steps and at none with what autograd says."""

    def lengths(pieces: Sequence[Tensor]) -> Tensor:
        return torch.stack([piece.detach().norm() for piece in pieces])

    def apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return lengths([a - b for a, b in zip(one, other, strict=True)]), close * (lengths(one) + lengths(other))

    agreed, sure, last = torch.zeros(len(said)).bool(), torch.zeros(len(said)).bool(), None
    floor = 1e-6 * lengths(said).norm()
    for step in steps:
        now = quotient(step)
        error, allowed = apart(said, now)
        agreed |= (error <= allowed + floor + rounding / step).cpu()
        if bool(agreed.all()):
            return False
        if last is not None:
            error, allowed = apart(last, now)
            sure |= (error <= allowed).cpu()
        last = now
    return bool((sure & ~agreed).any())
