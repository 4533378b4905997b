"""Keep the prediction: the constraint of every attack on an explanation; and the guard against blind attacks."""

from collections.abc import Callable

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
            logits = model.recalled(images) if isinstance(model, Overheard) else None
            return (model(images) if logits is None else logits).argmax(1) == like(clean, images)

    return keep


class Overheard(nn.Module):
    """A network that remembers its last logits, so that a map and the check of its prediction share a forward pass.

    Args:
        model: classifier, with `attend` or without; weights are shared.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.training = model, model.training
        self._last: tuple[Images, Tensor] | None = None

    def forward(self, x: Images) -> Tensor:
        """Logits of the model."""
        return self._remember(x, self.model(x))

    @property
    def attend(self) -> Callable:
        """`attend` of the model; missing where the model has none."""
        attend = self.model.attend

        def overheard(x: Images) -> tuple[Tensor, list[Tensor]]:
            logits, maps = attend(x)
            return self._remember(x, logits), maps

        return overheard

    def recalled(self, x: Images) -> Tensor | None:
        """Logits of the last images that were shown, detached; None if these are others."""
        if self._last is None or not torch.equal(self._last[0], x):
            return None
        return self._last[1]

    def _remember(self, x: Images, logits: Tensor) -> Tensor:
        self._last = x.detach().clone(), logits.detach()
        return logits


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
