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

CROPS = ("none", "shift", "random_resized", "scale_crop")
INTERPOLATIONS = (*decode.FILTERS, "random")
IGNORE = 255
"""In a label map: a pixel of no class, that counts nowhere."""
CROP_TRIES = 10  # as in mmsegmentation


@dataclasses.dataclass(frozen=True)
class Geometry:
    """One crop of a picture.

    Attributes:
        box: left, top, right, bottom of the crop, in pixels of the picture.
        size: (height, width) that the crop is resampled to.
        interpolation: 'bilinear' or 'bicubic'.
        shift: (x, y) in output pixels that the result is moved by, zeros moving in.
        flip: mirror left and right, at the end.
        pad: (rows below, columns on the right) that are added before the flip.
        fill: their colour, one value per channel, of 0 to 255.
        whole: (width, height) that the whole picture is resized to first; None for one step, see
            `decode.crop_and_resize`.
    """

    box: decode.Box
    size: tuple[int, int]
    interpolation: str
    shift: tuple[int, int] = (0, 0)
    flip: bool = False
    pad: tuple[int, int] = (0, 0)
    fill: tuple[int, ...] = (0,)
    whole: tuple[int, int] | None = None

    @property
    def valid_box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the output's part that is no padding; right and bottom are
        outside.
        """
        height, width = self.size
        left = self.pad[1] if self.flip else 0
        return left, 0, left + width, height


def draw(
    picture_size: tuple[int, int],
    data: Any,
    rng: np.random.Generator,
    labels: np.ndarray | None = None,
) -> Geometry:
    """Draws the geometry of a training example.

    Args:
        picture_size: (width, height), as Pillow has it.
        data: the config's section; reads image_size, crop, shift, crop_scale, crop_ratio, flip and
            interpolation, and for the crop 'scale_crop' what `draw_scaled` does.
        rng: of the record. What is off draws nothing.
        labels: the picture's label map, of which only 'scale_crop' takes notice.
    """
    if data.crop == "scale_crop":
        return draw_scaled(picture_size, data, rng, labels)
    box, shift = (0, 0, *picture_size), (0, 0)
    if data.crop == "random_resized":
        box = decode.random_resized_box(
            *picture_size, scale=data.crop_scale, ratio=data.crop_ratio, rng=rng
        )
    interpolation = draw_interpolation(data, rng)
    if data.crop == "shift":
        shift = tuple(-int(d) for d in rng.integers(-data.shift, data.shift + 1, 2))
    return Geometry(box, tuple(data.image_size), interpolation, shift, draw_flip(data, rng))


def draw_interpolation(data: Any, rng: np.random.Generator) -> str:
    """Returns data.interpolation, or one of the filters if that is 'random'."""
    random = data.interpolation == "random"
    return str(rng.choice(list(decode.FILTERS))) if random else data.interpolation


def draw_flip(data: Any, rng: np.random.Generator) -> bool:
    """Returns True with probability data.flip."""
    return data.flip > 0 and bool(rng.random() < data.flip)


def draw_scaled(
    picture_size: tuple[int, int],
    data: Any,
    rng: np.random.Generator,
    labels: np.ndarray | None = None,
) -> Geometry:
    """Draws a scale and a crop of fixed size, as segmentation is trained.

    The picture is resized by a factor that is uniform in data.scale_range, times the factor that
    brings its short side to data.scale_base, if that is set. A window of data.image_size is cut out
    of it, uniformly among those inside; where the picture is smaller, it is padded below and on
    the right with the mean colour (labels: IGNORE).

    With data.cat_max_ratio < 1 and labels, a window is drawn anew, up to CROP_TRIES times, while
    one class has at least that share of its labelled pixels, or there is but one class. The last
    one is taken as it is. Source of these rules: mmsegmentation's RandomResize and RandomCrop,
    which moreover bound the long side (at four times the short side, in its recipes).

    Args:
        picture_size: (width, height).
        data: the config's section; reads image_size, scale_range, scale_base, cat_max_ratio, flip,
            interpolation, mean and channels.
        rng: of the record. What is off draws nothing.
        labels: int [height, width]; None tries no window twice.
    """
    low, high = data.scale_range
    factor = float(rng.uniform(low, high)) if low < high else low
    if data.scale_base:
        factor *= data.scale_base / min(picture_size)
    scaled = scaled_size(picture_size, factor)
    interpolation, flip = draw_interpolation(data, rng), draw_flip(data, rng)
    size = tuple(
        min(side, whole) for side, whole in zip(data.image_size, scaled[::-1], strict=True)
    )
    pad = tuple(whole - side for whole, side in zip(data.image_size, size, strict=True))

    def window() -> Geometry:
        top, left = (
            int(rng.integers(whole - side + 1)) if whole > side else 0
            for whole, side in zip(scaled[::-1], size, strict=True)
        )
        box = box_before(scaled, picture_size, (left, top, left + size[1], top + size[0]))
        return Geometry(box, size, interpolation, (0, 0), flip, pad, mean_colour(data))

    drawn = window()
    if labels is None or data.cat_max_ratio >= 1:
        return drawn
    for _ in range(CROP_TRIES):
        found = warp_labels(labels, drawn)
        counts = np.unique(found[found != IGNORE], return_counts=True)[1]
        if len(counts) > 1 and counts.max() < data.cat_max_ratio * counts.sum():
            break
        drawn = window()
    return drawn


def scaled_size(picture_size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Returns (width, height) of a picture resized by a factor, whole and at least 1."""
    return tuple(max(1, int(side * factor + 0.5)) for side in picture_size)


