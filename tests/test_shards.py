"""Laws of shards: together they do each run once, and what they leave, merged, is the table of one machine."""

import json
import multiprocessing
import operator
import shutil
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from attrobust import experiments, paths
from attrobust.experiments import devices, shards, store
from attrobust.experiments.shards import Shard
from attrobust.notebook import merging, reproduce
from test_faults import GRID, holding, rows, run, same, slept, undisturbed
from trees import copy_tree
from trees import run as command

__all__ = ["undisturbed"]


@pytest.fixture
def shard(monkeypatch):
    """Make this process a shard, or none by "" again."""
    return lambda name: monkeypatch.setenv(shards.SHARD, name)


def made(home, name):
    """The folder of a notebook in a reproduction."""
    folder = home / "03_sgd_flattens"
    stamp = {"code": "a", "data": {}, "parameters": "b", "machine": []}
    store.write_json(
        home / reproduce.STAMP, {"id": name, "stamp": stamp, "notebooks": [folder.name], "finished": False}
    )
    store.write_json(folder / reproduce.STAMP, {"id": name, "cells": "c"})
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where this checkout's reproduction lies."""
    monkeypatch.setattr(paths, "build", tmp_path / "build")
    return tmp_path / "build" / "reproduce" / "cpu"


@pytest.mark.parametrize("n", [1, 2, 5, 7, 40])
@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_every_arm_is_dealt_to_one_shard_and_none_gets_two_more_than_another(n, of):
    arms = [*range(n)]
    for sweep in ("0", "ff", "0123456789abcdef"):
        parts = [shards.dealt(arms, Shard(i + 1, of), sweep=sweep) for i in range(of)]
        assert sorted(arm for part in parts for arm in part) == arms
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", ["0/2", "3/2", "2", "a/b", "1/2/3", "-1/2", " 1/2", "1/0", "٢/٨"])
def test_a_shard_that_is_none_is_refused(shard, name):
    shard(name)
    with pytest.raises(ValueError, match=r"shard is .*; it must be i/n, such as 2/8"):
        shards.asked()


def test_shards_merged_are_the_table_of_one_machine_and_each_run_is_done_once(home, tmp_path, shard, undisturbed):
    parts = []
    for i in (1, 2, 3):
        shard(f"{i}/3")
        parts.append(made(tmp_path / str(i), str(i)))
        found = run(parts[-1])
        for use in (operator.attrgetter("runs"), list, operator.itemgetter(0), len, bool):
            with pytest.raises(shards.ElsewhereError, match="of 4 runs are with other shards; merge them"):
                use(found)
        assert "1/1 runs" in (parts[-1] / "progress.log").read_text() or len(rows(parts[-1])) == 2
        made_once = {path: path.stat().st_mtime_ns for path in rows(parts[-1])}
        run(parts[-1])
        assert {path: path.stat().st_mtime_ns for path in rows(parts[-1])} == made_once
    names = [path.name for part in parts for path in rows(part)]
    assert len(names) == len({*names}) == len(GRID)
    shard("")
    merging.merge([part.parent for part in parts])
    mine = home / "03_sgd_flattens"
    copied = {path: path.stat().st_mtime_ns for path in rows(mine)}
    assert same(run(mine), undisturbed)
    assert {path: path.stat().st_mtime_ns for path in rows(mine)} == copied


def test_seeds_that_train_side_by_side_stay_in_one_shard(tmp_path, shard):
    grid = experiments.grid(
        dataset="digits", step_size=[0.1, 0.2], batch_size=16, epochs=1, seed=[0, 1, 2], side=4, n_train=48
    )
    shard("1/2")
    run(tmp_path, grid=grid)
    steps = [json.loads(path.read_text())["run"]["step_size"] for path in rows(tmp_path)]
    assert len(steps) == 3
    assert len({*steps}) == 1


def test_tables_are_dealt_too(tmp_path, shard):
    tasks, folders = [(i, 0.0) for i in range(5)], [tmp_path / "1", tmp_path / "2"]
    for i, folder in enumerate(folders):
        shard(f"{i + 1}/2")
        mine = store.Store("x", out=folder, committed=False)
        found = experiments.tables(mine, "squares", slept, tasks, version=1, jobs=1)
        with pytest.raises(shards.ElsewhereError, match="of 5 tables 'squares' are with other shards"):
            found.assign(a=1)
        assert store.read_json(folder / "summary.json")["elsewhere"] == 1
    counts = [len([*folder.glob("tables/*")]) for folder in folders]
    assert sorted(counts) == [2, 3]


