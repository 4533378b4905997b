"""What is too dear for every run is tried in turn, by the day: days that follow each other try all of it."""

import os
from collections.abc import Iterable
from datetime import date

#: The variable that holds the day on which a run of the tests began: it stays the same past midnight, in all workers.
BEGAN = "TESTED_ON"


def due(items: Iterable, slot: int = 0, slots: int = 1) -> list:
    """Of all items the one that is due today in this slot out of so many; with EVERY=1 in the environment its share."""
    items, day = list(items), date.fromisoformat(os.environ.setdefault(BEGAN, date.today().isoformat()))
    if os.environ.get("EVERY"):
        return items[slot::slots]
    return [items[(day.toordinal() * slots + slot) % len(items)]]


def put_off(groups: Iterable[tuple[int, list]]) -> list:
    """What is not due today, of groups of so many turns a day each."""
    return [
        item
        for turns, items in groups
        for place, item in enumerate(items)
        if not any(place in due(range(len(items)), slot, turns) for slot in range(turns))
    ]
