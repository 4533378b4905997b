import dataclasses
import itertools
import math

import cases
import numpy as np
import pandas as pd
import pytest
import torch
from attrobust import attacks, attention, attributions, curvature, experiments, models, robustness
from attrobust.balls import Ball
from attrobust.experiments import explanations, measure
from attrobust.theory import entropy
from scipy import stats
from torch import nn

PATCH, K = 2, 1


@cases.isolated
def vit(seed=0, attention="softmax"):
    sizes = {"patch": PATCH, "dim": 8, "depth": 2, "heads": 2}
    net = models.build("vit", input_shape=(1, 4, 4), classes=3, seed=seed, attention=attention, **sizes)
    return net.double().eval().requires_grad_(False)


def images(n=3):
    return cases.images(n, shape=(1, 4, 4))


NAMES = tuple(experiments.on_the_patch_grid(PATCH))


def attack(model, x, *, steps=2, names=NAMES, readouts=("logit",), **change):
    how = {"k": K, "radius": 8, "effort": attacks.Effort(steps=steps, restarts=1), "seed": 0} | change
    return experiments.under_attack(model, x, maps=experiments.compared(PATCH, names, readouts), **how)


def test_softmax_of_the_cls_scores_is_the_cls_row():
    scores, weights = experiments.cls_rows(vit(), images())
    assert torch.allclose(scores.softmax(-1), weights)
    assert scores.shape == (3, 2, 5)


def test_without_room_to_move_every_map_stays():
    table = attack(vit(), images(), radius=0)
    assert set(table["map"]) == set(experiments.on_the_patch_grid(PATCH))
    assert (table[["top_k", "spearman", "pearson"]] > 1 - 1e-9).all().all()
    assert (table.displacement < 1e-12).all()
    assert (table.n == 3).all()


def test_the_attack_finds_no_less_than_noise_and_keeps_the_prediction():
    table = attack(vit(), images(6), radius=64, steps=20).set_index(["map", "attack"])
    for name in experiments.on_the_patch_grid(PATCH):
        assert table.loc[(name, "worst"), "displacement"] > table.loc[(name, "noise"), "displacement"]
        assert table.loc[(name, "worst"), "counted"] == 1


def test_only_the_named_maps_are_attacked_and_their_rows_are_the_same():
    whole, part = attack(vit(), images()), attack(vit(), images(), names=("rollout",))
    same = whole[whole["map"] == "rollout"].reset_index(drop=True)
    assert same.equals(part)


class NoGain(nn.Module):
    """A transformer whose logits do not depend on its attention: gradient x attention is zero."""

    def __init__(self):
        super().__init__()
        self.inner = vit()

    def attend(self, x):
        logits, maps = self.inner.attend(x)
        return self(x) + 0 * logits, maps

    def forward(self, x):
        return x.flatten(1)[:, :3]


def test_images_without_a_map_are_counted_and_left_out():
    table = attack(NoGain(), images(), names=("gradient_attention", "raw_attention")).set_index("map")
    assert (table.loc["gradient_attention", "zero_maps"] == 3).all()
    assert (table.loc["gradient_attention", "n"] == 0).all()
    assert (
        table.loc["gradient_attention"]
        .drop(columns=["attack", "n", "zero_maps", "readout", "images"])
        .isna()
        .all(axis=None)
    )
    assert (table.loc["raw_attention", "zero_maps"] == 0).all()


def test_a_map_is_attacked_once_for_each_readout_that_it_has():
    table = attack(vit(), images(), names=("saliency", "rollout"), readouts=("logit", "log_probability"))
    assert set(zip(table["map"], table["readout"], strict=True)) == {
        ("saliency", "logit"), ("saliency", "log_probability"), ("rollout", "none"),
    }  # fmt: skip
    worst = table[(table["attack"] == "worst") & (table["map"] == "saliency")].set_index("readout")["spearman"]
    assert worst["logit"] != worst["log_probability"]


