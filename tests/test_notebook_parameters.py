"""Laws about parameters: a notebook's own annotations say what they are, and nothing else gets in."""

import datetime
import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import IPython.display
import nbformat
import numpy as np
import pytest
import yaml
from attrobust import notebook, paths
from attrobust.experiments.store import Store
from attrobust.notebook import reproduce

GOOD = {
    "dataset": "digits",
    "datasets": ["digits", "mnist"],
    "activations": ["relu", "gelu"],
    "protocols": ["matched", "plateau"],
    "step_sizes": [0.01, 0.1],
    "batch_sizes": [8, 64],
    "step_size": 0.1,
    "batch_size": 32,
    "epochs": 5,
    "n_train": 100,
    "radii": [0, 4.0, 8],
    "radius": 0,
    "restarts": 2,
    "seeds": [0, 1, 2],
    "seed": 0,
    "keys": 12,
    "jobs": 0,
    "device": "cpu",
    "out": "",
    "committed": True,
}


def spelled(value):
    return f"list[{spelled(value[0])}]" if isinstance(value, list) else type(value).__name__


TYPES = {name: spelled(value) for name, value in GOOD.items()} | {"step_sizes": "list[float]", "radii": "list[float]"}
CELL = "\n".join(f"{name}: {TYPES[name]} = {value!r}  # meaning" for name, value in GOOD.items())


def settings(given, *, cell=CELL, later=()):
    """Settings of a notebook that declares what `cell` says and holds `given`."""
    return vars(notebook.settings(given | {"In": ["", cell, *later]}))


def test_good_parameters_pass_unchanged_and_nothing_else_is_taken():
    assert settings(GOOD | {"np": math, "x": 3, "_": None}, later=["np = 1", "%matplotlib inline"]) == GOOD


def test_what_differs_from_the_committed_run_is_said_and_nothing_where_nothing_does(capsys):
    seeds, free = GOOD["seeds"], {"jobs": 3, "out": "", "committed": False}
    settings(GOOD | {name: value for name, value in free.items() if name in GOOD})
    settings({"seeds": str(seeds)})
    assert capsys.readouterr().out == ""
    settings(GOOD | {"seeds": "[7]"})
    said = capsys.readouterr().out
    assert said.startswith(f"!!! Not the committed run: seeds = [7], not {seeds}.")
    assert len(said.splitlines()) == 1
    notebook.settings(GOOD | {"seeds": "[7]", "In": ["", CELL]}, quiet=True)
    assert capsys.readouterr().out == ""


def test_a_parameter_of_a_new_name_needs_its_annotation_and_nothing_in_the_library():
    cell = "widths: list[int] = [8]\ndecay: float = 0.1\nlabel: str = 'a'\nquick: bool = True"
    given = {"widths": "[4, 16]", "decay": 0.5, "label": "b", "quick": "false"}
    assert settings(given, cell=cell) == {"widths": [4, 16], "decay": 0.5, "label": "b", "quick": False}
    with pytest.raises(ValueError, match="widths is 0; it must be a whole number of at least 1"):
        settings(given | {"widths": [0]}, cell=cell)
    with pytest.raises(ValueError, match="decay is 0; it must be a finite number above 0"):
        settings(given | {"decay": 0}, cell=cell)


def test_a_type_that_is_not_read_is_refused():
    with pytest.raises(ValueError, match="parameter 'seeds' is declared as dict; accepted are int, float, bool, str"):
        settings({"seeds": {}}, cell="seeds: dict = {}")


def test_without_a_history_of_cells_the_annotations_themselves_are_read():
    """So it is in a plain script, and under nbval."""
    given = {"__annotations__": {"seeds": list[int]}, "seeds": "[1]", "In": [""]}
    assert vars(notebook.settings(given)) == {"seeds": [1]}
    assert vars(notebook.settings({"__annotations__": {"seeds": list[int]}, "seeds": "[1]"})) == {"seeds": [1]}


@pytest.mark.parametrize("name", [n for n, v in GOOD.items() if not isinstance(v, str)])
def test_parameters_handed_over_as_text_are_what_they_say(name):
    assert settings({name: str(GOOD[name])}) == {name: GOOD[name]}


@pytest.mark.parametrize("name", ["mean", "std"])
def test_channels_may_have_the_same_number(name):
    cell = f"{name}: list[float] = []"
    assert settings({name: "[0.5, 0.5, 0.5]"}, cell=cell) == {name: [0.5, 0.5, 0.5]}


