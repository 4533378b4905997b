"""Run every numbered notebook headlessly, draw every figure, compare the claims: `make reproduce`.

A reproduction has a store of its own under build/reproduce/<profile>/, starts it empty, and never reads committed rows.
Cut off, it keeps what the same code, data and parameters made in it: its name stands in ``reproduction.json``, with all
that its numbers depend on, and in the folder of every notebook it ran; evidence without that name is cleared. With
`update`, its rows, figures and outputs replace the committed ones.
"""

import hashlib
import itertools
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import torch
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from attrobust import checks, claims, data, paths
from attrobust.audit import report
from attrobust.experiments import shards
from attrobust.experiments.leases import busy, leased
from attrobust.experiments.store import committed_as, place_for, read_json, write_json
from attrobust.notebook import COPIED, PROFILES, accept, below_root, checked
from attrobust.paths import write_bytes
from attrobust.versions import digest

STAMP = "reproduction.json"
EVIDENCE = ("runs", "attacked", "provenance", "claims")

Say = Callable[[str], None]


#: The page of claims, whose tables are made from claims files.
PAGE = paths.root / "docs" / "claims.md"

#: The notebook that audits a classifier, as the package carries it.
AUDIT = Path(__file__).with_name("09_audit_your_model.ipynb")


class NotebookError(RuntimeError):
    """A notebook stopped with an error; the message is its last line."""


def numbered(only: str = "") -> list[Path]:
    """Numbered notebooks in order, or those whose number is listed in `only` ("03" or "01,03")."""
    numbers = {path.stem[:2]: path for path in sorted(paths.notebooks.glob("[0-9][0-9]_*.ipynb"))}
    if not numbers:
        raise ValueError(f"{paths.notebooks} holds no notebooks; reproduce, figures and parameters need a checkout")
    asked = dict.fromkeys(number.strip() for number in str(only).split(",")) if only else numbers
    return [numbers[checks.one_of("only", number, numbers)] for number in asked]


def parameters_of(path: Path) -> dict[str, tuple[str, str]]:
    """Names of a notebook's parameters with their types and their comments."""
    inferred = papermill.inspect_notebook(path)
    told = {name: entry["help"].partition("  # fmt:")[0] for name, entry in inferred.items()}
    return {name: (entry["inferred_type_name"], told[name]) for name, entry in inferred.items()}


def parsed(name: str, text: str) -> object:
    """What YAML says, the value of `name`; a ValueError where it is none."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem", None) or type(error).__name__
        raise ValueError(f"{name} is {text!r}; it must be YAML, such as [1, 2] ({where})") from None


def profile(name: str) -> dict[str, object]:
    """Overrides of a profile, parameters of some notebook each; none for "cpu", whose values are the notebooks' own.

    What stands under a notebook's number, `notebook_04`, is for this one alone.
    """
    checks.one_of("profile", name, PROFILES)
    if name == "cpu":
        return {}
    path, sections = paths.notebooks / f"{name}.yaml", {section(p.stem): parameters_of(p) for p in numbered()}
    values = parsed(path.name, path.read_text(errors="replace"))
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds {values!r}; it must hold a parameter and its value on every line")
    known = {parameter for own in sections.values() for parameter in own}
    for parameter, value in values.items():
        if parameter not in sections:
            accept(parameter, known)
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{path.name}: {parameter} is {value!r}; it must hold parameters of this notebook")
        for name in value:
            accept(name, sections[parameter], by=parameter)
        kinds = {name: kind for name, (kind, _) in sections[parameter].items()}
        checked({name: given for name, given in value.items() if given is not None}, kinds)
    return values


def section(stem: str) -> str:
    """Name under which a profile speaks to one notebook.

    Example:
        >>> section("04_across_models")
        'notebook_04'
    """
    return f"notebook_{stem[:2]}"


def of_notebook(values: Mapping[str, object], stem: str) -> dict[str, object]:
    """What a profile says to one notebook: what it says to all, and over it what stands in the notebook's section."""
    sections = {section(path.stem) for path in numbered()}
    return {n: v for n, v in values.items() if n not in sections} | dict(values.get(section(stem), {}))


