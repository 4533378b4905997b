"""What notebook 07 alone calls: pictures of links, maps and radii; what a kernel costs; two controls.

Costs are CPU seconds of this process, all kernels in turn on one thread, the first of all rounds not counted. Timings
are rows like any other evidence. The first control reads the same scores out twice; the second swaps the attention of a
trained transformer of Hugging Face and trains on until the accuracy is flat, beside one that gets softmax for softmax
and trains on by the same rule.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import attacks, attention, attributions, data, models, similarity, swap, training
from attrobust.attacks import Effort
from attrobust.balls import Ball
from attrobust.experiments.explanations import cls_rows, compared, under_attack
from attrobust.experiments.measure import dataset, small_vit
from attrobust.shapes import Images
from attrobust.theory import entropy, kernels
from attrobust.theory.draws import Source
from attrobust.theory.tally import NamedValues, equalities, named_values
from attrobust.versions import versioned

FUSED = "fused softmax"  # of torch: no matrix, hence nothing to explain, and no second derivative
UNFORMED = "linear, matrix not formed"  # linear attention bracketed from the right: no matrix either
_PATCH = 2


@versioned(1)
def scale_sweep(factors: Sequence[float], keys: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Relative entropy of normal rows under every link while their scores are multiplied."""
    parts = []
    for seed in seeds:
        s = 2 * Source(seed).normal(1, keys)
        scaled = torch.tensor(factors, dtype=s.dtype)[:, None] * s
        for kind in kernels.KINDS:
            share = entropy.softmax_entropy(kernels.log_weight(scaled, kind=kind)) / entropy.softmax_entropy(0 * s)
            parts.append(pd.DataFrame({"kernel": kind, "factor": factors, "seed": seed, "value": share.numpy()}))
    return pd.concat(parts)


@versioned(1)
def link_curves(reach: float, points: int) -> pd.DataFrame:
    """Slope and elasticity of every link over the scores from -reach to reach."""
    s = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return pd.concat(
        pd.DataFrame({"kernel": kind, "name": name, "score": s, "value": function(s, kind=kind)})
        for kind in kernels.KINDS
        for name, function in (("slope", kernels.slope), ("elasticity", kernels.elasticity))
    ).dropna()


@named_values(version=1)
def evidence_sweep(shifts: Sequence[float], keys: int, seeds: Sequence[int], *, k: int = 5) -> NamedValues:
    """Similarity of maps before and after noise, while 18 rows that know nothing are lowered beside 2 that know.

    The two share one pattern of size 2; the 18 have scores of size 1 of their own. Noise of size 0.8 meets all scores.
    """
    maps = {"softmax": lambda s: s.softmax(1).mean(0), "exp": lambda s: kernels.shared_map(s, kind="exp")}
    maps["sigmoid"] = lambda s: kernels.shared_map(s - math.log(keys), kind="sigmoid")
    maps["ReLU"] = lambda s: kernels.shared_map(s, kind="ReLU")
    for shift in shifts:
        for seed in seeds:
            g = Source(seed)
            pattern, own, noise = g.normal(1, keys), g.normal(18, keys), g.normal(20, keys)
            s = torch.cat([2 * pattern.expand(2, keys), own - shift])
            for name, of in maps.items():
                a, b = (of(u)[None, None] for u in (s, s + 0.8 * noise))
                numbers = {
                    f"top-{k}": similarity.topk_intersection(a, b, k=k),
                    "Spearman": similarity.spearman(a, b),
                    "plain cosine": similarity.cosine(a[None], b[None]),
                }
                yield {"kernel": name, "shift": shift, "seed": seed}, numbers


