"""Laws of shards: together they do each run once, and what they leave, merged, is the table of one machine."""

import json
import multiprocessing
import operator
import os
import shutil
import sys
import time
from types import SimpleNamespace

import nbformat
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
    record = {"id": name, "stamp": reproduce.stamp({}), "notebooks": [folder.name], "finished": False}
    store.write_json(home / reproduce.STAMP, record)
    cells = reproduce.cells_digest(paths.notebooks / f"{folder.name}.ipynb")
    store.write_json(folder / reproduce.STAMP, {"id": name, "cells": cells})
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


def test_what_is_said_of_rows_that_are_no_table_is_known_as_waiting_for_them():
    said = f"a {shards.Elsewhere} cannot be concatenated"
    assert shards.waits("TypeError", said)
    assert not shards.waits("OSError", said)
    assert not shards.waits("TypeError", "an int cannot be concatenated")


def test_what_is_damaged_is_not_merged_and_said_and_what_is_whole_takes_the_place_of_what_is_damaged(home, tmp_path):
    source, said = made(tmp_path / "1", "1"), []
    run(source, grid=GRID[:3])
    cut, lost, whole = rows(source)
    cut.write_bytes(cut.read_bytes()[:40])
    (source / "provenance" / lost.name).write_text("{")
    tables = source / "tables"
    tables.mkdir()
    for name, text in {"a-1.csv": "x,y\n1,2\n3", "a-2.csv": "x,y\n1,2\n", "a-3.npz": "PK", "a-4.csv": "\n"}.items():
        (tables / name).write_text(text)
    (tables / "gone.csv").symlink_to(tmp_path / "nothing")
    merging.merge([source.parent], say=said.append)
    mine = home / "03_sgd_flattens"
    assert [path.name for path in rows(mine)] == [whole.name]
    assert [path.name for path in (mine / "provenance").iterdir()] == [whole.name]
    assert [path.name for path in (mine / "tables").iterdir()] == ["a-2.csv"]
    assert sum("LEFT OUT" in line for line in said) == 5
    assert any(line.endswith("1: 1 runs, 1 tables, 3 networks") for line in said), said
    merging.merge([source.parent], say=said.append)
    assert any(line.endswith("1: nothing new") for line in said)
    content = rows(mine)[0].read_bytes()
    rows(mine)[0].write_bytes(content[:20])
    merging.merge([source.parent], say=said.append)
    assert rows(mine)[0].read_bytes() == content


def test_what_is_merged_is_kept_by_the_next_reproduction_and_what_was_there_of_another_is_not(home, tmp_path):
    source, said = made(tmp_path / "1", "1"), []
    run(source, grid=GRID[:2])
    old = home / "03_sgd_flattens" / "tables" / "old-1.csv"
    old.parent.mkdir(parents=True)
    old.write_text("x\n1\n")
    merging.merge([source.parent], say=said.append)
    assert not old.exists()
    reproduce.begin(home, reproduce.numbered("03"), {}, fresh=False, say=said.append)
    assert len(rows(home / "03_sgd_flattens")) == 2
    assert "resuming: 2 runs are there" in said[-1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"code": "z"}, "its code is not what is here"),
        ({"machine": ["1.0", "NEON"]}, "its machine is not what is here"),
        ({"parameters": "z"}, "its parameters are not those of"),
        (None, "holds reproduction.json"),
    ],
)
def test_what_was_made_otherwise_is_not_merged(home, tmp_path, change, sentence):
    one, other = made(tmp_path / "1", "1").parent, made(tmp_path / "2", "2").parent
    record = store.read_json(other / reproduce.STAMP)
    store.write_json(other / reproduce.STAMP, record | {"stamp": record["stamp"] | change if change else None})
    with pytest.raises(ValueError, match=sentence):
        merging.merge([one, other])
    assert not home.exists()


def test_what_is_at_work_or_no_other_folder_is_not_merged(home, tmp_path, unchecked):
    one = made(tmp_path / "1", "1")
    with holding(one / "leases", "a", "time.sleep(60)") as worker:
        with pytest.raises(ValueError, match="which is at work"):
            merging.merge([one.parent])
        worker.kill()
    made(home, "3")
    for folders in ([], [home]):
        with pytest.raises(ValueError, match="name copies of what shards left, other than"):
            merging.merge(folders)


