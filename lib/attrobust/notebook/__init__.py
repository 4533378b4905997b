"""The seam between a notebook's parameters cell and the library: read, check, open the store, show progress.

A notebook declares its parameters by annotations in its own cell, `seeds: list[int] = [0]`. Values come from that cell,
from papermill's injected cell (which only warns about unknown names, and hands lists over as text) and from the runner;
all are checked here, before any work. `null` stands for the value that the cell declares.
"""

import ast
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

from IPython import display

from attrobust import attacks, audit, checks, data, experiments, models, paths, training
from attrobust.attacks.streams import stochastic
from attrobust.experiments.store import Store, place_for
from attrobust.studies import explicit_regularizers, interpretable_gradients

#: Whole numbers from 0; and lists that may be empty: what they ask for is then left out.
SEEDS = ("seed", "seeds", "other_seeds", "drop_in_seeds", "strong_seeds", "curve_seeds", "pilot_seeds", "queried_seeds")
MAY_BE_EMPTY = (
    "strong_seeds", "curve_seeds", "pilot_seeds", "large_steps", "middle_steps", "factors", "other_budgets",
    "other_networks", "other_maps", "other_recipes", "base_networks", "strong_networks", "photographs",
    "shown_photographs", "relu_methods", "further_arms", "explained_arms", "queried_arms", "truth_arms", "trainings",
    "followed", "maps", "mean", "std",
)  # fmt: skip

#: Lists with a number for each channel, which may repeat one; in any other a value stands once.
PER_CHANNEL = ("mean", "std")

#: Parameters whose numbers have another range than their type (whole numbers from 1, others above 0).
RANGES: dict[str, Callable[[str, float], object]] = {
    **dict.fromkeys((*SEEDS, "jobs", "size", "channels", "batch"), partial(checks.count, least=0)),
    **dict.fromkeys(("n_pictures", "n_curve", "cases"), partial(checks.count, least=2)),
    "leading": partial(checks.at_least, least=0.001, most=0.999),
    "mean": checks.number,
    **dict.fromkeys(("radius", "radii", "curve_radii"), partial(checks.at_least, least=0, most=255)),
    "token_counts": lambda name, n: checks.count(name, checks.count(name, n, least=2), least=2, most=100_000),
    "keys": lambda name, n: checks.count(name, checks.count(name, n, least=10), least=10, most=10_000),
}

#: Values that a list may hold, and characters of a sentence.
LONGEST_LIST, LONGEST_SENTENCE = 1000, 300

#: Names of the sets of parameters that a reproduction takes.
PROFILES = ("smoke", "cpu", "full", "gpu", "headline")

#: Parameters that are one name out of several, or a list of such.
CHOICES: dict[str, Sequence[str]] = {"dataset": data.NAMES, "datasets": data.NAMES, "device": ("cpu", "cuda")}
CHOICES |= {"vits": tuple(experiments.VITS), "activations": tuple(models.ACTIVATIONS)}
CHOICES |= dict.fromkeys(("protocols", "recipes", "other_recipes"), tuple(training.recipes.RECIPES))
CHOICES |= {"claims_of": ("committed", *PROFILES)}
#: A network and its data set; maps are those of pixels, and of attention.
NETWORKS = tuple(dict.fromkeys(f"{architecture} {dataset}" for architecture, dataset, _ in experiments.RADII))
CHOICES |= dict.fromkeys(("networks", "transfer_network", "truth_network"), NETWORKS)
CHOICES |= dict.fromkeys(("other_networks", "base_networks", "strong_networks"), NETWORKS)
CHOICES |= dict.fromkeys(("regularized_networks", "smoothed_networks"), tuple(explicit_regularizers.PASSES))
CHOICES |= dict.fromkeys(("transfer_methods", "relu_methods"), tuple(explicit_regularizers.METHODS))
CHOICES |= {"other_maps": tuple(dict.fromkeys(name for *_, name in experiments.RADII))}
CHOICES |= {"maps": tuple(dict.fromkeys((*CHOICES["other_maps"], *audit.NAMES)))}
CHOICES |= {"transfer_maps": experiments.explaining("mlp", experiments.of_pixels())}
CHOICES |= {"readout": tuple(experiments.READOUTS)}
CHOICES |= {"trainings": audit.WAYS}
CHOICES |= {"followed": tuple(f"{network} {activation}" for network in NETWORKS for activation in models.ACTIVATIONS)}
CHOICES |= {"photo_maps": audit.NAMES}
CHOICES |= dict.fromkeys(("photographs", "shown_photographs"), tuple(data.PHOTOGRAPHS))
CHOICES |= {"objectives": tuple(attacks.CLIMBABLE)}
CHOICES |= {"protected_networks": tuple(interpretable_gradients.STRENGTHS)}
CHOICES |= dict.fromkeys(
    ("arms", "further_arms", "explained_arms", "queried_arms", "truth_arms"), tuple(interpretable_gradients.METHODS)
)
CHOICES |= {"truth_maps": [n for n in CHOICES["transfer_maps"] if not stochastic(experiments.of_pixels()[n])]}

