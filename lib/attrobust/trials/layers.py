"""P4, P6 and the blind unit: what flatness is, what it bounds, what it does not see."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from attrobust import curvature, statements, training
from attrobust.theory import blind, draws, duality, path_norm, penalty
from attrobust.trials.cases import digits, digits_network, over_cases
from attrobust.versions import versioned


@versioned(1)
@over_cases
def rescaling(case: int) -> Iterator[pd.DataFrame]:
    """P6: function, attribution and invariant flatness under a random factor between the layers."""
    net, x = draws.two_layer(case)
    factor = np.exp(np.random.default_rng(case).normal())
    other = path_norm.rescaled(net, np.full(len(net.readout), factor))
    flat = [_invariant(n, x) for n in (net, other)]
    yield statements.identity("P6", "function", other(x), net(x))
    yield statements.identity("P6", "attribution", other.gradients(x), net.gradients(x))
    yield statements.identity("P6", "invariant flatness", flat[0] / flat[1] if flat[1] else 1.0, 1.0)


@versioned(1)
def one_factor(seed: int, factors: Sequence[float]) -> pd.DataFrame:
    """Flatness and input gradient of one network along the factor between its layers."""
    net, x = draws.two_layer(seed, inputs=2)
    rows = []
    for factor in factors:
        n = path_norm.rescaled(net, np.full(len(net.readout), factor))
        values = {
            "trace": path_norm.trace(n, x),
            "sharpness": path_norm.sharpness(n, x),
            "invariant flatness": _invariant(n, x),
            "mean squared input gradient": np.square(n.gradients(x)).sum(1).mean(),
            "least trace (P9)": 1 + 2 * path_norm.path_norms(n) @ path_norm.reach(n, x),
        }
        rows += [{"factor": factor, "name": name, "value": float(value)} for name, value in values.items()]
    return pd.DataFrame(rows)


@versioned(1)
@over_cases
def surfaces(case: int) -> Iterator[pd.DataFrame]:
    """P4 on a random ReLU network: closed form, the constant 1/2, and the chain of three."""
    model, x, y = draws.network(case, activations=("relu",))
    logits, jacobians = model(x).detach(), penalty.input_jacobians(model, x)
    top = penalty.top_curvature(jacobians, logits)
    dense = duality.input_hessians(model, x, y, readout=curvature.cross_entropy)
    yield statements.identity("P4", "closed form of the penalty", torch.linalg.eigvalsh(dense)[:, -1], top)
    half = torch.linalg.matrix_norm(jacobians, ord=2).square() / 2
    yield statements.bound("P4", "penalty and squared Jacobian", top, half)
    inputs, weights, flat = penalty.ordering(model, x)
    yield statements.bound("P4", "penalty and curvature in W", inputs, weights)
    yield statements.bound("P4", "curvature in W and flatness", weights, flat)


@versioned(1)
def learning_digits(n_train: int, epochs: int, seed: int) -> pd.DataFrame:
    """The chain of P4 while a ReLU network learns digits, with the penalty on test images beside it."""
    x, y, fresh = digits(n_train)
    rows = []

    def probe(update: int, networks: Sequence[torch.nn.Module]) -> None:
        model = networks[0]
        loss = float(training.cross_entropy(model(x), y).mean().detach())
        rows.append([update, loss, *penalty.ordering(model, x), penalty.ordering(model, fresh)[0]])

    every = max(1, epochs * n_train // 200)
    digits_network(n_train, seed, activation="relu", depth=2, epochs=epochs, probe=probe, every=every)
    names = ["penalty, training images", "curvature in W", "invariant flatness", "penalty, test images"]
    return pd.DataFrame(rows, columns=["update", "loss", *names])


@versioned(1)
def blind_unit(n_train: int, epochs: int, seed: int, strengths: Sequence[float]) -> pd.DataFrame:
    """Flatness, gradient and curvature of a trained network with a blind unit of growing strength."""
    model, (x, y, _) = digits_network(n_train, seed, epochs=epochs), digits(n_train)
    rows = []
    for strength in strengths:
        bent = blind.BlindUnit(model, x, strength=strength)
        hessian = curvature.InputHessian(bent, x, y)
        generator, matrix = torch.Generator().manual_seed(0), curvature.GaussNewton(bent, x)
        values = {
            "Gauss-Newton trace": curvature.gauss_newton_trace(matrix).value,
            "invariant flatness": curvature.invariant_flatness(matrix).value,
            "input gradient": hessian.gradient.detach().flatten(1).norm(dim=1).mean(),
            "input curvature": curvature.input_curvature(hessian, generator=generator).value.mean(),
            "relative curvature": curvature.relative_curvature(hessian, generator=generator).value.mean(),
        }
        rows += [{"strength": strength, "name": name, "value": float(value)} for name, value in values.items()]
    return pd.DataFrame(rows)


def _invariant(net: path_norm.TwoLayer, x: np.ndarray) -> float:
    return float(np.linalg.norm(net.weights, 2) ** 2 * path_norm.trace(net, x, block="first"))