def test_controls_are_what_a_map_is_like():
    model, x = vit(), images(5)
    target = model(x).argmax(1)
    maps = experiments.compared(PATCH, ("saliency", "raw_attention"), ("log_probability",))
    found = experiments.controls(model, x, maps=maps, patch=PATCH).set_index("map")
    for (name, _), attribution in maps.items():
        flat = attributions.pixelwise(attribution(model, x, target).detach()).flatten(1).numpy()
        pairs = [stats.spearmanr(a, b).statistic for i, a in enumerate(flat) for b in flat[i + 1 :]]
        assert found.loc[name, "between"] == pytest.approx(np.mean(pairs))
        assert found.loc[name, "contrast"] == pytest.approx(np.mean(flat.std(1) / flat.mean(1)))
        shares = flat / flat.sum(1, keepdims=True)
        assert found.loc[name, "entropy"] == pytest.approx(np.mean(stats.entropy(shares, axis=1) / np.log(4)))
        readout = models.readouts.log_probability if name == "saliency" else models.readouts.logit
        values = []
        for image, label, importances in zip(x, target, flat, strict=True):
            whole, falls = readout(model, image[None], label[None]), []
            for row in (0, 2):
                for column in (0, 2):
                    covered = image.clone()
                    covered[:, row : row + 2, column : column + 2] = 0
                    falls.append(abs((whole - readout(model, covered[None], label[None])).item()))
            values.append(stats.spearmanr(importances, falls).statistic)
        assert found.loc[name, "occlusion"] == pytest.approx(np.mean(values))
        assert found.loc[name, "n"] == 5


def test_maps_that_are_zero_have_no_controls():
    found = experiments.controls(NoGain(), images(), maps=experiments.compared(PATCH, ["gradient_attention"]), patch=2)
    assert found["n"].tolist() == [0]
    assert found[["between", "contrast", "entropy", "occlusion"]].isna().all(axis=None)


def difference_quotients(function, x, step=1e-6):
    columns = []
    for pixel in range(x[0].numel()):
        moved = torch.zeros_like(x).flatten(1)
        moved[:, pixel] = step
        moved = moved.view_as(x)
        columns.append((function(x + moved) - function(x - moved)) / (2 * step))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("name", ["score", "map", "saliency"])
def test_rates_agree_with_difference_quotients(name):
    model, x = vit(), images()
    target = model(x).argmax(1)
    functions = {
        "score": lambda at: experiments.cls_rows(model, at)[0],
        "map": lambda at: attributions.raw_attention(model, at, target).flatten(1)[:, None],
        "saliency": lambda at: attributions.on_patches(
            model, at, target, attribution=attributions.saliency, patch=PATCH
        ).flatten(1)[:, None].detach(),
    }  # fmt: skip
    value, jacobian = functions[name](x), difference_quotients(functions[name], x)
    found = experiments.inside(model, x, patch=PATCH, k=K)
    assert found[f"{name}_sensitivity"] == pytest.approx(jacobian.flatten(2).norm(dim=2).mean().item(), rel=1e-5)
    centred = (jacobian - jacobian.mean(2, keepdim=True)).flatten(2).norm(dim=2)
    relative = centred / (value - value.mean(2, keepdim=True)).norm(dim=2)
    assert found[f"{name}_relative"] == pytest.approx(relative.mean().item(), rel=1e-5)


def test_equal_scores_make_the_flattest_rows():
    model = vit()
    for block in model.blocks:
        nn.init.zeros_(block.attention.qkv.weight[:16])
        nn.init.zeros_(block.attention.qkv.bias[:16])
    found = experiments.inside(model, images(), patch=PATCH, k=K)
    assert found["entropy"] == pytest.approx(1)
    assert found["norm"] == pytest.approx(1 / 5)
    assert found["margin"] == pytest.approx(0)


def test_margins_are_those_of_every_head_and_obey_the_statements():
    model, x = vit(), images(8)
    table = experiments.margins(model, x, k=K)
    scores, weights = experiments.cls_rows(model, x)
    assert len(table) == 8 * 2
    assert table.entropy.tolist() == pytest.approx(entropy.row_entropy(weights).flatten().tolist())
    top = scores[:, :, 1:].sort(-1, descending=True).values
    assert table.gap.tolist() == pytest.approx((top[..., K - 1] - top[..., K]).flatten().tolist())
    assert (table.norm_below <= table.norm + 1e-12).all()
    assert (table.norm <= table.norm_above + 1e-12).all()
    assert (table.floor <= table.entropy + 1e-9).all()
    assert (table.gap <= table.ceiling + 1e-9).all()


