import math

import cases
import pytest
import torch
from attrobust import attention
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DIM, HEADS = 6, 2


def queries_keys_values(scale=1.0, keys=5):
    draw = cases.generator(3)
    q = torch.randn(2, 3, 4, DIM, generator=draw, dtype=torch.float64)
    k, v = (torch.randn(2, 3, keys, DIM, generator=draw, dtype=torch.float64) for _ in range(2))
    return scale * q, scale * k, v


@cases.isolated
def layer(heads=HEADS):
    return cases.filled(attention.Attention(DIM, heads), seed=1)


@cases.isolated
def torchs(ours):
    """torch's own layer with the weights of ours."""
    theirs = nn.MultiheadAttention(DIM, ours.heads, batch_first=True, dtype=torch.float64).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.projection.weight)
        theirs.out_proj.bias.copy_(ours.projection.bias)
    return theirs


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_softmax_attention_agrees_with_torchs_own(scale):
    q, k, v = queries_keys_values(scale)
    weights = attention.kernel("softmax")(q, k)
    with sdpa_kernel(SDPBackend.MATH):
        mixed = F.scaled_dot_product_attention(q, k, v)
        theirs = F.scaled_dot_product_attention(q, k, torch.eye(5, dtype=torch.float64).expand(2, 3, 5, 5))
    assert torch.allclose(weights @ v, mixed, rtol=1e-12, atol=1e-14)
    assert torch.allclose(weights, theirs, rtol=1e-12, atol=1e-14)


def test_softmax_attention_agrees_with_its_formula_entry_by_entry():
    q, k, _ = queries_keys_values()
    weights = attention.kernel("softmax")(q, k)
    for b, h, i in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        exps = [math.exp(sum((q[b, h, i] * k[b, h, j]).tolist()) / math.sqrt(DIM)) for j in range(5)]
        assert weights[b, h, i].tolist() == pytest.approx([e / sum(exps) for e in exps])


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_softmax_rows_sum_to_one_and_stay_finite(scale):
    q, k, _ = queries_keys_values(scale)
    weights = attention.kernel("softmax")(q, k)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 4, dtype=torch.float64), rtol=1e-12)
    assert (weights >= 0).all()


def test_the_matrix_is_the_softmax_of_the_scores():
    q, k, _ = queries_keys_values()
    kernel = attention.Kernel()
    assert torch.allclose(kernel(q, k), kernel.scores(q, k).softmax(-1), rtol=1e-14)
    assert torch.allclose(kernel.scores(q, k), torch.einsum("bhid,bhjd->bhij", q, k) / DIM**0.5, rtol=1e-12)


def test_the_matrix_ignores_a_shift_of_all_keys_and_follows_their_order():
    q, k, _ = queries_keys_values()
    kernel, order = attention.Kernel(), torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(kernel(q, k + torch.ones(DIM, dtype=torch.float64)), kernel(q, k), rtol=1e-10)
    assert torch.allclose(kernel(q, k[:, :, order]), kernel(q, k)[..., order], rtol=1e-12)


def test_the_matrix_has_second_derivatives():
    q, k, _ = queries_keys_values()
    q, k = q[:1, :1].requires_grad_(), k[:1, :1].requires_grad_()
    with torch.random.fork_rng(devices=[]):
        assert torch.autograd.gradgradcheck(attention.Kernel(), (q, k))


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_the_layer_agrees_with_torchs_multihead_attention(heads):
    ours, x = layer(heads), torch.randn(3, 5, DIM, generator=cases.generator(), dtype=torch.float64)
    output, weights = ours.attend(x)
    theirs, their_weights = torchs(ours)(x, x, x, need_weights=True, average_attn_weights=False)
    assert torch.allclose(output, theirs, rtol=1e-12, atol=1e-14)
    assert torch.allclose(weights, their_weights, rtol=1e-12, atol=1e-14)
    assert torch.equal(ours(x), output)
    assert torch.allclose(ours.scores(x).softmax(-1), weights, rtol=1e-14)


def test_tokens_that_nobody_reads_are_not_mixed_and_change_nothing_else():
    ours, x = layer(), torch.randn(3, 5, DIM, generator=cases.generator(), dtype=torch.float64)
    whole, weights = ours.attend(x)
    for read in (1, 3):
        some, same = ours.attend(x, read=read)
        assert torch.allclose(some, whole[:, :read], rtol=1e-12, atol=1e-14)
        assert torch.equal(same, weights)


def test_every_named_kernel_is_described_by_known_words():
    for name, words in attention.KERNELS.items():
        kernel = attention.kernel(name)
        assert {word: getattr(kernel, word) for word in ("score", "link", "norm")} == words


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: attention.kernel("softmx"),
            "attention is 'softmx'; it must be one of softmax; did you mean 'softmax'",
        ),
        (lambda: attention.Kernel(score="dt"), "score is 'dt'; it must be one of dot; did you mean 'dot'"),
        (lambda: attention.Kernel(link="tan"), "link is 'tan'; it must be one of exp"),
        (lambda: attention.Kernel(norm="raw"), "norm is 'raw'; it must be one of row"),
        (lambda: attention.Attention(6, 4), "heads is 4; it must divide dim, 6"),
        (lambda: attention.Attention(6, 0), "heads is 0; it must be a whole number of at least 1"),
        (lambda: attention.Attention(0, 1), "dim is 0; it must be a whole number of at least 1"),
    ],
)
def test_what_is_no_attention_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
