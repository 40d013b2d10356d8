"""From the bytes of an image file to a cropped, resized image.

Pillow does both steps: its resampling filters widen when shrinking (antialiasing, as torchvision,
timm and `jax.image.resize` do), it refuses truncated files, and it releases the interpreter lock,
so reader threads scale. EXIF orientation is ignored, as in the usual ImageNet pipelines.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Box = tuple[
    int | float, int | float, int | float, int | float
]  # left, top, right, bottom, in pixels


def why_unsupported(mode: str) -> str:
    """Returns '' if images of this Pillow mode have 8 bits per channel, else the reason why they
    are refused.
    """
    return (
        ""
        if mode in MODES
        else f"pixel mode {mode!r} is not 8 bits per channel; convert the image first"
    )


def open_image(data: bytes | np.ndarray) -> Image.Image:
    """Reads the header of an encoded image; the pixels are decoded later, by `crop_and_resize`.

    Args:
        data: an image file's bytes, or decoded pixels: uint8 [h, w, 1 or 3].

    Raises:
        ValueError: 16-bit or float pixels, which a plain conversion to 8 bits would clip.
        OSError: not an image.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[:, :, 0] if data.shape[2] == 1 else data)
    image = Image.open(io.BytesIO(data))
    reason = why_unsupported(image.mode)
    if reason:
        raise ValueError(reason)
    return image


def random_resized_box(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draws a crop by area and aspect ratio (Szegedy et al. 2015, "Going deeper with
    convolutions").

    Ten tries: area uniform in `scale` times the image's, width / height log-uniform in `ratio`,
    position uniform. If none fits, the largest centred crop within `ratio`.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre_box(
    width: int, height: int, *, size: tuple[int, int], fraction: float, keep_aspect: bool = True
) -> Box:
    """Returns the centred crop of evaluation: resizing until the image covers size / fraction, then
    cropping `size`.

    Args:
        width, height: of the image.
        size: (height, width) of the output.
        fraction: output side over resized side, in (0, 1]; 224 / 256 = 0.875 is the classic value.
        keep_aspect: False resizes each side by itself to size / fraction, so that the crop is the
            middle of both sides.
    """
    if not keep_aspect:
        return tuple(
            side * (1 + sign * fraction) / 2 for sign in (-1, 1) for side in (width, height)
        )
    scale = max(
        size[0] / fraction / height, size[1] / fraction / width
    )  # resized = scale * original
    w, h = min(size[1] / scale, width), min(size[0] / scale, height)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def crop_and_resize(
    image: Image.Image, box: Box, *, size: tuple[int, int], channels: int, interpolation: str
) -> Image.Image:
    """Decodes the image and resamples `box` to `size` in one antialiased step.

    A JPEG whose crop is at least twice the output in both directions is decoded at 1/2, 1/4 or 1/8
    of its size, which its block transform gives almost for free; never below the output's
    resolution. Pixels just outside the box enter the filter at its border.

    Args:
        image: from `open_image` (or any 8-bit Pillow image).
        box: the crop in pixels of the full-size image.
        size: (height, width) of the output.
        channels: 1 gives mode 'L', 3 gives 'RGB'; other modes are converted.
        interpolation: 'bilinear' or 'bicubic'.

    Returns:
        A decoded image of `size`.

    Raises:
        OSError: damaged or truncated pixel data.
    """
    mode = "L" if channels == 1 else "RGB"
    width, height = image.size
    left, top, right, bottom = box
    if image.format == "JPEG":
        wanted = (
            int(np.ceil(width * size[1] / (right - left))),
            int(np.ceil(height * size[0] / (bottom - top))),
        )
        reduced = image.draft("L" if channels == 1 else None, wanted)
        if reduced is not None:
            x, y = reduced[1][2] / width, reduced[1][3] / height
            left, top, right, bottom = left * x, top * y, right * x, bottom * y
    if image.mode != mode:
        image = image.convert(mode)
    if (left, top, right, bottom) == (0, 0, *image.size) and image.size == (size[1], size[0]):
        image.load()
        return image
    return image.resize((size[1], size[0]), FILTERS[interpolation], box=(left, top, right, bottom))


def to_array(image: Image.Image) -> np.ndarray:
    """Returns a writable uint8 array [h, w, c]."""
    array = np.array(image)
    return array[:, :, None] if array.ndim == 2 else array
