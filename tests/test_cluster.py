"""Laws of sweeps on a Dask cluster: the same table, whoever is lost meanwhile."""

import os
import signal
import subprocess
import sys

import pytest
from attrobust import experiments
from attrobust.experiments import workers
from scheduled import cluster
from test_faults import GRID, begun, rows, run, same, squares, undisturbed, until

pytest.importorskip("distributed", reason="needs pip install attrobust[cluster]")
__all__ = ["undisturbed"]


@pytest.mark.slow
def test_a_worker_of_a_cluster_that_is_lost_costs_no_run_and_changes_no_number(tmp_path, undisturbed, monkeypatch):
    with cluster(tmp_path) as (address, _, *helpers):
        monkeypatch.setenv(workers.CLUSTER, address)
        sweep = begun(tmp_path / "out")
        until(lambda: rows(tmp_path / "out") or sweep.poll() is not None)
        os.kill(helpers[0].pid, signal.SIGKILL)
        assert sweep.wait(timeout=300) == 0
    monkeypatch.delenv(workers.CLUSTER)
    made = {path: path.stat().st_mtime_ns for path in rows(tmp_path / "out")}
    assert len(made) == len(GRID)
    assert same(run(tmp_path / "out"), undisturbed)
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.slow
def test_a_scheduler_that_is_lost_ends_the_sweep_in_one_sentence_and_the_rest_is_run_without_it(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with cluster(tmp_path, n=1) as (address, scheduler, _):
        monkeypatch.setenv(workers.CLUSTER, address)
        sweep = begun(out, what="squares", more=", seconds=0.5", stderr=subprocess.PIPE)
        until(lambda: [*out.glob("tables/*.csv")] or sweep.poll() is not None)
        scheduler.kill()
        _, said = sweep.communicate(timeout=300)
    assert sweep.returncode != 0
    assert said.rstrip().endswith("went away; the same command resumes where it stopped")
    monkeypatch.delenv(workers.CLUSTER)
    done = {path: path.read_bytes() for path in out.glob("tables/*.csv")}
    assert 0 < len(done) < 12
    assert squares(out, seconds=0.5)["square"].tolist() == [i**2 for i in range(12)]
    assert all(path.read_bytes() == content for path, content in done.items())


def test_a_scheduler_that_does_not_answer_is_named_in_one_sentence(monkeypatch):
    monkeypatch.setenv(workers.CLUSTER, "nonsense://here")
    with pytest.raises(ValueError, match="ATTROBUST_CLUSTER is 'nonsense://here'; no scheduler answers there"):
        list(experiments.in_workers(abs, [(1,)]))


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setenv(workers.CLUSTER, "tcp://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"which needs dask; install it by pip install attrobust\[cluster\]"):
        list(experiments.in_workers(abs, [(1,)]))
