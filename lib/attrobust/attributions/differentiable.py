"""Can an attack climb on this map's own derivative? A question with three answers."""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from attrobust.attributions import attention, cam, flow, gradients, importance, propagation
from attrobust.models import kinks

Images = Float[Tensor, "batch channels height width"]

ANALYTIC = "analytic"
THROUGH_TWIN = "through a smooth twin"
NONE = "none: attack by transfer and gradient-free search"

#: What autograd returns for each method on a smooth network; every "analytic" is tested against finite differences.
ON_SMOOTH_NETWORKS: dict[Callable, str] = {
    gradients.saliency: ANALYTIC,
    gradients.input_x_gradient: ANALYTIC,
    gradients.integrated_gradients: ANALYTIC,
    gradients.smooth_grad: ANALYTIC,
    gradients.uniform_grad: ANALYTIC,
    propagation.deep_lift: ANALYTIC,
    propagation.lrp: ANALYTIC,
    propagation.guided_backprop: ANALYTIC,
    cam.grad_cam: ANALYTIC,
    attention.raw_attention: ANALYTIC,
    attention.rollout: ANALYTIC,
    attention.gradient_attention: ANALYTIC,
    attention.relevance: ANALYTIC,
    flow.attention_flow: NONE,
}


def second_derivative(attribution: Callable, model: nn.Module, x: Images) -> str:
    """How the derivative of a map in the pixels can be had, for an attack that wants to climb on it.

    Args:
        attribution: one of this package, or a `functools.partial` of one (`on_patches` included); any other function
            may carry an attribute `second_derivative` with one of the first two answers.
        model: classifier in eval mode.
        x: images the model accepts.

    Returns:
        "analytic": autograd's derivative of the map is the true one (on a set of full measure: a max-pool's winner, a
        positive part or guided backpropagation's cut may switch). "through a smooth twin": the model has kinks, at
        which the map jumps without its derivative knowing; climb on `models.smooth_twin` and judge on the model.
        "none: attack by transfer and gradient-free search": the map is detached, or nothing is known of it.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU())
        >>> second_derivative(partial(propagation.deep_lift, baseline=0.5), net, torch.rand(1, 1, 2, 2))
        'through a smooth twin'
    """
    inner = attribution
    while isinstance(inner, partial):
        inner = inner.keywords["attribution"] if inner.func is importance.on_patches else inner.func
    answer = getattr(inner, "second_derivative", ON_SMOOTH_NETWORKS.get(inner, NONE))
    return THROUGH_TWIN if answer == ANALYTIC and kinks(model, x) else answer
