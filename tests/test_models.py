import math
from itertools import pairwise

import cases
import pytest
import torch
from attrobust import attention, attributions, curvature, data, models, training
from torch import nn
from torch.nn import functional as F


class Calls(nn.Module):
    """A dense layer, an activation given as a function, and a dense layer."""

    def __init__(self, activation):
        super().__init__()
        self.inner = nn.Linear(cases.PIXELS, 6)
        self.outer = nn.Linear(6, cases.CLASSES)
        self.activation = activation

    def forward(self, x):
        return self.outer(self.activation(self.inner(x.flatten(1))))


@cases.isolated
def calling(activation):
    return cases.filled(Calls(activation), seed=3)


RELUS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu(inplace=True)": lambda h: F.relu(h, inplace=True),
    "F.relu(h, True)": lambda h: F.relu(h, True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda h: h.relu(),
    "Tensor.relu_": lambda h: h.relu_(),
    "torch.clamp": lambda h: torch.clamp(h, min=0),
    "Tensor.clamp": lambda h: h.clamp(min=0),
    "Tensor.clamp(0)": lambda h: h.clamp(0),
    "torch.clamp_min": lambda h: torch.clamp_min(h, 0),
    "Tensor.clamp_min": lambda h: h.clamp_min(0.0),
}
LEAKY = {
    "module": nn.LeakyReLU(0.2),
    "module in place": nn.LeakyReLU(0.2, inplace=True),
    "F.leaky_relu": lambda h: F.leaky_relu(h, 0.2),
    "F.leaky_relu(slope=)": lambda h: F.leaky_relu(h, negative_slope=0.2, inplace=True),
}


@pytest.mark.parametrize("name", RELUS)
def test_every_way_to_write_a_relu_is_seen_and_replaced_by_the_twin(name):
    net, x = calling(RELUS[name]), cases.images()
    assert len(models.kinks(net, x)) == 1
    twin = models.smooth_twin(net, x, beta=3.0)
    assert models.kinks(twin, x) == []
    assert torch.equal(twin(x), calling(lambda h: F.softplus(h, 3.0))(x))
    assert torch.equal(net(x), calling(F.relu)(x))


@pytest.mark.parametrize("name", LEAKY)
def test_every_way_to_write_a_leaky_relu_is_seen_and_replaced_by_the_twin(name):
    net, x = calling(LEAKY[name]), cases.images()
    assert models.kinks(net, x)[0].startswith("leaky_relu")
    twin = models.smooth_twin(net, x, beta=3.0)
    soft = calling(lambda h: 0.2 * h + 0.8 * F.softplus(h, 3.0))
    assert torch.allclose(twin(x), soft(x), rtol=1e-14)
    sharp = models.smooth_twin(net, x, beta=1e7)
    assert torch.allclose(sharp(x), net(x), atol=1e-6)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Softplus(), nn.Tanh(), nn.Sigmoid()])
def test_smooth_activations_are_no_kinks_and_their_twin_is_the_network_itself(activation):
    net, x = cases.mlp(activation), cases.images()
    assert models.kinks(net, x) == []
    assert torch.equal(models.smooth_twin(net, x, beta=3.0)(x), net(x))


def test_kinks_are_listed_once_each_in_the_order_they_run():
    net = calling(lambda h: torch.relu(F.hardtanh(torch.relu(h))))
    assert models.kinks(net, cases.images()) == ["relu", "hardtanh"]


