"""Networks of other kinks than a plain ReLU are attacked as strongly as the same function written with F.relu."""

from functools import partial

import cases
import pytest
import torch
from attrobust import attacks, attributions, balls, models, robustness, swap
from attrobust.attacks.audit import BlindError
from torch import nn
from torch.nn import functional as F

QUICK = attacks.Effort(steps=4, restarts=1, draws=2, walk=2, betas=(5.0, 20.0))
SHAPE = (3, 12, 12)


def relu6(h):
    return F.relu(h) - F.relu(h - 6)


def hardsigmoid(h):
    return (F.relu(h + 3) - F.relu(h - 3)) / 6


def hardswish(h):
    return h * hardsigmoid(h)


class Inverted(nn.Module):
    """Inverted residual: widen, filter each channel, squeeze and excite, narrow, add (MobileNetV2, V3)."""

    def __init__(self, width, act, gate):
        super().__init__()
        wide = 2 * width
        self.widen, self.narrow = nn.Conv2d(width, wide, 1, bias=False), nn.Conv2d(wide, width, 1, bias=False)
        self.each = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (wide, wide, width))
        self.squeeze, self.excite = nn.Conv2d(wide, 2, 1), nn.Conv2d(2, wide, 1)
        self.act, self.gate = act, gate

    def forward(self, x):
        h = self.act(self.norms[0](self.widen(x)))
        h = self.act(self.norms[1](self.each(h)))
        if self.gate:
            h = h * self.gate(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        return x + self.norms[2](self.narrow(h))


@cases.isolated
def mobile(act, gate=None, *, seed=0):
    """A stem, two inverted residuals, a mean, a dense layer; EfficientNet-Lite has no gates and ReLU6."""
    torch.manual_seed(seed)
    stem = [nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)]
    body = [Inverted(6, act, gate), Inverted(6, act, gate), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    net = nn.Sequential(*stem, cases.Called(act), *body).train()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    net(torch.rand(32, *SHAPE, generator=cases.generator(1)))  # running statistics
    return net.eval().double()


def worst(net, x, attribution=attributions.saliency, *, k=10, radius=4 / 255, effort=QUICK, ascend_on=None):
    ball = balls.Ball("linf", radius)
    found = attacks.auto(
        attribution, net, x, ball, k=k, effort=effort, generator=cases.generator(), ascend_on=ascend_on
    )
    return found, found.table[found.table["part"] == "worst"]


KINDS = {
    "MobileNetV2, EfficientNet-Lite": ((F.relu6, None), (relu6, None)),
    "MobileNetV3": ((F.hardswish, F.hardsigmoid), (hardswish, hardsigmoid)),
    "modules in place": ((nn.ReLU6(inplace=True), nn.Hardsigmoid(inplace=True)), (relu6, hardsigmoid)),
    "modules of V3 in place": ((nn.Hardswish(inplace=True), nn.Hardsigmoid()), (hardswish, hardsigmoid)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_mobile_networks_are_attacked_as_the_same_function_written_with_relu(kind):
    own, plain = (mobile(*functions) for functions in KINDS[kind])
    x = torch.rand(6, *SHAPE, generator=cases.generator(2), dtype=torch.float64)
    assert torch.allclose(own(x), plain(x), rtol=1e-10)
    twins = [models.smooth_twin(plain, x, beta=beta) for beta in (5.0, 20.0)]
    (found, table), (_, expected) = worst(own, x), worst(plain, x, ascend_on=twins)
    assert {"unseat, β=5", "unseat, β=20"} <= set(found.table["part"])
    for measure in ("top_k", "spearman", "cosine"):
        assert table[measure].to_numpy() == pytest.approx(expected[measure].to_numpy(), abs=1e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_mobile_networks_of_transformers_are_attacked_through_twins(version):
    transformers = pytest.importorskip("transformers")
    kind = f"MobileNetV{version}"
    sizes = {"image_size": 32, "depth_multiplier": 0.25, "num_labels": 4, "num_channels": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")(**sizes))
        net.train()(torch.rand(16, 3, 32, 32, generator=cases.generator(1)))
    net = swap.ImageClassifier(net.eval(), mean=0.5, std=0.5).double()
    x = torch.rand(2, 3, 32, 32, generator=cases.generator(2), dtype=torch.float64)
    assert models.kinks(net, x) == ["hardtanh"]
    found, table = worst(net, x, effort=attacks.Effort(steps=2, restarts=1, draws=1, walk=0, betas=(5.0,)))
    assert "unseat, β=5" in set(found.table["part"])
    assert (table["counted"] == 1).all()


class Mixed(nn.Module):
    """Two hidden layers with an activation given as a function, and something after."""

    def __init__(self, act, after=lambda z: z):
        super().__init__()
        self.layers, self.act, self.after = cases.mlp(nn.ReLU(), width=24, seed=1), act, after

    def forward(self, x):
        for layer in self.layers:
            x = self.act(x) if isinstance(layer, nn.ReLU) else layer(x)
        return self.after(x)


def cap(z):
    return 10 * torch.tanh(z / 10)


def one_class(z):
    return torch.where((z.argmax(1) == 1)[:, None], cap(z), z)


HAND = {
    "where": lambda h: torch.where(h > 0, h, 0.0),
    "product": lambda h: h * (h > 0),
    "detached": lambda h: h * (h.detach() > 0),
    "fill": lambda h: h.masked_fill(h < 0, 0.0),
}


@pytest.mark.in_turn(4)
@pytest.mark.parametrize("after", [cap, one_class, nn.Identity()])
@pytest.mark.parametrize("name", HAND)
def test_relus_written_by_hand_are_attacked_as_strongly_as_relus(name, after):
    x, effort = cases.images(12), attacks.Effort(steps=15, restarts=1, draws=2, walk=2)
    found, table = worst(Mixed(HAND[name], after), x, k=4, radius=0.1, effort=effort)
    _, expected = worst(Mixed(F.relu, after), x, k=4, radius=0.1, effort=effort)
    assert {"", ", β=5", ", β=10", ", β=50"} == set(found.audits)
    noise = found.table[found.table["part"] == "noise"]
    for measure in ("top_k", "spearman", "cosine"):
        lost, most = (noise[measure].mean() - each[measure].mean() for each in (table, expected))
        assert lost > 0.8 * most > 0.05


def test_the_relu_of_a_fused_encoder_is_attacked_through_twins():
    from test_models_smooth import encoder

    net, x = encoder().requires_grad_(False), cases.images(6)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found, _ = worst(net, x, k=4, radius=0.1)
        twins = [models.smooth_twin(net, x, beta=beta) for beta in (5.0, 20.0)]
        assert found.audits[""].refused == (", β=5" in found.audits)
        twin_audits = worst(net, x, k=4, radius=0.1, ascend_on=twins)[0].audits
    assert not any(audit.refused for audit in twin_audits.values())


@pytest.mark.parametrize("act", [F.gelu, F.hardsigmoid])
def test_a_missing_second_derivative_is_named_unless_a_twin_has_one(act):
    net, x = Mixed(act), cases.images(12)
    assert (worst(net, x, k=4, radius=0.1)[1]["counted"] == 1).all()

    def fused(h):
        return F.scaled_dot_product_attention(*[h.view(len(h), 1, 6, 4)] * 3).flatten(1)

    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION),
        pytest.raises(BlindError, match=r"model uses fused attention .* without a second derivative"),
    ):
        worst(Mixed(fused), x, k=4, radius=0.1)


def test_a_network_of_steps_or_a_dead_one_has_no_map_and_was_not_attacked():
    x = cases.images(12)
    assert worst(Mixed(torch.sign), x, k=4, radius=0.1)[1]["top_k"].isna().all()
    dead = Mixed(lambda h: F.relu(h - 1e3))
    assert worst(dead, x, k=4, radius=0.1)[1]["top_k"].isna().all()


def test_what_no_twin_stands_for_is_refused_as_blind_and_not_attacked_where_that_is_no_error():
    def stacked(h):
        return torch.stack([h, torch.zeros_like(h)]).sort(0).values[1]

    x = cases.images(12)
    for act, sentence in ((stacked, "model keeps kinks"), (lambda h: (3 * h).round() + h, "model runs round")):
        with pytest.raises(BlindError, match=sentence):
            worst(Mixed(act), x, k=4, radius=0.1)
    how = {"ball": balls.Ball("linf", 0.1), "k": 4, "generator": cases.generator(), "effort": QUICK, "refuse": False}
    table = robustness.attribution_robustness(Mixed(stacked), x, attributions={"s": attributions.saliency}, **how)
    assert table.loc[table["attack"] == "worst", "top_k"].isna().all()


def test_max_pools_are_softened_where_the_attack_needs_it_and_only_there():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = cases.conv(nn.ReLU())[0], cases.filled(cases.isolated(nn.Linear)(3, 4), 2)

        def forward(self, x):
            return self.head(F.max_pool2d(F.relu(self.conv(3 * x)), 2).flatten(1))

    x = cases.images(12)
    found, table = worst(Pooled().eval(), x, k=4, radius=0.1)
    assert found.climbed.double().mean() > 0.8 and found.audits[""].refused and not found.audits[", β=5"].refused
    assert table["cosine"].mean() < 0.99
    with torch.enable_grad():
        twin = models.smooth_twin(Pooled().eval(), x, beta=1e5, pools=True)
    assert torch.allclose(twin(x), Pooled().eval()(x), atol=1e-4)


def test_a_twin_may_be_built_on_black_images_whose_max_pools_are_ties():
    black = torch.zeros(3, 2, 6, 6, dtype=torch.float64)
    conv = cases.isolated(nn.Conv2d)(2, 3, 3, bias=False)
    head = cases.isolated(nn.Linear)(12, 4)
    model = cases.filled(nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), head), 0)
    black[0, 0, 2, 2] = 1.0
    models.smooth_twin(model, black, beta=10.0)
    how = {"k": 4, "effort": QUICK, "generator": cases.generator()}
    try:
        found = attacks.auto(attributions.deep_lift, model, black, balls.Ball("linf", 0.1), **how)
    except BlindError as refusal:
        assert "derivative does not predict" in str(refusal)
    else:
        assert found.climbed.any()


def test_a_function_that_needs_a_twin_is_refused_in_a_sentence(unchecked):
    network = cases.mlp(nn.ReLU())
    how = {"k": 2, "effort": QUICK, "generator": cases.generator()}
    with pytest.raises(BlindError, match=r"^model is a function; it must be a Module"):
        attacks.auto(attributions.saliency, lambda x: network(x), cases.images(), balls.Ball("linf", 0.1), **how)


def test_maps_that_are_not_a_number_are_refused_by_tables_as_by_the_attack():
    class Roots(nn.Module):
        def forward(self, x):
            return Mixed(F.gelu)(x) + (x.flatten(1) - 0.5).pow(2).pow(0.75).sum(1)[:, None]

    x = cases.images(4)
    x[:, 0, 0, 0] = 0.5
    how = {"ball": balls.Ball("linf", 0.1), "k": 4, "generator": cases.generator(), "effort": QUICK}
    sentence = "attribution saliency gives NaN or infinity on 4 of 4 images"
    with pytest.raises(ValueError, match=sentence):
        attacks.auto(attributions.saliency, Roots(), x, how.pop("ball"), **how)
    with pytest.raises(ValueError, match=sentence):
        robustness.attribution_robustness(
            Roots(), x, attributions={"s": attributions.saliency}, ball=balls.Ball("linf", 0.1), **how
        )


# ------------------------------------------------------------------ what a grey level does not move, and masked classes


class Grouped(nn.Module):
    """GroupSort, Maxout, or a linear network: what the straight pieces are glued by."""

    def __init__(self, glue):
        super().__init__()
        self.body, self.glue = cases.filled(cases.isolated(nn.Linear)(2 * 6 * 6, 12).double(), seed=SEED), glue
        self.head = cases.filled(cases.isolated(nn.Linear)(12, 4).double(), seed=SEED)

    def forward(self, x):
        return self.head(self.glue(self.body(x.flatten(1))))


SEED = 1  # no kink within a grey level of the image, some inside the ball
GLUES = {
    "GroupSort": lambda h: h.view(-1, 6, 2).sort(2)[0].flatten(1),
    "Maxout": lambda h: h.view(-1, 4, 3).amax(2).repeat(1, 3),
    "linear": lambda h: 2 * h,
}


@pytest.mark.parametrize("glue", GLUES)
def test_a_map_that_no_grey_level_moves_is_looked_at_across_the_ball(glue):
    x = torch.rand(1, 2, 6, 6, generator=cases.generator(), dtype=torch.float64)
    model = Grouped(GLUES[glue]).eval()
    how = {"k": 4, "effort": QUICK, "generator": cases.generator()}
    run = partial(attacks.auto, attributions.saliency, model, x, balls.Ball("linf", 0.2), **how)
    if glue == "GroupSort":
        with pytest.raises(BlindError, match="model keeps kinks that a smooth twin cannot replace"):
            run()
        with pytest.raises(BlindError, match="pass ascend_on"):
            run(ascend_on=[model])
        return
    found = run()
    assert not found.audits[""].moved.any()
    assert bool(found.climbed.all()) is (glue == "Maxout")
    assert bool((found.table["cosine"] < 0.99).any()) is (glue == "Maxout")


@pytest.mark.parametrize("act", [F.relu, torch.tanh])
def test_a_masked_class_changes_no_attack(act):
    class Masked(nn.Module):
        def __init__(self, inner, mask):
            super().__init__()
            self.inner, self.mask = inner, torch.tensor([0.0, 0.0, 0.0, mask], dtype=torch.float64)

        def forward(self, x):
            return self.inner(x) + self.mask

    x = cases.images(6)
    plain, masked = (worst(Masked(Mixed(act), mask), x, k=4, radius=0.1)[1] for mask in (-1e3, -torch.inf))
    assert masked["counted"].all()
    assert masked["cosine"].tolist() == pytest.approx(plain["cosine"].tolist())
