"""Words for attention maps: whose twin is whose, in which order they are told, and what is asked of `cells`."""

import pandas as pd
import pytest
from attrobust import claims
from attrobust.claims.attention import _reached, _restored

ARM = ["dataset", "attention", "map"]


def runs(gains, *, level=0.4):
    """Runs of ten seeds whose value rises by what is given for each data set, kernel and map."""
    rows = [
        (*names, seed, step, level + gain * at * (1 + 0.02 * seed))
        for names, gain in gains.items()
        for seed in range(10)
        for step, at in ((0.1, 0.0), (0.2, 1.0), (0.4, 1.5))
    ]
    table = pd.DataFrame(rows, columns=[*ARM, "seed", "step_size", "value"])
    return table.assign(comparable=True, between=0.1)


def restored(rows, **how):
    how = {"twins": {"bell": "divided", "flat": "softmax"}, "maps": ["raw", "rollout"]} | how
    return claims.restoration(rows, by="step_size", arm=ARM, **how)


KERNELS = ("softmax", "bell", "divided", "flat")


def grid(*data, **gains):
    return runs({(d, k, m): gains.get(k, 0.0) for d in data for k in KERNELS for m in ("rollout", "raw")})


def test_every_kernel_is_compared_with_the_reference_and_its_twin_and_data_sets_stay_in_their_order():
    found = restored(grid("z", "a", bell=0.2, flat=0.1))
    assert found[found["says"] == "gains"]["dataset"].tolist() == ["z", "z", "a", "a"] * 2
    assert found["attention"].tolist() == ["bell"] * 12 + ["flat"] * 8
    for says, kernels in (("gains", "bell flat"), ("softmax", "bell flat"), ("divided", "bell")):
        told = found[found["says"].str.endswith(says)]
        assert told[ARM].drop_duplicates().shape == (len(told), 3)
        assert [*dict.fromkeys(told["attention"])] == kernels.split()
    assert len(found) == 2 * 2 * 5
    assert set(found["restored"]) == {"restored"}
    effects = found.groupby(["attention", "says"])["effect"].unique().explode().to_dict()
    factor = 1.5 * (1 + 0.02 * 4.5)  # to the last step, over seeds
    assert {kernel for kernel, _ in effects} == {"bell", "flat"}
    for (kernel, _), effect in effects.items():
        assert effect == pytest.approx({"bell": 0.2, "flat": 0.1}[kernel] * factor)
    assert found["p_holm"].to_numpy() == pytest.approx(2 * found["p"].to_numpy())


RAW = {"maps": ["raw"]}


def test_ends_margin_and_room_are_those_of_its_cells():
    rows = grid("z", bell=0.2, flat=0.1)
    rows = rows[(rows["map"] == "raw") & (rows["seed"] < 9)]
    near = restored(rows, **RAW, ends=(0.1, 0.2))
    assert set(near["end"]) == {0.2}
    assert near["effect"].max() == pytest.approx(0.2 * 1.08)
    assert set(restored(rows, **RAW)["end"]) == {0.4}
    assert set(restored(rows, **RAW, margin=0.07)["margin"]) == {0.07}
    full = rows.assign(value=rows["value"] + 0.52)
    assert set(restored(full, **RAW)["restored"]) == {"no room"}
    assert set(restored(full, **RAW, room=None)["restored"]) == {"leans restored"}
    named = rows.rename(columns={"attention": "kernel"})
    how = {"twins": {"bell": "softmax"}, "maps": ["raw"], "reference": "divided", "kernel": "kernel"}
    other = claims.restoration(named, by="step_size", arm=["dataset", "kernel", "map"], **how)
    assert other["says"].unique().tolist() == ["gains", "gains more than divided", "gains more than softmax"]
    for lacking in (["dataset", "map"], ["dataset", "attention"]):
        with pytest.raises(ValueError, match="rows need the control 'between', and arm 'attention' and 'map'"):
            claims.restoration(rows, by="step_size", arm=lacking, twins={"bell": "divided"}, maps=["raw"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"up"}, "restored"), ({"up", "leans up"}, "leans restored"), ({"leans up"}, "leans restored"),
        ({"up", "unclear"}, "unclear"), ({"up", "down"}, "not restored"), ({"no change"}, "not restored"),
        ({"no change", "unclear"}, "not restored"), ({"up", "no room"}, "no room"), ({"down", "no room"}, "no room"),
        ({"leans down"}, "unclear"), ({"leans up", "down"}, "not restored"),
    ],
)  # fmt: skip
def test_a_map_is_restored_by_the_worst_of_its_words(words, said):
    assert _restored(words) == said


def reached_by_hand(saliency, difference, attention):
    three, gains = [saliency, difference, attention], ["up", "leans up"]
    if "no pair" in three or "too few seeds" in three:
        return "no pair" if "no pair" in three else "too few seeds"
    if saliency in ["down", "leans down", "no change"]:
        return "no gain"
    if saliency in gains and attention in gains:
        return {"up": "reached", "leans up": "leans reached"}[attention]
    if "no room" in three:
        return "no room"
    if saliency in gains and difference in gains and attention != "unclear (counted)":
        return "not reached" if [saliency, difference] == ["up", "up"] else "leans not reached"
    return "unclear"


def test_a_word_of_reach_is_the_first_that_fits_any_three():
    words = ["up", "leans up", "down", "leans down", "no change", "unclear", "unclear (control)", "unclear (counted)",
             "no room", "no pair", "too few seeds"]  # fmt: skip
    for three in ((a, b, c) for a in words for b in words for c in words):
        assert _reached(*three) == reached_by_hand(*three), three
