import io
import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
import PIL.Image
from attrobust import claims, figures, paths
from matplotlib.colors import to_rgba

STEPS = [0.01, 0.1, 1.0]


@pytest.fixture(autouse=True)
def global_state_stays_as_found():
    """Not asked for here: seaborn's dots draw jitter from numpy's global generator even when it is switched off."""


@pytest.fixture(autouse=True)
def settings_stay_as_found():
    """Styles hold inside a figure only; figures are closed after each test."""
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


def runs(seeds=4):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "step_size": step, "batch_size": 32, "seed": seed, "protocol": protocol, "dataset": dataset,
                "sharpness": np.exp(rng.normal()), "trace": np.exp(rng.normal()),
            }
            for dataset in ("digits", "mnist") for protocol in ("matched", "plateau") for step in STEPS
            for seed in range(seeds)
        ]
    )  # fmt: skip


def trends(table, **options):
    asked = {"x": "step_size", "metrics": {"sharpness": "S", "trace": "T"}, "hue": "protocol", "column": "dataset"}
    return figures.trends(table, **(asked | options))


def same_color(artist_color, name):
    return to_rgba(artist_color)[:3] == pytest.approx(to_rgba(figures.COLORS[name])[:3], abs=1e-3)


# ------------------------------------------------------------------ what is drawn are the numbers


def test_trend_lines_run_through_the_means_and_bands_are_the_claims_intervals():
    table = runs()
    axes = np.array(trends(table).axes).reshape(2, 2)
    for i, metric in enumerate(("sharpness", "trace")):
        for j, dataset in enumerate(("digits", "mnist")):
            for k, protocol in enumerate(("matched", "plateau")):
                chosen = table[(table["dataset"] == dataset) & (table["protocol"] == protocol)]
                line = axes[i, j].lines[k]
                assert same_color(line.get_color(), protocol)
                assert line.get_xdata() == pytest.approx(STEPS)
                assert line.get_ydata() == pytest.approx(chosen.groupby("step_size")[metric].mean().tolist())
                band = axes[i, j].collections[k].get_paths()[0].vertices
                for step, rows in chosen.groupby("step_size"):
                    low, high = claims.interval(rows[metric])
                    heights = band[np.isclose(band[:, 0], step), 1]
                    assert heights.min() == pytest.approx(low)
                    assert heights.max() == pytest.approx(high)


def test_trend_panels_are_named_and_ticked_by_their_values():
    figure = trends(runs(), log_y=("trace",), note="n = 4 seeds")
    axes = np.array(figure.axes).reshape(2, 2)
    assert [a.get_title() for a in axes[0]] == ["digits", "MNIST"]
    assert [a.get_ylabel() for a in axes[:, 0]] == ["S", "T"]
    assert axes[1, 0].get_xlabel() == "step size"
    assert axes[0, 0].get_xscale() == "log"
    assert list(axes[0, 0].get_xticks()) == STEPS
    assert (axes[0, 0].get_yscale(), axes[1, 0].get_yscale()) == ("linear", "log")
    words = [t.get_text() for t in figure.findobj(mpl.text.Text)]
    assert "n = 4 seeds" in words
    assert {"matched loss", "plateau, plain"} <= set(words)


def test_panels_can_be_decorated_and_a_single_column_needs_no_name():
    seen = []
    table = runs()
    trends(table, decorate=lambda axis, metric, value: seen.append((metric, value)))
    assert seen == [(m, d) for m in ("sharpness", "trace") for d in ("digits", "mnist")]
    figure = trends(table[table["dataset"] == "digits"], column=None)
    assert len(figure.axes) == 2


