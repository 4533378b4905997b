"""Rows of a grid: nothing is lost, doubled or mixed when networks meet their attacked similarities."""

import dataclasses
import itertools
import math
import subprocess
import sys

import pandas as pd
import pytest
from attrobust.rows import ATTACKED, IDENTITY, Rows, join


def rows(
    keys="ab", maps=("saliency", "rollout"), attacks=("noise", "worst"), metrics=("top_k", "cosine"), radii=(4, 8)
):
    """Every combination once, each with a value of its own; the last network was never attacked."""
    runs = pd.DataFrame({"key": [*keys, "gone"], "step_size": [0.1 * i for i in range(len(keys) + 1)]})
    every = itertools.product(keys, maps, attacks, metrics, radii)
    lines = [
        {"key": k, "readout": "logit", "map": m, "attack": a, "metric": e, "radius": r, "value": i / 7, "n": 3}
        for i, (k, m, a, e, r) in enumerate(every)
    ]
    return Rows(runs, pd.DataFrame(lines, columns=[*ATTACKED]))


def test_joined_rows_are_the_attacked_ones_beside_their_network():
    found, table = rows(), rows().joined()
    attacked = table[table["key"] != "gone"]
    pd.testing.assert_frame_equal(
        attacked[[*ATTACKED]].sort_values([*IDENTITY, "key"], ignore_index=True),
        found.attacked.sort_values([*IDENTITY, "key"], ignore_index=True),
        check_dtype=False,
    )
    sizes = dict(zip(found.runs["key"], found.runs["step_size"], strict=True))
    assert (table["step_size"] == table["key"].map(sizes)).all()


def test_a_network_that_was_not_attacked_stands_in_every_line_without_a_value():
    table = rows().joined(attack="worst", radius=8)
    gone = table[table["key"] == "gone"]
    assert len(gone) == 2 * 2
    assert not gone.duplicated([*IDENTITY]).any()
    assert gone["value"].isna().all()
    assert len(table) == 3 * 2 * 2


def test_wide_rows_have_one_line_a_network_and_one_column_a_metric():
    found = rows()
    table = found.wide(map="rollout", attack="worst", radius=8).set_index("key")
    assert list(table.columns) == ["step_size", "top_k", "cosine"]
    for line in found.attacked.itertuples():
        if (line.map, line.attack, line.radius) == ("rollout", "worst", 8):
            assert table.loc[line.key, line.metric] == line.value
    assert table.loc["gone", ["top_k", "cosine"]].isna().all()
    assert list(table.index) == list(found.runs["key"])


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (
            {"map": "rollout", "attack": "worst"},
            r"rows of several values of radius are left \(4, 8\); choose one by radius=",
        ),
        (
            {"attack": "worst", "radius": 8},
            r"rows of several values of map are left \(saliency, rollout\); choose one by map=",
        ),
        ({"maps": "rollout"}, "column is 'maps'; it must be one of key, readout, map, attack"),
        ({"map": "relevance"}, "map is 'relevance'; rows hold saliency, rollout"),
    ],
)
def test_a_choice_that_leaves_several_numbers_or_none_is_refused(where, sentence):
    with pytest.raises(ValueError, match=sentence):
        rows().wide(**where)


def test_a_radius_is_one_number_whether_whole_or_not():
    assert (
        rows()
        .wide(map="rollout", attack="worst", radius=8.0)
        .equals(rows().wide(map="rollout", attack="worst", radius=8))
    )


def test_networks_are_put_in_a_given_order_with_their_lines():
    found = rows("abc")
    named = Rows(found.runs.assign(kernel=["x", "y", "x", "z"]), found.attacked).sorted("kernel", ["z", "y", "x"])
    assert named.runs["key"].tolist() == ["gone", "b", "a", "c"]
    assert named.attacked["key"].drop_duplicates().tolist() == ["b", "a", "c"]
    pd.testing.assert_frame_equal(
        named.attacked.sort_values(["key"], kind="stable", ignore_index=True),
        found.attacked.sort_values(["key"], kind="stable", ignore_index=True),
    )


