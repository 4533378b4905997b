"""One sentence for every bad argument: its name, its value, what is accepted.

Public functions call these first, so nothing is half-done when an error is raised. Each returns the value that it was
given, or raises ValueError.
"""

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor

Kind = TypeVar("Kind")
Function = TypeVar("Function")

#: The largest whole number that tensors, tables and generators hold.
LARGEST = 2**63 - 1
#: Characters that are compared with a name: the nearest to a text of a million would take minutes to find.
LONGEST_NAME = 100


def number(name: str, value: float) -> float:
    """A finite number.

    Example:
        >>> number("radius", 0.5)
        0.5
    """
    if not _finite_number(value):
        raise ValueError(f"{name} is {short(value)}; it must be a finite number")
    return value


def positive(name: str, value: float) -> float:
    """A finite number above zero.

    Example:
        >>> positive("step_size", 0.1)
        0.1
    """
    if not _finite_number(value) or value <= 0:
        raise ValueError(f"{name} is {short(value)}; it must be a finite number above 0")
    return value


def at_least(name: str, value: float, least: float, *, most: float = math.inf) -> float:
    """A finite number from `least` to `most`.

    Example:
        >>> at_least("radius", -1.0, 0)
        Traceback (most recent call last):
            ...
        ValueError: radius is -1.0; it must be a finite number of at least 0
    """
    if not _finite_number(value) or not least <= value <= most:
        accepted = f"of at least {least}" + (f" and at most {most}" if most < math.inf else "")
        raise ValueError(f"{name} is {short(value)}; it must be a finite number {accepted}")
    return value


def share(name: str, value: float) -> float:
    """A number in [0, 1].

    Example:
        >>> share("share", 0.5)
        0.5
    """
    if not _finite_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {short(value)}; it must lie in [0, 1]")
    return value


def count(name: str, value: int, *, least: int = 1, most: int | None = None) -> int:
    """A whole number from `least` to `most`.

    Example:
        >>> count("steps", 0)
        Traceback (most recent call last):
            ...
        ValueError: steps is 0; it must be a whole number of at least 1
    """
    whole, top = isinstance(value, numbers.Integral) and not isinstance(value, bool), LARGEST if most is None else most
    if not whole or not least <= value <= top:
        accepted = f"from {least} to {top}" if most is not None or (whole and value > top) else f"of at least {least}"
        raise ValueError(f"{name} is {short(value)}; it must be a whole number {accepted}")
    return value


def one_of(name: str, value: str, accepted: Iterable[str]) -> str:
    """One of the `accepted` names; the sentence offers the nearest.

    Example:
        >>> one_of("norm", "l3", ["linf", "l2"])
        Traceback (most recent call last):
            ...
        ValueError: norm is 'l3'; it must be one of linf, l2
    """
    accepted = list(accepted)
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name} is {short(value)}; it must be one of {', '.join(accepted)}{meant(value, accepted)}")
    return value


