import copy
import json
import math
import pickle
import subprocess
import sys

import cases
import pytest
import torch
from attrobust import attacks, attention, attributions, swap
from torch import nn
from torch.nn import functional as F

# ------------------------------------------------------------------ our own transformers


def images(n=3):
    return cases.images(n, shape=cases.VIT_SHAPE)


@pytest.mark.parametrize("name", attention.KERNELS)
def test_a_swapped_transformer_is_the_one_built_with_that_kernel(name):
    swapped, built, x = swap.attention(cases.vit(), name), cases.vit(attention=name), images()
    for ours, theirs in zip(swapped.attend(x)[1], built.attend(x)[1], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(swapped(x), built(x))


def test_the_original_keeps_its_kernel_and_shares_every_weight():
    model, x = cases.vit(), images()
    before = model(x)
    swapped = swap.attention(model, "gaussian")
    assert torch.equal(model(x), before)
    assert not torch.allclose(swapped(x), before, rtol=1e-3)
    pairs = zip(model.named_parameters(), swapped.named_parameters(), strict=True)
    assert all(n == m and p is q for (n, p), (m, q) in pairs)
    assert {b.data_ptr() for b in swapped.buffers()} == {b.data_ptr() for b in model.buffers()}


def step(model, x, y):
    """One step of gradient descent."""
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
    with torch.no_grad():
        for p, slope in zip(parameters, slopes, strict=True):
            p -= 0.1 * slope


def trained_by_hand(model, x, y, kernel):
    """An unrelated copy of a transformer, its kernels exchanged in place, after the same step."""
    alone = copy.deepcopy(model)
    for block in alone.blocks:
        block.attention.kernel = attention.kernel(kernel)
    step(alone, x, y)
    for block in alone.blocks:
        block.attention.kernel = attention.kernel("softmax")
    return alone


def test_after_swap_step_and_swap_back_the_outputs_follow_the_trained_weights():
    model, x, y = cases.vit(), images(), cases.labels()
    before, expected = model(x), trained_by_hand(model, x, y, "gaussian")(x)
    swapped = swap.attention(model, "gaussian")
    step(swapped, x, y)
    assert torch.allclose(swap.attention(swapped, "softmax")(x), expected, rtol=1e-12)
    assert torch.allclose(model(x), expected, rtol=1e-12)
    assert not torch.allclose(before, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "name", "sentence"),
    [
        (cases.vit, "gausian", "attention is 'gausian'; it must be one of softmax, .*did you mean 'gaussian'"),
        (cases.mlp, "gaussian", "model is Sequential, whose attention cannot be swapped; it must hold"),
    ],
)
def test_what_cannot_be_swapped_is_refused(model, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        swap.attention(model(), name)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"swap needs transformers for this; install it by pip install attrobust\[hf"):
        swap.register("gaussian")
    with pytest.raises(ValueError, match="attention is 'gauss'"):
        swap.register("gauss")


# ------------------------------------------------------------------ models of transformers, built without downloads


@pytest.fixture(scope="module")
def transformers():
    import transformers

    return transformers


SMALL = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.5,
}  # fmt: skip


@cases.isolated
def hf_vit(transformers, implementation="eager", **options):
    sizes = SMALL | {"image_size": 4, "patch_size": 2, "num_channels": 1, "num_labels": 3} | options
    config = transformers.ViTConfig(**sizes, attn_implementation=implementation)
    return cases.filled(transformers.ViTForImageClassification(config), seed=2)


@cases.isolated
def hf_bert(transformers, implementation="eager", **options):
    config = transformers.BertConfig(vocab_size=11, **SMALL, **options, attn_implementation=implementation)
    return cases.filled(transformers.BertModel(config), seed=2)


@cases.isolated
def hf_gpt(transformers, implementation="eager"):
    config = transformers.GPT2Config(
        vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0,
        attn_implementation=implementation,
    )  # fmt: skip
    return cases.filled(transformers.GPT2Model(config), seed=2)


