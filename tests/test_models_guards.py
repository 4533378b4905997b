"""The border: what cannot be explained is refused in one sentence, found by measuring; looking changes nothing."""

import gc
import math
import weakref
from functools import partial

import cases
import numpy as np
import pytest
import torch
import torch.fx
import torch.nn.utils.prune
import torch.utils.checkpoint
from attrobust import attacks, attributions, curvature, faithfulness, models, robustness
from attrobust.balls import Ball
from attrobust.models import guards
from torch import nn
from torch.nn import functional as F

X, Y = cases.images(), cases.labels()
BALL = Ball("linf", 8 / 255)

#: Every way in: what a caller hands a network to.
WAYS = {
    "saliency": lambda m, x, y: attributions.saliency(m, x, y),
    "integrated": lambda m, x, y: attributions.integrated_gradients(m, x, y, steps=2),
    "smooth": lambda m, x, y: attributions.smooth_grad(m, x, y, sigma=0.1, samples=2, generator=cases.generator()),
    "deep_lift": lambda m, x, y: attributions.deep_lift(m, x, y),
    "lrp": lambda m, x, y: attributions.lrp(m, x, y),
    "guided": lambda m, x, y: attributions.guided_backprop(m, x, y),
    "deletion": lambda m, x, y: faithfulness.deletion(m, x, y, x.sum(1), generator=cases.generator(), steps=2),
}
UNLABELLED = {
    "attack": lambda m, x: attacks.auto(
        attributions.saliency, m, x, BALL, k=2, effort=attacks.Effort(steps=1, restarts=1), generator=cases.generator()
    ),
    "robustness": lambda m, x: robustness.attribution_robustness(
        m, x, attributions={"s": attributions.saliency}, ball=BALL, k=2, generator=cases.generator()
    ),
    "faithfulness": lambda m, x: faithfulness.insertion_deletion(
        m, x, attributions={"s": attributions.saliency}, generator=cases.generator(), steps=2
    ),
    "jacobian": lambda m, x: curvature.input_jacobian(m, x),
}
#: Curvature says some of this in words of its own.
OWN = {"jacobian": "^(model|x|torch.inference_mode|.* was made)"}
ALL = WAYS | {name: lambda m, x, y, way=way: way(m, x) for name, way in UNLABELLED.items()}


class Lambda(nn.Module):
    """A network that is followed by a function, with a weight and a buffer of its own."""

    def __init__(self, function, original=None):
        super().__init__()
        self.original, self.function = original or cases.mlp(), function
        self.register_buffer("count", torch.zeros(()))
        self.eval()

    def forward(self, x):
        return self.function(self.original(x), self)


def counted(z, m):
    m.count += 1
    return z


def own_randomness(z, m):
    return z + torch.randn(z.shape, generator=m.draw, dtype=z.dtype)


def detached_half(z, m):
    return z + z.detach().square()


def test_an_ordinary_network_passes_and_is_measured_once():
    seen = []
    model = Lambda(lambda z, m: (seen.append(len(z)), z)[1])
    guards.classifier(model, X, Y)
    first = len(seen)
    guards.classifier(model, X, Y)
    assert first > 3 and len(seen) == first
    guards.classifier(model.train(), X, Y)  # the same answers, but it might have been otherwise
    assert len(seen) > first


def test_what_was_measured_is_forgotten_with_the_network():
    model = Lambda(lambda z, m: z)
    guards.classifier(model, X, Y)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("way", ALL)