@versioned(1)
def swap_radii(cases: int, seed: int) -> pd.DataFrame:
    """Radius under distance over radius under the dot product, over the mean distance in lengths of the query."""
    g = Source(seed)
    query, *keys = g.normal(3, cases, 8)
    keys = [n * k + (1 - n) * query for n, k in zip(g.uniform(2, cases, 1), keys, strict=True)]
    length, parts = query.norm(dim=1, keepdim=True), []
    even = [length * k / k.norm(dim=1, keepdim=True) for k in keys]
    for name, pair in (("keys of the query's length", even), ("keys of any length", keys)):
        dot, far = (kernels.radius(kernels.ordered(query, *pair, score), score) for score in ("dot", "distance"))
        mean = sum((k - query).norm(dim=1) for k in pair) / 2
        parts.append(pd.DataFrame({"name": name, "x": mean / length[:, 0], "y": far / dot}))
    return pd.concat(parts)


@versioned(1)
def attained_by_kernels() -> pd.DataFrame:
    """Both sides of the inequalities about kernels on their equality examples; drift is attained in the limit."""
    two, c = torch.tensor([0.0, 2.0], dtype=torch.float64), 1 + 1e-7  # two keys times a factor near 1
    varies = math.log(c) * kernels.elasticity(c * two, kind="exp").max()
    low = torch.tensor([-9.0, -7.0, -8.0], dtype=torch.float64)  # scores below 0, where elu + 1 is exp
    logs = [kernels.log_weight(u, kind="elu + 1") for u in (low, low - 3, low + torch.tensor([1.0, -2.0, 0.5]))]
    tilt = torch.tensor([[1.3, -1.3]] * 3, dtype=torch.float64)
    gained, limit = tilt.softmax(1) - (-tilt).softmax(1), entropy.total_variation_bound(entropy.oscillation(2 * tilt))
    # Two rows, each with all its weight on one key; the second row's key changes.
    steady, turned = torch.full((2, 2, 3), -60.0, dtype=torch.float64)
    steady[0, 0] = steady[1, 1] = turned[0, 0] = turned[1, 2] = 0.0
    before, after = (kernels.shared_map(u, kind="exp") for u in (steady, turned))
    # The query at 0 and keys at distance 0.7, which is one width of the Gaussian.
    at = torch.tensor([0.7, 0.7], dtype=torch.float64, requires_grad=True)
    own = torch.exp(-at.square() / (2 * 0.7**2))
    (steep,) = torch.autograd.grad(own.sum(), at, retain_graph=True)
    (normed,) = torch.autograd.grad(own[0] / own.sum(), at)
    return equalities({
        ("P27", "factor near 1"): (entropy.oscillation(c * two - two), varies),
        ("P28", "one key up, one down"): (entropy.oscillation(logs[2] - logs[0]), 3.0),
        ("P29", "scores below 0"): (logs[0].logsumexp(0) - logs[1].logsumexp(0), 3.0),
        ("P29", "all rows swap"): (gained.mean(0).abs().sum(), 2 * limit.mean()),
        ("P29", "half the mass moves"): ((after - before).abs().sum(), 1.0),
        ("P30", "two keys swap"): (gained[0, 0], limit[0]),
        ("P31", "Gaussian at one width"): (steep[0].abs(), math.exp(-0.5) / 0.7),
        ("P31", "two keys as near"): (normed[0].abs(), 0.7 / (4 * 0.7**2)),
    })  # fmt: skip


