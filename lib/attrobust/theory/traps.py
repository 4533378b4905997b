"""What misleads a measure: the explained number (P15 to P17), what flatness or a parameter gradient misses (P19, P26).

P15  phi -> c phi multiplies gradient, Hessian and every Lipschitz constant by c; relative curvature, cosine and ranks
     stay. An absolute number can be driven to zero by shrinking logits.
P16  grad_x loss = J_x^T (p - e_y) and grad_x p_y = p_y J_x^T (e_y - p) fade at a good fit: explain a logit.
P17  Between kinks a ReLU logit is linear, so its Hessian is zero almost everywhere and all turning happens at the
     kinks; the Hessian of a softplus twin measures its sharpness beta (textbook, all others are ours).
P19  Add v (w . x + b)^2 / 2 to the logits, with w . x_i + b = 0 on every training image. There the unit's value, its
     input gradient and its gradient in (v, w, b) all vanish, so the Gauss-Newton Hessian of any loss on the training
     set, hence every flatness of a fitted minimum, is what it was; the logit's input Hessian gains v w w^T of any size.
P26  One attention read-out, f = sum_i a_i v_i with a made from scores s_i = q^T W_K x_i, has three gradients:

         xi = df/ds          softmax: p_i (v_i - sum_j p_j v_j), which sums to 0;  sigmoid: sigma'(s_i + b) v_i
         df/dW_K = q (X^T xi)^T           shared by all tokens: it sees the tokens through one sum
         df/dx_i = xi_i W_K^T q           through the scores, one for each token

     So with softmax the parameter gradient sees centred tokens only. The sigmoid has the bias b = -log n of Ramapuram
     et al. 2024 (arXiv 2409.04431), which gives its rows a mass near 1 at the start.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrobust import checks, curvature, similarity
from attrobust.models.readouts import logit
from attrobust.shapes import Images
from attrobust.theory import certificates, draws, duality
from attrobust.theory.entropy import row_entropy
from attrobust.theory.tally import Cases, NamedValues, bound, identity, named_values, residual, trial

KINDS = ("softmax", "sigmoid")


@named_values(version=1)
def scales(seeds: Sequence[int], factors: Sequence[float]) -> NamedValues:
    """P15: one random step measured by absolute and by scale-free numbers, for logits times a factor."""
    for seed in seeds:
        model, x, y = draws.network(seed, images=1)
        moved = (x + 0.1 * draws.Source(seed).normal(*x.shape)).clamp(0, 1)
        for factor in factors:

            def readout(model: Callable, x: Tensor, y: Tensor, factor: float = factor) -> Tensor:
                return factor * logit(model, x, y)

            hessian = curvature.InputHessian(model, x, y, readout=readout)
            maps = [h.gradient.detach() for h in (hessian, curvature.InputHessian(model, moved, y, readout=readout))]
            generator = torch.Generator().manual_seed(0)
            numbers = {
                "input curvature": duality.spectral_norms(duality.input_hessians(model, x, y, readout=readout)),
                "displacement": similarity.displacement(*maps),
                "relative curvature": curvature.relative_curvature(hessian, generator=generator, steps=9).value,
                "cosine": similarity.cosine(*maps),
                "Spearman": similarity.spearman(*(m.abs().sum(1) for m in maps)),
            }
            yield {"case": seed, "factor": factor}, numbers


@trial(version=1)
def loss_gradients(case: int) -> Cases:
    """P16: the closed forms of the gradients of loss and probability."""
    model, x, y = draws.network(case)
    p, j = model(x).softmax(1).detach(), curvature.input_jacobian(model, x)
    onehot = torch.nn.functional.one_hot(y, p.shape[1]).to(p)
    forms = {"loss": p - onehot, "probability": (p * onehot).sum(1, keepdim=True) * (onehot - p)}
    for arm, weight in forms.items():
        exact = curvature.InputHessian(model, x, y, readout=duality.READOUTS[arm]).gradient.flatten(1)
        yield identity("P16", f"gradient of the {arm}", exact, torch.einsum("bc,bcn->bn", weight, j))


@named_values(version=1)
def twins(seeds: Sequence[int], betas: Sequence[float]) -> NamedValues:
    """P17: softplus twins of ReLU networks on a segment: curvature at its start, largest on it, total turn."""
    for seed in seeds:
        relu, x, y = draws.network(seed, activations=("relu",), images=2)
        way = x[0] + torch.linspace(0, 1, 201, dtype=x.dtype).view(-1, 1, 1, 1) * (x[1] - x[0])
        zero = duality.input_hessians(relu, x, y).abs().max()
        for beta in betas:
            soft = [nn.Softplus(beta, threshold=500) if isinstance(layer, nn.ReLU) else layer for layer in relu]
            twin, generator = nn.Sequential(*soft), torch.Generator().manual_seed(0)
            hessian = curvature.InputHessian(twin, way, y[:1].expand(201))
            turn = curvature.relative_curvature(hessian, generator=generator, steps=9).value
            value = certificates.logit_at(twin, x[:1], y[:1])
            total = certificates.turn(value, x[0].flatten(), (x[1] - x[0]).flatten(), nodes=400)
            numbers = {"at the image": turn[0], "largest on the way": turn.max(), "turn over the whole way": total}
            yield {"case": seed, "beta": beta}, {**numbers, "ReLU Hessian": zero}


class BlindUnit(nn.Module):
    """A network with a square unit of curvature `strength` in all logits; x must leave a direction free for it.

    Example:
        >>> linear, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.eye(4)[:2].view(2, 1, 2, 2)
        >>> trap = BlindUnit(linear, x, strength=9.0)
        >>> torch.allclose(trap(x), linear(x), atol=1e-5), torch.allclose(trap(x + 1), linear(x + 1))
        (True, False)
    """

    direction: nn.Parameter
    shift: nn.Parameter
    strength: nn.Parameter

    def __init__(self, network: nn.Module, x: Images, *, strength: float) -> None:
        super().__init__()
        flat = x.detach().flatten(1)
        extended = torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)
        if len(x) >= extended.shape[1]:
            raise ValueError(f"x holds {len(x)} images; it must hold fewer than {extended.shape[1]}, pixels plus one")
        free = torch.linalg.svd(extended).Vh[-1]
        free = free / free[:-1].norm()
        self.network = network
        self.direction = nn.Parameter(free[:-1].clone())
        self.shift = nn.Parameter(free[-1:].clone())
        self.strength = nn.Parameter(torch.tensor([float(strength)], dtype=x.dtype))

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Logits of each image."""
        h = x.flatten(1) @ self.direction + self.shift
        return self.network(x) + (self.strength * h.square() / 2)[:, None]