def test_curves_draw_the_tables_values_and_intervals_in_order_of_x():
    table = pd.DataFrame({"steps": [20, 5, 10, 20, 5, 10], "y": [3.0, 1.0, 2.0, 6.0, 4.0, 5.0], "kind": list("aaabbb")})
    table = table.assign(low=table["y"] - 0.5, high=table["y"] + 0.25)
    (axis,) = figures.curves(table, x="steps", y="y", hue="kind", log_x=True, x_label="updates").axes
    assert [line.get_xdata().tolist() for line in axis.lines] == [[5, 10, 20]] * 2
    assert [line.get_ydata().tolist() for line in axis.lines] == [[1, 2, 3], [4, 5, 6]]
    band = axis.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((3.5, 6.25))
    assert axis.get_xlabel() == "updates"
    assert list(axis.get_xticks()) == [5, 10, 20]


def test_lines_may_have_their_names_at_their_right_ends_in_order_and_none_on_another():
    steps, ends = [1.0, 2.0], {"attack": 0.50, "noise": 0.52, "cosine": 0.9}
    rows = [{"t": t, "name": n, "mean": 0.3 * (2 - t) + v} for n, v in ends.items() for t in steps]
    table = pd.DataFrame(rows).assign(low=lambda t: t["mean"], high=lambda t: t["mean"], panel="one")
    profiles = {"x": "t", "y": "mean", "hue": "name", "panels": "panel"}
    for figure in (
        figures.curves(table, x="t", y="mean", hue="name", named=True),
        figures.profiles(table, **profiles, named=True),
    ):
        figure.canvas.draw()
        (axis,) = figure.axes
        assert not figure.legends
        names = list(axis.texts)
        assert [text.get_text() for text in names] == [figures.label(name) for name in ends]
        boxes = sorted(text.get_window_extent().extents.tolist()[1::2] for text in names)
        assert all(above[0] >= below[1] - 1 for below, above in itertools.pairwise(boxes))
        assert sorted(names, key=lambda text: text.get_position()[1]) == names
        assert names[-1].get_position()[1] == pytest.approx(0.9)  # nothing near it moves it


def test_four_panels_of_one_metric_stand_two_in_a_row_and_hold_their_own_values():
    table = runs().assign(panel=lambda t: t["dataset"] + t["protocol"])
    figure = trends(table, metrics={"sharpness": "S"}, column="panel")
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == (2, 2)
    assert [axis.get_title() for axis in figure.axes] == list(table["panel"].unique())
    for axis, (_, part) in zip(figure.axes, table.groupby("panel", sort=False), strict=True):
        drawn = {tuple(np.round(line.get_ydata(), 6)) for line in axis.lines if len(line.get_ydata()) == len(STEPS)}
        assert tuple(np.round(part.groupby("step_size")["sharpness"].mean(), 6)) in drawn
    assert len(trends(table[table["panel"] != "mnistplateau"], metrics={"sharpness": "S"}, column="panel").axes) == 3


def test_scattered_points_are_the_runs():
    table = runs()
    figure = figures.scatter(table, x="sharpness", y="trace", hue="protocol", shade="step_size", panels="dataset")
    for axis, dataset in zip(figure.axes, ("digits", "mnist"), strict=True):
        for points, protocol in zip(axis.collections, ("matched", "plateau"), strict=True):
            mine = table[(table["dataset"] == dataset) & (table["protocol"] == protocol)]
            assert np.asarray(points.get_offsets()) == pytest.approx(mine[["sharpness", "trace"]].to_numpy())
            assert same_color(points.get_facecolor()[0], protocol)
            # Size tells the step: smallest to largest, by its logarithm.
            assert points.get_sizes() == pytest.approx(10 + 40 * (np.log10(mine["step_size"].to_numpy()) + 2) / 2)


def test_dots_show_every_row_and_the_mean_with_its_interval():
    table = pd.DataFrame({"map": list("aaabbb"), "value": [1.0, 2.0, 4.0, 5.0, 7.0, 9.0]})
    (axis,) = figures.dots(table, x="value", y="map").axes
    points = np.concatenate([c.get_offsets() for c in axis.collections])
    assert sorted(points[:, 0]) == sorted(table["value"])
    drawn = [line.get_xdata() for line in axis.lines if len(line.get_xdata())]
    for _, rows in table.groupby("map"):
        assert any(len(d) == 2 and tuple(d) == pytest.approx(claims.interval(rows["value"])) for d in drawn)
        assert any(np.isclose(d, rows["value"].mean()).any() for d in drawn)