def reproduce(
    *, profile_name: str = "cpu", only: str = "", jobs: int = 0, fresh: bool = False, update: bool = False,
    overrides: Mapping[str, object] | None = None, say: Say = print,
) -> bool:  # fmt: skip
    """Recompute notebooks from an empty store; whether every claim came out as committed (True if none is).

    The arguments are the options of the command line, whose help says what they do. Those that are not accepted are a
    ValueError before anything runs; so is, with `update`, a grid of which anything was left out, before anything is
    replaced.
    """
    chosen, overrides = numbered(only), overrides or {}
    profiled = profile(profile_name)
    values = {path: of_notebook(profiled, path.stem) | overrides for path in chosen}
    checks.count("jobs", jobs, least=0)
    part = shards.asked()
    if update and part:
        raise ValueError(f"update is 1 and shard {part.index}/{part.of}; only the whole replaces committed rows")
    if update and (profile_name not in ("cpu", "full", "headline") or overrides):
        raise ValueError("update is 1; it needs the profile cpu, full or headline without changed parameters")
    types = {path: {name: kind for name, (kind, _) in parameters_of(path).items()} for path in chosen}
    for name, path in itertools.product(overrides, chosen):
        accept(name, types[path].keys() - {"out", "committed"}, by=path.stem)
    given = {path: checked({n: v for n, v in values[path].items() if v is not None}, types[path]) for path in chosen}
    folder, n = paths.build / "reproduce" / profile_name, len(chosen)
    begin(folder, chosen, {**profiled, **overrides}, fresh=fresh, say=say)
    began, seconds = time.monotonic(), {}
    for index, path in enumerate(chosen):
        left = tqdm.format_interval(sum(seconds.values()) / index * (n - index)) if index else "unknown"
        say(f"[{index + 1}/{n}] {path.stem}: {_since(began)} elapsed, about {left} remaining")
        if foreign := sorted(values[path].keys() - types[path].keys()):
            say(f"    profile {profile_name}, not for this notebook: {', '.join(foreign)}")
        home, start = folder / path.stem, time.monotonic()
        mine = given[path] | {"out": str(home), "committed": False}
        mine |= {"jobs": jobs} if jobs and "jobs" in types[path] else {}
        whole = True
        if part:
            whole = _execute_part(path, home / path.name, mine, say=say)
        else:
            execute(path, home / path.name, mine, say=say)
        seconds[path] = time.monotonic() - start
        if whole:
            (home / "finished").touch()
    say(f"[{n}/{n}] done: {_since(began)} elapsed")
    end(folder)
    summaries = {path: read_json(folder / path.stem / "summary.json") for path in chosen}
    _report_networks(folder, summaries, seconds, say)
    same = True
    for path in chosen if not part else ():
        committed = paths.figures / path.stem / committed_as("claims", profile_name)
        table = compare_claims(folder / path.stem / "claims.csv", committed)
        if len(table):
            same = _report_claims(path.stem, table, say) and same
    shown = below_root(folder)
    if part:
        say(f"\nwhat shard {part.index}/{part.of} has: {shown}\nbring the shards together by `make merge FROM='...'`")
        return same
    say(f"\nrows, figures, claims and executed notebooks: {shown}")
    if update:  # committed rows are replaced by whole grids only
        gone = [(path.stem, why, n) for path in chosen for why, n in summaries[path]["left_out"].items()]
        if gaps := [f"{stem} left out {n} networks, because {why}" for stem, why, n in gone]:
            raise ValueError(f"update is 1, but {'; '.join(gaps)}; nothing was replaced")
        for path in chosen:
            adopt(folder / path.stem, path.stem, profile_name)
        redraw(only=only, rewrite=True, say=say)
    return same


def begin(folder: Path, chosen: Sequence[Path], values: Mapping[str, object], *, fresh: bool, say: Say) -> None:
    """Start a reproduction with changed parameters in a profile's folder, or go on with one that was cut off.

    One that is at work is joined. What it makes is not cleared: a ValueError, where something else was to be made.
    """
    with leased(folder, ["begin"], wait=True):  # of two that start at once the second joins the first
        _begin(folder, chosen, values, fresh=fresh, say=say)


def _begin(folder: Path, chosen: Sequence[Path], values: Mapping[str, object], *, fresh: bool, say: Say) -> None:
    before, now = read_json(folder / STAMP) or {}, stamp(values)
    cut_off = bool(before) and not before["finished"]
    resumes = cut_off and not fresh and before["stamp"] == now
    name = before["id"] if resumes else uuid.uuid4().hex
    stems = {path.stem for path in chosen} | set(before["notebooks"] if resumes else ())
    new = {}
    for path in chosen:
        home, mine = folder / path.stem, {"id": name, "cells": cells_digest(path)}
        if not home.is_dir() or read_json(home / STAMP) != mine:
            new[home] = mine
        if home in new and busy(home / "leases"):
            raise ValueError(f"{home} is at work for another reproduction; wait until that has ended, or stop it")
    write_json(folder / STAMP, {"id": name, "stamp": now, "notebooks": sorted(stems), "finished": False})
    for home, mine in new.items():
        shutil.rmtree(home, ignore_errors=True)
        write_json(home / STAMP, mine)
    if resumes:
        rows = sum(len(list((folder / p.stem / "rows").glob("*.json"))) for p in chosen)
        say(f"resuming: {rows} runs are there from before the interruption (FRESH=1 starts over)")
    elif cut_off and not fresh:
        say("starting over: code, data, parameters or machine are not those of the interrupted run")


