"""The judge of iterates, beside one that keeps its books by hand."""

import math
import re

import cases
import numpy as np
import pytest
import torch
from attrobust import attacks
from attrobust.attacks import MEASURES
from attrobust.attacks.judge import Judge
from attrobust.balls import Ball
from scipy import stats
from torch import nn

ALIKE = ("top_k", "top_k_share", "spearman", "cosine", "pearson")


def test_no_rounding_takes_a_similarity_beyond_one_or_minus_one():
    maps = torch.randn(4000, 1, 5, 5, generator=cases.generator())
    turned = maps.abs().amax((2, 3), keepdim=True) - maps.abs()
    for there, ends in ((maps, {1}), (3.7 * maps, {1}), (-maps, {-1, 1}), (turned, {-1})):
        found = attacks.measure(maps, there, k=2)
        for name in ("spearman", "cosine", "pearson"):
            assert -1 <= found[name].min() <= found[name].max() <= 1
        told = {round(v, 5) for name in ("spearman", "pearson") for v in found[name].tolist()}
        told |= {round(v, 5) for v in found["cosine"].tolist()} if there is not turned else set()
        assert told == ends


class ByHand:
    """What a judge keeps, one iterate after the other: of each image and measure the first of the worst."""

    def __init__(self, clean, x, wanted):
        self.clean, self.wanted, self.parts = clean, wanted, {}
        self.kept = {(name, i): (None, x[i], "") for name in MEASURES for i in range(len(x))}

    def see(self, batch):
        for name, sign in MEASURES.items():
            for part, at, image, map_, kept in batch:
                one = slice(image, image + 1)
                found = attacks.measure(self.clean.maps[one], map_[None], k=2, wanted=self.wanted[one])
                value = sign * float(found[name])
                if kept and not math.isnan(value):
                    held = self.kept[name, image][0]
                    if held is None or value > held + 1e-9:
                        self.kept[name, image] = value, at, part
                    self.parts.setdefault((part, name, image), []).append(value)


def test_a_judge_keeps_of_every_image_part_and_measure_the_first_of_the_worst_that_count():
    draw, n = cases.generator(), 5
    x, clean_maps = (torch.rand(n, c, 3, 3, generator=draw, dtype=torch.float64) for c in (1, 2))
    clean_maps[4] = 0
    wanted = torch.rand(n, 1, 3, 3, generator=draw, dtype=torch.float64)
    clean = attacks.Clean(clean_maps, k=2, wanted=wanted)
    judge, by_hand = Judge(x, clean), ByHand(clean, x, wanted)
    opened = {("one", "two"): torch.tensor([0, 1, 2, 4]), ("three",): torch.tensor([1, 0, 2])}
    maps_before = None
    for parts, images in opened.items():
        for part in parts:
            assert torch.equal(judge.open(part, images), images)
        for turn in range(4):
            rows = images.repeat(3)[: 7 + turn]
            of = torch.arange(len(parts)).repeat_interleave(len(rows))
            rows = rows.repeat(len(parts))
            at = torch.rand(len(rows), 1, 3, 3, generator=draw, dtype=torch.float64)
            maps = torch.randn(len(rows), 2, 3, 3, generator=draw, dtype=torch.float64)
            if turn % 2 and maps_before is not None:
                maps[: len(maps_before)] = maps_before[: len(maps)] * (1 + 1e-15)  # as bad again: the first one stays
            maps[2, 0, 0, 0] = torch.nan
            maps[3] = 0
            maps_before = maps
            kept = (torch.rand(len(rows), generator=draw) < 0.7) & (rows != 2)
            judge.see(parts, at, rows, maps, kept, of)
            usable = kept & maps.isfinite().flatten(1).all(1)
            by_hand.see(
                [(parts[p], a, int(r), m, bool(u)) for p, a, r, m, u in zip(of, at, rows, maps, usable, strict=True)]
            )
    table, winners = judge.table(), judge.winners()
    assert table.index.tolist() == list(range(4 * n))
    table = table.set_index(["part", "image"])
    for name, sign in MEASURES.items():
        for image in range(n):
            value, at, part = by_hand.kept[name, image]
            assert torch.equal(judge.x[name][image], at)
            assert winners.loc[image, name] == part
            assert table.loc[("worst", image), name] == pytest.approx(
                math.nan if value is None else sign * value, nan_ok=True, abs=1e-9
            )
            for own in ("one", "two", "three"):
                there = by_hand.parts.get((own, name, image))
                expected = math.nan if there is None else sign * max(there)
                assert table.loc[(own, image), name] == pytest.approx(expected, nan_ok=True, abs=1e-9)
    assert table.loc["worst", "tried"].tolist() == [1, 1, 1, 0, 1]
    assert table.loc["worst", "counted"].tolist() == judge.counted.tolist() == [1, 1, 0, 0, 1]
    assert table.loc["three", "tried"].tolist() == [1, 1, 1, 0, 0]
    assert table.loc["three", "counted"].tolist() == [1, 1, 0, 0, 0]
    assert table.loc["worst", "zero"].tolist() == [0, 0, 0, 0, 1]
    assert not judge.broken.any()


