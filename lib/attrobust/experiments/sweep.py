"""Run what is missing of a grid, in worker processes, one thread each; store every row as it ends.

Networks that differ only in their seed are one task, unless they would take turns anyway (see `training`). Workers are
kept between tasks and between sweeps (importing torch costs seconds); every run seeds its own generators, so a row
does not depend on the worker, the number of workers or the runs before it.
"""

import hashlib
import inspect
import os
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import joblib
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from attrobust import checks, data
from attrobust.experiments.experiment import Experiment, Measurement, key
from attrobust.experiments.measure import build, columns, measure, names, train
from attrobust.store import Store, load_weights, provenance


def run(
    experiments: Sequence[Experiment],
    measurement: Measurement,
    *,
    store: Store,
    jobs: int = 0,
    device: str = "cpu",
    show: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Rows of a grid; only missing ones are computed.

    Args:
        experiments: the grid.
        measurement: what is measured on each network.
        store: where rows are found and put.
        jobs: worker processes; 0 for one per core.
        device: "cpu" or "cuda".
        show: called with a line of progress after each run, beside the store's log.

    Returns:
        One row per experiment whose data set is on this machine or whose row is stored, in the grid's order; of a
        run that diverged or collapsed what was not measured is NaN. What had to be left out is noted in the store.

    Raises:
        ValueError: if `jobs` or `device` is not accepted.
    """
    checks.count("jobs", jobs, least=0)
    checks.one_of("device", device, ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    keys = {e: key(e, measurement) for e in experiments}
    committed, shared = store.committed_rows(keys.values()), store.shared_rows(keys.values())
    found = committed | shared | store.own_rows(keys.values())
    missing = [e for e in experiments if keys[e] not in found]
    absent = {name for name in {e.dataset for e in missing} if not data.available(name)}
    for name in sorted(absent):
        store.leave_out(f"data set {name!r} is not on this machine", sum(e.dataset == name for e in missing))
    groups = _groups([e for e in missing if e.dataset not in absent], device)
    total, done, began = len(experiments), len(found), time.monotonic()
    for lines in in_workers(_run_group, [(g, measurement, store, device) for g in groups], jobs=jobs):
        for line in lines:
            done += 1
            store.report(_progress(done, total, len(found), began, line))
            if show:
                show(_progress(done, total, len(found), began, line))
    own = store.own_rows(keys.values())
    found |= own
    present = [e for e in experiments if keys[e] in found]
    store.count(
        trained=[e.training_key for e in present if keys[e] in own],
        reused=[e.training_key for e in present if keys[e] not in own | shared],
    )
    table = pd.DataFrame([{"key": keys[e], **columns(e), **_measured(found[keys[e]])} for e in present])
    expected = dict.fromkeys(name for e in present for name in names(e, measurement))
    return table.reindex(columns=[*table.columns, *(name for name in expected if name not in table)])


def trained(experiment: Experiment, *, store: Store, device: str = "cpu") -> nn.Module:
    """The trained network of one experiment, from stored weights if there are any; kept as a reference network.

    Args:
        experiment: how it is trained; in a worker process, if its weights are not stored.
        store: where weights are found and put.
        device: "cpu" or "cuda".

    Returns:
        The network in eval mode, its parameters frozen.

    Raises:
        DataError: if it must be trained and its data set is not on this machine.
    """
    name = experiment.training_key
    stored = store.network_file(name)
    if stored is None:
        list(in_workers(_train_and_store, [(experiment, store, device)], jobs=1))
        stored = store.network_file(name)
    model = build(experiment, device)
    model.load_state_dict(load_weights(stored))
    store.keep_network(name, stored)
    return model.eval().requires_grad_(False)


def in_workers(function: Callable, tasks: Iterable[tuple], *, jobs: int = 0) -> Iterable:
    """Results of `function(*task)` as they finish, from one-thread worker processes that are kept for later."""
    tasks = list(tasks)
    if not tasks:
        return []
    workers = jobs or joblib.cpu_count(only_physical_cores=False)
    with joblib.parallel_config("loky", n_jobs=min(workers, len(tasks)), inner_max_num_threads=1):
        return joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")(
            joblib.delayed(_alone)(os.getpid(), function, task) for task in tasks
        )


def _alone(parent: int, function: Callable, task: tuple) -> object:
    if parent not in (os.getpid(), os.getppid()):
        os._exit(1)  # whoever asked was killed: a worker left behind must not go through the queue
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # A single worker is this very process: its global generator and thread count are put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function(*task)
    finally:
        torch.set_num_threads(threads)


def _run_group(group: list[Experiment], measurement: Measurement, store: Store, device: str) -> list[str]:
    began = time.monotonic()
    networks, fits = train(group, device)
    share = (time.monotonic() - began) / len(group)
    lines = []
    for experiment, model, fit in zip(group, networks, fits, strict=True):
        began = time.monotonic()
        row = measure(experiment, measurement, model, fit, device)
        seconds = time.monotonic() - began + share
        store.save_weights(experiment.training_key, model)
        store.put(key(experiment, measurement), {**columns(experiment), **row}, provenance(seconds, device))
        lines.append(
            f"{experiment.dataset} {experiment.protocol} step {experiment.step_size:g} batch {experiment.batch_size}"
            f" seed {experiment.seed}: {seconds:.1f} s"
        )
    return lines


def _groups(missing: Sequence[Experiment], device: str) -> list[list[Experiment]]:
    """Tasks, the longest first, so that workers end together; smaller steps take longer to a loss level."""

    def together(e: Experiment) -> tuple:
        in_turns = e.architecture == "vit" and device == "cpu"
        return tuple((name, str(value)) for name, value in columns(e).items() if in_turns or name != "seed")

    groups = [list(g) for _, g in groupby(sorted(missing, key=together), key=together)]
    return sorted(groups, key=lambda g: (-len(g) * g[0].epochs * g[0].n_train / g[0].batch_size, g[0].step_size))


def _measured(row: dict) -> dict:
    own = set(Experiment.__dataclass_fields__) | {"key"}
    return {
        name: "" if name == "reason" and not isinstance(v, str) else v for name, v in row.items() if name not in own
    }


def _progress(done: int, total: int, before: int, began: float, line: str) -> str:
    elapsed = time.monotonic() - began
    remaining = elapsed / max(1, done - before) * (total - done)
    return (
        f"{done}/{total} runs, {tqdm.format_interval(elapsed)} elapsed,"
        f" about {tqdm.format_interval(remaining)} remaining · {line}"
    )


def table(store: Store, name: str, function: Callable[..., pd.DataFrame], *arguments: object) -> pd.DataFrame:
    """A stored table of `function(*arguments)`, computed once, in a worker process with one thread.

    Args:
        store: where the table is found and put.
        name: of the table.
        function: returns the table; its source text is part of the key, so editing it recomputes.
        arguments: experiments, numbers, names, lists of them; part of the key.

    Returns:
        The table, read back from its file.
    """
    return tables(store, name, function, [arguments])


def tables(
    store: Store, name: str, function: Callable[..., pd.DataFrame], tasks: Sequence[tuple], *, jobs: int = 0
) -> pd.DataFrame:
    """One stored table per task, computed side by side, joined in the order of the tasks; empty where there is none."""
    if not tasks:
        return pd.DataFrame()
    source = hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    configs = [[source, _keyed(task)] for task in tasks]
    missing = [
        (name, c, function, t, store) for c, t in zip(configs, tasks, strict=True) if not store.has_table(name, c)
    ]
    for done, _ in enumerate(in_workers(_store_table, missing, jobs=jobs), start=1):
        store.report(f"{name}: {done}/{len(missing)} computed")
    return pd.concat([store.table(name, c) for c in configs], ignore_index=True)


def _store_table(name: str, config: object, function: Callable, task: tuple, store: Store) -> None:
    store.put_table(name, config, function(*task))


def _train_and_store(experiment: Experiment, store: Store, device: str) -> None:
    (model,), _ = train([experiment], device)
    store.save_weights(experiment.training_key, model)


def _keyed(value: object) -> object:
    """Arguments as they enter a key: experiments by everything their weights depend on."""
    if isinstance(value, Experiment):
        return value.training_key
    return [_keyed(v) for v in value] if isinstance(value, list | tuple) else value
