"""The second run, looked at from inside the network: which points it is measured on, and what is handed through it."""

import cases
import pytest
import torch
from attrobust import attributions
from attrobust.attributions import rerun
from test_attributions_propagation import RULES, X, Y, plain
from torch import nn
from torch.nn import functional as F


def spied(function):
    """A network of this function, and what it was given and returned, pass by pass."""
    passes = []

    def forward(x):
        logits = function(x)
        passes.append((x.detach().clone(), logits.detach().clone()))
        return logits

    return cases.Called(forward), passes


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_bends_are_looked_for_at_points_of_shaded_channels_and_three_eighths_of_the_way_between_them(scale):
    """Each channel is noise of width 1 about a shade of its own, between -1 and 2; in units of a large image."""
    x = scale * torch.rand(1, 400, 8, 8, generator=cases.generator(), dtype=torch.float64)
    x[0, 0, 0, 0] = scale
    weight = torch.randn(x[0].numel(), 3, generator=cases.generator(1), dtype=torch.float64)
    model, passes = spied(lambda x: x.flatten(1) @ weight)
    attributions.guided_backprop(model, x, torch.tensor([1]))
    points, between = (given for given, _ in passes[-4:-2])
    assert (points.shape, between.shape) == ((4, 400, 8, 8), (2, 400, 8, 8))
    assert points.dtype == between.dtype == torch.float64
    assert torch.allclose(between, 0.625 * points[:2] + 0.375 * points[2:], rtol=0, atol=1e-9)
    low, high = (points / scale).amin((2, 3)), (points / scale).amax((2, 3))
    assert (high - low).min() > 0.8
    assert (high - low).max() < 1
    assert -1.5 <= low.min() < -1.4
    assert 2.4 < high.max() <= 2.5
    shades = (low + high) / 2 - 0.5
    assert shades.mean().item() == pytest.approx(0, abs=4 * 0.9 / 40)
    assert len(shades.flatten().round(decimals=6).unique()) > 1500  # of 1600: each point has its own


def test_activations_are_given_slopes_between_a_half_and_nine_tenths_the_same_ones_in_both_passes():
    seen = []

    def forward(x):
        h = x.flatten(1)[:, :4] * 1.0
        after = [F.relu(h) for _ in range(300)]
        seen.append([(a.detach() / h.detach()).mean().item() for a in after])
        return sum(after)

    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    attributions.guided_backprop(cases.Called(forward), x, torch.tensor([1]))
    first, second = seen[-4:-2]
    assert first == pytest.approx(second)
    assert 0.5 <= min(first) < 0.51
    assert 0.89 < max(first) < 0.9
    assert sum(first) / 300 == pytest.approx(0.7, abs=4 * 0.116 / 300**0.5)


@pytest.mark.parametrize("name", RULES)
def test_the_second_run_goes_through_the_same_logits(name):
    """f(h) + S (h' - h) is f(h) on the images themselves."""
    model, passes = spied(plain(nn.Tanh))
    RULES[name](model, X, Y)
    (given, first), (again, second) = passes[-2:]
    assert torch.equal(given, again)
    assert torch.allclose(first, second, rtol=1e-12, atol=1e-12)


class Fickle(nn.Module):
    """A dense network whose activations are others in one of its passes."""

    def __init__(self, usual, other):
        super().__init__()
        self.original, self.passes, self.odd = cases.mlp(), 0, None
        self.usual, self.other = usual, other

    def forward(self, x):
        self.passes += 1
        first, second, last = self.usual if self.passes != self.odd else self.other
        layers = self.original
        return last(layers[5](second(layers[3](first(layers[1](x.flatten(1)))))))


#: Activations in turn; the last one is none, or one more.
PLAIN, MORE = (F.relu, torch.tanh, torch.clone), (F.relu, torch.tanh, F.relu)