def test_dots_of_two_kinds_keep_their_colours_and_their_means():
    table = pd.DataFrame(
        {"map": ["a", "a", "b", "b"] * 2, "value": np.arange(8.0), "attack": ["worst"] * 4 + ["noise"] * 4}
    )
    figure = figures.dots(table, x="value", y="map", hue="attack", note="n = 2")
    (axis,) = figure.axes
    drawn = np.concatenate([line.get_xdata() for line in axis.lines if len(line.get_xdata())])
    for _, rows in table.groupby(["map", "attack"]):
        assert np.isclose(drawn, rows["value"].mean()).any()
    assert any(same_color(line.get_color(), "worst") for line in axis.lines)
    assert any(same_color(line.get_color(), "noise") for line in axis.lines)


def test_a_table_of_pixels_holds_every_pixel_and_is_drawn_back():
    image, signed = np.linspace(0, 1, 6).reshape(2, 3), np.array([[1.0, -3.0, 0.5], [0.0, 2.0, -1.0]])
    panels = {("r", "image"): ("image", image, "clean"), ("r", "map"): ("signed", signed, "")}
    table = figures.pixels(panels)
    assert len(table) == 12
    first, second = figures.pictures(table).axes
    assert (first.images[0].get_array() == image).all()
    assert (second.images[0].get_array() == signed).all()
    assert first.images[0].get_clim() == (0, 1)
    assert second.images[0].get_clim() == (-3, 3)
    assert (first.get_title(), first.get_ylabel(), first.get_xlabel()) == ("image", "r", "clean")


def test_a_photograph_is_drawn_in_its_colours_and_large_maps_to_their_last_hundredth():
    colours = np.random.default_rng(0).random((3, 4, 5))
    large = np.arange(10_000.0).reshape(100, 100)
    panels = {("r", "a"): ("photograph", colours, "cat"), ("r", "b"): ("importance", large, "")}
    text = figures.pixels(panels).to_csv(index=False)
    first, second = figures.pictures(pd.read_csv(io.StringIO(text), float_precision="round_trip")).axes
    assert (first.images[0].get_array() == colours.transpose(1, 2, 0)).all()
    assert second.images[0].get_clim() == (0, np.quantile(large, 0.99))


def test_pictures_survive_their_csv_and_leave_missing_panels_empty():
    panels = {("r", "a"): ("importance", np.eye(2), ""), ("s", "b"): ("importance", np.zeros((2, 2)), "zero")}
    text = figures.pixels(panels).to_csv(index=False)
    axes = figures.pictures(pd.read_csv(io.StringIO(text))).axes
    assert [len(a.images) for a in axes] == [1, 0, 0, 1]
    assert axes[0].get_xlabel() == ""
    assert axes[3].images[0].get_clim() == (0, 1)


# ------------------------------------------------------------------ whole, however little there is to draw


def small(seeds, datasets, steps, protocols):
    rng = np.random.default_rng(0)
    every = itertools.product(range(seeds), datasets, steps, protocols)
    table = pd.DataFrame(every, columns=["seed", "dataset", "step_size", "protocol"])
    return table.assign(y=rng.uniform(0.2, 0.9, len(table)), z=rng.uniform(0.2, 0.9, len(table)))


NOTE = "mean of n = 1 seeds, band: 95 % Student-t interval; comparable runs only; linf radius 8/255, 32 test images"
LONG = "largest displacement of the map under attack"


