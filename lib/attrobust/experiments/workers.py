"""Tasks in worker processes of one thread, which are kept; what fails is told, and stops nothing else.

Importing torch costs seconds, so that workers serve one sweep after another. Every task seeds its own generators. They
are processes of this machine (joblib's loky), or, where the environment names the scheduler of a Dask cluster in
`CLUSTER`, its workers, on any machines that see the store's folder under the same name.
"""

import copy
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

#: The variable that names a scheduler, such as tcp://10.0.0.1:8786: notebooks run in processes of their own.
CLUSTER = "ATTROBUST_CLUSTER"


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
    with _results(function, tasks, jobs or joblib.cpu_count(only_physical_cores=False)) as (results, lost, why):
        try:
            for found in results:
                if not isinstance(found, Failure):
                    yield found
                    continue
                failures.append(found)
                if failed:
                    failed(found)
        except lost:
            raise RuntimeError(f"{why}; the same command resumes where it stopped") from None
    if failures:
        first = min(failures)
        first.error.add_note(f"{len(failures)} of {len(tasks)} tasks failed, all others have ended. The first:")
        first.error.add_note(first.trace)
        raise first.error


@contextmanager
def _results(
    function: Callable, tasks: list[tuple], jobs: int
) -> Iterator[tuple[Iterable, tuple[type[Exception], ...], str]]:
    """What the tasks return, as they end; what is raised where their workers are gone, and what is said then."""
    address = os.environ.get(CLUSTER, "")
    if not address:
        with joblib.parallel_config("loky", n_jobs=min(jobs, len(tasks)), inner_max_num_threads=1):
            results = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")(
                joblib.delayed(_alone)(os.getpid(), index, function, task) for index, task in enumerate(tasks)
            )
        why = "a worker process was killed, most often for want of memory (fewer jobs need less)"
        yield results, (TerminatedWorkerError,), why
        return
    try:
        from distributed import Client, KilledWorker, as_completed
        from distributed.client import FutureCancelledError
    except ImportError as error:
        needs = "needs dask; install it by pip install attrobust[cluster]"
        raise ImportError(f"{CLUSTER} is {address!r}, which {needs}") from error
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{CLUSTER} is {address!r}; no scheduler answers there ({error})") from None
    with client:
        futures = [client.submit(_alone, 0, index, function, task, pure=False) for index, task in enumerate(tasks)]
        why = "the cluster's scheduler, or too many of its workers, went away"
        yield (
            (future.result() for future in as_completed(futures, loop=client.loop)),
            (FutureCancelledError, KilledWorker),
            why,
        )


def _alone(parent: int, index: int, function: Callable, task: tuple) -> object:
    if parent and parent not in (os.getpid(), os.getppid()):
        os._exit(1)  # whoever asked was killed: a worker left behind must not go through the queue
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # A single worker is this very process: its global generator and thread count are put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function(*task)
    except Exception as error:  # whatever it is, it is raised at the end
        return Failure(
            index, error if parent == os.getpid() else _carried(error), "".join(traceback.format_exception(error))
        )
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
