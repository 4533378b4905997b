"""The page's frames, as sheets of pictures and of maps, and its numbers, all from stored walks.

A sheet holds a frame per radius from left to right. Pictures have a row per map, by which they were attacked; maps have
two, that of the attacked picture and that under noise. What the page says stands in `frames.js`, a script and no JSON
file, so that the page works from a folder, too.
"""

import io
import json

import matplotlib as mpl
import numpy as np
import pandas as pd
import PIL.Image
from attrobust import paths
from attrobust.audit.measured import ATTACK, NOISE
from attrobust.figures.style import label
from attrobust.paths import write_bytes

from slider.subjects import GREYS, SUBJECTS, credit

PLACE = paths.root / "docs" / "slider"

#: Of the walks by map.
Walks = dict[str, tuple[pd.DataFrame, dict[str, np.ndarray]]]


def pictures(walks: Walks, every: int) -> np.ndarray:
    """Attacked pictures in grey levels, one row per map."""
    rows = []
    for _, arrays in walks.values():
        moved = arrays["clean"].astype(np.int16) + arrays["change"]
        rows.append(np.concatenate(list(moved[..., ::every, ::every].transpose(0, 2, 3, 1)), axis=1))
    return np.concatenate(rows).astype(np.uint8)


def maps(walks: Walks) -> np.ndarray:
    """Maps as levels of `GREYS`, two rows per map: under attack, and under noise."""
    parts = [arrays[part] for _, arrays in walks.values() for part in ("maps", "noise_maps")]
    return np.concatenate([np.concatenate(list(part), axis=1) for part in parts])


def drawn(values: np.ndarray, *, shades: bool = False) -> PIL.Image.Image:
    """A sheet; `shades` are drawn as the maps of all figures are."""
    picture = PIL.Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values)
    if shades:
        colors = mpl.colormaps["Greys"](np.linspace(0, 1, GREYS))[:, :3]
        picture.putpalette((255 * colors).round().astype(np.uint8).tobytes())
    return picture.convert("RGB")


def webp(picture: PIL.Image.Image) -> bytes:
    """A picture as a file that loses nothing."""
    file = io.BytesIO()
    picture.save(file, format="webp", lossless=True, quality=100, method=6)
    return file.getvalue()


def files(name: str) -> dict[str, str]:
    """The names of the files of a picture's two sheets."""
    return {sheet: f"{name.replace(' ', '_')}_{sheet}.webp" for sheet in ("pictures", "maps")}


def sheets(name: str, walks: Walks) -> dict[str, PIL.Image.Image]:
    """Both sheets of a picture, by the names of their files."""
    both = drawn(pictures(walks, SUBJECTS[name].every)), drawn(maps(walks), shades=True)
    return dict(zip(files(name).values(), both, strict=True))


def told(name: str, walks: Walks) -> dict[str, object]:
    """What the page says of one picture."""
    shown = SUBJECTS[name]
    about = {"name": name, "credit": credit(name), "network": shown.network, "radii": [*shown.radii]}
    about |= files(name) | {"walks": []}
    for kind, (table, arrays) in walks.items():
        places = "pixels" if int(table["places"].iloc[0]) == arrays["clean"][0].size else "places"
        walk = {"map": label(kind), "leading": int(table["leading"].iloc[0]), "places": places}
        for part, compared in (("attack", ATTACK), ("noise", NOISE)):
            rows = table[table["compared"] == compared]
            walk[part] = [
                {"class": row["class"], "probability": round(row["probability"], 4), "stay": round(row["top_k"], 4)}
                for row in rows.to_dict("records")
            ]
        about["walks"].append(walk)
    return about


def write(by_picture: dict[str, Walks]) -> None:
    """Draw all sheets and write what the page says."""
    for name, walks in by_picture.items():
        for file, sheet in sheets(name, walks).items():
            write_bytes(PLACE / file, webp(sheet))
    said = json.dumps([told(name, walks) for name, walks in by_picture.items()], indent=1, ensure_ascii=False)
    write_bytes(PLACE / "frames.js", f"const walks = {said};\n".encode())
