import dataclasses
import json
import math
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import attrobust
import cases
import numpy as np
import pandas as pd
import pytest
import torch
from attrobust import claims, paths
from attrobust.experiments import store
from attrobust.experiments.leases import leased
from attrobust.experiments.store import EvidenceError, Store
from attrobust.rows import ATTACKED, Rows
from hypothesis import given
from hypothesis import strategies as st

NUMBERS = st.floats() | st.integers(-(2**53), 2**53)


def bits(value):
    return struct.pack("<d", value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place of its own for committed evidence and builds."""
    monkeypatch.setattr(paths, "figures", tmp_path / "figures")
    monkeypatch.setattr(paths, "build", tmp_path / "build")
    return tmp_path


def rows(keys):
    return pd.DataFrame({"key": keys, "value": [0.1 * i + 1 / 3 for i in range(len(keys))]})


def lines(keys):
    numbers = {"readout": "logit", "map": "saliency", "attack": "worst", "metric": "top_k", "radius": 8, "n": 4}
    return pd.DataFrame([{"key": key, **numbers, "value": 0.1 * i} for i, key in enumerate(keys)], columns=[*ATTACKED])


def found(s, kind, keys):
    """Runs that a store finds, without the places they stand in."""
    folders = {"own": [s.out], "shared": s.beside}
    rows = s.committed_rows(keys) if kind == "committed" else store.rows_in(folders[kind], keys)
    return {key: row.run for key, row in rows.items()}


# ------------------------------------------------------------------ files


@given(st.dictionaries(st.text(min_size=1), NUMBERS | st.text() | st.booleans() | st.none()))
def test_rows_survive_their_file_bit_for_bit(row):
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "deep" / "row.json"
        store.write_json(path, row)
        back = store.read_json(path)
        assert list(back) == list(row)
        for name, value in row.items():
            if isinstance(value, float):
                assert bits(back[name]) == bits(value) or (math.isnan(value) and math.isnan(back[name]))
            else:
                assert back[name] == value


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_tables_survive_their_file_bit_for_bit(values):
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "table.csv"
        store.write_csv(path, pd.DataFrame({"value": values, "n": range(len(values))}))
        assert [bits(v) for v in store.read_csv(path)["value"]] == [bits(v) for v in values]
        first = path.read_bytes()
        store.write_csv(path, store.read_csv(path))
        assert path.read_bytes() == first


def test_half_written_files_never_appear(tmp_path, monkeypatch):
    path = tmp_path / "row.json"
    store.write_json(path, {"a": 1})
    whole = path.read_bytes()

    def seen():
        return [p.name for p in tmp_path.glob("*.json")], path.read_bytes()

    write, moments = Path.write_bytes, []

    def slow(self, content):
        write(self, content[: len(content) // 2])
        moments.append(seen())
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", slow)
    store.write_json(path, {"a": 2, "b": [1] * 100})
    assert moments == [(["row.json"], whole)]
    assert store.read_json(path)["a"] == 2

    def cut(self, content):
        write(self, content[: len(content) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", cut)
    whole = path.read_bytes()
    for name in ("row.json", "other.json"):
        with pytest.raises(OSError, match="no space left"):
            store.write_json(tmp_path / name, {"a": 3})
        assert seen() == (["row.json"], whole)


def test_half_written_weights_never_appear(folder, monkeypatch):
    s, model, write = Store("01_x"), cases.linear(), Path.write_bytes

    def cut(self, content):
        write(self, content)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", cut)
    with pytest.raises(OSError, match="no space left"):
        s.save_weights("k", model)
    assert s.network_file("k") is None
    assert list((s.out / "weights").glob("*.safetensors")) == []


def test_a_missing_file_is_none_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "row.json"
    assert store.read_json(path) is None
    path.write_text('{"a": 1, "b"')
    with pytest.raises(ValueError, match=rf"{path} is damaged \(.*\): delete it, and what it holds is computed again"):
        store.read_json(path)


# ------------------------------------------------------------------ rows


def test_own_rows_are_those_that_were_put(folder):
    s = Store("01_x")
    row = {"x": 0.1 + 0.2, "y": 1e-300 / 3, "steps": 12, "comparable": True, "reason": ""}
    attacked = [{"metric": "top_k", "value": 1 / 3}]
    s.put("a", row, attacked, {"seconds": 1.0})
    own = store.rows_in([s.out], ["a", "b"])
    assert list(own) == ["a"]
    assert (own["a"].run, own["a"].attacked, own["a"].fault) == (row, attacked, "")
    assert own["a"].place == str(s.out / "rows" / "a.json")
    assert store.rows_in([Store("01_x").out], ["a"]) == store.rows_in([s.out], ["a"])
    assert store.rows_in([Store("02_y").out], ["a"]) == {}
    assert store.rows_in([Store("01_x", out=folder / "elsewhere").out], ["a"]) == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"run": {"a"', "is damaged"),
        ("[1]", "it holds no object"),
        ('{"run": {}}', "lacks its parts run and attacked"),
    ],
)
def test_a_damaged_own_row_says_so_instead_of_stopping_the_sweep(folder, text, fault):
    s = Store("01_x")
    s.put("a", {"x": 1}, [], {})
    (s.out / "rows" / "a.json").write_text(text)
    assert fault in store.rows_in([s.out], ["a"])["a"].fault


def test_a_row_appears_only_after_its_provenance(folder, monkeypatch):
    s, order = Store("01_x"), []
    write = store.write_bytes
    monkeypatch.setattr(store, "write_bytes", lambda path, value: (order.append(path.parent.name), write(path, value)))
    s.put("a", {"x": 1}, [], {"seconds": 2.0})
    assert order == ["provenance", "rows"]
    assert store.read_json(s.out / "provenance" / "a.json") == {"key": "a", "seconds": 2.0}


def test_of_a_row_that_cannot_be_written_nothing_stays(folder):
    s = Store("01_x")
    with pytest.raises(TypeError):
        s.put("a", {"x": object()}, [], {"seconds": 2.0})
    assert not list(s.out.rglob("a.json"))


def test_a_table_whose_lines_are_longer_than_its_header_is_damaged(tmp_path):
    # pandas would take the first field for the name of its line, and shift the columns.
    for lines in ("0,2,3\n1,5,6\n", "4,2,3\n", "1,2\n3,4,5\n"):
        (tmp_path / "t.csv").write_text(f"a,b\n{lines}")
        with pytest.raises(ValueError, match=r"t.csv is damaged"):
            store.read_csv(tmp_path / "t.csv")


def test_a_table_that_is_cut_off_within_its_last_line_is_damaged(tmp_path):
    whole = "a,b\n1,72.7136\n2,66.25\n"
    (tmp_path / "t.csv").write_text(whole)
    assert store.read_csv(tmp_path / "t.csv")["b"].tolist() == [72.7136, 66.25]
    for cut in (1, 2, 4):
        (tmp_path / "t.csv").write_text(whole[:-cut])
        with pytest.raises(ValueError, match=r"t.csv is damaged \(its last line is cut off\)"):
            store.read_csv(tmp_path / "t.csv")


def test_whatever_byte_of_an_archive_is_lost_it_is_read_or_told_to_be_damaged(tmp_path):
    path, whole = tmp_path / "t.npz", {"x": np.linspace(0, 1, 60).reshape(3, 20), "y": np.arange(5)}
    store.write_npz(path, whole)
    content, told = path.read_bytes(), 0
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            found = store.read_npz(path)
            assert all(np.array_equal(found[name], whole[name]) for name in found)
        except ValueError as error:
            told += str(error).startswith(f"{path} is damaged")
    assert told > len(content) / 6


def test_committed_rows_are_read_only_where_they_may_be(folder):
    store.write_csv(paths.figures / "01_x" / "runs.csv", rows(["a", "b"]))
    committed = found(Store("01_x"), "committed", ["b", "c"])
    assert list(committed) == ["b"]
    assert bits(committed["b"]["value"]) == bits(0.1 + 1 / 3)
    assert Store("01_x", committed=False).committed_rows(["b"]) == {}
    assert Store("02_y").committed_rows(["b"]) == {}


def test_a_committed_row_comes_with_its_attacked_lines_and_knows_its_place(folder):
    home = paths.figures / "01_x"
    store.write_csv(home / "runs.csv", rows(["a", "b"]))
    store.write_csv(home / "attacked.csv", lines(["b", "a", "b"]))
    store.write_csv(home / "runs_full.csv", rows(["c"]))
    store.write_csv(home / "attacked_full.csv", lines(["c"]))
    got = Store("01_x").committed_rows(["a", "b", "c"])
    assert got["b"].place == f"{home / 'runs.csv'}, line 3"
    assert [line["value"] for line in got["b"].attacked] == [0.0, 0.2]
    assert got["b"].attacked[1]["place"] == f"{home / 'attacked.csv'}, line 4"
    assert got["c"].attacked[0]["place"] == f"{home / 'attacked_full.csv'}, line 2"


def test_a_key_of_digits_only_stays_a_text(folder):
    store.write_csv(paths.figures / "01_x" / "runs.csv", rows(["0123456789012345"]))
    assert list(Store("01_x").committed_rows(["0123456789012345"])) == ["0123456789012345"]


@pytest.mark.parametrize("second", ["runs.csv", "runs_full.csv"])
def test_a_key_that_stands_twice_in_one_notebook_is_refused_with_both_places(folder, second):
    home = paths.figures / "01_x"
    table = rows(["a", "b"])
    again = pd.concat([table, table.iloc[:1]]) if second == "runs.csv" else table.iloc[:1]
    store.write_csv(home / "runs.csv", table)
    store.write_csv(home / second, again)
    with pytest.raises(
        EvidenceError, match=r"runs.*\.csv, line \d: key a stands in .*runs\.csv, line 2 too: restore it"
    ):
        Store("01_x").committed_rows(["a"])


def test_a_notebooks_own_rows_stand_before_those_of_the_notebooks_it_shares_with(folder):
    for name, value in (("01_x", 1.0), ("02_y", 2.0), ("03_z", 3.0)):
        store.write_csv(paths.figures / name / "runs.csv", rows(["a"]).assign(value=value))
        if name != "02_y":
            Store(name, out=folder / name).put("a", {"value": 10 * value}, [], {})
    sharing = Store("02_y", out=folder / "02_y", shares=["01_x", "03_z"])
    assert found(sharing, "committed", ["a"])["a"]["value"] == 2.0
    assert found(sharing, "shared", ["a"])["a"]["value"] == 10.0
    assert found(Store("04_w", shares=["03_z", "01_x"]), "committed", ["a"])["a"]["value"] == 3.0


def test_evidence_of_a_shared_notebook_serves_too_computed_or_committed(folder):
    store.write_csv(paths.figures / "01_x" / "runs.csv", rows(["a"]))
    Store("01_x", out=folder / "here" / "01_x").put("b", {"value": 2.0}, [], {"seconds": 3.0})
    sharing = Store("02_y", out=folder / "here" / "02_y", shares=["01_x"])
    assert set(sharing.committed_rows(["a", "b", "c"])) == {"a"}
    assert set(store.rows_in(sharing.beside, ["a", "b", "c"])) == {"b"}
    assert store.rows_in([sharing.out], ["a", "b"]) == {}
    sharing.gather(Rows(pd.DataFrame({"key": ["b"], "value": [2.0]}), lines([])))
    assert store.read_csv(sharing.out / "provenance.csv")["seconds"].tolist() == [3.0]
    alone = Store("02_y", out=folder / "here" / "02_y", shares=["01_x"], committed=False)
    assert alone.committed_rows(["a"]) == {}
    assert set(store.rows_in(alone.beside, ["a", "b"])) == {"b"}
    stranger = Store("02_y", out=folder / "there" / "02_y", shares=["01_x"], committed=False)
    assert store.rows_in(stranger.beside, ["a", "b"]) == {}


def test_rows_of_another_reproduction_are_not_shared(folder):
    for name, made_in in (("01_x", "old"), ("02_y", "new")):
        store.write_json(folder / name / "reproduction.json", {"id": made_in})
    Store("01_x", out=folder / "01_x").put("b", {"value": 2.0}, [], {})
    Store("01_x", out=folder / "01_x").save_weights("w", cases.linear())
    sharing = Store("02_y", out=folder / "02_y", shares=["01_x"])
    assert store.rows_in(sharing.beside, ["b"]) == {}
    assert sharing.network_file("w") is None
    store.write_json(folder / "02_y" / "reproduction.json", {"id": "old"})
    assert set(store.rows_in(Store("02_y", out=folder / "02_y", shares=["01_x"]).beside, ["b"])) == {"b"}


def test_weights_of_a_shared_notebook_are_kept_as_a_reference_of_ones_own(folder):
    Store("01_x", out=folder / "01_x").save_weights("w", cases.linear())
    sharing = Store("02_y", out=folder / "02_y", shares=["01_x"])
    found = sharing.network_file("w")
    sharing.keep_network("w", found)
    assert (folder / "02_y" / "networks" / "w.safetensors").read_bytes() == found.read_bytes()
    assert (sharing.trained, sharing.reused) == (set(), set())


def test_gathering_writes_rows_and_joins_old_and_new_provenance(folder):
    store.write_csv(
        paths.figures / "01_x" / "provenance.csv", pd.DataFrame({"key": ["a", "b", "z"], "seconds": [1.0, 2.0, 9.0]})
    )
    s = Store("01_x")
    s.put("b", {"value": 5.0}, [], {"seconds": 7.0})
    table, attacked = rows(["a", "b"]), lines(["a", "b"])
    s.gather(Rows(table, attacked))
    pd.testing.assert_frame_equal(store.read_csv(s.out / "runs.csv"), table)
    pd.testing.assert_frame_equal(store.read_csv(s.out / "attacked.csv"), attacked)
    kept = store.read_csv(s.out / "provenance.csv")
    assert kept.to_dict("records") == [{"key": "a", "seconds": 1.0}, {"key": "b", "seconds": 7.0}]
    assert not (paths.figures / "01_x" / "runs.csv").exists()


def test_new_evidence_never_touches_committed_files(folder):
    committed = paths.figures / "01_x"
    store.write_csv(committed / "runs.csv", rows(["a"]))
    before = {p: p.read_bytes() for p in committed.rglob("*") if p.is_file()}
    s = Store("01_x")
    s.put("a", {"value": 2.0}, [], {"seconds": 0.0})
    s.gather(Rows(rows(["a", "b"]), lines(["a"])))
    s.put_table("t", "1", rows(["a"]))
    s.save_weights("k", cases.linear())
    s.keep_network("k", s.network_file("k"))
    s.leave_out("no data", 3)
    assert {p: p.read_bytes() for p in committed.rglob("*") if p.is_file()} == before


# ------------------------------------------------------------------ tables and networks


def test_a_table_is_found_again_by_its_name_and_key(folder):
    s = Store("01_x")
    assert not s.table_file("t", "1a")
    s.put_table("t", "1a", rows(["a"]))
    assert s.table_file("t", "1a")
    assert not s.table_file("t", "2a")
    assert not s.table_file("u", "1a")
    pd.testing.assert_frame_equal(s.table("t", "1a"), rows(["a"]))
    with pytest.raises(FileNotFoundError, match=r"table t-2a.csv is not stored in .*01_x or among the committed ones"):
        s.table("t", "2a")


def test_a_table_of_another_notebook_is_never_taken_for_ones_own(folder):
    Store("01_x", out=folder / "01_x").put_table("t", "1", rows(["a"]))
    _table_file(folder, rows(["b"]))[0].rename(folder / "t-2.csv")
    (paths.figures / "01_x" / "tables").mkdir(parents=True)
    (folder / "t-2.csv").rename(paths.figures / "01_x" / "tables" / "t-2.csv")
    sharing = Store("02_y", out=folder / "02_y", shares=["01_x"])
    assert not sharing.table_file("t", "1")
    assert not sharing.table_file("t", "2")
    assert Store("01_x").table_file("t", "2")


def test_a_damaged_table_is_named_with_its_remedy(folder):
    s = Store("01_x")
    s.put_table("t", "1", rows(["a"]))
    path = s.out / "tables" / "t-1.csv"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{path} is damaged \(.*\): delete it, and what it holds is computed again"):
        s.table("t", "1")


def test_committed_tables_are_read_after_own_ones(folder):
    (file,) = _table_file(folder, rows(["a"]))
    (paths.figures / "01_x" / "tables").mkdir(parents=True)
    (paths.figures / "01_x" / "tables" / file.name).write_bytes(file.read_bytes())
    s = Store("01_x", out=folder / "fresh")
    pd.testing.assert_frame_equal(s.table("t", "1"), rows(["a"]))
    assert not Store("01_x", out=folder / "fresh", committed=False).table_file("t", "1")
    s.put_table("t", "1", rows(["own"]))
    assert s.table("t", "1")["key"].tolist() == ["own"]


def _table_file(folder, table):
    other = Store("01_x", out=folder / "other")
    other.put_table("t", "1", table)
    return list((other.out / "tables").iterdir())


def test_weights_survive_their_file_bit_for_bit(folder):
    s, model = Store("01_x"), cases.mlp()
    assert s.network_file("k") is None
    s.save_weights("k", model)
    back = store.load_weights(s.network_file("k"))
    assert list(back) == sorted(model.state_dict()) or set(back) == set(model.state_dict())
    for name, weight in model.state_dict().items():
        assert torch.equal(back[name], weight)
        assert back[name].dtype == weight.dtype


def test_how_a_training_ended_is_stored_with_the_weights(folder):
    s, fit = Store("01_x"), {"steps": 7, "train_loss": 0.1 + 0.2, "late_change": math.nan, "reached": None}
    s.save_weights("k", cases.linear(), fit)
    back = store.load_fit(s.network_file("k"))
    assert math.isnan(back.pop("late_change"))
    assert back == {"steps": 7, "train_loss": 0.1 + 0.2, "reached": None}
    s.save_weights("k", cases.linear())
    assert store.load_fit(s.network_file("k")) is None
    s.network_file("k").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"k.safetensors is damaged"):
        store.load_fit(s.network_file("k"))


@pytest.mark.parametrize("content", [b"", b"no weights at all", None])
def test_damaged_weights_end_in_a_sentence_with_path_and_remedy(folder, content):
    s = Store("01_x")
    s.save_weights("k", cases.linear())
    path = s.network_file("k")
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises(ValueError, match=rf"{path} is damaged \(.*\): delete it, and what it holds is computed again"):
        store.load_weights(path)
    home = paths.figures / "01_x" / "networks" / "k.safetensors"
    store.write_bytes(home, path.read_bytes())
    with pytest.raises(ValueError, match=rf"{home} is damaged \(.*\): restore it by git"):
        store.load_weights(home)


def test_an_own_network_in_use_becomes_a_reference_network(folder):
    s = Store("01_x")
    s.save_weights("k", cases.linear())
    s.keep_network("k", s.network_file("k"))
    assert (s.out / "networks" / "k.safetensors").read_bytes() == (s.out / "weights" / "k.safetensors").read_bytes()
    assert (s.trained, s.reused) == ({"k"}, set())
    assert s.network_file("k").parent.name == "networks"


def test_a_committed_network_in_use_is_counted_as_reused(folder):
    networks = paths.figures / "01_x" / "networks"
    other = Store("01_x", out=folder / "other")
    other.save_weights("k", cases.linear())
    networks.mkdir(parents=True)
    (networks / "k.safetensors").write_bytes(other.network_file("k").read_bytes())
    s = Store("01_x")
    s.keep_network("k", s.network_file("k"))
    assert (s.trained, s.reused) == (set(), {"k"})
    assert not (s.out / "networks").exists()


# ------------------------------------------------------------------ bookkeeping


def test_the_summary_counts_networks_once(folder):
    s = Store("01_x")
    s.count(trained=["a", "b"], reused=["c"])
    s.count(trained=["a"])
    s.leave_out("no data", 4)
    assert json.loads((s.out / "summary.json").read_text()) == {"trained": 2, "reused": 1, "left_out": {"no data": 4}}


def test_what_is_left_out_twice_for_one_reason_adds_up(folder):
    s = Store("01_x")
    for reason, networks in (("no data", 4), ("no GPU", 1), ("no data", 3)):
        s.leave_out(reason, networks)
    assert json.loads((s.out / "summary.json").read_text())["left_out"] == {"no data": 7, "no GPU": 1}


def test_the_progress_log_grows_line_by_line_and_starts_anew_with_the_store(folder):
    s = Store("01_x")
    s.report("one")
    s.report("two")
    assert (s.out / "progress.log").read_text() == "one\ntwo\n"
    Store("01_x")
    assert not (s.out / "progress.log").exists()


def test_provenance_says_where_and_how(folder):
    said = store.provenance(1.23456, "cpu")
    assert said["seconds"] == 1.235
    assert said["device"] == "cpu"
    assert (said["torch"], said["numpy"]) == (torch.__version__, np.__version__)
    assert said["version"] == attrobust.__version__
    assert said["instructions"] == torch.backends.cpu.get_cpu_capability()
    told = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", told.read_text(), re.MULTILINE) if told.exists() else None
    assert said["processor"] == model[1].strip() if model else len(said["processor"]) > 2
    names = ["seconds", "device", "version", "commit", "dirty", "machine", "processor", "instructions", "python"]
    assert list(said) == [*names, "torch", "numpy", "scipy"]


def test_provenance_knows_a_changed_checkout_from_a_clean_one(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(paths, "root", tmp_path)
    store._commit.cache_clear()
    assert store._commit() == ("unknown", True)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("a = 1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    store._commit.cache_clear()
    commit, dirty = store._commit()
    assert (len(commit) >= 7, dirty) == (True, False)
    (tmp_path / "lib" / "a.py").write_text("a = 2")
    store._commit.cache_clear()
    assert store._commit() == (commit, True)
    store._commit.cache_clear()


def test_evidence_goes_to_the_build_folder_unless_told_otherwise(folder):
    assert Store("01_x").out == folder / "build" / "01_x"
    assert Store("01_x", out=folder / "here").out == folder / "here"
    assert Store("01_x", out="relative").out.is_absolute()


@pytest.mark.parametrize(
    "place", ["figures", "figures/01_x", "figures/../figures/new", "notebooks", "notebooks/deep/er"]
)
def test_evidence_never_goes_where_committed_files_are(folder, monkeypatch, place):
    monkeypatch.setattr(paths, "notebooks", folder / "notebooks")
    with pytest.raises(
        ValueError, match=r"out is '.*'; (figures|notebooks)/ holds committed files, choose another folder"
    ):
        Store("01_x", out=folder / place)
    assert not (folder / place).exists()


def test_a_link_into_the_committed_files_is_seen_through(folder):
    paths.figures.mkdir()
    (folder / "link").symlink_to(paths.figures)
    with pytest.raises(ValueError, match="figures/ holds committed files"):
        Store("01_x", out=folder / "link" / "01_x")


@pytest.mark.parametrize("name", ["~nobody_of_this_name", "null", "None", " ", "\0"])
def test_a_name_that_is_no_folder_is_refused_in_one_sentence(folder, name):
    with pytest.raises(ValueError, match=r"out is '.*'; it must (name a folder|be a folder that can be made)"):
        Store("01_x", out=name)


def test_arrays_survive_their_file_and_nothing_pickled_is_read(folder):
    s = Store("01_x", out=folder / "own", committed=False)
    arrays = {"x": np.arange(6.0).reshape(2, 3), "index": np.array([1, 0])}
    s.put_arrays("worst", "k", arrays)
    found = s.arrays("worst", "k")
    assert {name: values.tolist() for name, values in found.items()} == {n: v.tolist() for n, v in arrays.items()}
    assert s.arrays("worst", "other") is None
    path = s.out / "tables" / "worst-k.npz"
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"worst-k.npz is damaged .*delete it"):
        s.arrays("worst", "k")
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"worst-k.npz is damaged .*delete it"):
        s.arrays("worst", "k")


def test_a_stored_row_is_empty_as_it_begins_shares_nothing_and_is_not_changed():
    one, other = store.Stored(), store.Stored()
    assert (one.run, one.attacked, one.place, one.fault) == ({}, [], "", "")
    assert one.run is not other.run
    assert one.attacked is not other.attacked
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.fault = "a fault"


def test_claims_of_another_profile_are_read_where_they_are_committed(folder):
    blank = Store("01_x").committed_claims()
    assert list(blank) == [*claims.COLUMNS]
    assert blank.empty
    write = {"claims_full.csv": "full", "claims.csv": "cpu", "claims_gpu.csv": "gpu"}
    for file, value in write.items():
        store.write_csv(paths.figures / "01_x" / file, pd.DataFrame({"claim": [value]}))
    assert Store("01_x").committed_claims()["claim"].tolist() == ["full"]
    for profile in ("cpu", "full", "gpu"):
        assert Store("01_x", shares=["02_y"]).committed_claims(profile)["claim"].tolist() == [profile]
    assert Store("02_y", shares=["01_x"]).committed_claims().empty
    assert list(Store("01_x", committed=False).committed_claims()) == [*claims.COLUMNS]


def test_what_failed_is_told_by_its_last_line_until_it_is_done(folder):
    s = Store("01_x")
    for key, done in (
        ("a", lambda: s.put("a", {}, [], {})), ("t-b", lambda: s.put_table("t", "b", rows(["a"]))),
        ("c", lambda: s.save_weights("c", cases.linear())),
    ):  # fmt: skip
        s.fail(key, "what it was", "Traceback\n  a line\nOSError: no space left\n")
        assert s.failure(key).read_text() == "Traceback\n  a line\nOSError: no space left\n"
        said = (s.out / "progress.log").read_text().splitlines()[-1]
        assert said == f"!!! FAILED: what it was: OSError: no space left (all of it in {s.out}/failed/{key}.txt)"
        done()
        assert not s.failure(key).exists()
        done()  # and nothing is amiss where there was no failure


def test_blank_images_of_committed_lines_are_no_numbers(folder):
    home = paths.figures / "01_x"
    store.write_csv(home / "runs.csv", rows(["a"]))
    for images, read in ((["", ""], ["", ""]), (["0.1 0.2", ""], ["0.1 0.2", ""])):
        store.write_csv(home / "attacked.csv", lines(["a", "a"]).assign(images=images))
        assert [line["images"] for line in Store("01_x").committed_rows(["a"])["a"].attacked] == read
    store.write_csv(home / "attacked.csv", lines(["a", "a"]).drop(columns="images"))
    assert "images" not in Store("01_x").committed_rows(["a"])["a"].attacked[0]


def test_the_files_of_a_network_and_of_a_table_are_looked_for_in_order(folder):
    s = Store("02_y", out=folder / "02_y", shares=["01_x"])
    beside, home, other = folder / "01_x", paths.figures / "02_y", paths.figures / "01_x"
    last_first = [folder / part for part in ("weights", "networks") for folder in (other, home, beside, s.out)]
    for place in last_first:
        path = place / "k.safetensors"
        store.write_bytes(path, b"")
        assert s.network_file("k") == path
    store.write_bytes(other / "tables" / "t-k.csv", b"")
    assert s.table_file("t", "k") is None
    for place in (home / "tables_full", home / "tables", s.out / "tables"):
        for suffix in (".csv", ".npz"):
            store.write_bytes(place / f"t-k{suffix}", b"")
            assert s.table_file("t", "k", suffix=suffix) == place / f"t-k{suffix}"
        assert s.table_file("t", "k") == place / "t-k.csv"


def test_a_shared_network_is_neither_trained_nor_reused(folder):
    s = Store("02_y", out=folder / "02_y", shares=["01_x"])
    found = {}
    for key, place in (("own", s.out), ("shared", folder / "01_x"), ("committed", paths.figures / "02_y")):
        path = place / "networks" / f"{key}.safetensors"
        store.write_bytes(path, b"weights")
        s.keep_network(key, path)
        found[key] = (key in s.trained, key in s.reused)
    assert found == {"own": (True, False), "shared": (False, False), "committed": (False, True)}
    assert [file.name for file in (s.out / "networks").iterdir()] == ["own.safetensors"]


def test_a_folder_is_tried_before_it_is_taken(folder, monkeypatch):
    tried, usual = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: tried.append(dir) or usual(dir=dir))
    assert store.place_for(folder / "deep" / "er") == folder / "deep" / "er"
    assert store.place_for(folder / "deep" / "er").is_dir()
    assert tried == [folder / "deep" / "er"] * 2

    def full(dir):
        raise OSError(28, "no space left")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(ValueError, match=r"it must be a folder that can be made and written to \(no space left\)"):
        store.place_for(folder / "deep")


@pytest.mark.parametrize("place", ["", "lib", "tests/deep", ".git", ".github"])
def test_the_checkout_itself_and_its_sources_take_no_evidence(folder, monkeypatch, place):
    monkeypatch.setattr(paths, "root", folder / "checkout")
    with pytest.raises(ValueError, match="holds committed files, choose another folder"):
        store.place_for(folder / "checkout" / place)
    assert store.place_for(folder / "checkout" / "build").is_dir()
    assert store.place_for(folder / "checkouts").is_dir()


def test_a_processor_is_told_by_its_whole_name_or_by_what_the_system_says(monkeypatch):
    def told(text, system=""):
        def read(self):
            if text is None:
                raise OSError("no such file")
            return text

        monkeypatch.setattr(Path, "read_text", read)
        monkeypatch.setattr(store.platform, "processor", lambda: system)
        return store._processor.__wrapped__()

    lines = "processor\t: 0\nmodel name\t: Maker: Kind 5 @ 2 GHz \nmodel name\t: another\n"
    assert told(lines) == "Maker: Kind 5 @ 2 GHz"
    assert [told("processor: 0", "arm"), told(None, "arm"), told(None), told("", "")] == [
        "arm",
        "arm",
        *["unknown"] * 2,
    ]


def test_a_commit_is_a_text(folder, monkeypatch):
    seen = []

    def ran(words, **how):
        seen.append((words[:2], how))
        return SimpleNamespace(stdout=" 12ab \n" if "rev-parse" in words else "\n")

    monkeypatch.setattr(store.subprocess, "run", ran)
    assert store._commit.__wrapped__() == ("12ab", False)
    how = {"cwd": paths.root, "capture_output": True, "text": True, "check": True}
    assert seen == [(["git", "rev-parse"], how), (["git", "status"], how)]


def test_a_store_whose_runs_somebody_is_at_keeps_its_log(folder):
    s = Store("01_x")
    s.report("one")
    with leased(s.leases, ["a"], wait=False):
        Store("01_x")
        assert (s.out / "progress.log").read_text() == "one\n"
