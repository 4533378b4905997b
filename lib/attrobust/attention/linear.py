"""Linear attention without its matrix: phi(Q) (phi(K)^T V) costs time linear in the number of tokens.

The matrix phi(Q) phi(K)^T of n queries and n keys has n^2 entries; bracketed from the right, the product never forms
it. Katharopoulos et al. 2020, "Transformers are RNNs", eqs. 4 to 6. Without the matrix there is nothing to explain;
this form serves the comparison of costs.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrobust.attention.kernels import Kernel, Keys, Queries, feature


def mix_in_linear_time(
    kernel: Kernel,
    q: Queries,
    k: Keys,
    v: Float[Tensor, "batch heads keys width"],
    *,
    mask: Bool[Tensor, "#batch #heads 1 keys"] | None = None,
) -> Float[Tensor, "batch heads queries width"]:
    """kernel(q, k) @ v, in time and memory linear in the numbers of queries and keys.

    Args:
        kernel: one whose weights are products of features: score "elu", link "identity".
        q: queries.
        k: keys.
        v: values.
        mask: which keys count, the same for every query; all if None.

    Raises:
        ValueError: for another kernel.

    Example:
        >>> import torch
        >>> from attrobust.attention import kernel
        >>> q, k, v = torch.rand(3, 1, 1, 5, 2)
        >>> linear = kernel("linear")
        >>> torch.allclose(mix_in_linear_time(linear, q, k, v), linear(q, k) @ v)
        True
    """
    if kernel.link != "identity":
        raise ValueError(f"kernel is {kernel}; linear time needs score 'elu' and link 'identity'")
    phi_q, phi_k = feature(q), feature(k)
    n = torch.full((1,), k.shape[-2], dtype=k.dtype, device=k.device)
    if mask is not None:
        phi_k, n = phi_k.masked_fill(~mask.mT, 0), mask.sum(-1, keepdim=True).to(k)
    if kernel.norm == "row":
        total = phi_q @ phi_k.sum(-2)[..., None]
    else:
        total = q.shape[-1] * (n if kernel.norm == "count" else torch.ones_like(n))
    return phi_q @ (phi_k.mT @ v) / torch.where(total > 0, total, torch.ones_like(total))
