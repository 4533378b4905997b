import math
from types import SimpleNamespace

import IPython.display
import pytest
from attrobust import notebook, paths
from attrobust.store import Store

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


def values(chosen):
    return vars(chosen)


def test_good_parameters_pass_unchanged_and_nothing_else_is_taken():
    chosen = notebook.settings(GOOD | {"np": math, "x": 3, "_": None, "In": ["", "seed = 0"]})
    assert values(chosen) == GOOD


def test_every_parameter_of_the_list_has_a_good_value_that_passes():
    for name, check in notebook.PARAMETERS.items():
        candidates = [*GOOD.values(), [0.5]]
        accepted = []
        for value in candidates:
            try:
                check(name, value)
            except (ValueError, TypeError):
                continue
            accepted.append(value)
        assert accepted, name


@pytest.mark.parametrize("name", [n for n, v in GOOD.items() if not isinstance(v, str)])
def test_parameters_handed_over_as_text_are_what_they_say(name):
    chosen = notebook.settings({name: str(GOOD[name])})
    assert values(chosen) == {name: GOOD[name]}


def test_one_name_stands_for_a_list_of_one():
    assert notebook.settings({"datasets": "digits"}).datasets == ["digits"]
    assert notebook.settings({"protocols": ("matched",)}).protocols == ["matched"]


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
        notebook.settings({name: value})


@pytest.mark.parametrize(("given", "meant"), [("true", True), ("False", False), (True, True), (False, False)])
def test_flags_are_read_from_text_too(given, meant):
    assert notebook.settings({"committed": given}).committed is meant


def test_a_misspelt_name_in_the_injected_cell_is_refused():
    cells = ["", "seeds = [0]", "# Parameters\nseeds = [1]\nsteps_size = 0.1\n"]
    with pytest.raises(
        ValueError, match="parameter 'steps_size' is unknown; accepted are seeds, step_size; did you mean"
    ):
        notebook.settings({"seeds": [1], "step_size": 0.2, "steps_size": 0.1, "In": cells})


def test_a_name_that_this_notebook_does_not_have_is_refused_even_if_another_does():
    with pytest.raises(ValueError, match="parameter 'restarts' is unknown; accepted are seeds"):
        notebook.settings({"seeds": [1], "In": ["# Parameters\nrestarts = 2\n"]})


def test_other_cells_may_assign_what_they_like():
    chosen = notebook.settings({"seeds": [1], "In": ["", "stepp = 3", "x, y = 1, 2", "  # Parameters\nz = 1"]})
    assert values(chosen) == {"seeds": [1]}


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
