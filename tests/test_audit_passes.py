"""Laws of the count of passes of an audit: what is counted is what the network itself counts, and what is on paper."""

from functools import partial

import cases
import pytest
import torch
from attrobust import attacks, attributions, audit, models
from attrobust.balls import Ball
from benchmarks.suite import Counting
from torch import nn

EFFORT = attacks.Effort(steps=3, restarts=1, draws=2, walk=2, betas=(5.0, 10.0))
MAPS = {"saliency": attributions.saliency, "averaged": partial(attributions.integrated_gradients, steps=4)}


def net(seed, **options):
    return models.build("mlp", input_shape=cases.SHAPE, classes=3, seed=seed, width=8, **options).double().eval()


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_as_many_passes_are_counted_as_the_network_counts_itself(name, activation):
    judged, x = Counting(net(0, activation=activation)), cases.images(3)
    how = {"k": 3, "effort": EFFORT, "generator": torch.Generator().manual_seed(0)}
    with audit.counted(judged, x) as passes:
        judged.forwards = judged.backwards = 0
        attacks.auto(MAPS[name], judged, x, Ball("linf", 0.1), **how)
    assert (passes.forward, passes.backward) == (judged.forwards, judged.backwards)
    assert passes.backward > 0


def test_nothing_is_counted_of_other_networks_or_afterwards():
    one, other = net(0), net(1)
    x = cases.images(2)
    with audit.counted(one, x) as passes:
        other(x)
    one(x)
    assert passes == audit.passes.Counted()


def test_attention_that_is_read_without_the_head_is_counted():
    model = cases.vit().requires_grad_(False).eval()
    x = cases.images(2, shape=cases.VIT_SHAPE)
    with audit.counted(model, x) as passes:
        model.attend(x)
        model(x)
    assert (passes.forward, passes.backward) == (4, 0)


def test_a_layer_that_sees_an_image_twice_in_a_pass_is_not_where_images_are_counted():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(18, 18), nn.Linear(18, 3)

        def forward(self, x):
            return self.head(self.layer(self.layer(x.flatten(1))))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Twice(), cases.images(2).float()
    with audit.counted(model, x) as passes:
        model(x)
    assert passes.forward == 2


def test_a_network_that_overwrites_its_first_layers_input_answers_as_it_does_uncounted():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.head = nn.ReLU(inplace=True), nn.Linear(18, 3)

        def forward(self, x):
            x = x.flatten(1) - 0.5
            return self.head(x + self.act(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = InPlace().eval(), cases.images(2).float()
    target = model(x).argmax(1)
    plain = attributions.saliency(model, x, target)
    with audit.counted(model, x) as passes:
        assert torch.equal(attributions.saliency(model, x, target), plain)
        torch.func.vmap(model)(x[:, None])
    assert passes.forward > 0
