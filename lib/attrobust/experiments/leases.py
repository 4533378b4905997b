"""Who computes what: sweeps on one store share the work, and none does what another is at.

A lease is a lock of the operating system on an empty file. It ends with the process that holds it, however that ends,
so that none is left behind by the dead. Folders that several machines share need a file system that passes locks on
(NFS 4, Lustre mounted with `flock`).
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def leased(folder: Path, names: Iterable[str], *, wait: bool) -> Iterator[set[str]]:
    """Within, those of the names that are this process's: all if it waits for others, else those that nobody else has.

    They are asked for in the order of their names, so that two who wait for each other's do not wait for ever.

    Example:
        >>> import tempfile
        >>> with leased(Path(tempfile.mkdtemp()), ["a", "b"], wait=False) as mine:
        ...     sorted(mine)
        ['a', 'b']
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        mine = set()
        for name in sorted(set(names)):
            try:
                held.enter_context(FileLock(folder / f"{name}.lock", timeout=-1 if wait else 0))
            except Timeout:
                continue
            mine.add(name)
        yield mine


def busy(folder: Path) -> bool:
    """Whether somebody holds a lease of this folder."""
    names = [lock.stem for lock in folder.glob("*.lock")]
    if not names:
        return False
    with leased(folder, names, wait=False) as free:
        return len(free) < len(names)