def meant(value: object, accepted: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: the nearest one that is accepted, nothing where none is near.

    Example:
        >>> meant("seed", ["seeds", "device"]), meant("x", ["seeds", "device"])
        ("; did you mean 'seeds'?", '')
    """
    near = difflib.get_close_matches(str(value)[:LONGEST_NAME], list(accepted), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def kind(name: str, value: object, *kinds: type[Kind]) -> Kind:
    """An object of one of the kinds.

    Example:
        >>> kind("generator", None, torch.Generator)
        Traceback (most recent call last):
            ...
        ValueError: generator is a NoneType; it must be a Generator
    """
    if not isinstance(value, kinds):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be a {' or '.join(k.__name__ for k in kinds)}")
    return value


def function(name: str, value: Function) -> Function:
    """What can be called, and is no class.

    Example:
        >>> function("readout", abs) is abs
        True
    """
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{name} is {short(value)}; it must be a function, or a module that is called like one")
    return value


def floating(name: str, value: Tensor) -> Tensor:
    """A tensor of floating-point numbers, which alone can be differentiated.

    Example:
        >>> floating("x", torch.zeros(2)).dtype
        torch.float32
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be a torch tensor of floating-point numbers")
    if not value.is_floating_point():
        raise ValueError(f"{name} has dtype {value.dtype}; it must be floating-point, such as pixels in [0, 1]")
    return dense(name, value)


def dense(name: str, value: Tensor) -> Tensor:
    """A tensor that holds all its numbers: neither sparse nor nested, nor on the device meta.

    Example:
        >>> dense("x", torch.zeros(2)).layout
        torch.strided
    """
    if value.device.type == "meta":
        raise ValueError(f"{name} lies on the device meta, which holds no numbers; move it to a real one")
    if value.layout != torch.strided or value.is_nested:
        raise ValueError(f"{name} has layout {value.layout}; it must be a dense tensor, as of its to_dense()")
    return value


def baseline(name: str, value: float | Tensor, like: Tensor) -> float | Tensor:
    """A finite number, or a tensor of such that spreads over the images `like`, of their dtype and device.

    Example:
        >>> baseline("baseline", 0.5, torch.zeros(1, 1, 2, 2))
        0.5
    """
    if not isinstance(value, Tensor):
        return number(name, value)
    floating(name, value)
    sides = zip(reversed(value.shape), reversed(like.shape), strict=False)
    fits = value.ndim <= like.ndim and all(side in (1, whole) for side, whole in sides)
    if not fits or (value.dtype, value.device) != (like.dtype, like.device):
        has, wanted = (f"shape {tuple(t.shape)}, dtype {t.dtype} on {t.device}" for t in (value, like))
        raise ValueError(f"{name} has {has}; it must be a number, or a tensor that spreads over x, of {wanted}")
    return finite(name, value)


def images(name: str, value: Tensor) -> Tensor:
    """A non-empty batch of finite pixels in [0, 1].

    Example:
        >>> images("x", torch.full((1, 1, 2, 2), 2.0))
        Traceback (most recent call last):
            ...
        ValueError: x spans [2, 2]; pixels must lie in [0, 1]
    """
    floating(name, value)
    if value.ndim != 4 or value.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; it must be (batch, channels, height, width) and not empty"
        )
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ValueError(f"{name} holds {bad} pixels that are NaN or infinite; pixels must be finite and in [0, 1]")
    low, high = float(value.min()), float(value.max())
    if low < 0 or high > 1:
        raise ValueError(f"{name} spans [{low:g}, {high:g}]; pixels must lie in [0, 1]")
    return value


def labels(name: str, value: Tensor, *, batch: int, classes: int, device: torch.device | None = None) -> Tensor:
    """One class index below `classes` for each of `batch` images, as torch's own losses take them; on a `device`.

    Example:
        >>> labels("y", torch.tensor([3]), batch=1, classes=3)
        Traceback (most recent call last):
            ...
        ValueError: y spans [3, 3]; class indices must lie in [0, 2]
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be a torch tensor of {batch} class indices")
    if dense(name, value).shape != (batch,) or value.dtype != torch.int64:
        shape, dtype = tuple(value.shape), value.dtype
        raise ValueError(f"{name} has shape {shape} and dtype {dtype}; it must hold {batch} class indices (int64)")
    if device not in (None, value.device):
        raise ValueError(f"{name} lies on {value.device} and x on {device}; move one of them")
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{name} spans [{low}, {high}]; class indices must lie in [0, {classes - 1}]")
    return value


def logits(name: str, value: object, *, batch: int, least: int = 1) -> Tensor:
    """Return `value`, what the model `name` returned, if it is one tensor of `least` or more floating-point logits.

    Example:
        >>> logits("model", torch.zeros(2, 10), batch=2).shape
        torch.Size([2, 10])
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} returned a {type(value).__name__}; wrap it to return logits (batch, classes)")
    if value.shape == (batch,) or (least > 1 and value.shape == (batch, 1)):
        raise ValueError(f"{name} returned one logit an image, whose sign is no argmax; wrap it in models.TwoLogits")
    if value.ndim != 2 or len(value) != batch or not value.is_floating_point():
        raise ValueError(
            f"{name} returned shape {tuple(value.shape)} and dtype {value.dtype}; it must return floating-point logits"
            f" ({batch}, classes)"
        )
    return value


