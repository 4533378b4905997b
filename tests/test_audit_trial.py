"""Laws of advice as a claim: it is tried on pictures that it does not rest on, and the stored trial holds."""

import numpy as np
import pandas as pd
import pytest
import torch
from attrobust import attacks, attributions, audit, experiments, paths
from attrobust.audit import trial
from attrobust.balls import Ball
from attrobust.claims.rule import estimate
from attrobust.experiments import measure

N, EFFORT = 20, attacks.Effort(steps=3, restarts=1)
USER = experiments.Experiment("digits", 0.0134, 20, 2, 0, protocol="standard", n_train=100)


def piece(about, use):
    return audit.Advice(about, "", 0.25, 0.1, 0.4, N // 2, use)


def tried(monkeypatch, *advice):
    """Rows under advice that is given, and what it was shown."""
    shown = []
    monkeypatch.setattr(trial, "advise", lambda *args, **how: shown.append((args, how)) or list(advice))
    return audit.followed(USER, N, EFFORT, maps=["input_x_gradient"]), *shown[0]


@pytest.fixture(scope="module")
def pictures():
    """Those audited, and those on which the advice is tried."""
    x = experiments.shown(USER, 2 * N).x[torch.randperm(2 * N, generator=torch.Generator().manual_seed(0))]
    return x[:N], x[N:]


def test_advice_is_given_of_one_half_of_the_pictures_and_tried_on_the_other(monkeypatch, pictures):
    rows, (table,), how = tried(monkeypatch, piece("map", "input_x_gradient"), piece("training", "weight decay"))
    assert sorted(table["image"].unique()) == sorted(how["retrained"]["image"].dropna().unique()) == [*range(N)]
    assert list(table["map"].unique()) == ["saliency", "input_x_gradient"]
    assert sorted(rows["image"].unique()) == [*range(N, 2 * N)]
    assert list(rows["use"].unique()) == ["input_x_gradient", "weight decay"]
    assert not {part.numpy().tobytes() for part in pictures[0]} & {part.numpy().tobytes() for part in pictures[1]}


def test_before_is_what_stays_of_saliency_under_an_attack_on_those_pictures(monkeypatch, pictures):
    rows, *_ = tried(monkeypatch, piece("map", "input_x_gradient"), piece("training", "weight decay"))
    model = measure.trained_anew(USER).requires_grad_(False)
    x = torch.cat(pictures)
    given, n = model(x).argmax(1).tolist(), len(x)
    beside = [next(j % n for j in range(i + 1, i + n) if given[j % n] != given[i]) for i in range(n)]
    found = audit.attacked(
        model, x, attributions.saliency, others=x[beside], ball=Ball("linf", 16 / 255), k=6, effort=EFFORT,
        generator=torch.Generator().manual_seed(0),
    ).table.pivot(index="image", columns="compared", values="top_k")  # fmt: skip
    left = (found["attack"] - found["other image"]).loc[N:].to_numpy()
    for _, part in rows.groupby("about"):
        assert np.allclose(part["before"], left, equal_nan=True)
        assert not np.allclose(part["after"], left)


def test_an_audit_that_advises_nothing_abstains_and_says_so_in_one_row(monkeypatch):
    rows, *_ = tried(monkeypatch, piece("map", ""), piece("training", ""))
    assert rows["use"].tolist() == [trial.ABSTAINED] * 2
    assert rows["about"].tolist() == ["map", "training"]


def stored():
    """Rows of the trial that came with the repository, by network."""
    folder = paths.figures / "09_audit_your_model" / "tables_full"
    return [pd.read_csv(path) for path in sorted(folder.glob("followed-*.csv"))]


def test_of_five_networks_that_were_tried_advice_helps_on_unseen_pictures_for_at_least_four_and_never_surely_hurts():
    tables, helped = stored(), 0
    assert len(tables) == 5
    for rows in tables:
        gains = [
            estimate((part["after"] - part["before"]).dropna(), "value", "pictures")
            for use, part in rows.groupby("use")
            if use != trial.ABSTAINED
        ]
        assert all(gain["high"] > 0 for gain in gains)
        helped += bool(gains) and all(gain["low"] > 0 for gain in gains)
    assert helped >= 4
