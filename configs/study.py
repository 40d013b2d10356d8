"""Every attention block in one ResNet of 1-2 million parameters on photographs, and small forms of
the hierarchical families beside it: what `python -m benchmarks.study` trains.

    python -m lambdanet.data.prepare ../shared/data/clothing runs/study/photos
    python train.py --config=configs/study.py:se --workdir=runs/study_se
    python train.py --config=configs/study.py:swin --workdir=runs/study_swin

Argument: one of `NETS`: 'none' (convolutions only), the other variants of configs/attention_zoo.py,
or one of `FAMILIES`; ',smoke' as last part runs ten steps on synthetic images. The maps of the four
stages are 16x16, 8x8, 4x4 and 2x2. A mixer replaces the 3x3 convolutions of the second and third
stage, so that it sees maps of 16x16, 8x8, 8x8 and 4x4; a context block stands after the last block
of the first and second stage, on maps of 16x16 and 8x8. The families have four stages, too, with
two blocks each.

Numbers: our own. One recipe for all, chosen on the validation split with 'none' alone; clipping and
the second epoch of warm-up are there because the Transformers diverge without them. The test split
is read once. Measured results: docs/study.md.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import attention_zoo, base
from lambdanet.attention import kind, registry
from lambdanet.registry import suggest

SIDE = 64
"""Of the pictures, pixels."""
SHAPE = dict(blocks=(2, 2, 2, 2), widths=(32, 64, 128, 192), num_heads=(2, 4, 8, 12))
"""Of all families; 16 channels per head."""
WINDOWS = ({"name": "window", "window_size": 4}, {"name": "shifted_window", "window_size": 4})

FAMILIES: dict[str, dict[str, Any]] = {
    "pvt": dict(name="pvt_tiny"),
    # Its overlapping embeddings and convolutions in the MLPs would take it beyond two million.
    "pvt_v2": dict(name="pvt_v2_b0", widths=(32, 64, 128, 160), num_heads=(2, 4, 8, 10)),
    # Windows of 7x7 are for maps of 56x56 to 7x7.
    "swin": dict(name="swin_tiny", attention=(WINDOWS,) * 4),
    "cswin": dict(
        name="cswin_tiny",
        attention=tuple(
            dict(name="cross_shaped_window", stripe_width=width) for width in (1, 2, 2, None)
        ),
    ),
    "nat": dict(name="nat_mini", attention=dict(name="neighborhood", kernel_size=3)),
    "lavit": dict(name="lavit_tiny"),
    "slide_pvt": dict(name="slide_pvt_tiny"),
    "slide_swin": dict(name="slide_swin_tiny", attention=("slide", "slide", WINDOWS, WINDOWS)),
}
"""Options of the whole networks, beside `SHAPE`."""

OPTIONS: dict[str, dict[str, Any]] = {
    "lambda": dict(key_depth=8, scope=31),  # reaches every position of 16x16
    "halo_attention": dict(block_size=4, halo_size=2),
    "window": dict(window_size=4),
    "neighborhood": dict(kernel_size=3),  # a larger one would pad the map of 4x4
    "interlaced": dict(group_size=(4, 4)),
    "asp_object_context": dict(dilations=(1, 2, 4)),
}
"""Options by block, where the defaults are meant for larger maps."""

HEADS = 4
"""Of the mixers that have heads, at widths of 32 and 64."""

NETS = (*attention_zoo.variants(), *FAMILIES)
"""In the order in which they are trained."""


def kind_of(net: str) -> str:
    """Returns 'convolutions' | 'mixer' | 'context' | 'backbone'."""
    if net in FAMILIES:
        return "backbone"
    spec = attention_zoo.variants()[net]
    return "convolutions" if spec is None else kind(spec["name"])


def model_of(net: str) -> dict[str, Any]:
    """Returns the section `model` of a net; ValueError for an unknown name."""
    if net not in NETS:
        raise ValueError(f"argument {net!r}; allowed: {', '.join(NETS)}.{suggest(net, list(NETS))}")
    if net in FAMILIES:
        return {**SHAPE, "mlp_ratios": (4, 4, 4, 4), "drop_path_rate": 0.0, **FAMILIES[net]}
    model: dict[str, Any] = dict(name="resnet50", blocks=(1, 2, 2, 3), widths=(16, 32, 64, 128))
    model["zero_init_last"] = False
    spec = attention_zoo.variants()[net]
    if spec is None:
        return model
    spec = {**spec, **OPTIONS.get(spec["name"], {})}
    if kind(spec["name"]) == "context":
        return {**model, "context": {**spec, "after": ("stage1.1", "stage2.2")}}
    if "num_heads" in registry.parameters(spec["name"]):
        spec["num_heads"] = HEADS
    return {**model, "attention": spec, "attention_blocks": ((), "all", "all", ())}


def get_config(arg: str = "none") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    net, smoke = base.split_arg(arg)
    config = base.get_config()
    config.model = model_of(net or "none")

    config.data.source, config.data.data_dir = "image_folder", "runs/study/photos"
    config.data.image_size, config.data.channels = (SIDE, SIDE), 3
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.crop, config.data.crop_scale = "random_resized", (0.5, 1.0)
    config.data.flip = 0.5
    config.data.eval_keep_aspect = False  # clothes reach from edge to edge of their pictures

    config.optim.name, config.optim.lr, config.optim.weight_decay = "adamw", 2e-3, 0.05
    config.optim.schedule, config.optim.warmup_epochs = "cosine", 2.0
    config.optim.clip_norm = 1.0
    # One rule, since each must match something; the last part is LaViT's transforms.
    config.optim.no_decay = (
        r".*(bias|scale|embedding|gamma|class_token|class_position)|.*/(theta|psi)[^/]*/kernel",
    )

    config.train.batch_size = 64
    config.train.epochs = 10.0
    config.train.eval_batch_size = 128
    config.classification.label_smoothing = 0.1
    if smoke:
        model, size = config.model.copy_and_resolve_references(), config.data.image_size
        config = base.apply_smoke(config)
        config.model, config.data.image_size = model, size
    return config
