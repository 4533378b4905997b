from contextlib import nullcontext

import cases
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


HOW = {"n_train": 60, "n_attacked": 2, "epochs": 2, "step_size": 0.02, "radius": 8}


def drop_in(most, last, margin, names=("softmax", "gaussian")):
    effort = attacks.Effort(steps=1, restarts=1)
    return kernel_attention.drop_in(names, 0, **HOW, most=most, last=last, margin=margin, effort=effort)


@pytest.fixture(scope="module")
def dropped_in():
    return drop_in(most=3, last=2, margin=0.001)


def test_swapping_softmax_in_changes_no_prediction(dropped_in):
    control = dropped_in[(dropped_in.kernel == "softmax") & (dropped_in.part == "accuracy")]
    assert (control.swapped == control.loc[control.epoch == 0, "accuracy"].item()).all()


def test_all_kernels_start_from_one_network_and_every_map_is_attacked(dropped_in):
    before = dropped_in[dropped_in.epoch <= 0].pivot(index="epoch", columns="kernel", values="accuracy")
    assert len(before) == HOW["epochs"]
    assert (before.softmax == before.gaussian).all()
    maps = dropped_in[dropped_in.part == "maps"]
    assert set(zip(maps.kernel, maps["map"], maps.readout, maps.attack, strict=True)) == {
        (kernel, name, "none", attack)
        for kernel in ("softmax", "gaussian")
        for name in ("raw_attention", "rollout")
        for attack in ("noise", "worst")
    }


@pytest.mark.parametrize(("margin", "passes"), [(1.0, 2), (1e-9, 4)])
def test_all_kernels_train_on_until_the_slowest_is_flat_or_the_passes_are_over(margin, passes):
    table = drop_in(most=4, last=2, margin=margin)
    table = table[table.part == "accuracy"]
    for _, curve in table.groupby("kernel"):
        after = curve.loc[curve.epoch > 0].sort_values("epoch")
        assert after.epoch.tolist() == [*range(1, passes + 1)]
        assert curve.flat.unique().tolist() == [kernel_attention.steady(after.accuracy.tolist(), last=2, margin=margin)]
    assert table.flat.all() == (margin == 1.0)


def test_every_kernel_sees_the_same_batches_whatever_company_it_trains_in(dropped_in):
    alone = drop_in(most=3, last=2, margin=0.001, names=("gaussian",))
    mine = dropped_in[dropped_in.kernel == "gaussian"].reset_index(drop=True)
    both = min(len(mine[mine.part == "accuracy"]), len(alone[alone.part == "accuracy"]))
    assert alone.accuracy[:both].tolist() == mine.accuracy[:both].tolist()


@pytest.mark.parametrize(
    ("curve", "flat"),
    [([0.9, 0.9], False), ([0.1, 0.9, 0.905, 0.9], True), ([0.9, 0.8, 0.9], False), ([0.5, 0.9, 0.91, 0.92], False)],
)
def test_a_curve_is_flat_if_its_last_values_lie_within_the_margin(curve, flat):
    assert kernel_attention.steady(curve, last=3, margin=0.01) == flat


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_dropout_is_refused_only_where_it_drops(p):
    x, y = cases.images(4, shape=(1, 2, 2)).float(), torch.tensor([0, 1, 0, 1])
    net = cases.isolated(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(p), nn.Linear(4, 2)))()
    refusal = pytest.raises(ValueError, match="model answers the same images differently") if p else nullcontext()
    with refusal:
        recipe = training.Recipe(step_size=0.1, batch_size=2, epochs=1)
        training.fit([net], x, y, recipe, generators=[cases.generator()])
