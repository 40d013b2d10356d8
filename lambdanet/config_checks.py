"""What each configuration key may hold, beyond its type: one of the tables behind
`lambdanet.config.validate`.

A new key of `configs/base.py` gets a line here when some values of its type cannot work. Every
integer has an upper bound. Names to choose from come from where they are implemented. What several
keys must be together is in `lambdanet.config_conditions`.
"""

from __future__ import annotations

from lambdanet import tasks
from lambdanet.config_values import (
    Check,
    all_between,
    are_weights,
    integer,
    is_multiplier,
    is_regex,
    is_split,
    number,
    off_or,
    one_of,
    pair,
)
from lambdanet.data import cutting, decode, geometry, sources
from lambdanet.ops import segmentation_loss
from lambdanet.registry import is_number
from lambdanet.tasks import class_balance, detection_scores, segmentation
from lambdanet.training import optimizer, schedule, weights

_PROBABILITY = (lambda v: 0 <= v <= 1), "a probability in [0, 1]"
_BELOW_1 = (lambda v: 0 <= v < 1), "a number in [0, 1)"
# float32 knows no number between this and 1
_DECAY = (lambda v: 0 <= v <= 0.9999999), "a number from 0 to 0.9999999"
_EPOCHS = number(0, 1e6)
_SPLITS = "a split such as 'train', a slice of it that is not empty ('train[:90%]'), or a sum of "
_SPLITS += "such ('train+validation')"
_SIDES = (
    (lambda v: len(v) in (0, 2) and all(type(x) is int and 1 <= x <= 16384 for x in v)),
    "(height, width), both integers from 1 to 16,384; or ()",
)
_REGEXES = (
    (lambda v: all(is_regex(x) for x in v)),
    "regular expressions that compile, for example r'.*bias$'",
)