def mean_colour(data: Any) -> tuple[int, ...]:
    """Returns data.mean as a colour, one value of 0 to 255 per channel: near 0 when normalised."""
    mean = data.mean if len(data.mean) == data.channels else data.mean * data.channels
    return tuple(round(255 * value) for value in mean)


def box_before(
    scaled: tuple[int, int], picture_size: tuple[int, int], box: decode.Box
) -> decode.Box:
    """Returns where a box of the scaled picture lies in the picture, inside of it."""
    return tuple(
        min(edge * whole / side, whole)
        for edge, side, whole in zip(box, scaled * 2, picture_size * 2, strict=True)
    )


def fitted(picture_size: tuple[int, int], data: Any) -> Geometry:
    """Returns the geometry of evaluation where every pixel has a label: the whole picture.

    The picture is resized, its aspect kept, so that it just fits into data.image_size, larger or
    smaller than it is; below or on the right it is padded with the mean colour (labels: IGNORE).
    Pictures of exactly that size go as they are. So all examples have one shape, and nothing that
    is labelled is cut off; `Geometry.valid_box` says which part is picture.

    Args:
        picture_size: (width, height).
        data: the config's section; reads image_size, interpolation, mean and channels.
    """
    height, width = data.image_size
    factor = min(width / picture_size[0], height / picture_size[1])
    scaled = scaled_size(picture_size, factor)
    size = (min(scaled[1], height), min(scaled[0], width))
    pad = (height - size[0], width - size[1])
    return Geometry(
        (0, 0, *picture_size), size, evaluation_filter(data), pad=pad, fill=mean_colour(data)
    )


def evaluation_filter(data: Any) -> str:
    """Returns data.interpolation, or 'bicubic' if that is 'random'."""
    return "bicubic" if data.interpolation == "random" else data.interpolation


def centred(picture_size: tuple[int, int], data: Any) -> Geometry:
    """Returns the geometry of evaluation: the centred crop of `decode.centre_box`.

    Args:
        picture_size: (width, height).
        data: the config's section; reads image_size, eval_crop, eval_keep_aspect,
            eval_resize_first, interpolation.
    """
    size = tuple(data.image_size)
    how = dict(size=size, fraction=data.eval_crop, keep_aspect=data.eval_keep_aspect)
    box = decode.centre_box(*picture_size, **how)
    whole = decode.covering_size(*picture_size, **how) if data.eval_resize_first else None
    return Geometry(box, size, evaluation_filter(data), whole=whole)


def warp_image(picture: decode.Picture, geometry: Geometry, channels: int) -> Image.Image:
    """Decodes the picture and applies the geometry; returns mode 'L' (1 channel) or 'RGB' (3)."""
    image = decode.crop_and_resize(
        picture,
        geometry.box,
        size=geometry.size,
        channels=channels,
        interpolation=geometry.interpolation,
        whole=geometry.whole,
    )
    if geometry.shift != (0, 0):
        x, y = geometry.shift
        image = image.crop((-x, -y, image.width - x, image.height - y))
    if geometry.pad != (0, 0):
        fill = geometry.fill if channels > 1 else geometry.fill[0]
        size = (image.width + geometry.pad[1], image.height + geometry.pad[0])
        canvas = Image.new(image.mode, size, fill)
        canvas.paste(image)
        image = canvas
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if geometry.flip else image


def warp_labels(labels: np.ndarray, geometry: Geometry, ignore: int = IGNORE) -> np.ndarray:
    """Applies the geometry to a label map: the label at the middle of every output pixel.

    Args:
        labels: int [h, w], of the whole picture.
        geometry: as for the picture.
        ignore: what padding and shifts bring in.

    Returns:
        The crop, [h', w'] of the same type.
    """
    left, top, right, bottom = geometry.box
    rows = _nearest(top, bottom, geometry.size[0], labels.shape[0])
    columns = _nearest(left, right, geometry.size[1], labels.shape[1])
    part = labels[rows[:, None], columns]
    height, width = part.shape
    if geometry.shift != (0, 0):
        x, y = geometry.shift
        inside = part[max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)]
        part = np.full_like(part, ignore)
        part[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = inside
    warped = np.full((height + geometry.pad[0], width + geometry.pad[1]), ignore, labels.dtype)
    warped[:height, :width] = part
    return np.ascontiguousarray(warped[:, ::-1]) if geometry.flip else warped


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Brings a label map to another (height, width): every pixel has the label of that pixel of the
    given map in which its middle lies.
    """
    rows, columns = (
        _nearest(0, whole, count, whole) for whole, count in zip(labels.shape, size, strict=True)
    )
    return labels[rows[:, None], columns]


def _nearest(first: float, last: float, count: int, whole: int) -> np.ndarray:
    """Returns which of `whole` pixels hold the middles of `count` equal parts of [first, last]."""
    middles = first + (np.arange(count) + 0.5) * ((last - first) / count)
    return np.clip(np.floor(middles).astype(int), 0, whole - 1)


def paint_padding(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Gives the padding of a warped picture its colour again, which colour operations have changed.

    Args:
        image: uint8 [h, w, c]; changed in place.
        geometry: that it was warped by.

    Returns:
        `image`.
    """
    if geometry.pad != (0, 0):
        left, _, right, bottom = geometry.valid_box
        image[bottom:] = geometry.fill
        image[:, :left] = image[:, right:] = geometry.fill
    return image
