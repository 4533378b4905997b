"""Shared weights break the transfer of `duality`; position embeddings restore it (P4).

A convolution (or a patch embedding) uses one kernel at many positions. Its gradient sums what the positions say, and
the sum may vanish while the pixels matter. In a vision transformer the embedding is shared too, but the learned
position embedding Pos is an un-shared bias on every token: with Z = X E^T + Pos and anything after Z,

    phi(X + D; Pos) = phi(X; Pos + D E^T),   grad_X = (grad_Pos) E,   |grad_X| <= |E|_2 |grad_Pos|

and likewise with |E|_2^2 for the Hessians. Ours.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust.curvature import input_gradient_norm
from attrobust.shapes import Images
from attrobust.theory import duality
from attrobust.theory.draws import Source
from attrobust.theory.tally import Cases, NamedValues, bound, named_values, trial
from attrobust.versions import versioned


class TinyTransformer(nn.Module):
    """One softmax-attention block over square patches, written out, with a learned position embedding.

    Images have one channel, tokens the length `dim`, weights float64. Raises ValueError if the side of a patch does not
    divide the side of an image.
    """

    def __init__(self, side: int, *, patch: int, dim: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        if side % patch:
            raise ValueError(f"patch is {patch}; it must divide side, {side}")
        self.patch = patch
        sizes = {"embedding": (dim, patch**2), "position": ((side // patch) ** 2, dim)}
        sizes |= dict.fromkeys(("query", "key", "value"), (dim, dim))
        sizes |= {"hidden": (2 * dim, dim), "head": (classes, 2 * dim)}
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


class DifferenceDetector(nn.Module):
    """The exact counterexample: phi = tanh(k x_1) - tanh(k x_2), one shared weight k.

    At x_1 = x_2 the derivatives of every order in k vanish, while the pixels keep theirs.
    """

    def __init__(self, kernel: float) -> None:
        super().__init__()
        self.kernel = nn.utils.skip_init(nn.Conv2d, 1, 1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(self.kernel.weight, kernel)

    def forward(self, x: Images) -> Float[Tensor, "batch 1"]:
        """The readout, as a single logit."""
        h = torch.tanh(self.kernel(x)).flatten(1)
        return (h[:, 0] - h[:, 1])[:, None]


@trial(version=1)
def transformers(case: int) -> Cases:
    """P4 on a random one-block transformer; and P2 misused through the kernel of a difference detector."""
    g = Source(case)
    model = TinyTransformer(4, patch=2, dim=3, classes=3, generator=g.generator)
    x, y = g.uniform(2, 1, 4, 4), torch.randint(0, 3, (2,), generator=g.generator)
    stretch = torch.linalg.matrix_norm(model.embedding.detach(), ord=2)
    for arm, readout in duality.READOUTS.items():
        slope = input_gradient_norm(model, x, y, readout=readout)
        position = duality.parameter_gradients(model, x, y, readout=readout, only="position").norm(dim=1)
        yield bound("P4 gradient", f"transformer, {arm}", slope, stretch * position)
        bend = duality.spectral_norms(duality.input_hessians(model, x, y, readout=readout))
        position = duality.spectral_norms(duality.parameter_hessians(model, x, y, of="position", readout=readout))
        yield bound("P4 curvature", f"transformer, {arm}", bend, stretch.square() * position)
    kernel, gap = np.random.default_rng(case).uniform((0.5, -6.0), (2.5, 0.0))
    shared, label = DifferenceDetector(float(kernel)), torch.tensor([0])
    pixels = torch.tensor([1.0, 1.0 - 10.0**gap], dtype=torch.float64).view(1, 1, 1, 2)
    limit = kernel * duality.parameter_gradients(shared, pixels, label).norm(dim=1) / pixels.norm()
    yield bound("P2", "through a shared kernel", input_gradient_norm(shared, pixels, label), limit, holds=False)


@versioned(1)
@named_values
def detector(kernels: Sequence[float]) -> NamedValues:
    """Derivatives of the difference detector at (1, 1), in its kernel and in the pixels, for several kernels."""
    x, y = torch.ones(1, 1, 1, 2, dtype=torch.float64), torch.tensor([0])
    for kernel in kernels:
        model = DifferenceDetector(kernel)
        numbers = {
            "gradient in the kernel": duality.parameter_gradients(model, x, y).norm(),
            "gradient in the pixels": input_gradient_norm(model, x, y),
            "Hessian in the pixels": duality.spectral_norms(duality.input_hessians(model, x, y)),
        }
        yield {"kernel": kernel}, numbers
