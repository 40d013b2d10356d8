"""One class per image: cross entropy with label smoothing, mixup and cutmix; accuracy, top-5."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorflow_datasets as tfds
from flax import nnx
from jaxtyping import Array, Float, UInt8

from lambdanet.data import augment, decode, geometry, sources
from lambdanet.data.record import DataInfo, Record, UnusableRecordError
from lambdanet.ops.images import normalise
from lambdanet.tasks import class_confusions, classification_classes, mixing

METRICS = {"accuracy": "max", "top5": "max", "loss": "min"}
Batch = dict[str, jax.Array]
Terms = dict[str, tuple[jax.Array, jax.Array]]


def read(builder: Any) -> DataInfo:
    """Uses the features 'image' and 'label', or the only ones of their kinds.

    Raises:
        ValueError: none or several candidates; lists all features.
    """
    image = sources.find_feature(builder, "image", tfds.features.Image)
    label = sources.find_feature(builder, "label", tfds.features.ClassLabel)
    names = tuple(builder.info.features[label].names)
    return DataInfo({"image": image, "label": label}, names)


def model_options(info: DataInfo, config: Any) -> dict[str, Any]:
    """Returns the number of classes: that of the data, unless the model's section asks for more.

    Raises:
        ValueError: the model's section has fewer classes than the data.
    """
    known, wanted = len(info.classes), config.model.get("num_classes")
    if wanted is not None and wanted < known:
        raise ValueError(
            f"model.num_classes={wanted}, but the data has {known} classes; leave it out, and it "
            "follows the data (weights of another number: train.init_head='new')"
        )
    return {"num_classes": known if wanted is None else wanted}


def check_data(info: DataInfo, config: Any) -> None:
    """Raises ValueError if there is one class only: nothing can be learnt about it."""
    if len(info.classes) < 2:
        raise ValueError(
            f"the data has one class, {info.classes[0]!r}; training needs two or more: prepare a "
            "folder with a folder for each class"
        )


def weigh_classes(info: DataInfo, config: Any) -> DataInfo:
    """Returns `info` with `class_weights`, see `class_balance`."""
    from lambdanet.tasks import class_balance

    return class_balance.weigh_classes(info, config)


def check_model(model: Any, config: Any) -> None:
    """Raises ValueError for a model with `outputs`, which gives every pixel a class, for one with
    `detect`, which finds objects, and for one that says it `takes_clips`.
    """
    for method, does, task in (
        ("outputs", "classifies pixels", "segmentation"),
        ("detect", "finds objects", "detection"),
        ("takes_clips", "classifies clips", "clips"),
    ):
        if getattr(model, method, False):
            raise ValueError(f"{config.model.name!r} {does}: set task={task!r}")


# --------------------------------------------------------------------------------------------------
# Examples
# --------------------------------------------------------------------------------------------------


def class_of(record: Record, info: DataInfo) -> np.int32:
    """Returns the number of a record's class; raises UnusableRecordError if there is no such."""
    label = int(record.fields["label"])
    if not 0 <= label < len(info.classes):
        raise UnusableRecordError(
            f"{record.name}: label {label} is out of range; allowed: 0 to {len(info.classes) - 1} "
            f"({len(info.classes)} classes)"
        )
    return np.int32(label)


