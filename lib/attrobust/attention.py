"""Attention kernels: queries and keys in, the attention matrix out; and the layer that uses one.

A kernel is described by three words:

    score    how alike a query and a key are       "dot": s_ij = q_i . k_j / sqrt(d)
    link     what makes the score a weight         "exp"
    norm     what the weights are divided by       "row": their sum over the keys

Softmax attention is ("dot", "exp", "row"). The matrix is the *output* of a module and stays in the graph: nobody
needs a hook to read it, and nothing hides in a fused product that has no second derivative. Vaswani et al. 2017,
eq. 1; the reading as a kernel is Tsai et al. 2019's.
"""

import math

from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks

Queries = Float[Tensor, "batch heads queries dim"]
Keys = Float[Tensor, "batch heads keys dim"]
Weights = Float[Tensor, "batch heads queries keys"]
Tokens = Float[Tensor, "batch tokens dim"]

SCORES = ("dot",)
LINKS = ("exp",)
NORMS = ("row",)

#: Kernels by name, as the three words that describe them.
KERNELS: dict[str, dict[str, str]] = {"softmax": {"score": "dot", "link": "exp", "norm": "row"}}


class Kernel(nn.Module):
    """Attention matrix of queries and keys; a module, so that its output can be pointed at.

    Args:
        score: one of `SCORES`.
        link: one of `LINKS`.
        norm: one of `NORMS`.

    Raises:
        ValueError: for an unknown word.

    Example:
        >>> import torch
        >>> weights = Kernel()(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 4, 3))
        >>> weights.shape, weights.unique().tolist()
        (torch.Size([1, 1, 2, 4]), [0.25])
    """

    def __init__(self, *, score: str = "dot", link: str = "exp", norm: str = "row") -> None:
        super().__init__()
        self.score = checks.one_of("score", score, SCORES)
        self.link = checks.one_of("link", link, LINKS)
        self.norm = checks.one_of("norm", norm, NORMS)

    def scores(self, q: Queries, k: Keys) -> Weights:
        """Scores of every query with every key, before link and norm: q . k / sqrt(d)."""
        return (q / math.sqrt(q.shape[-1])) @ k.mT

    def forward(self, q: Queries, k: Keys) -> Weights:
        """Attention matrix; torch's softmax subtracts the largest score of a row before exp."""
        return self.scores(q, k).softmax(-1)

    def extra_repr(self) -> str:
        """The three words."""
        return f"score={self.score}, link={self.link}, norm={self.norm}"


def kernel(name: str) -> Kernel:
    """The kernel of that name.

    Args:
        name: one of `KERNELS`.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> kernel("softmax")
        Kernel(score=dot, link=exp, norm=row)
    """
    return Kernel(**KERNELS[checks.one_of("attention", name, KERNELS)])


class Attention(nn.Module):
    """Self-attention: y = concat_h(A_h V_h) W + b with A_h = kernel(Q_h, K_h).

    Args:
        dim: length of a token.
        heads: number of heads; must divide `dim`.
        kernel: from queries and keys to the attention matrix; softmax if None.

    Raises:
        ValueError: if `heads` does not divide `dim`, or either is not a positive whole number.

    Example:
        >>> import torch
        >>> layer = Attention(6, 2)
        >>> output, weights = layer.attend(torch.rand(1, 3, 6))
        >>> output.shape, weights.shape
        (torch.Size([1, 3, 6]), torch.Size([1, 2, 3, 3]))

    Reference: Vaswani et al. 2017, "Attention is all you need", section 3.2.2.
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

    def attend(
        self, x: Tokens, *, read: int | None = None
    ) -> tuple[Float[Tensor, "batch read dim"], Float[Tensor, "batch heads tokens tokens"]]:
        """New tokens and the attention matrix they were mixed with, live.

        Args:
            x: tokens.
            read: how many leading tokens are read by what follows; only these are mixed. All if None.
        """
        q, k, v = self._split(x)
        weights = self.kernel(q, k)
        mixed = (weights[:, :, :read] @ v).transpose(1, 2).flatten(2)
        return self.projection(mixed), weights

    def scores(self, x: Tokens) -> Float[Tensor, "batch heads tokens tokens"]:
        """Scores that the kernel makes the matrix of, live."""
        q, k, _ = self._split(x)
        return self.kernel.scores(q, k)

    def _split(self, x: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
