"""Laws about the runner: it refuses early, resumes, and says the same thing twice."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from attrobust import __main__, claims, paths
from attrobust.experiments import store
from attrobust.notebook import reproduce
from nbclient.exceptions import DeadKernelError
from trees import copy_tree, run

SMOKE = [sys.executable, "-m", "attrobust", "reproduce", "--profile", "smoke", "--only", "03"]


@pytest.fixture
def refused(monkeypatch, unchecked):
    """The sentence in which a command ends; Python prints it and exits with status 1, as one real process shows."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["attrobust", *arguments])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(os, "environ", dict(os.environ))
        with pytest.raises(SystemExit) as end:
            __main__.run()
        return end.value.code

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--profile", "smok"],
            "error: profile is 'smok'; it must be one of smoke, cpu, full, gpu, headline; did you mean 'smoke'?",
        ),
        (["--only", "99"], "error: only is '99'; it must be one of"),
        (["--jobs", "-1"], "error: jobs is -1; it must be a whole number of at least 0"),
        (["-p", "sedes", "[0]"], "error: parameter 'sedes' is unknown"),
        (["--only", "03", "-p", "step_sizes", "[0]"], "error: step_sizes is 0; it must be a finite number above 0"),
        (
            ["--only", "03", "-p", "curve_radii", "[-1]"],
            "error: curve_radii is -1; it must be a finite number of at least 0",
        ),
        (
            ["--only", "03", "-p", "datasets", "[fashion]"],
            "error: datasets is 'fashion'; it must be one of digits, mnist",
        ),
        (["--only", "03", "-p", "seeds", "[0"], "error: seeds is '[0'; it must be YAML, such as [1, 2] ("),
        (["--only", "03", "-p", "seeds", "[0, 0]"], "error: seeds is [0, 0]; every value must stand there once"),
        (["--only", "03", "-p", "seeds", f"[{10**400}]"], "error: seeds is 1000"),
        (["--only", "03", "-p", "seeds", "9" * 5000], "error: seeds is '999"),
        (["--only", "03", "-p", "seeds", "[" * 5000], "error: seeds is '[[["),
        (["--only", "03", "-p", "seeds", "2020-99-99"], "error: seeds is '2020-99-99'; it must be YAML"),
        (
            ["--only", "03", "-p", "seeds", "[0]", "-p", "seeds", "[1]"],
            "error: parameter 'seeds' is given twice; give it once",
        ),
        (["-p", "seeds", "[0]"], "error: parameter 'seeds' is unknown to 01_fragile_attributions; accepted are"),
        (["--only", "01,03", "-p", "seeds", "[0]"], "error: parameter 'seeds' is unknown to 01_fragile_attributions"),
        (["-p", "out", "null"], "error: parameter 'out' is unknown"),
        (["-p", "committed", "true"], "error: parameter 'committed' is unknown"),
        (["--profile", "smoke", "--update"], "error: update is 1; it needs the profile cpu, full or headline"),
    ],
)
def test_bad_input_ends_in_one_sentence(refused, arguments, sentence):
    said = refused("reproduce", *arguments)
    assert said.startswith(sentence)
    assert len(said.splitlines()) == 1
    assert len(said) <= 300 + len("error: ")