@versioned(2)
def read_out_twice(model: nn.Module, x: Images, *, radius: float, steps: int, restarts: int, seed: int) -> pd.DataFrame:
    """How steady the ranks of CLS rows are under an attack on raw attention, by two read-outs of the same scores.

    A strictly increasing kernel ranks the keys of one row as a softmax of its scores does, so row by row the two
    columns must agree (P32); a mean of rows (the heads of a block) need not. One row per image and `map` ("one row":
    mean over heads; "mean of heads"): Spearman correlation, in float64, of clean and attacked weights under the model's
    `own` kernel and under `softmax`. The attack moves the Pearson correlation of raw attention, the predicted class
    held; the linf radius is in 1/255 of the pixel range.
    """
    effort = Effort(steps=steps, restarts=restarts, draws=0, walk=0, objectives=("pearson",))
    how = {"k": 1, "effort": effort, "generator": torch.Generator().manual_seed(seed)}
    found = attacks.auto(attributions.raw_attention, model, x, Ball("linf", radius / 255), **how)
    kernel, columns = model.blocks[-1].attention.kernel, {}
    readouts = {"own": lambda s: kernel.weights(s[:, :, None])[:, :, 0], "softmax": lambda s: s.softmax(-1)}
    with torch.no_grad():
        scores = [cls_rows(model, images)[0].double() for images in (x, found.x["pearson"])]
    for name, read in readouts.items():
        clean, moved = (read(s)[:, :, 1:] for s in scores)
        heads = similarity.spearman(clean.flatten(0, 1)[:, None], moved.flatten(0, 1)[:, None])
        mean = similarity.spearman(clean.mean(1)[:, None], moved.mean(1)[:, None])
        columns[name] = torch.cat([heads.view(len(x), -1).mean(1), mean]).tolist()
    maps = ["one row"] * len(x) + ["mean of heads"] * len(x)
    return pd.DataFrame({"image": [*range(len(x))] * 2, "map": maps, **columns})


