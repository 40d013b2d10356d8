"""Crop boxes, antialiased resampling, transparency, orientation and refusals of the decoder."""

import io
import resource
import struct
import warnings
import zlib

import jax
import numpy as np
import pytest
from data_helpers import jpeg, png
from PIL import ExifTags, Image, ImageDraw, ImageOps

from configs import base
from lambdanet.data import decode, geometry


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
    # 375 -> 256 and 500 -> 341, of which 224 begin at row 16 and, half to even, at column 58
    box = decode.centre_box(500, 375, size=(224, 224), fraction=0.875)
    across, down = 500 / 341, 375 / 256
    assert np.allclose(box, (58 * across, 16 * down, (58 + 224) * across, (16 + 224) * down))
    # floor(288 / 0.95) = 303, of which 288 begin at 7.5, to even
    box = decode.centre_box(606, 909, size=(288, 288), fraction=0.95)
    assert np.allclose(box, (8 * 2, 83 * 2, (8 + 288) * 2, (83 + 288) * 2), atol=1.5)
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


def test_a_picture_is_resized_before_it_is_cropped_where_that_is_asked_for():
    """As `data.eval_resize_first` does, by way of the geometry: portraits and JPEGs, too."""
    data = base.get_config().data
    data.image_size, data.eval_crop, data.interpolation = (224, 224), 0.91, "bicubic"
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1203), np.uint8)
    encoded = encode(Image.fromarray(noise), "JPEG", quality=95)
    whole = Image.open(io.BytesIO(encoded)).resize((246, 306), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((11, 41, 235, 265)), int)
    difference = {}
    for first in (False, True):
        data.eval_resize_first = first
        opened = decode.open_image(encoded)
        found = geometry.warp_image(opened, geometry.centred(opened.size, data), data.channels)
        difference[first] = np.abs(np.asarray(found, int) - expected).max()
    assert difference[True] == 0 < 2 < difference[False]
    data.eval_keep_aspect = False
    opened = decode.open_image(encoded)
    found = geometry.warp_image(opened, geometry.centred(opened.size, data), data.channels)
    squeezed = Image.open(io.BytesIO(encoded)).resize((246, 246), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, squeezed.crop((11, 11, 235, 235)))


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
    assert opened.stored.size == (101, 76)  # an eighth, so the shortcut was taken
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
    assert opened.stored.size == (500, 375)


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


def pixels(data, channels=3, **options):
    """The whole picture as an array, not resampled."""
    picture = decode.open_image(data, **options)
    width, height = picture.size
    image = decode.crop_and_resize(
        picture,
        (0, 0, width, height),
        size=(height, width),
        channels=channels,
        interpolation="bilinear",
    )
    return decode.to_array(image)


