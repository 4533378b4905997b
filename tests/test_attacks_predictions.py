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


@pytest.mark.parametrize("name", ATTACKS)
def test_the_passes_of_an_attack_that_breaks_nothing_are_known_on_paper(name):
    model, x = cases.conv(), cases.images(3)
    y, ball = model(x).argmax(1), Ball("linf", 1e-9)
    on_paper = {"pgd": 1 + 3 * (1 + 2 * 5), "square": 1 + 7}[name]  # of a gradient step one forward, one to look
    how = {"pgd": {"steps": 5, "restarts": 3}, "square": {"queries": 7}}[name]
    assert run(name, model, x, y, ball, **how).queries == 3 * on_paper


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("length", [2.5, 0.7])
def test_pgd_is_projected_gradient_descent_written_out(norm, length):
    model, x = cases.conv(), cases.images(4)
    y, ball = model(x).argmax(1), Ball(norm, 0.01 if norm == "linf" else 0.02)
    best, kept = readouts.lead(model(x), y), x.clone()
    streams = predictions.Streams(x, generator=cases.generator())
    for start in range(3):
        draws = [streams(i, f"start {start}") for i in range(4)]
        noise = torch.cat([ball.sample(x[i : i + 1], generator=draws[i]) for i in range(4)])
        at = (x + noise).clamp(0, 1)
        for step in range(7):
            logits = model(at := at.detach().requires_grad_())
            ahead = readouts.lead(logits, y)
            better = ahead < best
            best, kept = torch.where(better, ahead, best), torch.where(better.view(-1, 1, 1, 1), at, kept)
            harm = -ahead if start == 1 else nn.functional.cross_entropy(logits, y, reduction="none")
            (slope,) = torch.autograd.grad(harm.sum(), at)
            if step < 6:
                along = slope.sign() if norm == "linf" else slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                moved = at.detach() + length * ball.radius / 6 * along - x
                if norm == "linf":
                    moved = moved.clamp(-ball.radius, ball.radius)
                else:
                    moved *= (ball.radius / moved.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
                at = (x + moved).clamp(0, 1)
    assert (best > 0).all()  # nothing is broken, so that every step was made
    how = {"steps": 6, "restarts": 3} | ({} if length == 2.5 else {"length": length})
    assert torch.allclose(run("pgd", model, x, y, ball, **how).x, kept.detach(), rtol=0, atol=1e-12)


def windows(side, height, width, draws):
    """Rows and columns of a window, from two numbers in [0, 1)."""
    top, left = int(draws[0] * (height - side + 1)), int(draws[1] * (width - side + 1))
    return slice(top, top + side), slice(left, left + side)


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_a_try_gives_one_window_one_colour_at_a_corner_of_the_ball_and_leaves_the_rest(side):
    draw = cases.generator()
    delta, draws = (torch.rand(n, generator=draw, dtype=torch.float64) for n in ((30, 3, 4, 7), (30, 8)))
    draws[0, :2] = 0
    draws[1, :2] = 1 - 1e-12
    draws[2, 5:] = 0.5
    expected = delta.clone()
    for i in range(30):
        colour = torch.tensor([-0.3 if d < 0.5 else 0.3 for d in draws[i, 5:]], dtype=torch.float64)
        expected[i][:, *windows(side, 4, 7, draws[i])] = colour[:, None, None]
    assert torch.equal(predictions._window(delta, 0.3, side, draws), expected)


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_an_l2_try_empties_a_window_and_spends_what_is_free_on_a_pattern_in_another(side):
    draw = cases.generator()
    delta = torch.randn(30, 3, 4, 7, generator=draw, dtype=torch.float64)
    delta = Ball("l2", 0.9).project(delta)
    draws = torch.rand(30, 8, generator=draw, dtype=torch.float64)
    draws[2, 4:] = 0.5
    pattern = predictions._pattern(side, delta)
    found = predictions._moved_window(delta, 1.0, side, draws)
    for i in range(30):
        emptied, filled = windows(side, 4, 7, draws[i, :2]), windows(side, 4, 7, draws[i, 2:4])
        rest = delta[i].clone()
        rest[:, *emptied] = 0
        rest[:, *filled] = 0
        signs = torch.where(draws[i, 5:] < 0.5, -1.0, 1.0).double()
        placed = signs[:, None, None] * (pattern if draws[i, 4] < 0.5 else pattern.T)
        here = delta[i][:, *filled]
        mixed = here / here.norm() + placed / placed.norm()
        expected = rest.clone()
        expected[:, *filled] = (1 - rest.square().sum()).sqrt() * mixed / mixed.norm()
        assert torch.allclose(found[i], expected, rtol=0, atol=1e-12)
    assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 30)


