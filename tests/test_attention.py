import math

import cases
import pytest
import torch
from attrobust import attention
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

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


# ------------------------------------------------------------------ every kernel

NORMALISED = ("softmax", "l2", "linear", "doubly_stochastic", "cosine")

#: Weight of one key by the definitions in the literature, before its row is normalised: of the scaled product of query
#: and key, the bell of their distance, the product of their features, and how many keys there are. Those whose weights
#: do not follow from one query and one key have a test of their own.
OF_ONE_PAIR = [name for name in attention.KERNELS if name not in ("softmax_plus_one", "doubly_stochastic", "cosine")]
FORMULAS = {
    "softmax": lambda dot, bell, feature, n: math.exp(dot),
    "l2": lambda dot, bell, feature, n: bell,
    "gaussian": lambda dot, bell, feature, n: bell,
    "gaussian_counted": lambda dot, bell, feature, n: bell / n,
    "exponential": lambda dot, bell, feature, n: math.exp(dot) / n,
    "linear": lambda dot, bell, feature, n: feature,
    "linear_unnormalised": lambda dot, bell, feature, n: feature / n,
    "relu": lambda dot, bell, feature, n: max(dot, 0) / n,
    "sigmoid": lambda dot, bell, feature, n: 1 / (1 + math.exp(-dot + math.log(n))),
}


def elu_plus_one(t):
    return t + 1 if t > 0 else math.exp(t)


def by_hand(name, q, k, allowed):
    """One row of the matrix in plain Python."""
    assert name in FORMULAS, f"kernel {name!r} has no formula to compare with: add one line to FORMULAS"
    n, root, raw = sum(allowed), math.sqrt(len(q)), []
    for key, counts in zip(k, allowed, strict=True):
        pairs = list(zip(q, key, strict=True))
        dot = sum(a * b for a, b in pairs) / root
        bell = math.exp(-sum((a - b) ** 2 for a, b in pairs) / (2 * root))
        feature = sum(elu_plus_one(a) * elu_plus_one(b) for a, b in pairs) / len(q)
        raw.append(FORMULAS[name](dot, bell, feature, n) if counts else 0.0)
    return [w / sum(raw) for w in raw] if name in NORMALISED else raw


def some_keys(rows=4, keys=5):
    """A mask that leaves each query one key or more."""
    mask = torch.rand(2, 3, rows, keys, generator=cases.generator(7)) < 0.5
    return mask | torch.eye(keys, dtype=torch.bool)[:rows]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", OF_ONE_PAIR)
def test_every_kernel_agrees_with_its_formula_entry_by_entry(name, masked):
    q, k, _ = queries_keys_values()
    mask = some_keys() if masked else torch.ones(2, 3, 4, 5, dtype=torch.bool)
    weights = attention.kernel(name)(q, k, mask=mask if masked else None)
    for b, h, i in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        expected = by_hand(name, q[b, h, i].tolist(), k[b, h].tolist(), mask[b, h, i].tolist())
        assert weights[b, h, i].tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_softmax_plus_one_is_softmax_with_an_empty_key_of_score_zero(masked):
    q, k, _ = queries_keys_values(scale=5.0)
    mask = some_keys() if masked else None
    weights = attention.kernel("softmax_plus_one")(q, k, mask=mask)
    raised = attention.Kernel().scores(q, k).exp() * (mask if masked else 1)
    assert torch.allclose(weights, raised / (1 + raised.sum(-1, keepdim=True)), rtol=1e-10)
    padded, empty = F.pad(k, (0, 0, 0, 1)), F.pad(mask, (0, 1), value=True) if masked else None
    assert torch.allclose(weights, attention.kernel("softmax")(q, padded, mask=empty)[..., :-1], rtol=1e-10)
    assert attention.kernel("softmax_plus_one").weights(torch.full((1, 1, 1, 2), 1e4)).sum() == 1


def test_doubly_stochastic_attention_goes_to_rows_and_columns_of_sum_one():
    q, _, _ = queries_keys_values()
    kernel, scores = attention.kernel("doubly_stochastic"), attention.Kernel().scores(q, q)
    weights = kernel(q, q)
    columns, plain = (w.sum(-2).sub(1).abs().max() for w in (weights, scores.softmax(-1)))
    assert columns < plain / 4
    hand = scores.exp()
    for _ in range(attention.ROUNDS):
        hand = hand / hand.sum(-1, keepdim=True)
        hand = hand / hand.sum(-2, keepdim=True)
    assert torch.allclose(weights, hand / hand.sum(-1, keepdim=True), rtol=1e-10)
    other = q.clone()
    other[:, :, 0] += 1  # another query enters every row
    assert not torch.allclose(kernel(other, q)[:, :, 1:], weights[:, :, 1:], rtol=1e-3)


