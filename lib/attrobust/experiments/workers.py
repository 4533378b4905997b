"""Tasks in worker processes of one thread, which are kept; what fails is told, and stops nothing else.

Importing torch costs seconds, so that workers serve one sweep after another. Every task seeds its own generators. They
are processes of this machine (joblib's loky), or, where the environment names a cluster in `CLUSTER`, its workers, on
any machines that see the store's folder under the same name.
"""

import copy
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from attrobust.experiments import devices

#: The variable that names a cluster, a Dask scheduler such as tcp://10.0.0.1:8786, or ray. Notebooks, which run in
#: processes of their own, read it.
CLUSTER = "ATTROBUST_CLUSTER"


_ONE = threading.RLock()  # a task may have tasks of its own


class Failure(NamedTuple):
    """A task that ended in an error, and where."""

    index: int  # of the task
    error: Exception
    trace: str


def in_workers(
    function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], *, jobs: int = 0,
    failed: Callable[[Failure], None] | None = None,
) -> Iterable[Any]:  # fmt: skip
    """Results of `function(*task)` as they finish, from one-thread worker processes that are kept for later.

    A task that raises an error stops no other: `failed` hears of it at once. Without `failed` the first error is raised
    when all others have ended (`raise_first`).

    Raises:
        RuntimeError: where a worker process was lost; the same command resumes.

    Example:
        >>> with joblib.parallel_backend("sequential"):
        ...     sorted(in_workers(abs, [(-1,), (2,)], jobs=1))
        [1, 2]
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
    if not failed:
        raise_first(failures, of=len(tasks))


def raise_first(failures: Sequence[Failure], *, of: int) -> None:
    """Raise the first error of tasks that failed, if any did, out of so many; the others have ended."""
    if failures:
        failures[0].error.add_note(f"{len(failures)} of {of} tasks failed, all others have ended. The first:")
        failures[0].error.add_note(failures[0].trace)
        raise failures[0].error


@contextmanager
def _results(
    function: Callable, tasks: list[tuple], jobs: int
) -> Iterator[tuple[Iterable, tuple[type[Exception], ...], str]]:
    """What the tasks return, as they end; what is raised where their workers are gone, and what is said then."""
    address = os.environ.get(CLUSTER, "")
    if address == "ray":
        with _ray() as gone, joblib.parallel_config("ray", n_jobs=-1):  # its results come together, at the end
            calls = (joblib.delayed(_alone)(0, index, function, task) for index, task in enumerate(tasks))
            yield (found for found in joblib.Parallel(batch_size=1)(calls)), gone, "the cluster went away"
        return
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
        from distributed.comm import CommClosedError
    except ImportError as error:
        needs = "needs dask; install it by pip install attrobust[cluster]"
        raise ImportError(f"{CLUSTER} is {address!r}, which {needs}") from error
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{CLUSTER} is {address!r}; no scheduler answers there ({error})") from None
    with client:
        futures = [client.submit(_alone, 0, index, function, task, pure=False) for index, task in enumerate(tasks)]
        results = (future.result() for future in as_completed(futures, loop=client.loop))
        gone = (FutureCancelledError, KilledWorker, CommClosedError)
        yield results, gone, "the cluster's scheduler, or too many of its workers, went away"


@contextmanager
def _ray() -> Iterator[tuple[type[Exception], ...]]:
    """Within, joblib knows the Ray cluster that this machine is part of; what is raised where it is gone."""
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise ImportError(f"{CLUSTER} is 'ray', which needs it; install it by pip install ray") from error
    try:
        ray.init(os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise ValueError(f"{CLUSTER} is 'ray'; no Ray cluster runs on this machine ({error})") from None
    try:
        register_ray()
        yield ray.exceptions.RayError, ConnectionError
    finally:
        ray.shutdown()


def _alone(parent: int, index: int, function: Callable, task: tuple) -> object:
    if parent and parent not in (os.getpid(), os.getppid()):
        os._exit(1)  # whoever asked was killed: a worker left behind must not go through the queue
    if parent != os.getpid():
        devices.admit()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # A single worker is this very process: its global generator and thread count are put back. A worker of several
        # threads has one global generator, too, which tasks must not draw from by turns.
        with _ONE, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function(*task)
    except (Exception, SystemExit) as error:  # whatever it is, it is raised at the end
        own = parent == os.getpid() and isinstance(error, Exception)
        return Failure(index, error if own else _carried(error), "".join(traceback.format_exception(error)))
    finally:
        torch.set_num_threads(threads)


def _carried(error: BaseException) -> Exception:
    """The error, if it can come back from a worker; else its text."""
    try:
        again, _ = copy.copy(error), pickle.dumps(error)
    except Exception:  # one that is made of other arguments than it keeps, or holds what cannot be sent
        again = None
    same = type(again) is type(error) and str(again) == str(error) and isinstance(error, Exception)
    return again if same else RuntimeError(f"{type(error).__name__}: {error}")
