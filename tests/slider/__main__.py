"""`python -m slider`: compute what is not stored, then draw the animation and the page's sheets."""

import shutil
import time

import torch
from attrobust import paths

from slider import animation, sheets, walks
from slider.subjects import SUBJECTS


def main() -> None:
    """Compute, keep beside the committed rows, draw."""
    torch.set_num_threads(1)
    store, found = walks.store_of(), {name: {} for name in SUBJECTS}
    for name, kind in walks.tasks():
        began = time.monotonic()
        found[name][kind] = walks.walk(name, kind, store)
        print(f"{name}, {kind}: {time.monotonic() - began:.0f} s", flush=True)
    kept = [store.table_file("walk", walks.key_of(*task), suffix=end) for task in walks.tasks() for end in walks.ENDS]
    for file in (file for file in kept if file.is_relative_to(store.out)):
        (target := paths.figures / "slider" / "tables" / file.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    name, kind = animation.SHOWN
    animation.write(*found[name][kind])
    sheets.write(found)


if __name__ == "__main__":
    main()
