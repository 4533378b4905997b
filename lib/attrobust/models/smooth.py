"""Kinks and the smooth twin: why a ReLU network cannot be attacked through its own gradient.

Between its kinks a ReLU network is linear, so its saliency map is locally constant and an attack that climbs on it
moves nothing and would report "robust". It climbs on a twin with the same weights instead, whose kinks `soften` makes
smooth, and is judged on the original network. Both functions measure what the network *does*: at no operation may the
slope still jump, and the twin's gradient must be the slope of its logits.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attrobust import checks
from attrobust.models import guards, watched
from attrobust.models.soften import Soften
from attrobust.shapes import Images

#: Sharpness at which a twin is tried: what is wrong with it shows most where it is soft.
MILD = 1.0

#: Half the distance, in pixel units, of two points whose difference tries a twin's gradient; how far both may differ,
#: beyond rounding and what a shorter step changes; the twin of this sharpness may differ as much from its network.
STEP, TOLERANCE, SHARP = 1 / 1020, 0.01, 1e6

#: Half the way along which the gradient's derivative is integrated at so many points, and the least share it must find.
REACH, POINTS, SHARE = 0.5, 8, 0.4

#: How often one looks closer at a jump, about a hundred times each.
LOOKS = 4


def kinks(model: nn.Module, x: Images) -> list[str]:
    """Names of the operations whose slope or value jumps within what images `x` reach, in order, without repeats.

    Raises:
        ValueError: images that are no floating-point batch.

    Example:
        >>> x = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
        >>> kinks(nn.ReLU(), x), kinks(nn.Softplus(), x)
        (['relu'], [])
    """
    hidden = any(isinstance(m, torch.jit.ScriptModule) for m in getattr(model, "modules", list)())
    with watched.untouched(model), torch.enable_grad(), _Watch(hidden) as watch:
        model(guards.batch("x", x).detach().requires_grad_())
    return watch.seen


def smooth_twin(model: nn.Module, x: Images, *, beta: float, pools: bool = False) -> "SmoothTwin":
    """Same network, same weights (shared, not copied, so it follows their changes), without kinks.

    Softened are ReLU, its leaky and clipped relatives, clamps, absolute values, and comparisons whose outcome gates or
    selects, as in `torch.where(h > 0, h, 0)`; with `pools` max-pools too, by log-sum-exps. A ValueError refuses a
    network that on images `x` keeps another kink, or whose twin's gradient is not the slope of its logits. The
    curvature of the twin grows with `beta`, the sharpness of its softplus. Our attacks use 5, 10 and 50 and count the
    worst (Dombrowski et al. 2019, "Explanations can be manipulated and geometry is to blame", section 4).

    Example:
        >>> net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()), torch.rand(1, 1, 2, 2)
        >>> kinks(smooth_twin(net, x, beta=10.0), x)
        []
    """
    guards.classifier(checks.kind("model", model, nn.Module), x)
    mild = SmoothTwin(model, min(checks.positive("beta", beta), MILD), pools=pools)
    if left := kinks(mild, x):
        raise ValueError(
            f"model runs {', '.join(left)}, which a smooth twin cannot replace; use ReLU, clamp or another activation"
            " made of straight pieces outside TorchScript, or a smooth one"
        )
    _tried(mild, x)
    return SmoothTwin(model, beta, pools=pools)


class SmoothTwin(nn.Module):
    """A network run with softplus and sigmoid in place of ramps and steps; shares the weights of `original`.

    Example:
        >>> twin = SmoothTwin(nn.ReLU(), beta=10.0)
        >>> round(twin(torch.zeros(1, 1, 1, 1)).item(), 4)  # log(2) / 10, where the ramp is 0
        0.0693
    """

    original: nn.Module
    beta: float
    pools: bool
    training: bool

    def __init__(self, original: nn.Module, beta: float, *, pools: bool = False) -> None:
        super().__init__()
        self.original, self.beta, self.pools = original, beta, pools
        self.training = watched.training(original)

    def forward(self, x: Images) -> Tensor:
        """Output of the original network with every kink softened."""
        with Soften(self.beta, pools=self.pools):
            return self.original(x)

    @property
    def stands_for(self) -> nn.Module:
        """The network whose soundness (see `guards`) is this one's too."""
        return self.original

    @property
    def attend(self) -> Callable:
        """`attend` of the original network with every kink softened; missing where the original has none."""
        original = self.original.attend

        def softened(x: Images) -> tuple[Tensor, list[Tensor]]:
            with Soften(self.beta, pools=self.pools):
                return original(x)

        return softened


