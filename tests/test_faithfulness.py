import itertools
from functools import partial

import cases
import numpy as np
import pandas as pd
import pytest
import torch
from attrobust import attributions, faithfulness, similarity
from attrobust.attributions import pixelwise
from torch import nn
from torch.nn import functional as F

X, Y = cases.images(4), cases.labels(4)
CURVES = {"deletion": faithfulness.deletion, "insertion": faithfulness.insertion}


def two_classes(seed=0, pixels=5):
    """A linear network of one row of pixels whose second logit is always 0: its probability rises with the first."""
    with torch.random.fork_rng(devices=[]):
        model = cases.filled(nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2)), seed)
    with torch.no_grad():
        model[1].weight[1], model[1].bias[1] = 0, 0
    return model, cases.images(1, seed, shape=(1, 1, pixels)), torch.tensor([0])


def ranked(order):
    """Importances that put the pixels in this order."""
    importances = torch.empty(len(order), dtype=torch.float64)
    importances[list(order)] = torch.arange(len(order), 0, -1, dtype=torch.float64)
    return importances.view(1, 1, -1)


def curve(name, model, x, y, importances, seed=0, **options):
    steps = options.pop("steps", x.shape[-1] * x.shape[-2])
    return CURVES[name](model, x, y, importances, steps=steps, generator=cases.generator(seed), **options)


# ------------------------------------------------------------------ curves