@pytest.mark.parametrize(("name", "value"), [("cosine", 0.5), ("displacement", 1.5)])
def test_an_image_is_broken_just_where_a_counted_iterate_reaches_the_goal(name, value):
    draw = cases.generator()
    maps, there = (torch.randn(40, 1, 2, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    x, rows = torch.rand(40, 1, 2, 2, generator=draw, dtype=torch.float64), torch.arange(40)
    reached = attacks.measure(maps, there, k=1)[name]
    judge = Judge(x, attacks.Clean(maps, k=1), goal=(name, value))
    judge.open("part", rows)
    kept = rows % 3 > 0
    judge.see(["part"], x, rows, there, kept, torch.zeros_like(rows))
    assert torch.equal(judge.broken, kept & (reached <= value if name == "cosine" else reached >= value))
    assert 0 < judge.broken.sum() < kept.sum()
    judge = Judge(x, attacks.Clean(maps, k=1), goal=(name, float(reached[1])))
    judge.open("part", rows[:3])
    judge.see(["part"], x[:3], rows[:3], there[:3], rows[:3] > 0, torch.zeros(3).long())
    assert judge.broken[1]
    assert judge.open("next", rows[:2]).tolist() == [0]


@pytest.mark.parametrize(
    ("clean", "there"),
    [((2, 1, 3, 3), (2, 1, 3, 4)), ((2, 1, 4, 4), (1, 1, 4, 4)), ((0, 1, 3, 3), (0, 1, 3, 3))],
)
def test_maps_of_another_shape_and_no_maps_are_not_measured(clean, there, unchecked):
    sentence = f"there has shape {there}; it must be that of clean, {clean}"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        attacks.measure(torch.ones(clean), torch.ones(there), k=2)


def test_every_measure_is_its_definition():
    draw = cases.generator()
    clean, there = (torch.randn(12, 2, 4, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    wanted = torch.rand(12, 1, 4, 5, generator=draw, dtype=torch.float64)
    there[0], there[1], there[2], clean[3] = clean[0], 2 * clean[1], 0, 0
    found = attacks.measure(clean, there, k=3, wanted=wanted)
    assert list(found) == list(MEASURES)
    rows, columns = np.indices((4, 5))
    for i in range(12):
        a, b = clean[i].numpy(), there[i].numpy()
        p, q, goal = (np.abs(m).sum(0) for m in (a, b, wanted[i].numpy()))
        leaders = np.argsort(-p.ravel())[:3]
        if i == 2:
            alike, at_q, q_share = dict.fromkeys(ALIKE, 0.0), None, 0 * q
        elif i == 3:
            assert all(math.isnan(values[i]) for values in found.values())
            continue
        else:
            alike = {
                "top_k": len({*leaders} & {*np.argsort(-q.ravel())[:3]}) / 3,
                "top_k_share": (q.ravel()[leaders].sum() / q.sum()) / (p.ravel()[leaders].sum() / p.sum()),
                "spearman": stats.spearmanr(p.ravel(), q.ravel()).statistic,
                "cosine": (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b),
                "pearson": stats.pearsonr(p.ravel(), q.ravel()).statistic,
            }
            at_q = np.array([(rows * q).sum(), (columns * q).sum()]) / q.sum()
            q_share = q / q.sum()
        at_p, p_share, goal = (
            np.array([(rows * p).sum(), (columns * p).sum()]) / p.sum(),
            p / p.sum(),
            goal / goal.sum(),
        )
        moved = {
            "displacement": np.linalg.norm(b - a),
            "relative_displacement": np.linalg.norm(b - a) / np.linalg.norm(a),
            "match": 1 - ((q_share - goal) ** 2).sum() / ((p_share - goal) ** 2).sum(),
        }
        if at_q is not None:
            moved["center_shift"] = np.linalg.norm(at_q - at_p)
        for name, value in (alike | moved).items():
            assert float(found[name][i]) == pytest.approx(value, abs=1e-9), (i, name)


def test_a_map_that_is_not_finite_has_no_measure_and_the_others_have_theirs():
    draw = cases.generator()
    clean, there = (torch.rand(4, 1, 3, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    expected = attacks.measure(clean, there, k=3)
    clean[1, 0, 1, 1], there[2, 0, 0, 0] = torch.nan, torch.inf
    for name, values in attacks.measure(clean, there, k=3).items():
        assert values[[1, 2]].isnan().all()
        assert torch.equal(values[[0, 3]], expected[name][[0, 3]])


def test_an_iterate_whose_logits_are_not_numbers_has_lost_its_prediction():
    class Broken(nn.Module):
        """The first class wins by far, but no logit is a number away from the middle."""

        def forward(self, x):
            h = x.flatten(1)
            z = torch.stack([h[:, 0] + 1, h[:, 1], h[:, 2]], 1)
            return torch.where(((h[:, 0] - 0.5).abs() > 0.05)[:, None], z * torch.nan, z)

    x, effort = torch.full((1, 1, 2, 2), 0.5), attacks.Effort(steps=0, draws=5, walk=0)
    how = {"k": 1, "effort": effort, "generator": cases.generator()}
    found = attacks.auto(lambda model, x, target: x.square(), Broken(), x, Ball("linf", 0.1), **how)
    assert found.fallback == 1
    assert found.table["displacement"].isna().all()
