"""Traces of a chain's Hessian from factors: no product with the Hessian, and little or nothing left to chance.

A layer h = W a + b meets the example through its input alone: with a 1 appended to a (for a convolution: to every
patch a_p of it), and F the loss of one example as a function of h,

    tr Hess_(W, b) F = sum_pq (a_p . a_q) sum_o d2F / dh_op dh_oq        (dense: |a|^2 tr Hess_h F)

    Hess_h F = J' H J  +  sum_k J_k' diag(d_k) J_k,     d_k = s_k''(h_k) dF/ds_k

J leads from h to the logits, H is the loss Hessian there, and J_k leads to the numbers h_k that the k-th activation
s_k bends. The first part is Gauss-Newton's: H = B'B has no more rows than there are classes, one backward pass each,
exact. The second part, the remainder, needs no second backward pass either: d_k is known after one, and J_k is
the forward pass without its bends (Botev et al. 2017 have the recursion for dense layers). Dense layers are exact;
below a convolution a random change of the weights, drawn for each example by itself, is pushed forward instead:

    tr = E_v sum_k d_k . (J_k v)^2,   v_op = e_o . a_p,   e random signs

A probe of its own for each example makes the errors of the examples independent, so the mean over N of them has
1/N of one example's variance, which a probe shared by all examples has not.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust.curvature import guards
from attrobust.curvature.chain import Link
from attrobust.curvature.jacobian import jacobian_of

#: Least probes of an example: two, so that each has a spread of its own.
LEAST = 2

#: Least probes of all examples together beyond one each: few degrees of freedom make a standard error too bold.
FREEDOM = 128

#: Rows pushed forward at once.
ROWS = 256


@dataclass(frozen=True)
class Asked:
    """Which parameters of each layer count: by the layer, whether its weight and its bias do."""

    weight: dict[nn.Module, bool]
    bias: dict[nn.Module, bool]

    @classmethod
    def of(cls, layers: list[nn.Module], parameters: Iterable[nn.Parameter]) -> "Asked":
        """Of these layers, only these parameters."""
        wanted = {id(p) for p in parameters}
        weighted = [m for m in layers if isinstance(getattr(m, "weight", None), nn.Parameter)]
        return cls({m: id(m.weight) in wanted for m in weighted}, {m: id(m.bias) in wanted for m in weighted})

    def __contains__(self, layer: nn.Module) -> bool:
        return self.weight.get(layer, False) or self.bias.get(layer, False)


def gauss_newton(links: list[Link], factor: "LogitFactor", asked: Asked) -> Float[Tensor, " batch"]:
    """Trace of each example's Gauss-Newton matrix over the parameters asked for, in float64."""
    inside = [link for link in links if link.layer in asked]
    meets = [_Meets.of(link, asked) for link in inside]
    total = torch.zeros(len(factor.slope), dtype=torch.float64, device=factor.slope.device)
    for rows, sign in factor:
        deltas = torch.autograd.grad(
            links[-1].leaving, [link.leaving for link in inside], rows.to(links[-1].leaving), retain_graph=True
        )
        for meet, delta in zip(meets, deltas, strict=True):
            total += sign * meet.gradient_norm(delta).double()
    return total


