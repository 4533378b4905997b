"""Run what is missing of a grid, in worker processes, one thread each; store every row as it ends.

Networks that differ only in their seed are one task, unless they would take turns anyway. Every run seeds its own
generators, so that a row depends neither on its worker nor on the runs before it. Sweeps that run at once on one store
share its runs: each is leased to one of them, and read by the others.
"""

import dataclasses
import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from attrobust import checks, data
from attrobust.experiments import devices, schema, shards
from attrobust.experiments import keys as keys_of
from attrobust.experiments.experiment import Experiment, Measurement
from attrobust.experiments.leases import leased
from attrobust.experiments.measure import build, columns, measure, names, train
from attrobust.experiments.store import (
    EvidenceError,
    Store,
    Stored,
    load_fit,
    load_weights,
    provenance,
    remedy,
    rows_in,
)
from attrobust.experiments.workers import Failure, in_workers, raise_first
from attrobust.rows import ATTACKED, Rows
from attrobust.training import Fit
from attrobust.training.sgd import in_turns
from attrobust.training.stacks import statistics
from attrobust.versions import as_before


def run(
    experiments: Sequence[Experiment], measurement: Measurement, *, store: Store, jobs: int = 0, device: str = "cpu",
    show: Callable[[str], None] | None = None,
) -> Rows | shards.Elsewhere:  # fmt: skip
    """Rows of a grid, in its order; only missing ones are computed, by so many jobs (0: one per core).

    What was not measured on a run that diverged or collapsed is NaN; an experiment whose data set is not here
    is left out, and the store says so. A row computed here that is damaged or another run's is named in the store's log
    and computed again; a committed one is an EvidenceError. `show` gets the log's line of progress after each run.
    Where this is a shard, of which others are needed, the rows are `Elsewhere`.
    """
    checks.count("jobs", jobs, least=0)
    checks.one_of("device", device, ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    keys = {e: keys_of.key(e, measurement, device) for e in experiments}
    found = _believed(store, keys, measurement)
    missing = [e for e in experiments if keys[e] not in found]
    absent = _absent(missing)
    if absent and len(missing) == len(experiments) and absent == {e.dataset for e in experiments}:
        raise data.DataError(none_here(sorted(absent)))
    for name in sorted(absent):
        store.leave_out(f"data set {name!r} is not on this machine", sum(e.dataset == name for e in missing))
    here = [e for e in experiments if e.dataset not in absent]
    mine = _share(here, keys, device)
    groups = _groups([e for e in missing if e in mine], device, store)
    teachers = dict.fromkeys(e.teacher for group in groups for e in group if e.teacher and e.strength)
    untaught = [(e, store, device) for e in teachers if not store.network_file(keys_of.network(e, device))]

    def untrained(failure: Failure) -> None:  # the runs that need it try again, and fail each by itself
        e = untaught[failure.index][0]
        store.fail(keys_of.network(e, device), f"teacher: {_called(e)}", failure.trace)

    for done_there, _ in enumerate(in_workers(_prepared, untaught, jobs=jobs, failed=untrained), start=1):
        store.report(f"teachers: {done_there}/{len(untaught)} trained")
    done, failed, began = len(found), 0, time.monotonic()
    total = len(experiments) - sum(e not in mine and keys[e] not in found for e in here)

    def fell(task: tuple, trace: str) -> None:
        nonlocal done, failed
        group = task[0]
        stored = rows_in([store.out], [keys[e] for e in group])  # others of the task may have ended
        done, failed = done + len(stored), failed + len(group) - len(stored)
        for e in (e for e in group if keys[e] not in stored):
            store.fail(keys[e], _called(e), trace)

    tasks = [(g, measurement, store, device) for g in groups]
    for lines in _shared(_run_group, tasks, jobs=jobs, failed=fell):
        for line in lines:
            done += 1
            elapsed = time.monotonic() - began
            rate = elapsed / (done + failed - len(found))
            so_far, left = map(tqdm.format_interval, (elapsed, rate * (total - done - failed)))
            lost = f", {failed} failed" if failed else ""
            said = f"{done}/{total} runs{lost}, {so_far} elapsed, about {left} remaining · {line}"
            store.report(said)
            if show:
                show(said)
    made, shared = rows_in([store.out], keys.values()), rows_in(store.beside, keys.values())
    found |= made
    present = [e for e in experiments if keys[e] in found]
    networks = {e: keys_of.network(e, device) for e in present}
    reused = [networks[e] for e in present if keys[e] not in made | shared]
    store.count(trained=[networks[e] for e in present if keys[e] in made], reused=reused)
    if others := sum(keys[e] not in found for e in here):
        return store.wait_for(f"{others} of {len(here)} runs are")
    later = {name for e in present for name in columns(e)} & {name for e in present for name in as_before(e)}
    own = {e: columns(e) | {name: getattr(e, name) for name in sorted(later)} for e in present}
    runs = pd.DataFrame([{"key": keys[e], **own[e], **_measured(found[keys[e]].run)} for e in present])
    expected = dict.fromkeys(name for e in present for name in names(e, measurement))
    lines = [{**line, "key": keys[e]} for e in present for line in found[keys[e]].attacked]
    whole = runs.reindex(columns=[*runs.columns, *(name for name in expected if name not in runs)])
    return Rows(whole, pd.DataFrame(lines, columns=[*ATTACKED]))


def _share(experiments: Sequence[Experiment], keys: Mapping[Experiment, str], device: str) -> set[Experiment]:
    """Those of a grid that this shard computes: all if there is but one."""
    part = shards.asked()
    if not part or not experiments:
        return {*experiments}
    arms = [*map(tuple, _groups(experiments, device))]
    return {e for arm in shards.dealt(arms, part, sweep=keys[experiments[0]]) for e in arm}


def _believed(store: Store, keys: dict[Experiment, str], measurement: Measurement) -> dict[str, Stored]:
    """Stored rows that are what they should be: committed ones are refused otherwise, others are computed again."""
    made_here = rows_in([store.out, *store.beside], keys.values())
    found = store.committed_rows(keys.values()) | made_here
    for experiment, key in keys.items():
        row = found.get(key)
        wrong = row and (row.fault or schema.fault(row.run, row.attacked, experiment, measurement))
        if wrong and key not in made_here:
            raise EvidenceError(f"{row.place}: {wrong}: {remedy(store.committed[0])}")
        if wrong:
            store.report(f"{row.place}: {wrong}: it is computed again")
            (store.out / "rows" / f"{key}.json").unlink(missing_ok=True)
            del found[key]
    return found


def _measured(run: dict) -> dict:
    """What was measured of a stored run; a file's texts and blanks are what they stand for."""
    own = {*Experiment.__dataclass_fields__, "key"}
    reason = run["reason"] if isinstance(run["reason"], str) else ""
    words = {"comparable": str(run["comparable"]) == "True", "reason": reason}
    return {name: words.get(name, value) for name, value in run.items() if name not in own}


def _groups(experiments: Sequence[Experiment], device: str, store: Store | None = None) -> list[list[Experiment]]:
    """Tasks, the longest first, so that workers end together; smaller steps take longer to a loss level.

    Networks that a store has already are only measured, each by itself. A ValueError refuses a network with BatchNorm
    under a penalty or another trainer.
    """
    networks = {name: build(e) for name, e in {e.architecture: e for e in experiments}.items()}
    turns = {name: in_turns(network, torch.device(device)) for name, network in networks.items()}
    for e in experiments:
        how = e.penalty if e.penalty != "none" else e.trainer
        if how != "sgd" and statistics(networks[e.architecture]):
            raise ValueError(f"architecture is {e.architecture!r} under {how!r}; BatchNorm takes plain SGD alone")

    def together(e: Experiment) -> tuple:
        stored = store and store.network_file(keys_of.network(e, device))
        apart = turns[e.architecture] or not e.recipe.plain or stored
        return tuple((name, str(value)) for name, value in columns(e).items() if apart or name != "seed")

    groups = [list(g) for _, g in groupby(sorted(experiments, key=together), key=together)]
    return sorted(groups, key=lambda g: (-len(g) * g[0].epochs * g[0].n_train / g[0].batch_size, g[0].step_size))


def _shared(
    function: Callable, tasks: list[tuple], *, jobs: int, failed: Callable[[tuple, str], None]
) -> Iterator[object]:
    """What tasks return as they end, of which other sweeps may be at some: first what nobody else is at, then the rest.

    `function(*task, wait)` returns its result, and as tasks what others are at; asked again, it waits for these, which
    have stored theirs by then, or died. `failed` hears of a task and its traceback; the first error is raised at last.
    """
    failures: list[Failure] = []
    n = len(tasks)
    for wait in (False, True):
        asked, left = [(*task, wait) for task in tasks], []

        def fell(failure: Failure, asked: list[tuple] = asked) -> None:
            failures.append(failure)
            failed(asked[failure.index], failure.trace)

        for found, others in in_workers(function, asked, jobs=jobs, failed=fell):
            left += others
            yield found
        tasks = left
    raise_first(failures, of=n)


def _run_group(
    group: list[Experiment], measurement: Measurement, store: Store, device: str, wait: bool
) -> tuple[list[str], list[tuple]]:
    """Train and store one task, but for networks stored already: a line for each run, and what others are at."""
    keys = {e: keys_of.key(e, measurement, device) for e in group}
    with leased(store.leases, keys.values(), wait=wait) as mine:
        others = [e for e in group if keys[e] not in mine]
        there = {key for key, row in rows_in([store.out], mine).items() if not row.fault}
        lines = [f"{_called(e)}: another sweep's" for e in group if keys[e] in there]
        todo = [e for e in group if keys[e] in mine - there]
        lines += _stored(todo, keys, measurement, store, device) if todo else []
    return lines, [(others, measurement, store, device)] if others else []


def _stored(
    group: list[Experiment], keys: Mapping[Experiment, str], measurement: Measurement, store: Store, device: str
) -> list[str]:
    """Train and measure networks, store their rows; a line of progress for each. One that fails stops no other."""
    devices.pin(device)
    began, lines, failures = time.monotonic(), [], []
    known = {e: found for e in group if (found := _fitted(e, store, device))}
    new = [e for e in group if e not in known]
    if new:
        found = train(new, device, network=partial(_network, store=store, device=device))
        known |= dict(zip(new, zip(*found, strict=True), strict=True))
    share = (time.monotonic() - began) / len(group)
    for e in group:
        began, (model, fit) = time.monotonic(), known[e]
        try:
            row, attacked = measure(e, measurement, model, fit, device)
        except Exception as error:  # raised when the others are stored
            failures.append(error)
            continue
        seconds = time.monotonic() - began + share
        if e in new:
            store.save_weights(keys_of.network(e, device), model, dataclasses.asdict(fit))
        lasting, made = {**columns(e), **row}, provenance(seconds, device)
        store.put(keys[e], lasting, attacked.to_dict("records"), made)
        lines.append(f"{_called(e)}: {seconds:.1f} s")
    if failures:
        raise failures[0]
    return lines


def _called(e: Experiment) -> str:
    return f"{e.dataset} {e.protocol} step {e.step_size:g} batch {e.batch_size} seed {e.seed}"


def _fitted(experiment: Experiment, store: Store, device: str) -> tuple[nn.Module, Fit] | None:
    """A network that was stored with its fit, ready to be measured; None if there is none, or it is damaged."""
    path = store.network_file(keys_of.network(experiment, device))
    try:
        fit = load_fit(path) if path else None
        return (_loaded(experiment, path, device), Fit(**fit)) if fit else None
    except ValueError:
        return None


def _network(experiment: Experiment, store: Store, device: str) -> nn.Module:
    """The network of one experiment, in eval mode: a stored one, or one that is trained now, and stored."""
    if found := _fitted(experiment, store, device):
        return found[0]
    with leased(store.leases, [key := keys_of.network(experiment, device)], wait=True):
        if found := _fitted(experiment, store, device):  # whoever was at it has stored it
            return found[0]
        devices.pin(device)
        networks, fits = train([experiment], device, network=partial(_network, store=store, device=device))
        store.save_weights(key, networks[0], dataclasses.asdict(fits[0]))
    return networks[0]


def _on_processor(experiment: Experiment, store: Store) -> nn.Module:
    """The network of one experiment, of the store's device, where tables are computed."""
    return _network(experiment, store=store, device=store.device).to("cpu")


def _prepared(experiment: Experiment, store: Store, device: str) -> None:
    """See that a network is stored."""
    _network(experiment, store, device)


def trained(experiment: Experiment, *, store: Store, device: str = "cpu") -> nn.Module:
    """The trained network of one experiment, in eval mode, frozen, on a device; trained on the store's if it is new."""
    name = keys_of.network(experiment, store.device)
    if store.network_file(name) is None:
        list(in_workers(_prepared, [(experiment, store, store.device)], jobs=1))
    stored = store.network_file(name)
    model = _loaded(experiment, stored, device)
    store.keep_network(name, stored)
    return model.requires_grad_(False)


def _loaded(experiment: Experiment, path: Path, device: str) -> nn.Module:
    """A network with stored weights, in eval mode."""
    model, weights = build(experiment, device), load_weights(path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} holds the weights of another network: {remedy(path)}") from error
    return model.eval()


def table(
    store: Store, name: str, function: Callable, *arguments: object, version: int | None = None
) -> pd.DataFrame | shards.Elsewhere:
    """A stored table of `function(*arguments)` (experiments, numbers, names, lists), computed once, in a worker.

    A notebook's own function needs a version, raised whenever its numbers change; those of the library have their own.
    """
    return tables(store, name, function, [arguments], version=version)


def tables(
    store: Store, name: str, function: Callable, tasks: Sequence[tuple[Any, ...]], *, jobs: int = 0,
    version: int | None = None, labels: Sequence[Mapping[str, object]] = (),
) -> pd.DataFrame | shards.Elsewhere:  # fmt: skip
    """One stored table per task, computed side by side, joined in the order of the tasks; empty where there is none.

    A task whose table is not stored and whose images are not on this machine is left out, loudly. A function with a
    keyword-only `network` is given one that finds the trained network of an experiment, a stored one if there is one,
    and puts it on the processor.
    `labels`, if any, are further columns of each task's table, in the order of the tasks. Where this is a shard, of
    which others are needed, the table is `Elsewhere`.
    """
    labels = labels or [{} for _ in tasks]
    keys = [keys_of.table(name, function, task, version=version, device=store.device) for task in tasks]
    missing = [(key, task) for key, task in zip(keys, tasks, strict=True) if not store.table_file(name, key)]
    gone = {key: absent for key, task in missing if (absent := _absent(_experiments_in(task)))}
    for reason, n in Counter(f"{name} needs {_not_here(min(absent))}" for absent in gone.values()).items():
        store.leave_out(reason, n)
        print(f"!!! LEFT OUT: {n} networks, because {reason}")
    part = shards.asked()
    mine = shards.dealt(keys, part, sweep=keys[0]) if part and keys else {*keys}
    missing = [(key, task) for key, task in missing if key not in gone and key in mine]
    n, asked = len(missing), inspect.signature(function).parameters.get("network")
    finds = asked is not None and asked.kind is asked.KEYWORD_ONLY
    given = {"network": partial(_on_processor, store=store)} if finds else {}

    def compute(key: str, task: tuple, wait: bool) -> tuple[bool, list[tuple]]:
        with leased(store.leases, [called := f"{name}-{key}"], wait=wait) as mine:
            if called in mine and not store.table_file(name, key):
                store.put_table(name, key, function(*task, **given))
        return called in mine, [] if called in mine else [(key, task)]

    def fell(task: tuple, trace: str) -> None:
        store.fail(f"{name}-{task[0]}", name, trace)

    done = 0
    for ended in _shared(compute, missing, jobs=jobs, failed=fell):
        done += ended
        store.report(f"{name}: {done}/{n} computed")
    if others := sum(not store.table_file(name, key) for key in {*keys} - gone.keys()):
        return store.wait_for(f"{others} of {len({*keys})} tables {name!r} are")
    told = zip(keys, labels, strict=True)
    found = [store.table(name, key).assign(**label) for key, label in told if key not in gone]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _experiments_in(value: object) -> list[Experiment]:
    """Experiments among the arguments of a table, at any depth."""
    inner = [e for v in value for e in _experiments_in(v)] if isinstance(value, list | tuple) else []
    return [value] if isinstance(value, Experiment) else inner


def _absent(experiments: Iterable[Experiment]) -> set[str]:
    """Data sets of experiments that are not on this machine."""
    return {name for name in {e.dataset for e in experiments} if not data.available(name)}


def none_here(datasets: Sequence[str]) -> str:
    """That nothing of a grid can be had, since all of it needs data sets that are not here, and what to do.

    Example:
        >>> none_here(["mnist"]).endswith("or name another data set, such as digits.")
        True
    """
    remedy = f"run `make data DATASETS='{' '.join(datasets)}'`, or name another data set, such as digits"
    return f"no network of this grid is stored, and every one needs {_not_here(datasets[0])}; {remedy}."


def _not_here(dataset: str) -> str:
    return f"data set {dataset!r}, which is not on this machine"
