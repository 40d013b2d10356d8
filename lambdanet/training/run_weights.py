"""The weights of a run as they lie in its newest checkpoint, without its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lambdanet.training.checkpoint import Checkpoints


def config_of(workdir: str | Path) -> dict[str, Any]:
    """Returns the config of the newest checkpoint of a run, as plain values; no array is read.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
    """
    checkpoints = Checkpoints(workdir, keep_best="", read_only=True)
    try:
        return checkpoints.meta(checkpoints.latest_step())["config"]
    finally:
        checkpoints.close()


def read_run(
    workdir: str | Path, *, prefer_ema: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the weights of the newest checkpoint of a run, whatever its model.

    Args:
        workdir: directory of the run, which may still be going on.
        prefer_ema: take the averaged weights where there are some.

    Returns:
        '/'-path -> array of every parameter and statistic; the run's config as plain values.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
    """
    checkpoints = Checkpoints(workdir, keep_best="", read_only=True)
    try:
        step = checkpoints.latest_step()
        config = checkpoints.meta(step)["config"]  # says that there is none
        averaged = prefer_ema and config["train"]["ema_decay"] > 0
        starts = ("ema/params/", "ema/stats/") if averaged else ("params/", "stats/")
        index = checkpoints.index(step)
        wanted = {name: leaf for name, leaf in index.items() if name.startswith(starts)}
        found = checkpoints.read_part(step, wanted)
    finally:
        checkpoints.close()
    short = {name: name.split("/", 2 if averaged else 1)[-1] for name in found}
    return {short[name]: np.asarray(array) for name, array in found.items()}, config