@dataclass(frozen=True)
class LogitFactor:
    """First and second derivative of a loss in the logits, in float64: a saturated softmax keeps its complement.

    Iterating gives rows b and signs s with H = sum s b b' for each example, the smallest first; rows that are zero
    for every example are left out.
    """

    slope: Float[Tensor, "batch outputs"]
    values: Float[Tensor, "batch outputs"]
    vectors: Float[Tensor, "batch outputs outputs"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        least = 1e-14 * self.values.abs().max()
        for value, vector in zip(self.values.T, self.vectors.permute(2, 0, 1), strict=True):
            if bool((value.abs() > least).any()):
                yield value.abs().sqrt()[:, None] * vector, value.sign()


def logit_factor(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Float[Tensor, "batch outputs"], y: Tensor
) -> LogitFactor:
    """Derivatives of each example's loss at its logits.

    Args:
        loss: (logits, y) -> one loss per example.
        logits: where they are taken.
        y: labels.

    Raises:
        ValueError: if the loss is not one finite number per example.
    """
    at = logits.detach().double().requires_grad_()
    with torch.enable_grad():
        total = guards.values("loss", loss(at, y.double() if y.is_floating_point() else y), logits).sum()
        if not total.requires_grad:
            total = 0 * at.sum()
        (slope,) = torch.autograd.grad(total, at, create_graph=True)
        hessian = jacobian_of(slope, at).detach()
    return LogitFactor(slope.detach(), *torch.linalg.eigh(hessian))


class Remainder:
    """What the Gauss-Newton part leaves of each example's trace.

    Args:
        links: the chain at these examples.
        slope: derivative of the loss in the logits.
        asked: which parameters count.
    """

    def __init__(self, links: list[Link], slope: Float[Tensor, "batch outputs"], asked: Asked) -> None:
        bends = [link for link in links if link.bends]
        last = links[-1].leaving
        backs = torch.autograd.grad(
            last, [link.leaving for link in bends], slope.to(last), retain_graph=True, materialize_grads=True,
            allow_unused=True,
        ) if bends else ()  # fmt: skip
        self.first, self.second = {}, {}
        for link, back in zip(bends, backs, strict=True):
            slopes, turns = _derivatives(link)
            self.first[id(link)], self.second[id(link)] = slopes, turns * back
        self.links, self.slope = links, slope
        self.layers = [(i, _Meets.of(link, asked)) for i, link in enumerate(links) if link.layer in asked]

    @torch.no_grad()
    def exact(self) -> Float[Tensor, " batch"]:
        """The part that needs no probes, in float64: all of it, if no layer is a convolution."""
        total = torch.zeros(len(self.slope), dtype=torch.float64, device=self.slope.device)
        for i, meets in self.layers:
            after = self._until_the_last_bend(i)
            if meets.patches is None:
                total += (meets.size * self._of_a_dense_layer(after)).double()
            else:
                share, way = meets.size, 1.0
                for link in _bends_at_once(after):
                    total += (share * (self.second[id(link)] * way**2).sum(1)).flatten(1).sum(1).double()
                    way = way * self.first[id(link)]
        return total

    @property
    def random(self) -> bool:
        """Whether something is left to probes."""
        return any(len(_bends_at_once(after := self._until_the_last_bend(i))) < len(after)
                   for i, meets in self.layers if meets.patches is not None)  # fmt: skip

    @torch.no_grad()
    def probe(self, rows: Tensor, *, generator: torch.Generator) -> Float[Tensor, " rows"]:
        """One sample of the rest for each row, of the example that the row names; their mean is the rest's trace."""
        total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for i, meets in self.layers:
            after = self._until_the_last_bend(i)
            here = _bends_at_once(after)
            if meets.patches is None or len(here) == len(after):
                continue
            t = meets.change(rows, self.links[i].leaving.shape[1:], generator)
            for link in after:
                if link.bends:
                    if link not in here:
                        total += (self.second[id(link)][rows] * t.square()).flatten(1).sum(1).double()
                    t = t * self.first[id(link)][rows]
                else:
                    t = link.push(t)
        return total

    def _until_the_last_bend(self, i: int) -> list[Link]:
        after = self.links[i + 1 :]
        last = max((k for k, link in enumerate(after) if link.bends), default=-1)
        return after[: last + 1]

    def _of_a_dense_layer(self, after: list[Link]) -> Float[Tensor, " batch"]:
        """Trace of sum_k J_k' diag(d_k) J_k by the rows of J', each pushed forward; still diagonal at the first."""
        total = torch.zeros_like(self.slope[:, 0], dtype=self.links[0].leaving.dtype)
        way: Tensor | None = None  # (batch, units of this layer, units reached)
        diagonal = torch.ones_like(total)[:, None]
        for k, link in enumerate(after):
            if link.bends:
                slopes, turns = self.first[id(link)], self.second[id(link)]
                if way is None:
                    total = total + (turns * diagonal.square()).sum(1)
                    diagonal = diagonal * slopes
                else:
                    total = total + torch.einsum("buk,bk->b", way.square(), turns)
                    way = way * slopes[:, None]
            elif way is not None:
                way = link.push(way.flatten(0, 1)).unflatten(0, way.shape[:2])
            elif link.dense and k == len(after) - 2:  # one bend is left: the squares of the weights are enough
                turns = self.second[id(after[-1])]
                return total + ((turns @ link.layer.weight.detach().square()) * diagonal.square()).sum(1)
            elif link.dense:
                way = diagonal[:, :, None] * link.layer.weight.detach().T
            else:
                diagonal = link.push(diagonal)
        return total


@dataclass(frozen=True)
class _Meets:
    """How a layer's parameters meet the example: through one vector, or through the patches of its input.

    Attributes:
        size: squared length of that vector, or of every patch.
        patches: the patches, each with a 1 for the bias; None for a dense layer.
        gram: their products, where positions are fewer than entries of a patch.
    """

    size: Float[Tensor, "batch *positions"]
    patches: Float[Tensor, "batch entries positions"] | None = None
    gram: Float[Tensor, "batch positions positions"] | None = None

    @classmethod
    def of(cls, link: Link, asked: Asked) -> "_Meets":
        layer, a = link.layer, link.entering.detach()
        weight, bias = asked.weight[layer], asked.bias[layer]
        if link.dense:
            return cls(weight * a.square().sum(1) + bias)
        how = {name: getattr(layer, name) for name in ("dilation", "padding", "stride")}
        patches = F.unfold(a, layer.kernel_size, **how)
        ones = torch.ones_like(patches[:, :1])
        patches = torch.cat([patches] * weight + [ones] * bias, 1)
        entries, positions = patches.shape[1:]
        gram = patches.mT @ patches if positions < entries else None
        return cls(patches.square().sum(1).unflatten(1, link.leaving.shape[2:]), patches, gram)

    def gradient_norm(self, delta: Tensor) -> Float[Tensor, " batch"]:
        """Squared length of the parameters' gradient where the layer's output has gradient `delta`."""
        if self.patches is None:
            return delta.square().sum(1) * self.size
        delta = delta.flatten(2)
        if self.gram is not None:
            return ((delta @ self.gram) * delta).sum((1, 2))
        return (delta @ self.patches.mT).square().sum((1, 2))

    def change(self, rows: Tensor, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Change of the layer's output when all its parameters change by random signs, anew for every row."""
        patches = self.patches[rows]
        draw = (len(rows), shape[0], patches.shape[1])
        signs = 2 * torch.randint(0, 2, draw, device=generator.device, generator=generator).to(patches) - 1
        return (signs @ patches).unflatten(2, shape[1:])


def _bends_at_once(after: list[Link]) -> list[Link]:
    """The bends that no mixing of units comes before."""
    here = []
    for link in after:
        if not link.bends:
            return here
        here.append(link)
    return here


def _derivatives(link: Link) -> tuple[Tensor, Tensor]:
    """First and second derivative of an activation at its input."""
    at = link.entering.detach().clone().requires_grad_()
    layer = link.layer
    with torch.enable_grad():
        out = layer(at.clone() if getattr(layer, "inplace", False) else at)
        (first,) = torch.autograd.grad(out.sum(), at, create_graph=True)
        if not first.requires_grad:
            return first, torch.zeros_like(at)
        (second,) = torch.autograd.grad(first.sum(), at)
    return first.detach(), second


def samples(
    remainder: Remainder, *, probes: int, generator: torch.Generator
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Mean and variance of the mean of each example's probes.

    `probes` for each example on average, more where there are few examples; beyond `LEAST` they go where the loss is
    steep in the logits, to which the remainder is proportional.
    """
    steep = remainder.slope.norm(dim=1)
    probes = max(LEAST, probes, 1 + math.ceil(FREEDOM / len(steep)))
    extra = (probes - LEAST) * len(steep) * steep / steep.sum().clamp_min(torch.finfo(steep.dtype).tiny)
    counts = LEAST + extra.long()
    rows = torch.arange(len(steep), device=steep.device).repeat_interleave(counts)
    found = torch.cat([remainder.probe(part, generator=generator) for part in rows.split(ROWS)])
    mean = torch.zeros_like(steep).index_add(0, rows, found) / counts
    square = torch.zeros_like(steep).index_add(0, rows, (found - mean[rows]).square())
    return mean, square / (counts - 1) / counts
