"""Augmentation of single images on the host, with the random numbers of the record's own generator.

Every function maps a Pillow image of mode 'L' or 'RGB' (random erasing: a uint8 array) to one of
the same size, and draws only from `rng`, so that the result is a pure function of the image and the
generator's state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from lambdanet.data import decode

FILL = 128  # what moves into the picture, as in the reference code of RandAugment


def _grey(image: Image.Image, value: int) -> int | tuple[int, ...]:
    return value if image.mode == "L" else (value,) * len(image.mode)


def recolour(image: Image.Image, data: Any, rng: np.random.Generator) -> np.ndarray:
    """Applies what the config turns on, in its order: RandAugment, colour jitter, photometric
    distortion, random erasing.

    Args:
        image: 'L' or 'RGB', cropped.
        data: the config's section; reads rand_augment, color_jitter, photometric_distortion and
            random_erasing.
        rng: generator of the record. What is off draws nothing.

    Returns:
        uint8 [h, w, c].
    """
    if data.rand_augment[0] > 0:
        image = rand_augment(image, int(data.rand_augment[0]), data.rand_augment[1], rng)
    if any(data.color_jitter):
        image = color_jitter(image, data.color_jitter, rng)
    if data.photometric_distortion:
        image = photometric_distortion(image, rng)
    array = decode.to_array(image)
    return random_erasing(array, data.random_erasing, rng) if data.random_erasing > 0 else array


def color_jitter(
    image: Image.Image, strengths: tuple[float, float, float], rng: np.random.Generator
) -> Image.Image:
    """Changes brightness, contrast and saturation in random order.

    Args:
        image: 'L' (where saturation does nothing) or 'RGB'.
        strengths: s per property; its factor is uniform in [max(0, 1 - s), 1 + s]. 0 leaves the
            property alone.
        rng: generator of the record.
    """
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i in rng.permutation(3):
        if strengths[i] > 0:
            factor = rng.uniform(max(0.0, 1.0 - strengths[i]), 1.0 + strengths[i])
            image = enhancers[i](image).enhance(factor)
    return image


def photometric_distortion(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2.

    Brightness is added, uniform in [-32, 32]; contrast multiplies all values, uniform in
    [0.5, 1.5], before saturation and hue or after both, as a coin says; saturation multiplies that
    of the HSV colour, likewise; the hue is turned by up to 36 degrees. Results are clipped.

    Source: mmsegmentation's PhotoMetricDistortion. Its `hue_delta=18` counts OpenCV's steps of 2
    degrees. Deviations: values are rounded, not cut off, and the hue's angle is continuous until
    the 8 bits of Pillow's HSV.

    Args:
        image: 'L' (where saturation and hue do nothing) or 'RGB'.
        rng: generator of the record; draws as much for every image.
    """
    applies = rng.random(4) < 0.5
    brightness = rng.uniform(-32, 32)
    contrast, saturation = rng.uniform(0.5, 1.5, 2)
    degrees, contrast_first = rng.uniform(-36, 36), rng.random() < 0.5
    if applies[0]:
        image = _linear(image, 1.0, brightness)
    if applies[1] and contrast_first:
        image = _linear(image, contrast, 0.0)
    if image.mode == "RGB" and applies[2:].any():
        bands = list(image.convert("HSV").split())
        if applies[2]:
            bands[1] = _linear(bands[1], saturation, 0.0)
        if applies[3]:
            turn = round(degrees * 256 / 360)
            bands[0] = bands[0].point([(value + turn) % 256 for value in range(256)])
        image = Image.merge("HSV", bands).convert("RGB")
    if applies[1] and not contrast_first:
        image = _linear(image, contrast, 0.0)
    return image


def _linear(image: Image.Image, factor: float, offset: float) -> Image.Image:
    values = np.clip(np.round(np.arange(256) * factor + offset), 0, 255).astype(int).tolist()
    return image.point(values * len(image.getbands()))


