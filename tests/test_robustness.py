import dataclasses
import math
from functools import partial

import cases
import pandas as pd
import pytest
import torch
from attrobust import attacks, attributions, models, robustness, similarity
from attrobust.balls import Ball
from torch import nn

HOW = {
    "attributions": {"saliency": attributions.saliency},
    "ball": Ball("linf", 0.05),
    "k": 2,
    "effort": attacks.Effort(steps=5, restarts=1),
}
VALUES = list(robustness.COLUMNS)
SIMILARITIES = [name for name in VALUES if attacks.MEASURES[name] < 0]
DISTANCES = [name for name in VALUES if attacks.MEASURES[name] > 0]


def table(model=None, x=None, **changes):
    model = model or cases.conv()
    x = cases.images(6) if x is None else x
    return robustness.attribution_robustness(model, x, **{"generator": cases.generator(), **HOW, **changes})


def rows(found, attack, name="saliency"):
    return found[(found["attack"] == attack) & (found["attribution"] == name)].set_index("image")


def test_there_is_one_row_per_image_attribution_and_attack():
    maps = {"saliency": attributions.saliency, "input_x_gradient": attributions.input_x_gradient}
    found = table(attributions=maps)
    assert list(found.columns) == ["image", "attribution", "attack", *VALUES, "counted"]
    names = ["noise", *attacks.OBJECTIVES, "worst"]
    assert len(found) == 6 * 2 * len(names)
    counts = found.groupby(["image", "attribution", "attack"]).size()
    assert (counts == 1).all()
    assert set(found["attack"]) == set(names)
    assert found.notna().all(axis=None)


def test_the_worst_case_is_taken_separately_for_each_similarity_and_image():
    found = table()
    each = [rows(found, attack) for attack in attacks.OBJECTIVES]
    worst = rows(found, "worst")
    for i in range(6):
        for name in SIMILARITIES:
            assert worst.loc[i, name] == min(t.loc[i, name] for t in each)
        for name in [*DISTANCES, "counted"]:
            assert worst.loc[i, name] == max(t.loc[i, name] for t in each)


@pytest.mark.parametrize("kind", ["smooth", "relu"])
def test_the_attacked_rows_are_those_of_the_suite_without_noise_and_walk(kind):
    x = cases.images(6)
    model = cases.conv() if kind == "smooth" else cases.mlp(nn.ReLU(), width=16)
    effort = attacks.Effort(steps=5, restarts=1, draws=0, walk=0)
    own = attacks.auto(
        attributions.saliency, model, x, HOW["ball"], k=2, effort=effort, generator=cases.generator()
    ).table.set_index(["part", "image"])
    found = table(model, x)
    attacked = found[found["attack"] != "noise"].set_index(["attack", "image"])
    assert set(attacked.index) == set(own.index)
    pd.testing.assert_frame_equal(
        attacked[VALUES], own.loc[attacked.index, VALUES], check_names=False, check_dtype=False
    )


def test_the_noise_row_is_the_mean_over_its_draws():
    model, x = cases.conv(), cases.images(6)
    found = rows(table(model, x, noise_draws=3), "noise")
    streams, target = attacks.Streams(x, generator=cases.generator()), model(x).argmax(1)
    draws = [streams(image, "noise row") for image in range(6)]
    clean = attributions.saliency(model, x, target).detach()
    cosines, kept = [], []
    for _ in range(3):
        moved = (x + torch.cat([HOW["ball"].boundary(x[:1], generator=draw) for draw in draws])).clamp(0, 1)
        cosines.append(similarity.cosine(clean, attributions.saliency(model, moved, target).detach()))
        kept.append((model(moved).argmax(1) == target).double())
    assert found["cosine"].tolist() == pytest.approx(torch.stack(cosines).mean(0).tolist())
    assert found["counted"].tolist() == pytest.approx(torch.stack(kept).mean(0).tolist())


