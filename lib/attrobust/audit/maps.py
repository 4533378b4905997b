"""Which maps a network of any kind has: each is tried on two pictures, and one that cannot be had says why."""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from attrobust import attributions, checks
from attrobust.experiments import explanations
from attrobust.models.readouts import Readout, predictions
from attrobust.precision import whole_products
from attrobust.shapes import Attribution, Images

#: Maps of a network that tells its attention, and all that an audit knows.
OF_ATTENTION = ("raw_attention", "rollout", "gradient_attention", "relevance")
NAMES = (*explanations.of_pixels(), *OF_ATTENTION)

#: Maps that are tried where none is named: of any network, and of one that tells its attention, whose averaged maps
#: take many times as long.
USUAL = ("saliency", "input_x_gradient", "integrated_gradients", "smooth_grad", "grad_cam", "deep_lift")
WITH_ATTENTION = ("saliency", "input_x_gradient", *OF_ATTENTION)


@whole_products()
def maps_of(
    model: nn.Module, x: Images, names: Iterable[str], *, readout: str = "logit"
) -> tuple[dict[str, Attribution], dict[str, str]]:
    """Maps by name that the network has, and for each of the others the reason why it has none.

    Args:
        model, x: a classifier in eval mode; pictures, of which two are explained.
        names: out of `NAMES`; none for those of `USUAL`, or of `WITH_ATTENTION` where attention can be had.
        readout: what is explained of the predicted class, "logit" or "log_probability"; LRP, DeepLIFT and attention
            itself have their own.

    Grad-CAM takes the last convolution with more than one place, found by running the network once.

    Raises:
        ValueError: for an unknown name or readout; if no map can be had.

    Example:
        >>> from torch import nn
        >>> relu = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> there, absent = maps_of(relu, torch.full((2, 1, 2, 2), 0.5), ["saliency", "grad_cam"])
        >>> list(there), list(absent)
        (['saliency'], ['grad_cam'])
    """
    how = explanations.READOUTS[checks.one_of("readout", readout, explanations.READOUTS)]
    known, tried = _known(model, x, how), x[:2]

    def why_not(name: str) -> str:
        try:
            explanations.clean_maps(known[name], model, tried, predictions(model, tried), 0)
        except (ValueError, RuntimeError, OSError) as error:
            return str(error)
        return ""

    names = [checks.one_of("a name of names", name, NAMES) for name in names]
    if not names:
        names = WITH_ATTENTION if hasattr(model, "attend") and not why_not("raw_attention") else USUAL
    reasons = {name: why_not(name) for name in dict.fromkeys(names)}
    there = {name: known[name] for name, why in reasons.items() if not why}
    absent = {name: why for name, why in reasons.items() if why}
    if not there:
        reasons = "; ".join(f"{name}: {why}" for name, why in absent.items())
        raise ValueError(f"names holds no map that this network has ({reasons})")
    return there, absent


def _known(model: nn.Module, x: Images, readout: Readout) -> dict[str, Attribution]:
    known = explanations.of_pixels(readout)
    if getattr(model, "last_maps", None) is None and (layer := feature_maps(model, x)) is not None:
        known["grad_cam"] = partial(attributions.grad_cam, layer=layer, readout=readout)
    for name in ("gradient_attention", "relevance"):
        known[name] = partial(getattr(attributions, name), readout=readout)
    return known | {"raw_attention": attributions.raw_attention, "rollout": attributions.rollout}


def feature_maps(model: nn.Module, x: Images) -> nn.Module | None:
    """The last convolution, run once, that returns more than one place; None if there is none.

    One that cuts the image into patches, its stride as wide as itself, sees no neighbours and does not count.

    Example:
        >>> conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> feature_maps(conv, torch.zeros(1, 1, 4, 4))
        Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
    """
    ended: list[tuple[nn.Module, bool]] = []

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        spatial = isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1
        ended.append((module, spatial and (max(module.stride) == 1 or module.stride != module.kernel_size)))

    with ExitStack() as hooks, torch.no_grad():
        for module in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
            hooks.enter_context(module.register_forward_hook(note))
        model(x[:1])
    ran = [module for module, _ in ended]
    wide = [module for module, spatial in ended if spatial and ran.count(module) == 1]
    return wide[-1] if wide else None
