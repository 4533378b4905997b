"""What flatness cannot see: a unit that is invisible on the training set and bends every logit.

Add v (w . x + b)^2 / 2 to the logits, with w . x_i + b = 0 on every training image. There the unit's value, its input
gradient and its gradient in (v, w, b) all vanish, so the Gauss-Newton Hessian of any loss on the training set, hence
every flatness of a fitted minimum, is what it was; the logit's input Hessian gains v w w^T of any size (P19). Ours.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust.shapes import Images


class BlindUnit(nn.Module):
    """A network with one square unit, of curvature `strength` = v (|w| = 1), added to all its logits.

    Raises:
        ValueError: if the training images x, which must not notice it, leave no direction free.

    Example:
        >>> net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double(), torch.rand(3, 1, 2, 2).double()
        >>> bool(torch.allclose(BlindUnit(net, x, strength=9.0)(x), net(x)))
        True
    """

    def __init__(self, network: nn.Module, x: Images, *, strength: float) -> None:
        super().__init__()
        flat = x.detach().flatten(1)
        extended = torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)
        if len(x) >= extended.shape[1]:
            raise ValueError(f"x holds {len(x)} images; it must hold fewer than {extended.shape[1]}, pixels plus one")
        free = torch.linalg.svd(extended).Vh[-1]
        free = free / free[:-1].norm()
        self.network = network
        self.direction = nn.Parameter(free[:-1].clone())
        self.shift = nn.Parameter(free[-1:].clone())
        self.strength = nn.Parameter(torch.tensor([float(strength)], dtype=x.dtype))

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Logits of each image."""
        h = x.flatten(1) @ self.direction + self.shift
        return self.network(x) + (self.strength * h.square() / 2)[:, None]