# ------------------------------------------------------------------ kernels other than softmax

OTHERS = [name for name in attention.KERNELS if name != "softmax"]


@pytest.mark.parametrize("kernel", OTHERS)
def test_other_kernels_have_the_columns_of_softmax_and_their_row_mass(kernel):
    softmax = experiments.inside(vit(), images(), patch=PATCH, k=K)
    model, x = vit(attention=kernel), images()
    found = experiments.inside(model, x, patch=PATCH, k=K)
    shares_columns = kernel == "doubly_stochastic"
    assert set(found) == set(softmax) - ({"norm"} if shares_columns else set()) | {"mass", "empty"}
    scores, weights = experiments.cls_rows(model, x)
    assert found["mass"] == pytest.approx(weights.sum(-1).mean().item())
    assert found["empty"] == (weights.sum(-1) == 0).double().mean()
    p = weights / weights.sum(-1, keepdim=True)
    hand = -(p * p.clamp(min=1e-300).log()).sum(-1) / math.log(5)
    assert found["entropy"] == pytest.approx(hand[~hand.isnan()].mean().item())
    layer = model.blocks[-1].attention.kernel
    if shares_columns:
        return

    def weigh(row):
        return layer.weights(row[None, None, None])[0, 0, 0]

    norms = [torch.autograd.functional.jacobian(weigh, row).svd().S[0].item() for row in scores.flatten(0, 1)]
    assert found["norm"] == pytest.approx(sum(norms) / len(norms))


def test_rows_without_mass_are_counted_and_leave_the_means_of_the_others():
    model, x = vit(attention="relu"), images()
    layer = model.blocks[-1].attention.qkv
    nn.init.zeros_(layer.weight[:16])
    layer.bias[:8], layer.bias[8:16] = 1, -1  # every score of the last block is negative
    found = experiments.inside(model, x, patch=PATCH, k=K)
    assert found["empty"] == 1
    assert found["mass"] == 0
    assert math.isnan(found["entropy"])
    layer.bias[8:12] = 1  # one head of two sees
    found = experiments.inside(model, x, patch=PATCH, k=K)
    assert found["empty"] == 0.5
    assert found["entropy"] == pytest.approx(1)


@pytest.mark.parametrize("kernel", OTHERS)
def test_rates_of_every_kernel_agree_with_difference_quotients(kernel):
    model, x = vit(attention=kernel), images()
    for name, function in {
        "score": lambda at: experiments.cls_rows(model, at)[0],
        "map": lambda at: attributions.raw_attention(model, at, model(x).argmax(1)).flatten(1)[:, None],
    }.items():
        jacobian = difference_quotients(function, x)
        found = experiments.inside(model, x, patch=PATCH, k=K)[f"{name}_sensitivity"]
        assert found == pytest.approx(jacobian.flatten(2).norm(dim=2).mean().item(), rel=1e-5)


def test_statements_about_softmax_rows_are_not_asked_of_other_kernels():
    with pytest.raises(ValueError, match=r"model attends by Kernel.score=sqdist, .*; the statements are about softmax"):
        experiments.margins(vit(attention="gaussian"), images(), k=K)


@pytest.mark.parametrize("name", ["rollout", "saliency"])
def test_relu_attention_is_attacked_without_being_told_how(name):
    table = attack(vit(attention="relu"), images(), names=(name,), radius=64, steps=10).set_index("attack")
    assert table.loc["worst", "displacement"] > table.loc["noise", "displacement"]


