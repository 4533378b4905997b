"""Which graphics card a worker computes on, where a machine has several: each keeps to one, the least taken.

Workers of all sweeps of this machine and user take places in turn, one on each card before a second on any. A place is
a lock of the operating system, which ends with its process.
"""

import itertools
import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout

_workers: set[int] = set()


def admit() -> None:
    """Note that this process is a worker, which may be put on a card; others stay where they are."""
    _workers.add(os.getpid())


def pin(device: str) -> None:
    """Where a worker is to compute on "cuda", make one card its current one; nothing where there is no choice."""
    if device == "cuda" and os.getpid() in _workers and (n := torch.cuda.device_count()) > 1:
        torch.cuda.set_device(_place(os.getpid(), n)[0])


@cache
def _place(process: int, n: int) -> tuple[int, FileLock]:
    """A card, and the lock on this process's place there, kept as long as the process lives."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    folder = Path(tempfile.gettempdir()) / f"attrobust-{os.getuid()}" / f"cards {visible}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for place in itertools.count():
        lock = FileLock(folder / f"{place}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            return place % n, lock
    raise AssertionError  # places do not end
