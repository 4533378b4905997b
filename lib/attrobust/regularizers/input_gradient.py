"""Squared norm of the loss's gradient in the pixels: |d loss(f(x), y) / dx|^2, by double backpropagation.

Drucker and Le Cun 1992, "Improving generalization performance using double backpropagation"; Ross and Doshi-Velez 2018,
"Improving the adversarial robustness and interpretability of deep neural networks by regularizing their input
gradients".
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attrobust.models.readouts import cross_entropy
from attrobust.shapes import Images, Labels, PerImage
from attrobust.versions import versioned


@versioned(1)
def input_gradient(model: nn.Module, x: Images, y: Labels) -> PerImage:
    """Squared l2 norm of the cross-entropy's input gradient, of each example; live in the model's parameters.

    Raises:
        ValueError: a network with BatchNorm in train mode or without running statistics, which lets other images into
            an example's gradient.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
        >>> linear[1].weight.data = torch.tensor([[1.0], [-1.0]])
        >>> input_gradient(linear, torch.zeros(1, 1, 1, 1), torch.tensor([0])).item()  # (2 (1 - p))^2 at p = 1/2
        1.0
    """
    at = leaf(model, x)
    return live_gradient(cross_entropy(model, at, y), at).flatten(1).square().sum(1)


def leaf(model: nn.Module, x: Images) -> Images:
    """The images, ready to be differentiated in; refused where others enter the gradient of one."""
    if any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in model.modules()):
        raise ValueError("model normalises by its batch; call model.eval(), and let BatchNorm track running statistics")
    return x.detach().requires_grad_()


def live_gradient(values: PerImage, at: Tensor) -> Tensor:
    """Gradient in the pixels of one number per image, live in the pixels and in whatever else the numbers depend on."""
    return torch.autograd.grad(values.sum(), at, create_graph=True)[0]
