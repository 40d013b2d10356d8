"""The lines of benchmarks/results/study.jsonl: how they are kept, and which belong together.

suite 'data': the photographs. suite 'net': one trained network, with the recipe's digest and what
it gets right. suite 'step': its step time. A later record of the same thing takes the place of the
earlier one; records of other recipes stay in the file and are not shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from benchmarks.study_variations import BLUR, NOISE, SHIFT
from benchmarks.training_runs import RUN_OPTIONS
from configs import base
from lambdanet.atomic import write_file
from lambdanet.config import leaves, to_plain

Record = dict[str, Any]

NO_RECIPE = {
    *("seed", "data.data_dir", "data.num_workers", "data.prefetch", "train.cache_dir"),
    *RUN_OPTIONS,
}
"""Keys of a config that say where, how fast or for which seed a network is trained."""


def pack(right: Bool[np.ndarray, " images"]) -> str:
    """Returns one bit per image as hexadecimal digits, the first image in the highest bit."""
    return np.packbits(right).tobytes().hex()


def unpack(text: str, count: int) -> Bool[np.ndarray, " images"]:
    """Returns what `pack` was given; `count` is the number of images."""
    packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)


def recipe_digest(task: str, config: ConfigDict) -> str:
    """Returns a short hash of all that decides what a network of this config learns and is asked,
    but for the seed: what a recipe changes of configs/base.py, so that a new key there, whose
    default changes nothing, leaves it as it is.
    """
    defaults = dict(leaves(base.get_config()))
    changed = {
        key: value
        for key, value in leaves(config)
        if key not in NO_RECIPE and value != defaults.get(key)
    }
    asked = {"shift": SHIFT, "noise": NOISE, "blur": BLUR} if task == "photos" else {}
    recipe = {"config": changed, "model": to_plain(config.model), "asked": asked}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def read(path: Path) -> list[Record]:
    """Returns the records of a file, none if there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def put(path: Path, record: Record) -> None:
    """Writes a record to its place in the file, a new one at the end."""
    records = read(path)
    keys = [_key(one) for one in records]
    if _key(record) in keys:
        records[keys.index(_key(record))] = record
    else:
        records.append(record)
    write_file(path, "".join(json.dumps(one) + "\n" for one in records))


def _key(record: Record) -> tuple:
    return tuple(record.get(name) for name in ("suite", "task", "net", "seed", "recipe"))


def current(records: list[Record], recipes: Mapping[tuple[str, str], str]) -> list[Record]:
    """Returns the records of networks and of step times that have the recipe of today, `recipes`
    being its digest by task and network.
    """
    return [
        record
        for record in records
        if "recipe" in record and recipes.get((record["task"], record["net"])) == record["recipe"]
    ]


def finished(records: list[Record]) -> dict[tuple[str, str, int], Record]:
    """Returns the records of networks that did not fail, by task, network and seed."""
    return {
        (record["task"], record["net"], record["seed"]): record
        for record in records
        if record["suite"] == "net" and "error" not in record
    }
