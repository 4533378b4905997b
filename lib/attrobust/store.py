"""Where evidence lives: rows of trained networks, small tables, a few reference networks.

A notebook reads committed evidence from ``figures/<notebook>/`` and its own from ``out``; it writes to ``out`` only.
Everything is addressed by a digest of the configuration it depends on, the data set's digest and an explicit code
version, so a changed parameter finds nothing and is computed, and an unchanged one is never computed twice. One
small file per run while a sweep is under way, gathered into ``runs.csv`` when it ends; files appear by atomic rename.
Measured columns are reproducible bit for bit on one machine; provenance stands in a file of its own.
"""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import torch
from safetensors.torch import load_file, save_file

from attrobust import paths

#: Raise by one whenever a change of code changes measured numbers.
CODE_VERSION = 1


def canonical(config: object) -> str:
    """Configuration as JSON with sorted keys; dataclass fields at their default are left out.

    A field added later, at its default, thus leaves the keys of old rows as they are.

    Example:
        >>> canonical({"b": 1, "a": (0.5, 2)})
        '{"a": [0.5, 2], "b": 1}'
    """

    def plain(value: object) -> object:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if not _at_default(value, f)}
            return plain(fields)
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    return json.dumps(plain(config), sort_keys=True)


def digest(*configs: object) -> str:
    """Sixteen hex digits that name a configuration (and the code version)."""
    text = "|".join(canonical(c) for c in (CODE_VERSION, *configs))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """Evidence of one notebook.

    Args:
        notebook: stem of the notebook, such as "03_sgd_flattens".
        out: folder for new evidence; "" means build/<notebook>/.
        committed: whether evidence committed under figures/<notebook>/ may be read.

    Attributes:
        trained: networks trained for this store (now, or before an interruption).
        reused: networks whose committed evidence was read instead.
        left_out: networks of the grid that could not be computed, with the reason.
    """

    def __init__(self, notebook: str, *, out: str | Path = "", committed: bool = True) -> None:
        self.notebook = notebook
        self.out = (Path(out) if out else paths.build / notebook).absolute()
        self.committed = paths.figures / notebook if committed else None
        self.trained: set[str] = set()
        self.reused: set[str] = set()
        self.left_out: dict[str, int] = {}
        (self.out / "progress.log").unlink(missing_ok=True)

    # ------------------------------------------------------------------ rows

    def rows(self, keys: Iterable[str]) -> dict[str, dict]:
        """Rows that exist already, by key; own ones first, then committed ones."""
        keys = list(keys)
        found = {key: row for key in keys if (row := read_json(self.out / "rows" / f"{key}.json")) is not None}
        self.trained |= set(found)
        committed = _committed_rows(self.committed)
        reused = {key: committed[key] for key in keys if key not in found and key in committed}
        self.reused |= set(reused)
        return found | reused

    def put(self, key: str, row: Mapping[str, object], provenance: Mapping[str, object]) -> None:
        """Write one row and its provenance; called by workers as soon as a run ends."""
        write_json(self.out / "provenance" / f"{key}.json", {"key": key, **provenance})
        write_json(self.out / "rows" / f"{key}.json", dict(row))

    def gather(self, rows: pd.DataFrame) -> None:
        """Write the rows of the notebook's grid to runs.csv, and provenance.csv beside it."""
        write_csv(self.out / "runs.csv", rows)
        old = _committed_table(self.committed, "provenance.csv")
        fresh = [read_json(self.out / "provenance" / f"{key}.json") for key in rows["key"]]
        known = {} if old is None else {row["key"]: row for row in old.to_dict("records")}
        records = [row or known.get(key) for key, row in zip(rows["key"], fresh, strict=True)]
        write_csv(self.out / "provenance.csv", pd.DataFrame([r for r in records if r]))

    # ------------------------------------------------------------------ tables and networks

    def table(self, name: str, config: object, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A small table that depends on `config` alone; computed once.

        Args:
            name: of the table; part of its file's name.
            config: everything the table depends on, data fingerprints included.
            compute: returns the table.
        """
        file = f"{name}-{digest(name, config)}.csv"
        for folder in (self.out, self.committed):
            if folder is not None and (folder / "tables" / file).is_file():
                table = read_csv(folder / "tables" / file)
                break
        else:
            write_csv(self.out / "tables" / file, compute())
            table = read_csv(self.out / "tables" / file)
        if not (self.out / "tables" / file).is_file():
            write_csv(self.out / "tables" / file, table)
        return table

    def network_file(self, key: str) -> Path | None:
        """Stored weights of a network, if any."""
        for folder in (self.out / "networks", self.out / "weights", self.committed and self.committed / "networks"):
            if folder is not None and (folder / f"{key}.safetensors").is_file():
                return folder / f"{key}.safetensors"
        return None

    def save_weights(self, key: str, model: torch.nn.Module, *, reference: bool = False) -> None:
        """Store weights: in the ignored cache, or (reference) among the networks that are committed."""
        path = self.out / ("networks" if reference else "weights") / f"{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}, partial)
        partial.replace(path)

    # ------------------------------------------------------------------ bookkeeping

    def report(self, line: str) -> None:
        """Append a line to the progress log, which the runner shows."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "progress.log").open("a") as log:
            log.write(line + "\n")

    def leave_out(self, reason: str, networks: int) -> None:
        """Note that part of the grid was not computed, and why."""
        self.left_out[reason] = networks
        self.summarise()

    def summarise(self) -> None:
        """Write how many networks were trained, reused and left out."""
        counts = {"trained": len(self.trained), "reused": len(self.reused), "left_out": self.left_out}
        write_json(self.out / "summary.json", counts)


# ---------------------------------------------------------------------- files


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights from a safetensors file (no code is ever executed)."""
    return load_file(path)


def provenance(seconds: float, device: str) -> dict[str, object]:
    """Where and how a row came to be."""
    return {
        "seconds": round(seconds, 3),
        "device": device,
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def write_json(path: Path, value: object) -> None:
    """Write JSON by atomic rename; numbers survive the round trip bit for bit."""
    write_bytes(path, json.dumps(value).encode())


def read_json(path: Path) -> dict | None:
    """JSON of a file; None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table by atomic rename; floats in their shortest exact form."""
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table with floats restored exactly."""
    return pd.read_csv(path, float_precision="round_trip")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by atomic rename: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def _committed_table(folder: Path | None, name: str) -> pd.DataFrame | None:
    return read_csv(folder / name) if folder is not None and (folder / name).is_file() else None


def _committed_rows(folder: Path | None) -> dict[str, dict]:
    table = _committed_table(folder, "runs.csv")
    return {} if table is None else {row["key"]: row for row in table.to_dict("records")}


def _at_default(value: object, field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING and getattr(value, field.name) == field.default


@cache
def _commit() -> str:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=paths.root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()
