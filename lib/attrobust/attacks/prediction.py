"""Keep the prediction: the constraint of every attack on an explanation; and the guard against blind attacks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attrobust.attacks.objectives import like
from attrobust.attacks.pgd import Keep
from attrobust.models import kinks

Images = Float[Tensor, "batch channels height width"]


def same_prediction(model: nn.Module, x: Images) -> Keep:
    """Whether an image is still given the class that the clean one is given."""
    with torch.no_grad():
        clean = model(x).argmax(1)

    def keep(images: Images) -> Bool[Tensor, " batch"]:
        with torch.no_grad():
            return model(images).argmax(1) == like(clean, images)

    return keep


def refuse_kinks(model: nn.Module, x: Images) -> None:
    """Refuse to climb on a network with a ReLU (or any other kink) in it: its maps have no useful gradient.

    Raises:
        ValueError: naming the operations found, functional ones included.
    """
    found = kinks(model, x)
    if found:
        raise ValueError(
            f"model runs {', '.join(found)}, so the gradient of its maps is zero or wrong; pass"
            " ascend_on=[models.smooth_twin(model, x, beta=b) for b in (5, 10, 50)]"
        )
