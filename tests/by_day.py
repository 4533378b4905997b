"""What is too dear for every run is tried in turn, by the day: days that follow each other try all of it."""

import os
from collections.abc import Iterable
from datetime import date

#: The variable that holds the day on which a run of the tests began: it stays the same past midnight, in all workers.
BEGAN = "TESTED_ON"


def began() -> date:
    """The day on which this run of the tests began."""
    return date.fromisoformat(os.environ.setdefault(BEGAN, date.today().isoformat()))


def due(items: Iterable, slot: int = 0, slots: int = 1) -> list:
    """Of all items the one that is due today in this slot out of so many; with EVERY=1 in the environment its share."""
    items = list(items)
    if os.environ.get("EVERY"):
        return items[slot::slots]
    return [items[(began().toordinal() * slots + slot) % len(items)]]


def put_off(items: list, turns: int) -> list:
    """All items but those that are due today, so many a day."""
    now = {place for slot in range(turns) for place in due(range(len(items)), slot, turns)}
    return [item for place, item in enumerate(items) if place not in now]
