"""What the engine of sweeps costs: runs of five seconds in a bare loop, by workers of this machine, by a cluster's."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from attrobust import experiments
from attrobust.experiments import workers
from scheduled import cluster

#: Runs, and how long one takes.
RUNS, SECONDS = 4, 5.0


def run(products: int) -> None:
    """Products of a small matrix with itself."""
    x = torch.eye(400)
    for _ in range(products):
        x = torch.tanh(x @ x)


def rows(*, repetitions: int) -> Iterator[dict]:
    """One row per way and repetition: seconds of the wall clock, workers warm."""
    began = time.perf_counter()
    run(300)
    tasks = [(int(300 * SECONDS / (time.perf_counter() - began)),)] * RUNS
    for repetition in range(repetitions):
        for way, jobs in {"bare loop": 0, "one worker": 1, "two workers": 2}.items():
            yield {"way": way, "repetition": repetition, "runs": RUNS, "seconds": seconds(tasks, jobs)}
        with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as (address, *_):
            os.environ[workers.CLUSTER] = address
            yield {
                "way": "Dask, two workers", "repetition": repetition, "runs": RUNS, "seconds": seconds(tasks, 2)
            }  # fmt: skip
            del os.environ[workers.CLUSTER]


def seconds(tasks: list[tuple], jobs: int) -> float:
    """How long tasks take by so many workers, 0 for a loop; the workers have imported torch before."""
    if jobs:
        list(experiments.in_workers(run, [(tasks[0][0] // 5,)] * 8, jobs=jobs))
    began = time.perf_counter()
    if jobs:
        list(experiments.in_workers(run, tasks, jobs=jobs))
    else:
        for task in tasks:
            run(*task)
    return time.perf_counter() - began
