"""Self-attention with a kernel of one's choice; its matrix is an ordinary output."""

from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks
from attrobust.attention.kernels import Kernel

Tokens = Float[Tensor, "batch tokens dim"]
Matrix = Float[Tensor, "batch heads tokens tokens"]


class Attention(nn.Module):
    """Self-attention: y = concat_h(A_h V_h) W + b with A_h = kernel(Q_h, K_h), softmax if it is None.

    After Vaswani et al. 2017, "Attention is all you need", section 3.2.2.

    Raises:
        ValueError: if `heads` does not divide `dim`, or either is not a positive whole number.

    Example:
        >>> import torch
        >>> output, weights = Attention(6, 2).attend(torch.rand(1, 3, 6))
        >>> output.shape, weights.shape
        (torch.Size([1, 3, 6]), torch.Size([1, 2, 3, 3]))
    """

    def __init__(self, dim: int, heads: int, *, kernel: Kernel | None = None) -> None:
        super().__init__()
        checks.count("dim", dim)
        checks.count("heads", heads)
        if dim % heads:
            raise ValueError(f"heads is {heads}; it must divide dim, {dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.kernel = kernel or Kernel()
        self.projection = nn.Linear(dim, dim)

    def forward(self, x: Tokens) -> Tokens:
        """New tokens."""
        return self.attend(x)[0]

    def attend(self, x: Tokens, *, read: int | None = None) -> tuple[Float[Tensor, "batch read dim"], Matrix]:
        """New tokens and the attention matrix they were mixed with, live.

        Only the `read` leading tokens are mixed, where what follows reads no other; all if None.
        """
        q, k, v = self._split(x)
        weights = self.kernel(q, k)
        mixed = (weights[:, :, :read] @ v).transpose(1, 2).flatten(2)
        return self.projection(mixed), weights

    def scores(self, x: Tokens) -> Matrix:
        """Scores that the kernel makes the matrix of, live."""
        q, k, _ = self._split(x)
        return self.kernel.scores(q, k)

    def _split(self, x: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head."""
        return tuple(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
