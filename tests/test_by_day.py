"""Laws of what is tried in turn: nothing is never tried."""

from datetime import date, timedelta

import by_day
import pytest


@pytest.mark.parametrize(("n", "slots"), [(9, 3), (17, 4), (5, 1), (2, 1), (3, 3)])
def test_days_that_follow_each_other_try_everything_once_and_all_at_a_time_tries_it_at_once(monkeypatch, n, slots):
    monkeypatch.delenv("EVERY", raising=False)
    tried = []
    for day in range(-(-n // slots)):
        today = date(2024, 2, 27) + timedelta(days=day)
        monkeypatch.setattr(by_day, "date", type("Date", (), {"today": staticmethod(lambda today=today: today)}))
        now = [item for slot in range(slots) for item in by_day.due(range(n), slot, slots)]
        assert len(now) == len(set(now)) == slots
        tried += now
    assert set(tried) == set(range(n))
    monkeypatch.setenv("EVERY", "1")
    assert sorted(item for slot in range(slots) for item in by_day.due(range(n), slot, slots)) == [*range(n)]
