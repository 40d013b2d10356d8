"""Crop boxes, antialiased resampling and refusals of the decoder."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from lambdanet.data import decode


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def smooth_picture(width, height):
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / 37 + y / 53 + phase) for phase in (0, 1, 2)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def test_random_resized_box_stays_inside_and_in_range():
    rng, shares, aspects = np.random.default_rng(0), [], []
    for _ in range(500):
        left, top, right, bottom = decode.random_resized_box(
            500, 375, scale=(0.08, 0.5), ratio=(3 / 4, 4 / 3), rng=rng
        )
        assert 0 <= left < right <= 500 and 0 <= top < bottom <= 375
        shares.append((right - left) * (bottom - top) / (500 * 375))
        aspects.append((right - left) / (bottom - top))
    # every such crop fits, so areas are uniform: mean 0.29, standard error 0.005
    assert (
        0.07 < min(shares) < 0.1
        and 0.48 < max(shares) < 0.51
        and abs(np.mean(shares) - 0.29) < 0.02
    )
    assert 0.74 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.35


@pytest.mark.parametrize(
    "size, box", [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))]
)
def test_random_resized_box_falls_back_to_the_largest_centred_crop(size, box):
    box_found = decode.random_resized_box(
        *size, scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3), rng=np.random.default_rng(0)
    )
    assert box_found == box


def test_centre_box_equals_resize_then_crop():
    # short side 375 -> 256, crop 224: 224 * 375 / 256 = 328.125 original pixels, centred
    box = decode.centre_box(500, 375, size=(224, 224), fraction=0.875)
    assert np.allclose(
        box, ((500 - 328.125) / 2, (375 - 328.125) / 2, (500 + 328.125) / 2, (375 + 328.125) / 2)
    )
    assert decode.centre_box(8, 8, size=(8, 8), fraction=1.0) == (0, 0, 8, 8)
    # both sides of the picture squeezed to 256, of which the middle 224 are kept
    box = decode.centre_box(500, 375, size=(224, 224), fraction=0.875, keep_aspect=False)
    assert np.allclose(box, (500 / 16, 375 / 16, 500 * 15 / 16, 375 * 15 / 16))
    # a wide output of a square picture: the width decides
    assert np.allclose(decode.centre_box(100, 100, size=(10, 20), fraction=1.0), (0, 25, 100, 75))


@pytest.mark.parametrize("interpolation, method", [("bilinear", "linear"), ("bicubic", "cubic")])
def test_resampling_is_antialiased(interpolation, method):
    array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    opened = decode.open_image(encode(Image.fromarray(array)))
    small = decode.crop_and_resize(
        opened, (0, 0, 60, 40), size=(16, 18), channels=3, interpolation=interpolation
    )
    reference = jax.image.resize(array.astype(np.float32), (16, 18, 3), method, antialias=True)
    assert (
        np.abs(decode.to_array(small) - np.clip(reference, 0, 255)).max() <= 1.5
    )  # rounds after each axis
    assert np.ptp(decode.to_array(small)) < 200 < np.ptp(array)  # noise averages out


def test_crop_takes_the_box():
    array = np.random.default_rng(0).integers(0, 256, (20, 24), np.uint8)
    opened = decode.open_image(encode(Image.fromarray(array)))
    crop = decode.crop_and_resize(
        opened, (10, 5, 18, 15), size=(10, 8), channels=1, interpolation="bilinear"
    )
    assert np.array_equal(decode.to_array(crop)[..., 0], array[5:15, 10:18])


def test_unchanged_size_is_lossless():
    array = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    opened = decode.open_image(encode(Image.fromarray(array)))
    same = decode.crop_and_resize(
        opened, (0, 0, 8, 8), size=(8, 8), channels=1, interpolation="bilinear"
    )
    assert np.array_equal(decode.to_array(same)[..., 0], array)


@pytest.mark.parametrize("channels", [1, 3])
def test_large_jpeg_is_decoded_at_reduced_size_with_the_same_result(channels):
    data = encode(smooth_picture(805, 603), "JPEG", quality=95)
    box = (3, 5, 803, 597)
    opened = decode.open_image(data)
    fast = decode.to_array(
        decode.crop_and_resize(
            opened, box, size=(64, 64), channels=channels, interpolation="bilinear"
        )
    )
    assert opened.size == (101, 76)  # an eighth, so the shortcut was taken
    full = (
        Image.open(io.BytesIO(data))
        .convert("L" if channels == 1 else "RGB")
        .resize((64, 64), 2, box=box)
    )
    difference = np.abs(fast.astype(int) - decode.to_array(full).astype(int))
    assert difference.mean() < 1.0 and difference.max() <= 4


def test_small_crop_of_a_jpeg_is_decoded_at_full_size():
    opened = decode.open_image(encode(smooth_picture(500, 375), "JPEG"))
    decode.crop_and_resize(
        opened, (0, 0, 300, 300), size=(224, 224), channels=3, interpolation="bilinear"
    )
    assert opened.size == (500, 375)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_mode_becomes_grey_or_rgb(mode, channels):
    image = smooth_picture(300, 200).convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    small = decode.crop_and_resize(
        decode.open_image(data),
        (0, 0, 300, 200),
        size=(10, 12),
        channels=channels,
        interpolation="bicubic",
    )
    array = decode.to_array(small)
    expected = image.convert("L" if channels == 1 else "RGB").resize(
        (12, 10), Image.Resampling.BICUBIC
    )
    assert array.shape == (10, 12, channels) and array.dtype == np.uint8
    assert np.ptp(array) > 100 and np.array_equal(array, decode.to_array(expected))


def test_16_bit_pixels_are_refused():
    data = encode(Image.fromarray(np.full((4, 4), 60000, np.uint16)))
    with pytest.raises(ValueError, match="I;16.*not 8 bits"):
        decode.open_image(data)


def test_truncated_file_raises():
    data = encode(smooth_picture(100, 100), "JPEG")
    opened = decode.open_image(data[: len(data) // 2])
    with pytest.raises(OSError, match="truncated"):
        decode.crop_and_resize(
            opened, (0, 0, 100, 100), size=(8, 8), channels=3, interpolation="bilinear"
        )
