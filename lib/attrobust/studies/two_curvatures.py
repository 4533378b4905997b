"""What notebook 02 alone calls: pictures of its statements, and the chain on a network trained on real digits."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attrobust import attacks, attributions, balls, curvature, experiments, models, similarity, training
from attrobust.theory import certificates, duality, path_norm, stability, traps
from attrobust.theory.tally import NamedValues, equalities, named_values
from attrobust.versions import versioned

LEADERS = 6  # pixels compared by the top-k certificates on digits, a tenth of them


@named_values(version=1)
def one_factor(seed: int, factors: Sequence[float]) -> NamedValues:
    """Flatness and input gradient of one network along the factor between its layers."""
    net, x = path_norm.draw(seed, inputs=2)
    for factor in factors:
        n = path_norm.rescaled(net, np.full(len(net.readout), factor))
        numbers = {
            "trace": path_norm.trace(n, x),
            "sharpness": path_norm.sharpness(n, x),
            "invariant flatness": path_norm.invariant_flatness(n, x),
            "mean squared input gradient": np.square(n.gradients(x)).sum(1).mean(),
            "least trace (P11)": 1 + 2 * path_norm.path_norms(n) @ path_norm.reach(n, x),
        }
        yield {"factor": factor}, numbers


@versioned(1)
def learning_digits(n_train: int, epochs: int, seed: int) -> pd.DataFrame:
    """The chain of P6 while a ReLU network learns digits, with the penalty on test images beside it."""
    x, y, fresh = _digits(n_train)
    rows = []

    def probe(update: int, networks: Sequence[nn.Module]) -> None:
        model = networks[0]
        loss = float(training.cross_entropy(model(x), y).mean().detach())
        rows.append([update, loss, *duality.ordering(model, x), duality.ordering(model, fresh)[0]])

    every = max(1, epochs * n_train // 200)
    _digits_network(n_train, seed, activation="relu", depth=2, epochs=epochs, probe=probe, every=every)
    names = ["penalty, training images", "curvature in W", "invariant flatness", "penalty, test images"]
    return pd.DataFrame(rows, columns=["update", "loss", *names])


@named_values(version=1)
def thresholds(seed: int, batch_sizes: Sequence[int]) -> NamedValues:
    """Largest stable step against the batch size, with its two limits, for gradients spread out and alike."""
    rng = np.random.default_rng(seed)
    spread, alike = 1.2 * rng.standard_normal((12, 6)), 2 * np.eye(6)[0] + 0.3 * rng.standard_normal((12, 6))
    for panel, j in (("gradients spread out", spread), ("gradients alike", alike)):
        each = j[:, :, None] * j[:, None]
        for batch in batch_sizes:
            numbers = {
                "exact threshold": stability.largest_stable_step(each, rho=stability.sampling(12, batch)),
                "2 B / trace": 2 * batch / np.trace(each.mean(0)),
                "2 / top eigenvalue": 2 / np.linalg.eigvalsh(each.mean(0))[-1],
            }
            yield {"panel": panel, "batch_size": batch}, numbers


@versioned(1)
def stability_sides(seed: int, factors: Sequence[float], updates: int) -> pd.DataFrame:
    """E|z|^2 along SGD with batches of two, for steps at these multiples of the threshold."""
    j = 1.2 * np.random.default_rng(seed).standard_normal((12, 6))
    each = j[:, :, None] * j[:, None]
    eta, parts = stability.largest_stable_step(each, rho=0.5), []
    for factor in factors:
        operator = stability.second_moment_operator(each, step_size=factor * eta, rho=0.5)
        moment, sizes = np.eye(6).ravel() / 6, [1.0]
        for _ in range(updates):
            moment = operator @ moment
            sizes.append(np.trace(moment.reshape(6, 6)))
        parts.append(pd.DataFrame({"name": f"{factor:g} × threshold", "update": range(updates + 1), "value": sizes}))
    return pd.concat(parts)


@versioned(1)
def line_pictures(updates: int, step_sizes: Sequence[float], seed: int) -> pd.DataFrame:
    """Fit and attribution of networks with one input on a fine grid, one line per step size."""
    fine = np.linspace(-1, 1, 401)[:, None]
    _, runs, nets, _ = _descended(updates, step_sizes, [seed])
    drawn = {f"step size {h:g}": (n(fine), n.gradients(fine)[:, 0]) for (h, *_), n in zip(runs, nets, strict=True)}
    drawn["data"] = (np.abs(fine[:, 0]) + fine[:, 0], 2.0 * (fine[:, 0] > 0))
    return pd.concat(
        pd.DataFrame({"panel": panel, "name": name, "x": fine[:, 0], "value": values[place]})
        for place, panel in enumerate(("fit f", "attribution f'"))
        for name, values in drawn.items()
    )


@versioned(1)
def line_numbers(updates: int, step_sizes: Sequence[float], seeds: Sequence[int]) -> pd.DataFrame:
    """Sharpness, weighted path norm and total variation of every network with one input."""
    x, runs, nets, losses = _descended(updates, step_sizes, seeds)
    rows = []
    for (step, _, seed), net, loss in zip(runs, nets, losses, strict=True):
        path = path_norm.path_norms(net) @ path_norm.mean_reach(net, x)
        numbers = {"loss": loss, "sharpness": path_norm.sharpness(net, x), "settled": loss < 1e-8, "path": path}
        numbers |= {"variation": path_norm.total_variation(net, -1, 1)}
        rows.append({"step_size": step, "seed": seed, **numbers})
    return pd.DataFrame(rows)


@versioned(3)
def certified(
    n_train: int, n_attacked: int, epochs: int, steps: int, restarts: int, radii: Sequence[float], seed: int
) -> pd.DataFrame:
    """Certified and attacked similarity of a digits network's saliency maps, image by image, for several radii."""
    model = _digits_network(n_train, seed, epochs=epochs).requires_grad_(False)
    x = _digits(n_train)[2][:n_attacked]
    target = model(x).argmax(1)
    first, head = (p.numpy() for name, p in model.named_parameters() if name.endswith("weight"))
    constants = {c: certificates.two_layer_constant(first, head[c]) for c in target.unique().tolist()}
    slope = torch.tensor([constants[c] for c in target.tolist()], dtype=x.dtype)
    clean, parts = attributions.saliency(model, x, target).detach(), []
    a, effort = attributions.pixelwise(clean), attacks.Effort(steps=steps, restarts=restarts, draws=0, walk=0)

    def survived(at: Tensor) -> dict[str, Tensor]:
        moved = attributions.saliency(model, at, target).detach()
        b = attributions.pixelwise(moved)
        return {
            "top-k": similarity.topk_intersection(a, b, k=LEADERS),
            "Kendall": certificates.kendall_correlation(a, b),
            "Spearman": similarity.spearman(a, b),
            "cosine": similarity.cosine(clean, moved),
        }

    def guaranteed(change: Tensor) -> dict[str, Tensor]:
        scores = a.flatten(1)
        return {
            "top-k": certificates.topk(scores, change, k=LEADERS),
            "Kendall": certificates.kendall(scores, change),
            "Spearman": certificates.spearman(scores, change),
            "cosine": certificates.cosine(change / scores.norm(dim=1)),
        }

    for radius in radii:
        g = torch.Generator().manual_seed(seed)
        ball = balls.Ball("l2", radius)
        found = attacks.auto(attributions.saliency, model, x, ball, k=LEADERS, effort=effort, generator=g)
        reached = [survived(found.x[measure]) for measure in ("top_k", "spearman", "cosine", "pearson")]
        worst = {name: torch.stack([r[name] for r in reached]).amin(0) for name in reached[0]}
        for name, values in (("certified", guaranteed(radius * slope)), ("attacked", worst)):
            columns = {"name": name, "radius": radius, "image": range(len(x))}
            parts += [pd.DataFrame({"metric": m, "value": v.numpy(), **columns}) for m, v in values.items()]
    return pd.concat(parts)


