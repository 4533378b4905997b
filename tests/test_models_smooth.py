"""Twins tend to their networks, have the slopes that finite differences find, and are refused where they would not."""

import cases
import pytest
import torch
from attrobust import attributions, models
from attrobust.models.soften import Soften
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SLOPES = torch.linspace(0.1, 0.4, 6, dtype=torch.float64)


class Calls(nn.Module):
    """A dense layer, a function, and a dense layer."""

    def __init__(self, function):
        super().__init__()
        self.inner, self.outer = nn.Linear(cases.PIXELS, 6), nn.Linear(6, cases.CLASSES)
        self.function = function

    def forward(self, x):
        return self.outer(self.function(2 * self.inner(x.flatten(1))))


@cases.isolated
def calling(function):
    return cases.filled(Calls(function), seed=3)


def zero(h):
    return torch.zeros_like(h)


def item_set(h):
    h = h.clone()
    h[h < 0] = 0
    return h


def times_in_place(h):
    h = h * 1
    h *= h > 0
    return h


def mask_without_gradient(h):
    with torch.no_grad():
        mask = (h > 0).to(h)
    return h * mask


#: Made of straight pieces: the twin is the mean under logistic noise.
STRAIGHT = {
    "relu6": nn.ReLU6(),
    "F.relu6 in place": lambda h: F.relu6(h, True),
    "hardtanh": nn.Hardtanh(-0.5, 0.7),
    "hardtanh_": lambda h: F.hardtanh_(h.clone(), -0.5, 0.7),
    "clamp": lambda h: h.clamp(-0.3, 0.4),
    "clamp_": lambda h: h.clone().clamp_(max=0.4),
    "clamp from above": lambda h: torch.clamp(h, max=0.2),
    "clamp from below": lambda h: torch.clamp(h, min=-0.2),
    "clamp to infinity": lambda h: h.clamp(-0.2, torch.inf),
    "clamp from far below": lambda h: h.clamp(torch.finfo(h.dtype).min, 0.1),
    "clamp to tensors": lambda h: h.clamp(zero(h), zero(h) + 0.3),
    "clamp to crossed bounds": lambda h: h.clamp(0.3, 0.3) + h.clamp(min=0.1),
    "clip": lambda h: torch.clip(h, 0, 0.5),
    "clamp_min": lambda h: torch.clamp_min(h, 0.1),
    "clamp_max": lambda h: h.clamp_max(0.1),
    "maximum": lambda h: torch.maximum(zero(h), h),
    "max": lambda h: torch.max(h, zero(h)),
    "minimum": lambda h: torch.minimum(h, zero(h) + 0.1),
    "abs": abs,
    "half": lambda h: (h + h.abs()) / 2,
    "leaky": nn.LeakyReLU(0.2),
    "leaky_relu_": lambda h: F.leaky_relu_(h.clone(), 0.2),
    "prelu": lambda h: F.prelu(h, SLOPES.to(h.device)),
    "one slope": lambda h: F.prelu(h, SLOPES[:1]),
    "rrelu": nn.RReLU(0.1, 0.3).eval(),
    "hardsigmoid": nn.Hardsigmoid(),
    "softshrink": nn.Softshrink(0.2),
    "hardshrink": nn.Hardshrink(0.2),
    "threshold": nn.Threshold(0.1, -0.3),
    "sign": torch.sign,
    "the operator itself": torch.ops.aten.hardtanh.default,
}
#: Written by hand.
BY_HAND = {
    "where": lambda h: torch.where(h > 0, h, 0.0),
    "where, turned round": lambda h: torch.where(h <= 0, zero(h), h),
    "Tensor.where": lambda h: h.where(h.gt(0), 0.0),
    "product": lambda h: h * (h > 0),
    "product, of the mask": lambda h: h.gt(0) * h,
    "product, mask as numbers": lambda h: h * h.gt(0).type_as(h),
    "product, mask as int": lambda h: h * (h > 0).int(),
    "product in place": times_in_place,
    "masked_fill": lambda h: h.masked_fill(h < 0, 0),
    "masked_fill_": lambda h: h.clone().masked_fill_(h < 0, 0.0),
    "by index": item_set,
    "not": lambda h: h * ~(h < 0),
    "and": lambda h: h * ((h > 0) & torch.ones_like(h).bool()),
    "or": lambda h: h * ((h > 0) | torch.zeros_like(h).bool()),
    "no gradient in the mask": mask_without_gradient,
    "detached": lambda h: h * (h.detach() > 0),
    "data": lambda h: h * (h.data > 0),
    "detached mask": lambda h: h * (h > 0).detach(),
    "shaped": lambda h: (h[:, None] * (h > 0)[:, None])[:, 0],
    "stacked": lambda h: h * torch.stack([h > 0, h > -99]).prod(0),
    "sign": lambda h: h * (1 + h.sign()) / 2,
    "einsum": lambda h: torch.einsum("bi,bi->bi", h, (h > 0).to(h)),
}
#: The others.
FURTHER = {
    "hardswish": nn.Hardswish(),
    "hardswish in place": nn.Hardswish(inplace=True),
    "selu": nn.SELU(),
    "elu": nn.ELU(2.0),
    "elu by hand": lambda h: torch.where(h > 0, h, 2 * torch.expm1(h)),
    "relu6 by hand": lambda h: torch.where(h > 0.6, 0.6, torch.where(h > 0, h, 0.0)),
    "root where it is real": lambda h: torch.where(h > 0, torch.where(h > 0, h, 1.0).sqrt(), 0.0),
    "share of open gates": lambda h: h * (h > 0) / (1 + (h > 0).sum(1, keepdim=True)),
}
EVERY = {f"{kind}: {name}": f for kind in ("STRAIGHT", "BY_HAND", "FURTHER") for name, f in globals()[kind].items()}


