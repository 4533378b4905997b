from contextlib import nullcontext

import cases
import pandas as pd
import pytest
import torch
from attrobust import attacks, attention, models, training
from attrobust.studies import kernel_attention
from torch import nn

ATTACK = {"radius": 32, "steps": 3, "restarts": 1, "seed": 0}
INCREASING = [name for name in attention.KERNELS if name not in ("relu", "doubly_stochastic")]


@cases.isolated
def vit(name):
    sizes = {"patch": 2, "dim": 8, "depth": 2, "heads": 2}
    net = models.build("vit", input_shape=(1, 8, 8), classes=3, seed=0, attention=name, **sizes)
    return net.double().eval().requires_grad_(False)


def twice(model, **change):
    return kernel_attention.read_out_twice(model, cases.images(3, shape=(1, 8, 8)), **ATTACK | change)


# ------------------------------------------------------------------ the control of P32


@pytest.mark.parametrize("name", INCREASING)
def test_an_increasing_kernel_ranks_one_row_as_a_softmax_of_its_scores_does(name):
    table = twice(vit(name)).set_index("map")
    assert (table.loc["one row", "own"] - table.loc["one row", "softmax"]).abs().max() < 1e-12
    assert table.loc["one row", "own"].max() < 1


def test_the_mean_of_heads_differs_but_for_softmax_itself():
    same, other = (twice(vit(name)).set_index("map").loc["mean of heads"] for name in ("softmax", "gaussian"))
    assert (same.own - same.softmax).abs().max() < 1e-12
    assert (other.own - other.softmax).abs().max() > 1e-3


def test_a_kernel_that_does_not_increase_is_found_out():
    model = vit("softmax")
    kernel = model.blocks[-1].attention.kernel
    kernel.weights = lambda scores, mask=None: (scores - scores.mean(-1, keepdim=True)).square().softmax(-1)
    rows = twice(model).set_index("map").loc["one row"]
    assert (rows.own - rows.softmax).abs().max() > 1e-3


def test_ties_of_relu_rows_break_the_agreement():
    rows = twice(vit("relu")).set_index("map").loc["one row"]
    assert (rows.own - rows.softmax).abs().max() > 1e-3


# ------------------------------------------------------------------ costs


def test_fused_attention_mixes_as_softmax_written_out_does():
    written, fused = (cases.isolated(attention.Attention)(8, 2) for _ in range(2))
    fused.load_state_dict(written.state_dict())
    fused.__class__ = kernel_attention._Fused
    x = torch.randn(2, 5, 8, generator=cases.generator())
    assert torch.allclose(fused(x), written(x), atol=1e-6)


def test_every_kernel_is_timed_in_every_round_and_the_warm_up_is_not_counted():
    table = kernel_attention.training_steps(["softmax", "l2"], 14, 8, 1, 4, 3)
    rounds = table.groupby("kernel").repetition.apply(list)
    assert set(rounds.index) == {"softmax", "l2", kernel_attention.FUSED}
    assert all(found == [0, 1, 2] for found in rounds)
    assert (table.seconds > 0).all()
    mixed = kernel_attention.mixing(["softmax"], [4, 8], 4, 2)
    ways = {"softmax", kernel_attention.FUSED, kernel_attention.UNFORMED}
    assert set(zip(mixed.tokens, mixed.kernel, strict=True)) == {(n, way) for n in (4, 8) for way in ways}


# ------------------------------------------------------------------ a transformer of Hugging Face


@pytest.fixture(scope="module")
def dropped_in():
    how = {"n_train": 60, "n_attacked": 2, "epochs": 2, "step_size": 0.02, "radius": 8}
    return kernel_attention.drop_in(["softmax", "gaussian"], 0, **how, effort=attacks.Effort(steps=1, restarts=1))


def test_swapping_softmax_in_changes_no_prediction(dropped_in):
    control = dropped_in[dropped_in.kernel == "softmax"]
    assert (control.swapped == control.before).all()


def test_all_kernels_start_from_one_network_and_every_map_is_attacked(dropped_in):
    assert dropped_in.before.nunique() == 1
    assert set(zip(dropped_in.kernel, dropped_in.map, dropped_in.attack, strict=True)) == {
        (kernel, name, attack)
        for kernel in ("softmax", "gaussian")
        for name in ("saliency", "raw_attention", "rollout")
        for attack in ("noise", "worst")
    }
    assert isinstance(dropped_in, pd.DataFrame)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_dropout_is_refused_only_where_it_drops(p):
    x, y = cases.images(4, shape=(1, 2, 2)).float(), torch.tensor([0, 1, 0, 1])
    net = cases.isolated(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(p), nn.Linear(4, 2)))()
    refusal = pytest.raises(ValueError, match="model answers the same images differently") if p else nullcontext()
    with refusal:
        recipe = training.Recipe(step_size=0.1, batch_size=2, epochs=1)
        training.fit([net], x, y, recipe, generators=[cases.generator()])
