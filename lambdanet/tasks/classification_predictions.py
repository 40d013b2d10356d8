"""Predictions of classification: the most probable classes of a picture or a clip, as plain values
and drawn. What the functions are for: `lambdanet.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from PIL import Image, ImageDraw

from lambdanet.data import decode, geometry, preprocessing
from lambdanet.data.record import DataInfo
from lambdanet.drawing.names import characters, drawable, font, visible
from lambdanet.ops.images import normalise
from lambdanet.tasks import classification

INPUTS = ("image",)
ITEMS, COLUMNS = "classes", ("class", "number", "probability")
READS, OPTIONS = "picture", ("top",)
SHORTEST, LONGEST = 320, 640  # pixels of the longer side of a picture that is drawn
LINE, MARGIN, SIZE = 24, 6, 14  # pixels below it, SIZE of the letters
BAR, INK = (198, 219, 239), (20, 20, 20)


def class_names(info: DataInfo, config: Any, count: int) -> list[str]:
    """Returns a name for each of `count` classes, 'class 7' where the data has none."""
    return info.names(count)


def example(contents: Any, config: Any) -> dict[str, np.ndarray]:
    """Returns the picture as evaluation sees it."""
    return {"image": classification.evaluation_image(contents, config.data)}


def describe_preprocessing(config: Any) -> dict[str, Any]:
    """Returns how `example` prepares a picture; see `preprocessing.describe`."""
    return preprocessing.describe(config.data, fit="crop")


def answer(model: nnx.Module, batch: Mapping[str, jax.Array], config: Any) -> dict[str, jax.Array]:
    """Returns logits float32 [b, classes]."""
    images = normalise(batch["image"], config.data.mean, config.data.std)
    return {"logits": model(images).astype(jnp.float32)}


def values(
    found: Mapping[str, np.ndarray],
    example: Mapping[str, np.ndarray],
    names: Sequence[str],
    config: Any,
    top: int,
) -> dict[str, Any]:
    """Returns the most probable classes, the best first, of equal ones the first: `classes`, a list
    of {class, number, probability}; and `probabilities`, float64 [all classes].
    """
    probabilities = softmax(found["logits"])
    order = np.argsort(-probabilities, kind="stable")[:top]
    best = [
        {"class": names[i], "number": int(i), "probability": float(probabilities[i])} for i in order
    ]
    return {"classes": best, "probabilities": probabilities}


def softmax(logits: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Returns exp(l_i) / sum_j exp(l_j) in float64: what is written to files does not depend on the
    device's rounding of it.
    """
    shifted = np.exp(logits.astype(np.float64) - np.max(logits))
    return shifted / shifted.sum()


def summary(values: Mapping[str, Any]) -> str:
    """Returns the classes for a line of the table."""
    return ", ".join(_label(one) for one in values["classes"])


def drawings(
    contents: Any, values: Mapping[str, Any], names: Sequence[str], config: Any
) -> dict[str, Image.Image]:
    """Returns the picture above its most probable classes, as 'classes'."""
    picture = decode.open_image(contents, exif_orientation=config.data.exif_orientation)
    size = shown_size(picture.size)
    options = dict(channels=config.data.channels, interpolation="bilinear")
    whole = (0, 0, *picture.size)
    shrunk = tuple(map(min, size, picture.size))  # small ones are enlarged without smoothing
    shown = decode.crop_and_resize(picture, whole, size=shrunk[::-1], **options)
    return {"classes": draw(shown.resize(size, Image.Resampling.NEAREST), values["classes"])}


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (width, height) at which a picture is drawn: large ones smaller, small ones
    enlarged by a whole factor.
    """
    longer = max(size)
    if longer > LONGEST:
        return geometry.scaled_size(size, LONGEST / longer)
    factor = max(1, SHORTEST // longer)
    return size[0] * factor, size[1] * factor


def draw(picture: Image.Image, classes: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Returns a picture with one line below it for each class: its name, its probability, and a bar
    of that length.
    """
    width = max(picture.width, SHORTEST)
    height = picture.height + LINE * len(classes) + 2 * MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    pen, letters, room = ImageDraw.Draw(canvas), font(SIZE), width - 2 * MARGIN
    for line, one in enumerate(classes):
        top = picture.height + MARGIN + LINE * line
        last = MARGIN + max(round(room * one["probability"]), 1) - 1
        pen.rectangle((MARGIN, top + 2, last, top + LINE - 3), fill=BAR)
        share = f"{100 * one['probability']:.1f} %"
        left = width - MARGIN - letters.getlength(share)
        name = shown_name(one["class"], one["number"])
        name = drawable(name, left - 3 * MARGIN, SIZE)
        pen.text((2 * MARGIN, top + 3), name, fill=INK, font=letters)
        pen.text((left, top + 3), share, fill=INK, font=letters)
    return canvas


def shown_name(name: str, number: int) -> str:
    """Returns a class's name on one line, or '#' and its number where the font lacks a letter."""
    text = visible(name)
    return text if all(ord(letter) in characters() for letter in text) else f"#{number}"


def _label(one: Mapping[str, Any]) -> str:
    return f"{one['class']} {100 * one['probability']:.1f} %"
