"""Laws of sweeps that are disturbed: nothing finished is lost, nothing is half there, and the table is the same."""

import dataclasses
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pandas as pd
import pytest
from attrobust import attacks, experiments
from attrobust.experiments import Experiment, Measurement, keys, sweep, workers
from attrobust.experiments.leases import leased
from attrobust.experiments.store import Store

SMALL = Measurement(
    radii=(8,), effort=attacks.Effort(steps=2, restarts=1), n_attacked=4, trace_products=6, curvature=False
)
STEPS = (0.05, 0.1, 0.2, 0.4)
GRID = [Experiment("digits", step, 16, 2, 0, protocol="plateau", side=4, n_train=48) for step in STEPS]


def run(folder, *, jobs=1, grid=GRID):
    return experiments.run(grid, SMALL, store=Store("x", out=folder, committed=False), jobs=jobs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed"))


def same(one, other):
    return one.runs.equals(other.runs) and one.attacked.equals(other.attacked)


def slept(number, seconds):
    time.sleep(seconds)
    return pd.DataFrame({"square": [number**2]})


def squares(folder, seconds=0.002):
    """A cheap sweep of twelve tables."""
    store = Store("x", out=folder, committed=False)
    return experiments.tables(store, "squares", slept, [(i, seconds) for i in range(12)], version=1, jobs=1)


def told(folder):
    """The same sweep by one job, which notes each run that it measures."""
    measure = sweep.measure

    def noting(experiment, *more):
        with (folder / "measured").open("a") as file:
            file.write(f"{experiment.step_size}\n")
        return measure(experiment, *more)

    sweep.measure = noting
    run(folder)


def begun(folder, *, what="run", more=", jobs=2", **options):
    """The same sweep in a process of its own, with its workers in a group that can be killed with it."""
    code = f"import test_faults, pathlib; test_faults.{what}(pathlib.Path({str(folder)!r}){more})"
    here = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=os.environ | here, start_new_session=True, text=True, **options)


@contextmanager
def holding(folder, name, then):
    """A process that holds a lease and then does something."""
    code = "import pathlib, time; from attrobust.experiments.leases import leased\n"
    code += f"with leased(pathlib.Path({str(folder)!r}), [{name!r}], wait=True):\n    print('held', flush=True); {then}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def rows(folder):
    return sorted((folder / "rows").glob("*.json"))


def partials(folder):
    return [path for path in folder.rglob(".*") if path.is_file()]


def aged(*files):
    """Files as they were two hours ago."""
    for path in files:
        os.utime(path, (time.time() - 7200,) * 2)


