"""Shapes that everything else speaks of, said once.

Images and the maps that explain them are kept apart by their axis names: an attention map has one plane and as many
rows and columns as there are patches.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

#: Examples of any kind, of which images are one.
Inputs = Float[Tensor, "batch *shape"]
Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, " batch"]
Logits = Float[Tensor, "batch classes"]
Maps = Float[Tensor, "batch planes rows columns"]
Importances = Float[Tensor, "batch rows columns"]
Wanted = Float[Tensor, "wanted anyplanes anyrows anycolumns"]
OnePlane = Float[Tensor, "batch 1 rows columns"]
PerImage = Float[Tensor, " batch"]
Marks = Bool[Tensor, " batch"]

#: (model, images, explained classes) -> signed maps, in the autograd graph.
Attribution = Callable[[nn.Module, Images, Labels], Maps]
