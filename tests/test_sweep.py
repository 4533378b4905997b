"""How a sweep counts, orders and times its runs, on clocks and workers that stand in for real ones."""

import dataclasses
import itertools
from types import SimpleNamespace

import cases
import pandas as pd
import pytest
import torch
from attrobust import attacks, experiments, training
from attrobust.experiments import Measurement, keys, measure, shards, sweep
from attrobust.experiments.store import Store, read_json
from attrobust.rows import ATTACKED

BASE = {"dataset": "digits", "step_size": 0.05, "batch_size": 8, "epochs": 1, "seed": 0, "side": 4, "n_train": 16}
SMALL = Measurement(radii=(8,), effort=attacks.Effort(steps=1, restarts=1), n_attacked=4)


def grid(**axes):
    return experiments.grid(**BASE | {"protocol": "plateau"} | axes)


def test_a_line_of_progress_tells_what_is_done_and_lost_and_how_long_the_rest_takes(tmp_path, monkeypatch):
    """Every run takes a minute; the fourth task of six is lost after the third has ended."""
    ticks = itertools.count(0, 60)
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    asked = []

    def shared(function, tasks, *, jobs, failed):
        asked.append((function, len(tasks), jobs))
        for number, task in enumerate(tasks):
            if number == 3:
                failed(task, "Traceback\nOSError: no space left")
            else:
                yield [f"run {number}"]

    monkeypatch.setattr(sweep, "_shared", shared)
    lines, store = [], Store("x", out=tmp_path)
    runs = grid(step_size=[0.1 * i for i in range(1, 7)])
    found = experiments.run(runs, SMALL, store=store, jobs=3, show=lines.append)
    assert isinstance(found, shards.Elsewhere)  # for none of them is stored
    assert asked == [(sweep._run_group, 6, 3)]
    assert lines == [
        "1/6 runs, 01:00 elapsed, about 05:00 remaining · run 0",
        "2/6 runs, 02:00 elapsed, about 04:00 remaining · run 1",
        "3/6 runs, 03:00 elapsed, about 03:00 remaining · run 2",
        "4/6 runs, 1 failed, 04:00 elapsed, about 00:48 remaining · run 4",
        "5/6 runs, 1 failed, 05:00 elapsed, about 00:00 remaining · run 5",
    ]
    log = (store.out / "progress.log").read_text().splitlines()
    lost = sweep._groups(runs, "cpu")[3][0]
    assert [line for line in log if "runs" in line] == [*lines, "6 of 6 runs are with other shards"]
    (said,) = [line for line in log if "FAILED" in line]
    assert said.startswith(f"!!! FAILED: digits plateau step {lost.step_size:g} batch 8 seed 0: OSError: no space left")


def test_runs_that_are_there_already_count_as_done_and_take_no_time(tmp_path, monkeypatch):
    ticks = itertools.count(0, 60)
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    runs = grid(step_size=[0.1, 0.2, 0.3, 0.4])
    there = {keys.key(runs[0], SMALL): sweep.Stored()}
    monkeypatch.setattr(sweep, "_believed", lambda store, keys, measurement: dict(there))
    monkeypatch.setattr(sweep, "_shared", lambda function, tasks, **_: iter([["one"], ["two", "three"]]))
    lines = []
    experiments.run(runs, SMALL, store=Store("x", out=tmp_path), jobs=1, show=lines.append)
    assert lines == [
        "2/4 runs, 01:00 elapsed, about 02:00 remaining · one",
        "3/4 runs, 02:00 elapsed, about 01:00 remaining · two",
        "4/4 runs, 03:00 elapsed, about 00:00 remaining · three",
    ]


def test_a_lost_task_of_which_some_runs_were_stored_loses_the_others_alone(tmp_path, monkeypatch):
    def shared(function, tasks, *, jobs, failed):
        task = tasks[0]
        Store.put(task[2], keys.key(task[0][1], SMALL), {"a": 1}, [], {})
        failed(task, "Traceback\nOSError: no space left")
        yield ["more"]

    monkeypatch.setattr(sweep, "_shared", shared)
    monkeypatch.setattr(sweep, "_believed", lambda store, keys, measurement: {})
    runs, lines, store = grid(step_size=[0.1, 0.2], seed=[0, 1, 2]), [], Store("x", out=tmp_path)
    experiments.run(runs, SMALL, store=store, jobs=1, show=lines.append)
    assert [line.split(" elapsed")[0][:18] for line in lines] == ["2/6 runs, 2 failed"]
    told = [keys.key(e, SMALL) for e in runs[:3]]
    assert [store.failure(key).is_file() for key in told] == [True, False, True]


