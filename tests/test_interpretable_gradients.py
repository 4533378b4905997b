"""Laws of what notebook 10 measures: predictions under attack, what gradients are like, how strengths are chosen."""

import dataclasses

import cases
import pandas as pd
import pytest
import torch
from attrobust import attacks, attributions, curvature, data, experiments, models, regularizers
from attrobust.balls import Ball
from attrobust.experiments import measure, sweep
from attrobust.experiments.store import Store
from attrobust.studies import interpretable_gradients as study
from torch import nn
from torch.nn import functional as F

DIGITS = {"seed": 3, "epochs": 4, "n_train": 60, "batch_size": 20}
PGD = {"steps": 5, "restarts": 1}


def made(method="natural", strength=0.1):
    return study.network(method, "mlp digits", strength=strength, **DIGITS)


def find(experiment):
    """A network of the experiment's shape, drawn by its seed."""
    return cases.filled(measure.build(experiment), experiment.seed).float()


def right(experiment, radii, attack=attacks.pgd, n=40, effort=PGD, split="test", network=find):
    table = study.right_under_attack(experiment, attack, radii, n, effort, split, network=network)
    return table.set_index(["norm", "radius"])["value"]


def test_accuracy_under_attack_is_the_share_that_no_ball_of_the_norm_breaks_and_falls_with_the_radius():
    e, radii = made(), [("linf", 0.05), ("linf", 0.01), ("l2", 0.1), ("l2", 0.4)]
    found, (model, (x, y)) = right(e, radii), (find(e), experiments.shown(e, 40))
    clean = model(x).argmax(1) == y
    assert found["none", 0.0] == pytest.approx(clean.float().mean().item())
    for norm in ("linf", "l2"):
        left = clean.clone()
        for radius in sorted(r for other, r in radii if other == norm):
            broken = attacks.pgd(model, x, y, Ball(norm, radius), generator=cases.generator(3), **PGD).broken
            left &= ~broken
            assert found[norm, radius] == pytest.approx(left.float().mean().item(), abs=0.05)
            assert found[norm, radius] <= (~broken).float().mean() + 1e-6
    assert found["linf", 0.05] < found["linf", 0.01] < found["none", 0.0]
    assert found["l2", 0.4] < found["l2", 0.1] < found["none", 0.0]