def test_bad_input_ends_with_a_status_and_no_traceback(tmp_path):
    done = subprocess.run([*SMOKE[:4], "--only", "99"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: only is '99'; it must be one of 01"), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["reproduce", "--help"], ["reproduce", "--frsh"]])
def test_help_and_misspelt_options_import_nothing_heavy(tmp_path, arguments):
    program = """
        import runpy, sys
        sys.argv = ["attrobust", *sys.argv[1:]]
        try:
            runpy.run_module("attrobust", run_name="__main__")
        finally:
            print(*{"torch", "sklearn", "nbformat", "pandas", "numpy", "scipy", "papermill"} & set(sys.modules))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
    assert done.stdout.splitlines()[-1] == ""


def test_an_unknown_option_is_refused_without_a_traceback(tmp_path):
    done = subprocess.run([*SMOKE, "--frsh"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_unknown_data_set_is_refused_by_the_data_command(refused):
    assert "did you mean 'fashion_mnist'?" in refused("data", "fashon_mnist")


@pytest.mark.parametrize(("jobs", "used"), [(0, 4), (3, 3)])
def test_a_profile_says_how_many_workers_unless_the_command_does(monkeypatch, tmp_path, jobs, used):
    seen = []

    def execute(source, target, values, *, say):
        seen.append(values["jobs"])
        raise reproduce.NotebookError("enough")

    monkeypatch.setattr(paths, "build", tmp_path)
    monkeypatch.setattr(reproduce, "execute", execute)
    with pytest.raises(reproduce.NotebookError):
        reproduce.reproduce(profile_name="gpu", only="03", jobs=jobs, say=lambda line: None)
    assert seen == [used]


@pytest.mark.parametrize("text", ["- 1", "seeds: [", "", "1: 2", "seeds: &a [*a]", "sedes: [0]", "seeds: 2020-99-99"])
def test_a_bad_profile_file_ends_in_one_sentence(refused, monkeypatch, tmp_path, text):
    books = copy_tree(tmp_path, parts=("notebooks",)) / "notebooks"
    (books / "smoke.yaml").write_text(text)
    monkeypatch.setattr(paths, "notebooks", books)
    monkeypatch.setattr(paths, "build", tmp_path)
    said = refused("reproduce", "--profile", "smoke", "--only", "03")
    assert re.match(r"error: (smoke.yaml|seeds|parameter)", said)
    assert len(said.splitlines()) == 1


def stopped(monkeypatch, tmp_path, error):
    """What a runner says whose first notebook ends in an error."""
    said = []

    def execute(*_, **__):
        raise error

    monkeypatch.setattr(paths, "build", tmp_path)
    monkeypatch.setattr(reproduce.papermill, "execute_notebook", execute)
    with pytest.raises(reproduce.NotebookError) as caught:
        reproduce.reproduce(profile_name="smoke", only="01", say=said.append)
    return said, str(caught.value)


def test_a_profile_is_filtered_for_each_notebook_and_what_it_leaves_is_said(monkeypatch, tmp_path):
    said, _ = stopped(monkeypatch, tmp_path, DeadKernelError("Kernel died"))
    (line,) = [line for line in said if "not for this notebook" in line]
    left = set(line.split(": ")[1].split(", "))
    own = reproduce.parameters_of(reproduce.numbered("01")[0]).keys()
    assert left == {n for n in reproduce.profile("smoke") if not n.startswith("notebook_")} - own


def test_where_there_are_no_notebooks_a_sentence_says_that_a_checkout_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "notebooks", tmp_path / "notebooks")
    monkeypatch.setattr(paths, "build", tmp_path)
    for ask in (
        reproduce.numbered, lambda: reproduce.numbered("03"), lambda: reproduce.profile("smoke"),
        lambda: reproduce.reproduce(profile_name="cpu", only="", say=print),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"notebooks holds no notebooks; reproduce, figures and parameters need a"):
            ask()
    assert not [*tmp_path.iterdir()]


def test_a_killed_kernel_ends_in_one_sentence_that_says_how_to_go_on(monkeypatch, tmp_path):
    _, sentence = stopped(monkeypatch, tmp_path, DeadKernelError("Kernel died"))
    assert sentence.endswith(".ipynb: its kernel was killed; the same command resumes where it stopped")


def test_scrubbing_leaves_nothing_that_changes_from_run_to_run(tmp_path):
    book = nbformat.v4.new_notebook(metadata={"papermill": {"start_time": "now"}})
    injected = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["injected-parameters"]}, execution_count=1)
    cell = nbformat.v4.new_code_cell("x", metadata={"papermill": {"duration": 1}}, execution_count=2)
    cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=2)]
    book.cells = [injected, cell]
    nbformat.write(book, tmp_path / "book.ipynb")
    clean = nbformat.reads(reproduce.scrubbed(tmp_path / "book.ipynb"), as_version=4)
    assert set(clean.metadata) == {"kernelspec", "language_info"}
    assert [(c.id, c.execution_count, c.metadata) for c in clean.cells] == [("cell-00", 1, {})]
    assert clean.cells[0].outputs[0].execution_count == 1


def test_cells_agree_if_their_effects_are_no_further_apart_than_two_draws(tmp_path):
    cell = {"claim": "C2", "by": "step_size", "start": 0.1, "end": 1.0, "effect": 0.1, "half": 0.05, "word": "up"}
    old = pd.DataFrame([cell | {"arm": arm} for arm in "ab"])[["claim", "arm", *[*cell][1:]]]
    old.to_csv(tmp_path / "old.csv", index=False)
    old.assign(effect=[0.1 + 0.07, 0.1 - 0.072], word="unclear").to_csv(tmp_path / "new.csv", index=False)
    table = reproduce.compare_claims(tmp_path / "new.csv", tmp_path / "old.csv")
    assert table.set_index("arm")["same"].to_dict() == {"a": True, "b": False}  # two draws: sqrt(2) x 0.05 apart
    said = []
    assert not reproduce._report_claims("03", table, said.append)
    assert any("C2 b: unclear, committed up" in line for line in said)


def test_a_statement_among_cells_is_compared_by_its_word_and_not_by_its_number_of_cases(tmp_path):
    names = {"claim": "C5", "by": "cases", "start": None, "end": None, "effect": None, "half": None}
    cell = {"claim": "C6", "by": "step_size", "start": 0.1, "end": 1.0, "effect": 0.1, "half": 0.05, "word": "up"}
    order = ["claim", "arm", *[*cell][1:]]

    def table(*words):
        lines = [names | {"arm": arm, "word": word} for arm, word in zip("ab", words, strict=True)]
        return pd.DataFrame([cell | {"arm": "c"}, *lines])[order]

    table("holds (9 cases, 0 violations)", "holds (9 cases, 0 violations)").to_csv(tmp_path / "old.csv", index=False)
    table("holds (8 cases, 0 violations)", "fails (9 cases, 1 violations)").to_csv(tmp_path / "new.csv", index=False)
    found = reproduce.compare_claims(tmp_path / "new.csv", tmp_path / "old.csv")
    assert found.set_index("arm")["same"].to_dict() == {"a": True, "b": False, "c": True}


def test_claims_without_committed_ones_are_shown_and_differ_from_nothing(tmp_path):
    cell = {"claim": "C2", "arm": "a", "by": "step_size", "start": 0.1, "end": 1.0, "effect": 0.1, "half": 0.05}
    pd.DataFrame([cell | {"word": "up"}]).to_csv(tmp_path / "new.csv", index=False)
    said = []
    table = reproduce.compare_claims(tmp_path / "new.csv", tmp_path / "none.csv")
    assert reproduce._report_claims("03", table, said.append)
    assert [line.split() for line in said if line.startswith("  C2")] == [["C2", "up", "1", "0"]]
    assert said[-1].startswith("  1 arms stand on one side only")


def test_claims_of_any_length_are_told_from_their_verdicts(tmp_path):
    cell = {"arm": "a", "by": "step_size", "start": 0.1, "end": 1.0, "effect": 0.1, "half": 0.05, "word": "up"}
    claims = pd.DataFrame([{"claim": name} | cell for name in ("C1", "C1 a long name")])
    claims.to_csv(tmp_path / "claims.csv", index=False)
    said = []
    reproduce._report_claims("01", reproduce.compare_claims(*[tmp_path / "claims.csv"] * 2), said.append)
    told = [tuple(re.split(r"\s{2,}", line.strip())[:2]) for line in said if "  up  " in line]
    assert told == [(name, "up") for name in claims["claim"]]


def test_an_update_with_gaps_is_refused_before_anything_is_replaced(tmp_path, monkeypatch):
    """A grid that lacks a data set must not shorten the committed rows."""
    monkeypatch.setattr(paths, "figures", tmp_path / "figures")
    monkeypatch.setattr(paths, "build", tmp_path / "build")
    committed = {"runs.csv": b"key\na\nb\n", "attacked.csv": b"key\na\nb\n"}
    for name, content in committed.items():
        store.write_bytes(paths.figures / "03_sgd_flattens" / name, content)

    def execute(path, target, values, *, say):
        home = target.parent
        store.write_json(home / "summary.json", {"trained": 1, "reused": 0, "left_out": {"data set 'x' is gone": 2}})
        store.write_bytes(home / "runs.csv", b"key\na\n")

    monkeypatch.setattr(reproduce, "execute", execute)
    said = []
    sentence = (
        "update is 1, but 03_sgd_flattens left out 2 networks, because data set 'x' is gone; nothing was replaced"
    )
    with pytest.raises(ValueError, match=sentence):
        reproduce.reproduce(only="03", update=True, say=said.append)
    found = {path.name: path.read_bytes() for path in (paths.figures / "03_sgd_flattens").iterdir()}
    assert found == committed
    assert any("LEFT OUT" in line for line in said)


def test_a_key_has_one_home_whichever_profile_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "figures", tmp_path / "figures")
    home = paths.figures / "03_x"
    for profile, keys in (("cpu", "ab"), ("full", "abc"), ("cpu", "ac")):
        for name in ("runs.csv", "attacked.csv"):
            text = "key,value\n" + "".join(f"{key},{profile}\n" for key in keys)
            store.write_bytes(tmp_path / "made" / profile / name, text.encode())
        reproduce.adopt(tmp_path / "made" / profile, "03_x", profile)
    for name in ("runs", "attacked"):
        assert (home / f"{name}.csv").read_text() == "key,value\na,cpu\nc,cpu\n"
        assert (home / f"{name}_full.csv").read_text() == "key,value\n"


def test_a_small_table_has_one_home_too_and_is_read_from_either(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "figures", tmp_path / "figures")
    home = paths.figures / "03_x"
    for profile, keys in (("cpu", "ab"), ("full", "abcd"), ("cpu", "ac")):
        shutil.rmtree(tmp_path / profile, ignore_errors=True)
        for key in keys:
            store.write_csv(tmp_path / profile / "tables" / f"t-{key}.csv", pd.DataFrame({"from": [profile]}))
        reproduce.adopt(tmp_path / profile, "03_x", profile)
    found = {part: {path.name for path in (home / part).iterdir()} for part in ("tables", "tables_full")}
    assert found == {"tables": {"t-a.csv", "t-c.csv"}, "tables_full": {"t-d.csv"}}
    own = store.Store("03_x", out=tmp_path / "out")
    assert [own.table("t", key)["from"].item() for key in "acd"] == ["cpu", "cpu", "full"]
    assert own.table_file("t", "b") is None


def test_a_second_draw_stands_whole_beside_the_first_and_is_never_read_as_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "figures", tmp_path / "figures")
    for profile, keys in (("cpu", "ab"), ("headline", "bc")):
        runs = pd.DataFrame({"key": list(keys), "dataset": "digits", "value": 1.0})
        store.write_csv(tmp_path / profile / "runs.csv", runs)
        store.write_csv(tmp_path / profile / "attacked.csv", pd.DataFrame(columns=["key", "images"]))
        store.write_csv(tmp_path / profile / "claims.csv", pd.DataFrame({"claim": [profile]}))
        reproduce.adopt(tmp_path / profile, "03_x", profile)
    assert pd.read_csv(paths.figures / "03_x" / "runs_headline.csv")["key"].tolist() == ["b", "c"]
    own = store.Store("03_x", out=tmp_path / "out")
    assert set(own.committed_rows("abc")) == {"a", "b"}
    assert own.committed_claims("headline")["claim"].tolist() == ["headline"]


def test_claims_that_no_profile_has_left_are_a_table_without_a_line_that_can_be_asked_like_any_other(tmp_path):
    nothing = store.Store("03_x", out=tmp_path / "out").committed_claims("full")
    assert not len(nothing)
    told = claims.lines_of(nothing, "C2", ["map", "readout"])
    assert {"map", "readout", "start", "end", "effect", "low", "high", "word", "seeds"} <= {*told.columns}
    for name in ("04_across_models", "05_explicit_regularizers"):
        assert {*nothing.columns} <= {*pd.read_csv(paths.figures / name / "claims.csv", nrows=1).columns}


def rows(tree):
    folder = tree / "build" / "reproduce" / "smoke" / "03_sgd_flattens"
    return [(folder / name).read_bytes() for name in ("runs.csv", "attacked.csv")]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The tree of an undisturbed smoke run, on two workers."""
    tree = copy_tree(tmp_path_factory.mktemp("reference"))
    run([*SMOKE, "--jobs", "2"], tree, check=True)
    return tree


@pytest.mark.slow
def test_a_second_run_on_one_worker_instead_of_two_gives_the_same_rows_and_the_same_figures(reference, tmp_path):
    tree = copy_tree(tmp_path)
    run([*SMOKE, "--jobs", "1"], tree, check=True)
    assert rows(tree) == rows(reference)
    drawn, expected = (t / "build/reproduce/smoke/03_sgd_flattens/figures" for t in (tree, reference))
    for file in expected.iterdir():
        assert (drawn / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.slow
def test_interrupted_it_says_so_in_one_sentence_and_leaves_no_process_behind(tmp_path):
    tree = copy_tree(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tree / "lib"), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(SMOKE, cwd=tree, env=environment, stderr=subprocess.PIPE, text=True)
    folder = tree / "build" / "reproduce" / "smoke" / "03_sgd_flattens" / "rows"
    until = time.monotonic() + 120
    while not list(folder.glob("[!.]*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert "interrupted; the same command resumes where it stopped" in said
    assert "Traceback" not in said
    assert running.returncode == 130
    until = time.monotonic() + 60
    while (left := processes_in(tree)) and time.monotonic() < until:
        time.sleep(0.5)
    assert not left


def processes_in(tree):
    """Processes whose library is the tree's own: kernels and workers of a run in it."""
    found = []
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PYTHONPATH={tree / 'lib'}".encode() in status.read_bytes():
                found.append(status.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_killed_in_the_middle_it_resumes_and_ends_with_the_same_table(reference, tmp_path):
    tree = copy_tree(tmp_path)
    folder = tree / "build" / "reproduce" / "smoke" / "03_sgd_flattens" / "rows"
    environment = os.environ | {"PYTHONPATH": str(tree / "lib"), "OMP_NUM_THREADS": "1"}
    environment |= {"ATTROBUST_DATA": str(tree / "nothing"), "SCIKIT_LEARN_DATA": str(tree / "nothing")}
    running = subprocess.Popen([*SMOKE, "--jobs", "1"], cwd=tree, env=environment, start_new_session=True)
    until = time.monotonic() + 120
    while len(list(folder.glob("[!.]*.json"))) < 5 and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    orphans_end = time.monotonic() + 5  # the notebook's kernel notices within a second that its parent is gone
    while time.monotonic() < orphans_end:
        time.sleep(0.2)
    saved = {p.name: p.stat().st_mtime_ns for p in folder.glob("[!.]*.json")}
    assert 5 <= len(saved) < 16
    done = run(SMOKE, tree, check=True)
    assert f"resuming: {len(saved)} runs are there" in done.stdout
    assert all((folder / name).stat().st_mtime_ns == when for name, when in saved.items())
    assert rows(tree) == rows(reference)
    assert "trained 16 (grid: 16), reused 0, left out 0" in done.stdout


@pytest.mark.parametrize("fails", [True, False])
def test_beside_the_notebook_of_an_audit_stands_its_own_report_or_none(tmp_path, monkeypatch, fails):
    own = {"report.json", "pictures.csv", "claims.csv", "figures/a_maps.png", "worst/1_saliency_1_a_clean.png"}
    kept, said = {"tables/attacked-1.csv", "mine.json", "worst/mine.png"}, []

    def lies():
        return {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}

    def put(names, text):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)

    def execute(source, target, *_, **__):
        assert lies() == kept
        target.write_text(source.read_text())
        put(own, "new")
        if fails:
            raise reproduce.NotebookError("it stopped")

    monkeypatch.setattr(reproduce, "execute", execute)
    put(own | {"report.html"} | kept, "old")
    book = tmp_path / reproduce.AUDIT.name
    if fails:
        with pytest.raises(reproduce.NotebookError, match="it stopped"):
            reproduce.audit(out=str(tmp_path), overrides={}, say=said.append)
        assert lies() == kept | {book.name}
        assert said == [f"no report: the audit did not end; how far it came shows {book}"]
    else:
        reproduce.audit(out=str(tmp_path), overrides={}, say=said.append)
        assert lies() == kept | own | {book.name, "report.html"}
        assert {(tmp_path / name).read_text() for name in own} == {"new"}


def test_a_parameter_that_is_refused_leaves_the_last_report_of_an_audit(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="radius is 300"):
        reproduce.audit(out=str(tmp_path), overrides={"radius": 300})
    assert (tmp_path / "report.json").read_text() == "{}"