def test_attacks_of_radius_zero_leave_every_map_alone():
    found = table(ball=Ball("linf", 0.0))
    for name in SIMILARITIES:
        assert found[name].tolist() == pytest.approx([1.0] * len(found))
    for name in DISTANCES:
        assert found[name].tolist() == pytest.approx([0.0] * len(found), abs=1e-12)
    assert (found["counted"] == 1).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_worst_case_is_worse_than_noise_under_every_similarity(norm):
    ball = Ball(norm, 0.05 if norm == "linf" else 0.2)
    maps = {"saliency": attributions.saliency, "ig": partial(attributions.integrated_gradients, steps=4)}
    found = table(x=cases.images(12), ball=ball, attributions=maps, effort=attacks.Effort(steps=10))
    means = found.groupby(["attribution", "attack"])[VALUES].mean()
    for name in maps:
        for column in SIMILARITIES:
            assert means.loc[(name, "worst"), column] < means.loc[(name, "noise"), column] - 1e-3
        for column in DISTANCES:
            assert means.loc[(name, "worst"), column] > means.loc[(name, "noise"), column]


def test_each_attack_is_best_at_what_it_climbs():
    found = table(x=cases.images(12), effort=attacks.Effort(steps=20, restarts=3))
    means = found.groupby("attack")[VALUES].mean()
    for attack, column in (("cosine", "cosine"), ("pearson", "pearson")):
        assert means.loc[attack, column] == pytest.approx(means.loc["worst", column], rel=0.02)


def test_a_relu_network_is_climbed_through_twins_and_judged_itself():
    relu, x = cases.mlp(nn.ReLU(), width=16), cases.images(6)
    found = table(relu, x, effort=attacks.Effort(steps=10, betas=(10, 50)), ball=Ball("linf", 0.1))
    assert set(found["attack"]) == {"noise", "worst", *(f"{o}, β={b}" for o in attacks.OBJECTIVES for b in (10, 50))}
    worst, noise = rows(found, "worst"), rows(found, "noise")
    assert worst["cosine"].mean() < noise["cosine"].mean()
    given = [models.smooth_twin(relu, x, beta=10.0)]
    fewer = rows(table(relu, x, ascend_on=given, effort=attacks.Effort(steps=10), ball=Ball("linf", 0.1)), "worst")
    assert (worst[SIMILARITIES] <= fewer[SIMILARITIES]).all(axis=None)
    assert (worst[DISTANCES] >= fewer[DISTANCES]).all(axis=None)


def test_images_whose_every_move_changes_the_prediction_are_not_a_number():
    model, x = cases.quadratic(), cases.images(20)
    found = table(model, x, ball=Ball("linf", 0.5), effort=attacks.Effort(steps=1, restarts=1))
    attacked = found[found["attack"] != "noise"]
    assert attacked[VALUES].isna().all(axis=1).tolist() == (attacked["counted"] == 0).tolist()
    assert (attacked["counted"] == 0).any()


def test_a_network_whose_maps_are_all_zero_was_not_attacked_and_no_error_says_otherwise():
    model = cases.conv()
    with torch.no_grad():
        model[3].weight.zero_()
    assert table(model)[VALUES].isna().all(axis=None)


def test_comparing_an_image_with_itself_finds_no_difference():
    model, x = cases.conv(), cases.images(6)
    same = robustness.compare(model, attributions.saliency, x, x, k=3)
    assert same["image"].tolist() == list(range(6))
    assert same["cosine"].tolist() == pytest.approx([1.0] * 6)
    assert (same["displacement"] == 0).all()
    assert (same["kept"] == 1).all()


def test_the_same_seed_gives_the_same_table():
    pd.testing.assert_frame_equal(table(), table())
    assert not table().equals(table(generator=cases.generator(1)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": 0}, "k is 0; it must be a whole number from 1 to 8"),
        ({"k": 9}, "k is 9; it must be a whole number from 1 to 8"),
        ({"x": 3 * cases.images()}, r"x spans .*; pixels must lie in \[0, 1\]"),
        ({"effort": attacks.Effort(steps=0)}, "effort.steps is 0; it must be a whole number of at least 1"),
        ({"noise_draws": 0}, "noise_draws is 0; it must be a whole number of at least 1"),
    ],
)
def test_bad_arguments_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        table(**change)


# ------------------------------------------------------------------ transfer