def drawing(mode):
    """Black ink on a transparent ground, half transparent at one place; how to save it."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 4, 27, 11), fill=(0, 0, 0, 255))
    if mode in ("RGBA", "LA", "P bytes"):
        draw.rectangle((4, 20, 27, 27), fill=(0, 0, 0, 128))
    if mode in ("RGBA", "LA"):
        return image.convert(mode), {}
    alpha = image.getchannel("A")
    if mode in ("P", "P bytes"):  # both entries black, the first one invisible
        palette = alpha.point(lambda a: {0: 0, 128: 1, 255: 2}[a] if a in (0, 128, 255) else 0)
        palette = Image.frombytes("P", image.size, palette.tobytes())
        palette.putpalette([0] * 768)
        return palette, {"transparency": 0 if mode == "P" else bytes([0, 128, 255])}
    ground = {"L": (9, 9), "RGB": ((1, 2, 3), (1, 2, 3))}[mode]
    ink = Image.new(mode, image.size, ground[0])
    ink.paste(0, mask=alpha)
    return ink, {"transparency": ground[1]}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P bytes", "L", "RGB"])
def test_transparent_pictures_lie_on_white(mode, channels):
    image, options = drawing(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pixels(encode(image, **options), channels)
    expected = np.full((32, 32, channels), 255)
    expected[4:12, 4:28] = 0
    if mode in ("RGBA", "LA", "P bytes"):
        expected[20:28, 4:28] = 127
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_colour_is_found_at_every_bit_depth(channels):
    for depth, row, expected in (
        (1, b"\x20", [0, 0, 255, 0]),  # samples 0 0 1 0, of which 0 is transparent below
        (2, b"\x1b", [0, 85, 255, 255]),  # 0 1 2 3, of which 2 is
        (4, b"\x01\x23", [0, 17, 255, 51]),
        (8, b"\0\1\2\3", [0, 1, 255, 3]),
    ):
        key, expected = (0, [255] * 4) if depth == 1 else (2, expected)
        data = png(depth, 0, row, transparent=struct.pack(">H", key))
        assert pixels(data, channels)[0, :, 0].tolist() == expected, depth
    colours = [4096 * i for i in range(4) for _ in range(3)]
    data = png(16, 2, struct.pack(">12H", *colours), transparent=struct.pack(">3H", *colours[3:6]))
    assert pixels(data, channels)[0, :, 0].tolist() == [0, 255, 32, 48]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_opaque_pictures_with_alpha_are_unchanged(mode, channels):
    array = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    image = Image.fromarray(array).convert(mode)
    data = encode(image, **({"transparency": bytes([255] * 256)} if mode == "P" else {}))
    assert np.array_equal(
        pixels(data, channels), decode.to_array(image.convert("L" if channels == 1 else "RGB"))
    )


def oriented(image, orientation, file_format="PNG", **options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if file_format == "MPO":  # as phones write it: a small second picture behind the first
        options |= {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}
    return encode(image, file_format, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "mode, file_format",
    [
        *((mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((mode, "JPEG") for mode in ("L", "RGB", "CMYK")),
        *((mode, "WEBP") for mode in ("RGB", "RGBA")),
        ("RGB", "MPO"),
        ("RGB", "TIFF"),
    ],
)
def test_orientation_is_that_of_pillow(mode, file_format, orientation):
    data = oriented(smooth_picture(40, 24).convert(mode), orientation, file_format)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = decode.to_array(upright.convert("RGB"))
    picture = decode.open_image(data)
    assert picture.stored.format == file_format
    assert picture.size == upright.size and np.array_equal(pixels(data), expected)
    assert picture.load().tobytes() == upright.tobytes()
    # a crop in the upright picture's coordinates
    left, top, right, bottom = box = (3, 5, 17, 21)
    crop = decode.crop_and_resize(
        decode.open_image(data), box, size=(16, 14), channels=3, interpolation="bilinear"
    )
    assert np.array_equal(decode.to_array(crop), expected[top:bottom, left:right])
    if file_format != "TIFF":
        stored = decode.to_array(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(pixels(data, exif_orientation=False), stored)


@pytest.mark.parametrize("file_format", ["JPEG", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_jpeg_is_decoded_at_reduced_size_with_the_same_result(orientation, file_format):
    data = oriented(smooth_picture(805, 603), orientation, file_format, quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    box = (3, 5, upright.width - 40, upright.height - 6)
    opened = decode.open_image(data)
    fast = decode.crop_and_resize(opened, box, size=(60, 64), channels=3, interpolation="bilinear")
    assert opened.stored.size == (101, 76)
    full = decode.to_array(upright.resize((64, 60), Image.Resampling.BILINEAR, box=box))
    difference = np.abs(decode.to_array(fast).astype(int) - full)
    assert difference.mean() < 1.0 and difference.max() <= 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif"])
def test_damaged_or_senseless_exif_is_no_orientation(exif):
    image = smooth_picture(40, 24)
    assert decode.open_image(encode(image, "JPEG", exif=exif)).size == (40, 24)
    assert decode.open_image(oriented(image, 9)).size == (40, 24)


def test_orientation_behind_the_pixels_of_a_png():
    data = oriented(smooth_picture(40, 24), 6)
    start = data.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", data[start : start + 4])
    chunk, end = data[start : start + 12 + length], data.index(b"IEND") - 4
    moved = data[:start] + data[start + len(chunk) : end] + chunk + data[end:]
    assert decode.open_image(moved).size == (24, 40)
    assert np.array_equal(pixels(moved), pixels(data))


def bomb(width, height):
    """A valid header of a PNG of that size, and hardly any data."""
    data = encode(Image.new("1", (8, 8)))
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_memory_is_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for side, size in ((60_000, 3600), (20_000, 400)):  # beyond and below Pillow's own refusal
        with pytest.raises(ValueError, match=f"{size} megapixels; allowed: up to 300"):
            decode.open_image(bomb(side, side))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    with pytest.raises(OSError):  # allowed, but the pixels are missing
        decode.open_image(bomb(2000, 2000))


def test_program_formats_are_never_opened():
    eps = encode(smooth_picture(8, 8), "EPS")
    with pytest.raises(OSError, match="cannot identify"):
        decode.open_image(eps)


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


def test_a_picture_keeps_its_size_when_it_is_decoded_at_a_part_of_it():
    picture = decode.open_image(jpeg((9, 9, 9), (160, 80)))
    decode.crop_and_resize(
        picture, (0, 0, 160, 80), size=(10, 20), channels=3, interpolation="bilinear"
    )
    assert picture.stored.size != (160, 80) == picture.size
