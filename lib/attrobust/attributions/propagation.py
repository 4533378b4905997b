"""Maps with rules of their own at every nonlinear call: DeepLIFT, layer-wise relevance, guided backpropagation.

All take any network of linear layers, elementwise activations and max-pools, however it calls them (dense,
convolutional, residual, average-pooled, batch norm in eval mode), on inputs of any shape, and raise a ValueError for
every other one (attention, layer norm, gates), in every precision: two of the passes below, of four random points and
of two, in float64, measure whether there is anything else in it. All are differentiable in x where the network is
smooth; on a ReLU network their derivative misses what the gates would do, so attack them on a smooth twin. A max-pool
makes them jump where its winner changes; no twin repairs that. They explain the logit. "Passes" are of the batch, but
for those two, and for a map that is read, not differentiated. Under `no_grad` maps come without their graph.
"""

import torch
from torch import Tensor, nn

from attrobust import checks
from attrobust.attributions import rerun
from attrobust.attributions.rerun import ACTIVATIONS, CORNERED, POOLS, WATCHED, Bent, Call, Linear, Network
from attrobust.shapes import Inputs, Labels
from attrobust.versions import versioned

#: What rounding may take of a sum, in units of all that was added up; graphics cards round float32 to ten bits.
ROUNDED = {torch.float32: 1e-3, torch.float64: 2e-12}

