import copy
import itertools
import math

import cases
import pytest
import torch
from attrobust import models, training
from attrobust.training import dense, level, sgd, stacks
from torch import nn

SHAPE = (1, 3, 3)


#: Networks whose running statistics training moves.
NORMED = ("convnet_bn", "resnet")


def build(seed=0, architecture="mlp", **options):
    size = {"patch": 1, "dim": 8, "heads": 2, "depth": 1} if architecture == "vit" else {"width": 8}
    options = {"activation": "tanh", "mean": 0.5, "std": 0.3} | size | options
    return models.build(architecture, input_shape=SHAPE, classes=3, seed=seed, **options)


def examples(n=20, seed=0):
    """A task that a small network learns: which of three pixels is the brightest."""
    x = torch.rand(n, *SHAPE, generator=cases.generator(seed), dtype=torch.float64)
    return x, x.flatten(1)[:, :3].argmax(1)


def recipe(**changes):
    return {"step_size": 0.1, "batch_size": 4, "epochs": 3} | changes


def fit(nets, x, y, *, generators, probe=None, probe_every=0, **fields):
    """Training by a recipe of these fields."""
    watched = {"probe": probe, "probe_every": probe_every}
    return training.fit(nets, x, y, training.Recipe(**fields), generators=generators, **watched)


def constant_steps(peak, budget):
    return [peak] * budget


def warmup_steps(peak, budget):
    """Linear warm-up over the first two epochs of five updates, then one step size."""
    return [peak * min(1.0, (t + 1) / 10) for t in range(budget)]


def cosine_steps(peak, budget):
    """Linear warm-up over 2 % of the updates, under half a cosine down to zero."""
    warm = [min(1.0, (t + 1) / max(1.0, 0.02 * budget)) for t in range(budget)]
    return [peak * w * (1 + math.cos(math.pi * t / budget)) / 2 for t, w in enumerate(warm)]


def torch_sgd(model, x, y, *, step_sizes, batch_size, seed, loss=None, **dynamics):
    """The same training by torch.optim.SGD, one network, one batch at a time: the network before every update."""
    loss, model = loss or cases.per_example_cross_entropy, model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, **dynamics)
    draw, step = cases.generator(seed), 0
    trail = [copy.deepcopy(model)]
    while step < len(step_sizes):
        order = torch.randperm(len(x), generator=draw)
        for first in range(0, len(x) - batch_size + 1, batch_size):
            if step == len(step_sizes):
                break
            batch = order[first : first + batch_size]
            optimizer.param_groups[0]["lr"] = step_sizes[step]
            optimizer.zero_grad()
            loss(model(x[batch]), y[batch]).mean().backward()
            optimizer.step()
            step += 1
            trail.append(copy.deepcopy(model))
    return trail


