import itertools
from functools import partial

import captum.attr
import cases
import numpy as np
import pytest
import torch
from attrobust import attacks, attention, attributions, models, similarity
from attrobust.attributions import attention as maps_of
from attrobust.attributions.attention import LARGEST, max_flow
from torch import nn

ROWS, COLUMNS = 2, 3
MAPS = {
    "raw_attention": attributions.raw_attention,
    "even_heads": partial(attributions.raw_attention, even=True),
    "rollout": attributions.rollout,
    "rollout, as it is": partial(attributions.rollout, renormalise=False),
    "gradient_attention": attributions.gradient_attention,
    "relevance": attributions.relevance,
}
ALL = MAPS | {"attention_flow": attributions.attention_flow}
OF_A_CLASS = ("gradient_attention", "relevance")


def images(n=3, seed=0):
    return cases.images(n, seed, cases.VIT_SHAPE)


def kernels(model):
    return [block.attention.kernel for block in model.blocks]


def by_captum(model, x, y):
    """Gradient times activation of every attention matrix."""
    oracle = captum.attr.LayerGradientXActivation
    return [oracle(model, kernel).attribute(x, target=y) for kernel in kernels(model)]


def with_skip(model, x):
    return [m.detach().mean(1).numpy() + np.eye(m.shape[-1]) for m in model.attend(x)[1]]


def cls_row(matrix):
    return torch.as_tensor(matrix)[:, 0, 1:].reshape(-1, 1, ROWS, COLUMNS)


def test_raw_attention_is_what_captum_reads_off_the_last_kernel():
    model, x, y = cases.vit(), images(), cases.labels()
    theirs = captum.attr.LayerActivation(model, kernels(model)[-1]).attribute(x)
    assert torch.allclose(attributions.raw_attention(model, x, y), cls_row(theirs.mean(1)), rtol=1e-12)


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
def test_even_heads_count_alike_whatever_their_mass(kernel):
    model, x, y = cases.vit(attention=kernel), images(), cases.labels()
    rows = model.attend(x)[1][-1][:, :, 0, 1:].detach()
    alike = (rows / rows.sum(-1, keepdim=True)).mean(1).reshape(-1, 1, ROWS, COLUMNS)
    found = attributions.raw_attention(model, x, y, even=True)
    assert torch.allclose(found, alike, rtol=1e-10)
    assert torch.allclose(found.flatten(1).sum(1), torch.ones(3, dtype=found.dtype))
    assert not torch.allclose(found, attributions.raw_attention(model, x, y), rtol=1e-2)


def test_a_head_that_is_silent_adds_nothing_to_even_heads():
    model, x, y = cases.vit(attention="relu"), images(), cases.labels()
    last = model.blocks[-1].attention
    with torch.no_grad():
        width = last.qkv.out_features // 3
        last.qkv.weight[: 2 * width] = 0
        last.qkv.bias[:width], last.qkv.bias[width : 2 * width] = 1, -1
    assert not attributions.raw_attention(model, x, y, even=True).any()


def test_gradient_attention_is_the_positive_part_of_captums_gradient_times_activation():
    model, x, y = cases.vit(), images(), cases.labels()
    theirs = by_captum(model, x, y)[-1]
    assert (theirs < 0).any()
    expected = cls_row(theirs.clamp(min=0).mean(1))
    assert torch.allclose(attributions.gradient_attention(model, x, y), expected, rtol=1e-12)


def test_relevance_is_the_sum_over_all_chains_of_captums_updates():
    model, x, y = cases.vit(depth=3), images(), cases.labels()
    first, second, third = (u.clamp(min=0).mean(1) for u in by_captum(model, x, y))
    chains = first + second + third + second @ first + third @ first + third @ second + third @ second @ first
    assert torch.allclose(attributions.relevance(model, x, y), cls_row(chains), rtol=1e-12)


def test_relevance_with_zero_gradients_is_the_identity():
    zeros = [torch.zeros(2, 5, 5)] * 3
    assert torch.equal(maps_of.passed_on(zeros), torch.eye(5).expand(2, 5, 5))
    model, x, y = cases.vit(), images(), cases.labels()
    with torch.no_grad():
        model.head.weight.zero_()
    for name in OF_A_CLASS:
        m = MAPS[name](model, x, y)
        assert not m.any()
        assert attributions.zero_maps(m).all()
        assert (similarity.cosine(m, attributions.raw_attention(model, x, y)) == 0).all()
        assert (similarity.pearson(m[:, 0], attributions.raw_attention(model, x, y)[:, 0]) == 0).all()


