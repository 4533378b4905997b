"""The command that audits a classifier of the reader's own, from a folder that is not the checkout."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from trees import run

pytestmark = pytest.mark.slow

MINE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        h = nn.functional.relu6(self.first(x), inplace=True)
        h = self.second(h)
        h = h * (h > 0)
        return {"logits": self.last(h.mean((2, 3))), "features": h}

def build():
    return Net()
"""
QUICK = [
    "-p",
    "attack_steps",
    "2",
    "-p",
    "curve_radii",
    "[4]",
    "-p",
    "n_curve",
    "4",
    "-p",
    "maps",
    "[saliency, grad_cam]",
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    draw = np.random.default_rng(0)
    for i in range(9):
        place = tmp_path / "pictures" / f"class {i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (14, 18, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return tmp_path


def audit(folder, *options):
    return run([sys.executable, "-m", "attrobust", "audit", *options, *QUICK], folder)


def test_a_foreign_network_and_a_folder_of_pictures_end_in_a_report_beside_them_and_nowhere_else(folder):
    mine = ["--model", "mine.py:build", "--pictures", "pictures", "-p", "size", "12", "--out", "report"]
    before = {path for path in folder.rglob("*") if path.is_file()}
    done = audit(folder, *mine)
    assert done.returncode == 0, done.stderr
    assert re.search(r"saliency: 9 of 9 pictures, about \S+ remain", done.stdout)
    out, report = folder / "report", json.loads((folder / "report" / "report.json").read_text())
    new = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts} - before
    assert all(path.is_relative_to(out) for path in new)
    assert {"report.html", "pictures.csv", "09_audit_your_model.ipynb"} <= {path.name for path in new}
    assert report["pictures"] == 9
    assert {line["map"] for line in report["means"]} == {"saliency", "grad_cam"}
    assert all({"says", "value", "low", "high", "pictures"} <= set(piece) for piece in report["advice"])
    rows = pd.read_csv(out / "pictures.csv")
    assert len(rows) == 2 * 3 * 9
    worst = sorted((out / "worst").glob("1_saliency_1_*"))
    assert [path.suffix for path in worst] == [".npz", ".png", ".png"]
    with np.load(worst[0], allow_pickle=False) as file:
        assert np.abs(file["at"] - file["x"]).max() <= 8 / 255 + 1e-6
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") >= 3
    assert "audit.opened" not in page
    assert "../figures" not in page
    failed = audit(folder, *mine, "-p", "n_pictures", "2", "-p", "mean", "[0.5]", "-p", "std", "[1.0]")
    assert (failed.returncode, "no report: the audit did not end" in failed.stdout) == (1, True)
    left = {path.relative_to(out).parts[0] for path in out.rglob("*") if path.is_file()}
    assert left <= {"09_audit_your_model.ipynb", "tables", "progress.log"}


def test_copies_are_trained_on_pictures_of_ones_own_and_the_report_tells_what_became_of_them(folder):
    mine = ["--model", "mine.py:build", "--pictures", "pictures", "--train", "pictures", "-p", "size", "12"]
    done = audit(folder, *mine, "--out", "report", "-p", "batch_size", "2", "-p", "trainings", '["weight decay"]')
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report" / "report.json").read_text())
    assert [line["way"] for line in report["training"]] == ["as it is", "plain SGD", "weight decay"]
    assert report["advice"][-1]["about"] == "training"


def test_a_killed_audit_keeps_what_is_finished_and_ends_as_one_that_was_not(folder):
    mine = ["--model", "mine.py:build", "--pictures", "pictures", "-p", "size", "12", "-p", "batch", "1", *QUICK]
    command = [sys.executable, "-m", "attrobust", "audit", *mine, "--out"]
    run([*command, "whole"], folder, check=True)
    running = subprocess.Popen([*command, "cut"], cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL)
    tables, until = folder / "cut" / "tables", time.monotonic() + 120
    while len(list(tables.glob("attacked-*.csv"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    saved = {path: path.stat().st_mtime_ns for path in tables.glob("attacked-*.csv")}
    assert 2 <= len(saved) < len(list((folder / "whole" / "tables").glob("attacked-*.csv")))
    run([*command, "cut"], folder, check=True)
    assert {path: path.stat().st_mtime_ns for path in saved} == saved
    assert (folder / "cut" / "pictures.csv").read_bytes() == (folder / "whole" / "pictures.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "mine.py:built", "--pictures", "pictures"], "built"),
        (["--model", "mine.py:build"], "pictures is ''"),
        (["-p", "steps", "3"], "parameter 'steps' is unknown to an audit"),
        (["-p", "radius", "300"], "radius is 300"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_sentence(folder, options, said):
    done = audit(folder, *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_network_of_imagenet_and_photographs_are_audited_and_each_worst_picture_keeps_its_class(tmp_path):
    pytest.importorskip("skimage", reason="photographs need pip install attrobust[photos]")
    short = ["-p", "n_pictures", "2", "-p", "attack_steps", "2", "-p", "maps", "[grad_cam]"]
    done = run([sys.executable, "-m", "attrobust", "audit", "--example", "photo", "--out", "seen", *short], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "seen" / "report.json").read_text())
    assert report["parameters"]["radius"] == 4
    assert report["accuracy"] == 1
    table = pd.read_csv(tmp_path / "seen" / "pictures.csv")
    assert (table[table.compared == "attack"].kept == 1).all()
    assert len(list((tmp_path / "seen" / "worst").glob("*_attacked.png"))) == 2
