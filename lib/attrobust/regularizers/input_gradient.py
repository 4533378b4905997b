"""Squared norm of the loss's gradient in the pixels: |d loss(f(x), y) / dx|^2, by double backpropagation.

Reference: Drucker and Le Cun 1992, "Improving generalization performance using double backpropagation"; Ross and
Doshi-Velez 2018, "Improving the adversarial robustness and interpretability of deep neural networks by regularizing
their input gradients".
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust.shapes import Images
from attrobust.versions import versioned


@versioned(1)
def input_gradient(model: nn.Module, x: Images, y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Squared l2 norm of the cross-entropy's input gradient, of each example; live in the model's parameters.

    Args:
        model: from images to logits, each image on its own.
        x: images.
        y: their labels.

    Returns:
        One number per image, at least 0.

    Example:
        >>> x, y = torch.zeros(2, 1, 1, 2), torch.tensor([0, 1])
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
        >>> with torch.no_grad():
        ...     _ = model[1].weight.copy_(torch.eye(2)), model[1].bias.zero_()
        >>> input_gradient(model, x, y).tolist()
        [0.5, 0.5]
    """
    at = x.detach().requires_grad_()
    loss = F.cross_entropy(model(at), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
    return gradient.flatten(1).square().sum(1)
