"""Operations that torch differentiates once: an attack and a penalty end in one sentence, not in torch's."""

import cases
import pytest
import torch
import transformers
from attrobust import attacks, attributions, curvature, models, swap
from attrobust.balls import Ball
from attrobust.models.derivatives import again, twice_differentiable
from attrobust.regularizers import PENALTIES
from attrobust.training.ingredients import Objective, cross_entropy, sgd
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

FUSED = r"model uses fused attention \(ScaledDotProduct\w+\) without a second derivative; write the attention out"
REMEDIES = r".*attn_implementation='eager' or swap.attention\(model, 'softmax'\).*sdpa_kernel\(SDPBackend.MATH\)"
PLAIN = "model uses an operation without a second derivative"


@cases.isolated
def fused():
    """A transformer as transformers builds it unless asked."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.ViTConfig(**sizes, image_size=4, patch_size=2, num_channels=1, num_labels=3)
    return swap.ImageClassifier(cases.filled(transformers.ViTForImageClassification(config), seed=2))


class Distances(nn.Module):
    """Logits are distances, of which torch knows one derivative."""

    def forward(self, x):
        return torch.cdist(x.flatten(1), torch.eye(3, x[0].numel(), dtype=x.dtype))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class Once(nn.Module):
    def forward(self, x):
        return Cube.apply(x).flatten(1)[:, :3].square()


def pictures():
    return cases.images(2, shape=(1, 4, 4))


def attack(model):
    effort = attacks.Effort(steps=2, restarts=1, draws=1, walk=1)
    return attacks.auto(
        attributions.saliency, model, pictures(), Ball("linf", 0.03), k=3, generator=cases.generator(), effort=effort
    )


MODELS = {
    "fused attention": (fused, FUSED + REMEDIES),
    "cdist": (Distances, PLAIN),
    "a Function": (Once, "model keeps kinks that a smooth twin cannot replace .* or a backward of its own"),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_attack_on_a_map_that_cannot_be_differentiated_ends_in_one_sentence(unchecked, name):
    make, sentence = MODELS[name]
    with pytest.raises(ValueError, match=sentence):
        attack(make())


@pytest.mark.parametrize("name", [name for name in PENALTIES if name != "none"])
def test_so_does_a_penalty(unchecked, name):
    model, objective = fused(), Objective(cross_entropy, PENALTIES[name], 0.1, wanted=pictures())
    with pytest.raises(ValueError, match=FUSED + REMEDIES):
        sgd(model, objective, pictures(), cases.labels(2), 0.0, cases.generator())


def test_every_remedy_of_the_sentence_is_one():
    model = fused()
    swapped = attack(swap.attention(model, "softmax"))
    with sdpa_kernel(SDPBackend.MATH):
        under = attack(model)
    model.model.set_attn_implementation("eager")
    written = attack(model)
    for found in (swapped, under):
        worst, expected = (t.table.query("part == 'worst'")["spearman"].tolist() for t in (found, written))
        assert worst == pytest.approx(expected, abs=1e-6)


def test_a_function_that_may_be_differentiated_once_is_found_in_the_graph():
    x = pictures().requires_grad_()
    maps = attributions.saliency(Once(), x, cases.labels(2))
    with pytest.raises(ValueError, match=PLAIN):
        twice_differentiable(models.derivatives.behind([maps]))


def test_other_errors_of_torch_are_left_as_they_are():
    values = torch.ones(2, requires_grad=True) ** 2
    with pytest.raises(RuntimeError, match="out of something"), again(values):
        raise RuntimeError("out of something")


def test_curvature_speaks_the_same_sentence():
    assert curvature.guards.twice_differentiable is twice_differentiable
    assert models.derivatives.behind([torch.ones(1)]) == set()