def test_one_name_stands_for_a_list_of_one():
    assert settings({"datasets": "digits"}) == {"datasets": ["digits"]}
    assert settings({"protocols": ("matched",)}) == {"protocols": ["matched"]}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("dataset", "mist", "dataset is 'mist'; it must be one of digits, .*; did you mean 'mnist'"),
        ("datasets", ["digits", "mist"], "datasets is 'mist'; it must be one of"),
        ("datasets", [], r"datasets is \[\]; it must be a list of names out of digits"),
        ("datasets", 3, "datasets is 3; it must be a list of names"),
        ("activations", ["swish"], "activations is 'swish'; it must be one of relu"),
        ("protocols", ["plato"], "protocols is 'plato'; it must be one of matched, plateau, standard"),
        ("step_sizes", [0.1, 0.0], "step_sizes is 0.0; it must be a finite number above 0"),
        ("step_sizes", 0.1, r"step_sizes is 0.1; it must be a list of numbers, such as \[1, 2\]"),
        ("step_sizes", "[]", r"step_sizes is '\[\]'; it must be a list of numbers"),
        ("step_sizes", "fast", "step_sizes is 'fast'; it must be a list of numbers"),
        ("batch_sizes", [8, 0], "batch_sizes is 0; it must be a whole number of at least 1"),
        ("batch_sizes", [8.5], "batch_sizes is 8.5; it must be a whole number"),
        ("step_size", "quick", "step_size is 'quick'; it must be a finite number above 0"),
        ("step_size", math.nan, "step_size is nan; it must be a finite number above 0"),
        ("epochs", 0, "epochs is 0; it must be a whole number of at least 1"),
        ("radii", [-1], "radii is -1; it must be a finite number of at least 0"),
        ("radius", -1, "radius is -1; it must be a finite number of at least 0"),
        ("seeds", [0, -1], "seeds is -1; it must be a whole number of at least 0"),
        ("keys", 9, "keys is 9; it must be a whole number of at least 10"),
        ("jobs", -1, "jobs is -1; it must be a whole number of at least 0"),
        ("device", "tpu", "device is 'tpu'; it must be one of cpu, cuda"),
        ("token_counts", [1], "token_counts is 1; it must be a whole number of at least 2"),
        ("committed", "maybe", "committed is 'maybe'; it must be true or false"),
        ("seeds", [1, 0, 1], r"seeds is \[1, 0, 1\]; every value must stand there once"),
        ("radii", "[8, 8.0]", r"radii is '\[8, 8.0\]'; every value must stand there once"),
        ("seeds", list(range(2000)), "seeds holds 2000 values; at most 1000 are accepted"),
        ("epochs", 10**400, "epochs is 1000.*; it must be a whole number from 1 to 9223372036854775807"),
        ("step_size", 10**400, "step_size is 1000.*; it must be a finite number above 0"),
        ("radius", 256, "radius is 256; it must be a finite number of at least 0 and at most 255"),
        ("out", 3, "out is 3; it must name a folder"),
        ("out", __file__, "out is '.*test_notebook_parameters.py'; tests/ holds committed files"),
        ("out", "/dev/null", "out is '/dev/null'; it must be a folder that can be made and written to"),
        ("out", "/dev/null/rows", "out is '/dev/null/rows'; it must be a folder that can be made"),
        ("out", "\0", "it must name a folder"),
        ("out", str(paths.root), "out is '.*'; figures/ holds committed files, choose another folder"),
        ("out", str(paths.root / "lib" / "rows"), "lib/ holds committed files, choose another folder"),
        ("out", str(paths.figures), "out is '.*figures'; figures/ holds committed files, choose another folder"),
        ("out", str(paths.figures / "03_x"), "figures/ holds committed files, choose another folder"),
        ("out", str(paths.notebooks / "new"), "notebooks/ holds committed files, choose another folder"),
    ],
)
def test_a_bad_parameter_is_named_with_its_value_and_what_is_accepted(name, value, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        settings({name: value}, cell=CELL + "\ntoken_counts: list[int] = [2]")


@pytest.mark.parametrize(("given", "meant"), [("true", True), ("False", False), (True, True), (False, False)])
def test_flags_are_read_from_text_too(given, meant):
    assert settings({"committed": given}) == {"committed": meant}


SMALL = "seeds: list[int] = [0]\nstep_size: float = 0.1"


def injected(**values):
    return "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in values.items())


def test_a_misspelt_name_in_the_injected_cell_is_refused():
    sentence = "parameter 'steps_size' is unknown; accepted are seeds, step_size; did you mean"
    with pytest.raises(ValueError, match=sentence):
        settings({"seeds": [1], "steps_size": 0.1}, cell=SMALL, later=[injected(seeds=[1], steps_size=0.1)])


def test_a_name_that_this_notebook_does_not_have_is_refused_even_if_another_does():
    with pytest.raises(ValueError, match="parameter 'restarts' is unknown; accepted are seeds"):
        settings({"seeds": [1], "restarts": 2}, cell=SMALL, later=[injected(restarts=2)])


def test_the_two_paths_that_papermill_can_inject_are_no_parameters():
    paths_of = {"PAPERMILL_INPUT_PATH": "a.ipynb", "PAPERMILL_OUTPUT_PATH": "b.ipynb"}
    assert settings({"seeds": [1]} | paths_of, cell=SMALL, later=[injected(seeds=[1], **paths_of)]) == {"seeds": [1]}


@pytest.mark.parametrize("name", [path.stem for path in paths.notebooks.glob("*.yaml")])
def test_a_profile_file_that_the_runner_has_not_filtered_is_refused_as_well(name):
    given = yaml.safe_load((paths.notebooks / f"{name}.yaml").read_text())
    with pytest.raises(ValueError, match=r"parameter '.*' is unknown; accepted are seeds, step_size"):
        settings(given, cell=SMALL, later=[injected(**given)])


@pytest.mark.parametrize("null", [None, "null", "None"])
def test_null_is_the_declared_value(null):
    assert settings(dict.fromkeys(GOOD, null)) == GOOD


def test_null_without_a_declared_value_is_refused():
    with pytest.raises(ValueError, match="seeds is None; it must be a list of numbers"):
        notebook.settings({"__annotations__": {"seeds": list[int]}, "seeds": None})


def test_a_folder_below_home_is_expanded_and_made(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings({"out": "~/rows"}) == {"out": str(tmp_path / "rows")}
    assert (tmp_path / "rows").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out is '~/file'; it must be a folder that can be made"):
        settings({"out": "~/file"})


def test_only_what_evidence_depends_on_makes_a_notebook_another():
    def declared(**given):
        return notebook.as_declared(GOOD | given | {"In": ["", CELL]})

    assert declared()
    assert declared(jobs=2, out="", committed=False, radii="[0, 4, 8]")
    assert not declared(seeds=[1])


#: Values that no parameter, or hardly one, accepts; the texts are what a command line hands over.
BAD = [
    math.nan, math.inf, -math.inf, -1, 0, -0.5, 1e400, 10**400, -(10**400), 2**64, 1e300, 1e-320, 1.5, 1j, True, None,
    "", " ", "x", "nan", "inf", "1e400", "1" * 400, "9" * 5000, "null", "[1, 1]", "[[]]", "{[]}", "b'x'", "1j", "..",
    "[" * 5000, "-" * 100_000 + "1", "x" * 100_000, "a\nb", "\0", "\ud800", "∞ é", "2020-01-01", "/dev/null",
    "/proc/1/x", b"x", [], [[]], [None], [True], [math.nan], [10**400], ["x"], ["a\0"], [1, 1], [1, "x"], {}, {"a": 1},
    {1}, (), list(range(100_000)), datetime.date(2020, 1, 1), np.int64(1), np.array([1, 2]), Fraction(1, 2), object(),
    len, ["digits", "digits"], "'digits'", str(paths.figures), str(paths.root), "x" * 300, "~nobody_of_this_name/x",
]  # fmt: skip


@pytest.mark.parametrize("path", reproduce.numbered(), ids=lambda path: path.stem)
def test_every_bad_value_of_every_parameter_is_accepted_for_good_or_ends_in_one_sentence(
    path, tmp_path, monkeypatch, unchecked
):
    monkeypatch.chdir(tmp_path)
    (cell,) = [c.source for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    types, refused = notebook.declared(cell), 0
    for name, value in itertools.product(types, BAD):
        try:
            taken = settings({name: value}, cell=cell)[name]
        except ValueError as error:
            said, refused = str(error), refused + 1
            assert type(error) is ValueError, (name, value)
            assert said.startswith(name), said
            assert "; it must" in said or "; at most" in said or "; every" in said or "; figures/" in said, said
            assert len(said) <= 300, said
            assert len(said.splitlines()) == 1, said
        else:
            assert settings({name: taken}, cell=cell) == {name: taken}
    assert refused > 0.85 * len(types) * len(BAD)


def test_other_cells_may_assign_what_they_like():
    later = ["stepp = 3", "x, y = 1, 2", "  # Parameters\nz = 1"]
    assert settings({"seeds": [1]}, cell=SMALL, later=later) == {"seeds": [1]}


def test_accepting_a_name_is_silent():
    assert notebook.accept("seeds", {"seeds": 1}) is None


def test_the_store_of_a_notebook_follows_its_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "figures", tmp_path / "figures")
    monkeypatch.setattr(paths, "build", tmp_path / "build")
    reading = notebook.open_store("03_x", SimpleNamespace(out="", committed=True, device="cuda"))
    assert (reading.out, reading.committed) == (tmp_path / "build/03_x", [tmp_path / "figures/03_x"])
    alone = notebook.open_store("03_x", SimpleNamespace(out=str(tmp_path / "here"), committed=False, device="cpu"))
    assert (alone.out, alone.committed) == (tmp_path / "here", [])
    assert (reading.device, alone.device) == ("cuda", "cpu")


def test_a_notebook_asks_for_images_in_its_first_cell_where_it_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook.data, "available", lambda name: name == "digits")
    monkeypatch.setattr(paths, "figures", tmp_path / "figures")
    how = {"out": str(tmp_path / "out"), "committed": True, "device": "cpu"}
    for here in ({"datasets": ["mnist", "digits"]}, {"vits": ["digits", "cifar10_deep"]}, {}):
        notebook.open_store("03_x", SimpleNamespace(**here, **how))
    for gone in ({"datasets": ["mnist"]}, {"vits": ["cifar10_deep"]}):
        with pytest.raises(notebook.data.DataError, match="which is not on this machine; run `make data DATASETS="):
            notebook.open_store("03_x", SimpleNamespace(**gone, **how))
    (tmp_path / "figures" / "03_x").mkdir(parents=True)
    (tmp_path / "figures" / "03_x" / "runs.csv").write_text("key,dataset\na,mnist\n")
    notebook.open_store("03_x", SimpleNamespace(datasets=["mnist"], **how))


def test_what_is_left_out_is_said_loudly(tmp_path):
    store = Store("03_x", out=tmp_path)
    assert notebook.left_out(store) == "nothing of the grid is left out"
    store.leave_out("data set 'mnist' is not on this machine", 12)
    assert notebook.left_out(store) == "!!! LEFT OUT: 12 networks, because data set 'mnist' is not on this machine"


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would show, in order."""
    lines = []

    class Handle:
        def update(self, content):
            lines[-1] = content.data

    def display(content, display_id="", metadata=None):
        lines.append(content.data)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    return lines


def test_progress_is_one_line_that_disappears(shown):
    with notebook.Progress() as progress:
        progress("1/2 runs")
        assert shown == ["1/2 runs"]
        progress("2/2 runs")
        assert shown == ["2/2 runs"]
    assert shown == [""]


@pytest.mark.parametrize(("place", "cells", "shows"), [
    ("notebooks", [], False),
    ("notebooks", ["# Parameters\nseeds = [1]\n"], True),
    (".", [], True),
    ("build", [], True),
])  # fmt: skip
def test_a_copy_shows_the_picture_of_its_answer_whether_or_not_it_has_parameters(
    tmp_path, monkeypatch, shown, place, cells, shows
):
    for folder in ("notebooks", "figures", "build"):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(paths, folder, tmp_path / folder)
    (tmp_path / "figures" / "a.png").write_bytes((paths.root / "figures/08_ledger/a_claims.png").read_bytes())
    monkeypatch.chdir(tmp_path / place)
    own = ["seeds: list[int] = [0]", *cells]
    notebook.settings({"In": own, "seeds": [1 if cells else 0]}, quiet=True, picture="a.png")
    notebook.settings({"In": own, "seeds": [1 if cells else 0]}, quiet=True, picture="gone.png")
    assert len(shown) == shows


def test_nothing_to_do_shows_nothing(shown):
    with notebook.Progress():
        pass
    assert shown == []
