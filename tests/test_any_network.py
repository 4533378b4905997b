"""Random networks of every build and spelling, to every public function: the right number, or one sentence.

An answer is held against an oracle that shares nothing with it (difference quotients in double precision, dense
matrices, the parts put together by hand). A refusal is a ValueError of one sentence. Nothing else may come out.
"""

import math
import random
from collections import Counter
from functools import partial

import cases
import ordinary
import pytest
import torch
from attrobust import attacks, attributions, curvature, faithfulness, robustness
from attrobust.balls import Ball
from by_day import due
from torch import nn
from torch.nn import functional as F

SHAPE, CLASSES, N = (2, 6, 6), 4, 3
BALL = Ball("linf", 4 / 255)
QUICK = attacks.Effort(steps=3, restarts=1, draws=2, walk=2)
STEP = 1e-8

#: Every spelling of a kink, and smooth activations.
KINKS = {
    "relu": F.relu, "module": nn.ReLU(), "in place": nn.ReLU(inplace=True), "method": torch.Tensor.relu,
    "where": lambda h: torch.where(h > 0, h, 0.0), "mask": lambda h: h * (h > 0), "clamp": lambda h: h.clamp(min=0),
    "maximum": lambda h: torch.maximum(h, torch.zeros_like(h)), "filled": lambda h: h.masked_fill(h < 0, 0.0),
    "relu6": F.relu6, "hardtanh": F.hardtanh, "hardswish": F.hardswish,
    "leaky": partial(F.leaky_relu, negative_slope=0.1), "hardsigmoid": F.hardsigmoid, "absolute": torch.abs,
    "half sum": lambda h: (h + h.abs()) / 2,
}  # fmt: skip
SMOOTH = {"gelu": F.gelu, "tanh": torch.tanh, "silu": F.silu, "softplus": F.softplus, "mish": F.mish, "erf": torch.erf}
#: A kink f with f(a h) = a f(h) for a > 0, under which a network without biases is one too.
HOMOGENEOUS = {
    "relu",
    "module",
    "in place",
    "method",
    "where",
    "mask",
    "clamp",
    "maximum",
    "filled",
    "leaky",
    "absolute",
}


class Any(nn.Module):
    """A stem, two blocks of one build with one activation, and a head."""

    def __init__(self, build: str, name: str, act, draw: random.Random) -> None:
        super().__init__()
        self.build, self.name, self.act, width = build, name, act, draw.choice([3, 4])
        dense = build in ("dense", "gated", "attention")
        self.stem = nn.Linear(12, width) if build == "attention" else nn.Linear(72, width) if dense else None
        self.stem = self.stem or nn.Conv2d(2, width, 3, draw.choice([1, 2]), draw.choice([0, 1]))
        conv = partial(nn.Conv2d, width, width, 3, 1, 1)
        self.blocks = nn.ModuleList(nn.Linear(width, width) if dense else conv() for _ in range(2))
        self.gate, self.norm = nn.Linear(width, width), nn.LayerNorm(width) if dense else nn.GroupNorm(1, width)
        self.normed, self.qkv = draw.random() < 0.5 or build == "normalised", nn.Linear(width, 3 * width)
        self.pool = draw.choice([F.avg_pool2d, F.max_pool2d]) if build == "conv" else None
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        build, residual = self.build, self.build in ("residual", "gated", "attention", "normalised")
        if build == "attention":
            x = F.unfold(x, (3, 2), stride=(3, 2)).mT
        elif not isinstance(self.stem, nn.Conv2d):
            x = x.flatten(1)
        h = self.stem(x)
        for i, block in enumerate(self.blocks):
            inner = self.norm(h) if self.plain is False else h
            if build == "attention" and i == 0:
                q, k, v = self.qkv(inner).chunk(3, -1)
                after = (q @ k.mT / 2).softmax(-1) @ v
            else:
                after = self.act(block(inner) + 0.0)
            after = after * torch.sigmoid(self.gate(inner)) if build == "gated" else after
            h = h + after if residual else after
        if self.pool is not None:
            h = self.pool(h, 2)
        h = h.flatten(2).mean(2) if h.ndim == 4 else h.mean(1) if h.ndim == 3 else h
        return self.head(h)

    @property
    def plain(self) -> bool:
        """Whether it is made of linear layers, activations and pools alone."""
        return self.build in ("dense", "conv", "residual") or (self.build != "normalised" and not self.normed)

    @property
    def ruled(self) -> bool:
        return self.build in ("dense", "conv", "residual")


def drawn(seed: int) -> Any:
    draw = random.Random(seed)
    build = draw.choice(["dense", "conv", "residual", "gated", "normalised", "attention"])
    name, act = draw.choice([*KINKS.items(), *SMOOTH.items()])
    return cases.filled(cases.isolated(Any)(build, name, act, draw), seed)


def directional(function, x, v, step=STEP):
    return (function(x + step * v) - function(x - step * v)) / (2 * step)


def close(found, right, tolerance=1e-4):
    scale = max(float(right.abs().max()), 1e-6)
    assert float((found - right).abs().max()) <= tolerance * scale, f"{found} is not {right}"


