"""P11 to P16: from curvature to what attribution metrics see."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from attrobust import (
    attacks,
    attributions,
    balls,
    certificates,
    curvature,
    robustness,
    similarity,
    statements,
    training,
)
from attrobust.theory import draws, duality, penalty, smoothing
from attrobust.trials.cases import digits, digits_network, over_cases
from attrobust.versions import versioned

#: Pixels compared by the top-k certificates on digits, a tenth of them.
LEADERS = 6


@versioned(1)
@over_cases
def turning(case: int) -> Iterator[pd.DataFrame]:
    """P11: the angle between two maps of a smooth network and what it certifies, by the curvature on the way."""
    model, x, y = draws.network(case, images=1)
    g = torch.Generator().manual_seed(case)
    step = torch.randn(x.numel(), generator=g, dtype=x.dtype) * 10 ** float(2 * torch.rand(1, generator=g) - 1.7)
    value = partial(_logit, model, x, y)
    first, last = (torch.func.grad(value)(x.flatten() + t * step)[None] for t in (0, 1))
    limit = certificates.turn(value, x.flatten(), step, nodes=128)
    yield statements.bound("P11", "angle and integrated curvature", certificates.angle(first, last), limit)
    cosine = similarity.cosine(first.view(x.shape), last.view(x.shape))
    yield statements.bound("P11", "1 - cosine, certified", 1 - cosine, 1 - np.cos(min(limit, np.pi)))
    a, b = first.abs() / first.norm(), last.abs() / last.norm()
    change = certificates.change_of_turn(torch.tensor([limit], dtype=x.dtype))
    lost = 1 - similarity.topk_intersection(a[:, None], b[:, None], k=2)
    yield statements.bound("P11", "1 - top-2, certified", lost, 1 - certificates.topk(a, change, k=2))
    lost = 1 - similarity.spearman(a[:, None], b[:, None])
    yield statements.bound("P11", "1 - Spearman, certified", lost, 1 - certificates.spearman(a, change))


@versioned(1)
@over_cases
def metrics(case: int) -> Iterator[pd.DataFrame]:
    """P13 against changes built to break it; similarities enter as 1 - value, so that left <= right."""
    g = torch.Generator().manual_seed(case)
    pixels, k = (int(torch.randint(a, b, (1,), generator=g)) for a, b in ((6, 17), (1, 6)))
    a, r = (torch.rand(1, n, generator=g, dtype=torch.float64) for n in (pixels, 1))
    across = torch.randn(1, pixels, generator=g, dtype=torch.float64)
    across = across - (across * a).sum() / a.square().sum() * a
    yield _lost("cosine", similarity.cosine, a, certificates.worst_cosine(a, across, r[0]), certificates.cosine(r[0]))
    top = partial(similarity.topk_intersection, k=k)
    for swaps in range(1, min(k, pixels - k) + 1):
        e = certificates.swap(a, k=k, swaps=swaps) * (1 + 1e-7)
        yield _lost("top-k", top, a, e, certificates.topk(a, e.norm(dim=1), k=k))
    size = 0.3 * r[0].square()
    leading = torch.where(a >= a.topk(k).values[:, -1:], -1.0, 1.0).to(a)
    upper = torch.where(a >= a.median(), -1.0, 1.0).to(a)
    for direction in (leading, upper, torch.randn(1, pixels, generator=g, dtype=torch.float64).sign()):
        e = size * direction
        yield _lost("top-k per pixel", top, a, e, certificates.topk_within(a, size, k=k))
        yield _lost("Kendall", _kendall, a, e, certificates.kendall(a, size))
        yield _lost("Spearman", similarity.spearman, a, e, certificates.spearman(a, size))


@versioned(1)
def certified(
    n_train: int, n_attacked: int, epochs: int, steps: int, restarts: int, radii: Sequence[float], seed: int
) -> pd.DataFrame:
    """Certified and attacked similarity of a digits network's saliency maps, image by image, for several radii."""
    model = digits_network(n_train, seed, epochs=epochs).requires_grad_(False)
    x = digits(n_train)[2][:n_attacked]
    target = model(x).argmax(1)
    first, head = (p.numpy() for name, p in model.named_parameters() if name.endswith("weight"))
    constants = {c: smoothing.two_layer_constant(first, head[c]) for c in target.unique().tolist()}
    slope = torch.tensor([constants[c] for c in target.tolist()], dtype=x.dtype)
    clean = attributions.saliency(model, x, target).detach()
    parts = []
    for radius in radii:
        attack = partial(_survived, model, x, target, clean, balls.Ball("l2", radius), steps, restarts, seed)
        reached = [attack(build) for build in robustness.objectives(LEADERS).values()]
        worst = {name: torch.stack([r[name] for r in reached]).amin(0) for name in reached[0]}
        for name, values in (("certified", _guaranteed(clean, radius * slope)), ("attacked", worst)):
            columns = {"name": name, "radius": radius, "image": range(len(x))}
            parts += [pd.DataFrame({"metric": m, "value": v.numpy(), **columns}) for m, v in values.items()]
    return pd.concat(parts)