@pytest.mark.parametrize("kernel", attention.KERNELS)
def test_rollout_is_the_numpy_product_last_block_first(kernel):
    model, x, y = cases.vit(depth=3, attention=kernel), images(), cases.labels()
    first, second, third = with_skip(model, x)
    whole = attributions.rollout(model, x, y, renormalise=False)
    assert torch.allclose(whole, cls_row(third @ second @ first), rtol=1e-12)
    first, second, third = (m / m.sum(-1, keepdims=True) for m in (first, second, third))
    assert torch.allclose(attributions.rollout(model, x, y), cls_row(third @ second @ first), rtol=1e-12)


def test_rollout_of_row_stochastic_maps_is_row_stochastic():
    model, x, y = cases.vit(depth=3), images(), cases.labels()
    rolled = attributions.rollout(model, x, y)
    chain = np.linalg.multi_dot([m[0] / m[0].sum(-1, keepdims=True) for m in reversed(with_skip(model, x))])
    assert rolled[0].sum().item() + chain[0, 0] == pytest.approx(1)
    # Softmax rows sum to one, so the two versions differ by a factor of two a block.
    assert torch.allclose(attributions.rollout(model, x, y, renormalise=False), 8 * rolled, rtol=1e-12)


def least_cut(capacities, token):
    """Maximum flow by trying every cut between CLS above and `token` below."""
    depth, n, _ = capacities.shape
    others = [node for node in range((depth + 1) * n) if node not in (depth * n, token)]
    pipes = [
        ((layer + 1) * n + i, layer * n + j, capacities[layer, i, j])
        for layer, i, j in itertools.product(range(depth), range(n), range(n))
    ]
    cuts = []
    for chosen in itertools.product([False, True], repeat=len(others)):
        near = {depth * n, *itertools.compress(others, chosen)}
        cuts.append(sum(c for start, end, c in pipes if start in near and end not in near))
    return min(cuts)


@pytest.mark.parametrize("depth", [1, 2])
def test_attention_flow_is_the_least_cut(depth):
    draw = np.random.default_rng(depth)
    for _ in range(3):
        capacities = draw.random((depth, 3, 3)) ** 3 + np.eye(3)
        for token in (1, 2):
            assert max_flow(capacities, token) == pytest.approx(least_cut(capacities, token), abs=1e-7)


def test_attention_flow_follows_the_order_of_tokens_and_the_unit_of_attention():
    capacities, order = np.random.default_rng(0).random((2, 4, 4)), [2, 3, 0, 1]
    flow = max_flow(capacities, 1)
    assert max_flow(capacities[:, order][:, :, order], order.index(1), top=order.index(0)) == pytest.approx(flow)
    for unit in (1e-6, 100.0):
        assert max_flow(unit * capacities, 1) == pytest.approx(unit * flow, rel=1e-7)


def test_capacities_are_rounded_to_the_nearest_whole_number():
    """The flow through one pipe errs by half a unit at most, to either side."""
    unit, errors = LARGEST / 2, []
    for share in np.random.default_rng(0).random(40):
        flow = max_flow(np.array([[[1 - share, share], [0.0, 1.0]]]), 1)
        errors.append((flow - share) * unit)
    assert 0.3 < max(errors) <= 0.5 + 1e-6
    assert -0.5 - 1e-6 <= min(errors) < -0.3


def logit_of(model, x, y):
    return model(x).gather(1, y[:, None])[:, 0]


@pytest.mark.parametrize("name", OF_A_CLASS)
def test_a_readout_that_runs_the_model_several_times_or_never_is_refused(name):
    model, x, y = cases.vit(), images(), cases.labels()

    def change(model, x, y):
        return logit_of(model, x, y) - logit_of(model, torch.zeros_like(x), y)

    with pytest.raises(ValueError, match="readout runs the model 2 times; it must run it once, on x, which is"):
        MAPS[name](model, x, y, readout=change)
    with pytest.raises(ValueError, match="readout runs the model 0 times; it must run it once"):
        MAPS[name](model, x, y, readout=lambda *given: logit_of(model, *given[1:]))
    assert torch.equal(MAPS[name](model, x, y, readout=logit_of), MAPS[name](model, x, y))


def test_a_huge_capacity_leaves_the_others_their_digits():
    small = np.array([[[1, 0.5], [0, 1]], [[1, 1], [0, 1]]])
    for huge in (1e3, 1e9, 1e30):
        capacities = small.copy()
        capacities[1, 0] = huge
        assert max_flow(capacities, 1) == pytest.approx(least_cut(capacities, 1), rel=1e-7)
        assert max_flow(capacities, 1) == pytest.approx(1.5, rel=1e-7)
    assert max_flow(np.stack([small[0], 0 * small[1]]), 1) == 0


