"""Laws about parameters: a notebook's own annotations say what they are, and nothing else gets in."""

import math
from types import SimpleNamespace

import IPython.display
import pytest
import yaml
from attrobust import notebook, paths
from attrobust.experiments.store import Store

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
        ("out", None, "out is None; it must name a folder"),
        ("out", "null", "out is 'null'; it must name a folder"),
        ("out", 3, "out is 3; it must name a folder"),
        ("out", "~", "out is '~'; ~ is not expanded here, write the folder in full"),
        ("out", "~/rows", "out is '~/rows'; ~ is not expanded here, write the folder in full"),
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
def test_a_profile_file_given_whole_may_name_parameters_of_other_notebooks(name):
    profile = yaml.safe_load((paths.notebooks / f"{name}.yaml").read_text())
    given = profile | {"seeds": [3]}
    assert settings(given, cell=SMALL, later=[injected(**given)])["seeds"] == [3]
    with pytest.raises(ValueError, match="parameter 'sedes' is unknown"):
        settings(given, cell=SMALL, later=[injected(**given, sedes=1)])


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

    def display(content, display_id):
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


def test_nothing_to_do_shows_nothing(shown):
    with notebook.Progress():
        pass
    assert shown == []