def smooth_grad(model, x, target, *, generator):
    return attributions.smooth_grad(model, x, target, sigma=0.05, samples=3, generator=generator)


MAPS = {
    "saliency": attributions.saliency,
    "input_x_gradient": attributions.input_x_gradient,
    "smooth_grad": smooth_grad,
}
EFFORT = attacks.Effort(steps=4, restarts=1, draws=2, walk=2)


def carried(model=None, **changes):
    how = {"attributions": MAPS, "ball": Ball("linf", 0.05), "k": 2, "effort": EFFORT, "generator": cases.generator()}
    return robustness.transfer(model or cases.conv(), cases.images(4), **{**how, **changes})


def pair(found, attacked, measured):
    return found[(found["attacked"] == attacked) & (found["measured"] == measured)].set_index("image")


def test_transfer_has_one_row_per_image_and_pair_and_for_noise():
    found = carried()
    names = [name for name in attacks.MEASURES if name != "match"]
    assert list(found.columns) == ["image", "attacked", "measured", *names, "counted"]
    assert (found.groupby(["image", "attacked", "measured"]).size() == 1).all()
    assert set(found["attacked"]) == {*MAPS, "noise"}
    assert len(found) == 4 * 4 * 3
    assert found.notna().all(axis=None)


def test_the_diagonal_of_transfer_is_the_worst_case_of_the_suite():
    found, x = carried(), cases.images(4)
    for name, attribution in MAPS.items():
        own = attacks.auto(
            attribution, cases.conv(), x, Ball("linf", 0.05), k=2, effort=EFFORT, generator=cases.generator()
        )
        worst = own.table[own.table["part"] == "worst"].set_index("image")
        for measure in attacks.MEASURES:
            if measure != "match":
                assert pair(found, name, name)[measure].tolist() == pytest.approx(worst[measure].tolist(), abs=1e-12)


def test_a_map_under_another_name_is_carried_over_in_full_and_every_pair_beats_noise():
    found = carried(attributions={"a": attributions.saliency, "b": attributions.saliency})
    for attacked, measured in (("a", "b"), ("b", "a")):
        pd.testing.assert_frame_equal(
            pair(found, attacked, measured).drop(columns=["attacked", "measured"]),
            pair(found, "a", "a").drop(columns=["attacked", "measured"]),
        )
    found = carried()
    for measured in MAPS:
        noise = pair(found, "noise", measured)["cosine"].mean()
        for attacked in MAPS:
            assert pair(found, attacked, measured)["cosine"].mean() < noise


def test_off_the_diagonal_stands_the_other_map_at_the_images_found_on_the_first():
    model, x, found = cases.conv(), cases.images(4), carried()
    how = {"k": 2, "effort": EFFORT, "generator": cases.generator()}
    own = attacks.auto(attributions.saliency, model, x, Ball("linf", 0.05), **how)
    for measure in ("top_k", "cosine", "center_shift"):
        there = robustness.compare(model, attributions.input_x_gradient, x, own.x[measure], k=2)
        assert pair(found, "saliency", "input_x_gradient")[measure].tolist() == pytest.approx(there[measure].tolist())