@cases.isolated
def hf_llama(transformers, implementation="eager"):
    sizes = {name: SMALL[name] for name in ("num_hidden_layers", "intermediate_size")}
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, **sizes,
        attn_implementation=implementation,
    )  # fmt: skip
    return cases.filled(transformers.LlamaModel(config), seed=2)


READERS = {"bert": hf_bert, "gpt": hf_gpt, "llama": hf_llama}
IDS = torch.tensor([[1, 4, 2, 8, 5, 7], [3, 1, 4, 1, 5, 9]])
FULL, PADDED = torch.ones(2, 6, dtype=torch.long), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


def pictures(n=3):
    return cases.images(n, shape=(1, 4, 4))


def read(model, mask=FULL, ids=IDS):
    return model(input_ids=ids, attention_mask=mask, output_attentions=True)


def heads_of(layer, tokens):
    """Queries and keys of a ViT's attention layer by their own weights."""
    return (
        part(tokens).unflatten(-1, (layer.num_attention_heads, -1)).transpose(1, 2)
        for part in (layer.q_proj, layer.k_proj)
    )


def test_softmax_swapped_into_a_vit_is_its_eager_attention(transformers):
    model, x = hf_vit(transformers), pictures()
    expected = model(pixel_values=x, output_attentions=True)
    found = swap.attention(model, "softmax")(pixel_values=x, output_attentions=True)
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert len(found.attentions) == 2
    for ours, theirs in zip(found.attentions, expected.attentions, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert ours.shape == (3, 2, 5, 5)


@pytest.mark.parametrize("mask", [FULL, PADDED], ids=["full", "padded"])
@pytest.mark.parametrize("name", READERS)
def test_softmax_swapped_into_a_reader_is_its_eager_attention_masks_included(transformers, name, mask):
    model = READERS[name](transformers)
    expected, found = read(model, mask), read(swap.attention(model, "softmax"), mask)
    kept = mask.bool()  # what a padding token itself reads is nobody's business
    assert torch.allclose(found.last_hidden_state[kept], expected.last_hidden_state[kept], atol=1e-5)
    for ours, theirs in zip(found.attentions, expected.attentions, strict=True):
        assert torch.allclose(ours.mT[:, :, :, :4], theirs.mT[:, :, :, :4], atol=1e-5)


@pytest.mark.parametrize("name", attention.KERNELS)
def test_a_swapped_vit_returns_the_kernels_matrix_live(transformers, name):
    model, x = swap.attention(hf_vit(transformers), name), pictures().requires_grad_()
    layers = [m for m in model.modules() if hasattr(m, "q_proj")]
    seen = []
    handles = [m.register_forward_pre_hook(lambda m, a, k: seen.append(a[0] if a else k["hidden_states"]),
                                           with_kwargs=True) for m in layers]  # fmt: skip
    found = model(pixel_values=x, output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    for layer, tokens, weights in zip(layers, seen, found, strict=True):
        assert torch.allclose(weights, attention.kernel(name)(*heads_of(layer, tokens)), rtol=1e-10)
    (slope,) = torch.autograd.grad(found[-1].square().sum(), x, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), x)[0].any()


@pytest.mark.parametrize("kernel", [name for name in attention.KERNELS if name != "doubly_stochastic"])
@pytest.mark.parametrize("name", READERS)
def test_a_swapped_reader_never_sees_padding_nor_a_decoder_the_future(transformers, name, kernel):
    model = swap.attention(READERS[name](transformers), kernel)
    found = read(model, PADDED)
    causal = name != "bert"
    for weights in found.attentions:
        assert not weights[1, :, :4, 4:].any()
        ahead = weights[0].triu(1).any()
        assert not ahead if causal else ahead or kernel == "relu"
    other = IDS.clone()
    other[1, 4:] = 6
    assert torch.allclose(read(model, PADDED, other).last_hidden_state[1, :4], found.last_hidden_state[1, :4])
    short = read(model, FULL[1:, :4], IDS[1:, :4]).last_hidden_state[0]
    assert torch.allclose(short, found.last_hidden_state[1, :4], rtol=1e-10)


def test_a_kernel_whose_rows_share_columns_refuses_what_must_stay_hidden(transformers):
    for name in READERS:
        with pytest.raises(ValueError, match=r"norm=rows_and_columns.*, in which every query enters the others' rows"):
            read(swap.attention(READERS[name](transformers), "doubly_stochastic"), PADDED)


def test_a_model_can_be_built_with_a_kernel_and_is_the_swapped_one(transformers):
    built, x = hf_vit(transformers, implementation=swap.register("sigmoid")), pictures()
    swapped = swap.attention(hf_vit(transformers), "sigmoid")
    assert torch.equal(built(pixel_values=x).logits, swapped(pixel_values=x).logits)


def test_the_weights_are_shared_and_swapping_back_restores_and_follows(transformers):
    model, x, y = swap.ImageClassifier(hf_vit(transformers)), pictures(), torch.tensor([0, 1, 2])
    before = model(x)
    model.attend(x)  # transformers puts hooks on a model the first time; the copy must cope with them
    swapped = swap.attention(model, "gaussian")
    assert all(p is q for p, q in zip(model.parameters(), swapped.parameters(), strict=True))
    assert not torch.allclose(swapped(x), before, rtol=1e-3)
    assert torch.allclose(swap.attention(swapped, "softmax")(x), before, atol=1e-5)
    assert torch.equal(model(x), before)
    step(swapped, x, y)
    back = swap.attention(swapped, "softmax")
    assert torch.allclose(back(x), model(x), atol=1e-5)
    assert (back(x) - before).abs().min() > 1e-3
    assert not swapped.training


@pytest.mark.parametrize("kernel", attention.KERNELS)
def test_maps_of_a_swapped_vit_are_attacked_by_their_true_gradient(transformers, kernel):
    model = swap.attention(swap.ImageClassifier(hf_vit(transformers), mean=0.4, std=0.3), kernel).requires_grad_(False)
    x, y = pictures(), torch.tensor([0, 1, 2])
    direction = torch.randn(x.shape, generator=cases.generator(2), dtype=x.dtype)
    for method in (attributions.saliency, attributions.rollout, attributions.relevance):
        clean = method(model, x, y).detach()

        def goal(images, method=method, clean=clean):
            return attacks.lower_pearson(attacks.Clean(clean, k=1), method(model, images, y))

        at = (x + 0.05 * torch.randn(x.shape, generator=cases.generator(3), dtype=x.dtype)).requires_grad_()
        (gradient,) = torch.autograd.grad(goal(at).sum(), at)
        expected = cases.slope(lambda im, goal=goal: goal(im).sum(), at.detach(), direction).item()
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4)


