"""How far a map moves under small random perturbations: the literature's measures, all from the same perturbed maps.

With m the map of the class that is predicted for the clean image x, f the logits, x_1 .. x_n drawn around x, ε small:

    max_sensitivity   max_j |m(x_j) - m(x)| / |m(x)|                                   Yeh et al. 2019
    avg_sensitivity   mean_j of the same                                               Yeh et al. 2019
    lipschitz         max_j |m(x_j) - m(x)| / |x_j - x|                                Alvarez-Melis and Jaakkola 2018
    ris               max_j |(m(x_j) - m(x)) / m(x)| / max(|(x_j - x) / x|, ε)         Agarwal et al. 2022
    ros               max_j |(m(x_j) - m(x)) / m(x)| / max(|f(x_j) - f(x)|, ε)         Agarwal et al. 2022

|.| is the Euclidean length over all entries; maps and images are divided entry by entry, by ε where an entry is 0.
Small is stable, and no more: a map that ignores the network is the most stable of all (see `faithfulness`), and chance
finds less than an attack (see `robustness`).
"""

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attrobust import attacks, checks
from attrobust.attacks.streams import alike, stochastic
from attrobust.attributions import zero_maps
from attrobust.attributions.importance import DRAWING, marked, name_of
from attrobust.balls import Ball
from attrobust.models import guards
from attrobust.models.readouts import predictions
from attrobust.shapes import Attribution, Images, Labels
from attrobust.versions import versioned

#: A number, and whether something holds, for each image and perturbation; and what stands beside the clean one.
Each = Float[Tensor, "images draws"]
Which = Bool[Tensor, "images draws"]
Pictures = Float[Tensor, "images all channels height width"]
Explained = Float[Tensor, "images all planes rows columns"]
Answers = Float[Tensor, "images all classes"]

COLUMNS = ("max_sensitivity", "avg_sensitivity", "lipschitz", "ris", "ros")


