"""Nothing silent: a curvature is the function's own or it is refused; oracles are written-out twins and quotients."""

import cases
import pytest
import torch
from attrobust import curvature
from attrobust.curvature import derivatives
from attrobust.curvature.chain import layers_of
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

LOSS = cases.per_example_cross_entropy


class Whole(nn.Module):
    """A network that is no chain, in two halves, with something done between them."""

    def __init__(self, between=lambda h: h, activation=None):
        super().__init__()
        net = cases.mlp(activation)
        self.lower, self.upper, self.between = net[:3], net[3:], between

    def forward(self, x):
        return self.upper(self.between(self.lower(x + 0)))


def sharpness(model, x=None, y=None, loss=LOSS):
    x, y = cases.images() if x is None else x, cases.labels() if y is None else y
    hessian = curvature.ParameterHessian(model, loss, x, y)
    return curvature.sharpness(hessian, generator=cases.generator()).value


def pixels(model, measure=curvature.input_curvature):
    return measure(curvature.InputHessian(model, cases.images(), cases.labels()), generator=cases.generator()).value


MEASURES = {
    "sharpness": sharpness,
    "rebuilt": lambda m: curvature.ParameterHessian(m, LOSS, cases.images(), cases.labels(), keep_graph=False).gradient,
    "trace": lambda m: (
        curvature.trace(
            curvature.ParameterHessian(m, LOSS, cases.images(), cases.labels()), generator=cases.generator()
        ).value
    ),
    "Gauss-Newton": lambda m: curvature.gauss_newton_trace(curvature.GaussNewton(m, cases.images())).value,
    "pixels": pixels,
    "relative": lambda m: pixels(m, curvature.relative_curvature),
    "gradient": lambda m: curvature.input_gradient_norm(m, cases.images(), cases.labels()),
    "Jacobian": lambda m: curvature.input_jacobian_norm(m, cases.images()).value,
    "Gram": lambda m: curvature.gram_spectrum(m, cases.images()).value,
}


@pytest.mark.parametrize("make", [cases.mlp, cases.conv, Whole])
@pytest.mark.parametrize("measure", MEASURES)
def test_under_no_grad_every_measure_is_what_it_is_with_gradients(measure, make):
    model = make()
    free = torch.as_tensor(MEASURES[measure](model))
    with torch.no_grad():
        assert torch.equal(torch.as_tensor(MEASURES[measure](model)), free)
    assert free.abs().max() > 0


@pytest.mark.parametrize("keep_graph", [True, False])
def test_a_hessian_from_outside_no_grad_multiplies_inside(keep_graph):
    hessian = curvature.ParameterHessian(cases.mlp(), LOSS, cases.images(), cases.labels(), keep_graph=keep_graph)
    v = torch.ones(1, hessian.size, dtype=torch.float64)
    with torch.no_grad():
        inside = hessian.matvec(v)
    assert torch.equal(inside, hessian.matvec(v))
    assert inside.any()


@pytest.mark.parametrize("measure", MEASURES)
def test_inference_mode_and_its_tensors_are_refused(measure):
    model = cases.mlp()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch.inference_mode is on"):
        MEASURES[measure](model)
    with torch.inference_mode():
        model = cases.mlp()
    with pytest.raises(ValueError, match=r"1.weight was made under torch.inference_mode"):
        MEASURES[measure](model)


CUTS = {
    "detach": lambda h: h.detach(),
    "data": lambda h: h.data,
    "numpy": lambda h: torch.from_numpy(h.detach().numpy()),
    "one of two branches": lambda h: h * h.detach().sigmoid(),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "Gram"])
def test_a_cut_path_is_refused_by_every_measure(measure, cut):
    with pytest.raises(ValueError, match=r"changes with .* and its gradient does not say so: the path is cut"):
        MEASURES[measure](Whole(CUTS[cut]))


class Backbone(Whole):
    def forward(self, x):
        with torch.no_grad():
            h = self.lower(x + 0)
        return self.upper(h)