def scores(model, x):
    return model(x) @ torch.linspace(1, 2, cases.CLASSES, dtype=x.dtype)


def gradient(model, x, *, graph=False):
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(scores(model, leaf).sum(), leaf, create_graph=graph)
    return (leaf, found) if graph else found


@pytest.mark.parametrize("name", STRAIGHT)
def test_the_twin_of_straight_pieces_is_their_mean_under_logistic_noise(name):
    h = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None].expand(41, 6)
    noise = ((torch.arange(40000, dtype=torch.float64) + 0.5) / 40000).logit() / 5
    plain = torch.cat([STRAIGHT[name](part + noise[:, None]).mean(0, keepdim=True) for part in h[:, None]])

    class Only(nn.Module):
        def forward(self, x):
            return STRAIGHT[name](x.flatten(1) * 1)

    soft = models.SmoothTwin(Only(), 5.0)(h[:, :, None, None])
    assert torch.allclose(soft, plain, atol=1e-4)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_relu_written_by_hand_becomes_a_softplus_or_where_that_is_not_seen_its_input_times_a_sigmoid(name):
    net, x = calling(BY_HAND[name]), cases.images(6)
    assert torch.allclose(net(x), calling(F.relu)(x), rtol=1e-12)
    unseen = name in ("and", "or", "shaped", "stacked", "sign", "einsum")
    soft = calling((lambda h: h * (4 * h).sigmoid()) if unseen else (lambda h: F.softplus(h, 4)))
    assert torch.allclose(models.smooth_twin(net, x, beta=4.0)(x), soft(x))


@pytest.mark.parametrize("name", EVERY)
def test_every_twin_has_the_first_and_second_slopes_that_finite_differences_find(name):
    net, x = calling(EVERY[name]), cases.images(6)
    if name != "BY_HAND: detached" and name != "BY_HAND: data" and "rrelu" not in name:
        assert models.kinks(net, x)
    if name == "STRAIGHT: sign":
        return  # no gradient to compare with: the network's logits stand still
    twin, way = models.smooth_twin(net, x, beta=5.0), torch.randn(x.shape, generator=cases.generator(1)).to(x)
    assert models.kinks(twin, x) == []
    leaf, first = gradient(twin, x, graph=True)
    (second,) = torch.autograd.grad((first * way).sum(), leaf)
    assert torch.allclose((first * way).flatten(1).sum(1), cases.slope(lambda at: scores(twin, at), x, way), rtol=1e-6)
    with torch.enable_grad():
        change = (gradient(twin, x + 1e-5 * way) - gradient(twin, x - 1e-5 * way)) / 2e-5
    assert torch.allclose(second, change, rtol=1e-5, atol=1e-5)
    assert second.abs().max() > 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_every_twin_tends_to_its_network_in_value_and_gradient(name):
    net, x = calling(EVERY[name]), cases.images(6)
    gaps = []
    for beta in (10.0, 100.0, 1e7):
        twin = models.smooth_twin(net, x, beta=beta) if "sign" not in name else models.SmoothTwin(net, beta)
        gaps.append([(twin(x) - net(x)).abs().max().item()])
        if name != "STRAIGHT: sign":
            gaps[-1].append((gradient(twin, x) - gradient(net, x)).abs().max().item())
    assert max(gaps[2]) < 1e-5
    assert gaps[2][0] <= gaps[1][0] <= gaps[0][0]


