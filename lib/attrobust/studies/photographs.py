"""What notebook 05 asks of a real network: do averaged maps of photographs hold against an attack that knows of them?

The network is not trained again. An attack climbs on the average of a few fresh draws at every step (expectation over
transformation: Athalye et al. 2018), and what it finds is judged on an average of many, the same ones before and after.
"""

from contextlib import suppress
from functools import partial

import pandas as pd
import torch
from torch import nn

from attrobust import attacks, attributions, checks, claims, data, experiments, models, similarity
from attrobust.attacks.streams import stochastic
from attrobust.balls import Ball
from attrobust.models.readouts import predictions
from attrobust.shapes import Attribution, Images, Importances, Labels
from attrobust.versions import versioned

#: Draws of a map that is climbed, and of one that is judged; noise that is tried beside an attack.
CLIMBED, JUDGED, TRIES = 4, 32, 4
#: Sharpness of the twins that are tried in turn.
BETAS = (10.0, 5.0, 2.0)
#: The way to change the image that tells how like the maps of any two photographs are.
OTHER = "another photograph"


def averaged(samples: int) -> dict[str, Attribution]:
    """Saliency, and it averaged over so many draws, with the settings of all notebooks; `CLIMBED` run at a time."""
    how = {"samples": samples, "chunk": CLIMBED if samples > CLIMBED else None}
    every = experiments.of_pixels()
    return {"saliency": attributions.saliency} | {n: partial(every[n], **how) for n in ("uniform_grad", "smooth_grad")}


@versioned(1)
def smoothed_photograph(name: str, radius: float, steps: int) -> pd.DataFrame:
    """Rank correlation of the maps of a photograph before and after, a row per map and way to change the image.

    Ways: "noise" (the worst of `TRIES` on the ball's boundary), "saliency attacked" (what was found against saliency),
    "attacked" (against this map), "redrawn" (the same image under other draws) and "another photograph". `top_k` is the
    share of the leading tenth of the pixels that stays, `probability` that of the class predicted `before`, which every
    changed image keeps; NaN where none was found that does. One ascent of so many steps on the rank correlation,
    through the sharpest of the twins `BETAS` whose derivative passes the audit; NaN, too, where none does. The linf
    radius is in 1/255 of the pixel range.
    """
    names = list(data.PHOTOGRAPHS)
    other = data.photographs([names[(names.index(checks.one_of("name", name, names)) + 1) % len(names)]])
    model, x, ball = models.EfficientNetLite0(), data.photographs([name]), Ball("linf", radius / 255)
    target, k, rows = predictions(model, x), x[0, 0].numel() // 10, []
    draw = torch.Generator().manual_seed(0)
    noisy = [(x + ball.boundary(x, generator=draw)).clamp(0, 1) for _ in range(TRIES)]
    ways = {"noise": [at for at in noisy if torch.equal(predictions(model, at), target)]}
    for kind, judged in averaged(JUDGED).items():
        ways["attacked"] = _attacked(averaged(CLIMBED)[kind], model, x, ball, k=k, steps=steps)
        drawn = partial(_drawn, judged, model, target=target)
        once = drawn(x, seed=1)
        for way, images in ways.items():
            told = [_alike(once, drawn(at, seed=1), k) for at in images]
            worst = min(range(len(told)), key=lambda i: told[i]["spearman"], default=None)
            sure = {} if worst is None else told[worst] | {"probability": _probability(model, images[worst], target)}
            rows.append({"map": kind, "way": way} | sure)
        rows.append({"map": kind, "way": OTHER} | _alike(once, drawn(other, seed=1), k))
        if stochastic(judged):
            rows.append({"map": kind, "way": "redrawn"} | _alike(once, drawn(x, seed=2), k))
        ways.setdefault("saliency attacked", ways["attacked"])
    return pd.DataFrame(rows).assign(photograph=name, before=_probability(model, x, target))


def contrasts(rows: pd.DataFrame) -> pd.DataFrame:
    """`claims.cells` of the rank correlations of many photographs, a photograph in the place of a seed.

    Column `map`, and `contrast`: each way to change the image against "another photograph", the attack against noise,
    and an averaged map against saliency, both attacked.
    """
    place = {name: i for i, name in enumerate(data.PHOTOGRAPHS)}
    rows = rows.rename(columns={"spearman": "value"}).assign(comparable=True, seed=rows["photograph"].map(place))
    attacked, kinds = rows[rows["way"] == "attacked"], [kind for kind in rows["map"].unique() if kind != "saliency"]
    asked = [(way, rows, "way", (OTHER, way)) for way in rows["way"].unique() if way != OTHER]
    asked += [("attack beyond noise", rows, "way", ("noise", "attacked"))]
    asked += [("beyond saliency", attacked.assign(of=kind), "map", ("saliency", kind)) for kind in kinds]
    found = [
        claims.cells(part.assign(contrast=name), by=by, arm=["of" if by == "map" else "map", "contrast"], ends=ends,
                     family=[], room=None).rename(columns={"of": "map"})
        for name, part, by, ends in asked
    ]  # fmt: skip
    found = pd.concat(found, ignore_index=True)
    return found[found["seeds"] > 0].reset_index(drop=True)


def _attacked(attribution: Attribution, model: nn.Module, x: Images, ball: Ball, *, k: int, steps: int) -> list[Images]:
    """The photograph at which its map is least like the clean one; none if it cannot be climbed, or loses its class."""
    for beta in BETAS:
        effort = attacks.Effort(steps=steps, restarts=1, draws=1, walk=0, objectives=("spearman",), betas=(beta,))
        with suppress(attacks.BlindError):
            draw = torch.Generator().manual_seed(0)
            found = attacks.auto(attribution, model, x, ball, k=k, generator=draw, effort=effort)
            return [found.x["spearman"]] if found.counted.all() else []
    return []


def _drawn(attribution: Attribution, model: nn.Module, x: Images, *, target: Labels, seed: int) -> Importances:
    """Importances of one photograph, under draws of its own."""
    how = {"generator": torch.Generator().manual_seed(seed)} if stochastic(attribution) else {}
    with torch.no_grad():
        return attributions.pixelwise(attribution(model, x, target, **how))


def _alike(one: Importances, other: Importances, k: int) -> dict[str, float]:
    found = {"spearman": similarity.spearman(one, other), "top_k": similarity.topk_intersection(one, other, k=k)}
    return {name: float(value) for name, value in found.items()}


def _probability(model: nn.Module, x: Images, target: Labels) -> float:
    return float(model(x).softmax(1).gather(1, target[:, None]))