def until(condition, *, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_that_fails_stops_no_other_is_kept_with_its_traceback_and_tried_again(tmp_path, monkeypatch, undisturbed):
    plain = sweep.measure

    def failing(experiment, *more):
        if experiment.step_size == STEPS[1]:
            raise ZeroDivisionError("planted")
        return plain(experiment, *more)

    monkeypatch.setattr(sweep, "measure", failing)
    with pytest.raises(ZeroDivisionError, match="planted") as raised:
        run(tmp_path)
    assert "1 of 4 tasks failed" in raised.value.__notes__[0]
    key = keys.key(GRID[1], SMALL, "cpu")
    assert {path.stem for path in rows(tmp_path)} == {keys.key(e, SMALL, "cpu") for e in GRID} - {key}
    kept = Store("x", out=tmp_path).failure(key)
    assert "in failing" in kept.read_text() and "planted" in kept.read_text()
    monkeypatch.setattr(sweep, "measure", plain)
    assert same(run(tmp_path), undisturbed)
    assert not kept.exists()


def test_failures_are_counted_in_the_line_of_progress(tmp_path, monkeypatch):
    plain, said = sweep.measure, []
    slow, *others = sorted(GRID, key=lambda e: e.step_size)

    def failing(experiment, *more):
        if experiment == slow:  # the first task
            raise ZeroDivisionError("planted")
        return plain(experiment, *more)

    monkeypatch.setattr(sweep, "measure", failing)
    with pytest.raises(ZeroDivisionError):
        experiments.run(GRID, SMALL, store=Store("x", out=tmp_path, committed=False), jobs=1, show=said.append)
    assert len(said) == len(others)
    assert all(", 1 failed, " in line for line in said)
    assert "FAILED" in (tmp_path / "progress.log").read_text()


def test_of_networks_that_are_trained_side_by_side_one_that_fails_stops_no_other(tmp_path, monkeypatch):
    plain, grid = sweep.measure, [dataclasses.replace(GRID[0], seed=seed) for seed in range(4)]

    def failing(experiment, *more):
        if experiment.seed in (1, 2):
            raise ZeroDivisionError(f"planted {experiment.seed}")
        return plain(experiment, *more)

    monkeypatch.setattr(sweep, "measure", failing)
    with pytest.raises(ZeroDivisionError, match="planted 1"):
        run(tmp_path, grid=grid)
    keyed = [keys.key(e, SMALL, "cpu") for e in grid]
    assert {path.stem for path in rows(tmp_path)} == {keyed[0], keyed[3]}
    assert {path.stem for path in (tmp_path / "failed").iterdir()} == {keyed[1], keyed[2]}


def divided(number):
    return pd.DataFrame({"half": [1 / number]})


def test_a_table_that_fails_stops_no_other_and_the_error_is_its_own(tmp_path):
    store = Store("x", out=tmp_path, committed=False)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        experiments.tables(store, "halves", divided, [(0,), (2,), (4,)], version=1, jobs=1)
    assert len([*(tmp_path / "tables").glob("halves-*.csv")]) == 2
    assert "in divided" in next((tmp_path / "failed").glob("halves-*.txt")).read_text()
    assert experiments.tables(store, "halves", divided, [(2,), (4,)], version=1, jobs=1)["half"].tolist() == [0.5, 0.25]


def test_a_teacher_that_fails_stops_only_what_needs_it(tmp_path, monkeypatch):
    taught = dataclasses.replace(GRID[0], penalty="interpretation", strength=0.1, wanted="gradient")
    plain = sweep.train

    def failing(group, *more, **how):
        if group[0] == taught.teacher:
            raise ZeroDivisionError("planted")
        return plain(group, *more, **how)

    monkeypatch.setattr(sweep, "train", failing)
    with pytest.raises(ZeroDivisionError, match="planted"):
        run(tmp_path, grid=[*GRID, taught])
    assert {path.stem for path in rows(tmp_path)} == {keys.key(e, SMALL, "cpu") for e in GRID}
    assert len([*(tmp_path / "failed").iterdir()]) == 2
    monkeypatch.setattr(sweep, "train", plain)
    run(tmp_path, grid=[*GRID, taught])
    assert not [*(tmp_path / "failed").iterdir()]


def test_a_run_that_fails_does_not_keep_the_sweep_from_waiting_for_what_another_is_at(tmp_path, monkeypatch):
    plain = sweep.measure

    def failing(experiment, *more):
        if experiment == GRID[1]:
            raise ZeroDivisionError("planted")
        return plain(experiment, *more)

    monkeypatch.setattr(sweep, "measure", failing)
    held = holding(tmp_path / "leases", keys.key(GRID[0], SMALL, "cpu"), "time.sleep(1)")
    with held, pytest.raises(ZeroDivisionError, match="planted"):
        run(tmp_path)
    assert len(rows(tmp_path)) == len(GRID) - 1


class Odd(Exception):
    """Made of two arguments, of which it keeps one."""

    def __init__(self, one, two):
        super().__init__(one)


def locked(number):
    raise ValueError("held", threading.Lock())


def leaving(number):
    sys.exit(3)


def odd(number):
    raise Odd("planted", number)


def test_an_error_that_cannot_come_back_from_a_worker_as_it_is_comes_back_as_its_text():
    with pytest.raises(Odd, match="planted"):
        list(workers.in_workers(odd, [(0,), (1,)], jobs=1))
    for function, sentence in ((odd, "Odd: planted"), (locked, "held"), (leaving, "SystemExit: 3")):
        with pytest.raises(RuntimeError, match=sentence):
            list(workers.in_workers(function, [(0,), (1,)], jobs=2))


def test_a_full_disk_leaves_no_half_of_a_file_and_the_sweep_goes_on_when_there_is_room(
    tmp_path, monkeypatch, undisturbed
):
    sync, room = os.fsync, iter(range(5))

    def full(number):
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            run(tmp_path)
    assert not partials(tmp_path)
    done = {path: path.stat().st_mtime_ns for path in rows(tmp_path)}
    assert 0 < len(done) < len(GRID)
    assert same(run(tmp_path), undisturbed)
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_two_sweeps_at_once_do_each_run_once_and_end_with_one_table(tmp_path, undisturbed):
    two = [begun(tmp_path, what="told", more="") for _ in range(2)]
    assert [process.wait(timeout=300) for process in two] == [0, 0]
    assert sorted(map(float, (tmp_path / "measured").read_text().split())) == sorted(STEPS)
    assert same(run(tmp_path), undisturbed)


def test_what_another_sweep_is_at_is_waited_for_and_read_not_done_again(tmp_path, monkeypatch, undisturbed):
    run(tmp_path)
    key = keys.key(GRID[0], SMALL, "cpu")
    row = tmp_path / "rows" / f"{key}.json"
    whole, trained = row.read_bytes(), []
    row.unlink()
    then = f"time.sleep(2); pathlib.Path({str(row)!r}).write_bytes({whole!r})"
    with holding(tmp_path / "leases", key, then) as other:
        monkeypatch.setattr(sweep, "train", lambda group, *more, **how: trained.append(group))
        monkeypatch.setattr(sweep, "measure", lambda *more: trained.append(more))
        assert same(run(tmp_path), undisturbed)
        assert other.wait() == 0
    assert trained == []


@pytest.mark.parametrize("signalled", ["the parent", "all"])
def test_a_sweep_that_is_killed_loses_no_finished_run_and_is_gone_on_with(tmp_path, undisturbed, signalled):
    process = begun(tmp_path)
    until(lambda: rows(tmp_path) or process.poll() is not None)
    (os.kill if signalled == "the parent" else os.killpg)(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.read_bytes() for path in rows(tmp_path)}
    assert done
    aged(*partials(tmp_path))
    found = run(tmp_path)
    assert same(found, undisturbed)
    assert all(path.read_bytes() == content for path, content in done.items())
    assert len(rows(tmp_path)) == len(GRID)
    assert not partials(tmp_path)


def test_a_lease_ends_with_the_process_that_held_it_however_that_ends(tmp_path):
    with holding(tmp_path, "a", "time.sleep(60)") as other:
        with leased(tmp_path, ["a", "b"], wait=False) as mine:
            assert mine == {"b"}
        other.kill()
    with leased(tmp_path, ["a", "b"], wait=False) as mine:
        assert mine == {"a", "b"}


def test_what_the_dead_left_half_written_is_swept_and_what_the_living_write_stays(tmp_path):
    (tmp_path / "rows").mkdir()
    old, new, other = (tmp_path / "rows" / f".a.json.{name}" for name in ("1.partial", "2.partial", "3"))
    for path in (old, new, other):
        path.touch()
    aged(old, other)
    Store("x", out=tmp_path, committed=False)
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_of_two_hundred_kills_at_random_moments_none_loses_or_halves_or_doubles_a_table(tmp_path):
    whole, draw, ended = squares(tmp_path / "undisturbed"), random.Random(0), 0
    fork = multiprocessing.get_context("fork")
    for kill in range(200):
        folder = tmp_path / str(ended)
        before = {path: path.read_bytes() for path in folder.glob("tables/*.csv")}
        child = fork.Process(target=squares, args=(folder,))
        child.start()
        child.join(draw.uniform(0, 0.05))
        child.kill()
        child.join()
        after = {path: path.read_bytes() for path in folder.glob("tables/*.csv")}
        assert before.items() <= after.items(), kill
        assert all(content.startswith(b"square\n") and content.endswith(b"\n") for content in after.values()), kill
        if len(after) == len(whole) or draw.random() < 0.05:  # a sweep is gone on with after a few kills at the latest
            aged(*partials(folder))
            assert squares(folder).equals(whole), kill
            assert len([*folder.glob("tables/*.csv")]) == len(whole)
            assert not partials(folder), kill
            ended += 1
    assert ended > 10
