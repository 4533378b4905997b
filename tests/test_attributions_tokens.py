"""The layout of tokens, on transformers that say themselves where they put which token."""

import gc
import weakref

import cases
import pytest
import torch
import transformers
from attrobust import attacks, attention, attributions, models, swap
from attrobust.attributions import tokens
from attrobust.balls import Ball
from torch import nn
from torch.nn import functional as F

MAPS = {
    name: getattr(attributions, name)
    for name in ("raw_attention", "rollout", "gradient_attention", "relevance", "attention_flow")
}
SIZES = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 2,
    "num_channels": 1, "num_labels": 3, "initializer_range": 0.5, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager",
}  # fmt: skip
WIDE = {"image_size": (4, 12), "patch_size": (2, 4)}


@cases.isolated
def hf(kind, **options):
    """A model of transformers by the beginning of its class's name, without downloads."""
    family = kind.removesuffix("WithTeacher")
    config = getattr(transformers, family + "Config")
    kind = family + "ForImageClassification" + kind.removeprefix(family)
    wide = {} if family.startswith("Dino") else {"intermediate_size": 12}
    model = getattr(transformers, kind)(config(**SIZES | wide | options))
    return swap.ImageClassifier(cases.filled(model, seed=2))


@cases.isolated
def two_towered(kind):
    """An image classifier on the image half of a model of images and texts."""
    vision, text = ({k: v for k, v in SIZES.items() if k in keep} for keep in (
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels"),
        ("hidden_size", "num_hidden_layers", "num_attention_heads"),
    ))  # fmt: skip
    parts = {"vision_config": vision | {"intermediate_size": 12}, "text_config": text | {"intermediate_size": 12}}
    config = getattr(transformers, kind + "Config")(**parts, num_labels=3, attn_implementation="eager")
    model = getattr(transformers, kind + "ForImageClassification")(config)
    return swap.ImageClassifier(cases.filled(model, seed=2))


def pictures(shape=(1, 8, 8), n=2):
    return cases.images(n, shape=shape), cases.labels(n) % 3


GRIDS = {  # place of the class token, first patch, images, rows and columns
    "ViT": (hf, {}, 0, 1, (8, 8), (4, 4)),
    "ViT, rectangular": (hf, WIDE, 0, 1, (4, 12), (2, 3)),
    "ViTMSN": (hf, {}, 0, 1, (8, 8), (4, 4)),
    "DeiT": (hf, {}, 0, 2, (8, 8), (4, 4)),
    "DeiT, rectangular": (hf, WIDE, 0, 2, (4, 12), (2, 3)),
    "DeiTWithTeacher": (hf, {}, 0, 2, (8, 8), (4, 4)),
    "Dinov2": (hf, {}, 0, 1, (8, 8), (4, 4)),
    "Dinov2WithRegisters": (hf, {"num_register_tokens": 3}, 0, 4, (8, 8), (4, 4)),
    "Beit, class token": (hf, {"use_mean_pooling": False}, 0, 1, (8, 8), (4, 4)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_grid_of_a_model_of_transformers_is_that_of_its_configuration(name):
    make, options, cls, first, size, (rows, columns) = GRIDS[name]
    model, (x, y) = make(name.split(",")[0], **options), pictures((1, *size))
    with torch.no_grad():
        last = model.attend(x)[1][-1].mean(1)
    expected = last[:, cls, first:].unflatten(1, (rows, columns))[:, None]
    assert torch.equal(attributions.raw_attention(model, x, y), expected)
    for attribution in MAPS.values():
        found = attribution(model, x, y)
        assert found.shape == (2, 1, rows, columns)
        assert found.any()


REFUSED = {
    "BEiT": (lambda: hf("Beit"), "does not read its class token: it averages"),
    "Data2Vec": (lambda: hf("Data2VecVision"), "does not read its class token: it averages"),
    "CLIP": (lambda: two_towered("CLIP"), "does not read its class token: it averages"),
    "SigLIP": (lambda: two_towered("Siglip"), "has no class token: .* averages"),
    "IJepa": (lambda: hf("IJepa"), "has no class token: .* averages"),
}


@pytest.mark.parametrize("attribution", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_reads_no_class_token_says_so(unchecked, name, attribution):
    make, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        attribution(make(), *pictures())


WINDOWS = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
FOUR = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "mlp_ratios": [2] * 4}
WITHOUT_A_GRID = {
    "Swin": WINDOWS | {"attn_implementation": "eager"},
    "Swinv2": WINDOWS,
    "Pvt": FOUR | {"image_size": 32},
    "ConvNext": {"hidden_sizes": [8], "depths": [1], "num_stages": 1, "image_size": 16},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]},
}