@versioned(1)
def sensitivities(
    model: nn.Module, attribution: Attribution, x: Images, *, ball: Ball, draws: int, generator: torch.Generator,
    eps_min: float = 1e-6, chunk: int | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Every measure of `COLUMNS` for one attribution, one row per image; each perturbed image is explained once.

    Perturbations are uniform in the ball, pulled into [0, 1], and the same for every attribution. An image's row
    depends neither on its companions nor on the order of the batch. (Quantus has the same values on the same
    perturbations where it does not normalise. By default its Lipschitz estimate divides maps by the largest entry of
    their batch, so that an image's number there depends on the others; and one draw that loses the prediction makes its
    `ris` and `ros` NaN.)

    A draw that loses the prediction counts for the first three measures, whose definitions look at the ball alone,
    under the class of the clean image; `ris` and `ros` are maxima over draws that keep it, as their source defines
    them. Black pixels make the denominator of `ris` as large as 1 / ε: of images with a black ground it says little.

    Args:
        model: classifier in eval mode.
        attribution: (model, x, target) -> map; a stochastic one is made under each image's common draws.
        x: images, pixels in [0, 1].
        ball: where perturbations lie.
        draws: perturbations per image, at least 1.
        generator: gives one number, from which every image's stream follows.
        eps_min: ε of `ris` and `ros`, in units of logits and of shares (1e-6 is a habit of libraries).
        chunk: images that are explained at a time; all perturbed ones in one batch if None.

    Returns:
        `image`, the measures, and `kept`, the share of draws that keep the prediction. NaN where nothing can be said:
        of a clean map that is zero everywhere, of a quotient whose image did not move, of `ris` and `ros` where no draw
        keeps the prediction.

    Raises:
        ValueError: images out of [0, 1], `draws` or `chunk` below 1, an `eps_min` that is not above 0, or an
            attribution that gives an image another map in other company.

    Example:
        >>> from attrobust import attributions
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.full((2, 1, 2, 2), 0.5)
        >>> how = {"ball": Ball("linf", 0.1), "draws": 3, "generator": torch.Generator()}
        >>> sensitivities(linear, attributions.saliency, x, **how)["max_sensitivity"].tolist()
        [0.0, 0.0]

    References: Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations" (arXiv 1901.09392), here over the
    length of the clean map, as libraries have it; Alvarez-Melis and Jaakkola 2018, "On the robustness of
    interpretability methods" (arXiv 1806.08049); Agarwal et al. 2022, "Rethinking stability for attribution-based
    explanations" (arXiv 2203.06877).
    """
    checks.images("x", x)
    checks.kind("ball", ball, Ball)
    checks.count("draws", draws)
    checks.positive("eps_min", eps_min)
    if chunk is not None:
        checks.count("chunk", chunk)
    target, streams = predictions(model, x), attacks.Streams(x, generator=generator)
    if not stochastic(attribution) or marked(attribution, DRAWING):  # others run image by image
        asked = alike(attribution) if stochastic(attribution) else attribution
        guards.each(f"attribution {name_of(attribution)}", asked, model, x, target)
    every = torch.cat([x[:, None], perturbed(x, ball, draws, streams)], 1)
    maps, logits = _explained(attribution, model, every, target, streams, chunk)
    kept = logits[:, 1:].argmax(2) == target[:, None]
    found = measures(every, maps, logits, kept, eps_min=eps_min) | {"kept": kept.double().mean(1)}
    return pd.DataFrame({"image": range(len(x)), **{name: v.cpu().numpy() for name, v in found.items()}})


def perturbed(
    x: Images, ball: Ball, draws: int, streams: attacks.Streams
) -> Float[Tensor, "images draws channels height width"]:
    """Images around each image, of its own stream.

    Example:
        >>> x = torch.full((2, 1, 1, 2), 0.5)
        >>> around = perturbed(x, Ball("linf", 0.1), 3, attacks.Streams(x, generator=torch.Generator()))
        >>> tuple(around.shape), bool(((around - x[:, None]).abs() <= 0.1 + 1e-6).all())
        ((2, 3, 1, 1, 2), True)
    """
    own = [streams(image, "sensitivity") for image in range(len(x))]
    copies = x.detach()[:, None].expand(-1, draws, *x.shape[1:])
    moves = [ball.sample(like, generator=stream) for like, stream in zip(copies, own, strict=True)]
    return (copies + torch.stack(moves)).clamp(0, 1)


def measures(
    x: Pictures, maps: Explained, logits: Answers, kept: Which, *, eps_min: float
) -> dict[str, Float[Tensor, " images"]]:
    """The measures, of images, maps and logits of which the first of each image is the clean one.

    Example:
        >>> x = torch.tensor([0.5, 0.6]).view(1, 2, 1, 1, 1)  # an image and a copy of it, a tenth brighter
        >>> maps, kept = torch.tensor([2.0, 3.0]).view_as(x), torch.ones(1, 1).bool()
        >>> found = measures(x, maps, x[..., 0, 0], kept, eps_min=1e-6)
        >>> round(found["max_sensitivity"].item(), 4), round(found["lipschitz"].item(), 2)
        (0.5, 10.0)
    """
    images, explained = x.double().flatten(2), maps.double().flatten(2)
    way, turn = images[:, 1:] - images[:, :1], explained[:, 1:] - explained[:, :1]
    said = (logits[:, 1:] - logits[:, :1]).double().nan_to_num(0)  # of a masked class, -inf both times
    change, relative = turn.norm(dim=2), _relative(turn, explained[:, :1], eps_min).norm(dim=2)
    share, length = change / explained[:, :1].norm(dim=2), way.norm(dim=2)
    found = {
        "max_sensitivity": share.amax(1),
        "avg_sensitivity": share.mean(1),
        "lipschitz": _largest(change / length, length > 0),
        "ris": _largest(relative / _relative(way, images[:, :1], eps_min).norm(dim=2).clamp_min(eps_min), kept),
        "ros": _largest(relative / said.norm(dim=2).clamp_min(eps_min), kept),
    }
    empty = zero_maps(maps[:, 0])
    return {name: torch.where(empty, torch.nan, value) for name, value in found.items()}


def _explained(
    attribution: Attribution, model: nn.Module, every: Pictures, target: Labels, streams: attacks.Streams,
    chunk: int | None,
) -> tuple[Explained, Answers]:  # fmt: skip
    """Maps and logits of every image, clean and perturbed, in one batch or `chunk` of them at a time."""
    images, copies = every.flatten(0, 1), every.shape[1]
    rows, maps, logits = torch.arange(len(images), device=images.device) // copies, [], []
    for at, of in zip(images.split(chunk or len(images)), rows.split(chunk or len(images)), strict=True):
        own = streams.common(of.tolist()) if stochastic(attribution) else ()
        found = attacks.explain(attribution, model, at, target[of], own).detach()
        maps.append(checks.maps(name_of(attribution), found))
        with torch.no_grad():
            logits.append(checks.logits("model", model(at), batch=len(at), least=2))
    return torch.cat(maps).unflatten(0, (-1, copies)), torch.cat(logits).unflatten(0, (-1, copies))


def _relative(change: Tensor, clean: Tensor, eps_min: float) -> Tensor:
    """A change over the clean entries, over ε where these are 0."""
    return change / torch.where(clean == 0, eps_min, clean)


def _largest(values: Each, counts: Which) -> Float[Tensor, " images"]:
    """The largest value that counts, NaN where none does."""
    return torch.where(counts.any(1), torch.where(counts, values, -torch.inf).amax(1), torch.nan)
