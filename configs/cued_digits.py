"""Two tinted digits and a cue far apart: a small ResNet with or without one global block
(lambdanet/data/cued_digits.py).

    python train.py --config=configs/cued_digits.py --workdir=runs/cued_nonlocal
    python train.py --config=configs/cued_digits.py:none --workdir=runs/cued_none   # the control: nothing global

Argument: 'none' or the name of an attention block (default 'nonlocal'); ',smoke' as last part runs
ten steps on synthetic images. A context block stands after the first stage, a mixer replaces the
3x3 convolution of the second. Without either, the receptive field is 27 pixels, one less than the
distance between the objects.

Numbers: our own, chosen on the validation split; the test split is read once, after the last step.
"""  # noqa: E501

from ml_collections import ConfigDict

from configs import base
from lambdanet.attention import kind

OPTIONS = {"lambda": dict(key_depth=8, scope=31)}  # reaches every position of a 16x16 map


def get_config(arg: str = "nonlocal") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    name, smoke = base.split_arg(arg)
    name = name or "nonlocal"
    config = base.get_config()
    config.model.name = "resnet50"
    config.model.blocks, config.model.widths = (1, 1), (16, 32)
    spec = dict(name=name, **OPTIONS.get(name, {}))
    if name != "none" and kind(name) == "mixer":
        config.model.attention, config.model.attention_blocks = spec, ((), "all")
    elif name != "none":
        config.model.context = dict(spec, after="stage1.1")

    config.data.source = "cued_digits"
    config.data.image_size, config.data.channels = (64, 64), 3

    config.optim.name, config.optim.lr, config.optim.weight_decay = "adamw", 6e-3, 0.01
    config.optim.schedule, config.optim.warmup_epochs = "cosine", 0.5

    config.train.batch_size = 32
    config.train.steps = 2000
    config.classification.label_smoothing = 0.0
    config.train.eval_every = config.train.save_every = 2.0
    config.train.eval_batch_size = 250
    config.train.log_every = 50
    if smoke:
        blocks, widths = config.model.blocks, config.model.widths
        config = base.apply_smoke(config)
        config.model.blocks, config.model.widths = blocks, widths
    return config
