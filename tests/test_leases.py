"""Leases among holders in one process: what is free is taken at once, what is not is passed over."""

import threading

import filelock
from attrobust.experiments import leases
from attrobust.experiments.leases import busy, leased


def test_what_another_holds_is_passed_over_and_free_again_after(tmp_path):
    folder = tmp_path / "deep" / "er"
    with leased(folder, ["b", "a", "a"], wait=False) as first:
        assert first == {"a", "b"}
        with leased(folder, ["a", "c"], wait=False) as second:
            assert second == {"c"}
    with leased(folder, ["a", "b", "c"], wait=False) as third:
        assert third == {"a", "b", "c"}
    assert sorted(lock.name for lock in folder.glob("*.lock")) in ([], ["a.lock", "b.lock", "c.lock"])


def test_who_does_not_wait_gives_no_lease_any_time_and_who_waits_all_of_it(tmp_path, monkeypatch):
    given = []

    def lock(path, *, timeout):
        given.append((path.name, timeout))
        return filelock.FileLock(path, timeout=timeout)

    monkeypatch.setattr(leases, "FileLock", lock)
    for wait, timeout in ((False, 0), (True, -1)):
        with leased(tmp_path, ["b", "a"], wait=wait):
            assert given == [("a.lock", timeout), ("b.lock", timeout)]
        given.clear()


def test_who_waits_has_all_in_the_end(tmp_path):
    held, mine = threading.Event(), []

    def waiting():
        held.wait()
        with leased(tmp_path, ["a", "b"], wait=True) as found:
            mine.append(found)

    other = threading.Thread(target=waiting, daemon=True)
    other.start()
    with leased(tmp_path, ["b"], wait=False):
        held.set()
        other.join(0.3)
        assert other.is_alive()
        assert mine == []
    other.join(30)
    assert mine == [{"a", "b"}]


def test_a_folder_is_busy_while_any_of_its_leases_is_held(tmp_path):
    assert not busy(tmp_path / "absent")
    assert not busy(tmp_path)
    with leased(tmp_path, ["a", "b"], wait=False):
        pass
    for name in ("a", "b"):
        (tmp_path / f"{name}.lock").touch()
    assert not busy(tmp_path)
    for names in (["a"], ["b"], ["a", "b"]):
        with leased(tmp_path, names, wait=False):
            assert busy(tmp_path)
        assert not busy(tmp_path)
