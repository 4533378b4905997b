"""Laws of copies that are trained on: what stays as found, which rung is taken, what is refused, what is advised."""

import copy
import math

import cases
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from attrobust import attacks, attributions, audit, models, training
from attrobust.audit import batches, retraining
from attrobust.audit.retraining import ALIGNED, BEFORE, COST, DECAY, LEFT, PENALTY, PLAIN, SWAPPED
from attrobust.balls import Ball
from attrobust.experiments.store import Store
from attrobust.models.readouts import predictions
from torch import nn

HOW = {"epochs": 2, "step_size": 0.05, "batch_size": 10, "seed": 0}


@pytest.fixture(scope="module")
def digits():
    return audit.opened("example:digits", n=30, n_train=200)


def copies(opened, *ways, **how):
    own = opened.training
    return {found.way: found for found in audit.retrain(opened.model, own.x, own.y, ways=ways, **HOW | how)}


def weights(model):
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_the_network_stays_as_it_is_and_its_copies_differ_from_it_and_from_each_other(digits):
    before, mode = copy.deepcopy(digits.model.state_dict()), digits.model.training
    found = copies(digits, DECAY, PENALTY)
    assert list(found) == [PLAIN, DECAY, PENALTY]
    after = digits.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert digits.model.training is mode
    rows = [weights(digits.model), *(weights(one.model) for one in found.values())]
    assert all(not torch.equal(a, b) for i, a in enumerate(rows) for b in rows[:i])
    assert not any(parameter.requires_grad for one in found.values() for parameter in one.model.parameters())