def test_an_image_classifier_standardises_and_answers_as_our_models_do(transformers):
    inner, x = hf_vit(transformers), pictures()
    model = swap.ImageClassifier(inner, mean=0.4, std=0.3)
    expected = inner(pixel_values=(x - 0.4) / 0.3, output_attentions=True)
    logits, maps = model.attend(x)
    assert torch.equal(logits, expected.logits)
    assert torch.equal(model(x), logits)
    assert all(torch.equal(m, e) for m, e in zip(maps, expected.attentions, strict=True))
    assert attributions.rollout(model, x, torch.tensor([0, 1, 2])).shape == (3, 1, 2, 2)


def test_attention_dropout_acts_in_training_alone(transformers):
    model, x = swap.attention(hf_vit(transformers, attention_probs_dropout_prob=0.5), "l2"), pictures()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert torch.equal(model(pixel_values=x).logits, model(pixel_values=x).logits)
        weights = model.train()(pixel_values=x, output_attentions=True).attentions[0]
    assert 0 < (weights == 0).double().mean() < 1


# ------------------------------------------------------------------ what a kernel does not know is refused


def call(transformers, mask=None, **options):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    parts = torch.rand(3, 1, 2, 4, 6, generator=cases.generator()).unbind()
    return ALL_ATTENTION_FUNCTIONS[swap.register("l2")](nn.Identity().eval(), *parts, mask, **options)


