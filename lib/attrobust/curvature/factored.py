"""Traces of a chain's Hessian from factors: no product with the Hessian, and little or nothing left to chance.

A layer h = W a + b meets the example through its input alone: with a 1 appended to a (for a convolution: to every
patch a_p of it), and F the loss of one example as a function of h,

    tr Hess_(W, b) F = sum_pq (a_p . a_q) sum_o d2F / dh_op dh_oq        (dense: |a|^2 tr Hess_h F)
    Hess_h F = J' H J  +  sum_k J_k' diag(d_k) J_k,     d_k = s_k''(h_k) dF/ds_k

J leads from h to the logits, H is the loss Hessian there, and J_k leads to the numbers h_k that the k-th activation
s_k bends. The first part is Gauss-Newton's: H = B'B has no more rows than there are classes, one backward pass each,
exact. The second part, the remainder, needs only one: then d_k is known, and J_k is the forward pass without its bends
(Botev et al. 2017 have the recursion for dense layers). Dense layers are exact; below a convolution a random change of
the weights is pushed forward instead, tr = E_v sum_k d_k . (J_k v)^2 with v_op = e_o . a_p and random signs e, drawn
for each example by itself: so errors are independent, and the mean over N examples has 1/N of one's variance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from attrobust.curvature import guards
from attrobust.curvature.chain import Link, run
from attrobust.curvature.derivatives import Audit
from attrobust.curvature.inputs import jacobian_of
from attrobust.curvature.spectra import signs

#: Least probes of an example, so that each has a spread of its own; and rows pushed forward at once.
LEAST, ROWS = 2, 256
#: Least probes of all examples together beyond one each: few degrees of freedom make a standard error too bold.
FREEDOM = 128
#: Rows b and signs s with H = sum s b b' for the loss Hessian H of each example in the logits.
Factor = list[tuple[Float[Tensor, "batch outputs"], Float[Tensor, " batch"]]]


def audit_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Float[Tensor, "batch outputs"], y: Tensor) -> None:
    """Refuse a loss whose derivatives in the logits are not its own."""
    like = logits.detach().double()
    like = like / like.abs().max().clamp_min(1.0)  # a sure softmax has rounding only
    Audit("loss", lambda point, n: _losses(loss, point[0][:n], y), [like], len(like))(order=2)


def _losses(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, y: Tensor) -> Tensor:
    y = y[: len(logits)]
    return guards.losses(loss, logits, y.double() if y.is_floating_point() else y, logits)


def logit_factor(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Float[Tensor, "batch outputs"], y: Tensor
) -> tuple[Float[Tensor, "batch outputs"], Factor]:
    """First and second derivative of each example's loss at its logits, the second one by rows, the smallest first.

    In float64: a saturated softmax keeps its complement. Rows that are zero for every example are left out.
    """
    at = logits.detach().double().requires_grad_()
    with torch.enable_grad():
        total = _losses(loss, at, y).sum()
        if not total.requires_grad:
            total = 0 * at.sum()
        (slope,) = torch.autograd.grad(total, at, create_graph=True)
        values, vectors = torch.linalg.eigh(jacobian_of(slope, at, constant=True).detach())
    least = 1e-14 * values.abs().max()
    pairs = zip(values.T, vectors.permute(2, 0, 1), strict=True)
    factor = [(v.abs().sqrt()[:, None] * row, v.sign()) for v, row in pairs if bool((v.abs() > least).any())]
    return slope.detach(), factor


def gauss_newton(links: list[Link], factor: Factor, asked: set[nn.Parameter]) -> Float[Tensor, " batch"]:
    """Trace of each example's Gauss-Newton matrix over the parameters asked for, in float64."""
    inside = [link for link in links if link.holds(asked)]
    meets = [_Meets.of(link, asked) for link in inside]
    last, leaving = links[-1].leaving, [link.leaving for link in inside]
    total = torch.zeros(len(last), dtype=torch.float64, device=last.device)
    for rows, sign in factor:
        deltas = torch.autograd.grad(last, leaving, rows.to(last), retain_graph=True)
        for meet, delta in zip(meets, deltas, strict=True):
            total += sign * meet.gradient_norm(delta).double()
    return total