@versioned(1)
def fading(n_train: int, epochs: int, seed: int, loss: str) -> pd.DataFrame:
    """P16: gradient and relative curvature of a loss and of the logit on training images while the fit improves."""
    x, y, _ = _digits(n_train)
    x, y, rows = x[:32], y[:32], []

    def of_loss(model: Callable, x: Tensor, y: Tensor) -> Tensor:
        return training.LOSSES[loss](model(x), y)

    def probe(update: int, networks: Sequence[nn.Module]) -> None:
        reached = float(of_loss(networks[0], x, y).mean().detach())
        for name, readout in (("loss", of_loss), ("logit", models.readouts.logit)):
            hessian = curvature.InputHessian(networks[0], x, y, readout=readout)
            turn = curvature.relative_curvature(hessian, generator=torch.Generator().manual_seed(0)).value.median()
            slope = hessian.gradient.detach().flatten(1).norm(dim=1).median()
            rows.append([update, reached, name, float(slope), float(turn)])

    every = max(1, n_train * epochs // 600)
    _digits_network(n_train, seed, epochs=epochs, step_size=0.2, probe=probe, every=every, loss=loss)
    names = ["update", "loss", "name", "gradient", "relative curvature"]
    return pd.DataFrame(rows, columns=names).assign(trained_on=loss)


@named_values(version=1)
def blind_unit(n_train: int, epochs: int, seed: int, strengths: Sequence[float]) -> NamedValues:
    """P19: flatness, gradient and curvature of a trained network with a blind unit of growing strength."""
    model, (x, y, _) = _digits_network(n_train, seed, epochs=epochs), _digits(n_train)
    for strength in strengths:
        bent, generator = traps.BlindUnit(model, x, strength=strength), torch.Generator().manual_seed(0)
        hessian, matrix = curvature.InputHessian(bent, x, y), curvature.GaussNewton(bent, x)
        numbers = {
            "Gauss-Newton trace": curvature.gauss_newton_trace(matrix).value,
            "invariant flatness": curvature.invariant_flatness(matrix).value,
            "input gradient": hessian.gradient.detach().flatten(1).norm(dim=1).mean(),
            "input curvature": curvature.input_curvature(hessian, generator=generator).value.mean(),
            "relative curvature": curvature.relative_curvature(hessian, generator=generator).value.mean(),
        }
        yield {"strength": strength}, numbers


@versioned(1)
def attained() -> pd.DataFrame:
    """Both sides of the inequalities of notebook 02 on examples that attain them; each ratio is 1 up to rounding."""
    apart, even = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    step = stability.largest_stable_step(3 * np.eye(4)[:, :, None] * np.eye(4)[:, None], rho=1.0)
    quarter, zero = certificates.turn(lambda p: p[0] * p[1], *torch.eye(2, dtype=torch.float64)), np.zeros(1)
    fold, bump = certificates.Folds(np.ones(1), zero), certificates.Folds(np.array([-1.0, 1.0]), np.array([-0.7, 0.7]))
    bends = np.abs(fold.gaussian_bend(zero, 0.7)), np.abs(bump.step_bend(zero, 0.7))
    return equalities({
        ("P6", "two even classes"): (duality.top_curvature(apart, even), 1.0),
        ("P8", "orthogonal samples"): (3.0, stability.trace_bound(step_size=step, rho=1.0)),
        ("P13", "turn in a plane"): (np.pi / 4, quarter),
        ("P18", "one fold"): (bends[0], certificates.gaussian_constant(slope=1.0, sigma=0.7)),
        ("P18", "a bump"): (bends[1], certificates.gaussian_constant(height=1.0, sigma=0.7)),
    })  # fmt: skip


def _digits(n_train: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training images and labels, and as many test images, in float64; at most the 797 that the test side holds."""
    n = min(n_train, 797)
    whole = experiments.dataset("digits", None, n, n, "cpu")
    return whole.train.x.double(), whole.train.y, whole.test.x.double()


def _digits_network(
    n_train: int, seed: int, *, activation: str = "softplus", depth: int = 1, epochs: int = 60, step_size: float = 0.05,
    loss: str = "cross_entropy", probe: training.Probe | None = None, every: int = 0,
) -> nn.Module:  # fmt: skip
    """Layers of 24 float64 units after plain SGD on digits, batches of 20; probe(update, networks) every `every`."""
    sizes = {"activation": activation, "width": 24, "depth": depth}
    model = models.build("mlp", input_shape=(1, 8, 8), classes=10, seed=seed, **sizes).double()
    x, y, _ = _digits(n_train)
    recipe, order = training.Recipe(step_size=step_size, batch_size=20, epochs=epochs, loss=loss), torch.Generator()
    training.fit([model], x, y, recipe, generators=[order.manual_seed(seed)], probe=probe, probe_every=every)
    return model


def _descended(updates: int, step_sizes: Sequence[float], seeds: Sequence[int]) -> tuple:
    """Eight points on |x| + x, the runs, the networks after full-batch descent, their losses."""
    x = np.linspace(-1, 1, 8)[:, None]
    runs = [(step, 0, seed) for step in step_sizes for seed in seeds]
    y = np.abs(x[:, 0]) + x[:, 0]
    nets, losses = path_norm.descend(x, y, runs, units=100, updates=updates, scale=1.7, stop=1e-24)
    return x, runs, nets, losses
