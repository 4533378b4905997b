"""Occlusion: what a readout loses when a patch is covered. Slow and blunt, and asks the network itself.

Maps of gradients and of attention are *about* the network; here a change is made and its effect measured. A map that
has nothing to do with it, however robust, says little.
"""

import torch
from torch import nn

from attrobust import checks
from attrobust.attributions.importance import patches
from attrobust.models import guards
from attrobust.models.readouts import Readout, logit, usable
from attrobust.shapes import Images, Labels, OnePlane
from attrobust.versions import versioned


@versioned(1)
def occlusion(
    model: nn.Module, x: Images, target: Labels, *, patch: int, baseline: float = 0.0, readout: Readout = logit
) -> OnePlane:
    """Fall of the target's readout when one patch is painted over: f(x) - f(x, patch at `baseline`), signed.

    One forward pass of the batch per patch, the side of which divides height and width. Zeiler and Fergus 2014,
    "Visualizing and understanding convolutional networks", section 4.2 (there with a grey square).

    Raises:
        ValueError: a `baseline` that is no finite number, a `readout` that is not of each image alone, or a `patch`
            that does not divide the sides.

    Example:
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> x = torch.rand(1, 1, 2, 2)
        >>> shares = x.flatten() * linear[1].weight[2]
        >>> torch.allclose(occlusion(linear, x, torch.tensor([2]), patch=1).flatten(), shares, atol=1e-6)
        True
    """
    guards.classifier(model, x, target)
    checks.baseline("baseline", baseline, x)
    usable(readout, model, x, target, live=False)
    rows, columns = patches(x.detach()[:1], patch=patch).shape[-2:]
    whole, falls = readout(model, x, target), []
    for place in range(rows * columns):
        covered = torch.zeros(rows * columns, dtype=torch.bool, device=x.device)
        covered[place] = True
        mask = covered.view(rows, columns).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
        falls.append(whole - readout(model, torch.where(mask, baseline, x), target))
    return torch.stack(falls, 1).view(len(x), 1, rows, columns)
