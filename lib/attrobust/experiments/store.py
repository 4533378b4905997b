"""Where evidence lives: rows of trained networks, small tables, a few reference networks.

A notebook reads committed evidence from ``figures/<notebook>/`` and its own from ``out``; it writes to ``out`` only.
Everything is addressed by a digest of all that it depends on (see `versions`). A run has one small file during a sweep,
gathered into ``runs.csv`` and ``attacked.csv`` at its end; provenance stands in a file of its own.
"""

import io
import json
import platform
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

from attrobust import __version__, claims, paths
from attrobust.experiments.leases import busy
from attrobust.experiments.shards import Elsewhere
from attrobust.paths import write_bytes
from attrobust.rows import Rows

# From 3.1 on, pandas restores floats exactly by default and deprecates being asked to.
_EXACT = {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}

#: Committed folders of a checkout, beside those of the notebooks and their figures.
_COMMITTED = ("lib", "tests", ".git", ".github", ".ci")

_RESTORED = "restore it by git, or recompute it by make reproduce UPDATE=1"


#: Profiles whose committed rows are evidence; those of others are a second draw of the same rows, for comparison.
READ = ("cpu", "full")


def committed_as(stem: str, profile: str) -> str:
    """Name under which a profile's rows and claims are committed: runs.csv (cpu), runs_full.csv (full)."""
    return f"{stem}.csv" if profile == "cpu" else f"{stem}_{profile}.csv"


class EvidenceError(ValueError):
    """Committed evidence is not what it should be; the message names file, line and remedy."""


@dataclass(frozen=True)
class Stored:
    """One stored row as it was read."""

    run: dict[str, object] = field(default_factory=dict)  # columns of runs.csv
    attacked: list[dict[str, object]] = field(default_factory=list)  # its lines of attacked.csv
    place: str = ""  # file, and line where it has one
    fault: str = ""  # why it could not be read


