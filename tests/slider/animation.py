"""The animation: a photograph that stays the same, its map that walks away, and the share of leading pixels that stay.

Every frame is an attack of its own at a radius of its own; nothing is drawn between two of them.
"""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
from attrobust import figures, paths
from attrobust.audit.measured import ATTACK, NOISE
from attrobust.figures.style import COLORS, bare
from attrobust.paths import write_bytes

from slider.subjects import GREYS, SUBJECTS, credit

#: Picture and map of the animation, where it stands, and how long a frame is held, in milliseconds.
SHOWN, PLACE = ("coffee", "saliency"), paths.figures / "slider" / "radius.gif"
HELD, FIRST, LAST = 800, 1600, 2400

#: Colours of the animation beside white.
COLOURS = 255

#: Inches of the canvas at so many pixels an inch, at which a photograph of 224 pixels is drawn one for one.
SIZE, DPI, SIDE = (7.9, 3.15), 100, 2.24


def frame(table: pd.DataFrame, arrays: dict[str, np.ndarray], place: int) -> PIL.Image.Image:
    """The frame of the radius in this place of the walk."""
    (name,) = table["picture"].unique()
    attack, noise = (table[table["compared"] == compared].iloc[: place + 1] for compared in (ATTACK, NOISE))
    now, beside, radii = attack.iloc[-1], noise.iloc[-1], sorted(table["radius"].unique())
    with figures.style(), plt.rc_context({"figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=SIZE, dpi=DPI)
        figure.text(0.02, 0.935, f"Each pixel moves by at most {now.radius}/255", fontsize=12, weight="bold")
        axes = [figure.add_axes(_box(0.16 + shift, 0.52, SIDE, SIDE)) for shift in (0, SIDE + 0.12)]
        picture = arrays["clean"].astype(int) + arrays["change"][place]
        axes[0].imshow(picture.transpose(1, 2, 0), interpolation="nearest")
        axes[1].imshow(arrays["maps"][place], cmap="Greys", vmin=0, vmax=GREYS - 1, interpolation="nearest")
        said = f"{now['class']}, {now.probability:.2f}", f"{share(now.top_k)} of the leading pixels stay"
        for axis, text in zip(axes, said, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(text, fontsize=10)
            bare(axis)
        axis = figure.add_axes(_box(5.65, 0.72, 2.1, SIDE - 0.2))
        for rows, color in ((noise, "noise"), (attack, "attack")):
            axis.plot(rows["radius"], rows["top_k"], color=COLORS[color], marker="o")
        for row, text in ((now, "attack"), (beside, "noise")):
            about = {"textcoords": "offset points", "va": "center", "fontsize": 9}
            axis.annotate(text if place else "", (row.radius, row.top_k), (6, 0), color=COLORS[text], **about)
        axis.set(xlim=(-0.5, radii[-1] + 2.4), ylim=(-0.06, 1.06), xticks=radii, yticks=[0, 0.5, 1])
        axis.set_yticklabels(["0 %", "50 %", "100 %"])
        axis.tick_params(labelsize=8)
        axis.set_xlabel("radius, in 1/255", fontsize=9)
        axis.set_title("leading pixels that stay", fontsize=9)
        about = f"{SUBJECTS[name].network.partition(',')[0]}; right: its saliency map, dark pixels lead. Photograph: "
        figure.text(0.02, 0.025, about + credit(name), fontsize=7, color="#444444")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=DPI)
    plt.close(figure)
    return PIL.Image.open(drawn).convert("RGB")


def share(value: float) -> str:
    """A share in words.

    Example:
        >>> share(0.111), share(0.0046)
        ('11 %', 'under 1 %')
    """
    return f"{100 * value:.0f} %" if value == 0 or value >= 0.01 else "under 1 %"


def _box(left: float, low: float, width: float, height: float) -> tuple[float, float, float, float]:
    """A place on the canvas, from inches."""
    return left / SIZE[0], low / SIZE[1], width / SIZE[0], height / SIZE[1]


def gif(table: pd.DataFrame, arrays: dict[str, np.ndarray]) -> bytes:
    """All frames, each held, from the first radius to the last and over again; one palette for all."""
    frames = [frame(table, arrays, place) for place in range(len(arrays["maps"]))]
    both = PIL.Image.fromarray(np.concatenate([np.asarray(one) for one in (frames[0], frames[-1])]))
    palette = both.quantize(COLOURS, dither=PIL.Image.Dither.NONE)
    palette.putpalette([*palette.getpalette()[: 3 * COLOURS], 255, 255, 255])
    first, *others = (_indexed(one, palette) for one in frames)
    held = [FIRST, *[HELD] * (len(frames) - 2), LAST]
    drawn = io.BytesIO()
    first.save(drawn, format="gif", save_all=True, append_images=others, duration=held, loop=0, optimize=False)
    return drawn.getvalue()


def _indexed(one: PIL.Image.Image, palette: PIL.Image.Image) -> PIL.Image.Image:
    """A frame in the colours of a palette; white stays white, of which Pillow makes the nearest of the others."""
    places = np.array(one.quantize(palette=palette, dither=PIL.Image.Dither.NONE))
    places[(np.asarray(one) == 255).all(-1)] = COLOURS
    drawn = PIL.Image.fromarray(places)
    drawn.putpalette(palette.getpalette())
    return drawn


def write(table: pd.DataFrame, arrays: dict[str, np.ndarray]) -> None:
    """Draw the animation in its place."""
    write_bytes(PLACE, gif(table, arrays))