class Trial:
    """One network, its images, and what every function must say of them."""

    def __init__(self, model, seed, shape=SHAPE, step=STEP, tolerance=1e-4):
        self.model, self.step, self.tolerance = model, step, tolerance
        self.x = 0.25 + 0.5 * torch.rand(N, *shape, generator=cases.generator(seed), dtype=torch.float64)
        self.y = model(self.x).argmax(1)
        self.v = torch.randn(self.x.shape, generator=cases.generator(seed + 1), dtype=torch.float64)

    def own(self, x):
        return self.model(x).detach().gather(1, self.y[:, None])[:, 0]

    def along(self, maps):
        return (maps.detach() * self.v).flatten(1).sum(1)

    def held(self, maps, places):
        """Maps along a direction, against the mean of difference quotients at some places."""
        quotients = [directional(self.own, at, self.v, self.step) for at in places]
        close(self.along(maps), sum(quotients) / len(quotients), self.tolerance)

    def saliency(self):
        self.held(attributions.saliency(self.model, self.x, self.y), [self.x])

    def input_x_gradient(self):
        self.held(attributions.input_x_gradient(self.model, self.x, self.y) / self.x, [self.x])

    def integrated_gradients(self):
        maps = attributions.integrated_gradients(self.model, self.x, self.y, steps=5, chunk=4)
        self.held(maps / self.x, [(k + 0.5) / 5 * self.x for k in range(5)])

    def smooth_grad(self):
        maps = attributions.smooth_grad(self.model, self.x, self.y, sigma=0.1, samples=3, generator=cases.generator(7))
        draw = cases.generator(7)
        noise = [torch.randn(self.x.shape, generator=draw, dtype=self.x.dtype) for _ in range(3)]
        self.held(maps, [self.x + 0.1 * n for n in noise])

    def deep_lift(self):
        maps = attributions.deep_lift(self.model, self.x, self.y)
        close(maps.detach().flatten(1).sum(1), self.own(self.x) - self.own(0 * self.x))

    def lrp(self):
        maps = attributions.lrp(self.model, self.x, self.y, epsilon=0.0)
        if self.model.name in HOMOGENEOUS:
            self.held(maps / self.x, [self.x])

    def attack(self):
        how = {"k": 5, "effort": QUICK, "generator": cases.generator()}
        found = attacks.auto(attributions.saliency, self.model, self.x, BALL, **how)
        worst = found.table[found.table["part"] == "worst"].set_index("image")
        for measure, at in found.x.items():
            assert float((at - self.x).abs().max()) <= BALL.radius + 1e-9 and at.min() >= 0 and at.max() <= 1
            assert torch.equal(self.model(at).argmax(1), self.y)
            again = robustness.compare(self.model, attributions.saliency, self.x, at, k=5)
            reached = found.counted.numpy()
            told, right = (torch.tensor(t[measure].to_numpy()[reached]) for t in (worst, again))
            assert torch.equal(told.isnan(), right.isnan())  # a clean map of zeros explains nothing
            close(told.nan_to_num(), right.nan_to_num())
        if not found.climbed.any():  # a linear network's map: nothing could be moved by any iterate
            moved = attributions.saliency(self.model, self.x + BALL.radius, self.y)
            close(moved.detach(), attributions.saliency(self.model, self.x, self.y).detach(), 1e-9)

    def hessian(self):
        """Against difference quotients of the gradient: torch.func.hessian is off by a third through layer norm."""
        h = curvature.ParameterHessian(self.model, self.loss, self.x, self.y)
        v = torch.randn(h.size, generator=cases.generator(), dtype=torch.float64)
        found, gaps = h.matvec(v[None])[0], []
        for step in (1e-5, 1e-6, 1e-7):  # one that crosses no kink
            right = (self.gradient(h, step * v) - self.gradient(h, -step * v)) / (2 * step)
            gaps.append(float((found - right).norm() / right.norm().clamp_min(1e-6)))
        assert min(gaps) <= 1e-4, gaps
        values = torch.linalg.eigvalsh(self.dense(h))
        top = curvature.sharpness(h, generator=cases.generator())
        assert abs(top.value - float(values[-1])) <= 10 * top.error + 1e-3 * abs(float(values[-1])) + 1e-9
        mass = curvature.trace(h, generator=cases.generator())
        assert abs(mass.value - float(values.sum())) <= 6 * mass.error + 1e-6 * float(values.abs().sum())

    def dense(self, h):
        """The whole matrix in one batched pass, which is faster; row by row where torch cannot batch an operation."""
        eye, mean = torch.eye(h.size).double(), self.loss(self.model(self.x), self.y).mean()
        how = {"allow_unused": True, "materialize_grads": True}
        slope = torch.cat([g.flatten() for g in torch.autograd.grad(mean, h.parameters, create_graph=True, **how)])
        try:
            found = torch.autograd.grad(slope, h.parameters, eye, is_grads_batched=True, allow_unused=True)
        except RuntimeError:
            return h.matvec(eye)
        zeros = (eye.new_zeros(h.size, p.numel()) for p in h.parameters)
        return torch.cat([none if g is None else g.flatten(1) for g, none in zip(found, zeros, strict=True)], 1)

    def loss(self, logits, y):
        return F.cross_entropy(logits, y, reduction="none")

    def gradient(self, h, v):
        """Gradient of the mean loss where the weights are moved by v."""
        parts = zip(self.model.named_parameters(), v.split([p.numel() for p in h.parameters]), strict=True)
        moved = {name: (p.detach() + part.view_as(p)).requires_grad_() for (name, p), part in parts}
        loss = self.loss(torch.func.functional_call(self.model, moved, (self.x,)), self.y).mean()
        found = torch.autograd.grad(loss, list(moved.values()), allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    def input_curvature(self):
        h = curvature.InputHessian(self.model, self.x, self.y)
        dense = cases.input_hessians(lambda at, i: self.model(at)[:, self.y[i]], self.x)
        right = torch.linalg.eigvalsh(dense).abs().amax(1)
        found = curvature.input_curvature(h, generator=cases.generator(), steps=40)
        assert bool((found.value - right).abs().le(10 * found.error + 1e-3 * right + 1e-9).all())
        close(h.gradient.mul(self.v).flatten(1).sum(1), directional(self.own, self.x, self.v))

    def jacobian(self):
        found = curvature.input_jacobian(self.model, self.x)
        turned = torch.einsum("bcn,bn->bc", found, self.v.flatten(1))
        close(turned, directional(lambda at: self.model(at).detach(), self.x, self.v))

    def deletion(self):
        order = self.x.sum(1)
        curve = faithfulness.deletion(self.model, self.x, self.y, order, generator=cases.generator(), steps=4)
        ends = [self.model(at).softmax(1).gather(1, self.y[:, None])[:, 0] for at in (self.x, 0 * self.x)]
        close(curve[:, [0, -1]], torch.stack(ends, 1).detach())


DEFINED = [
    "saliency", "input_x_gradient", "integrated_gradients", "smooth_grad", "attack", "hessian", "input_curvature",
    "jacobian", "deletion",
]  # fmt: skip
BY_RULES = ["deep_lift", "lrp"]


def outcome(trial: Trial, function: str) -> str:
    """Answered rightly, or refused; anything else is an error."""
    try:
        getattr(trial, function)()
    except ValueError as refusal:
        said = str(refusal)
        assert 10 < len(said) <= 450 and "\n" not in said, said
        return "refused"
    return "answered"


def examined(seeds) -> Counter:
    counts = Counter()
    for seed in seeds:
        model = drawn(seed)
        for function in DEFINED + BY_RULES:
            try:
                found = outcome(Trial(model, seed), function)
            except Exception as error:
                raise AssertionError(f"network {seed}, {model.build}, {model.name}: {function}") from error
            if function in DEFINED or model.ruled:
                counts[found] += 1
                counts[function, found] += 1
            else:
                assert found == "refused", f"network {seed}, {model.build}, {model.name}: {function} {found}"
    return counts


def enough(counts: Counter) -> None:
    total = counts["answered"] + counts["refused"]
    assert counts["answered"] >= 0.85 * total, counts


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("first", range(0, 40, 10))
def test_ten_random_networks_are_answered_rightly_or_refused(first):
    enough(examined(range(first, first + 10)))


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_five_hundred_random_networks_are_answered_rightly_or_refused():
    """A hundred a day; all with `EVERY=1`."""
    for first in due(range(40, 540, 100)):
        enough(examined(range(first, first + 100)))


@pytest.mark.in_turn(15)
@pytest.mark.parametrize("name", ordinary.NETWORKS)
def test_an_ordinary_network_is_answered_by_everything(name):
    if name.endswith("transformers"):
        pytest.importorskip("transformers")
    # Attention of transformers takes its softmax in single precision, which small steps drown in.
    how = {"step": 1e-3, "tolerance": 0.04} if name in ordinary.SINGLE else {}
    trial = Trial(ordinary.NETWORKS[name](), 0, ordinary.SHAPE, **how)
    for function in ("saliency", "integrated_gradients", "smooth_grad", "attack"):
        assert outcome(trial, function) == "answered", function
    h = curvature.ParameterHessian(trial.model, trial.loss, trial.x, trial.y)
    top = curvature.sharpness(h, generator=cases.generator(), steps=10)
    assert math.isfinite(top.value) and top.value != 0
    found = curvature.input_curvature(
        curvature.InputHessian(trial.model, trial.x, trial.y), generator=cases.generator()
    )
    assert bool(found.value.isfinite().all())


def test_hard_gates_are_attacked_through_twins_and_their_curvature_is_refused():
    """torch has no second derivative of hardsigmoid."""
    trial = Trial(ordinary.drawn(ordinary.mobilenet_v3, 0), 0, ordinary.SHAPE)
    assert outcome(trial, "attack") == "answered"
    with pytest.raises(ValueError, match="without a second derivative; write it out in others"):
        curvature.sharpness(
            curvature.ParameterHessian(trial.model, trial.loss, trial.x, trial.y), generator=cases.generator()
        )