class Store:
    """Evidence of one notebook, by its stem; it counts networks that were trained, reused and left out.

    New evidence goes to the folder `out`, not among committed files ("" means build/<notebook>/); what is committed
    under figures/<notebook>/ may be read if `committed`. Rows and networks of the notebooks in `shares` serve this one
    too: committed, and from beside `out` if the same reproduction made them. Networks are trained on `device`.
    """

    out: Path
    committed: list[Path]
    beside: list[Path]
    elsewhere: int

    def __init__(
        self, notebook: str, *, out: str | Path = "", committed: bool = True, shares: Sequence[str] = (),
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.name = notebook
        self.device = device
        self.out = place_for(out) if out else (paths.build / notebook).absolute()
        self.committed = [paths.figures / name for name in (notebook, *shares)] if committed else []
        self.beside = [folder for name in shares if made_in(folder := self.out.parent / name) == made_in(self.out)]
        self.trained: set[str] = set()  # now, or before an interruption
        self.reused: set[str] = set()  # committed evidence was read instead
        self.left_out: Counter[str] = Counter()  # how many, by the reason
        self.tables: set[Path] = set()  # files of small tables that were read
        self.elsewhere = 0  # sweeps of which other shards have a part
        if not busy(self.leases):  # else another sweep writes there
            (self.out / "progress.log").unlink(missing_ok=True)
        paths.sweep(self.out)

    def committed_rows(self, keys: Iterable[str]) -> dict[str, Stored]:
        """Rows that came with the repository, by key; the notebook's own stand before those of shared ones."""
        known: dict[str, Stored] = {}
        for folder in self.committed:
            known = _committed(folder) | known
        return {key: known[key] for key in keys if key in known}

    @property
    def data_sets(self) -> set[str]:
        """Data sets that committed rows speak of."""
        return {row.run.get("dataset") for folder in self.committed for row in _committed(folder).values()}

    def committed_claims(self, profile: str = "full") -> pd.DataFrame:
        """Verdicts of another profile than cpu that came with the repository; no line where there are none."""
        path = self.committed[0] / committed_as("claims", profile) if self.committed else None
        return read_csv(path) if path and path.is_file() else pd.DataFrame(columns=[*claims.COLUMNS])

    def put(
        self, key: str, run: Mapping[str, object], attacked: Sequence[Mapping[str, object]], made: Mapping[str, object]
    ) -> None:
        """Write one row after its provenance; called by workers as soon as a run ends."""
        told = {"provenance": {"key": key, **made}, "rows": {"run": run, "attacked": list(attacked)}}
        for folder, packed in {folder: json.dumps(value) for folder, value in told.items()}.items():  # all or nothing
            write_bytes(self.out / folder / f"{key}.json", packed.encode())
        self.failure(key).unlink(missing_ok=True)

    def fail(self, key: str, what: str, trace: str) -> None:
        """Keep the traceback of a run or table that failed, and say so in the progress log."""
        write_bytes(self.failure(key), trace.encode())
        self.report(f"!!! FAILED: {what}: {trace.rstrip().splitlines()[-1]} (all of it in {self.failure(key)})")

    def failure(self, key: str) -> Path:
        """Where the traceback of a run or table stands, if it failed when it was last tried."""
        return self.out / "failed" / f"{key}.txt"

    @property
    def leases(self) -> Path:
        """The folder of the leases of its runs and networks."""
        return self.out / "leases"

    def gather(self, rows: Rows) -> None:
        """Write the rows of the notebook's grid to runs.csv and attacked.csv, and provenance.csv beside them."""
        write_csv(self.out / "runs.csv", rows.runs)
        write_csv(self.out / "attacked.csv", rows.attacked)
        tables = [read_csv(path) for folder in self.committed for path in _evidence(folder, "provenance")]
        known = {line["key"]: line for table in reversed(tables) for line in table.to_dict("records")}
        for folder in (*self.beside, self.out):
            made = {key: read_json(folder / "provenance" / f"{key}.json") for key in rows.runs["key"]}
            known |= {key: line for key, line in made.items() if line is not None}
        write_csv(self.out / "provenance.csv", pd.DataFrame([known[key] for key in rows.runs["key"] if key in known]))

    def put_table(self, name: str, key: str, table: pd.DataFrame) -> None:
        """Store a small table under the key of all it depends on."""
        write_csv(self.out / "tables" / f"{name}-{key}.csv", table)
        self.failure(f"{name}-{key}").unlink(missing_ok=True)

    def table(self, name: str, key: str) -> pd.DataFrame:
        """A stored small table; a FileNotFoundError if it is not stored."""
        path = self.table_file(name, key)
        if path is None:
            raise FileNotFoundError(f"table {name}-{key}.csv is not stored in {self.out} or among the committed ones")
        self.tables.add(path)
        return read_csv(path)

    def put_arrays(self, name: str, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Store a few small arrays beside a table of the same key."""
        write_npz(self.out / "tables" / f"{name}-{key}.npz", arrays)

    def arrays(self, name: str, key: str) -> dict[str, np.ndarray] | None:
        """Stored arrays, None where there are none; nothing pickled is read, and a damaged file says so."""
        path = self.table_file(name, key, suffix=".npz")
        return None if path is None else read_npz(path)

    def network_file(self, key: str) -> Path | None:
        """Stored weights of a network, if any."""
        folders, parts = (self.out, *self.beside, *self.committed), ("networks", "weights")
        files = (folder / part / f"{key}.safetensors" for part in parts for folder in folders)
        return next(filter(Path.is_file, files), None)

    def save_weights(self, key: str, model: torch.nn.Module, fit: Mapping[str, object] | None = None) -> None:
        """Store weights in the ignored cache, and how their training ended."""
        told = {} if fit is None else {"fit": json.dumps(dict(fit))}
        write_weights(self.out / "weights" / f"{key}.safetensors", model, told)
        self.failure(key).unlink(missing_ok=True)

    def keep_network(self, key: str, path: Path) -> None:
        """Note that a stored network was used; an own one is put among the reference networks, to be committed."""
        own, shared = path.is_relative_to(self.out), any(path.is_relative_to(folder) for folder in self.beside)
        if path.parent.name != "networks":
            write_bytes(self.out / "networks" / path.name, path.read_bytes())
        self.count(trained=[key] if own else [], reused=[] if own or shared else [key])

    def table_file(self, name: str, key: str, *, suffix: str = ".csv") -> Path | None:
        """A stored small table, or what lies beside it, if any.

        None is shared: another notebook's function may have the same name.
        """
        committed = [folder / part for folder in self.committed[:1] for part in ("tables", "tables_full")]
        files = (folder / f"{name}-{key}{suffix}" for folder in (self.out / "tables", *committed))
        return next(filter(Path.is_file, files), None)

    def report(self, line: str) -> None:
        """Append a line to the progress log, which the runner shows."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "progress.log").open("a") as log:
            log.write(line + "\n")

    def leave_out(self, reason: str, networks: int) -> None:
        """Note that so many networks of the grid, or so many more, were not computed, and why."""
        self.left_out[reason] += networks
        self.summarise()

    def wait_for(self, what: str) -> Elsewhere:
        """Note that a sweep has all of its own and needs what other shards have, and stand in for its rows."""
        self.elsewhere += 1
        self.report(f"{what} with other shards")
        self.summarise()
        return Elsewhere(what)

    def count(self, *, trained: Iterable[str] = (), reused: Iterable[str] = ()) -> None:
        """Count networks by their training key: trained for this store, or read from committed evidence."""
        self.trained |= set(trained)
        self.reused |= set(reused)
        self.summarise()

    def summarise(self) -> None:
        """Write how many networks were trained, reused and left out."""
        counts = {"trained": len(self.trained), "reused": len(self.reused), "left_out": self.left_out}
        counts |= {"elsewhere": self.elsewhere} if self.elsewhere else {}
        write_json(self.out / "summary.json", counts)


def rows_in(folders: Sequence[Path], keys: Iterable[str]) -> dict[str, Stored]:
    """Rows computed in folders of stores, by key, those of the first folder that has them; a damaged one says so."""
    found = {}
    for key, path in ((key, folder / "rows" / f"{key}.json") for folder in reversed(folders) for key in keys):
        try:
            row = read_json(path)
        except ValueError as error:
            found[key] = Stored(place=str(path), fault=str(error))
            continue
        if row is None:
            continue
        if isinstance(row.get("run"), dict) and isinstance(row.get("attacked"), list):
            found[key] = Stored(row["run"], row["attacked"], str(path))
        else:
            found[key] = Stored(place=str(path), fault="it lacks its parts run and attacked")
    return found


def _committed(folder: Path) -> dict[str, Stored]:
    """Every row committed for one notebook: runs.csv with attacked.csv, runs_full.csv with attacked_full.csv."""
    found: dict[str, Stored] = {}
    for path in _evidence(folder, "runs"):
        beside = path.with_name(path.name.replace("runs", "attacked", 1))
        for key, row in _rows_of(path, _state(path), beside, _state(beside)):
            if key in found:
                raise EvidenceError(f"{row.place}: key {key} stands in {found[key].place} too: {_RESTORED}")
            found[key] = row
    return found


def _state(path: Path) -> tuple[int, int] | None:
    """What tells one state of a file from another: its length and when it was written."""
    return ((told := path.stat()).st_size, told.st_mtime_ns) if path.is_file() else None


@lru_cache(maxsize=16)
def _rows_of(path: Path, _: tuple | None, beside: Path, there: tuple | None) -> list[tuple[str, Stored]]:
    """Keys and rows of a table of runs and the table of their attacked maps, read once for each state of the files."""
    lines, under = read_csv(beside) if there else pd.DataFrame(), {}
    if "images" in lines:  # a column without any is read as numbers
        lines["images"] = lines["images"].astype(object).where(lines["images"].notna(), "")
    for number, line in enumerate(lines.to_dict("records"), start=2):
        under.setdefault(line.get("key"), []).append({**line, "place": f"{beside}, line {number}"})
    runs = enumerate(read_csv(path).to_dict("records"), start=2)
    return [(run.get("key"), Stored(run, under.get(run.get("key"), []), f"{path}, line {n}")) for n, run in runs]


def _evidence(folder: Path, stem: str) -> list[Path]:
    """Committed tables of one kind that are there, those of profile cpu first."""
    return [path for path in (folder / f"{committed_as(stem, profile)}" for profile in READ) if path.is_file()]


def place_for(out: str | Path) -> Path:
    """A folder for new evidence, made and in full; a ValueError if it holds committed files or cannot be made."""
    if not isinstance(out, str | Path) or str(out).strip().lower() in ("", "null", "none") or "\0" in str(out):
        raise ValueError(f"out is {out!r}; it must name a folder")
    try:
        place = Path(out).expanduser().absolute()
        for home in map(Path.resolve, (paths.figures, paths.notebooks, *map(paths.root.joinpath, _COMMITTED))):
            if place.resolve().is_relative_to(home) or place.resolve() == paths.root.resolve():
                raise ValueError(f"out is {str(out)!r}; {home.name}/ holds committed files, choose another folder")
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except (OSError, RuntimeError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"out is {str(out)!r}; it must be a folder that can be made and written to ({why})") from None
    return place


def made_in(folder: Path) -> str | None:
    """The reproduction that a folder of evidence belongs to; None for one of no reproduction."""
    return (read_json(folder / "reproduction.json") or {}).get("id")


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights from a safetensors file (no code is ever executed); a ValueError if it is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def write_weights(path: Path, model: torch.nn.Module, told: Mapping[str, str] | None = None) -> None:
    """Write a network's weights, and what is told of them, by atomic rename."""
    weights = {name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}
    write_bytes(path, safetensors.torch.save(weights, told))


def load_fit(path: Path) -> dict[str, object] | None:
    """How the training of stored weights ended; None if the file does not say."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("fit", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def remedy(path: Path) -> str:
    """What to do about a file of evidence that is not what it should be."""
    committed = path.resolve().is_relative_to(paths.figures.resolve())
    return _RESTORED if committed else "delete it, and what it holds is computed again"


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is damaged ({why}): {remedy(path)}")


def write_json(path: Path, value: object) -> None:
    """Write JSON by atomic rename; numbers survive the round trip bit for bit."""
    write_bytes(path, json.dumps(value).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """JSON object of a file, None where there is none; a ValueError if the file is not JSON, or not an object."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict):
        raise _damaged(path, "it holds no object")
    return value


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table by atomic rename; floats in their shortest exact form."""
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, packed, by atomic rename."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_bytes(path, file.getvalue())


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file by name, nothing pickled; a ValueError if it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:  # numpy leaves a damaged path open
            return dict(held)
    except Exception as error:  # a damaged archive ends in an error of any kind
        raise _damaged(path, error) from error


def read_csv(path: Path) -> pd.DataFrame:
    """Table of a file, floats restored exactly, keys as texts even if all digits; a ValueError if it is no table."""
    try:
        if not path.read_bytes().endswith(b"\n"):
            raise pd.errors.ParserError("its last line is cut off")
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # lines longer than the header
            return pd.read_csv(path, index_col=False, dtype={"key": str}, **_EXACT)
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def provenance(seconds: float, device: str) -> dict[str, object]:
    """Where and how a row came to be."""
    commit, dirty = _commit()
    where = device if device == "cpu" else torch.cuda.get_device_name()
    made = {"seconds": round(seconds, 3), "device": where, "version": __version__, "commit": commit, "dirty": dirty}
    made |= {"machine": f"{platform.system()} {platform.machine()}", "processor": _processor()}
    made |= {"instructions": torch.backends.cpu.get_cpu_capability(), "python": platform.python_version()}
    return made | {name: metadata.version(name) for name in ("torch", "numpy", "scipy")}


@cache
def _commit() -> tuple[str, bool]:
    """Commit of the checkout and whether files differ from it; ("unknown", True) outside one."""
    asked = ["git rev-parse --short HEAD", "git status --porcelain -- lib notebooks"]
    how = {"cwd": paths.root, "capture_output": True, "text": True, "check": True}
    try:
        commit, changes = (subprocess.run(words.split(), **how).stdout.strip() for words in asked)
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True
    return commit, bool(changes)


@cache
def _processor() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
