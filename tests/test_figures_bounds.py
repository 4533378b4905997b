import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from attrobust import figures
from attrobust.theory import tally


def cases():
    return tally.join(
        [tally.bound("P1", "one", [0.0, 0.5, 2.0], [1.0, 1.0, 3.0]), tally.bound("P2", "two", [1e-3], [0.1])]
    )


def lines():
    return pd.DataFrame(
        {"x": [1, 10, 1, 10] * 2, "y": [1.0, 2.0, 3.0, 4.0] * 2, "name": ["a", "a", "limit", "limit"] * 2,
         "panel": ["p"] * 4 + ["q"] * 4}
    )  # fmt: skip


def test_no_true_case_stands_over_the_diagonal():
    figure = figures.against(cases())
    assert [axis.get_title() for axis in figure.axes] == ["P1", "P2"]
    for axis in figure.axes:
        for points in axis.collections:
            offsets = points.get_offsets()
            assert (offsets[:, 1] <= offsets[:, 0]).all()


def test_tightness_draws_one_line_per_statement_and_clips_at_its_edges():
    table = cases().assign(row=lambda t: t.statement, side="gradient", ratio=lambda t: tally.ratio(t))
    (axis,) = figures.tightness(table[table.ratio > 0], low=0.1).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["P1", "P2"]
    assert min(min(line.get_xdata()) for line in axis.get_lines() if len(line.get_xdata())) >= 0.1


def test_profiles_dash_what_theory_says_and_give_each_panel_its_axes():
    figure = figures.profiles(
        lines(), x="x", y="y", hue="name", panels="panel", log_x=["p"], log_y=["q"], theory=["limit"], note="n = 1"
    )
    first, second = figure.axes
    assert (first.get_xscale(), first.get_yscale()) == ("log", "linear")
    assert (second.get_xscale(), second.get_yscale()) == ("linear", "log")
    assert [line.get_linestyle() for line in first.get_lines()] == ["-", "--"]


def test_a_name_written_at_the_end_of_its_line_has_its_colour_and_touches_no_other():
    figure = figures.profiles(lines(), x="x", y="y", hue="name", panels="panel", named=True, inches=7.1)
    assert not figure.legends
    assert figure.get_figwidth() == pytest.approx(7.1, abs=0.3)
    for axis in figure.axes:
        assert [text.get_text() for text in axis.texts] == ["a", "limit"]  # from the lowest end up
        inks = [[mpl.colors.to_rgb(part.get_color()) for part in parts] for parts in (axis.texts, axis.get_lines())]
        for name, line in zip(*inks, strict=True):  # the same colour, darker where it is a light one
            assert np.cross(name, line) == pytest.approx(0) and 0.7 * sum(line) < sum(name) <= sum(line) + 1e-9
    close = lines().assign(y=lambda t: 1 + 1e-3 * t["y"])
    close.loc[close["name"] == "a", "y"] = 1.0
    tight = pd.concat(
        [close, close.assign(name=close["name"] + " again"), lines()[:2].assign(name="far", y=[1.0, 9.0])]
    )
    figure = figures.profiles(tight, x="x", y="y", hue="name", panels="panel", named=True, inches=7.1)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 5
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))


def test_names_of_one_quantity_go_from_light_to_dark_and_its_bound_stays_black():
    table = pd.concat([lines(), lines()[:2].assign(name="b"), lines()[:2].assign(name="c")])
    shown = {"x": "x", "y": "y", "hue": "name", "panels": "panel", "theory": ["limit"], "ordered": True}
    drawn = {line.get_label(): line for line in figures.profiles(table, **shown).legends[0].get_lines()}
    light = [sum(mpl.colors.to_rgb(drawn[name].get_color())) for name in ("a", "b", "c")]
    assert light == sorted(light, reverse=True)
    assert light[0] - light[-1] > 0.6
    assert light[-1] > 0.6  # dark, and not the black of a bound
    assert mpl.colors.to_rgb(drawn["limit"].get_color()) == (0, 0, 0)


def test_clouds_draw_every_case_under_curves_of_the_theory():
    points = pd.DataFrame(
        {"x": [1.0, 10.0, 2.0], "y": [0.1, 0.5, 0.2], "name": ["a", "b", "a"], "panel": ["p", "p", "q"]}
    )
    curve = pd.DataFrame({"x": [1.0, 10.0], "y": [0.6, 90.0], "name": "limit", "panel": "p"})
    figure = figures.clouds(points, curve, log_x=["p"], x_labels={"p": "size"}, note="n = 3")
    first, second = figure.axes
    assert (first.get_xscale(), second.get_xscale()) == ("log", "linear")
    assert (first.get_xlabel(), first.get_title()) == ("size", "p")
    assert sum(len(cloud.get_offsets()) for axis in figure.axes for cloud in axis.collections) == len(points)
    assert [line.get_linestyle() for line in first.get_lines()] == ["--"]
    assert first.get_ylim()[1] < 1  # the cases decide the axis, not the curve


def test_drawing_leaves_the_style_as_found():
    before = dict(mpl.rcParams)
    figures.against(cases())
    assert dict(mpl.rcParams) == before


@pytest.fixture(autouse=True)
def closed():
    yield
    mpl.pyplot.close("all")


def test_a_matrix_writes_every_value_with_its_interval_into_its_own_cell():
    cells = [("noise", "top_k", 0.91, 0.1), ("noise", "cosine", 0.99, 0.0), ("attack", "top_k", 0.63, 1.0)]
    table = pd.DataFrame(cells, columns=["part", "metric", "mean", "shade"]).assign(low=0.5, high=0.95)
    (axis,) = figures.matrix(table, rows="part", columns="metric", note="n = 3").axes
    written = {(*map(round, text.xy), text.get_text()) for text in axis.texts}
    assert {(0, 0, "0.91"), (1, 0, "0.99"), (0, 1, "0.63"), (0, 0, "[0.50, 0.95]")} <= written
    assert len(axis.texts) == 2 * len(cells)
    assert [t.get_text() for t in axis.get_yticklabels()] == ["noise, one draw", "attack"]


def test_in_a_matrix_of_changes_losses_and_gains_have_colours_of_their_own_and_nothing_is_white():
    table = pd.DataFrame({"part": ["a", "b", "c"], "of": "all", "mean": 0.0, "low": 0.0, "high": 0.0})
    table["shade"] = [-1.0, 0.0, 1.0]
    (axis,) = figures.matrix(table, rows="part", columns="of", color="change", note="n = 3").axes
    image = axis.images[0]
    lost, none, gained = (image.cmap(image.norm(value))[:3] for value in table["shade"])
    assert none == pytest.approx((1, 1, 1), abs=0.01)
    for found, name in ((lost, "down"), (gained, "up")):
        aim = mpl.colors.to_rgb(figures.COLORS[name])
        assert max(abs(f - a) for f, a in zip(found, aim, strict=True)) < 0.35