@versioned(4)
def drop_in(
    names: Sequence[str], seed: int, *, n_train: int, n_attacked: int, epochs: int, most: int, last: int, margin: float,
    step_size: float, radius: float, effort: Effort,
) -> pd.DataFrame:  # fmt: skip
    """Train a small ViT of transformers on digits, swap its attention, train on until accuracy is flat, attack maps.

    All kernels (softmax is the control) train on side by side, until the last epochs of each are `steady` or `most` are
    over, so that each gets as many as the slowest needs. Two `part`s per kernel. "accuracy": test accuracy after every
    `epoch`, those before the swap up to 0. "maps": similarities of each map, readout and attack ("noise", "worst") at
    the end. Beside both: accuracy right after the swap (`swapped`) and whether the kernel's own curve ended `flat`. SGD
    has momentum 0.9, a step annealed to zero before the swap, and a constant one after it, whose momentum starts anew
    at each epoch; the linf radius is in 1/255 of the pixel range. An ImportError says if transformers is not installed.
    """
    digits, attacked = (dataset("digits", None, n_train, n, "cpu") for n in (None, n_attacked))
    original, before = _original(seed, n_train, epochs, step_size)
    networks = {name: swap.attention(copy.deepcopy(original), name) for name in names}
    swapped = {name: _accuracy(model, digits) for name, model in networks.items()}
    recipe = training.Recipe(step_size=step_size, batch_size=min(64, n_train), epochs=1, momentum=0.9)
    after: dict[str, list[float]] = {name: [] for name in names}
    flat = dict.fromkeys(names, False)
    for epoch in range(most):
        for name, model in networks.items():
            training.fit([model], *digits.train, recipe, generators=[_order(seed, epoch)])
            after[name].append(_accuracy(model, digits))
        flat = {name: steady(curve, last=last, margin=margin) for name, curve in after.items()}
        if all(flat.values()):
            break
    how = {"k": (attacked.test.x.shape[-1] // _PATCH) ** 2 // 4, "radius": radius, "effort": effort, "seed": seed}
    how |= {"maps": compared(_PATCH, ("raw_attention", "rollout"))}
    tables = []
    for name, model in networks.items():
        curve = pd.DataFrame({"epoch": range(1 - len(before), 1 + len(after[name])), "accuracy": before + after[name]})
        maps = under_attack(model.requires_grad_(False), attacked.test.x, **how).drop(columns="images")
        own = {"kernel": name, "seed": seed, "swapped": swapped[name], "flat": flat[name]}
        tables += [t.assign(**own) for t in (curve.assign(part="accuracy"), maps.assign(part="maps"))]
    return pd.concat(tables, ignore_index=True)


def steady(curve: Sequence[float], *, last: int, margin: float) -> bool:
    """Whether the `last` values of a curve lie within the margin of each other; False if it is shorter.

    Example:
        >>> steady([0.2, 0.9, 0.91], last=2, margin=0.02), steady([0.2, 0.9, 0.91], last=3, margin=0.02)
        (True, False)
    """
    recent = list(curve)[-last:]
    return len(recent) == last and max(recent) - min(recent) <= margin


class _Fused(attention.Attention):
    def attend(self, x: Tensor, *, read: int | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self._split(x)
        mixed = F.scaled_dot_product_attention(q[:, :, :read], k, v).transpose(1, 2).flatten(2)
        return self.projection(mixed), x.new_zeros(()).expand(*q.shape[:3], k.shape[2])


@versioned(1)
def training_steps(
    names: Sequence[str], patch: int, dim: int, depth: int, batch: int, repetitions: int
) -> pd.DataFrame:
    """Seconds of training steps of a 28 x 28 ViT (patch 4: 50 tokens) by `kernel`, fused one too, and `repetition`."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(batch, 1, 28, 28, generator=draw), torch.randint(10, (batch,), generator=draw)
    steps = {}
    for name in (*names, FUSED):
        size = {"patch": patch, "dim": dim, "depth": depth, "attention": "softmax" if name == FUSED else name}
        model = models.build("vit", input_shape=(1, 28, 28), classes=10, seed=0, activation="gelu", **size).train()
        for block in model.blocks if name == FUSED else ():
            block.attention.__class__ = _Fused
        steps[name] = partial(_step, model, torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9), x, y)
    return training.in_turn(steps, repetitions, name="kernel").drop(columns="wall")


@versioned(1)
def mixing(names: Sequence[str], token_counts: Sequence[int], dim: int, repetitions: int) -> pd.DataFrame:
    """Seconds of mixing `tokens` with one head of a dimension, forward and backward, per kernel and `repetition`."""
    tables = []
    for n in token_counts:
        qkv = [t.requires_grad_() for t in torch.randn(3, 1, 1, n, dim, generator=torch.Generator().manual_seed(0))]
        made = {name: attention.kernel(name) for name in names}
        ways = {name: lambda q, k, v, kernel=kernel: kernel(q, k) @ v for name, kernel in made.items()}
        ways[FUSED] = F.scaled_dot_product_attention
        ways[UNFORMED] = partial(attention.mix_in_linear_time, attention.kernel("linear"))
        both = {name: partial(_there_and_back, way, qkv) for name, way in ways.items()}
        tables.append(training.in_turn(both, repetitions, name="kernel").drop(columns="wall").assign(tokens=n))
    return pd.concat(tables, ignore_index=True)


def _there_and_back(way: Callable[..., Tensor], qkv: Sequence[Tensor]) -> None:
    torch.autograd.grad(way(*qkv).square().mean(), qkv)


@cache
def _original(seed: int, n_train: int, epochs: int, step_size: float) -> tuple[swap.ImageClassifier, list[float]]:
    """The network before the swap and its test accuracy after each epoch, kept by each worker process."""
    model = small_vit("digits", "drop_in", seed=seed, side=8, patch=_PATCH, dim=32, spread=0.2)
    digits, curve = dataset("digits", None, n_train, None, "cpu"), []
    size = min(64, len(digits.train.x))
    recipe = training.recipes.named("plateau", step_size=step_size, batch_size=size, epochs=epochs)

    def look(update: int, models: Sequence[nn.Module]) -> None:
        curve.append(_accuracy(models[0], digits))

    probe = {"probe": look, "probe_every": len(digits.train.x) // size}
    training.fit([model], *digits.train, recipe, generators=[torch.Generator().manual_seed(seed)], **probe)
    return model, [*curve[1:], _accuracy(model, digits)]


def _order(seed: int, epoch: int) -> torch.Generator:
    """Batch order of an epoch after the swap, the same for every kernel."""
    return torch.Generator().manual_seed(1000 * (seed + 1) + epoch)


@torch.no_grad()
def _accuracy(model: nn.Module, digits: data.Dataset) -> float:
    return float((model(digits.test.x).argmax(1) == digits.test.y).double().mean())


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
