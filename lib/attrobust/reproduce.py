"""Run every numbered notebook headlessly, draw every figure, compare the claims: `make reproduce`.

A reproduction has a store of its own under build/reproduce/<profile>/, starts it empty, never reads committed rows,
and resumes if it was cut off (see `resume`). With `update`, its rows, figures and outputs replace the committed ones.
"""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from attrobust import checks, notebook, paths, resume, store

PROFILES = ("smoke", "cpu", "full", "gpu")
EVIDENCE = ("runs.csv", "attacked.csv", "provenance.csv", "claims.csv", "strength.csv")
EVIDENCE_STEMS = tuple(name.removesuffix(".csv") for name in EVIDENCE)
EVIDENCE_FOLDERS = ("tables", "networks")


class NotebookError(RuntimeError):
    """A notebook stopped with an error; the message is its last line."""


def numbered(only: str = "") -> list[Path]:
    """Numbered notebooks in order, or those whose number is listed in `only` ("03" or "01,03").

    Raises:
        ValueError: if a listed number has no notebook.
    """
    every = sorted(paths.notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not only:
        return every
    numbers = {path.stem[:2]: path for path in every}
    return [numbers[checks.one_of("only", number.strip(), numbers)] for number in str(only).split(",")]


def parameters_of(path: Path) -> dict[str, tuple[str, str]]:
    """Names of a notebook's parameters with their types and their comments."""
    inferred = papermill.inspect_notebook(path)
    return {name: (entry["inferred_type_name"], entry["help"]) for name, entry in inferred.items()}


def profile(name: str) -> dict[str, object]:
    """Overrides of a profile; none for "cpu", whose values stand in the notebooks.

    Raises:
        ValueError: for an unknown profile, or a name in its file that no notebook has.
    """
    checks.one_of("profile", name, PROFILES)
    if name == "cpu":
        return {}
    values = yaml.safe_load((paths.notebooks / f"{name}.yaml").read_text())
    known = {parameter for path in numbered() for parameter in parameters_of(path)}
    for parameter in values:
        notebook.accept(parameter, dict.fromkeys(known))
    return values


def reproduce(
    *,
    profile_name: str = "cpu",
    only: str = "",
    jobs: int = 0,
    fresh: bool = False,
    update: bool = False,
    overrides: Mapping[str, object] | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Recompute notebooks from an empty store.

    Args:
        profile_name: one of `PROFILES`.
        only: numbers of notebooks, comma-separated; all if empty.
        jobs: worker processes; 0 for what the profile says, or one per core.
        fresh: clear what an interrupted reproduction left.
        update: replace committed rows, figures and notebook outputs by the new ones.
        overrides: further parameters, by name.
        say: receives lines of progress.

    Returns:
        Whether every claim came out as committed (True if none is committed).

    Raises:
        ValueError: for arguments that are not accepted, before anything runs; and with `update` if anything of the
            grid was left out, before anything is replaced.
        NotebookError: if a notebook fails.
    """
    chosen = numbered(only)
    values = {**profile(profile_name), **(overrides or {})}
    checks.count("jobs", jobs, least=0)
    if update and (profile_name not in ("cpu", "full") or overrides):
        raise ValueError("update is 1; it needs the profile cpu or full without changed parameters")
    known = {path: parameters_of(path) for path in chosen}
    for name in overrides or {}:
        notebook.accept(name, {p for names in known.values() for p in names} - {"out", "committed"})
    types = {path: {name: kind for name, (kind, _) in known[path].items()} for path in chosen}
    given = {path: notebook.checked(values, types[path]) for path in chosen}
    folder = paths.build / "reproduce" / profile_name
    resume.begin(folder, chosen, values, fresh=fresh, say=say)
    began, seconds = time.monotonic(), {}
    for index, path in enumerate(chosen):
        left = tqdm.format_interval(sum(seconds.values()) / index * (len(chosen) - index)) if index else "unknown"
        say(f"[{index + 1}/{len(chosen)}] {path.stem}: {_since(began)} elapsed, about {left} remaining")
        mine = given[path] | {"out": str(folder / path.stem), "committed": False}
        mine |= {"jobs": jobs} if jobs and "jobs" in known[path] else {}
        start = time.monotonic()
        execute(path, folder / path.stem / f"{path.stem}.ipynb", mine, say=say)
        seconds[path] = time.monotonic() - start
        (folder / path.stem / "finished").touch()
    say(f"[{len(chosen)}/{len(chosen)}] done: {_since(began)} elapsed")
    resume.end(folder)
    same = _report(folder, chosen, seconds, profile_name, say)
    if update:
        _refuse_gaps({path.stem: _summary(folder, path)["left_out"] for path in chosen})
        for path in chosen:
            adopt(folder / path.stem, path.stem, profile_name)
        redraw(only=only, rewrite=True, say=say)
    return same


def redraw(*, only: str = "", rewrite: bool = False, say: Callable[[str], None] = print) -> None:
    """Draw every figure again from committed rows; with `rewrite`, refresh the notebooks' stored outputs too.

    Raises:
        ValueError: if `only` names no notebook.
        NotebookError: if a notebook fails.
    """
    for path in numbered(only):
        start = time.monotonic()
        out = paths.build / "redraw" / path.stem
        shutil.rmtree(out, ignore_errors=True)
        executed = out / f"{path.stem}.ipynb"
        execute(path, executed, {"out": str(out)}, say=say)
        _replace(out / "figures", paths.figures / path.stem, ("*.png", "*.pdf", "*.csv"))
        if rewrite:
            store.write_bytes(path, scrubbed(executed).encode())
        say(f"{path.stem}: {len(list((out / 'figures').glob('*.png')))} figures, {_since(start)}")


def execute(source: Path, target: Path, values: Mapping[str, object], *, say: Callable[[str], None]) -> None:
    """Run one notebook with parameters, showing its progress lines as they come.

    Raises:
        NotebookError: with the notebook's last error line.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(target.parent / "progress.log", done, say))
    follower.start()
    try:
        papermill.execute_notebook(
            source,
            target,
            dict(values),
            kernel_name="python3",
            cwd=paths.notebooks,
            progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
    except PapermillExecutionError as error:
        raise NotebookError(f"{source.name}: {error.ename}: {error.evalue}") from error
    finally:
        done.set()
        follower.join()


def scrubbed(path: Path) -> str:
    """Text of an executed notebook without anything that changes from run to run."""
    book = nbformat.read(path, as_version=4)
    book.cells = [cell for cell in book.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    number = 0
    for index, cell in enumerate(book.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = nbformat.NotebookNode({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code":
            number += 1
            cell.execution_count = number
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = number
    book.metadata = nbformat.NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    return nbformat.writes(book) + "\n"


def committed_as(file: str, profile_name: str) -> str:
    """Name under which a profile's rows and claims are committed: runs.csv (cpu), runs_full.csv (full).

    Example:
        >>> committed_as("runs.csv", "cpu"), committed_as("runs.csv", "full")
        ('runs.csv', 'runs_full.csv')
    """
    stem, suffix = file.rsplit(".", 1)
    return file if profile_name == "cpu" else f"{stem}_{profile_name}.{suffix}"


def adopt(source: Path, name: str, profile_name: str = "cpu") -> None:
    """Replace the committed evidence of a notebook by that of a finished reproduction.

    The full profile adds rows and claims beside those of cpu; figures, tables and reference networks are cpu's.
    """
    target = paths.figures / name
    for file in EVIDENCE:
        if not (source / file).is_file():
            continue
        content = (source / file).read_bytes()
        if profile_name != "cpu" and file != "claims.csv":
            content = _beyond(content, target / file)
        store.write_bytes(target / committed_as(file, profile_name), content)
        for other in target.glob(committed_as(file, "*")) if profile_name == "cpu" and file != "claims.csv" else ():
            store.write_bytes(other, _beyond(other.read_bytes(), target / file))
    if profile_name != "cpu":
        return
    for part in EVIDENCE_FOLDERS:
        if (source / part).is_dir():
            _replace(source / part, target / part, ("*",))


def _beyond(table: bytes, committed: Path) -> bytes:
    """Lines of a keyed table whose key (the first column) the committed table does not hold: one home per row."""
    known = (
        {line.split(b",", 1)[0] for line in committed.read_bytes().splitlines()[1:]} if committed.is_file() else set()
    )
    header, *lines = table.splitlines(keepends=True)
    return header + b"".join(line for line in lines if line.split(b",", 1)[0] not in known)


def compare_claims(recomputed: Path, committed: Path) -> pd.DataFrame:
    """Verdicts of two claims files side by side; empty if neither exists."""
    frames = {
        name: pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["claim", "arm", "change", "verdict"])
        for name, path in (("recomputed", recomputed), ("committed", committed))
    }
    joined = frames["recomputed"].merge(
        frames["committed"],
        on=["claim", "arm"],
        how="outer",
        suffixes=("_recomputed", "_committed"),
        sort=False,
    )
    joined["same"] = joined["verdict_recomputed"] == joined["verdict_committed"]
    return joined


def _summary(folder: Path, path: Path) -> dict[str, object]:
    return store.read_json(folder / path.stem / "summary.json")


def _refuse_gaps(left_out: Mapping[str, Mapping[str, int]]) -> None:
    """Committed rows are replaced by whole grids only."""
    gaps = [f"{stem} left out {n} networks, because {why}" for stem, out in left_out.items() for why, n in out.items()]
    if gaps:
        raise ValueError(f"update is 1, but {'; '.join(gaps)}; nothing was replaced")


def _report(
    folder: Path, chosen: list[Path], seconds: Mapping[Path, float], profile_name: str, say: Callable[[str], None]
) -> bool:
    total = {"trained": 0, "reused": 0, "left out": 0}
    reasons, same = [], True
    say("")
    say(f"{'notebook':<28}{'time':>8}{'trained':>9}{'reused':>8}{'left out':>10}{'figures':>9}")
    for path in chosen:
        counts = _summary(folder, path)
        out = sum(counts["left_out"].values())
        reasons += [f"{path.stem}: {n} networks left out: {reason}" for reason, n in counts["left_out"].items()]
        drawn = len(list((folder / path.stem / "figures").glob("*.png")))
        say(
            f"{path.stem:<28}{tqdm.format_interval(seconds[path]):>8}{counts['trained']:>9}{counts['reused']:>8}"
            f"{out:>10}{drawn:>9}"
        )
        for name, n in (("trained", counts["trained"]), ("reused", counts["reused"]), ("left out", out)):
            total[name] += n
    grid = sum(total.values())
    say(f"trained {total['trained']} (grid: {grid}), reused {total['reused']}, left out {total['left out']}")
    for reason in reasons:
        say(f"!!! LEFT OUT  {reason}")
    for path in chosen:
        committed = paths.figures / path.stem / committed_as("claims.csv", profile_name)
        table = compare_claims(folder / path.stem / "claims.csv", committed)
        if len(table):
            same = _report_claims(path.stem, table, say) and same
    say(f"\nrows, figures, claims and executed notebooks: {_shown(folder)}")
    return same


def _report_claims(name: str, table: pd.DataFrame, say: Callable[[str], None]) -> bool:
    """Verdict counts of each claim, recomputed beside committed, then every arm whose verdict differs."""
    say(f"\n{name}: claims, recomputed beside committed")
    wide = 2 + max(len(claim) for claim in ["claim", *table["claim"]])
    say(f"  {'claim':<{wide}}{'verdict':<14}{'recomputed':>12}{'committed':>12}")
    for claim, arms in table.groupby("claim", sort=False):
        for verdict in ("supported", "opposite", "undecided"):
            new, old = ((arms[f"verdict_{side}"] == verdict).sum() for side in ("recomputed", "committed"))
            say(f"  {claim:<{wide}}{verdict:<14}{new:>12}{old:>12}")
    shared = table[table["verdict_committed"].notna() & table["verdict_recomputed"].notna()]
    for row in shared[~shared["same"]].itertuples():
        say(f"  ≠ {row.claim} {row.arm}: {row.verdict_recomputed}, committed {row.verdict_committed}")
    say(f"  {int(shared['same'].sum())} of {len(shared)} shared arms have the committed verdict")
    if len(shared) < len(table):
        say(f"  {len(table) - len(shared)} arms stand on one side only (another grid, or nothing committed yet)")
    return bool(shared["same"].all())


def _follow(log: Path, done: threading.Event, say: Callable[[str], None]) -> None:
    seen = len(log.read_text().splitlines()) if log.is_file() else 0
    while True:
        last = done.is_set()
        lines = log.read_text().splitlines() if log.is_file() else []
        seen = min(seen, len(lines))
        for line in lines[seen:]:
            say(f"    {line}")
        seen = len(lines)
        if last:
            return
        done.wait(0.5)


def _replace(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Make `target` hold exactly the files of `source` that match, leaving alike ones untouched."""
    fresh = {path.name: path for pattern in patterns for path in source.glob(pattern) if path.is_file()}
    for pattern in patterns:
        for old in target.glob(pattern):
            if old.is_file() and old.name not in fresh and not old.name.startswith(EVIDENCE_STEMS):
                old.unlink()
    for name, path in fresh.items():
        if not (target / name).is_file() or (target / name).read_bytes() != path.read_bytes():
            store.write_bytes(target / name, path.read_bytes())


def _shown(path: Path) -> str:
    return str(path.relative_to(paths.root)) if path.is_relative_to(paths.root) else str(path)


def _since(began: float) -> str:
    return tqdm.format_interval(time.monotonic() - began)
