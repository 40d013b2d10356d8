"""Whether a run may go on from a checkpoint: what of its config may have changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lambdanet.training.checkpoint_meta import CheckpointError

# Config keys that may differ between a run and its continuation; everything else would silently
# make it another run.
MAY_CHANGE = (
    r"train\.(epochs|steps|min_steps|max_steps|eval_every|eval_batch_size|save_every|keep_last|keep_best|log_every)",
    r"train\.(tensorboard|report|cache_dir|damaged)",
    r"train\.(init_weights|init_head|init_average)",  # only the start reads them
    r"data\.(data_dir|num_workers|num_threads|prefetch|on_error|eval_split|test_split)",
    r"data\.(eval_crop|eval_keep_aspect|eval_resize_first)",
    r"data\.pseudo_labels",  # what is in the file is compared by the data's position
    r"mesh\..*",
    r"model\.remat",
)


def changed_keys(
    saved: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """Lists 'key: old -> new' of every config value that differs and is not in `MAY_CHANGE`.

    A key that `saved` lacks, being older than the key, counts as set to its value in `defaults`,
    outside the section `model`: new keys come with defaults that change nothing.
    """

    def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        flat = {}
        for key, value in tree.items():
            flat |= (
                leaves(value, f"{prefix}{key}.")
                if isinstance(value, Mapping)
                else {prefix + key: value}
            )
        return flat

    older = {key: value for key, value in (defaults or {}).items() if key != "model"}
    before, after = (leaves(json.loads(json.dumps(tree))) for tree in (saved, config))
    before = leaves(json.loads(json.dumps(older))) | before
    absent = "(not set)"
    return [
        f"{key}: {before.get(key, absent)!r} -> {after.get(key, absent)!r}"
        for key in sorted(before | after)
        if before.get(key, absent) != after.get(key, absent)
        and not any(re.fullmatch(p, key) for p in MAY_CHANGE)
    ]


def check_continues(
    workdir: str | Path,
    total_steps: int,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    modernise: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    step: int,
    saved: Mapping[str, Any],
) -> None:
    """Checks that a run with `config` may go on from a checkpoint with the config `saved`.

    Args:
        workdir: for the message.
        total_steps: length of the run now.
        config: today's config as plain values.
        defaults: see `changed_keys`.
        modernise: gives keys of older versions their present names.
        step: of the checkpoint.
        saved: the checkpoint's config.

    Raises:
        CheckpointError: lists every changed key that `MAY_CHANGE` does not allow; or the run is now
            shorter than `step`.
    """
    changed = changed_keys(modernise(saved), config, defaults)
    if changed:
        raise CheckpointError(
            f"{workdir} holds step {step} of a run with another config. Changed (old -> new):\n  "
            + "\n  ".join(changed)
            + "\nUndo this to continue that run, or name another workdir for a new one."
        )
    if step > total_steps:
        raise CheckpointError(
            f"{workdir} holds step {step}, but this run has only {total_steps} steps; raise "
            "train.epochs or train.steps"
        )
