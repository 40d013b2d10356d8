"""Clips of digits on a panning photograph, drawn from what is inside scikit-learn: all digits move
with it but one, and its class is the label; no frame alone says which.

    python train.py --config=configs/moving_digits.py:clip --workdir=runs/clip
    python train.py --config=configs/moving_digits.py:clip,nonlocal --workdir=runs/clip_nonlocal
    python train.py --config=configs/moving_digits.py:frame --workdir=runs/frame

Argument: 'clip' (default), then ',BLOCK' of `BLOCKS`, with three axes in the second stage ('none'
by default): context blocks stand after it, the lambda layer in place of a convolution; 'frame', the
same network on one frame, which cannot do better than to guess among the three digits that it sees.
',smoke' as last part runs ten steps on synthetic clips.
Numbers: not tuned yet.
"""

from ml_collections import ConfigDict

from configs import base

CONTEXT = ("nonlocal", "cgnl", "double_attention", "criss_cross")
BLOCKS = {
    "none": {},
    **{name: {"context": {"name": name, "after": "stage2.1"}} for name in CONTEXT},
    "lambda": {
        "attention": (None, {"name": "lambda", "spatial_dims": 3, "scope": (3, 7, 7)}, None)
    },
}
"""Argument -> options of the model."""


def get_config(arg: str = "clip") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    rest, smoke = base.split_arg(arg)
    kind, _, block = (rest or "clip").partition(",")
    if kind not in ("clip", "frame"):
        raise ValueError(f"argument {kind!r}; allowed: clip, frame")
    known = BLOCKS if kind == "clip" else {"none": {}}
    if (block or "none") not in known:
        raise ValueError(f"argument {block!r}; allowed: {', '.join(known)}")
    config = base.get_config()
    config.task = "clips"
    config.model.name = "small_i3d"
    config.model.update(known[block or "none"])
    config.clips.frames = 8 if kind == "clip" else 1

    config.data.source = "moving_digits"
    config.data.image_size, config.data.channels = (64, 64), 3
    config.data.num_threads = 1  # more readers take the cores away that the small steps need

    config.optim.name = "adamw"
    config.optim.lr, config.optim.weight_decay = 4e-3, 0.05
    config.optim.schedule, config.optim.warmup_epochs = "cosine", 0.5
    config.optim.clip_norm = 5.0

    config.train.batch_size = 16
    config.train.epochs = 4.0
    config.train.eval_every = config.train.save_every = 1.0
    config.classification.label_smoothing = 0.0
    return base.apply_smoke(config) if smoke else config
