"""Attention whose matrix is an ordinary output, in the graph: kernels that make it, and the layer that uses one.

A kernel makes the attention matrix of queries and keys. Three words describe it.

    score    how alike a query and a key are       "dot":     s_ij = q_i . k_j / sqrt(d)
                                                   "sqdist":  s_ij = - |q_i - k_j|^2 / (2 sqrt(d))
                                                   "cosine":  s_ij = sqrt(d) q_i . k_j / (|q_i| |k_j|)
                                                   "elu":     s_ij = phi(q_i) . phi(k_j) / d,  phi = elu + 1
    link     what makes the score a weight         "exp", "relu", "identity", "sigmoid": 1 / (1 + n exp(-s))
    norm     what the weights are divided by       "row": their sum over the keys;  "row_plus_one": 1 + that sum
                                                   "rows_and_columns": sums over keys and over queries, in turn
                                                   "count": n;  "none": 1

n is the number of keys a query may attend to. `l2` and `gaussian` are the matched pair: the same score and bandwidth,
with and without the row normalisation; `gaussian` is not divided by n either, as in Lu et al. 2021 (divided by it,
the kernel is `gaussian_counted`). The 1 / d of "elu" is our choice; it cancels in a normalised row and starts the mass
of any other near 1; so is the sqrt(d) of "cosine", which starts it at the size of "dot". (After Tsai et al. 2019.)
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from attrobust import checks
from attrobust.versions import versioned

Queries = Float[Tensor, "batch heads queries dim"]
Keys = Float[Tensor, "batch heads keys dim"]
Values = Float[Tensor, "batch heads keys width"]
Weights = Float[Tensor, "batch heads queries keys"]
Mask = Bool[Tensor, "#batch #heads #queries keys"]
Tokens = Float[Tensor, "batch tokens dim"]
Matrix = Float[Tensor, "batch heads tokens tokens"]


def feature(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Positive feature map elu(x) + 1 of linear attention (Katharopoulos et al. 2020, eq. 7).

    Example:
        >>> feature(torch.tensor([0.0, 2.0])).tolist()
        [1.0, 3.0]
    """
    return F.elu(x) + 1


def _sqdist(q: Queries, k: Keys) -> Weights:
    squared = q.square().sum(-1)[..., :, None] + k.square().sum(-1)[..., None, :] + (-2 * q) @ k.mT
    # Rounding below 0 is taken off the value alone: a clamp would cut the derivatives too, where q meets k.
    return (squared - squared.detach().clamp(max=0)) / (-2 * math.sqrt(q.shape[-1]))


def _cosine(q: Queries, k: Keys) -> Weights:
    return math.sqrt(q.shape[-1]) * (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT)


def _over(weights: Weights, total: Tensor) -> Weights:
    return weights / torch.where(total > 0, total, torch.ones_like(total))


def _row(weights: Weights) -> Weights:
    return _over(weights, weights.sum(-1, keepdim=True))


def _in_turn(weights: Weights) -> Weights:
    """Rows divided by their sums, then `ROUNDS` times columns and rows, so that rows sum to one exactly."""
    weights = _row(weights)
    for _ in range(ROUNDS):
        weights = _row(_over(weights, weights.sum(-2, keepdim=True)))
    return weights


#: Rounds of "rows_and_columns" after the first division of rows.
ROUNDS = 3

Words = dict[str, Callable[[Tensor, Tensor], Tensor]]
SCORES: Words = {
    "dot": lambda q, k: (q / math.sqrt(q.shape[-1])) @ k.mT,
    "sqdist": _sqdist,
    "cosine": _cosine,
    "elu": lambda q, k: feature(q) @ feature(k).mT / q.shape[-1],
}
LINKS: Words = {
    "exp": lambda scores, n: scores.exp(),
    "relu": lambda scores, n: scores.relu(),
    "identity": lambda scores, n: scores,
    "sigmoid": lambda scores, n: torch.sigmoid(scores - n.log()),
}
NORMS: Words = {
    "row": lambda weights, n: _row(weights),
    "row_plus_one": lambda weights, n: weights / (1 + weights.sum(-1, keepdim=True)),
    "rows_and_columns": lambda weights, n: _in_turn(weights),
    "count": lambda weights, n: weights / n,
    "none": lambda weights, n: weights,
}