@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda z, m: F.dropout(z, 0.5, training=True), "answers the same images differently.*it is random"),
        (lambda z, m: z + torch.bernoulli(torch.full_like(z, 0.5)), "answers the same images differently"),
        (own_randomness, "answers the same images differently"),
        (lambda z, m: z - z.mean(0), "answers an image differently alone and in company.*couples the images"),
        (
            lambda z, m: F.batch_norm(z, None, None, training=True),
            "does not run on x of shape .*: Expected more than 1 value per channel",
        ),
        (lambda z, m: (z - z.mean(1, keepdim=True)).relu() if len(z) > 1 else z, "answers an image differently alone"),
        (counted, "changes its buffer 'count'"),
        (lambda z, m: {"logits": z}, "returned a dict; wrap it"),
        (lambda z, m: (z, z), "returned a tuple; wrap it"),
        (lambda z, m: z[:, :, None], r"returned shape \(\d, 4, 1\)"),
        (lambda z, m: z.argmax(1), r"returned (shape \(\d,\) and dtype torch.int64|one logit)"),
    ],
    ids=["dropout", "bernoulli", "own", "centred", "batch", "size", "buffer", "dict", "tuple", "rank", "decision"],
)
def test_a_network_that_is_not_its_own_function_of_each_image_is_refused(function, sentence, way, unchecked):
    model = Lambda(function)
    model.draw = cases.generator()
    with pytest.raises(ValueError, match=OWN.get(way, f"^model {sentence}")):
        ALL[way](model, X, Y)
    assert float(model.count) == 0


@pytest.mark.parametrize("way", ALL)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (detached_half, "fine"),
        (lambda z, m: z.detach() + 0 * z.sum(), "fine"),
        (lambda z, m: torch.from_numpy(z.detach().numpy()) + 0.0 * z, "fine"),
        (lambda z, m: (z / 8).round() * 8 + z - z.detach(), "coarse"),  # straight through
    ],
    ids=["half", "all", "numpy", "rounded"],
)
def test_a_way_on_which_the_gradient_is_cut_off_is_refused(function, name, way):
    if way == "jacobian" and name == "coarse":
        pytest.skip("the step that it is the derivative of is larger than curvature looks")
    with pytest.raises(ValueError, match=OWN.get(way, "^model cuts the gradient off")):
        ALL[way](Lambda(function), X, Y)


def test_the_module_that_cuts_is_named():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = nn.Sequential(cases.mlp()), nn.Linear(4, 4).double()

        def forward(self, x):
            with torch.no_grad():
                features = self.backbone(x)
            return self.head(features)

    with pytest.raises(ValueError, match=r"^model cuts the gradient off in 'backbone"):
        attributions.saliency(cases.isolated(Frozen)().eval(), X, Y)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (torch.tensor([1]), r"target has shape \(1,\) and dtype torch.int64; it must hold 3 class indices"),
        (torch.tensor([0, 1, 4]), r"target spans \[0, 4\]; class indices must lie in \[0, 3\]"),
        (torch.tensor([0, 1, -1]), r"target spans \[-1, 1\]"),
        (torch.tensor([0.0, 1.0, 2.0]), "target has shape .* dtype torch.float32"),
        (torch.tensor([True, False, True]), "target has shape .* dtype torch.bool"),
        (torch.eye(4)[:3].long(), r"target has shape \(3, 4\)"),
        ([0, 1, 2], "target is a list; it must be a torch tensor of 3 class indices"),
        (np.array([0, 1, 2]), "target is a ndarray"),
        (1, "target is a int"),
    ],
)
def test_labels_that_are_not_one_class_index_an_image_are_refused_everywhere_alike(target, sentence, way, unchecked):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        WAYS[way](cases.mlp(), X, target)


@pytest.mark.parametrize("way", ALL)
@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (X.numpy(), "x is a ndarray; it must be a torch tensor"),
        ((255 * X).to(torch.uint8), "x has dtype torch.uint8; it must be floating-point"),
        (X[:0], r"x has shape \(0, 2, 3, 3\)"),
        (X.to("meta"), "x lies on the device meta|x has shape"),
        (X * torch.nan, "x holds 54 (pixels|entries|values)"),
        (X.float(), "model does not run on x of shape .* and dtype torch.float32"),
        (torch.cat([X, X], 1), "model does not run on x of shape"),
    ],
    ids=["numpy", "integers", "empty", "meta", "nan", "dtype", "channels"],
)
def test_images_that_a_network_cannot_be_differentiated_at_are_refused(x, sentence, way, unchecked):
    with pytest.raises(ValueError, match=OWN.get(way, f"^({sentence})")):
        ALL[way](cases.mlp(), x, Y[: len(x)])