def test_the_usual_scale_is_accepted_and_dropout_rests_outside_training(transformers):
    mixed, weights = call(transformers, scaling=1 / math.sqrt(6), softcap=None, dropout=0.5)
    assert mixed.shape == (1, 4, 2, 6)
    assert torch.allclose(weights.sum(-1), torch.ones(1, 2, 4))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scaling": 1.0}, r"model scales its scores by 1; a kernel scales by 1 / sqrt\(dim\), 0.408"),
        ({"softcap": 30.0}, "the model asks its attention for softcap, which a kernel does not know"),
        ({"s_aux": torch.zeros(2)}, "the model asks its attention for s_aux, which a kernel does not know"),
        ({"mask": torch.zeros(1, 1, 4, 4)}, "attention_mask has dtype torch.float32; it must be boolean"),
    ],
)
def test_attention_of_another_kind_is_refused(transformers, unchecked, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(transformers, **options)


def test_a_model_that_keeps_its_weights_to_itself_is_refused(transformers):
    with pytest.raises(
        ValueError, match="model returns no attention weights; build it with attn_implementation='eager'"
    ):
        swap.ImageClassifier(hf_vit(transformers, implementation="sdpa")).attend(pictures())


# ------------------------------------------------------------------ whether anything was swapped, and whether it lasts


SPATIAL = {
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]},
    "PoolFormer": {"hidden_sizes": [8] * 4, "depths": [1] * 4},
    "Pvt": {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "mlp_ratios": [2] * 4},
}


@cases.isolated
def spatial(transformers, kind):
    config = getattr(transformers, kind + "Config")(**SPATIAL[kind], num_labels=3)
    return cases.filled(getattr(transformers, kind + "ForImageClassification")(config), seed=2)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", SPATIAL)
def test_a_model_of_transformers_that_never_calls_the_kernel_is_refused(transformers, unchecked, kind, wrapped):
    model = spatial(transformers, kind)
    model, before = (swap.ImageClassifier(model) if wrapped else model), model.config._attn_implementation
    with pytest.raises(ValueError, match=f"model is {type(model).__name__}, whose attention cannot be swapped"):
        swap.attention(model, "gaussian")
    assert (model.model if wrapped else model).config._attn_implementation == before


def test_a_model_of_which_a_layer_stays_as_it_is_is_refused(transformers, unchecked):
    model = hf_vit(transformers)
    model.vit.layers[1].attention.config = copy.deepcopy(model.config)
    with pytest.raises(ValueError, match="of whose 2 layers of attention 1 look it up by name"):
        swap.attention(model, "gaussian")


def test_attention_of_another_kind_is_refused_when_it_is_swapped(transformers, unchecked):
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4, num_labels=3
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.SwinForImageClassification(config).eval()
    with pytest.raises(ValueError, match=r"attention_mask has dtype torch.float32; it must be boolean"):
        swap.attention(model, "gaussian")


def test_counting_leaves_random_numbers_modes_and_buffers_as_found(transformers):
    model = hf_vit(transformers, hidden_dropout_prob=0.5).train()
    model.vit.embeddings.eval()
    model.register_buffer("seen", torch.zeros(3))
    model.register_forward_pre_hook(lambda *_: None if torch.rand(1) < 2 else ())
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    swapped = swap.attention(model, "gaussian")
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in swapped.modules()] == modes == [m.training for m in model.modules()]
    assert swapped.seen is model.seen


