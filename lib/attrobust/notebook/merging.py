"""Bring together what shards of a reproduction made on machines that share no folder: `make merge`.

A shard leaves what it made in build/reproduce/<profile>/. Carried here, its rows, tables and networks are taken where
this checkout's reproduction has none; the whole is then finished by `make reproduce`.
"""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrobust import checks, paths
from attrobust.experiments.leases import busy, leased
from attrobust.experiments.store import load_weights, read_csv, read_json, read_npz, write_json
from attrobust.notebook import PROFILES
from attrobust.notebook.reproduce import STAMP, Say, cells_digest, numbered, profile, stamp
from attrobust.paths import write_bytes


def merge(folders: Sequence[str | Path], *, profile_name: str = "cpu", say: Say = print) -> None:
    """Take what is new in folders that shards of a profile left; what is damaged there is left, and said.

    A ValueError before anything is taken, where a folder is none of a reproduction, is at work, or was made by other
    code, data, torch or processor instructions than are here, or with other parameters than the first.
    """
    checks.one_of("profile", profile_name, PROFILES)
    home = paths.build / "reproduce" / profile_name
    sources = [Path(folder).expanduser().absolute() for folder in folders]
    sources = [folder for folder in dict.fromkeys(sources) if folder.resolve() != home.resolve()]
    if not sources:
        raise ValueError(f"folders is {[*map(str, folders)]}; name copies of what shards left, other than {home}")
    stamps, here = [_stamp(folder) for folder in sources], stamp(profile(profile_name))
    for folder, made in zip(sources, stamps, strict=True):
        if wrong := [name for name in ("code", "data", "machine") if made[name] != here[name]]:
            raise ValueError(f"folders holds {folder}; its {wrong[0]} is not what is here, which would make it anew")
        if made["parameters"] != stamps[0]["parameters"]:
            raise ValueError(f"folders holds {folder}; its parameters are not those of {sources[0]}")
    if at_work := [place for place in (home, *sources) if any(map(_busy, place.glob("*/leases")))]:
        raise ValueError(f"folders holds {at_work[0]}, which is at work; merge it when its shard has ended")
    with leased(home, ["begin"], wait=True):
        _merge(sources, stamps[0], home, say)
    said = "" if stamps[0]["parameters"] == here["parameters"] else " and the parameters that the shards were given"
    say(f"finish the whole by `make reproduce PROFILE={profile_name}`, with the same ONLY, if any{said}")


def _merge(sources: Sequence[Path], made: Mapping, home: Path, say: Say) -> None:
    record = read_json(home / STAMP) or {}
    if record.get("stamp") != made:
        record = {"id": uuid.uuid4().hex, "stamp": dict(made), "notebooks": [], "finished": True}
    for folder in sources:
        taken: Counter[str] = Counter()
        for path in numbered():
            if new := _take(folder / path.stem, home / path.stem, record["id"], cells_digest(path), say):
                taken += new
                record |= {"notebooks": sorted({*record["notebooks"], path.stem}), "finished": False}
                write_json(home / STAMP, record)
        say(f"{folder}: {', '.join(f'{n} {name}' for name, n in taken.items()) or 'nothing new'}")


def _stamp(folder: Path) -> dict:
    """All that the numbers of a folder depend on, as its reproduction noted it."""
    with suppress(ValueError):
        found = (read_json(folder / STAMP) or {}).get("stamp")
        if isinstance(found, dict) and {"code", "data", "machine", "parameters"} <= found.keys():
            return found
    raise ValueError(f"folders holds {folder}; a folder that a reproduction left holds {STAMP}")


def _busy(leases: Path) -> bool:
    with suppress(OSError):  # a copy that cannot be written is nobody's
        return busy(leases)
    return False


def _take(source: Path, target: Path, name: str, cells: str, say: Say) -> Counter[str]:
    """What of a notebook's evidence was copied, counted by kind; evidence here of another reproduction is cleared."""
    taken, mine = Counter[str](), {"id": name, "cells": cells}
    if not source.is_dir():
        return taken
    if (made := _whole(read_json, source / STAMP)) is None or made.get("cells") != cells:
        say(f"!!! LEFT OUT  {source}: it was not made by the cells of this checkout's notebook")
        return taken
    if read_json(target / STAMP) != mine:
        shutil.rmtree(target, ignore_errors=True)
        write_json(target / STAMP, mine)
    for path in sorted(path for part in _PARTS for path in (source / part).glob("[!.]*") if path.is_file()):
        kind, read = _PARTS[path.parent.name]
        there, beside = target / path.parent.name / path.name, path.parents[1] / "provenance" / path.name
        if there.is_file() and _whole(read, there) is not None:
            if there.parent.name == "rows" and there.read_bytes() != path.read_bytes():
                say(f"!!! LEFT OUT  {path}: another row of this name is here already")
            continue
        pair = [(path, there), *([(beside, target / "provenance" / path.name)] if kind == "runs" else [])][::-1]
        if broken := [old for old, _ in pair if _whole(read, old) is None]:
            say(f"!!! LEFT OUT  {path}: {broken[0].parent.name}/{broken[0].name} is damaged")
            continue
        for old, new in pair:  # provenance first, as a sweep writes it
            write_bytes(new, old.read_bytes())
        taken[kind] += 1
    return taken


def _whole(read: Callable[[Path], object], path: Path) -> object | None:
    """What a file holds; None where it is damaged or not there."""
    try:
        return read(path)
    except Exception:  # whatever a damaged file does to its reader
        return None


def _table(path: Path) -> object:
    return read_npz(path) if path.suffix == ".npz" else read_csv(path)


#: What a shard makes, by its folder: what it is called, and how such a file is read.
_PARTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "rows": ("runs", read_json),
    "tables": ("tables", _table),
    "weights": ("networks", load_weights),
    "networks": ("reference networks", load_weights),
}
