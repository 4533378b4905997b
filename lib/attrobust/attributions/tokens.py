"""Which tokens are patches, where they lie, and which token the head reads: measured on one probe image, not assumed.

    patch          pixels of its own move it before the first attention; their box gives its row and column
    class token    no pixel moves it, and the logits depend on its row of the last attention matrix; the first of such

What no pixel moves and no head reads (registers, a distillation token without its teacher) is neither.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attrobust import checks
from attrobust.models import guards, watched
from attrobust.shapes import Images, OnePlane

HOW = {"retain_graph": True, "allow_unused": True}
INSTEAD = "a class-token map does not explain it, an input attribution such as saliency does"


@dataclass(frozen=True)
class Layout:
    """Place of the class token among the tokens, and the patches' places in reading order.

    `apart` is how far the logits of `attend` lie from the model's own: 0, unless they are given to other classes.
    """

    cls: int
    patches: Tensor
    rows: int
    columns: int
    apart: float

    def grid(self, matrix: Float[Tensor, "batch tokens tokens"]) -> OnePlane:
        """The class token's row at the patches, laid out as these lie."""
        return matrix[:, self.cls].index_select(1, self.patches).unflatten(1, (self.rows, self.columns))[:, None]


def layout(model: nn.Module, x: Images, weights: Sequence[Tensor]) -> Layout:
    """Layout of the tokens of `model.attend(x)`, which returned `weights`; a ValueError where no class token is read.

    So it is where `attend` gives other logits than the model, or its matrices in another order than it computes them.
    Costs two forward passes and some 2 log2(tokens) backward passes, once for a model and a shape of images.
    """
    shapes = [tuple(w.shape) if isinstance(w, Tensor) else type(w).__name__ for w in weights]
    if len({s[2:] for s in shapes}) != 1 or any(len(s) != 4 or s[0] != len(x) or s[2] != s[3] for s in shapes):
        raise ValueError(
            f"model is {type(model).__name__}, whose attention has shapes {shapes} for {len(x)} images, not (images,"
            f" heads, tokens, tokens) with the same tokens in every block, as windows and pooling do; {INSTEAD}"
        )
    try:
        return guards.once(_measured, model, x, shapes[0][2])
    except _Unsound as reason:
        raise ValueError(f"model is {type(model).__name__}, {reason}; {INSTEAD}") from None


class _Unsound(Exception):
    """Why a model has no class-token map."""


