"""Running a network again with other slopes: the engine of DeepLIFT, LRP and guided backpropagation.

These methods have a slope of their own at every nonlinear call, where the gradient has f'(h): a map is the gradient of
an *affine* network, with the same linear layers and every nonlinear call, whoever makes it, replaced by

    h'  ->  f(h) + S (h' - h),      S the method's slopes, made of the h's of an ordinary run on the images.

So the network runs twice, the second time affine. Differentiating a map again goes through the slopes alone, along the
ordinary run. (Backward rules put into a single run would act in the second derivative too, where they are wrong.)

A network with something else in it that bends (normalisation, gates, attention, a kink by hand) has no such map, and is
refused. This is measured away from the images, where nothing can hide (a black one switches whole networks off), and in
double precision: weak attention bends a network by a millionth of its change, which is what single precision rounds
away. Every activation is given a constant slope, every max-pool a fixed winner; then the logits must change as much as
is due on the way from one random point to another.
"""

import itertools
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attrobust import checks
from attrobust.attributions.gradients import live
from attrobust.models import watched
from attrobust.shapes import Inputs, Labels, Logits, PerImage

Linear = Callable[[Tensor], Tensor]
Network = Callable[[Tensor], Tensor]
Rules = Callable[[list["Call"]], list[Linear]]
Names = Collection[str]

#: Elementwise activations with corners, and those without.
CORNERED = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "threshold", "hardtanh", "hardsigmoid", "hardswish", "hardshrink",
    "softshrink", "clamp", "clamp_min", "clamp_max", "clip", "abs",
}  # fmt: skip
SMOOTH = {
    "gelu", "silu", "softplus", "elu", "celu", "selu", "mish", "tanh", "sigmoid", "logsigmoid", "log_sigmoid",
    "softsign", "tanhshrink", "erf", "square", "sin", "cos",
}  # fmt: skip
ACTIVATIONS = CORNERED | SMOOTH
POOLS = {f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)}
WATCHED = ACTIVATIONS | POOLS

#: Ways along which the bend is measured, and the share of each after which it is.
WAYS, SHARE = 2, 0.375
#: Power of the machine precision up to which a bend, in units of the logit's change, is rounding: 4e-10 in float64,
#: where residual networks of a hundred layers have 1e-12 to 1e-11; 7e-5 for a network that runs in float32 alone.
ROUNDING = 0.6
#: What is left of a logit that does not change at all, in units of the logit.
FLOOR = 2**10 * torch.finfo(torch.float64).eps


class Bent(Exception):
    """The network is not affine between its nonlinear calls."""


@dataclass(frozen=True)
class Call:
    """One call of a nonlinear (or otherwise watched) function, with what went in and what came out."""

    name: str
    function: Callable
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    input: Tensor
    output: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        """What the function makes of another input; never in place."""
        return self.function(h.clone(), *self.arguments, **self.options)

    def slope(self, h: Tensor) -> Tensor:
        """Derivative of an elementwise function at `h`, live."""
        return torch.autograd.grad(self(h).sum(), h, create_graph=True)[0]

    def winner(self, h: Tensor) -> Linear:
        """What picks the largest entry of every window of a max-pool, as they lie in `h`."""
        places = -int(self.name[-2])
        pool = getattr(F, f"{self.name}_with_indices")
        best = pool(h.detach(), *self.arguments, **self.options)[1].flatten(places)
        return lambda step: step.flatten(places).gather(-1, best).view_as(self.output)


def settled(
    draw: Callable[[Network, Inputs], Inputs], model: nn.Module, x: Inputs, target: Labels, *, method: str
) -> Inputs:
    """The map that `draw` makes of a network and inputs, live in x; without a graph under `no_grad`.

    Networks in half precision are run in float32; the map is rounded at the end.
    """
    keep, x = torch.is_grad_enabled(), live(model, x, target)
    dtype = torch.promote_types(x.dtype, torch.float32)
    try:
        with torch.enable_grad():
            _look_for_bends(model, x, target)
            with watched.cast(model, dtype, live=True) if dtype != x.dtype else nullcontext():
                found = draw(model, x.to(dtype)).to(x.dtype)
    except Bent:
        raise ValueError(
            f"model is {type(model).__name__}, for which {method} has no rule: it is not made of linear layers,"
            " elementwise activations and max-pools alone, but has attention, a normalisation (layer norm, batch norm"
            " in train mode), dropout, a product of features, rounding, a kink by hand, complex activations,"
            " or hides in TorchScript"
        ) from None
    except RuntimeError as error:
        if dtype == x.dtype:
            raise
        raise ValueError(
            f"x has dtype {x.dtype}, in which rounding hides whether {method} has rules for all of the model, and"
            f" {type(model).__name__} does not run in {dtype}; convert both to float32"
        ) from error
    return found if keep else found.detach()


