"""Laws about the public interface: what stands in each docstring and signature that a reference is made of."""

import dataclasses
import inspect
import re

import reference
from attrobust import checks

#: Rooms of users; `studies` holds what a single notebook alone calls, and that notebook is its example.
PUBLIC = {name: value for name, value in reference.public().items() if not name.startswith("studies.")}
#: What cannot be shown in a tenth of a second, and why.
WITHOUT_EXAMPLE = {
    "audit.followed": "trains networks and audits them, minutes",
    "audit.retrained": "trains copies of a network and audits each, minutes",
    "data.fetch": "downloads",
    "experiments.run": "starts worker processes that train networks",
    "experiments.table": "starts a worker process",
    "experiments.tables": "starts worker processes",
    "experiments.trained": "starts a worker process that trains a network",
}

#: What collects while something runs.
FILLED = {"audit.Audited", "training.Fit"}


def doc(value):
    return inspect.cleandoc(value.__doc__ or "")


def test_the_walk_finds_what_rooms_export_and_what_files_of_theory_hold():
    known = {"attributions.saliency", "attacks.auto", "robustness.compare", "theory.entropy.row_mass", "balls.Ball"}
    assert known <= PUBLIC.keys()
    assert len(PUBLIC) > 400
    assert not any(part.startswith("_") for name in PUBLIC for part in name.split("."))


def lacking(name, value):
    """What a name's docstring and signature lack."""
    summary, *_ = doc(value).split("\n\n")
    shown = re.search(r"^Example:\n(.*\n)*? {4}>>> ", doc(value), flags=re.MULTILINE)
    if "\n" in summary or summary[-1:] not in (".", "?") or len(summary) > 120:
        yield "a summary of one sentence on one line"
    if bool(shown) == (name in WITHOUT_EXAMPLE):
        yield "an example, or a reason why there is none"
    if untyped := reference.unannotated(value):
        yield f"types of {', '.join(untyped)}"
    asked = inspect.isfunction(value) and not name.startswith("checks.")
    if asked and reference.refuses(value) and not re.search(r"\w+Error|[Rr]efuse", doc(value)):
        yield "what it refuses"


def test_every_public_name_is_summed_up_shown_and_typed_and_says_what_it_refuses():
    gaps = {name: found for name, value in PUBLIC.items() if (found := [*lacking(name, value)])}
    assert not gaps


def test_what_has_no_example_is_public_and_says_why():
    assert WITHOUT_EXAMPLE.keys() <= PUBLIC.keys()
    assert len(WITHOUT_EXAMPLE) < 10 and all(WITHOUT_EXAMPLE.values())


def test_what_is_handed_out_cannot_be_changed_but_for_what_collects_while_something_runs():
    open_ones = {
        name
        for name, value in PUBLIC.items()
        if dataclasses.is_dataclass(value) and not value.__dataclass_params__.frozen
    }
    assert open_ones == FILLED


def test_a_gap_is_seen():
    def bare(x, *, y: int):
        """A sentence on two
        lines.
        """
        checks.positive("y", y)

    bare.__doc__ = inspect.cleandoc(bare.__doc__)
    assert len([*lacking("room.bare", bare)]) == 4
    assert [*lacking("room.bare", bare)][2] == "types of x, return"
    assert not reference.refuses(doc)
