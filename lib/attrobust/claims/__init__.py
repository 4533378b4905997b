"""Rows in, estimate, interval and verdict out; never imports torch, so that claims can be judged wherever rows are."""

from attrobust.claims.arms import assess, conditions, judge, overview, pooled
from attrobust.claims.by_seed import effects
from attrobust.claims.cells import cells, contrast, holm, sign_flip
from attrobust.claims.pairs import STRENGTH_MARGIN, differences, kernel_by_kernel, means, paired, parity, reach, reached

# isort: split
from attrobust.claims.pairs import restored, strong_enough
from attrobust.claims.record import beyond, family, record
from attrobust.claims.rule import OPPOSITE, SUPPORTED, UNDECIDED, comparable, interval, left_out, named, no_gain, save

# isort: split
from attrobust.claims.rule import sentence, trend, verdict
from attrobust.claims.told import agrees, page, permuted, restoration

__all__ = ["OPPOSITE", "STRENGTH_MARGIN", "SUPPORTED", "UNDECIDED", "assess", "comparable", "conditions", "differences"]
__all__ += ["interval", "judge", "kernel_by_kernel", "left_out", "means", "named", "no_gain", "overview", "paired"]
__all__ += ["parity", "pooled", "reach", "reached", "restored", "save", "sentence", "strong_enough", "trend", "verdict"]
__all__ += ["agrees", "beyond", "cells", "contrast", "effects", "family", "holm", "page", "permuted", "record"]
__all__ += ["restoration", "sign_flip"]