def drawn(t):
    """Every kind of figure of one table of runs."""
    values = list(t["dataset"].unique())
    limits = pd.DataFrame({"x": [0.01, 0.1], "y": [1.0, 2.0], "name": "limit", "panel": values[0]})
    lines = t.assign(panel=t["dataset"], x=t["step_size"], name=t["protocol"])
    bounds = t.assign(left=t["y"], right=2 * t["y"], statement=t["dataset"], arm=t["protocol"], row=t["protocol"])
    bounds = bounds.assign(side=t["dataset"], ratio=0.5)
    cells = t.groupby(["protocol", "dataset"])["y"].agg(["mean", "std"]).reset_index().assign(shade=0.5)
    cells = cells.assign(low=cells["mean"] - cells["std"], high=cells["mean"] + cells["std"])
    panels = {(f"{p}\nstep 0.003", "image, attacked"): ("signed", np.eye(3), "kept 12%") for p in cells["protocol"]}
    band = t.assign(low=t["y"] - 0.1, high=t["y"] + 0.1)
    dots = t.assign(hue=t["protocol"])
    yield (
        "trends",
        figures.trends(
            t,
            x="step_size",
            metrics={"y": LONG, "z": "Spearman"},
            hue="protocol",
            column="dataset",
            log_y=["z"],
            note=NOTE,
        ),
    )
    yield "trends", figures.trends(t, x="step_size", metrics={"y": LONG}, hue="protocol", note=NOTE)
    yield (
        "curves",
        figures.curves(
            band, x="step_size", y="y", hue="protocol", panels="dataset", log_x=True, y_label=LONG, note=NOTE
        ),
    )
    yield (
        "scatter",
        figures.scatter(t, x="y", y="z", hue="protocol", shade="step_size", panels="dataset", y_label=LONG, note=NOTE),
    )
    yield "dots", figures.dots(dots, x="y", y="dataset", hue="hue", note=NOTE)
    yield "profiles", figures.profiles(lines, x="x", y="y", hue="name", panels="panel", log_x=values, note=NOTE)
    yield "clouds", figures.clouds(lines, limits, log_x=values, y_labels=dict.fromkeys(values, LONG), note=NOTE)
    yield "against", figures.against(bounds, note=NOTE)
    yield "tightness", figures.tightness(bounds, note=NOTE)
    yield "matrix", figures.matrix(cells, rows="protocol", columns="dataset", y_label=LONG, note=NOTE)
    yield "pictures", figures.pictures(figures.pixels(panels), note=NOTE)
    told = t.assign(effect=t["y"], low=t["y"] - 0.1, high=t["y"] + 0.1, word="up", p_holm=0.5)
    yield "specification", figures.specification(told, choices=["dataset", "protocol"], effect=LONG, note=NOTE)
    how = {"row": "dataset", "group": "protocol", "panels": "readout", "x_label": LONG}
    yield "forest", figures.forest(told.assign(base=0.1, readout="logit"), **how, note=NOTE)
    yield "nothing", figures.trends(t.iloc[:0], x="step_size", metrics={}, hue="protocol", note=NOTE)


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("steps", [STEPS[:1], STEPS[:2]])
@pytest.mark.parametrize("protocols", [1, 3, 7])
def test_every_figure_is_whole_however_little_there_is_to_draw(steps, protocols):
    """One seed and one data set: nothing leaves the canvas, no axis vanishes, no number is missing or infinite."""
    names = ["matched", "plateau", "standard", "saliency", "raw_attention", "gradient_attention", "noise search"]
    for kind, figure in drawn(small(1, ["fashion_mnist"], steps, names[:protocols])):
        figure.canvas.draw()
        left, low, right, high = figure.get_tightbbox().extents
        width, height = figure.get_size_inches()
        assert min(left, low) > -0.03, kind
        assert right < width + 0.03, kind
        assert high < height + 0.03, kind
        for axis in figure.axes:
            assert min(axis.get_window_extent().size) > 20, kind
        written = " ".join(text.get_text() for text in figure.findobj(mpl.text.Text)).replace("linf", "")
        assert not {"nan", "inf"} & {word.strip("[],+-") for word in written.split()}, kind
        plt.close(figure)