def test_an_image_whose_gradient_vanishes_leaves_the_mean_of_relative_curvature(monkeypatch):
    model, x = cases.mlp().float(), cases.images(3).float()
    usual = measure._input_side(model, x, 0)
    turn = curvature.relative_curvature
    values = turn(curvature.InputHessian(model, x, model(x).argmax(1)), generator=cases.generator()).value

    def one_is_sure(hessian, **how):
        found = turn(hessian, **how)
        return dataclasses.replace(found, value=torch.where(torch.arange(3) == 1, torch.inf, found.value))

    monkeypatch.setattr(curvature, "relative_curvature", one_is_sure)
    found = measure._input_side(model, x, 0)
    assert found["logit_relative_curvature"] == pytest.approx(values[[0, 2]].double().mean().item(), rel=1e-3)
    assert found["logit_gradient"] == usual["logit_gradient"]


# ------------------------------------------------------------------ maps of any network


def test_a_network_is_asked_for_the_maps_that_it_has_in_their_order():
    every = [*experiments.of_pixels(), *experiments.on_the_patch_grid(1)]
    assert experiments.explaining("mlp", every[:8]) == [name for name in every[:8] if name != "grad_cam"]
    assert experiments.explaining("convnet", ["rollout", "grad_cam", "saliency"]) == ["grad_cam", "saliency"]
    assert experiments.explaining("vit", every) == [name for name in every if name in experiments.on_the_patch_grid(1)]


def test_a_map_of_pixels_is_the_attribution_of_its_name_under_each_readout():
    model = models.build("convnet", input_shape=(1, 4, 4), classes=3, seed=0, width=4).double().eval()
    x = images(4)
    target = model(x).argmax(1)
    for (name, readout), attribution in experiments.compared(
        None, ["saliency", "input_x_gradient"], list(experiments.READOUTS)
    ).items():
        own = getattr(attributions, name)(model, x, target, readout=experiments.READOUTS[readout])
        assert torch.equal(attribution(model, x, target), own)
    found = experiments.compared(None, ["lrp", "deep_lift"], list(experiments.READOUTS))
    assert list(found) == [("lrp", "logit"), ("deep_lift", "logit")]  # they explain no other readout
    (last,) = experiments.compared(None, ["grad_cam"]).values()
    assert torch.equal(last(model, x, target), attributions.grad_cam(model, x, target, layer=model.last_maps))
    with pytest.raises(ValueError, match=r"model is a .* without feature maps; Grad-CAM needs such a layer"):
        last(cases.mlp(), cases.images(4), target)


def test_a_map_of_attention_is_the_attribution_of_its_name_as_it_is_told():
    """Of heads that hold unlike mass, so that counting them alike is another map."""
    model, x = vit(attention="gaussian"), images()
    target = model(x).argmax(1)
    told = {
        "raw_attention": attributions.raw_attention(model, x, target),
        "even_heads": attributions.raw_attention(model, x, target, even=True),
        "rollout": attributions.rollout(model, x, target),
        "plain_rollout": attributions.rollout(model, x, target, renormalise=False),
        "gradient_attention": attributions.gradient_attention(model, x, target),
        "relevance": attributions.relevance(model, x, target),
    }
    found = {name: of for (name, _), of in experiments.compared(PATCH, list(told)).items()}
    for name, own in told.items():
        assert torch.equal(found[name](model, x, target), own)
        assert not any(torch.allclose(own, other) for others, other in told.items() if others != name)


def test_grad_cam_of_relus_is_attacked_through_a_twin_of_the_same_layer():
    """Untrained networks, of which some fail the audit of their own derivative: their twins see the same layer."""
    x = images(4)
    maps, how = experiments.compared(None, ["grad_cam"]), {"k": 2, "radius": 8, "seed": 0}
    for seed in range(6):
        size = {"input_shape": (1, 4, 4), "classes": 3, "width": 2, "activation": "relu"}
        model = models.build("convnet", seed=seed, **size).double().eval().requires_grad_(False)
        found = experiments.under_attack(model, x, maps=maps, effort=attacks.Effort(steps=2, restarts=1), **how)
        worst = found[found.attack == "worst"].iloc[0]
        assert worst["n"] >= 2
        assert -1 <= worst["spearman"] <= 1
        target, twin = model(x).argmax(1), models.smooth_twin(model, x, beta=50.0)
        (grad_cam,) = maps.values()
        own = attributions.grad_cam(twin, x, target, layer=model.last_maps)
        assert torch.equal(grad_cam(twin, x, target), own)


