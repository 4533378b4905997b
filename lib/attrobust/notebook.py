"""The seam between a notebook's parameters cell and the library: read, check, open the store, show progress.

Parameters arrive from three sides: the cell itself, papermill's injected cell (which only warns about misspelt
names, and hands lists over as text), and profile files. All are checked here, at the border, before any work.
"""

import ast
import difflib
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

from attrobust import checks, data, models
from attrobust.store import Store, place_for


def _numbers(check: Callable[[str, float], object]) -> Callable[[str, object], object]:
    def read(name: str, value: object) -> list:
        values = _literal(value)
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{name} is {value!r}; it must be a list of numbers, such as [1, 2]")
        for v in values:
            check(name, v)
        return list(values)

    return read


def _names(accepted: tuple[str, ...]) -> Callable[[str, object], list[str]]:
    def read(name: str, value: object) -> list[str]:
        values = _literal(value)
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{name} is {value!r}; it must be a list of names out of {', '.join(accepted)}")
        return [checks.one_of(name, v, accepted) for v in values]

    return read


def _number(check: Callable[[str, float], object]) -> Callable[[str, object], object]:
    return lambda name, value: check(name, _literal(value))


def _flag(name: str, value: object) -> bool:
    value = {"true": True, "false": False}.get(str(value).lower(), value)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be true or false")
    return value


def _folder(name: str, value: object) -> str:
    return value if value == "" else str(place_for(name, value) and value)


def _whole(least: int) -> Callable[[str, object], object]:
    return lambda name, value: checks.count(name, value, least=least)


def _not_negative(name: str, value: float) -> float:
    return checks.at_least(name, value, 0)


#: Every parameter a notebook may have, with what it accepts. Names are shared by all notebooks.
PARAMETERS: dict[str, Callable[[str, object], object]] = {
    "dataset": _number(lambda name, value: checks.one_of(name, value, data.NAMES)),
    "datasets": _names(data.NAMES),
    "vits": _names(("digits", "fashion_mnist", "fashion_mnist_deep", "cifar10_deep")),
    "activations": _names(tuple(models.ACTIVATIONS)),
    "protocols": _names(("matched", "plateau", "standard")),
    "step_sizes": _numbers(checks.positive),
    "batch_sizes": _numbers(_whole(1)),
    "base_batch": _number(_whole(1)),
    "step_size": _number(checks.positive),
    "batch_size": _number(_whole(1)),
    "epochs": _number(_whole(1)),
    "edge_factors": _numbers(checks.positive),
    "edge_updates": _number(_whole(1)),
    "n_train": _number(_whole(1)),
    "n_attacked": _number(_whole(1)),
    "radii": _numbers(_not_negative),
    "radius": _number(_not_negative),
    "curve_radii": _numbers(checks.positive),
    "attack_steps": _number(_whole(1)),
    "step_counts": _numbers(_whole(1)),
    "restart_counts": _numbers(_whole(1)),
    "restarts": _number(_whole(1)),
    "strong_steps": _number(_whole(1)),
    "strong_restarts": _number(_whole(1)),
    "seeds": _numbers(_whole(0)),
    "seed": _number(_whole(0)),
    "cases": _number(_whole(1)),
    "updates": _number(_whole(1)),
    "token_counts": _numbers(_whole(2)),
    "repetitions": _number(_whole(1)),
    "drop_in_epochs": _number(_whole(1)),
    "keys": _number(_whole(10)),
    "jobs": _number(_whole(0)),
    "device": _number(lambda name, value: checks.one_of(name, value, ("cpu", "cuda"))),
    "out": _folder,
    "committed": _flag,
}


def settings(namespace: Mapping[str, object]) -> SimpleNamespace:
    """Checked parameters of a notebook, from its namespace.

    Args:
        namespace: `globals()` of the notebook, right after its parameters.

    Returns:
        The parameters as attributes; lists that papermill passed as text are lists again.

    Raises:
        ValueError: for a value outside what is accepted, or a misspelt name in papermill's injected cell.

    Example:
        >>> settings({"seeds": "[0, 1]", "device": "cpu"}).seeds
        [0, 1]
    """
    given = {name: value for name, value in namespace.items() if name in PARAMETERS}
    for name in _injected(namespace):
        accept(name, given)
    return SimpleNamespace(**{name: PARAMETERS[name](name, value) for name, value in given.items()})


def accept(name: str, accepted: Mapping[str, object]) -> None:
    """Refuse a parameter name that is not among the accepted ones.

    Raises:
        ValueError: with the nearest accepted name.
    """
    if name not in accepted:
        near = difflib.get_close_matches(name, list(accepted), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"parameter {name!r} is unknown; accepted are {', '.join(sorted(accepted))}{hint}")


def open_store(notebook: str, chosen: SimpleNamespace, *, shares: Sequence[str] = ()) -> Store:
    """The notebook's store at its `out`, reading committed evidence unless `committed` is false.

    Args:
        notebook: its stem.
        chosen: its parameters.
        shares: notebooks whose evidence serves this one too.
    """
    return Store(notebook, out=chosen.out, committed=chosen.committed, shares=shares, device=chosen.device)


def left_out(store: Store) -> str:
    """What of the grid is missing, said loudly; or that nothing is."""
    if not store.left_out:
        return "nothing of the grid is left out"
    return "\n".join(f"!!! LEFT OUT: {n} networks, because {reason}" for reason, n in store.left_out.items())


class Progress:
    """One line of progress under a running cell; it disappears when the cell is done, so outputs stay clean."""

    def __init__(self) -> None:
        self._handle = None

    def __call__(self, line: str) -> None:
        """Show `line` in place of the one before."""
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(line), display_id=True)
        elif self._handle is not None:
            self._handle.update(HTML(line))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            from IPython.display import HTML

            self._handle.update(HTML(""))


def _injected(namespace: Mapping[str, object]) -> list[str]:
    """Names assigned in the cell that papermill puts after the parameters."""
    names = []
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):
            for node in ast.parse(source).body:
                names += [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
    return names


def _literal(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