def test_an_interval_needs_two_seeds_and_ends_where_a_correlation_does():
    table = pd.DataFrame({"step_size": [0.1, 0.1, 1.0], "seed": [0, 1, 0], "protocol": "matched"})
    table = table.assign(spearman=[0.5, 0.99, 0.9], sharpness=[0.5, 0.99, 0.9])
    shown = {"spearman": "Spearman of |map|", "sharpness": "sharpness"}
    for axis, most in zip(trends(table, metrics=shown, column=None).axes, (1, 100), strict=True):
        heights = axis.collections[0].get_paths()[0].vertices
        assert np.nanmax(heights[:, 1]) == pytest.approx(min(most, claims.interval([0.5, 0.99])[1]))
        assert not np.isfinite(heights[heights[:, 0] > 0.5, 1]).any() or (heights[:, 0] < 0.5).all()
    (axis,) = figures.dots(table.assign(map="a"), x="spearman", y="map").axes
    assert max(line.get_xdata().max() for line in axis.lines if len(line.get_xdata())) <= 1


# ------------------------------------------------------------------ specification curves


def cells_of(words, **columns):
    table = pd.DataFrame({"effect": np.linspace(0.3, -0.2, len(words)), "word": words})
    table = table.assign(low=table["effect"] - 0.1, high=table["effect"] + 0.1, p_holm=np.nan)
    return table.assign(**{"dataset": ["digits", "fashion_mnist"] * (len(words) // 2), "readout": "logit"} | columns)


def test_a_specification_curve_shows_every_cell_in_order_over_the_choices_it_stands_for():
    words = ["up", "leans up", "unclear (control)", "no change", "no room", "down"]
    table = cells_of(words).assign(p_holm=[0.01, *[np.nan] * 4, 0.02])
    above, below = figures.specification(table, choices=["dataset", "readout"], effect="change").axes[:2]
    points = [line for line in above.lines if line.get_marker() not in (None, "None", "")]
    assert [p.get_ydata()[0] for p in points] == pytest.approx(sorted(table["effect"]))
    assert [p.get_markersize() > 5 for p in points] == [True, False, False, False, False, True]
    bars = [line.get_ydata() for line in above.lines if len(line.get_ydata()) == 2 and line.get_linewidth() == 1.2]
    assert np.sort(np.diff(bars).ravel()) == pytest.approx(np.full(6, 0.2))
    assert same_color(points[0].get_color(), "down")
    assert same_color(points[-1].get_color(), "up")
    assert [text.get_text() for text in below.get_yticklabels()] == ["digits", "Fashion-MNIST", "logit"]
    digits = below.collections[0].get_offsets()[:, 0]
    assert digits.tolist() == [1, 3, 5]  # ascending effects: every other cell from the second


def test_the_band_under_exchanged_labels_lies_where_its_table_says_and_belongs_to_the_same_cells():
    table = cells_of(["up", "leans up", "no change", "down"])
    own = np.sort(table["effect"])
    chance = pd.DataFrame(
        {"place": range(4), "effect": own, "low": [-0.3, -0.2, -0.1, 0.0], "high": [0.0, 0.1, 0.2, 0.3]}
    )
    figure = figures.specification(table, choices=["dataset"], effect="change", chance=chance)
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_ydata().tolist() for line in dotted] == [chance.low.tolist(), chance.high.tolist()]
    (legend,) = figure.legends
    assert "step labels exchanged (95 %)" in [text.get_text() for text in legend.get_texts()]
    for other in (chance[:3], chance.assign(effect=own + 0.01)):
        with pytest.raises(ValueError, match="chance is of other cells; it must have the effects of the table"):
            figures.specification(table, choices=["dataset"], effect="change", chance=other)


def test_a_cell_without_an_effect_is_no_column_and_named_values_come_first():
    table = cells_of(["up", "no pair", "up", "up"], effect=[0.1, np.nan, 0.2, 0.3])
    how = {"choices": ["dataset"], "effect": "change", "first": ["fashion_mnist"]}
    _, below = figures.specification(table, **how).axes[:2]
    assert [text.get_text() for text in below.get_yticklabels()] == ["Fashion-MNIST", "digits"]
    assert sum(len(c.get_offsets()) for c in below.collections) == 3


# ------------------------------------------------------------------ forests


def conditions():
    lines = [("activation", "ReLU", 0.3, "up", 0.1), ("activation", "softplus", np.nan, "no pair", 0.1),
             ("loss", "squared", -0.2, "leans down", 0.05)]  # fmt: skip
    table = pd.DataFrame(lines, columns=["factor", "name", "effect", "word", "base"])
    table = table.assign(low=table["effect"] - 0.1, high=table["effect"] + 0.1)
    return pd.concat([table.assign(readout="logit"), table.assign(readout="log_probability", base=0.0)])


def test_a_forest_shows_each_choice_at_its_line_beside_its_base_in_every_panel():
    how = {"row": "name", "group": "factor", "panels": "readout", "x_label": "change"}
    figure = figures.forest(conditions(), **how)
    left, right = figure.axes
    assert [axis.get_title() for axis in (left, right)] == ["logit", "log-probability"]
    assert [axis.get_xlabel() for axis in (left, right)] == ["change"] * 2
    assert [t.get_text() for t in left.get_yticklabels()] == [
        "activation: ReLU", "activation: softplus", "loss: squared"
    ]  # fmt: skip
    heights = left.get_yticks()
    for axis, base in ((left, [0.1, 0.1, 0.05]), (right, [0.0, 0.0, 0.0])):
        ticks = [line for line in axis.lines if line.get_marker() == "|"]
        assert [(t.get_xdata()[0], t.get_ydata()[0]) for t in ticks] == list(zip(base, heights, strict=True))
        (up,) = (line for line in axis.lines if line.get_marker() == "^")
        assert (up.get_xdata()[0], up.get_ydata()[0]) == (0.3, heights[0])
        assert same_color(up.get_color(), "up")
        bars = [
            tuple(line.get_xdata()) for line in axis.lines if line.get_linewidth() == 1.2 and len(line.get_xdata()) == 2
        ]
        assert bars == [pytest.approx((0.2, 0.4)), pytest.approx((-0.3, -0.1))]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["up", "leans down", "base"]


def test_a_forest_without_words_or_bases_has_no_legend_and_runs_that_are_not_comparable_have_a_look_of_their_own():
    how = {"row": "name", "group": "factor", "panels": "readout", "x_label": "change"}
    figure = figures.forest(conditions().drop(columns=["word", "base"]), **how)
    assert not figure.legends
    assert {line.get_marker() for line in figure.axes[0].lines} == {"None", "o"}
    figure = figures.forest(conditions().assign(word="not comparable"), **how)
    assert "D" in {line.get_marker() for line in figure.axes[0].lines}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["not comparable", "base"]


def test_a_forest_of_one_group_does_not_repeat_its_name_and_no_figure_of_many_panels_is_wider_than_the_page():
    how = {"row": "name", "group": "factor", "panels": "readout", "x_label": "change"}
    alone = conditions()
    alone = alone[alone.factor == alone.factor.iloc[0]]
    (first, *_) = figures.forest(alone, **how).axes
    assert [text.get_text() for text in first.get_yticklabels()] == [figures.label(n) for n in alone.name.unique()]
    wide = pd.concat(conditions().assign(readout=f"{i}") for i in range(4))
    assert figures.forest(wide, **how).get_figwidth() < 8
    cells = pd.DataFrame([(f"r{i}", f"c{k}", 0.5) for i in range(3) for k in range(9)], columns=["r", "c", "mean"])
    cells = cells.assign(low=0.4, high=0.6, shade=0.5)
    assert figures.matrix(cells, rows="r", columns="c").get_figwidth() < 8


def test_a_logarithmic_axis_of_dots_has_written_out_numbers_and_a_geometric_mean():
    table = pd.DataFrame({"sharpness": [0.5, 1.0, 2.0, 10.0, 20.0, 5.0], "method": [*"aaabbb"]})
    figure = figures.dots(table, x="sharpness", y="method", log=True)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    assert {"1", "10"} <= {text.get_text() for text in axis.get_xticklabels()}
    middles = sorted(float(x) for line in axis.lines if line.get_marker() == "|" for x in line.get_xdata())
    assert middles == pytest.approx([1, 10])


# ------------------------------------------------------------------ fronts


def priced():
    lines = [("natural", "plain SGD", 1, 0.2, False, True), ("SAM", "weights", 2, 0.1, False, False),
             ("SSR", "slopes in the pixels", 8, 0.6, True, True)]  # fmt: skip
    table = pd.DataFrame(lines, columns=["method", "school", "passes", "mean", "poorer", "front"])
    return table.assign(low=table["mean"] - 0.05, high=table["mean"] + 0.05, readout="logit")


def test_a_front_numbers_its_points_as_the_legend_does_and_joins_those_that_no_other_beats():
    how = {"price": "passes", "worth": "mean", "name": "method", "hue": "school", "by": "readout", "log": True}
    figure = figures.front(priced(), **how, hollow={"poorer": "less accurate"}, labels=("price", "robustness"))
    (axis,) = figure.axes
    assert axis.get_xscale() == "log" and (axis.get_xlabel(), axis.get_ylabel()) == ("price", "robustness")
    assert [(text.get_text(), text.xy) for text in axis.texts] == [("1", (1, 0.2)), ("2", (2, 0.1)), ("3", (8, 0.6))]
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in points] == [False, False, True]
    assert [same_color(line.get_color(), name) for line, name in zip(points, priced().school, strict=True)] == [
        True
    ] * 3
    (best,) = (line for line in axis.lines if line.get_linestyle() == "--")
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([1, 8], [0.2, 0.6])
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["1 natural", "2 SAM", "3 SSR", "less accurate", "front"]


def test_points_of_one_price_stand_side_by_side_about_it_on_a_logarithmic_axis_alone():
    table = priced().assign(passes=[2, 2, 2])
    how = {"price": "passes", "worth": "mean", "name": "method", "hue": "school", "by": "readout"}
    how |= {"hollow": {"poorer": "less accurate"}, "labels": ("price", "robustness")}
    for log in (True, False):
        (axis,) = figures.front(table, **how, log=log).axes
        places = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"]
        assert len(set(places)) == (3 if log else 1)
        assert np.exp(np.mean(np.log(places))) == pytest.approx(2)


def test_the_numbers_of_a_front_stand_apart_from_each_other_and_from_the_points():
    places = [(1, 0.20), (1, 0.22), (1, 0.24), (5, 0.60), (5.2, 0.62), (5.4, 0.60), (50, 0.40)]
    rows = [(f"m{i}", "weights", price, worth, False, False) for i, (price, worth) in enumerate(places)]
    table = pd.DataFrame(rows, columns=["method", "school", "passes", "mean", "poorer", "front"])
    table = table.assign(low=table["mean"] - 0.01, high=table["mean"] + 0.01, readout="logit")
    how = {"price": "passes", "worth": "mean", "name": "method", "hue": "school", "by": "readout", "log": True}
    figure = figures.front(table, **how, hollow={"poorer": "less accurate"}, labels=("price", "robustness"))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == len(places)
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    dots = [
        line.get_transform().transform(line.get_xydata())[0]
        for line in figure.axes[0].lines
        if line.get_marker() == "o"
    ]
    assert not any(box.contains(*dot) for box in boxes for dot in dots)


# ------------------------------------------------------------------ style


def test_names_read_well_and_unknown_ones_lose_their_underscores():
    assert figures.label("step_size") == "step size"
    assert figures.label("fashion_mnist") == "Fashion-MNIST"
    assert figures.label("some_new_column") == "some new column"


def test_what_stands_side_by_side_is_told_apart_by_colour():
    for group in (("matched", "plateau", "standard"), ("worst", "noise", "noise search")):
        assert len({tuple(to_rgba(figures.COLORS[name])) for name in group}) == len(group)


# ------------------------------------------------------------------ files


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    table = runs()
    for place in ("one", "two"):
        figures.save(trends(table), tmp_path / place, "a_trend", data=table, alt="Sharpness against step size.")
    for suffix in ("png", "pdf", "csv"):
        first, second = ((tmp_path / place / "figures" / f"a_trend.{suffix}").read_bytes() for place in ("one", "two"))
        assert first == second
    other = table.assign(sharpness=2 * table["sharpness"])
    figures.save(trends(other), tmp_path / "three", "a_trend", data=other, alt="Sharpness against step size.")
    assert (tmp_path / "three/figures/a_trend.png").read_bytes() != (tmp_path / "one/figures/a_trend.png").read_bytes()


def test_every_figure_has_its_numbers_beside_it_and_words_for_those_who_cannot_see(tmp_path):
    table = runs()
    shown = figures.save(trends(table), tmp_path, "a_trend", data=table, alt="Sharpness against step size.")
    target = tmp_path / "figures"
    assert sorted(p.name for p in target.iterdir()) == ["a_trend.csv", "a_trend.pdf", "a_trend.png"]
    back = pd.read_csv(target / "a_trend.csv")
    assert back["sharpness"].tolist() == pytest.approx(table["sharpness"].tolist(), rel=1e-5)
    assert shown.metadata["alt"] == "Sharpness against step size."
    assert shown.data == (target / "a_trend.png").read_bytes()
    with PIL.Image.open(target / "a_trend.png") as picture:
        assert picture.size[0] > 300
    assert (target / "a_trend.pdf").read_bytes().startswith(b"%PDF")


def test_a_committed_figure_lends_its_pdf_to_the_same_picture_of_the_same_numbers_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "figures", tmp_path / "figures")
    table, how = runs(), {"alt": "Sharpness.", "subfolder": "."}
    committed = tmp_path / "figures" / "01_x"
    figures.save(trends(table), committed, "a_trend", data=table, **how)
    drawn = (committed / "a_trend.pdf").read_bytes()
    (committed / "a_trend.pdf").write_bytes(b"%PDF committed")

    def saved(shown, data):
        figures.save(trends(shown), tmp_path / "out", "a_trend", data=data, **how)
        return (tmp_path / "out" / "a_trend.pdf").read_bytes()

    assert saved(table, table) == b"%PDF committed"
    assert saved(table, table.assign(sharpness=1.0)) == drawn
    assert saved(table.assign(sharpness=2 * table["sharpness"]), table) not in (drawn, b"%PDF committed")
    (committed / "a_trend.pdf").unlink()
    assert saved(table, table) == drawn