def end(folder: Path) -> None:
    """Note that every notebook of the reproduction has run: the next one starts over."""
    record = read_json(folder / STAMP)
    finished = all((folder / stem / "finished").exists() for stem in record["notebooks"])
    write_json(folder / STAMP, record | {"finished": finished})


def stamp(values: Mapping[str, object]) -> dict[str, object]:
    """All that the numbers of a reproduction depend on, apart from the notebooks' own cells."""
    found = {name: data.fingerprint(name) for name in data.NAMES if data.available(name)}
    parameters = digest({name: value for name, value in values.items() if name != "jobs"})
    machine = [torch.__version__, torch.backends.cpu.get_cpu_capability()]
    return {"code": code_digest(), "data": found, "parameters": parameters, "machine": machine}


def cells_digest(path: Path) -> str:
    """Digest of the code of a notebook."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return digest(["".join(cell["source"]) for cell in cells])


def code_digest() -> str:
    """Digest of the library's files as they are now, committed or not."""
    library = Path(__file__).parents[1]
    texts = [(str(path.relative_to(library)), path.read_bytes()) for path in sorted(library.rglob("*.py"))]
    return hashlib.sha256(repr(texts).encode()).hexdigest()[:16]


def redraw(*, only: str = "", rewrite: bool = False, say: Say = print) -> None:
    """Draw every figure again from committed rows; with `rewrite`, refresh outputs, claims and their page too."""
    for path in numbered(only):
        start, out = time.monotonic(), paths.build / "redraw" / path.stem
        shutil.rmtree(out, ignore_errors=True)
        execute(path, out / path.name, {"out": str(out)}, say=say)
        _replace(out / "figures", paths.figures / path.stem, ("*.png", "*.pdf", "*.csv"))
        if rewrite:
            write_bytes(path, scrubbed(out / path.name).encode())
            write_bytes(paths.figures / path.stem / "claims.csv", (out / "claims.csv").read_bytes())
        say(f"{path.stem}: {len(list((out / 'figures').glob('*.png')))} figures, {_since(start)}")
    if rewrite and PAGE.is_file():
        write_bytes(PAGE, claims.ledger.filled(PAGE.read_text(), paths.figures).encode())


def _execute_part(source: Path, target: Path, values: Mapping[str, object], *, say: Say) -> bool:
    """Run what a shard has of a notebook, of which cells that need others' rows fail; whether nothing is left to do."""
    home, errors = target.parent, []
    # What failed before is tried again, and what failed in another shard's turn is not this one's.
    shutil.rmtree(home / "failed", ignore_errors=True)
    try:
        execute(source, target, values, say=say, go_on=True)
    except NotebookError as error:
        if not isinstance(error.__cause__, PapermillExecutionError):
            raise
        outputs = [output for cell in nbformat.read(target, as_version=4).cells for output in cell.get("outputs", [])]
        errors = [output for output in outputs if output.output_type == "error"]
    if failed := len(list((home / "failed").glob("*.txt"))):
        raise NotebookError(f"{source.name}: {failed} of its tasks failed, all others have ended; see {home}/failed")
    for place, error in enumerate(errors):
        said, waits = f"{error.ename}: {error.evalue}", shards.waits(error.ename, error.evalue)
        if not waits and place == 0:  # later ones may follow from rows that are not here
            raise NotebookError(f"{source.name}: {said}")
        if not waits and error.ename != "NameError":
            say(f"    !!! after cells that wait for other shards, perhaps because of them: {said}")
    return not errors and not (read_json(home / "summary.json") or {}).get("elsewhere")