@pytest.mark.parametrize("baseline", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_on_a_linear_network_the_order_of_contributions_is_the_best_of_all_orders(seed, baseline):
    model, x, y = two_classes(seed)
    contributions = attributions.integrated_gradients(model, x, y, baseline=baseline)[:, 0]
    for name, best in (("deletion", min), ("insertion", max)):
        every = [
            faithfulness.area(curve(name, model, x, y, ranked(order), baseline=baseline)).item()
            for order in itertools.permutations(range(5))
        ]
        ours = faithfulness.area(curve(name, model, x, y, contributions, baseline=baseline)).item()
        assert ours == pytest.approx(best(every), abs=1e-14)
        assert max(every) - min(every) > 1e-3


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_is_the_probability_of_images_changed_pixel_by_pixel(name):
    model, importances = cases.conv(), pixelwise(attributions.saliency(cases.conv(), X, Y)).detach()
    found = curve(name, model, X, Y, importances, baseline=0.3)
    for i in range(len(X)):
        order = importances[i].flatten().argsort(descending=True)
        image, other = (X[i], torch.full_like(X[i], 0.3))[:: 1 if name == "deletion" else -1]
        image = image.clone()
        for step in range(10):
            expected = model(image[None]).softmax(1)[0, Y[i]]
            assert found[i, step].item() == pytest.approx(expected.item())
            if step < 9:
                row, column = divmod(order[step].item(), 3)
                image[:, row, column] = other[:, row, column]


def test_insertion_of_one_order_is_deletion_of_the_other_way_round():
    model, importances = cases.conv(), X.sum(1)
    blank = torch.full_like(X, 0.2)
    inserted = curve("insertion", model, X, Y, importances, baseline=blank)
    assert torch.equal(inserted, curve("deletion", model, blank, Y, importances, baseline=X))
    reverse = curve("deletion", model, X, Y, -importances, baseline=blank).flip(1)
    assert torch.allclose(inserted, reverse)


def test_fewer_steps_are_a_subset_of_the_curve():
    model, importances = cases.conv(), X.sum(1)
    whole, thirds = (curve("deletion", model, X, Y, importances, steps=n) for n in (9, 3))
    assert torch.equal(thirds, whole[:, ::3])


@pytest.mark.parametrize(("pixels", "steps"), [(7, 3), (8, 3), (9, 4), (11, 7), (11, 11)])
def test_every_stage_takes_the_nearest_whole_number_of_pixels(pixels, steps):
    model, x, y = two_classes(pixels=pixels)
    with torch.no_grad():
        model[1].weight[0], model[1].bias[0] = 1.0, 0.0
    kept = curve("deletion", model, torch.ones_like(x), y, ranked(range(pixels)), steps=steps)[0].logit()
    taken = pixels - kept.round()
    assert torch.allclose(kept, kept.round(), atol=1e-9)
    assert (taken - pixels * torch.arange(steps + 1) / steps).abs().max() <= 0.5
    assert taken[[0, -1]].tolist() == [0, pixels]


def test_the_area_under_a_straight_line_is_its_mean():
    line = torch.linspace(0.8, 0.2, 7, dtype=torch.float64)[None]
    assert faithfulness.area(line).item() == pytest.approx(0.5)
    assert faithfulness.area(torch.ones(2, 5)).tolist() == [1.0, 1.0]


def test_ties_fall_in_random_order_and_nothing_else_does():
    model, x, y = two_classes(pixels=4)
    order = ranked((2, 0, 3, 1))
    assert torch.equal(curve("deletion", model, x, y, order, 0), curve("deletion", model, x, y, order, 1))
    tied = torch.tensor([[[1.0, 2.0, 1.0, 0.0]]], dtype=torch.float64)
    seen = {tuple(curve("deletion", model, x, y, tied, seed)[0].tolist()) for seed in range(20)}
    ways = {tuple(curve("deletion", model, x, y, ranked(o))[0].tolist()) for o in ((1, 0, 2, 3), (1, 2, 0, 3))}
    assert seen == ways


def test_a_map_of_zeros_has_a_random_order():
    model, x, y = two_classes(pixels=3)
    orders = itertools.permutations(range(3))
    every = [faithfulness.area(curve("deletion", model, x, y, ranked(o))).item() for o in orders]
    zero = torch.zeros(1, 1, 3, dtype=torch.float64)
    areas = [faithfulness.area(curve("deletion", model, x, y, zero, seed)).item() for seed in range(300)]
    assert {round(a, 10) for a in areas} == {round(a, 10) for a in every}
    assert np.mean(areas) == pytest.approx(np.mean(every), abs=4 * np.std(every) / 300**0.5)


def test_an_attention_map_moves_its_patches_together():
    model, x = cases.vit(), cases.images(2, shape=cases.VIT_SHAPE)
    maps = attributions.rollout(model, x, cases.labels(2))[:, 0].detach()
    fine = F.interpolate(maps[:, None], size=x.shape[-2:], mode="nearest")[:, 0]
    ours = curve("deletion", model, x, cases.labels(2), maps, steps=6)
    assert torch.allclose(ours, curve("deletion", model, x, cases.labels(2), fine, steps=6))


@pytest.mark.parametrize(
    ("importances", "steps", "sentence"),
    [
        (X.sum(1) * float("nan"), 3, "importances holds 36 entries that are NaN or infinite; all must be finite"),
        (X.sum(1)[:, :2], 3, r"importances have shape \(4, 2, 3\); they must be \(batch, rows, columns\)"),
        (X.sum(1), 0, "steps is 0; it must be a whole number from 1 to 9"),
        (X.sum(1), 10, "steps is 10; it must be a whole number from 1 to 9"),
    ],
)
def test_bad_importances_are_refused(importances, steps, sentence):
    with pytest.raises(ValueError, match=sentence):
        curve("deletion", cases.conv(), X, Y, importances, steps=steps)


# ------------------------------------------------------------------ the table of areas


def areas(model=None, **changes):
    how = {"attributions": {"saliency": attributions.saliency}, "generator": cases.generator(), "steps": 9, **changes}
    return faithfulness.insertion_deletion(model or cases.conv(), how.pop("x", X), **how)


def test_there_is_one_row_per_image_and_attribution_and_one_for_chance():
    table = areas(attributions={"saliency": attributions.saliency, "lrp": attributions.lrp})
    assert list(table.columns) == ["image", "attribution", "deletion", "insertion"]
    assert (table.groupby("attribution")["image"].apply(sorted) == [[0, 1, 2, 3]] * 3).all()
    assert set(table["attribution"]) == {"random", "saliency", "lrp"}
    assert table[["deletion", "insertion"]].gt(0).all(axis=None)
    assert table[["deletion", "insertion"]].lt(1).all(axis=None)


def test_a_row_is_the_area_of_its_curve_for_the_predicted_class():
    model, signed = cases.conv(), lambda m: m.sum(1)
    row = areas(model, attributions={"ixg": attributions.input_x_gradient}, reduction=signed, baseline=0.1)
    row = row[row["attribution"] == "ixg"].set_index("image")
    target = model(X).argmax(1)
    order = signed(attributions.input_x_gradient(model, X, target)).detach()
    for name in CURVES:
        expected = faithfulness.area(curve(name, model, X, target, order, baseline=0.1))
        assert row[name].tolist() == pytest.approx(expected.tolist())


def test_contributions_beat_chance_and_chance_beats_their_opposite():
    maps = {"ixg": attributions.input_x_gradient, "opposite": lambda *a: -attributions.input_x_gradient(*a)}
    model = cases.linear()
    table = areas(model, x=cases.images(12), attributions=maps, reduction=lambda m: m.sum(1), draws=8)
    means = table.groupby("attribution")[["deletion", "insertion"]].mean()
    assert means.loc["ixg", "deletion"] < means.loc["random", "deletion"] < means.loc["opposite", "deletion"]
    assert means.loc["ixg", "insertion"] > means.loc["random", "insertion"] > means.loc["opposite", "insertion"]


def test_the_control_is_the_mean_over_its_draws():
    model, draw = cases.conv(), cases.generator()
    target, flat = model(X).argmax(1), torch.zeros_like(X[:, 0])
    found = areas(model, attributions={}, draws=3)
    expected = []
    for _ in range(3):
        how = {"steps": 9, "generator": draw}
        expected.append(faithfulness.area(faithfulness.deletion(model, X, target, flat, **how)))
        faithfulness.insertion(model, X, target, flat, **how)
    assert found["deletion"].tolist() == pytest.approx(torch.stack(expected).mean(0).tolist())


def broken(model, x, target):
    return torch.where(x == x.max(), torch.nan, x)


def test_a_map_with_nan_in_it_is_refused_by_name():
    for test in (areas, scrambled):
        with pytest.raises(ValueError, match=r"attributions\['broken'\] holds 1 entries that are NaN"):
            test(attributions={"broken": broken})


# ------------------------------------------------------------------ random weights


def scrambled(model=None, **changes):
    how = {"attributions": {"saliency": attributions.saliency}, "generator": cases.generator(), "k": 3, **changes}
    return faithfulness.randomisation(model or cases.conv(), how.pop("x", X), **how)


def edges(model, x, target):
    """A picture of the image's own edges; the network has no say in it."""
    return x - F.avg_pool2d(x, 3, stride=1, padding=1)


def test_an_edge_detector_is_exposed_as_unchanged_and_saliency_is_not():
    table = scrambled(attributions={"edges": edges, "saliency": attributions.saliency}, x=cases.images(10))
    means = table.groupby("attribution")[list(faithfulness.SIMILARITIES)].mean()
    assert means.loc["edges"].tolist() == pytest.approx([1.0] * 4)
    assert means.loc["saliency", "cosine"] < 0.6
    assert means.loc["saliency", "spearman"] < 0.6


def test_the_same_weights_give_the_same_maps():
    table = scrambled(draw=lambda weight, generator: weight.clone())
    assert table[list(faithfulness.SIMILARITIES)].to_numpy().ravel().tolist() == pytest.approx([1.0] * 4 * len(table))


def test_rows_are_the_similarities_to_maps_of_a_network_with_those_random_layers():
    table, model, target = scrambled(k=2), cases.conv(), cases.conv()(X).argmax(1)
    clean, draw = attributions.saliency(model, X, target).detach(), cases.generator()
    fresh = {}
    for layer in ("3", "0"):  # from the top
        fresh[layer] = [faithfulness.redrawn(p.detach(), draw) for p in model.get_submodule(layer).parameters()]
    for order, layer, changed in (
        ("cascading", "3", ["3"]),
        ("cascading", "0", ["3", "0"]),
        ("independent", "3", ["3"]),
        ("independent", "0", ["0"]),
    ):
        other = cases.conv()
        for name in changed:
            for p, new in zip(other.get_submodule(name).parameters(), fresh[name], strict=True):
                p.data = new.clone()
        there = attributions.saliency(other, X, target).detach()
        rows = table[(table["order"] == order) & (table["layer"] == layer)].set_index("image")
        assert rows["cosine"].tolist() == pytest.approx(similarity.cosine(clean, there).tolist())
        a, b = pixelwise(clean), pixelwise(there)
        assert rows["spearman"].tolist() == pytest.approx(similarity.spearman(a, b).tolist())
        assert rows["pearson"].tolist() == pytest.approx(similarity.pearson(a, b).tolist())
        assert rows["top_k"].tolist() == pytest.approx(similarity.topk_intersection(a, b, k=2).tolist())
        assert (rows["randomised"] == len(changed)).all()
    assert len(table) == 4 * len(X)


def test_guided_backprop_outlives_random_top_layers_better_than_saliency_does():
    """The finding the test is known for."""
    x = cases.images(16)
    with torch.random.fork_rng(devices=[]):
        layers = [nn.Conv2d(2, 12, 2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4)]
    model = cases.filled(nn.Sequential(*layers), 0)
    maps = {"saliency": attributions.saliency, "guided": attributions.guided_backprop}
    table = scrambled(model, attributions=maps, x=x)
    top = table[(table["order"] == "cascading") & (table["randomised"] == 1)]
    means = top.groupby("attribution")["cosine"].mean()
    assert means["guided"] > means["saliency"] + 0.3


def test_random_weights_keep_mean_and_spread_and_leave_constants_alone():
    weight = 3 + 0.5 * torch.randn(200, 200, generator=cases.generator(1))
    new = faithfulness.redrawn(weight, cases.generator(2))
    assert new.mean().item() == pytest.approx(weight.mean().item(), abs=4 * 0.5 / 200)
    assert new.std().item() == pytest.approx(0.5, rel=0.02)
    assert similarity.pearson(weight[None], new[None]).abs().item() < 4 / 200
    for constant in (torch.zeros(7), torch.ones(1), torch.full((2, 3), 0.5)):
        assert torch.equal(faithfulness.redrawn(constant, cases.generator()), constant)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_found_even_if_a_map_fails(fails):
    model = cases.conv().train()
    model[0].weight.requires_grad_(False)
    before, storages = [p.clone() for p in model.parameters()], [p.data_ptr() for p in model.parameters()]
    calls = []

    def fragile(model, x, target):
        calls.append(1)
        if fails and len(calls) == 3:
            raise RuntimeError("out of memory")
        return attributions.saliency(model, x, target)

    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            scrambled(model, attributions={"fragile": fragile})
    else:
        scrambled(model, attributions={"fragile": fragile})
    assert [p.data_ptr() for p in model.parameters()] == storages
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_grad_cam_and_attention_maps_can_be_tested_too():
    model = cases.conv()
    table = scrambled(model, attributions={"cam": partial(attributions.grad_cam, layer=model[1])})
    assert table["cosine"].between(-1, 1).all()
    vit, x = cases.vit(), cases.images(2, shape=cases.VIT_SHAPE)
    table = scrambled(vit, attributions={"rollout": attributions.rollout}, x=x)
    assert table["layer"].iloc[0] == "head"
    assert table["layer"].iloc[-1] == ""  # class token and positions belong to the model itself
    head = table[table["layer"] == "head"]
    assert head["spearman"].tolist() == pytest.approx([1.0] * len(head))  # rollout does not look at the head


def test_the_same_seed_gives_the_same_tables():
    pd.testing.assert_frame_equal(areas(), areas())
    pd.testing.assert_frame_equal(scrambled(), scrambled())
    assert not scrambled().equals(scrambled(generator=cases.generator(1)))


class Weightless(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": 3 * X}, r"x spans .*; pixels must lie in \[0, 1\]"),
        ({"k": 0}, "k is 0; it must be a whole number from 1 to 9"),
        ({"model": Weightless()}, "model is Weightless, which has no weights; there is nothing to randomise"),
    ],
)
def test_randomisation_refuses_bad_arguments(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        scrambled(**change)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": 3 * X}, r"x spans .*; pixels must lie in \[0, 1\]"),
        ({"draws": 0}, "draws is 0; it must be a whole number of at least 1"),
        ({"steps": 10}, "steps is 10; it must be a whole number from 1 to 9"),
        (
            {"attributions": {"random": attributions.saliency}},
            "attributions has a map 'random', which is the name of the control",
        ),
    ],
)
def test_the_table_of_areas_refuses_bad_arguments(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        areas(**change)
