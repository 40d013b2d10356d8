"""Digits on photographs, drawn from what is inside scikit-learn: segmentation, detection and
instance segmentation without a download.

    python train.py --config=configs/digit_scenes.py:segment --workdir=runs/scenes
    python train.py --config=configs/digit_scenes.py:segment,criss_cross --workdir=runs/scenes_cc
    python train.py --config=configs/digit_scenes.py:detect --workdir=runs/boxes
    python train.py --config=configs/digit_scenes.py:instances --workdir=runs/instances
    python eval.py --mode=predict --workdir=runs/scenes --input=FOLDER

Argument: 'segment' (default), then ',HEAD' of `HEADS` ('semantic_fpn' by default; 'none' is a plain
FCN); 'detect', then ',DETECTOR' of `DETECTORS` ('faster_rcnn' by default); 'instances', which is
Mask R-CNN; all on small ResNets (models/segmentation/presets.py, models/detection/presets.py).
',smoke' as last part runs ten steps on synthetic images.
Numbers: our own, chosen on the validation split (docs/digit_scenes.md says how); the test split is
read once, after the last step.
"""

from ml_collections import ConfigDict

from configs import base

HEADS = {
    "semantic_fpn": "small_semantic_fpn",
    "upernet": "small_upernet",
    "none": "small_fcn",
    "criss_cross": "small_criss_cross",
    "danet": "small_danet",
    "ocnet": "small_ocnet",
    "isa": "small_isa",
    "nonlocal": "small_nonlocal",
    "lambda": "small_lambda",
}
DETECTORS = {"faster_rcnn": "small_faster_rcnn", "retinanet": "small_retinanet"}
TASKS = {"segment": HEADS, "detect": DETECTORS, "instances": {"mask_rcnn": "small_mask_rcnn"}}
"""Argument -> what may follow it -> model; the first is taken by default."""


def get_config(arg: str = "segment") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    rest, smoke = base.split_arg(arg)
    task, _, name = (rest or "segment").partition(",")
    base.check_argument(task, TASKS)
    known = TASKS[task]
    name = name or next(iter(known))
    base.check_argument(name, known)
    config = base.get_config()
    config.model.name = known[name]
    config.data.source = "digit_scenes"
    config.data.image_size, config.data.channels = (96, 96), 3
    config.data.num_threads = 1  # more readers take the cores away that the small steps need
    if task == "segment":
        _segment(config)
    else:
        _detect(config, masks=task == "instances")
    return base.apply_smoke(config) if smoke else config


def _segment(config: ConfigDict) -> None:
    config.task = "segmentation"
    # 88 % of the pixels are background
    config.segmentation.class_weights = (1.0, *(2.0,) * 10)

    config.optim.name = "adamw"
    config.optim.lr, config.optim.weight_decay = 6e-3, 0.1
    config.optim.schedule, config.optim.warmup_epochs = "cosine", 0.5
    config.optim.clip_norm = 5.0

    config.train.batch_size = 8
    config.train.epochs = 5.0
    config.train.eval_every = config.train.save_every = 1.0
    config.train.keep_best = "mean_iou"


def _detect(config: ConfigDict, *, masks: bool) -> None:
    config.task = "detection"
    config.detection.masks = masks
    config.detection.max_objects, config.detection.mask_bytes = 8, 4096  # a scene has six at most

    config.optim.name = "adamw"
    config.optim.lr, config.optim.weight_decay = 4e-3, 0.05
    config.optim.schedule, config.optim.warmup_epochs = "cosine", 0.5
    config.optim.clip_norm = 5.0

    config.train.batch_size = 8
    config.train.epochs = 1.25 if masks else 1.75
    config.train.eval_every = config.train.save_every = 1.0
    config.train.keep_best = "mask_ap" if masks else "box_ap"