@versioned(1)
def scales(seeds: Sequence[int], factors: Sequence[float]) -> pd.DataFrame:
    """P14: one random step measured by absolute and by scale-free numbers, for logits times a factor."""
    rows = []
    for seed in seeds:
        model, x, y = draws.network(seed, images=1)
        step = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        for factor in factors:
            numbers = _scaled(model, x, (x + step).clamp(0, 1), y, factor)
            rows += [{"case": seed, "factor": factor, "name": name, "value": float(v)} for name, v in numbers.items()]
    return pd.DataFrame(rows)


@versioned(1)
@over_cases
def loss_gradients(case: int) -> Iterator[pd.DataFrame]:
    """P15: the closed forms of the gradients of loss and probability."""
    model, x, y = draws.network(case)
    p, j = model(x).softmax(1).detach(), penalty.input_jacobians(model, x)
    onehot = torch.nn.functional.one_hot(y, p.shape[1]).to(p)
    forms = {"loss": p - onehot, "probability": (p * onehot).sum(1, keepdim=True) * (onehot - p)}
    for arm, weight in forms.items():
        exact = curvature.InputHessian(model, x, y, readout=duality.READOUTS[arm]).gradient.flatten(1)
        yield statements.identity("P15", f"gradient of the {arm}", exact, torch.einsum("bc,bcn->bn", weight, j))