def _tried(twin: SmoothTwin, x: Images) -> None:
    """Refuse a twin whose gradient is not the slope of its logits, or jumps, or that does not tend to its network."""

    def run(model: nn.Module, at: Images) -> Tensor:
        logits = checks.logits("model", model(at), batch=len(at))
        logits = logits.masked_fill(logits.detach().isinf(), 0)  # of a class that is masked
        return logits @ torch.linspace(1, 2, logits.shape[1], dtype=logits.dtype, device=logits.device)

    def slope(at: Images, v: Images | None = None) -> tuple[Tensor, Tensor]:
        """Values and gradient; with a direction, gradient and its derivative along it."""
        leaf = at.detach().requires_grad_()
        with torch.enable_grad():
            value = run(twin, leaf)
            first = torch.autograd.grad(value.sum(), leaf, create_graph=v is not None, materialize_grads=True)[0]
            if v is None:
                return value.detach().double(), first.double()
            if not first.requires_grad:
                return first, torch.zeros_like(first, dtype=torch.float64)
            return first.detach(), torch.autograd.grad((first * v).sum(), leaf, materialize_grads=True)[0].double()

    def change(v: Images, step: float) -> Tensor:
        return (run(twin, x + step * v).double() - run(twin, x - step * v).double()) / (2 * step)

    # Beside the images: on black ones the windows of a max-pool are ties.
    draw = torch.Generator().manual_seed(0)
    x = x.detach() + 0.05 * torch.rand(x.shape, generator=draw, dtype=torch.float64).to(x)
    try:
        value, gradient = slope(x)
    except RuntimeError as error:
        raise ValueError(f"model's smooth twin has no gradient: {str(error).split('. ')[0]}") from error
    v = torch.randint(2, x.shape, generator=draw).to(x) * 2 - 1
    with torch.no_grad():
        far, near = change(v, STEP), change(v, STEP / 4)
        sharp = run(SmoothTwin(twin.original, SHARP, pools=twin.pools), x).double()
    with torch.enable_grad():  # without, torch may fuse layers, which rounds otherwise
        there = run(twin.original, x.detach().requires_grad_()).detach().double()
    rounding = 8 * torch.finfo(x.dtype).eps * value.norm() / STEP * 4
    missing = (near - (gradient * v).flatten(1).sum(1)).norm()
    if missing > TOLERANCE * near.norm() + (far - near).norm() + rounding:
        raise ValueError(
            f"model's smooth twin has a gradient that misses {float(missing / near.norm()):.0%} of its logits' slope,"
            " as where activation checkpointing or a backward of its own runs kinks again; switch it off"
        )
    # Of a network that is 0 here, the softness that is left is a share of what there was.
    if not bool((sharp - there).norm() <= TOLERANCE * there.norm() + TOLERANCE**2 * (value - there).norm()):
        raise ValueError("model's smooth twin does not tend to it as beta grows; use ReLU or a smooth activation")
    if not torch.equal(value, there):
        return
    # Nothing was softened. Along a segment the gradient changes by the integral of its derivative, and by its jumps.
    way = slope(x + REACH * v)[1] - slope(x - REACH * v)[1]
    places = (torch.arange(POINTS) + torch.rand(POINTS, generator=draw)) / POINTS * 2 - 1
    try:
        bends = sum(slope(x + float(place) * REACH * v, v)[1] for place in places) * 2 * REACH / POINTS
    except RuntimeError:  # no second derivative: whoever needs it is told by torch
        return
    share = (bends * way).sum() / way.square().sum()
    if way.norm() > 1e-3 * gradient.norm() and share < SHARE:
        raise ValueError(
            f"model keeps kinks that a smooth twin cannot replace (its derivative finds {float(share):.0%} of how its"
            " gradient changes), as in max-pools or a backward of its own; use average pools, ReLU, smooth activations"
        )


