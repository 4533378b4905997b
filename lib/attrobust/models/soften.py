"""Kinks made smooth as they are called: every ramp becomes a softplus, every step a sigmoid.

    softplus_beta(h) = log(1 + exp(beta h)) / beta  ->  relu(h),   sigmoid(beta h)  ->  [h > 0]   as  beta -> infinity

All else is made of these two: clamp(h; a, b) = a + relu(h - a) - relu(h - b), hardswish(h) = h clamp(h + 3; 0, 6) / 6,
and a choice by comparison, where(h > 0, a, b) = [h > 0] a + (1 - [h > 0]) b. Maxima over windows or axes, if asked for,
become what the softplus is of max(h, 0): log(sum_i exp(beta h_i)) / beta. Functions are known by their names; what goes
by another is seen by whoever measures the result (`smooth.smooth_twin`).
"""

import builtins
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Soften(TorchFunctionMode):
    """Runs a softplus where a ramp is called, a sigmoid where a step is; a comparison carries its sigmoid along."""

    beta: float
    rules: dict[str, Callable[..., object]]

    def __init__(self, beta: float, *, pools: bool = False) -> None:
        super().__init__()
        self.beta, self.rules = beta, _RULES | _POOLS if pools else _RULES

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]
        values, plain = [*args, *kwargs.values()], name.strip("_")
        if plain in ("mul", "imul", "rmul", "multiply") and len(values) == 2:
            for gate, other in (values, values[::-1]):
                if (out := self._opened(_soft(gate), other)) is not None:
                    return args[0].copy_(out) if plain == "imul" or name.endswith("l_") else out
        if any(_soft(v) is not v for v in values):
            return self._gated(func, name, args, kwargs)
        if plain in _SIGNS and any(isinstance(v, Tensor) and v.is_floating_point() for v in values):
            return self._compared(func, _SIGNS[plain], *values)
        rule, first = self.rules.get(plain), values[0] if values else None
        if plain.startswith("is"):  # a question, of which no gradient comes
            return func(*(v.detach() if isinstance(v, Tensor) else v for v in args), **kwargs)
        if plain in ("eq", "ne") and any(isinstance(v, Tensor) and v.requires_grad and v.numel() > 1 for v in values):
            raise ValueError(_HARD.format(name))
        if plain == "detach" or func == _DATA:
            cut = func(*args, **kwargs)
            cut.live = first
            return cut
        if rule is None or not isinstance(first, Tensor) or not first.is_floating_point():
            return func(*args, **kwargs)
        into = (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace", args[1:] and args[-1] is True)
        rest = {key: value for key, value in kwargs.items() if key not in ("inplace", "input")}
        out = rule(self, first.clone() if into else first, *args[1:], **rest)
        if out is NotImplemented:
            return func(*args, **kwargs)
        return first.copy_(out) if into else out

    def ramp(self, x: Tensor) -> Tensor:
        """Softplus."""
        return F.softplus(x, self.beta)

    def step(self, x: Tensor) -> Tensor:
        """Sigmoid."""
        return torch.sigmoid(self.beta * x)

    def largest(self, x: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
        """Log-sum-exp."""
        return (self.beta * x).logsumexp(dim, keepdim) / self.beta

    def _opened(self, gate: object, other: object) -> Tensor | None:
        """A gate times the very margin it opens by: a ramp, which is smoother than the product."""
        margin = getattr(gate, "margin", None)
        if margin is None or not isinstance(other, Tensor) or other.dtype != margin.dtype:
            return None
        return self.ramp(margin) if torch.equal(margin.detach(), other.detach()) else None

    def _compared(self, func: Callable, sign: int, a: Tensor | float, b: Tensor | float) -> Tensor:
        """A comparison's outcome, with its soft one as an attribute; live even where gradients are off on the way."""
        mask = func(*(v.detach() if isinstance(v, Tensor) else v for v in (a, b)))
        a, b = (getattr(v, "live", v) for v in (a, b))
        live = any(isinstance(v, Tensor) and v.requires_grad for v in (a, b))
        with torch.set_grad_enabled(live or torch.is_grad_enabled()):
            margin = sign * (a - b)
            mask.soft = self.step(margin)
            mask.soft.margin = margin
        return mask

    def _gated(self, func: Callable, name: str, args: tuple, kwargs: dict) -> object:
        """A function of a comparison's outcome, on its soft outcome."""
        values, plain = [*args, *kwargs.values()], name.strip("_")
        mask = next(v for v in values if _soft(v) is not v)
        while not isinstance(mask, Tensor):
            mask = next(v for v in mask if _soft(v) is not v)
        if name in ("detach", "bool"):
            return mask
        if plain in ("int", "long", "short", "byte"):
            return mask.soft
        soft, others = _soft(mask), [_soft(v) for v in values if v is not mask]
        into = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        try:
            with torch.set_grad_enabled(soft.requires_grad or torch.is_grad_enabled()):
                if plain in ("where", "masked_fill", "setitem") and len(others) == 2:
                    no, yes = others if plain != "where" else others[::-1]
                    if plain == "setitem" and mask.ndim < no.ndim:  # as an index, it stands for leading dimensions
                        mask, soft = (v.view(*v.shape, *[1] * (no.ndim - v.ndim)) for v in (mask, soft))
                    out = self._blend(mask, soft, yes, no.clone() if into else no)
                    return no.copy_(out) if into else out
                if into:
                    return func(*map(_soft, args), **{key: _soft(v) for key, v in kwargs.items()})
                hard = func(*args, **kwargs)
                if isinstance(hard, tuple) and not isinstance(hard, torch.Size):
                    raise TypeError("comparisons are taken apart")
                if not isinstance(hard, Tensor):
                    return hard  # a number, on which the network branches
                if plain in _LOGIC:
                    hard.soft = _LOGIC[plain](soft, *(v.to(soft) for v in others))
                    if not others and hasattr(soft, "margin"):
                        hard.soft.margin = -soft.margin
                    return hard
                out = func(*map(_soft, args), **{key: _soft(v) for key, v in kwargs.items()})
        except (RuntimeError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(_HARD.format(name)) from error
        if out.is_floating_point():
            if plain in ("float", "double", "to", "type", "type_as") and hasattr(soft, "margin"):
                out.margin = soft.margin
            if hard.dtype != torch.bool:
                return out
            hard.soft = out
        elif hard.numel() > 1 or hard.dtype != torch.bool:
            raise ValueError(_HARD.format(name))
        return hard

    def _blend(self, mask: Tensor, soft: Tensor, yes: Tensor | float, no: Tensor | float) -> Tensor:
        """Both branches by their shares; the chosen one alone where one is not finite."""
        yes, no = (
            v if isinstance(v, Tensor) else torch.as_tensor(v, dtype=soft.dtype, device=soft.device) for v in (yes, no)
        )
        if torch.bool in (yes.dtype, no.dtype):
            raise TypeError("comparisons select among comparisons")
        both = torch.isfinite(yes.detach()) & torch.isfinite(no.detach())
        first, second = torch.where(both, yes, 0), torch.where(both, no, 0)
        rise = first - second
        part = self._opened(soft, rise)
        return torch.where(both, second + (soft * rise if part is None else part), torch.where(mask, yes, no))


def _soft(value: object) -> object:
    """A value with the soft outcome in place of every comparison's."""
    if isinstance(value, list | tuple) and any(_soft(v) is not v for v in value):
        return type(value)(map(_soft, value))
    return getattr(value, "soft", value) if isinstance(value, Tensor) and value.dtype == torch.bool else value


# ------------------------------------------------------------------ what is softened, by name


def _clamp(s: Soften, x: Tensor, min: object = None, max: object = None, *_: object) -> Tensor:
    """Between two bounds. x + ramp(a - x) is a + ramp(x - a), and exact next to a bound that is far away."""
    if min is not None and max is not None:
        min = torch.minimum(min, max) if isinstance(min, Tensor) else builtins.min(min, max)
    low = x if min is None else s.ramp(x) if not isinstance(min, Tensor) and min == 0 else x + s.ramp(min - x)
    return low if max is None else low - s.ramp(x - max)


def _maximum(s: Soften, x: Tensor, other: object = None, *_: object) -> object:
    return _clamp(s, x, other) if isinstance(other, Tensor) and other.is_floating_point() else NotImplemented


def _minimum(s: Soften, x: Tensor, other: object = None, *_: object) -> object:
    return _clamp(s, x, None, other) if isinstance(other, Tensor) and other.is_floating_point() else NotImplemented


def _leaky(s: Soften, x: Tensor, negative_slope: float | Tensor = 0.01, *_: object) -> Tensor:
    return negative_slope * x + (1 - negative_slope) * s.ramp(x)


def _prelu(s: Soften, x: Tensor, weight: Tensor) -> Tensor:
    return _leaky(s, x, weight.view(-1, *[1] * (x.ndim - 2)) if weight.numel() > 1 else weight)


def _rrelu(s: Soften, x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_) -> object:
    return NotImplemented if training else _leaky(s, x, (lower + upper) / 2)


def _hardtanh(s: Soften, x: Tensor, min_val: float = -1.0, max_val: float = 1.0, *_: object) -> Tensor:
    return _clamp(s, x, min_val, max_val)


def _threshold(s: Soften, x: Tensor, threshold: float, value: float, *_: object) -> Tensor:
    return value + s.ramp(x - threshold) + (threshold - value) * s.step(x - threshold)


def _shrink(s: Soften, x: Tensor, lambd: float = 0.5, *_: object) -> Tensor:
    return s.ramp(x - lambd) - s.ramp(-x - lambd)


def _elu(s: Soften, x: Tensor, alpha: float = 1.0, *_: object) -> object:
    return NotImplemented if alpha == 1 else s.ramp(x) + alpha * torch.expm1(-s.ramp(-x))


def _abs(s: Soften, x: Tensor) -> Tensor:
    return s.ramp(x) + s.ramp(-x)


def _sign(s: Soften, x: Tensor) -> Tensor:
    x = getattr(x, "live", x)
    return s.step(x) - s.step(-x)


#: By a function's name: what to run for it; NotImplemented leaves it as it is.
_RULES: dict[str, Callable[..., object]] = {
    "relu": lambda s, x, *_: s.ramp(x),
    "relu6": lambda s, x, *_: _clamp(s, x, 0, 6),
    "leaky_relu": _leaky, "prelu": _prelu, "rrelu": _rrelu, "hardtanh": _hardtanh, "threshold": _threshold,
    "hardsigmoid": lambda s, x, *_: _clamp(s, x + 3, 0, 6) / 6,
    "hardswish": lambda s, x, *_: x * _clamp(s, x + 3, 0, 6) / 6,
    "softshrink": _shrink,
    "hardshrink": lambda s, x, lambd=0.5: _shrink(s, x, lambd) + lambd * (s.step(x - lambd) - s.step(-x - lambd)),
    "elu": _elu,
    "selu": lambda s, x, *_: 1.0507009873554805 * _elu(s, x, 1.6732632423543772),
    "clamp": _clamp, "clip": _clamp, "clamp_min": _clamp,
    "clamp_max": lambda s, x, max: _clamp(s, x, None, max),
    "maximum": _maximum, "max": _maximum, "fmax": _maximum, "minimum": _minimum, "min": _minimum, "fmin": _minimum,
    "abs": _abs, "absolute": _abs, "sign": _sign, "sgn": _sign,
    "heaviside": lambda s, x, values: s.step(getattr(x, "live", x)),
}  # fmt: skip


def _pooled(
    s: Soften, x: Tensor, size: object = None, stride: object = None, padding: object = 0, dilation: object = 1,
    ceil_mode: bool = False, return_indices: bool = False, *, axes: int, **named: object,
) -> object:  # fmt: skip
    """Largest of every window over the last `axes`."""
    size = named.get("kernel_size", size)
    sizes, steps, edges, gaps = (
        (v,) * axes if isinstance(v, int) else tuple(v) * (axes // len(v))
        for v in (size, stride or size, padding, dilation)
    )
    if set(gaps) != {1} or return_indices:
        return NotImplemented
    pads: list[int] = []
    for length, k, step, edge in zip(x.shape[-axes:], sizes, steps, edges, strict=True):
        places = length + 2 * edge - k
        over = -places % step if ceil_mode else 0
        over = over if places + over < length + edge else over - step  # the last window begins inside the image
        pads = [edge, edge + max(over, 0), *pads]
    x = F.pad(x, pads, value=-torch.inf)
    for axis, (k, step) in enumerate(zip(sizes, steps, strict=True), x.ndim - axes):
        x = x.unfold(axis, k, step)
    return s.largest(x.flatten(-axes), -1)


#: The same for maxima, which `pools` asks for.
_POOLS: dict[str, Callable[..., object]] = {f"max_pool{n}d": partial(_pooled, axes=n) for n in (1, 2, 3)}
_POOLS["amax"] = lambda s, x, dim=(), keepdim=False: s.largest(x, dim, keepdim) if dim != () else NotImplemented
_POOLS["amin"] = lambda s, x, dim=(), keepdim=False: -s.largest(-x, dim, keepdim) if dim != () else NotImplemented

#: Comparisons: which side must be the larger.
_SIGNS = dict.fromkeys(("gt", "ge", "greater", "greater_equal"), 1)
_SIGNS |= dict.fromkeys(("lt", "le", "less", "less_equal"), -1)

_LOGIC: dict[str, Callable[..., Tensor]] = {}
for _name, _rule in {"not": lambda a: 1 - a, "and": lambda a, b: a * b, "or": lambda a, b: a + b - a * b}.items():
    _LOGIC |= dict.fromkeys((_name, f"logical_{_name}", f"bitwise_{_name}"), _rule)
_LOGIC["invert"] = _LOGIC["not"]

_DATA = Tensor.data.__get__

_HARD = "model uses the outcome of a comparison in {}, which a smooth twin cannot soften; use torch.where or a product"
