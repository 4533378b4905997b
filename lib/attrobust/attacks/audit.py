"""Never blind: before an attack climbs on the derivative of a map, the derivative is tried.

Along a random sign direction v, the change of a map between two points a grey level to either side,

    fd = (h(x + t v) - h(x - t v)) / 2t,   t = 1/255,

is what the derivative must predict: the share <J v, fd> / <fd, fd> is 1 for a smooth network and small t, near 0 for a
piecewise linear one (its map jumps, and autograd says it stands still), and anything for a map that was detached on the
way. <J v, fd> = v . J'fd takes one backward pass, the very one that an attack climbs on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attrobust import checks, similarity
from attrobust.models.derivatives import NoSecondDerivative, again
from attrobust.shapes import Images, Maps, Marks, PerImage

#: Half the distance of the two points, in pixel units.
STEP = 1 / 255

#: How far from 1 an image's share may lie; and the share of images that may fail before a network is refused.
TOLERANCE, FAILING = 0.3, 0.2


class BlindError(ValueError):
    """A map cannot be climbed: its derivative does not predict how it changes.

    Example:
        >>> from attrobust import attacks, attributions, balls, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x, ball = torch.linspace(0.2, 0.8, 16).view(1, 1, 4, 4), balls.Ball("linf", 0.1)
        >>> cut = lambda model, x, target: attributions.saliency(model, x, target).detach()
        >>> try:
        ...     attacks.auto(cut, model, x, ball, k=2, generator=torch.Generator())
        ... except BlindError as error:
        ...     print(type(error).__name__)
        BlindError
    """


@dataclass(frozen=True)
class Audit:
    """What an audit found, image by image.

    Example:
        >>> found = Audit(torch.tensor([1.0, 0.2]), torch.ones(2).bool(), torch.tensor([True, False]))
        >>> found.failing, found.refused
        (0.5, True)
    """

    share: Float[Tensor, " batch"]  # of the map's change that its derivative predicts; NaN where it did not move at all
    moved: Marks  # images whose map moved
    passed: Marks  # images whose derivative may be climbed on
    lacking: str = ""  # why torch cannot differentiate the map, if so; then no image passes

    @property
    def failing(self) -> float:
        """Share of failing images among those whose map moved; 1 if none did."""
        return float((~self.passed[self.moved]).double().mean()) if bool(self.moved.any()) else 1.0

    @property
    def refused(self) -> bool:
        """Whether too many images fail for the network to be climbed on."""
        return self.failing > FAILING


def audit(
    explain: Callable[[Images], Maps], x: Images, signs: Float[Tensor, "directions batch channels height width"]
) -> Audit:
    """Compare the derivative of a map with the map's own differences, image by image.

    Args:
        explain: images -> maps, differentiable; the same random draws at every call.
        x: clean images; the points a grey level away may leave [0, 1].
        signs: directions of +1 and -1, several for each image. It passes if its share lies within `TOLERANCE` of 1.

    Raises:
        ValueError: `explain` that is no function or gives no tensor, or `signs` of another shape than `x`.

    Example:
        >>> from attrobust import attributions, models
        >>> model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
        >>> x, sign = torch.rand(2, 1, 4, 4), torch.ones(2, 2, 1, 4, 4)
        >>> audit(lambda at: attributions.saliency(model, at, torch.tensor([0, 1])), x, sign).passed.tolist()
        [True, True]
    """
    checks.function("explain", explain)
    if checks.floating("signs", signs).shape[1:] != checks.floating("x", x).shape:
        raise ValueError(f"signs have shape {tuple(signs.shape)}; each must have that of x, {tuple(x.shape)}")
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        maps = checks.kind("what explain returns", explain(leaf), Tensor)
        # At the size of 1, where the squares of a very sure network's maps do not vanish.
        power = -similarity.exponent(maps.flatten(1)).view(-1, *(1,) * (maps.ndim - 1))
        maps = similarity.times(maps, power)
    lacking = ""
    predicted, measured = (torch.zeros(len(x), dtype=torch.float64, device=x.device) for _ in range(2))
    for turn, v in enumerate(signs):
        ahead, behind = (similarity.times(explain(x + s * STEP * v).detach(), power) for s in (1, -1))
        change = ((ahead - behind) / (2 * STEP)).nan_to_num()
        with torch.enable_grad():
            overlap = (maps * change).flatten(1).sum(1)
        try:
            slope = gradient(overlap, leaf, keep=turn + 1 < len(signs))
        except NoSecondDerivative as error:  # of hardsigmoid, of fused attention
            lacking, slope = str(error), torch.zeros_like(leaf)
        predicted += (slope * v).flatten(1).sum(1).double()
        measured += change.flatten(1).double().square().sum(1)
    share = torch.where(measured > 0, predicted / measured, torch.nan)
    moved = measured > 0
    return Audit(share, moved, moved & ((share - 1).abs() <= TOLERANCE), lacking)


def gradient(values: PerImage, leaf: Images, *, keep: bool = False) -> Images:
    """Gradient of each image's value; zero where there is none, or none that is finite."""
    if not values.requires_grad:
        return torch.zeros_like(leaf)
    ones = torch.ones_like(values)
    how = {"retain_graph": keep, "allow_unused": True, "materialize_grads": True}
    with again(values):
        (found,) = torch.autograd.grad(values, leaf, ones, **how)
    # Contiguous: that of a sum over pixels is one number shown many times, and must not be written to in place.
    return found.nan_to_num(posinf=0, neginf=0).contiguous()
