"""The networks of the notebooks, all built by one function; and the smooth twin an attack needs.

Pixels enter in [0, 1]; normalisation is the first layer. Weights depend on the seed alone. A transformer also hands
out its attention maps, `attend(x) -> (logits, maps)`, and the scores they are made of. `models.readouts` says which
number of a network a map explains.
"""

from attrobust.models import readouts
from attrobust.models.architectures import (
    ACTIVATIONS,
    ARCHITECTURES,
    INITIAL,
    MLP,
    ConvNet,
    ResNet,
    Standardize,
    ViT,
    build,
)
from attrobust.models.binary import TwoLogits
from attrobust.models.efficient import EfficientNetLite0
from attrobust.models.smooth import SmoothTwin, kinks, smooth_twin

__all__ = [
    "ACTIVATIONS", "ARCHITECTURES", "INITIAL", "MLP", "ConvNet", "EfficientNetLite0", "ResNet", "SmoothTwin",
    "Standardize", "TwoLogits", "ViT", "build", "kinks", "readouts", "smooth_twin",
]  # fmt: skip
