"""What a run keeps of its data: `classes.json` beside `config.json`, written once at its start, so
that predictions and exports have class names where the data are not.

How pictures are prepared stands in `config.json`, section `data`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambdanet.atomic import write_file
from lambdanet.data.record import DataInfo

FILE_NAME = "classes.json"
MAX_BYTES = 64 * 2**20  # of the file; a million names have less
MOST_NAMED = 3  # classes that a message names


def to_plain(info: DataInfo) -> dict[str, Any]:
    """Returns what a task found in the data as JSON values."""
    return {
        "classes": list(info.classes),
        "class_ids": [int(number) for number in info.class_ids],
        "features": dict(info.features),
    }


def from_plain(plain: Any) -> DataInfo:
    """Returns what `to_plain` was given; raises ValueError for anything else."""
    if not isinstance(plain, Mapping):
        raise ValueError(f"a {type(plain).__name__} in place of an object")
    classes, numbers, features = (plain.get(k) for k in ("classes", "class_ids", "features"))
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("'classes' must be a list of texts")
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise ValueError("'class_ids' must be a list of integers")
    if not isinstance(features, Mapping) or not all(
        isinstance(value, str) for value in features.values()
    ):
        raise ValueError("'features' must be an object of texts")
    return DataInfo(dict(features), tuple(classes), tuple(numbers))


def keep(info: DataInfo, workdir: str | os.PathLike, *, begins: bool, write: bool = True) -> None:
    """Writes <workdir>/classes.json; in a run that goes on, compares what stands there.

    Args:
        info: what the task found in the data.
        workdir: of the run.
        begins: whether no step was saved yet.
        write: whether this process writes.

    Raises:
        ValueError: the run began with other classes, or the file is damaged.
    """
    path = Path(workdir) / FILE_NAME
    kept = None if begins else load(workdir)
    if kept is None:
        if write:
            write_file(path, _text(info))
    elif text := difference(kept, info):
        raise ValueError(
            f"{path}: the run began with other classes: {text}; restore the data, or begin in a "
            "new workdir"
        )


def load(workdir: str | os.PathLike) -> DataInfo | None:
    """Returns what <workdir>/classes.json holds; None where there is no such file, as in runs until
    2026-11.

    Raises:
        ValueError: it is not what was written.
    """
    path = Path(workdir) / FILE_NAME
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes; allowed: up to {MAX_BYTES:,}")
        if stat.S_ISFIFO(path.stat().st_mode):  # or reading it would wait for somebody who writes
            raise ValueError("it is a pipe")
        text = path.read_text(encoding="utf-8")
        info = from_plain(json.loads(text))
        if text != _text(info):
            raise ValueError("its digest is wrong")
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore it from a copy, or delete it; the same training "
            "command then writes it anew from the data"
        ) from error
    return info


def difference(kept: DataInfo, found: DataInfo) -> str:
    """Returns how the classes of the data differ from those that a run keeps; '' for not at all."""
    if kept.classes == found.classes:
        return ""
    if len(kept.classes) != len(found.classes):
        return f"{len(kept.classes)} then, {len(found.classes)} in the data now"
    pairs = zip(kept.classes, found.classes, strict=True)
    changed = [f"{i} was {a!r}, is {b!r}" for i, (a, b) in enumerate(pairs) if a != b]
    more = [f"{len(changed) - MOST_NAMED} more"] * (len(changed) > MOST_NAMED)
    return ", ".join(changed[:MOST_NAMED] + more)


def _text(info: DataInfo) -> str:
    plain = to_plain(info)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    return json.dumps(plain | {"digest": digest}, indent=1, ensure_ascii=False) + "\n"