@pytest.mark.parametrize("way", ALL)
def test_inference_mode_is_refused(way, unchecked):
    with torch.inference_mode(), pytest.raises(ValueError, match=r"^(x|torch).*inference.mode"):
        ALL[way](cases.mlp(), X, Y)
    with torch.inference_mode():
        model = cases.mlp()
    with pytest.raises(ValueError, match=r"inference.mode"):
        ALL[way](model, X, Y)


@pytest.mark.parametrize("way", ALL)
def test_a_call_changes_no_buffer_flag_hook_or_random_number(way):
    model = nn.Sequential(cases.conv()[0], nn.BatchNorm2d(3).double(), nn.GELU(), *cases.conv()[2:]).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    if way not in ("lrp",):
        ALL[way](model, X, Y)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("way", ALL)
def test_batch_statistics_of_train_mode_are_refused_and_left_as_found(way):
    model = nn.Sequential(cases.conv()[0], nn.BatchNorm2d(3).double(), nn.GELU(), *cases.conv()[2:]).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        ALL[way](model, X, Y)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training


def test_train_mode_without_anything_that_minds_it_is_no_reason_to_refuse():
    model = cases.mlp()
    eval_map = attributions.saliency(model, X, Y)
    assert torch.equal(eval_map, attributions.saliency(model.train(), X, Y))


def test_one_logit_is_explained_and_its_decisions_need_both_classes():
    one = nn.Sequential(cases.linear(), cases.isolated(nn.Linear)(4, 1).double())
    assert attributions.saliency(one, X, torch.zeros(3, dtype=torch.int64)).shape == X.shape
    for way in ("deletion", *UNLABELLED):
        if way == "jacobian":
            continue
        with pytest.raises(ValueError, match=r"models\.TwoLogits"):
            ALL[way](one, X, torch.zeros(3, dtype=torch.int64))
    both = models.TwoLogits(one)
    assert torch.allclose(both(X).softmax(1)[:, 1], one(X)[:, 0].sigmoid())
    found = UNLABELLED["attack"](both, X)
    kept = torch.stack([(one(at) > 0) == (one(X) > 0) for at in found.x.values()])
    assert bool(kept.all())


def test_a_dead_or_constant_network_has_a_map_of_zeros_and_is_not_refused():
    dead = Lambda(lambda z, m: (z - 1e6).relu() + z.new_tensor([1.0, 2.0, 3.0, 4.0]))
    assert not attributions.saliency(dead, X, Y).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [cases.mlp, cases.conv, lambda: cases.mlp(nn.ReLU()), lambda: cases.conv(nn.ReLU())])
def test_networks_in_lower_precision_pass(make, dtype):
    guards.classifier(make().to(dtype), X.to(dtype), Y)


