"""What is a chain, what a link passes on, and how many examples are walked at once."""

import cases
import pytest
import torch
from attrobust import models
from attrobust.curvature import chain
from attrobust.curvature.chain import HELD, Link, layers_of, walks
from cases import draw
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LAYERS = {
    "dense": (lambda: nn.Linear(5, 3), (5,)),
    "convolution": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)), (2, 6, 7)),
    "without bias": (lambda: nn.Conv2d(2, 3, 2, bias=False), (2, 4, 4)),
    "standardised": (lambda: models.Standardize(0.4, 0.3), (2, 3, 3)),
    "pooled": (lambda: nn.AvgPool2d(2), (2, 4, 4)),
    "flat": (nn.Flatten, (2, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_without_bend_pushes_a_change_as_its_own_answer_changes(name):
    make, shape = LAYERS[name]
    layer = cases.filled(cases.isolated(make)(), 0)
    x, t = draw(3, *shape), draw(3, *shape, seed=1)
    with torch.no_grad():
        link = Link(layer, x, layer(x))
        assert torch.allclose(link.push(t), layer(x + t) - layer(x), rtol=1e-10, atol=1e-12)
        assert not link.push(torch.zeros_like(t)).any()


@cases.isolated
def test_a_link_holds_what_any_of_its_parameters_is_among():
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    link = Link(layer, torch.ones(1, 2), torch.ones(1, 2))
    assert link.holds({layer.weight})
    assert link.holds({layer.bias, other.weight})
    assert not link.holds({other.weight, other.bias})
    assert not Link(nn.ReLU(), torch.ones(1, 2), torch.ones(1, 2)).holds({layer.weight})


@cases.isolated
def test_convolutions_that_are_no_matrix_of_patches_are_not_known():
    x = draw(2, 4, 6, 6)
    conv = lambda **how: nn.Conv2d(4, 4, 3, **how)  # noqa: E731
    assert chain._known(conv(), x)
    assert chain._known(conv(padding=1, stride=2, dilation=2), x)
    for how in ({"groups": 2}, {"padding": 1, "padding_mode": "reflect"}, {"padding": "same"}, {"padding": "valid"}):
        assert not chain._known(conv(**how), x)
    assert chain._known(nn.Linear(6, 2), x[0, 0])
    assert not chain._known(nn.Linear(6, 2), x[0])
    assert not chain._known(nn.Linear(6, 2), x)
    assert not chain._known(nn.MaxPool2d(2), x)
    for kind in chain.KINDS:
        if kind not in (nn.Linear, nn.Conv2d):
            assert chain._known(kind.__new__(kind), x)


def test_every_bend_bends_each_entry_by_itself_and_every_plain_layer_is_a_matrix():
    for kind in chain.BENDS:
        x = draw(3, 4)
        with torch.no_grad():
            assert torch.allclose(kind()(x)[:, 1:2], kind()(x[:, 1:2]), atol=1e-12)
        assert chain.KINDS[kind] == "bend"
    assert {kind for kind, name in chain.KINDS.items() if name == "plain"} == set(chain.PLAIN)


class Body(nn.Module):
    """A network of layers, with something else in its forward pass."""

    def __init__(self, layers, forward):
        super().__init__()
        self.layers, self.own = layers, forward

    def forward(self, x):
        return self.own(self.layers, x)


class Scaled(TorchFunctionMode):
    """Dense layers answer more than they do."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return found * self.factor if func is F.linear else found


@pytest.mark.parametrize(("more", "same"), [(0.95e-4, True), (1.05e-4, False), (0.5, False)])
def test_layers_that_do_something_else_within_the_network_are_no_chain_beyond_a_ten_thousandth(more, same):
    def forward(layers, x):
        with Scaled(1 + more):
            return layers(x)

    assert (layers_of(Body(cases.linear(), forward), cases.images()) is not None) == same


def twice(layers, x):
    h = layers[1](layers[0](x))
    return layers[2](layers[1](h))


def two_inputs(layers, x):
    return layers[1](layers[0](x, x))


class Pair(nn.Module):
    def forward(self, x, y):
        return x.flatten(1)


class Tuple(nn.Module):
    def forward(self, x):
        return (x.flatten(1),)


@cases.isolated
def test_networks_that_differ_from_a_chain_in_one_thing_are_none():
    x = cases.images()
    square = nn.Linear(cases.PIXELS, cases.PIXELS)
    others = {
        "a layer that runs twice": Body(nn.Sequential(nn.Flatten(), square, nn.Identity()), twice),
        "two inputs": Body(nn.Sequential(Pair(), nn.Linear(18, 4)), two_inputs),
        "a tuple": Body(nn.Sequential(Tuple(), nn.Linear(18, 4)), lambda layers, x: layers[1](layers[0](x)[0])),
        "no layer": cases.Called(lambda x: x.flatten(1)),
        "an answer that is no row": nn.Sequential(nn.Conv2d(2, 3, 2)),
        "what is written over at the end": Body(nn.Sequential(nn.Flatten(), nn.Linear(18, 4)),
                                                lambda layers, x: layers(x).mul_(1)),
        "another answer": Body(nn.Sequential(nn.Flatten(), nn.Linear(18, 4)), lambda layers, x: layers(x) + 0),
        "an early start": Body(nn.Sequential(nn.Flatten(), nn.Linear(18, 4)), lambda layers, x: layers(x.clone())),
    }  # fmt: skip
    for name, model in others.items():
        assert layers_of(cases.filled(model, 0), x) is None, name
    spare = cases.filled(nn.Sequential(nn.Flatten(), nn.Linear(18, 4)), 0)
    assert layers_of(spare, x) == list(spare)
    spare.register_forward_pre_hook(lambda module, inputs: None)
    assert layers_of(spare, x) is None
    unused = Body(
        cases.filled(nn.Sequential(nn.Flatten(), nn.Linear(18, 4), nn.Linear(4, 4)), 0), lambda m, x: m[:2](x)
    )
    assert layers_of(unused, x) is None
    free = cases.filled(nn.Sequential(nn.Flatten(), nn.Linear(18, 4, bias=False)), 0)
    assert layers_of(free, x) == list(free)
    written = cases.filled(nn.Sequential(nn.Flatten(), nn.Linear(18, 5), nn.ReLU(inplace=True), nn.Linear(5, 4)), 0)
    assert layers_of(written, x) == list(written)
    for model in (written, free):
        assert all(not module._forward_hooks for module in model.modules())


def test_a_walk_starts_its_graph_at_the_first_weights_and_leaves_inputs_as_they_are():
    model, x = cases.mlp(nn.ReLU(inplace=True)), cases.images().requires_grad_()
    ((links, labels),) = walks(list(model), x, cases.labels())
    assert labels.tolist() == cases.labels().tolist()
    assert [link.entering.requires_grad for link in links] == [False, False, True, True, True, True]
    (back,) = torch.autograd.grad(links[-1].leaving.sum(), links[1].leaving)
    assert back.shape == links[1].leaving.shape
    assert (links[2].entering < 0).any()
    assert torch.equal(links[2].leaving, links[2].entering.relu())
    frozen = cases.mlp().requires_grad_(False)
    ((links, _),) = walks(list(frozen), cases.images(), cases.labels())
    assert links[-1].leaving.requires_grad


@cases.isolated
def convolutional(channels, width):
    layers = [nn.Conv2d(2, channels, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * channels, width), nn.Linear(width, 90)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("channels", "width"), [(400, 90), (400, 10), (1000, 5)])
def test_a_chunk_counts_the_numbers_of_every_layer_and_the_widest_way(channels, width):
    layers = list(convolutional(channels, width))
    single = 3 * 4 * channels + width + 90 + width * 90
    most = min(512, max(64, HELD // single))
    x = torch.zeros(2 * most + 1, *cases.SHAPE)
    sizes = [len(links[0].leaving) for links, _ in walks(layers, x, torch.zeros(len(x), dtype=torch.long))]
    assert 64 < most < 512
    assert sizes == [most, most, 1]
