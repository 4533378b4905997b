"""Shared weights break the transfer of `duality`; position embeddings restore it (P4).

A convolution (or a patch embedding) uses one kernel at many positions. Its gradient sums what the positions say, and
the sum may vanish while the pixels matter. In a vision transformer the embedding is shared too, but the learned
position embedding Pos is an un-shared bias on every token: with Z = X E^T + Pos and anything after Z,

    phi(X + D; Pos) = phi(X; Pos + D E^T),   grad_X = (grad_Pos) E,   |grad_X| <= |E|_2 |grad_Pos|

and likewise with |E|_2^2 for the Hessians. Ours.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import curvature
from attrobust.models.readouts import logit
from attrobust.shapes import Images, Labels
from attrobust.theory import duality, tally
from attrobust.theory.duality import Readout
from attrobust.versions import versioned


class TinyTransformer(nn.Module):
    """One softmax-attention block over square patches, written out, with a learned position embedding.

    Args:
        side: height and width of the one-channel image.
        patch: side of a patch; must divide `side`.
        dim: length of a token after the embedding.
        classes: number of logits.
        generator: of the weights (float64).

    Raises:
        ValueError: if `patch` does not divide `side`.
    """

    def __init__(self, side: int, *, patch: int, dim: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        if side % patch:
            raise ValueError(f"patch is {patch}; it must divide side, {side}")
        self.patch = patch
        sizes = {
            "embedding": (dim, patch**2),
            "position": ((side // patch) ** 2, dim),
            "query": (dim, dim),
            "key": (dim, dim),
            "value": (dim, dim),
            "hidden": (2 * dim, dim),
            "head": (classes, 2 * dim),
        }
        for name, shape in sizes.items():
            draw = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(draw / shape[1] ** 0.5))

    def tokens(self, x: Images) -> Float[Tensor, "batch tokens pixels"]:
        """Patches of each image, row by row."""
        return nn.functional.unfold(x, self.patch, stride=self.patch).mT

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Logits of each image."""
        z = self.tokens(x) @ self.embedding.T + self.position
        scores = (z @ self.query.T) @ (z @ self.key.T).mT / math.sqrt(z.shape[-1])
        z = z + scores.softmax(-1) @ (z @ self.value.T)
        return torch.tanh(z @ self.hidden.T).mean(1) @ self.head.T


def input_gradient_bound(
    model: TinyTransformer, x: Images, y: Labels, *, readout: Readout = logit
) -> Float[Tensor, " batch"]:
    """Upper bound |E|_2 |grad_Pos| on each image's input gradient.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> model = TinyTransformer(4, patch=2, dim=3, classes=2, generator=g)
        >>> input_gradient_bound(model, torch.rand(2, 1, 4, 4).double(), torch.tensor([0, 1])).shape
        torch.Size([2])
    """
    norm = duality.parameter_gradients(model, x, y, readout=readout, only="position").norm(dim=1)
    return torch.linalg.matrix_norm(model.embedding.detach(), ord=2) * norm


def input_curvature_bound(
    model: TinyTransformer, x: Images, y: Labels, *, readout: Readout = logit
) -> Float[Tensor, " batch"]:
    """Upper bound |E|_2^2 |hess_Pos|_2 on each image's input curvature."""
    bend = duality.spectral_norms(duality.parameter_hessians(model, x, y, of="position", readout=readout))
    return torch.linalg.matrix_norm(model.embedding.detach(), ord=2).square() * bend


class DifferenceDetector(nn.Module):
    """The exact counterexample: phi = tanh(k x_1) - tanh(k x_2), one shared weight k.

    At x_1 = x_2 the derivatives of every order in k vanish, while the pixels keep theirs.

    Args:
        kernel: the shared weight.
    """

    def __init__(self, kernel: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.kernel = nn.Conv2d(1, 1, 1, bias=False).double()
        nn.init.constant_(self.kernel.weight, kernel)

    def forward(self, x: Images) -> Float[Tensor, "batch 1"]:
        """The readout, as a single logit."""
        h = torch.tanh(self.kernel(x)).flatten(1)
        return (h[:, 0] - h[:, 1])[:, None]


@versioned(1)
@tally.over_cases
def transformers(case: int) -> Iterator[pd.DataFrame]:
    """P4 on a random one-block transformer; and P2 misused through the kernel of a difference detector."""
    g = torch.Generator().manual_seed(case)
    model = TinyTransformer(4, patch=2, dim=3, classes=3, generator=g)
    x, y = torch.rand(2, 1, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (2,), generator=g)
    for arm, readout in duality.READOUTS.items():
        slope = curvature.input_gradient_norm(model, x, y, readout=readout)
        limit = input_gradient_bound(model, x, y, readout=readout)
        yield tally.bound("P4 gradient", f"transformer, {arm}", slope, limit)
        bend = duality.spectral_norms(duality.input_hessians(model, x, y, readout=readout))
        limit = input_curvature_bound(model, x, y, readout=readout)
        yield tally.bound("P4 curvature", f"transformer, {arm}", bend, limit)
    kernel, gap = np.random.default_rng(case).uniform((0.5, -6.0), (2.5, 0.0))
    shared, label = DifferenceDetector(float(kernel)), torch.tensor([0])
    pixels = torch.tensor([1.0, 1.0 - 10.0**gap], dtype=torch.float64).view(1, 1, 1, 2)
    limit = kernel * duality.parameter_gradients(shared, pixels, label).norm(dim=1) / pixels.norm()
    slope = curvature.input_gradient_norm(shared, pixels, label)
    yield tally.bound("P2", "through a shared kernel", slope, limit, holds=False)


@versioned(1)
def detector(kernels: Sequence[float]) -> pd.DataFrame:
    """Derivatives of the difference detector at (1, 1), in its kernel and in the pixels, for several kernels."""
    rows, x, y = [], torch.ones(1, 1, 1, 2, dtype=torch.float64), torch.tensor([0])
    for kernel in kernels:
        model = DifferenceDetector(kernel)
        values = {
            "gradient in the kernel": duality.parameter_gradients(model, x, y).norm(),
            "gradient in the pixels": curvature.input_gradient_norm(model, x, y),
            "Hessian in the pixels": duality.spectral_norms(duality.input_hessians(model, x, y)),
        }
        rows += [{"kernel": kernel, "name": name, "value": float(value)} for name, value in values.items()]
    return pd.DataFrame(rows)
