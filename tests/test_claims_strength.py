"""The judge of an attack at its limits, and over networks of unequal numbers of images."""

import numpy as np
import pandas as pd
import pytest
from attrobust import claims
from attrobust.claims.strength import _word
from scipy import stats


@pytest.mark.parametrize(
    ("effect", "low", "high", "said"),
    [
        (-0.02, -0.02, 0.0, "strong enough"),
        (0.0, -0.02, 0.02, "strong enough"),
        (-0.021, -0.021, -0.021, "upper bound"),
        (0.0, -0.021, 0.02, "unclear"),
        (0.0, -0.02, 0.021, "unclear"),
        (-0.02, -0.03, 0.0, "unclear"),
    ],
)
def test_limits_themselves_are_within_them(effect, low, high, said):
    assert _word({"effect": effect, "low": low, "high": high}, 0.02) == said


def test_images_of_unequal_networks_are_pooled_and_lines_stand_in_their_order():
    runs = [("z", 0, "0.5 0.6 nan"), ("z", 1, "0.4"), ("a", 0, "0.5 0.5"), ("z", 2, "nan"), ("z", 9, "1")]
    usual = pd.DataFrame(runs, columns=["map", "seed", "images"])
    heavy = usual[:4].assign(images=["0.45 nan 0.1", "0.1", "0.5 0.3", "0.2"])
    found = claims.strength(usual, heavy, arm=["map"]).set_index("map")
    assert [*found.index] == ["z", "a"]
    gaps = np.array([-0.05, -0.3])
    assert found.loc["z", ["seeds", "images"]].tolist() == [3, 2]
    assert found.loc["z", ["first", "last", "effect", "worst"]].tolist() == pytest.approx([0.45, 0.275, -0.175, -0.3])
    half = stats.t.ppf(0.975, 1) * gaps.std(ddof=1) / 2**0.5
    assert found.loc["z", ["low", "high", "half"]].tolist() == pytest.approx([-0.175 - half, -0.175 + half, half])
    assert found.loc["z", ["by", "start", "end", "word"]].tolist() == ["attack", "usual", "heavy", "upper bound"]
    assert claims.strength(usual, heavy, arm=["map"], limit=0.2).set_index("map")["word"].to_dict() == {
        "z": "unclear", "a": "unclear",
    }  # fmt: skip
    with pytest.raises(ValueError, match="one-to-one"):
        claims.strength(pd.concat([usual, usual[:1]]), heavy, arm=["map"])
    with pytest.raises(ValueError, match="rows have no column 'images'"):
        claims.strength(usual, heavy.drop(columns="images"), arm=["map"])
