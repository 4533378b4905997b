"""The verdict rule: rows in, estimate, interval and verdict out. It was fixed before the runs.

Never imports torch: a claim can be recomputed wherever the rows can be read.
"""

from attrobust.claims.arms import COLUMNS, assess, conditions, judge, overview, pooled
from attrobust.claims.pairs import differences, means, paired, parity
from attrobust.claims.reach import kernel_by_kernel, reach, reached, restored
from attrobust.claims.rule import (
    CONFIDENCE,
    NO_GAIN_MARGIN,
    OPPOSITE,
    SUPPORTED,
    UNDECIDED,
    Trend,
    comparable,
    interval,
    no_gain,
    trend,
    verdict,
)
from attrobust.claims.strength import STRENGTH_MARGIN, strong_enough
from attrobust.claims.tables import left_out, named, save, sentence

__all__ = [
    "COLUMNS",
    "CONFIDENCE",
    "NO_GAIN_MARGIN",
    "OPPOSITE",
    "STRENGTH_MARGIN",
    "SUPPORTED",
    "UNDECIDED",
    "Trend",
    "assess",
    "comparable",
    "conditions",
    "differences",
    "interval",
    "judge",
    "kernel_by_kernel",
    "left_out",
    "means",
    "named",
    "no_gain",
    "overview",
    "paired",
    "parity",
    "pooled",
    "reach",
    "reached",
    "restored",
    "save",
    "sentence",
    "strong_enough",
    "trend",
    "verdict",
]