def test_a_pattern_is_a_pile_of_rectangles_beside_its_negative():
    def height(row, column, rows, columns):
        """Of how many rectangles, the k-th a frame of k pixels smaller and 1 / (k + 1)^2 high, a pixel is part."""
        depth = min(row, rows - 1 - row, column, columns - 1 - column)
        return sum(1 / (k + 1) ** 2 for k in range(depth + 1))

    for side in range(2, 10):
        half = side // 2
        pile = torch.tensor([[height(r, c, side, half) for c in range(half)] for r in range(side)])
        whole = torch.cat([pile, torch.zeros(side, side % 2), -pile], 1).double()
        assert torch.allclose(predictions._pattern(side, torch.zeros(1).double()), whole / whole.norm(), atol=1e-6)
    assert predictions._pattern(1, torch.zeros(1)).item() == 1


def test_the_search_begins_with_stripes_or_with_patterns_side_by_side():
    for shape, side in (((1, 3, 28, 28), 5), ((1, 2, 11, 17), 2), ((1, 1, 4, 9), 1)):
        like = torch.zeros(shape, dtype=torch.float64)
        stripes = predictions._stripes(like, generator=cases.generator())
        assert torch.equal(stripes.abs(), torch.ones_like(like))
        assert torch.equal(stripes, stripes[:, :, :1].expand(shape))
        assert len({tuple(c) for c in stripes[0, :, 0].tolist()}) == shape[1]
        tiles = predictions._tiling(like, generator=cases.generator())
        assert tiles.norm() == pytest.approx(1)
        pattern = predictions._pattern(side, like)
        signs = set()
        for c in range(shape[1]):
            for top in range(0, shape[2], side):
                for left in range(0, shape[3], side):
                    tile = tiles[0, c, top : top + side, left : left + side]
                    part = pattern[: tile.shape[0], : tile.shape[1]]
                    scale = float((tile * part).sum() / part.square().sum())
                    signs.add(scale)
                    assert torch.allclose(tile, scale * part, rtol=0, atol=1e-12)
        low, high = min(signs), max(signs)
        assert low == pytest.approx(-high)
        assert {round(s / high, 6) for s in signs} == {-1.0, 1.0}


