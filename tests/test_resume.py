"""A reproduction keeps what the same code, data and parameters made in it, and nothing else."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from attrobust import data
from attrobust.experiments import store
from attrobust.experiments.leases import leased
from attrobust.experiments.store import Store
from attrobust.notebook import reproduce


@pytest.fixture
def books(tmp_path):
    """Two notebooks of one cell, and what a reproduction of both said."""
    found = []
    for name in ("01_x", "02_y"):
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        store.write_bytes(path, json.dumps({"cells": [{"cell_type": "code", "source": ["x = 1"]}]}).encode())
        found.append(path)
    return found


def begin(folder, books, values=None, *, fresh=False):
    said = []
    reproduce.begin(folder, books, values or {"seeds": [0]}, fresh=fresh, say=said.append)
    return said


def ran(folder, book, key, *, finished=True):
    """What a notebook leaves: one row, and the note that it ended."""
    Store(book.stem, out=folder / book.stem, committed=False).put(key, {"value": 1.0}, [], {})
    if finished:
        (folder / book.stem / "finished").touch()


def rows(folder, book):
    return sorted(path.stem for path in (folder / book.stem / "rows").glob("*.json"))


def test_what_was_cut_off_goes_on_where_it_stopped(tmp_path, books):
    begin(tmp_path, books)
    ran(tmp_path, books[0], "a")
    ran(tmp_path, books[1], "b", finished=False)
    name = store.made_in(tmp_path / "01_x")
    assert begin(tmp_path, books) == ["resuming: 2 runs are there from before the interruption (FRESH=1 starts over)"]
    assert (rows(tmp_path, books[0]), rows(tmp_path, books[1])) == (["a"], ["b"])
    assert store.made_in(tmp_path / "02_y") == name


def test_fresh_starts_over(tmp_path, books):
    begin(tmp_path, books)
    ran(tmp_path, books[0], "a")
    assert begin(tmp_path, books, fresh=True) == []
    assert rows(tmp_path, books[0]) == []


def test_a_finished_reproduction_is_never_gone_on_with(tmp_path, books):
    begin(tmp_path, books)
    for book in books:
        ran(tmp_path, book, "a")
    reproduce.end(tmp_path)
    assert begin(tmp_path, books) == []
    assert rows(tmp_path, books[0]) == rows(tmp_path, books[1]) == []


def test_a_finished_older_run_is_not_kept_where_another_notebook_was_cut_off(tmp_path, books):
    begin(tmp_path, books[:1])
    ran(tmp_path, books[0], "old")
    reproduce.end(tmp_path)
    begin(tmp_path, books[1:])
    ran(tmp_path, books[1], "new", finished=False)
    begin(tmp_path, books)
    assert rows(tmp_path, books[0]) == []
    assert rows(tmp_path, books[1]) == ["new"]


def test_rows_of_an_older_reproduction_do_not_serve_a_notebook_that_shares_them(tmp_path, books):
    begin(tmp_path, books[:1])
    ran(tmp_path, books[0], "a")
    reproduce.end(tmp_path)
    begin(tmp_path, books[1:])
    sharing = Store("02_y", out=tmp_path / "02_y", shares=["01_x"], committed=False)
    assert store.rows_in(sharing.beside, ["a"]) == {}
    begin(tmp_path, books, fresh=True)
    ran(tmp_path, books[0], "a")
    sharing = Store("02_y", out=tmp_path / "02_y", shares=["01_x"], committed=False)
    assert set(store.rows_in(sharing.beside, ["a"])) == {"a"}


CHANGES = {
    "code": lambda patch: patch.setattr(reproduce, "code_digest", lambda: "other code"),
    "data": lambda patch: patch.setattr(data, "fingerprint", lambda name: "other pixels"),
    "files": lambda patch: patch.setattr(data, "available", lambda name: False),
    "torch": lambda patch: patch.setattr(torch, "__version__", "0.0"),
}


@pytest.mark.parametrize("change", [*CHANGES, "parameters"])
def test_other_code_data_or_parameters_start_over_and_say_so(tmp_path, books, monkeypatch, change):
    begin(tmp_path, books)
    ran(tmp_path, books[0], "a")
    CHANGES.get(change, lambda patch: None)(monkeypatch)
    said = begin(tmp_path, books, {"seeds": [1]} if change == "parameters" else None)
    assert said == ["starting over: code, data, parameters or machine are not those of the interrupted run"]
    assert rows(tmp_path, books[0]) == []


def test_the_number_of_workers_is_no_parameter_of_the_numbers(tmp_path, books):
    begin(tmp_path, books, {"seeds": [0], "jobs": 1})
    ran(tmp_path, books[0], "a")
    assert begin(tmp_path, books, {"seeds": [0.0], "jobs": 2})[0].startswith("resuming: 1 runs")


def test_a_notebook_whose_cells_changed_starts_over_alone(tmp_path, books):
    begin(tmp_path, books)
    for book in books:
        ran(tmp_path, book, "a", finished=False)
    text = {"cells": [{"cell_type": "code", "source": ["x = 2"]}, {"cell_type": "markdown", "source": ["..."]}]}
    books[0].write_text(json.dumps(text))
    begin(tmp_path, books)
    assert (rows(tmp_path, books[0]), rows(tmp_path, books[1])) == ([], ["a"])
    ran(tmp_path, books[0], "b", finished=False)
    books[0].write_text(json.dumps({"cells": [text["cells"][0]]}))  # a text cell is no code
    begin(tmp_path, books)
    assert rows(tmp_path, books[0]) == ["b"]


def test_what_lies_there_without_a_name_is_not_kept(tmp_path, books):
    begin(tmp_path, books)
    store.write_json(tmp_path / "01_x" / "rows" / "a.json", {})
    (tmp_path / "01_x" / "reproduction.json").unlink()
    begin(tmp_path, books)
    assert rows(tmp_path, books[0]) == []


def test_the_digest_of_the_code_is_that_of_the_files_as_they_are(tmp_path, monkeypatch):
    for name, text in (("a.py", "a"), ("deep/b.py", "b"), ("note.txt", "c")):
        store.write_bytes(tmp_path / name, text.encode())
    monkeypatch.setattr(reproduce, "__file__", str(tmp_path / "deep" / "b.py"))
    before = reproduce.code_digest()
    (tmp_path / "note.txt").write_text("d")
    assert reproduce.code_digest() == before
    (tmp_path / "deep" / "b.py").write_text("d")
    assert reproduce.code_digest() != before


def test_what_another_reproduction_is_at_work_in_is_not_cleared(tmp_path, books):
    begin(tmp_path, books)
    ran(tmp_path, books[0], "a")
    stamped = store.read_json(tmp_path / "reproduction.json")
    with leased(tmp_path / "01_x" / "leases", ["b"], wait=True):
        with pytest.raises(ValueError, match="01_x is at work for another reproduction; wait until that has ended"):
            begin(tmp_path, books, fresh=True)
        assert rows(tmp_path, books[0]) == ["a"]
        assert store.read_json(tmp_path / "reproduction.json") == stamped
        assert begin(tmp_path, books)[0].startswith("resuming: 1 runs")
    assert begin(tmp_path, books, fresh=True) == []


def test_of_two_that_start_at_once_one_joins_the_other(tmp_path, books):
    with ThreadPoolExecutor(2) as pool:
        said = [*pool.map(lambda _: begin(tmp_path, books), range(2))]
    assert sorted(map(len, said)) == [0, 1]
    assert len({store.made_in(tmp_path / book.stem) for book in books}) == 1
