"""Squared norm of the loss's gradient in the pixels: |d loss(f(x), y) / dx|^2, by double backpropagation.

Drucker and Le Cun 1992, "Improving generalization performance using double backpropagation"; Ross and Doshi-Velez 2018,
"Improving the adversarial robustness and interpretability of deep neural networks by regularizing their input
gradients".
"""

import torch
from torch import Tensor, nn

from attrobust.models.readouts import cross_entropy
from attrobust.shapes import Images, Labels, PerImage
from attrobust.versions import versioned


@versioned(1)
def input_gradient(model: nn.Module, x: Images, y: Labels) -> PerImage:
    """Squared l2 norm of the cross-entropy's input gradient, of each example; live in the model's parameters.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
        >>> linear[1].weight.data = torch.tensor([[1.0], [-1.0]])
        >>> input_gradient(linear, torch.zeros(1, 1, 1, 1), torch.tensor([0])).item()  # (2 (1 - p))^2 at p = 1/2
        1.0
    """
    at = x.detach().requires_grad_()
    return live_gradient(cross_entropy(model, at, y), at).flatten(1).square().sum(1)


def live_gradient(values: PerImage, at: Tensor) -> Tensor:
    """Gradient in the pixels of one number per image, live in the pixels and in whatever else the numbers depend on."""
    return torch.autograd.grad(values.sum(), at, create_graph=True)[0]