def test_the_longest_tasks_come_first_and_of_equals_the_smallest_steps():
    axes = {"epochs": [1, 4], "n_train": [16, 64], "batch_size": [2, 16], "step_size": [0.2, 0.1]}
    runs = [e for e in grid(**axes, seed=[0, 1, 2]) if e.seed == 0 or e.epochs == 1]
    found = sweep._groups(runs, "cpu")
    assert sorted(len(group) for group in found) == [1] * 8 + [3] * 8
    works = [len(group) * group[0].epochs * group[0].n_train / group[0].batch_size for group in found]
    told = [(-work, group[0].step_size) for work, group in zip(works, found, strict=True)]
    assert told == sorted(told)
    assert len(set(works)) > 4
    for group in found:
        assert len({dataclasses.replace(e, seed=0) for e in group}) == 1
        assert [e.seed for e in group] == list(range(len(group)))


def test_runs_of_one_task_share_the_time_of_their_training_and_have_that_of_their_measuring(tmp_path, monkeypatch):
    clock = [0.0]

    def train(group, device, **how):
        clock[0] += 10
        return [cases.linear() for _ in group], [training.Fit(steps=e.seed) for e in group]

    def measured(e, *given):
        clock[0] += 3 + e.seed
        return {"comparable": True, "reason": ""}, pd.DataFrame(columns=[*ATTACKED[1:]])

    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(sweep, "train", train)
    monkeypatch.setattr(sweep, "measure", measured)
    group, store = grid(seed=[0, 1]), Store("x", out=tmp_path)
    names = {e: keys.key(e, SMALL) for e in group}
    lines = sweep._stored(group, names, SMALL, store, "cpu")
    assert lines == [
        f"digits plateau step 0.05 batch 8 seed {seed}: {seconds} s" for seed, seconds in ((0, 8.0), (1, 9.0))
    ]
    for e, seconds in zip(group, (8.0, 9.0), strict=True):
        assert read_json(store.out / "provenance" / f"{names[e]}.json")["seconds"] == seconds
        assert read_json(store.out / "rows" / f"{names[e]}.json")["run"] == {
            **measure.columns(e), "comparable": True, "reason": "",
        }  # fmt: skip
        assert store.network_file(keys.network(e)).is_file()


def test_an_experiment_of_a_list_of_lists_is_found():
    runs = grid(seed=[0, 1, 2])
    assert sweep._experiments_in([runs[0], ("a", [runs[1], 3]), {"b": 1}, (([runs[2]],),)]) == runs
    assert sweep._experiments_in("digits") == []


def test_what_was_measured_is_read_as_what_it_stands_for():
    """From a table of texts, in which what is blank is no number, and from a row as it was computed."""
    run = {**measure.columns(grid()[0]), "key": "a", "steps": 3}
    for told, reason, read in (("True", float("nan"), True), (True, "", True), ("False", "lost", False)):
        found = sweep._measured(run | {"comparable": told, "reason": reason})
        assert found == {"steps": 3, "comparable": read, "reason": "lost" if reason == "lost" else ""}


def test_untrained_weights_of_another_shape_name_their_file(tmp_path):
    (e,), store = grid(), Store("x", out=tmp_path)
    store.save_weights("k", experiments.build(dataclasses.replace(e, side=2)))
    with pytest.raises(ValueError, match=r"k\.safetensors holds the weights of another network: delete it"):
        sweep._loaded(e, store.network_file("k"), "cpu")
    store.save_weights("k", own := experiments.build(e).train())
    found = sweep._loaded(e, store.network_file("k"), "cpu")
    assert not found.training
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), own.parameters(), strict=True))


def test_teachers_of_whom_something_is_learnt_are_trained_first_and_each_once(tmp_path, monkeypatch):
    asked, store = [], Store("x", out=tmp_path)

    def in_workers(function, tasks, *, jobs, failed):
        asked.append((function, tasks, jobs, failed))
        return [None for _ in tasks]

    monkeypatch.setattr(sweep, "in_workers", in_workers)
    monkeypatch.setattr(sweep, "_shared", lambda *_, **__: [])
    taught = {"penalty": "interpretation", "wanted": "gradient"}
    runs = grid(**taught, strength=[0.5, 0.25, 0.0], seed=[0, 1])
    runs += grid(**taught, seed=2) + grid(seed=[0, 1]) + grid(penalty="ssr", strength=0.5)
    there, absent = (next(e.teacher for e in runs if e.seed == seed) for seed in (0, 1))
    store.save_weights(keys.network(there), cases.linear())
    experiments.run(runs, SMALL, store=store, jobs=3)
    ((function, tasks, jobs, failed),) = asked
    assert (function, tasks, jobs) == (sweep._prepared, [(absent, store, "cpu")], 3)
    assert "teachers: 1/1 trained" in (store.out / "progress.log").read_text()
    failed(sweep.Failure(0, OSError(), "Traceback\nOSError: no space left"))
    assert store.failure(keys.network(absent)).is_file()
    said = (store.out / "progress.log").read_text().splitlines()[-1]
    assert said.startswith("!!! FAILED: teacher: digits plateau step 0.05 batch 8 seed 1000001: OSError")