def test_a_sharper_twin_is_closer_to_its_network_within_log_two_over_beta():
    net, x = calling(F.relu), cases.images(20)
    reach = net.outer.weight.abs().sum(1)
    gaps = []
    for beta in (5.0, 50.0, 500.0, 1e8):
        gap = (models.smooth_twin(net, x, beta=beta)(x) - net(x)).abs()
        assert (gap <= reach * math.log(2) / beta * (1 + 1e-9)).all()
        gaps.append(gap.max().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-6


def test_the_twin_shares_weights_and_follows_their_changes():
    net, x = calling(F.relu), cases.images()
    twin = models.smooth_twin(net, x, beta=5.0)
    assert [p is q for p, q in zip(twin.parameters(), net.parameters(), strict=True)] == [True] * 4
    before = twin(x)
    with torch.no_grad():
        net.outer.bias += 1
    assert torch.allclose(twin(x), before + 1)


def test_the_twin_bends_where_the_relu_network_is_flat():
    net, x = calling(F.relu), cases.images()

    def map_of(model, images):
        return torch.autograd.grad(model(images)[:, 0].sum(), images, create_graph=True)[0]

    at = x.clone().requires_grad_()
    (through,) = torch.autograd.grad(map_of(models.smooth_twin(net, x, beta=5.0), at).square().sum(), at)
    assert through.abs().max() > 1e-3


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_a_twin_needs_a_positive_beta(beta):
    with pytest.raises(ValueError, match=r"beta is .*; it must be a finite number above 0"):
        models.smooth_twin(calling(F.relu), cases.images(), beta=beta)


def test_twins_and_kinks_leave_training_flags_as_found():
    net, x = cases.mlp(nn.ReLU()), cases.images()
    net[1].train()
    flags = [m.training for m in net.modules()]
    twin = models.smooth_twin(net, x, beta=5.0)
    twin(x)
    assert [m.training for m in net.modules()] == flags
    assert not twin.training
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_weights_depend_on_the_seed_alone(architecture, activation):
    def build(seed):
        return models.build(architecture, input_shape=(1, 6, 8), classes=3, seed=seed, activation=activation)

    first, again, other = build(0), build(0), build(1)
    torch.rand(3, generator=cases.generator())
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True))
    assert first(torch.full((2, 1, 6, 8), 0.5)).shape == (2, 3)
    assert first.training
    assert (models.kinks(first, torch.full((2, 1, 6, 8), 0.5)) == ["relu"]) == (activation == "relu")


@pytest.mark.parametrize("architecture", ["mlp", "convnet", "resnet"])
def test_weights_start_at_he_variance_and_biases_at_zero(architecture):
    model = models.build(architecture, input_shape=(3, 16, 16), classes=10, seed=0, width=64)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in = layer.weight[0].numel()
            n = layer.weight.numel()
            # The standard error of a variance is about sqrt(2 / n) of it.
            assert abs(layer.weight.var().item() * fan_in / 2 - 1) < 5 * (2 / n) ** 0.5
            assert layer.bias is None or not layer.bias.any()


def test_depth_and_width_are_those_asked_for():
    model = models.build("mlp", input_shape=(1, 2, 3), classes=4, seed=0, width=5, depth=2)
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(5, 6), (5, 5), (4, 5)]


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_standardisation_is_the_first_layer(architecture):
    def build(**options):
        return models.build(architecture, input_shape=(1, 4, 4), classes=2, seed=0, **options).double()

    x = cases.images(shape=(1, 4, 4))
    assert torch.allclose(build(mean=0.25, std=0.5)(x), build()((x - 0.25) / 0.5))


# ------------------------------------------------------------------ convolutions and batch norm


def of_convolutions(name, shape=(3, 14, 14), **options):
    return models.build(name, input_shape=shape, classes=10, seed=0, **options)


@pytest.mark.parametrize("initial", models.INITIAL)
@pytest.mark.parametrize("name", ["convnet_bn", "resnet"])
def test_batch_norm_stands_behind_each_convolution_takes_its_bias_and_starts_at_one_and_zero(name, initial):
    model = of_convolutions(name, initial=initial)
    chains = [m for m in model.modules() if isinstance(m, nn.Sequential)]
    behind = [after for chain in chains for m, after in pairwise(chain) if isinstance(m, nn.Conv2d)]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(behind) == len(convolutions) == {"convnet_bn": 2, "resnet": 9}[name]
    assert all(m.bias is None for m in convolutions)
    for norm in behind:
        assert type(norm) is nn.BatchNorm2d
        assert (norm.weight == 1).all() and not norm.bias.any()
        assert not norm.running_mean.any() and (norm.running_var == 1).all()


