"""Figures from tidy tables: one style, colour by meaning, intervals and n always shown, numbers stored beside.

Every drawing function takes `note`, what stands below the figure. Without rows it says that no run is left to draw.
"""

from attrobust.figures.bounds import against, clouds, profiles, tightness
from attrobust.figures.curves import curves, dots, scatter, trends
from attrobust.figures.grids import matrix, pictures, pixels
from attrobust.figures.style import COLORS, label, save, style

__all__ = ["COLORS", "against", "clouds", "curves", "dots", "label", "matrix", "pictures", "pixels"]
__all__ += ["profiles", "save", "scatter", "style", "tightness", "trends"]
