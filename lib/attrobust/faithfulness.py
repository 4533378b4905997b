"""Does a map say anything about the network? Two tests that a robust but empty explanation fails.

A map that never changes is perfectly robust. So beside robustness stand

    deletion, insertion    remove (or bring in) pixels, most important first, and watch the class probability
    randomisation          give layers random weights and watch the map: one that stays the same ignores the network

each with its control: pixels in random order; the map compared with itself.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import checks, similarity
from attrobust.attributions import pixelwise
from attrobust.models import guards
from attrobust.models.readouts import predictions
from attrobust.shapes import Attribution, Images, Importances, Labels, PerImage

Curves = Float[Tensor, "batch points"]

#: Name of the control row: pixels in random order.
RANDOM = "random"

#: Similarities of the randomisation table; near 1 under random weights means that a map ignores them.
SIMILARITIES = ("top_k", "spearman", "cosine", "pearson")


def deletion(
    model: nn.Module, x: Images, target: Labels, importances: Importances, *, generator: torch.Generator,
    baseline: float | Images = 0.0, steps: int = 20,
) -> Curves:  # fmt: skip
    """Probability of a class while pixels are replaced by a baseline, the most important first: none to all of them.

    Args:
        model, x, target: classifier in eval mode, images with pixels in [0, 1], the class that is followed.
        importances: one finite number per pixel, or per block of pixels (a patch) if coarser; only their order matters.
            Ties fall in random order, so a map without an order earns what the random control earns.
        generator: of the order of ties.
        baseline: value of a removed pixel, or images of removed pixels; 0 = black (the source's choice).
        steps: stages of equal size up to one pixel, from 1 to height x width, a forward pass each; 20 is our choice.

    Raises:
        ValueError: importances that are not finite or not one map for each image, a `baseline` that does not spread
            over the images, or `steps` below 1 or above the number of pixels.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> x, y, how = torch.rand(1, 1, 2, 2), torch.tensor([0]), {"generator": torch.Generator(), "steps": 4}
        >>> deletion(net, x, y, x[:, 0], **how).shape
        torch.Size([1, 5])

    Reference: Petsiuk et al. 2018, "RISE: randomized input sampling for explanation of black-box models", section 4.2.
    """
    guards.classifier(model, x, target)
    checks.finite("importances", checks.floating("importances", importances))
    checks.kind("generator", generator, torch.Generator)
    pixels, size = x.shape[-2] * x.shape[-1], x.shape[-2:]
    if importances.ndim and len(importances) != len(x):
        raise ValueError(f"importances are of {len(importances)} maps for {len(x)} images; give one map for each image")
    checks.baseline("baseline", baseline, x)
    checks.count("steps", steps, most=pixels)
    ranks = _ranks(_enlarged(importances.detach(), size), generator).view(-1, 1, *size)
    curve, removed = [], torch.zeros_like(x) + baseline
    with torch.no_grad():
        for step in range(steps + 1):
            images = torch.where(ranks < round(step * pixels / steps), removed, x)
            logits = checks.logits("model", model(images), batch=len(images), least=2)
            curve.append(logits.softmax(1).gather(1, target[:, None])[:, 0])
    return torch.stack(curve, dim=1)


def insertion(
    model: nn.Module, x: Images, target: Labels, importances: Importances, *, generator: torch.Generator,
    baseline: float | Images = 0.0, steps: int = 20,
) -> Curves:  # fmt: skip
    """Probability of the class while pixels are brought into a baseline, the most important first; see `deletion`.

    Raises:
        ValueError: a `baseline` that does not spread over the images, and what `deletion` refuses.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> linear[1].weight.data = torch.tensor([[0.0, 0.0], [9.0, 1.0]])
        >>> x, how = torch.ones(1, 1, 1, 2), {"generator": torch.Generator(), "steps": 2}
        >>> orders = torch.tensor([[[9.0, 1.0]]]), torch.tensor([[[1.0, 9.0]]])
        >>> good, bad = (area(insertion(linear, x, torch.tensor([1]), order, **how)).item() for order in orders)
        >>> good > bad
        True

    Reference: Petsiuk et al. 2018, section 4.2 (there into a blurred image; pass one as `baseline`).
    """
    guards.classifier(model, x, target)
    checks.baseline("baseline", baseline, x)
    bare = torch.zeros_like(x) + baseline
    return deletion(model, bare, target, importances, generator=generator, baseline=x, steps=steps)


def area(curves: Curves) -> PerImage:
    """Area under each curve over the share of pixels, in [0, 1]: small is good for deletion, large for insertion.

    Raises:
        ValueError: curves that are no batch of two points or more.

    Example:
        >>> area(torch.tensor([[1.0, 0.5, 0.0]])).item()
        0.5
    """
    if checks.floating("curves", curves).ndim != 2 or curves.shape[1] < 2:
        raise ValueError(f"curves have shape {tuple(curves.shape)}; they must be (batch, points), two or more")
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1))


def insertion_deletion(
    model: nn.Module, x: Images, *, attributions: Mapping[str, Attribution], generator: torch.Generator,
    baseline: float | Images = 0.0, steps: int = 20, reduction: Callable[[Tensor], Importances] = pixelwise,
    draws: int = 4,
) -> pd.DataFrame:  # fmt: skip
    """Areas under both curves of the predicted class for several attributions, and for pixels in random order.

    Args:
        model, x, baseline, steps: as in `deletion`.
        attributions: name -> (model, x, target) -> map; "random" is the control's name.
        generator: of the order of ties and of the control.
        reduction: map -> importances; `pixelwise` drops the signs, `lambda m: m.sum(1)` ranks signed contributions.
        draws: random orders, averaged for the control, at least 1.

    Returns:
        One row per image and attribution ("random" included): `deletion` (smaller is better), `insertion` (larger is
        better). A map that is no better than "random" says nothing about where the network looks.

    Raises:
        ValueError: images out of [0, 1], `draws` or `steps` below 1, a map that is not finite, or one called "random".

    Example:
        >>> from attrobust.attributions import input_x_gradient
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> linear[1].weight.data = torch.tensor([[0.0, 0.0], [9.0, 1.0]])
        >>> how = {"attributions": {"map": input_x_gradient}, "generator": torch.Generator(), "steps": 2}
        >>> table = insertion_deletion(linear, torch.ones(1, 1, 1, 2), **how)
        >>> table["attribution"].tolist()
        ['random', 'map']

    Reference: Petsiuk et al. 2018, section 4.2.
    """
    checks.images("x", x)
    checks.kind("attributions", attributions, Mapping)
    if RANDOM in attributions:
        raise ValueError(f"attributions has a map {RANDOM!r}, which is the name of the control; call it otherwise")
    checks.function("reduction", reduction)
    checks.count("draws", draws)
    target = predictions(model, x)
    how = {"baseline": baseline, "steps": steps, "generator": generator}

    def areas(importances: Tensor) -> pd.DataFrame:
        both = {name: area(curve(model, x, target, importances, **how)) for name, curve in _CURVES.items()}
        return pd.DataFrame({name: values.cpu().double().numpy() for name, values in both.items()})

    flat = torch.zeros_like(x[:, 0])  # all tied, hence in random order
    tables = {RANDOM: sum((areas(flat) for _ in range(draws - 1)), areas(flat)) / draws}
    for name, attribution in attributions.items():
        maps = checks.finite(f"attributions[{name!r}]", attribution(model, x, target).detach())
        tables[name] = areas(reduction(maps))
    rows = [table.assign(image=range(len(x)), attribution=name) for name, table in tables.items()]
    return pd.concat(rows, ignore_index=True)[["image", "attribution", *_CURVES]]


def redrawn(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Random weights in place of trained ones: normal, with the mean and standard deviation these have.

    So scales stay what they were and only what was learned goes; constant tensors (biases never trained) stay.

    Example:
        >>> weight = torch.tensor([[1.0, 3.0]])
        >>> redrawn(weight, torch.Generator().manual_seed(0)).shape, redrawn(torch.ones(2), torch.Generator()).tolist()
        (torch.Size([1, 2]), [1.0, 1.0])
    """
    noise = torch.randn(weight.shape, dtype=weight.dtype, device=generator.device, generator=generator)
    return weight.mean() + weight.std(correction=0) * noise.to(weight.device)


def randomisation(
    model: nn.Module, x: Images, *, attributions: Mapping[str, Attribution], k: int, generator: torch.Generator,
    draw: Callable[[Tensor, torch.Generator], Tensor] = redrawn,
) -> pd.DataFrame:  # fmt: skip
    """Similarity of maps before and after layers are given random weights: cascading from the top, and one by one.

    Twice as many maps as the model has layers with weights, for each attribution. The weights are swapped for the
    duration, and put back whatever happens; buffers (running statistics) are left alone.

    Args:
        model, x: classifier in eval mode, images; the maps explain the class that is predicted as it is.
        attributions: name -> (model, x, target) -> map.
        k: pixels (or patches) compared by the top-k intersection.
        generator: of the new weights; both orders share them.
        draw: (weights, generator) -> new weights of the same shape.

    Returns:
        One row per image, attribution, order ("cascading", "independent") and layer, with `randomised` (how many layers
        were random) and every similarity. Layers come in the reverse of the order in which the model lists them.
        Near chance is good; near 1 throughout, the map does not depend on what was learned.

    Raises:
        ValueError: a model without weights, images out of [0, 1], a map that is not finite, or a `draw` that changes a
            shape.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> how = {"attributions": {"pixels": lambda model, x, target: x}, "k": 1, "generator": torch.Generator()}
        >>> randomisation(net, torch.rand(2, 1, 2, 2), **how)["spearman"].round(6).unique().tolist()
        [1.0]

    Reference: Adebayo et al. 2018, "Sanity checks for saliency maps", section 3.
    """
    checks.images("x", x)
    checks.kind("attributions", attributions, Mapping)
    checks.kind("model", model, nn.Module)
    checks.kind("generator", generator, torch.Generator)
    checks.function("draw", draw)
    layers = {name: list(m.parameters(recurse=False)) for name, m in reversed(list(model.named_modules()))}
    layers = {name: weights for name, weights in layers.items() if weights}
    if not layers:
        raise ValueError(f"model is {type(model).__name__}, which has no weights; there is nothing to randomise")
    target = predictions(model, x)

    def maps() -> dict[str, Tensor]:
        found = {name: attribution(model, x, target).detach() for name, attribution in attributions.items()}
        return {name: checks.finite(f"attributions[{name!r}]", m) for name, m in found.items()}

    clean, tables = maps(), []
    drawn = {name: [(p, draw(p.detach(), generator)) for p in weights] for name, weights in layers.items()}
    for p, new in (pair for pairs in drawn.values() for pair in pairs):
        if checks.kind("what draw returns", new, Tensor).shape != p.shape:
            raise ValueError(f"draw returns shape {tuple(new.shape)} for weights of {tuple(p.shape)}; these must agree")
    for order in ("cascading", "independent"):
        swapped: list[tuple[nn.Parameter, Tensor]] = []
        for layer, pairs in drawn.items():
            swapped = swapped + pairs if order == "cascading" else pairs
            with _swapped(swapped):
                found = maps()
            depth = 1 + list(drawn).index(layer) if order == "cascading" else 1
            where = {"order": order, "layer": layer, "randomised": depth}
            for n in attributions:
                a, b = pixelwise(clean[n]), pixelwise(found[n])
                alike = (similarity.topk_intersection(a, b, k=k), similarity.spearman(a, b))
                alike += (similarity.cosine(clean[n], found[n]), similarity.pearson(a, b))
                values = {name: v.double().cpu().numpy() for name, v in zip(SIMILARITIES, alike, strict=True)}
                tables.append(pd.DataFrame({"image": range(len(x)), "attribution": n, **where, **values}))
    return pd.concat(tables, ignore_index=True)


_CURVES = {"deletion": deletion, "insertion": insertion}


def _ranks(importances: Importances, generator: torch.Generator) -> Int[Tensor, "batch pixels"]:
    """Place of every pixel, 0 = most important; ties in random order."""
    flat = importances.flatten(1)
    shuffled = torch.rand(flat.shape, device=generator.device, generator=generator).to(flat.device).argsort(1)
    order = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    return order.argsort(1)


def _enlarged(importances: Tensor, size: tuple[int, int]) -> Importances:
    """The importance of every pixel, that of its patch where they are coarser."""
    if importances.ndim != 3 or any(whole % part for whole, part in zip(size, importances.shape[1:], strict=True)):
        raise ValueError(
            f"importances have shape {tuple(importances.shape)}; they must be (batch, rows, columns) whose rows and"
            f" columns divide the image's height and width, {size[0]} and {size[1]}"
        )
    return F.interpolate(importances[:, None], size=size, mode="nearest")[:, 0]


@contextmanager
def _swapped(pairs: list[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Other values in these parameters; their own storage is set aside untouched and comes back."""
    kept = [p.data for p, _ in pairs]
    try:
        for p, new in pairs:
            p.data = new
        yield
    finally:
        for (p, _), old in zip(pairs, kept, strict=True):
            p.data = old
