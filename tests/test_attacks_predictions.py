"""Laws of attacks on predictions: closed forms on linear networks, balls, streams, and masked gradients that show."""

import cases
import pytest
import torch
from attrobust import attacks
from attrobust.attacks import predictions
from attrobust.balls import Ball
from attrobust.models import readouts
from torch import nn

ATTACKS = {"pgd": attacks.pgd, "square": attacks.square}
FEW = {"pgd": {"steps": 8}, "square": {"queries": 60}}


def linear():
    """Two logits are linear in the pixels, and equal for a grey image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    net = net.double().eval().requires_grad_(False)
    net[1].bias.copy_(-0.5 * net[1].weight.sum(1))
    return net


def middle(n=20):
    """Images far from black and white, so that no ball used here is cut."""
    return 0.4 + 0.2 * torch.rand(n, 1, 4, 4, generator=cases.generator(), dtype=torch.float64)


def run(name, model, x, y, ball, **options):
    return ATTACKS[name](model, x, y, ball, **{"generator": cases.generator()} | FEW[name] | options)


def distances(model, x, norm):
    """Distance of each image from the boundary of a linear network of two classes, by Hoelder's inequality."""
    weights, z = model[1].weight, model(x)
    away = weights[1] - weights[0]
    return (z[:, 1] - z[:, 0]).abs() / (away.abs().sum() if norm == "linf" else away.norm())


def test_the_margin_is_the_lead_of_the_class_over_the_best_other():
    z = torch.randn(5, 4, generator=cases.generator())
    y = torch.tensor([0, 3, 2, 1, 0])
    by_hand = [float(row[c] - max(v for i, v in enumerate(row) if i != c)) for row, c in zip(z, y, strict=True)]
    assert readouts.lead(z, y).tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("share", [0.97, 1.03])
def test_on_a_linear_network_pgd_breaks_an_image_just_where_the_boundary_is_inside_the_ball(norm, share):
    model, x = linear(), middle()
    y = model(x).argmax(1)
    for i, far in enumerate(distances(model, x, norm).tolist()):
        found = run("pgd", model, x[i : i + 1], y[i : i + 1], Ball(norm, far * share), steps=40)
        assert bool(found.broken) == (share > 1)


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_network_square_breaks_what_a_ball_of_a_tenth_more_reaches_and_nothing_beyond_its_own(norm):
    model, x = linear(), middle(60)
    y, far = model(x).argmax(1), distances(model, x, norm)
    radius = float(far.median())
    broken = run("square", model, x, y, Ball(norm, radius), queries=1000).broken
    assert not broken[far > radius].any()
    assert broken[far < radius / 1.1].all()


def test_the_slope_that_square_follows_is_the_ridge_regression_on_the_tries_it_remembers(monkeypatch):
    monkeypatch.setattr(predictions, "LAST", 9)
    draw, x, rows = cases.generator(), cases.images(3), torch.tensor([2, 0])
    seen, tries, margins = predictions._Seen(x), [], []
    for turn in range(25):
        tries.append(0.3 + torch.randn(2, *x.shape[1:], generator=draw, dtype=x.dtype))
        margins.append(torch.randn(2, generator=draw, dtype=x.dtype))
        seen.add(rows, tries[-1], margins[-1])
        if turn in (5, 13, 14, 24):
            moves, told = torch.stack(tries[-9:]).flatten(2), torch.stack(margins[-9:])
            moves, told = (t - t.mean(0) for t in (moves, told))
            found = seen.slope(rows).flatten(1)
            for i in range(2):
                own = moves[:, i]
                ridge = predictions.RIDGE * own.square().sum(1).mean() * torch.eye(own.shape[1], dtype=x.dtype)
                assert torch.allclose(found[i], torch.linalg.solve(own.T @ own + ridge, own.T @ told[:, i]), atol=1e-9)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_found_images_lie_in_the_ball_and_in_the_pixel_range_and_say_truly_whether_they_are_broken(name, norm):
    model, x = cases.conv(), cases.images(12)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # wrong from the start
    radius = 0.02 if norm == "linf" else 0.08
    found = run(name, model, x, y, Ball(norm, radius))
    moved = (found.x - x).flatten(1)
    assert (moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)).max() <= radius + 1e-9
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    assert torch.equal(found.broken, model(found.x).argmax(1) != y)
    assert found.broken[0]
    assert torch.equal(found.x[0], x[0])
    assert 0 < found.broken[1:].sum() < 11
    kept = ~found.broken
    assert (readouts.lead(model(found.x), y)[kept] <= readouts.lead(model(x), y)[kept]).all()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_image_of_an_attack_on_predictions_knows_its_neighbours(name, norm):
    model, x = cases.conv(), cases.images(6)
    y, ball = model(x).argmax(1), Ball(norm, 0.1 if norm == "linf" else 0.4)
    whole, turned = run(name, model, x, y, ball), run(name, model, x.flip(0), y.flip(0), ball)
    assert torch.allclose(turned.x.flip(0), whole.x, atol=1e-9)
    alone = run(name, model, x[2:3], y[2:3], ball)
    assert torch.allclose(alone.x, whole.x[2:3], atol=1e-9)


