"""All pictures, all maps, batch by batch: what is finished is stored, and an interrupted audit goes on from there."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import psutil
import torch
from torch import nn
from tqdm import tqdm

from attrobust import attacks, checks
from attrobust.attributions.importance import unwrapped
from attrobust.audit.measured import ATTACK, attacked
from attrobust.balls import Ball
from attrobust.experiments.store import Store
from attrobust.shapes import Attribution, Images
from attrobust.versions import digest

#: Share of the free memory that a batch may fill; and how many times what one image leaves for one backward pass an
#: image under attack needs (a second backward pass, the suite's objectives side by side; measured on convolutions).
FREE, TIMES = 0.4, 8

#: How many of the worst images of each map are kept as pictures.
KEPT = 4


@dataclass
class Audited:
    """What was found of every map on every picture."""

    table: pd.DataFrame = field(default_factory=pd.DataFrame)  # of `attacked`, with the map's name and its radius
    worst: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # by map: index, x, at, clean, moved
    refused: dict[str, str] = field(default_factory=dict)  # maps that could not be attacked, and why


def audited(
    model: nn.Module, x: Images, maps: Mapping[str, Attribution], *, radius: float, k: int, effort: attacks.Effort,
    seed: int, store: Store, named: str = "", batch: int = 0, say: Callable[[str], None] = lambda line: None,
) -> Audited:  # fmt: skip
    """Attack every map on all pictures.

    Args:
        model, x: a classifier in eval mode and pictures, (n, channels, height, width), two or more; each is compared
            with the next one, too.
        maps: by name.
        radius: of the linf ball, in units of the pixel range.
        k: leading pixels.
        effort, seed: of the attack.
        store: takes what is finished.
        named: what the network is called where its weights say all of it; "" for one whose code may change, too: then
            its answers to these pictures enter the name under which they are stored.
        batch: pictures at a time; 0 for as many as fit in free memory.
        say: takes a line of progress with the time that remains.

    A map that cannot be climbed is no robust one: it is refused, with the reason, and the others go on.
    """
    checks.count("batch", batch, least=0)
    if len(checks.images("x", x)) < 2:
        raise ValueError("x holds one picture; an audit compares each with another one, so that two are needed")
    result, parts, others = Audited(), [], x.roll(-1, 0)
    groups = torch.arange(len(x)).split(batch or fitting(model, x, effort))
    made, began, done, total = _made(model, x, named), time.monotonic(), 0, len(groups) * len(maps)
    for name, attribution in maps.items():
        rows, images, told = [], [], _told(attribution)
        for group in groups:
            pair, ball = (x[group], others[group]), Ball("linf", radius)
            config = {"model": made, "x": [*map(_bytes, pair)], "map": told, "ball": ball, "k": k, "seed": seed}
            key = digest(config | {"effort": effort, "functions": [attacked, attacks.auto]})
            try:
                how = {"ball": ball, "k": k, "effort": effort, "generator": torch.Generator().manual_seed(seed)}
                table, arrays = _stored(store, key) or _attacked(store, key, model, *pair, attribution, **how)
            except attacks.BlindError as error:
                result.refused[name] = str(error)
                done += len(groups) - len(rows)
                break
            done += 1
            left = tqdm.format_interval((time.monotonic() - began) / done * (total - done))
            say(f"{name}: {int(group[-1]) + 1} of {len(x)} pictures, about {left} remain")
            rows.append(table.assign(image=table["image"] + int(group[0])))
            images.append(arrays | {"index": arrays["index"] + int(group[0])})
        else:
            table = pd.concat(rows).sort_values(["compared", "image"], ignore_index=True)
            table = table.assign(map=name, radius=radius)
            parts.append(table)
            result.worst[name] = _worst(table, images)
    result.table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return result


def fitting(model: nn.Module, x: Images, effort: attacks.Effort) -> int:
    """How many pictures fit into a share of the free memory while they are attacked, by what one leaves; at least 1."""
    kept = {}

    def weigh(saved: torch.Tensor) -> torch.Tensor:
        kept[saved.data_ptr()] = saved.numel() * saved.element_size()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda saved: saved), torch.enable_grad():
        model(x[:1].detach().requires_grad_())
    rows = max(1, effort.restarts) * max(1, len(effort.objectives))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    each = TIMES * rows * max(1, sum(kept.values()) - weights)
    free = torch.cuda.mem_get_info(x.device)[0] if x.is_cuda else psutil.virtual_memory().available
    return int(max(1, min(len(x), FREE * free // each)))


def _attacked(
    store: Store, key: str, model: nn.Module, x: Images, others: Images, attribution: Attribution, **how: object
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """One batch, stored: its rows, and its worst pictures with their place in it."""
    found = attacked(model, x, attribution, others=others, **how)
    told = found.table[(found.table["compared"] == ATTACK) & found.table["top_k"].notna()]
    index = told.sort_values("top_k", kind="stable")["image"].to_numpy(copy=True)[:KEPT]
    tensors = {"x": x, "at": found.x, "clean": found.clean, "moved": found.moved}
    arrays = {name: t.detach().cpu().numpy()[index] for name, t in tensors.items()} | {"index": index}
    store.put_arrays("worst", key, arrays)
    store.put_table("attacked", key, found.table)
    return found.table, arrays


def _stored(store: Store, key: str) -> tuple[pd.DataFrame, dict[str, np.ndarray]] | None:
    if not store.table_file("attacked", key):
        return None
    arrays = store.arrays("worst", key)
    return None if arrays is None else (store.table("attacked", key), arrays)


def _worst(table: pd.DataFrame, images: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The pictures that keep the fewest leading pixels, the worst first."""
    both = {name: np.concatenate([part[name] for part in images]) for name in images[0]}
    left = table[table["compared"] == ATTACK].set_index("image")["top_k"].loc[both["index"]]
    order = np.argsort(left.to_numpy(), kind="stable")[:KEPT]
    return {name: values[order] for name, values in both.items()}


def _made(model: nn.Module, x: Images, named: str) -> str:
    """A network by its weights, and by its name, or by its text and what it answers."""
    weights = {name: _bytes(tensor) for name, tensor in model.state_dict().items()}
    if named:
        return digest({"name": named, "weights": weights})
    with torch.no_grad():
        logits = model(x[: min(len(x), 8)])
    return digest({"text": repr(model), "weights": weights, "logits": _bytes(logits)})


def _told(attribution: Attribution) -> dict[str, object]:
    """A map by its function, with its version if it has one, and its options by name."""
    function, options = unwrapped(attribution), dict(getattr(attribution, "keywords", {}))
    for name, value in options.items():
        if isinstance(value, nn.Module) or callable(value):
            options[name] = getattr(value, "__name__", type(value).__name__)
    name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"
    return {"function": name, "version": getattr(function, "version", 1), "options": options}


def _bytes(tensor: torch.Tensor) -> str:
    """Digest of a tensor's shape and bytes."""
    values = tensor.detach().cpu().contiguous()
    told = repr(tuple(values.shape)).encode() + values.flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(told).hexdigest()