def record(
    model: Network, x: Inputs, *, method: str, watched: Names = WATCHED, refused: Names = ()
) -> tuple[Logits, list[Call]]:
    """Logits of the model on `x`, and every call of a watched function whose input is in the graph; all live."""
    calls = []

    def answer(call: Call) -> Tensor:
        calls.append(call)
        return call.output.clone()

    with _Intercept(answer, watched, refused, method):
        logits = checks.logits("model", model(x), batch=len(x))
    return logits, calls


def affine_gradient(model: Network, x: Inputs, target: Labels, rules: Rules, **how: Names) -> tuple[Inputs, PerImage]:
    """Gradient of the target's logit of the affine network, live in what the rules are made of; and the true logit.

    `rules` give the linear map S of each call on the images, recorded as `how` says.
    """
    logits, calls = record(model, x, **how)
    at, pairs = x.detach().requires_grad_(), list(zip(calls, rules(calls), strict=True))[::-1]

    def answer(call: Call) -> Tensor:
        if not pairs or pairs[-1][0].name != call.name:
            raise Bent
        first, linear = pairs.pop()
        return first.output.detach() + linear(call.input - first.input.detach())

    with _Intercept(answer, {call.name for call in calls}):
        there = model(at).gather(1, target[:, None])
    own = logits.gather(1, target[:, None])
    if pairs:
        raise Bent
    straight(there, own, rounding=torch.finfo(own.dtype).eps * logits.detach().abs().amax(1, keepdim=True))
    return torch.autograd.grad(there.sum(), at, create_graph=True)[0], own[:, 0]


def straight(change: Tensor, expected: Tensor, *, rounding: Tensor) -> None:
    """Raise Bent where a change is not the expected one, up to a share of it and to what rounding leaves anyway."""
    limit = torch.finfo(change.dtype).eps ** ROUNDING * expected.abs() + rounding
    if not bool(((change - expected).abs() <= limit).all()):
        raise Bent


def _look_for_bends(model: nn.Module, x: Inputs, target: Labels) -> None:
    """Raise Bent unless the targets' logits are affine between the calls that are watched.

    Two forward passes of a few random points, in float64 if the network runs in it. All points of a channel are moved
    together too: independent ones would average out where a gate looks at means.
    """
    draw, shape = torch.Generator().manual_seed(0), (2 * WAYS, *x.shape[1:])
    shades = torch.rand(shape[:2] + (1,) * (x.ndim - 2), generator=draw, dtype=torch.float64)
    points = 3 * shades - 1.5 + torch.rand(shape, generator=draw, dtype=torch.float64)
    starts, ends = (points * max(1.0, float(x.detach().abs().max()))).chunk(2)
    slopes = torch.rand(2**10, generator=draw).mul(0.4).add(0.5).tolist()
    places, classes = (torch.cat([starts, ends]), starts + SHARE * (ends - starts)), target.unique()

    def logits(run: Network, at: Inputs) -> Tensor:
        waiting = itertools.cycle(slopes)

        def answer(call: Call) -> Tensor:
            beside = [t for t in (*call.arguments, *call.options.values()) if isinstance(t, Tensor)]
            if any(t.requires_grad and not t.is_leaf for t in beside):
                raise Bent  # a bound made of the input
            if call.name in POOLS:
                return call.winner(torch.zeros_like(call.input))(call.input)
            return next(waiting) * call.input

        with _Intercept(answer, WATCHED):
            found = checks.logits("model", run(at.requires_grad_()), batch=len(at)).detach()[:, classes]
        return found.to(torch.promote_types(found.dtype, torch.float32))  # half precision is no excuse

    try:
        with watched.cast(model, torch.float64):
            ends, between = (logits(model, at.to(x.device)) for at in places)
    except (RuntimeError, TypeError):  # the latter on a device without float64
        dtype = torch.promote_types(x.dtype, torch.float32)
        with watched.cast(model, dtype) if dtype != x.dtype else nullcontext():
            ends, between = (logits(model, at.detach().to(x.device, dtype)) for at in places)
    start, end = ends.chunk(2)
    due, size = SHARE * (end - start), ends.abs().amax(0)
    # The longest change of each logit is the measure for all of its ways: one of them may be short by chance.
    straight(((between - start) - due).abs().amax(0) + due.abs().amax(0), due.abs().amax(0), rounding=FLOOR * size)


class _Intercept(TorchFunctionMode):
    """Lets `answer` say what watched calls return; names are without the underscore of in-place or internal forms."""

    def __init__(self, answer: Callable[[Call], Tensor], watched: Names, refused: Names = (), method: str = "") -> None:
        super().__init__()
        self.answer, self.watched, self.refused, self.method = answer, watched, refused, method

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        name = name if name.startswith("__") else name.strip("_")
        if name in self.refused:
            raise ValueError(f"model runs {name}, for which {self.method} has no rule")
        if name not in self.watched:
            return func(*args, **kwargs)
        h, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
        if not h.requires_grad:
            return func(h, *rest, **kwargs)
        if h.is_complex():
            raise Bent
        before, working = h.clone(), h.clone()
        after = func(working, *rest, **kwargs)
        answer = self.answer(Call(name, func, rest, kwargs, before, after))
        return h.copy_(answer) if after is working else answer