# Key -> (predicate of a value whose type is right, what is allowed: words, or the names to choose
# from).
CHECKS: dict[str, Check] = {
    "task": ((lambda v: v in tasks.TASKS), tasks.TASKS),
    "seed": integer(0, 2**63 - 1),
    "data.source": one_of(*sources.SOURCES),
    "data.train_split": (is_split, _SPLITS),
    "data.eval_split": ((lambda v: not v or is_split(v)), f"'' (none) or {_SPLITS}"),
    "data.test_split": ((lambda v: not v or is_split(v)), f"'' (none) or {_SPLITS}"),
    "data.image_size": (
        (lambda v: len(v) == 2 and all(1 <= x <= 16384 for x in v)),
        "(height, width), both integers from 1 to 16,384",
    ),
    "data.channels": ((lambda v: v in (1, 3)), "1 (grey) or 3 (RGB)"),
    "data.mean": (
        all_between(0, 1),
        "numbers from 0 to 1, of images scaled to [0, 1]; divide means of 0..255 by 255",
    ),
    "data.std": (
        all_between(0.001, 1),
        "numbers from 0.001 to 1, of images scaled to [0, 1]; divide deviations of 0..255 by 255",
    ),
    "data.on_error": one_of("raise", "skip"),
    "data.num_workers": integer(0, 512),
    "data.num_threads": integer(1, 512),
    "data.prefetch": integer(1, 100_000),
    "data.synthetic_records": integer(1, 10**8),
    "data.synthetic_classes": integer(1, 10**6),
    "data.crop": one_of(*geometry.CROPS),
    "data.shift": integer(0, 16384),
    "data.crop_scale": pair(1e-4, 1),
    "data.crop_ratio": pair(0.01, 100),
    "data.scale_range": pair(0.05, 20),
    "data.scale_base": integer(0, 16384),
    "data.cat_max_ratio": number(0.01, 1),
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
    "data.eval_crop": number(0.01, 1),
    "data.interpolation": one_of(*decode.FILTERS, "random"),
    "data.pseudo_split": (is_split, _SPLITS),
    "data.pseudo_fraction": number(0.001, 0.999),
    "optim.name": one_of(*optimizer.OPTIMIZERS),
    # what is merely too much is said by the run, which knows at which step
    "optim.lr": number(1e-12, 1e38),
    "optim.weight_decay": number(0, 100),
    "optim.momentum": _DECAY,
    "optim.betas": (
        (lambda v: len(v) == 2 and all(0 <= x <= 0.9999999 for x in v)),
        "two numbers from 0 to 0.9999999",
    ),
    "optim.eps": number(1e-30, 1),
    "optim.clip_norm": off_or(1e-6, 1e9),
    "optim.schedule": one_of(*schedule.SCHEDULES),
    "optim.warmup_epochs": _EPOCHS,
    "optim.warmup_start": _PROBABILITY,
    "optim.cooldown_epochs": _EPOCHS,
    "optim.final_lr": _PROBABILITY,
    "optim.step_epochs": (
        (lambda v: all(0 < x <= 1e6 for x in v) and list(v) == sorted(set(v))),
        "epochs > 0, at most 1,000,000, in rising order",
    ),
    "optim.decay_rate": number(1e-6, 1),
    "optim.decay_epochs": number(1e-6, 1e6),
    "optim.poly_power": number(1e-3, 100),
    "optim.no_decay": _REGEXES,
    "optim.frozen": _REGEXES,
    "optim.lr_multipliers": (
        (lambda v: all(is_multiplier(p) for p in v)),
        "pairs (regular expression, factor from 0 to 1e6), for example ((r'head/.*', 0.1),)",
    ),
    "optim.layer_decay": number(0.01, 1),
    "optim.frozen_epochs": _EPOCHS,
    "train.batch_size": integer(1, 2**20),
    "train.epochs": ((lambda v: 0 < v <= 1e6), "a number > 0, at most 1,000,000"),
    "train.steps": integer(0, 2**31 - 1),
    "train.min_steps": integer(0, 2**31 - 1),
    "train.max_steps": integer(0, 2**31 - 1),
    "train.accumulate": integer(1, 2**20),
    "train.auxiliary_losses": (
        are_weights,
        "pairs (name, weight >= 0), each name once, weights up to 1e6, for example "
        "(('symmetry', 0.1),)",
    ),
    "train.ema_decay": _DECAY,
    "train.eval_every": _EPOCHS,
    "train.init_head": one_of(*weights.HEADS),
    "train.init_average": one_of("ema", "live"),
    "train.eval_batch_size": integer(0, 2**20),
    "train.save_every": _EPOCHS,
    "train.keep_last": integer(1, 10**6),
    "train.log_every": integer(1, 10**9),
    "train.damaged": one_of("refuse", "fall_back"),
    "classification.label_smoothing": _BELOW_1,
    "classification.class_weights": one_of(*class_balance.MODES),
    "classification.mixup_alpha": off_or(0.01, 100),
    "classification.cutmix_alpha": off_or(0.01, 100),
    "segmentation.loss_mean": one_of(*segmentation_loss.MEANS),
    "segmentation.class_weights": (
        (lambda v: all(is_number(x) and 0 <= x <= 1e6 for x in v) and (not v or sum(v) > 0)),
        "numbers from 0 to 1e6, one per class and not all 0; or ()",
    ),
    "segmentation.ohem": one_of(*segmentation_loss.OHEMS),
    "segmentation.ohem_threshold": _PROBABILITY,
    "segmentation.ohem_min_kept": integer(0, 10**8),
    "segmentation.auxiliary_weight": number(0, 1e6),
    "segmentation.branch_weight": number(0, 1e6),
    "segmentation.category_consistent": number(0, 1e6),
    "segmentation.eval_size": _SIDES,
    "segmentation.inference": one_of(*segmentation.INFERENCES),
    "segmentation.slide_crop": _SIDES,
    "segmentation.slide_stride": _SIDES,
    "segmentation.eval_scales": (
        (lambda v: 1 <= len(v) <= 32 and all(0.05 <= x <= 20 for x in v)),
        "one to 32 numbers from 0.05 to 20",
    ),
    "detection.max_objects": integer(1, 10_000),
    "detection.mask_bytes": integer(256, 2**26),
    "detection.metric": one_of(*detection_scores.METRICS),
    "detection.shown_score": _PROBABILITY,
    "clips.frames": integer(1, 1024),
    "clips.frame_stride": integer(1, 1024),
    "clips.jitter": integer(0, 512),
    "clips.short": one_of(*cutting.SHORT),
    "clips.eval_clips": integer(1, 100),
    "clips.eval_crops": integer(1, 100),
    "propagation.max_distance": integer(0, 10_000),
    "propagation.others": integer(0, 100),
    "propagation.interval": integer(1, 10_000),
    "propagation.reach": integer(0, 1000),
    "propagation.eval_frames": integer(1, 10_000),
    "mesh.data": (
        (lambda v: v == -1 or 1 <= v <= 2**20),
        "-1 (all remaining devices) or an integer from 1 to 1,048,576",
    ),
    "mesh.fsdp": integer(1, 2**20),
    "mesh.fsdp_min_size": integer(0, 2**40),
}