@pytest.mark.parametrize(("usual", "other"), [(PLAIN, (torch.tanh, F.relu, torch.clone)), (PLAIN, MORE), (MORE, PLAIN)])
@pytest.mark.parametrize("name", RULES)
def test_a_network_that_calls_something_else_the_second_time_is_refused(name, usual, other):
    model = Fickle(usual, other)
    maps = RULES[name](model, X, Y)
    assert maps.any()
    passes = 5 if name == "deep_lift" else 4
    for odd in (4, 5) if name == "deep_lift" else (4,):
        model.odd = model.passes + odd
        with pytest.raises(ValueError, match=r"model is Fickle, for which .* has no rule"):
            RULES[name](model, X, Y)
        assert model.passes == model.odd
    assert torch.equal(RULES[name](model, X, Y), maps)
    assert model.passes == model.odd + passes


def is_straight(change, expected, rounding):
    numbers = (torch.tensor(value, dtype=torch.float64) for value in (change, expected, rounding))
    change, expected, rounding = numbers
    try:
        rerun.straight(change, expected, rounding=rounding)
    except rerun.Bent:
        return False
    return True


@pytest.mark.parametrize("expected", [-1e6, 1.0, 1e-6])
def test_a_change_is_straight_up_to_a_share_of_itself_and_what_rounding_leaves(expected):
    share = 2.0 ** (-52 * 0.6) * abs(expected)
    for rounding in (0.0, 0.3 * share, 5 * share):
        for side in (1, -1):
            assert is_straight([expected + side * 0.99 * (share + rounding)], [expected], [rounding])
            assert not is_straight([expected + side * 1.01 * (share + rounding)], [expected], [rounding])
    assert not is_straight([expected, 2 * expected], [expected, expected], [share, share])
    assert is_straight([0.0], [0.0], [0.0])


@pytest.mark.parametrize("name", RULES)
def test_a_network_whose_logits_are_all_zero_has_a_zero_map(name):
    model = cases.conv(nn.ReLU())
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].bias.zero_()
    assert torch.equal(RULES[name](model, X, Y), torch.zeros_like(X))


def test_large_shares_that_cancel_are_not_mistaken_for_a_bend():
    """Images that differ from the baseline across the weights: the logit hardly moves, its parts do by millions."""
    model, x, y = cases.linear(), cases.images(20), cases.labels(20)
    with torch.no_grad():
        model[1].weight.mul_(1e6)
        model[1].bias.zero_()
        way, weight = x.flatten(1) - 0.1, model[1].weight[y]
        way -= (way * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True) * weight
    maps = attributions.deep_lift(model, (0.1 + way).view_as(x), y, baseline=0.1)
    assert torch.allclose(maps.flatten(1), way * weight, rtol=1e-9, atol=1e-6)


class Single(nn.Module):
    """A network that refuses double precision."""

    def __init__(self, original):
        super().__init__()
        self.original = original

    def forward(self, x):
        if x.dtype == torch.float64:
            raise RuntimeError("no double precision here")
        return self.original(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", RULES)
def test_a_network_without_double_precision_is_measured_in_single_precision(name, dtype):
    model, x = plain().to(dtype), X.to(dtype)
    assert torch.equal(RULES[name](Single(model), x, Y), RULES[name](model, x, Y))


@pytest.mark.parametrize("name", RULES)
def test_a_network_whose_weights_are_others_the_second_time_is_refused_unless_its_first_ones_are_kept(name):
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.passes, self.odd = cases.mlp(nn.ReLU()), cases.mlp(nn.ReLU(), seed=1), 0, None

        def forward(self, x):
            self.passes += 1
            return (self.other if self.passes == self.odd else self.one)(x)

    model = Swapped()
    maps = RULES[name](model, X, Y)
    model.odd = model.passes + (5 if name == "deep_lift" else 4)
    if name == "z_plus":  # whose rules stand for every call of the second pass
        assert torch.equal(RULES[name](model, X, Y), maps)
    else:
        with pytest.raises(ValueError, match="has no rule"):
            RULES[name](model, X, Y)
    assert model.passes == model.odd
