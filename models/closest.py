"""Which model a stranger's file is of: by the names and sizes of its arrays."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from lambdanet.interop.names import Rule, choose_table, find_places
from lambdanet.training.state import flatten_names, split_model

from .building import model_builder
from .pretrained import TABLE
from .registration import registry

_MOST = 6  # models that are looked at whole, which takes half a second each
_PLACES = ("attention_blocks", "after", "drop_path_rate", "image_size", "num_classes")
"""Options that say where a block stands, or nothing of a block: models that differ in these alone
are of one kind.
"""
_BLOCK = re.compile(
    r"(?:^|\.)(?:layers?|stages?|levels|blocks?)\.?(\d+)\.(?:res_)?(?:blocks\.)?(\d+)\."
)
"""A block of a stage, in all grammars: layer1.0, stages.0.1, layers.0.blocks.1, block1.0,
blocks.1.res_blocks.0."""


def closest_model(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns a sentence that names the model that arrays are nearest to, '' if none is near.

    Of all models with PyTorch names those are compared that are nearest in the number of blocks of
    every stage: how many arrays go into a place of their own number of elements. One model of each
    kind is compared by the first block of its stages, those with public weights first, until one
    fits; else the best are compared as they are.

    Args:
        arrays: PyTorch key -> array.
    """
    blocks = _blocks_in(arrays)
    near = _nearest(blocks, arrays)
    if not blocks or not near:
        return ""
    kinds: dict[str, list[str]] = {}
    for name in sorted(near, key=lambda name: name not in TABLE):
        kinds.setdefault(_kind(name), []).append(name)
    first = {key: array for key, array in arrays.items() if not _number(key)}
    scores: dict[str, _Score] = {}
    shares: list[tuple[float, list[str]]] = []
    for names in kinds.values():
        score = _score(names[0], first, True)
        shares.append((score.share, names))
        if score.fits:
            scores |= {name: _score(name, arrays, False) for name in names[:_MOST]}
            if any(found.fits for found in scores.values()):
                break
    else:
        ranked = sorted(shares, key=lambda pair: -pair[0])
        for name in sum((names for _, names in ranked), [])[:_MOST]:
            scores[name] = scores.get(name) or _score(name, arrays, False)
    best = max(scores, key=lambda name: scores[name].share)
    fitting, count, _ = scores[best]
    if 2 * fitting < count:
        return ""
    how = f"all {count}" if fitting == count else f"{fitting} of the {count}"
    return (
        f"By the names and sizes of the file's arrays, the closest model is {best!r}: {how} arrays "
        "of it are there."
    )


def _nearest(blocks: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the models that may have these arrays, of those with as many stages the nearest."""
    axes = {array.ndim for array in arrays.values()}
    dense = any(key.startswith("backbone.") for key in arrays)
    distances = {}
    for name in registry.names():
        preset, own = registry.lookup(name)[1], _blocks_of(name)
        if len(own) != len(blocks):
            continue
        if dense and "backbone" not in preset:
            continue
        # networks of clips have kernels with five axes, those without a backbone a classifier
        if (5 not in axes and "frames" in registry.parameters(name)) or (
            not dense and 2 in axes and "backbone" in preset
        ):
            continue
        distances[name] = sum(abs(a - b) for a, b in zip(own, blocks, strict=True))
    least = min(distances.values(), default=0)
    return [name for name, distance in distances.items() if distance == least]


def _number(key: str) -> int:
    """Returns the number of the block that a key is of, 0 for what is in none."""
    match = _BLOCK.search(key)
    return int(match[2]) if match else 0


def _blocks_in(keys: Collection[str]) -> tuple[int, ...]:
    """Returns the number of blocks in every stage of the network that has these keys."""
    counts: dict[int, int] = {}
    for key in keys:
        if match := _BLOCK.search(key):
            stage, block = map(int, match.groups())
            counts[stage] = max(counts.get(stage, 0), block + 1)
    return tuple(counts[stage] for stage in sorted(counts))


def _blocks_of(name: str) -> tuple[int, ...]:
    """Returns the number of blocks in every stage of a model, or of its backbone; () where its
    name leaves them open.
    """
    preset = registry.lookup(name)[1]
    if "backbone" not in preset:
        return preset.get("blocks", ())
    backbone = _spec(preset["backbone"])
    return backbone.get("blocks") or _blocks_of(backbone["name"])


def _spec(backbone: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"name": backbone} if isinstance(backbone, str) else dict(backbone)


def _kind(name: str) -> str:
    """Returns what models that differ in the places of their blocks alone have in common."""

    def without(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: without(entry) for key, entry in value.items() if key not in _PLACES}

    factory, preset = registry.lookup(name)
    return f"{factory.__qualname__} {without(preset)}"


@functools.cache
def _sizes(name: str, shallow: bool) -> tuple[dict[str, int], Mapping[str, tuple[Rule, ...]]]:
    """Returns the numbers of elements of a model's arrays, by path, and its tables of names; {} and
    {} where PyTorch has no such model. With `shallow` of the model with one block in every stage.
    """
    options: dict[str, Any] = {}
    if shallow:
        ones, preset = (1,) * len(_blocks_of(name)), registry.lookup(name)[1]
        options["blocks"] = ones
        if "backbone" in preset:
            options = {"backbone": _spec(preset["backbone"]) | options}
    model = nnx.eval_shape(lambda: model_builder(name, **options)(rngs=nnx.Rngs(0)))
    _, *trees = split_model(model)
    try:
        tables = model.torch_names
    except ValueError:
        return {}, {}
    return {
        path: math.prod(leaf.shape) for tree in trees for path, leaf in flatten_names(tree).items()
    }, tables


class _Score(NamedTuple):
    """How many of a model's arrays are there, how many it has, and for how many keys it has no
    place of their size.
    """

    fitting: int
    count: int
    strange: int

    @property
    def share(self) -> float:
        return self.fitting / (self.count + self.strange)

    @property
    def fits(self) -> bool:
        """Whether all is there, but perhaps for a classifier of other classes."""
        return self.count - self.fitting <= 2 and self.strange <= 2


def _score(name: str, arrays: Mapping[str, np.ndarray], shallow: bool) -> _Score:
    sizes, tables = _sizes(name, shallow)
    if not tables:
        return _Score(0, 1, len(arrays))
    places = find_places(arrays, tables[choose_table(tables, arrays, sizes)], sizes)
    filled, strange = set(), 0
    for key, found in places.items():
        rule, targets = found[0] if len(found) == 1 else (None, ())
        if rule and not targets:
            continue  # dropped by rule
        wanted = sum(sizes.get(path, 0) for path in targets)
        if rule and rule.piece is not None:
            wanted //= rule.piece[1]
        if wanted == arrays[key].size:
            filled.update(targets)
        else:
            strange += 1
    return _Score(len(filled), len(sizes), strange)