def test_every_map_of_a_network_is_attacked_and_stochastic_ones_are_so_under_common_draws():
    size = {"input_shape": (1, 4, 4), "classes": 3, "width": 4}
    model, x = models.build("convnet", seed=0, **size).double().eval().requires_grad_(False), images(4)
    names = experiments.explaining("convnet", experiments.of_pixels())
    how = {"k": 2, "radius": 8, "effort": attacks.Effort(steps=2, restarts=1), "seed": 0}
    maps = experiments.compared(None, names)
    one, again, turned = (experiments.under_attack(model, images, maps=maps, **how) for images in (x, x, x.flip(0)))
    assert list(dict.fromkeys(one["map"])) == names
    assert one["spearman"].between(-1, 1).all()
    assert (one["n"] == 4).all()
    pd.testing.assert_frame_equal(one, again)
    for column in ("spearman", "cosine"):  # an image's draws are its own, wherever it stands
        assert turned[column].to_numpy() == pytest.approx(one[column].to_numpy(), abs=1e-5)
    like = experiments.controls(model, x, maps=maps, patch=None)
    assert like["map"].tolist() == names
    assert (like["n"] == 4).all()


READ = {"logit": models.readouts.logit, "log_probability": models.readouts.log_probability}


def by_hand(name, readout, model, x, target, generator):
    """A map of pixels with its settings written out."""
    how = {"readout": READ[readout]}
    return {
        "saliency": lambda: attributions.saliency(model, x, target, **how),
        "input_x_gradient": lambda: attributions.input_x_gradient(model, x, target, **how),
        "integrated_gradients": lambda: attributions.integrated_gradients(model, x, target, steps=16, **how),
        "smooth_grad": lambda: attributions.smooth_grad(
            model, x, target, sigma=0.1, samples=16, generator=generator, **how
        ),
        "uniform_grad": lambda: attributions.uniform_grad(
            model, x, target, ball=Ball("linf", 8 / 255), samples=16, generator=generator, **how
        ),
        "grad_cam": lambda: attributions.grad_cam(model, x, target, layer=model.last_maps, **how),
    }[name]()


DRAWN = ("smooth_grad", "uniform_grad")


@pytest.mark.parametrize("readout", READ)
def test_maps_of_pixels_and_of_patches_are_their_attributions_with_the_settings_written_out(readout):
    size = {"input_shape": (1, 4, 4), "classes": 3, "width": 4, "seed": 0}
    nets = {None: models.build("convnet", **size).double().eval(), PATCH: vit()}
    names = {None: ("saliency", "input_x_gradient", "integrated_gradients", *DRAWN, "grad_cam")}
    names[PATCH] = names[None][:-1]
    x = images()
    for patch, model in nets.items():
        target = model(x).argmax(1)
        maps = experiments.compared(patch, names[patch], [readout])
        assert list(maps) == [(name, readout) for name in names[patch]]
        for (name, _), attribution in maps.items():
            drawn = {"generator": cases.generator(3)} if name in DRAWN else {}
            found, own = (
                attribution(model, x, target, **drawn),
                by_hand(name, readout, model, x, target, cases.generator(3)),
            )
            if patch:
                own = torch.stack(
                    [own.abs().sum(1)[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2) for j in (0, 2)]
                )
                own = own.T.view(3, 1, 2, 2)
            assert torch.allclose(found, own, rtol=1e-9, atol=1e-12), name
            assert found.abs().max() > 1e-6


@pytest.mark.parametrize("readout", READ)
def test_gradient_maps_of_attention_explain_the_readout_that_is_asked_for(readout):
    model, x = vit(), images()
    target = model(x).argmax(1)
    for name in ("gradient_attention", "relevance"):
        ((told, attribution),) = experiments.compared(PATCH, [name], [readout]).items()
        assert told == (name, readout)
        own = {word: getattr(attributions, name)(model, x, target, readout=of) for word, of in READ.items()}
        assert torch.equal(attribution(model, x, target), own[readout])
        assert not torch.allclose(own["logit"], own["log_probability"], rtol=1e-3, atol=0)


