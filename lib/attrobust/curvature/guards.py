"""What has no curvature, or a wrong one, refused in one sentence before any work: ValueError each.

Whether a network draws numbers or couples the images of a batch is measured by a few passes, not read off its layers.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Images that a pass of `alone` runs together, copies of one image, and passes of a model that moves the generator.
COMPANY, COPIES, DRAWS = 8, 16, 16


def mode() -> None:
    """Refuse inference mode, in which no graph can be built."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "torch.inference_mode is on, which allows no derivative; use torch.no_grad, which is fine here"
        )


def usable(model: nn.Module, x: Tensor, y: Tensor | None = None) -> None:
    """Refuse a batch or a model without curvature: empty, not finite, elsewhere, low precision, random or coupled."""
    mode()
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be a batch and not empty")
    if y is not None and len(y) != len(x):
        raise ValueError(f"y has {len(y)} entries for {len(x)} examples; give one label per example")
    parameters = dict(model.named_parameters())
    for name, t in {"x": x, "y": x if y is None else y, **parameters, **dict(model.named_buffers())}.items():
        if t.is_inference():
            raise ValueError(f"{name} was made under torch.inference_mode and has no derivative; clone it outside")
        if t.is_meta or (t.device != x.device and (name in parameters or name == "y")):
            raise ValueError(f"{name} is on {t.device} and x on {x.device}; both must hold numbers on one device")
        if t.is_floating_point() and t.dtype.itemsize < 4:
            raise ValueError(f"{name} has dtype {t.dtype}; curvature needs float32 or float64, as of model.float()")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(f"x holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite")
    alone(model, x)


def alone(model: nn.Module, x: Tensor) -> None:
    """Refuse a model that cannot run on `x`, is random, couples the images or computes in low precision.

    A few images run twice, the first of them alone and as copies of itself. Buffers and torch's generators stay as
    they were.
    """
    held = [
        (m._buffers, name, b, b.clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None
    ]
    training = any(module.training for module in model.modules())
    remedy = "call model.eval()" if training else "it must be a fixed function of each image"
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        try:
            before, found = _generators(x), _rows(model, x[:COMPANY])
            drawn = DRAWS * (_generators(x) != before)
            if not all(_alike(found, _rows(model, x[:COMPANY])) for _ in range(1 + drawn)):
                raise ValueError(f"model is random: two passes over the same images differ; {remedy}")
            first = [rows[:1] for rows in found]
            try:
                with _Precision() as precision:
                    single = _rows(model, x[:1])
                copies = _rows(model, x[:1].expand(COPIES, *x.shape[1:]))
            except (RuntimeError, ValueError) as error:
                if len(x) == 1:
                    raise
                raise ValueError(f"model cannot run on one image alone ({said(error)}); {remedy}") from error
            if precision.low:
                raise ValueError(f"model computes in {precision.low}; curvature needs float32 or better all the way")
            if not _alike(first, single):
                raise ValueError(f"model couples the images: one has other outputs alone than in a batch; {remedy}")
            if not _alike([rows.expand(COPIES, *rows.shape[1:]) for rows in first], copies):
                raise ValueError(f"model is random or couples the images: copies of one differ; {remedy}")
        except RuntimeError as error:
            floating(x)
            raise ValueError(f"model cannot run on x of {x.dtype}, {tuple(x.shape)}: {said(error)}") from error
        finally:
            for holder, name, buffer, value in held:
                holder[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def floating(x: Tensor) -> None:
    """Refuse inputs that cannot be differentiated."""
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}; it must be floating-point, such as pixels in [0, 1]")


def values(name: str, numbers: Tensor, x: Tensor) -> Tensor:
    """Return `numbers` if they are finite, one per example."""
    if numbers.shape != (len(x),):
        hint = "a loss such as F.cross_entropy does so with reduction='none'"
        raise ValueError(f"{name} has shape {tuple(numbers.shape)}; it must be one number per example; {hint}")
    if not bool(torch.isfinite(numbers).all()):
        worst = numbers.detach()[~torch.isfinite(numbers)][0].item()
        raise ValueError(f"{name} is {worst} on an example; curvature needs a finite {name}")
    return numbers


def twice_differentiable(nodes: Iterable[torch.autograd.graph.Node]) -> None:
    """Refuse a gradient graph with an operation whose own gradient torch does not know."""
    names = {node.name() for node in nodes}
    if "torch::autograd::NotImplemented" in names:
        fused = sorted(name.removesuffix("Backward0") for name in names if name.startswith("ScaledDotProduct"))
        what = f"fused attention ({fused[0]})" if fused else "an operation"
        raise ValueError(
            f"model uses {what} without a second derivative; write the attention out, or compute under "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        )


class _Precision(TorchDispatchMode):
    """Notes a floating-point type below float32 that some operation returns."""

    low: torch.dtype | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for t in tree_leaves(found):
            if isinstance(t, Tensor) and t.is_floating_point() and t.dtype.itemsize < 4:
                self.low = t.dtype
        return found


def _rows(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the model returns for each image, from whatever holds it."""
    found = [
        part for leaf in tree_leaves(model(x.clone())) for part in tree_leaves(getattr(leaf, "__dict__", None) or leaf)
    ]
    tensors = (t.detach() for t in found if isinstance(t, Tensor))
    return [t for t in tensors if t.is_floating_point() and t.ndim and len(t) == len(x)]


def _alike(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether both are equal but for the rounding of batches of different size."""
    if [t.shape for t in one] != [t.shape for t in other]:
        return False
    sizes = [t.nan_to_num(0, 0, 0).abs().max() * math.sqrt(torch.finfo(t.dtype).eps) for t in one]
    pairs = zip(one, other, sizes, strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=float(size), equal_nan=True) for a, b, size in pairs)


def _generators(x: Tensor) -> bytes:
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])]
    return torch.cat(states).numpy().tobytes()


def said(error: Exception) -> str:
    """First line of an error of torch's."""
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