#: Marks a picture that only copies of a notebook show.
COPIED = "attrobust_copy"

#: What a list of a type holds.
_LISTED = {"int": "numbers, such as [1, 2]", "float": "numbers, such as [1, 2]", "bool": "flags", "str": "names"}


def settings(namespace: Mapping[str, object], *, quiet: bool = False, picture: str = "") -> SimpleNamespace:
    """Checked parameters of a notebook as attributes, from its `globals()` right after its parameters.

    A name that papermill injects and the notebook does not declare is refused, even if another notebook has it. What
    differs from the values that the notebook declares, of which its text speaks, is printed unless `quiet`. A notebook
    with injected parameters, or that runs outside notebooks/, is a copy elsewhere, from where the link of the picture
    under its answer leads nowhere: such a copy shows `picture`, a file under figures/, itself.

    Example:
        >>> settings({"In": ["seeds: list[int] = [0]"], "seeds": "[0]"}).seeds
        [0]
    """
    chosen = _settings(namespace)
    if not quiet and (changed := _changed(namespace, chosen)):
        told = "; ".join(f"{n} = {checks.short(now)}, not {checks.short(own)}" for n, (now, own) in changed.items())
        print(f"!!! Not the committed run: {told}. Text and words beside figures speak of the committed one.")
    copied = picture and (_injected(namespace) or Path.cwd() != paths.notebooks.resolve())
    if copied and (path := paths.figures / picture).is_file():
        alt = "The figure of the committed run that stands under the answer, as a copy of this notebook shows it"
        display.display(display.Image(path), metadata={"image/png": {"alt": alt}, COPIED: True})
    return chosen


def _settings(namespace: Mapping[str, object]) -> SimpleNamespace:
    cells, own = _cells(namespace), _own(namespace)
    types = {name: kind for source in cells for name, kind in declared(source).items()}
    # Without a history (nbval, a script) the annotations themselves are there; from Python 3.14 on the history alone.
    types |= {name: inspect.formatannotation(kind) for name, kind in namespace.get("__annotations__", {}).items()}
    try:
        for name in sorted(_injected(namespace)):
            if not name.startswith("PAPERMILL_"):  # papermill --inject-paths
                accept(name, types)
        given = {name: namespace[name] for name in types if name in namespace}
        return SimpleNamespace(**checked({n: own.get(n) if _null(v) else v for n, v in given.items()}, types))
    except ValueError as error:
        raise ValueError(sentence(error)) from None


