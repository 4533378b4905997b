"""Streams of random numbers, one for each image; and how maps that draw are made under them."""

import zlib

import cases
import pytest
import torch
from attrobust import attacks, attributions
from attrobust.attacks import streams
from torch import nn


def test_a_stream_is_named_by_one_number_of_the_caller_by_the_pixels_and_by_who_draws():
    x, drawn, beside = cases.images(3), cases.generator(4), cases.generator(4)
    found = attacks.Streams(x, generator=drawn)
    base = int(torch.randint(2**31, (1,), generator=beside))
    assert torch.equal(drawn.get_state(), beside.get_state())  # one number and no more
    for i, who in ((0, "noise"), (2, "walk")):
        seed = zlib.crc32(who.encode(), zlib.crc32(x[i].numpy().tobytes(), base))
        assert found(i, who).initial_seed() == seed
    assert [g.initial_seed() for g in found.common()] == [found(i, "judge").initial_seed() for i in range(3)]
    assert [g.initial_seed() for g in found.common([2, 2])] == [found(2, "judge").initial_seed()] * 2


@pytest.mark.parametrize(
    ("values", "sizes"), [(16, [3, 3, 1]), (48, [1] * 7), (5, [7]), (49, [1] * 7), (17, [2, 2, 2, 1])]
)
def test_maps_that_draw_for_each_image_are_made_many_at_a_time_and_others_one_by_one(values, sizes, monkeypatch):
    monkeypatch.setattr(streams, "TOGETHER", 48)
    x, seen = torch.rand(7, 1, 1, values, generator=cases.generator()), []

    def drawn(model, x, target, *, generator):
        """Pixels plus a number drawn for each image."""
        many = isinstance(generator, list)
        seen.append((len(x), len(target), len(generator) if many else 1))
        own = generator if many else [generator]
        return x + torch.stack([torch.rand(1, 1, 1, generator=g) for g in own])

    def own():
        return [torch.Generator().manual_seed(i) for i in range(7)]

    expected = x + torch.stack([torch.rand(1, 1, 1, generator=g) for g in own()])
    target = torch.zeros(7).long()
    assert torch.equal(streams.explain(drawn, nn.Identity(), x, target, own()), expected)
    assert seen == [(1, 1, 1)] * 7
    seen.clear()
    marked = attributions.draws_for_each(drawn)
    assert torch.equal(streams.explain(marked, nn.Identity(), x, target, own()), expected)
    assert seen == [(n, n, n) for n in sizes]


def test_only_a_parameter_without_a_value_is_waited_for():
    assert streams.stochastic(lambda model, x, target, *, generator: x)
    assert not streams.stochastic(lambda model, x, target, *, generator=None: x)
    assert not streams.stochastic(lambda model, x, target: x)
    assert not streams.stochastic(dict)  # whose parameters cannot be read


def test_under_the_same_draw_every_image_has_a_fresh_generator():
    given = []
    same = streams.alike(lambda model, x, target, *, generator: given.extend(generator))
    same(None, torch.zeros(3, 1), None)
    assert len({id(g) for g in given}) == len(given) == 3
    assert len({g.initial_seed() for g in given}) == 1