#: Kernels by name, as their three words: Vaswani et al. 2017, eq. 1 (softmax); Kim et al. 2021 (l2); Lu et al. 2021
#: (gaussian); Katharopoulos et al. 2020 (linear); Wortsman et al. 2023 (relu); Ramapuram et al. 2024 (sigmoid); Miller
#: 2023, "Attention is off by one" (softmax_plus_one); Sander et al. 2022 (doubly_stochastic); Henry et al. 2020, with a
#: fixed scale (cosine).
KERNELS: dict[str, dict[str, str]] = {
    "softmax": {"score": "dot", "link": "exp", "norm": "row"},
    "l2": {"score": "sqdist", "link": "exp", "norm": "row"},
    "gaussian": {"score": "sqdist", "link": "exp", "norm": "none"},
    "gaussian_counted": {"score": "sqdist", "link": "exp", "norm": "count"},
    "exponential": {"score": "dot", "link": "exp", "norm": "count"},
    "linear": {"score": "elu", "link": "identity", "norm": "row"},
    "linear_unnormalised": {"score": "elu", "link": "identity", "norm": "count"},
    "relu": {"score": "dot", "link": "relu", "norm": "count"},
    "sigmoid": {"score": "dot", "link": "sigmoid", "norm": "none"},
    "softmax_plus_one": {"score": "dot", "link": "exp", "norm": "row_plus_one"},
    "doubly_stochastic": {"score": "dot", "link": "exp", "norm": "rows_and_columns"},
    "cosine": {"score": "cosine", "link": "exp", "norm": "row"},
}


class Kernel(nn.Module):
    """Attention matrix of queries and keys, by a word each of `SCORES`, `LINKS` and `NORMS`.

    A ValueError refuses an unknown word, and "identity" of a score other than "elu": weights could be negative.

    Example:
        >>> q = torch.zeros(1, 1, 1, 4)
        >>> Kernel()(q, torch.zeros(1, 1, 2, 4)).tolist(), Kernel(norm="none")(q, torch.zeros(1, 1, 2, 4)).tolist()
        ([[[[0.5, 0.5]]]], [[[[1.0, 1.0]]]])
    """

    score: str
    link: str
    norm: str

    def __init__(self, *, score: str = "dot", link: str = "exp", norm: str = "row") -> None:
        super().__init__()
        self.score = checks.one_of("score", score, SCORES)
        self.link = checks.one_of("link", link, LINKS)
        self.norm = checks.one_of("norm", norm, NORMS)
        if link == "identity" and score != "elu":
            raise ValueError(f"link is 'identity' and score is {score!r}; weights are scores only where score is 'elu'")

    def scores(self, q: Queries, k: Keys) -> Weights:
        """Scores of every query with every key, before link and norm."""
        return SCORES[self.score](q, k)

    def weights(self, scores: Weights, *, mask: Mask | None = None) -> Weights:
        """The attention matrix of given scores: link, then norm; weights of at least 0.

        `mask` says which keys a query may attend to, all if None; n of the module's formulas counts these. Weights are
        exactly 0 at the others, and a query without any key has a row of zeros.
        """
        if self.link == "exp" and self.norm not in ("count", "none"):
            return self._softmax(scores, mask)
        if mask is None:
            n = torch.full((1,), scores.shape[-1], dtype=scores.dtype, device=scores.device)
            return NORMS[self.norm](LINKS[self.link](scores, n), n)
        n = mask.sum(-1, keepdim=True).clamp(min=1).to(scores)
        scores = scores.masked_fill(~mask, 0)  # before the link: exp of a key that does not count may overflow
        return NORMS[self.norm](LINKS[self.link](scores, n).masked_fill(~mask, 0), n)

    def _softmax(self, scores: Weights, mask: Mask | None) -> Weights:
        """Weights exp(s) with divided rows, however large the scores: torch subtracts the largest of a row first."""
        if mask is not None:
            empty = ~mask.any(-1, keepdim=True)
            scores = scores.masked_fill(~(mask | empty), -torch.inf)
        empty_key = self.norm == "row_plus_one"  # the one is a key of score 0 that has no value
        weights = F.pad(scores, (0, 1)).softmax(-1)[..., :-1] if empty_key else scores.softmax(-1)
        weights = weights if mask is None else weights.masked_fill(~mask, 0)
        return _in_turn(weights) if self.norm == "rows_and_columns" else weights

    def forward(self, q: Queries, k: Keys, *, mask: Mask | None = None) -> Weights:
        """Attention matrix of queries and keys; see `weights` for the mask."""
        return self.weights(self.scores(q, k), mask=mask)

    def extra_repr(self) -> str:
        """The three words."""
        return f"score={self.score}, link={self.link}, norm={self.norm}"


