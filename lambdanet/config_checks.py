"""What each configuration key may hold, beyond its type: the tables behind
`lambdanet.config.validate`.

A new key of `configs/base.py` gets a line here when some values of its type cannot work. Every
integer has an upper bound. Names to choose from come from where they are implemented.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lambdanet import tasks
from lambdanet.data import cutting, decode, geometry, sources
from lambdanet.ops import segmentation_loss
from lambdanet.registry import is_number
from lambdanet.tasks import detection_scores, segmentation
from lambdanet.training import optimizer, schedule, weights

Check = tuple[Callable[[Any], bool], str | Collection[str]]
Condition = tuple[tuple[str, ...], Callable[[ConfigDict], bool], str]


def _one_of(*names: str) -> Check:
    return (lambda v: v in names), names


def _integer(low: int, high: int) -> Check:
    return (lambda v: low <= v <= high), f"an integer from {low:,} to {high:,}"


def _number(low: float, high: float) -> Check:
    return (lambda v: low <= v <= high), f"a number from {low:g} to {high:g}"


def _off_or(low: float, high: float) -> Check:
    return (lambda v: v == 0 or low <= v <= high), f"0 (off) or a number from {low:g} to {high:g}"


def _pair(low: float, high: float) -> Check:
    return (
        (lambda v: len(v) == 2 and low <= v[0] <= v[1] <= high),
        f"(low, high) with {low:g} <= low <= high <= {high:g}",
    )


def _all_between(low: float, high: float) -> Callable[[Iterable[float]], bool]:
    return lambda v: all(low <= x <= high for x in v)


def _is_regex(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError, OverflowError, RecursionError):
        return False
    return True


def _is_multiplier(pair: Any) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and _is_regex(pair[0])
        and is_number(pair[1])
        and 0 <= pair[1] <= 1e6
    )


def _are_weights(pairs: tuple[Any, ...]) -> bool:
    if not all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        return False
    return all(is_number(weight) and 0 <= weight <= 1e6 for _, weight in pairs) and len(
        dict(pairs)
    ) == len(pairs)


_BOUND = r"-?[\d_]+(?:\.[\d_]+)?(%|shard)?"
_SPLIT = re.compile(rf"\s*[\w-]+(?:\[(?:({_BOUND})?:({_BOUND})?|-?\d+shard)\])?\s*")


def is_split(text: str) -> bool:
    """Whether a text is a split or a sum of them, as TFDS writes them, none of which is empty
    whatever the data: 'train', 'train[:90%]', 'train+validation', and not 'train[5:2]'.
    """
    for part in text.split("+"):
        match = _SPLIT.fullmatch(part)
        if match is None:
            return False
        low, low_unit, high, high_unit = match.groups()
        if low and high:
            first, last = (float(re.sub("[^0-9.-]", "", b)) for b in (low, high))
            same_end = (first < 0) == (last < 0)
            if (low_unit or high_unit) and low_unit != high_unit:
                return False
            if same_end and first >= last:
                return False
        elif high and float(re.sub("[^0-9.-]", "", high)) == 0:
            return False
    return True


def _exists(path: str, kind: str = "file") -> bool:
    """Whether there is such a file or directory; no for a name that the system refuses, such as one
    too long.
    """
    try:
        return Path(path).is_dir() if kind == "dir" else Path(path).is_file()
    except (OSError, ValueError):
        return False


def best_metrics(task: str) -> tuple[str, ...]:
    """Returns the values that `train.keep_best` may have: the task's metrics, of the live and of
    the averaged weights, and '' for none.
    """
    metrics = tasks.get(task).METRICS
    return (*metrics, *(f"ema_{name}" for name in metrics), "")


def _is_unmeasured(config: ConfigDict) -> bool:
    name = config.train.keep_best.removeprefix("ema_")
    return name in tasks.get(config.task).METRICS and name not in tasks.metrics(config)


def _is_free(path: str) -> bool:
    """Whether `path` is a directory, or one could be made there as far as its name goes."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(mode)


_PROBABILITY = (lambda v: 0 <= v <= 1), "a probability in [0, 1]"
_BELOW_1 = (lambda v: 0 <= v < 1), "a number in [0, 1)"
# float32 knows no number between this and 1
_DECAY = (lambda v: 0 <= v <= 0.9999999), "a number from 0 to 0.9999999"
_EPOCHS = _number(0, 1e6)
_SPLITS = "a split such as 'train', a slice of it that is not empty ('train[:90%]'), or a sum of "
_SPLITS += "such ('train+validation')"
_SIDES = (
    (lambda v: len(v) in (0, 2) and all(type(x) is int and 1 <= x <= 16384 for x in v)),
    "(height, width), both integers from 1 to 16,384; or ()",
)
_REGEXES = (
    (lambda v: all(_is_regex(x) for x in v)),
    "regular expressions that compile, for example r'.*bias$'",
)

