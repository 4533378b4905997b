"""What the commands of `python -m attrobust` do; `__main__` says how they are called."""

from collections.abc import Callable, Sequence

import yaml

from attrobust import data, paths, reproduce

#: Errors that are answers: they end a command in one sentence, without a traceback.
ERRORS = (ValueError, data.DataError, reproduce.NotebookError)


def recompute(
    *,
    profile: str,
    only: str,
    jobs: int,
    fresh: bool,
    update: bool,
    pairs: Sequence[tuple[str, str]],
    say: Callable[[str], None],
) -> None:
    """Run notebooks from an empty store and compare their claims with the committed ones."""
    overrides = {name: yaml.safe_load(value) for name, value in pairs}
    same = reproduce.reproduce(
        profile_name=profile, only=only, jobs=jobs, fresh=fresh, update=update, overrides=overrides, say=say
    )
    if not same and profile == "cpu" and not overrides and not update:
        say("note: some verdicts differ from the committed ones; see the lines marked ≠")


def redraw(*, only: str, rewrite: bool, say: Callable[[str], None]) -> None:
    """Draw every figure again from committed rows."""
    reproduce.redraw(only=only, rewrite=rewrite, say=say)


def download(*, names: Sequence[str], yes: bool, ask: Callable[[str], bool], say: Callable[[str], None]) -> None:
    """Download data sets into data/ unless they are there; each asks first unless `yes`."""
    for name in names or ("fashion_mnist",):
        if data.available(name):
            data.load(name)
            say(f"{name}: present and verified")
            continue
        size = data.download_size(name) / 1e6
        if not yes and not ask(f"{name}: download {size:.0f} MB into {paths.data}?"):
            say(f"{name}: nothing downloaded")
            continue
        data.fetch(name)
        say(f"{name}: downloaded and verified")


def parameters(*, say: Callable[[str], None]) -> None:
    """List every notebook's parameters with their type and meaning."""
    for path in reproduce.numbered():
        say(path.stem)
        for name, (kind, meaning) in reproduce.parameters_of(path).items():
            say(f"  {name:<18}{kind:<13}{meaning}")