def test_the_step_down_the_slope_is_written_out():
    draw = cases.generator()
    delta, slope = (torch.randn(20, 2, 3, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    draws = torch.rand(20, generator=draw, dtype=torch.float64)
    draws[0], draws[1] = 0, 1 - 1e-12
    found = predictions._downhill(delta, Ball("l2", 0.5), slope, draws)
    for i in range(20):
        length = 0.1 * 30 ** float(draws[i]) * 0.5  # a tenth of the radius to three radii
        there = delta[i] - length * slope[i] / slope[i].norm()
        assert torch.allclose(found[i], 0.5 * there / there.norm(), rtol=0, atol=1e-12)

    delta = 0.5 * delta.clamp(-1, 1)
    found = predictions._downhill(delta, Ball("linf", 0.5), slope, draws)
    for i in range(20):
        corner = -0.5 * slope[i].sign()
        promise = (slope[i] * (delta[i] - corner)).flatten().tolist()
        left = [n for n in sorted(range(18), key=lambda n: -promise[n]) if promise[n] > 0]
        moving = left[: -int(-(0.01 ** float(draws[i]) * len(left)) // 1)]
        expected = delta[i].flatten().clone()
        expected[moving] = corner.flatten()[moving]
        assert torch.equal(found[i].flatten(), expected)
    assert torch.equal(found[0], -0.5 * slope[0].sign())  # all of them


def test_windows_follow_the_schedule_of_the_paper():
    ends = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries, Andriushchenko et al. 2020
    for spent in (0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 6001, 8000, 8001, 9999):
        share = 0.8 / 2 ** sum(spent > end for end in ends)
        for height, width in ((28, 28), (32, 20), (3, 40)):
            side = max(1, min(round((share * height * width) ** 0.5), height, width))
            assert predictions._side(torch.Size([height, width]), spent / 10_000) == side


def test_square_keeps_fewer_tries_of_large_images_and_never_fewer_than_it_asks_for_slopes(monkeypatch):
    monkeypatch.setattr(predictions, "MOST", 1000)
    kept = {side: predictions._Seen(torch.zeros(1, 1, side, side)).last for side in (1, 2, 5, 6, 7, 20)}
    assert kept == {1: 400, 2: 250, 5: 40, 6: 27, 7: 20, 20: 20}


def test_the_ridge_of_square_holds_where_all_tries_are_alike():
    x = cases.images(1)
    seen = predictions._Seen(x)
    for margin in (1.0, 2.0, 3.0):
        seen.add(torch.tensor([0]), torch.full_like(x, 0.1), x.new_tensor([margin]))
    assert seen.slope(torch.tensor([0])).abs().max() < 1e-6


def test_a_logit_that_is_no_number_is_refused_by_attacks_on_predictions():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1).sum(1), x.flatten(1).sum(1) * torch.nan], 1)

    with pytest.raises(ValueError, match="NaN"):
        predictions._Search(Broken(), middle(2), torch.tensor([0, 0]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_twentieth_try_goes_down_the_slope_and_the_others_are_windows_drawn_beforehand(norm, monkeypatch):
    known = {name: getattr(predictions, name) for name in ("_downhill", "_window", "_moved_window", "_side")}
    told = []
    for name in known:
        monkeypatch.setattr(predictions, name, lambda *given, n=name: (told.append((n, given)), known[n](*given))[1])
    model, x = cases.conv(), cases.images(2)
    run("square", model, x, model(x).argmax(1), Ball(norm, 1e-6), queries=63)
    streams = predictions.Streams(x, generator=cases.generator())
    draws = [torch.rand(63, 5 + x.shape[1], generator=streams(i, "square"), dtype=x.dtype) for i in range(2)]
    draws = torch.stack(draws)
    tries = [(name, given) for name, given in told if name != "_side"]
    assert len(tries) == 62
    for turn, (name, given) in enumerate(tries, start=1):
        if turn % 20:
            assert name == ("_window" if norm == "linf" else "_moved_window")
            assert torch.equal(given[3], draws[:, turn])
        else:
            assert name == "_downhill"
            assert torch.equal(given[3], draws[:, turn, 0])
    progress = [given[1] for name, given in told if name == "_side"]
    assert progress == pytest.approx([turn / 63 for turn in range(1, 63) if turn % 20])


@pytest.mark.parametrize("name", ATTACKS)
def test_two_infinite_logits_are_refused_and_not_called_robust(name):
    class Overflowing(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] * 1e39

    x = torch.tensor([0.52, 0.5, 0.2, 0.2]).view(1, 1, 2, 2)
    with pytest.raises(ValueError, match="model returns two infinite logits"):
        run(name, Overflowing(), x, torch.tensor([0]), Ball("linf", 0.1))
