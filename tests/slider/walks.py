"""One walk: a picture attacked at every radius, each time from the beginning, and judged as it is saved, in 8 bits.

The found picture is rounded to whole grey levels, which keeps it in its ball, whose radius is a whole number of them.
What is told of it, class, probability and the share of the clean map's leading places that lead still, is that of the
rounded picture, so that anybody can check it. Beside it stands one draw of random signs of the same size, the same
signs at every radius.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from attrobust import attacks, attributions, experiments, paths, similarity
from attrobust.attacks.streams import stochastic
from attrobust.attributions.importance import unwrapped
from attrobust.audit.batches import leaders_of
from attrobust.audit.measured import ATTACK, NOISE
from attrobust.balls import Ball
from attrobust.experiments.store import Store
from attrobust.models.readouts import predictions
from attrobust.shapes import Attribution, Images, Importances, Labels
from attrobust.versions import digest
from torch import nn

from slider.subjects import GARMENT, GREYS, LEADING, SEED, SMALL, SUBJECTS, opened

#: Full colour stands for this quantile of a map.
MOST = 0.99

#: Raised when what is computed here changes.
VERSION = 1

#: How the two files of a walk end.
ENDS = (".csv", ".npz")


def store_of(out: str = "") -> Store:
    """The store of all walks."""
    return Store("slider", out=out or paths.build / "slider", shares=["01_fragile_attributions"])


def tasks() -> Iterator[tuple[str, str]]:
    """Every picture with every map, what takes least first."""
    return ((name, kind) for name, shown in reversed(SUBJECTS.items()) for kind in shown.maps)


def key_of(name: str, kind: str) -> str:
    """Name of all that a walk depends on."""
    shown = SUBJECTS[name]
    function = unwrapped(experiments.of_pixels()[kind])
    config = {"picture": name, "map": kind, "radii": shown.radii, "effort": shown.effort, "every": shown.every}
    config |= {"network": experiments.network(SMALL) if shown is GARMENT else shown.network}
    config |= {"leading": LEADING, "seed": SEED, "greys": GREYS, "version": VERSION}
    return digest(config | {"functions": [attacks.auto, function]})


def walk(name: str, kind: str, store: Store) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Rows and arrays of a walk, stored ones if there are any."""
    key = key_of(name, kind)
    if store.table_file("walk", key):
        return store.table("walk", key), store.arrays("walk", key)
    table, arrays = walked(name, kind, store)
    store.put_arrays("walk", key, arrays)
    store.put_table("walk", key, table)
    return table, arrays


def walked(name: str, kind: str, store: Store) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Attack a picture at every radius; a row per radius and comparison, and what is seen at each radius.

    Arrays: `clean`, the picture, and `change`, what each attack adds to it, both in grey levels; `maps` under attack
    and `noise_maps`, as they are shown.
    """
    shown = SUBJECTS[name]
    model, x, attribution, classes = opened(name, kind, store)
    target, k = predictions(model, x), leaders_of(attribution, model, x, LEADING)
    clean, rows = importances(attribution, model, x, target), []
    found = {part: [] for part in ("change", "maps", "noise_maps")}
    for radius in shown.radii:
        choices = {NOISE: [noisy(x, radius)], ATTACK: [x]}
        if radius:
            ball, draw = Ball("linf", radius / 255), torch.Generator().manual_seed(SEED)
            choices[ATTACK] = attacks.auto(
                attribution, model, x, ball, k=k, generator=draw, effort=shown.effort
            ).x.values()
        for compared, images in choices.items():
            told = []
            for at in map(grey_levels, images):
                with torch.no_grad():
                    sure, label = model(at).softmax(1)[0].max(0)
                own = importances(attribution, model, at, target)
                stays = float(similarity.topk_intersection(clean, own, k=k))
                row = {"picture": name, "map": kind, "radius": radius, "compared": compared}
                row |= {"class": classes[int(label)], "label": int(label), "probability": float(sure), "top_k": stays}
                if compared == NOISE or int(label) == int(target):
                    told.append((stays, row, at, own))
            _, row, at, own = min(told, key=lambda one: one[0])
            rows.append(row)
            found["noise_maps" if compared == NOISE else "maps"].append(greys(own[0].numpy(), shown.every))
            if compared == ATTACK:
                found["change"].append((255 * (at - x)).round().to(torch.int8)[0].numpy())
    arrays = {part: np.stack(values) for part, values in found.items()}
    return pd.DataFrame(rows).assign(places=clean.numel(), leading=k), {"clean": levels(x)[0]} | arrays


def importances(attribution: Attribution, model: nn.Module, x: Images, target: Labels) -> Importances:
    """Importance of each place of a picture's map; of a stochastic one under the same draws at every call."""
    how = {"generator": torch.Generator().manual_seed(SEED)} if stochastic(attribution) else {}
    return attributions.pixelwise(attribution(model, x, target, **how)).detach()


def noisy(x: Images, radius: float) -> Images:
    """The picture under random signs of this size, the same signs whatever the radius."""
    kick = Ball("linf", radius / 255).boundary(x, generator=torch.Generator().manual_seed(SEED))
    return (x + kick).clamp(0, 1)


def levels(x: Images) -> np.ndarray:
    """A picture in grey levels, as a file holds it."""
    return (255 * x).round().to(torch.uint8).numpy()


def grey_levels(x: Images) -> Images:
    """A picture as it is read from such a file."""
    return torch.from_numpy(levels(x)).float() / 255


def greys(importance: np.ndarray, every: int) -> np.ndarray:
    """A map as it is shown: every so many-th place, from 0 for what does not matter to `GREYS` - 1 for what leads."""
    full = np.quantile(importance, MOST) or 1.0
    return ((GREYS - 1) * (importance[::every, ::every] / full).clip(0, 1)).round().astype(np.uint8)
