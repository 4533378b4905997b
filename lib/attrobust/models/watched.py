"""How a network is watched: it runs, what it says is compared, and no trace of that is left in it or around it."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attrobust import checks
from attrobust.models.weights import exchanged

Model = Callable[[Tensor], Tensor]

#: Images that a network is shown, beside as many drawn ones.
SHOWN = 4


@contextmanager
def untouched(model: Model) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Buffers, of which copies are given, attributes and the states of random numbers come back as they were."""
    checks.function("model", model)
    every = list(model.modules()) if isinstance(model, nn.Module) else []
    plain = [(m, dict(vars(m)), dict(m._buffers)) for m in every if not isinstance(m, torch.jit.ScriptModule)]
    kept = {name: (b, b.detach().clone()) for name, b in getattr(model, "named_buffers", list)()}
    state, numbers = np.random.get_state(), random.getstate()  # noqa: NPY002
    own = [(draw, draw.get_state()) for draw in _generators(model)]
    with torch.random.fork_rng(devices=list({b.device for b in weights(model) if b.is_cuda})):
        try:
            yield kept
        finally:
            np.random.set_state(state)  # noqa: NPY002
            random.setstate(numbers)
            for draw, before in own:
                draw.set_state(before)
            for module, attributes, buffers in plain:  # what is made when it first runs must be made of the caller's x
                _put_back(vars(module), attributes)
                _put_back(module._buffers, buffers)
            with torch.no_grad():
                for buffer, value in kept.values():
                    if not torch.equal(buffer, value):  # a write would break graphs that hold it
                        buffer.copy_(value)


def _put_back(now: dict, before: dict) -> None:
    for name in [name for name in now if name not in before]:
        del now[name]
    now.update({name: value for name, value in before.items() if name not in now or now[name] is not value})


def run(model: Callable[[Tensor], object], x: Tensor) -> object:
    """What the network says of (a copy of) images that are part of a graph, as when it is explained."""
    try:
        with torch.enable_grad():
            return model(x.detach().clone().requires_grad_() if x.is_floating_point() else x.clone())
    except Exception as error:  # whatever a network of the reader's own raises
        checks.floating("x", x)
        what = f"shape ({', '.join(map(str, ('n', *x.shape[1:])))}) and dtype {x.dtype}"
        hint = f"; {mode(model)}" if trains(model) else ""
        if "in-place operation" in str(error):
            hint = "; what it does to x itself must be done to a copy"
        raise ValueError(f"model does not run on x of {what}: {said(error)}{hint}") from error


def company(x: Tensor) -> Tensor:
    """Images that keep each other company: a few of the batch, and as many drawn over the range of these."""
    shown = x.detach()[:SHOWN]
    if not shown.is_floating_point():
        return torch.cat([shown, shown.flip(-1)])
    low, span = shown.amin(), shown.amax() - shown.amin()
    drawn = torch.rand(shown.shape, generator=torch.Generator().manual_seed(0)).to(shown)
    return torch.cat([shown, low + torch.where(span > 0, span, 1) * drawn])


def cut(network: Model | None, run: Callable[[], object], *, weights: bool = False) -> tuple[str, nn.Module] | None:
    """Name and module of the first that a gradient enters (or starts in, if `weights` count) and does not leave."""
    named = network.named_modules() if isinstance(network, nn.Module) else ()
    names = {module: name for name, module in named if not isinstance(module, torch.jit.ScriptModule)}  # takes no hook
    found: list[tuple[str, nn.Module]] = []

    def look(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        own = module.parameters(recurse=False) if weights else ()
        if _live([*own, *tree_leaves((args, kwargs))]) and not _live(tree_leaves(output)):
            found.append((names[module], module))

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(look, with_kwargs=True))
        run()
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


def drawn(model: Model) -> tuple[object, ...]:
    """The state of every global generator of random numbers on the processor, and of those that a network holds."""
    numbers, own = np.random.get_state(), [g.get_state().numpy().tobytes() for g in _generators(model)]  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), numbers[1].tobytes(), numbers[2], random.getstate(), own


def _generators(model: Model) -> list[torch.Generator]:
    every = model.modules() if isinstance(model, nn.Module) else ()
    return [value for m in every for value in vars(m).values() if isinstance(value, torch.Generator)]


def numbers(output: object) -> list[Tensor]:
    """Every tensor in what a model returned, whatever holds it."""
    parts = (part for leaf in tree_leaves(output) for part in tree_leaves(getattr(leaf, "__dict__", None) or leaf))
    return [t.detach() for t in parts if isinstance(t, Tensor)]


def apart(first: list[Tensor], second: list[Tensor], *, like: torch.dtype = torch.float64) -> float:
    """How far two answers lie apart beyond the rounding of their own precision, or of `like`; 0 if they do not."""
    gaps, coarse = [0.0], torch.finfo(like).eps if like.is_floating_point else 0.0
    for one, other in zip(first, second, strict=False):
        if one.is_floating_point() and one.shape == other.shape and one.numel():
            gap, scale = float((one - other).abs().nan_to_num().max()), float(one.abs().nan_to_num(posinf=0).max())
            kind = torch.finfo(one.dtype)
            gaps.append(gap if gap > max(kind.eps, coarse) ** 0.5 * scale + kind.tiny else 0.0)
    return max(gaps)


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance of two answers, image by image; NaN and infinity where a number is."""
    gaps = (first - second).double()
    return gaps.flatten(1).norm(dim=1) if gaps.ndim > 1 else gaps.abs().reshape(-1)


def nudged(x: Tensor, turn: int) -> Tensor:
    """Images of which every value is moved by its own rounding, up or down at random; within the range of all.

    Zeros stay, as rounding leaves them.
    """
    signs = torch.rand(x.shape, generator=torch.Generator().manual_seed(turn)).sub(0.5).sign().to(x)
    return (x * (1 + torch.finfo(x.dtype).eps * signs)).clamp(x.min(), x.max())


def _live(values: Iterable[object]) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in values)


def weights(model: Model) -> list[Tensor]:
    """Parameters and buffers; none of what is no module."""
    return [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []


def trains(model: Model) -> bool:
    """Whether any module is in train mode."""
    return isinstance(model, nn.Module) and any(map(training, model.modules()))


def training(module: nn.Module) -> bool:
    """Whether a module is in train mode; frozen TorchScript has none."""
    return getattr(module, "training", False)


def mode(model: Model) -> str:
    """What to do about a network that answers now this and now that."""
    if trains(model):
        return "some of it is in train mode: call model.eval()"
    return "it must give each image an answer of its own, and always the same one"