@pytest.mark.parametrize("name", ["convnet_bn", "resnet"])
def test_the_first_size_of_a_convolution_tells_in_train_mode_through_its_gradient_alone(name):
    x, sides = torch.rand(16, 3, 14, 14, generator=cases.generator(), dtype=torch.float64), []
    for size in (1.0, 3.0):
        model = of_convolutions(name, mean=0.5, std=0.3).double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-14
            if isinstance(module, nn.Conv2d):
                module.weight.data *= size
        logits = model(x)
        weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
        sides.append((logits, torch.autograd.grad(logits.square().sum(), weights)))
    (logits, slopes), (again, smaller) = sides
    assert torch.allclose(logits, again, rtol=1e-9)
    for slope, other in zip(slopes, smaller, strict=True):
        assert slope.any() and torch.allclose(slope, 3 * other, rtol=1e-6, atol=1e-12)


def residual(x, weights, stage, act, stride):
    """A block written out, from the network's weights by name."""

    def normed(h, convolution, norm, stride, padding):
        h = F.conv2d(h, weights[f"{convolution}.weight"], stride=stride, padding=padding)
        mean, variance = (weights[f"{norm}.running_{part}"][:, None, None] for part in ("mean", "var"))
        scale, shift = (weights[f"{norm}.{part}"][:, None, None] for part in ("weight", "bias"))
        return (h - mean) / (variance + 1e-5).sqrt() * scale + shift

    if stage is None:
        return act(normed(x, "layers.1", "layers.2", 1, 1))
    at = f"layers.{stage}"
    h = act(normed(x, f"{at}.body.0", f"{at}.body.1", stride, 1))
    h = normed(h, f"{at}.body.3", f"{at}.body.4", 1, 1)
    return act(h + (x if stride == 1 else normed(x, f"{at}.shortcut.0", f"{at}.shortcut.1", stride, 0)))


@pytest.mark.parametrize("activation", models.ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 14, 14), (1, 28, 28), (3, 32, 32), (2, 5, 7)], ids=str)
def test_the_residual_network_agrees_with_its_equations_for_images_of_any_size(shape, activation):
    model = of_convolutions("resnet", shape, activation=activation, width=4, mean=0.4, std=0.3).double()
    draw = cases.generator(1)
    for part in model.state_dict().values():  # statistics and weights as of a trained network
        if part.is_floating_point() and part.ndim:
            part.add_(0.3 * torch.rand(part.shape, generator=draw, dtype=part.dtype))
    x, weights, act = cases.images(2, shape=shape), model.state_dict(), models.ACTIVATIONS[activation]()
    h = residual((x - weights["layers.0.mean"]) / weights["layers.0.std"], weights, None, act, 1)
    sizes = []
    for stage, stride in ((4, 1), (5, 2), (6, 2)):
        h = residual(h, weights, stage, act, stride)
        sizes.append(tuple(h.shape[1:]))
    _, rows, columns = shape
    assert sizes == [(4 * n, -(-rows // n), -(-columns // n)) for n in (1, 2, 4)]
    logits = h.mean((2, 3)) @ weights["layers.9.weight"].T + weights["layers.9.bias"]
    assert logits.shape == (2, 10)
    assert torch.allclose(model.eval()(x), logits, rtol=1e-10)
    assert torch.allclose(model.float()(x.float()).double(), logits, rtol=1e-3, atol=1e-3)


def test_the_deeper_residual_network_has_the_published_number_of_parameters_and_halves_its_maps_thrice():
    model = models.build("resnet18", input_shape=(3, 32, 32), classes=10, seed=0).eval()
    assert sum(w.numel() for w in model.parameters()) == 11_173_962
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()) == 17
    seen = []
    model.last_maps.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    with torch.no_grad():
        assert model(cases.images(1, shape=(3, 32, 32)).float()).shape == (1, 10)
    assert seen == [(1, 512, 4, 4)]


@pytest.mark.parametrize("name", ["convnet_bn", "resnet"])
def test_the_last_maps_are_what_is_pooled_or_flattened(name):
    model, seen = of_convolutions(name, (1, 8, 8)).eval(), []
    with torch.no_grad():
        handle = model.last_maps.register_forward_hook(lambda layer, inputs, output: seen.append(output))
        logits = model(torch.rand(2, 1, 8, 8, generator=cases.generator()))
        handle.remove()
        (maps,) = seen
        after = list(model.layers)[list(model.layers).index(model.last_maps) + 1 :]
        assert maps.shape == (2, 32, 2, 2)
        assert torch.equal(nn.Sequential(*after)(maps), logits)


# ------------------------------------------------------------------ the transformer


def vit_images(n=3, seed=0):
    return cases.images(n, seed, cases.VIT_SHAPE)


def built(**options):
    return models.build("vit", input_shape=(3, 16, 16), classes=10, seed=0, **options)


def test_a_transformers_dense_layers_start_at_one_over_fan_in_and_its_first_scores_at_unit_variance():
    model = built(dim=64, patch=4)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)] + [model.patches]
    assert len(layers) == 2 * 4 + 2
    for layer in layers:
        assert abs(layer.weight.var().item() * layer.weight.shape[1] - 1) < 5 * (2 / layer.weight.numel()) ** 0.5
        assert not layer.bias.any()
    draws = (models.build("vit", input_shape=(3, 16, 16), classes=10, seed=s, mean=0.5, std=0.3) for s in range(8))
    x = torch.rand(32, 3, 16, 16, generator=cases.generator())
    assert 0.5 < sum(m.scores(x)[0].var().item() for m in draws) / 8 < 2