def test_grids_are_joined_without_loss():
    first, second = rows("ab"), rows("cd", maps=("relevance",))
    both = join([first, second])
    assert len(both.runs) == len(first.runs) + len(second.runs)
    assert len(both.attacked) == len(first.attacked) + len(second.attacked)
    assert set(both.runs) == {"key", "step_size"}


def test_a_grid_without_any_attack_has_no_numbers():
    found = rows(radii=())
    assert found.joined().empty
    assert found.wide()["key"].tolist() == ["a", "b", "gone"]


def test_rows_are_read_and_joined_without_torch():
    code = "import sys, attrobust.rows; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


def test_the_deciding_metric_stands_beside_its_noise_and_what_the_clean_map_is_like():
    runs = pd.DataFrame({"key": ["a", "b"], "entropy": [0.1, 0.2]})  # of a transformer's attention rows
    like = {"between": 0.3, "contrast": 0.8, "entropy": 0.9, "occlusion": 0.4}
    lines = [("clean", name, 0.0, value, "") for name, value in like.items()]
    lines += [
        ("noise", "spearman", 8.0, 0.95, ""),
        ("worst", "spearman", 8.0, 0.5, "0.4 0.6"),
        ("worst", "top_k", 8.0, 0.2, ""),
    ]
    attacked = pd.DataFrame(lines, columns=["attack", "metric", "radius", "value", "images"])
    attacked = attacked.assign(key="a", readout="none", map="rollout", n=2)
    found = Rows(runs, attacked).judged().set_index("key")
    expected = {"value": 0.5, "noise": 0.95, "images": "0.4 0.6", "entropy": 0.1, "map_entropy": 0.9, "between": 0.3}
    assert found.loc["a", list(expected)].to_dict() == expected
    assert found.loc["b", ["value", "noise", "map_entropy"]].isna().all()  # not attacked, and not left out


def test_networks_and_lines_that_are_told_apart_by_nothing_keep_their_order():
    keys = [f"{i:02}" for i in range(60)]
    runs = pd.DataFrame({"key": keys, "kind": [("x", "y", "z")[i * i % 3] for i in range(60)]}, index=range(5, 65))
    lines = [{"key": keys[i * 7 % 60], "value": i} for i in range(600)]
    found = Rows(runs, pd.DataFrame(lines, index=range(9, 609))).sorted("kind", ("y", "z", "x"))
    order = sorted(runs.to_dict("records"), key=lambda run: "yzx".index(run["kind"]))
    assert found.runs.to_dict("records") == order
    place = {run["key"]: i for i, run in enumerate(order)}
    assert found.attacked.to_dict("records") == sorted(lines, key=lambda line: place[line["key"]])
    assert (list(found.runs.index), list(found.attacked.index)) == (list(range(60)), list(range(600)))


def test_joined_grids_stand_one_after_the_other_and_are_counted_through():
    both = join([rows("ab"), rows("cd")])
    assert both.runs["key"].tolist() == ["a", "b", "gone", "c", "d", "gone"]
    assert list(both.runs.index) == list(range(6))
    assert list(both.attacked.index) == list(range(64))
    pd.testing.assert_frame_equal(both.attacked[32:].reset_index(drop=True), rows("cd").attacked)


def test_only_a_choice_of_which_nothing_is_left_is_refused():
    found = rows()
    empty = Rows(found.runs, found.attacked[:0])
    assert empty.joined(map="nothing").empty
    assert empty.wide(map="nothing", attack="worst")["key"].tolist() == ["a", "b", "gone"]
    assert len(found.joined(map="rollout", attack="worst", metric="cosine", radius=4)) == 3
    assert set(found.joined(key="a")["key"]) == {"a", "gone"}
    with pytest.raises(ValueError, match=r"radius is 5; rows hold 4, 8$"):
        found.joined(map="rollout", radius=5)
    alone = rows(maps=("rollout",), attacks=("worst",), radii=(8,))
    assert alone.wide().columns.name is None
    assert list(alone.wide()) == ["key", "step_size", "top_k", "cosine"]
    assert alone.wide()["cosine"].tolist()[:2] == [1 / 7, 3 / 7]
    with pytest.raises(dataclasses.FrozenInstanceError):
        alone.runs = alone.attacked