def test_plain_sgd_is_the_training_that_fit_does_on_the_images_not_held_out(digits):
    x, y = digits.training.x, digits.training.y
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, kept = order[: len(x) // 5], order[len(x) // 5 :]
    one = copy.deepcopy(digits.model).requires_grad_(True)
    recipe = training.Recipe(step_size=0.05, batch_size=10, epochs=2)
    training.fit([one], x[kept], y[kept], recipe, generators=[torch.Generator().manual_seed(0)])
    found = copies(digits)[PLAIN]
    assert torch.equal(weights(found.model), weights(one))
    assert found.accuracy == float((predictions(one, x[held]) == y[held]).double().mean())


def test_the_rung_that_is_taken_is_the_last_before_one_that_costs_too_much(digits):
    said = []
    found = copies(digits, DECAY, say=said.append)
    tried = [(float(line.split()[3].rstrip(":")), float(line.split()[5])) for line in said if line.startswith(DECAY)]
    floor = found[PLAIN].accuracy - COST
    assert found[DECAY].accuracy >= floor
    taken = [strength for strength, accuracy in tried if accuracy >= floor - 5e-4]
    assert found[DECAY].strength == pytest.approx(taken[-1], rel=1e-2)
    assert len(tried) == len(LEFT) or tried[-1][1] < floor


def test_decay_alone_would_leave_the_share_of_the_weights_that_its_rung_names(digits):
    updates = 2 * (160 // 10)
    x, y = digits.training.x[:2], digits.training.y[:2]
    rungs = list(retraining._rungs(DECAY, digits.model, x, y, 1 / (0.05 * updates), 0))
    for left, (strength, beyond) in zip(LEFT, rungs, strict=True):
        assert beyond == {"weight_decay": strength}
        assert (1 - 0.05 * strength) ** updates == pytest.approx(left, rel=0.03)


def test_the_penaltys_unit_makes_it_as_large_as_the_loss(digits):
    x, y = digits.training.x[:40], digits.training.y[:40]
    rungs = dict(retraining._rungs(PENALTY, digits.model, x, y, math.nan, 0))
    at = x.clone().requires_grad_()
    losses = nn.functional.cross_entropy(digits.model(at), y, reduction="none")
    squares = torch.autograd.grad(losses.sum(), at)[0].flatten(1).square().sum(1)
    assert [*rungs][1] == pytest.approx(float((losses.mean() / squares.mean()).detach()), rel=1e-4)


def test_a_copy_whose_gradients_are_aligned_turns_its_map_less_than_plain_sgd_does(digits):
    found, x = copies(digits, ALIGNED, epochs=4), digits.pictures.x
    moved = (x + 0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    turned = {}
    for way, one in found.items():
        y = predictions(one.model, x)
        clean, other = (attributions.saliency(one.model, at, y).flatten(1) for at in (x, moved))
        turned[way] = 1 - torch.cosine_similarity(clean, other).mean()
    assert turned[ALIGNED] < 0.9 * turned[PLAIN]


def normed():
    """A small network with BatchNorm, whose statistics are those of some images, and these."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.Flatten(), nn.Linear(12, 2))
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.train()(x)
    return net.eval(), x, (x.mean((1, 2, 3)) > 0.5).long()


def test_statistics_of_batch_norm_stay_as_they_are_in_copies_so_that_penalties_can_be_tried_and_all_weights_move():
    net, x, y = normed()
    found = {r.way: r for r in audit.retrain(net, x, y, ways=(ALIGNED, PENALTY, DECAY), **HOW)}
    for one in found.values():
        before, after = net.state_dict(), one.model.state_dict()
        assert [*after] == [*before]
        still = {name for name, value in before.items() if torch.equal(value, after[name])}
        assert still == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        assert type(one.model[1]) is nn.BatchNorm2d


def test_a_copy_with_batch_norm_is_trained_as_the_same_network_with_its_normalisation_written_as_a_product():
    class Affine(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.weight, self.bias = (nn.Parameter(value.detach().clone()) for value in (norm.weight, norm.bias))
            self.mean, self.scale = norm.running_mean.clone(), (norm.running_var + norm.eps).sqrt()

        def forward(self, x):
            unit = (x - self.mean[:, None, None]) / self.scale[:, None, None]
            return unit * self.weight[:, None, None] + self.bias[:, None, None]

    net, x, y = normed()
    other = copy.deepcopy(net)
    other[1] = Affine(net[1])
    two = [list(audit.retrain(each.eval(), x, y, ways=(ALIGNED,), **HOW))[-1].model for each in (net, other)]
    before, *answers = (model(x).detach() for model in (net, *two))
    assert torch.allclose(*answers, rtol=1e-3, atol=1e-3 * float((answers[0] - before).abs().max()))


@pytest.mark.parametrize("kind", ["affine=False", "root", "two names"])
def test_batch_norm_is_kept_however_it_stands_in_the_network(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(1, affine=kind != "affine=False"), nn.Linear(16, 2)
            self.again = self.norm if kind == "two names" else nn.Identity()

        def forward(self, x):
            return self.head(self.again(self.norm(x)).flatten(1))

    class Root(nn.BatchNorm2d):
        """One that computes something else than BatchNorm: it is not replaced."""

        def forward(self, x):
            return super().forward(x).flatten(1)[:, :2]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Root(1) if kind == "root" else Net()
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = {r.way: r for r in audit.retrain(net.eval(), x, torch.arange(60) % 2, ways=(PENALTY,), **HOW)}
    moved = any(
        not torch.equal(value, found[PLAIN].model.state_dict()[name])
        for name, value in net.state_dict().items()
        if "running" in name
    )
    assert moved == (kind == "root")
    assert ("BatchNorm" in found[PENALTY].why) == (kind == "root")


def test_what_a_network_cannot_be_trained_with_comes_with_the_reason():
    net, x, y = normed()
    found = {r.way: r for r in audit.retrain(net, x, y, ways=(SWAPPED,), **HOW)}
    assert found[PLAIN].model is not None
    assert found[SWAPPED].model is None and "cannot be swapped" in found[SWAPPED].why


def test_attention_is_swapped_in_a_transformer_and_the_copy_trained():
    size = {"input_shape": (1, 4, 4), "classes": 2, "patch": 2, "dim": 4, "heads": 2, "depth": 1}
    net = models.build("vit", seed=0, **size).eval()
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 2
    found = {r.way: r for r in audit.retrain(net, x, y, ways=(SWAPPED,), **HOW)}
    assert found[SWAPPED].model is not None or "accuracy" in found[SWAPPED].why
    assert any(m.kernel.norm != "none" for m in net.modules() if hasattr(m, "kernel"))


def test_dropout_is_off_in_copies_and_stays_in_the_network():
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2)).eval()
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = next(audit.retrain(net, x, torch.arange(60) % 2, ways=(), **HOW))
    assert (net[1].p, found.model[1].p) == (0.5, 0.0)


def test_the_row_of_the_network_itself_is_what_an_audit_finds(digits):
    x, effort = digits.pictures.x[:6], attacks.Effort(steps=3, restarts=1)
    own = {"train": digits.training.x, "labels": digits.training.y, "y": digits.pictures.y[:6], "ways": ()}
    how = {"epochs": 1, "step_size": 0.05, "batch_size": 10, "radius": 8 / 255, "leading": 0.1, "effort": effort}
    table = audit.retrained(digits.model, x, {}, name="saliency", readout="logit", seed=0, **own, **how)
    assert list(table["way"].unique()) == [BEFORE, PLAIN]
    given = predictions(digits.model, x).tolist()
    beside = [next(j % 6 for j in range(i + 1, i + 6) if given[j % 6] != given[i]) for i in range(6)]
    alone = audit.attacked(
        digits.model, x, attributions.saliency, others=x[beside], ball=Ball("linf", 8 / 255), k=6,
        generator=torch.Generator().manual_seed(0), effort=effort,
    ).table.sort_values(["compared", "image"], ignore_index=True)  # fmt: skip
    mine = table[table["way"] == BEFORE].reset_index(drop=True)
    for column in ("top_k", "spearman", "output"):
        assert np.allclose(mine[column], alone[column], equal_nan=True), column
    lines = audit.ways_compared(table)
    assert lines["attack"].iloc[0] == pytest.approx(alone[alone["compared"] == "attack"]["top_k"].mean())


@pytest.mark.parametrize(("blind", "refused"), [(1, False), (2, True)])
def test_a_picture_that_cannot_be_climbed_is_not_attacked_in_copies_either_and_of_many_the_way_is_refused(
    digits, monkeypatch, blind, refused
):
    x = digits.pictures.x[:6].clone()
    x[:, 0, 0, 0] = (torch.arange(6) < blind).to(x)
    monkeypatch.setattr(retraining, "maps_of", lambda *args, **how: ({"saliency": cases.partly_blind}, {}))
    monkeypatch.setattr(batches, "fitting", lambda *args: 1)
    own = {"train": digits.training.x, "labels": digits.training.y, "y": None, "ways": (), "name": "saliency"}
    how = {"epochs": 1, "step_size": 0.05, "batch_size": 10, "radius": 8 / 255, "leading": 0.1, "readout": "logit"}
    effort = attacks.Effort(steps=3, restarts=1)
    table = audit.retrained(digits.model, x, {}, seed=0, effort=effort, **own, **how)
    if refused:
        assert table["why"].str.len().gt(20).all()
        return
    for way in (BEFORE, PLAIN):
        told = table[(table["way"] == way) & (table["compared"] == "attack")].set_index("image")["top_k"]
        assert told.isna().tolist() == [True, *[False] * 5]


def compared(way, kept, *, images=40):
    """Rows of a way whose map keeps so much under attack, and shares nothing with another picture's."""
    told = {"attack": kept, "noise of the same size": 1.0, "other image": 0.0}
    draw = np.random.default_rng(0).normal(0, 0.01, images)
    return pd.concat(
        pd.DataFrame(
            {"image": range(images), "compared": name, "top_k": value + draw * (name == "attack"), "zero": 0,
             "spearman": value + draw * (name == "attack"), "map": "saliency", "way": way, "accuracy": 0.9}
        )
        for name, value in told.items()
    )  # fmt: skip


@pytest.mark.parametrize(("after", "begins"), [(0.8, "Train it on with weight decay"), (0.5, "No further training")])
def test_training_is_advised_where_more_stays_and_only_there(after, begins):
    own, noisy = compared(BEFORE, 0.5), compared(DECAY, after)
    noisy.loc[noisy["compared"] == "attack", "top_k"] += np.random.default_rng(1).normal(0, 0.02, 40)
    piece = audit.advise(own, retrained=pd.concat([own, noisy]))[-1]
    assert piece.about == "training"
    assert piece.says.startswith(begins)
    assert piece.use == (DECAY if after > 0.5 else "")
    assert piece.value == pytest.approx(after - 0.5, abs=0.02)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ways": ["SAM"]}, "a way of ways is 'SAM'; it must be one of"),
        ({"batch_size": 60}, "x holds 60 training images; 76 or more are needed"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(change, sentence):
    with torch.random.fork_rng(devices=[]):
        net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), torch.rand(60, 1, 4, 4)
    with pytest.raises(ValueError, match=sentence):
        list(audit.retrain(net, x, torch.arange(60) % 2, **({"ways": ()} | HOW | change)))


def test_training_pictures_without_labels_or_of_another_size_are_refused_before_anything_runs(tmp_path):
    x = np.zeros((12, 8, 8), np.float32)
    np.savez(tmp_path / "unlabelled.npz", x=x)
    with pytest.raises(ValueError, match="pictures without labels"):
        audit.opened("example:digits", train=str(tmp_path / "unlabelled.npz"))
    np.savez(tmp_path / "wide.npz", x=np.zeros((12, 9, 9), np.float32), y=np.arange(12) % 10)
    with pytest.raises(ValueError, match="does not run on images of shape"):
        audit.opened("example:digits", train=str(tmp_path / "wide.npz"))


def test_training_pictures_of_other_classes_than_the_pictures_are_refused(tmp_path):
    pixels = PIL.Image.fromarray(np.zeros((8, 8), np.uint8))
    for name, classes in (("shown", "ab"), ("same", "ab"), ("other", "bc"), ("more", "abc")):
        for kind in classes:
            (tmp_path / name / kind).mkdir(parents=True)
            for i in range(3):
                pixels.save(tmp_path / name / kind / f"{i}.png")
    how = {"pictures": str(tmp_path / "shown"), "n": 4}
    assert audit.opened("example:digits", train=str(tmp_path / "same"), **how).training.classes == ["a", "b"]
    for name in ("other", "more"):  # a class of one name would have another number
        with pytest.raises(ValueError, match=r"^train is .*, pictures of other classes than `pictures`; it must hold"):
            audit.opened("example:digits", train=str(tmp_path / name), **how)


def test_where_there_is_nothing_to_train_on_the_reason_is_told(digits, tmp_path):
    store = Store("none", out=tmp_path)
    found, why = audit.after_training(store, digits._replace(training=None), digits.pictures.x, "saliency", seed=0)
    assert not len(found)
    assert "`train` names some" in why
