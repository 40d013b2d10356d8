"""What each configuration key may hold, beyond its type: the tables behind
`lambdanet.config.validate`.

A new key of `configs/base.py` gets a line here when some values of its type cannot work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lambdanet.registry import suggest


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float (True and False are neither)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(*names: str):
    return (lambda v: v in names), names


def _tuple_of(length: int, inner: Callable[[Any], bool] = lambda v: True):
    return lambda v: len(v) == length and all(inner(x) for x in v)


def _is_regex(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError):
        return False
    return True


def _is_multiplier(pair: Any) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and _is_regex(pair[0])
        and is_number(pair[1])
        and pair[1] >= 0
    )


def _are_weights(pairs: tuple[Any, ...]) -> bool:
    if not all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        return False
    return all(is_number(weight) and weight >= 0 for _, weight in pairs) and len(
        dict(pairs)
    ) == len(pairs)


def auxiliary_problems(pairs: tuple[tuple[str, float], ...], model: Any) -> list[str]:
    """Returns what is wrong with `train.auxiliary_losses` for a model: terms that it does not
    declare, one text each.

    A model with such terms has an attribute `auxiliary_losses`, their names.
    """
    known = getattr(model, "auxiliary_losses", ())
    has = f"it has {', '.join(known)}" if known else "it has none"
    return [
        f"train.auxiliary_losses: {type(model).__name__} has no auxiliary loss {name!r}; "
        f"{has}.{suggest(name, known)}"
        for name, _ in pairs
        if name not in known
    ]


_POSITIVE = (lambda v: v > 0), "a number > 0"
_NOT_NEGATIVE = (lambda v: v >= 0), "a number >= 0"
_AT_LEAST_1 = (lambda v: v >= 1), "an integer >= 1"
_PROBABILITY = (lambda v: 0 <= v <= 1), "a probability in [0, 1]"
_BELOW_1 = (lambda v: 0 <= v < 1), "a number in [0, 1)"
_RANGE = (lambda v: len(v) == 2 and 0 < v[0] <= v[1]), "(low, high) with 0 < low <= high"
_REGEXES = (
    (lambda v: all(_is_regex(x) for x in v)),
    "regular expressions that compile, for example r'.*bias$'",
)
_NAME = (lambda v: bool(v)), "a non-empty text"

# Key -> (predicate of a value whose type is right, what is allowed: words, or the names to choose
# from).
CHECKS: dict[str, tuple[Callable[[Any], bool], str | tuple[str, ...]]] = {
    "seed": _NOT_NEGATIVE,
    "data.source": _one_of("digits", "cued_digits", "tfds", "image_folder", "synthetic"),
    "data.train_split": _NAME,
    "data.image_size": (_tuple_of(2, lambda x: x >= 1), "(height, width), both integers >= 1"),
    "data.channels": ((lambda v: v in (1, 3)), "1 (grey) or 3 (RGB)"),
    "data.std": ((lambda v: all(x > 0 for x in v)), "numbers > 0"),
    "data.on_error": _one_of("raise", "skip"),
    "data.num_workers": _NOT_NEGATIVE,
    "data.num_threads": _AT_LEAST_1,
    "data.prefetch": _AT_LEAST_1,
    "data.synthetic_records": _AT_LEAST_1,
    "data.synthetic_classes": _AT_LEAST_1,
    "data.crop": _one_of("none", "shift", "random_resized"),
    "data.shift": _NOT_NEGATIVE,
    "data.crop_scale": (
        (lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1),
        "(low, high) with 0 < low <= high <= 1",
    ),
    "data.crop_ratio": _RANGE,
    "data.flip": _PROBABILITY,
    "data.rand_augment": (
        (lambda v: len(v) == 2 and v[0] >= 0 and float(v[0]).is_integer() and 0 <= v[1] <= 30),
        "(operations, magnitude): an integer >= 0 and a number in [0, 30]",
    ),
    "data.color_jitter": (
        _tuple_of(3, lambda x: x >= 0),
        "(brightness, contrast, saturation), each >= 0",
    ),
    "data.random_erasing": _PROBABILITY,
    "data.eval_crop": ((lambda v: 0 < v <= 1), "a fraction in (0, 1]"),
    "data.interpolation": _one_of("bilinear", "bicubic", "random"),
    "data.pseudo_fraction": ((lambda v: 0 < v < 1), "a fraction in (0, 1)"),
    "optim.name": _one_of("sgd", "adamw", "lamb", "rmsprop"),
    "optim.lr": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.momentum": _BELOW_1,
    "optim.betas": (_tuple_of(2, lambda x: 0 <= x < 1), "two numbers in [0, 1)"),
    "optim.eps": _POSITIVE,
    "optim.clip_norm": _NOT_NEGATIVE,
    "optim.schedule": _one_of("constant", "cosine", "step", "poly", "exponential"),
    "optim.warmup_epochs": _NOT_NEGATIVE,
    "optim.warmup_start": _PROBABILITY,
    "optim.cooldown_epochs": _NOT_NEGATIVE,
    "optim.final_lr": _PROBABILITY,
    "optim.step_epochs": (
        (lambda v: all(x > 0 for x in v) and list(v) == sorted(set(v))),
        "epochs > 0 in rising order",
    ),
    "optim.decay_rate": ((lambda v: 0 < v <= 1), "a factor in (0, 1]"),
    "optim.decay_epochs": _POSITIVE,
    "optim.poly_power": _POSITIVE,
    "optim.no_decay": _REGEXES,
    "optim.frozen": _REGEXES,
    "optim.lr_multipliers": (
        (lambda v: all(_is_multiplier(p) for p in v)),
        "pairs (regular expression, factor >= 0), for example ((r'head/.*', 0.1),)",
    ),
    "train.batch_size": _AT_LEAST_1,
    "train.epochs": _POSITIVE,
    "train.steps": _NOT_NEGATIVE,
    "train.accumulate": _AT_LEAST_1,
    "classification.label_smoothing": _BELOW_1,
    "train.auxiliary_losses": (
        _are_weights,
        "pairs (name, weight >= 0), each name once, for example (('symmetry', 0.1),)",
    ),
    "classification.mixup_alpha": _NOT_NEGATIVE,
    "classification.cutmix_alpha": _NOT_NEGATIVE,
    "train.ema_decay": _BELOW_1,
    "train.eval_every": _NOT_NEGATIVE,
    "train.init_head": _one_of("load", "new"),
    "train.eval_batch_size": _NOT_NEGATIVE,
    "train.save_every": _NOT_NEGATIVE,
    "train.keep_last": _AT_LEAST_1,
    "train.keep_best": _one_of("accuracy", "loss", "ema_accuracy", ""),
    "train.log_every": _AT_LEAST_1,
    "mesh.data": ((lambda v: v == -1 or v >= 1), "-1 (all remaining devices) or an integer >= 1"),
    "mesh.fsdp": _AT_LEAST_1,
    "mesh.fsdp_min_size": _NOT_NEGATIVE,
}

# Conditions over several keys: (keys, predicate of the config, what must hold); tried when none of
# the keys failed.
CROSS_CHECKS: tuple[tuple[tuple[str, ...], Callable[[ConfigDict], bool], str], ...] = (
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
        ("train.keep_best", "train.ema_decay"),
        lambda c: c.train.keep_best != "ema_accuracy" or c.train.ema_decay > 0,
        "keep_best 'ema_accuracy' needs ema_decay > 0",
    ),
    (
        ("train.keep_best", "data.eval_split"),
        lambda c: not c.train.keep_best or bool(c.data.eval_split),
        "the best checkpoint is chosen on eval_split: name one, or set keep_best to ''",
    ),
    (
        ("data.pseudo_labels", "data.pseudo_split"),
        lambda c: not c.data.pseudo_labels or bool(c.data.pseudo_split),
        "pseudo_labels needs the split that they label",
    ),
)

# Conditions on files, of the same form; only where the data is going to be read.
PATH_CHECKS: tuple[tuple[tuple[str, ...], Callable[[ConfigDict], bool], str], ...] = (
    (
        ("data.source", "data.data_dir"),
        lambda c: c.data.source not in ("tfds", "image_folder") or Path(c.data.data_dir).is_dir(),
        "data_dir must be an existing, prepared directory for this source (class folders become "
        "one with "
        "`python -m lambdanet.data.prepare`)",
    ),
    (
        ("train.init_weights",),
        lambda c: not c.train.init_weights or Path(c.train.init_weights).is_file(),
        "no such file; `python eval.py --mode=export` writes one, PyTorch checkpoints serve as "
        "well",
    ),
    (
        ("data.pseudo_labels",),
        lambda c: not c.data.pseudo_labels or Path(c.data.pseudo_labels).is_file(),
        "no such file; `python eval.py --mode=pseudo_label` writes it",
    ),
)
