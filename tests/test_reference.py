"""Laws about the public interface: what stands in each docstring and signature that a reference is made of."""

import inspect
import re

import pytest
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


def doc(value):
    return inspect.cleandoc(value.__doc__ or "")


def test_the_walk_finds_what_rooms_export_and_what_files_of_theory_hold():
    known = {"attributions.saliency", "attacks.auto", "robustness.compare", "theory.entropy.row_mass", "balls.Ball"}
    assert known <= PUBLIC.keys()
    assert len(PUBLIC) > 400
    assert not any(part.startswith("_") for name in PUBLIC for part in name.split("."))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_summed_up_shown_and_typed(name):
    value = PUBLIC[name]
    summary, *_ = doc(value).split("\n\n")
    assert summary and "\n" not in summary and summary[-1] in ".?" and len(summary) <= 120
    shown = re.search(r"^Example:\n(.*\n)*? {4}>>> ", doc(value), flags=re.MULTILINE)
    assert bool(shown) != (name in WITHOUT_EXAMPLE)
    assert not reference.unannotated(value)


def test_what_has_no_example_is_public_and_says_why():
    assert WITHOUT_EXAMPLE.keys() <= PUBLIC.keys()
    assert len(WITHOUT_EXAMPLE) < 10 and all(WITHOUT_EXAMPLE.values())


@pytest.mark.parametrize("name", [n for n, v in PUBLIC.items() if inspect.isfunction(v) and not n.startswith("checks")])
def test_a_function_that_refuses_an_argument_says_so(name):
    if reference.refuses(PUBLIC[name]):
        assert re.search(r"\w+Error|[Rr]efuse", doc(PUBLIC[name]))


def test_a_gap_is_seen():
    def bare(x, *, y: int):
        checks.positive("y", y)

    assert reference.unannotated(bare) == ["x", "return"]
    assert reference.refuses(bare)
    assert not reference.refuses(doc)
