"""The verdict rule: rows in, estimate, interval and verdict out. It was fixed before the runs.

Never imports torch: a claim can be recomputed wherever the rows can be read.
"""

from attrobust.claims.arms import assess, conditions, judge, overview, pooled
from attrobust.claims.pairs import STRENGTH_MARGIN, differences, means, paired, parity, strong_enough
from attrobust.claims.reach import kernel_by_kernel, reach, reached, restored
from attrobust.claims.rule import OPPOSITE, SUPPORTED, UNDECIDED, comparable, interval, no_gain, trend, verdict
from attrobust.claims.tables import left_out, named, save, sentence

__all__ = ["OPPOSITE", "STRENGTH_MARGIN", "SUPPORTED", "UNDECIDED", "assess", "comparable", "conditions", "differences"]
__all__ += ["interval", "judge", "kernel_by_kernel", "left_out", "means", "named", "no_gain", "overview", "paired"]
__all__ += ["parity", "pooled", "reach", "reached", "restored", "save", "sentence", "strong_enough", "trend", "verdict"]