@cases.isolated
def without_a_grid(kind):
    config = getattr(transformers, kind + "Config")(**WITHOUT_A_GRID[kind], num_labels=3, num_channels=3)
    return cases.filled(getattr(transformers, kind + "ForImageClassification")(config), seed=2), config


@pytest.mark.parametrize("attribution", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("Swin", "attention has shapes .* not \\(images, heads, tokens, tokens\\)"),
        ("Swinv2", "attention has shapes .* not \\(images, heads, tokens, tokens\\)"),
        ("Pvt", "attention has shapes .* not \\(images, heads, tokens, tokens\\)"),
        ("ConvNext", "model returns no attention weights; .* if ConvNextForImageClassification has attention"),
        ("ResNet", "model returns no attention weights"),
    ],
)
def test_windows_pooling_between_blocks_and_no_attention_are_refused(unchecked, kind, sentence, attribution):
    model, config = without_a_grid(kind)
    side = getattr(config, "image_size", 32)
    with pytest.raises(ValueError, match=sentence):
        attribution(swap.ImageClassifier(model), *pictures((3, side, side)))


class Arranged(nn.Module):
    """Our layers with tokens in any arrangement: `extra` of its own before, `behind` after, and any head."""

    def __init__(
        self,
        *,
        extra=1,
        behind=0,
        order=None,
        head="cls",
        cls=0,
        patch=(2, 2),
        kernel="softmax",
        mean=False,
    ):
        super().__init__()
        self.extra, self.behind, self.order, self.head, self.cls, self.patch, self.mean = (
            extra, behind, order, head, cls, patch, mean
        )  # fmt: skip
        rows, columns = 4 // patch[0], 6 // patch[1]
        self.own = nn.Parameter(torch.zeros(extra + behind, 6))
        self.embed = nn.Conv2d(2, 6, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(extra + behind + rows * columns, 6))
        self.layers = nn.ModuleList(attention.Attention(6, 2, kernel=attention.kernel(kernel)) for _ in range(2))
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.attend(x)[0]

    def attend(self, x):
        x = x - x.mean((1, 2, 3), keepdim=True) if self.mean else x
        patches = self.embed(x).flatten(2).mT
        patches = patches if self.order is None else patches[:, self.order]
        own = self.own.expand(len(x), -1, -1)
        h, maps = torch.cat([own[:, : self.extra], patches, own[:, self.extra :]], 1) + self.position, []
        for layer in self.layers:
            mixed, weights = layer.attend(F.layer_norm(h, (6,)))
            h = h + mixed
            maps.append(weights)
        read = {
            "cls": lambda: h[:, self.cls], "mean": lambda: h.mean(1), "patches": lambda: h[:, self.extra :].mean(1),
            "sum, normed": lambda: F.layer_norm(h.sum(1), (6,)), 
            "both": lambda: h[:, self.cls] + h[:, self.extra :].mean(1), "one patch": lambda: h[:, self.extra],
            "masked": lambda: (h * (torch.arange(h.shape[1]) >= self.extra)[:, None]).sum(1),
        }  # fmt: skip
        return self.out(read[self.head]()), maps


@cases.isolated
def arranged(**options):
    return cases.filled(Arranged(**options), seed=4)


