"""What is too dear for every run is tried in turn, by the day: days that follow each other try all of it."""

import os
from collections.abc import Iterable
from datetime import date


def due(items: Iterable, slot: int = 0, slots: int = 1) -> list:
    """Of all items the one that is due today in this slot out of so many; with EVERY=1 in the environment its share."""
    items = list(items)
    if os.environ.get("EVERY"):
        return items[slot::slots]
    return [items[(date.today().toordinal() * slots + slot) % len(items)]]
