"""The networks of the notebooks, all built by one function; and the smooth twin an attack needs.

Pixels enter in [0, 1]; normalisation is the first layer. Weights start at He et al. 2015's normal
initialisation and depend on the seed alone.
"""

from attrobust.models.architectures import ACTIVATIONS, ARCHITECTURES, MLP, ConvNet, Standardize, build
from attrobust.models.smooth import SmoothTwin, kinks, smooth_twin

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "MLP",
    "ConvNet",
    "SmoothTwin",
    "Standardize",
    "build",
    "kinks",
    "smooth_twin",
]
