"""What every network of the notebooks begins and bends with."""

import torch
from torch import nn

from attrobust.shapes import Images

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class Standardize(nn.Module):
    """(x - mean) / std with one constant each, so that attack radii keep meaning pixel units."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, x: Images) -> Images:
        """Standardise the pixels."""
        return (x - self.mean) / self.std
