"""Attacks on predictions: is an image still classified rightly wherever an attack may move its pixels?

    pgd       signed or normalised gradient steps from random starts, on the cross-entropy and on the margin by turns
    square    random windows of pixels, kept where the margin falls: without gradients, so that a gradient that is
              masked shows (Andriushchenko et al. 2020, "Square Attack"); helped by a regression on its own tries

The margin is the logit of the true class minus the largest other one: unlike the cross-entropy it has a gradient where
the network is sure. An image is broken, and costs no more, once it is classified wrongly. Each image draws from a
stream of its own, so that its result depends on no other image but by rounding.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks
from attrobust.attacks.streams import Streams, each
from attrobust.balls import Ball
from attrobust.models import guards
from attrobust.models.derivatives import again
from attrobust.models.readouts import cross_entropy, lead, margin
from attrobust.shapes import Images, Labels, Marks, PerImage
from attrobust.versions import versioned

#: Share of the image that a window covers at the start of the search; it is halved at these shares of the queries
#: (Andriushchenko et al. 2020, section 5: .05 to .8 of the pixels at the start, schedule for 10,000 queries).
FIRST_SHARE, HALVINGS, TILES = 0.8, (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8), 5

#: How often, from how many tries at most, and with how large a ridge over their mean squared length, `square` estimates
#: the margin's slope; without it, it was ten points and more weaker than `pgd` on plain networks.
EVERY, LAST, RIDGE = 20, 400, 1e-3

#: How many numbers of an image's tries are kept at most; of large images fewer tries stay.
MOST = 2**23


@dataclass(frozen=True)
class Attacked:
    """What an attack on predictions found.

    Example:
        >>> found = Attacked(torch.zeros(2, 1, 1, 1), torch.tensor([True, False]), queries=8)
        >>> found.broken.double().mean().item()  # the share of images that an attack breaks
        0.5
    """

    x: Images  # wrongly classified where `broken`, else the image with the smallest margin met
    broken: Marks  # images that are classified wrongly somewhere; those that are so without attack, too
    queries: int  # images sent through the network, over all images


class _Search:
    """The best image found for each, and which are not broken yet."""

    def __init__(self, model: nn.Module, x: Images, y: Labels) -> None:
        self.model, self.y, self.at = model, y, x.detach().clone()
        self.queries = 0
        self.best = self._margins(self.at, torch.arange(len(x), device=x.device))

    def _margins(self, at: Images, rows: Tensor) -> PerImage:
        """Margins; of an image that another class shares its place with, argmax decides whether it is broken."""
        self.queries += len(at)
        with torch.no_grad():
            logits = self.model(at)
        if logits.isnan().any():
            raise ValueError("model returns logits that are NaN; whether such an image is broken cannot be said")
        wrong, found = logits.argmax(1) != self.y[rows], lead(logits, self.y[rows])
        if found.isnan().any():
            raise ValueError("model returns two infinite logits; whether such an image is broken cannot be said")
        return torch.where(wrong, -torch.inf, found.clamp_min(0))

    @property
    def open(self) -> Tensor:
        """Rows of images that are classified rightly wherever one has looked."""
        return (self.best > -torch.inf).nonzero().flatten()

    def see(self, at: Images, rows: Tensor) -> PerImage:
        """Keep images that are better than those before; the margins of all, 0 where one is classified wrongly."""
        found = self._margins(at, rows)
        better = found < self.best[rows]
        self.best[rows[better]], self.at[rows[better]] = found[better], at[better].detach()
        return found.clamp_min(0)

    @property
    def result(self) -> Attacked:
        return Attacked(self.at, self.best == -torch.inf, self.queries)


def _started(model: nn.Module, x: Images, y: Labels, ball: Ball, generator: torch.Generator) -> tuple[_Search, Streams]:
    guards.classifier(model, checks.images("x", x), y)
    checks.kind("ball", ball, Ball)
    checks.kind("generator", generator, torch.Generator)
    return _Search(model, x, y), Streams(x, generator=generator)


@versioned(1)
def pgd(
    model: nn.Module, x: Images, y: Labels, ball: Ball, *, generator: torch.Generator, steps: int = 40,
    restarts: int = 2, length: float = 2.5,
) -> Attacked:  # fmt: skip
    """Projected gradient descent on predictions (Madry et al. 2018), every iterate judged.

    Args:
        model, x, y: classifier in eval mode, images with pixels in [0, 1], their true classes.
        ball: where the attack may go.
        generator: gives one number, from which every image's stream follows.
        steps, restarts: gradient steps from each random start; starts raise the cross-entropy and lower the margin by
            turns.
        length: of all steps together, over the radius.

    Raises:
        ValueError: `steps` or `restarts` below 1, a `length` that is not above 0, images out of [0, 1], labels that are
            no classes.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> x, y = torch.tensor([0.6, 0.5]).view(1, 1, 1, 2), torch.tensor([0])
        >>> [pgd(model, x, y, Ball("linf", r), generator=torch.Generator()).broken.item() for r in (0.04, 0.06)]
        [False, True]
    """
    checks.count("steps", steps)
    checks.count("restarts", restarts)
    checks.positive("length", length)
    search, streams = _started(model, x, y, ball, generator)
    step = length * ball.radius / steps
    for start in range(restarts):
        rows = search.open
        if not len(rows):
            break
        draws = [streams(i, f"start {start}") for i in rows.tolist()]
        at = (x[rows] + each(ball.sample, x[rows], draws)).clamp(0, 1)
        search.see(at, rows)
        for _ in range(steps):
            keep = search.best[rows] > -torch.inf
            rows, at = rows[keep], at[keep].detach().requires_grad_()
            if not len(rows):
                break
            search.queries += len(rows)
            with torch.enable_grad():
                harm = -margin(model, at, y[rows]) if start % 2 else cross_entropy(model, at, y[rows])
            with again(harm.sum()):
                (slope,) = torch.autograd.grad(harm.sum(), at)
            moved = at.detach() + step * ball.steepest(slope) - x[rows]
            at = (x[rows] + ball.project(moved)).clamp(0, 1)
            search.see(at, rows)
    return search.result


@versioned(2)
def square(
    model: nn.Module, x: Images, y: Labels, ball: Ball, *, generator: torch.Generator, queries: int = 1000
) -> Attacked:
    """Random search by windows of pixels, without gradients: at most `queries` tries for each image.

    linf: it begins with stripes of a column each, at the ball's corners; a try gives a square window one colour there.
    l2: it begins with a tiling of small patterns; a try empties one window, and gives what length is free to a pattern
    in another. A try stays where the margin falls (Andriushchenko et al. 2020, "Square Attack", algorithms 2 and 3; our
    window of an l2 try may overlap the one that it empties). Ours: every `EVERY`th try goes down the slope that a ridge
    regression of the margins of the last `LAST` tries finds. Arguments as in `pgd`.

    Raises:
        ValueError: `queries` below 1, and what `pgd` refuses.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> _ = model[1].weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([0.6, 0.5]).view(1, 1, 1, 2), torch.tensor([0])
        >>> how = {"generator": torch.Generator().manual_seed(0), "queries": 50}
        >>> square(model, x, y, Ball("linf", 0.2), **how).broken.item()
        True
    """
    checks.count("queries", queries)
    search, streams = _started(model, x, y, ball, generator)
    begin, propose = (_stripes, _window) if ball.norm == "linf" else (_tiling, _moved_window)
    size = queries, 5 + x.shape[1]
    draws = x.new_zeros(len(x), *size)
    for i in search.open.tolist():
        draws[i] = torch.rand(size, generator=streams(i, "square"), dtype=x.dtype)
    seen = _Seen(x)
    for turn in range(queries):
        rows = search.open
        if not len(rows):
            break
        clean, own = x[rows], draws[rows, turn]
        if turn == 0:
            delta = each(begin, clean, [streams(i, "begin") for i in rows.tolist()]) * ball.radius
        elif turn > 1 and turn % EVERY == 0:
            delta = _downhill(search.at[rows] - clean, ball, seen.slope(rows).to(clean), own[:, 0])
        else:
            delta = propose(search.at[rows] - clean, ball.radius, _side(x.shape[2:], turn / queries), own)
        at = (clean + ball.project(delta)).clamp(0, 1)
        margins = search.see(at, rows)
        seen.add(rows, at - clean, margins)
    return search.result


class _Seen:
    """The last tries of each image, and the slope of the margin that they tell."""

    def __init__(self, x: Images) -> None:
        self.shape, self.count = x.shape[1:], 0
        self.last = min(LAST, max(EVERY, MOST // self.shape.numel()))
        number = torch.promote_types(x.dtype, torch.float32)  # nothing is solved in half precision
        self.moves = x.new_zeros(len(x), self.last, self.shape.numel(), dtype=number)
        self.products = x.new_zeros(len(x), self.last, self.last, dtype=number)  # of moves, as most of them stay
        self.fresh: list[int] = []  # places whose products are not there yet
        self.margins = x.new_zeros(len(x), self.last, dtype=number)

    def add(self, rows: Tensor, moves: Images, margins: PerImage) -> None:
        place, self.count = self.count % self.last, self.count + 1
        self.moves[rows, place], self.margins[rows, place] = moves.flatten(1).to(self.moves), margins.to(self.moves)
        self.fresh.append(place)

    def slope(self, rows: Tensor) -> Images:
        """Ridge regression of margins on moves, in its dual form: w = D^T (D D^T + a I)^-1 m, both centred."""
        n, fresh = min(self.count, self.last), torch.tensor(self.fresh, device=rows.device)
        moves, margins = self.moves[rows, :n], self.margins[rows, :n]
        products = self.products[rows, :n, :n]
        products[:, fresh] = moves[:, fresh] @ moves.mT
        products[:, :, fresh] = products[:, fresh].mT
        self.products[rows, :n, :n], self.fresh = products, []
        raw = products.diagonal(dim1=1, dim2=2).mean(1)
        products = products - products.mean(1, keepdim=True)
        products = products - products.mean(2, keepdim=True)
        number = torch.finfo(products.dtype)
        ridge = RIDGE * products.diagonal(dim1=1, dim2=2).mean(1) + n * number.eps * raw + number.tiny
        products = products + torch.diag_embed(ridge[:, None].expand(-1, n))
        dual = torch.linalg.solve(products, margins - margins.mean(1, keepdim=True))
        dual = dual - dual.mean(1, keepdim=True)  # D is centred: its transpose takes off the mean
        return (dual[:, None] @ moves).unflatten(2, self.shape)[:, 0]


def _downhill(delta: Images, ball: Ball, slope: Images, draws: PerImage) -> Images:
    """The perturbation after a step down the slope.

    l2: a step of a tenth to three radii, then full length. linf: of the pixels that are not in their corner of the ball
    those that promise most go there, a hundredth to all of them.
    """
    down = -ball.radius * ball.steepest(slope)
    if ball.norm == "l2":
        return ball.radius * ball.steepest(delta + 0.1 * 30 ** draws[:, None, None, None] * down)
    promise = (slope * (delta - down)).flatten(1)  # positive, and 0 where a pixel is in its corner
    moving = (0.01**draws * (promise > 0).sum(1)).ceil()
    place = promise.argsort(1, descending=True).argsort(1)
    return torch.where((place < moving[:, None]).view_as(delta), down, delta)


def _side(shape: torch.Size, progress: float) -> int:
    """Side of a window, from 1 to that of the image, when so large a share of all queries is spent."""
    share = FIRST_SHARE * 0.5 ** sum(progress > at for at in HALVINGS)
    return max(1, min(round((share * shape[0] * shape[1]) ** 0.5), *shape))


def _signs(draws: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return torch.where(draws < 0.5, -1.0, 1.0).to(draws)


def _stripes(like: Images, *, generator: torch.Generator) -> Images:
    """A sign for each channel and column."""
    draws = torch.rand((*like.shape[:2], 1, *like.shape[3:]), generator=generator, dtype=like.dtype)
    return _signs(draws).to(like.device).expand_as(like)


def _tiling(like: Images, *, generator: torch.Generator) -> Images:
    """Patterns side by side, a sign for each channel of each; of length 1 over the whole image."""
    (channels, height, width), side = like.shape[1:], max(1, min(like.shape[2:]) // TILES)
    places = math.ceil(height / side), math.ceil(width / side)
    signs = _signs(torch.rand(1, channels, *places, generator=generator, dtype=like.dtype))
    whole = torch.kron(signs[0], _pattern(side, like.cpu())[None])[None, :, :height, :width].to(like.device)
    return Ball("l2", 1.0).steepest(whole.contiguous())


def _window(delta: Images, radius: float, side: int, draws: Float[Tensor, "images draws"]) -> Images:
    """The perturbation with one colour, at a corner of the linf ball, in a window of each image."""
    inside, _ = _place(delta, side, draws[:, :2])
    return torch.where(inside, radius * _signs(draws[:, 5:])[:, :, None, None], delta)


def _moved_window(delta: Images, radius: float, side: int, draws: Float[Tensor, "images draws"]) -> Images:
    """The perturbation with a window of each image emptied, and in another a pattern of all the length that is free."""
    (emptied, _), (inside, at) = (_place(delta, side, draws[:, i : i + 2]) for i in (0, 2))
    unit, pattern = Ball("l2", 1.0).steepest, _pattern(side, delta)
    placed = torch.where((draws[:, 4] < 0.5)[:, None, None], pattern.flatten()[at], pattern.T.flatten()[at])
    placed = placed[:, None] * _signs(draws[:, 5:])[:, :, None, None] * inside
    rest = delta * ~(emptied | inside)
    free = (radius**2 - rest.flatten(1).square().sum(1)).clamp_min(0).sqrt()
    return rest + free[:, None, None, None] * unit(unit(delta * inside) + unit(placed))


def _place(like: Images, side: int, draws: Float[Tensor, "images 2"]) -> tuple[Tensor, Tensor]:
    """Where a window of each image lies, from two numbers in [0, 1); and which place of the window each pixel is."""
    inside, places = [], []
    for axis, length in enumerate(like.shape[2:]):
        first = (draws[:, axis] * (length - side + 1)).long()
        from_there = torch.arange(length, device=like.device) - first[:, None]
        inside.append((from_there >= 0) & (from_there < side))
        places.append(from_there.clamp(0, side - 1))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None])[:, None], places[0][:, :, None] * side + places[1][:, None]


def _pattern(side: int, like: Tensor) -> Float[Tensor, "side side"]:
    """Two halves of opposite sign, each a pile of ever smaller rectangles; of length 1."""
    pile = torch.zeros(side, max(1, side // 2), dtype=like.dtype, device=like.device)
    for k in range((min(pile.shape) + 1) // 2):
        pile[k : side - k, k : pile.shape[1] - k] += 1 / (k + 1) ** 2
    halves = [pile, -pile] if side > 1 else [pile]
    middle = [torch.zeros_like(pile[:, :1])] if side % 2 and side > 1 else []
    found = torch.cat(halves[:1] + middle + halves[1:], 1)
    return found / found.norm()