COLUMN_MAJOR = [0, 3, 1, 4, 2, 5]
ARRANGED = {
    "registers last": ({"behind": 3}, 0, [1, 2, 3, 4, 5, 6], (2, 3)),
    "class token last": ({"extra": 0, "behind": 1, "cls": -1}, 6, [0, 1, 2, 3, 4, 5], (2, 3)),
    "registers before the class token": ({"extra": 3, "cls": 2}, 2, [3, 4, 5, 6, 7, 8], (2, 3)),
    "column by column": ({"order": COLUMN_MAJOR}, 0, [1, 3, 5, 2, 4, 6], (2, 3)),
    "backwards": ({"order": [5, 4, 3, 2, 1, 0]}, 0, [6, 5, 4, 3, 2, 1], (2, 3)),
    "strips": ({"patch": (4, 1)}, 0, [1, 2, 3, 4, 5, 6], (1, 6)),
    "beams": ({"patch": (1, 6)}, 0, [1, 2, 3, 4], (4, 1)),
    "as many tokens as dimensions of one": ({"patch": (4, 2), "extra": 3}, 0, [3, 4, 5], (1, 3)),
    "beside the mean of the patches": ({"head": "both"}, 0, [1, 2, 3, 4, 5, 6], (2, 3)),
}


@pytest.mark.parametrize("kernel", ["softmax", "relu", "linear", "gaussian"])
@pytest.mark.parametrize("name", ARRANGED)
def test_tokens_are_found_wherever_they_stand(name, kernel):
    options, cls, order, (rows, columns) = ARRANGED[name]
    model, (x, y) = arranged(**options, kernel=kernel), pictures((2, 4, 6))
    expected = model.attend(x)[1][-1].mean(1)[:, cls][:, order].view(2, 1, rows, columns)
    assert torch.equal(attributions.raw_attention(model, x, y), expected)


@pytest.mark.parametrize("attribution", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"extra": 0, "head": "mean"}, "has no class token"),
        ({"extra": 0, "head": "one patch"}, "has no class token"),
        ({"head": "patches"}, "does not read its class token"),
        ({"head": "masked"}, "does not read its class token"),
        ({"head": "mean"}, "does not read its class token by itself: it averages all its tokens"),
        ({"head": "sum, normed"}, "does not read its class token by itself: it averages all its tokens"),
        ({"order": [0, 1, 2, 3, 4, 4]}, "no patches of a grid of their own"),
        ({"order": [0, 1, 2, 3, 4]}, "no patches of a grid of their own"),
        ({"mean": True}, "no patches of a grid of their own"),
    ],
)
def test_other_readings_and_arrangements_are_refused_by_name(unchecked, options, sentence, attribution):
    model = arranged(**options)
    if len(options.get("order", ())) == 5:
        model.position = nn.Parameter(model.position[:6].detach())
    with pytest.raises(ValueError, match=f"model is Arranged, .*{sentence}"):
        attribution(model, *pictures((2, 4, 6)))


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_how_large_the_logits_are_says_nothing_about_which_token_is_read(scale):
    model, (x, y) = arranged(behind=2), pictures((2, 4, 6))
    expected = attributions.raw_attention(model, x, y)
    for head, refused in (("class", False), ("mean", True), ("sum, normed", True)):
        again = arranged(behind=2) if head == "class" else arranged(head=head)
        with torch.no_grad():
            again.out.weight *= scale
        if refused:
            with pytest.raises(ValueError, match="it averages all its tokens"):
                attributions.raw_attention(again, x, y)
        else:
            assert torch.equal(attributions.raw_attention(again, x, y), expected)


def test_features_of_a_patch_are_not_taken_for_tokens_where_there_are_as_many():
    model = cases.vit(input_shape=(1, 2, 6))  # three patches of four pixels, and a class token
    x, y = pictures((1, 2, 6))
    expected = model.attend(x)[1][-1].mean(1)[:, 0, 1:].view(2, 1, 1, 3)
    assert torch.equal(attributions.raw_attention(model, x, y), expected)


