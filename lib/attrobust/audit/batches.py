"""All pictures, all maps, batch by batch: what is finished is stored, and an interrupted audit goes on from there."""

import hashlib
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import psutil
import torch
from torch import nn
from tqdm import tqdm

from attrobust import attacks, checks
from attrobust.attacks.audit import FAILING
from attrobust.attributions.importance import unwrapped
from attrobust.audit.measured import ATTACK, FEW, MEASURES, Attacked, attacked, attended
from attrobust.balls import Ball
from attrobust.experiments import explanations
from attrobust.experiments.store import Store
from attrobust.models import guards
from attrobust.models.readouts import predictions
from attrobust.precision import whole_products
from attrobust.shapes import Attribution, Images
from attrobust.versions import digest

#: Share of the free memory that a batch may fill; and how many times what one image leaves for one backward pass an
#: image under attack needs (a second backward pass, the suite's objectives side by side; measured on convolutions).
FREE, TIMES = 0.4, 8

#: How many of the worst images of each map are kept as pictures.
KEPT = 4

#: Columns of the table of an audit.
COLUMNS = ("image", "compared", *MEASURES, "output", "kept", "zero", "map", "radius")


@dataclass
class Audited:
    """What was found of every map on every picture.

    Example:
        >>> Audited(pd.DataFrame(), refused={"attention_flow": "it has no derivative"}).refused
        {'attention_flow': 'it has no derivative'}
    """

    table: pd.DataFrame  # of `attacked`, with the map's name and its radius; without a row where every map was refused
    worst: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # by map: index, x, at, clean, moved
    refused: dict[str, str] = field(default_factory=dict)  # maps that could not be attacked, and why


