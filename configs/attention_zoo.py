"""Every attention block in the same small ResNet under one recipe: what `python -m
benchmarks.compare` trains.

    python train.py --config=configs/attention_zoo.py:digits,lambda --workdir=runs/zoo_lambda
    python train.py --config=configs/attention_zoo.py:cued,gc --workdir=runs/zoo_gc

Argument: 'TASK,VARIANT': task 'digits' or 'cued' (configs/digits.py and configs/cued_digits.py say
what they are), variant one of `variants()`: 'none' (convolutions only), every registered block, and
the further modes in `EXTRA`; ',smoke' as last part runs ten steps on synthetic images. A mixer
replaces the 3x3 convolutions of the last stage; a context block stands after the last block of the
first stage.

Numbers: the recipes of the two tasks, the digits at half their length; nothing was tuned for any
variant. All variants of a task take the same number of steps. Measured results: docs/comparison.md.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import base, cued_digits, digits
from lambdanet.attention import kind, registry
from lambdanet.registry import suggest

TASKS = {"digits": (digits, "conv", 2), "cued": (cued_digits, "none", 1)}
"""By task: its recipe, the recipe's argument for convolutions only, and the blocks of the first
stage.
"""

EXTRA: dict[str, dict[str, Any]] = {
    "nonlocal_gaussian": dict(name="nonlocal", mode="gaussian"),
    "nonlocal_dot": dict(name="nonlocal", mode="dot_product"),
    "nonlocal_concatenation": dict(name="nonlocal", mode="concatenation"),
    "cgnlx": dict(name="cgnlx"),
    "rcca": dict(name="rcca"),
}
"""Variants beside the defaults of the registered blocks."""

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    # Reaches every position, as in lambda_resnet_digits.
    "lambda": {"digits": dict(key_depth=8, scope=15), "cued": cued_digits.OPTIONS["lambda"]},
    # A block of 8x8 would be the whole map of the digits.
    "halo_attention": {"digits": dict(block_size=4, halo_size=2)},
    # Cells of sqrt(n) positions.
    "interlaced": {"digits": dict(group_size=(2, 4)), "cued": dict(group_size=(4, 4))},
    # Dilations of 12 and more would leave one tap on the map.
    "asp_object_context": {"digits": dict(dilations=(1, 2, 3)), "cued": dict(dilations=(2, 4, 6))},
}
"""Options by block and task, where the defaults are not meant for maps of 8x8 (digits) or 16x16
(cued).
"""


def variants() -> dict[str, dict[str, Any] | None]:
    """Returns the spec of every variant by name: None (convolutions only), or `name` and options as
    in a config.

    A registered block appears by itself; names that only preset options of another block appear if
    `EXTRA` has them.
    """
    blocks = [
        name
        for name in registry.names()
        if not registry.lookup(name)[1] and kind(name) != "carried"
    ]
    plain = {name: {"name": name} for name in blocks}
    return {
        "none": None,
        **{name: plain.get(name) or EXTRA[name] for name in sorted({*plain, *EXTRA})},
    }


def spec_for(task: str, variant: str) -> dict[str, Any] | None:
    """Returns the spec of a variant with the options it needs at the task's map sizes; ValueError
    for unknown names.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r}; allowed: {', '.join(TASKS)}.{suggest(task, list(TASKS))}")
    known = variants()
    if variant not in known:
        raise ValueError(
            f"variant {variant!r}; allowed: {', '.join(known)}.{suggest(variant, list(known))}"
        )
    spec = known[variant]
    return None if spec is None else {**spec, **OPTIONS.get(spec["name"], {}).get(task, {})}


def get_config(arg: str = "digits,none") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    row, smoke = base.split_arg(arg)
    task, _, variant = row.partition(",")
    spec = spec_for(task, variant or "none")
    recipe, plain, depth = TASKS[task]
    config = recipe.get_config(plain)
    if spec is not None and kind(spec["name"]) == "mixer":
        config.model.attention, config.model.attention_blocks = spec, ((), "all")
    elif spec is not None:
        config.model.context = {**spec, "after": f"stage1.{depth}"}
    if task == "digits":
        config.train.epochs = 20.0
    if smoke:
        model, size = config.model.copy_and_resolve_references(), config.data.image_size
        config = base.apply_smoke(config)
        config.model, config.data.image_size = model, size
    return config
