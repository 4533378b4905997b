"""A graphics card gives the processor's numbers: maps, curvature, attacks, training. Left out where there is none.

`make gpu-check` runs these and times the card.
"""

import copy

import cases
import ordinary
import pytest
import torch
from attrobust import attacks, attributions, audit, curvature, data, experiments, models, training
from attrobust.balls import Ball
from attrobust.experiments import explanations
from attrobust.experiments.measure import build, measure, train
from attrobust.experiments.store import Store
from attrobust.models.readouts import predictions
from attrobust.precision import whole_products

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no graphics card"),
]

BALL = Ball("linf", 8 / 255)
SMALL = {"dataset": "digits", "step_size": 0.03, "batch_size": 20, "epochs": 2, "n_train": 100, "protocol": "standard"}


def twice(model):
    """A network on the processor and a copy of it on the card."""
    return model, copy.deepcopy(model).to("cuda")


@pytest.mark.parametrize("name", ordinary.NETWORKS)
def test_maps_of_ordinary_networks_are_those_of_the_processor(name):
    here, there = twice(ordinary.NETWORKS[name]())
    x = torch.rand(2, *ordinary.SHAPE, generator=cases.generator(), dtype=torch.float64)
    maps, _ = audit.maps_of(here, x, audit.NAMES)
    try:
        on_card, _ = audit.maps_of(there, x.cuda(), audit.NAMES)
    except ValueError as reason:  # a fused kernel of the card, say
        assert "gradients are off" in str(reason)
        return
    assert maps.keys() == on_card.keys()
    target = predictions(here, x)
    for kind in maps:
        own = explanations.clean_maps(maps[kind], here, x, target, 0)
        other = explanations.clean_maps(on_card[kind], there, x.cuda(), target.cuda(), 0)
        assert other.is_cuda
        gap = float((other.cpu() - own).abs().max() / own.abs().max())
        assert gap < 1e-6, (kind, gap)


@pytest.mark.parametrize("make", [cases.mlp, cases.conv, cases.vit])
def test_curvature_is_that_of_the_processor(make):
    shape = cases.VIT_SHAPE if make is cases.vit else cases.SHAPE
    x, y, found = cases.images(8, shape=shape), cases.labels(8), []
    for model in twice(make()):
        device = next(model.parameters()).device
        at, labels, draw = x.to(device), y.to(device), torch.Generator().manual_seed(0)
        bend = curvature.input_curvature(curvature.InputHessian(model, at, labels), generator=draw).value
        hessian = curvature.ParameterHessian(model.requires_grad_(True), training.cross_entropy, at, labels)
        found.append((bend.mean().item(), curvature.sharpness(hessian, generator=draw).value))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_an_attack_on_the_card_is_judged_alike_on_the_processor():
    here, there = twice(cases.conv())
    x = cases.images(4)
    how = {"k": 4, "generator": torch.Generator().manual_seed(0), "effort": attacks.Effort(steps=5, restarts=1)}
    found = attacks.auto(attributions.saliency, there, x.cuda(), BALL, **how)
    worst = found.x["top_k"].cpu()
    assert float((worst - x).abs().max()) <= BALL.radius + 1e-12
    target = predictions(here, x)
    assert torch.equal(predictions(here, worst), target)
    clean, moved = (attributions.saliency(here, at, target) for at in (x, worst))
    told = found.table[found.table["part"] == "worst"]["top_k"].to_numpy()
    assert attacks.measure(clean, moved, k=4)["top_k"].detach().numpy() == pytest.approx(told)


@pytest.mark.parametrize("attack", [attacks.pgd, attacks.square])
def test_a_prediction_is_attacked_on_the_card_as_on_the_processor(attack):
    here, there = twice(cases.conv())
    x = cases.images(6)
    y = predictions(here, x)
    found = attack(there, x.cuda(), y.cuda(), BALL, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.broken.cpu(), predictions(here, found.x.cpu()) != y)


@pytest.mark.parametrize("architecture", ["mlp", "convnet", "vit"])
def test_training_on_the_card_follows_the_processor(architecture):
    group = experiments.grid(**SMALL, architecture=architecture, seed=[0, 1, 2])
    (nets, fits), (on_card, told) = train(group), train(group, "cuda")
    for one, other in zip(fits, told, strict=True):
        assert other.steps == one.steps
        assert other.train_loss == pytest.approx(one.train_loss, rel=2e-2)
    for experiment, one, other in zip(group, nets, on_card, strict=True):
        start = build(experiment).state_dict()
        moved = other.cpu().state_dict()
        for name, weight in one.state_dict().items():
            assert (moved[name] - weight).norm() <= 0.1 * (weight - start[name]).norm() + 1e-4, name


@pytest.mark.parametrize("architecture", ["mlp", "convnet", "vit"])
def test_companions_on_the_card_change_little(architecture):
    group = experiments.grid(**SMALL, architecture=architecture, seed=[0, 1, 2])
    together, alone = train(group, "cuda")[0][2], train(group[2:], "cuda")[0][0]
    for w, v in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(w, v, rtol=1e-2, atol=1e-3)


def test_nothing_measured_is_rounded_to_short_mantissas():
    a, b = torch.rand(2, 512, 512, generator=cases.generator()).cuda()
    exact = a.double() @ b.double()
    with whole_products():
        assert float(((a @ b) / exact - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("architecture", ["mlp", "vit"])
def test_a_row_of_the_card_is_whole(architecture, tmp_path):
    group = experiments.grid(**SMALL, architecture=architecture, seed=[0, 1])
    effort = attacks.Effort(steps=2, restarts=1)
    measurement = experiments.Measurement(radii=(8,), n_attacked=6, effort=effort, maps=("saliency",))
    store = Store("03_sgd_flattens", out=tmp_path, committed=False, device="cuda")
    rows = experiments.run(group, measurement, store=store, jobs=2, device="cuda")
    assert len(rows.runs) == 2
    assert rows.runs[["sharpness", "trace", "logit_relative_curvature"]].notna().all(axis=None)
    assert (rows.attacked["metric"] == "spearman").any()
    fit = train(group[:1], "cuda")
    assert measure(group[0], measurement, fit[0][0], fit[1][0], "cuda")[0]["test_accuracy"] > 0


def test_an_audit_runs_on_the_card(tmp_path):
    opened = audit.opened("example:digits", n=12, device="cuda")
    maps, _ = audit.maps_of(opened.model, opened.pictures.x, ["saliency", "grad_cam"])
    store = Store("09_audit_your_model", out=tmp_path, committed=False, device="cuda")
    how = {"effort": attacks.Effort(steps=3, restarts=1), "leading": 0.1, "seed": 0, "named": opened.named}
    found = audit.audited(opened.model, opened.pictures.x, maps, radius=8 / 255, store=store, **how)
    assert found.table["top_k"].notna().any()


def test_several_networks_train_at_once_on_the_card():
    images, labels = data.load("digits", n_train=100).train
    on_card = images.cuda(), labels.cuda()
    nets = [models.build("mlp", input_shape=(1, 8, 8), classes=10, seed=s).cuda() for s in range(4)]
    recipe = training.Recipe(step_size=0.03, batch_size=20, epochs=2)
    told = training.fit(nets, *on_card, recipe, generators=[torch.Generator().manual_seed(s) for s in range(4)])
    assert all(f.steps == 10 and f.train_loss < 2.3 for f in told)
