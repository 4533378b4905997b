"""Which evidence a reproduction may keep: what the same code, data and parameters made in it, before it was cut off.

Its name stands in ``reproduction.json``, with all that its numbers depend on, and in the folder of every notebook it
ran; evidence without that name is not its own and is cleared before the notebook runs.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from attrobust import data
from attrobust.experiments.store import read_json, write_json
from attrobust.versions import digest

_FILE = "reproduction.json"


def begin(
    folder: Path, chosen: Sequence[Path], values: Mapping[str, object], *, fresh: bool, say: Callable[[str], None]
) -> None:
    """Start a reproduction with changed parameters in a profile's folder, or go on with one that was cut off."""
    before, now = read_json(folder / _FILE) or {}, stamp(values)
    cut_off = bool(before) and not before["finished"]
    resumes = cut_off and not fresh and before["stamp"] == now
    name = before["id"] if resumes else uuid.uuid4().hex
    stems = {path.stem for path in chosen} | set(before["notebooks"] if resumes else ())
    write_json(folder / _FILE, {"id": name, "stamp": now, "notebooks": sorted(stems), "finished": False})
    for path in chosen:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        home, mine = folder / path.stem, {"id": name, "cells": digest(["".join(cell["source"]) for cell in cells])}
        if not home.is_dir() or read_json(home / _FILE) != mine:
            shutil.rmtree(home, ignore_errors=True)
            write_json(home / _FILE, mine)
    if resumes:
        rows = sum(len(list((folder / p.stem / "rows").glob("*.json"))) for p in chosen)
        say(f"resuming: {rows} runs are there from before the interruption (FRESH=1 starts over)")
    elif cut_off and not fresh:
        say("starting over: code, data, parameters or machine are not those of the interrupted run")


def end(folder: Path) -> None:
    """Note that every notebook of the reproduction has run: the next one starts over."""
    record = read_json(folder / _FILE)
    finished = all((folder / stem / "finished").exists() for stem in record["notebooks"])
    write_json(folder / _FILE, record | {"finished": finished})


def stamp(values: Mapping[str, object]) -> dict[str, object]:
    """All that the numbers of a reproduction depend on, apart from the notebooks' own cells."""
    found = {name: data.fingerprint(name) for name in data.NAMES if data.available(name)}
    parameters = digest({name: value for name, value in values.items() if name != "jobs"})
    machine = [torch.__version__, torch.backends.cpu.get_cpu_capability()]
    return {"code": code_digest(), "data": found, "parameters": parameters, "machine": machine}


def code_digest() -> str:
    """Digest of the library's files as they are now, committed or not."""
    library = Path(__file__).parents[1]
    texts = [(str(path.relative_to(library)), path.read_bytes()) for path in sorted(library.rglob("*.py"))]
    return hashlib.sha256(repr(texts).encode()).hexdigest()[:16]
