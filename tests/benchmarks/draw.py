"""The two figures: seconds of every route, and how cost grows beside the count on paper."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from attrobust import figures
from matplotlib.ticker import NullFormatter

QUESTIONS = ("top eigenvalue", "trace", "both ends in the pixels")
HIDDEN = ("gradient", "gradient in the pixels")
OURS, PEER = sns.color_palette("colorblind")[2], sns.color_palette("colorblind")[7]


def speed(folder: Path, table: pd.DataFrame, *, repetitions: int) -> None:
    """One row of panels per question, one column per network; bars with their range, relative errors beside."""
    networks = list(dict.fromkeys(table["network"]))
    counts = [table.loc[table["question"] == question, "route"].nunique() for question in QUESTIONS]
    with figures.style():
        figure, axes = plt.subplots(
            len(QUESTIONS), len(networks), figsize=(11.0, 7.6), sharey="row", height_ratios=[c + 1.2 for c in counts]
        )
        for line, question in zip(axes, QUESTIONS, strict=True):
            for axis, network in zip(line, networks, strict=True):
                inside = table[(table["question"] == question) & (table["network"] == network)]
                colors = [OURS if route.startswith("attrobust") else PEER for route in inside["route"]]
                span = [inside["seconds"] - inside["least"], inside["most"] - inside["seconds"]]
                axis.barh(inside["route"], inside["seconds"], color=colors, xerr=span, error_kw={"linewidth": 0.8})
                for place, row in enumerate(inside.itertuples()):
                    axis.annotate(
                        f"{row.ratio:.2f}×, error {row.error:.0e}", (row.most, place), (4, 0), va="center",
                        textcoords="offset points", fontsize=6.5,
                    )  # fmt: skip
                axis.set(xlim=(0, 1.75 * inside["most"].max()), xlabel="CPU seconds", title=f"{question}, {network}")
                axis.title.set_fontsize(8)
            line[0].invert_yaxis()
        figure.supxlabel(
            f"median and range of {repetitions} interleaved repetitions, one thread; × relative to ours; green: ours",
            fontsize=7,
        )
    figures.save(
        figure, folder, "speed", data=table, subfolder="",
        alt="Seconds of every route to three curvature questions on three networks, ours first in each panel.",
    )  # fmt: skip


def growth(folder: Path, rows: pd.DataFrame) -> None:
    """Cost in gradients against images, parameters and outputs."""
    rows = rows[~rows["quantity"].isin(HIDDEN)]
    band = (
        rows.groupby(["axis", "value", "quantity"], sort=False)
        .agg(
            gradients=("gradients", "median"),
            low=("gradients", "min"),
            high=("gradients", "max"),
            paper=("predicted", "first"),
        )
        .reset_index()
    )
    colors = dict(zip(dict.fromkeys(band["quantity"]), sns.color_palette("colorblind"), strict=False))

    with figures.style():
        values = list(dict.fromkeys(band["axis"]))
        figure, axes = plt.subplots(1, len(values), figsize=(11.0, 3.2), sharey=True)
        for axis, value in zip(axes, values, strict=True):
            for name, line in band[band["axis"] == value].groupby("quantity", sort=False):
                axis.plot(line["value"], line["gradients"], marker="o", color=colors[name], label=name)
                axis.fill_between(line["value"], line["low"], line["high"], color=colors[name], alpha=0.2, linewidth=0)
                axis.plot(line["value"], line["paper"], color=colors[name], linestyle="--", linewidth=0.9)
            axis.set(xscale="log", yscale="log", xlabel=value)
            ticks = sorted(band.loc[band["axis"] == value, "value"].unique())
            axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], fontsize=7)
            axis.xaxis.set_minor_formatter(NullFormatter())
        axes[0].set_ylabel("cost in gradients")
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center")
        figure.supxlabel(
            f"median and range of {rows['repetition'].max() + 1} repetitions; dashed: the count on paper", fontsize=7
        )
    figures.save(
        figure, folder, "growth", data=band, subfolder="",
        alt="Cost in gradients against images, parameters and outputs, with the count on paper dashed.",
    )  # fmt: skip