def test_the_recommended_transformer_for_digits_has_eighteen_thousand_parameters():
    model = models.build("vit", input_shape=(1, 8, 8), classes=10, seed=0, patch=2, dim=32, depth=2, heads=4)
    assert sum(p.numel() for p in model.parameters()) == 18218


class Plain(nn.Module):
    """The same transformer made of torch's own layers, every token kept to the end."""

    def __init__(self, vit, shape):
        super().__init__()
        dim, heads = vit.position.shape[1], vit.blocks[0].attention.heads
        layer = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True, dtype=torch.float64
        )
        self.layers = nn.TransformerEncoder(layer, len(vit.blocks), enable_nested_tensor=False)
        self.vit, self.embed = vit, nn.Conv2d(shape[0], dim, vit.patches.patch, vit.patches.patch, dtype=torch.float64)
        with torch.no_grad():
            self.embed.weight.copy_(vit.patches.weight.view_as(self.embed.weight))
            self.embed.bias.copy_(vit.patches.bias)
            for theirs, ours in zip(self.layers.layers, vit.blocks, strict=True):
                pairs = {
                    theirs.norm1: ours.before_attention, theirs.norm2: ours.before_mlp, theirs.linear1: ours.mlp[0],
                    theirs.linear2: ours.mlp[2], theirs.self_attn.out_proj: ours.attention.projection,
                }  # fmt: skip
                for a, b in pairs.items():
                    a.load_state_dict(b.state_dict())
                theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
                theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)

    def forward(self, x):
        patches = self.embed((x - self.vit.standardize.mean) / self.vit.standardize.std).flatten(2).mT
        tokens = torch.cat([self.vit.cls.expand(len(x), 1, -1), patches], 1) + self.vit.position
        return self.vit.head(self.vit.norm(self.layers(tokens)[:, 0]))


@pytest.mark.parametrize("options", [{}, {"depth": 1}, {"depth": 3, "heads": 3}, {"patch": 1}])
def test_the_transformer_agrees_with_one_made_of_torchs_layers(options):
    vit, x = cases.vit(**options), vit_images()
    with torch.random.fork_rng(devices=[]):
        plain = Plain(vit, cases.VIT_SHAPE)
    assert torch.allclose(vit(x), plain(x), rtol=1e-10)


def test_attend_returns_the_logits_and_the_kernels_outputs_in_order():
    model, x = cases.vit(depth=3), vit_images()
    seen = []
    handles = [b.attention.kernel.register_forward_hook(lambda m, i, o: seen.append(o)) for b in model.blocks]
    logits, maps = model.attend(x)
    for handle in handles:
        handle.remove()
    assert [m.shape for m in maps] == [(3, 2, 7, 7)] * 3
    assert all(torch.equal(m, s) for m, s in zip(maps, seen, strict=True))
    assert torch.equal(logits, model(x))


