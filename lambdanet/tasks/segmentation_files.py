"""Predictions of segmentation: label maps of pictures, their shares of classes, index PNGs,
overlays, a legend. What the functions are for: `lambdanet.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8
from PIL import Image

from lambdanet.atomic import write_file
from lambdanet.data import decode, geometry, preprocessing
from lambdanet.drawing import label_colours
from lambdanet.ops.images import normalise
from lambdanet.ops.upsampled_pixels import pixel_scores
from lambdanet.tasks import segmentation
from lambdanet.tasks.segmentation_classes import all_names as class_names

__all__ = ["class_names"]
INPUTS = ("image",)
ITEMS, COLUMNS = "classes", ("class", "number", "share")
READS, OPTIONS = "picture", ()
MOST_NAMED = 5  # classes that a line of the table names


def example(contents: Any, config: Any) -> dict[str, np.ndarray]:
    """Returns the picture in the canvas of evaluation, image; (height, width) of its part of the
    canvas, image_shape; and of the picture, original_shape.
    """
    picture = decode.open_image(contents, exif_orientation=config.data.exif_orientation)
    image, drawn = segmentation.evaluation_picture(picture, config)
    shapes = {"image_shape": drawn.size, "original_shape": picture.size[::-1]}
    return {"image": image} | {name: np.array(shape, np.int32) for name, shape in shapes.items()}


def describe_preprocessing(config: Any) -> dict[str, Any]:
    """Returns how `example` prepares a picture; see `preprocessing.describe`."""
    return preprocessing.describe(segmentation.evaluation_data(config), fit="pad")


def answer(model: nnx.Module, batch: Mapping[str, jax.Array], config: Any) -> dict[str, jax.Array]:
    """Returns the class of every pixel of the canvas, labels uint8 [b, h, w], as evaluation finds
    it.
    """
    images = normalise(batch["image"], config.data.mean, config.data.std)
    logits, align_corners = segmentation.scores(model, images, config)
    nothing = jnp.zeros(images.shape[:3], jnp.int32)
    labels = pixel_scores(logits, nothing, align_corners=align_corners)[1]
    return {"labels": labels.astype(jnp.uint8)}


def values(
    found: Mapping[str, np.ndarray],
    example: Mapping[str, np.ndarray],
    names: Sequence[str],
    config: Any,
    top: int,
) -> dict[str, Any]:
    """Returns `width` and `height` of the picture; `classes`, a list of {class, number, share of
    the pixels} of those that it has, the largest first; and `labels`, uint8 [height, width]: every
    pixel has the class of the pixel of the canvas that its middle lies in.
    """
    height, width = map(int, example["original_shape"])
    part = found["labels"][: example["image_shape"][0], : example["image_shape"][1]]
    labels = geometry.resize_labels(part, (height, width))
    counts = np.bincount(labels.ravel(), minlength=len(names))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    shares = [
        {"class": names[i], "number": i, "share": float(counts[i] / labels.size)} for i in order
    ]
    return {"width": width, "height": height, "classes": shares, "labels": labels}


def summary(values: Mapping[str, Any]) -> str:
    """Returns the largest classes for a line of the table."""
    shown = [f"{one['class']} {100 * one['share']:.1f} %" for one in values["classes"]]
    return ", ".join(shown[:MOST_NAMED] + ["..."] * (len(shown) > MOST_NAMED))


def drawings(
    contents: Any, values: Mapping[str, Any], names: Sequence[str], config: Any
) -> dict[str, Image.Image]:
    """Returns the label map as a palette image, whose values are the classes, as 'labels'; and the
    picture under their colours except where the class is 0, as 'overlay'.
    """
    labels = values["labels"]
    mixed = label_colours.overlay(whole_picture(contents, config.data), labels)
    return {"labels": label_colours.index_image(labels), "overlay": Image.fromarray(mixed)}


class Legend:
    """The file legend.png beside the label maps.

    Args:
        names: of the classes.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names

    def add(self, file: str, values: Mapping[str, Any]) -> None:
        """Takes notice of a picture: all have the same legend."""

    def write(self, folder: Path) -> list[str]:
        """Writes the legend; there is nothing to say about it."""
        save_png(folder / "legend.png", label_colours.legend(self.names))
        return []


def collector(names: Sequence[str], info: Any) -> Legend:
    """Returns what writes one file about all pictures."""
    return Legend(names)


def whole_picture(contents: Any, data: Any) -> UInt8[np.ndarray, "h w c"]:
    """Returns all pixels of a picture, upright.

    Args:
        contents: what `decode.open_image` takes.
        data: the config's section; reads channels and exif_orientation.
    """
    picture = decode.open_image(contents, exif_orientation=data.exif_orientation)
    options = dict(channels=data.channels, interpolation="bilinear", size=picture.size[::-1])
    return decode.to_array(decode.crop_and_resize(picture, (0, 0, *picture.size), **options))


def both_sizes(
    contents: bytes | UInt8[np.ndarray, "h w c"], data: Any
) -> tuple[UInt8[np.ndarray, "h w c"], UInt8[np.ndarray, "sh sw c"]]:
    """Returns the picture of a file's bytes, or of pixels, in full, and at the size at which a
    video is segmented: its own, or with data.scale_base that where its short side is that.
    """
    full = whole_picture(contents, data)
    if not data.scale_base:
        return full, full
    picture = decode.open_image(contents, exif_orientation=data.exif_orientation)
    width, height = geometry.scaled_size(picture.size, data.scale_base / min(picture.size))
    options = dict(channels=data.channels, interpolation="bilinear", size=(height, width))
    scaled = decode.crop_and_resize(picture, (0, 0, *picture.size), **options)
    return full, decode.to_array(scaled)


def save_png(path: Path, image: Image.Image) -> None:
    """Writes a picture, complete or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: image.save(temporary, format="png"))
