"""Tasks in worker processes of one thread, which are kept; what fails is told, and stops nothing else.

Importing torch costs seconds, so that workers serve one sweep after another. Every task seeds its own generators.
"""

import copy
import os
import traceback
from collections.abc import Callable, Iterable
from typing import NamedTuple

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError


class Failure(NamedTuple):
    """A task that ended in an error, and where."""

    index: int  # of the task
    error: Exception
    trace: str


def in_workers(
    function: Callable, tasks: Iterable[tuple], *, jobs: int = 0, failed: Callable[[Failure], None] | None = None
) -> Iterable:
    """Results of `function(*task)` as they finish, from one-thread worker processes that are kept for later.

    A task that raises an error stops no other: `failed` hears of it at once, and the first error is raised when all
    others have ended, with the number of those that failed.
    """
    tasks, failures = list(tasks), []
    if not tasks:
        return
    workers = jobs or joblib.cpu_count(only_physical_cores=False)
    with joblib.parallel_config("loky", n_jobs=min(workers, len(tasks)), inner_max_num_threads=1):
        results = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")(
            joblib.delayed(_alone)(os.getpid(), index, function, task) for index, task in enumerate(tasks)
        )
    try:
        for found in results:
            if not isinstance(found, Failure):
                yield found
                continue
            failures.append(found)
            if failed:
                failed(found)
    except TerminatedWorkerError:
        why = "a worker process was killed, most often for want of memory (fewer jobs need less)"
        raise RuntimeError(f"{why}; the same command resumes where it stopped") from None
    if failures:
        first = min(failures)
        first.error.add_note(f"{len(failures)} of {len(tasks)} tasks failed, all others have ended. The first:")
        first.error.add_note(first.trace)
        raise first.error


def _alone(parent: int, index: int, function: Callable, task: tuple) -> object:
    if parent not in (os.getpid(), os.getppid()):
        os._exit(1)  # whoever asked was killed: a worker left behind must not go through the queue
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # A single worker is this very process: its global generator and thread count are put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function(*task)
    except Exception as error:  # whatever it is, it is raised at the end
        return Failure(index, _carried(error), "".join(traceback.format_exception(error)))
    finally:
        torch.set_num_threads(threads)


def _carried(error: Exception) -> Exception:
    """The error as it can be made again from its arguments, as it comes back from a worker; else its text."""
    try:
        again = copy.copy(error)
    except Exception:  # one that is made of other arguments than it keeps
        again = None
    same = type(again) is type(error) and str(again) == str(error)
    return again if same else RuntimeError(f"{type(error).__name__}: {error}")
