"""What configuration keys must be together, and on the disk: tables behind
`lambdanet.config.validate`.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from lambdanet import tasks
from lambdanet.config_values import exists, is_free
from lambdanet.data import sources

Condition = tuple[tuple[str, ...], Callable[[ConfigDict], bool], str]

BOXES = ("detection", "video_detection")
"""Tasks of objects."""
_BOTH = " and ".join(map(repr, BOXES))
_SOURCE = "--config.train.init_weights=SOURCE (a file, the workdir of a run, hf:OWNER/NAME{public})"


def best_metrics(task: str) -> tuple[str, ...]:
    """Returns the values that `train.keep_best` may have: the task's metrics, of the live and of
    the averaged weights, and '' for none.
    """
    metrics = tasks.get(task).METRICS
    return (*metrics, *(f"ema_{name}" for name in metrics), "")


def _is_unmeasured(config: ConfigDict) -> bool:
    name = config.train.keep_best.removeprefix("ema_")
    return name in tasks.get(config.task).METRICS and name not in tasks.metrics(config)


def _unread(key: str, default: float | bool, reads: Callable[[str], bool], why: str) -> Condition:
    """Returns the condition that an augmentation key is at its default where nothing reads it.

    Args:
        key: of the section data.
        default: of configs/base.py.
        reads: whether a task reads it.
        why: nothing does, and what to set in its place.
    """
    return (
        ("task", f"data.{key}"),
        lambda c: reads(c.task) or c.data[key] == default,
        f"{key} is not read by this task: {why}; set it to {default}",
    )


CROPPED = ("classification", "clips")
"""Tasks whose evaluation crops pictures; the others see whole ones, fitted into a canvas."""
_WHOLE = "it evaluates whole pictures, their aspect kept, fitted into data.image_size"

# Conditions over several keys: (keys, predicate of the config, what must hold); tried when none of
# the keys failed.
CROSS_CHECKS: tuple[Condition, ...] = (
    (
        ("train.batch_size", "train.accumulate"),
        lambda c: c.train.batch_size % c.train.accumulate == 0,
        "batch_size must be a multiple of accumulate",
    ),
    (
        ("train.min_steps", "train.max_steps"),
        lambda c: not c.train.max_steps or c.train.min_steps <= c.train.max_steps,
        "min_steps must be at most max_steps; 0 = no bound",
    ),
    (
        ("data.mean", "data.channels"),
        lambda c: len(c.data.mean) in (1, c.data.channels),
        "mean must have one value, or one per channel",
    ),
    (
        ("data.std", "data.channels"),
        lambda c: len(c.data.std) in (1, c.data.channels),
        "std must have one value, or one per channel",
    ),
    (
        ("data.source", "data.channels"),
        lambda c: c.data.source != "cued_digits" or c.data.channels == 3,
        "source 'cued_digits' needs 3 channels: the colours are the task",
    ),
    (
        ("task", "data.rand_augment"),
        lambda c: c.task in ("classification", "clips") or c.data.rand_augment[0] == 0,
        "RandAugment moves pixels, which their labels would not follow: only 'classification' and "
        "'clips' have it; set it to (0, 0.0)",
    ),
    (
        ("task", "data.cat_max_ratio"),
        lambda c: c.task not in BOXES or c.data.cat_max_ratio == 1,
        f"cat_max_ratio counts the labels of pixels, which {_BOTH} have not; set it to 1.0",
    ),
    (
        ("task", "data.crop"),
        lambda c: c.task not in BOXES or c.data.crop in ("none", "scale_crop"),
        f"{_BOTH} have the crops 'none' (the whole picture, its aspect kept) and 'scale_crop'",
    ),
    _unread(
        "scale_base",
        0,
        lambda task: task not in BOXES,
        "the factor of crop 'scale_crop' is relative to the picture fitted into data.image_size",
    ),
    _unread("eval_crop", 1.0, CROPPED.__contains__, _WHOLE),
    _unread("eval_keep_aspect", True, CROPPED.__contains__, _WHOLE),
    _unread("eval_resize_first", False, CROPPED.__contains__, _WHOLE),
    (
        ("data.cat_max_ratio", "data.crop"),
        lambda c: c.data.cat_max_ratio == 1 or c.data.crop == "scale_crop",
        "cat_max_ratio chooses windows of crop 'scale_crop'",
    ),
    (
        ("optim.schedule", "optim.step_epochs"),
        lambda c: c.optim.schedule != "step" or len(c.optim.step_epochs) > 0,
        "schedule 'step' needs at least one epoch in step_epochs",
    ),
    (
        ("optim.schedule", "optim.cooldown_epochs"),
        lambda c: c.optim.cooldown_epochs == 0 or c.optim.schedule in ("cosine", "poly"),
        "only the schedules 'cosine' and 'poly' have a last value to cool down at",
    ),
    (
        ("data.crop", "data.shift", "data.image_size"),
        lambda c: c.data.crop != "shift" or 1 <= c.data.shift < min(c.data.image_size),
        "crop 'shift' needs a shift of at least 1 and smaller than the image",
    ),
    (
        ("train.keep_best", "task"),
        lambda c: c.train.keep_best in best_metrics(c.task),
        "keep_best must be a metric of the task, 'ema_' and one (of the averaged weights), or ''; "
        + "; ".join(f"metrics of '{n}': {', '.join(t.METRICS)}" for n, t in tasks.TASKS.items()),
    ),
    (
        ("train.keep_best", "task", "detection.masks", "detection.metric"),
        lambda c: c.task not in BOXES or not _is_unmeasured(c),
        "metrics of masks need detection.masks=True, 'voc_ap50' needs detection.metric='voc'",
    ),
    (
        ("task", "detection.masks"),
        lambda c: c.task != "video_detection" or not c.detection.masks,
        "objects of videos have no masks: set masks=False",
    ),
    (
        ("train.keep_best", "train.ema_decay"),
        lambda c: not c.train.keep_best.startswith("ema_") or c.train.ema_decay > 0,
        "a metric of the averaged weights needs ema_decay > 0",
    ),
    (
        ("train.keep_best", "data.eval_split"),
        lambda c: not c.train.keep_best or bool(c.data.eval_split),
        "the best checkpoint is chosen on eval_split: name one, or set keep_best to ''",
    ),
    (
        ("segmentation.slide_stride", "segmentation.slide_crop", "data.image_size"),
        lambda c: all(
            step <= side
            for step, side in zip(
                c.segmentation.slide_stride,
                c.segmentation.slide_crop or c.data.image_size,
                strict=False,
            )
        ),
        "a slide_stride beyond the windows leaves gaps between them; slide_crop = () is image_size",
    ),
    (
        ("clips.jitter", "clips.frame_stride"),
        lambda c: 2 * c.clips.jitter <= c.clips.frame_stride,
        "a jitter beyond half of frame_stride would turn the order of frames round",
    ),
    (
        ("propagation.others", "propagation.max_distance"),
        lambda c: c.propagation.others <= 2 * c.propagation.max_distance + 1,
        "more others than offsets of up to max_distance on both sides, which must differ",
    ),
    (
        ("task", *("segmentation.inference", "segmentation.eval_scales", "segmentation.eval_flip")),
        lambda c: (
            c.task != "video_segmentation"
            or (c.segmentation.inference, tuple(c.segmentation.eval_scales)) == ("whole", (1.0,))
            and not c.segmentation.eval_flip
        ),
        "features are carried between whole frames of one size: set inference='whole', eval_scales="
        "(1.0,) and eval_flip=False",
    ),
    (
        ("task", "data.pseudo_labels"),
        lambda c: c.task == "classification" or not c.data.pseudo_labels,
        "pseudo-labels are classes of whole images: only 'classification' has them; set "
        "pseudo_labels to ''",
    ),
    (
        ("data.pseudo_labels", "data.pseudo_split"),
        lambda c: not c.data.pseudo_labels or bool(c.data.pseudo_split),
        "pseudo_labels needs the split that they label",
    ),
    (
        ("train.batch_size", "classification.mixup_alpha", "classification.cutmix_alpha"),
        lambda c: (
            c.train.batch_size > 1
            or not (c.classification.mixup_alpha or c.classification.cutmix_alpha)
        ),
        "an image is mixed with its neighbour in the batch: raise batch_size, or set both alphas "
        "to 0",
    ),
)

# Conditions on files, of the same form; only where the data is going to be read.
DATA_PATHS: tuple[Condition, ...] = (
    (
        ("data.source", "data.data_dir"),
        lambda c: c.data.source not in ("tfds", "image_folder") or exists(c.data.data_dir, "dir"),
        "data_dir must be an existing, prepared directory for this source (folders of images "
        "become one with `python -m lambdanet.data.prepare`)",
    ),
    (
        ("data.source", "data.data_dir"),
        lambda c: c.data.source not in sources.EMBEDDED or is_free(c.data.data_dir),
        "data_dir must be a directory, or one must be possible there: the data is prepared in it",
    ),
    (
        ("train.cache_dir",),
        lambda c: not c.train.cache_dir or is_free(c.train.cache_dir),
        "must be a directory, or one must be possible there; '' keeps no compiled programs",
    ),
    (
        ("data.pseudo_labels",),
        lambda c: not c.data.pseudo_labels or exists(c.data.pseudo_labels),
        "no such file; `python eval.py --mode=pseudo_label` writes it",
    ),
)

# Conditions on what only the start of a training run reads, and not its continuation; {public} in
# their texts stands for public weights that fit.
START: tuple[Condition, ...] = (
    (
        ("train.init_head", "train.init_weights"),
        lambda c: c.train.init_head == "load" or bool(c.train.init_weights),
        f"init_head chooses what is taken of init_weights: name some by {_SOURCE}, or set "
        "init_head to 'load'",
    ),
    (
        ("optim.frozen_epochs", "train.init_weights"),
        lambda c: not c.optim.frozen_epochs or bool(c.train.init_weights),
        f"frozen_epochs holds what init_weights has brought: name some by {_SOURCE}, or set "
        "frozen_epochs to 0",
    ),
    (
        ("train.init_average", "train.init_weights"),
        lambda c: c.train.init_average == "ema" or bool(c.train.init_weights),
        "init_average chooses between the weights in init_weights: name some, or set "
        "init_average to 'ema'",
    ),
)