def test_grad_cam_explains_the_logit_unless_told_otherwise():
    size = {"input_shape": (1, 4, 4), "classes": 3, "width": 4, "seed": 0}
    model, x = models.build("convnet", **size).double().eval(), images()
    target = model(x).argmax(1)
    assert torch.equal(explanations.last_maps(model, x, target), by_hand("grad_cam", "logit", model, x, target, None))
    assert set(explanations.compared(None, ["saliency", "lrp"])) == {("saliency", "logit"), ("lrp", "logit")}


def test_what_averages_is_attacked_on_fewer_images_and_least_where_blocks_are_residual():
    for architecture, most in {"mlp": 32, "convnet": 32, "vit": 32, "resnet": 16, "resnet18": 16}.items():
        for name in ("saliency", "grad_cam", "rollout"):
            assert [experiments.affordable(architecture, name, n) for n in (1, 64)] == [1, 64]
        for name in ("integrated_gradients", *DRAWN):
            found = [experiments.affordable(architecture, name, n) for n in (1, 15, 16, 17, 31, 32, 33, 64)]
            assert found == [min(n, most) for n in (1, 15, 16, 17, 31, 32, 33, 64)]


def test_rows_under_attack_are_means_of_what_the_images_hold_one_by_one():
    model, x = cases.mlp(), cases.images(5)
    effort = attacks.Effort(steps=3, restarts=1)
    maps = experiments.compared(None, ["saliency", "smooth_grad"], ["log_probability"])
    how = {"k": 4, "effort": effort, "held": 0.002}
    found = experiments.under_attack(model, x, maps=maps, radius=12, seed=5, **how)
    assert list(zip(found["map"], found["attack"], strict=True)) == [
        (name, attack) for name, _ in maps for attack in ("noise", "worst")
    ]
    for (name, readout), attribution in maps.items():
        ball, draw = Ball("linf", 12 / 255), cases.generator(5)
        table = robustness.attribution_robustness(
            model, x, attributions={name: attribution}, ball=ball, generator=draw, refuse=False, **how
        )
        for attack in ("noise", "worst"):
            lines = table[table["attack"] == attack]
            line = found[(found["map"] == name) & (found["attack"] == attack)].iloc[0]
            for column in (*robustness.COLUMNS, "counted"):
                own = [v for v in lines[column] if not math.isnan(v)]
                assert line[column] == pytest.approx(sum(own) / len(own), rel=1e-6)
            assert line["n"] == lines["spearman"].notna().sum()
            texts = " ".join(f"{v:.4f}" for v in lines["spearman"]) if attack == "worst" else ""
            assert (line["readout"], line["images"], line["zero_maps"]) == (readout, texts, 0)
    loose = experiments.under_attack(model, x, maps=maps, radius=12, seed=5, k=4, effort=effort)
    assert (loose["displacement"] > found["displacement"]).any()  # what is held has bound something


def test_a_map_that_cannot_be_climbed_is_a_line_without_numbers(monkeypatch):
    def refused(*_, **__):
        raise attacks.BlindError("the derivative says nothing")

    monkeypatch.setattr(attacks, "auto", refused)
    found = attack(vit(), images(), names=("saliency",)).set_index("attack")
    assert found["n"].tolist() == [3, 0]
    assert found.loc["worst", ["spearman", "counted", "displacement"]].isna().all()
    assert found.loc["noise", ["spearman", "counted", "displacement"]].notna().all()
    assert found["images"].tolist() == ["", "nan nan nan"]


