"""Training runs of the comparison: one `train.py` command per task, variant and seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import training_runs
from benchmarks.training_runs import Run
from configs import attention_zoo, digits
from lambdanet import attention

NO_RESIDUAL = {"model.attention_residual": "(False, False)"}
ABLATION = {
    "vanilla": {"model.vanilla_blocks": "(2, 3)", **NO_RESIDUAL},
    "reuse": {"model.transform": "reuse", **NO_RESIDUAL},
    "less": NO_RESIDUAL,
    "less_residual": {},
    "less_residual_diagonality": {
        "train.auxiliary_losses": "(('symmetry', 0.1), ('diagonality', 0.1))"
    },
}
"""The parts of LaViT, added one after the other to its digits form: attention of its own in every
layer; the first layer's logits reused as they are; less-attention; the attention residual too (the
preset); the diagonality-preserving loss too."""


def make_run(
    task: str, variant: str, seed: int, directory: Path, options: Mapping[str, str]
) -> Run:
    """Returns the run of a variant of a task; `options` are overrides of the config, as text."""
    if task == "backbones":
        row = next(row for row, model in digits.MODELS.items() if model == variant)
        recipe = f"configs/digits.py:{row}"
    elif task == "lavit":
        recipe, options = "configs/digits.py:lavit", {**ABLATION[variant], **options}
    else:
        recipe = f"configs/attention_zoo.py:{task},{variant}"
    return training_runs.make_run(task, variant, seed, directory, recipe, options)


def accuracy_record(run: Run, failure: str | None) -> dict[str, Any]:
    """Returns the record of a run: its outcome or, under `error`, why there is none."""
    kind = "backbone"
    if run.task in attention_zoo.TASKS:
        spec = attention_zoo.variants()[run.variant]
        kind = "convolutions" if spec is None else attention.kind(spec["name"])
    record = dict(suite="accuracy", task=run.task, variant=run.variant, kind=kind, seed=run.seed)
    record["command"] = run.command
    if failure is not None:
        return record | {"error": failure}
    wanted = ("total_steps", "accuracy", "loss", "count", "train_seconds", "wall_seconds")
    return record | {key: run.result[key] for key in wanted}
