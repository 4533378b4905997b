"""Laws about CONTRIBUTING.md: each recipe, followed to the letter in a copy of the tree, adds what the suite sees.

A step of a recipe is a fenced block; the line before it says into which file it goes and where. The commands of a
recipe are those it shows.
"""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from attrobust import paths
from trees import copy_tree, run

PAGE = (paths.root / "CONTRIBUTING.md").read_text()
STEP = re.compile(r"^`(?P<file>[^`\n]+)`, (?P<where>[^\n]+):\n```\w+\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"`((?:pytest|python -m|PYTHONPATH=\S+ python -m|make reproduce)\s[^`]+)`")
RECIPES = ("An attention kernel", "An attribution", "A regulariser", "A notebook with its claim")
PARTS = ("lib", "tests", "notebooks", "pyproject.toml", "README.md", "CONTRIBUTING.md")


def recipe(title):
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands(title):
    """What a recipe tells the reader to run, in order."""
    return [" ".join(command.split()) for command in COMMAND.findall(STEP.sub("", recipe(title)))]


def notebook(code):
    """A notebook of one cell for each `# %%`."""
    cells = []
    for part in re.split(r"^# %%", code, flags=re.MULTILINE)[1:]:
        kind, _, source = part.partition("\n")
        if "[markdown]" in kind:
            lines = [line.removeprefix("#").removeprefix(" ") for line in source.strip().splitlines()]
            cells.append(nbformat.v4.new_markdown_cell("\n".join(lines)))
        else:
            tags = re.findall(r'"([\w-]+)"', kind)
            cells.append(nbformat.v4.new_code_cell(source.strip(), metadata={"tags": tags} if tags else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})) + "\n"


def put(tree, file, where, code):
    """Take one step of a recipe."""
    path = tree / file
    if where.startswith("a new"):
        assert not path.exists(), f"{file} is there already"
        path.write_text(notebook(code) if path.suffix == ".ipynb" else code)
    elif where == "at the end":
        path.write_text(f"{path.read_text()}\n\n{code}")
    else:
        (text,) = re.fullmatch(r"after the line with `([^`]+)`", where).groups()
        lines = path.read_text().splitlines(keepends=True)
        (place,) = [number for number, line in enumerate(lines) if text in line]
        path.write_text("".join([*lines[: place + 1], code, *lines[place + 1 :]]))


def follow(title, tree, *, parts=PARTS):
    """A copy of the tree in which every block of a recipe is in its place."""
    copy_tree(tree, parts=parts)
    (tree / "figures").mkdir(exist_ok=True)
    files = []
    for step in STEP.finditer(recipe(title)):
        put(tree, **step.groupdict())
        files += [step["file"]] if not step["file"].endswith(".md") else []
    shell(tree, shlex.join(["ruff", "format", "--check", *files]))
    shell(tree, shlex.join(["ruff", "check", *files]))
    return tree


def shell(tree, command):
    """Run a command of the page in the copied tree and return what it printed, tests by name."""
    if command.startswith("make reproduce"):
        switches = re.findall(r"(\w+)=(\w+)", command)
        options = [f"--{k.lower()}" if k == "UPDATE" else f"--{k.lower()} {v}" for k, v in switches]
        command = " ".join(["python -m attrobust reproduce", *options])
    found = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = f"export PATH={shlex.quote(found)} PYTEST_ADDOPTS=-rA; {command}"
    return run(["bash", "-c", line], tree, check=True).stdout


def passed(said):
    """Names of the tests that passed, without their folder."""
    return set(re.findall(r"^PASSED \S*?(test_\w+\.py::\S+|\w+\.py::\S+)", said, flags=re.MULTILINE))


def test_every_block_of_the_page_says_where_it_goes_and_every_recipe_has_one_and_a_command():
    assert PAGE.count("```") == 2 * len(STEP.findall(PAGE))
    for title in RECIPES:
        assert STEP.search(recipe(title)), title
        assert commands(title), title
        assert f"](#{title.lower().replace(' ', '-')})" in PAGE
    assert re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE) == list(RECIPES)