def fake_quantised(levels, seed):
    """A network in single precision that rounds weights and activations to so many levels, straight through."""

    def rounded(h, low, high):
        scale = (high - low) / levels
        return torch.fake_quantize_per_tensor_affine(h, scale, round(-low / scale), 0, levels)

    class Rounding(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(64, 16), nn.Linear(16, 10)

        def forward(self, x):
            h = F.linear(rounded(x.flatten(1), 0, 1), rounded(self.first.weight, -0.5, 0.5), self.first.bias)
            return F.linear(rounded(h.relu(), 0, 2), rounded(self.second.weight, -0.5, 0.5), self.second.bias)

    return cases.filled(cases.isolated(Rounding)(), seed).float()


@pytest.mark.parametrize("seed", range(6))
def test_rounding_is_explained_where_larger_steps_agree_and_refused_where_none_does(seed):
    x, y = cases.images(6, seed, (1, 8, 8)).float(), torch.arange(6)
    assert attributions.saliency(fake_quantised(255, seed), x, y).any()
    for levels in (3, 7):
        with pytest.raises(ValueError, match=r"^model cuts the gradient off .*rounding"):
            attributions.saliency(fake_quantised(levels, seed), x, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [cases.mlp, cases.conv, lambda: cases.mlp(nn.ReLU()), lambda: cases.conv(nn.ReLU())])
def test_autocast_inside_a_network_is_explained_to_its_own_precision(make, dtype):
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain = make().float()

        def forward(self, x):
            with torch.autocast("cpu", dtype=dtype):
                return self.plain(x).float()

    found, right = attributions.saliency(Cast().eval(), X.float(), Y), attributions.saliency(make(), X, Y)
    assert (found - right).norm() < 16 * torch.finfo(dtype).eps * right.norm()


WRAPPED = {
    "fx": torch.fx.symbolic_trace,
    "parallel": nn.DataParallel,
    "spectral norm": lambda m: m.append(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)).double()).eval(),
    "weight norm": lambda m: m.append(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)).double()).eval(),
    "pruned": lambda m: nn.Sequential(*m[:-1], nn.utils.prune.l1_unstructured(m[-1], "weight", amount=0.5)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_networks_are_explained_attacked_and_have_curvature(name, act):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WRAPPED[name](cases.mlp(act)).eval()
    right = torch.autograd.functional.jacobian(lambda at: model(at).gather(1, Y[:, None]).sum(), X)
    assert torch.allclose(attributions.saliency(model, X, Y), right)
    assert bool(UNLABELLED["attack"](model, X).counted.all())
    assert bool(
        curvature.input_curvature(curvature.InputHessian(model, X, Y), generator=cases.generator()).value.ge(0).all()
    )


def test_a_cut_in_torchscript_is_refused_in_a_sentence():
    def half(z: torch.Tensor):
        return z + z.detach().square()

    scripted = torch.jit.trace(Lambda(lambda z, m: half(z)), X)
    for _ in range(3):
        with pytest.raises(ValueError, match=r"^model cuts the gradient off"):
            attributions.saliency(scripted, X, Y)


def test_a_layer_of_torchscript_has_no_grad_cam_and_its_network_no_rules():
    model, x = torch.jit.script(cases.conv(nn.ReLU())), X
    with pytest.raises(ValueError, match=r"^layer is TorchScript"):
        attributions.grad_cam(model, x, Y, layer=next(model.children()))
    for way in (attributions.deep_lift, attributions.lrp, attributions.guided_backprop):
        with pytest.raises(ValueError, match=r"for which .* has no rule: .* TorchScript"):
            way(model, x, Y)


def test_black_images_and_kinks_at_zero_are_no_cut():
    model = cases.conv(nn.ReLU())
    nn.init.zeros_(model[0].bias)
    guards.classifier(model, torch.zeros_like(X), Y)


class Twice(nn.Module):
    """One layer under two names, and run twice."""

    def __init__(self):
        super().__init__()
        self.first = cases.linear()[1]
        self.same = nn.Sequential(nn.Flatten(), self.first)
        self.again, self.head = cases.isolated(nn.Linear)(4, 4).double(), nn.Tanh()

    def forward(self, x):
        h = self.head(self.same(x))
        return self.again(self.head(self.again(h)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_under_two_names_comes_back_as_it_was(dtype):
    model, x = Twice().eval().to(dtype), X.to(dtype)
    before = dict(model.named_parameters(remove_duplicate=False))
    right = torch.autograd.functional.jacobian(lambda at: model(at)[:, 0].sum(), x)
    assert torch.allclose(attributions.saliency(model, x, 0 * Y), right)
    attributions.integrated_gradients(model, x, Y, steps=2)
    attributions.deep_lift(model, x, Y)
    hessian = curvature.ParameterHessian(model, cases.per_example_cross_entropy, x, Y)
    assert hessian.size == sum(p.numel() for p in model.parameters())
    assert curvature.sharpness(hessian, generator=cases.generator()).value > 0
    assert curvature.gauss_newton_trace(curvature.GaussNewton(model, x, Y)).value > 0
    after = dict(model.named_parameters(remove_duplicate=False))
    assert list(after) == list(before) and all(after[name] is p for name, p in before.items())


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda z, m: z if torch.is_grad_enabled() else 2 * z, "answers otherwise where gradients are off"),
        (lambda z, m: z * (1 + (np.random.rand() > 0.5)), "answers the same images differently"),  # noqa: NPY002
        (lambda z, m: {}["logits"], "does not run on x of shape .*: 'logits'"),
    ],
    ids=["grad mode", "numpy", "key"],
)
def test_more_that_is_no_function_of_the_image_is_refused(function, sentence):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(ValueError, match=f"^model {sentence}"):
        attributions.saliency(Lambda(function), X, Y)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_checkpointed_networks_are_explained():
    def checkpointed(z, m):
        return torch.utils.checkpoint.checkpoint(m.layer, z, use_reentrant=False)

    for dtype in (torch.float32, torch.float64):
        model = Lambda(checkpointed)
        model.layer = nn.Sequential(cases.isolated(nn.Linear)(4, 4), nn.Tanh())
        model = model.to(dtype)
        plain = nn.Sequential(model.original, model.layer)
        x = X.to(dtype)
        assert torch.allclose(attributions.saliency(model, x, Y), attributions.saliency(plain, x, Y))