def same_weights(first, second, **tolerance):
    """And the same statistics, where there are any."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    if tolerance:
        return all(torch.allclose(p, q, **tolerance) for p, q in pairs)
    return all(torch.equal(p, q) for p, q in pairs)


SCHEDULED = {
    "constant": (constant_steps, {}),
    "cosine": (cosine_steps, {}),
    "warmup-constant": (warmup_steps, {"warmup_epochs": 2}),
}
DYNAMICS = [
    {}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
]  # fmt: skip


def test_every_schedule_is_held_against_its_closed_form():
    assert set(SCHEDULED) == set(training.SCHEDULES)


@pytest.mark.parametrize("schedule", SCHEDULED)
@pytest.mark.parametrize("dynamics", DYNAMICS, ids=str)
def test_training_agrees_with_torchs_sgd_step_by_step(schedule, dynamics):
    x, y = examples()
    model = build().double()
    twin = copy.deepcopy(model)
    seen = []
    steps, options = SCHEDULED[schedule]
    fit(
        [model], x, y, generators=[cases.generator(7)], schedule=schedule,
        probe=lambda step, nets: seen.append(copy.deepcopy(nets[0])), probe_every=1, **recipe(), **dynamics, **options,
    )  # fmt: skip
    budget = 15
    assert len(seen) == budget
    trail = torch_sgd(twin, x, y, step_sizes=steps(0.1, budget), batch_size=4, seed=7, **dynamics)
    for ours, theirs in zip([*seen, model], trail, strict=True):
        assert same_weights(ours, theirs, rtol=1e-10, atol=1e-12)


@cases.isolated
def dense_with_batch_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.BatchNorm1d(6, momentum=None), nn.Tanh(), nn.Linear(6, 3))


def statistics(model):
    return [part for name, part in model.named_buffers() if "running" in name]


@pytest.mark.parametrize("dynamics", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("name", [*NORMED, "averages over all batches"])
def test_networks_with_batch_norm_train_as_torchs_sgd_in_train_mode_does_step_by_step(name, dynamics):
    x, y = examples(n=36)
    model = (build(0, name) if name in NORMED else dense_with_batch_norm()).double()
    twin, seen = copy.deepcopy(model), []
    fit(
        [model], x, y, generators=[cases.generator(7)], probe=lambda step, nets: seen.append(copy.deepcopy(nets[0])),
        probe_every=1, **recipe(batch_size=8), **dynamics,
    )  # fmt: skip
    trail = torch_sgd(twin, x, y, step_sizes=[0.1] * 12, batch_size=8, seed=7, **dynamics)
    assert len(seen) == 12
    for ours, theirs in zip([*seen, model], trail, strict=True):
        assert same_weights(ours, theirs, rtol=1e-8, atol=1e-10)
        assert not any(m.training for m in ours.modules())
    assert all((now != before).any() for now, before in zip(statistics(model), statistics(trail[0]), strict=True))


class Biased(nn.BatchNorm2d):
    """A faulty BatchNorm, whose running variance is a mean over the batch, not over one value less."""

    def forward(self, x):
        if self.training:
            over = (0, 2, 3)
            for running, now in ((self.running_mean, x.mean(over)), (self.running_var, x.var(over, correction=0))):
                running.lerp_(now.detach(), self.momentum)
            self.num_batches_tracked += 1
        how = (None, None) if self.training else (self.running_mean, self.running_var)
        return nn.functional.batch_norm(x, *how, self.weight, self.bias, self.training)


@pytest.mark.parametrize("faulty", [False, True])
def test_a_biased_running_variance_would_be_noticed(faulty, monkeypatch):
    x, y = examples(n=36)
    model = build(0, "resnet").double()
    twin = copy.deepcopy(model)
    if faulty:
        for module in model.modules():
            module.__class__ = Biased if type(module) is nn.BatchNorm2d else module.__class__
    fit([model], x, y, generators=[cases.generator(7)], **recipe(batch_size=8))
    last = torch_sgd(twin, x, y, step_sizes=[0.1] * 12, batch_size=8, seed=7)[-1]
    assert all(torch.allclose(p, q, rtol=1e-8) for p, q in zip(model.parameters(), last.parameters(), strict=True))
    assert same_weights(model, last, rtol=1e-8, atol=1e-10) is not faulty


def test_running_statistics_are_averages_of_each_batchs_mean_and_unbiased_variance():
    """In closed form: weights that a tiny step leaves alone, and what their convolution makes of each batch."""
    x, y = examples(n=24)
    model = build(0, "convnet_bn").double()
    first = copy.deepcopy(model.layers[:2])
    fit([model], x, y, generators=[cases.generator(3)], **recipe(batch_size=8, step_size=1e-12))
    mean, variance = torch.zeros(8, dtype=x.dtype), torch.ones(8, dtype=x.dtype)
    draw = cases.generator(3)
    for order in [torch.randperm(24, generator=draw) for _ in range(3)]:
        for batch in order.split(8):
            values = first(x[batch]).detach().movedim(1, 0).flatten(1)
            centred = values - values.mean(1, keepdim=True)
            mean = 0.9 * mean + 0.1 * values.mean(1)
            variance = 0.9 * variance + 0.1 * centred.square().sum(1) / (values.shape[1] - 1)
    assert torch.allclose(model.layers[2].running_mean, mean, rtol=1e-8)
    assert torch.allclose(model.layers[2].running_var, variance, rtol=1e-8)
    assert model.layers[2].num_batches_tracked == 9


@pytest.mark.parametrize("stack", [stacks.Stack, stacks.Turns])
def test_transformers_train_alike_stacked_and_in_turns_and_as_torchs_sgd_does(stack, monkeypatch):
    monkeypatch.setattr(sgd, "Turns", stack)
    x, y = examples(n=32)
    nets = [build(s, "vit").double() for s in (0, 1, 2)]
    twins = copy.deepcopy(nets)
    options = recipe(epochs=4) | {"momentum": 0.9}
    fits = fit(nets, x, y, generators=[cases.generator(s) for s in (0, 1, 2)], **options)
    for seed, (net, twin, result) in enumerate(zip(nets, twins, fits, strict=True)):
        trail = torch_sgd(twin, x, y, step_sizes=[0.1] * 32, batch_size=4, seed=seed, momentum=0.9)
        assert same_weights(net, trail[-1], rtol=1e-8, atol=1e-10)
        assert result.train_loss == pytest.approx(cases.per_example_cross_entropy(net(x), y).mean().item())


def test_a_turn_gives_the_gradient_and_the_losses_that_a_stack_gives():
    x, y = examples(n=12)
    nets = [build(s, "vit").double() for s in range(3)]
    turns, stack = (kind(nets, training.cross_entropy) for kind in (stacks.Turns, stacks.Stack))
    batch = torch.randperm(12, generator=cases.generator()).view(3, 4)
    (ours, losses), (theirs, expected) = (kind.gradient(x[batch], y[batch]) for kind in (turns, stack))
    assert torch.allclose(losses, expected, rtol=1e-10)
    assert ours.any()
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)
    assert torch.allclose(turns.loss(x, y), stack.loss(x, y), rtol=1e-10)
    for kind in (turns, stack):
        looks = kind.looks(x, y.expand(3, -1), [0, 2], list(torch.zeros(2, 12, dtype=x.dtype)))
        for row, look in zip([0, 2], looks, strict=True):
            assert torch.allclose(look.until(math.inf), kind.loss(x, y)[row])


def test_transformers_in_turns_look_at_their_loss_when_stacked_ones_do(monkeypatch):
    x, y = examples(n=32)
    steps = []
    for stack in (stacks.Turns, stacks.Stack):
        monkeypatch.setattr(sgd, "Turns", stack)
        nets = [build(s, "vit").double() for s in range(4)]
        options = recipe(epochs=60, step_size=0.03, batch_size=8) | {"momentum": 0.9, "stop_loss": 0.3}
        fits = fit(nets, x, y, generators=[cases.generator(s) for s in range(4)], **options)
        steps.append([f.steps for f in fits])
    assert steps[0] == steps[1]
    assert any(s % 4 for s in steps[0])


def test_a_look_at_the_loss_is_exact_below_the_level_and_a_lower_bound_above_it(monkeypatch):
    monkeypatch.setattr(level, "CHUNK", 4)
    x, y = examples(n=32)
    turns = stacks.Turns([build(s, "vit").double() for s in range(2)], training.cross_entropy)
    exact, seen = turns.loss(x, y)[1], torch.zeros(32, dtype=x.dtype)
    for share in (0.2, 0.5, 0.9, 1.01, 2):
        look = turns.looks(x, y.expand(2, -1), [1], [seen])[0]
        found = look.until(share * float(exact))
        assert look.over or found > share * exact
        assert found <= exact * (1 + 1e-12)
        assert share < 1 or torch.allclose(found, exact, rtol=1e-12)
        assert torch.allclose(look.until(math.inf), exact, rtol=1e-12)


@pytest.mark.parametrize("least", [1, 3])
def test_a_look_at_the_loss_begins_with_what_was_hard_and_ends_where_the_answer_is_certain(least, monkeypatch):
    monkeypatch.setattr(level, "CHUNK", 4)
    monkeypatch.setattr(level, "LEAST", least)
    x, y = examples(n=32)
    net, shown, seen = build(0, "vit").double(), [], torch.zeros(32, dtype=x.dtype)
    with torch.no_grad():
        hardest = cases.per_example_cross_entropy(net(x), y).sort(descending=True).values
    turns = stacks.Turns([net], training.cross_entropy)
    turns.models[0].register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    turns.looks(x, y[None], [0], [seen])[0].until(math.inf)
    for share in (0.1, 0.3, 0.6, 0.95):
        shown.clear()
        enough_loss = share * float(hardest.mean())
        turns.looks(x, y[None], [0], [seen])[0].until(enough_loss)
        enough = int((hardest.cumsum(0) > enough_loss * len(x)).nonzero()[0]) + 1
        whole, rest = divmod(enough, 4)
        assert shown == [4] * whole + [max(least, rest)] * (rest > 0)
        assert share > 0.9 or sum(shown) < share * len(x) + 4


def test_transformers_that_are_trained_keep_their_flags():
    x, y = examples(n=12)
    net = build(0, "vit")
    before = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    fit([net], x.float(), y, generators=[cases.generator()], **recipe(epochs=1))
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == before
    assert not net.training


@pytest.mark.parametrize("architecture", ["vit", *NORMED])
def test_a_look_is_settled_at_the_weights_and_statistics_it_began_with(architecture, monkeypatch):
    monkeypatch.setattr(level, "CHUNK", 4)
    x, y = examples(n=32)
    turns = stacks.Turns([build(0, architecture).double()], training.cross_entropy)
    before = turns.loss(x, y)[0]
    look = turns.looks(x, y[None], [0], [torch.zeros(32, dtype=x.dtype)])[0]
    look.until(float(before) / 4)
    assert not look.over
    turns.gradient(x[None, :8], y[None, :8])
    for w in turns.weights:
        w += 0.1
    assert not torch.allclose(turns.loss(x, y)[0], before)
    assert torch.allclose(look.until(math.inf), before, rtol=1e-12)


def stops(losses, batches, limit, per_epoch):
    """Updates after which the loss is looked at, by the rule written out: one network, every loss known."""
    near, due = False, []
    for step, (loss, batch) in enumerate(zip(losses, batches, strict=True), start=1):
        near = near or batch < 2 * limit
        if step % per_epoch == 0 or (near and step % 2 == 0):
            due.append(step)
            if loss < limit:
                break
            near = loss < 2 * limit
    return due


@pytest.mark.parametrize("draw", range(30))
def test_looks_cut_short_are_taken_at_the_same_updates_as_whole_ones(draw, monkeypatch):
    monkeypatch.setattr(level, "CHUNK", 5)
    limit, per_epoch, generator = 0.1, 7, cases.generator(draw)
    size = limit * (0.98 + 3 * torch.rand(120, 1, generator=generator, dtype=torch.float64))
    examples = torch.rand(120, 40, generator=generator, dtype=torch.float64) ** 8
    examples *= size / examples.mean(1, keepdim=True)
    batches = 4 * limit * torch.rand(120, 1, generator=generator)
    expected = stops(examples.mean(1).tolist(), batches.flatten().tolist(), limit, per_epoch)
    due = []

    def looks(rows, seen):
        due.append(step)
        return [level.Look(before, lambda part, now=examples[step - 1]: now[part]) for before in seen]

    watch = level.Level(limit, per_epoch, [torch.zeros(40, dtype=torch.float64)])
    for step in range(1, 121):
        if watch.reached(step, batches[step - 1], [0], looks):
            break
    assert due == expected


def test_a_whole_look_that_finds_the_loss_far_above_the_level_does_not_bring_the_next_one_forward():
    losses, due = torch.tensor([0.0, 0.0, 0.0, 0.0, 10.0]), []
    watch = level.Level(0.1, 4, [torch.zeros(5)])

    def looks(rows, seen):
        due.append(step)
        return [level.Look(seen[0], lambda part: losses[part])]

    for step in range(1, 9):
        watch.reached(step, torch.tensor([1.0]), [0], looks)
    assert due == [4, 8]


def test_a_transformer_that_has_stopped_costs_nothing_more():
    x, y = examples(n=32)
    nets, asked = [build(s, "vit").eval() for s in range(3)], []
    for index, net in enumerate(nets):
        net.register_forward_pre_hook(lambda net, _, index=index: asked.append(index) if net.training else None)
    options = recipe(epochs=60, step_size=0.03, batch_size=8) | {"momentum": 0.9, "stop_loss": 0.3}
    fits = fit(nets, x.float(), y, generators=[cases.generator(s) for s in range(3)], **options)
    first, last = min(fits, key=lambda f: f.steps), max(fits, key=lambda f: f.steps)
    assert first.steps < last.steps
    for index, f in enumerate(fits):
        assert f.steps <= asked.count(index) <= 2 * f.steps + 1


def test_squared_loss_is_half_the_squared_distance_from_the_label():
    x, y = examples()
    model = build().double()
    twin = copy.deepcopy(model)
    (result,) = fit([model], x, y, generators=[cases.generator(1)], loss="squared", **recipe())
    trail = torch_sgd(twin, x, y, step_sizes=[0.1] * 15, batch_size=4, seed=1, loss=cases.half_squared)
    assert same_weights(model, trail[-1], rtol=1e-10, atol=1e-12)
    assert result.train_loss == pytest.approx(cases.half_squared(model(x), y).mean().item())


def test_the_losses_agree_with_their_formulas():
    logits = torch.randn(5, 3, generator=cases.generator(), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1])
    naive = [-math.log(z.exp()[c] / z.exp().sum()) for z, c in zip(logits, y, strict=True)]
    assert training.cross_entropy(logits, y).tolist() == pytest.approx(naive)
    naive = [
        0.5 * sum((v - float(i == c)) ** 2 for i, v in enumerate(z)).item()
        for z, c in zip(logits, y.tolist(), strict=True)
    ]
    assert training.squared(logits, y).tolist() == pytest.approx(naive)


def test_a_last_incomplete_batch_is_left_out():
    x, y = examples(n=11)
    model = build().double()
    twin = copy.deepcopy(model)
    (result,) = fit([model], x, y, generators=[cases.generator(2)], **recipe())
    assert result.steps == 3 * 2
    trail = torch_sgd(twin, x, y, step_sizes=[0.1] * 6, batch_size=4, seed=2)
    assert same_weights(model, trail[-1], rtol=1e-10, atol=1e-12)


RUNS = {
    "constant": {"epochs": 4, "momentum": 0.9},
    "cosine": {"epochs": 4, "schedule": "cosine", "weight_decay": 0.01},
    "stop_loss": {"epochs": 60, "stop_loss": 0.3, "momentum": 0.9},
    "stop_loss never reached": {"epochs": 3, "stop_loss": 1e-9},
}


@pytest.mark.parametrize(("name", "turns"), [("mlp", False), ("convnet", True), ("vit", True), ("resnet", True)])
def test_networks_take_turns_on_a_cpu_where_stacking_them_saves_nothing(name, turns):
    assert sgd.in_turns(build(0, name), torch.device("cpu")) is turns


def test_only_running_statistics_make_networks_take_turns_on_a_gpu():
    for name in ("mlp", "convnet", "vit", "resnet"):
        assert sgd.in_turns(build(0, name), torch.device("cuda")) is (name == "resnet")


@pytest.mark.parametrize("run", RUNS)
def test_a_stacked_convolutional_network_does_not_depend_on_its_companions_either(run, monkeypatch):
    """As they are trained on a GPU."""
    monkeypatch.setattr(sgd, "in_turns", lambda model, device: False)
    test_a_network_does_not_depend_on_its_companions(run, "convnet")


@pytest.mark.in_turn(8)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_a_network_does_not_depend_on_its_companions(run, architecture):
    x, y = examples(n=32)
    x = x.float()
    calm = {} if architecture in ("mlp", "convnet") else {"step_size": 0.03, "batch_size": 8}

    def trained(seeds):
        nets = [build(s, architecture) for s in seeds]
        options = recipe(**calm, **RUNS[run])
        fits = fit(nets, x, y, generators=[cases.generator(s) for s in seeds], **options)
        return dict(zip(seeds, zip(nets, fits, strict=True), strict=True))

    together, other = trained([0, 1, 2]), trained([2, 5])
    for seed in (0, 1, 2):
        (alone,) = trained([seed]).values()
        for company in (together, other):
            if seed in company:
                assert same_weights(company[seed][0], alone[0])
                assert repr(company[seed][1]) == repr(alone[1])
    if run == "stop_loss":
        assert len({f.steps for _, f in together.values()}) > 1
        assert all(f.reached for _, f in together.values())


@pytest.mark.parametrize("activation", models.ACTIVATIONS)
@pytest.mark.parametrize("width", [7, 32])
def test_a_row_of_dense_networks_is_rounded_alike_wherever_it_stands(width, activation):
    nets = [build(s, width=width, activation=activation) for s in range(9)]
    x, y = torch.rand(9, 5, *SHAPE, generator=cases.generator()), torch.arange(45).view(9, 5) % 3
    together = dense.Dense(nets, training.cross_entropy)
    slopes, losses = (part.clone() for part in together.gradient(x, y))
    whole = together.loss(x.flatten(0, 1), y.flatten())
    for i, net in enumerate(nets):
        alone = dense.Dense([net], training.cross_entropy)
        slope, loss = alone.gradient(x[i : i + 1], y[i : i + 1])
        assert torch.equal(slope[0], slopes[i])
        assert torch.equal(loss[0], losses[i])
        assert torch.equal(alone.loss(x.flatten(0, 1), y.flatten())[0], whole[i])
    fewer = dense.Dense([nets[3], nets[8]], training.cross_entropy)
    assert torch.equal(fewer.gradient(x[[3, 8]], y[[3, 8]])[0], slopes[[3, 8]])


@pytest.mark.parametrize("loss", training.LOSSES)
@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_written_out_gradients_are_those_of_autograd(activation, loss):
    nets = [build(s, width=7, activation=activation, mean=0.1 * s).double() for s in range(3)]
    x, y = torch.rand(3, 5, *SHAPE, generator=cases.generator(), dtype=torch.float64), torch.arange(15).view(3, 5) % 3
    networks = dense.Dense(nets, training.LOSSES[loss])
    slopes, losses = networks.gradient(x, y)
    for i, net in enumerate(nets):
        value = training.LOSSES[loss](net(x[i]), y[i]).mean()
        assert torch.allclose(losses[i], value, rtol=1e-12)
        expected = torch.autograd.grad(value, list(net.parameters()))
        for ours, theirs in zip(networks.named(slopes[i]).values(), expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_dense_networks_and_no_others_are_written_out():
    assert dense.Dense.can([build(), build(1)])
    assert not dense.Dense.can([build(0, "convnet")])
    assert not dense.Dense.can([build(0, "vit")])
    unknown = build()
    unknown.layers[3] = nn.ELU()
    assert not dense.Dense.can([unknown])
    normed = build()
    normed.layers.insert(3, cases.isolated(nn.BatchNorm1d)(8))
    assert not dense.Dense.can([normed])
    assert isinstance(sgd._networks([normed], training.Recipe(**recipe()), [], torch.device("cpu")), stacks.Turns)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    x, y = examples()

    def trained(seed):
        net = build().double()
        fit([net], x, y, generators=[cases.generator(seed)], **recipe())
        return net

    assert same_weights(trained(0), trained(0))
    assert not same_weights(trained(0), trained(1))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("architecture", ["mlp", *NORMED])
def test_a_run_stops_right_below_its_loss_level_on_the_path_of_plain_sgd(architecture, seed):
    """The loss is that of the network in eval mode, by its running statistics."""
    x, y = examples(n=32)
    model = build(seed, architecture).double()
    twin = copy.deepcopy(model)
    (result,) = fit(
        [model], x, y, generators=[cases.generator(seed)], momentum=0.9, stop_loss=0.3, **recipe(epochs=200)
    )
    assert result.reached
    assert result.train_loss < 0.3
    assert result.train_loss == pytest.approx(cases.per_example_cross_entropy(model(x), y).mean().item())
    assert math.isnan(result.late_change)
    trail = torch_sgd(twin, x, y, step_sizes=[0.1] * result.steps, batch_size=4, seed=seed, momentum=0.9)
    assert same_weights(model, trail[-1], rtol=1e-8, atol=1e-10)
    # The loss is looked at after every epoch, eight updates here: it was not below the level before.
    for epoch_end in range(8, result.steps, 8):
        assert cases.per_example_cross_entropy(trail[epoch_end].eval()(x), y).mean() >= 0.3


def test_near_the_level_the_loss_is_looked_at_within_the_epoch():
    x, y = examples(n=32)
    fits = fit(
        [build(s) for s in range(6)], x.float(), y, generators=[cases.generator(s) for s in range(6)], momentum=0.9,
        stop_loss=0.3, **recipe(epochs=200),
    )  # fmt: skip
    steps = [f.steps for f in fits]
    assert all(f.reached for f in fits)
    assert all(s % 2 == 0 for s in steps)
    assert any(s % 8 for s in steps)


def jumped(x, y, *, seed, architecture="mlp", looks_apart=2, **options):
    """A loss level that the run jumps over: between two looks it falls by more than a tenth, from just above it."""
    losses = []

    def probe(_, nets):
        losses.append(cases.per_example_cross_entropy(nets[0](x), y).mean().item())

    model = build(seed, architecture).double()
    fit([model], x, y, generators=[cases.generator(seed)], probe=probe, probe_every=1, **options)
    looks = losses[looks_apart::looks_apart]  # as fit looks, after that many updates
    return next(
        0.98 * before
        for index, (before, after) in enumerate(itertools.pairwise(looks))
        if before == min(looks[: index + 1]) and after < 0.85 * before
    )


def test_a_run_that_overshoots_its_level_goes_on_from_before_with_half_the_step_until_it_lands_inside():
    x, y = examples(n=32)
    options = recipe(epochs=60, step_size=1.0, batch_size=8)
    for seed in range(4):
        level = jumped(x, y, seed=seed, **options)
        aimed = {"stop_loss": level, "stop_within": 0.1} | options
        (plain,) = fit([build(seed).double()], x, y, generators=[cases.generator(seed)], stop_loss=level, **options)
        assert plain.train_loss < 0.9 * level
        together = [build(s).double() for s in (seed, seed + 1, seed + 2)]
        draws = [cases.generator(s) for s in (seed, seed + 1, seed + 2)]
        careful = fit(together, x, y, generators=draws, **aimed)
        assert careful[0].halvings
        for s, model, one in zip((seed, seed + 1, seed + 2), together, careful, strict=True):
            loss = cases.per_example_cross_entropy(model(x), y).mean().item()
            assert one.reached
            assert 0.9 * level <= loss < level
            alone = build(s).double()
            (again,) = fit([alone], x, y, generators=[cases.generator(s)], **aimed)
            assert (again.halvings, again.steps) == (one.halvings, one.steps)
            assert same_weights(alone, model)
            if not one.halvings:
                (free,) = fit([build(s).double()], x, y, generators=[cases.generator(s)], stop_loss=level, **options)
                assert (free.steps, free.train_loss) == (one.steps, one.train_loss)


@pytest.mark.parametrize("architecture", ["mlp", *NORMED])
def test_a_network_that_overshot_is_put_back_to_where_it_was_last_seen_above_the_level(architecture, monkeypatch):
    """Its weights, and the statistics that went with them."""
    x, y = examples(n=32)
    seen, watched = [], level.Level.reached

    def reached(self, step, losses, running, looks):
        found = watched(self, step, losses, running, looks)
        seen.append((step, list(self.above), list(self.overshot)))
        return found

    options = recipe(epochs=60, step_size=1.0, batch_size=8)
    options |= {"stop_loss": jumped(x, y, seed=2, architecture=architecture, **options), "stop_within": 0.1}
    monkeypatch.setattr(level.Level, "reached", reached)
    trail = []

    def probe(update, models):
        trail.append(copy.deepcopy(models[0]))

    model = build(2, architecture).double()
    (result,) = fit([model], x, y, generators=[cases.generator(2)], probe=probe, probe_every=1, **options)
    assert result.reached and 0.9 * options["stop_loss"] <= result.train_loss < options["stop_loss"]
    assert result.train_loss == pytest.approx(cases.per_example_cross_entropy(model(x), y).mean().item())
    back = [step for step, _, overshot in seen if overshot]
    assert back
    for step in back:
        last = max(s for s, above, _ in seen if above and s < step)
        assert same_weights(trail[step], trail[last])  # both before the update of that number, counted from 0


def test_a_level_out_of_reach_uses_the_whole_budget_and_says_so():
    x, y = examples()
    (result,) = fit([build().double()], x, y, generators=[cases.generator()], stop_loss=1e-9, **recipe())
    assert result.steps == 15
    assert result.reached is False
    assert not result.diverged
    (free,) = fit([build().double()], x, y, generators=[cases.generator()], **recipe())
    assert free.reached is None


@pytest.mark.parametrize("stop_loss", [None, 0.01])
def test_a_diverged_run_is_told_and_its_companion_unharmed(stop_loss):
    x, y = examples()
    wild, calm = (build(s, activation="relu").double() for s in (0, 1))
    with torch.no_grad():
        for p in wild.parameters():
            p.mul_(1e200)
    alone = copy.deepcopy(calm)
    options = recipe(epochs=12, stop_loss=stop_loss)
    first, second = fit([wild, calm], x, y, generators=[cases.generator(0), cases.generator(1)], **options)
    fit([alone], x, y, generators=[cases.generator(1)], **options)
    assert first.diverged
    assert first.reached in (None, False)
    assert not second.diverged
    assert same_weights(calm, alone)


@pytest.mark.parametrize("architecture", ["mlp", *NORMED])
def test_the_report_holds_loss_accuracy_and_late_change_of_the_final_weights(architecture):
    x, y = examples()
    model = build(0, architecture).double()
    twin = copy.deepcopy(model)
    (result,) = fit([model], x, y, generators=[cases.generator()], **recipe(epochs=10))
    logits = model(x)
    assert result.steps == 50
    assert result.train_loss == pytest.approx(cases.per_example_cross_entropy(logits, y).mean().item())
    assert result.train_accuracy == pytest.approx((logits.argmax(1) == y).double().mean().item())
    # The last tenth of fifty updates begins after the 45th.
    before = torch_sgd(twin, x, y, step_sizes=[0.1] * 45, batch_size=4, seed=0)[-1]
    late = cases.per_example_cross_entropy(before.eval()(x), y).mean().item()
    assert result.late_change == pytest.approx(abs(result.train_loss - late) / late, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_training_learns_and_leaves_the_networks_in_eval_mode(seed):
    """More than the frequencies of the classes: at least half of what these leave open, in loss and in accuracy."""
    x, y = examples(n=60)
    model = build(seed)
    (result,) = fit([model], x.float(), y, generators=[cases.generator(seed)], **recipe(epochs=100))
    shares = y.bincount() / len(y)
    assert result.train_loss < -(shares * shares.log()).sum() / 2
    assert result.train_accuracy > (1 + shares.max()) / 2
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_probes_come_before_the_updates_they_are_numbered_by_and_change_nothing():
    x, y = examples()
    nets = [build(s).double() for s in (0, 1)]
    start, plain = copy.deepcopy(nets), copy.deepcopy(nets)
    seen = {}
    arguments = {"generators": [cases.generator(0), cases.generator(1)], **recipe()}
    fit(nets, x, y, probe=lambda step, ms: seen.update({step: copy.deepcopy(list(ms))}), probe_every=4, **arguments)
    assert list(seen) == [0, 4, 8, 12]
    assert all(same_weights(p, q) for p, q in zip(seen[0], start, strict=True))
    arguments["generators"] = [cases.generator(0), cases.generator(1)]
    fit(plain, x, y, **arguments)
    assert all(same_weights(p, q) for p, q in zip(nets, plain, strict=True))


def good():
    x, y = examples()
    return {"models": [build()], "x": x.float(), "y": y, "generators": [cases.generator()], **recipe()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"models": []}, "models is an empty list, or holds no modules"),
        ({"x": 2 * examples()[0].float()}, r"x spans .*; pixels must lie in \[0, 1\]"),
        ({"y": examples()[1][:-1]}, r"y has shape \(19,\).*it must hold 20 class indices"),
        ({"y": examples()[1] + 1}, r"y spans \[1, 3\]; class indices must lie in \[0, 2\]"),
        ({"generators": []}, "generators has 0 entries; it must have one per network, 1"),
        ({"step_size": 0.0}, "step_size is 0.0; it must be a finite number above 0"),
        ({"step_size": math.nan}, "step_size is nan"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number of at least 1"),
        ({"batch_size": 21}, "batch_size is 21; it must be a whole number from 1 to 20"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number of at least 1"),
        ({"momentum": -0.1}, "momentum is -0.1; it must be a finite number of at least 0"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be below 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be a finite number of at least 0"),
        (
            {"schedule": "cosin"},
            "schedule is 'cosin'; it must be one of constant, cosine, warmup-.*; did you mean 'cosine'",
        ),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; it must be below 1"),
        ({"label_smoothing": -0.1}, r"label_smoothing is -0.1; it must lie in \[0, 1\]"),
        ({"label_noise": 1.1}, r"label_noise is 1.1; it must lie in \[0, 1\]"),
        ({"warmup_share": math.nan}, r"warmup_share is nan; it must lie in \[0, 1\]"),
        ({"warmup_share": 0.1}, "warmup_share is 0.1; only schedule 'cosine' takes it, not 'constant'"),
        ({"warmup_epochs": 1.0}, "warmup_epochs is 1.0; only schedule 'warmup-constant' takes it, not 'constant'"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1; it must be a finite number of at least 0"),
        ({"patience": 0}, "patience is 0; it must be a whole number of at least 1"),
        ({"stop_within": 0.5}, "stop_within is 0.5; only a recipe with a stop_loss takes it"),
        ({"stop_within": 0.0, "stop_loss": 0.1}, "stop_within is 0.0; it must be above 0"),
        ({"patience": 2}, "patience is 2; only a recipe with a stop_loss takes it"),
        ({"nesterov": 1}, "nesterov is 1; it must be True or False"),
        ({"nesterov": True}, "nesterov is True; it needs a momentum above 0"),
        ({"step_x_decay": -1.0}, "step_x_decay is -1.0; it must be a finite number of at least 0"),
        ({"step_x_decay": 1e-5, "weight_decay": 1e-4}, "weight_decay is 0.0001 and step_x_decay 1e-05; give one of"),
        ({"augmentation": "flop"}, "augmentation is 'flop'; it must be one of none, shift, flip; did you mean 'flip'"),
        ({"shift_pixels": 2}, "shift_pixels is 2; only augmentation 'shift' takes it, not 'none'"),
        ({"shift_pixels": 0, "augmentation": "shift"}, "shift_pixels is 0; it must be a whole number of at least 1"),
        ({"penalty": "gradient"}, "penalty is 'gradient'; it must be one of none, input_gradient"),
        ({"penalty": "input_gradient", "strength": -1.0}, "strength is -1.0; it must be a finite number of at least 0"),
        ({"strength": 0.1}, "strength is 0.1; only a recipe with a penalty takes it"),
        (
            {"trainer": "sma"},
            "trainer is 'sma'; it must be one of sgd, sam, adversarial, adversarial_l2; did you",
        ),
        ({"radius": 0.1}, "radius is 0.1; trainer 'sgd' takes none"),
        ({"loss": "hinge"}, "loss is 'hinge'; it must be one of cross_entropy, squared"),
        ({"stop_loss": 0.0}, "stop_loss is 0.0; it must be a finite number above 0"),
        ({"probe_every": -1}, "probe_every is -1; it must be a whole number of at least 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(change, sentence, unchecked):
    asked = good() | change
    nets = asked["models"]
    before = copy.deepcopy(nets)
    with pytest.raises(ValueError, match=sentence):
        fit(asked.pop("models"), asked.pop("x"), asked.pop("y"), **asked)
    assert all(same_weights(p, q) for p, q in zip(nets, before, strict=True))


@cases.isolated
def coupled(layer):
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 4), layer, nn.Linear(4, 3))


class Centred(nn.Module):
    """Another way to couple the images of a batch, in train mode alone."""

    def forward(self, x):
        return x - x.mean(0) if self.training else x


LAYERS = [nn.BatchNorm1d(4, track_running_stats=False), nn.Dropout(0.5), nn.AlphaDropout(0.5), Centred()]


@pytest.mark.parametrize("beside", [nn.Identity(), nn.BatchNorm1d(4)])
@pytest.mark.parametrize("layer", LAYERS)
def test_batch_coupled_networks_are_refused(layer, beside):
    asked = good() | {"models": [coupled(nn.Sequential(beside, layer))]}
    with pytest.raises(ValueError, match=r"^model (answers|does not run).*; `fit` trains what stays a fixed function"):
        fit(asked.pop("models"), asked.pop("x"), asked.pop("y"), **asked)


def test_what_fit_cannot_train_is_refused_before_anything_is_trained(unchecked):
    x, y = examples(n=12)
    x = x.float()
    frozen = build(0, "mlp")
    next(frozen.parameters()).requires_grad_(False)
    cut = nn.Sequential(build(0, "mlp"), Cut())
    net = build(0, "mlp")
    for nets, generators, sentence in (
        ([frozen], [cases.generator()], "models hold frozen parameters"),
        ([cut], [cases.generator()], "model cuts the gradient off"),
        ([net, net], [cases.generator()] * 2, "models holds a network twice"),
        (net, [cases.generator()], "models is an empty MLP, or holds no modules"),
        ([net], [None], "generators must be a list of torch generators"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit(nets, x, y, generators=generators, **recipe(epochs=1))


class Cut(nn.Module):
    def forward(self, x):
        return x.detach() + 0 * x


class Times(nn.Module):
    """An attribute of which no state knows."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@cases.isolated