@versioned(1)
def kernel(name: str) -> Kernel:
    """The kernel of that name in `KERNELS`; ValueError for any other.

    Example:
        >>> kernel("gaussian")
        Kernel(score=sqdist, link=exp, norm=none)
    """
    return Kernel(**KERNELS[checks.one_of("attention", name, KERNELS)])


def mix_in_linear_time(
    kernel: Kernel, q: Queries, k: Keys, v: Values, *, mask: Bool[Tensor, "#batch #heads 1 keys"] | None = None
) -> Float[Tensor, "batch heads queries width"]:
    """kernel(q, k) @ v in time and memory linear in the numbers of queries and keys: phi(Q) (phi(K)^T V).

    Bracketed from the right, the product never forms the n^2 entries of the matrix phi(Q) phi(K)^T (Katharopoulos et
    al. 2020, "Transformers are RNNs", eqs. 4 to 6). Without the matrix there is nothing to explain; this form serves
    the comparison of costs. The mask, of the keys that count, is the same for every query. A kernel whose weights are
    not products of features (score "elu", link "identity") raises a ValueError.

    Example:
        >>> q, k, v = torch.arange(24.0).view(3, 1, 1, 4, 2).cos()
        >>> linear = Kernel(score="elu", link="identity")
        >>> torch.allclose(mix_in_linear_time(linear, q, k, v), linear(q, k) @ v, atol=1e-6)
        True
    """
    if kernel.link != "identity" or kernel.norm == "rows_and_columns":
        needs = "score 'elu', link 'identity' and a norm of single rows"
        raise ValueError(f"kernel is {kernel}; linear time needs {needs}")
    phi_q, phi_k = feature(q), feature(k)
    n = torch.full((1,), k.shape[-2], device=k.device)
    if mask is not None:
        phi_k, n = phi_k.masked_fill(~mask.mT, 0), mask.sum(-1, keepdim=True)
    if kernel.norm in ("row", "row_plus_one"):
        total = phi_q @ phi_k.sum(-2)[..., None] + (q.shape[-1] if kernel.norm == "row_plus_one" else 0)
    else:
        total = q.shape[-1] * (n if kernel.norm == "count" else torch.ones_like(n))
    return phi_q @ (phi_k.mT @ v) / torch.where(total > 0, total, torch.ones_like(total))


class Attention(nn.Module):
    """Self-attention: y = concat_h(A_h V_h) W + b with A_h = kernel(Q_h, K_h), softmax if it is None.

    A ValueError refuses `heads` that do not divide `dim`. (Vaswani et al. 2017, "Attention is all you need", 3.2.2.)

    Example:
        >>> layer, x = Attention(4, 2), torch.ones(1, 3, 4)
        >>> y, weights = layer.attend(x)
        >>> tuple(y.shape), tuple(weights.shape), torch.allclose(weights.sum(3), torch.ones(1, 2, 3))
        ((1, 3, 4), (1, 2, 3, 3), True)
    """

    qkv: nn.Linear
    kernel: Kernel
    projection: nn.Linear

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
        """New tokens (the `read` first ones, or all) and the attention matrix they were mixed with, live."""
        q, k, v = self._split(x)
        weights = self.kernel(q, k)
        return self.projection((weights[:, :, :read] @ v).transpose(1, 2).flatten(2)), weights

    def scores(self, x: Tokens) -> Matrix:
        """Scores that the kernel makes the matrix of, live."""
        q, k, _ = self._split(x)
        return self.kernel.scores(q, k)

    def _split(self, x: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head."""
        return tuple(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
