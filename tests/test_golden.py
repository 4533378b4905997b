"""Numbers that are stored change with a version or not at all."""

import golden_rows
import pandas as pd
import pytest
from attrobust import attention, versions
from attrobust.theory import entropy

FUNCTIONS = golden_rows.versioned()
NOTEBOOKS = golden_rows.notebook_functions()


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) | set(golden_rows.CASES)))
def test_a_stored_functions_numbers_are_those_of_its_version(name):
    assert name in FUNCTIONS, f"{name!r} has a case and no version: write @versioned(1) above it, or take the case out"
    assert name in golden_rows.CASES, f"{name!r} is versioned and has no golden row: add a small call to CASES"
    if name == "drop_in":
        pytest.importorskip("transformers")
    pinned = golden_rows.pinned(name)
    wrong = golden_rows.difference(name, versions.version_of(FUNCTIONS[name]), golden_rows.row(name), pinned)
    assert not wrong, wrong


@pytest.mark.parametrize("where", sorted(NOTEBOOKS))
def test_a_notebooks_stored_functions_code_is_that_of_its_version(where):
    pinned = golden_rows.json.loads((golden_rows.FOLDER / "notebooks.json").read_text())
    wrong = golden_rows.notebook_difference(where, NOTEBOOKS[where], pinned.get(where))
    assert not wrong, wrong


def test_no_golden_row_is_left_of_a_function_that_is_gone():
    assert {p.stem for p in golden_rows.FOLDER.glob("*.json")} == {*FUNCTIONS, "notebooks"}


def test_changed_numbers_without_a_new_version_are_named_in_a_sentence(monkeypatch):
    plain = entropy.hump
    moved = plain(1, 0).assign(left=lambda t: t.left * 1.0001)
    monkeypatch.setitem(golden_rows.CASES, "hump", lambda: moved)
    wrong = golden_rows.difference("hump", 1, golden_rows.row("hump"), golden_rows.pinned("hump"))
    assert wrong.startswith("the numbers of 'hump' changed and its version did not (column 'left'")
    assert "raise it to @versioned(2)" in wrong
    again = golden_rows.difference("hump", 2, golden_rows.row("hump"), golden_rows.pinned("hump"))
    assert again.startswith("'hump' has version 2 and a golden row of version 1")
    assert "has no golden row" in golden_rows.difference("hump", 1, golden_rows.row("hump"), None)


def test_a_registrys_new_member_joins_its_golden_row_and_an_old_ones_change_is_still_named(monkeypatch):
    pinned = golden_rows.pinned("kernel")
    monkeypatch.setitem(attention.KERNELS, "another", attention.KERNELS["softmax"])
    wrong = golden_rows.difference("kernel", 1, golden_rows.row("kernel"), pinned)
    assert wrong == f"'kernel' has no golden row of another yet: {golden_rows.AGAIN}"
    monkeypatch.setitem(attention.KERNELS, "l2", attention.KERNELS["gaussian"])
    wrong = golden_rows.difference("kernel", 1, golden_rows.row("kernel"), pinned)
    assert wrong.startswith("the numbers of 'kernel' changed and its version did not (column 'l2'")
    lost = golden_rows.row("kernel")
    del lost["columns"]["l2"]
    assert "changed" in golden_rows.difference("kernel", 1, lost, pinned)


def test_rounding_is_no_change_and_a_lost_row_or_column_is(monkeypatch):
    plain, pinned = entropy.hump, golden_rows.pinned("hump")

    def changed(change):
        monkeypatch.setitem(golden_rows.CASES, "hump", lambda: change(plain(1, 0)))
        return golden_rows.difference("hump", 1, golden_rows.row("hump"), pinned)

    assert changed(lambda t: t.assign(left=t.left * (1 + 1e-9))) == ""
    assert changed(lambda t: t.iloc[1:]) != ""
    assert changed(lambda t: t.drop(columns="kind")) != ""
    assert changed(lambda t: t.assign(arm="another")) != ""


def test_a_notebooks_function_is_pinned_by_its_code_and_that_of_what_it_calls(tmp_path):
    def book(helper="return n", text="One.", version=1, note=""):
        cells = [f"def helper(n):\n    {helper}", f'def made(n):\n    """{text}"""\n    return helper(n)  {note}']
        cells += [
            f'experiments.table(store, "t", made, 3, version={version})',
            'experiments.table(store, "u", entropy.hump)',
        ]
        path = tmp_path / "01_x.ipynb"
        path.write_text(golden_rows.json.dumps({"cells": [{"cell_type": "code", "source": [c]} for c in cells]}))
        return golden_rows.stored_functions(path)

    before = book()
    assert set(before) == {"made"}
    assert book(text="Another sentence.", note="# a remark") == before
    assert "changed and its version did not" in golden_rows.notebook_difference(
        "x", book("return 2 * n")["made"], before["made"]
    )
    assert "not pinned yet" in golden_rows.notebook_difference("x", book(version=2)["made"], before["made"])
    assert golden_rows.notebook_difference("x", before["made"], before["made"]) == ""


def test_the_pinned_entries_show_what_they_are():
    row = golden_rows.row("detector")
    table = golden_rows.CASES["detector"]()
    assert isinstance(table, pd.DataFrame)
    assert row["rows"] == len(table)
    assert row["columns"]["value"]["mean"] == pytest.approx(table["value"].mean())
