"""Laws about the committed notebooks, by glob: what a reader sees is what the evidence says, and it runs."""

import ast
import base64
import itertools
import json
import re
import statistics
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import made_up
import nbformat
import pandas as pd
import pytest
import yaml
from attrobust import data, notebook, paths
from attrobust.notebook import reproduce
from attrobust.rows import IDENTITY
from by_day import due
from trees import contents, copy_tree, run

BOOKS = sorted(paths.notebooks.glob("*.ipynb"))
IDS = [book.stem for book in BOOKS]
MACHINE = re.compile(r"/home/|/root/|/Users/|/tmp/|/work/|[A-Z]:\\\\|site-packages")
#: What a cell may be called, a statement, and whether a gain reaches a map (C6).
WORDS = {"up", "down", "leans up", "leans down", "no change", "no room", "no pair", "too few seeds", "unclear"}
WORDS |= {"unclear (control)", "unclear (counted)", "holds", "fails", "not tried"}
WORDS |= {"strong enough", "upper bound"}  # of the attack
WORDS |= {"positive", "negative"}  # of a correlation
WORDS |= {"reached", "leans reached", "not reached", "leans not reached", "no gain"}

every_notebook = pytest.mark.parametrize("path", BOOKS, ids=IDS)

#: The dearest at smoke size. Each is due beside a cheaper one, so that every day costs about the same.
DEAR = ("04", "07", "05", "01", "02")


def taking_turns():
    """Every notebook, a dear one and a cheaper one by turns."""
    dear = [path for number in DEAR for path in BOOKS if path.stem.startswith(number)]
    pairs = itertools.zip_longest(dear, [path for path in BOOKS if path not in dear])
    return [path for pair in pairs for path in pair if path]


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def nbval(tree, *flags):
    flags += ("--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", "-p", "no:cacheprovider", "-q")
    return run([sys.executable, "-m", "pytest", *flags, "notebooks"], tree)


# ---------------------------------------------------------------------- what is committed


def test_there_are_numbered_notebooks():
    assert BOOKS
    assert all(re.fullmatch(r"\d\d_[a-z_]+", stem) for stem in IDS)


@every_notebook
def test_every_code_cell_was_executed_in_order(path):
    assert [cell.execution_count for cell in code(path)] == list(range(1, len(code(path)) + 1))


