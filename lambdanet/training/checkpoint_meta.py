"""What a checkpoint says of itself beside its arrays: its checks, and the scores that decide which
is best.

`meta` holds the config, the position of the data, the progress, a checksum of every array, the
score of an evaluation, and a digest of all this and of the step, so that an edited entry or a
renamed folder is noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from lambdanet.atomic import write_file


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or continued; the message says which, where and
    what to do.
    """


class DamagedError(CheckpointError):
    """A checkpoint whose files are not what was written."""


NO_PROGRESS: Mapping[str, Any] = {"seconds": 0.0, "window": {}}
"""Seconds of training so far, and `metrics.Window.sums`."""

SCORE_FILE = "score.json"  # an evaluation that came after the checkpoint; goes before that in meta


def make_meta(step: int, **entries: Any) -> dict[str, Any]:
    """Returns the entries as plain JSON values, with their digest."""
    plain = json.loads(json.dumps(entries))
    return plain | {"digest": _digest(step, plain)}


def _digest(step: int, meta: Mapping[str, Any]) -> str:
    entries = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps([step, entries], sort_keys=True).encode()).hexdigest()


def check_meta(step: int, meta: Any) -> dict[str, Any]:
    """Returns a checkpoint's meta, completed where an older version wrote it.

    Raises:
        ValueError: names the entry that is missing, of a wrong type, or changed.
    """
    if not isinstance(meta, Mapping):
        raise ValueError(f"meta is no mapping but {type(meta).__name__}")
    meta = dict(meta)
    for entry in ("config", "data", "checksums"):
        if not isinstance(meta.get(entry), Mapping):
            raise ValueError(f"meta has no mapping {entry!r}")
    is_older = "progress" not in meta  # until 2026-11 there was no digest either
    if is_older and "digest" not in meta:
        _check_older_config(meta["config"])
    elif meta.get("digest") != _digest(step, meta):
        raise ValueError("meta is not what was written: its digest is wrong")
    batches = meta["data"].get("batches")
    if batches != step or isinstance(batches, bool):
        raise ValueError(f"meta belongs to another step: {batches!r} batches read by step {step}")
    if is_older:  # the seconds stood with the position of the data
        meta["progress"] = {**NO_PROGRESS, "seconds": meta["data"].get("seconds", 0.0)}
    progress = meta["progress"]
    if not isinstance(progress, Mapping) or not isinstance(progress.get("window"), Mapping):
        raise ValueError("meta has no mapping 'progress' with a mapping 'window'")
    if not _is_number(progress.get("seconds")):
        raise ValueError(f"meta has no number 'progress.seconds' but {progress.get('seconds')!r}")
    return meta


def _check_older_config(config: Mapping[str, Any]) -> None:
    """Raises ValueError unless it has what this module's users read; a digest vouches for newer."""
    train = config.get("train")
    train = train if isinstance(train, Mapping) else {}
    if not isinstance(train.get("keep_best"), str):
        raise ValueError("meta has no text 'config.train.keep_best'")
    if not _is_number(train.get("ema_decay")):
        raise ValueError("meta has no number 'config.train.ema_decay'")


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


# ---- Scores --------------------------------------------------------------------------------------


def usable_score(step: int, metrics: Mapping[str, Any] | None, keep: str) -> float | None:
    """Returns the metric that decides; None if there is none, or none that is finite (said)."""
    if not keep or not metrics or keep not in metrics:
        return None
    if _is_number(metrics[keep]):
        return float(metrics[keep])
    logging.warning("step %d: %s is %s, so it cannot be the best", step, keep, metrics[keep])
    return None


def read_score(folder: Path, keep: str) -> float | None:
    """Returns the score of a complete checkpoint; an unreadable one counts as none, which is said.

    Args:
        folder: <checkpoints>/<step>.
        keep: name of the metric; '' = none.
    """
    # The item `metrics` is what versions until 2026-11 wrote.
    for path, entry in (
        (folder / SCORE_FILE, None),
        (folder / "meta" / "metadata", "score"),
        (folder / "metrics" / "metrics", None),
    ):
        if not keep or not path.is_file():
            continue
        try:
            found = json.loads(path.read_text())
            found = found.get(entry) if entry else found
            if found is None:
                continue
            if not isinstance(found, dict):
                raise ValueError(f"{type(found).__name__} in place of a mapping")
            return usable_score(int(folder.name), found, keep)
        except (ValueError, AttributeError, OSError, RecursionError) as error:
            logging.warning("%s cannot be read (%s); that step has no score", path, error)
            return None
    return None


def write_score(folder: Path, metrics: Mapping[str, float]) -> None:
    """Gives a complete checkpoint its score afterwards."""
    write_file(folder / SCORE_FILE, json.dumps(dict(metrics)))


def default_mode(metric: str) -> str:
    """Returns 'min' for a loss, else 'max': what checkpoints without the entry `mode` mean."""
    return "min" if metric.endswith("loss") else "max"


def best_of(
    scores: Mapping[int, float | None], steps: Sequence[int], *, smaller: bool
) -> int | None:
    """Returns the step with the best score, of equal ones the latest; None if none has one."""
    sign = -1.0 if smaller else 1.0
    known = [(sign * scores[s], s) for s in steps if scores.get(s) is not None]
    return max(known)[1] if known else None
