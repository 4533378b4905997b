"""Bring together what shards of a reproduction made on machines that share no folder: `make merge`.

A shard leaves what it made in build/reproduce/<profile>/. Carried here, its rows, tables and networks are taken where
this checkout's reproduction has none; the whole is then finished by `make reproduce`.
"""

import csv
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from attrobust import checks, paths
from attrobust.experiments.leases import busy
from attrobust.experiments.store import load_weights, read_json, write_json
from attrobust.notebook.reproduce import PROFILES, STAMP
from attrobust.paths import write_bytes

#: What a shard makes, by its folder: what it is called, and how such a file is read.
_PARTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "provenance": ("", read_json),  # before its row, as a sweep writes them
    "rows": ("runs", read_json),
    "tables": ("tables", lambda path: _lines(path) if path.suffix == ".csv" else path.read_bytes()),
    "weights": ("networks", load_weights),
    "networks": ("reference networks", load_weights),
}


def merge(folders: Sequence[str | Path], *, profile_name: str = "cpu", say: Callable[[str], None] = print) -> None:
    """Take what is new in folders that shards of a profile left; what is damaged there is left, and said.

    A ValueError before anything is taken, where a folder is none of a reproduction, is at work, or was made by other
    code, data, parameters or another kind of machine than this checkout's reproduction, or than the first folder.
    """
    checks.one_of("profile", profile_name, PROFILES)
    home = paths.build / "reproduce" / profile_name
    sources = {Path(folder).expanduser().absolute(): None for folder in folders}
    if not sources:
        raise ValueError("folders is []; name what the shards left, a folder build/reproduce/<profile> each")
    sources = {folder: _record(folder) for folder in sources if folder.resolve() != home.resolve()}
    record = read_json(home / STAMP) or {
        "id": uuid.uuid4().hex,
        "notebooks": [],
        **dict.fromkeys(("stamp", "finished")),
    }
    stamp = record["stamp"] or next(iter(sources.values()))["stamp"]
    for folder, other in sources.items():
        if wrong := [name for name in stamp if stamp[name] != other["stamp"].get(name)]:
            raise ValueError(
                f"folders holds {folder}; its {wrong[0]} is not that of {home if record['stamp'] else 'the first'}"
            )
    if at_work := [place for place in (home, *sources) if any(busy(path) for path in place.glob("*/leases"))]:
        raise ValueError(f"folders holds {at_work[0]}, which is at work; merge it when its shard has ended")
    stems = sorted({*record["notebooks"], *(stem for other in sources.values() for stem in other["notebooks"])})
    write_json(home / STAMP, record | {"stamp": stamp, "notebooks": stems, "finished": False})
    for folder in sources:
        taken: Counter[str] = Counter()
        for stem in stems:
            taken += _take(folder / stem, home / stem, record["id"], say)
        told = ", ".join(f"{n} {name}" for name, n in taken.items() if name) or "nothing new"
        say(f"{folder}: {told}")
    say(f"finish the whole by `make reproduce PROFILE={profile_name}`")


def _record(folder: Path) -> dict:
    record = read_json(folder / STAMP)
    if not record or not isinstance(record.get("stamp"), dict):
        raise ValueError(f"folders holds {folder}; a folder that a reproduction left holds {STAMP}")
    return record


def _take(source: Path, target: Path, name: str, say: Callable[[str], None]) -> Counter[str]:
    """What of a notebook's evidence was copied, counted by kind."""
    taken: Counter[str] = Counter()
    if (made := read_json(source / STAMP)) is None:
        return taken
    mine = {"id": name, "cells": made["cells"]}
    if (there := read_json(target / STAMP)) not in (None, mine):
        say(f"!!! LEFT OUT  {source}: its cells are not those of {target} ({there['cells']})")
        return taken
    write_json(target / STAMP, mine)
    for part, (kind, read) in _PARTS.items():
        for path in sorted((source / part).glob("[!.]*")):
            if (target / part / path.name).exists():
                continue
            try:
                read(path)
            except (ValueError, OSError) as error:
                say(f"!!! LEFT OUT  {path}: it is damaged ({error})")
                continue
            write_bytes(target / part / path.name, path.read_bytes())
            taken[kind] += 1
    return taken


def _lines(path: Path) -> None:
    """Look through a table: a ValueError where its last line is cut off."""
    text = path.read_bytes().decode()
    rows = list(csv.reader(text.splitlines()))
    if not text.endswith("\n") or len({len(row) for row in rows}) > 1:
        raise ValueError("its lines are not whole")
