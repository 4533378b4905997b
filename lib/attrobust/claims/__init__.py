"""Rows in, estimate, interval and word out; never imports torch, so that claims can be judged wherever rows are."""

from attrobust.claims import ledger
from attrobust.claims.attention import reach, restoration
from attrobust.claims.by_seed import effects
from attrobust.claims.cells import cells, contrast, holm, sign_flip
from attrobust.claims.mediators import associations, carried_over
from attrobust.claims.pairs import differences, means, paired
from attrobust.claims.permutation import chance_curve, permuted
from attrobust.claims.record import COLUMNS, beyond, family, lines_of, read_claims, record
from attrobust.claims.rule import comparable, interval, left_out, save
from attrobust.claims.strength import strength
from attrobust.claims.told import agrees, elsewhere, page

__all__ = [
    "COLUMNS", "agrees", "associations", "beyond", "carried_over", "cells", "chance_curve", "comparable", "contrast",
    "differences", "effects", "elsewhere", "family", "holm", "interval", "ledger", "left_out", "lines_of", "means",
    "page", "paired", "permuted", "reach", "read_claims", "record", "restoration", "save", "sign_flip", "strength",
]  # fmt: skip
