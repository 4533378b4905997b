"""The ledger says of each claim what the claims files say, and nothing else."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from attrobust import claims, paths
from attrobust.claims import ledger

PAGE = paths.root / "docs" / "claims.md"


def test_the_page_of_claims_has_a_part_for_each_claim_of_the_ledger():
    headings = set(re.findall(r"(?m)^## (C\d)", PAGE.read_text()))
    assert headings == set(ledger.CLAIMS)


def test_no_claim_can_be_changed_after_the_fact():
    for claim in ledger.CLAIMS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            claim.against = ()


def test_tables_on_the_page_of_claims_are_those_of_the_claims_files():
    assert ledger.filled(PAGE.read_text(), paths.figures) == PAGE.read_text()
    assert PAGE.read_text().count("<!-- cells of ") == len(ledger.CLAIMS) - 1


def test_a_changed_number_on_the_page_of_claims_is_noticed():
    told = PAGE.read_text()
    line = next(line for line in told.splitlines() if line.startswith("| digits, matched, logit |"))
    assert ledger.filled(told.replace(line, line.replace("0.", "1.")), paths.figures) == told


def test_a_page_asks_for_known_claims_and_closes_its_tables():
    with pytest.raises(ValueError, match="C12"):
        ledger.filled("<!-- cells of C12 -->\n<!-- end of cells -->", paths.figures)
    with pytest.raises(ValueError, match="opens 1 tables of cells and closes 0"):
        ledger.filled("<!-- cells of C2 -->", paths.figures)


@pytest.mark.parametrize("name", ledger.CLAIMS)
def test_each_line_of_a_headline_is_a_line_of_a_claims_file(name):
    folder = paths.figures / ledger.CLAIMS[name].notebook
    stored = pd.concat([pd.read_csv(path) for path in folder.glob("claims*.csv")])
    lines = ledger.headline(paths.figures, name)
    known = set(zip(stored["claim"], stored["arm"], stored["by"], stored["word"], strict=True))
    assert len(lines)
    assert set(zip(lines["claim"], lines["arm"], lines["by"], lines["word"], strict=True)) <= known


@pytest.mark.parametrize("name", ledger.CLAIMS)
def test_every_line_speaks_for_a_claim_or_against_it_or_leaves_it_open(name):
    lines = ledger.headline(paths.figures, name)
    assert sum(ledger.tally(name, lines).values()) == len(lines)


def test_a_family_is_taken_whole_and_no_cell_is_left_out():
    stored = pd.read_csv(paths.figures / "04_across_models" / "claims.csv")
    family = stored[(stored["claim"] == "C3") & stored["p_holm"].notna()]
    assert set(ledger.headline(paths.figures, "C3")["arm"]) == set(family["arm"])


def test_words_of_both_signs_are_told_apart():
    lines = pd.DataFrame(
        {"word": ["up", "leans up", "down", "leans down (censored)", "no change", "unclear (control)"]}
    )
    assert ledger.tally("C2", lines) == {"for": 2, "against": 2, "open": 2}
    assert ledger.tally("C1", lines) == {"for": 2, "against": 2, "open": 2}
    assert ledger.tally("C1", lines[:2]) == {"for": 0, "against": 2, "open": 0}


def test_lines_of_more_seeds_stand_in_place_of_those_of_fewer(tmp_path: Path):
    own = {"claim": ["C9", "C9"], "arm": ["a", "b"], "by": "method", "seeds": 5, "effect": [1, 2], "word": "up"}
    own = pd.DataFrame(own)
    (tmp_path / "10").mkdir()
    own.to_csv(tmp_path / "10" / "claims.csv", index=False)
    assert ledger.read(tmp_path, "10")["effect"].tolist() == [1, 2]
    more = pd.concat([own[:1].assign(seeds=10, effect=7), own[:1].assign(arm="another", effect=9)])
    more.to_csv(tmp_path / "10" / "claims_full.csv", index=False)
    both = ledger.read(tmp_path, "10").set_index("arm")["effect"]
    assert both.to_dict() == {"b": 2, "a": 7}  # what profile full alone has is no part of the notebook's claims


@pytest.mark.parametrize(
    "content", [b"", b"claim,arm,by,effect\nC2,a,step_size,0.1\n", b"a\nb,c\nd,e,f\n", b"\xff\xfe\x00\x81\n"]
)
def test_a_claims_file_that_is_damaged_or_another_table_is_named(tmp_path, content):
    path = tmp_path / ledger.CLAIMS["C2"].notebook / "claims.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path} is damaged or no claims file \(.*\); make it anew$"):
        ledger.headline(tmp_path, "C2")


def test_a_folder_without_claims_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="must be the claims file of a run notebook"):
        ledger.headline(tmp_path, "C2")


def test_later_seeds_are_those_after_the_first_with_an_interval_of_their_own():
    values = np.array([1.0, 2, 3, 4, 5, 10, 12, 14])
    line = pd.DataFrame({"claim": ["C2"], "arm": ["x"], "by": ["step_size"], "per_seed": [" ".join(map(str, values))]})
    found = ledger.later_seeds(line).iloc[0]
    low, high = claims.interval(values[5:])
    assert (found.early, found.late, found.low, found.high, found.later) == (3, 12, low, high, 3)
    assert not len(ledger.later_seeds(line, first=7))  # a single later seed has no interval
    with pytest.raises(ValueError, match="first is 1"):
        ledger.later_seeds(line, first=1)


def test_both_halves_together_are_the_effect_of_all_seeds():
    lines = ledger.headline(paths.figures, "C2")
    found = lines.merge(ledger.later_seeds(lines), on=["claim", "arm", "by"], validate="one_to_one")
    whole = (5 * found["early"] + found["later"] * found["late"]) / (5 + found["later"])
    assert np.allclose(whole, found["effect"], atol=2e-6)  # files hold six digits


def test_words_speak_for_the_claims_that_are_made_of_them():
    words = ["up", "leans up", "down", "leans down", "holds", "violated", "reached", "leans reached", "not reached",
             "leans not reached", "no gain", "unclear (control)", "leans not reached (censored)"]  # fmt: skip
    gains, falls = {"up", "leans up"}, {"down", "leans down"}
    sides = dict.fromkeys(ledger.CLAIMS, (gains, falls)) | {
        "C1": (falls, gains),
        "C5": ({"holds"}, {"violated"}),
        "C6": ({"not reached", "leans not reached", "leans not reached (censored)"}, {"reached"}),
    }
    for name, (pro, contra) in sides.items():
        for word in words:
            found = ledger.tally(name, pd.DataFrame({"word": [word]}))
            assert (found["for"], found["against"]) == (word in pro, word in contra), (name, word)
            assert found["open"] == 1 - found["for"] - found["against"]


def test_lines_of_a_claim_are_its_family_or_those_that_match_its_pattern_and_empty_columns_are_left_out(tmp_path: Path):
    lines = pd.DataFrame(
        [("C2", "a", "up", 0.1, np.nan), ("C2", "b", "no pair", np.nan, np.nan), ("C3", "a", "up", 0.2, 1.0)],
        columns=["claim", "arm", "word", "p_holm", "extra"],
    ).assign(by="step_size")
    (tmp_path / "nb").mkdir()

    def kept(table, part, cells=""):
        table.to_csv(tmp_path / "nb" / "claims.csv", index=False)
        return ledger._lines(tmp_path, "nb", part, cells)

    family = kept(lines[::-1], "C2")
    assert (family["arm"].tolist(), family.index.tolist()) == (["a"], [0])
    assert [*family] == ["claim", "arm", "word", "p_holm", "by"]
    assert kept(lines, "C2", "^b$")["arm"].tolist() == ["b"]
    for theory in (lines.assign(p_holm=np.nan), lines.drop(columns="p_holm")):
        assert kept(theory, "C2")["arm"].tolist() == ["a", "b"]
    assert not len(kept(lines, "C9"))


def test_what_is_measured_of_a_claim_that_is_judged_by_words_is_its_family_with_effects(tmp_path: Path):
    folder = tmp_path / ledger.CLAIMS["C6"].notebook
    folder.mkdir()
    lines = pd.DataFrame(
        [
            ("C6 reach", "wide", "not reached", np.nan, np.nan),
            ("C6 reach", "narrow", "reached", np.nan, np.nan),
            ("C6", "one", "up", 0.3, 0.01),
            ("C6", "two", "no pair", np.nan, 1.0),
            ("C6", "outside", "up", 0.4, np.nan),
        ],
        columns=["claim", "arm", "word", "effect", "p_holm"],
    ).assign(by="step_size")
    lines.to_csv(folder / "claims.csv", index=False)
    assert ledger.headline(tmp_path, "C6")["arm"].tolist() == ["wide"]
    assert ledger.measured(tmp_path, "C6")["arm"].tolist() == ["one"]
    lines.drop(columns="effect").to_csv(folder / "claims.csv", index=False)
    assert len(ledger.measured(tmp_path, "C6")) == 0
    lines.assign(effect=[0.5, 0.1, 0.3, 0.2, 0.4]).to_csv(folder / "claims.csv", index=False)
    assert ledger.measured(tmp_path, "C6")["arm"].tolist() == ["wide"]


def test_lines_of_more_seeds_follow_those_that_stay_and_are_counted_through(tmp_path: Path):
    own = {"claim": "C9", "arm": ["a", "b", "c"], "by": "x", "seeds": 5, "effect": [1, 2, 3], "word": "up"}
    own = pd.DataFrame(own)
    (tmp_path / "10").mkdir()
    own.to_csv(tmp_path / "10" / "claims.csv", index=False)
    own[:2].assign(seeds=[9, 5], effect=7).to_csv(tmp_path / "10" / "claims_full.csv", index=False)
    found = ledger.read(tmp_path, "10")
    assert found[["arm", "seeds", "effect"]].to_numpy().tolist() == [["b", 5, 2], ["c", 5, 3], ["a", 9, 7]]
    assert found.index.tolist() == [0, 1, 2]
    for more in (own[:2].assign(arm=["d", "e"], seeds=9), own[:1], own[:0]):
        more.to_csv(tmp_path / "10" / "claims_full.csv", index=False)
        assert ledger.read(tmp_path, "10")["effect"].tolist() == [1, 2, 3]
    theory = own[:1].assign(by=np.nan)  # a claim without an axis
    theory.to_csv(tmp_path / "10" / "claims.csv", index=False)
    theory.assign(seeds=10, effect=7).to_csv(tmp_path / "10" / "claims_full.csv", index=False)
    assert ledger.read(tmp_path, "10")[["seeds", "effect"]].to_numpy().tolist() == [[10, 7]]


def test_lines_without_the_effects_of_enough_seeds_have_no_later_ones():
    names = {"claim": "C2", "by": "step_size"}
    lines = [names | {"arm": "z", "per_seed": "1 2 3 4"}, names | {"arm": "few", "per_seed": "1 2 3"}]
    lines += [names | {"arm": "gap", "per_seed": "1 2 nan 4"}, names | {"arm": "a", "per_seed": "3 1 0 0 6"}]
    found = ledger.later_seeds(pd.DataFrame(lines), first=2)
    assert found[["arm", "early", "late", "later"]].to_numpy().tolist() == [["z", 1.5, 3.5, 2], ["a", 2, 2, 3]]
    assert not len(ledger.later_seeds(pd.DataFrame(lines).drop(columns="per_seed"), first=2))
    assert [*ledger.later_seeds(pd.DataFrame(lines)[:0])] == [*found]
