"""Laws of what is tried in turn: nothing is never tried."""

from datetime import date, timedelta

import by_day
import pytest


@pytest.mark.parametrize(("n", "slots"), [(9, 3), (17, 4), (5, 1), (2, 1), (3, 3)])
def test_days_that_follow_each_other_try_everything_once_and_all_at_a_time_tries_it_at_once(monkeypatch, n, slots):
    monkeypatch.delenv("EVERY", raising=False)
    tried = []
    for day in range(-(-n // slots)):
        monkeypatch.setenv(by_day.BEGAN, str(date(2024, 2, 27) + timedelta(days=day)))
        now = [item for slot in range(slots) for item in by_day.due(range(n), slot, slots)]
        assert len(now) == len(set(now)) == slots
        tried += now
    assert set(tried) == set(range(n))
    monkeypatch.setenv("EVERY", "1")
    assert sorted(item for slot in range(slots) for item in by_day.due(range(n), slot, slots)) == [*range(n)]


@pytest.mark.parametrize(("n", "turns"), [(10, 2), (5, 1), (2, 3)])
def test_what_is_put_off_today_is_due_on_another_day_and_never_with_all_at_a_time(monkeypatch, n, turns):
    monkeypatch.delenv("EVERY", raising=False)
    tried = set()
    for day in range(1, 11):
        monkeypatch.setenv(by_day.BEGAN, f"2024-02-{day:02}")
        assert by_day.put_off(["alone"], 1) == []
        later = by_day.put_off([*range(n)], turns)
        assert len(later) == len(set(later)) == max(0, n - turns)
        tried |= {*range(n)} - {*later}
    assert tried == {*range(n)}
    monkeypatch.setenv("EVERY", "1")
    assert by_day.put_off([*range(n)], turns) == []


def test_the_day_stays_the_one_on_which_the_run_began(monkeypatch):
    monkeypatch.delenv("EVERY", raising=False)
    monkeypatch.setenv(by_day.BEGAN, "2024-02-29")
    assert by_day.due(range(7)) == [date(2024, 2, 29).toordinal() % 7]
