r"""ImageNet, 300 epochs at 224x224: the hierarchical Transformers, each by the recipe of its own
paper's code.

    python train.py --config=configs/imagenet300.py:slide_swin_tiny --workdir=runs/slide_swin_tiny
    --config.data.data_dir=DIR

Argument: FAMILY_SIZE of the table, with slide attention slide_FAMILY_SIZE, for LaViT also
lavit_SIZE_paper (`MODELS` lists all; default 'slide_swin_tiny'); ',smoke' as last part runs ten
steps on synthetic images. DIR is the prepared TFDS set (the directory with dataset_info.json).

Top-1 accuracy as published, %: the family's own paper / with slide attention (Pan et al. 2023; (p):
read off a figure).

    pvt     tiny 75.1 / 78.0    small 79.8 / 81.7    medium 81.2 / 82.9 (p)    large 81.7 / -
    pvt_v2  b0 70.5 / -    b1 78.7 / 79.5    b2 82.0 / 82.7    b3 83.2 / 83.8 (p)    b4 83.6 / 84.1 (p)    b5 83.8 / -
    swin    tiny 81.3 / 82.3    small 83.0 / 83.7    base 83.5 / 84.2
    cswin   tiny 82.7 / 83.2 (p)    small 83.6 / 84.0    base 84.2 / 84.7
    nat     mini 81.8 / 82.4 (p)    tiny 83.2 / 83.6    small 83.7 / 84.3    base 84.3 / -
    lavit   tiny 79.2    small 82.6    base 83.1 (for the paper's own sizes, which are not public; models/lavit/lavit.py has ours)

These are the papers' numbers; no whole run was made here. The tests run ten smoke steps of one row
and check the others.

Numbers. All: AdamW (0.9, 0.999), eps 1e-8, cosine with a linear warm-up that hides its beginning,
as timm's schedulers have it; random crop and flip, RandAugment 2 operations of magnitude 9, random
erasing 0.25, mixup 0.8 or cutmix 1.0 by a fair coin, label smoothing 0.1, evaluation on the middle
224 of 256. Drop path is part of the models' presets. Weight decay 0.05 spares norms, biases
(position biases, too) and layer scales. `RECIPES` has what differs, from the authors' training
code:

    pvt     lr 1e-3 at batch 1024, 5 warm-up epochs from 1e-6, last 1e-5, 10 epochs of cool-down; the class token is not
            decayed, position embeddings are. Gradient norm clipped to 1 for Medium, Large and
            pvt_v2 B3 to B5 only
    swin    lr 1e-3 at batch 1024, 20 from 1e-6, last 1e-5, clip 5. slide_swin: evaluation squeezes both sides to 256;
            slide_swin_base: batch 512 and half of the lrs
    cswin   lr 2e-3 at batch 2048, 20 epochs; averages of the weights with decay 0.99984. Base: lr 1e-3 at batch 1024, decay
            0.99992, weight decay 0.1. Ours, for want of the authors' values: from 1e-6, last 1e-5
    nat     lr 1e-3 at batch 1024, 20 from 1e-6, last 5e-6, 10 epochs of cool-down, clip 5, a random resampling filter.
            Ours: the relative bias is not decayed
    lavit   ours throughout, after DeiT and PVT (the paper says 300 epochs at 224 and AdamW): as pvt without cool-down; position
            embeddings and class token are not decayed, and neither are the transforms of
            less-attention, which decay would pull away from the identity; both terms of the
            diagonality loss with weight 0.1

Slide forms take the recipe of their family: only Slide-Swin's is public (it is the one above), the
others are assumed.

Deviations from the references' code:
- No repeated augmentation, with which PVT and PVTv2 train (every picture three times per epoch over
  a third of the pictures).
- The learning rate changes every step; the code of PVT, CSWin and NAT changes it every epoch.
- RandAugment has the operations and strengths of lambdanet/data/augment.py, where timm draws the
  magnitude around 9 (standard deviation 0.5) and lets every operation grow stronger with it. Erased
  pixels are uniform random ones; theirs normal noise.
- No colour jitter: the references set 0.4, but timm leaves it out when RandAugment is on.
- bfloat16 activations, where the references have mixed half precision or float32.
"""  # noqa: E501

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.imagenet90 import set_imagenet_data

SIZES = {
    "pvt": ("tiny", "small", "medium", "large"),
    "pvt_v2": ("b0", "b1", "b2", "b2_li", "b3", "b4", "b5"),
    "swin": ("tiny", "small", "base"),
    "cswin": ("tiny", "small", "base"),
    "nat": ("mini", "tiny", "small", "base"),
    "lavit": ("tiny", "small", "base", "tiny_paper", "small_paper", "base_paper"),
}
"""Sizes by family."""

MODELS: dict[str, str] = {
    f"{family}_{size}": family for family, sizes in SIZES.items() for size in sizes
}
MODELS |= {
    f"slide_{name}": family
    for name, family in MODELS.items()
    if family != "lavit" and name != "pvt_v2_b2_li"
}
"""Model name -> family."""

