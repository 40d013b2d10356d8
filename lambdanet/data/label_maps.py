"""Semantic label maps: one class number per pixel, out of the files that hold them.

A label map is stored as an index picture: the value of a pixel is its class. That is a grey
picture, or one with a palette, whose colours are only for the eye. A colour picture is none, unless
its channels are equal.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lambdanet.data import decode
from lambdanet.data.geometry import IGNORE
from lambdanet.data.record import CorruptRecordError

FORMATS = ("PNG", "BMP", "GIF", "TIFF", "WEBP")
"""Formats that give every value back; JPEG does not."""
MAX_CLASSES = IGNORE
"""A label map has 0 to 254, and 255 for 'ignore'."""
FEATURES = ("segmentation_mask", "segmentation_label", "mask", "annotation", "label_map", "labels")
"""Names that TFDS sets give to their label maps, the most likely first."""


def find_mask(builder: Any, image: str) -> tuple[str, tuple[str, ...]]:
    """Returns the feature that holds label maps, and its classes' names.

    Args:
        builder: of an opened data set.
        image: the feature that holds the pictures.

    Returns:
        The first of `FEATURES` that is an image, else the only labelled image, else the only image
        besides the picture; and the names, () if the set has none.

    Raises:
        ValueError: none or several candidates; lists all features.
    """
    features = builder.info.features
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image) and k != image]
    labelled = [k for k in images if isinstance(features[k], tfds.features.LabeledImage)]
    named = [key for key in FEATURES if key in images]
    found = named[:1] or (labelled if len(labelled) == 1 else images)
    if len(found) != 1:
        listed = ", ".join(f"{key}: {type(f).__name__}" for key, f in sorted(features.items()))
        raise ValueError(
            f"{builder.data_dir} needs an image feature {FEATURES[0]!r} that holds label maps, or "
            f"exactly one image beside {image!r}; it has {listed}"
        )
    return found[0], tuple(getattr(features[found[0]], "names", None) or ())


def find_mask_sequence(builder: Any, frames: str) -> tuple[str, tuple[str, ...]]:
    """Returns the feature that holds a label map for every frame, and its classes' names.

    Args:
        builder: of an opened data set.
        frames: the feature that holds the frames.

    Returns:
        The first of `FEATURES` that is a sequence of images, else the only sequence of labelled
        images; and the names, () if the set has none.

    Raises:
        ValueError: none or several candidates; lists all features.
    """
    features = builder.info.features
    held = {
        key: feature.feature
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Sequence)
        and isinstance(feature.feature, tfds.features.Image)
        and key != frames
    }
    labelled = [k for k, f in held.items() if isinstance(f, tfds.features.LabeledImage)]
    found = [key for key in FEATURES if key in held][:1] or labelled
    if len(found) != 1:
        listed = ", ".join(f"{key}: {type(f).__name__}" for key, f in sorted(features.items()))
        raise ValueError(
            f"{builder.data_dir} needs a feature {FEATURES[0]!r} that holds a label map for every "
            f"frame, a Sequence of LabeledImage, or exactly one of that type; it has {listed}; "
            "`python -m lambdanet.data.prepare frames FRAMES SET --masks MASKS` makes such a set"
        )
    return found[0], tuple(getattr(held[found[0]], "names", None) or ())


def read_indices(value: bytes | np.ndarray) -> np.ndarray:
    """Returns the values of an index picture, as they are stored.

    Args:
        value: bytes of a file in one of `FORMATS`, or decoded pixels [h, w] or [h, w, c].

    Returns:
        int32 [h, w]. Grey samples of 1, 2 and 4 bits are their numbers, not what Pillow spreads
        them to.

    Raises:
        ValueError: a colour picture, one with transparency, a format that does not keep values,
            or too large.
        OSError: damaged.
    """
    if isinstance(value, np.ndarray):
        pixels = value
    else:
        image = _open(value)
        scale = {"L;2": 85, "L;4": 17}.get(image.tile[0].args if image.tile else "", 1)
        pixels = np.asarray(image) // scale if scale > 1 else np.asarray(image)
    if pixels.ndim == 3:
        if pixels.shape[2] in (2, 4) and (pixels[..., -1] != 255).any():
            raise ValueError("a label map with transparent pixels; remove the alpha channel")
        colours = pixels[..., :1] if pixels.shape[2] == 2 else pixels[..., :3]
        if (colours != colours[..., :1]).any():
            raise ValueError(
                "a colour picture where a label map is expected, whose values are class numbers; "
                "`python -m lambdanet.data.prepare segmentation --colours` translates colours"
            )
        pixels = colours[..., 0]
    if not (np.issubdtype(pixels.dtype, np.integer) or pixels.dtype == bool):
        raise ValueError(f"a label map of {pixels.dtype} values; allowed: whole numbers")
    return pixels.astype(np.int32)


def read_colours(value: bytes) -> np.ndarray:
    """Returns the colours of a colour-coded mask, uint8 [h, w, 3]; raises as `read_indices`."""
    return np.asarray(_open(value).convert("RGB"))


def _open(value: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(value))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    if reason := decode.why_too_large(image.width * image.height):
        raise ValueError(reason)
    if image.format not in FORMATS:
        raise ValueError(
            f"a label map in format {image.format}, which changes values; allowed: "
            f"{', '.join(FORMATS)}"
        )
    return image


def translate(
    stored: np.ndarray, num_classes: int, *, ignore: int = IGNORE, reduce_zero_label: bool = False
) -> np.ndarray:
    """Returns labels of which IGNORE, and nothing else, counts nowhere.

    Args:
        stored: int32 [h, w], as in the file.
        num_classes: how many there are, at most MAX_CLASSES.
        ignore: the stored value that means it.
        reduce_zero_label: also 0 means it, and class c is stored as c + 1 (ADE20K).

    Returns:
        int32 [h, w]: 0 to num_classes - 1, or IGNORE.

    Raises:
        ValueError: another label; names it and its place.
    """
    first = int(reduce_zero_label)
    ignored = (stored == ignore) | (reduce_zero_label & (stored == 0))
    wrong = ((stored < first) | (stored >= num_classes + first)) & ~ignored
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        others = f", and {wrong.sum() - 1} such pixels more" if wrong.sum() > 1 else ""
        shifted = (
            not reduce_zero_label and stored[wrong].max() == stored[wrong].min() == num_classes
        )
        hint = "; where 0 is no class, ask for reduce_zero_label" if shifted else ""
        raise ValueError(
            f"label {stored[row, column]} at row {row}, column {column}{others}; allowed: {first} "
            f"to {num_classes - 1 + first} ({num_classes} classes) and {ignore} (ignore){hint}"
        )
    return np.where(ignored, np.int32(IGNORE), stored - first)


def read_label_map(
    value: bytes | np.ndarray,
    num_classes: int,
    *,
    ignore: int = IGNORE,
    reduce_zero_label: bool = False,
    name: str,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Returns the label map of a record.

    Args:
        value: the field: a file's bytes, or pixels [h, w] or [h, w, 1].
        num_classes: how many there are, at most MAX_CLASSES.
        ignore: the stored value that counts nowhere.
        reduce_zero_label: 0 counts nowhere either, and class c is stored as c + 1 (ADE20K).
        name: of the record, for messages; it says which file.
        size: (width, height) of the picture, upright, that the map must have; None: any.

    Returns:
        int32 [h, w]: 0 to num_classes - 1, or IGNORE.

    Raises:
        CorruptRecordError: a label beyond the classes, another size than the picture's, a colour
            picture or a lossy one, damaged bytes.
    """
    try:
        stored = read_indices(value)
        check_size(stored, size)
        return translate(stored, num_classes, ignore=ignore, reduce_zero_label=reduce_zero_label)
    except ValueError as error:
        raise CorruptRecordError(f"{name}: {error}") from error
    except Exception as error:  # damaged files raise many types
        kind = type(error).__name__
        raise CorruptRecordError(
            f"{name}: cannot decode the label map ({kind}: {error})"
        ) from error


def check_size(labels: np.ndarray, size: tuple[int, int] | None) -> None:
    """Raises ValueError unless labels [h, w, ...] have the (width, height) of their picture, if it
    is given.
    """
    height, width = labels.shape[:2]
    if size is not None and (width, height) != tuple(size):
        turned = (height, width) == tuple(size)
        hint = " (the camera's orientation counts: give the mask of the upright picture)"
        raise ValueError(
            f"the label map has {width} x {height} pixels, its picture {size[0]} x {size[1]}"
            f"{hint if turned else ''}"
        )
