"""Predictions for clips: their most probable classes, by the mean over the views of evaluation.
What the functions are for: `lambdanet.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from lambdanet.data import decode, preprocessing
from lambdanet.tasks import clips
from lambdanet.tasks.classification_predictions import (
    COLUMNS,
    INPUTS,
    ITEMS,
    class_names,
    draw,
    shown_size,
    summary,
    values,
)

__all__ = ["COLUMNS", "INPUTS", "ITEMS", "class_names", "summary", "values"]
READS, OPTIONS = "clip", ("top", "fps")


def example(contents: Any, config: Any) -> dict[str, np.ndarray]:
    """Returns the views of evaluation, [views, t, h, w, c]."""
    return {"image": clips.evaluation_views(contents, config)}


def describe_preprocessing(config: Any) -> dict[str, Any]:
    """Returns how `example` prepares a clip: each frame as in classification, and which frames."""
    own, names = config.clips, ("frames", "frame_stride", "short", "eval_clips", "eval_crops")
    numbers = {name: getattr(own, name) for name in names}
    return preprocessing.describe(config.data, fit="crop") | {"clips": numbers}


def answer(model: nnx.Module, batch: Mapping[str, jax.Array], config: Any) -> dict[str, jax.Array]:
    """Returns the logarithm of the mean probability over the views, float32 [b, classes]."""
    return {"logits": clips.log_probabilities(model, batch["image"], config)}


def drawings(
    contents: Any, values: Mapping[str, Any], names: Sequence[str], config: Any
) -> dict[str, Image.Image]:
    """Returns four frames of the clip above its most probable classes, as 'classes'."""
    found = []
    for number in np.linspace(0, len(contents) - 1, 4).round().astype(int):
        options = dict(exif_orientation=config.data.exif_orientation)
        picture = decode.open_image(contents[number], **options)
        frame = decode.crop_and_resize(
            picture, (0, 0, *picture.size), size=shown_size(picture.size)[::-1],
            channels=config.data.channels, interpolation="bilinear",
        )  # fmt: skip
        found.append(decode.to_array(frame))
    shown = clips.four_frames(np.stack(found))
    picture = Image.fromarray(shown[..., 0] if shown.shape[2] == 1 else shown)
    return {"classes": draw(picture, values["classes"])}