# Key -> (predicate of a value whose type is right, what is allowed: words, or the names to choose
# from).
CHECKS: dict[str, Check] = {
    "task": ((lambda v: v in tasks.TASKS), tasks.TASKS),
    "seed": _integer(0, 2**63 - 1),
    "data.source": _one_of(*sources.SOURCES),
    "data.train_split": (is_split, _SPLITS),
    "data.eval_split": ((lambda v: not v or is_split(v)), f"'' (none) or {_SPLITS}"),
    "data.test_split": ((lambda v: not v or is_split(v)), f"'' (none) or {_SPLITS}"),
    "data.image_size": (
        (lambda v: len(v) == 2 and all(1 <= x <= 16384 for x in v)),
        "(height, width), both integers from 1 to 16,384",
    ),
    "data.channels": ((lambda v: v in (1, 3)), "1 (grey) or 3 (RGB)"),
    "data.mean": (
        _all_between(0, 1),
        "numbers from 0 to 1, of images scaled to [0, 1]; divide means of 0..255 by 255",
    ),
    "data.std": (
        _all_between(0.001, 1),
        "numbers from 0.001 to 1, of images scaled to [0, 1]; divide deviations of 0..255 by 255",
    ),
    "data.on_error": _one_of("raise", "skip"),
    "data.num_workers": _integer(0, 512),
    "data.num_threads": _integer(1, 512),
    "data.prefetch": _integer(1, 100_000),
    "data.synthetic_records": _integer(1, 10**8),
    "data.synthetic_classes": _integer(1, 10**6),
    "data.crop": _one_of(*geometry.CROPS),
    "data.shift": _integer(0, 16384),
    "data.crop_scale": _pair(1e-4, 1),
    "data.crop_ratio": _pair(0.01, 100),
    "data.scale_range": _pair(0.05, 20),
    "data.scale_base": _integer(0, 16384),
    "data.cat_max_ratio": _number(0.01, 1),
    "data.flip": _PROBABILITY,
    "data.rand_augment": (
        (lambda v: len(v) == 2 and v[0] in range(33) and 0 <= v[1] <= 30),
        "(operations, magnitude): an integer from 0 to 32 and a number in [0, 30]",
    ),
    "data.color_jitter": (
        (lambda v: len(v) == 3 and all(0 <= x <= 10 for x in v)),
        "(brightness, contrast, saturation), each from 0 to 10",
    ),
    "data.random_erasing": _PROBABILITY,
    "data.eval_crop": _number(0.01, 1),
    "data.interpolation": _one_of(*decode.FILTERS, "random"),
    "data.pseudo_split": (is_split, _SPLITS),
    "data.pseudo_fraction": _number(0.001, 0.999),
    "optim.name": _one_of(*optimizer.OPTIMIZERS),
    # what is merely too much is said by the run, which knows at which step
    "optim.lr": _number(1e-12, 1e38),
    "optim.weight_decay": _number(0, 100),
    "optim.momentum": _DECAY,
    "optim.betas": (
        (lambda v: len(v) == 2 and all(0 <= x <= 0.9999999 for x in v)),
        "two numbers from 0 to 0.9999999",
    ),
    "optim.eps": _number(1e-30, 1),
    "optim.clip_norm": _off_or(1e-6, 1e9),
    "optim.schedule": _one_of(*schedule.SCHEDULES),
    "optim.warmup_epochs": _EPOCHS,
    "optim.warmup_start": _PROBABILITY,
    "optim.cooldown_epochs": _EPOCHS,
    "optim.final_lr": _PROBABILITY,
    "optim.step_epochs": (
        (lambda v: all(0 < x <= 1e6 for x in v) and list(v) == sorted(set(v))),
        "epochs > 0, at most 1,000,000, in rising order",
    ),
    "optim.decay_rate": _number(1e-6, 1),
    "optim.decay_epochs": _number(1e-6, 1e6),
    "optim.poly_power": _number(1e-3, 100),
    "optim.no_decay": _REGEXES,
    "optim.frozen": _REGEXES,
    "optim.lr_multipliers": (
        (lambda v: all(_is_multiplier(p) for p in v)),
        "pairs (regular expression, factor from 0 to 1e6), for example ((r'head/.*', 0.1),)",
    ),
    "train.batch_size": _integer(1, 2**20),
    "train.epochs": ((lambda v: 0 < v <= 1e6), "a number > 0, at most 1,000,000"),
    "train.steps": _integer(0, 2**31 - 1),
    "train.accumulate": _integer(1, 2**20),
    "train.auxiliary_losses": (
        _are_weights,
        "pairs (name, weight >= 0), each name once, weights up to 1e6, for example "
        "(('symmetry', 0.1),)",
    ),
    "train.ema_decay": _DECAY,
    "train.eval_every": _EPOCHS,
    "train.init_head": _one_of(*weights.HEADS),
    "train.init_average": _one_of("ema", "live"),
    "train.eval_batch_size": _integer(0, 2**20),
    "train.save_every": _EPOCHS,
    "train.keep_last": _integer(1, 10**6),
    "train.log_every": _integer(1, 10**9),
    "train.damaged": _one_of("refuse", "fall_back"),
    "classification.label_smoothing": _BELOW_1,
    "classification.mixup_alpha": _off_or(0.01, 100),
    "classification.cutmix_alpha": _off_or(0.01, 100),
    "segmentation.loss_mean": _one_of(*segmentation_loss.MEANS),
    "segmentation.class_weights": (
        (lambda v: all(is_number(x) and 0 <= x <= 1e6 for x in v) and (not v or sum(v) > 0)),
        "numbers from 0 to 1e6, one per class and not all 0; or ()",
    ),
    "segmentation.ohem": _one_of(*segmentation_loss.OHEMS),
    "segmentation.ohem_threshold": _PROBABILITY,
    "segmentation.ohem_min_kept": _integer(0, 10**8),
    "segmentation.auxiliary_weight": _number(0, 1e6),
    "segmentation.branch_weight": _number(0, 1e6),
    "segmentation.category_consistent": _number(0, 1e6),
    "segmentation.eval_size": _SIDES,
    "segmentation.inference": _one_of(*segmentation.INFERENCES),
    "segmentation.slide_crop": _SIDES,
    "segmentation.slide_stride": _SIDES,
    "segmentation.eval_scales": (
        (lambda v: 1 <= len(v) <= 32 and all(0.05 <= x <= 20 for x in v)),
        "one to 32 numbers from 0.05 to 20",
    ),
    "detection.max_objects": _integer(1, 10_000),
    "detection.mask_bytes": _integer(256, 2**26),
    "detection.metric": _one_of(*detection_scores.METRICS),
    "detection.shown_score": _PROBABILITY,
    "clips.frames": _integer(1, 1024),
    "clips.frame_stride": _integer(1, 1024),
    "clips.jitter": _integer(0, 512),
    "clips.short": _one_of(*cutting.SHORT),
    "clips.eval_clips": _integer(1, 100),
    "clips.eval_crops": _integer(1, 100),
    "mesh.data": (
        (lambda v: v == -1 or 1 <= v <= 2**20),
        "-1 (all remaining devices) or an integer from 1 to 1,048,576",
    ),
    "mesh.fsdp": _integer(1, 2**20),
    "mesh.fsdp_min_size": _integer(0, 2**40),
}