def _injected(namespace: Mapping[str, object]) -> set[str]:
    """Names to which papermill's own cell gives a value."""
    lines = [s for source in _cells(namespace) if source.startswith("# Parameters\n") for s in _statements(source)]
    targets = [target for line in lines if isinstance(line, ast.Assign) for target in line.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def as_declared(namespace: Mapping[str, object]) -> bool:
    """Whether all that evidence depends on has the value that the notebook's own cell declares.

    Example:
        >>> cells = ["seeds: list[int] = [0]"]
        >>> as_declared({"In": cells, "seeds": [0]}), as_declared({"In": cells, "seeds": [1]})
        (True, False)
    """
    return not _changed(namespace, _settings(namespace))


def _changed(namespace: Mapping[str, object], chosen: SimpleNamespace) -> dict[str, tuple[object, object]]:
    """What evidence depends on and has another value than the notebook's own cell declares: both values, by name."""
    own, free = _own(namespace), ("jobs", "out", "committed")
    types = {name: kind for source in _cells(namespace) for name, kind in declared(source).items()}
    now = vars(chosen)
    both = {name: (now[name], value) for name, value in checked(own, types).items() if name in now}
    return {name: (mine, value) for name, (mine, value) in both.items() if name not in free and mine != value}


def _cells(namespace: Mapping[str, object]) -> list[str]:
    return [str(source) for source in namespace.get("In", [])]


def _own(namespace: Mapping[str, object]) -> dict[str, object]:
    """Values that the cells declare."""
    declarations = [declared(source, "value").items() for source in _cells(namespace)]
    return {name: _literal(value) for values in declarations for name, value in values}


def sentence(error: object) -> str:
    """What is wrong, on one line; the middle of a long sentence is left out, so that it still ends with the remedy.

    Example:
        >>> sentence(ValueError("  one   line "))
        'one line'
    """
    text = " ".join(str(error).split()).encode(errors="backslashreplace").decode()
    half = LONGEST_SENTENCE // 2 - 3
    return text if len(text) <= LONGEST_SENTENCE else f"{text[:half]} ... {text[-half:]}"


def declared(source: str, part: str = "annotation") -> dict[str, str]:
    """Names that a cell declares, with their types (or values) as written; none where it is not plain Python.

    Example:
        >>> declared("seeds: list[int] = [0]"), declared("seeds: list[int] = [0]", "value")
        ({'seeds': 'list[int]'}, {'seeds': '[0]'})
    """
    return {name: parts[part] for name, parts in _declarations(source) if part in parts}


@lru_cache  # a notebook asks for types and values of its cells several times
def _declarations(source: str) -> tuple[tuple[str, dict[str, str]], ...]:
    """Name, type and value of each declaration of a cell, as written."""
    annotated = [s for s in _statements(source) if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
    written = [{n: ast.unparse(part) for n in ("annotation", "value") if (part := getattr(s, n))} for s in annotated]
    return tuple((s.target.id, parts) for s, parts in zip(annotated, written, strict=True))


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []


def checked(values: Mapping[str, object], types: Mapping[str, str]) -> dict[str, object]:
    """Those values that belong to a declared parameter, read as its type (text stands for what it says) and checked.

    Raises:
        ValueError: a value that is not of the declared type, or out of its range.

    Example:
        >>> checked({"seeds": "[0, 1]", "other": 3}, {"seeds": "list[int]"})
        {'seeds': [0, 1]}
    """
    return {name: _read(name, values[name], kind) for name, kind in types.items() if name in values}


def _null(value: object) -> bool:
    """Whether a value stands for the declared one, as YAML and Python write it."""
    return value is None or (isinstance(value, str) and value.lower() in ("null", "none"))


def _read(name: str, value: object, kind: str) -> object:
    """A value of any type that can be declared."""
    inner = kind.removeprefix("list[").removesuffix("]")
    if inner not in _LISTED:
        known = ", ".join(_LISTED)
        raise ValueError(f"parameter {name!r} is declared as {kind}; accepted are {known}, and lists such as list[int]")
    if inner == kind:
        return _one(name, value, kind)
    values = _literal(value)
    if inner == "str" and isinstance(values, str):
        values = [values]
    if not isinstance(values, list | tuple) or not (values or name in MAY_BE_EMPTY):
        what = f"names out of {', '.join(CHOICES[name])}" if name in CHOICES else _LISTED[inner]
        raise ValueError(f"{name} is {checks.short(value)}; it must be a list of {what}")
    if len(values) > LONGEST_LIST:
        raise ValueError(f"{name} holds {len(values)} values; at most {LONGEST_LIST} are accepted")
    read = [_one(name, v, inner) for v in values]
    if name not in PER_CHANNEL and any(v in read[:i] for i, v in enumerate(read)):
        raise ValueError(f"{name} is {value!r}; every value must stand there once")
    return read


def _one(name: str, value: object, kind: str) -> object:
    """A single value: a number, a flag, one name out of several, or a text."""
    if kind in ("int", "float"):
        return RANGES.get(name, checks.count if kind == "int" else checks.positive)(name, _literal(value))
    if kind == "bool":
        value = {"true": True, "false": False}.get(str(value).lower(), value)
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; it must be true or false")
        return value
    if name == "out" and not (isinstance(value, str) and value == ""):
        return str(place_for(value))
    if name in CHOICES:
        return checks.one_of(name, value, CHOICES[name])
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} is {value!r}; it must be text")
    return str(value)


def _literal(value: object) -> object:
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def accept(name: str, accepted: Collection[str], *, by: str = "") -> None:
    """Refuse a parameter name that is not among those accepted (by a notebook): a ValueError with the nearest one.

    Example:
        >>> accept("seed", ["seeds", "device"])
        Traceback (most recent call last):
            ...
        ValueError: parameter 'seed' is unknown; accepted are device, seeds; did you mean 'seeds'?
    """
    if name not in accepted:
        to, hint = f" to {by}" if by else "", checks.meant(name, accepted)
        raise ValueError(f"parameter {name!r} is unknown{to}; accepted are {', '.join(sorted(accepted))}{hint}")


def open_store(notebook: str, chosen: SimpleNamespace, *, shares: Sequence[str] = ()) -> Store:
    """The store of a notebook (by its stem) and its parameters; evidence of those it shares with serves it too.

    A DataError asks for a data set where none that the parameters name is on this machine, or in a committed row.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as out:
        ...     store = open_store("11_new", SimpleNamespace(out=f"{out}/new", committed=False, device="cpu"))
        ...     store.committed
        []
    """
    store = Store(notebook, out=chosen.out, committed=chosen.committed, shares=shares, device=chosen.device)
    store.summarise()  # of a notebook that trains nothing, too
    vits = [experiments.VITS[name]["dataset"] for name in getattr(chosen, "vits", ())]
    of_networks = [experiments.sized(*name.split())["dataset"] for name in getattr(chosen, "networks", ())]
    asked = sorted({*getattr(chosen, "datasets", ()), *vits, *of_networks}, key=data.download_size)
    if asked and not any(map(data.available, asked)) and not store.data_sets & set(asked):
        raise data.DataError(experiments.none_here(asked))
    return store


def left_out(store: Store) -> str:
    """What of the grid is missing, said loudly; or that nothing is.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as out:
        ...     left_out(Store("11_new", out=f"{out}/new", committed=False))
        'nothing of the grid is left out'
    """
    if not store.left_out:
        return "nothing of the grid is left out"
    return "\n".join(f"!!! LEFT OUT: {n} networks, because {reason}" for reason, n in store.left_out.items())


def origin(store: Store) -> str:
    """Where the evidence of a notebook came from, and where what it made has gone: a line each.

    Example:
        >>> print(origin(Store("03_sgd_flattens")))  # doctest: +ELLIPSIS
        committed (figures/03_sgd_flattens): 0 networks, 0 tables
        ...
    """
    new = sum(path.is_relative_to(store.out) for path in store.tables)
    read, to = " ".join(str(below_root(folder)) for folder in store.committed), below_root(store.out)
    return (
        f"committed ({read or 'not read'}): {len(store.reused)} networks, {len(store.tables) - new} tables\n"
        f"computed by this run or one before it ({to}): {len(store.trained)} networks, {new} tables\n"
        f"figures and claims of this run: {to}"
    )


def below_root(folder: Path) -> Path:
    """A folder as seen from the root of the checkout, if it lies there.

    Example:
        >>> below_root(paths.root / "build").name
        'build'
    """
    return folder.relative_to(paths.root) if folder.is_relative_to(paths.root) else folder


class Progress:
    """One line of progress under a running cell; it disappears when the cell is done, so outputs stay clean.

    Example:
        >>> with Progress() as show:
        ...     show("1 of 2")
        <IPython.core.display.HTML object>
    """

    _handle: display.DisplayHandle | None = None
    _ended = False

    def __enter__(self) -> "Progress":
        return self

    def __call__(self, line: str) -> None:
        """Show `line` in place of the one before; nothing when the cell is done."""
        if self._ended:
            return
        if self._handle:
            self._handle.update(display.HTML(line))
        else:
            self._handle = display.display(display.HTML(line), display_id=True)

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._handle:
            self._handle.update(display.HTML(""))