@pytest.mark.parametrize("name", ATTACKS)
def test_in_a_ball_without_room_nothing_breaks_and_broken_images_cost_nothing_more(name):
    model, x = cases.conv(), cases.images(6)
    y = model(x).argmax(1)
    assert not run(name, model, x, y, Ball("linf", 0.0)).broken.any()
    wrong = run(name, model, x, (y + 1) % 4, Ball("linf", 0.2))
    assert wrong.broken.all()
    assert wrong.queries == 6
    assert torch.equal(wrong.x, x)


def test_more_effort_never_finds_less():
    model, x = cases.conv(), cases.images(20)
    y, ball = model(x).argmax(1), Ball("linf", 0.06)
    few, more = (run("pgd", model, x, y, ball, restarts=n).broken for n in (1, 3))
    assert (more | ~few).all()


class Masked(nn.Module):
    """A network behind steps of the pixels: its gradient is zero everywhere."""

    def __init__(self, inner, levels=64):
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(self, x):
        steps = (x * self.levels).round() / self.levels
        return self.inner(steps) + 0 * x.flatten(1).sum(1, keepdim=True)


def test_a_masked_gradient_shows_as_square_finds_what_pgd_cannot(monkeypatch):
    inner, x = linear(), middle(40)
    y = inner(x).argmax(1)
    ball = Ball("linf", 2 * float(distances(inner, x, "linf").median()))
    monkeypatch.setattr("attrobust.models.guards.classifier", lambda *args: None)  # which would refuse it
    masked = Masked(inner)
    open_one, blind, random = (
        run(name, net, x, y, ball, **how).broken.double().mean()
        for name, net, how in (("pgd", inner, {}), ("pgd", masked, {}), ("square", masked, {"queries": 400}))
    )
    assert blind < open_one - 0.2
    assert random > blind + 0.15


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_gradients_square_comes_within_five_points_of_pgd_on_an_undefended_network(norm):
    from attrobust import experiments
    from attrobust.experiments import measure

    plain = experiments.sized("convnet", "digits") | {"step_size": 0.03, "batch_size": 64, "epochs": 15}
    one = experiments.Experiment(**plain, seed=0, protocol="plateau")
    (model,), _ = measure.train([one])
    examples = measure.dataset("digits", one.side, 1000, None, "cpu").test
    x, y = examples.x[:150], examples.y[:150]
    radius = {"linf": 0.1, "l2": 0.6}[norm]
    left = {
        name: 1 - float(run(name, model, x, y, Ball(norm, radius), **how).broken.double().mean())
        for name, how in (("pgd", {"steps": 40}), ("square", {"queries": 1000}))
    }
    assert 0.1 < left["pgd"] < 0.8
    assert abs(left["square"] - left["pgd"]) <= 0.05


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ball": 0.1}, "ball"), ({"generator": 3}, "generator"), ({"steps": 0}, "steps is 0"),
        ({"restarts": -1}, "restarts is -1"), ({"length": 0}, "length is 0"), ({"y": torch.tensor([9])}, "target"),
        ({"x": torch.full((1, 1, 4, 4), 2.0, dtype=torch.float64)}, "x"),
    ],
)  # fmt: skip
def test_bad_arguments_of_pgd_are_refused_by_name(change, sentence, unchecked):
    how = {"model": linear(), "x": middle(1), "y": torch.tensor([0]), "ball": Ball("linf", 0.1)}
    with pytest.raises(ValueError, match=sentence):
        attacks.pgd(**how | {"generator": cases.generator()} | change)
    with pytest.raises(ValueError, match="queries is 0"):
        attacks.square(**how, generator=cases.generator(), queries=0)


def test_starts_of_pgd_raise_the_cross_entropy_and_lower_the_margin_by_turns(monkeypatch):
    raised, known = [], predictions.cross_entropy
    monkeypatch.setattr(predictions, "cross_entropy", lambda *given: (raised.append(1), known(*given))[1])
    model, x = linear(), middle(2)
    for restarts, starts in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3)):
        raised.clear()
        run("pgd", model, x, model(x).argmax(1), Ball("linf", 1e-6), steps=2, restarts=restarts)
        assert len(raised) == 2 * starts


def test_a_pattern_has_length_one_and_two_halves_that_cancel():
    for side in range(1, 9):
        pattern = predictions._pattern(side, torch.zeros(1, dtype=torch.float64))
        assert pattern.shape == (side, side)
        assert pattern.norm() == pytest.approx(1)
        assert float(pattern.sum()) == pytest.approx(0 if side > 1 else 1, abs=1e-12)


def test_a_pattern_lies_along_rows_or_columns_whatever_its_colours_signs():
    along, sign = (torch.tensor(values)[:, None] for values in ([0.1, 0.1, 0.9, 0.9], [0.1, 0.9, 0.1, 0.9]))
    draws = torch.cat([torch.full((4, 4), 0.5), along, sign], 1)  # of one colour
    rows, rows_turned, columns, columns_turned = predictions._moved_window(torch.zeros(4, 1, 9, 9), 1.0, 5, draws)
    assert torch.equal(rows, -rows_turned)
    assert torch.equal(columns, -columns_turned)
    assert torch.equal(rows, columns.mT)
    assert not torch.equal(rows, columns)


def test_windows_become_smaller_as_queries_are_spent():
    sides = [predictions._side(torch.Size([28, 28]), progress) for progress in (0, 0.01, 0.1, 0.5, 0.9)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == 25
    assert sides[-1] >= 1
    assert predictions._side(torch.Size([2, 9]), 0) <= 2
