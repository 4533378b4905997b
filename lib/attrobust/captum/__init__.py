"""Captum's names and signatures over our attributions, so that who uses captum changes one import; and the way back.

    from attrobust.captum import IntegratedGradients      in place of      from captum.attr import IntegratedGradients

Values are captum's up to rounding. What differs: a map has a graph exactly if the inputs require a gradient, and its
derivative is right where the network is smooth; captum's maps are detached or have a derivative that misses a part. The
logit of a class is explained, of images in one tensor, under one int, or a tensor or list of one int for each image.
Every other option keeps captum's default or is refused in a sentence (ValueError), and so is a network for which
captum's hooks would give another number than the method's equation does; our `attributions` take it. The inputs and the
network are looked at first (`models.guards`). Captum itself is not needed.

`of_captum` turns an attribution object of captum's into one of ours, to be measured.
"""

from attrobust.captum.covered import LayerGradCam, Occlusion
from attrobust.captum.gradients import InputXGradient, IntegratedGradients, Saliency
from attrobust.captum.noise import NoiseTunnel
from attrobust.captum.propagation import LRP, DeepLift, GuidedBackprop
from attrobust.captum.reported import of_captum

__all__ = [
    "LRP", "DeepLift", "GuidedBackprop", "InputXGradient", "IntegratedGradients", "LayerGradCam", "NoiseTunnel",
    "Occlusion", "Saliency", "of_captum",
]  # fmt: skip