# Conditions over several keys: (keys, predicate of the config, what must hold); tried when none of
# the keys failed.
CROSS_CHECKS: tuple[Condition, ...] = (
    (
        ("train.batch_size", "train.accumulate"),
        lambda c: c.train.batch_size % c.train.accumulate == 0,
        "batch_size must be a multiple of accumulate",
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
        lambda c: c.task != "detection" or c.data.cat_max_ratio == 1,
        "cat_max_ratio counts the labels of pixels, which 'detection' has not; set it to 1.0",
    ),
    (
        ("task", "data.crop"),
        lambda c: c.task != "detection" or c.data.crop in ("none", "scale_crop"),
        "'detection' has the crops 'none' (the whole picture, its aspect kept) and 'scale_crop'",
    ),
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
        lambda c: c.task != "detection" or not _is_unmeasured(c),
        "metrics of masks need detection.masks=True, 'voc_ap50' needs detection.metric='voc'",
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
        lambda c: c.data.source not in ("tfds", "image_folder") or _exists(c.data.data_dir, "dir"),
        "data_dir must be an existing, prepared directory for this source (folders of images "
        "become one with `python -m lambdanet.data.prepare`)",
    ),
    (
        ("data.source", "data.data_dir"),
        lambda c: c.data.source not in sources.EMBEDDED or _is_free(c.data.data_dir),
        "data_dir must be a directory, or one must be possible there: the data is prepared in it",
    ),
    (
        ("train.cache_dir",),
        lambda c: not c.train.cache_dir or _is_free(c.train.cache_dir),
        "must be a directory, or one must be possible there; '' keeps no compiled programs",
    ),
    (
        ("data.pseudo_labels",),
        lambda c: not c.data.pseudo_labels or _exists(c.data.pseudo_labels),
        "no such file; `python eval.py --mode=pseudo_label` writes it",
    ),
)

# Conditions on what only the start of a training run reads, and not its continuation.
START: tuple[Condition, ...] = (
    (
        ("train.init_head", "train.init_weights"),
        lambda c: c.train.init_head == "load" or bool(c.train.init_weights),
        "init_head chooses what is taken of the file init_weights: name one, or set init_head to "
        "'load'",
    ),
    (
        ("train.init_average", "train.init_weights"),
        lambda c: c.train.init_average == "ema" or bool(c.train.init_weights),
        "init_average chooses between the weights in the file init_weights: name one, or set "
        "init_average to 'ema'",
    ),
)

# Likewise, of files.
START_PATHS: tuple[Condition, ...] = (
    (
        ("train.init_weights",),
        lambda c: not c.train.init_weights or _exists(c.train.init_weights),
        "no such file; `python eval.py --mode=export` writes one, PyTorch checkpoints serve as "
        "well",
    ),
)
