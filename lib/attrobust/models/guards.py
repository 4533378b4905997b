"""What must hold of a network and a batch before anything is said about them; each refusal is one sentence.

What can be seen from outside is looked at every time. What a network *does* is measured once for each network, shape of
image and set of train flags and hooks, on a few images: does it answer an image the same way twice, and alone as in
company; does it leave its buffers alone; does the gradient of its logits in the pixels predict how they change? No list
of layers could tell. A batch larger than any before is once compared with an image alone. Buffers, the states of global
random numbers, and of such that the network holds itself, and hooks are as they were afterwards.
"""

import random
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attrobust import checks
from attrobust.models.weights import exchanged
from attrobust.shapes import Labels

Model = Callable[[Tensor], Tensor]

#: Images that a network is shown, beside as many drawn ones.
SHOWN = 4
#: Passes of a network that draws random numbers.
DRAWS = 16

Tries = tuple[tuple[tuple[float, ...], float, int], ...]

#: Steps of the difference quotient, in pixels, how much of the change the gradient may miss, and along how many ways:
#: one step that agrees is enough. The second are for networks that round inside (straight-through gradients of eight
#: bits agree, of two at no step; one way might agree by luck), and for those that do not run in double precision.
TRIES: Tries = (((1e-6, 1e-5, 1e-4), 0.02, 1), ((1e-3, 1 / 255, 0.03, 0.06, 0.1), 0.3, 4))
#: Weights up to which a network is also run in double precision.
DOUBLED = 2**26

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


@contextmanager
def untouched(model: Model) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Buffers, of which copies are given, and the states of global random numbers come back as they were."""
    checks.function("model", model)
    kept = {name: (b, b.detach().clone()) for name, b in getattr(model, "named_buffers", list)()}
    state, numbers = np.random.get_state(), random.getstate()  # noqa: NPY002
    own = [(draw, draw.get_state()) for draw in _generators(model)]
    with torch.random.fork_rng(devices=list({b.device for b in _weights(model) if b.is_cuda})):
        try:
            yield kept
        finally:
            np.random.set_state(state)  # noqa: NPY002
            random.setstate(numbers)
            for draw, before in own:
                draw.set_state(before)
            with torch.no_grad():
                for buffer, value in kept.values():
                    if not torch.equal(buffer, value):  # a write would break graphs that hold it
                        buffer.copy_(value)


def cut(network: Model | None, run: Callable[[], object], *, weights: bool = False) -> tuple[str, nn.Module] | None:
    """Name and module of the first that a gradient enters (or starts in, if `weights` count) and does not leave."""
    named = network.named_modules() if isinstance(network, nn.Module) else ()
    names = {module: name for name, module in named if not isinstance(module, torch.jit.ScriptModule)}  # takes no hook
    found: list[tuple[str, nn.Module]] = []

    def look(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        own = module.parameters(recurse=False) if weights else ()
        if _live([*own, *tree_leaves((args, kwargs))]) and not _live(tree_leaves(output)):
            found.append((names[module], module))

    hooks = [module.register_forward_hook(look, with_kwargs=True) for module in names]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def cast(model: Model, dtype: torch.dtype, *, live: bool = False) -> AbstractContextManager[None]:
    """Within, the network's weights and buffers have another precision, in the graph if `live`; they come back."""
    if not isinstance(model, nn.Module):
        return nullcontext()
    named = [*model.named_parameters(), *model.named_buffers()]
    floats = {name: t if live else t.detach() for name, t in named if t.is_floating_point()}
    return exchanged(model, {name: t.to(dtype) for name, t in floats.items()})


def said(error: Exception) -> str:
    """First line of an error of torch's, or of another."""
    return str(error).strip().splitlines()[0].rstrip(".")[:200] if str(error).strip() else type(error).__name__


