"""What must hold of a network and a batch before anything is said about them; each refusal is one sentence.

What can be seen from outside is looked at every time. What a network *does* is measured once for each network, shape of
image and set of train flags and hooks, on a few images: does it answer an image the same way twice, and alone as in
company; does it leave its buffers alone; does the gradient of its logits in the pixels predict how they change? No list
of layers could tell. A batch larger than any before is once compared with an image alone. Buffers, the states of global
random numbers, and of such that the network holds itself, and hooks are as they were afterwards.
"""

import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attrobust import checks
from attrobust.models import watched
from attrobust.models.derivatives import differentiable
from attrobust.models.watched import Model
from attrobust.shapes import Labels

#: Passes of a network that draws random numbers; classes that are looked at together.
DRAWS, MANY = 16, 100
#: Batches moved by rounding, which tell how far a gradient jumps at a kink that rounding crosses; and the largest share
#: of an answer that such a jump may be.
NUDGES, JUMP = 4, 0.02

_MEASURED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def classifier(model: Model, x: Tensor, *target: Labels) -> None:
    """Refuse what cannot be explained: a batch, its labels if given, and a network on them.

    Raises:
        ValueError: for `x` that is no batch of finite floating-point tensors on the network's device, or cannot be
            differentiated (inference mode); for a `target` that is not one class index per image; for a model that does
            not return one tensor of logits, is random, couples the images of a batch (train mode), changes
            its buffers, or whose logits are cut off from the pixels on some way.
    """
    batch("x", x)
    met = once(_measured, model, x)
    met.seen(model, x)
    for labels in target:
        checks.labels("target", labels, batch=len(x), classes=met.classes, device=x.device)
        if met.classes > MANY and met.largest < sys.maxsize and (new := {*labels.tolist()} - met.explained):
            with watched.untouched(model):
                differentiable(model, watched.company(x), classes=sorted(new))
            met.explained |= new