def per_image(name: str, value: Tensor, *, batch: int) -> Tensor:
    """One number per image.

    Example:
        >>> per_image("readout", torch.zeros(2), batch=2).shape
        torch.Size([2])
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} gives a {type(value).__name__}; it must give a tensor of one number per image")
    if value.shape != (batch,):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be one number per image, shape ({batch},)")
    return floating(name, value)


def finite(name: str, value: Tensor) -> Tensor:
    """No entry that is NaN or infinite.

    Example:
        >>> finite("x", torch.zeros(2)).tolist()
        [0.0, 0.0]
    """
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ValueError(f"{name} holds {bad} entries that are NaN or infinite; all must be finite")
    return value


def maps(name: str, value: Tensor) -> Tensor:
    """A batch of finite maps; `name` is the attribution's.

    Example:
        >>> maps("saliency", torch.zeros(1, 1, 2, 2)).shape
        torch.Size([1, 1, 2, 2])
    """
    kind(f"the map of attribution {name}", value, Tensor)
    if value.ndim != 4:
        raise ValueError(f"attribution {name} gives shape {tuple(value.shape)}; it must give (batch, channels, h, w)")
    bad = int((~torch.isfinite(value)).flatten(1).any(1).sum())
    if bad:
        raise ValueError(f"attribution {name} gives NaN or infinity on {bad} of {len(value)} images; it must be finite")
    return value


def weights(name: str, value: Tensor) -> Tensor:
    """Rows of attention along the last axis: finite floating-point numbers of at least 0.

    Example:
        >>> weights("weights", torch.tensor([[0.5, -0.5]]))
        Traceback (most recent call last):
            ...
        ValueError: weights holds 1 entries that are negative, infinite or NaN; weights must be at least 0
    """
    _rows(name, value)
    bad = int((~(torch.isfinite(value) & (value >= 0))).sum())
    if bad:
        raise ValueError(f"{name} holds {bad} entries that are negative, infinite or NaN; weights must be at least 0")
    return value


def scores(name: str, value: Tensor) -> Tensor:
    """Rows of scores along the last axis: finite, or -inf for a masked key, not all masked.

    Example:
        >>> scores("scores", torch.tensor([[0.5, -torch.inf]])).tolist()
        [[0.5, -inf]]
    """
    _rows(name, value)
    if bool((torch.isnan(value) | (value == math.inf)).any()):
        raise ValueError(f"{name} holds NaN or +inf; scores must be finite, or -inf for a masked key")
    if bool((value == -math.inf).all(-1).any()):
        raise ValueError(f"{name} has a row of -inf only; every row must leave one key unmasked")
    return value


def none_negative(name: str, value: Tensor) -> Tensor:
    """No entry that is negative or NaN.

    Example:
        >>> none_negative("change", torch.tensor([0.5])).tolist()
        [0.5]
    """
    if not bool((value >= 0).all()):
        raise ValueError(f"{name} holds {float(value.min()):g}; every entry must be at least 0")
    return value


def short(value: object) -> str:
    """A value in a sentence: its kind, where it is long; of a long number the first digits.

    Example:
        >>> short("a"), short([0] * 99)
        ("'a'", 'a list')
    """
    said = repr(value) if not isinstance(value, int) or abs(value) <= LARGEST else f"{str(value)[:40]}..."
    return said if len(said) <= 80 and "\n" not in said else f"a {type(value).__name__}"


def _rows(name: str, value: Tensor) -> None:
    if value.ndim == 0 or value.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; its last axis must hold one key or more")
    if not value.is_floating_point():
        raise ValueError(f"{name} has dtype {value.dtype}; it must hold floating-point numbers")


def _finite_number(value: object) -> bool:
    """Whether a value is a finite number that tensors hold."""
    if isinstance(value, numbers.Integral):
        return not isinstance(value, bool) and abs(value) <= LARGEST
    return isinstance(value, numbers.Real) and math.isfinite(value)