def test_a_saved_figure_is_closed(tmp_path):
    table = runs()
    figure = trends(table)
    figures.save(figure, tmp_path, "a_trend", data=table, alt="Sharpness.")
    assert not plt.fignum_exists(figure.number)


def test_a_saved_picture_shows_what_was_drawn(tmp_path):
    figure, axis = plt.subplots(figsize=(2, 2))
    axis.set_position([0, 0, 1, 1])
    axis.axis("off")
    axis.imshow([[0, 1], [1, 0]], cmap="gray")
    figures.save(figure, tmp_path, "a_check", data=pd.DataFrame({"v": [0, 1]}), alt="A board.")
    with PIL.Image.open(tmp_path / "figures" / "a_check.png") as opened:
        picture = np.asarray(opened.convert("L")).astype(float)
    side = picture.shape[0]
    quarter, three = side // 4, 3 * side // 4
    corners = [picture[quarter, quarter], picture[quarter, three], picture[three, quarter], picture[three, three]]
    assert corners == pytest.approx([0, 255, 255, 0], abs=3)


def test_figures_without_words_or_numbers_are_refused(tmp_path):
    table = runs()
    with pytest.raises(ValueError, match="alt of figure 'a_trend' is empty; it must say what the figure shows"):
        figures.save(trends(table), tmp_path, "a_trend", data=table, alt=" ")
    with pytest.raises(ValueError, match="data of figure 'a_trend' has no columns; it must hold the plotted numbers"):
        figures.save(trends(table), tmp_path, "a_trend", data=pd.DataFrame(), alt="Sharpness.")
    assert list(tmp_path.iterdir()) == []
