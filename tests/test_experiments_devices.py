"""Which card a worker takes, on a machine whose cards are made up."""

import os
import tempfile
from types import SimpleNamespace

import pytest
import torch
from attrobust.experiments import devices


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """Cards that were made current, on a machine of two with a folder of its own for locks."""
    cards = []
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "set_device", cards.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "_workers", set())
    devices._place.cache_clear()
    yield cards
    devices._place.cache_clear()


def test_a_worker_takes_the_next_free_card_and_keeps_it(taken, monkeypatch):
    devices.admit()
    devices.pin("cuda")
    devices.pin("cuda")
    assert taken == [0, 0]
    for other in (1, 2):  # as other processes would
        monkeypatch.setattr(devices, "os", SimpleNamespace(getpid=lambda n=other: n, getuid=os.getuid, environ={}))
        devices.admit()
        devices.pin("cuda")
    assert taken == [0, 0, 1, 0]


def test_nobody_is_put_on_a_card_where_there_is_no_choice(taken, monkeypatch):
    devices.pin("cuda")  # no worker
    devices.admit()
    devices.pin("cpu")
    for n in (0, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=n: n)
        devices.pin("cuda")
    assert taken == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices.pin("cuda")
    assert taken == [0]


def test_places_are_locks_that_only_their_user_reads(taken, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    held = [devices._place.__wrapped__(process, 3) for process in range(5)]
    assert [card for card, _ in held] == [0, 1, 2, 0, 1]
    folder = tmp_path / f"attrobust-{os.getuid()}" / "cards 1,2"
    assert sorted(file.name for file in folder.iterdir()) == [f"{n}.lock" for n in range(5)]
    assert folder.stat().st_mode & 0o777 == 0o700
    held[1][1].release()
    assert devices._place.__wrapped__(5, 3)[0] == 1