def test_what_is_damaged_is_not_merged_and_said(home, tmp_path):
    source, said = made(tmp_path / "1", "1"), []
    run(source, grid=GRID[:2])
    broken, whole = rows(source)
    broken.write_bytes(broken.read_bytes()[:40])
    (source / "tables").mkdir()
    (source / "tables" / "a-1.csv").write_text("x,y\n1,2\n3")
    (source / "tables" / "a-2.csv").write_text("x,y\n1,2\n")
    merging.merge([source.parent], say=said.append)
    mine = home / "03_sgd_flattens"
    assert [path.name for path in rows(mine)] == [whole.name]
    assert [path.name for path in (mine / "tables").iterdir()] == ["a-2.csv"]
    assert sum("LEFT OUT" in line for line in said) == 2
    assert any(line.endswith("1: 1 runs, 1 tables, 2 networks") for line in said), said
    merging.merge([source.parent], say=said.append)
    assert any(line.endswith("1: nothing new") for line in said)


def test_what_other_code_made_or_what_is_at_work_is_not_merged(home, tmp_path, unchecked):
    one, other = made(tmp_path / "1", "1"), made(tmp_path / "2", "2")
    record = store.read_json(other.parent / reproduce.STAMP)
    record["stamp"]["code"] = "z"
    store.write_json(other.parent / reproduce.STAMP, record)
    with pytest.raises(ValueError, match="2; its code is not that of the first"):
        merging.merge([one.parent, other.parent])
    assert not home.exists()
    merging.merge([one.parent])
    with pytest.raises(ValueError, match=r"2; its code is not that of .*cpu"):
        merging.merge([other.parent])
    with holding(one / "leases", "a", "time.sleep(60)") as worker:
        with pytest.raises(ValueError, match="which is at work"):
            merging.merge([one.parent])
        worker.kill()
    for folders, sentence in (([], "folders is \\[\\]"), ([tmp_path / "x"], "holds reproduction.json")):
        with pytest.raises(ValueError, match=sentence):
            merging.merge(folders)


def carded(folder, told):
    """Tell the card that a process of a machine with two takes, and takes again."""
    devices.tempfile.gettempdir = lambda: str(folder)
    torch.cuda.is_available, torch.cuda.device_count = (lambda: True), (lambda: 2)
    torch.cuda.set_device = told.put
    devices.pin()
    devices.pin()
    told.close()
    told.join_thread()
    time.sleep(60)  # until it is killed


def test_workers_keep_to_one_card_each_and_as_many_to_each(tmp_path):
    fork, told = multiprocessing.get_context("fork"), multiprocessing.get_context("fork").Queue()
    workers = [fork.Process(target=carded, args=(tmp_path, told)) for _ in range(4)]
    for worker in workers:
        worker.start()
    cards = [told.get(timeout=60) for _ in range(8)]
    for worker in workers:
        worker.kill()
        worker.join()
    assert sorted(cards) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_without_a_choice_of_cards_nothing_is_set(monkeypatch):
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: True, device_count=lambda: 1))
    devices.pin()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_notebook_in_two_shards_and_merged_ends_like_in_one(tmp_path):
    """Three checkouts as of three machines: two shards of notebook 03, and the third that finishes them."""
    trees = [copy_tree(tmp_path / name) for name in ("one", "two", "whole", "alone")]
    ask = [sys.executable, "-m", "attrobust", "reproduce", "--profile", "smoke", "--only", "03", "--jobs", "1"]
    for i, tree in enumerate(trees[:2]):
        done = command([*ask, "--shard", f"{i + 1}/2"], tree, check=True)
        assert f"what shard {i + 1}/2 has" in done.stdout
        shutil.copytree(tree / "build" / "reproduce" / "smoke", tmp_path / f"carried {i}")
    merge = [sys.executable, "-m", "attrobust", "merge", "--profile", "smoke", *map(str, tmp_path.glob("carried *"))]
    command(merge, trees[2], check=True)
    home = "build/reproduce/smoke/03_sgd_flattens"
    n = len(rows(trees[2] / home))
    done = command(ask, trees[2], check=True)
    assert f"resuming: {n} runs are there" in done.stdout
    command(ask, trees[3], check=True)
    for name in ("runs", "attacked", "claims"):
        one, other = (pd.read_csv(tree / home / f"{name}.csv") for tree in trees[2:])
        pd.testing.assert_frame_equal(one, other)
    assert n == len(rows(trees[3] / home))
