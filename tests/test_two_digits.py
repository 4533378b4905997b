"""Laws of the set of which it is known what decides: each side by itself, against pairs looked up one by one."""

import numpy as np
import pytest
import torch
from attrobust import data
from attrobust.data import two_digits


def digits(n=60, side=8, seed=0):
    """Images of which no two are alike, and none is black."""
    return np.random.default_rng(seed).integers(1, 256, (n, side, side)).astype(np.uint8)


def halved(image):
    """Means over blocks of two by two, one by one, rounded as numpy rounds."""
    rows, columns = (side // 2 for side in image.shape)
    means = [[image[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean() for c in range(columns)] for r in range(rows)]
    return np.round(means).astype(np.uint8)


def found(half, small):
    """Index of the digit that stands in half an image, and the row it begins at; exactly one, all else is black."""
    places = []
    for top in range(half.shape[0] - small.shape[1] + 1):
        inside = half[top : top + small.shape[1]]
        places += [(int(i), top) for i in np.flatnonzero((small == inside).all((1, 2)))]
    ((index, top),) = places
    rest = np.delete(half, range(top, top + small.shape[1]), axis=0)
    assert not rest.any()
    return index, top


def test_the_left_digit_is_the_images_own_and_the_right_one_anothers_each_used_once():
    x = digits()
    small, pairs = np.stack([halved(image) for image in x]), two_digits.beside(x, seed=3)
    assert pairs.shape == x.shape
    assert pairs.dtype == np.uint8
    left, right = ([found(half, small) for half in halves] for halves in (pairs[:, :, :4], pairs[:, :, 4:]))
    assert [i for i, _ in left] == list(range(len(x)))
    others = [i for i, _ in right]
    assert sorted(others) == list(range(len(x)))
    assert not any(i == j for i, j in enumerate(others))
    for places in (left, right):
        assert {top for _, top in places} == set(range(5))


def test_pairs_depend_on_the_seed_alone():
    x = digits()
    assert np.array_equal(two_digits.beside(x, seed=0), two_digits.beside(x, seed=0))
    assert not np.array_equal(two_digits.beside(x, seed=0), two_digits.beside(x, seed=1))


def test_the_right_half_tells_nothing_of_the_label():
    """Class of the right digit against that of the left one: shares within five standard errors of chance."""
    y = np.arange(3000) % 3
    x = np.repeat(y + 1, 16).astype(np.uint8).reshape(-1, 4, 4) * 40
    right = two_digits.beside(x, seed=0)[:, :, 2:].max((1, 2)) // 40 - 1
    for own in range(3):
        shares = np.bincount(right[y == own], minlength=3) / 1000
        assert np.abs(shares - 1 / 3).max() < 5 * (2 / 9 / 1000) ** 0.5


def test_the_deciding_pixels_are_those_of_the_left_digit():
    x = digits(20)
    mask, pairs = two_digits.deciding(8, 8), torch.as_tensor(two_digits.beside(x, seed=0))
    black_right = two_digits.beside(np.concatenate([x[:1], np.zeros_like(x)]), seed=0)[0]
    assert mask.sum() == 32
    assert (pairs * mask).flatten(1).any(1).all()
    assert torch.equal(torch.as_tensor(black_right) * mask, torch.as_tensor(black_right))


def test_what_cannot_be_halved_or_paired_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"x has images of \(7, 8\); both sides must be even"):
        two_digits.beside(np.zeros((3, 7, 8), np.uint8), seed=0)
    for x in (np.zeros((1, 4, 4), np.uint8), np.zeros((3, 1, 4, 4), np.uint8), np.zeros((3, 4, 4))):
        with pytest.raises(ValueError, match=r"x is .*; it must be bytes \(images, height, width\), of two images or"):
            two_digits.beside(x, seed=0)
    with pytest.raises(ValueError, match="width is 7; it must be even"):
        two_digits.deciding(7, 7)


def test_the_set_is_made_of_mnists_files_split_by_split():
    if not data.available("mnist"):
        pytest.skip("mnist is not on this machine")
    whole, pairs = data.load("mnist"), data.load("two_digits")
    assert pairs.verified
    assert data.fingerprint("two_digits") != data.fingerprint("mnist")
    for digit, pair in ((whole.train, pairs.train), (whole.test, pairs.test)):
        assert torch.equal(digit.y, pair.y)
        means = (torch.nn.functional.avg_pool2d(digit.x[:500] * 255, 2).round().sum((1, 2, 3)) / 255).double()
        left = pair.x[:500, :, :, :14].sum((1, 2, 3)).double()
        assert torch.allclose(left, means, atol=14 * 14 / 255 / 2)  # a mean of .5 may be rounded either way
