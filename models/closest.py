"""Which model a stranger's file is of: by the names and sizes of its arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

import numpy as np
from flax import nnx

from lambdanet.interop.names import choose_table, find_places
from lambdanet.training.state import flatten_names, split_model

from .building import model_builder
from .pretrained import TABLE
from .registration import registry

_MOST = 8  # models that are looked at closely, which takes a second each
_BLOCK = re.compile(
    r"(?:^|\.)(?:layers?|stages?|levels|blocks?)\.?(\d+)\.(?:res_)?(?:blocks\.)?(\d+)\."
)
"""A block of a stage, in all grammars: layer1.0, stages.0.1, layers.0.blocks.1, block1.0,
blocks.1.res_blocks.0."""


def closest_model(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns a sentence that names the model with public weights (`pretrained.TABLE`) that arrays
    are nearest to, '' if none is near.

    Those that are nearest in the number of blocks of every stage are compared: how many arrays go
    into a place of their own number of elements.

    Args:
        arrays: PyTorch key -> array.
    """
    blocks = _blocks_in(arrays)
    if not blocks:
        return ""

    def distance(name: str) -> int:
        own = _blocks_of(name)
        if len(own) != len(blocks):
            return 10**6 + sum(own)
        return sum(abs(a - b) for a, b in zip(own, blocks, strict=True))

    dense = any(key.startswith("backbone.") for key in arrays)
    alike = [name for name in TABLE if ("backbone" in registry.lookup(name)[1]) == dense]
    names = sorted(alike, key=distance)
    scores = {name: _score(name, arrays) for name in names[:_MOST]}
    best = max(scores, key=lambda name: scores[name][0] / max(scores[name][1], len(arrays), 1))
    fitting, count = scores[best]
    if 2 * fitting < count:
        return ""
    how = f"all {count}" if fitting == count else f"{fitting} of the {count}"
    return (
        f"By the names and sizes of the file's arrays, the closest model is {best!r}: {how} arrays "
        "of it are there."
    )


def _blocks_in(keys: Collection[str]) -> tuple[int, ...]:
    """Returns the number of blocks in every stage of the network that has these keys."""
    counts: dict[int, int] = {}
    for key in keys:
        if match := _BLOCK.search(key):
            stage, block = map(int, match.groups())
            counts[stage] = max(counts.get(stage, 0), block + 1)
    return tuple(counts[stage] for stage in sorted(counts))


def _blocks_of(name: str) -> tuple[int, ...]:
    """Returns the number of blocks in every stage of a model, or of its backbone."""
    preset = registry.lookup(name)[1]
    backbone = preset.get("backbone")
    if backbone is None:
        return preset["blocks"]
    backbone = {"name": backbone} if isinstance(backbone, str) else backbone
    return backbone.get("blocks") or _blocks_of(backbone["name"])


def _score(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Returns how many of a model's arrays are there, and how many it has."""
    model = nnx.eval_shape(lambda: model_builder(name)(rngs=nnx.Rngs(0)))
    _, *trees = split_model(model)
    sizes = {
        path: math.prod(leaf.shape) for tree in trees for path, leaf in flatten_names(tree).items()
    }
    tables = model.torch_names
    places = find_places(arrays, tables[choose_table(tables, arrays, sizes)], sizes)
    filled = set()
    for key, found in places.items():
        if len(found) != 1:
            continue
        rule, targets = found[0]
        wanted = sum(sizes.get(path, 0) for path in targets)
        if rule.piece is not None:
            wanted //= rule.piece[1]
        if targets and wanted == arrays[key].size:
            filled.update(targets)
    return len(filled), len(sizes)