@versioned(1)
def fading(n_train: int, epochs: int, seed: int, loss: str) -> pd.DataFrame:
    """P15: gradient and relative curvature of a loss and of the logit on training images while the fit improves."""
    x, y, _ = digits(n_train)
    x, y, rows = x[:32], y[:32], []

    def of_loss(model: Callable, x: Tensor, y: Tensor) -> Tensor:
        return training.LOSSES[loss](model(x), y)

    def probe(update: int, networks: Sequence[nn.Module]) -> None:
        reached = float(of_loss(networks[0], x, y).mean().detach())
        for name, readout in (("loss", of_loss), ("logit", curvature.logit)):
            hessian = curvature.InputHessian(networks[0], x, y, readout=readout)
            turn = curvature.relative_curvature(hessian, generator=torch.Generator().manual_seed(0)).value.median()
            slope = hessian.gradient.detach().flatten(1).norm(dim=1).median()
            rows.append([update, reached, name, float(slope), float(turn)])

    digits_network(
        n_train, seed, epochs=epochs, step_size=0.2, probe=probe, every=max(1, n_train * epochs // 600), loss=loss
    )
    names = ["update", "loss", "name", "gradient", "relative curvature"]
    return pd.DataFrame(rows, columns=names).assign(trained_on=loss)


@versioned(1)
def twins(seeds: Sequence[int], betas: Sequence[float]) -> pd.DataFrame:
    """P16: softplus twins of ReLU networks on a segment: curvature at its start, largest on it, total turn."""
    rows = []
    for seed in seeds:
        relu, x, y = draws.network(seed, activations=("relu",), images=2)
        way = x[0] + torch.linspace(0, 1, 201, dtype=x.dtype).view(-1, 1, 1, 1) * (x[1] - x[0])
        zero = float(duality.input_hessians(relu, x, y).abs().max())
        for beta in betas:
            soft = [nn.Softplus(beta, threshold=500) if isinstance(layer, nn.ReLU) else layer for layer in relu]
            twin, value = nn.Sequential(*soft), partial(_logit, nn.Sequential(*soft), x[:1], y[:1])
            generator = torch.Generator().manual_seed(0)
            hessian = curvature.InputHessian(twin, way, y[:1].expand(201))
            turn = curvature.relative_curvature(hessian, generator=generator, steps=9).value
            total = certificates.turn(value, x[0].flatten(), (x[1] - x[0]).flatten(), nodes=400)
            numbers = {"at the image": turn[0], "largest on the way": turn.max(), "turn over the whole way": total}
            numbers |= {"ReLU Hessian": zero}
            rows += [{"case": seed, "beta": beta, "name": name, "value": float(v)} for name, v in numbers.items()]
    return pd.DataFrame(rows)


@versioned(1)
@over_cases
def smoothed(case: int) -> Iterator[pd.DataFrame]:
    """P12 on a random folded function of one input, whose smoothed derivatives are known in closed form."""
    rng = np.random.default_rng(case)
    n, size = int(rng.integers(1, 6)), 10 ** rng.uniform(-1, 0.5)
    folds = smoothing.Folds(rng.standard_normal(n), rng.normal(size=n))
    at = np.concatenate([np.linspace(-4, 4, 401), *(folds.places + shift * size for shift in (-1, 0, 1))])
    limit = smoothing.gaussian_constant(slope=folds.slope(), sigma=size)
    yield statements.bound("P12", "SmoothGrad, slope", np.abs(folds.gaussian_bend(at, size)).max(), limit)
    limit = smoothing.gaussian_constant(height=folds.half_range(), sigma=size)
    yield statements.bound("P12", "SmoothGrad, height", np.abs(folds.step_bend(at, size)).max(), limit)
    limit = smoothing.ball_constant(slope=folds.slope(), radius=size, dimensions=1)
    yield statements.bound("P12", "ball average", np.abs(folds.ball_bend(at + 1e-9, size)).max(), limit)


def _logit(model: nn.Module, x: Tensor, y: Tensor, flat: Tensor) -> Tensor:
    return model(flat.view(x.shape))[0, y[0]]


def _lost(arm: str, metric: Callable, a: Tensor, e: Tensor, certified: Tensor) -> pd.DataFrame:
    """What the change takes from the metric against what the certificate concedes."""
    shape = (1, 1, 1, -1) if metric is similarity.cosine else (1, 1, -1)
    return statements.bound("P13", arm, 1 - metric(a.view(shape), (a + e).view(shape)), 1 - certified)


def _kendall(first: Tensor, second: Tensor) -> Tensor:
    """Kendall correlation of each pair of maps."""
    pairs = zip(first.flatten(1).numpy(), second.flatten(1).numpy(), strict=True)
    return torch.tensor([kendalltau(a, b).statistic for a, b in pairs], dtype=first.dtype)


def _guaranteed(clean: Tensor, change: Tensor) -> dict[str, Tensor]:
    """Every certificate for maps that move by at most `change`."""
    scores = attributions.pixelwise(clean).flatten(1)
    ranks = {"Kendall": certificates.kendall(scores, change), "Spearman": certificates.spearman(scores, change)}
    top = certificates.topk(scores, change, k=LEADERS)
    return {"top-k": top, **ranks, "cosine": certificates.cosine(change / scores.norm(dim=1))}


def _survived(
    model: nn.Module, x: Tensor, target: Tensor, clean: Tensor, ball: balls.Ball, steps: int, restarts: int, seed: int,
    build: Callable,
) -> dict[str, Tensor]:  # fmt: skip
    """Similarities that one attack objective leaves."""
    goal = build(attributions.saliency, model, x, target)
    generator = torch.Generator().manual_seed(seed)
    found = attacks.pgd(goal, x, ball, steps=steps, restarts=restarts, generator=generator).x
    moved = attributions.saliency(model, found, target).detach()
    a, b = attributions.pixelwise(clean), attributions.pixelwise(moved)
    top = similarity.topk_intersection(a, b, k=LEADERS)
    ranks = {"Kendall": _kendall(a, b), "Spearman": similarity.spearman(a, b)}
    return {"top-k": top, **ranks, "cosine": similarity.cosine(clean, moved)}


def _scaled(model: nn.Module, x: Tensor, moved: Tensor, y: Tensor, factor: float) -> dict[str, Tensor]:
    def readout(model: Callable, x: Tensor, y: Tensor) -> Tensor:
        return factor * curvature.logit(model, x, y)

    maps = [curvature.InputHessian(model, at, y, readout=readout).gradient.detach() for at in (x, moved)]
    hessian = curvature.InputHessian(model, x, y, readout=readout)
    generator = torch.Generator().manual_seed(0)
    return {
        "input curvature": torch.linalg.matrix_norm(duality.input_hessians(model, x, y, readout=readout), ord=2),
        "displacement": similarity.displacement(*maps),
        "relative curvature": curvature.relative_curvature(hessian, generator=generator, steps=9).value,
        "cosine": similarity.cosine(*maps),
        "Spearman": similarity.spearman(*(m.abs().sum(1) for m in maps)),
    }