def test_attention_flow_of_a_network_runs_through_its_attention():
    model, x, y = cases.vit(), images(2), cases.labels(2)
    layers = np.stack(with_skip(model, x), axis=1)
    expected = [[max_flow(image, token) for token in range(1, 7)] for image in layers]
    found = attributions.attention_flow(model, x.requires_grad_(), y)
    assert found.flatten(1).tolist() == pytest.approx(np.array(expected), rel=1e-7)
    assert not found.requires_grad


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("frozen", [False, True])
def test_the_derivative_of_an_attention_map_agrees_with_finite_differences(name, frozen):
    model, x, y = cases.vit().requires_grad_(not frozen), images(), cases.labels()
    weights = torch.randn(3, 1, ROWS, COLUMNS, generator=cases.generator(1), dtype=x.dtype)
    direction = torch.randn(x.shape, generator=cases.generator(2), dtype=x.dtype)

    def score(at):
        return (MAPS[name](model, at, y) * weights).sum()

    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(at), at)
    assert gradient.abs().max() > 1e-4
    assert (gradient * direction).sum().item() == pytest.approx(cases.slope(score, x, direction).item(), rel=1e-6)


OBJECTIVES = attacks.CLIMBABLE


def goal_of(objective, attribution, model, x, y):
    """An objective as a function of the images."""
    clean = attribution(model, x, y).detach()
    return lambda images: objective(attacks.Clean(clean, k=2), attribution(model, images, y))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", MAPS)
def test_every_attack_climbs_an_attention_map_by_its_true_gradient(name, objective):
    model, x, y = cases.vit().requires_grad_(False), images(), cases.labels()
    goal = goal_of(OBJECTIVES[objective], MAPS[name], model, x, y)
    direction = torch.randn(x.shape, generator=cases.generator(2), dtype=x.dtype)
    at = (x + 0.05 * torch.randn(x.shape, generator=cases.generator(3), dtype=x.dtype)).requires_grad_()
    (gradient,) = torch.autograd.grad(goal(at).sum(), at)
    expected = cases.slope(lambda im: goal(im).sum(), at.detach(), direction).item()
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kernel", attention.KERNELS)
@pytest.mark.parametrize("name", MAPS | {"saliency": attributions.saliency})
def test_under_every_kernel_the_attack_climbs_by_the_true_gradient(name, kernel):
    model, x, y = cases.vit(attention=kernel).requires_grad_(False), images(), cases.labels()
    goal = goal_of(attacks.lower_pearson, (MAPS | {"saliency": attributions.saliency})[name], model, x, y)
    direction = torch.randn(x.shape, generator=cases.generator(2), dtype=x.dtype)
    at = (x + 0.05 * torch.randn(x.shape, generator=cases.generator(3), dtype=x.dtype)).requires_grad_()
    (gradient,) = torch.autograd.grad(goal(at).sum(), at)
    expected = cases.slope(lambda im: goal(im).sum(), at.detach(), direction).item()
    assert gradient.abs().max() > 1e-6
    assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_a_map_can_be_a_penalty_on_the_weights(name):
    model, x, y = cases.vit(), images(), cases.labels()
    gradient = torch.autograd.grad(MAPS[name](model, x, y).square().sum(), model.blocks[0].attention.qkv.weight)[0]
    assert gradient.any()


