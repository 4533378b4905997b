"""Exchanged labels, written out: every pattern of signs in a loop, every draw of the curve one after the other."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from attrobust import claims
from scipy import stats


def rows_of(changes, *, start=0.5, **columns):
    """A cell of two steps whose effects by seed are these."""
    table = [(s, h, start + at * c) for s, c in enumerate(changes) for h, at in ((0.1, 0.0), (0.2, 1.0))]
    table = pd.DataFrame(table, columns=["seed", "step_size", "value"])
    return table.assign(**({"comparable": True, "map": "raw"} | columns))


def permuted(rows, **how):
    return claims.permuted(rows, by="step_size", arm=["map"], **how)


def counted(changes):
    """Shares of the patterns that the t interval, and that with the exact p too, would give a word to."""
    every = [
        [s * c for s, c in zip(signs, changes, strict=True)]
        for signs in itertools.product((1, -1), repeat=len(changes))
    ]
    sizes = [abs(math.fsum(some)) for some in every]
    word = verdict = 0
    for some, size in zip(every, sizes, strict=True):
        half = stats.t.ppf(0.975, len(some) - 1) * np.std(some, ddof=1) / math.sqrt(len(some))
        if size / len(some) > half + 1e-12 * size:
            word += 1
            verdict += sum(other >= size * (1 - 1e-9) for other in sizes) / len(sizes) < 0.05
    return word / len(every), verdict / len(every)


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("size", [1e-7, 1.0, 1e7])
def test_shares_of_exchanged_labels_are_those_of_every_pattern_in_turn_in_any_unit(seeds, size):
    """Tenths, so that many sums are the same but for their last digit."""
    changes = [0.1 * c for c in np.random.default_rng(seeds).integers(5, 12, seeds)]
    table = permuted(rows_of([size * c for c in changes], start=0.0))
    assert table[["share", "verdicts"]].to_numpy().tolist()[0] == pytest.approx(counted(changes))
    assert table[["seeds", "patterns"]].to_numpy().tolist() == [[seeds, 2**seeds]]


@pytest.mark.parametrize("change", [0.1, 0.3, 0.7])
def test_equal_effects_are_alike_in_two_patterns_and_effects_of_zero_in_none(change):
    for seeds in range(2, 11):
        assert permuted(rows_of([change] * seeds, start=0.0))["share"][0] == pytest.approx(counted([change] * seeds)[0])
    assert permuted(rows_of([0.0] * 6))[["share", "verdicts"]].to_numpy().tolist() == [[0, 0]]


def test_one_seed_says_nothing_and_cells_stand_in_their_order():
    rows = [rows_of([0.1, 0.2, 0.2], map="z"), rows_of([0.1], map="a"), rows_of([0.1], map="m")[:1]]
    table = permuted(pd.concat(rows))
    assert table["map"].tolist() == ["z", "a", "m"]
    assert table["seeds"].tolist() == [3, 1, 0]
    assert table["patterns"].tolist() == [8, 2, 1]
    assert table[["share", "verdicts"]].isna().all(axis=1).tolist() == [False, True, True]


def test_ends_that_are_named_and_ratios_are_exchanged_too():
    changes = [0.4, 0.5, 0.45, 0.6, 0.4, 0.5, 0.7]
    rows = rows_of(changes, start=1.0)
    beyond = rows[rows.step_size == 0.2].assign(step_size=0.3, value=lambda table: table["value"] - 1.2)
    found = permuted(pd.concat([rows, beyond]), ends=(0.1, 0.2))
    assert found["share"][0] == pytest.approx(counted(changes)[0])
    assert permuted(pd.concat([rows, beyond]))["share"][0] != pytest.approx(counted(changes)[0])
    spread = [0.2, 3.0, 0.4, 8.0, 0.3, 0.9, 0.25]
    assert counted(spread) != counted(np.log1p(spread).tolist())
    assert permuted(rows_of(spread, start=1.0), log=True)["share"][0] == pytest.approx(counted(np.log1p(spread))[0])


def as_table(cells):
    """Cells as their table tells them: effects, and the seeds they are of, as texts."""
    per_seed = [" ".join(map(repr, cell.values())) if cell else None for cell in cells]
    return pd.DataFrame({"per_seed": per_seed, "of_seeds": [" ".join(map(str, cell)) or None for cell in cells]})


def quantile(values, share):
    """That of a line through the sorted values."""
    at = share * (len(values) - 1)
    below = sorted(values)[math.floor(at)]
    return below + (at - math.floor(at)) * (sorted(values)[math.ceil(at)] - below)


def test_the_curve_is_that_of_every_draw_written_out():
    """Cells of five and of six seeds, one of four and one of none, which do not enter."""
    effects = np.random.default_rng(3).normal([[0.1], [0.3], [-0.3]], 0.2, (3, 7)).round(3).tolist()
    seeds = ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [0, 2, 3, 5, 6])
    cells = [dict(zip(own, row, strict=False)) for own, row in zip(seeds, effects, strict=True)]
    few = dict.fromkeys(range(4), 5.0)
    found = claims.chance_curve(as_table([*cells, few, {}]), generator=np.random.default_rng(0), draws=150)
    signs, drawn = np.random.default_rng(0).choice([-1.0, 1.0], size=(7, 150)), []
    order = [*dict.fromkeys(seed for own in seeds for seed in own)]  # one row of signs a seed, as they come
    for draw in range(150):
        moved = [[signs[order.index(s), draw] * c for s, c in cell.items()] for cell in cells]
        drawn.append(sorted(math.fsum(some) / len(some) for some in moved))
    seen = sorted(math.fsum(cell.values()) / len(cell) for cell in cells)
    assert found["place"].tolist() == [0, 1, 2]
    sides = set()
    assert found["effect"].tolist() == pytest.approx(seen)
    for place, row in enumerate(found.itertuples()):
        there = [some[place] for some in drawn]
        assert (row.low, row.high) == pytest.approx((quantile(there, 0.025), quantile(there, 0.975)))
        above, below = (sum(side * (one - seen[place]) > -1e-9 for one in there) for side in (1, -1))
        sides.add(above < below)
        assert row.p == pytest.approx(min(1.0, 2 * (1 + min(above, below)) / 151))
    assert sides == {True, False}


def test_of_cells_without_seeds_the_curve_has_its_columns_and_a_text_that_is_no_number_is_told():
    none = claims.chance_curve(as_table([{}, {}]), generator=np.random.default_rng(0))
    assert (len(none), [*none]) == (0, ["place", "effect", "low", "high", "p"])
    table = as_table([dict.fromkeys(range(5), 0.1)])
    for broken in ({"per_seed": "0.1 0.1 0.1 0.1 nan"}, {"per_seed": "0.1 0.1 0.1 0.1 x"}, {"per_seed": None}):
        with pytest.raises(ValueError, match="they must be finite numbers, as many seeds"):
            claims.chance_curve(table.assign(**broken), generator=np.random.default_rng(0))