def test_twins_of_smooth_networks_with_questions_and_branches_are_the_networks_themselves():
    def asks(h):
        assert torch.isfinite(h).all()
        return F.gelu(F.normalize(h) if h.max() > -99 else -h)

    net, x = calling(asks), cases.images(6)
    assert torch.equal(models.smooth_twin(net, x, beta=5.0)(x), net(x))
    dense = cases.linear()
    assert torch.equal(models.smooth_twin(dense, x, beta=5.0)(x), dense(x))
    assert models.kinks(calling(lambda h: F.normalize(F.celu(F.elu(h), 0.5))), x) == []
    whole = calling(lambda h: h[:, torch.arange(9).clamp(max=5)[:6]] * (torch.arange(6) < 4))
    assert torch.equal(models.smooth_twin(whole, x, beta=5.0)(x), whole(x))


# ------------------------------------------------------------------ refused


class Handmade(torch.autograd.Function):
    """A ReLU with a backward of its own."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h.relu()

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


class Opaque(Handmade):
    """The same, out of torch's sight."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return torch.from_numpy(h.detach().numpy().clip(0))


REFUSED = {
    "round": (lambda h: h + torch.round(3 * h) / 3, "model runs round, which a smooth twin cannot replace"),
    "straight through": (lambda h: h + (torch.round(64 * h) / 64 - h).detach(), "model runs round"),
    "copysign": (lambda h: (h + torch.copysign(h, zero(h) + 1)) / 2, "model runs copysign"),
    "own backward": (Handmade.apply, "a gradient that misses .* of its logits' slope, as where activation checkpoint"),
    "out of sight": (Opaque.apply, "model keeps kinks that a smooth twin cannot replace"),
    "largest of a stack": (lambda h: torch.stack([h, zero(h)]).amax(0), "model keeps kinks"),
    "root of a square": (lambda h: (h + h.square().sqrt()) / 2, "model keeps kinks"),
    "sorted": (lambda h: h.sort(1).values, "model keeps kinks .* finds 0% of how its gradient changes"),
    "max pooling": (lambda h: F.max_pool1d(h[:, None], 2)[:, 0].repeat(1, 2), "model keeps kinks .* max-pools"),
    "selected": (lambda h: torch.cat([h[h > 0], h[h <= 0]]).view_as(h), "couples the images of a batch"),
    "any": (lambda h: torch.where((h > 0).any(1, keepdim=True), h, -h), "outcome of a comparison in any"),
    "equal": (lambda h: h * (h.clamp(min=0) != 0), "outcome of a comparison in ne"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_softened_is_refused_in_a_sentence(name):
    function, sentence = REFUSED[name]
    for beta in (5.0, 1e4):
        with pytest.raises(ValueError, match=sentence):
            models.smooth_twin(calling(function), cases.images(6), beta=beta)


@pytest.mark.parametrize(("reentrant", "sentence"), [(False, "activation checkpointing"), (True, "use_reentrant=True")])
def test_a_checkpointed_relu_is_refused_as_its_backward_would_run_it_unsoftened(reentrant, sentence):
    for dtype in (torch.float32, torch.float64):
        net = calling(lambda h: checkpoint(F.relu, h, use_reentrant=reentrant)).to(dtype)
        with pytest.raises(ValueError, match=sentence):
            models.smooth_twin(net, cases.images(6).to(dtype), beta=5.0)


def test_a_checkpointed_smooth_body_is_not_refused():
    net = calling(lambda h: checkpoint(F.gelu, h, use_reentrant=False))
    assert models.smooth_twin(net, cases.images(6), beta=5.0).beta == 5


# ------------------------------------------------------------------ what is seen


@pytest.mark.parametrize("spelling", ["script", "trace", "freeze"])
def test_kinks_of_torchscript_are_seen_however_often_it_ran_and_no_twin_is_made(spelling):
    for act, seen in ((nn.ReLU(), ["relu"]), (nn.Tanh(), [])):
        model, x, y = cases.mlp(act), cases.images(), cases.labels()
        scripted = torch.jit.trace(model, x) if spelling == "trace" else torch.jit.script(model)
        scripted = torch.jit.freeze(scripted) if spelling == "freeze" else scripted
        for _ in range(4):  # the first runs are written as they are, later ones in another form
            assert torch.allclose(attributions.saliency(scripted, x, y), attributions.saliency(model, x, y))
        assert models.kinks(scripted, x) == seen
        if seen:
            with pytest.raises(ValueError, match=r"^model runs relu, .* outside TorchScript"):
                models.smooth_twin(scripted, x, beta=10.0)
        else:
            assert torch.equal(models.smooth_twin(scripted, x, beta=10.0)(x), scripted(x))


def test_weights_made_by_kernels_that_take_no_odd_shape_are_no_kinks_and_survive():
    layer = cases.isolated(lambda: nn.utils.parametrizations.orthogonal(nn.Linear(18, 4)))()
    model = nn.Sequential(nn.Flatten(), cases.filled(layer, seed=0), nn.ReLU())
    assert [models.kinks(model, cases.images()) for _ in range(3)] == 3 * [["relu"]]


def test_the_twin_of_a_dead_network_without_biases_tends_to_it():
    model, x = cases.conv(nn.ReLU()), cases.images()
    with torch.no_grad():
        model[0].weight.abs_().neg_(), model[0].bias.zero_(), model[3].bias.zero_()
    assert not model(x).any() and models.smooth_twin(model, x, beta=10.0)(x).any()


def test_kinks_of_later_images_and_larger_batches_are_seen():
    x = cases.images(6)
    assert models.kinks(calling(lambda h: F.relu(h) if len(h) > 5 else h), x) == ["relu"]
    assert models.kinks(calling(lambda h: torch.cat([h[:4], h[4:].abs()])), x) == ["abs"]


def test_what_jumps_out_of_reach_of_the_images_is_no_kink():
    x = cases.images(6)
    assert models.kinks(calling(lambda h: h.clamp(-99, 99)), x) == []
    assert models.kinks(calling(lambda h: h.sigmoid().clamp(min=0)), x) == []
    assert models.kinks(calling(lambda h: F.softplus(h, 2000.0) / (3 + h.cos()) + h.exp()), x) == []


@cases.isolated
def encoder(activation="relu"):
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, norm_first=True, activation=activation)
    embed, head = nn.Linear(3, 6), nn.Linear(6, cases.CLASSES)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer, self.head = embed, layer, head

        def forward(self, x):
            return self.head(self.layer(self.embed(x.flatten(1, 2))).mean(1))

    return cases.filled(Net(), seed=2)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_relu_of_a_fused_encoder_is_seen_and_softened(frozen):
    net, x = encoder().requires_grad_(not frozen), cases.images(6)
    with torch.no_grad():
        assert models.kinks(net, x) == ["relu"]
        twin, soft = models.smooth_twin(net, x, beta=3.0), encoder(lambda h: F.softplus(h, 3.0))
        assert torch.allclose(twin(x), soft(x), rtol=1e-10)
        assert not torch.allclose(twin(x), net(x), rtol=1e-3)
    assert torch.allclose(gradient(twin, x), gradient(soft, x), rtol=1e-10)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool2d(3, 2, 1), (8, 9)), (nn.MaxPool2d(2, ceil_mode=True), (7, 9)), (nn.MaxPool1d(3, 2, 1), (9,)),
        (nn.MaxPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True), (8, 9)), (nn.MaxPool3d(2), (4, 4, 5)),
        (nn.MaxPool2d(3, 3, 1, ceil_mode=True), (7, 8)), (lambda h: h.amax(-1), (9,)), (lambda h: h.amin((2,)), (9,)),
    ],
)  # fmt: skip
def test_a_soft_maximum_tends_to_the_maximum_of_every_window_and_is_smooth(pool, shape):
    h = torch.randn(2, 3, *shape, generator=cases.generator(), dtype=torch.float64)
    with Soften(1e5, pools=True):
        sharp = pool(h)
    hard = pool(h)
    assert sharp.shape == hard.shape and torch.allclose(sharp, hard, atol=2e-5)
    with Soften(3.0):
        assert torch.equal(pool(h), hard)  # only where it is asked for

    def soft(at):
        with Soften(3.0, pools=True):
            return pool(at)

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert cases.isolated(check)(soft, h[:1, :1].clone().requires_grad_())


def test_operations_that_write_in_place_are_watched_as_they_are():
    """Each is asked what it does on copies: run twice, this shift would leave no negative number to a ReLU."""

    class Shifted(torch.nn.Module):
        def forward(self, x):
            return ((x - 2).add_(1.5).relu() * 1).flatten(1)

    x = torch.linspace(0, 1, 32).view(2, 1, 4, 4)
    assert models.kinks(Shifted(), x) == ["relu"]
