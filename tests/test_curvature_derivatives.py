"""The audit of derivatives: what it asks a function, and what it lets pass, written out by hand."""

import dataclasses
import math

import cases
import pytest
import torch
from attrobust.curvature import derivatives
from attrobust.curvature.chain import Link
from attrobust.curvature.derivatives import FEW, Audit, Graph, spoken
from cases import draw
from torch import nn

EPS = torch.finfo(torch.float64).eps


def around(p, generator):
    """Uniform numbers with the mean square of p, or of 1."""
    size = math.sqrt(p.square().mean()) or 1.0
    return (torch.rand(p.shape, generator=generator, dtype=p.dtype) - 0.5) * math.sqrt(12) * size


def directions(given):
    """The two random directions of the audit and the point beside the given one."""
    generator = cases.generator()
    u = [around(p, generator) for p in given]
    v = [around(p, generator) for p in given]
    at = [p + 0.01 * torch.where(p == 0, d, p) for p, d in zip(given, u, strict=True)]
    return u, v, at


class Two(nn.Module):
    """Two parameters, one all zero, which a function reads; and how often a second time."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(draw(3)), nn.Parameter(torch.zeros(2, dtype=torch.float64))
        with torch.no_grad():
            self.a[1] = 0


@pytest.mark.parametrize("order", [1, 2])
def test_the_audit_asks_the_first_four_examples_beside_the_point_and_at_both_ends_of_one_step(order):
    x, calls = draw(6, 2), []
    x[1, 0] = 0

    def run(point, n):
        calls.append((n, point[0].detach().clone()))
        return point[0][:n].pow(3).sum(1)

    Audit("f", run, [x], len(x))(order=order)
    _, v, at = directions([x[:FEW]])
    step = EPS**0.5
    ends = [at[0] + step * v[0], at[0] - step * v[0]]
    assert [n for n, _ in calls] == [FEW, 1, FEW, FEW]
    for (_, asked), expected in zip(calls, [at[0], at[0], *ends], strict=True):
        assert torch.allclose(asked, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("examples", [2, 9])
def test_parameters_are_asked_whole_and_in_the_network(examples):
    model, calls = Two(), []
    given = [model.a.detach().clone(), model.b.detach().clone()]

    def run(point, n):
        calls.append((n, [model.a.detach().clone(), model.b.detach().clone()]))
        return (model.a.square().sum() + model.b.exp().sum()) * torch.ones(n, dtype=torch.float64)

    Audit("f", run, [model.a, model.b], examples, model, ["a", "b"])(order=2)
    _, v, at = directions(given)
    few = min(4, examples)
    assert [n for n, _ in calls] == [few, 1, few, few]
    for (_, asked), sign in zip(calls, (0, 0, 1, -1), strict=True):
        for one, p, d in zip(asked, at, v, strict=True):
            assert torch.allclose(one, p + sign * EPS**0.5 * d, rtol=0, atol=1e-14)
    assert torch.equal(model.a.detach(), given[0])


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("named", [True, False])
def test_what_is_compared_is_what_autograd_says_and_the_quotients_with_their_rounding(order, named, monkeypatch):
    matrix, found = cases.with_spectrum([1.0, -2.0, 3.0]), {}

    def f(p):
        return 0.5 * ((p @ matrix) * p).sum(-1) + p.pow(3).sum(-1) / 3

    model = Two()
    point, names = ([model.a], ["a"]) if named else ([draw(4, 3)], [])

    def run(at, n):
        return (1 + torch.arange(n)) * f(model.a) if named else f(at[0][:n])

    def differing(said, quotients, rounding, eps):
        found.update(said=said, rounding=rounding, eps=eps, wide=quotients(0.25))
        return []

    monkeypatch.setattr(derivatives, "_differing", differing)
    Audit("f", run, point, 4, model, names)(order=order)
    _, (v,), (at,) = directions([p.detach() for p in point])
    times = 1 + 2 + 3 + 4 if named else 1
    gradient, product = times * (at @ matrix + at.square()), times * (v @ matrix + 2 * at * v)
    blocks = ([product] if named else list(product)) if order > 1 else []
    slope, bend = (gradient * v).sum(), times * v.pow(3).sum() / 3
    for part, expected in ((found["said"], [slope, *blocks]), (found["wide"], [slope + 0.25**2 * bend, *blocks])):
        assert len(part) == len(expected)
        for one, other in zip(part, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    size = float((times * f(at)).abs().sum())
    assert found["rounding"] == pytest.approx([10 * EPS * r for r in [size, *[float(gradient.norm())] * len(blocks)]],
                                              rel=1e-9, abs=1e-26)  # fmt: skip
    assert found["eps"] == EPS


def differing_by_hand(said, quotients, rounding, eps):
    def length(piece):
        return math.sqrt(sum(z * z for z in piece.flatten().tolist()))

    def gap(a, b):
        return length(a - b) - eps**0.25 * (length(a) + length(b))

    agreed, sure, last = set(), set(), None
    floor = 1e-6 * math.sqrt(sum(length(p) ** 2 for p in said[1:]))
    for power in (1 / 2, 5 / 12, 1 / 3):
        now = quotients(eps**power)
        for i in range(len(said)):
            if gap(said[i], now[i]) <= (floor if i else 0.0) + 1000 * eps + rounding[i] / eps**power:
                agreed.add(i)
        if len(agreed) == len(said):
            return []
        if last is not None:
            sure |= {i for i in range(len(said)) if gap(last[i], now[i]) <= 0}
        last = now
    return sorted(sure - agreed)


def test_blocks_differ_where_two_steps_agree_with_each_other_and_none_with_what_is_said():
    generator, outcomes = cases.generator(), []

    def uniform(low=0.0, high=1.0):
        return low + (high - low) * float(torch.rand((), generator=generator))

    def way(like):
        d = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        return d / d.norm()

    for case in range(800):
        blocks = 1 + case % 3
        eps = EPS if case % 2 else 2.0**-23
        said = [10 ** uniform(-9, 1) * way(torch.empty(() if i == 0 else (i + 1,))) for i in range(blocks)]
        rounding = [10 ** uniform(-22, -9) for _ in said]
        floor = 1e-6 * math.sqrt(sum(float(p.norm()) ** 2 for p in said[1:]))
        table = {}
        far = [0.0 if uniform() < 0.3 else uniform(2, 5) for _ in said]
        base = [way(p) for p in said]
        for power in (1 / 2, 5 / 12, 1 / 3):
            step, table[eps**power] = eps**power, []
            for i, p in enumerate(said):
                allowed = eps**0.25 * 2 * float(p.norm()) + (floor if i else 0) + 1000 * eps + rounding[i] / step
                if far[i]:  # apart from what is said, and about as far from the step before as is still agreement
                    away = p + far[i] * 3 * (allowed + rounding[i] / eps**0.5) * base[i]
                    now = away + way(p) * eps**0.25 * float(away.norm()) * uniform(0.9, 1.6)
                else:
                    now = p + way(p) * allowed * uniform(0.93, 1.12)
                table[step].append(now)
        found = derivatives._differing(said, table.__getitem__, rounding, eps)
        assert found == differing_by_hand(said, table.__getitem__, rounding, eps)
        outcomes.append(tuple(found))
    assert len(set(outcomes)) > 4


@pytest.mark.parametrize("large", [0.3, 20.0])
def test_a_number_may_differ_alone_by_the_root_of_the_rounding(large):
    x = torch.full((3, 1), large, dtype=torch.float64)
    size = 1.01 * large
    for much, refused in ((0.97, False), (1.03, True)):
        off = much * EPS**0.5 * max(1.0, size)
        audit = Audit("f", lambda p, n, off=off: p[0][:n, 0] + off * (n == 1), [x], 3)
        if refused:
            with pytest.raises(ValueError, match="f is random or couples the examples: one has"):
                audit(order=1)
        else:
            audit(order=1)


def test_what_no_path_reaches_may_count_for_the_root_of_the_rounding():
    model = Two()
    _, v, at = directions([model.a.detach(), model.b.detach()])
    size = 3 * float(at[0].square().sum())
    for much, refused in ((0.97, False), (1.03, True)):
        c = much * EPS**0.5 * size / abs(3 * float(v[1].sum()))

        def run(_, n, c=c):
            return (model.a.square().sum() + c * model.b.detach().sum()) * torch.ones(n, dtype=torch.float64)

        audit = Audit("f", run, [model.a, model.b], 3, model, ["a", "b"])
        if refused:
            with pytest.raises(ValueError, match=r"^f changes with b and its gradient does not say so: the path"):
                audit(order=2)
        else:
            audit(order=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "scale"), [(1, 1.0), (20_000, 1.0), (3, 1e-3), (2, 1e-9)])
def test_a_product_may_be_skew_by_so_much(n, scale, dtype):
    eps = torch.finfo(dtype).eps
    audit = Audit("f", lambda p, n: p[0], [torch.ones(1)], 1)
    first = torch.zeros(n, dtype=dtype)
    first[0] = 1
    for much in (0.97, 1.03):
        # v.Hu is more than u.Hv = 6 scale, by about w (6 scale + 6 scale + skew) + c, up to which it is let pass
        w, c = eps**0.25 / math.sqrt(n) + 1000 * eps, 1000 * eps
        skew = much * (12 * scale * w + c) / (1 - much * w)
        u, v, right, left = 2 * first, 3 * first, 3 * scale * first, (6 * scale + skew) / 3 * first
        if much > 1:
            with pytest.raises(ValueError, match="f has no symmetric Hessian"):
                audit._symmetric([u], [v], [left], [right])
        else:
            audit._symmetric([u], [v], [left], [right])


class Many(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.w = nn.ParameterList(nn.Parameter(draw(2, seed=i)) for i in range(n + 1))


@pytest.mark.parametrize(
    ("n", "told"),
    [(1, "w.1 and"), (3, "w.1, w.2, w.3 and its"), (4, "w.1, w.2, w.3 and 1 more and"), (6, "w.3 and 3 more and")],
)
def test_up_to_three_parameters_that_no_gradient_reaches_are_named_and_the_rest_counted(n, told):
    model = Many(n)

    def run(_, k):
        first, *others = model.w
        return (first.sum() + sum(w.detach().sum() for w in others)) * torch.ones(k, dtype=torch.float64)

    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=f"f changes with .*{told}.*; connect it, or freeze what shall not count"):
        Audit("f", run, list(model.parameters()), 2, model, names)(order=1)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g / 2


def test_a_wrong_gradient_is_told_of_the_parameters_or_of_x():
    model = Two()
    wrong = Audit("f", lambda _, n: Halved.apply(model.a).sum() * torch.ones(n), [model.a], 2, model, ["a"])
    with pytest.raises(ValueError, match=r"^f changes with parameters and .*; connect it, or freeze"):
        wrong(order=1)
    with pytest.raises(ValueError, match=r"^f changes with x and .*custom backward\); connect it$"):
        Audit("f", lambda p, n: Halved.apply(p[0][:n]).sum(1), [draw(3, 2)], 3, nn.Identity())(order=1)


@pytest.mark.parametrize("order", [1, 2])
def test_a_slope_that_is_let_through_a_step_function_is_no_derivative(order):
    """The function is flat at every step, so that two quotients agree at exactly nothing."""
    flat = Audit("f", lambda p, n: (p[0][:n] + (p[0][:n].round() - p[0][:n]).detach()).sum(1), [draw(3, 2)], 3)
    with pytest.raises(ValueError, match=r"^f changes with x and its gradient does not say so"):
        flat(order=order)


@pytest.mark.parametrize("order", [1, 2])
def test_a_function_that_cannot_run_in_double_precision_is_audited_as_it_is(order):
    seen = []

    def run(point, n):
        seen.append(point[0].dtype)
        if point[0].dtype == torch.float64:
            raise RuntimeError("no doubles here")
        return point[0][:n].square().sum(1)

    x, before = draw(3, 2).float(), torch.get_rng_state()
    Audit("f", run, [x], 3)(order=order)
    assert seen[0] == torch.float64
    assert set(seen[1:]) == {torch.float32}
    assert torch.equal(torch.get_rng_state(), before)

    def never(point, n):
        raise RuntimeError(f"not in {point[0].dtype}")

    with pytest.raises(ValueError, match=f"f has no derivative of order {order}: .*not in torch.float32"):
        Audit("f", never, [x], 3)(order=order)


def test_within_the_audit_single_precision_is_double():
    single, double = torch.ones(2), torch.ones(2, dtype=torch.float64)
    with derivatives._Double():
        assert (single * 1).dtype == torch.float64
        assert double.float().dtype == torch.float64
        assert torch.zeros(2, dtype=torch.float32).dtype == torch.float64
        assert torch.cat([single, double]).dtype == torch.float64
        assert (torch.arange(2) + 0).dtype == torch.int64
    whole = derivatives._doubled(((single,), [single], {"a": single}, torch.float32, torch.float16, 3))
    assert [whole[0][0].dtype, whole[1][0].dtype, whole[2]["a"].dtype] == [torch.float64] * 3
    assert whole[3:] == (torch.float64, torch.float16, 3)
    assert derivatives._doubled(single.half()).dtype == torch.float16


def test_blocks_are_parameters_or_examples_and_zero_where_nothing_leads():
    model = Two()
    named = Audit("f", lambda p, n: p[0], [model.a, model.b], 6, model, ["a", "b"])
    found = named._blocks([None, torch.ones(2)])
    assert [p.tolist() for p in found] == [[0.0] * 3, [1.0] * 2]
    free = Audit("f", lambda p, n: p[0], [draw(6, 2)], 6)
    assert [p.tolist() for p in free._blocks([None])] == [[0.0, 0.0]] * FEW
    assert [p.tolist() for p in free._blocks([torch.ones(2, 3)])] == [[1.0] * 3] * 2


def test_a_graph_multiplies_by_the_hessian_and_adds_nothing_for_a_constant_gradient():
    x, y, z = (draw(2, seed=i).requires_grad_() for i in range(3))
    graph = Graph.of(x.pow(3).sum() + 2 * y.sum(), [x, y, z])
    assert torch.allclose(graph.gradients[0], 3 * x.square())
    assert [g.tolist() for g in graph.gradients[1:]] == [[2.0, 2.0], [0.0, 0.0]]
    v = [torch.ones(2, dtype=torch.float64)] * 3
    for retain in (True, False):
        product = graph.times(v, retain=retain)
        assert torch.allclose(product[0], 6 * x)
        assert [p.tolist() for p in product[1:]] == [[0.0, 0.0]] * 2
    with pytest.raises(RuntimeError, match="second time"):
        graph.times(v, retain=False)
    flat = Graph.of(torch.ones(()), [x])
    assert not flat.gradients[0].any()
    assert not flat.times(v[:1], retain=False)[0].any()


def test_memory_that_ran_out_is_no_fault_of_the_model():
    with pytest.raises(torch.OutOfMemoryError), spoken():
        raise torch.OutOfMemoryError("all gone")
    with pytest.raises(ValueError, match="model's weights changed since this Hessian was built"), spoken():
        raise RuntimeError("a variable has been modified by an inplace operation")
    for text in ("use_reentrant", "Checkpointing is not compatible"):
        with pytest.raises(ValueError, match=r"model cannot be differentiated: it runs under a reentrant"), spoken():
            raise RuntimeError(text)
    with pytest.raises(ValueError, match=r"model cannot be differentiated: .*else"), spoken():
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    "made", [Graph([], []), Audit("f", lambda p, n: p, [], 1), Link(nn.ReLU(), torch.ones(1, 1), torch.ones(1, 1))]
)
def test_what_was_recorded_of_a_pass_cannot_be_changed(made):
    for field in dataclasses.fields(made):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, None)