def test_maps_and_baselines_of_another_size_are_refused(unchecked):
    how = {"generator": cases.generator(), "steps": 2}
    with pytest.raises(ValueError, match="importances are of 1 maps for 3 images"):
        faithfulness.deletion(cases.mlp(), X, Y, X[:1].sum(1), **how)
    with pytest.raises(ValueError, match="baseline is nan; it must be a finite number"):
        faithfulness.deletion(cases.mlp(), X, Y, X.sum(1), baseline=torch.nan, **how)
    with pytest.raises(ValueError, match="moved spans"):
        robustness.compare(cases.mlp(), attributions.saliency, X, 3 * X, k=2)


def test_kinks_of_a_network_in_train_mode_leave_its_statistics():
    model = nn.Sequential(cases.conv()[0], nn.BatchNorm2d(3).double(), nn.ReLU(), *cases.conv()[2:]).train()
    before = model[1].running_mean.clone()
    models.kinks(model, X)
    assert torch.equal(model[1].running_mean, before)
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        models.smooth_twin(model, X, beta=5.0)


def test_maps_of_a_diverged_network_are_nan():
    assert attributions.saliency(Lambda(lambda z, m: z * torch.nan), X, Y).isnan().all()


def test_a_network_that_was_met_and_then_hooked_patched_or_cast_is_looked_at_again():
    for change, sentence in (
        (lambda m: m[2].register_forward_hook(lambda module, i, o: F.dropout(o, training=True)), "it is random"),
        (lambda m: setattr(m[2], "forward", lambda h: h * torch.rand(())), "it is random"),
        (lambda m: m.float(), "does not run on x"),
    ):
        model = cases.mlp()
        attributions.saliency(model, X, Y)
        change(model)
        with pytest.raises(ValueError, match=sentence):
            attributions.saliency(model, X, Y)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: attacks.auto(attributions.saliency, m, X, 0.1, k=2, generator=cases.generator()), "ball is a float"),
        (lambda m: attacks.auto(attributions.saliency, m, X, BALL, k=2, generator=None), "generator is a NoneType"),
        (lambda m: attacks.auto(lambda *a: X[:1], m, X, BALL, k=2, generator=cases.generator()), "gives 1 maps for 3"),
        (lambda m: attacks.auto(lambda *a: None, m, X, BALL, k=2, generator=cases.generator()), "> is a NoneType"),
        (
            lambda m: robustness.attribution_robustness(
                m, X, attributions=[attributions.saliency], ball=BALL, k=2, generator=cases.generator()
            ),
            "attributions is a list; it must be a Mapping",
        ),
        (lambda m: attributions.grad_cam(m, X, Y, layer="3"), "layer is a str; it must be a Module"),
        (lambda m: attributions.smooth_grad(m, X, Y, sigma=0.1, samples=2, generator=0), "generator is a int"),
        (lambda m: faithfulness.deletion(m, X, Y, X.sum(1).numpy(), generator=cases.generator()), "s is a ndarray"),
        (lambda m: models.smooth_twin(lambda x: m(x), X, beta=5.0), "model is a function; it must be a Module"),
    ],
)  # fmt: skip
def test_arguments_of_another_kind_are_refused_in_a_sentence(call, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        call(cases.mlp())


@pytest.mark.parametrize("way", ALL)
@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda z, m: 2 * z if len(z) > 16 else z, "answers an image differently alone and among 20"),
        (lambda z, m: z - z.mean(0) if len(z) > 16 else z, "answers an image differently alone and among 20"),
        (lambda z, m: z[16] if len(z) > 16 else z, r"returned shape \(4,\)"),
        (lambda z, m: {}["z"] if len(z) > 16 else z, "does not run on x of shape"),
    ],
    ids=["size", "coupled", "shape", "error"],
)
def test_a_network_that_is_another_above_some_size_of_batch_is_refused(function, sentence, way):
    with pytest.raises(ValueError, match=f"^model ({sentence})"):
        ALL[way](Lambda(function), cases.images(20), cases.labels(20))