def example(
    record: Record, info: DataInfo, config: Any, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """Returns dict(image uint8 [h, w, c], label int32) of one record, in training with class
    weights also weight float32.

    Args:
        record: with the fields image (a file's bytes, or pixels) and label.
        info: of `read`.
        config: reads the section `data`.
        rng: draws crop, flip and colours; None gives the evaluation crop.

    Raises:
        UnusableRecordError: the label is no class, a mistake in the set-up that is never skipped.
        ValueError, OSError: the image cannot be decoded.
    """
    data, label = config.data, class_of(record, info)
    if rng is None:
        return {"image": evaluation_image(record.fields["image"], data), "label": label}
    image = decode.open_image(record.fields["image"], exif_orientation=data.exif_orientation)
    image = geometry.warp_image(image, geometry.draw(image.size, data, rng), data.channels)
    example = {"image": augment.recolour(image, data, rng), "label": label}
    return example | weight_of(label, info)


def weight_of(label: np.int32, info: DataInfo) -> dict[str, np.float32]:
    """Returns dict(weight float32) of a class in training, {} where all weigh the same."""
    return {"weight": np.float32(info.class_weights[label])} if info.class_weights else {}


def evaluation_image(contents: Any, data: Any) -> UInt8[np.ndarray, "h w c"]:
    """Returns a picture as evaluation and prediction see it, uint8 of data.image_size.

    Args:
        contents: what `decode.open_image` takes.
        data: the config's section.
    """
    picture = decode.open_image(contents, exif_orientation=data.exif_orientation)
    drawn = geometry.centred(picture.size, data)
    return decode.to_array(geometry.warp_image(picture, drawn, data.channels))


def blank(config: Any) -> dict[str, np.ndarray]:
    """Returns a black image of class 0."""
    data = config.data
    image = np.zeros((*data.image_size, data.channels), np.uint8)
    return {"image": image, "label": np.int32(0)}


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def mix(batch: Batch, key: jax.Array, config: Any) -> Batch:
    """Adds each image's partner, its neighbour in the shuffled batch, and one draw for the batch.

    Returns:
        The batch, if mixing is on also with partner_image, partner_label (partner_weight) and
        mixture [b, 5], the same row for every image: see `mixing.draw_mixture`. Images stay uint8;
        `loss` mixes them.
    """
    own = config.classification
    if not (own.mixup_alpha or own.cutmix_alpha):
        return batch
    height, width = batch["image"].shape[-3:-1]
    drawn = mixing.draw_mixture(
        key, height, width, mixup_alpha=own.mixup_alpha, cutmix_alpha=own.cutmix_alpha
    )
    # Taken before the batch is split, so that micro-batches change no pair.
    mixed = [name for name in ("image", "label", "weight") if name in batch]
    partners = {f"partner_{name}": jnp.roll(batch[name], 1, axis=0) for name in mixed}
    mixture = jnp.broadcast_to(drawn, (len(batch["label"]), 5))
    return batch | partners | {"mixture": mixture}


def loss(
    model: nnx.Module, batch: Batch, config: Any, rngs: nnx.Rngs
) -> tuple[Float[Array, ""], Terms]:
    """Mean cross entropy, plus the model's auxiliary terms times their weights.

    With a weight w for each image it is sum(w l) / sum(w), as in PyTorch; of mixed images each of
    the two labels has its own.

    Args:
        model: training view; maps normalised images and `rngs` to logits [b, classes]. With
            `train.auxiliary_losses` it also takes `return_auxiliary=True` and then returns (logits,
            name -> scalar).
        batch: image uint8 [b, h, w, c], or clips [b, t, h, w, c]; label int32 [b], perhaps weight
            float32 [b], and what `mix` added.
        config: reads data.mean, data.std, train.auxiliary_losses and the section `classification`.
        rngs: stream `dropout`.

    Returns:
        (what is minimised, shown): loss, accuracy (against the unmixed label) and, with auxiliary
        losses, cross_entropy and auxiliary_NAME (without its weight), each as (sum, images); of the
        losses with class weights (sum, weights).
    """
    own, data = config.classification, config.data
    image = normalise(batch["image"], data.mean, data.std)
    weights = None
    if "mixture" in batch:
        partner = normalise(batch["partner_image"], data.mean, data.std)
        weights = mixing.mixture_map(batch["mixture"][0], *image.shape[-3:-1])
        image = partner + weights[:, :, None] * (image - partner)
    terms: Mapping[str, jax.Array] = {}
    if config.train.auxiliary_losses:
        logits, terms = model(image, return_auxiliary=True, rngs=rngs)
    else:
        logits = model(image, rngs=rngs)
    logits = logits.astype(jnp.float32)
    target = mixing.soft_targets(batch["label"], logits.shape[-1], own.label_smoothing)
    weight = batch.get("weight")  # of the classes
    if weight is not None:
        target = target * weight[:, None]
    if weights is not None:
        other = mixing.soft_targets(batch["partner_label"], logits.shape[-1], own.label_smoothing)
        share = weights.mean()
        if weight is not None:
            other = other * batch["partner_weight"][:, None]
            weight = batch["partner_weight"] + share * (weight - batch["partner_weight"])
        target = other + share * (target - other)
    images = count = jnp.float32(len(logits))
    value = optax.softmax_cross_entropy(logits, target).mean()
    if weight is not None:
        count = weight.sum()
        value = value * (images / count)
    shown = {"cross_entropy": value} if config.train.auxiliary_losses else {}
    for name, weight in config.train.auxiliary_losses:
        term = shown[f"auxiliary_{name}"] = terms[name].astype(jnp.float32)
        value = value + weight * term
    sums = {name: (mean * count, count) for name, mean in ({"loss": value} | shown).items()}
    right = jnp.sum(logits.argmax(-1) == batch["label"], dtype=jnp.float32)
    return value, sums | {"accuracy": (right, images)}


# --------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------


def score(model: nnx.Module, batch: Batch, config: Any) -> tuple[Batch, Batch]:
    """Counts what is right among the images with mask 1; see `score_logits`.

    Args:
        model: evaluation view.
        batch: image uint8 [b, h, w, c], label int32 [b], mask float32 [b].
        config: reads data.mean and data.std.
    """
    image = normalise(batch["image"], config.data.mean, config.data.std)
    return score_logits(model(image).astype(jnp.float32), batch)


def score_logits(logits: Float[Array, "b classes"], batch: Batch) -> tuple[Batch, Batch]:
    """Counts what is right among the examples with mask 1.

    Ties are settled as in `torch.topk`: of equal logits the first class wins. An example with NaN
    for its class is wrong.

    Args:
        logits: float32.
        batch: label int32 [b], mask float32 [b].

    Returns:
        (sums, rows): loss (cross entropy without smoothing), correct, top5 and count, float32; and
        label, prediction int32 [b] and confidence float32 [b], the softmax of the prediction.
    """
    mask = batch["mask"].astype(jnp.float32)
    # Padding may carry any label; 0 keeps the lookups in range and its mask is 0.
    label = jnp.where(mask > 0, batch["label"], 0)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    valid = ~jnp.isnan(jnp.take_along_axis(logits, label[:, None], axis=-1))
    hits = (best == label[:, None]) & valid
    sums = {
        "loss": jnp.sum(jnp.where(mask > 0, cross_entropy, 0.0)),
        "correct": jnp.sum(hits[:, 0] * mask),
        "top5": jnp.sum(hits.any(axis=-1) * mask),
        "count": jnp.sum(mask),
    }
    confidence = jax.nn.softmax(logits).max(axis=-1)
    return sums, {"label": label, "prediction": best[:, 0], "confidence": confidence}


def finish(
    sums: Mapping[str, float | jax.Array],
    rows: Mapping[str, jax.Array],
    info: DataInfo,
    config: Any,
) -> dict[str, float]:
    """Returns accuracy and top5 in [0, 1] and the mean loss."""
    count = float(sums["count"])
    named = {"accuracy": "correct", "top5": "top5", "loss": "loss"}
    return {name: float(sums[key]) / count for name, key in named.items()}


def all_names(rows: Mapping[str, np.ndarray], info: DataInfo) -> list[str]:
    """Returns a name for each class of the data and of the rows, 'class 7' where the data has
    none.
    """
    highest = max(int(np.max(rows[key], initial=0)) for key in ("label", "prediction"))
    known = len(info.classes)
    return [*info.classes, *(f"class {i}" for i in range(known, highest + 1))]


def class_table(
    sums: Mapping[str, np.ndarray | np.generic],
    rows: Mapping[str, np.ndarray],
    info: DataInfo,
    config: Any,
) -> tuple[tuple[str, ...], list[tuple[str, ...]], str]:
    """Returns (columns, rows, remark) of the results by class; see `classification_classes`."""
    names = all_names(rows, info)
    labels, predictions = (np.asarray(rows[key], np.int64) for key in ("label", "prediction"))
    found = classification_classes.class_metrics(labels, predictions, len(names))
    return classification_classes.table(found, names)


def confusions(
    sums: Mapping[str, np.ndarray | np.generic],
    rows: Mapping[str, np.ndarray],
    info: DataInfo,
    config: Any,
) -> class_confusions.Table:
    """Returns (columns, rows) of the most frequent confusions; see `class_confusions.table`."""
    pairs = np.stack([np.asarray(rows[key], np.int64) for key in ("label", "prediction")])
    (true, predicted), counts = np.unique(pairs, axis=1, return_counts=True)
    names = all_names(rows, info)
    return class_confusions.table(true, predicted, counts, names, counted="images")


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
    """Draws the confusion matrix and sample predictions; see `classification_panels`."""
    from lambdanet.tasks import classification_panels  # imports matplotlib

    found = sums, rows, info, config
    tables = dict(table=class_table(*found), confusions=confusions(*found))
    names = all_names(rows, info)
    return classification_panels.panels(
        side, below, rows=rows, examples=examples, names=names, config=config, **tables
    )


def predictions() -> ModuleType:
    """Returns what predicts for single images; see `classification_predictions`."""
    from lambdanet.tasks import classification_predictions

    return classification_predictions
