"""P1, P2, P3, P5 and P6b: what the first layer's parameters say about the input."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attrobust import curvature, statements
from attrobust.theory import draws, duality, positions
from attrobust.trials.cases import over_cases
from attrobust.versions import versioned


@versioned(1)
@over_cases
def identities(case: int) -> Iterator[pd.DataFrame]:
    """P1 and the identities under P2 and P3, for three readouts."""
    model, x, y = draws.network(case)
    first = duality.first_dense(model, x)
    step = torch.randn(x.flatten(1).shape, generator=torch.Generator().manual_seed(case), dtype=x.dtype)
    lifted = duality.weight_change(first, step)
    for arm, readout in duality.READOUTS.items():
        moved = duality.with_change(model, x, y, lifted, readout=readout)
        yield statements.identity("P1", f"{arm}, moved input", readout(model, x + step.view_as(x), y), moved)
        g = duality.weight_gradients(model, x, y, readout=readout)[:, :, -1]
        exact = curvature.InputHessian(model, x, y, readout=readout).gradient.flatten(1)
        yield statements.identity("P2", f"{arm}, gradient identity", exact, g @ first.jacobian)
        bend = duality.bias_hessians(model, x, y, readout=readout)
        exact = duality.input_hessians(model, x, y, readout=readout)
        yield statements.identity("P3", f"{arm}, Hessian identity", exact, first.jacobian.T @ bend @ first.jacobian)
        whole = duality.weight_hessians(model, x, y, readout=readout)
        outer = torch.stack([torch.kron(h, torch.outer(e, e)) for h, e in zip(bend, first.extended, strict=True)])
        yield statements.identity("P3", f"{arm}, Kronecker identity", whole, outer)


@versioned(1)
@over_cases
def transfer(case: int) -> Iterator[pd.DataFrame]:
    """Both sides of P2 and P3 for three readouts; `spectral` and `ones` are what the wrong variants need."""
    model, x, y = draws.network(case)
    first = duality.first_dense(model, x)
    ones = (first.extended.norm(dim=1) / first.extended.norm(p=1, dim=1)).numpy()
    bound = partial(statements.bound, spectral=first.spectral, ones=ones)
    for arm, readout in duality.READOUTS.items():
        slope = curvature.input_gradient_norm(model, x, y, readout=readout)
        yield bound("P2", arm, slope, duality.input_gradient_bound(model, x, y, readout=readout))
        everywhere = duality.all_layers_gradient_bound(model, x, y, readout=readout)
        yield bound("P2", f"{arm}, all layers", slope, everywhere)
        bend = _norms(duality.input_hessians(model, x, y, readout=readout))
        yield bound("P3", arm, bend, duality.input_curvature_bound(model, x, y, readout=readout))


@versioned(1)
def detector(kernels: Sequence[float]) -> pd.DataFrame:
    """Derivatives of the difference detector at (1, 1), in its kernel and in the pixels, for several kernels."""
    rows, x, y = [], torch.ones(1, 1, 1, 2, dtype=torch.float64), torch.tensor([0])
    for kernel in kernels:
        model = positions.DifferenceDetector(kernel)
        values = {
            "gradient in the kernel": positions.kernel_gradients(model, x, y).norm(),
            "gradient in the pixels": curvature.input_gradient_norm(model, x, y),
            "Hessian in the pixels": _norms(duality.input_hessians(model, x, y)),
        }
        rows += [{"kernel": kernel, "name": name, "value": float(value)} for name, value in values.items()]
    return pd.DataFrame(rows)


@versioned(1)
@over_cases
def transformers(case: int) -> Iterator[pd.DataFrame]:
    """P6b on a random one-block transformer; and P2 misused through the kernel of a difference detector."""
    g = torch.Generator().manual_seed(case)
    model = positions.TinyTransformer(4, patch=2, dim=3, classes=3, generator=g)
    x, y = torch.rand(2, 1, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (2,), generator=g)
    for arm, readout in duality.READOUTS.items():
        slope = curvature.input_gradient_norm(model, x, y, readout=readout)
        limit = positions.input_gradient_bound(model, x, y, readout=readout)
        yield statements.bound("P6b gradient", f"transformer, {arm}", slope, limit)
        bend = _norms(duality.input_hessians(model, x, y, readout=readout))
        limit = positions.input_curvature_bound(model, x, y, readout=readout)
        yield statements.bound("P6b curvature", f"transformer, {arm}", bend, limit)
    kernel, gap = np.random.default_rng(case).uniform((0.5, -6.0), (2.5, 0.0))
    shared, label = positions.DifferenceDetector(float(kernel)), torch.tensor([0])
    pixels = torch.tensor([1.0, 1.0 - 10.0**gap], dtype=torch.float64).view(1, 1, 1, 2)
    limit = kernel * positions.kernel_gradients(shared, pixels, label).norm(dim=1) / pixels.norm()
    yield statements.bound("wrong", "convolution", curvature.input_gradient_norm(shared, pixels, label), limit)


@versioned(1)
@over_cases
def radii(case: int) -> Iterator[pd.DataFrame]:
    """P5: an input attack against a weight attack of the matching radius; and one weight change for a batch."""
    model, x, y = draws.network(case)
    first, rho = duality.first_dense(model, x), 10 ** np.random.default_rng(case).uniform(-2, 0.5)
    reach = rho * first.extended.norm(dim=1) / first.spectral
    attacked = duality.ascend(partial(_moved, model, x, y), torch.zeros_like(x.flatten(1)), reach)
    lifted = duality.weight_change(first, attacked).flatten(1)
    sharp = duality.ascend(partial(_shaken, model, x, y), lifted, torch.full_like(reach, rho))
    after = _moved(model, x, y, attacked)
    yield statements.bound("P5", "size of the weight change", lifted.norm(dim=1), rho)
    yield statements.identity("P5", "loss, moved input", after, _shaken(model, x, y, lifted))
    yield statements.bound("P5", "input attack and per-image SAM", after, _shaken(model, x, y, sharp))
    signs = torch.where(y > 0, 1.0, -1.0).to(x)[:, None]
    mean, shared = first.extended.norm(dim=1).mean(), (signs * first.extended).mean(0).norm()
    yield statements.bound("wrong", "batch SAM", rho * mean, rho * shared)


def _moved(model: nn.Module, x: Tensor, y: Tensor, step: Tensor) -> Tensor:
    return curvature.cross_entropy(model, x + step.view_as(x), y)


def _shaken(model: nn.Module, x: Tensor, y: Tensor, change: Tensor) -> Tensor:
    """Loss of each image under its own change of the first layer."""
    shape = duality.first_dense(model, x[:1]).matrix.shape
    return duality.with_change(model, x, y, change.view(len(x), *shape), readout=curvature.cross_entropy)


def _norms(hessians: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(hessians, ord=2)