def test_cosine_attention_is_softmax_attention_of_queries_and_keys_of_equal_length():
    q, k, _ = queries_keys_values()
    unit = [DIM**0.5 * part / part.norm(dim=-1, keepdim=True) for part in (q, k)]
    kernel = attention.kernel("cosine")
    assert torch.allclose(kernel(q, k), attention.kernel("softmax")(*unit), rtol=1e-10)
    assert torch.allclose(kernel(3 * q, k / 7), kernel(q, k), rtol=1e-10)


def test_masked_softmax_attention_agrees_with_torchs_own():
    q, k, v = queries_keys_values()
    weights = attention.kernel("softmax")(q, k, mask=some_keys())
    with sdpa_kernel(SDPBackend.MATH):
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=some_keys())
    assert torch.allclose(weights @ v, mixed, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("name", attention.KERNELS)
def test_rows_sum_to_one_exactly_where_the_norm_says_so(name, scale):
    q, k, _ = queries_keys_values(scale)
    weights, kernel = attention.kernel(name)(q, k), attention.kernel(name)
    assert (weights >= 0).all()
    ones = torch.allclose(weights.sum(-1), torch.ones(2, 3, 4, dtype=torch.float64), rtol=1e-12)
    assert (kernel.norm in ("row", "rows_and_columns")) == (name in NORMALISED)
    if name in NORMALISED:
        assert ones
    elif scale:
        assert not ones


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("free", "bound"),
    [
        ("gaussian", "l2"),
        ("gaussian_counted", "l2"),
        ("softmax_plus_one", "softmax"),
        ("exponential", "softmax"),
        ("linear_unnormalised", "linear"),
    ],
)
def test_a_kernel_is_its_normalised_partner_times_its_row_mass(free, bound, masked):
    q, k, _ = queries_keys_values()
    mask = some_keys() if masked else None
    weights = attention.kernel(free)(q, k, mask=mask)
    mass = weights.sum(-1, keepdim=True)
    assert torch.allclose(weights, attention.kernel(bound)(q, k, mask=mask) * mass, rtol=1e-12)
    assert mass.std() > 1e-2


def test_l2_attention_is_softmax_attention_that_discounts_long_keys():
    q, k, _ = queries_keys_values()
    discounted = attention.Kernel().scores(q, k) - k.square().sum(-1)[..., None, :] / (2 * math.sqrt(DIM))
    assert torch.allclose(attention.kernel("l2")(q, k), discounted.softmax(-1), rtol=1e-12)


def test_distances_ignore_a_common_shift_and_gaussian_weights_never_exceed_one():
    q, k, _ = queries_keys_values()
    kernel = attention.kernel("gaussian")
    assert torch.allclose(kernel(q + 3, k + 3), kernel(q, k), rtol=1e-10)
    near = kernel(q, (q + 1e-9).repeat(1, 1, 2, 1))
    assert near.max() <= 1
    assert near.max().item() == pytest.approx(1)


def test_the_gaussian_bends_by_its_bandwidth_where_query_and_key_meet():
    # Rounding makes some of these squared distances negative; a clamp would lose the derivative there.
    points = torch.randn(40, DIM, generator=cases.generator(5), dtype=torch.float64)
    kernel = attention.kernel("gaussian")
    for point in points:
        hessian = torch.func.hessian(lambda q, point=point: kernel(q[None, None, None], point[None, None, None]).sum())
        assert torch.allclose(hessian(point), -torch.eye(DIM, dtype=torch.float64) / math.sqrt(DIM), atol=1e-12)


@pytest.mark.parametrize("name", attention.KERNELS)
def test_padding_changes_nothing_whatever_it_holds(name):
    q, k, v = queries_keys_values()
    kernel, draw = attention.kernel(name), cases.generator(9)
    junk = 1e3 * torch.randn(2, 3, 3, DIM, generator=draw, dtype=torch.float64)
    padded, mask = torch.cat([k, junk], 2).requires_grad_(), torch.arange(8).lt(5)[None, None, None]
    weights, alone = kernel(q, padded, mask=mask), kernel(q, k)
    assert torch.allclose(weights[..., :5], alone, rtol=1e-12)
    assert not weights[..., 5:].any()
    assert torch.allclose(weights @ torch.cat([v, junk], 2), alone @ v, rtol=1e-12)
    (slope,) = torch.autograd.grad(weights.square().sum(), padded, create_graph=True)
    (bend,) = torch.autograd.grad(slope.square().sum(), padded)
    for derivative in (slope, bend):
        assert derivative.isfinite().all()
        assert derivative[:, :, :5].any()
        assert not derivative[:, :, 5:].any()


