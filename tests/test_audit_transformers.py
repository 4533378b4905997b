"""An audit of transformers: foreign ones from a folder to advice, what their rows are like, and the examples."""

import json
import math
import os
import sys
from functools import partial

import cases
import numpy as np
import pytest
import torch
from attrobust import __main__, attacks, attention, audit, data, models, swap
from attrobust.audit import clothes, examples, maps
from attrobust.experiments.store import Store
from attrobust.notebook import checked, reproduce
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from torch import nn

EFFORT = attacks.Effort(steps=2, restarts=1, draws=1, walk=1)


@pytest.fixture
def store(tmp_path):
    return Store("09_x", out=tmp_path / "out", committed=False)


def whole(model, x, store, names=(), **changes):
    """Every step of an audit: maps there, why others are not, what was found, its means and the advice."""
    there, absent = audit.maps_of(model, x, names)
    how = {"radius": 0.05, "leading": 0.25, "effort": EFFORT, "seed": 0, "store": store}
    found = audit.audited(model, x, there, **how | changes)
    return there, absent, found, audit.summary(found.table), audit.advise(found.table)


# ------------------------------------------------------------------ foreign ones, out of a folder

VIT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
VIT |= {"image_size": 8, "patch_size": 4, "num_labels": 3}
SWIN = {"image_size": 8, "patch_size": 2, "embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
NEXT = {"num_stages": 2, "hidden_sizes": [4, 8], "depths": [1, 1], "patch_size": 2, "num_labels": 3}

GRADIENTS = ("saliency", "input_x_gradient")
WINDOWS = "not (images, heads, tokens, tokens) with the same tokens in every block"
AVERAGED = ("integrated_gradients", "smooth_grad")

#: Configurations, the maps beside those of gradients that a network of each has, and why it has no rows of attention.
FAMILIES = {
    "ViT": (VIT, maps.OF_ATTENTION, ""),
    "DeiT": (VIT, maps.OF_ATTENTION, ""),
    "Swin": (
        SWIN | {"num_labels": 3},
        AVERAGED,
        "not (images, heads, tokens, tokens) with the same tokens in every block",
    ),
    "ConvNext": (NEXT, (*AVERAGED, "grad_cam"), "model returns no attention weights"),
}


@cases.isolated
def saved(folder, family):
    """The folder of a small network of a family, its weights drawn, and beside it four pictures with labels."""
    transformers = pytest.importorskip("transformers", reason="folders need pip install attrobust[hf]")
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family][0])
    network = getattr(transformers, f"{family}ForImageClassification")(config)
    cases.filled(network, seed=1).float().save_pretrained(folder / "own")
    x = cases.images(4, shape=(3, 8, 8)).float().numpy()
    np.savez(folder / "pictures.npz", x=x, y=np.arange(4) % 3)
    return audit.opened(str(folder / "own"), pictures=str(folder / "pictures.npz"))


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_foreign_transformer_is_audited_from_its_folder_to_the_advice(tmp_path, store, family):
    _, more, why = FAMILIES[family]
    opened = saved(tmp_path, family)
    x = opened.pictures.x
    there, absent, found, means, advice = whole(opened.model, x, store)
    assert x.dtype == torch.float32
    assert set(there) == {*GRADIENTS, *more}
    assert set(absent) == set(maps.USUAL if why else maps.WITH_ATTENTION) - set(there)
    assert all(len(reason) > 20 for reason in absent.values())
    assert found.refused == {}
    assert set(means["map"]) == set(there)
    assert len(found.table) == len(there) * 3 * len(x)
    attacked = found.table[found.table["compared"] == "attack"].set_index("map")
    assert (attacked["kept"] == 1).all()
    noise = found.table[found.table["compared"] == "noise of the same size"].set_index("map")
    assert attacked.loc["saliency", "top_k"].mean() < noise.loc["saliency", "top_k"].mean()
    assert advice[0].says.startswith("Under attack")
    blocks, reason = audit.rows_of_attention(store, opened.model, x, named="", seed=0)
    assert why in reason
    assert bool(reason) == bool(why) == blocks.empty
    audit.write(tmp_path, found, advice, told={"attention": reason or blocks.to_dict("records")}, names=["a"] * 4)
    assert len(json.loads((tmp_path / "report.json").read_text())["attention"]) == (len(reason) or 2)


def test_a_map_that_a_transformer_cannot_be_climbed_on_is_refused_and_in_no_row(tmp_path, store):
    opened = saved(tmp_path, "ViT")
    there, _ = audit.maps_of(opened.model, opened.pictures.x, ["saliency", "rollout"])

    def cut(model, x, target):
        return there["rollout"](model, x, target).detach()

    how = {"radius": 0.05, "leading": 0.25, "effort": EFFORT, "seed": 0, "store": store}
    found = audit.audited(opened.model, opened.pictures.x, {"cut": cut, "saliency": there["saliency"]}, **how)
    assert set(found.refused) == {"cut"}
    assert set(audit.summary(found.table)["map"]) == {"saliency"}
    assert not any("cut" in piece.says for piece in audit.advise(found.table))