_PVT = dict(lr=1e-3, first_lr=1e-6, last_lr=1e-5, warmup=5.0, cooldown=10.0, batch_size=1024)
_SWIN = dict(lr=1e-3, first_lr=1e-6, last_lr=1e-5, warmup=20.0, clip_norm=5.0, batch_size=1024)
_CSWIN = dict(lr=2e-3, first_lr=1e-6, last_lr=1e-5, warmup=20.0, ema_decay=0.99984, batch_size=2048)
_NAT = dict(
    lr=1e-3, first_lr=1e-6, last_lr=5e-6, warmup=20.0, cooldown=10.0, clip_norm=5.0, batch_size=1024
)
_DIAGONALITY = (("symmetry", 0.1), ("diagonality", 0.1))
_LAVIT_SPARED = (
    r".*/(position_embedding|class_token|class_position)",
    r".*/(theta|psi)[^/]*/kernel",
)

RECIPES: dict[str, dict[str, Any]] = {
    "pvt": dict(_PVT, spared=(r".*/class_token",)),
    "pvt_v2": _PVT,
    "swin": _SWIN,
    "cswin": _CSWIN,
    "nat": dict(_NAT, interpolation="random"),
    "lavit": dict(_PVT, cooldown=0.0, spared=_LAVIT_SPARED, auxiliary_losses=_DIAGONALITY),
}
"""Arguments of `set_recipe` by family."""

SIZE_RECIPES: dict[str, dict[str, Any]] = {
    **{
        f"pvt_{size}": dict(clip_norm=1.0)
        for size in ("medium", "large", "v2_b3", "v2_b4", "v2_b5")
    },
    "cswin_base": dict(lr=1e-3, batch_size=1024, ema_decay=0.99992, weight_decay=0.1),
}
SIZE_RECIPES |= {f"slide_{name}": recipe for name, recipe in SIZE_RECIPES.items()}
# Slide-Swin's code squeezes the picture to a square before the centre crop, Swin's keeps its shape.
SIZE_RECIPES |= {f"slide_swin_{size}": dict(eval_keep_aspect=False) for size in SIZES["swin"]}
SIZE_RECIPES["slide_swin_base"] |= dict(lr=5e-4, first_lr=5e-7, last_lr=5e-6, batch_size=512)
"""What differs for single models."""


def get_config(arg: str = "slide_swin_tiny") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    name, smoke = base.split_arg(arg)
    name = name or "slide_swin_tiny"
    base.check_argument(name, MODELS)
    config = base.get_config()
    config.model.name = name
    config.model.dtype = "bfloat16"
    set_imagenet_data(config, size=224)
    config.data.rand_augment, config.data.random_erasing = (2, 9.0), 0.25
    # The recipes are given: the validation split may be watched, and the last checkpoint counts,
    # not the best.
    config.data.train_split, config.data.eval_split, config.data.test_split = (
        "train",
        "validation",
        "",
    )
    config.train.keep_best = ""
    config.classification.label_smoothing = 0.1
    config.classification.mixup_alpha, config.classification.cutmix_alpha = 0.8, 1.0
    set_recipe(config, **{**RECIPES[MODELS[name]], **SIZE_RECIPES.get(name, {})})
    if smoke:
        config = base.apply_smoke(config)
        config.model.num_heads = (2, 2, 4, 8)
        if (
            MODELS[name] == "lavit"
        ):  # more blocks than the vanilla ones, so that there is less-attention in the last stage
            config.model.blocks = (1, 1, 2, 2)
    return config


def set_recipe(
    config: ConfigDict,
    *,
    lr: float,
    first_lr: float,
    last_lr: float,
    warmup: float,
    batch_size: int,
    cooldown: float = 0.0,
    clip_norm: float = 0.0,
    weight_decay: float = 0.05,
    spared: tuple[str, ...] = (),
    ema_decay: float = 0.0,
    interpolation: str = "bicubic",
    eval_keep_aspect: bool = True,
    auxiliary_losses: tuple = (),
) -> None:
    """Sets what differs between the families.

    Args:
        config: changed in place.
        lr: at the end of the warm-up.
        first_lr: at its beginning.
        last_lr: at the end of the 300 epochs, and through the cool-down.
        warmup: epochs, of the 300.
        batch_size: the batch that these rates are meant for.
        cooldown: epochs after the 300.
        clip_norm: bound of the gradient's norm; 0 = none.
        weight_decay: decoupled.
        spared: further regexes of parameters that are not decayed.
        ema_decay: of the averaged weights; 0 = none.
        interpolation: resampling filter.
        eval_keep_aspect: False squeezes evaluation images to a square before the crop.
        auxiliary_losses: as the config's key.
    """
    optim, train = config.optim, config.train
    optim.name, optim.lr, optim.weight_decay, optim.clip_norm = "adamw", lr, weight_decay, clip_norm
    optim.schedule, optim.final_lr = "cosine", last_lr / lr
    optim.warmup_epochs, optim.warmup_start, optim.warmup_overlaps = warmup, first_lr / lr, True
    optim.cooldown_epochs = cooldown
    # One rule, since each must match something, and what is spared may not be there: a class token
    # with pool='mean'.
    optim.no_decay = ("|".join((r".*(bias|scale|gamma)", *spared)),)
    train.batch_size, train.epochs = batch_size, 300.0 + cooldown
    train.ema_decay, train.ema_warmup = ema_decay, False
    train.auxiliary_losses = auxiliary_losses
    config.data.interpolation, config.data.eval_keep_aspect = interpolation, eval_keep_aspect
