"""Where an example's pixels come from: drawn once per record, then applied to whatever it holds.

Pictures are resampled with antialiasing here; what else has a place in the picture (label maps,
boxes) follows the same `Geometry`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from lambdanet.data import decode

CROPS = ("none", "shift", "random_resized")
INTERPOLATIONS = (*decode.FILTERS, "random")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """One crop of a picture.

    Attributes:
        box: left, top, right, bottom of the crop, in pixels of the picture.
        size: (height, width) that the crop is resampled to.
        interpolation: 'bilinear' or 'bicubic'.
        shift: (x, y) in output pixels that the result is moved by, zeros moving in.
        flip: mirror left and right, at the end.
    """

    box: decode.Box
    size: tuple[int, int]
    interpolation: str
    shift: tuple[int, int] = (0, 0)
    flip: bool = False


def draw(picture_size: tuple[int, int], data: Any, rng: np.random.Generator) -> Geometry:
    """Draws the geometry of a training example.

    Args:
        picture_size: (width, height), as Pillow has it.
        data: the config's section; reads image_size, crop, shift, crop_scale, crop_ratio, flip and
            interpolation.
        rng: of the record. What is off draws nothing.
    """
    box, shift = (0, 0, *picture_size), (0, 0)
    if data.crop == "random_resized":
        box = decode.random_resized_box(
            *picture_size, scale=data.crop_scale, ratio=data.crop_ratio, rng=rng
        )
    random = data.interpolation == "random"
    interpolation = str(rng.choice(list(decode.FILTERS))) if random else data.interpolation
    if data.crop == "shift":
        shift = tuple(-int(d) for d in rng.integers(-data.shift, data.shift + 1, 2))
    flip = data.flip > 0 and bool(rng.random() < data.flip)
    return Geometry(box, tuple(data.image_size), interpolation, shift, flip)


def centred(picture_size: tuple[int, int], data: Any) -> Geometry:
    """Returns the geometry of evaluation: the centred crop of `decode.centre_box`.

    Args:
        picture_size: (width, height).
        data: the config's section; reads image_size, eval_crop, eval_keep_aspect, interpolation.
    """
    size = tuple(data.image_size)
    box = decode.centre_box(
        *picture_size, size=size, fraction=data.eval_crop, keep_aspect=data.eval_keep_aspect
    )
    bicubic = data.interpolation == "random"
    return Geometry(box, size, "bicubic" if bicubic else data.interpolation)


def warp_image(picture: decode.Picture, geometry: Geometry, channels: int) -> Image.Image:
    """Decodes the picture and applies the geometry; returns mode 'L' (1 channel) or 'RGB' (3)."""
    image = decode.crop_and_resize(
        picture,
        geometry.box,
        size=geometry.size,
        channels=channels,
        interpolation=geometry.interpolation,
    )
    if geometry.shift != (0, 0):
        x, y = geometry.shift
        image = image.crop((-x, -y, image.width - x, image.height - y))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if geometry.flip else image
