"""A run that diverges, or ends where no image has a gradient, is a row with its reason; it stops nothing."""

import dataclasses
import math
import sys

import cases
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from attrobust import attacks, claims, experiments, figures, paths, training
from attrobust.experiments import Experiment, Measurement, measure
from attrobust.experiments.store import Store
from attrobust.rows import ATTACKED
from by_day import due
from torch import nn
from trees import copy_tree, run

SMALL = Measurement(
    radii=(8,), effort=attacks.Effort(steps=2, restarts=1), n_attacked=4, trace_products=6, maps=("saliency", "rollout")
)
BASE = {"dataset": "digits", "side": 4, "n_train": 48, "batch_size": 16, "epochs": 4}
VIT = {"architecture": "vit", "patch": 2, "dim": 4, "depth": 1}
KINDS = [
    {"architecture": "mlp", "activation": "relu"},
    {"architecture": "mlp", "activation": "gelu"},
    {"architecture": "convnet", "activation": "relu", "side": 8},
    {"architecture": "convnet", "activation": "gelu", "side": 8},
    VIT,
    VIT | {"attention": "gaussian"},
]
#: From a calm step to one at which nothing is learnt, whatever the processor.
STEPS = [0.03, 0.3, 3.0]
TRAINING = {"steps", "halvings", "train_loss", "train_accuracy", "late_change", "test_accuracy", "comparable", "reason"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "figures", tmp_path / "figures")
    monkeypatch.setattr(paths, "build", tmp_path / "build")
    return tmp_path


# ------------------------------------------------------------------ what has no gradient


@cases.isolated
def sigmoid_of(bias, weight=1.0):
    """One logit that is w x + bias, one that is zero, both through a ReLU."""
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[weight] * 4, [0.0] * 4]))
        layer.bias.copy_(torch.tensor([bias, 0.0]))
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU())


@pytest.mark.parametrize(
    ("bias", "weight", "expected"),
    [
        (1.0, 1.0, False),
        (1.0, 1e-3, False),
        (0.0, 1e-30, False),  # tiny, but it is all there is
        (-10.0, 1.0, True),  # dead
        (1.0, 0.0, True),
        (1e3, 1e-6, True),  # lost in the rounding of the logit
        (math.nan, 1.0, True),
        (1.0, math.inf, True),
    ],
)
def test_an_image_is_blind_where_its_logit_cannot_be_moved(bias, weight, expected):
    x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]).view(2, 1, 2, 2)
    assert measure.blind(sigmoid_of(bias, weight), x).tolist() == [expected] * 2


def test_blindness_is_told_image_by_image():
    x = torch.cat([torch.full((1, 1, 2, 2), v) for v in (0.1, 0.2, 0.3, 0.4)])
    assert measure.blind(sigmoid_of(-1.0), x).tolist() == [True, True, False, False]


# ------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("share", "reason"),
    [
        (0.0, ""),
        (0.1, ""),
        (0.11, "collapsed: 11% of the images have no gradient"),
        (1.0, "collapsed: no image has a gradient"),
    ],
)
def test_a_collapsed_run_leaves_its_arm_whatever_its_loss(share, reason):
    fit = training.Fit(steps=10, train_loss=0.01, train_accuracy=1.0, late_change=0.05, reached=True)
    for protocol in training.recipes.RECIPES:
        experiment = Experiment(**BASE, step_size=0.1, seed=0, protocol=protocol)
        there = dataclasses.replace(fit, train_loss=experiment.recipe.stop_loss or 0.01)
        assert measure.incomparable(experiment, there, share) == reason


def test_a_dead_network_is_neither_measured_nor_attacked(monkeypatch):
    experiment = Experiment(**BASE, step_size=0.1, seed=0, activation="relu")
    model = experiments.build(experiment)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.zero_()
                layer.bias.fill_(-1.0)
    for name in ("_size", "_flatness", "_input_side", "_attacked"):
        monkeypatch.setattr(measure, name, lambda *_: pytest.fail("a dead network was measured"))
    row, attacked = measure.measure(
        experiment, SMALL, model.eval(), training.Fit(steps=3, train_loss=2.3, reached=False)
    )
    assert set(row) == TRAINING
    assert attacked.empty
    assert (row["comparable"], row["reason"]) == (False, "collapsed: no image has a gradient")


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_a_sweep_of_steps_that_are_too_large_ends_with_a_row_and_a_reason_for_every_run(folder, kind):
    grid = experiments.grid(**BASE | kind, step_size=STEPS, seed=[0, 1], protocol=["matched", "standard"])
    store = Store("x", out=folder / "out")
    rows = experiments.run(grid, SMALL, store=store, jobs=1)
    store.gather(rows)
    runs, told = rows.runs, measure.names(grid[0], SMALL)
    assert [(r.step_size, r.seed, r.protocol) for r in runs.itertuples()] == [
        (e.step_size, e.seed, e.protocol) for e in grid
    ]
    assert (runs["reason"] == "").tolist() == runs["comparable"].tolist()
    assert not runs[runs["step_size"] == STEPS[-1]]["comparable"].any()
    assert set(runs.columns) == {"key", *measure.columns(grid[0]), *TRAINING, *told}
    without = runs["reason"].str.startswith(("diverged", "collapsed"))
    assert runs.loc[without, told].isna().all(axis=None)
    assert set(rows.attacked["key"]) == set(runs.loc[~without, "key"])
    calm = runs[runs["step_size"] == STEPS[0]]
    assert not calm["reason"].str.startswith(("diverged", "collapsed")).any()
    assert calm[["sharpness", "logit_gradient", told[-1]]].notna().all(axis=None)
    assert set(rows.attacked["map"]) == ({*SMALL.maps} if grid[0].architecture == "vit" else {"saliency"})
    again = experiments.run(grid, SMALL, store=Store("x", out=folder / "out"), jobs=1)
    for name in ("runs", "attacked"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(rows, name))
    judge_and_draw(rows, told)