class Line(nn.Module):
    """Two classes, told apart by one pixel: right up to a distance from 1/2 that is the image's own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(models.architectures.Standardize(0.5, 0.25), nn.Flatten())

    def forward(self, x):
        z = 40 * self.layers(x)[:, :1]
        return torch.cat([-z, z], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radii_are_lengths_in_pixels_whatever_the_network_does_to_them(norm, monkeypatch):
    x = torch.full((4, 1, 2, 2), 0.5)
    x[:, 0, 0, 0] += torch.tensor([0.05, 0.15, -0.25, -0.35])
    examples = data.Examples(x, torch.tensor([1, 1, 0, 0]))
    monkeypatch.setattr(experiments, "shown", lambda experiment, n: examples)
    found = right(made(), [(norm, r) for r in (0.1, 0.2, 0.3)], network=lambda e: Line(), effort={"steps": 40})
    assert found.tolist() == [1.0, 0.75, 0.5, 0.25]


def test_validation_images_are_no_training_images_and_test_images_are_the_seeds_own():
    e, seen = made(), []

    class Watch(nn.Module):
        def forward(self, x):
            if len(x) == 30:
                seen.append(x.detach())
            return x.flatten(1)[:, :10]

    for split in ("validation", "test"):
        seen.clear()
        study.right_under_attack(e, attacks.pgd, [], 30, {}, split, network=lambda experiment: Watch())
        images = {image.numpy().tobytes() for image in seen[0]}
        trained = {image.numpy().tobytes() for image in measure.dataset("digits", None, 60, None, "cpu").train.x}
        assert not images & trained
        tested = {image.numpy().tobytes() for image in measure.dataset("digits", None, 60, None, "cpu").test.x}
        assert (images <= tested) == (split == "test")
        assert bool(images & tested) == (split == "test")


@pytest.mark.parametrize("wrong", [{"attack": attacks.climb}, {"attack": "pgd"}, {"split": "train"}])
def test_unknown_attacks_and_parts_of_the_data_are_refused(wrong, unchecked):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is .*; it must be "):
        right(made(), [("linf", 0.1)], **wrong)


def test_what_gradients_are_like_is_told_as_by_hand():
    e = made("IR SmoothGrad")
    (row,) = study.gradients_like(e, 12, network=find).to_dict("records")
    model, (x, y) = find(e), experiments.shown(e, 12)
    slope = attributions.saliency(model, x, model(x).argmax(1)).detach().flatten(1)
    assert row["length"] == pytest.approx(slope.norm(dim=1).mean().item(), rel=1e-5)
    jacobian, best, two = curvature.input_jacobian(model, x), model(x).argmax(1), model(x).topk(2)
    places = torch.arange(12)
    away = (jacobian[places, best] - jacobian[places, two.indices[:, 1]]).flatten(1).norm(dim=1)
    expected = ((two.values[:, 0] - two.values[:, 1]) / away).mean()
    assert row["reach"] == pytest.approx(expected.item(), rel=1e-4)
    cosine = (slope * x.flatten(1)).sum(1) / slope.norm(dim=1) / x.flatten(1).norm(dim=1)
    assert row["alignment"] == pytest.approx(cosine.abs().mean().item(), rel=1e-5)
    own = attributions.saliency(model, x, y).detach().flatten(1)
    maps = regularizers.wanted_maps(find(e.teacher), x, y, kind="smooth_grad", generator=cases.generator(3)).flatten(1)
    assert row["wanted"] == pytest.approx(F.cosine_similarity(own, maps).mean().item(), rel=1e-4)
    assert 0 <= row["deletion"] <= 1
    assert pd.isna(study.gradients_like(made(), 12, network=find)["wanted"].item())


def test_pictures_are_the_pixels_of_images_gradients_and_wanted_maps():
    e = made("IR gradient")
    table, (x, y) = study.pictured(e, 2, network=find), experiments.shown(e, 2)
    panels = {"image": x, "gradient": attributions.saliency(find(e), x, y).detach()}
    how = {"kind": "gradient", "generator": cases.generator()}
    panels["wanted"] = regularizers.wanted_maps(find(e.teacher), x, y, **how)
    assert sorted(table["kind"].unique()) == sorted(panels)
    for kind, expected in panels.items():
        for place in (0, 1):
            values = table[(table["kind"] == kind) & (table["image"] == place)].pivot(index="i", columns="j")["value"]
            assert torch.allclose(torch.tensor(values.to_numpy()), expected[place, 0].to(torch.float32))


def piloted(*rows):
    lines = [(m, s, a, v) for m, s, clean, hit in rows for a, v in (("none", clean), ("pgd", hit), ("pgd", hit))]
    return study.chosen(pd.DataFrame(lines, columns=["method", "strength", "attack", "value"]))


def test_of_strengths_that_keep_the_accuracy_the_most_robust_is_chosen_and_of_equal_ones_the_smallest():
    rows = [("natural", 0, 0.9, 0.1), ("a", 0.1, 0.9, 0.2), ("a", 1, 0.88, 0.4), ("a", 10, 0.87, 0.6)]
    rows += [("b", 2, 0.95, 0.3), ("b", 1, 0.95, 0.3), ("c", 5, 0.3, 0.9), ("c", 3, 0.2, 0.1)]
    table = piloted(*rows)
    picked = table[table["chosen"]].set_index("method")
    assert picked["strength"].to_dict() == {"natural": 0, "a": 1, "b": 1, "c": 3}
    assert picked["keeps"].to_dict() == {"natural": True, "a": True, "b": True, "c": False}


def test_a_strength_at_which_a_pilot_diverged_keeps_nothing():
    rows = [("natural", 0, 0.9, 0.1), ("a", 1, 0.9, 0.2), ("a", 2, 0.9, 0.9), ("a", 2, float("nan"), float("nan"))]
    table = piloted(*rows, ("b", 1, float("nan"), float("nan")), ("b", 2, 0.9, 0.1)).set_index(["method", "strength"])
    assert table["chosen"].to_dict() == {
        ("natural", 0): True, ("a", 1): True, ("a", 2): False, ("b", 1): False, ("b", 2): True,
    }  # fmt: skip
    assert pd.isna(table.loc[("a", 2), "under_attack"])


def test_a_network_that_diverged_is_not_attacked_and_has_no_accuracy():
    def diverged(experiment):
        model = find(experiment)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        return model

    for attack, effort in ((attacks.pgd, PGD), (attacks.square, {"queries": 5})):
        values = right(made(), [("linf", 0.05), ("l2", 0.1)], attack=attack, effort=effort, network=diverged)
        assert len(values) == 3
        assert values.isna().all()


def test_arms_that_are_drawn_to_maps_differ_from_natural_training_in_their_penalty_and_teacher_alone():
    natural = made()
    for method, way in study.METHODS.items():
        if "teacher_trainer" not in way.fields:
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(study.STRENGTHS, "mlp digits", {"PGD training": 25.5, "PGD training l2": 255.0})
            e = made(method)
        kept = {"penalty": "none", "strength": 0.0, "wanted": "none", "teacher_trainer": "sgd", "teacher_around": 0.0}
        assert dataclasses.replace(e, **kept) == natural
        assert e.teacher.seed != e.seed
        assert e.teacher.around == {"sgd": 0, "adversarial": 25.5, "adversarial_l2": 255.0}[e.teacher_trainer]


# ------------------------------------------------------------------ teachers in grids


MEASURED = experiments.Measurement(
    radii=(8,), effort=attacks.Effort(steps=2, restarts=1), n_attacked=3, curvature=False, maps=("saliency",)
)


@pytest.fixture
def trainings(monkeypatch):
    """What is trained in this process, by seed."""
    seen, train = [], measure.train

    def spy(group, device="cpu", **how):
        seen.extend(e.seed for e in group)
        return train(group, device, **how)

    monkeypatch.setattr(sweep, "train", spy)
    return seen


def test_a_teacher_is_trained_once_for_all_its_students_and_found_again(tmp_path, trainings):
    students = [made("IR gradient"), made("IR SmoothGrad"), made("IR SmoothGrad", strength=0.0)]
    store = Store("10_x", out=tmp_path / "out", committed=False)
    experiments.run(students, MEASURED, store=store, jobs=1)
    assert sorted(trainings) == [3, 3, 3, 1_000_003]
    nets = [experiments.trained(e, store=store) for e in students]
    assert sorted(trainings) == [3, 3, 3, 1_000_003]
    (alone,), _ = measure.train([students[1]])
    assert all(torch.equal(a, b) for a, b in zip(nets[1].parameters(), alone.parameters(), strict=True))
    (natural,), _ = measure.train([made()])
    assert all(torch.equal(a, b) for a, b in zip(nets[2].parameters(), natural.parameters(), strict=True))
    assert not torch.equal(next(nets[0].parameters()), next(nets[1].parameters()))


def weighed(experiment, *, network):
    return pd.DataFrame({"weight": [next(network(experiment).parameters()).sum().item()]})


def test_a_table_that_waits_for_networks_is_given_stored_ones(tmp_path, trainings):
    e, store = made(), Store("10_x", out=tmp_path / "out", committed=False)
    expected = next(experiments.trained(e, store=store).parameters()).sum().item()
    assert trainings == [3]
    found = experiments.table(store, "weighed", weighed, e, version=1)
    assert found["weight"].item() == pytest.approx(expected)
    assert trainings == [3]
    experiments.table(Store("10_x", out=tmp_path / "other", committed=False), "weighed", weighed, e, version=1)
    assert trainings == [3, 3]


def test_the_name_of_a_student_depends_on_its_teacher_and_on_how_maps_are_made(monkeypatch):
    one = made("IR SmoothGrad")
    other = dataclasses.replace(one, teacher_trainer="adversarial", teacher_around=25.5)
    nearer = dataclasses.replace(other, teacher_around=12.75)
    names = [experiments.network(e) for e in (one, other, nearer, made("IR gradient"), made())]
    assert len({*names}) == 5
    monkeypatch.setattr(regularizers.wanted_maps, "version", 2)
    assert experiments.network(one) != names[0]
    assert experiments.network(made()) == names[-1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wanted": "gradient"}, "wanted is 'gradient' beside penalty 'none'"),
        ({"penalty": "interpretation", "strength": 0.1}, "wanted is 'none' beside penalty 'interpretation'"),
        ({"teacher_trainer": "adversarial"}, "teacher_trainer is 'adversarial'; without wanted maps"),
        ({"wanted": "map"}, "wanted is 'map'; it must be one of"),
    ],
)
def test_maps_without_a_penalty_and_teachers_without_maps_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(made(), **changes)


def test_a_teacher_of_radius_without_a_trainer_is_refused():
    with pytest.raises(ValueError, match=r"around is .*; trainer 'sgd' takes none"):
        dataclasses.replace(made("IR gradient"), teacher_around=8)


@pytest.mark.parametrize("asked", [{"n": 950, "n_train": 100}, {"n": 1, "n_train": 1000}])
def test_no_more_images_are_held_out_than_there_are(asked):
    with pytest.raises(ValueError, match="it must be a whole number"):
        data.held_out("digits", **asked)


def test_images_held_out_are_class_balanced_and_the_same_ones_every_time():
    one, other = (data.held_out("digits", 100, n_train=200, side=4) for _ in range(2))
    assert torch.equal(one.x, other.x)
    assert one.x.shape == (100, 1, 4, 4)
    assert one.y.bincount(minlength=10).tolist() == [10] * 10
