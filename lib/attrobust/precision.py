"""Whole 32-bit products on a graphics card.

torch lets a card round the factors of convolutions (and, where asked to, of matrix products) to ten bits, TF32. An
image is then answered differently alone and in company, and a small attack drowns in rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def whole_products() -> Iterator[None]:
    """Within, or in a function that this decorates, no card rounds the factors of a product to ten bits.

    Example:
        >>> with whole_products():
        ...     float(torch.ones(1, 3) @ torch.ones(3, 1))
        3.0
    """
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    parts, name, whole = (cuda, cudnn), "allow_tf32", False
    if hasattr(cuda, "fp32_precision"):  # torch 2.9 and later, which refuse the older words beside these
        parts, name, whole = (cuda, cudnn.conv, cudnn.rnn), "fp32_precision", "ieee"
    before = [getattr(part, name) for part in parts]
    try:
        for part in parts:
            setattr(part, name, whole)
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            setattr(part, name, value)
