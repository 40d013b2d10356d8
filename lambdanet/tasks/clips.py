"""One class per clip: what `classification` does for an image, with frames that are cut out of a
longer clip, and views of it whose probabilities are averaged.

Label smoothing, mixup and cutmix are those of the section `classification`; a mixed clip has the
same map in all its frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from flax import nnx
from jaxtyping import Array, Float, UInt8

from lambdanet.data import augment, cutting, decode, geometry, sources
from lambdanet.data.record import DataInfo, Record
from lambdanet.ops.images import normalise
from lambdanet.tasks import classification
from lambdanet.tasks.classification import METRICS, Batch, Terms, confusions

__all__ = ["METRICS", "confusions"]


def read(builder: Any) -> DataInfo:
    """Uses the features 'frames' and 'label', or the only ones of their kinds.

    Raises:
        ValueError: none or several candidates; lists all features.
    """
    frames = sources.find_frames(builder)
    label = sources.find_feature(builder, "label", tfds.features.ClassLabel)
    return DataInfo({"frames": frames, "label": label}, tuple(builder.info.features[label].names))


def check_data(info: DataInfo, config: Any) -> None:
    """Raises ValueError if there is one class only."""
    classification.check_data(info, config)


def weigh_classes(info: DataInfo, config: Any) -> DataInfo:
    """Returns `info` with `class_weights`, as in classification."""
    return classification.weigh_classes(info, config)


def model_options(info: DataInfo, config: Any) -> dict[str, Any]:
    """Returns the number of classes, as in classification."""
    return classification.model_options(info, config)


def input_shape(config: Any) -> tuple[int, int, int, int]:
    """Returns frames, height, width and channels of a clip."""
    return (config.clips.frames, *config.data.image_size, config.data.channels)


def check_model(model: Any, config: Any) -> None:
    """Raises ValueError unless the model says that it `takes_clips`."""
    if not getattr(model, "takes_clips", False):
        raise ValueError(
            f"{config.model.name!r} takes no clips: take a model of models/video, or set task to "
            "what it does"
        )


# --------------------------------------------------------------------------------------------------
# Examples
# --------------------------------------------------------------------------------------------------


def example(
    record: Record, info: DataInfo, config: Any, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """Returns dict(image, label int32) of one record: a clip uint8 [t, h, w, c] with `rng`, views
    of it uint8 [views, t, h, w, c] without.

    Args:
        record: with the fields frames (files' bytes, or pixels) and label.
        info: of `read`.
        config: reads the sections `data` and `clips`.
        rng: draws the frames, and crop, flip and colours that all of them have; None gives the
            views of evaluation: every crop of the first clip, then of the next.

    Raises:
        UnusableRecordError: the label is no class, a mistake in the set-up that is never skipped.
        ValueError: the clip is too short, its frames have several sizes, or cannot be decoded.
    """
    data, own, label = config.data, config.clips, classification.class_of(record, info)
    frames = record.fields["frames"]
    if rng is None:
        return {"image": evaluation_views(frames, config), "label": label}
    numbers = cutting.draw_numbers(len(frames), own, rng)
    images = cutting.cut(frames, numbers, lambda size: geometry.draw(size, data, rng), data)
    seed = int(rng.integers(2**63))  # the same colours for every frame
    clip = [augment.recolour(image, data, np.random.default_rng(seed)) for image in images]
    return {"image": np.stack(clip), "label": label} | classification.weight_of(label, info)


def evaluation_views(frames: cutting.Frames, config: Any) -> UInt8[np.ndarray, "views t h w c"]:
    """Returns a stored clip as evaluation and prediction see it: every crop of the first clip that
    is cut out of it, then of the next.

    Args:
        frames: what `decode.open_image` takes of each.
        config: reads the sections `data` and `clips`.

    Raises:
        ValueError: as `example`.
    """
    data, own = config.data, config.clips
    views = [
        np.stack([decode.to_array(image) for image in _crop(frames, numbers, data, own, crop)])
        for numbers in cutting.view_numbers(len(frames), own)
        for crop in range(own.eval_crops)
    ]
    return np.stack(views)


def _crop(frames: cutting.Frames, numbers: np.ndarray, data: Any, own: Any, crop: int) -> list:
    return cutting.cut(
        frames,
        numbers,
        lambda size: cutting.view_geometries(size, data, own.eval_crops)[crop],
        data,
    )


def blank(config: Any) -> dict[str, np.ndarray]:
    """Returns black views of class 0."""
    views = config.clips.eval_clips * config.clips.eval_crops
    return {"image": np.zeros((views, *input_shape(config)), np.uint8), "label": np.int32(0)}


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def mix(batch: Batch, key: jax.Array, config: Any) -> Batch:
    """Mixes clips as classification mixes images."""
    return classification.mix(batch, key, config)


def loss(
    model: nnx.Module, batch: Batch, config: Any, rngs: nnx.Rngs
) -> tuple[Float[Array, ""], Terms]:
    """The loss of classification, of clips uint8 [b, t, h, w, c]."""
    return classification.loss(model, batch, config, rngs)


# --------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------


def log_probabilities(
    model: nnx.Module, views: UInt8[Array, "b views t h w c"], config: Any
) -> Float[Array, "b classes"]:
    """Returns the logarithm of the mean probability over views, of which one at a time is computed.

    Args:
        model: evaluation view.
        views: as stored.
        config: reads data.mean and data.std.
    """

    def one(view: jax.Array) -> jax.Array:
        logits = model(normalise(view, config.data.mean, config.data.std))
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    count = views.shape[1]
    if count == 1:
        return one(views[:, 0])
    each = jax.lax.map(one, jnp.moveaxis(views, 1, 0))
    return jax.nn.logsumexp(each, axis=0) - jnp.log(jnp.float32(count))


def score(model: nnx.Module, batch: Batch, config: Any) -> tuple[Batch, Batch]:
    """Counts what is right among the clips with mask 1, by the mean probability of their views; see
    `classification.score_logits`.

    Args:
        model: evaluation view.
        batch: image uint8 [b, views, t, h, w, c], label int32 [b], mask float32 [b].
        config: reads data.mean and data.std.
    """
    return classification.score_logits(log_probabilities(model, batch["image"], config), batch)


def finish(
    sums: Mapping[str, float | jax.Array],
    rows: Mapping[str, jax.Array],
    info: DataInfo,
    config: Any,
) -> dict[str, float]:
    """Returns accuracy and top5 in [0, 1] and the mean loss."""
    return classification.finish(sums, rows, info, config)


def class_table(
    sums: Mapping[str, np.ndarray | np.generic],
    rows: Mapping[str, np.ndarray],
    info: DataInfo,
    config: Any,
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Returns (columns, rows, remark) of the results by class, as in classification."""
    return classification.class_table(sums, rows, info, config)


def panels(
    side: Any,
    below: Any,
    *,
    sums: Mapping[str, np.ndarray | np.generic],
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, np.ndarray],
    info: DataInfo,
    config: Any,
) -> list[str]:
    """Draws the panels of classification, four frames of the first view for each clip."""
    shown = {**examples, "image": np.stack([four_frames(views[0]) for views in examples["image"]])}
    found = dict(sums=sums, rows=rows, examples=shown, info=info, config=config)
    return classification.panels(side, below, **found)


def four_frames(clip: UInt8[np.ndarray, "t h w c"]) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Returns four frames of a clip from its first to its last, in reading order, as one image."""
    first, second, third, last = clip[np.linspace(0, len(clip) - 1, 4).round().astype(int)]
    upper, lower = np.concatenate([first, second], 1), np.concatenate([third, last], 1)
    return np.concatenate([upper, lower], 0)


def predictions() -> ModuleType:
    """Returns what predicts for single clips; see `clips_predictions`."""
    from lambdanet.tasks import clips_predictions

    return clips_predictions