def test_the_scores_are_what_the_kernels_make_the_maps_of():
    model, x = cases.vit(depth=3), vit_images().requires_grad_()
    maps, scores = model.attend(x)[1], model.scores(x)
    for weights, s in zip(maps, scores, strict=True):
        assert torch.allclose(s.softmax(-1), weights, rtol=1e-12)
        (slope,) = torch.autograd.grad(s.square().sum(), x, retain_graph=True)
        assert slope.any()


def test_every_map_is_live_the_logits_depend_on_it_and_on_cls_alone_in_the_last_block():
    model, x = cases.vit(), vit_images()
    logits, maps = model.attend(x)
    first, last = torch.autograd.grad(logits[:, 0].sum(), maps)
    assert (first.abs().sum(-1) > 0).all()
    assert (last[:, :, 0].abs() > 0).all()
    assert not last[:, :, 1:].any()


def test_patches_that_move_with_their_positions_leave_the_logits():
    model, x = cases.vit(patch=1), vit_images()
    order = torch.randperm(24, generator=cases.generator())
    before = model(x)
    with torch.no_grad():
        model.position[1:] = model.position[1:][order]
    moved = x.flatten(2)[..., order].view_as(x)
    assert torch.allclose(model(moved), before, rtol=1e-10)
    assert not torch.allclose(model(x), before, rtol=1e-3)


def test_a_transformers_first_layer_is_shared_and_refused_where_a_dense_one_is_needed():
    model, x = cases.vit(), vit_images()
    assert curvature.first_layer(model)[1] is model.patches
    with pytest.raises(ValueError, match="the first layer is Patches; this flatness needs a dense"):
        curvature.invariant_flatness(curvature.GaussNewton(model, x))


def test_a_transformer_runs_in_single_and_double_precision_and_under_vmap():
    model, x = cases.vit(), vit_images()
    assert torch.allclose(model.float()(x.float()).double(), cases.vit()(x), rtol=1e-3, atol=1e-4)
    nets = [cases.vit(seed=s) for s in range(3)]
    stacked = torch.func.stack_module_state(nets)
    together = torch.func.vmap(lambda w, b: torch.func.functional_call(nets[0], (w, b), (x,)))(*stacked)
    assert torch.allclose(together, torch.stack([net(x) for net in nets]), rtol=1e-10)


def test_a_transformer_has_no_kinks_and_its_saliency_bends():
    model, x, y = cases.vit(), vit_images().requires_grad_(), cases.labels()
    assert models.kinks(model, x) == []
    assert torch.autograd.grad(attributions.saliency(model, x, y).square().sum(), x)[0].any()


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("name", attention.KERNELS)
def test_transformers_of_every_kernel_learn_side_by_side_as_they_learn_alone(name):
    x, y = data.load("digits", n_train=100, n_test=10).train

    def nets(*seeds):
        options = {"input_shape": (1, 8, 8), "classes": 10, "attention": name, "patch": 4, "dim": 16, "mean": 0.3}
        return [models.build("vit", seed=s, std=0.4, **options) for s in seeds]

    def fitted(networks):
        draws = [torch.Generator().manual_seed(0) for _ in networks]
        recipe = training.Recipe(step_size=0.02, batch_size=20, epochs=10, momentum=0.9)
        return training.fit(networks, x, y, recipe, generators=draws)

    both, alone = nets(0, 1), nets(1)
    losses = [F.cross_entropy(net(x), y).item() for net in both]
    for fit, before in zip(fitted(both), losses, strict=True):
        assert fit.train_loss < 0.7 * before
    fitted(alone)
    assert torch.equal(both[1](x), alone[0](x))


@pytest.mark.parametrize("name", attention.KERNELS)
def test_transformers_of_every_kernel_run_under_vmap(name):
    x, nets = vit_images(), [cases.vit(seed=s, attention=name) for s in range(3)]
    stacked = torch.func.stack_module_state(nets)
    together = torch.func.vmap(lambda w, b: torch.func.functional_call(nets[0], (w, b), (x,)))(*stacked)
    assert torch.allclose(together, torch.stack([net(x) for net in nets]), rtol=1e-10)