def test_a_batch_larger_than_any_before_costs_one_pass_and_no_other_does():
    seen = []
    model = Lambda(lambda z, m: (seen.append(len(z)), z)[1])
    guards.classifier(model, X)
    for n, passes in ((20, [20, 1]), (20, []), (9, []), (21, [21, 1])):
        seen.clear()
        guards.classifier(model, cases.images(n))
        assert seen == passes


def test_a_generator_of_the_networks_own_is_seen_to_move_and_comes_back():
    model = Lambda(lambda z, m: z + (torch.rand((), generator=m.draw) < 0.1) * 1e-3)
    model.draw = cases.generator()
    state = model.draw.get_state()
    with pytest.raises(ValueError, match="it is random"):
        attributions.saliency(model, X, Y)
    assert torch.equal(model.draw.get_state(), state)


def test_scripted_and_frozen_networks_are_explained():
    model = cases.mlp()
    scripted = torch.jit.script(model)
    for other in (scripted, torch.jit.freeze(scripted)):
        assert torch.allclose(attributions.saliency(other, X, Y), attributions.saliency(model, X, Y))
        ALL["attack"](other, X, Y)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_networks_are_explained_or_refused_in_a_sentence(backend):
    plain = cases.mlp()
    model, right = torch.compile(plain, backend=backend), attributions.saliency(plain, X, Y)
    with torch.no_grad():
        assert torch.allclose(attributions.saliency(model, X, Y), right)
    for way in ("saliency", "integrated", "attack", "faithfulness"):
        if backend == "eager":
            ALL[way](model, X, Y)
        else:
            with pytest.raises(ValueError, match=r"model was compiled, .*_orig_mod"):
                ALL[way](model, X, Y)
    torch._dynamo.reset()


@pytest.mark.parametrize("way", ALL)
def test_tensors_that_hold_no_numbers_or_few_are_refused(way, unchecked):
    with pytest.raises(ValueError, match=r"^x has layout .*; it must be a dense tensor"):
        ALL[way](cases.mlp(), X.to_sparse(), Y)
    if way in WAYS:
        for y, sentence in ((Y.to("meta"), "device meta"), (Y.to_sparse(), "layout"), (None, "NoneType")):
            with pytest.raises(ValueError, match=f"^target .*{sentence}"):
                ALL[way](cases.mlp(), X, y)
    for model in (None, "a", 3, X, nn.Linear):
        with pytest.raises(ValueError, match=r"^model is "):
            ALL[way](model, X, Y)