def test_no_record_of_a_folder_leads_out_of_the_reproduction(home, tmp_path):
    source = made(tmp_path / "1", "1")
    record = store.read_json(source.parent / reproduce.STAMP)
    store.write_json(source.parent / reproduce.STAMP, record | {"notebooks": ["../../escaped", str(tmp_path / "out")]})
    merging.merge([source.parent])
    assert {path.name for path in tmp_path.iterdir()} <= {"1", "build"}
    assert {path.name for path in home.parent.iterdir()} == {"cpu"}


@pytest.mark.in_turn(2)
@pytest.mark.parametrize(
    ("cells", "whole", "sentence"),
    [
        (["e.runs", "never"], False, None),
        (["import pandas as pd; pd.concat([e])", "e.runs"], False, None),
        (["e.runs", "raise ValueError('damaged')"], False, "perhaps because of them: ValueError: damaged"),
        (["raise OSError('/data/Elsewhere: disk full')", "e.runs"], None, "disk full"),
        (["e.runs", "import os; os._exit(9)"], None, "its kernel was killed"),
        (["import os; os._exit(9)"], None, "its kernel was killed"),
        (["1"], False, None),
    ],
)
def test_a_shard_goes_on_past_what_waits_for_others_and_hides_no_error(tmp_path, cells, whole, sentence):
    home, said = tmp_path / "03_sgd_flattens", []
    before = "from attrobust.experiments.store import Store\n"
    before += f"e = Store('03_sgd_flattens', out={str(home)!r}, committed=False).wait_for('1 of 2 runs are')"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (before, *cells)])
    source = tmp_path / "book.ipynb"
    nbformat.write(book, source)
    if whole is None:
        with pytest.raises(reproduce.NotebookError, match=sentence):
            reproduce._execute_part(source, home / "book.ipynb", {}, say=said.append)
        return
    assert reproduce._execute_part(source, home / "book.ipynb", {}, say=said.append) is whole
    assert sum("!!!" in line for line in said) == (sentence is not None)
    assert sentence is None or any(sentence in line for line in said)


def carded(folder, told):
    """Tell the card that a process of a machine with two takes, and takes again."""
    devices.tempfile.gettempdir = lambda: str(folder)
    torch.cuda.device_count = lambda: 2
    torch.cuda.set_device = told.put
    devices.pin("cuda")  # whoever is no worker stays where it is
    devices.admit()
    devices.pin("cpu")
    devices.pin("cuda")
    devices.pin("cuda")
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
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(device_count=lambda: 1))
    monkeypatch.setattr(devices, "_workers", {os.getpid()})
    devices.pin("cuda")


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


@pytest.mark.parametrize("sweep", ["0", "1f", "a3"])
def test_arms_are_dealt_in_turn_from_a_place_that_the_sweeps_name_says(sweep):
    arms = [*"abcdefghijkl", "a", "c"]
    for of in range(1, 8):
        for index in range(1, of + 1):
            begins = ({"0": 0, "1f": 31, "a3": 163}[sweep] + index - 1) % of
            assert shards.dealt(arms, Shard(index, of), sweep=sweep) == set("abcdefghijkl"[begins::of])


def test_a_shard_is_named_by_two_numbers_of_which_the_first_is_no_larger(monkeypatch):
    for text, told in (("", None), ("1/1", (1, 1)), ("8/8", (8, 8)), ("2/10", (2, 10))):
        monkeypatch.setenv(shards.SHARD, text)
        assert shards.asked() == told
    for text in ("9/8", "0/8", "8", "1/0", "a/b", "1/2/3"):
        monkeypatch.setenv(shards.SHARD, text)
        with pytest.raises(ValueError, match=r"shard is '.*'; it must be i/n, such as 2/8"):
            shards.asked()


def test_only_an_error_about_rows_elsewhere_waits_for_them():
    there = f"unsupported: {shards.__name__}.Elsewhere"
    said = {("ElsewhereError", "any"): True, ("ElsewhereError", there): True, ("TypeError", there): True,
            ("TypeError", "Elsewhere"): False, ("ValueError", there): False, ("ValueError", "any"): False}  # fmt: skip
    assert {told: shards.waits(*told) for told in said} == said
