"""Peak memory of every route to the top eigenvalue, each in a process of its own."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import routes, setting


def rows(networks: tuple[str, ...] = tuple(setting.NETWORKS)) -> Iterator[dict]:
    """One row per network and route: MiB above what network, images and libraries take."""
    for network in networks:
        for name in routes.top_eigenvalue(network):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "peak", network, name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            yield {"network": network, "route": name, "mebibytes": float(done.stdout.split()[-1])}


def peak(network: str, name: str) -> float:
    """MiB that one run of the route adds to this process's peak."""
    route = routes.top_eigenvalue(network)[name]
    before = _peak()
    route()
    return _peak() - before


def _peak() -> float:
    """Largest resident set of this process in MiB; Linux hands the parent's down to `resource`, so not from there."""
    status = Path("/proc/self/status")
    if status.exists():
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