def test_judged_rows_are_those_that_are_looked_up_one_by_one():
    maps, radii = (("saliency", "logit"), ("saliency", "log_probability"), ("rollout", "none")), (4.0, 8.0)
    every = [(key, *told) for key in "abc" for told in maps]
    number = itertools.count(1)
    lines = []
    for key, name, readout in every:
        told = {"key": key, "readout": readout, "map": name, "n": 2}
        for metric in ("between", "contrast", "entropy", "occlusion"):
            lines.append(
                told | {"attack": "clean", "metric": metric, "radius": 0.0, "value": next(number), "images": ""}
            )
        for radius, attack, metric in itertools.product(radii, ("noise", "worst"), ("top_k", "spearman")):
            line = told | {"attack": attack, "metric": metric, "radius": radius, "value": next(number)}
            lines.append(line | {"images": "1 2" if (attack, metric) == ("worst", "spearman") else ""})
    without = [n for n in lines if not (n["key"] == "b" and n["attack"] == "noise")]
    without = [n for n in without if not (n["key"] == "c" and n["attack"] == "clean")]
    runs = pd.DataFrame({"key": [*"cab"], "contrast of weights": [1, 2, 3]})
    found = Rows(runs, pd.DataFrame(without)).judged()
    assert len(found) == 3 * len(maps) * len(radii)
    assert list(dict.fromkeys(found["key"])) == [*"cab"]

    def value(line, attack, metric, radius):
        told = {"key": line["key"], "map": line["map"], "readout": line["readout"]}
        told |= {"attack": attack, "metric": metric, "radius": radius}
        (one,) = [n["value"] for n in lines if all(n[name] == v for name, v in told.items())]
        return one

    for line in found.to_dict("records"):
        assert (line["attack"], line["metric"], line["images"]) == ("worst", "spearman", "1 2")
        assert line["value"] == value(line, "worst", "spearman", line["radius"])
        noise = math.nan if line["key"] == "b" else value(line, "noise", "spearman", line["radius"])
        assert line["noise"] == pytest.approx(noise, nan_ok=True)
        for column, metric in (("between", "between"), ("contrast", "contrast"), ("map_entropy", "entropy")):
            like = math.nan if line["key"] == "c" else value(line, "clean", metric, 0.0)
            assert line[column] == pytest.approx(like, nan_ok=True)
    assert "entropy" not in found
    assert found.columns.name is None


def test_networks_whose_columns_are_called_as_those_of_lines_lose_no_line():
    found = rows()
    runs = found.runs.assign(n=9, cosine=0.5, noise=0.25, between=0.75)
    twice = Rows(runs, found.attacked)
    assert len(twice.joined()) == len(found.joined())
    assert twice.joined(map="rollout", key="a")["n_y"].dropna().tolist() == [3] * 8
    wide = twice.wide(map="rollout", attack="worst", radius=8)
    own = found.wide(map="rollout", attack="worst", radius=8)
    assert (wide["cosine_x"] == 0.5).all()
    assert wide["cosine_y"].tolist()[:2] == own["cosine"].tolist()[:2]
    line = {"key": "a", "readout": "logit", "map": "saliency", "n": 3, "images": ""}
    told = [("clean", "between", 0.0, 0.1), ("noise", "spearman", 8.0, 0.2), ("worst", "spearman", 8.0, 0.3)]
    lines = [line | dict(zip(("attack", "metric", "radius", "value"), words, strict=True)) for words in told]
    judged = Rows(runs[:1].drop(columns="n"), pd.DataFrame(lines)).judged().iloc[0]
    names = ["value", "noise_x", "noise_y", "between_x", "between_y"]
    assert judged[names].tolist() == [0.3, 0.25, 0.2, 0.75, 0.1]