def test_a_frozen_backbone_is_named_and_counts_no_more_where_it_is_frozen_for_good():
    model = Backbone()
    sentence = r"loss changes with lower.1.weight, lower.1.bias .* cut in module lower.1 \(Linear\)"
    with pytest.raises(ValueError, match=sentence):
        sharpness(model)
    with pytest.raises(ValueError, match=r"readout changes with x .* cut in module lower"):
        pixels(model)
    model.lower.requires_grad_(False)
    whole = Whole()
    whole.lower.requires_grad_(False)
    assert sharpness(model) == pytest.approx(sharpness(whole))


class Side(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.side = cases.mlp(), cases.linear(seed=1)

    def forward(self, x):
        return self.body(x) + 3e-5 * self.side(x).detach()


def test_parameters_that_no_gradient_reaches_are_named_however_little_they_count():
    with pytest.raises(ValueError, match=r"loss changes with side.1.weight, side.1.bias and its gradient"):
        sharpness(Side())


def test_a_loss_that_lets_no_gradient_through_is_refused_in_exact_traces_too():
    hessian = curvature.ParameterHessian(cases.mlp(), lambda z, y: LOSS(z.detach(), y), cases.images(), cases.labels())
    with pytest.raises(ValueError, match=r"loss changes with 1.weight"):
        curvature.trace(hessian, generator=cases.generator())
    with pytest.raises(ValueError, match="the path is cut"):
        hessian.matvec(torch.ones(1, hessian.size, dtype=torch.float64))


@cases.isolated
def normed(*, dtype=torch.float64):
    return cases.filled(nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(18, 6)), nn.Tanh(), nn.Linear(6, 4)), 0).to(
        dtype
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weight_norm_whose_second_derivative_torch_gets_wrong_is_refused(dtype):
    for measure in (sharpness, lambda *a: curvature.frobenius(
        curvature.ParameterHessian(a[0], LOSS, *a[1:]), generator=cases.generator()
    )):  # fmt: skip
        with pytest.raises(ValueError, match="loss has no symmetric Hessian"):
            measure(normed(dtype=dtype), cases.images().to(dtype), cases.labels())


class Cube(torch.autograd.Function):
    """x^3 whose backward hides that its slope moves."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context, g):
        (x,) = context.saved_tensors
        return g * (3 * x.square()).detach()


def test_a_symmetric_but_wrong_second_derivative_is_refused_and_the_written_one_is_right():
    with pytest.raises(ValueError, match="loss has another second derivative than autograd says"):
        sharpness(Whole(Cube.apply))
    with pytest.raises(ValueError, match="readout has another second derivative"):
        pixels(Whole(Cube.apply))
    model = Whole(lambda h: h**3)
    exact = torch.linalg.eigvalsh(cases.parameter_hessian(model, LOSS, cases.images(), cases.labels()))[-1]
    assert sharpness(model) == pytest.approx(exact.item(), rel=1e-3)


@pytest.mark.parametrize("make", [cases.mlp, Whole])
def test_a_loss_whose_second_derivative_is_wrong_is_refused_by_every_trace(make):
    model, x, y = make(), cases.images(), cases.labels()

    def loss(logits, y):
        return Cube.apply(logits)[:, 0]

    measures = (
        lambda: curvature.gauss_newton_trace(curvature.GaussNewton(model, x, y, loss=loss)),
        lambda: curvature.trace(curvature.ParameterHessian(model, loss, x, y), generator=cases.generator()),
    )
    for measure in measures:
        with pytest.raises(ValueError, match="loss has another second derivative than autograd says"):
            measure()


def test_a_gradient_needs_no_second_derivative_to_be_right():
    def gradients(between):
        given = Whole(between), cases.images(), cases.labels()
        weights = curvature.ParameterHessian(given[0], LOSS, *given[1:])
        return weights.gradient, curvature.InputHessian(*given).gradient

    for found, exact in zip(gradients(Cube.apply), gradients(lambda h: h**3), strict=True):
        assert torch.allclose(found, exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kinks_ties_and_zero_weights_are_not_taken_for_wrong_derivatives(dtype):
    for seed in range(10):
        model = cases.mlp(nn.ReLU(), seed=seed, width=40).to(dtype)
        with torch.no_grad():
            model[1].bias.zero_()
        x = cases.images(6, seed).to(dtype)
        x[0] = 0  # every unit of the first layer sits exactly on its kink
        wrapped = nn.Sequential(nn.Identity(), Shift(model))
        hessian = curvature.ParameterHessian(wrapped, LOSS, x, cases.labels(6))
        assert hessian.matvec(torch.ones(1, hessian.size, dtype=dtype)).any()
        assert not curvature.InputHessian(wrapped, x, cases.labels(6)).matvec(torch.ones_like(x).flatten(1)).any()


class Shift(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(F.max_pool2d(x.float().to(x.dtype) + 0, 1))


class Out:
    def __init__(self, logits):
        self.logits = logits


class Own(nn.Module):
    """Noise of a generator of its own."""

    def __init__(self, per_image):
        super().__init__()
        self.body, self.draw, self.per_image = cases.mlp(), cases.generator(), per_image

    def forward(self, x):
        shape = (len(x), 1) if self.per_image else (1,)
        return self.body(x) * torch.rand(shape, generator=self.draw, dtype=x.dtype)


class Functional(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.body, self.change = cases.mlp(), change

    def forward(self, x):
        return self.change(self.body(x))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("measure", [sharpness, lambda m, x, y: curvature.input_jacobian(m, x)])
def test_randomness_and_coupling_are_seen_whatever_they_are_called(n, measure):
    x, y, before = cases.images(n), cases.labels(n), torch.get_rng_state()
    rare = Functional(lambda z: z * torch.bernoulli(torch.full((len(z), 1), 0.7, dtype=z.dtype)))
    models = [Own(True), Own(False), Functional(lambda z: F.dropout(z, 0.2, training=True)), rare]
    models += [Functional(lambda z: z - z.mean(0))] * (n > 1)
    for model in models:
        with pytest.raises(ValueError, match=r"model answers .*(it is random|it couples the images)"):
            measure(model, x, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_train_mode_without_anything_random_and_modules_called_dropout_are_fine():
    model = cases.mlp()
    model.dropout = nn.Dropout(0.5).eval()
    assert sharpness(model) == sharpness(cases.mlp())
    assert sharpness(cases.mlp().train()) == sharpness(cases.mlp())


def test_a_loss_that_couples_its_examples_is_refused():
    with pytest.raises(ValueError, match="loss is random or couples the examples"):
        sharpness(cases.mlp(), loss=lambda z, y: LOSS(z, y) * z.mean())


def test_outputs_of_any_kind_go_to_the_loss_and_nowhere_else():
    model = Functional(lambda z: Out(z))
    assert sharpness(model, loss=lambda o, y: LOSS(o.logits, y)) == pytest.approx(sharpness(cases.mlp()))
    for measure in ("Jacobian", "Gram", "pixels", "gradient", "Gauss-Newton"):
        with pytest.raises(ValueError, match="model returned a Out; wrap it"):
            MEASURES[measure](model)
    with pytest.raises(ValueError, match="model answers the same images differently"):
        random = Functional(lambda z: {"logits": Out(z + torch.randn_like(z))})
        sharpness(random, loss=lambda o, y: LOSS(o["logits"].logits, y))


def test_low_precision_and_other_places_are_refused(unchecked):
    x, y = cases.images().float(), cases.labels()
    with pytest.raises(ValueError, match=r"1.weight has dtype torch.bfloat16; curvature needs float32"):
        sharpness(cases.mlp().bfloat16(), x.bfloat16() * 0 + x, y)
    with pytest.raises(ValueError, match=r"x has dtype torch.float16; curvature needs float32"):
        sharpness(cases.mlp().float(), x.half(), y)
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"model computes in torch.bfloat16"):
        sharpness(cases.mlp().float(), x, y)
    with pytest.raises(ValueError, match=r"1.weight is on meta and x on cpu"):
        sharpness(cases.mlp().to("meta"), x, y)
    with pytest.raises(ValueError, match=r"model does not run on x of shape .*float64"):
        sharpness(cases.mlp().float(), x.double(), y)


def test_outputs_without_a_graph_have_no_jacobian_of_zero():
    x = cases.images().requires_grad_()
    with torch.no_grad():
        outputs = cases.mlp()(x)
    with pytest.raises(ValueError, match="outputs have no graph that leads to x"):
        curvature.jacobian_of(outputs, x)
    with pytest.raises(ValueError, match="outputs have no graph that leads to x"):
        curvature.jacobian_of(cases.mlp()(x.detach()), x)


def test_the_audit_costs_a_handful_of_passes_over_a_few_examples():
    model, x, y = Whole(), cases.images(50), cases.labels(50)
    hessian, seen = curvature.ParameterHessian(model, LOSS, x, y), []
    hessian._graphs  # noqa: B018
    model.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    v = torch.ones(2, hessian.size, dtype=torch.float64)
    hessian.matvec(v)
    hessian.gradient  # noqa: B018
    assert max(seen) == derivatives.FEW
    assert len(seen) <= 4


def test_a_layer_with_a_hook_or_a_patched_forward_is_no_link_of_a_chain():
    x, y = cases.images(), cases.labels()
    for change in ("hook", "forward"):
        model = cases.mlp()
        if change == "hook":
            model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
        else:
            plain = model[1].forward
            model[1].forward = lambda h, plain=plain: 2 * plain(h)
        dense = cases.parameter_hessian(model, LOSS, x, y)
        found = curvature.trace(
            curvature.ParameterHessian(model, LOSS, x, y), generator=cases.generator(), products=400
        )
        assert abs(found.value - float(dense.trace())) <= 6 * found.error + 1e-6 * abs(float(dense.trace()))


def test_labels_and_losses_that_do_not_fit_are_refused_in_a_sentence(unchecked):
    model, x = cases.mlp(), cases.images()
    for y in (torch.tensor([0, 1, 9]), torch.tensor([0.0, 1.0, 2.0]), torch.full((3,), -100)):
        with pytest.raises(ValueError, match=r"^y (spans|has shape)"):
            curvature.InputHessian(model, x, y)
    with pytest.raises(ValueError, match=r"^loss does not run on what the model returns and y"):
        curvature.sharpness(
            curvature.ParameterHessian(model, LOSS, x, torch.tensor([0, 1, 9])), generator=cases.generator()
        )
    with pytest.raises(ValueError, match=r"^model is a function; curvature needs a torch module"):
        curvature.input_jacobian(lambda at: model(at), x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cases.mlp(nn.PReLU()),
        lambda: cases.conv(nn.PReLU(3)),
        lambda: nn.Sequential(cases.mlp(), cases.Called(lambda z: z * (1 + 0 * z.sum().item()))),
    ],
    ids=["wrong", "without a rule", "a number"],
)
def test_gauss_newton_is_right_where_torchs_batching_is_wrong_or_has_none(make):
    x, y = cases.images(), cases.labels()
    model = make().double().eval()
    found = curvature.gauss_newton_trace(curvature.GaussNewton(model, x, y)).value
    logits = model(x)
    total = 0.0
    for row in logits:
        p = row.detach().softmax(0)
        rows = [torch.autograd.grad(z, list(model.parameters()), retain_graph=True) for z in row]
        j = torch.stack([torch.cat([g.flatten() for g in r]) for r in rows])
        total += float(torch.trace(j.T @ (torch.diag(p) - torch.outer(p, p)) @ j))
    assert found == pytest.approx(total / len(x))


class Chain(nn.Module):
    """A chain, and what is done around its lower half."""

    def __init__(self, around):
        super().__init__()
        net = cases.mlp(nn.Tanh())
        self.first, self.lower, self.upper, self.around = net[:2], net[2:4], net[4:], around

    def forward(self, x):
        with self.around():
            h = self.lower(self.first(x))
        return self.upper(h)


def test_a_backbone_under_no_grad_is_refused_by_exact_traces_too():
    assert layers_of(Chain(torch.no_grad), cases.images()) is not None
    for measure in ("sharpness", "trace", "Gauss-Newton"):
        with pytest.raises(ValueError, match=r"changes with first.1.weight.* the path is cut in module first.1"):
            MEASURES[measure](Chain(torch.no_grad))
        assert torch.as_tensor(MEASURES[measure](Chain(torch.enable_grad))) == torch.as_tensor(
            MEASURES[measure](cases.mlp(nn.Tanh()))
        )


@pytest.mark.parametrize("make", [cases.mlp, Whole])
@pytest.mark.parametrize("hook", [lambda q: q * 0.1, lambda q: q.clamp(-0.005, 0.005), lambda q: None])
def test_hooks_on_weights_change_no_curvature_and_are_still_there(make, hook):
    model, free, calls = make(), make(), []
    weights = list(model.parameters())
    first, second = weights[0].register_hook(hook), weights[0].register_hook(lambda q: calls.append(1))
    for measure in ("sharpness", "rebuilt", "trace", "Gauss-Newton"):
        assert torch.equal(torch.as_tensor(MEASURES[measure](model)), torch.as_tensor(MEASURES[measure](free)))
    assert not calls
    for m in (model, free):
        LOSS(m(cases.images()), cases.labels()).sum().backward()
    assert calls == [1]
    expected = next(free.parameters()).grad
    assert torch.equal(weights[0].grad, expected if hook(expected) is None else hook(expected))
    first.remove()
    second.remove()
    assert not weights[0]._backward_hooks


def stepped(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)


def written(model):
    for p in model.parameters():
        p.data.mul_(1.01)


def replaced(model):
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())


@pytest.mark.parametrize("change", [stepped, written, replaced, nn.Module.float])
@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_weights_that_changed_since_a_hessian_was_built_are_refused(change, keep_graph, used):
    model, x, y = cases.mlp(), cases.images(), cases.labels()
    hessians = [
        curvature.ParameterHessian(model, LOSS, x, y, keep_graph=keep_graph),
        curvature.InputHessian(model, x, y, keep_graph=keep_graph),
    ]
    uses = [
        lambda: hessians[0].matvec(torch.ones(1, hessians[0].size, dtype=x.dtype)),
        lambda: hessians[0].gradient,
        lambda: curvature.trace(hessians[0], generator=cases.generator()),
        lambda: hessians[1].matvec(torch.ones_like(x).flatten(1)),
        lambda: hessians[1].gradient,
    ]
    if used:
        for use in uses:
            use()
    change(model)
    for use in uses:
        with pytest.raises(ValueError, match=r"^model's weights changed since this Hessian was built; build another$"):
            use()


def test_so_are_weights_written_over_with_what_they_were():
    model = cases.mlp()
    hessian = curvature.ParameterHessian(model, LOSS, cases.images(), cases.labels(), keep_graph=True)
    hessian.gradient  # noqa: B018
    with torch.no_grad():
        model[3].weight.add_(0)
    with pytest.raises(ValueError, match=r"^model's weights changed since this Hessian was built; build another$"):
        hessian.matvec(torch.ones(1, hessian.size, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
def test_a_network_that_does_not_read_x_is_refused_and_a_dead_one_is_flat(n):
    x, y = cases.images(n), cases.labels(n)
    deaf = cases.Called(lambda at: torch.ones(len(at), cases.CLASSES, dtype=at.dtype))
    dead = cases.Called(lambda at: (at.flatten(1)[:, :4] - 9).relu())
    for measure in (
        lambda m: curvature.input_curvature(curvature.InputHessian(m, x, y), generator=cases.generator()).value,
        lambda m: curvature.input_gradient_norm(m, x, y),
        lambda m: curvature.input_jacobian(m, x),
    ):
        with pytest.raises(ValueError, match=r"^model answers alike whatever x is, so .* has no derivative in x"):
            measure(deaf)
        found = measure(dead)
        assert len(found) == n
        assert not found.any()


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.body, self.reentrant = cases.mlp(nn.Tanh()), reentrant

    def forward(self, x):
        h = self.body[1](x.flatten(1))
        return checkpoint(self.body[2:], h, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "trace"])
def test_reentrant_checkpoints_are_refused_in_a_sentence_and_others_are_right(measure):
    with pytest.raises(ValueError, match=r"^model .*: it runs under a reentrant checkpoint.* use_reentrant=False$"):
        MEASURES[measure](Checkpointed(True))
    found, expected = (torch.as_tensor(MEASURES[measure](m)) for m in (Checkpointed(False), cases.mlp(nn.Tanh())))
    assert torch.allclose(found, expected, rtol=1e-9)