def test_controls_of_pixels_are_compared_with_what_covering_squares_of_two_changes():
    """Maps of several channels, one of them drawn: its draws are those of seed 0, each image's own."""
    shape = (2, 4, 4)
    model = models.build("convnet", input_shape=shape, classes=3, seed=1, width=4).double().eval().requires_grad_(False)
    x = cases.images(4, shape=shape)
    target = model(x).argmax(1)
    maps = experiments.compared(None, ["input_x_gradient", "smooth_grad"], ["logit", "log_probability"])
    table = experiments.controls(model, x, maps=maps, patch=None)
    assert list(zip(table["map"], table["readout"], strict=True)) == list(maps)
    for (name, readout), line in zip(maps, table.to_dict("records"), strict=True):
        streams = attacks.Streams(x, generator=cases.generator(0))
        own = attacks.explain(maps[name, readout], model, x, target, streams.common())
        flat = own.abs().sum(1).detach().numpy()
        rows = flat.reshape(4, 16)
        pairs = [stats.spearmanr(a, b).statistic for a, b in itertools.combinations(rows, 2)]
        shares = rows / rows.sum(1, keepdims=True)
        like = []
        for image, label, importances in zip(x, target, flat, strict=True):
            squares, falls = [], []
            for i, j in itertools.product((0, 2), (0, 2)):
                covered = image.clone()
                covered[:, i : i + 2, j : j + 2] = 0
                before, after = (READ[readout](model, one[None], label[None]).item() for one in (image, covered))
                squares.append(importances[i : i + 2, j : j + 2].mean())
                falls.append(abs(before - after))
            like.append(stats.spearmanr(squares, falls).statistic)
        assert line["between"] == pytest.approx(np.mean(pairs))
        assert line["contrast"] == pytest.approx(np.mean(rows.std(1) / rows.mean(1)))
        assert line["entropy"] == pytest.approx(np.mean(stats.entropy(shares, axis=1) / np.log(16)))
        assert line["occlusion"] == pytest.approx(np.mean(like))
        assert line["n"] == 4


def test_a_drawn_clean_map_is_that_of_its_seed():
    model, x = cases.mlp(), cases.images(3)
    target = model(x).argmax(1)
    (attribution,) = experiments.compared(None, ["uniform_grad"]).values()
    for seed in (0, 1):
        streams = attacks.Streams(x, generator=cases.generator(seed))
        own = attacks.explain(attribution, model, x, target, streams.common())
        found = explanations.clean_maps(attribution, model, x, target, seed)
        assert torch.equal(found, own)
        assert not found.requires_grad
    first = explanations.clean_maps(attribution, model, x, target, 0)
    assert not torch.allclose(found, first, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kernel", attention.KERNELS)
def test_the_names_of_what_is_told_of_attention_are_known_beforehand(kernel):
    found = experiments.inside(vit(attention=kernel), images(), patch=PATCH, k=K)
    assert list(found) == explanations.inside_names(kernel)


def test_rows_of_softmax_and_what_is_said_of_them_are_those_written_out_by_hand():
    model, x, k = vit(), images(4), 2
    scores, weights = (part.detach().numpy() for part in experiments.cls_rows(model, x))
    found, table = experiments.inside(model, x, patch=PATCH, k=k), experiments.margins(model, x, k=k)
    rows = weights.reshape(-1, 5)
    entropies = stats.entropy(rows, axis=1)
    norms = np.array([np.linalg.norm(np.diag(row) - np.outer(row, row), 2) for row in rows])
    top = -np.sort(-scores.reshape(-1, 5)[:, 1:], axis=1)
    gaps = top[:, 1] - top[:, 2]
    assert found["entropy"] == pytest.approx(entropies.mean() / math.log(5))
    assert found["norm"] == pytest.approx(norms.mean())
    assert found["margin"] == pytest.approx(gaps.mean())
    assert table["entropy"].tolist() == pytest.approx(entropies.tolist())
    assert table["norm"].tolist() == pytest.approx(norms.tolist())
    assert table["gap"].tolist() == pytest.approx(gaps.tolist())
    flat = torch.as_tensor(scores.reshape(-1, 5))
    spread = torch.as_tensor(scores.reshape(-1, 5).std(1) * 5**0.5)
    assert table["floor"].tolist() == pytest.approx(entropy.entropy_floor(spread, keys=5).tolist())
    among = torch.as_tensor(stats.entropy(flat[:, 1:].softmax(-1).numpy(), axis=1))
    assert table["ceiling"].tolist() == pytest.approx(entropy.margin_ceiling(among, keys=4, k=k).tolist(), rel=1e-5)
    below, above = entropy.jacobian_bounds(torch.as_tensor(rows))
    assert table["norm_below"].tolist() == pytest.approx(below.tolist())
    assert table["norm_above"].tolist() == pytest.approx(above.tolist())