class _Record(TorchFunctionMode):
    """Notes every tensor that is made, and its version then."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Tensor, int]] = []

    def __torch_function__(self, func: object, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        found = func(*args, **(kwargs or {}))
        several = found if isinstance(found, tuple | list) else (found,)
        self.made += [(t, t._version) for t in several if isinstance(t, Tensor)]
        return found


@torch.enable_grad()
def _measured(model: nn.Module, x: Images, n: int) -> Layout:
    draw = torch.Generator().manual_seed(0)
    probe = torch.rand(1, *x.shape[1:], generator=draw, dtype=x.dtype).to(x.device).requires_grad_()
    with _Record() as record:
        logits, maps = model.attend(probe)
    told, itself = (checks.logits("model", z, batch=1).detach() for z in (logits, watched.run(model, probe)))
    gap = watched.apart([told], [itself], like=x.dtype)
    if gap and watched.apart([told.sort().values], [itself.sort().values], like=x.dtype):
        raise _Unsound(f"whose `attend` gives other logits than the model itself, by up to {gap:.2g}")
    made = [t for t, version in record.made if t.requires_grad and t._version == version]
    found = [[i for i, t in enumerate(made) if _same(t, m)] for m in maps]
    if not all(found):
        raise _Unsound("whose `attend` returns other matrices than those it computes")
    made_at = [places[0] for places in found]
    if made_at != sorted(made_at):
        raise _Unsound("whose `attend` returns its matrices in another order than it computes them")
    order, rows, columns = _placed((_by_token(t, n) for t in made[: made_at[0]]), probe, draw)
    if len(order) == n:
        raise _Unsound(f"which has no class token: pixels move all {n} tokens, and it averages or weighs them")
    read = _read(logits, [made[i] for i in found[-1]], made[found[-1][-1] + 1 :], n)
    own = [token for token in range(n) if token not in order and read[token]]
    if not own:
        raise _Unsound("which does not read its class token: it averages or weighs the patches' tokens")
    return Layout(own[0], torch.tensor(order, device=x.device), rows, columns, gap)


def _read(logits: Tensor, matrices: list[Tensor], later: list[Tensor], n: int) -> list[bool]:
    """Whether the logits depend on each token's row of the last attention matrix, which has several names."""
    direction = torch.linspace(1, 2, logits.shape[1]).to(logits).sin()[None]
    # An untrained head's weights of zero hide what it reads; a NaN passes through them.
    for cotangent in (direction, torch.full_like(logits, torch.nan)):
        slopes = [s for s in torch.autograd.grad(logits, matrices, cotangent, **HOW) if s is not None]
        if slopes and bool((slopes[-1] != 0).any()):
            break
    else:
        raise _Unsound("whose logits do not depend on the attention that its `attend` returns")
    later = [t for t in later if _by_token(t, n) is not None]
    for slope in torch.autograd.grad(logits, later, direction, **HOW) if later else ():
        if slope is not None and bool(slope.any()):
            tokens, near = _by_token(slope, n), torch.finfo(slope.dtype).eps ** 0.5
            if torch.allclose(tokens, tokens[:1], rtol=0, atol=near * float(tokens.abs().max())):
                raise _Unsound("which does not read its class token by itself: it averages all its tokens")
    return (slopes[-1] != 0).any(-1).any(1)[0].tolist()


def _placed(tensors: Iterable[Tensor | None], probe: Images, draw: torch.Generator) -> tuple[list[int], int, int]:
    """Patches' tokens in reading order, their rows and columns: of the first tensor whose moved tokens fill a grid.

    One that pixels move altogether comes last: what looks like tokens may be the features of a patch.
    """
    whole = None
    for tokens in tensors:
        boxes = _boxes(tokens, probe, draw) if tokens is not None else []
        places = sorted((box, token) for token, box in enumerate(boxes) if box)
        rows, columns = (sorted({box[side] for box, _ in places}) for side in (0, 1))
        if places and [box for box, _ in places] == list(product(rows, columns)):
            found = [token for _, token in places], len(rows), len(columns)
            if len(places) < len(boxes):
                return found
            whole = whole or found
    if whole is None:
        raise _Unsound("whose tokens, before they attend to one another, have no patches of a grid of their own")
    return whole


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _by_token(t: Tensor, n: int) -> Tensor | None:
    """One row per token, if just one axis of the tensor has as many places."""
    axes = [axis for axis, size in enumerate(t.shape) if size == n]
    return t.movedim(axes[0], 0).flatten(1) if len(axes) == 1 else None


def _boxes(tokens: Float[Tensor, "tokens dim"], probe: Images, draw: torch.Generator) -> list[tuple[int, int] | None]:
    """Twice the middle row and column of the pixels that move each token, None where none does; [] if two share one.

    A pixel spells the number of its token bit by bit: it moves those that have the bit, or those that have not.
    """
    n, values = len(tokens), tokens @ torch.randn(tokens.shape[1], generator=draw).to(tokens)
    spelt = torch.full(probe.shape[2:], -1, device=probe.device)
    for bit in range(n.bit_length()):
        having = torch.arange(n, device=probe.device) >> bit & 1
        sides = [torch.autograd.grad(values, probe, side.to(values), **HOW)[0] for side in (1 - having, having)]
        without, with_it = (torch.zeros_like(spelt, dtype=bool) if s is None else s[0].any(0) for s in sides)
        if bool((without & with_it).any()):
            return []
        spelt = torch.where(without | with_it, spelt.clamp_min(0) + (with_it << bit), spelt)
    places = [(spelt == token).nonzero() for token in range(n)]
    return [tuple((p.amin(0) + p.amax(0)).tolist()) if len(p) else None for p in places]