def execute(
    source: Path, target: Path, values: Mapping[str, object], *, say: Say, cwd: Path | None = None, go_on: bool = False
) -> None:
    """Run one notebook with parameters, showing its progress lines as they come; a NotebookError if it fails.

    Its working directory is `cwd`, or the folder of the notebooks. It ends at the first cell that fails, or goes on.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(target.parent / "progress.log", done, say))
    follower.start()
    how = {"kernel_name": "python3", "cwd": cwd or paths.notebooks, "progress_bar": False, "allow_errors": go_on}
    try:
        quiet = ["--IPKernelApp.log_level=CRITICAL"]  # a kernel that is stopped at work says so as an error
        papermill.execute_notebook(source, target, dict(values), **how, extra_arguments=quiet)
    except PapermillExecutionError as error:
        raise NotebookError(f"{source.name}: {error.ename}: {error.evalue}") from error
    except DeadKernelError as error:
        raise NotebookError(
            f"{source.name}: its kernel was killed; the same command resumes where it stopped"
        ) from error
    finally:
        done.set()
        follower.join()


def audit(*, out: str, overrides: Mapping[str, object], say: Say = print) -> None:
    """Run the notebook that audits a classifier, from any folder; in `out` the report as a page beside what it writes.

    The notebook comes with the package. A parameter that it does not have, or with another value than accepted, is a
    ValueError before anything runs. An earlier report in `out` is removed then, and an audit that fails leaves none:
    its notebook stays, which shows how far it came, and so do tables of what is finished.
    """
    types = {name: kind for name, (kind, _) in parameters_of(AUDIT).items()}
    for name in overrides:
        accept(name, types.keys() - {"out"}, by="an audit")
    values, folder = checked(overrides, types), place_for(out)
    target = folder / AUDIT.name
    report.clear(folder)
    try:
        execute(AUDIT, target, values | {"out": str(folder)}, say=say, cwd=Path.cwd())
        write_bytes(folder / "report.html", page(nbformat.read(target, as_version=4)).encode())
    except BaseException:  # beside a notebook that stopped no report may seem to be its own
        report.clear(folder)
        say(f"no report: the audit did not end; how far it came shows {target}")
        raise
    say(f"report.html, report.json, pictures.csv and the worst pictures: {folder}")


def page(book: nbformat.NotebookNode) -> str:
    """An executed audit as a page, without its code.

    The picture of the example, which lies among committed figures, and what packages said of themselves (warnings,
    bars of progress) are left out; the notebook keeps them.
    """
    from nbconvert import HTMLExporter

    for cell in book.cells:
        cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("!["))
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return HTMLExporter(exclude_input=True).from_notebook_node(book)[0]


def _follow(log: Path, done: threading.Event, say: Say) -> None:
    """Say the lines that are added to a log until all is done; a log that became shorter was begun anew."""
    seen, last = len(_lines(log)), False
    while not last:
        last = done.wait(0.5)
        lines = _lines(log)
        for line in lines[min(seen, len(lines)) :]:
            say(f"    {line}")
        seen = len(lines)


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.is_file() else []


def scrubbed(path: Path) -> str:
    """Text of an executed notebook without anything that changes from run to run.

    What a cell printed stands in one piece; a slow machine hands it over in several.
    """
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    book, number = CoalesceStreamsPreprocessor().preprocess(nbformat.read(path, as_version=4), {})[0], 0
    book.cells = [cell for cell in book.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for index, cell in enumerate(book.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = nbformat.NotebookNode({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code":
            number += 1
            cell.outputs = [output for output in cell.outputs if COPIED not in output.get("metadata", {})]
            for output in cell.outputs:
                if output.get("name") == "stdout":  # `redraw` has a folder of its own
                    output.text = output.text.replace("build/redraw/", "build/")
            for counted in (cell, *(output for output in cell.outputs if "execution_count" in output)):
                counted.execution_count = number
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata = nbformat.NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    return nbformat.writes(book) + "\n"


def adopt(source: Path, name: str, profile_name: str = "cpu") -> None:
    """Replace a notebook's committed evidence by a finished reproduction's; profile full adds what lies beyond it.

    Rows of profile headline, a second draw, stand beside the first under a name of their own, whole.
    """
    target = paths.figures / name
    for stem in EVIDENCE:
        if not (source / f"{stem}.csv").is_file():
            continue
        content, cpu = (source / f"{stem}.csv").read_bytes(), target / f"{stem}.csv"
        if profile_name == "full" and stem != "claims":
            content = _beyond(content, cpu)
        write_bytes(target / committed_as(stem, profile_name), content)
        other = target / committed_as(stem, "full")
        if profile_name == "cpu" and stem != "claims" and other.is_file():
            write_bytes(other, _beyond(other.read_bytes(), cpu))
    for part in ("tables", "networks") if profile_name == "cpu" else ():
        if (source / part).is_dir() or (target / part).is_dir():
            _replace(source / part, target / part, ("*",))
    beside = target / "tables_full"
    if profile_name == "full":
        _replace(source / "tables", beside, ("*",))
    for table in beside.glob("*"):
        if (target / "tables" / table.name).is_file():
            table.unlink()


def _beyond(table: bytes, committed: Path) -> bytes:
    """Lines of a keyed table whose key (the first column) the committed table does not hold: one home per row."""
    lines = committed.read_bytes().splitlines()[1:] if committed.is_file() else []
    known = {line.split(b",", 1)[0] for line in lines}
    header, *lines = table.splitlines(keepends=True)
    return header + b"".join(line for line in lines if line.split(b",", 1)[0] not in known)


def _replace(source: Path, target: Path, patterns: Sequence[str]) -> None:
    """Make `target` hold exactly the files of `source` that match; evidence stays."""
    fresh = {path.name for pattern in patterns for path in source.glob(pattern) if path.is_file()}
    for name in fresh:
        write_bytes(target / name, (source / name).read_bytes())
    for old in [path for pattern in patterns for path in target.glob(pattern) if path.is_file()]:
        if old.name not in fresh and not old.name.startswith(EVIDENCE):
            old.unlink()


def compare_claims(recomputed: Path, committed: Path) -> pd.DataFrame:
    """Words of two claims files side by side; empty if neither exists.

    `same`: effects lie no further apart than two draws may (`claims.agrees`). Statements have no effect: the first word
    of theirs counts, not the number of cases.
    """
    nothing = pd.DataFrame(columns=["claim", "arm", "by", "start", "end", "effect", "half", "word"])
    new, old = (claims.read_claims(p, [*nothing]) if p.is_file() else nothing for p in (recomputed, committed))
    both = claims.agrees(old, new).rename(columns={"word": "word_committed", "word_other": "word_recomputed"})
    words = both[["word_committed", "word_recomputed"]].astype(object)
    words = words.replace(r" \(\d+ cases, \d+ violations\)$", "", regex=True)
    stated = both[["effect", "effect_other"]].isna().all(axis=1) & words.notna().all(axis=1)
    apart = (both["judged"] == "differs") | (stated & (words["word_committed"] != words["word_recomputed"]))
    return both.assign(**words, same=~apart)


def _report_networks(folder: Path, summaries: Mapping[Path, dict], seconds: Mapping[Path, float], say: Say) -> None:
    """One line per notebook, and what was left out, loudly."""
    rows = {}
    for path, summary in summaries.items():
        took, left = tqdm.format_interval(seconds[path]), sum(summary["left_out"].values())
        drawn = len(list((folder / path.stem / "figures").glob("*.png")))
        rows[path.stem] = [took, summary["trained"], summary["reused"], left, drawn]
    names = ["time", "trained", "reused", "left out", "figures"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis(columns="notebook")
    trained, reused, left = table[["trained", "reused", "left out"]].sum()
    say(f"\n{table.to_string()}\ntrained {trained} (grid: {trained + reused + left}), reused {reused}, left out {left}")
    for path, summary in summaries.items():
        for reason, n in summary["left_out"].items():
            say(f"!!! LEFT OUT  {path.stem}: {n} networks left out: {reason}")


def _report_claims(name: str, table: pd.DataFrame, say: Say) -> bool:
    """Counts of words by claim, recomputed beside committed, then every arm that differs; whether none does."""
    say(f"\n{name}: claims, recomputed beside committed")
    wide = 2 + max(len(claim) for claim in ["claim", *table["claim"]])
    say(f"  {'claim':<{wide}}{'word':<20}{'recomputed':>12}{'committed':>12}")
    for claim, arms in table.groupby("claim", sort=False):
        for word in sorted({*arms["word_recomputed"].dropna(), *arms["word_committed"].dropna()}):
            new, old = ((arms[f"word_{side}"] == word).sum() for side in ("recomputed", "committed"))
            say(f"  {claim:<{wide}}{word:<20}{new:>12}{old:>12}")
    shared = table[table["word_committed"].notna() & table["word_recomputed"].notna()]
    for row in shared[~shared["same"]].itertuples():
        say(f"  ≠ {row.claim} {row.arm}: {row.word_recomputed}, committed {row.word_committed}")
    say(f"  {int(shared['same'].sum())} of {len(shared)} shared arms agree: effects within two draws, or one word")
    if len(shared) < len(table):
        say(f"  {len(table) - len(shared)} arms stand on one side only (another grid, or nothing committed yet)")
    return bool(shared["same"].all())


def _since(began: float) -> str:
    return tqdm.format_interval(time.monotonic() - began)
