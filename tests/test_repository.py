"""Laws about the repository: what is declared is what is there."""

import ast
import math
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from importlib import metadata

import nbformat
import pandas as pd
import pytest
import yaml
from attrobust import __version__, claims, paths
from attrobust.__main__ import main
from attrobust.notebook import reproduce
from attrobust.theory import tally
from by_day import due
from packaging.requirements import Requirement

PROJECT = tomllib.loads((paths.root / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(text)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in group
]


def tracked():
    answer = subprocess.run(["git", "ls-files"], cwd=paths.root, capture_output=True, text=True)
    if answer.returncode:
        pytest.skip("not a git checkout")
    return answer.stdout.splitlines()


def constraints():
    lines = (paths.root / "constraints.txt").read_text().splitlines()
    return {
        name.lower().replace("_", "-"): v for name, v in (line.split("==") for line in lines if line and line[0] != "#")
    }


def test_workflows_may_read_only_and_use_actions_by_commit():
    for path in (paths.root / ".github" / "workflows").glob("*.yml"):
        text = path.read_text()
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
        used = re.findall(r"uses: (.*)", text)
        assert used
        for action in used:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", action), action


def test_each_notebook_has_a_job_of_its_own_whose_commands_are_there():
    job = yaml.safe_load((paths.root / ".github" / "workflows" / "notebooks.yml").read_text())["jobs"]["notebook"]
    assert job["strategy"]["matrix"] == {"notebook": [path.stem[:2] for path in reproduce.numbered()]}
    lines = [step["run"].split() for step in job["steps"] if "run" in step]
    modules = {line[2] for line in lines if line[:2] == ["python", "-m"]}
    assert len(lines) == 4 and modules == {"pip", "pytest", "attrobust"}
    extras = re.search(r"\[(.*)\]", " ".join(lines[1]))[1].split(",")
    assert {*extras} <= PROJECT["optional-dependencies"].keys() and "constraints.txt" in lines[1]
    assert " ".join(lines[2]).endswith(" notebooks/${{ matrix.notebook }}_*.ipynb")
    for number in job["strategy"]["matrix"]["notebook"]:
        assert len([*paths.notebooks.glob(f"{number}_*.ipynb")]) == 1
    reproduction = main.commands["reproduce"]
    options = {option for parameter in reproduction.params for option in parameter.opts}
    assert {word for word in lines[3] if word.startswith("--")} <= options


def test_every_library_file_is_tracked():
    files = {str(p.relative_to(paths.root)) for p in (paths.root / "lib" / "attrobust").rglob("*.py")}
    assert files <= set(tracked())


#: Tokens that are no code: remarks, and what ends or indents a line.
BESIDE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(path):
    """How many lines hold code; docstrings, which are statements of a word alone, are none."""
    with tokenize.open(path) as file:
        code = {n for t in tokenize.generate_tokens(file.readline) if t.type not in BESIDE
                for n in range(t.start[0], t.end[0] + 1)}  # fmt: skip
    words = [
        n
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
    ]
    return len(code - {n for word in words for n in range(word.lineno, word.end_lineno + 1)})


def test_lines_of_code_are_neither_blank_nor_remarks_nor_docstrings(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""Word.\n\nMore."""\n\n# why\nx = """\n"""  # text\n\ndef f():\n    "Word."\n    return (\n        1\n    )\n'
    )
    assert lines_of_code(tmp_path / "a.py") == 2 + 1 + 3


def test_the_library_is_small_enough_to_be_read():
    assert sum(map(lines_of_code, (paths.root / "lib").rglob("*.py"))) <= 15_000


def test_nothing_that_is_built_or_downloaded_is_tracked():
    for file in tracked():
        assert not file.startswith(("build/", "data/", ".venv/"))
        assert not file.endswith((".pyc", ".gz", ".xz", ".pkl", ".pt"))


def test_text_files_name_no_machine_path():
    bad = re.compile(r"/home/|/root/|/Users/|/work/|file:///")
    for file in tracked():
        if file.endswith((".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cff", "Makefile", ".csv")):
            text = (paths.root / file).read_text()
            assert file.startswith("tests/test_") or not bad.search(text), file


def test_the_top_level_holds_what_is_announced_and_nothing_else():
    announced = {
        "notebooks", "lib", "figures", "tests", "docs", "environment.yml", "README.md", "pyproject.toml", "Makefile",
        "constraints.txt", "LICENSE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", ".gitignore", ".github", ".ci",
    }  # fmt: skip
    assert {file.split("/")[0] for file in tracked()} == announced


def test_the_environment_file_installs_what_the_makefile_installs():
    environment = yaml.safe_load((paths.root / "environment.yml").read_text())
    (pip_part,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip_part == ["-c constraints.txt", "-e .[notebooks,test,hf,photos,cluster,site]"]
    assert "pip" in environment["dependencies"]
    assert "-c constraints.txt -e '.[notebooks,test,hf,photos,cluster,site]'" in (paths.root / "Makefile").read_text()


def test_every_requirement_is_a_range_with_a_tested_version_in_the_constraints():
    pinned = constraints()
    for requirement in REQUIREMENTS:
        assert requirement.specifier, requirement
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_constraints_name_no_local_build():
    assert all("+" not in version for version in constraints().values())


def test_the_version_is_the_same_everywhere():
    assert PROJECT["version"] == __version__
    assert f"version: {__version__}" in (paths.root / "CITATION.cff").read_text()
    assert f"## {__version__}" in (paths.root / "CHANGELOG.md").read_text()


def test_every_notebook_has_its_figures_folder_and_a_line_in_the_readme():
    readme = (paths.root / "README.md").read_text()
    stems = {path.stem for path in reproduce.numbered()}
    assert {p.name for p in paths.figures.iterdir() if re.match(r"\d\d_", p.name)} == stems
    for stem in stems:
        assert f"notebooks/{stem}.ipynb" in readme


CLAIMS = paths.root / "docs" / "claims.md"
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted(CLAIMS.parent.glob("*.md")))]


def test_the_readme_says_how_long_the_text_of_a_notebook_takes_at_two_hundred_words_a_minute():
    readme = (paths.root / "README.md").read_text()
    for path in reproduce.numbered():
        cells = nbformat.read(path, as_version=4).cells
        words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
        (line,) = (
            line
            for line in readme.splitlines()
            if line.startswith("| [") and f"({path.parent.name}/{path.name})" in line
        )
        assert f"| {math.ceil(words / 200)} min |" in line, path.stem


@pytest.mark.parametrize("page", ["README.md", "docs/claims.md"])
def test_every_effect_with_an_interval_is_that_of_a_committed_cell(page):
    told = re.findall(r"[+-]\d\.\d+ \[[+-]\d\.\d+, [+-]\d\.\d+\]", (paths.root / page).read_text())
    tables = [pd.read_csv(path) for path in paths.figures.glob("*/claims*.csv")]
    cells = pd.concat([table for table in tables if "low" in table]).dropna(subset=["low"])
    known = {
        f"{row.effect:+.{digits}f} [{row.low:+.{digits}f}, {row.high:+.{digits}f}]"
        for row in cells.itertuples()
        for digits in (2, 3)
    }
    assert len(told) > 5
    assert {*told} <= known


@pytest.mark.parametrize("path", reproduce.numbered(), ids=lambda path: path.stem)
def test_every_effect_with_an_interval_in_a_notebooks_text_is_one_that_it_stores_or_prints(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    effect = re.compile(r"([+-]?\d\.\d+) \[([+-]?\d\.\d+), ([+-]?\d\.\d+)\]")
    tables = [pd.read_csv(file) for file in (paths.figures / path.stem).glob("claims*.csv")]
    named = (["effect", "low", "high"], ["corrected", "corrected_low", "corrected_high"])
    known = [row for table in tables for names in named if {*names} <= {*table} for row in table[names].to_numpy()]
    printed = "\n".join(out.get("text", "") for cell in cells for out in cell.get("outputs", ()))
    known += [tuple(map(float, found)) for found in effect.findall(printed)]
    known += [(-change, -high, -low) for change, low, high in known]  # "falls by"
    rounded = {tuple(f"{value:.{digits}f}" for value in triple) for triple in known for digits in (2, 3)}
    for triple in effect.findall(text):
        assert tuple(number.removeprefix("+") for number in triple) in rounded, triple


HEADLINES = [("03_sgd_flattens", "C1"), ("03_sgd_flattens", "C2"), ("04_across_models", "C3")]
HEADLINES += [("06_softmax_entropy", "C6"), ("07_kernel_attention", "C7")]


def of(name, claim):
    table = pd.read_csv(paths.figures / name / "claims.csv")
    return table[table["claim"] == claim]


@pytest.mark.parametrize(("name", "claim"), HEADLINES)
def test_the_page_of_claims_holds_every_headline_cell_as_its_rows_give_it(name, claim):
    table = claims.family(of(name, claim))
    assert len(table.splitlines()) > 2
    assert table in CLAIMS.read_text()


def test_the_page_of_claims_says_in_how_many_cases_the_theory_holds_and_what_is_restored():
    page = CLAIMS.read_text()
    for name, claim in (("06_softmax_entropy", "C5"), ("07_kernel_attention", "C7 theory")):
        assert tally.sentence(of(name, claim)) in page
    stated = pd.read_csv(paths.figures / "02_two_curvatures" / "claims.csv")
    words = [tally.word(row.cases, row.violations) for row in stated.itertuples()]
    assert tally.sentence(stated.assign(word=words)) in page
    judged = of("07_kernel_attention", "C7")
    for name in ("raw_attention", "rollout"):
        (word,) = judged[judged["arm"].str.contains(f", {name}, ") & judged["p_holm"].notna()]["restored"].unique()
        assert f"{name.replace('_', ' ')} {word}" in page


def test_the_page_of_claims_says_how_many_headline_cells_a_second_processor_found_alike():
    shared, agreed, turned = 0, 0, []
    for name in ("03_sgd_flattens", "04_across_models", "06_softmax_entropy", "07_kernel_attention"):
        folder = paths.figures / name
        if (folder / "claims_headline.csv").is_file():
            own, other = (pd.read_csv(folder / f"{stem}.csv") for stem in ("claims", "claims_headline"))
            own = own[own["p_holm"].notna()]
            other = other.merge(own[["claim", "arm", "by"]])
            both = claims.agrees(own.merge(other[["claim", "arm", "by"]]), other)
            shared, agreed = shared + len(both), agreed + int((both["judged"] == "agrees").sum())
            turned += list(both.loc[both["word"] != both["word_other"], ["word", "word_other"]].itertuples(index=False))
    page = CLAIMS.read_text()
    assert shared > 0
    assert f"Of their effects {agreed} of {shared} lie within two draws of each other" in page
    assert all(f"`{one}` to `{other}`" in page for one, other in turned)


def test_the_benchmark_pages_say_what_the_rows_say():
    from benchmarks import report

    folder, page = paths.figures / "benchmarks", (paths.root / "docs" / "curvature.md").read_text()
    rows = {part: pd.read_csv(folder / f"rows_{part}.csv") for part in report.PARTS}
    assert report.page(rows) == (folder / "table.md").read_text()
    assert report.aims(rows["speed"]) in page
    assert report.warm_start(rows["warm"]) in page


def test_the_page_of_costs_says_what_the_rows_say():
    from benchmarks import cost

    assert cost.PAGE.read_text() == cost.page(pd.DataFrame(cost.rows())), "python -m benchmarks.cost writes it"


def test_workers_end_when_the_last_task_does_and_never_before_their_share():
    from benchmarks import cost

    tasks = [5.0, 4.0, 3.0, 3.0, 1.0]
    ends = [cost.makespan(tasks, n) for n in (1, 2, 3, 9)]
    assert ends == [16, 8, 6, 5]


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_of_a_page_leads_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", (paths.root / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert target.startswith("http") or ((paths.root / page).parent / target).exists(), target


def test_imports_go_strictly_downward():
    executable = shutil.which("lint-imports", path=str(reproduce.Path(sys.executable).parent))
    done = subprocess.run([executable], cwd=paths.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_figures_and_claims_load_without_torch():
    program = "import sys, attrobust.figures, attrobust.claims; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def sound(python, folder):
    """That nothing in an environment lacks what it needs or has another version than the tested one."""
    subprocess.run([python, "-m", "pip", "check"], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    versions = dict(line.split("==") for line in listed.stdout.splitlines() if "==" in line)
    for name, version in versions.items():
        expected = constraints().get(name.lower().replace("_", "-"), version)
        assert version.split("+")[0] == expected, name
    program = "import attrobust.notebook.reproduce, captum, jupyterlab, nbval, seaborn; print('ok')"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd=folder)
    assert done.stdout.strip() == "ok", done.stderr


@pytest.mark.slow
def test_the_environment_that_tests_run_in_has_the_tested_versions(tmp_path):
    sound(sys.executable, tmp_path)


@pytest.mark.slow
def test_the_environment_file_builds_a_working_environment_with_the_tested_versions(tmp_path):
    """The pip part of environment.yml in a fresh environment (the conda solve itself is not exercised)."""
    if not any(due([True, False, False])):  # `make test` has built one by the same line; the law above looks at it
        pytest.skip("due on another day")
    tree = tmp_path / "clone"
    for file in tracked():
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.root / file, tree / file)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    what = ["-c", "constraints.txt", "-e", ".[notebooks,test,hf,photos,cluster,site]"]
    subprocess.run([python, "-m", "pip", "install", "-q", *what], cwd=tree, check=True)
    sound(python, tmp_path)


def test_the_installed_package_is_this_one():
    assert metadata.version("attrobust") == __version__