@pytest.mark.parametrize("name", attention.KERNELS)
def test_masked_keys_get_exactly_nothing_and_a_query_without_keys_a_row_of_zeros(name):
    q, k, _ = queries_keys_values()
    mask = some_keys()
    mask[0, 1, 2] = False
    q.requires_grad_()
    weights = attention.kernel(name)(q, k, mask=mask)
    assert not weights[~mask].any()
    assert not weights[0, 1, 2].any()
    others = weights.sum(-1)[mask.any(-1)]
    assert (others > 0).all() or name == "relu"
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        (slope,) = torch.autograd.grad(weights.square().sum(), q, create_graph=True)
        (bend,) = torch.autograd.grad(slope.square().sum(), q)
    assert slope.isfinite().all()
    assert bend.isfinite().all()
    assert not slope[0, 1, 2].any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", attention.KERNELS)
def test_every_kernel_has_first_and_second_derivatives(name, masked):
    q, k, _ = queries_keys_values()
    q, k = q[:1, :1].requires_grad_(), k[:1, :1].requires_grad_()
    mask = some_keys()[:1, :1] if masked else None
    kernel = attention.kernel(name)
    with torch.random.fork_rng(devices=[]):
        assert torch.autograd.gradcheck(lambda a, b: kernel(a, b, mask=mask), (q, k))
        assert torch.autograd.gradgradcheck(lambda a, b: kernel(a, b, mask=mask), (q, k))


@pytest.mark.parametrize("name", attention.KERNELS)
def test_the_matrix_is_made_of_the_scores_alone(name):
    q, k, _ = queries_keys_values()
    kernel = attention.kernel(name)
    assert torch.equal(kernel(q, k), kernel.weights(kernel.scores(q, k)))
    assert torch.equal(kernel(q, k, mask=some_keys()), kernel.weights(kernel.scores(q, k), mask=some_keys()))


@pytest.mark.parametrize("norm", [norm for norm in attention.NORMS if norm != "rows_and_columns"])
@pytest.mark.parametrize("masked", [False, True])
def test_linear_attention_in_linear_time_equals_its_quadratic_form(norm, masked):
    q, k, v = queries_keys_values()
    kernel = attention.Kernel(score="elu", link="identity", norm=norm)
    mask = some_keys()[:, :, :1] if masked else None
    if masked:
        mask[1, 0] = False
    for away in (0, 6):  # features far below 1 sum to less than 1
        mixed = attention.mix_in_linear_time(kernel, q - away, k - away, v, mask=mask)
        assert torch.allclose(mixed, kernel(q - away, k - away, mask=mask) @ v, rtol=1e-12, atol=1e-14)


def test_linear_time_never_forms_the_matrix():
    n, sizes = 301, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend([out.numel()] if isinstance(out, torch.Tensor) else [])
            return out

    q = torch.ones(1, 1, n, 2)
    with Watch():
        attention.mix_in_linear_time(attention.kernel("linear"), q, q, q)
    assert max(sizes) == 2 * n


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: attention.kernel("softmx"),
            f"attention is 'softmx'; it must be one of {', '.join(attention.KERNELS)}; did you mean 'softmax'",
        ),
        (
            lambda: attention.Kernel(score="dt"),
            f"score is 'dt'; it must be one of {', '.join(attention.SCORES)}; did you mean 'dot'",
        ),
        (lambda: attention.Kernel(link="tan"), f"link is 'tan'; it must be one of {', '.join(attention.LINKS)}"),
        (lambda: attention.Kernel(norm="raw"), f"norm is 'raw'; it must be one of {', '.join(attention.NORMS)}"),
        (
            lambda: attention.Kernel(link="identity"),
            "link is 'identity' and score is 'dot'; .* only where score is 'elu'",
        ),
        (
            lambda: attention.mix_in_linear_time(attention.Kernel(), *queries_keys_values()),
            "kernel is Kernel.score=dot, link=exp, norm=row.; linear time needs score .elu., link .identity. and a",
        ),
        (lambda: attention.Attention(6, 4), "heads is 4; it must divide dim, 6"),
        (lambda: attention.Attention(6, 0), "heads is 0; it must be a whole number of at least 1"),
        (lambda: attention.Attention(0, 1), "dim is 0; it must be a whole number of at least 1"),
    ],
)
def test_what_is_no_attention_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