def test_a_sweep_without_a_single_run_left_still_has_every_column(folder):
    grid = experiments.grid(**BASE, step_size=[1e9, 1e10], seed=[0, 1], activation="relu", protocol="standard")
    rows = experiments.run(grid, SMALL, store=Store("x", out=folder / "out"), jobs=1)
    assert rows.runs["reason"].str.startswith(("diverged", "collapsed")).all()
    told = measure.names(grid[0], SMALL)
    assert set(told) <= set(rows.runs.columns)
    assert rows.attacked.empty
    assert list(rows.attacked.columns) == [*ATTACKED]
    judge_and_draw(rows, told)


# ------------------------------------------------------------------ what is made of the rows


def judge_and_draw(rows, told):
    """Everything that notebooks do with the rows of networks."""
    runs, left = rows.runs, claims.comparable(rows.runs)
    long = runs.melt(["protocol", "step_size", "seed", "comparable"], told, var_name="measure")
    of_networks = claims.cells(long, by="step_size", arm=["protocol", "measure"], family=[], log=True)
    counts = of_networks[of_networks["measure"] == told[0]].set_index("protocol")["left_out"]
    assert counts.to_dict() == (~runs["comparable"]).groupby(runs["protocol"]).sum().to_dict()
    judged = rows.judged()
    arm = ["protocol", "map", "readout", "radius"]
    of_maps = claims.cells(judged, by="step_size", arm=arm, family=[])
    both = {protocol for protocol, part in left.groupby("protocol") if part["step_size"].nunique() > 1}
    for table in (of_networks, of_maps):
        assert set(table.loc[~table["protocol"].isin(both), "word"]) <= {"no pair"}
        assert set(table["word"]) <= {"no pair", "too few seeds"}
    told_of = claims.page(claims.record({"C1": of_networks, "C2": of_maps}))
    assert told_of.count("no verdict") == len(of_networks) + len(of_maps)
    assert claims.permuted(judged, by="step_size", arm=arm)["seeds"].lt(3).all()
    assert claims.left_out(runs)["runs"].sum() == (~runs["comparable"]).sum()
    for kept in (left, left[:1], left[:0]):
        drawn = kept.assign(panel=kept["dataset"].map(figures.label))
        figures.trends(drawn, x="step_size", metrics=dict.fromkeys(told[:2], ""), hue="protocol", column="panel")
        figures.scatter(drawn, x=told[0], y=told[-1], hue="protocol", shade="step_size", panels="panel")
    wide = claims.comparable(rows.wide(attack="worst", map="saliency", readout="logit", radius=8)).assign(panel="")
    drawn = {name: "" for name in ("spearman", "cosine") if name in wide}
    assert set(drawn) == ({"spearman", "cosine"} if len(rows.attacked) else set())
    if drawn:
        figures.trends(wide, x="step_size", metrics=drawn, hue="protocol", column="panel")
    plt.close("all")


def test_nothing_to_draw_is_said_in_the_figure(tmp_path):
    table = pd.DataFrame(columns=["x", "y", "panel", "name"])
    figure = figures.clouds(table, table, note="n = 0")
    assert figure.texts[0].get_text() == "no run is left to draw"
    figures.save(figure, tmp_path, "a_nothing", data=table, alt="No run is left.")
    assert (tmp_path / "figures" / "a_nothing.csv").read_text() == "x,y,panel,name\n"
    assert figures.dots(table, x="x", y="y").texts[0].get_text() == "no run is left to draw"
    assert figures.pictures(figures.pixels({})).texts[0].get_text() == "no run is left to draw"


def test_no_tasks_give_an_empty_table(folder):
    assert experiments.tables(Store("x", out=folder / "out"), "t", lambda: None, []).empty


@pytest.mark.slow
def test_a_notebook_ends_whatever_the_step_sizes(tmp_path):
    """A notebook a day; all with `EVERY=1`."""
    for only in due(["03", "06", "07"]):
        command = [sys.executable, "-m", "attrobust", "reproduce", "--profile", "smoke", "--only", only]
        done = run([*command, "-p", "step_sizes", "[0.03, 0.3, 1]"], copy_tree(tmp_path / only), check=True)
        assert "left out 0" in done.stdout