def test_a_shard_counts_what_is_its_own_and_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv(shards.SHARD, "2/3")
    runs = grid(step_size=[0.1 * i for i in range(1, 10)])
    names = {e: keys.key(e, SMALL) for e in runs}
    arms = [group[0] for group in sweep._groups(runs, "cpu")]
    mine = arms[(int(names[runs[0]], 16) + 1) % 3 :: 3]
    there = {names[next(e for e in arms if e not in mine)]: sweep.Stored()}
    tasks = []

    def shared(function, given, **_):
        tasks.extend(given)
        return [["one"], ["two"], ["three"]]

    monkeypatch.setattr(sweep, "_believed", lambda store, keys, measurement: dict(there))
    monkeypatch.setattr(sweep, "_shared", shared)
    lines, store = [], Store("x", out=tmp_path)
    experiments.run(runs, SMALL, store=store, jobs=0, show=lines.append)
    assert sorted(task[0][0].step_size for task in tasks) == sorted(e.step_size for e in mine)
    assert [line.split(",")[0] for line in lines] == ["2/4 runs", "3/4 runs", "4/4 runs"]
    assert (store.out / "progress.log").read_text().splitlines()[-1] == "8 of 9 runs are with other shards"
    for number in range(3):
        told = dict.fromkeys(runs, "1") | {runs[0]: str(number)}
        assert sweep._share(runs, told, "cpu") == {*arms[(number + 1) % 3 :: 3]}
    monkeypatch.delenv(shards.SHARD)
    assert sweep._share(runs, names, "cpu") == {*runs}
    assert sweep._share([], {}, "cpu") == set()


def one_row(n):
    return pd.DataFrame({"n": [n]})


def test_tables_are_dealt_by_the_first_of_their_names_and_counted_through(tmp_path, monkeypatch):
    store, tasks, plain, asked = Store("x", out=tmp_path), [(3,), (1,), (2,)], shards.dealt, []
    found = experiments.tables(store, "t", one_row, tasks, version=1, jobs=1)
    assert (found["n"].tolist(), list(found.index)) == ([3, 1, 2], [0, 1, 2])

    def dealt(arms, part, *, sweep):
        asked.append((list(arms), part, sweep))
        return plain(arms, part, sweep=sweep)

    monkeypatch.setattr(shards, "dealt", dealt)
    monkeypatch.setenv(shards.SHARD, "1/2")
    experiments.tables(store, "t", one_row, tasks, version=1, jobs=1)
    names = [keys.table("t", one_row, task, version=1, device="cpu") for task in tasks]
    assert asked == [(names, (1, 2), names[0])]
    assert experiments.tables(store, "t", one_row, [], version=1).empty


def test_a_network_is_found_by_what_trains_it_where_it_is_trained(tmp_path, monkeypatch):
    asked, (e,) = [], grid()
    own = experiments.build(e)

    def train(group, device, *, network):
        asked.append((group, device, network.func, network.keywords))
        return [own for _ in group], [training.Fit(steps=7)]

    monkeypatch.setattr(sweep, "train", train)
    store = Store("x", out=tmp_path)
    assert sweep._network(e, store, "cpu") is own
    again = sweep._network(e, store, "cpu")
    assert asked == [([e], "cpu", sweep._network, {"store": store, "device": "cpu"})]
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), own.parameters(), strict=True))
    assert sweep._fitted(e, store, "cpu")[1].steps == 7
    monkeypatch.setattr(sweep, "measure", lambda *_: ({"comparable": True, "reason": ""}, pd.DataFrame()))
    sweep._stored([other := grid(seed=1)[0]], {other: "k"}, SMALL, store, "cpu")
    assert asked[1:] == [([other], "cpu", sweep._network, {"store": store, "device": "cpu"})]
    wanted = []
    monkeypatch.setattr(sweep, "_network", lambda *given, **how: wanted.append((given, how)) or own)
    assert sweep._on_processor(e, there := Store("x", out=tmp_path, device="cuda")) is own
    assert wanted == [((e,), {"store": there, "device": "cuda"})]