def batch(name: str, x: Tensor) -> Tensor:
    """A batch of finite numbers that can be differentiated.

    Example:
        >>> batch("x", torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    checks.floating(name, x)
    if x.ndim < 2 or not x.numel():
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be a batch of one example or more")
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise ValueError(f"{name} comes in inference_mode, where nothing can be differentiated; use no_grad instead")
    if not bool(x.detach().sum().isfinite()):
        checks.finite(name, x)
    return x


def alone(model: Callable[[Tensor], object], x: Tensor, *, most: int | None = None) -> None:
    """Refuse a network that answers an image differently the second time, or in company; or that changes its buffers.

    The network may return anything; the tensors in it are compared. One that draws from a global generator, or from one
    of its own, is asked many times: what it draws may seldom matter. Runs of at most `most` images are compared. See
    `classifier`.
    """
    once(_alone, model, x).seen(model, x[:most])


def each(name: str, function: Callable, model: Model, x: Tensor, target: Tensor, *, live: bool = False) -> None:
    """Refuse a caller's own (model, x, target) -> values of each image, as `alone` does a network; `name` is its own.

    It is asked once for a model and a shape of images, of the first image and a drawn one, under the first label. With
    `live` it gives one number per image, whose gradient must predict how it changes.
    """
    model = getattr(model, "stands_for", model)
    checks.function(name, function)
    try:
        known = weakref.ref(model)
    except TypeError:
        known = object()
    once(_each, function, x, known, live, given=(name, model, target[:1]))


def once(measure: Callable, model: Model, x: Tensor, *more: object, given: tuple[Any, ...] = ()) -> object:
    """What `measure` finds, which is measured when the network is first met with such images in such modes.

    `more` is handed to `measure` too, and tells cases apart; so is what is `given`, which does not.
    """
    model = getattr(checks.function("model", model), "stands_for", model)
    every = list(model.modules()) if isinstance(model, nn.Module) else []
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modes = tuple((watched.training(m), *(len(getattr(m, h)) for h in hooks), "forward" in vars(m)) for m in every)
    what = (measure.__module__, measure.__qualname__, *more)
    met = (what, tuple(x.shape[1:]), x.dtype, x.device, modes, frozenset(w.dtype for w in watched.weights(model)))
    try:
        known = _MEASURED.setdefault(model, {})
    except TypeError:  # neither hashed nor referred to weakly: measured every time
        known = {}
    if met not in known:
        known[met] = measure(model, x, *more, *given)
    return known[met]


@dataclass
class _Met:
    """How many classes a network tells apart, the largest batch in which it answered as it does alone, and labels.

    Among many classes one that is cut off goes under; those that are `explained` are looked at by themselves.
    """

    classes: int
    largest: int
    explained: set[int] = field(default_factory=set)

    def seen(self, model: Callable[[Tensor], object], x: Tensor) -> None:
        """Refuse a network that answers an image of a batch larger than any before otherwise than alone."""
        if len(x) <= self.largest:
            return

        def answer(at: Tensor) -> object:
            with torch.no_grad(), suppress(Exception):
                return model(at.clone())
            return watched.run(model, at)

        whole, first = answer(x.detach()), answer(x.detach()[:1])
        if self.classes:
            checks.logits("model", whole, batch=len(x))
        own = [t[:1] if t.shape[:1] == x.shape[:1] else t for t in watched.numbers(whole)]
        gap = watched.apart(own, watched.numbers(first), like=x.dtype)
        if gap:
            raise ValueError(
                f"model answers an image differently alone and among {len(x)}, by up to {gap:.2g}: it couples the"
                f" images of a batch, or asks for its size; {watched.mode(model)}"
            )
        self.largest = len(x)


class _Own(nn.Module):
    """What a function (model, x, target) says of images of one class, as a network."""

    def __init__(self, function: Callable, model: Model, target: Tensor, *, live: bool) -> None:
        super().__init__()
        self.function, self.model, self.target, self.live, self.training = function, model, target, live, False

    def forward(self, x: Tensor) -> object:
        found = self.function(self.model, x, self.target.expand(len(x)))
        return found[:, None] if self.live else found


def _each(function: Callable, x: Tensor, known: object, live: bool, name: str, model: Model, target: Tensor) -> None:
    own, company = _Own(function, model, target, live=live), watched.company(x[:1])
    try:
        if live:
            with watched.untouched(own):
                numbers = watched.run(lambda at: function(model, at, target.expand(len(at))), company)
            if not bool(checks.per_image(name, numbers, batch=len(company)).isfinite().all()):
                return  # as of a diverged network
        _alone(own, x[:1])
        if live:
            with watched.untouched(own):
                differentiable(own, company)
    except ValueError as error:
        raise ValueError(str(error).replace("model", name, 1).replace("its logits", "its numbers")) from error


def _alone(model: Callable[[Tensor], object], x: Tensor) -> _Met:
    company = watched.company(x)
    ends, copies = (0, len(company) - 1), company[:1].repeat(len(company), *[1] * (x.ndim - 1))
    apart = partial(watched.apart, like=x.dtype)
    with watched.untouched(model) as kept:
        before = watched.drawn(model)
        first = watched.numbers(watched.run(model, company))
        passes = 1 if watched.drawn(model) == before else DRAWS
        gap = max(apart(first, watched.numbers(watched.run(model, company))) for _ in range(passes))
        if gap:
            raise ValueError(
                f"model answers the same images differently, by up to {gap:.2g}: it is random; {watched.mode(model)}"
            )
        alone = [([i], watched.numbers(watched.run(model, company[[i]]))) for i in ends]
        alone.append(([0] * len(company), watched.numbers(watched.run(model, copies))))
        gap = max(apart([_of(t, rows, len(company)) for t in first], others) for rows, others in alone)
        off = 0.0
        with torch.no_grad(), suppress(Exception):  # one that registers hooks on gradients does not run so
            off = apart(first, watched.numbers(model(company.clone())))
        now = dict(getattr(model, "named_buffers", list)())
        changed = [n for n, (b, value) in kept.items() if now.get(n) is not b or not torch.equal(b, value)]
        if gap and x.is_floating_point():
            moved = [watched.numbers(watched.run(model, watched.nudged(company, turn))) for turn in range(NUDGES)]
            gap *= not _jumps(first, moved, alone, apart, size=len(company))
    if gap:
        raise ValueError(
            f"model answers an image differently alone and in company, by up to {gap:.2g}: it couples the images of a"
            f" batch; {watched.mode(model)}"
        )
    if off:
        raise ValueError(
            f"model answers otherwise where gradients are off, by up to {off:.2g}; what is explained would not be"
            " what predicts"
        )
    if changed:
        raise ValueError(f"model changes its buffer {changed[0]!r} when it runs; {watched.mode(model)}")
    return _Met(0, len(company))


def _of(answer: Tensor, rows: list[int], size: int) -> Tensor:
    """The part of an answer about `size` images that these are told of; all of one that is not image by image."""
    return answer[rows] if answer.shape[:1] == (size,) else answer


def _jumps(first: list[Tensor], moved: list[list[Tensor]], alone: list, apart: Callable, *, size: int) -> bool:
    """Whether answers alone and in company differ by no more than rounding does at a kink that it crosses.

    Answer by answer and image by image: by a small share of the answer, and by no more than it is moved when its pixels
    are moved by rounding.
    """
    for rows, others in alone:
        for place, (one, other) in enumerate(zip(first, others, strict=False)):
            own = _of(one, rows, size)
            if not apart([own], [other]):
                continue
            jump = torch.stack([watched.distance(own, _of(at[place], rows, size)) for at in moved]).amax(0)
            most = torch.minimum(jump, JUMP * watched.distance(own, torch.zeros_like(own)))
            if not bool((jump.isfinite() & (watched.distance(own, other) <= most)).all()):
                return False
    return True


def _measured(model: Model, x: Tensor) -> _Met:
    for tensor in watched.weights(model):
        if tensor.device != x.device:
            raise ValueError(f"x lies on {x.device} and the model on {tensor.device}; move one of them")
        if tensor.is_inference():
            raise ValueError("model holds tensors made in inference_mode, which have no derivative; build it anew")
    company = watched.company(x)
    with watched.untouched(model):
        logits = checks.logits("model", watched.run(model, company), batch=len(company))
    masked = (logits == -torch.inf).all(0)  # classes that are never given
    if masked.all() or not bool(logits[:, ~masked].isfinite().all()):
        return _Met(logits.shape[1], sys.maxsize)  # of a diverged network every number is NaN, and nothing more to tell
    alone(model, x[: len(company)])
    with watched.untouched(model):
        differentiable(model, company)
    return _Met(logits.shape[1], len(company))