@every_notebook
def test_no_cell_shows_an_error_or_a_warning(path):
    for cell in code(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")


@every_notebook
def test_no_machine_path_and_no_widget_state(path):
    book = read(path)
    assert set(book.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags"} for cell in book.cells)
    text = [cell.source for cell in book.cells]
    for cell in code(path):
        for output in cell.outputs:
            text += [output.get("text", ""), *[v for k, v in output.get("data", {}).items() if k.startswith("text")]]
    assert not MACHINE.search("\n".join(text))


@every_notebook
def test_it_opens_with_a_question_and_its_answer(path):
    cells = read(path).cells
    assert cells[0].source.startswith("# ")
    assert cells[0].source.strip().endswith("?")
    assert cells[1].source.startswith("**Answer.**")


@every_notebook
def test_its_contents_lead_to_every_numbered_section_and_every_link_within_it_to_a_heading(path):
    text = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    headings = [line.lstrip("#")[1:] for source in text for line in source.splitlines() if line.startswith("#")]
    (contents,) = (line for source in text[:2] for line in source.splitlines() if line.startswith("**Contents.**"))
    links = re.compile(r"\]\(#((?:[^()\s]|\([^()\s]*\))+)\)")
    numbered = {heading.replace(" ", "-") for heading in headings if re.match(r"\d+ · ", heading)}
    assert numbered <= {*links.findall(contents)}
    assert {*links.findall("\n".join(text))} <= {heading.replace(" ", "-") for heading in headings}


@every_notebook
def test_its_text_ends_with_three_numbered_exercises_that_say_what_to_expect(path):
    text = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert text[-1].startswith("**Three exercises**")
    assert re.findall(r"^(\d+)\. ", text[-1], re.MULTILINE) == ["1", "2", "3"]
    for exercise in re.split(r"^\d+\. ", text[-1], flags=re.MULTILINE)[1:]:
        assert "xpect" in exercise, exercise
    assert "Exercises.**" not in "\n".join(text)


@every_notebook
def test_parameters_stand_in_one_cell_each_with_a_comment_and_a_check(path):
    cells = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    for line in cells[0].source.splitlines():
        assert "  # " in line, line
    assigned = ast.parse(cells[0].source).body
    assert all(isinstance(node, ast.AnnAssign) for node in assigned)  # papermill shows the type in its help
    names = [node.target.id for node in assigned]
    assert {"out", "committed", "device"} <= set(names)
    values = {node.target.id: ast.literal_eval(node.value) for node in assigned}
    types = {node.target.id: ast.unparse(node.annotation) for node in assigned}
    assert notebook.checked(values, types) == values
    assert types == {name: kind for name, (kind, _) in reproduce.parameters_of(path).items()}


@every_notebook
def test_cells_are_short(path):
    lengths = [len(cell.source.splitlines()) for cell in code(path)]
    assert max(lengths) <= 30
    assert statistics.median(lengths) <= 14


@every_notebook
def test_every_figure_is_explained_and_has_alternative_text(path):
    cells = read(path).cells
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        pictures = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        for picture in pictures:
            assert len(picture.metadata.get("image/png", {}).get("alt", "")) > 30
            assert following is not None
            assert following.source.startswith("*Read it like this:*")


@every_notebook
def test_every_figure_shown_is_the_committed_one_and_has_its_numbers(path):
    folder = paths.figures / path.stem
    shown = [
        base64.b64decode(output.data["image/png"])
        for cell in code(path)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    committed = {png.name: png.read_bytes() for png in folder.glob("*.png")}
    assert shown
    assert sorted(shown) == sorted(committed.values())
    for name, content in committed.items():
        assert len(content) <= 100_000, name
        assert len(pd.read_csv(folder / name.replace(".png", ".csv"))) > 0
        assert (folder / name.replace(".png", ".pdf")).read_bytes().startswith(b"%PDF")


@every_notebook
def test_its_verdicts_are_committed_and_checked_by_a_cell(path):
    verdicts = pd.read_csv(paths.figures / path.stem / "claims.csv")
    assert {re.sub(r" \(\d+ cases, \d+ violations\)", "", word) for word in verdicts["word"]} <= WORDS
    assert not verdicts.duplicated(["claim", "arm", "by"]).any()
    assert any("nbval-check-output" in cell.metadata.get("tags", []) for cell in code(path))


@every_notebook
def test_it_is_small_enough_to_be_shown(path):
    assert path.stat().st_size < 1_200_000


@pytest.mark.parametrize("name", [p for p in reproduce.PROFILES if p != "cpu"])
def test_every_profile_names_parameters_that_exist(name):
    values = reproduce.profile(name)
    types = {n: kind for path in BOOKS for n, (kind, _) in reproduce.parameters_of(path).items()}
    sections = {reproduce.section(path.stem): reproduce.parameters_of(path) for path in BOOKS}
    sections = {name: own for name, own in sections.items() if name in values}
    shared = {n: v for n, v in values.items() if n not in sections}
    assert notebook.checked(shared, types) == shared
    for name, own in sections.items():
        assert notebook.checked(values[name], {n: kind for n, (kind, _) in own.items()}) == values[name]


def test_what_stands_under_a_notebooks_number_is_for_that_notebook_alone():
    values = {"seeds": [1], "epochs": 3, "notebook_03": {"seeds": [2]}}
    assert reproduce.of_notebook(values, "03_sgd_flattens") == {"seeds": [2], "epochs": 3}
    assert reproduce.of_notebook(values, "06_softmax_entropy") == {"seeds": [1], "epochs": 3}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("", "notebook_03 is None; it must hold parameters of this notebook"),
        (" 3", "notebook_03 is 3; it must hold parameters of this notebook"),
        (" {sedes: [1]}", "parameter 'sedes' is unknown to notebook_03"),
        (" {datasets: [foo]}", "foo"),
    ],
)
def test_a_section_of_a_profile_that_is_none_is_refused_in_one_sentence(tmp_path, monkeypatch, section, said):
    for book in BOOKS:
        (tmp_path / book.name).write_bytes(book.read_bytes())
    (tmp_path / "smoke.yaml").write_text(f"seeds: [0]\nnotebook_03:{section}\n")
    monkeypatch.setattr(paths, "notebooks", tmp_path)
    with pytest.raises(ValueError, match=re.escape(said)):
        reproduce.profile("smoke")


# ---------------------------------------------------------------------- it runs


@pytest.mark.long
@every_notebook
def test_nbval_accepts_the_committed_notebook_without_data_and_changes_nothing(tmp_path, path):
    tree = copy_tree(tmp_path, only=path.stem)
    before = contents(tree / "notebooks") | contents(tree / "figures")
    done = nbval(tree)
    assert done.returncode == 0, done.stdout[-3000:]
    assert contents(tree / "notebooks") | contents(tree / "figures") == before


@pytest.mark.long
@pytest.mark.parametrize("book", ["03_sgd_flattens"])
def test_a_corrupted_row_changes_a_verdict_and_is_caught(tmp_path, book):
    tree = copy_tree(tmp_path, only=book)
    folder = tree / "figures" / book
    lines = pd.read_csv(folder / "attacked.csv", float_precision="round_trip")
    runs = pd.read_csv(folder / "runs.csv").set_index("key")
    judged = lines[(lines.attack == "worst") & (lines.metric == "spearman")]
    arms = [judged["readout"].to_numpy(), *(runs.loc[judged["key"], n].to_numpy() for n in ("dataset", "protocol"))]
    for column in ("value", "n", "images"):
        lines.loc[judged.index, column] = judged[column].groupby(arms).transform(lambda v: v.to_numpy()[::-1])
    lines.to_csv(folder / "attacked.csv", index=False)
    done = nbval(tree, "--exitfirst")
    assert done.returncode != 0
    assert "claims.page(C2)" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("slot", range(2))
def test_it_runs_on_its_own_rows_where_no_other_profile_has_left_claims(tmp_path, slot):
    """A notebook a slot and day; all with `EVERY=1`."""
    for path in due(BOOKS, slot, 2):
        tree = copy_tree(tmp_path / path.stem, only=path.stem)
        for claims in (tree / "figures" / path.stem).glob("claims_*.csv"):
            claims.unlink()
        how = ["--cwd", "notebooks", "-p", "out", str(tree / "build" / "alone"), "--no-progress-bar"]
        run([sys.executable, "-m", "papermill", *how, f"notebooks/{path.name}", "-"], tree, check=True)


@pytest.mark.long
@pytest.mark.in_turn(2)
@pytest.mark.parametrize("path", taking_turns(), ids=lambda path: path.stem)
def test_the_smoke_profile_recomputes_everything_without_data_or_committed_rows(tmp_path, path):
    tree = copy_tree(tmp_path)
    assert re.search(r"trained (\d+) \(grid: \1\), reused 0, left out 0", ran(path.stem, tree))
    made = tree / "build" / "reproduce" / "smoke" / path.stem / "figures"
    assert {p.name for p in made.glob("*.png")} == {p.name for p in (paths.figures / path.stem).glob("*.png")}
    assert not (tree / "build" / "reproduce" / "cpu").exists()


@pytest.mark.long
@pytest.mark.parametrize("book", ["03_sgd_flattens"])
def test_bare_papermill_takes_a_list_as_text_from_any_folder(tmp_path, book):
    tree = copy_tree(tmp_path / "tree", only=book)
    source = tree / "notebooks" / f"{book}.ipynb"
    command = [sys.executable, "-m", "papermill", str(source), str(tree / "answer.ipynb"), "-p", "seeds", "[0]"]
    done = run([*command, "-p", "datasets", "[digits]", "--no-progress-bar"], tree)
    assert done.returncode != 0  # a list of bare words is not a list of names
    before = contents(tree / "figures")
    run([*command, "--no-progress-bar", "--inject-paths"], tree, check=True)
    printed = json.dumps(json.loads((tree / "answer.ipynb").read_text())["cells"])
    assert "154 networks on 2 data sets" in printed
    assert contents(tree / "figures") == before


@pytest.mark.in_turn(1)
@pytest.mark.parametrize(
    ("book", "name", "sentence"),
    [
        ("03_sgd_flattens", "sedes", "did you mean 'seeds'?"),
        ("01_fragile_attributions", "seeds", "accepted are attack_steps, batch_size"),  # notebook 03 has it
    ],
)
def test_a_parameter_that_it_does_not_have_stops_a_notebook_with_one_sentence(tmp_path, book, name, sentence):
    tree = copy_tree(tmp_path, only=book)
    source = tree / "notebooks" / f"{book}.ipynb"
    done = run([sys.executable, "-m", "papermill", str(source), str(tree / "x.ipynb"), "-p", name, "[0]"], tree)
    assert done.returncode != 0
    assert f"parameter '{name}' is unknown" in done.stderr
    assert sentence in done.stderr


#: Parameters of a notebook's own section that say what is done, not how much of it.
KINDS = ("recipes", "other_recipes", "maps", "flatness", "transfer_methods")


def beyond_smoke(name):
    """What a profile changes that the smoke profile does not make small anyway."""
    smoke, own = (yaml.safe_load((paths.notebooks / f"{profile}.yaml").read_text()) for profile in ("smoke", name))
    sections = {reproduce.section(book.stem) for book in BOOKS}
    kept = {k: v for k, v in own.items() if k not in {*smoke, *sections, "device", "jobs"} or k == "radii"}
    kinds = {k: {n: v for n, v in own[k].items() if n in KINDS} for k in sections & own.keys()}
    return kept | {k: v for k, v in kinds.items() if v}


def concerned(changed):
    """Notebooks that have one of these parameters or a section of their own there."""
    return [book.stem for book in BOOKS if {*reproduce.parameters_of(book), reproduce.section(book.stem)} & {*changed}]


#: The fewest attacked pictures and steps, for networks of millions of weights.
FEWEST = {"n_attacked": 2, "n_train": 50, "epochs": 2, "step_sizes": [0.01, 0.09], "seeds": [0], "attack_steps": 1}


def named(name):
    """What a profile says that is no number: data sets, networks, recipes, whatever smoke puts in their place."""
    own = yaml.safe_load((paths.notebooks / f"{name}.yaml").read_text())

    def kept(values):
        found = {k: kept(v) if isinstance(v, dict) else v for k, v in values.items() if k != "device"}
        words = {k: v for k, v in found.items() if isinstance(v[0] if isinstance(v, list) and v else v, str | bool)}
        return words | {k: v for k, v in found.items() if isinstance(v, dict) and v}

    return kept(own)


def ran_small(changed, book, tree, *, pictures=None):
    """What the smoke profile printed of a notebook with changed parameters; `pictures`: a folder for made-up ones."""
    copy_tree(tree)
    if pictures:
        made_up.data_sets(tree, pictures)
    smoke = yaml.safe_load((tree / "notebooks" / "smoke.yaml").read_text())
    merged = {k: smoke.get(k, {}) | v if isinstance(v, dict) else v for k, v in changed.items()}
    (tree / "notebooks" / "smoke.yaml").write_text(yaml.safe_dump(smoke | merged))
    return ran(book, tree, pictures=pictures)


def ran(book, tree, *, pictures=None):
    """What the smoke profile prints of a notebook in a copied tree."""
    how = ["--profile", "smoke", "--only", book[:2], "--jobs", "1"]
    return run([sys.executable, "-m", "attrobust", "reproduce", *how], tree, check=True, data=pictures).stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_parameters_of_every_profile_run_at_smoke_size(tmp_path):
    """A notebook of profile full or gpu a day; all with `EVERY=1`."""
    every = [(name, book) for name in ("full", "gpu") for book in concerned(beyond_smoke(name))]
    for name, book in due(every):
        assert "left out 0" in ran_small(beyond_smoke(name), book, tmp_path / f"{name} {book}"), (name, book)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_networks_and_data_sets_of_profile_gpu_run_at_smoke_size_on_a_processor(tmp_path):
    """A notebook a day; all with `EVERY=1`. Pictures are made up, so that no file is needed."""
    for book in due(concerned(named("gpu"))):
        asked, own = named("gpu"), reproduce.parameters_of(paths.notebooks / f"{book}.ipynb")
        few = {name: value for name, value in FEWEST.items() if name in own}
        asked[reproduce.section(book)] = few | asked.get(reproduce.section(book), {})
        printed = ran_small(asked, book, tmp_path / book, pictures=tmp_path / "pictures")
        assert "left out 0" in printed, book


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_notebook_none_of_whose_networks_may_be_compared_runs_to_its_end(tmp_path):
    """As where all of them diverge, or reach no common loss. A notebook a day; all with `EVERY=1`."""
    for book in due(book.stem for book in BOOKS if "claims.comparable(" in book.read_text()):
        tree = copy_tree(tmp_path / book)
        measure = tree / "lib" / "attrobust" / "experiments" / "measure.py"
        judged = "reason = incomparable(experiment, fit, share_blind)"
        assert judged in measure.read_text()
        measure.write_text(measure.read_text().replace(judged, 'reason = "loss 1 never reached 0.1"'))
        ran(book, tree)


def test_a_stored_row_can_be_reproduced():
    """One network of a committed arm, trained again, lies among its sisters; on the same machine it equals its row."""
    from attrobust import experiments
    from attrobust.experiments import measure

    rows = pd.read_csv(Path(paths.figures, "03_sgd_flattens", "runs.csv"), float_precision="round_trip")
    arm = rows[(rows.dataset == "digits") & (rows.protocol == "matched") & (rows.batch_size == 64)]
    arm = arm[arm.step_size == arm.step_size.max()]
    row = arm.iloc[0]
    names = ["dataset", "step_size", "batch_size", "epochs", "seed", "protocol", "n_train", "activation"]
    plain = {name: row[name].item() if hasattr(row[name], "item") else row[name] for name in names}
    experiment = experiments.Experiment(**plain)
    radius = experiments.RADII["mlp", "digits", "saliency"]
    measurement = experiments.Measurement(radii=(radius,))
    assert experiments.key(experiment, measurement) == row["key"]
    (model,), (fit,) = measure.train([experiment])
    again, attacked = measure.measure(experiment, measurement, model, fit)
    lines = pd.read_csv(Path(paths.figures, "03_sgd_flattens", "attacked.csv"), float_precision="round_trip")
    lines, attacked = (
        t[(t.radius == radius) & (t.readout == "logit")].set_index(["attack", "metric"]) for t in (lines, attacked)
    )
    sisters = {name: (arm[name], again[name]) for name in ("test_accuracy", "logit_relative_curvature")}
    for at in (("worst", "spearman"), ("worst", "top_k"), ("noise", "top_k")):
        mine = lines.loc[[at]]
        sisters[at] = mine.loc[mine["key"].isin(arm["key"]).to_numpy(), "value"], attacked.loc[at, "value"]
    for name, (values, found) in sisters.items():
        spread = values.max() - values.min()
        assert values.min() - spread <= found <= values.max() + spread, name


AUDITED = {
    "04_across_models": {"all", "averaged", "averaged, fewest", "heavy"},
    "05_explicit_regularizers": {"all", "averaged", "heavy, few"},
}


def _rows_of_full(book):
    """Networks and lines of both profiles, and of the networks of profile full what was asked of each (by its key)."""
    from attrobust import attacks, experiments

    folder, fields = paths.figures / book, experiments.Experiment.__dataclass_fields__
    runs, lines = (
        pd.concat(pd.read_csv(folder / f"{stem}{end}.csv", dtype={"key": str}) for end in ("", "_full"))
        for stem in ("runs", "attacked")
    )
    at = lines[(lines.attack == "worst") & (lines.metric == "spearman")][["key", "map", "radius"]].drop_duplicates()
    radii = {name: tuple(own[["map", "radius"]].itertuples(index=False, name=None)) for name, own in at.groupby("key")}
    further = {"all": {}, "averaged": {"n_attacked": 32}, "heavy": {"effort": attacks.Heavy(steps=100, starts=3)}}
    further["averaged, fewest"] = {"n_attacked": 16}
    further["heavy, few"] = further["averaged"] | further["heavy"]
    asked = {}
    full = pd.read_csv(folder / "runs_full.csv", dtype={"key": str})["key"]
    for row in runs[runs.key.isin(full) & runs.comparable].to_dict("records"):
        known = {n: v for n, v in row.items() if n in fields and v == v}
        whole = {n: int(v) for n, v in known.items() if fields[n].type in (int, "int", "int | None", int | None)}
        experiment = experiments.Experiment(**known | whole)
        how = {"k_share": 0.25 if experiment.architecture == "vit" else 0.1, "curvature": row["sharpness"] > 0}
        how |= {"radii_of": radii[row["key"]], "maps": tuple(name for name, _ in radii[row["key"]])}
        for kind, own in further.items():
            measurement = experiments.Measurement(radii=(), trace_products=10, **how, **own)
            if experiments.key(experiment, measurement) == row["key"]:
                asked[row["key"]] = kind, experiment, measurement
                break
    return runs, lines, full, asked


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("book", AUDITED)
def test_every_row_of_profile_full_is_named_by_what_its_notebook_asks_today(book):
    runs, _, full, asked = _rows_of_full(book)
    wanted = runs[runs.key.isin(full) & runs.comparable]
    stray = wanted[~wanted.key.isin(asked)]
    assert not len(stray), stray[["key", "architecture", "dataset", "step_size", "seed"]].to_string(index=False)
    assert {kind for kind, _, _ in asked.values()} == AUDITED[book]


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("book", AUDITED)
def test_a_row_of_profile_full_drawn_by_the_day_can_be_trained_again(book):
    """It lies among its sisters, the same arm's other seeds: a network trained elsewhere is another draw of it."""
    from attrobust.experiments import measure

    _, lines, _, asked = _rows_of_full(book)
    there = pd.Series(sorted(name for name, (_, experiment, _) in asked.items() if data.available(experiment.dataset)))
    for name in there.sample(1, random_state=date.today().toordinal()):
        kind, experiment, measurement = asked[name]
        (model,), (fit,) = measure.train([experiment])
        _, found = measure.measure(experiment, measurement, model, fit)
        found = found.set_index([*IDENTITY])["value"]
        alike = [
            key for key, (other, sister, how) in asked.items()
            if other == kind and replace(sister, seed=experiment.seed) == experiment and how.maps == measurement.maps
        ]  # fmt: skip
        assert len(alike) > 1, experiment
        for at, values in lines[lines.key.isin(alike)].groupby([*IDENTITY])["value"]:
            spread = max(values.max() - values.min(), 0.05)
            assert values.min() - spread <= found[at] <= values.max() + spread, (experiment, at)