def test_where_no_map_is_named_those_of_attention_are_tried_where_a_network_tells_it():
    there, absent = audit.maps_of(cases.vit(), cases.images(2, shape=cases.VIT_SHAPE), [])
    assert set(there) == set(maps.WITH_ATTENTION)
    assert not absent
    assert next(iter(there)) == "saliency"
    there, absent = audit.maps_of(cases.conv(), cases.images(2), [])
    assert {*there, *absent} == set(maps.USUAL)


# ------------------------------------------------------------------ what the rows of the class token are like


def by_hand(weights):
    """Entropy over its largest, and sum, of the first token's rows, number by number; means over heads with mass."""
    entropies, masses = [], []
    for row in (head[0] for head in weights.tolist()):
        masses.append(sum(row))
        shares = [w / masses[-1] for w in row if w > 0]
        if shares:
            entropies.append(-sum(p * math.log(p) for p in shares) / math.log(len(row)))
    return [sum(entropies) / len(entropies), sum(masses) / len(masses)]


@pytest.mark.parametrize("kernel", ["softmax", "gaussian", "relu"])
def test_rows_are_those_of_the_class_token_block_by_block_number_by_number(kernel):
    model, x = cases.vit(attention=kernel), cases.images(3, shape=cases.VIT_SHAPE)
    table = audit.attended(model, x, {}, seed=0)
    weights = model.attend(x)[1]
    assert table[["image", "block"]].to_numpy().tolist() == [[i, b] for i in range(3) for b in (1, 2)]
    expected = [by_hand(weights[b][i]) for i in range(3) for b in (0, 1)]
    assert table[["entropy", "mass"]].to_numpy() == pytest.approx(np.array(expected), rel=1e-9)


