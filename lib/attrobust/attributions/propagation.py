"""Maps with rules of their own at every nonlinear call: DeepLIFT, layer-wise relevance, guided backpropagation.

All take any network of linear layers, elementwise activations and max-pools, however it calls them (dense,
convolutional, residual, average-pooled, batch norm in eval mode), and raise a ValueError for every other one
(attention, layer norm). All are differentiable in x where the network is smooth; on a ReLU network their derivative
misses what the gates would do, so attack them on a smooth twin. A max-pool makes them jump where its winner changes; no
twin repairs that. They explain the logit. "Passes" are of the batch, for a map that is read, not differentiated.
"""

import torch
from torch import Tensor, nn

from attrobust import checks
from attrobust.attributions.gradients import live
from attrobust.attributions.rerun import ACTIVATIONS, CORNERED, POOLS, WATCHED, Call, Linear, affine_gradient, record
from attrobust.shapes import Images, Labels

#: Layers with weights that the z+ rule knows, and linear calls that it does not.
WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d"}
UNWEIGHTED = {
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "bilinear", "batch_norm",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip


def deep_lift(model: nn.Module, x: Images, target: Labels, *, baseline: float = 0.0) -> Images:
    """Shares of the logit's change from a baseline, by the rescale rule: (x - x0) . multipliers.

    x0 is an image of the constant `baseline`, black if 0. An activation's multiplier is its secant
    (f(h) - f(h0)) / (h - h0), h0 its input on the baseline; where the two all but meet, its derivative between them. A
    max-pool hands its change to the winner of the image if it rose, to the winner of the baseline if it fell. The map
    sums to z_target(x) - z_target(x0) exactly. 3 forward passes, 1 backward. (Shrikumar et al. 2017, "Learning
    important features through propagating activation differences", section 3.5.1; max-pools as in Lundberg and Lee's
    shap.)
    """
    x = live(model, x, target)
    with torch.enable_grad():
        start = torch.full_like(x, baseline).requires_grad_()
        _, there = record(model, start, method="deep_lift")

        def rules(calls: list[Call]) -> list[Linear]:
            return [_rescale(call, reference) for call, reference in zip(calls, there, strict=True)]

        return (x - start.detach()) * affine_gradient(model, x, target, rules, at=start, method="deep_lift")[0]


def lrp(model: nn.Module, x: Images, target: Labels, *, rule: str = "epsilon", epsilon: float = 1e-6) -> Images:
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
    z_plus, biases do not). 2 forward passes, 1 backward; z_plus runs every weighted layer three times a pass.

    References: Bach et al. 2015, "On pixel-wise explanations", eqs. 58 and 60; Montavon et al. 2017, "Explaining
    nonlinear classification decisions with deep Taylor decomposition", z+ rule; Ancona et al. 2018, proposition 1.
    """
    checks.one_of("rule", rule, ("epsilon", "z_plus"))
    checks.at_least("epsilon", epsilon, 0)
    x, share, known = live(model, x, target), _from_zero, {}
    if rule == "z_plus":
        share, known = _positive, {"watched": WATCHED | WEIGHTED, "refused": UNWEIGHTED}
    how = {"at": 1 - x, "method": f"lrp with rule={rule!r}", **known}
    with torch.enable_grad():
        slopes, logit = affine_gradient(model, x, target, lambda calls: [share(c, epsilon) for c in calls], **how)
        return x * slopes * _damped(logit.view(-1, 1, 1, 1), 0.0 if rule == "z_plus" else epsilon)


def guided_backprop(model: nn.Module, x: Images, target: Labels) -> Images:
    """Gradient whose negative signals end at every activation they meet: g -> f'(h) max(g, 0).

    The source (Springenberg et al. 2015, "Striving for simplicity: the all convolutional net", section 3.4) defines it
    for ReLU, f' = 1[h > 0]. A smooth activation keeps its derivative as the gate, so the map of a smooth twin tends to
    that of its original; Dombrowski et al. 2019 soften max(g, 0) too, which adds a scale. The map may hardly depend on
    the class or on late layers: see `faithfulness.randomisation`. 2 forward passes, 2 backward.
    """
    x, cut = live(model, x, target), []
    how = {"at": 1 - x, "method": "guided_backprop", "cut": cut}
    with torch.enable_grad():
        return affine_gradient(model, x, target, lambda calls: [_guided(call, cut) for call in calls], **how)[0]


def _rescale(call: Call, reference: Call) -> Linear:
    """DeepLIFT: an activation's secant, a max-pool's change to the winner that explains it."""
    change, gap = call.output - reference.output, call.input - reference.input
    if call.name not in POOLS:
        slope = _secant(call, reference.input, gap, change)
        return lambda step: slope * step
    parts = []
    for winners, counts in ((call.winners(call.input), change >= 0), (call.winners(reference.input), change < 0)):
        way = _chosen(gap, winners, change)
        rise = torch.where(way == 0, 1, change / torch.where(way == 0, 1, way))
        parts.append((winners, torch.where(counts, rise, 0)))
    return lambda step: sum(share * _chosen(step, winners, share) for winners, share in parts)


def _from_zero(call: Call, epsilon: float) -> Linear:
    """LRP: an activation's secant from 0, less where its input is weak; a max-pool's winner."""
    if call.name in POOLS:
        return _winner(call)
    zero = torch.zeros_like(call.input)
    slope = _secant(call, zero, call.input, call.output - call(zero)) * _damped(call.input, epsilon)
    return lambda step: slope * step


def _positive(call: Call, epsilon: float) -> Linear:
    """LRP, z+: positive contributions only, in shares of their sum; the true output is what is shared.

    An activation's slope f(h) / h is undone by the layer before it, whose output h is: f(h) is what that layer shares.
    """
    if call.name in POOLS:
        return _winner(call)
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


def _guided(call: Call, cut: list[bool]) -> Linear:
    """Guided backpropagation: the derivative, and negative signals stopped once `cut` is on."""
    if call.name in POOLS:
        return _winner(call)
    slope = call.slope(call.input)

    def linear(step: Tensor) -> Tensor:
        signal = slope * step
        signal.register_hook(lambda gradient: gradient.clamp_min(0) if cut else gradient)
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


def _winner(call: Call) -> Linear:
    winners = call.winners(call.input)
    return lambda step: _chosen(step, winners, call.output)


def _chosen(values: Tensor, winners: Tensor, like: Tensor) -> Tensor:
    return values.flatten(2).gather(2, winners).view_as(like)