def once(measure: Callable, model: Model, x: Tensor, *more: object, given: tuple = ()) -> object:
    """What `measure` finds, which is measured when the network is first met with such images in such modes.

    `more` is handed to `measure` too, and tells cases apart; so is what is `given`, which does not.
    """
    model = getattr(checks.function("model", model), "stands_for", model)
    every = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = tuple((_training(m), len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in every)
    what = (measure.__module__, measure.__qualname__, *more)
    met = (what, tuple(x.shape[1:]), x.dtype, x.device, modes, frozenset(w.dtype for w in _weights(model)))
    try:
        known = _MEASURED.setdefault(model, {})
    except TypeError:  # neither hashed nor referred to weakly: measured every time
        known = {}
    if met not in known:
        known[met] = measure(model, x, *more, *given)
    return known[met]


@dataclass
class _Met:
    """How many classes a network tells apart, and the largest batch in which it answered as it does alone."""

    classes: int
    largest: int

    def seen(self, model: Callable[[Tensor], object], x: Tensor) -> None:
        """Refuse a network that answers an image of a batch larger than any before otherwise than alone."""
        if len(x) <= self.largest:
            return

        def answer(at: Tensor) -> object:
            with torch.no_grad(), suppress(Exception):
                return model(at)
            return _run(model, at)

        whole, first = answer(x.detach()), answer(x.detach()[:1])
        if self.classes:
            checks.logits("model", whole, batch=len(x))
        gap = _apart([t[:1] if t.shape[:1] == x.shape[:1] else t for t in _numbers(whole)], _numbers(first))
        if gap:
            raise ValueError(
                f"model answers an image differently alone and among {len(x)}, by up to {gap:.2g}: it couples the"
                f" images of a batch, or asks for its size; {_mode(model)}"
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
    own, company = _Own(function, model, target, live=live), _company(x[:1])
    try:
        if live:
            with untouched(own):
                numbers = _run(lambda at: function(model, at, target.expand(len(at))), company)
            if not bool(checks.per_image(name, numbers, batch=len(company)).isfinite().all()):
                return  # as of a diverged network
        _alone(own, x[:1])
        if live:
            with untouched(own):
                _differentiable(own, company)
    except ValueError as error:
        raise ValueError(str(error).replace("model", name, 1).replace("its logits", "its numbers")) from error


def _alone(model: Callable[[Tensor], object], x: Tensor) -> _Met:
    company = _company(x)
    ends, copies = (0, len(company) - 1), company[:1].expand(len(company), *x.shape[1:])
    with untouched(model) as kept:
        before = _drawn(model)
        first = _numbers(_run(model, company))
        passes = 1 if _drawn(model) == before else DRAWS
        gap = max(_apart(first, _numbers(_run(model, company))) for _ in range(passes))
        if gap:
            raise ValueError(
                f"model answers the same images differently, by up to {gap:.2g}: it is random; {_mode(model)}"
            )
        for i in ends:
            own = [t[[i]] if t.shape[:1] == company.shape[:1] else t for t in first]
            gap = max(gap, _apart(own, _numbers(_run(model, company[[i]]))))
        own = [t[[0]].expand(t.shape) if t.shape[:1] == company.shape[:1] else t for t in first]
        gap = max(gap, _apart(own, _numbers(_run(model, copies))))
        apart = 0.0
        with torch.no_grad(), suppress(Exception):  # one that registers hooks on gradients does not run so
            apart = _apart(first, _numbers(model(company)))
        changed = [name for name, (buffer, value) in kept.items() if not torch.equal(buffer, value)]
    if gap:
        raise ValueError(
            f"model answers an image differently alone and in company, by up to {gap:.2g}: it couples the images of a"
            f" batch; {_mode(model)}"
        )
    if apart:
        raise ValueError(
            f"model answers otherwise where gradients are off, by up to {apart:.2g}; what is explained would not be"
            " what predicts"
        )
    if changed:
        raise ValueError(f"model changes its buffer {changed[0]!r} when it runs; {_mode(model)}")
    return _Met(0, len(company))


def _measured(model: Model, x: Tensor) -> _Met:
    for tensor in _weights(model):
        if tensor.device != x.device:
            raise ValueError(f"x lies on {x.device} and the model on {tensor.device}; move one of them")
        if tensor.is_inference():
            raise ValueError(
                "model holds tensors made in inference_mode, which cannot be differentiated; build it anew"
            )
    company = _company(x)
    with untouched(model):
        logits = checks.logits("model", _run(model, company), batch=len(company))
    if not bool(logits.isfinite().all()):
        return _Met(logits.shape[1], sys.maxsize)  # of a diverged network every number is NaN, and nothing more to tell
    alone(model, x[: len(company)])
    with untouched(model):
        _differentiable(model, company)
    return _Met(logits.shape[1], len(company))


def _differentiable(model: Model, x: Tensor) -> None:
    """Refuse a network whose gradient, of a random sum of its logits, does not predict how they change."""
    runs = [(x.dtype, TRIES if x.dtype == torch.float64 else TRIES[1:])]
    if x.dtype != torch.float64 and isinstance(model, nn.Module) and sum(w.numel() for w in _weights(model)) <= DOUBLED:
        runs = [(torch.float64, TRIES), *runs]
    for dtype, tries in runs:
        try:
            with cast(model, dtype) if dtype != x.dtype else nullcontext():
                if any(_predicted(model, x.to(dtype), tries, seed) for seed in range(2)):
                    return
            break
        except (RuntimeError, TypeError, ValueError) as error:
            if dtype == x.dtype:
                raise ValueError(f"model's logits cannot be differentiated in x: {said(error)}") from error
    with untouched(model):
        found = cut(model, lambda: _run(model, x[:1]))
    where = f" in {found[0]!r}" if found and found[0] else ""
    raise ValueError(
        f"model cuts the gradient off{where} (no_grad, detach, numpy, rounding): that of its logits in x does not"
        " predict how they change; let gradients through, or explain the part behind the cut"
    )


def _predicted(model: Model, x: Tensor, tries: Tries, seed: int) -> bool:
    """Whether the gradient at points of one draw predicts the change along ways of that draw."""
    draw = torch.Generator().manual_seed(seed)
    # Off the images themselves, where kinks and ties lie in wait: a black patch without a bias is 0 before its ReLU.
    at = x + 0.1 * torch.rand(x.shape, generator=draw).to(x)
    ways = torch.empty(tries[-1][2], *x.shape).bernoulli_(generator=draw).mul_(2).sub_(1).to(at)
    leaf = at.requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        mix = torch.randn(logits.shape, generator=draw).to(logits)
        slope = torch.autograd.grad((mix * logits).sum(), leaf, allow_unused=True)[0] if logits.requires_grad else None
    here = (mix * logits.detach()).sum(1)
    predicted = torch.zeros(len(ways), 1).to(here) if slope is None else (slope * ways).flatten(2).sum(2)
    tries = tries if logits.dtype == torch.float64 else TRIES[1:]
    rounding = 30 * torch.finfo(logits.dtype).eps * (mix * logits.detach()).abs().sum(1)
    for steps, missing, count in tries:
        smooth = True
        for step in steps:
            ahead, behind = (
                torch.stack([(mix * _run(model, at + sign * step * way).detach()).sum(1) for way in ways[:count]])
                for sign in (1, -1)
            )
            change, bend = (ahead - behind) / (2 * step), (ahead + behind - 2 * here) / (2 * step)
            size, noise = torch.maximum(change.norm(), predicted[:count].norm()), (rounding / step).expand_as(change)
            if bool((change - predicted[:count]).norm() <= missing * size + noise.norm()):
                return True
            smooth &= bool(change.any()) and bool(bend.norm() <= 0.1 * change.norm())
        if smooth:  # no rounding inside: larger steps would tell no more
            return False
    return False


def _company(x: Tensor) -> Tensor:
    """Images that keep each other company: a few of the batch, and as many drawn over the range of these."""
    shown = x.detach()[:SHOWN]
    if not shown.is_floating_point():
        return torch.cat([shown, shown.flip(-1)])
    low, span = shown.amin(), shown.amax() - shown.amin()
    drawn = torch.rand(shown.shape, generator=torch.Generator().manual_seed(0)).to(shown)
    return torch.cat([shown, low + torch.where(span > 0, span, 1) * drawn])


def _run(model: Callable[[Tensor], object], x: Tensor) -> object:
    """What the network says of images that are part of a graph, as when it is explained."""
    try:
        with torch.enable_grad():
            return model(x.detach().requires_grad_() if x.is_floating_point() else x)
    except Exception as error:  # whatever a network of the reader's own raises
        checks.floating("x", x)
        what = f"shape {tuple(x.shape)} and dtype {x.dtype}"
        hint = f"; {_mode(model)}" if _trains(model) else ""
        raise ValueError(f"model does not run on x of {what}: {said(error)}{hint}") from error


def _drawn(model: Model) -> tuple:
    """The state of every global generator of random numbers on the processor, and of those that a network holds."""
    numbers, own = np.random.get_state(), [g.get_state().numpy().tobytes() for g in _generators(model)]  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), numbers[1].tobytes(), numbers[2], random.getstate(), own


def _generators(model: Model) -> list[torch.Generator]:
    every = model.modules() if isinstance(model, nn.Module) else ()
    return [value for m in every for value in vars(m).values() if isinstance(value, torch.Generator)]


def _numbers(output: object) -> list[Tensor]:
    """Every tensor in what a model returned, whatever holds it."""
    parts = (part for leaf in tree_leaves(output) for part in tree_leaves(getattr(leaf, "__dict__", None) or leaf))
    return [t.detach() for t in parts if isinstance(t, Tensor)]


def _apart(first: list[Tensor], second: list[Tensor]) -> float:
    """How far two answers lie apart beyond rounding; 0 if they do not."""
    gaps = [0.0]
    for one, other in zip(first, second, strict=False):
        if one.is_floating_point() and one.shape == other.shape and one.numel():
            gap, scale = float((one - other).abs().nan_to_num().max()), float(one.abs().nan_to_num().max())
            gaps.append(gap if gap > torch.finfo(one.dtype).eps ** 0.5 * scale else 0.0)
    return max(gaps)


def _live(values: Iterable[object]) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in values)


def _weights(model: Model) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []


def _trains(model: Model) -> bool:
    return isinstance(model, nn.Module) and any(map(_training, model.modules()))


def _training(module: nn.Module) -> bool:
    """Whether a module is in train mode; frozen TorchScript has none."""
    return getattr(module, "training", False)


def _mode(model: Model) -> str:
    if _trains(model):
        return "some of it is in train mode: call model.eval()"
    return "it must give each image an answer of its own, and always the same one"