class Readout(NamedTuple):
    """Query, key matrix, tokens and values of one row of attention.

    Example:
        >>> row = draw(0)
        >>> row.tokens.shape[0] == row.values.shape[0]
        True
    """

    query: Float[Tensor, " dim"]
    key: Float[Tensor, "dim width"]
    tokens: Float[Tensor, "n width"]
    values: Float[Tensor, " n"]


class Gradients(NamedTuple):
    """By automatic differentiation: in the scores, in W_K, and in the tokens through the scores.

    Example:
        >>> found = gradients(draw(0), kind="softmax")
        >>> abs(found.scores.sum().item()) < 1e-9  # a shift of all scores changes nothing
        True
    """

    scores: Float[Tensor, " n"]
    key: Float[Tensor, "dim width"]
    tokens: Float[Tensor, "n width"]


def draw(seed: int, *, diversity: float = 1.0) -> Readout:
    """A random read-out of 2 to 16 tokens in 2 to 6 dimensions; `diversity` is the size of what tells tokens apart.

    Raises:
        ValueError: a negative `diversity`.

    Example:
        >>> same = draw(0, diversity=0.0).tokens
        >>> torch.equal(same, same[:1].expand_as(same))
        True
    """
    checks.at_least("diversity", diversity, 0)
    g = draws.Source(seed)
    n, dim = g.whole(2, 16), g.whole(2, 6)
    shared, query, own = g.normal(1, dim), g.normal(dim), g.normal(n, dim)
    return Readout(query, g.normal(dim, dim) / math.sqrt(dim), shared + diversity * own, g.normal(n))


