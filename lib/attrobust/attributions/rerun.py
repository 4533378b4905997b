"""Running a network again with other slopes: the engine of DeepLIFT, LRP and guided backpropagation.

These methods have a slope of their own at every nonlinear call, where the gradient has f'(h): a map is the gradient of
an *affine* network, with the same linear layers and every nonlinear call, whoever makes it, replaced by

    h'  ->  f(h) + S (h' - h),      S the method's slopes, made of the h's of an ordinary run on the images.

So the network runs twice, the second time affine. Differentiating a map again goes through the slopes alone, along the
ordinary run. (Backward rules put into a single run would act in the second derivative too, where they are wrong.)
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attrobust import checks
from attrobust.shapes import Images, Labels, Logits, PerImage

Linear = Callable[[Tensor], Tensor]
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

#: Power of the machine precision up to which a network counts as affine (0.08 % in single precision, where a deep
#: residual network's own rounding is 5e-8 and that of a graphics card with ten-bit factors a thousand times that).
ROUNDING = 0.45


@dataclass(frozen=True)
class Call:
    """One call of a nonlinear (or otherwise watched) function, with what went in and what came out."""

    name: str
    function: Callable
    arguments: tuple
    options: dict
    input: Tensor
    output: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        """What the function makes of another input; never in place."""
        return self.function(h.clone(), *self.arguments, **self.options)

    def slope(self, h: Tensor) -> Tensor:
        """Derivative of an elementwise function at `h`, live."""
        return torch.autograd.grad(self(h).sum(), h, create_graph=True)[0]

    def winners(self, h: Tensor) -> Int[Tensor, "batch channels places"]:
        """Where the largest entry of every window of a max-pool lies, as an index into the flattened map."""
        pool = getattr(F, f"{self.name}_with_indices")
        return pool(h.detach(), *self.arguments, **self.options)[1].flatten(2)


def record(
    model: nn.Module, x: Images, *, method: str, watched: Names = WATCHED, refused: Names = ()
) -> tuple[Logits, list[Call]]:
    """Logits of the model on `x`, and every call of a watched function whose input is in the graph; all live."""
    calls = []

    def answer(call: Call) -> Tensor:
        calls.append(call)
        return call.output.clone()

    with _Intercept(answer, watched, refused, method):
        logits = checks.logits("model", model(x), batch=len(x))
    return logits, calls


def affine_gradient(
    model: nn.Module, x: Images, target: Labels, rules: Rules, *, at: Images, cut: list | None = None, **how: Names
) -> tuple[Images, PerImage]:
    """Gradient of the target's logit of the affine network, live in what the rules are made of; and the true logit.

    `rules` give the linear map S of each call on the images, recorded as `how` says. The affine network is run `at`
    other images: its gradient is the same everywhere, its value there tells whether it is affine indeed. One that is
    not has something in it that the rules do not cover, and is refused. `cut` is a switch that the rules' backward
    hooks look at; True enters it once the network is known to be affine.
    """
    uncovered = ValueError(
        f"model is {type(model).__name__}, for which {how['method']} has no rule: it is not made of linear layers,"
        " elementwise activations and max-pools alone, but has attention, layer norm, batch norm or dropout in train"
        " mode, a product of features, or a kink written by hand"
    )
    logits, calls = record(model, x, **how)
    logit = logits.gather(1, target[:, None])[:, 0]
    at, pairs = at.detach().requires_grad_(), list(zip(calls, rules(calls), strict=True))[::-1]

    def answer(call: Call) -> Tensor:
        if not pairs:
            raise uncovered
        first, linear = pairs.pop()
        return first.output.detach() + linear(call.input - first.input.detach())

    with _Intercept(answer, {call.name for call in calls}):
        there = model(at).gather(1, target[:, None])[:, 0]
    gradient = torch.autograd.grad(there.sum(), at, retain_graph=True, create_graph=cut is None)[0]
    with torch.no_grad():
        # What the gradient times the way leaves over, relative to all that was added up, where the logit is finite.
        steps = (gradient * (at - x)).flatten(1)
        gap, size = (there - logit - steps.sum(1)).abs(), there.abs() + logit.abs() + steps.abs().sum(1)
        bend = torch.where(gap == 0, 0, gap / size).nan_to_num(nan=torch.inf)[logit.isfinite()]
        if bool((bend > torch.finfo(x.dtype).eps ** ROUNDING).any()):
            raise uncovered
    if cut is not None:
        cut.append(True)
        gradient = torch.autograd.grad(there.sum(), at, create_graph=True)[0]
    return gradient, logit


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
        before, working = h.clone(), h.clone()
        after = func(working, *rest, **kwargs)
        answer = self.answer(Call(name, func, rest, kwargs, before, after))
        return h.copy_(answer) if after is working else answer
