"""Maps of noisy copies, averaged: SmoothGrad and its relatives around any adapter."""

import torch
from torch import Tensor

from attrobust import checks
from attrobust.captum.adapter import Adapter, Target, classes, images, only
from attrobust.shapes import Inputs


class NoiseTunnel:
    """Mean, mean square or variance of an adapter's maps under Gaussian noise.

    Captum draws from the global generator, this from the one that it is given, which is the one change of a call; in
    equal states of the two the maps are equal. The noise is drawn in single precision, as captum's is.

    Args:
        attribution_method: an adapter of this module.
        generator: of the noise.

    Example:
        >>> from torch import nn
        >>> from attrobust.captum import Saliency
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> tunnel = NoiseTunnel(Saliency(linear), generator=torch.Generator())
        >>> m = tunnel.attribute(torch.rand(1, 1, 2, 2), nt_samples=3, stdevs=0.1, target=2, abs=False)
        >>> torch.allclose(m.flatten(), linear[1].weight[2])
        True
    """

    attribution_method: Adapter
    generator: torch.Generator

    def __init__(self, attribution_method: Adapter, *, generator: torch.Generator) -> None:
        self.attribution_method = checks.kind("attribution_method", attribution_method, Adapter)
        self.generator = checks.kind("generator", generator, torch.Generator)

    def attribute(
        self, inputs: Inputs, nt_type: str = "smoothgrad", nt_samples: int = 5,
        nt_samples_batch_size: int | None = None, stdevs: float = 1.0, draw_baseline_from_distrib: bool = False, *,
        target: Target = None, **options: object,
    ) -> Inputs:  # fmt: skip
        """Map of each image; `options` go to the adapter.

        Args:
            inputs, target: images and explained classes.
            nt_type: smoothgrad (mean), smoothgrad_sq (mean square) or vargrad (variance) of the maps.
            nt_samples: noisy copies of each image, all in one batch.
            nt_samples_batch_size, draw_baseline_from_distrib: captum's defaults alone are supported.
            stdevs: standard deviation of the noise, one number.
        """
        x, labels = images(inputs), classes(target, inputs)
        checks.one_of("nt_type", nt_type, ("smoothgrad", "smoothgrad_sq", "vargrad"))
        checks.count("nt_samples", nt_samples)
        checks.at_least("stdevs", stdevs, 0)
        only("nt_samples_batch_size", nt_samples_batch_size, None)
        only("draw_baseline_from_distrib", draw_baseline_from_distrib, False)
        if isinstance(options.get("baselines"), Tensor):
            raise ValueError("baselines is a tensor; inside a NoiseTunnel it must be a number")
        copies = x.repeat_interleave(nt_samples, 0)
        drawn = torch.randn(copies.shape, dtype=torch.float32, device=self.generator.device, generator=self.generator)
        noisy, each = copies + stdevs * drawn.to(x), labels.repeat_interleave(nt_samples)
        maps = self.attribution_method.attribute(noisy, target=each, **options).unflatten(0, (len(x), nt_samples))
        if nt_type == "smoothgrad":
            return maps.mean(1)
        squares = maps.square().mean(1)
        return squares if nt_type == "smoothgrad_sq" else squares - maps.mean(1).square()