def layered(seed, *, beside=None, act=None, width=6, classes=3):
    """A network that no list of architectures knows."""
    layers = [nn.Flatten(), beside or nn.Identity(), nn.Linear(9, width), act or nn.Tanh(), nn.Linear(width, classes)]
    return cases.filled(nn.Sequential(*layers), seed)


def turned(seed, **options):
    """As `layered`, with a convolution, so that networks take turns."""
    return nn.Sequential(cases.filled(cases.isolated(nn.Conv2d)(1, 1, 1), seed), layered(seed, **options))


NOISY = cases.Called(lambda x: (x + 1e-3 * torch.rand_like(x)).tanh())
PAIRS = {
    "alike": (layered(0), layered(1), ""),
    "alike in turns": (turned(0), turned(1), ""),
    "one factor": (layered(0, beside=Times(2.0)), layered(1, beside=Times(2.0)), ""),
    "activation": (build(0).double(), build(1, activation="relu").double(), "has other layers"),
    "sharpness": (layered(0, act=nn.Softplus(9)), layered(1, act=nn.Softplus(3)), "answers otherwise"),
    "limit": (layered(0, act=nn.ReLU()), layered(1, act=nn.ReLU6()), "has other layers"),
    "factor": (layered(0), layered(1, beside=Times(1.001)), "has other layers"),
    "factors": (layered(0, beside=Times(2.0)), layered(1, beside=Times(2.001)), "answers otherwise than models.0."),
    "factors in turns": (turned(0, act=Times(2.0)), turned(1, act=Times(1.0)), "answers otherwise"),
    "dropout": (layered(0, act=Times(1.0)), layered(1, act=nn.Dropout(0.01)), "has other layers"),
    "own noise": (layered(0), layered(1, act=NOISY), "has other layers"),
    "width": (layered(0), layered(1, width=7), "has other layers"),
    "classes": (layered(0), layered(1, classes=4), "has other layers"),
    "precision": (layered(0), layered(1).float(), "has other layers"),
    "frozen": (layered(0), layered(1).requires_grad_(False), r"hold frozen parameters \(2.weight of models.1."),
    "statistics": (layered(0, act=nn.BatchNorm1d(6)), layered(1, act=nn.BatchNorm1d(6, eps=0.1)), "answers otherwise"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_every_network_of_an_ensemble_is_trained_as_itself(name):
    *nets, sentence = copy.deepcopy(PAIRS[name][:2]) + PAIRS[name][2:]
    x, y = examples(n=12)
    alone, before = copy.deepcopy(nets[1]), copy.deepcopy(nets)
    if sentence:
        with pytest.raises(ValueError, match=rf"^models.*{sentence}"):
            fit(nets, x, y, generators=[cases.generator(s) for s in (0, 1)], **recipe())
        assert all(same_weights(p, q) for p, q in zip(nets, before, strict=True))
        assert [m.training for m in nets] == [m.training for m in before]
        return
    told = fit(nets, x, y, generators=[cases.generator(s) for s in (0, 1)], **recipe())[1]
    (own,) = fit([alone], x, y, generators=[cases.generator(1)], **recipe())
    assert same_weights(nets[1], alone)
    assert not same_weights(nets[1], before[1])
    assert told.train_loss == own.train_loss
    assert own.train_loss == pytest.approx(cases.per_example_cross_entropy(alone(x), y).mean().item())


def test_networks_that_share_what_training_changes_are_refused():
    x, y = examples(n=12)
    for place in (2, 3):
        first, second = (layered(s, act=nn.BatchNorm1d(6)) for s in (0, 1))
        second[place] = first[place]
        with pytest.raises(ValueError, match=rf"^models\[1\] shares '{place}.weight' with another"):
            fit([first, second], x, y, generators=[cases.generator(s) for s in (0, 1)], **recipe())
    second[3] = nn.BatchNorm1d(6).double()
    second[3].running_mean = first[3].running_mean
    with pytest.raises(ValueError, match=r"^models\[1\] shares '3.running_mean' with another"):
        fit([first, second], x, y, generators=[cases.generator(s) for s in (0, 1)], **recipe())


class Sorted(nn.Module):
    """Experts: an image goes to one of two, by how bright its first pixel is."""

    def __init__(self):
        super().__init__()
        self.dark, self.bright = layered(0), layered(1)
        self.kernel = cases.filled(cases.isolated(nn.Conv2d)(1, 1, 1), 2)

    def forward(self, x):
        bright, x = x[:, 0, 0, 0] > 0.99, self.kernel(x)
        return torch.where(bright[:, None], self.bright(x), self.dark(x)) if bright.any() else self.dark(x)


def test_a_parameter_that_only_some_images_reach_is_trained():
    x, y = examples(n=12)
    x[:, 0, 0, 0] = torch.arange(12) >= 6
    net = Sorted()
    before = copy.deepcopy(net)
    fit([net], x, y, generators=[cases.generator()], **recipe(batch_size=12))
    assert all((p != q).any() for p, q in zip(net.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("make", [lambda seed: build(seed).double(), layered, turned])
@pytest.mark.parametrize("penalty", ["none", "input_gradient"])
def test_training_under_no_grad_is_training(make, penalty):
    x, y = examples(n=12)
    free, held = make(0), make(0)
    fields = recipe(penalty=penalty) | ({"strength": 0.1} if penalty != "none" else {})
    fit([free], x, y, generators=[cases.generator()], **fields)
    with torch.no_grad():
        fit([held], x, y, generators=[cases.generator()], **fields)
    assert same_weights(free, held)
    assert not same_weights(free, make(0))


@pytest.mark.parametrize("batch", [4, 2, 20])
def test_of_a_budget_below_ten_updates_the_late_change_is_that_of_the_last_one(batch):
    x, y = examples()
    x, y, updates = (x, y, 20 // batch) if batch != 2 else (x[:18], y[:18], 9)
    model = build().double()
    twin = copy.deepcopy(model)
    (result,) = fit([model], x, y, generators=[cases.generator()], **recipe(epochs=1, batch_size=batch))
    assert result.steps == updates
    trail = torch_sgd(twin, x, y, step_sizes=[0.1] * updates, batch_size=batch, seed=0)
    late, end = (cases.per_example_cross_entropy(m.eval()(x), y).mean().item() for m in trail[-2:])
    if updates > 1:
        assert result.late_change == pytest.approx(abs(end - late) / late, rel=1e-6)
        assert result.late_change > 0
    else:
        assert math.isnan(result.late_change)


class Twice(nn.Module):
    """A network of which one layer has two names; with a convolution it is trained stacked."""

    def __init__(self, convolves):
        super().__init__()
        self.conv, self.first = nn.Conv2d(1, 1, 1) if convolves else nn.Identity(), nn.Linear(9, 5)
        self.body, self.head = nn.Sequential(nn.Flatten(), self.first, nn.Tanh()), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(self.conv(x)))


@pytest.mark.parametrize("convolves", [True, False])
def test_a_layer_of_two_names_is_trained_and_stays_the_layer_that_it_was(convolves):
    x, y = examples(n=12)
    net = cases.isolated(Twice)(convolves)
    before = dict(net.named_parameters(remove_duplicate=False))
    weights = [p.detach().clone() for p in net.parameters()]
    fit([net], x.float(), y, generators=[cases.generator()], **recipe(epochs=1))
    after = dict(net.named_parameters(remove_duplicate=False))
    assert list(after) == list(before) and all(after[name] is p for name, p in before.items())
    assert all((p != old).any() for p, old in zip(net.parameters(), weights, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_a_network_that_is_refused_keeps_its_mode(training, unchecked):
    x, y = examples(n=12)
    net = nn.Sequential(build(0, "mlp"), Cut()).train(training)
    with pytest.raises(ValueError, match="model cuts the gradient off"):
        fit([net], x.float(), y, generators=[cases.generator()], **recipe(epochs=1))
    assert all(module.training == training for module in net.modules())


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 1}, "batch_size is 1; models do not train on such a batch: Expected more than 1 value per"),
        ({"penalty": "input_gradient"}, "penalty is 'input_gradient'; networks with BatchNorm are trained with 'none'"),
        ({"trainer": "another"}, "trainer is 'another'; networks with BatchNorm are trained with 'sgd' alone"),
    ],
)
def test_what_a_network_with_batch_norm_cannot_be_trained_by_is_refused_and_leaves_it_as_found(
    change, sentence, mode, monkeypatch
):
    monkeypatch.setitem(training.TRAINERS, "another", training.TRAINERS["sgd"])
    x, y = examples(n=12)
    net = build(0, "resnet").train(mode)
    before = copy.deepcopy(net)
    with pytest.raises(ValueError, match=sentence):
        fit([net], x.float(), y, generators=[cases.generator()], **recipe() | change)
    assert same_weights(net, before)
    assert all(module.training == mode for module in net.modules())
