import copy
import dataclasses
import math
from collections import Counter
from functools import partial

import cases
import pytest
import torch
from attrobust import attacks, experiments, models, regularizers, training, versions
from attrobust.balls import Ball
from attrobust.training import recipes, sgd, stacks
from torch.nn import functional as F

SHAPE = (1, 3, 3)
BASE = {"step_size": 0.1, "batch_size": 4, "epochs": 3}


def build(seed=0):
    options = {"activation": "tanh", "width": 8, "mean": 0.5, "std": 0.3}
    return models.build("mlp", input_shape=SHAPE, classes=3, seed=seed, **options).double()


def examples(n=20):
    x = torch.rand(n, *SHAPE, generator=cases.generator(), dtype=torch.float64)
    return x, x.flatten(1)[:, :3].argmax(1)


def fit(nets, x, y, seeds, **fields):
    return training.fit(nets, x, y, training.Recipe(**BASE | fields), generators=[cases.generator(s) for s in seeds])


def by_hand(model, x, y, draw, objective, *, images=lambda batch: batch, change=lambda model, take: take()):
    """The plain recipe by torch.optim.SGD: augmented images, any objective, any way to take its gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for batch in torch.randperm(len(x), generator=draw).split(4):
            shown = images(x[batch])

            def take(shown=shown, labels=y[batch]):
                optimizer.zero_grad()
                objective(model, shown, labels).backward()

            change(model, take)
            optimizer.step()
    return model


def cross_entropy(model, x, y):
    return F.cross_entropy(model(x), y)


def alike(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.allclose(p, q, rtol=1e-10, atol=1e-12) for p, q in pairs)


# ------------------------------------------------------------------ named recipes, schedules


def test_named_recipes_hold_the_numbers_of_their_table():
    def fields(name):
        recipe = recipes.named(name, step_size=0.06, batch_size=64, epochs=40)
        return recipe.momentum, recipe.schedule, recipe.stop_loss, recipe.most_epochs, recipe.decay

    assert {name: fields(name) for name in recipes.RECIPES} == {
        "matched": (0.9, "constant", 0.01, 200, 0.0),
        "plateau": (0.9, "cosine", None, 40, 0.0),
        "standard": (0.9, "cosine", None, 40, 5e-4),
        "decay_held": (0.9, "cosine", None, 40, pytest.approx(5e-4)),
        "early": (0.9, "constant", 0.1, 200, 0.0),
        "late": (0.9, "constant", 0.001, 200, 0.0),
        "pinned": (0.9, "constant", 0.01, 200, 0.0),
        **dict.fromkeys(("squared", "smoothed", "noisy", "augmented", "budget"), (0.9, "cosine", None, 40, 0.0)),
        **dict.fromkeys(("constant", "constant_moved"), (0.9, "warmup-constant", None, 40, 0.0)),
    }


@pytest.mark.parametrize(
    ("name", "base", "changes"),
    [
        ("early", "matched", {"stop_loss": 0.1}), ("late", "matched", {"stop_loss": 0.001}),
        ("pinned", "matched", {"pinned": True}), ("squared", "plateau", {"loss": "squared"}),
        ("smoothed", "plateau", {"label_smoothing": 0.1}), ("noisy", "plateau", {"label_noise": 0.1}),
        ("augmented", "plateau", {"augmentation": "shift"}), ("constant", "plateau", {"schedule": "warmup-constant"}),
        ("constant_moved", "constant", {"augmentation": "shift"}), ("standard", "plateau", {"weight_decay": 5e-4}),
        ("decay_held", "plateau", {"step_x_decay": 3e-5}), ("budget", "plateau", {}),
    ],
)  # fmt: skip
def test_a_named_recipe_differs_from_its_base_in_one_thing_at_most(name, base, changes):
    own, other = (recipes.named(which, step_size=0.06, batch_size=64, epochs=40) for which in (name, base))
    assert own == dataclasses.replace(other, **changes)


def test_an_unknown_recipe_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"recipe is 'match'; it must be one of matched, .*; did you mean 'matched'"):
        recipes.named("match", step_size=0.1, batch_size=4, epochs=1)


@pytest.mark.parametrize("step_size", [0.003, 0.0134, 0.06, 2])
def test_step_times_decay_is_held_whatever_the_step(step_size):
    recipe = recipes.named("decay_held", step_size=step_size, batch_size=4, epochs=1)
    assert recipe.decay * step_size == pytest.approx(3e-5, rel=1e-12)
    standard = recipes.named("standard", step_size=step_size, batch_size=4, epochs=1)
    assert standard.decay == 5e-4


def test_decay_told_by_its_product_with_the_step_is_the_same_decay():
    x, y = examples()
    told, held = build(), build()
    fit([told], x, y, [0], weight_decay=0.05)
    fit([held], x, y, [0], step_x_decay=0.005)
    assert alike(told, held)


def test_annealing_begins_after_its_warm_up_and_ends_one_update_before_zero():
    epochs, per_epoch = 40, 15
    last, warm = epochs * per_epoch - 1, 12  # 2 % of 600 updates
    recipe = recipes.named("plateau", step_size=0.1, batch_size=4, epochs=epochs)
    steps = [recipe.step(t, per_epoch=per_epoch) for t in range(last + 1)]
    assert steps[0] == pytest.approx(0.1 / warm, rel=1e-12)
    assert steps[warm] == pytest.approx(0.1 * math.cos(math.pi * warm / 1200) ** 2, rel=1e-12)
    assert steps[300] == pytest.approx(0.05, rel=1e-12)
    assert steps[last] == pytest.approx(0.1 * math.sin(math.pi / 1200) ** 2, rel=1e-9)
    assert max(steps) == steps[warm - 1]


def test_the_warm_up_share_is_counted_in_updates_and_zero_is_none():
    recipe = training.Recipe(step_size=1.0, batch_size=4, epochs=10, schedule="cosine", warmup_share=0.5)
    bare = dataclasses.replace(recipe, warmup_share=0.0)
    for t in range(20):
        assert recipe.step(t, per_epoch=2) == pytest.approx(bare.step(t, per_epoch=2) * min(1, (t + 1) / 10))
    assert bare.step(0, per_epoch=2) == 1.0


def test_a_constant_step_follows_a_warm_up_over_whole_epochs():
    recipe = training.Recipe(step_size=0.6, batch_size=4, epochs=9, schedule="warmup-constant", warmup_epochs=2)
    assert [recipe.step(t, per_epoch=3) for t in range(8)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6])


def test_one_and_one_point_zero_are_one_recipe():
    first, second = (training.Recipe(step_size=one, batch_size=4, epochs=3, stop_loss=one) for one in (1, 1.0))
    assert repr(first) == repr(second)


def test_a_recipe_that_was_before_norms_could_be_pinned_has_the_name_it_had():
    """Keys of stored networks hold this digest: it is what a Recipe without the field gave."""
    recipe = training.Recipe(step_size=0.1, batch_size=4, epochs=3)
    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name != "pinned"}
    bare = dataclasses.make_dataclass("Recipe", list(fields))(**fields)
    assert versions.digest(recipe) == versions.digest(bare) == "7e80ae1e5eddd4f6"
    assert versions.digest(dataclasses.replace(recipe, pinned=True)) != versions.digest(bare)


# ------------------------------------------------------------------ pinned norms


def test_pinned_weight_matrices_keep_their_first_norms_after_every_update_and_biases_are_free():
    x, y = examples()
    nets = [build(s) for s in range(2)]
    twins = copy.deepcopy(nets)
    first = [[w.norm() for w in net.parameters() if w.ndim > 1] for net in nets]
    fit(nets, x, y, [5, 6], pinned=True)
    for seed, net, twin, lengths in zip((5, 6), nets, twins, first, strict=True):
        optimizer, draw = torch.optim.SGD(twin.parameters(), lr=0.1), cases.generator(seed)
        for _ in range(3):
            for batch in torch.randperm(len(x), generator=draw).split(4):
                optimizer.zero_grad()
                cross_entropy(twin, x[batch], y[batch]).backward()
                optimizer.step()
                matrices = [w for w in twin.parameters() if w.ndim > 1]
                for w, length in zip(matrices, lengths, strict=True):
                    w.data = F.normalize(w.data.flatten(), dim=0).view_as(w) * length
        assert alike(net, twin)
        assert [w.norm().item() for w in net.parameters() if w.ndim > 1] == pytest.approx([n.item() for n in lengths])
        assert any(b.any() for b in net.parameters() if b.ndim == 1)


def test_of_a_transformer_the_weights_of_layers_are_pinned_and_its_own_tokens_are_free():
    x, y = examples()
    options = {"patch": 1, "dim": 8, "heads": 2, "depth": 1}
    model = models.build("vit", input_shape=SHAPE, classes=3, seed=0, **options).double()
    first = {name: w.detach().norm().item() for name, w in model.named_parameters()}
    fit([model], x, y, [0], pinned=True)
    for name, w in model.named_parameters():
        pinned = w.ndim > 1 and name.endswith("weight")
        assert (w.norm().item() == pytest.approx(first[name], rel=1e-12)) == pinned, name
    assert model.cls.any()


def test_weights_that_became_zero_stay_zero_under_a_pinned_norm():
    x, y = examples()
    model = build().float()
    for w in model.parameters():
        w.data.zero_()
    (result,) = fit([model], torch.zeros_like(x).float(), y, [0], pinned=True)
    assert not result.diverged
    assert all(w.isfinite().all() for w in model.parameters())
    networks = stacks.Turns([build().float()], training.Recipe(**BASE).per_example_loss)
    lengths = [length * 11 for length in networks.lengths(0)]
    networks.weights.zero_()
    networks.pin(0, lengths)
    assert not networks.weights.any()


def test_pinned_networks_that_stop_at_their_own_time_are_what_they_would_be_alone():
    x, y = examples()
    options = {"pinned": True, "stop_loss": 0.6, "epochs": 300, "momentum": 0.9}
    nets = [build(s) for s in range(3)]
    fits = fit(nets, x, y, range(3), **options)
    assert len({f.steps for f in fits}) > 1
    for seed, net in enumerate(nets):
        alone, start = build(seed), build(seed)
        fit([alone], x, y, [seed], **options)
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), alone.parameters(), strict=True))
        for w, before in zip(net.parameters(), start.parameters(), strict=True):
            assert w.ndim == 1 or torch.allclose(w.norm(), before.norm(), rtol=1e-12)


# ------------------------------------------------------------------ labels, images


@pytest.mark.parametrize(("share", "n", "wrong"), [(0.0, 30, 0), (0.25, 30, 8), (0.5, 31, 16), (1.0, 30, 30)])
def test_exactly_the_asked_share_of_labels_is_wrong_in_every_class_alike(share, n, wrong):
    y, seen = torch.arange(n) % 5, Counter()
    for seed in range(200):
        noisy = training.noisy_labels(y, share, classes=5, generator=cases.generator(seed))
        assert int((noisy != y).sum()) == wrong
        assert noisy.min() >= 0
        assert noisy.max() < 5
        seen.update(((noisy - y) % 5)[noisy != y].tolist())
    # Four other classes, equally often: within five standard errors of a binomial count.
    total = sum(seen.values())
    assert all(abs(seen[d] - total / 4) < 5 * math.sqrt(total * 3 / 16) for d in range(1, 5)) or not total
    assert torch.equal(y, torch.arange(n) % 5)


def test_each_network_learns_its_own_noisy_labels_drawn_once_before_its_batches():
    x, y = examples()
    nets = [build(s) for s in range(2)]
    twins = copy.deepcopy(nets)
    fits = fit(nets, x, y, [5, 6], label_noise=0.3)
    for seed, net, twin, result in zip((5, 6), nets, twins, fits, strict=True):
        draw = cases.generator(seed)
        noisy = training.noisy_labels(y, 0.3, classes=3, generator=draw)
        assert alike(net, by_hand(twin, x, noisy, draw, cross_entropy))
        assert result.train_loss == pytest.approx(F.cross_entropy(net(x), noisy).item())
        assert result.train_accuracy == pytest.approx((net(x).argmax(1) == noisy).double().mean().item())


def test_networks_with_noisy_labels_stop_at_their_own_level_as_they_would_alone():
    x, y = examples()
    options = {"label_noise": 0.2, "stop_loss": 0.6, "epochs": 300, "momentum": 0.9}
    nets = [build(s) for s in range(3)]
    fits = fit(nets, x, y, range(3), **options)
    assert all(f.reached and f.train_loss < 0.6 for f in fits)
    assert len({f.steps for f in fits}) > 1
    for seed, net in enumerate(nets):
        alone = build(seed)
        fit([alone], x, y, [seed], **options)
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize("pixels", [1, 2])
def test_a_shift_moves_an_image_by_whole_pixels_and_black_moves_in(pixels):
    x = 0.1 + 0.9 * torch.rand(200, 2, 4, 5, generator=cases.generator())
    moved, seen = training.AUGMENTATIONS["shift"](x, pixels, cases.generator(1)), set()
    assert moved.shape == x.shape
    for image, other in zip(x, moved, strict=True):
        found = []
        for down in range(-pixels, pixels + 1):
            for right in range(-pixels, pixels + 1):
                candidate = torch.zeros_like(image)
                for row in range(4):
                    for column in range(5):
                        if 0 <= row - down < 4 and 0 <= column - right < 5:
                            candidate[:, row, column] = image[:, row - down, column - right]
                if torch.equal(candidate, other):
                    found.append((down, right))
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == (2 * pixels + 1) ** 2


def test_half_of_the_images_are_mirrored_and_the_others_untouched():
    x = torch.rand(400, 2, 4, 5, generator=cases.generator())
    mirrored = training.AUGMENTATIONS["flip"](x, 1, cases.generator(1))
    kept = (mirrored == x).flatten(1).all(1)
    assert torch.equal(mirrored[~kept], x[~kept][..., [4, 3, 2, 1, 0]])
    assert abs(int(kept.sum()) - 200) < 50  # five standard errors


@pytest.mark.parametrize("name", ["shift", "flip"])
def test_images_are_augmented_before_every_update_from_the_networks_own_generator(name):
    x, y = examples()
    nets = [build(s) for s in range(2)]
    twins = copy.deepcopy(nets)
    fit(nets, x, y, [5, 6], augmentation=name)
    for seed, net, twin in zip((5, 6), nets, twins, strict=True):
        draw = cases.generator(seed)
        augment = training.AUGMENTATIONS[name]
        by_hand(twin, x, y, draw, cross_entropy, images=lambda b, draw=draw, augment=augment: augment(b, 1, draw))
        assert alike(net, twin)


# ------------------------------------------------------------------ losses, penalties, trainers


def test_smoothed_labels_spread_their_share_over_all_classes():
    logits = torch.randn(5, 3, generator=cases.generator(), dtype=torch.float64)
    y, label = torch.tensor([0, 1, 2, 0, 1]), torch.full((5, 3), 0.1, dtype=torch.float64)
    label[range(5), y] = 0.8
    expected = {
        "cross_entropy": -(label * logits.log_softmax(1)).sum(1),
        "squared": 0.5 * (logits - label).square().sum(1),
    }
    for name, values in expected.items():
        recipe = training.Recipe(**BASE, loss=name, label_smoothing=0.3)
        assert torch.allclose(recipe.per_example_loss(logits, y), values, rtol=1e-12)


@pytest.mark.parametrize(
    "penalty", ["input_gradient", lambda model, x, y: model(x).square().sum(1)], ids=["named", "given"]
)
def test_a_penalty_is_added_with_its_strength_and_left_out_of_the_reported_loss(penalty):
    x, y = examples()
    nets = [build(s) for s in range(2)]
    twins = copy.deepcopy(nets)

    def objective(model, x, y):
        if callable(penalty):
            return cross_entropy(model, x, y) + 0.7 * penalty(model, x, y).mean()
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at, create_graph=True)
        return cross_entropy(model, x, y) + 0.7 * slope.square().sum((1, 2, 3)).mean()

    fits = fit(nets, x, y, [5, 6], penalty=penalty, strength=0.7)
    for seed, net, twin, result in zip((5, 6), nets, twins, fits, strict=True):
        assert alike(net, by_hand(twin, x, y, cases.generator(seed), objective))
        assert result.train_loss == pytest.approx(cross_entropy(net, x, y).item())


def test_a_penalty_of_no_strength_changes_nothing():
    x, y = examples()
    plain, weightless = build(), build()
    fit([plain], x, y, [0])
    fit([weightless], x, y, [0], penalty="input_gradient")
    assert alike(plain, weightless)


def test_another_trainer_is_one_function_in_the_registry(monkeypatch):
    def downhill(model, objective, x, y, radius, generator):
        found, loss = training.TRAINERS["sgd"](model, objective, x, y, radius, generator)
        return [(1 - radius) * g for g in found], loss

    monkeypatch.setitem(training.TRAINERS, "half", downhill)
    x, y = examples()
    nets = [build(s) for s in range(2)]
    twins = copy.deepcopy(nets)
    fit(nets, x, y, [5, 6], trainer="half", radius=0.5)
    for seed, net, twin in zip((5, 6), nets, twins, strict=True):
        half = by_hand(twin, x, y, cases.generator(seed), lambda *given: cross_entropy(*given) / 2)
        assert alike(net, half)


def test_sharpness_aware_minimisation_takes_its_gradient_a_step_uphill():
    def change(model, take):
        take()
        weights = list(model.parameters())
        kept, length = copy.deepcopy(weights), sum(w.grad.square().sum() for w in weights).sqrt()
        with torch.no_grad():
            for w in weights:
                w += 0.2 * w.grad / length
        take()
        with torch.no_grad():
            for w, old in zip(weights, kept, strict=True):
                w.copy_(old)

    x, y = examples()
    nets = [build(s) for s in range(2)]
    twins = copy.deepcopy(nets)
    fit(nets, x, y, [5, 6], trainer="sam", radius=0.2)
    for seed, net, twin in zip((5, 6), nets, twins, strict=True):
        assert alike(net, by_hand(twin, x, y, cases.generator(seed), cross_entropy, change=change))


def test_adversarial_training_takes_its_gradient_at_images_that_seven_signed_steps_attacked():
    x, y = examples()
    net = build()
    twin, draw = copy.deepcopy(net), cases.generator(5 ^ sgd.DRAWS)

    def attacked(model, images, labels):
        at = (images + 0.1 * (2 * torch.rand(images.shape, generator=draw, dtype=x.dtype) - 1)).clamp(0, 1)
        for _ in range(7):
            at = at.detach().requires_grad_()
            (slope,) = torch.autograd.grad(cross_entropy(model, at, labels), at)
            at = torch.minimum(torch.maximum(at + 0.25 / 7 * slope.sign(), images - 0.1), images + 0.1).clamp(0, 1)
        return cross_entropy(model, at.detach(), labels)

    fit([net], x, y, [5], trainer="adversarial", radius=0.1)
    assert alike(net, by_hand(twin, x, y, cases.generator(5), attacked))


@cases.isolated
def test_counting_leaves_running_statistics_and_knows_attention_that_torch_would_fuse():
    model, x = models.build("convnet_bn", input_shape=(1, 8, 8), classes=3, seed=0).train(), torch.rand(4, 1, 8, 8)
    before = copy.deepcopy(model.state_dict())
    recipe, y = training.Recipe(**BASE), torch.tensor([0, 1, 2, 0])
    assert 2.5 < training.passes(model, x, y, recipe, generator=cases.generator()) < 3
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = torch.nn.Sequential(torch.nn.Flatten(2), layer, torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
    x = torch.rand(4, 8, 2, 4)
    assert 2 < training.passes(encoder, x, y, recipe, generator=cases.generator()) < 4


@pytest.mark.parametrize(
    "penalty", ["art", "ig_sum_norm", partial(regularizers.art, steps=1)], ids=["art", "ig_sum_norm", "with an option"]
)
@pytest.mark.parametrize("loss", [{"loss": "squared"}, {"label_smoothing": 0.1}], ids=str)
def test_a_penalty_that_moves_the_cross_entropy_is_added_to_no_other_loss(penalty, loss):
    with pytest.raises(ValueError, match="it moves cross-entropy alone, not loss"):
        training.Recipe(**BASE, penalty=penalty, strength=1.0, **loss)


@pytest.mark.parametrize("trainer", ["sam", "adversarial"])
def test_a_trainer_that_looks_no_way_around_is_plain_sgd_bit_for_bit(trainer):
    x, y = examples()
    plain, other = build(), build()
    fit([plain], x, y, [0])
    fit([other], x, y, [0], trainer=trainer)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))


def test_passes_are_counted_and_plain_sgd_takes_three_but_for_the_pixels_of_the_first_layer():
    model, (x, y) = build(), examples()

    def cost(**fields):
        return training.passes(model, x, y, training.Recipe(**BASE | fields), generator=cases.generator())

    sizes = [w.numel() for name, w in model.named_parameters() if name.endswith("weight")]
    assert cost() == pytest.approx(3 - sizes[0] / sum(sizes))
    assert cost(trainer="sam", radius=0.1) == pytest.approx(2 * cost())
    assert cost(trainer="adversarial", radius=0.1) == pytest.approx(cost() + 7 * 2)
    assert cost(trainer="adversarial") == cost(trainer="sam") == cost(penalty="ssr") == cost()  # as they are trained
    # Double backpropagation: one more forward and backward, and three for what is differentiated of both.
    assert 6 < cost(penalty="input_gradient", strength=0.1) < 9
    with pytest.raises(ValueError, match="model runs no product or convolution that could be counted"):
        training.passes(torch.nn.Flatten(), x, y, training.Recipe(**BASE), generator=cases.generator())


@pytest.mark.parametrize(
    "value",
    [
        training.Recipe(step_size=0.1, batch_size=4, epochs=3),
        experiments.Experiment("digits", step_size=0.1, batch_size=8, epochs=1, seed=0),
        experiments.Measurement(),
        attacks.Effort(),
        Ball("linf", 0.1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_enters_a_key_is_a_value_that_nobody_can_change(value):
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, getattr(value, name))
    assert hash(value) == hash(dataclasses.replace(value))


def test_the_numbers_of_a_recipe_are_named():
    with pytest.raises(TypeError, match="positional"):
        training.Recipe(0.1, 4, 3)