def even(kernel):
    """A transformer whose queries and keys are all zero, so that every token reads all alike."""
    model = cases.vit(attention=kernel)
    for module in (module for module in model.modules() if isinstance(module, attention.Attention)):
        with torch.no_grad():
            for part in (module.qkv.weight, module.qkv.bias):
                part[: 2 * len(part) // 3] = 0
    return model


def test_softmax_rows_have_mass_one_and_rows_that_read_all_alike_the_largest_entropy():
    x = cases.images(3, shape=cases.VIT_SHAPE)
    plain = audit.attended(cases.vit(), x, {}, seed=0)
    assert plain["mass"].to_numpy() == pytest.approx(1, abs=1e-12)
    assert (plain["entropy"] < 1 - 1e-6).all()
    assert (plain["entropy"] > 0).all()
    for kernel, mass in (("softmax", 1), ("gaussian", 7), ("gaussian_counted", 1)):  # six patches and the class token
        table = audit.attended(even(kernel), x, {}, seed=0)
        assert table["entropy"].to_numpy() == pytest.approx(1, abs=1e-9), kernel
        assert table["mass"].to_numpy() == pytest.approx(mass, rel=1e-9), kernel


def test_rows_do_not_depend_on_how_many_pictures_pass_at_a_time(monkeypatch):
    model, x = cases.vit(attention="gaussian"), cases.images(5, shape=cases.VIT_SHAPE)
    table = audit.attended(model, x, {}, seed=0)
    monkeypatch.setattr(audit.measured, "FEW", 2)
    again = audit.attended(model, x, {}, seed=0)
    assert again.to_numpy() == pytest.approx(table.to_numpy(), rel=1e-9)


def test_a_network_without_rows_of_attention_says_why(store):
    blocks, why = audit.rows_of_attention(store, cases.conv(), cases.images(2), named="", seed=0)
    assert blocks.empty
    assert why == "model is Sequential, which does not tell its attention: it has no `attend`"


# ------------------------------------------------------------------ the examples


def example(name):
    pytest.importorskip("transformers", reason="the example needs pip install attrobust[hf]")
    return audit.opened(f"example:{name}")


def test_the_command_knows_every_example():
    assert tuple(audit.EXAMPLES) == __main__.EXAMPLES


def test_parameters_that_suit_an_example_are_ones_that_the_notebook_takes():
    types = {name: kind for name, (kind, _) in reproduce.parameters_of(reproduce.AUDIT).items()}
    for name, values in examples.SUITED.items():
        assert name in audit.EXAMPLES
        assert checked(values, types) == values


@pytest.mark.parametrize("name", ["vit", "vit-swapped"])
def test_a_vit_of_the_examples_tells_its_pictures_apart_without_any_download(name, monkeypatch):
    monkeypatch.setattr(data, "load", partial(pytest.fail, "an example read a data set"))
    opened = example(name)
    assert opened.pictures.x.shape == (64, 1, 28, 28)
    assert opened.accuracy >= 0.8
    assert opened.named == f"example:{name}"
    there, absent = audit.maps_of(opened.model, opened.pictures.x, [])
    assert set(there) == {*GRADIENTS, *maps.OF_ATTENTION}
    assert not absent


def test_weights_of_both_vits_take_a_megabyte_at_most_and_pictures_little():
    sizes = [path.stat().st_size for path in (clothes.WEIGHTS, clothes.SWAPPED)]
    assert sum(sizes) <= 1_000_000
    assert clothes.PICTURES.stat().st_size <= 60_000


def test_the_swapped_vit_attends_by_its_kernel_and_the_other_by_softmax():
    tables = {
        name: audit.attended(example(name).model, clothes.pictures().x[:8], {}, seed=0)
        for name in ("vit", "vit-swapped")
    }
    assert tables["vit"]["mass"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert (tables["vit-swapped"]["mass"] - 1).abs().min() > 1e-3
    model, x = example("vit-swapped").model, clothes.pictures().x[:4]
    again = swap.attention(model, clothes.KERNEL)
    assert torch.allclose(model(x), again(x))
    assert not torch.allclose(model(x), swap.attention(model, "softmax")(x), atol=0.1)


def test_the_pictures_are_test_images_of_the_data_set_unchanged():
    shown = clothes.pictures()
    assert sorted(shown.y.bincount().tolist()) == [6] * 6 + [7] * 4
    assert len(set(shown.names)) == 64
    if not data.available(clothes.DATA_SET):
        pytest.skip("needs Fashion-MNIST")
    found = data.load(clothes.DATA_SET, n_test=clothes.SHOWN)
    assert torch.equal(shown.x, found.test.x)
    assert torch.equal(shown.y, found.test.y)
    assert shown.classes == [*found.classes]


def test_training_the_examples_anew_is_the_same_every_time_and_writes_both_and_the_pictures(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="the example needs pip install attrobust[hf]")
    draw = cases.generator()
    x, y = torch.rand(40, 1, 28, 28, generator=draw), torch.arange(40) % 10
    small = data.Dataset("fashion_mnist", data.Examples(x, y), data.Examples(x[:20], y[:20]), ("a",) * 10, True)
    monkeypatch.setattr(data, "load", lambda *_, **__: small)
    for recipe in ("RECIPE", "TUNED"):
        monkeypatch.setattr(clothes, recipe, clothes.training.Recipe(step_size=0.01, batch_size=20, epochs=1))
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        for name in ("WEIGHTS", "SWAPPED", "PICTURES"):
            monkeypatch.setattr(clothes, name, folder / f"{name}.safetensors")
        first, second = clothes.train_vit()
        loaded = [clothes.vit()[0], clothes.swapped()[0]]
        assert all(torch.equal(a(x), b(x)) for a, b in zip((first, second), loaded, strict=True))
        written.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert len(written[0]) == 3
    assert written[0] == written[1]
    assert torch.allclose(clothes.pictures().x, x[:20], atol=0.5 / 255 + 1e-6)


def test_without_transformers_the_example_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"the example needs transformers; install it by pip install attrobust\[hf\]"):
        audit.example("vit")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--example", "vit", "--model", "mine.py:build"], "example is 'vit' beside model 'mine.py:build'"),
        (["--example", "vit", "-p", "model", "example:digits"], "example is 'vit' beside model 'example:digits'"),
    ],
)
def test_an_example_beside_a_model_is_refused(options, said, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(ValueError, match=said):
        __main__.main(["audit", *options], standalone_mode=False)


def test_the_example_that_is_named_is_the_model_audited(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(reproduce, "audit", lambda **given: asked.append(given))
    __main__.main(["audit", "--example", "vit-swapped", "--out", "there", "-p", "radius", "4"], standalone_mode=False)
    assert asked[0]["overrides"] == {"model": "example:vit-swapped", "radius": 4}
    assert asked[0]["out"] == "there"


def test_the_page_of_an_audit_holds_what_it_printed_and_neither_code_nor_warnings_of_packages():
    said = [new_output("stream", name=name, text=f"said by {name}") for name in ("stdout", "stderr")]
    cells = [new_code_cell("secret = 1", outputs=said), new_markdown_cell("Read it.\n![a picture](../figures/a.png)")]
    page = reproduce.page(new_notebook(cells=cells))
    assert "said by stdout" in page
    assert "Read it." in page
    assert not any(word in page for word in ("said by stderr", "secret", "a.png"))


class Loud(nn.Module):
    """A network that tells attention of no use: its `attend` ends in an error of its own."""

    def forward(self, x):
        return x.flatten(1)

    def attend(self, x):
        raise RuntimeError("no attention today")


def test_a_network_whose_attention_cannot_be_had_says_so_and_is_audited_without(store):
    model = models.build("mlp", input_shape=(1, 4, 4), classes=3, seed=0, width=8).eval()
    model.attend = Loud().attend
    _, absent, found, *_ = whole(model, torch.rand(3, 1, 4, 4, generator=cases.generator()), store)
    assert set(found.table["map"]) == set(maps.USUAL) - set(absent)
    assert audit.rows_of_attention(store, Loud(), cases.images(2), named="", seed=0)[1] == "no attention today"
    assert "saliency" in set(found.table["map"])
