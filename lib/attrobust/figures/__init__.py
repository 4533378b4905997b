"""Figures from tidy tables: one style, colour by meaning; every drawing function takes a `note` that stands below."""

from attrobust.figures.bounds import against, clouds, profiles, tightness
from attrobust.figures.curves import curves, dots, scatter, trends
from attrobust.figures.forest import forest, ladder
from attrobust.figures.front import front
from attrobust.figures.grids import matrix, pictures, pixels
from attrobust.figures.specification import specification
from attrobust.figures.style import COLORS, label, save, style

__all__ = ["COLORS", "against", "clouds", "curves", "dots", "forest", "front", "label", "ladder", "matrix", "pictures"]
__all__ += ["pixels", "profiles", "save", "scatter", "specification", "style", "tightness", "trends"]
