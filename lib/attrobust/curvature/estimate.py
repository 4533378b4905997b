"""What every curvature function returns: a value, how wrong it may be, and what it cost."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """One estimated quantity.

    Attributes:
        value: the estimate; a number, or one per image.
        error: residual bound (Lanczos) or standard error (stochastic), same shape as `value`.
        products: matrix-vector products spent.
    """

    value: float | Tensor
    error: float | Tensor
    products: int