def test_an_untrained_head_of_zeros_hides_nothing():
    model, (x, y) = arranged(behind=3), pictures((2, 4, 6))
    expected = attributions.raw_attention(model, x, y)
    nn.init.zeros_(model.out.weight)
    other = arranged(behind=3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(attributions.raw_attention(other, x, y), expected)
    averaging = arranged(head="patches")
    nn.init.zeros_(averaging.out.weight)
    with pytest.raises(ValueError, match="does not read its class token"):
        attributions.raw_attention(averaging, x, y)


def test_maps_that_the_logits_do_not_depend_on_are_refused():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.other = cases.vit(), cases.vit(seed=1)

        def forward(self, x):
            return self.other(x)

        def attend(self, x):
            return self.other(x), self.inner.attend(x)[1]

    with pytest.raises(ValueError, match="model is Beside, whose logits do not depend on the attention"):
        attributions.rollout(Beside(), *pictures(cases.VIT_SHAPE))


def test_a_layout_is_measured_once_for_a_shape_of_images_and_forgotten_with_its_model(monkeypatch, unchecked):
    measured, plain = [], tokens._measured  # unchecked, since the checker keeps the last function that it was given
    monkeypatch.setattr(tokens, "_measured", lambda *a: measured.append(a[2]) or plain(*a))
    model, x = cases.vit(), pictures(cases.VIT_SHAPE)[0]
    state = torch.get_rng_state()
    attacks.auto(
        attributions.rollout, model, x, Ball("linf", 0.02), k=2, generator=cases.generator(),
        effort=attacks.Effort(steps=3, restarts=1, draws=2, walk=2),
    )  # fmt: skip
    assert torch.equal(state, torch.get_rng_state())
    assert measured == [7]
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None


def test_twins_of_a_transformer_with_registers_have_its_grid():
    model, (x, y) = arranged(behind=2, kernel="relu"), pictures((2, 4, 6))
    twin = models.smooth_twin(model, x, beta=10.0)
    assert attributions.rollout(twin, x, y).shape == attributions.rollout(model, x, y).shape == (2, 1, 2, 3)


@pytest.mark.parametrize("name", ["raw_attention", "rollout", "gradient_attention", "relevance"])
def test_the_derivative_of_a_map_on_a_found_grid_agrees_with_finite_differences(name):
    model, (x, y) = arranged(behind=2, order=COLUMN_MAJOR), pictures((2, 4, 6))
    weights = torch.randn(2, 1, 2, 3, generator=cases.generator(1), dtype=x.dtype)
    direction = torch.randn(x.shape, generator=cases.generator(2), dtype=x.dtype)

    def score(at):
        return (MAPS[name](model, at, y) * weights).sum()

    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(at), at)
    assert (gradient * direction).sum().item() == pytest.approx(cases.slope(score, x, direction).item(), rel=1e-6)


class Told(nn.Module):
    """A transformer whose `attend` tells of its matrices what a function makes of them."""

    def __init__(self, tell, **options):
        super().__init__()
        self.inner, self.tell = arranged(**options), tell

    def forward(self, x):
        return self.inner(x)

    def attend(self, x):
        logits, maps = self.inner.attend(x)
        return logits, self.tell(maps)


@pytest.mark.parametrize("place", [0, 1])
def test_a_model_that_returns_other_matrices_than_it_computes_in_its_first_or_last_block_is_refused(place):
    def tell(maps):
        return [2 * m.detach() if at == place else m for at, m in enumerate(maps)]

    with pytest.raises(ValueError, match="model is Told, whose `attend` returns other matrices than those it computes"):
        attributions.rollout(Told(tell), *pictures((2, 4, 6)))
    x, y = pictures((2, 4, 6))
    expected = attributions.rollout(arranged(), x, y)
    assert torch.equal(attributions.rollout(Told(lambda maps: maps), x, y), expected)


@pytest.mark.parametrize(
    "shapes",
    [
        [],
        [(3, 2, 7)],
        [(3, 7, 7)],
        [(3, 1, 2, 7, 7)],
        [(2, 2, 7, 7)],
        [(3, 2, 7, 6)],
        [(3, 2, 6, 7)],
        [(3, 2, 7, 7), (3, 2, 6, 6)],
        [(3, 2, 7, 7), (2, 2, 7, 7)],
        [(3, 2, 7, 7), (3, 7, 7)],
    ],
)
def test_matrices_of_any_other_shape_are_refused(unchecked, shapes):
    model, x = arranged(), pictures((2, 4, 6), n=3)[0]
    with pytest.raises(ValueError, match=r"model is Arranged, whose attention has shapes .* for 3 images"):
        tokens.layout(model, x, [torch.ones(shape).double() for shape in shapes])
    with pytest.raises(ValueError, match=r"whose attention has shapes \['NoneType'\] for 3 images"):
        tokens.layout(model, x, [None])