@pytest.mark.parametrize("name", ALL)
def test_attention_maps_can_be_drawn_without_gradient_mode_and_of_frozen_networks(name):
    model, x, y = cases.vit(), images(), cases.labels()
    expected = ALL[name](model, x, y).detach()
    with torch.no_grad():
        found = ALL[name](model, x, y)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    found = ALL[name](model.requires_grad_(False), x, y)
    assert torch.equal(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("name", ALL)
def test_attention_maps_of_a_batch_are_the_maps_of_its_images(name):
    model, x, y = cases.vit(), images(), cases.labels()
    whole = ALL[name](model, x, y)
    assert whole.shape == (3, 1, ROWS, COLUMNS)
    for i in range(len(x)):
        assert torch.allclose(whole[i : i + 1], ALL[name](model, x[i : i + 1], y[i : i + 1]), rtol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_patches_that_move_with_their_positions_take_their_share_of_the_map_along(name):
    model, x, y = cases.vit(), images(), cases.labels()
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    before = ALL[name](model, x, y).flatten(1)
    tiles = x.view(3, 2, ROWS, 2, COLUMNS, 2).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)[:, order]
    moved = tiles.view(3, ROWS, COLUMNS, 2, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
    with torch.no_grad():
        model.position[1:] = model.position[1:][order]
    assert torch.allclose(ALL[name](model, moved, y).flatten(1), before[:, order], rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_only_maps_of_a_class_depend_on_it(name):
    model, x = cases.vit(), images()
    first, second = (ALL[name](model, x, torch.full((3,), c)) for c in (0, 1))
    assert torch.equal(first, second) == (name not in OF_A_CLASS)


@pytest.mark.parametrize("name", ALL)
def test_attention_attributions_leave_model_and_images_as_found(name):
    model, x, y = cases.vit(), images(), cases.labels()
    kept, weights = x.clone(), [p.clone() for p in model.parameters()]
    ALL[name](model, x, y)
    assert torch.equal(x, kept)
    assert not x.requires_grad
    for p, before in zip(model.parameters(), weights, strict=True):
        assert p.grad is None
        assert p.requires_grad
        assert torch.equal(p, before)


@pytest.mark.parametrize("name", ALL)
def test_a_network_without_attention_is_refused(name):
    for model in (cases.mlp(), models.smooth_twin(cases.mlp(nn.ReLU()), cases.images(), beta=5.0)):
        with pytest.raises(
            ValueError, match=f"model is {type(model).__name__}, which has no `attend`; an attention map"
        ):
            ALL[name](model, cases.images(), cases.labels())


@pytest.mark.parametrize("name", ALL)
def test_a_twin_of_a_relu_transformer_has_the_maps_of_the_softened_network(name):
    relu, x, y = cases.vit(activation="relu"), images(), cases.labels()
    soft = cases.vit(activation="relu")
    for block in soft.blocks:
        block.mlp[1] = nn.Softplus(5.0)
    twin = models.smooth_twin(relu, x, beta=5.0)
    assert torch.allclose(ALL[name](twin, x, y), ALL[name](soft, x, y), rtol=1e-10)
    assert not torch.allclose(ALL[name](twin, x, y), ALL[name](relu, x, y), rtol=1e-4)


# ------------------------------------------------------------------ to the grid of patches


def test_a_patch_is_as_important_as_its_pixels_on_average():
    m = torch.randn(2, 2, 4, 6, generator=cases.generator(), dtype=torch.float64)
    pooled = attributions.patches(m, patch=2)
    for b, i, j in itertools.product(range(2), range(ROWS), range(COLUMNS)):
        corner = m[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert pooled[b, 0, i, j].item() == pytest.approx(corner.abs().sum().item() / 4)
    assert torch.equal(attributions.patches(m, patch=1)[:, 0], attributions.pixelwise(m))


def test_a_pooled_attribution_is_an_attribution_on_the_grid_of_the_attention_maps():
    model, x, y = cases.vit(), images(), cases.labels()
    pooled = partial(attributions.on_patches, attribution=attributions.saliency, patch=2)
    assert torch.equal(pooled(model, x, y), attributions.patches(attributions.saliency(model, x, y), patch=2))
    assert pooled(model, x, y).shape == attributions.raw_attention(model, x, y).shape


def test_a_pooled_stochastic_attribution_draws_what_the_attribution_draws():
    model, x, y = cases.vit(), images(), cases.labels()
    smooth = partial(attributions.smooth_grad, sigma=0.2, samples=3)
    pooled = partial(attributions.drawn_on_patches, attribution=smooth, patch=2)

    def streams():
        return [torch.Generator().manual_seed(i) for i in range(len(x))]

    every = pooled(model, x, y, generator=streams())
    assert torch.equal(every, attributions.patches(smooth(model, x, y, generator=streams()), patch=2))
    alone = pooled(model, x[1:2], y[1:2], generator=streams()[1])
    assert torch.allclose(alone, every[1:2])
    assert not torch.allclose(alone, pooled(model, x[1:2], y[1:2], generator=streams()[0]))

    def one_for_all(model, x, target, *, generator):
        return smooth(model, x, target, generator=generator)

    with pytest.raises(ValueError, match="generator is a list; one_for_all takes one for all images"):
        attributions.drawn_on_patches(model, x, y, attribution=one_for_all, patch=2, generator=streams())


@pytest.mark.parametrize(
    ("patch", "sentence"), [(4, "it must divide the map's height and width, 4 and 6"), (0, "whole")]
)
def test_patches_that_do_not_fill_the_map_are_refused(patch, sentence):
    with pytest.raises(ValueError, match=f"patch is {patch}; .*{sentence}"):
        attributions.patches(images(), patch=patch)


def test_zero_maps_are_found_and_a_map_with_one_mark_is_none():
    m = torch.zeros(3, 1, 2, 2)
    m[1, 0, 1, 0] = -1e-30
    assert attributions.zero_maps(m).tolist() == [True, False, True]