def random_erasing(image: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Overwrites a random rectangle with random pixels (Zhong et al. 2017, "Random Erasing",
    variant RE-R).

    Args:
        image: uint8 [h, w, c]; changed in place.
        probability: of erasing at all. Area is uniform in [0.02, 1/3] of the image, the aspect
            ratio log-uniform in [0.3, 3.3] (ten tries for a rectangle that fits).
        rng: generator of the record.

    Returns:
        `image`.
    """
    if rng.random() >= probability:
        return image
    height, width, channels = image.shape
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        aspect = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
        h, w = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            image[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, channels), np.uint8)
            break
    return image


# RandAugment. `level` is magnitude / 10, so 1 is full strength in the reference code and larger
# values go beyond it. Lengths are fractions of the image where the reference has pixels of 224: 100
# for shifts, 40 for the cut-out.


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Moves the pixel at (a x + b y + c, d x + e y + f) to (x, y)."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BILINEAR,
        fillcolor=_grey(image, FILL),
    )


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() < 0.5 else value


def _rotate(image, level, rng):
    degrees = _signed(30 * level, rng)
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_grey(image, FILL))


def _shear_x(image, level, rng):
    return _affine(image, (1, _signed(0.3 * level, rng), 0, 0, 1, 0))


def _shear_y(image, level, rng):
    return _affine(image, (1, 0, 0, _signed(0.3 * level, rng), 1, 0))


def _translate_x(image, level, rng):
    return _affine(image, (1, 0, _signed(100 / 224 * level * image.width, rng), 0, 1, 0))


def _translate_y(image, level, rng):
    return _affine(image, (1, 0, 0, 0, 1, _signed(100 / 224 * level * image.height, rng)))


def _cutout(image, level, rng):
    half_w, half_h = (round(40 / 224 * level * side) for side in image.size)
    x, y = int(rng.integers(image.width)), int(rng.integers(image.height))
    if half_w > 0 and half_h > 0:
        image = image.copy()
        corners = (
            x - half_w,
            y - half_h,
            x + half_w - 1,
            y + half_h - 1,
        )  # Pillow's corners are inclusive
        ImageDraw.Draw(image).rectangle(corners, fill=_grey(image, FILL))
    return image


def _posterize(image, level, rng):
    return ImageOps.posterize(image, min(max(int(4 * level), 1), 8))


def _solarize(image, level, rng):
    return ImageOps.solarize(image, int(256 * level))


def _solarize_add(image, level, rng):
    table = [min(v + int(110 * level), 255) if v < 128 else v for v in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(enhancer):
    return lambda image, level, rng: enhancer(image).enhance(1.8 * level + 0.1)


RAND_AUGMENT_OPS: dict[str, Callable[[Image.Image, float, np.random.Generator], Image.Image]] = {
    "auto_contrast": lambda image, level, rng: ImageOps.autocontrast(image),
    "equalize": lambda image, level, rng: ImageOps.equalize(image),
    "invert": lambda image, level, rng: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "cutout": _cutout,
    "solarize_add": _solarize_add,
}


def rand_augment(
    image: Image.Image, layers: int, magnitude: float, rng: np.random.Generator
) -> Image.Image:
    """Applies `layers` operations, drawn uniformly with replacement, at one strength (Cubuk et al.
    2019, RandAugment).

    Source of the operations and strengths: the TensorFlow TPU models' code. There `posterize` keeps
    int(0.4 magnitude) bits (at least 1 here) and `solarize` inverts values from 25.6 magnitude on,
    so both grow weaker with the magnitude; the colour operations have factor 0.18 magnitude + 0.1.
    Deviations: lengths scale with the image, and geometric operations interpolate bilinearly.

    Args:
        image: 'L' or 'RGB'.
        layers: operations per image.
        magnitude: 0..30; 10 is full strength in the original scale.
        rng: generator of the record.
    """
    names = list(RAND_AUGMENT_OPS)
    for i in rng.integers(len(names), size=layers):
        image = RAND_AUGMENT_OPS[names[i]](image, magnitude / 10, rng)
    return image
