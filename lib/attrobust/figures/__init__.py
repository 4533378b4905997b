"""Figures from tidy tables: one style, colour by meaning, intervals and n always shown, numbers stored beside."""

from attrobust.figures.bounds import against, profiles, tightness
from attrobust.figures.clouds import clouds
from attrobust.figures.curves import curves, dots, scatter, trends
from attrobust.figures.matrices import matrix
from attrobust.figures.pictures import pictures, pixels
from attrobust.figures.save import save, write
from attrobust.figures.style import COLORS, LABELS, label, style

__all__ = [
    "COLORS",
    "LABELS",
    "against",
    "clouds",
    "curves",
    "dots",
    "label",
    "matrix",
    "pictures",
    "pixels",
    "profiles",
    "save",
    "scatter",
    "style",
    "tightness",
    "trends",
    "write",
]
