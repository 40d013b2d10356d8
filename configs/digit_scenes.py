"""Digits on photographs, drawn from what is inside scikit-learn: segmentation without a download.

    python train.py --config=configs/digit_scenes.py:segment --workdir=runs/scenes
    python train.py --config=configs/digit_scenes.py:segment,criss_cross --workdir=runs/scenes_cc
    python eval.py --mode=predict --workdir=runs/scenes --pictures=FOLDER

Argument: 'segment' (default), then ',HEAD' of `HEADS` ('semantic_fpn' by default; 'none' is a plain
FCN), on small ResNets (models/segmentation/presets.py); ',smoke' as last part runs ten steps on
synthetic images.
Numbers: our own, chosen on the validation split (docs/digit_scenes.md says how); the test split is
read once, after the last step.
"""

from ml_collections import ConfigDict

from configs import base

HEADS = {
    "upernet": "small_upernet",
    "semantic_fpn": "small_semantic_fpn",
    "none": "small_fcn",
    "criss_cross": "small_criss_cross",
    "danet": "small_danet",
    "ocnet": "small_ocnet",
    "isa": "small_isa",
    "nonlocal": "small_nonlocal",
    "lambda": "small_lambda",
}


def get_config(arg: str = "segment") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    rest, smoke = base.split_arg(arg)
    task, _, head = (rest or "segment").partition(",")
    head = head or "semantic_fpn"
    if task != "segment":
        raise ValueError(f"argument {task!r}; allowed: segment")
    if head not in HEADS:
        raise ValueError(f"argument {head!r}; allowed: {', '.join(HEADS)}")
    config = base.get_config()
    config.task = "segmentation"
    config.model.name = HEADS[head]

    config.data.source = "digit_scenes"
    config.data.image_size, config.data.channels = (96, 96), 3
    config.data.num_threads = 1  # more readers take the cores away that the small steps need
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
    return base.apply_smoke(config) if smoke else config