def test_given_inputs_are_those_that_are_counted(transformers):
    model = hf_vit(transformers)
    inputs = {"pixel_values": pictures(1)}
    assert swap.attention(model, "l2", inputs=inputs).config._attn_implementation == "attrobust_l2"
    with pytest.raises(ValueError, match="Input image size"):
        swap.attention(model, "l2", inputs={"pixel_values": inputs["pixel_values"][..., :2]})


@cases.isolated
def hf_siglip(transformers, implementation="eager"):
    vision = {k: v for k, v in SMALL.items() if k.startswith(("hidden_size", "num", "inter"))}
    config = transformers.SiglipConfig(
        vision_config=vision | {"image_size": 4, "patch_size": 2, "num_channels": 1},
        text_config=vision | {"vocab_size": 11}, num_labels=3, attn_implementation=implementation,
    )  # fmt: skip
    return cases.filled(transformers.SiglipForImageClassification(config), seed=2)


SAVED = {
    "vit": (hf_vit, {"pixel_values": pictures()}),
    "siglip": (hf_siglip, {"pixel_values": pictures()}),
    "bert": (hf_bert, {"input_ids": IDS}),
    "gpt": (hf_gpt, {"input_ids": IDS}),
}


def output(model, inputs):
    return model(**inputs).to_tuple()[0]


@pytest.mark.parametrize("kernel", ["gaussian", "softmax"])
@pytest.mark.parametrize("name", SAVED)
def test_a_swapped_model_survives_saving_and_loading_any_number_of_times(transformers, tmp_path, name, kernel):
    make, inputs = SAVED[name]
    model = swap.attention(make(transformers), kernel)
    expected = output(model, inputs)
    for turn in ("first", "second", "third"):
        model.save_pretrained(tmp_path / turn)
        config = json.loads((tmp_path / turn / "config.json").read_text())
        assert config["attn_implementation"] == f"attrobust_{kernel}"
        model = type(model).from_pretrained(tmp_path / turn, dtype=torch.float64)
        assert torch.equal(output(model, inputs), expected)
    built = cases.isolated(type(model))(model.config).double().eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), built):
        other.load_state_dict(model.state_dict())
        assert torch.equal(output(other, inputs), expected)


def test_a_model_that_was_built_with_a_kernel_is_saved_with_it(transformers, tmp_path):
    model = hf_vit(transformers, implementation=swap.register("sigmoid"))
    model.save_pretrained(tmp_path)
    back = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(back(pixel_values=pictures()).logits, model(pixel_values=pictures()).logits)
    asked = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    asked.save_pretrained(tmp_path)
    assert "attn_implementation" not in json.loads((tmp_path / "config.json").read_text())


def test_without_the_kernels_a_saved_model_is_not_loaded_as_softmax(transformers, tmp_path):
    swap.attention(hf_vit(transformers), "gaussian").save_pretrained(tmp_path)
    code = f"import transformers; transformers.ViTForImageClassification.from_pretrained({str(tmp_path)!r})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode != 0
    assert 'attn_implementation="attrobust_gaussian"` is not supported' in found.stderr


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"mean": "a"}, "mean is 'a'; it must be a finite number"),
        ({"mean": math.nan}, "mean is nan"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean is .*; it must be a finite number"),
        ({"std": 0}, "std is 0; it must be a finite number above 0"),
        ({"std": torch.ones(3, 1, 1)}, "std is a Tensor"),
        ({}, r"model is Sequential, which takes \(input\); it must be an image classifier of transformers"),
        ({"model": None}, "model is a NoneType"),
    ],
)
def test_what_is_no_image_classifier_of_transformers_is_refused(how, sentence, unchecked):
    model = nn.Sequential()
    if how:
        model.forward = lambda pixel_values: pixel_values
    with pytest.raises(ValueError, match=f"^{sentence}"):
        swap.ImageClassifier(**({"model": model} | how))