class _Watch(TorchDispatchMode):
    """Notes the elementwise operations on what the gradient flows through that have a kink between their inputs.

    TorchScript, once it has seen a few images, hides what that is (`hidden`); then all that runs is looked at.
    """

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.hidden = hidden

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        fixed = func.namespace == "aten" and torch.Tag.nondeterministic_seeded not in func.tags
        wide = {i: a for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point() and a.numel() > 1}
        places = [i for i, a in wide.items() if a.requires_grad or self.hidden]
        with torch._C.DisableTorchFunction():  # a twin's own softening
            if fixed and name not in self.seen and places and _elementwise(func, args, kwargs):
                for place in places:
                    low, high = args[place].detach().double().aminmax()
                    if _bends(partial(_one, func, args, kwargs, place), low, high):
                        self.seen.append(name)
                        break
        return func(*args, **kwargs)


def _elementwise(func: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether entries may be shuffled before or after; asked, as some kernels write past tensors of odd shapes."""
    try:
        shape = torch.broadcast_shapes(*(a.shape for a in args if isinstance(a, Tensor)))
        usual = func(*(a.detach().clone() if isinstance(a, Tensor) else a for a in args), **kwargs)
        if usual.shape != shape:  # as of most convolutions, whose arguments one had better not expand
            return False
        order = torch.randperm(shape.numel(), generator=torch.Generator().manual_seed(0))
        full = [a.detach().expand(shape).clone() if isinstance(a, Tensor) else a for a in args]
        mixed = [a.flatten()[order].view(shape) if isinstance(a, Tensor) else a for a in full]
        plain, moved = (func(*given, **kwargs).double() for given in (full, mixed))
        return plain.shape == shape and torch.allclose(plain.flatten()[order], moved.flatten(), equal_nan=True)
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError):
        return False


def _one(func: Callable, args: tuple, kwargs: dict, place: int, values: Tensor) -> Tensor:
    """An operation on other values of one tensor, every other being a typical number of its own."""
    args = [
        a if not isinstance(a, Tensor) else a.double().mean() if a.is_floating_point() else a.flatten()[:1].squeeze()
        for a in args
    ]
    return func(*args[:place], values.clone(), *args[place + 1 :], **kwargs)


def _bends(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> bool:
    """Whether an elementwise function's slope jumps between two numbers: a jump stays however closely one looks."""
    jumps, spans = [], []
    for _ in range(LOOKS):
        at = torch.linspace(float(low), float(high), 257, dtype=torch.float64, device=low.device)
        try:
            value, mirrored = function(at), function(at.flip(0))
        except (RuntimeError, TypeError, IndexError, ValueError):
            return False
        if not isinstance(value, Tensor) or value.shape != at.shape or not torch.equal(value.flip(0), mirrored):
            return False
        value, step = value.double(), at[1] - at[0]
        slopes = value.diff() / step
        jump, where = (slopes[2:] - slopes[:-2]).abs().max(0)
        steepest = slopes.abs().max()
        rounding = 64 * torch.finfo(at.dtype).eps * torch.maximum(value.abs().max(), (at * steepest).abs().max())
        if not bool(jump > 1e-3 * steepest + rounding / step):  # NaN says no
            return False
        jumps.append(jump), spans.append(value.max() - value.min())
        low, high = at[where], at[where + 3]
    return bool(jump > 0.1 * max(jumps)) and bool(spans[-1] <= spans[0])
