"""Tasks of workers in this very process, and how workers are asked for."""

import os
from types import SimpleNamespace

import pytest
import torch
from attrobust.experiments import devices, workers


def state():
    """What a task sees of the generator and the threads that are everybody's."""
    return torch.initial_seed(), torch.get_num_threads(), torch.rand(3).tolist()


def test_a_task_has_one_thread_and_a_generator_of_its_own_and_leaves_both_as_they_were():
    threads, before = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(2)
    try:
        seed, seen, numbers = workers._alone(os.getpid(), 0, state, ())
        assert (seed, seen) == (0, 1)
        assert numbers == torch.rand(3, generator=torch.Generator().manual_seed(0)).tolist()
        failure = workers._alone(os.getpid(), 3, divided, (1, 0))
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.random.get_rng_state(), before)
    finally:
        torch.set_num_threads(threads)
    assert failure.index == 3
    assert isinstance(failure.error, ZeroDivisionError)
    assert failure.trace.startswith("Traceback")
    assert failure.trace.rstrip().endswith("ZeroDivisionError: division by zero")


def divided(a, b):
    return a / b


def leave():
    raise SystemExit("gone")


@pytest.mark.parametrize(("parent", "admitted"), [(os.getpid, False), (lambda: 0, True), (os.getppid, True)])
def test_who_asked_is_no_worker_and_any_other_process_is(monkeypatch, parent, admitted):
    parent = parent()
    monkeypatch.setattr(devices, "_workers", set())
    own = workers._alone(parent, 0, divided, (1, 0)).error
    assert devices._workers == ({os.getpid()} if admitted else set())
    assert isinstance(own, ZeroDivisionError)
    gone = workers._alone(parent, 0, leave, ()).error
    assert (type(gone), str(gone)) == (RuntimeError, "SystemExit: gone")


def test_a_worker_whose_parent_is_gone_leaves_without_a_word(monkeypatch):
    ended = []

    def leaves(code):
        ended.append(code)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "os", SimpleNamespace(getpid=lambda: 5, getppid=lambda: 1, _exit=leaves))
    monkeypatch.setattr(devices, "admit", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        workers._alone(4, 0, divided, (1, 1))
    assert ended == [1]
    assert [workers._alone(parent, 0, divided, (1, 1)) for parent in (0, 1, 5)] == [1.0, 1.0, 1.0]


class Told(Exception):
    """Says more than it keeps."""

    def __init__(self, text):
        super().__init__(f"told: {text}")


class Bare(BaseException):
    pass


def test_an_error_comes_back_as_itself_if_it_can_and_as_its_text_otherwise():
    kept = ValueError("a", 1)
    again = workers._carried(kept)
    assert (type(again), again.args) == (ValueError, ("a", 1))
    for error, text in ((Told("b"), "Told: told: b"), (Bare("c"), "Bare: c"), (OSError(lambda: 0), "OSError: ")):
        again = workers._carried(error)
        assert type(again) is RuntimeError
        assert str(again).startswith(text)


@pytest.fixture
def asked(monkeypatch):
    """How joblib is asked for workers; the tasks run here, one by one."""
    seen = []

    class Config:
        def __init__(self, *given, **how):
            seen.append((given, how))

        __enter__ = __exit__ = lambda *_: None

    def parallel(**how):
        seen.append(how)
        return lambda calls: (function(*given) for function, given in calls)

    made_up = SimpleNamespace(
        parallel_config=Config, Parallel=parallel, delayed=lambda f: lambda *given: (f, given),
        cpu_count=lambda only_physical_cores=False: 3 if only_physical_cores else 6,
    )  # fmt: skip
    monkeypatch.setattr(workers, "joblib", made_up)
    monkeypatch.delenv(workers.CLUSTER, raising=False)
    return seen


@pytest.mark.parametrize(("jobs", "n", "processes"), [(0, 9, 6), (0, 4, 4), (2, 9, 2), (1, 1, 1), (5, 3, 3)])
def test_as_many_workers_are_asked_for_as_there_are_jobs_or_cores_and_no_more_than_tasks(asked, jobs, n, processes):
    assert list(workers.in_workers(abs, [(-i,) for i in range(n)], jobs=jobs)) == list(range(n))
    assert asked == [
        (("loky",), {"n_jobs": processes, "inner_max_num_threads": 1}),
        {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "all"},
    ]
    asked.clear()
    assert list(workers.in_workers(abs, [])) == []
    assert asked == []
    list(workers.in_workers(abs, [(-i,) for i in range(9)]))
    assert asked[0][1]["n_jobs"] == 6


def test_tasks_that_fail_are_heard_of_or_raised_when_the_others_have_ended(asked):
    tasks, heard, ended = [(1, 1), (1, 0), (4, 2), ("a", 0), (6, 2)], [], []
    assert list(workers.in_workers(divided, tasks, failed=heard.append)) == [1, 2, 3]
    assert [(failure.index, type(failure.error)) for failure in heard] == [(1, ZeroDivisionError), (3, TypeError)]
    with pytest.raises(ZeroDivisionError) as raised:
        for found in workers.in_workers(divided, tasks):
            ended.append(found)
    assert ended == [1, 2, 3]
    assert raised.value.__notes__[0] == "2 of 5 tasks failed, all others have ended. The first:"
    assert raised.value.__notes__[1].startswith("Traceback")
    workers.raise_first([], of=3)
