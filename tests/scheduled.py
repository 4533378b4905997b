"""A Dask cluster of this machine: a scheduler and workers of one thread, each a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def cluster(folder: Path, *, n: int = 2) -> Iterator[tuple]:
    """The address, the scheduler, and the workers; all are killed in the end."""
    told, environment = folder / "scheduler.json", os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    found = [subprocess.Popen([*command, "--no-dashboard", "--scheduler-file", str(told)], **quiet)]
    try:
        while not (told.exists() and told.read_text().strip().endswith("}")):
            time.sleep(0.05)
        address = json.loads(told.read_text())["address"]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
        found += [
            subprocess.Popen([*command, "--no-nanny", "--local-directory", str(folder)], **quiet) for _ in range(n)
        ]
        yield address, *found
    finally:
        for process in found:
            process.kill()
            process.wait()
