"""What an audit leaves in its folder beside the notebook: numbers as JSON and CSV, the worst pictures."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from attrobust import attributions, claims
from attrobust.audit.advice import Advice
from attrobust.audit.batches import Audited
from attrobust.audit.measured import ATTACK, MEASURES
from attrobust.experiments.store import write_csv, write_npz
from attrobust.models.watched import weights
from attrobust.paths import write_bytes

#: How much the change of a picture is amplified where it is shown.
AMPLIFIED = 10

#: How files of the worst pictures end.
_ENDS = (".npz", "_clean.png", "_attacked.png")
#: What an audit leaves in its folder, beside the notebook and the tables that the next one goes on from.
_LEFT = ("report.html", "report.json", "pictures.csv", "claims.csv", "summary.json")
_LEFT += ("figures/a_maps.*", "figures/b_radius.*", "figures/c_worst.*")
_WORST = tuple(f"worst/[0-9]*{end}" for end in _ENDS)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over pictures with their 95 % intervals: a row per map, what it was compared with, and measure.

    Pictures whose map is zero, and those that no attack reached, have no number; `n` counts the others.

    Example:
        >>> table = pd.DataFrame({"map": "saliency", "radius": 0.1, "compared": ["attack"], "zero": 0, "output": 0.0})
        >>> found = summary(table.assign(top_k=0.5, spearman=0.5, cosine=0.5))
        >>> found[["metric", "mean", "n"]].to_numpy().tolist()[0]
        ['top_k', 0.5, 1]
    """
    told = table[table["zero"] == 0]
    if told.empty:
        return pd.DataFrame(columns=["map", "radius", "compared", "metric", "mean", "low", "high", "n"])
    return claims.means(told, [*MEASURES, "output"], by=["map", "radius", "compared"])


def write(
    folder: Path, audited: Audited, advice: Sequence[Advice], *, told: Mapping[str, object], names: Sequence[str]
) -> list[str]:
    """Write report.json, pictures.csv and the folder worst/; the names of the files, in order.

    Args:
        folder: where; files that stood there under these names are replaced.
        audited, advice: what was found and what follows.
        told: what the report says beside (parameters, accuracy, versions): values that JSON can hold.
        names: of the pictures.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> table = pd.DataFrame({"map": "saliency", "radius": 0.1, "compared": ["attack"], "zero": 0, "output": 0.0})
        >>> with TemporaryDirectory() as folder:
        ...     found = Audited(table.assign(image=0, top_k=0.5, spearman=0.5, cosine=0.5))
        ...     write(Path(folder), found, [], told={"radius": 0.1}, names=["a.png"])
        ['report.json', 'pictures.csv']
    """
    table = audited.table.assign(picture=audited.table["image"].map(dict(enumerate(names))))
    content = {**told, "means": summary(table).to_dict("records"), "refused": audited.refused}
    content["advice"] = [piece._asdict() for piece in advice]
    write_bytes(folder / "report.json", json.dumps(_plain(content), indent=1, allow_nan=False).encode())
    write_csv(folder / "pictures.csv", table)
    written = ["report.json", "pictures.csv"]
    clear(folder, _WORST)
    for number, (name, worst) in enumerate(audited.worst.items(), start=1):
        for place, index in enumerate(worst["index"]):
            stem = f"{number}_{_file_name(name)}_{place + 1}_{_file_name(names[index])}"
            arrays = {key: values[place] for key, values in worst.items() if key != "index"}
            exact, clean, moved = (folder / "worst" / f"{stem}{end}" for end in _ENDS)
            write_npz(exact, arrays)
            write_bytes(clean, _png(arrays["x"]))
            write_bytes(moved, _png(arrays["at"]))
            written += [f"worst/{path.name}" for path in (exact, clean, moved)]
    return written


def clear(folder: Path, patterns: Sequence[str] = (*_LEFT, *_WORST)) -> None:
    """Remove the report that an audit left in a folder, or files of some patterns; tables of what is finished stay.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("report.json", "mine.json"):
        ...         _ = Path(folder, name).write_text("{}")
        ...     clear(Path(folder))
        ...     [path.name for path in Path(folder).iterdir()]
        ['mine.json']
    """
    for old in [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]:
        old.unlink()


def panels(
    audited: Audited, name: str, names: Sequence[str], *, model: nn.Module, classes: Sequence[str] = (), most: int = 4
) -> dict[tuple[str, str], tuple[str, np.ndarray, str]]:  # fmt: skip
    """The worst pictures of a map for `figures.pixels`: picture, its map, the change amplified, the map after it.

    Below each picture stand the class that the model predicts, in words where `classes` has them, and its probability.
    Photographs (three channels) come with the importance of each pixel, others with the sum of the map's channels.

    Example:
        >>> one = np.full((1, 1, 2, 2), 0.5, dtype=np.float32)
        >>> worst = {"saliency": {"index": np.array([0]), "x": one, "at": one, "clean": one, "moved": one}}
        >>> table = pd.DataFrame({"map": "saliency", "compared": [ATTACK], "image": 0, "top_k": 0.5})
        >>> found = panels(Audited(table, worst), "saliency", ["a"], model=torch.nn.Flatten())
        >>> [column for _, column in found]
        ['picture', 'its map', 'change × 10', 'picture attacked', 'map attacked']
    """
    worst, found = audited.worst[name], {}
    device = next((tensor.device for tensor in weights(model)), "cpu")
    left = audited.table[(audited.table["map"] == name) & (audited.table["compared"] == ATTACK)].set_index("image")

    def seen(x: np.ndarray) -> tuple[str, np.ndarray, str]:
        with torch.no_grad():
            sure, predicted = model(torch.from_numpy(x[None]).to(device)).softmax(1)[0].max(0)
        said = classes[predicted] if predicted < len(classes) else f"class {int(predicted)}"
        return (*_shown(x), f"{said}, {float(sure):.2f}")

    for place, index in enumerate(worst["index"][:most]):
        row = f"{place + 1}: {names[index]}"
        x, at, clean, moved = (worst[part][place] for part in ("x", "at", "clean", "moved"))
        found[row, "picture"] = seen(x)
        found[row, "its map"] = (*_mapped(clean, x), "")
        found[row, f"change × {AMPLIFIED}"] = (*_shown((0.5 + AMPLIFIED * (at - x)).clip(0, 1)), "")
        found[row, "picture attacked"] = seen(at)
        found[row, "map attacked"] = (*_mapped(moved, x), f"{left.loc[index, 'top_k']:.0%} of the leaders stay")
    return found


def _shown(x: np.ndarray) -> tuple[str, np.ndarray]:
    return ("photograph", x) if len(x) == 3 else ("image", x.mean(0))


def _mapped(values: np.ndarray, x: np.ndarray) -> tuple[str, np.ndarray]:
    if len(x) == 3:
        return "importance", attributions.pixelwise(torch.from_numpy(values)[None])[0].numpy()
    return "signed", values.sum(0)


def _plain(value: object) -> object:
    """What JSON can hold: numbers that are none, and intervals without ends, become null; all else its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _file_name(text: str) -> str:
    """A name that any file system takes, and that leads into no other folder."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")[:40] or "picture"


def _png(pixels: np.ndarray) -> bytes:
    """A picture (channels, height, width) in [0, 1] as PNG; of other than one or three channels their mean."""
    shown = pixels if len(pixels) in (1, 3) else pixels.mean(0, keepdims=True)
    values = (255 * shown.clip(0, 1)).round().astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values).save(file, "PNG")
    return file.getvalue()