class Remainder:
    """What the Gauss-Newton part leaves of each example's trace; `slope` is the loss's in the logits."""

    slope: Tensor
    first: dict[Link, Tensor]
    second: dict[Link, Tensor]
    layers: list[tuple[Link, "_Meets", list[Link], list[Link]]]

    def __init__(self, links: list[Link], slope: Float[Tensor, "batch outputs"], asked: set[nn.Parameter]) -> None:
        self.slope, self.first, self.second = slope, {}, {}
        last = links[-1].leaving
        # One below the first weights bends the pixels only: no parameter reaches it.
        bends = [link for link in links if link.kind == "bend" and link.leaving.requires_grad]
        if bends:
            how = {"retain_graph": True, "materialize_grads": True, "allow_unused": True}
            backs = torch.autograd.grad(last, [link.leaving for link in bends], slope.to(last), **how)
            for link, back in zip(bends, backs, strict=True):
                self.first[link], turns = _derivatives(link)
                self.second[link] = turns * back
        end = max((i for i, link in enumerate(links) if link.kind == "bend"), default=-1) + 1
        #: Layers asked for: link, how it meets the example, what follows to the last bend, bends before any mixing.
        self.layers = []
        for i, link in enumerate(links):
            if link.holds(asked):
                after = links[i + 1 : end]
                here = list(takewhile(lambda a: a.kind == "bend", after))
                self.layers.append((link, _Meets.of(link, asked), after, here))

    @torch.no_grad()
    def exact(self) -> Float[Tensor, " batch"]:
        """The part that needs no probes, in float64: all of it, if no layer is a convolution."""
        total = torch.zeros(len(self.slope), dtype=torch.float64, device=self.slope.device)
        for link, meets, after, here in self.layers:
            if meets.patches is None:
                total += (meets.size * self._of_a_dense_layer(link, after)).double()
                continue
            way = 1.0
            for bend in here:
                total += (meets.size * (self.second[bend] * way**2).sum(1)).flatten(1).sum(1).double()
                way = way * self.first[bend]
        return total

    @property
    def random(self) -> bool:
        """Whether something is left to probes."""
        return any(meets.patches is not None and len(here) < len(after) for _, meets, after, here in self.layers)

    def sampled(self, *, probes: int, generator: Generator) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The rest: mean and variance of the mean of each example's probes.

        `probes` for each example on average, more where there are few examples; beyond `LEAST` they go where the loss
        is steep in the logits, to which the remainder is proportional.
        """
        steep = self.slope.norm(dim=1)
        probes = max(LEAST, probes, 1 + math.ceil(FREEDOM / len(steep)))
        extra = (probes - LEAST) * len(steep) * steep / steep.sum().clamp_min(torch.finfo(steep.dtype).tiny)
        counts = LEAST + extra.long()
        rows = torch.arange(len(steep), device=steep.device).repeat_interleave(counts)
        found = torch.cat([self._probe(part, generator) for part in rows.split(ROWS)])
        mean = torch.zeros_like(steep).index_add(0, rows, found) / counts
        square = torch.zeros_like(steep).index_add(0, rows, (found - mean[rows]).square())
        return mean, square / (counts - 1) / counts

    @torch.no_grad()
    def _probe(self, rows: Tensor, generator: Generator) -> Float[Tensor, " rows"]:
        """One sample of the rest for each row, of the example that the row names; their mean is the rest's trace."""
        total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for layer, meets, after, here in self.layers:
            if meets.patches is None or len(here) == len(after):
                continue
            t = meets.change(rows, layer.leaving.shape[1:], generator)
            for link in after:
                if link.kind == "bend":
                    if link not in here:
                        total += (self.second[link][rows] * t.square()).flatten(1).sum(1).double()
                    t = t * self.first[link][rows]
                else:
                    t = link.push(t)
        return total

    def _of_a_dense_layer(self, layer: Link, after: list[Link]) -> Float[Tensor, " batch"]:
        """Trace of sum_k J_k' diag(d_k) J_k by the rows of J', each pushed forward; still diagonal at the first."""
        total = torch.zeros_like(layer.leaving[:, 0])
        way: Tensor | None = None  # (batch, units of this layer, units reached)
        diagonal = torch.ones_like(total)[:, None]
        for k, link in enumerate(after):
            if link.kind == "bend":
                slopes, turns = self.first[link], self.second[link]
                if way is None:
                    total = total + (turns * diagonal.square()).sum(1)
                    diagonal = diagonal * slopes
                else:
                    total = total + torch.einsum("buk,bk->b", way.square(), turns)
                    way = way * slopes[:, None]
            elif way is not None:
                way = link.push(way.flatten(0, 1)).unflatten(0, way.shape[:2])
            elif link.kind == "dense" and k == len(after) - 2:  # one bend is left: squares of weights are enough
                turns = self.second[after[-1]]
                return total + ((turns @ link.layer.weight.detach().square()) * diagonal.square()).sum(1)
            elif link.kind == "dense":
                way = diagonal[:, :, None] * link.layer.weight.detach().T
            else:
                diagonal = link.push(diagonal)
        return total


@dataclass(frozen=True)
class _Meets:
    """How a layer's parameters meet the example: through one vector, or through the patches of its input."""

    #: Squared length of that vector, or of every patch.
    size: Float[Tensor, "batch *positions"]
    #: The patches, each with a 1 for the bias; None for a dense layer.
    patches: Float[Tensor, "batch entries positions"] | None = None
    #: Their products, where positions are fewer than entries of a patch.
    gram: Float[Tensor, "batch positions positions"] | None = None

    @classmethod
    def of(cls, link: Link, asked: set[nn.Parameter]) -> "_Meets":
        layer, a = link.layer, link.entering.detach()
        weight, bias = layer.weight in asked, layer.bias in asked
        if link.kind == "dense":
            return cls(weight * a.square().sum(1) + bias)
        patches = F.unfold(a, layer.kernel_size, dilation=layer.dilation, padding=layer.padding, stride=layer.stride)
        patches = torch.cat([patches] * weight + [torch.ones_like(patches[:, :1])] * bias, 1)
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

    def change(self, rows: Tensor, shape: torch.Size, generator: Generator) -> Tensor:
        """Change of the layer's output when all its parameters change by random signs, anew for every row."""
        patches = self.patches[rows]
        e = signs((len(rows), shape[0], patches.shape[1]), patches, generator)
        return (e @ patches).unflatten(2, shape[1:])


def _derivatives(link: Link) -> tuple[Tensor, Tensor]:
    """First and second derivative of an activation at its input."""
    at = link.entering.detach().clone().requires_grad_()
    with torch.enable_grad():
        (first,) = torch.autograd.grad(run(link.layer, at).sum(), at, create_graph=True)
        if not first.requires_grad:
            return first, torch.zeros_like(at)
        (second,) = torch.autograd.grad(first.sum(), at)
    return first.detach(), second