def weights(scores: Float[Tensor, " n"], *, kind: str) -> Float[Tensor, " n"]:
    """Row of attention from scores under one of the `KINDS`.

    Raises:
        ValueError: an unknown `kind`.

    Example:
        >>> weights(torch.zeros(4), kind="softmax").tolist(), weights(torch.zeros(1), kind="sigmoid").tolist()
        ([0.25, 0.25, 0.25, 0.25], [0.5])
    """
    checks.one_of("kind", kind, KINDS)
    return scores.softmax(0) if kind == "softmax" else torch.sigmoid(scores - math.log(len(scores)))


def scores(row: Readout) -> Float[Tensor, " n"]:
    """Scores of the row.

    Example:
        >>> row = draw(0)
        >>> scores(row).shape == row.values.shape
        True
    """
    return row.tokens @ (row.key.T @ row.query)


def gradients(row: Readout, *, kind: str) -> Gradients:
    """Gradients of the read-out under one of the `KINDS`.

    Raises:
        ValueError: an unknown `kind`.

    Example:
        >>> soft, sharp = (gradients(draw(0), kind=kind) for kind in KINDS)
        >>> soft.key.shape == sharp.key.shape
        True
    """
    key, tokens = (part.clone().requires_grad_() for part in (row.key, row.tokens))
    at = scores(row._replace(key=key, tokens=tokens))
    return Gradients(*torch.autograd.grad(weights(at, kind=kind) @ row.values, (at, key, tokens)))


@trial(version=1)
def readouts(case: int) -> Cases:
    """P26 on a random read-out: closed forms, the size of the score gradient, centred tokens, identical tokens."""
    spread = torch.rand(1, generator=draws.Source(case).generator)
    row, alike = draw(case, diversity=10 ** float(2 * spread - 1.5)), draw(case, diversity=0.0)
    found, sigmoid = (gradients(row, kind=kind) for kind in KINDS)
    p, v = weights(scores(row), kind="softmax"), row.values
    xi, centred = p * (v - p @ v), torch.linalg.matrix_norm(row.tokens - row.tokens.mean(0), ord=2)
    yield identity("P26", "gradient in the scores", found.scores, xi)
    yield identity("P26", "gradient in W_K", found.key, torch.outer(row.query, row.tokens.T @ xi))
    yield identity("P26", "gradient in the tokens", found.tokens, torch.outer(xi, row.key.T @ row.query))
    yield residual("P26", "score gradient sums to 0", found.scores.sum())
    variance, size = (p * (v - p @ v).square()).sum(), found.scores.square().sum()
    yield bound("P26", "score gradient and variance", size, p.max() * variance)
    limit = p.max() * (v.max() - v.min()).square() / 2 * -torch.expm1(-row_entropy(p))
    yield bound("P26", "score gradient and entropy", size, limit)
    yield bound("P26", "variance times the squared first weight", size, p.max().square() * variance, holds=False)
    limit, other = (row.query.norm() * centred * part.scores.norm() for part in (found, sigmoid))
    yield bound("P26", "W_K sees centred tokens", found.key.norm(), limit)
    yield bound("P26", "centred tokens under a sigmoid", sigmoid.key.norm(), other, holds=False)
    unseen, seen = (gradients(alike, kind=kind).key.norm() for kind in KINDS)
    yield residual("P26", "identical tokens are unseen", unseen)
    yield residual("P26", "identical tokens under a sigmoid", seen, holds=False)