@pytest.mark.parametrize(
    "baseline",
    ["a", None, math.nan, math.inf, 1j, True, [0.0], np.zeros(3), X[:2], X.float(), X * math.nan, X.to("meta")],
)
def test_a_baseline_is_a_finite_number_or_a_tensor_that_spreads_over_the_images(baseline, unchecked):
    importances, how = X.sum(1), {"generator": cases.generator(), "steps": 2, "baseline": baseline}
    for way in (
        lambda: attributions.integrated_gradients(cases.mlp(), X, Y, steps=2, baseline=baseline),
        lambda: faithfulness.deletion(cases.mlp(), X, Y, importances, **how),
        lambda: faithfulness.insertion(cases.mlp(), X, Y, importances, **how),
    ):
        with pytest.raises(ValueError, match=r"^baseline "):
            way()


# ------------------------------------------------------------------ what goes under, comes later, or is left behind

linear = cases.isolated(lambda seed, *sizes: cases.filled(nn.Linear(*sizes), seed=seed))
MASK = torch.tensor([0.0, 0.0, 0.0, -math.inf]).double()
MASKED = {
    "detach": (lambda m, x: m(0.9 * x.detach() + 0.1 * x), "cuts the gradient off"),
    "company": (lambda m, x: m(x - x.mean(0)), "couples the images"),
    "noise": (lambda m, x: m(x + torch.randn_like(x)), "is random"),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_class_that_is_never_given_excuses_nothing(name):
    inner, (function, sentence) = cases.mlp(), MASKED[name]

    class Network(nn.Module):
        def forward(self, x):
            return function(inner, x) + MASK

    class Right(nn.Module):
        def forward(self, x):
            return inner(x) + MASK

    with pytest.raises(ValueError, match=f"^model .*{sentence}"):
        attributions.saliency(Network(), X, torch.zeros_like(Y))
    found = attributions.saliency(Right().eval(), X, torch.zeros_like(Y))
    assert torch.allclose(found, attributions.saliency(inner, X, torch.zeros_like(Y)))


def test_one_class_among_many_that_is_cut_off_is_refused_where_it_is_explained():
    layer = linear(1, 18, 30_000)

    class Network(nn.Module):
        def forward(self, x):
            z = layer(x.flatten(1))
            return torch.cat([z[:, :-1], z[:, -1:].detach()], 1)

    model = Network().eval()
    assert attributions.saliency(model, X, Y).any()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^model cuts the gradient off"):
            attributions.saliency(model, X, torch.full_like(Y, 29_999))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_one_class_of_few_that_is_cut_off_is_refused_whatever_is_explained(classes):
    for seed in range(10):
        layer = linear(seed, 18, classes)

        class Network(nn.Module):
            def forward(self, x, layer=layer):
                z = layer(x.flatten(1))
                return torch.cat([z[:, :1].detach(), z[:, 1:]], 1)

        with pytest.raises(ValueError, match=r"^model cuts the gradient off"):
            attributions.saliency(Network().eval(), X, torch.ones_like(Y))


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_hook_on_gradients_is_noticed_also_when_it_comes_later(register):
    model = cases.mlp()
    attributions.saliency(model, X, Y)
    halve = {
        "register_full_backward_hook": lambda module, given, got: (given[0] * 0.5,),
        "register_full_backward_pre_hook": lambda module, got: (got[0] * 0.5,),
    }[register]
    with (
        getattr(model[1], register)(halve),
        pytest.raises(ValueError, match=r"^model cuts the gradient off or changes"),
    ):
        attributions.saliency(model, X, Y)


def test_what_is_made_when_a_network_first_runs_is_made_of_the_callers_images():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.mean, self.calls = cases.mlp(), None, 0

        def forward(self, x):
            self.calls += 1
            if self.mean is None:
                self.mean = x.detach().mean(0)
            return self.inner(x - self.mean)

    model = Lazy().eval()
    attributions.saliency(model, X, Y)
    assert torch.equal(model.mean, X.mean(0))
    assert model.calls == 1


def test_logits_that_do_not_depend_on_the_pixels_are_refused():
    weight = nn.Parameter(torch.ones(4).double())
    for constant in (torch.ones(4).double(), weight):
        network = Lambda(lambda z, m, c=constant: c.expand(len(z), 4))
        for way in ALL.keys() - {"jacobian"}:
            with pytest.raises(ValueError, match=r"^model's logits do not depend on x"):
                ALL[way](network, X, Y)


def test_logits_in_more_digits_than_the_network_has_are_not_taken_for_coupled():
    for seed in range(5):
        inner = linear(seed, 18, 64).float(), linear(seed, 64, 4).float()

        class Network(nn.Module):
            def forward(self, x, inner=inner):
                return inner[1](torch.tanh(inner[0](x.flatten(1)))).double()

        assert attributions.saliency(Network().eval(), X.float(), Y).any()


def test_a_network_may_write_into_what_it_is_given():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cases.mlp()

        def forward(self, x):
            with torch.no_grad():
                x.clamp_(0.0, 1.0)
            return self.inner(x)

    assert torch.allclose(
        attributions.saliency(Network().eval(), X.clone(), Y), attributions.saliency(cases.mlp(), X, Y)
    )


def test_numbers_of_numpy_are_numbers(unchecked):
    plain = attributions.integrated_gradients(cases.mlp(), X, Y, steps=4, baseline=0.5)
    found = attributions.integrated_gradients(cases.mlp(), X, Y, steps=np.int64(4), baseline=np.float32(0.5))
    assert torch.equal(found, plain)


def gate(x):
    """Which of two slopes each image has: it hangs on the last place of its pixels."""
    return (x.flatten(1).double().sum(1) * 1e9).sin() > 0


def test_maps_that_jump_where_rounding_does_are_no_coupling_and_a_coupling_stays_one_beside_them():
    model, x, y = cases.conv().float(), X[:1].float(), Y[:1]

    def jumps(model, x, target, *, shift=0.0):
        slopes = attributions.saliency(model, x, target)
        alone = len(x) == 1  # there the jump is a little smaller: equal ones would be compared in their last places
        bent = 1 + (0.009 if alone else 0.01) * gate(x * (1 + 1e-7 * alone))
        return slopes * bent.to(x)[:, None, None, None] + shift * (len(x) > 1)

    first = jumps(model, torch.cat([x, x]), y.repeat(2))[:1]
    assert not torch.allclose(first, jumps(model, x, y))  # rounding in company does change it
    guards.each("attribution", jumps, model, x, y)
    with pytest.raises(ValueError, match="attribution answers an image differently alone and in company"):
        guards.each("attribution", partial(jumps, shift=float(first.detach().abs().max())), model, x, y)


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_maps_coupled_through_their_largest_value_are_refused_beside_exact_ties_of_a_max_pool(share):
    """Black pixels tie in max-pools; they must not be moved by what is called rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)]
    model = nn.Sequential(*layers).eval()
    x = torch.rand(8, 1, 8, 8, generator=cases.generator()) * (
        torch.rand(8, 1, 8, 8, generator=cases.generator()) > 0.4
    )

    def coupled(model, x, target):
        slopes = attributions.saliency(model, x, target)
        return slopes * (1 - share + share / slopes.abs().amax())

    with pytest.raises(ValueError, match="attribution answers an image differently alone and in company"):
        guards.each("attribution", coupled, model, x, torch.zeros(8, dtype=torch.long))


@pytest.mark.parametrize(
    "beside",
    [lambda x: torch.where(x.flatten(1) > 0.999, torch.inf, 0.0), lambda x: (x.flatten(1) > 0.5).float(), gate],
    ids=["infinite", "steps", "gate"],
)
def test_no_jump_of_one_answer_excuses_the_coupling_of_another(beside):
    x = torch.rand(4, 1, 3, 3, generator=cases.generator())
    x[:, 0, 0, 0], x[:, 0, 1, 1] = 0.5, 1.0

    def two(x):
        return (x - 0.5 * x.mean(0, keepdim=True)).flatten(1), beside(x).float()

    with pytest.raises(ValueError, match="model answers an image differently alone and in company"):
        guards.alone(two, x)