@pytest.mark.parametrize("name", attention.KERNELS)
def test_only_relu_attention_has_kinks_and_its_twin_softens_them(name):
    model, x = cases.vit(attention=name), vit_images()
    assert models.kinks(model, x) == (["relu"] if name == "relu" else [])
    if name == "relu":
        weights = models.smooth_twin(model, x, beta=5.0).attend(x)[1][0]
        assert torch.allclose(weights, F.softplus(model.scores(x)[0], 5.0) / 7, rtol=1e-12)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_narrow_networks_start_as_torchs_own_layers_and_small_positions(architecture):
    options = {"patch": 4, "dim": 64} if architecture == "vit" else {"width": 32}
    model = models.build(architecture, input_shape=(3, 16, 16), classes=10, seed=0, initial="narrow", **options)
    wide = models.build(architecture, input_shape=(3, 16, 16), classes=10, seed=0, **options)
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is None or isinstance(layer, nn.LayerNorm | nn.BatchNorm2d):
            continue
        fan_in = weight[0].numel()
        for part in (weight, *([] if layer.bias is None else [layer.bias])):
            assert part.abs().max() <= fan_in**-0.5
        # A uniform draw within 1 / sqrt(fan-in): its mean square within five standard errors, sqrt(4/45) of the bound.
        mean, error = 1 / (3 * fan_in), (4 / 45) ** 0.5 / fan_in / weight.numel() ** 0.5
        assert abs(weight.square().mean() - mean) < 5 * error, name
    if architecture == "vit":
        assert torch.allclose(model.position, wide.position * 0.04)
    again = models.build(architecture, input_shape=(3, 16, 16), classes=10, seed=0, initial="narrow", **options)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"architecture": "mpl"},
            "architecture is 'mpl'; it must be one of mlp, .*, vit; did you mean 'mlp'",
        ),
        ({"architecture": "vit", "patch": 3}, "patch is 3; it must divide the image's height and width, 2 and 2"),
        ({"architecture": "vit", "patch": 0}, "patch is 0; it must be a whole number of at least 1"),
        ({"architecture": "vit", "depth": 0}, "depth is 0; it must be a whole number of at least 1"),
        ({"architecture": "vit", "heads": 5}, "heads is 5; it must divide dim, 32"),
        ({"architecture": "vit", "dim": 0}, "dim is 0; it must be a whole number of at least 1"),
        ({"architecture": "vit", "attention": "sotfmax"}, "attention is 'sotfmax'; .*did you mean 'softmax'"),
        (
            {"architecture": "resnet", "depth": 2},
            "depth is 2; architecture 'resnet' takes act.*, stages, mean",
        ),
        (
            {"architecture": "resnet18", "stages": (1,)},
            "stages is .*; architecture 'resnet18' takes act.*, width, mean",
        ),
        (
            {"architecture": "convnet_bn", "batch_norm": False},
            "batch_norm is False; architecture 'convnet_bn' t",
        ),
        ({"architecture": "resnet", "stages": ()}, "stages is empty; it must be numbers of blocks, one per stage"),
        (
            {"architecture": "resnet", "stages": (1, 0)},
            "a stage of stages is 0; it must be a whole number",
        ),
        ({"architecture": "resnet", "width": 0}, "width is 0; it must be a whole number of at least 1"),
        ({"initial": "thin"}, "initial is 'thin'; it must be one of wide, narrow"),
        ({"activation": "rely"}, "activation is 'rely'; it must be one of .*; did you mean 'relu'"),
        ({"classes": 1}, "classes is 1; it must be a whole number of at least 2"),
    ],
)
def test_unknown_parts_are_refused(change, sentence):
    asked = {"architecture": "mlp", "input_shape": (1, 2, 2), "classes": 2, "seed": 0} | change
    with pytest.raises(ValueError, match=sentence):
        models.build(asked.pop("architecture"), **asked)
