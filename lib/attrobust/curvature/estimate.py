"""What every curvature function returns: a value, how wrong it may be, and what it cost."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """One estimated quantity.

    Attributes:
        value: the estimate; a number, or one per image.
        error: residual bound (Lanczos), standard error (stochastic) or 0 (exact), same shape as `value`.
        products: matrix-vector products spent; for exact routes the gradients they took.
        vector: the Ritz vector of an eigenvalue, to start the next search from; None where there is none.
    """

    value: float | Tensor
    error: float | Tensor
    products: int
    vector: Tensor | None = field(default=None, repr=False, compare=False)