def test_every_file_and_folder_that_the_page_names_is_there_or_made_by_a_recipe():
    made = {step["file"] for step in STEP.finditer(PAGE)} | {"figures/11_averaged_gradients/", "build/"}
    named = re.findall(r"`([\w.]+/[\w./]*|[\w]+\.(?:md|toml))`", STEP.sub("", PAGE))
    assert named
    for name in named:
        assert name in made or (paths.root / name).exists(), name


def test_a_step_that_has_no_place_any_more_is_noticed(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    put(tmp_path, "a.py", "after the line with `x =`", "z = 2\n")
    assert (tmp_path / "a.py").read_text() == "x = 1\nz = 2\ny = 1\n"
    for where in ("after the line with `w`", "after the line with `1`", "a new file", "below"):
        with pytest.raises((AssertionError, AttributeError, ValueError)):
            put(tmp_path, "a.py", where, "z = 2\n")


@pytest.mark.long
@pytest.mark.in_turn(1, of="recipes")
def test_a_new_kernel_is_named_pinned_and_tried_by_the_laws_of_kernels(tmp_path):
    tree = follow("An attention kernel", tmp_path)
    golden = tree / "tests" / "golden" / "kernel.json"
    before = json.loads(golden.read_text())["row"]["columns"]
    said = "".join(shell(tree, command) for command in commands("An attention kernel"))
    after = json.loads(golden.read_text())["row"]["columns"]
    assert "kernel: written, version 1" in said
    assert after.keys() - before.keys() == {"softplus"}
    laws = {"agrees_with_its_formula_entry_by_entry[softplus-True]", "rows_sum_to_one_exactly_where_the_norm_says_so"}
    laws |= {"padding_changes_nothing_whatever_it_holds[softplus]", "has_first_and_second_derivatives[softplus-False]"}
    seen = passed(said)
    for law in laws:
        assert any(law in name for name in seen), law


@pytest.mark.slow
def test_every_test_that_takes_kernels_by_their_names_takes_a_new_one(tmp_path):
    tree = follow("An attention kernel", tmp_path)
    files = "attention models swap kernel_experiments explanations attributions_attention"
    said = shell(tree, f"pytest -k softplus {' '.join(f'tests/test_{name}.py' for name in files.split())}")
    assert {name.split("::")[0] for name in passed(said)} == {f"test_{name}.py" for name in files.split()}


@pytest.mark.long
@pytest.mark.in_turn(1, of="recipes")
def test_a_new_attribution_is_exported_and_its_derivative_is_tried(tmp_path):
    tree = follow("An attribution", tmp_path)
    seen = passed("".join(shell(tree, command) for command in commands("An attribution")))
    shell(tree, "lint-imports")
    assert seen == {
        "test_attributions.py::test_prediction_difference_of_a_linear_network_is_the_share_of_each_pixel",
        "test_attributions_cam.py::test_on_a_smooth_network_every_derivative_but_flows_agrees_with_finite_differences"
        "[prediction_difference]",
        "test_attributions_cam.py::test_a_map_knows_no_other_image_of_its_batch_and_leaves_all_as_found[prediction_difference]",
        "test_attributions_cam.py::test_the_audit_passes_true_derivatives_and_refuses_flow[prediction_difference]",
        "prediction_difference.py::attrobust.attributions.prediction_difference.prediction_difference",
    }


@pytest.mark.long
@pytest.mark.in_turn(1, of="recipes")
def test_a_new_regulariser_is_pinned_tried_by_the_laws_of_penalties_and_reached_by_its_name(tmp_path):
    tree = follow("A regulariser", tmp_path)
    said = "".join(shell(tree, command) for command in commands("A regulariser"))
    shell(tree, "lint-imports")
    assert "logit_squeezing: written, version 1" in said
    laws = "a_penalty_is_one_number_per_example_whatever_its_companions_and_leaves_everything_as_found[logit_squeezing]"
    companions = "a_penalty_of_each_example_is_not_told_where_its_companions_enter_its_gradient"
    finite = "a_penalty_and_its_slopes_are_finite_where_the_softmax_is_saturated_or_the_network_constant"
    assert passed(said) == {
        f"test_regularizers.py::test_{laws}",
        f"test_regularizers.py::test_{companions}[logit_squeezing]",
        "test_regularizers.py::test_a_penaltys_gradient_in_the_weights_agrees_with_finite_differences[logit_squeezing]",
        "test_regularizers.py::test_a_penalty_of_no_strength_is_plain_sgd_bit_for_bit[logit_squeezing]",
        "test_regularizers.py::test_a_penalty_of_a_network_that_diverged_is_no_number_and_no_error[logit_squeezing]",
        *(f"test_regularizers.py::test_{finite}[{case}-logit_squeezing]" for case in ("saturated", "constant")),
        "test_regularizers.py::test_logit_squeezing_grows_with_the_square_of_the_last_layer",
        "logit_squeezing.py::attrobust.regularizers.logit_squeezing.logit_squeezing",
    }
    program = """
import torch
from attrobust import models, training

def size(strength):
    recipe = training.Recipe(step_size=0.1, batch_size=4, epochs=20, penalty="logit_squeezing", strength=strength)
    net = models.build("mlp", input_shape=(1, 2, 2), classes=2, seed=0, width=4, depth=1)
    x, y = torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    training.fit([net], x, y, recipe, generators=[torch.Generator().manual_seed(0)])
    return net(x).square().sum(1).mean()

assert size(1.0) < size(0.01) / 2
"""
    shell(tree, f"python -c {shlex.quote(program)}")


TITLE, STEM = RECIPES[-1], "11_averaged_gradients"


@pytest.mark.long
@pytest.mark.in_turn(1, of="recipes")
def test_a_new_notebook_is_listed_and_seen_by_the_laws_of_notebooks(tmp_path):
    tree = follow(TITLE, tmp_path)
    listed, *_ = commands(TITLE)
    assert STEM in shell(tree, listed)
    seen = shell(tree, f"pytest --collect-only -q tests/test_notebooks.py -k {STEM}")
    for law in ("executed_in_order", "nbval_accepts", "smoke_profile_recomputes", "verdicts_are_committed"):
        assert re.search(rf"{law}\w*\[{STEM}\]", seen), law


@pytest.mark.long
@pytest.mark.in_turn(1, of="recipes")
def test_a_new_notebook_runs_at_smoke_size_saves_its_claim_and_has_its_code_pinned(tmp_path):
    tree = follow(TITLE, tmp_path)
    _, reproduced, pinned, _ = commands(TITLE)
    assert reproduced == "make reproduce ONLY=11 PROFILE=smoke"
    assert "left out 0" in shell(tree, reproduced)
    claims = pd.read_csv(tree / "build" / "reproduce" / "smoke" / STEM / "claims.csv")
    assert claims[["claim", "arm", "by", "word"]].to_numpy().tolist() == [["E1", "length", "sigma", "too few seeds"]]
    assert f"{STEM}: lengths: pinned, version 1" in shell(tree, pinned)


@pytest.mark.slow
def test_a_new_notebooks_committed_evidence_satisfies_the_laws_of_notebooks(tmp_path):
    tree = follow(TITLE, tmp_path, parts=(*PARTS, "figures"))
    *_, updated = commands(TITLE)
    assert updated == "make reproduce ONLY=11 UPDATE=1"
    shell(tree, updated)
    seen = passed(shell(tree, f"pytest tests/test_notebooks.py -k '{STEM} and not smoke_profile'"))
    assert f"test_notebooks.py::test_its_verdicts_are_committed_and_checked_by_a_cell[{STEM}]" in seen
    assert any("nbval_accepts" in name for name in seen)
    shell(tree, "pytest tests/test_repository.py -k 'figures_folder_and_a_line'")
