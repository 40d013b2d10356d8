"""Geometry is drawn once and applied alike: shifts, flips, crops, resampling filters."""

import dataclasses

import numpy as np

from configs import base
from lambdanet.data import decode, geometry


def grey(rows):
    return decode.open_image(np.array(rows, np.uint8)[..., None])


def pixels(image):
    return np.array(image).astype(int)


def plain(**values):
    return geometry.Geometry((0, 0, 3, 3), (3, 3), "bilinear", **values)


def settings(**values):
    data = base.get_config().data
    data.image_size, data.channels = (3, 3), 1
    data.update(values)
    return data


def test_shift_moves_zeros_in():
    image = grey([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    # one column leaves on the left, a row comes in on top
    moved = geometry.warp_image(image, plain(shift=(-1, 1)), 1)
    assert pixels(moved).tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]
    assert pixels(geometry.warp_image(image, plain(), 1)).tolist() == pixels(image.load()).tolist()


def test_flip_comes_last():
    image = grey([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert pixels(geometry.warp_image(image, plain(flip=True), 1))[0].tolist() == [3, 2, 1]
    both = geometry.warp_image(image, plain(shift=(1, 0), flip=True), 1)
    assert pixels(both)[0].tolist() == [2, 1, 0]


def test_every_shift_and_both_flips_are_drawn_equally():
    rng, data = np.random.default_rng(0), settings(crop="shift", shift=1, flip=0.5)
    drawn = [geometry.draw((3, 3), data, rng) for _ in range(900)]
    counts = np.bincount([3 * (g.shift[0] + 1) + g.shift[1] + 1 for g in drawn], minlength=9)
    assert counts.min() > 60 and counts.max() < 140  # 100 expected, 4 standard deviations
    assert 390 < sum(g.flip for g in drawn) < 510


def test_what_is_off_draws_nothing():
    rng = np.random.default_rng(0)
    assert geometry.draw((5, 4), settings(), rng) == dataclasses.replace(plain(), box=(0, 0, 5, 4))
    assert rng.random() == np.random.default_rng(0).random()


def test_random_interpolation_is_one_of_the_two_and_bicubic_in_evaluation():
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    picture = decode.open_image(noise)

    def trained(name, seed):
        data = settings(image_size=(16, 16), channels=3, interpolation=name)
        drawn = geometry.draw(picture.size, data, np.random.default_rng(seed))
        return geometry.warp_image(picture, drawn, 3).tobytes()

    found = [trained("random", seed) for seed in range(40)]
    either = [trained(name, 0) for name in decode.FILTERS]
    assert set(found) == set(either) and 8 <= found.count(either[0]) <= 32
    evaluated = [
        geometry.centred(picture.size, settings(interpolation=name)).interpolation
        for name in geometry.INTERPOLATIONS
    ]
    assert evaluated == ["bilinear", "bicubic", "bicubic"]