def test_blocks_may_have_different_numbers_of_heads():
    model, (x, y) = arranged(behind=2), pictures((2, 4, 6))
    with torch.random.fork_rng(devices=[]):
        model.layers[0] = cases.filled(attention.Attention(6, 3, kernel=attention.kernel("softmax")), 5)
    maps = model.attend(x)[1]
    assert [m.shape[1] for m in maps] == [3, 2]
    expected = maps[-1].mean(1)[:, 0, 1:7].view(2, 1, 2, 3)
    assert torch.equal(attributions.raw_attention(model, x, y), expected)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_class_token_that_is_read_through_one_of_two_heads_is_found(silent):
    model, (x, y) = arranged(extra=2, cls=1), pictures((2, 4, 6))
    with torch.no_grad():
        model.layers[-1].projection.weight[:, 3 * silent : 3 * silent + 3] = 0
    expected = model.attend(x)[1][-1].mean(1)[:, 1, 2:].view(2, 1, 2, 3)
    assert torch.equal(attributions.raw_attention(model, x, y), expected)


class Halves(nn.Module):
    """A transformer whose `forward` and `attend` are told apart: pixels, logits and matrices by a function each."""

    def __init__(self, *, forward=lambda x: x, attend=lambda x: x, logits=lambda z: z, maps=list, depth=2):
        super().__init__()
        self.inner, self.before, self.attended = cases.vit(depth=depth), forward, attend
        self.logits, self.maps = logits, maps

    def forward(self, x):
        return self.inner(self.before(x))

    def attend(self, x):
        logits, maps = self.inner.attend(self.attended(x))
        return self.logits(logits), self.maps(maps)


def standardised(x):
    return (x - 0.5) / 0.05


OTHER_LOGITS = "model is Halves, whose `attend` gives other logits than the model itself, by up to "


@pytest.mark.parametrize("attribution", MAPS.values(), ids=MAPS)
def test_attention_of_other_images_than_the_model_sees_is_refused(attribution):
    x, y = pictures(cases.VIT_SHAPE)
    with pytest.raises(ValueError, match=OTHER_LOGITS):
        attribution(Halves(forward=standardised), x, y)
    found = attribution(Halves(forward=standardised, attend=standardised), x, y)
    assert torch.allclose(found, attribution(cases.vit(), standardised(x), y), rtol=1e-10)


@pytest.mark.parametrize("name", MAPS)
def test_logits_of_other_classes_matter_to_maps_of_a_class_alone_and_rounding_to_none(name):
    x, y = pictures(cases.VIT_SHAPE)
    expected, turned = MAPS[name](cases.vit(), x, y), Halves(logits=lambda z: z.roll(1, 1))
    if name in ("gradient_attention", "relevance"):
        with pytest.raises(ValueError, match=r"^model gives other logits by `attend`, by up to "):
            MAPS[name](turned, x, y)
    else:
        assert torch.equal(MAPS[name](turned, x, y), expected)
    rounded = Halves(logits=lambda z: z * (1 + 1e-12))
    assert torch.allclose(MAPS[name](rounded, x, y), expected, rtol=1e-10)


@pytest.mark.parametrize("order", [[2, 1, 0], [1, 0, 2], [0, 2, 1]])
def test_matrices_in_another_order_than_they_are_computed_are_refused(order):
    x, y = pictures(cases.VIT_SHAPE)
    with pytest.raises(ValueError, match="model is Halves, whose `attend` returns its matrices in another order than"):
        attributions.rollout(Halves(maps=lambda maps: [maps[i] for i in order], depth=3), x, y)
    assert torch.equal(attributions.rollout(Halves(depth=3), x, y), attributions.rollout(cases.vit(depth=3), x, y))


def test_a_block_in_the_middle_that_returns_other_matrices_is_refused():
    other = Halves(maps=lambda maps: [maps[0], 2 * maps[1].detach(), maps[2]], depth=3)
    with pytest.raises(ValueError, match="model is Halves, whose `attend` returns other matrices than those it"):
        attributions.rollout(other, *pictures(cases.VIT_SHAPE))


def test_equal_matrices_of_several_blocks_are_in_order():
    """Scores of zero make every matrix alike."""
    model, (x, y) = cases.vit(depth=3), pictures(cases.VIT_SHAPE)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:6], block.attention.qkv.bias[:6] = 0, 0
    assert torch.allclose(attributions.raw_attention(model, x, y), torch.full((2, 1, 2, 3), 1 / 7, dtype=x.dtype))