def test_noise_that_changes_the_prediction_is_counted_in_the_transfer_table():
    kept = pair(carried(cases.quadratic(), ball=Ball("linf", 0.25)), "noise", "saliency")["counted"]
    assert 0 < kept.mean() < 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"noise_draws": 0}, "noise_draws is 0; it must be a whole number of at least 1"),
        ({"attributions": {"noise": attributions.saliency}}, "attributions has a map called 'noise'"),
        ({"k": 9}, "k is 9; it must be a whole number from 1 to 8"),
    ],
)
def test_transfer_refuses_bad_arguments(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        carried(**change)


# ------------------------------------------------------------------ strength


EFFORTS = [attacks.Effort(steps=3, restarts=1), attacks.Heavy(steps=3, starts=1)]


def attacked(effort, attribution=attributions.saliency, x=None, **changes):
    """The worst case under an attack, image by image."""
    how = {"ball": HOW["ball"], "k": 2, "effort": effort, "refuse": False, "generator": cases.generator()} | changes
    x = cases.images(4) if x is None else x
    table = robustness.attribution_robustness(cases.conv(), x, attributions={"map": attribution}, **how)
    return table[table["attack"] == "worst"].reset_index(drop=True)


@pytest.mark.parametrize("held", [None, 0.02])
@pytest.mark.parametrize("effort", EFFORTS)
def test_the_worst_case_is_that_of_the_attack_whose_effort_is_given(effort, held):
    quiet = dataclasses.replace(effort, draws=0, walk=0) if isinstance(effort, attacks.Effort) else effort
    attack = attacks.auto if isinstance(effort, attacks.Effort) else attacks.heavy
    how = {"k": 2, "effort": quiet, "generator": cases.generator(), "held": held}
    found = attack(attributions.saliency, cases.conv(), cases.images(4), HOW["ball"], **how).table
    own = found[found["part"] == "worst"].reset_index(drop=True)
    pd.testing.assert_frame_equal(attacked(effort, held=held)[VALUES], own[VALUES])


@pytest.mark.parametrize("effort", EFFORTS)
def test_images_without_a_map_and_maps_that_cannot_be_climbed_count_for_no_strength(effort):
    def half(model, x, target):
        return attributions.saliency(model, x, target) * (x[:, :1, :1, :1] > cut)

    x = cases.images(4)
    cut = x[:, 0, 0, 0].sort().values[1:3].mean()  # two images have a map; none comes near enough to change sides
    x = torch.where((x[:, :1, :1, :1] > cut), x.clamp(min=cut + 0.06), x.clamp(max=cut - 0.06))
    found = attacked(effort, half, x=x)
    assert found["spearman"].notna().sum() == 2
    assert 0 < found["displacement"].mean() < math.inf
    found = attacked(effort, lambda model, x, target: attributions.saliency(model, x, target).detach())
    assert found[VALUES].isna().all(axis=None)


def test_noise_counts_only_where_it_moves_no_probability_by_more_than_is_held():
    model, x, held = cases.conv(), cases.images(12), 0.018
    how = {"attributions": {"saliency": attributions.saliency}, "ball": Ball("linf", 0.1), "k": 2, "noise_draws": 1}
    quick = attacks.Effort(steps=1, restarts=1)
    free, tied = (
        robustness.attribution_robustness(model, x, **how, effort=quick, held=bound, generator=cases.generator())
        for bound in (None, held)
    )
    streams = attacks.Streams(x, generator=cases.generator())
    draws = [streams(image, "noise row") for image in range(len(x))]
    noisy = (x + attacks.each(how["ball"].boundary, x, draws)).clamp(0, 1)
    still = (model(noisy).softmax(1) - model(x).softmax(1)).abs().amax(1) <= held
    same = model(noisy).argmax(1) == model(x).argmax(1)
    counted = [table[table["attack"] == "noise"]["counted"].astype(bool).tolist() for table in (free, tied)]
    assert counted == [same.tolist(), (same & still).tolist()]
    assert 0 < sum(counted[1]) < sum(counted[0])


def test_a_map_that_cannot_be_climbed_is_refused_by_transfer_or_was_not_attacked_and_is_still_measured():
    model, x = cases.conv(), cases.images()

    def cut(model, x, target):
        return attributions.saliency(model, x, target).detach()

    how = {"attributions": {"cut": cut, "saliency": attributions.saliency}, "ball": Ball("linf", 0.05), "k": 4}
    how |= {"effort": attacks.Effort(steps=2, restarts=1)}
    with pytest.raises(attacks.BlindError):
        robustness.transfer(model, x, generator=cases.generator(), **how)
    table = robustness.transfer(model, x, generator=cases.generator(), refuse=False, **how)
    of = table.set_index(["attacked", "measured"])
    assert of.loc[("cut", "saliency"), "spearman"].isna().all()
    assert (of.loc[("cut", "saliency"), "counted"] == 0).all()
    assert of.loc[("saliency", "cut"), "spearman"].notna().all()
    assert of.loc[("noise", "cut"), "spearman"].notna().all()
