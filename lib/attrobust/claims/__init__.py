"""Rows in, estimate, interval and verdict out; never imports torch, so that claims can be judged wherever rows are."""

from attrobust.claims.by_seed import effects
from attrobust.claims.cells import cells, contrast, holm, sign_flip
from attrobust.claims.pairs import differences, means, paired
from attrobust.claims.record import beyond, family, record
from attrobust.claims.rule import OPPOSITE, SUPPORTED, UNDECIDED, comparable, interval, left_out, save

# isort: split
from attrobust.claims.rule import sentence, verdict
from attrobust.claims.told import agrees, page, permuted, restoration

__all__ = ["OPPOSITE", "SUPPORTED", "UNDECIDED", "agrees", "beyond", "cells", "comparable", "contrast", "differences"]
__all__ += ["effects", "family", "holm", "interval", "left_out", "means", "page", "paired", "permuted", "record"]
__all__ += ["restoration", "save", "sentence", "sign_flip", "verdict"]