@whole_products()
def audited(
    model: nn.Module, x: Images, maps: Mapping[str, Attribution], *, radius: float, leading: float,
    effort: attacks.Effort, seed: int, store: Store | None = None, named: str = "", batch: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Audited:  # fmt: skip
    """Attack every map on all pictures.

    Args:
        model, x: a classifier in eval mode and pictures, (n, channels, height, width), two or more; each is compared
            with the next one that is given another class, too.
        maps: by name.
        radius: of the linf ball, in units of the pixel range.
        leading: share of a map's places that counts as leading, between 0 and 1.
        effort, seed: of the attack.
        store: takes what is finished; None keeps nothing.
        named: what the network is called where its weights say all of it; "" for one whose code may change, too: then
            its answers to all pictures enter the name under which they are stored.
        batch: pictures at a time; 0 for a power of two that fits in free memory. Batch by batch it is decided whether a
            map is climbed through smooth twins, or cannot be climbed: pictures of such a batch are not attacked (NaN),
            and if they are more than a fifth of all, the map is refused.
        say: takes a line of progress with the time that remains.

    A map that cannot be climbed is no robust one: it is refused, with the reason, and the others go on.

    Raises:
        ValueError: one picture, images out of [0, 1], a `batch` below 0, or `leading` out of [0, 1].

    Example:
        >>> from attrobust import attributions, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x = torch.linspace(0.1, 0.9, 32).view(2, 1, 4, 4)
        >>> effort = attacks.Effort(steps=2, restarts=1, draws=2, walk=0, objectives=("cosine",))
        >>> how = {"radius": 0.1, "leading": 0.25, "effort": effort, "seed": 0}
        >>> found = audited(model, x, {"saliency": attributions.saliency}, **how)
        >>> found.table[["map", "radius"]].drop_duplicates().to_numpy().tolist(), found.refused
        ([['saliency', 0.1]], {})
    """
    checks.count("batch", batch, least=0)
    checks.at_least("leading", leading, 0, most=1)
    if len(checks.images("x", x)) < 2:
        raise ValueError("x holds one picture; an audit compares each with another one, so that two are needed")
    answers, ball = answers_of(model, x), Ball("linf", radius)
    result, parts = Audited(pd.DataFrame(columns=COLUMNS)), []
    groups = torch.arange(len(x)).tensor_split(-(-len(x) // (batch or fitting(model, x, effort))))
    others, made = x[others_of(answers.argmax(1))], _made(model, answers, named)
    costs = {name: _seconds(attribution, model, x[:1]) for name, attribution in maps.items()}
    began, done, total = time.monotonic(), 0.0, len(groups) * sum(costs.values())
    for name, attribution in maps.items():
        rows, images, blind = [], [], 0
        for group in groups:
            pair = x[group], others[group]
            try:
                k, told = leaders_of(attribution, model, pair[0], leading), _told(attribution, model, pair[0])
                config = {"model": made, "x": [*map(_bytes, pair)], "map": told, "ball": ball, "k": k, "seed": seed}
                key = digest(config | {"effort": effort, "functions": [attacked, attacks.auto]})
                how = {"ball": ball, "k": k, "effort": effort, "generator": torch.Generator().manual_seed(seed)}
                table, arrays = _stored(store, key) or _attacked(store, key, model, *pair, attribution, **how)
            except ValueError as error:  # BlindError, and what else a map may be refused for
                blind += len(group)
                if not isinstance(error, attacks.BlindError) or blind > FAILING * len(x):
                    result.refused[name] = str(error)
                    done += (len(groups) - len(rows)) * costs[name]
                    break
                how["generator"] = torch.Generator().manual_seed(seed)  # the noise of any batch
                table, arrays = _not_attacked(model, *pair, attribution, **how)
            done += costs[name]
            left = tqdm.format_interval((time.monotonic() - began) / done * (total - done))
            say(f"{name}: {int(group[-1]) + 1} of {len(x)} pictures, about {left} remain")
            rows.append(table.assign(image=table["image"] + int(group[0])))
            images.append(arrays | {"index": arrays["index"] + int(group[0])})
        else:
            table = pd.concat(rows).sort_values(["compared", "image"], ignore_index=True)
            parts.append(table.assign(map=name, radius=radius))
            result.worst[name] = _worst(table, images)
    if parts:
        result.table = pd.concat(parts, ignore_index=True)
    return result


def fitting(model: nn.Module, x: Images, effort: attacks.Effort) -> int:
    """How many pictures, a power of two or all, fit into a share of the free memory while they are attacked.

    Told by what one picture leaves for a backward pass, weights aside; at least 1.

    Example:
        >>> fitting(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(5, 1, 2, 2), attacks.Effort())
        5
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def weigh(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = max(storage.nbytes(), kept.get(storage.data_ptr(), 0))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda saved: saved), torch.enable_grad():
        model(x[:1].detach().requires_grad_())
    rows = max(1, effort.restarts) * max(1, len(effort.objectives))
    each = TIMES * rows * max(x[0].numel() * x.element_size(), sum(kept.values()))
    free = torch.cuda.mem_get_info(x.device)[0] if x.is_cuda else psutil.virtual_memory().available
    most = max(1, int(FREE * free // each))
    return len(x) if most >= len(x) else 2 ** (most.bit_length() - 1)


@whole_products()
def remembered(
    store: Store, function: Callable[..., pd.DataFrame], model: nn.Module, x: Images, maps: Mapping[str, Attribution],
    *, named: str, seed: int, **options: object,
) -> pd.DataFrame:  # fmt: skip
    """The table that `function(model, x, maps, seed=seed, **options)` returns, computed once; `named` as in `audited`.

    An option that is a function of its own (`say`) changes nothing in the table.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from attrobust.audit.measured import turns
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((1, 1, 2, 2), 0.5)
        >>> with TemporaryDirectory() as out:
        ...     store = Store("mine", out=f"{out}/mine", committed=False)
        ...     remembered(store, turns, linear, x, {}, named="", seed=0)["relative_curvature"].tolist()
        [0.0]
    """
    told = {name: _told(attribution, model, x) for name, attribution in maps.items()}
    config = {"model": _made(model, answers_of(model, x), named), "x": _bytes(x), "maps": told, "seed": seed}
    config |= {n: _bytes(v) if isinstance(v, torch.Tensor) else v for n, v in options.items() if not callable(v)}
    name, key = function.__name__, digest(config | {"function": function})
    if not store.table_file(name, key):
        store.put_table(name, key, function(model, x, maps, seed=seed, **options))
    return store.table(name, key)


def rows_of_attention(store: Store, model: nn.Module, x: Images, *, named: str, seed: int) -> tuple[pd.DataFrame, str]:
    """Means of `attended` over pictures, a row per block, and ""; of a model without such rows none, and the reason.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.full((1, 1, 2, 2), 0.5)
        >>> with TemporaryDirectory() as out:
        ...     store = Store("mine", out=f"{out}/mine", committed=False)
        ...     rows_of_attention(store, linear, x, named="", seed=0)[1]
        'model is Sequential, which does not tell its attention: it has no `attend`'
    """
    try:
        table = remembered(store, attended, model, x, {}, named=named, seed=seed)
    except (ValueError, RuntimeError) as error:
        return pd.DataFrame(columns=["block", "entropy", "mass"]), str(error)
    return table.groupby("block", as_index=False)[["entropy", "mass"]].mean(), ""


def answers_of(model: nn.Module, x: Images) -> torch.Tensor:
    """Logits of all pictures, of a network that can be explained."""
    parts = []
    for part in x.split(FEW):
        guards.classifier(model, part)
        with torch.no_grad():
            parts.append(model(part))
    return torch.cat(parts)


def others_of(given: torch.Tensor) -> torch.Tensor:
    """For each picture the place of the next one that is given another class; of the next one, if there is none."""
    given = given.tolist()
    n, places = len(given), []
    for i in range(n):
        following = [j % n for j in range(i + 1, i + n)]
        places.append(next((j for j in following if given[j] != given[i]), following[0]))
    return torch.tensor(places)


def leaders_of(attribution: Attribution, model: nn.Module, x: Images, leading: float) -> int:
    """How many places of a map lead.

    Example:
        >>> from attrobust import attributions
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        >>> leaders_of(attributions.saliency, linear, torch.full((1, 1, 4, 4), 0.5), leading=0.25)
        4
    """
    found = explanations.clean_maps(attribution, model, x[:1], predictions(model, x[:1]), 0)
    return max(1, round(leading * found[0, 0].numel()))


def _seconds(attribution: Attribution, model: nn.Module, x: Images) -> float:
    """What a map costs beside another, by the quicker of two tries, so that the time that remains can be told."""
    tries = []
    for _ in range(2):
        began = time.perf_counter()
        with suppress(ValueError):  # it is refused where it is attacked
            explanations.clean_maps(attribution, model, x, predictions(model, x), 0)
        tries.append(time.perf_counter() - began)
    return min(tries)


def _told(attribution: Attribution, model: nn.Module, x: Images) -> object:
    """What a map is: its name, version and options, or, where these may not say all, the maps of all pictures."""
    function, options = unwrapped(attribution), getattr(attribution, "keywords", {})
    plain = all(isinstance(value, int | float | str | Ball) or _ours(value) for value in options.values())
    one = isinstance(attribution, partial) and not attribution.args and attribution.func is function
    if not (_ours(function) and hasattr(function, "version") and plain and (one or attribution is function)):
        return _bytes(explanations.clean_maps(attribution, model, x, predictions(model, x), 0))
    return {"function": function, "options": {n: getattr(value, "__qualname__", value) for n, value in options.items()}}


def _ours(value: object) -> bool:
    """Whether it is a function that stands in a module of this library under its own name."""
    home = sys.modules.get(getattr(value, "__module__", ""), None)
    return str(getattr(value, "__module__", "")).startswith("attrobust.") and (
        getattr(home, getattr(value, "__qualname__", ""), None) is value
    )


def _attacked(
    store: Store | None, key: str, model: nn.Module, x: Images, others: Images, attribution: Attribution, **how: object
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """One batch, stored: its rows, and its worst pictures with their place in it."""
    found = attacked(model, x, attribution, others=others, **how)
    told = found.table[(found.table["compared"] == ATTACK) & found.table["top_k"].notna()]
    index = told.sort_values("top_k", kind="stable")["image"].to_numpy(copy=True)[:KEPT]
    arrays = _arrays(found, x, index)
    if store is not None:
        store.put_arrays("worst", key, arrays)
        store.put_table("attacked", key, found.table)
    return found.table, arrays


def _not_attacked(
    model: nn.Module, x: Images, others: Images, attribution: Attribution, *, effort: attacks.Effort, **how: object
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Rows of a batch whose maps cannot be climbed: those of noise and other images; NaN for the attack."""
    found = attacked(model, x, attribution, others=others, effort=replace(effort, steps=0, draws=1, walk=0), **how)
    found.table.loc[found.table["compared"] == ATTACK, [*MEASURES, "output", "kept"]] = float("nan")
    return found.table, _arrays(found, x, np.array([], dtype=int))


def _arrays(found: Attacked, x: Images, index: np.ndarray) -> dict[str, np.ndarray]:
    tensors = {"x": x, "at": found.x, "clean": found.clean, "moved": found.moved}
    return {name: t.detach().cpu().numpy()[index] for name, t in tensors.items()} | {"index": index}


def _stored(store: Store | None, key: str) -> tuple[pd.DataFrame, dict[str, np.ndarray]] | None:
    if store is None or not store.table_file("attacked", key):
        return None
    arrays = store.arrays("worst", key)
    return None if arrays is None else (store.table("attacked", key), arrays)


def _worst(table: pd.DataFrame, images: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The pictures that keep the fewest leading pixels, the worst first."""
    both = {name: np.concatenate([part[name] for part in images]) for name in images[0]}
    left = table[table["compared"] == ATTACK].set_index("image")["top_k"].loc[both["index"]]
    order = np.argsort(left.to_numpy(), kind="stable")[:KEPT]
    return {name: values[order] for name, values in both.items()}


def _made(model: nn.Module, answers: torch.Tensor, named: str) -> str:
    """A network by its weights, and by its name, or by its text and what it answers."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    weights = {name: _bytes(tensor) for name, tensor in state.items()}
    if named:
        return digest({"name": named, "weights": weights})
    return digest({"text": repr(model), "weights": weights, "logits": _bytes(answers)})


def _bytes(tensor: torch.Tensor) -> str:
    """Digest of a tensor's shape and bytes."""
    values = tensor.detach().cpu().contiguous()
    told = repr(tuple(values.shape)).encode() + values.flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(told).hexdigest()
