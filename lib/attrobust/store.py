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
from collections.abc import Iterable, Mapping, Sequence
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

# From 3.1 on, pandas restores floats exactly by default and deprecates being asked to.
_EXACT = {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}


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
        shares: notebooks whose evidence serves this one too: from beside `out`, and committed.

    Attributes:
        trained: networks trained for this store (now, or before an interruption).
        reused: networks whose committed evidence was read instead.
        left_out: networks of the grid that could not be computed, with the reason.
    """

    def __init__(
        self, notebook: str, *, out: str | Path = "", committed: bool = True, shares: Sequence[str] = ()
    ) -> None:
        self.notebook = notebook
        self.out = (Path(out) if out else paths.build / notebook).absolute()
        self.committed = [paths.figures / name for name in (notebook, *shares)] if committed else []
        self.beside = [self.out.parent / name for name in shares]
        self.trained: set[str] = set()
        self.reused: set[str] = set()
        self.left_out: dict[str, int] = {}
        (self.out / "progress.log").unlink(missing_ok=True)

    # ------------------------------------------------------------------ rows

    def own_rows(self, keys: Iterable[str]) -> dict[str, dict]:
        """Rows computed for this store, by key."""
        return _rows(self.out, keys)

    def shared_rows(self, keys: Iterable[str]) -> dict[str, dict]:
        """Rows computed for the notebooks that this one shares with, by key; they count there."""
        return {key: row for folder in self.beside for key, row in _rows(folder, keys).items()}

    def committed_rows(self, keys: Iterable[str]) -> dict[str, dict]:
        """Rows that came with the repository, by key."""
        known = self._committed_records("runs*.csv")
        return {key: known[key] for key in keys if key in known}

    def put(self, key: str, row: Mapping[str, object], provenance: Mapping[str, object]) -> None:
        """Write one row and its provenance; called by workers as soon as a run ends."""
        write_json(self.out / "provenance" / f"{key}.json", {"key": key, **provenance})
        write_json(self.out / "rows" / f"{key}.json", dict(row))

    def gather(self, rows: pd.DataFrame) -> None:
        """Write the rows of the notebook's grid to runs.csv, and provenance.csv beside it."""
        write_csv(self.out / "runs.csv", rows)
        known = self._committed_records("provenance*.csv")
        for folder in (*self.beside, self.out):
            known |= _rows(folder, rows["key"], part="provenance")
        write_csv(self.out / "provenance.csv", pd.DataFrame([known[key] for key in rows["key"] if key in known]))

    # ------------------------------------------------------------------ tables and networks

    def has_table(self, name: str, config: object) -> bool:
        """Whether a small table that depends on `config` alone is stored."""
        return self._find("tables", f"{name}-{digest(name, config)}.csv") is not None

    def put_table(self, name: str, config: object, table: pd.DataFrame) -> None:
        """Store a small table that depends on `config` alone."""
        write_csv(self.out / "tables" / f"{name}-{digest(name, config)}.csv", table)

    def table(self, name: str, config: object) -> pd.DataFrame:
        """A stored small table.

        Raises:
            FileNotFoundError: if it is not stored.
        """
        file = f"{name}-{digest(name, config)}.csv"
        path = self._find("tables", file)
        if path is None:
            raise FileNotFoundError(f"table {file} is not stored in {self.out} or among the committed ones")
        return read_csv(path)

    def network_file(self, key: str) -> Path | None:
        """Stored weights of a network, if any."""
        file = f"{key}.safetensors"
        return self._find("networks", file) or self._find("weights", file)

    def save_weights(self, key: str, model: torch.nn.Module) -> None:
        """Store weights in the ignored cache."""
        path = self.out / "weights" / f"{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}, partial)
        partial.replace(path)

    def keep_network(self, key: str, path: Path) -> None:
        """Note that a stored network was used; an own one is put among the reference networks, to be committed."""
        own, shared = path.is_relative_to(self.out), any(path.is_relative_to(folder) for folder in self.beside)
        if path.parent.name != "networks":
            write_bytes(self.out / "networks" / path.name, path.read_bytes())
        self.count(trained=[key] if own else [], reused=[] if own or shared else [key])

    def _find(self, part: str, file: str) -> Path | None:
        folders = (self.out, *self.beside, *self.committed)
        return next((path for folder in folders if (path := folder / part / file).is_file()), None)

    def _committed_records(self, pattern: str) -> dict[str, dict]:
        tables = [read_csv(p) for folder in self.committed for p in sorted(folder.glob(pattern), reverse=True)]
        return {row["key"]: row for table in tables for row in table.to_dict("records")}

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

    def count(self, *, trained: Iterable[str] = (), reused: Iterable[str] = ()) -> None:
        """Count networks by their training key: trained for this store, or read from committed evidence."""
        self.trained |= set(trained)
        self.reused |= set(reused)
        self.summarise()

    def summarise(self) -> None:
        """Write how many networks were trained, reused and left out."""
        counts = {"trained": len(self.trained), "reused": len(self.reused), "left_out": self.left_out}
        write_json(self.out / "summary.json", counts)


# ---------------------------------------------------------------------- files


def _rows(folder: Path, keys: Iterable[str], *, part: str = "rows") -> dict[str, dict]:
    return {key: row for key in keys if (row := read_json(folder / part / f"{key}.json")) is not None}


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
    """JSON of a file; None where there is none.

    Raises:
        ValueError: if the file is not JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and what it holds is computed again") from error


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table by atomic rename; floats in their shortest exact form."""
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table with floats restored exactly."""
    return pd.read_csv(path, **_EXACT)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by atomic rename: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def _at_default(value: object, field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING and getattr(value, field.name) == field.default


@cache
def _commit() -> str:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=paths.root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()