#: Layers with weights that the z+ rule knows, and linear calls that it does not.
WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d"}
UNWEIGHTED = {
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "bilinear", "batch_norm",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip


@versioned(1)
def deep_lift(model: nn.Module, x: Inputs, target: Labels, *, baseline: float | Tensor = 0.0) -> Inputs:
    """Shares of the logit's change from a baseline, by the rescale rule: (x - x0) . multipliers.

    x0 is an image of the constant `baseline`, black if 0, or a tensor that spreads over the images. An activation's
    multiplier is its secant (f(h) - f(h0)) / (h - h0), h0 its input on the baseline; where the two all but meet, its
    derivative between them. A max-pool hands its change to the winner of the image if it rose, to the winner of the
    baseline if it fell. The map sums to z_target(x) - z_target(x0) exactly. 5 forward passes, 1 backward. (Shrikumar et
    al. 2017, "Learning important features through propagating activation differences", section 3.5.1; max-pools as in
    Lundberg and Lee's shap.)

    Raises:
        ValueError: a network that no rule fits (operations between pixels and logit that are neither linear, nor an
            activation, nor a max-pool), or a `baseline` that does not spread over the images.

    Example:
        >>> relu = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x, black = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, 1, 2, 2)
        >>> m = deep_lift(relu, x, torch.tensor([1]))
        >>> torch.allclose(m.sum(), relu(x)[0, 1] - relu(black)[0, 1], atol=1e-5)
        True
    """
    checks.baseline("baseline", baseline, x)

    def shares(model: Network, x: Inputs) -> Inputs:
        start = (torch.zeros_like(x) + baseline).detach().requires_grad_()
        logits, there = rerun.record(model, start, method="deep_lift")

        def rules(calls: list[Call]) -> list[Linear]:
            if [(call.name, call.input.shape) for call in calls] != [(call.name, call.input.shape) for call in there]:
                raise Bent
            return [_rescale(call, reference) for call, reference in zip(calls, there, strict=True)]

        slopes, logit = rerun.affine_gradient(model, x, target, rules, method="deep_lift")
        found, before = (x - start.detach()) * slopes, logits.gather(1, target[:, None])[:, 0]
        parts, ends = found.detach().flatten(1), torch.stack([logit, before]).detach()
        size = parts.abs().sum(1) + ends.abs().sum(0)
        rerun.straight(
            parts.sum(1), ends[0] - ends[1], rounding=ROUNDED[torch.promote_types(logit.dtype, torch.float32)] * size
        )
        return found

    return rerun.settled(shares, model, x, target, method="deep_lift")


@versioned(1)
def lrp(model: nn.Module, x: Inputs, target: Labels, *, rule: str = "epsilon", epsilon: float = 1e-6) -> Inputs:
    """Relevance of the logit handed back layer by layer: R_i = sum_j R_j z_ij / sum_i' z_i'j, z_ij = h_i w_ij.

    rule "epsilon": the denominator is the layer's output, its bias included. Every linear call is covered (residual
    sums, average pools, batch norm in eval mode, shifts). With epsilon = 0 a ReLU network's map is input x gradient,
    biases or not.

    rule "z_plus": only positive z_ij count, biases never (alpha-beta with alpha = 1, beta = 0). Dense and convolutional
    layers follow it; sums of branches, average pools and shifts of the pixels share in proportion. Batch norm is
    refused: fold it into its convolution first (torch.nn.utils.fusion.fuse_conv_bn_eval). What a feature without any
    positive z_ij has of relevance is lost. Such maps hardly depend on the upper layers (Sixt et al. 2020, "When
    explanations lie"); `faithfulness.randomisation` shows it.

    Activations pass relevance on, max-pools to the winner; f(0) is a bias. Under both rules the map of a smooth twin
    tends to that of its original. `epsilon` moves every denominator away from zero, in units of the features (1e-6 is
    our choice: for stability only; a larger one silences weak features); under "epsilon" it acts where linear calls end
    in an activation or in the logit. With epsilon = 0 the map sums to the logit, less what constants contributed (under
    z_plus, biases do not). 4 forward passes, 1 backward; z_plus runs every weighted layer three times a pass.

    Raises:
        ValueError: a network that the rule does not fit, an unknown rule, or a negative `epsilon`.

    Example:
        >>> relu = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([1])
        >>> at = x.clone().requires_grad_()
        >>> (slope,) = torch.autograd.grad(relu(at)[0, 1], at)
        >>> torch.allclose(lrp(relu, x, y, epsilon=0.0), x * slope, atol=1e-5)
        True

    References: Bach et al. 2015, "On pixel-wise explanations", eqs. 58 and 60; Montavon et al. 2017, "Explaining
    nonlinear classification decisions with deep Taylor decomposition", z+ rule; Ancona et al. 2018, proposition 1.
    """
    checks.one_of("rule", rule, ("epsilon", "z_plus"))
    checks.at_least("epsilon", epsilon, 0)
    share, how, damping = _from_zero, {"method": f"lrp with rule={rule!r}"}, epsilon
    if rule == "z_plus":
        share, damping = _positive, 0.0
        how |= {"watched": WATCHED | WEIGHTED, "refused": UNWEIGHTED}

    def relevance(model: Network, x: Inputs) -> Inputs:
        slopes, logit = rerun.affine_gradient(model, x, target, lambda calls: [share(c, epsilon) for c in calls], **how)
        return x * slopes * _damped(logit, damping).view(-1, *[1] * (x.ndim - 1))

    return rerun.settled(relevance, model, x, target, method=how["method"])


def guided_backprop(model: nn.Module, x: Inputs, target: Labels) -> Inputs:
    """Gradient whose negative signals end at every activation they meet: g -> f'(h) max(g, 0).

    The source (Springenberg et al. 2015, "Striving for simplicity: the all convolutional net", section 3.4) defines it
    for ReLU, f' = 1[h > 0]. A smooth activation keeps its derivative as the gate, so the map of a smooth twin tends to
    that of its original; Dombrowski et al. 2019 soften max(g, 0) too, which adds a scale. The map may hardly depend on
    the class or on late layers: see `faithfulness.randomisation`. 4 forward passes, 1 backward.

    Raises:
        ValueError: a network that no rule fits: operations between pixels and logit that are neither linear, nor an
            activation, nor a max-pool.

    Example:
        >>> relu = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> relu[1].weight.data, relu[3].weight.data = torch.eye(2), torch.tensor([[1.0, -1.0]])
        >>> guided_backprop(relu, torch.ones(1, 1, 1, 2), torch.tensor([0])).flatten().tolist()  # the gradient is 1, -1
        [1.0, 0.0]
    """
    how = {"method": "guided_backprop"}

    def signal(model: Network, x: Inputs) -> Inputs:
        return rerun.affine_gradient(model, x, target, lambda calls: [*map(_guided, calls)], **how)[0]

    return rerun.settled(signal, model, x, target, **how)


def _rescale(call: Call, reference: Call) -> Linear:
    """DeepLIFT: an activation's secant, a max-pool's change to the winner that explains it."""
    change, gap = call.output - reference.output, call.input - reference.input
    if call.name not in POOLS:
        slope = _secant(call, reference.input, gap, change)
        return lambda step: slope * step
    parts = []
    for winner, counts in ((call.winner(call.input), change >= 0), (call.winner(reference.input), change < 0)):
        way = winner(gap)
        rise = torch.where(way == 0, 1, change / torch.where(way == 0, 1, way))
        parts.append((winner, torch.where(counts, rise, 0)))
    return lambda step: sum(share * winner(step) for winner, share in parts)


def _from_zero(call: Call, epsilon: float) -> Linear:
    """LRP: an activation's secant from 0, less where its input is weak; a max-pool's winner."""
    if call.name in POOLS:
        return call.winner(call.input)
    zero = torch.zeros_like(call.input)
    slope = _secant(call, zero, call.input, call.output - call(zero)) * _damped(call.input, epsilon)
    return lambda step: slope * step


def _positive(call: Call, epsilon: float) -> Linear:
    """LRP, z+: positive contributions only, in shares of their sum; the true output is what is shared.

    An activation's slope f(h) / h is undone by the layer before it, whose output h is: f(h) is what that layer shares.
    """
    if call.name in POOLS:
        return call.winner(call.input)
    if call.name in ACTIVATIONS:
        h = call.input
        slope = call.output * h / (h.square() + epsilon**2).clamp_min(torch.finfo(h.dtype).tiny)
        return lambda step: slope * step
    options = {name: value for name, value in call.options.items() if name not in ("weight", "bias")}
    weight = call.arguments[0] if call.arguments else call.options["weight"]
    rises, falls = weight.clamp_min(0), weight.clamp_max(0)
    above, below = (call.input > 0).to(call.input), (call.input < 0).to(call.input)

    def contributions(h: Tensor) -> Tensor:
        parts = ((above * h, rises), (below * h, falls))
        return sum(call.function(part, w, None, *call.arguments[2:], **options) for part, w in parts)

    whole = contributions(call.input)
    some = whole > torch.finfo(whole.dtype).tiny ** 0.5
    share = torch.where(some, call.output / torch.where(some, whole + epsilon, 1), 0)
    return lambda step: share * contributions(step)


def _guided(call: Call) -> Linear:
    """Guided backpropagation: the derivative, and negative signals stopped on the way back."""
    if call.name in POOLS:
        return call.winner(call.input)
    slope = call.slope(call.input)

    def linear(step: Tensor) -> Tensor:
        signal = slope * step
        signal.register_hook(lambda gradient: gradient.clamp_min(0))
        return signal

    return linear


def _secant(call: Call, start: Tensor, gap: Tensor, change: Tensor) -> Tensor:
    """Change / gap; where the gap is nearly closed the derivative halfway, which errs by its square.

    Of two nearly equal numbers a quotient's own derivative loses all digits. A corner has no derivative to trust, but
    its quotient is exact down to the last digit.
    """
    closed = gap.abs() <= (0.0 if call.name in CORNERED else torch.finfo(gap.dtype).eps ** 0.25)
    quotient = change / torch.where(closed, 1, gap)
    return torch.where(closed, call.slope(start + gap / 2), quotient)


def _damped(h: Tensor, epsilon: float) -> Tensor:
    return h.abs() / (h.abs() + epsilon) if epsilon else torch.ones_like(h)
