"""A weights file for a model: strict, with conversions where both shapes have to be known, each
only if it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from lambdanet.attention.slide import SlideAttention, head_major_qkv, reparameterise
from lambdanet.attention.window import resize_table
from lambdanet.interop import files
from lambdanet.interop.grids import Grid, Known, grids_of, rows_of
from lambdanet.interop.names import NameMappingError, Place, choose_table, convert, find_places
from lambdanet.layers import resize_bilinear
from lambdanet.ops.slide_mix import shift_weight
from lambdanet.training.state import flatten_names, initialise, split_model, unflatten_names
from lambdanet.training.weights import read_source

Build = Callable[[], nnx.Module]

PROJECTIONS = ("qkv", "query", "key_value", "output")
"""Parts of an attention that slide attention can start from."""


@dataclass(frozen=True)
class Line:
    """One line of the report: a name in the file with its shape, our path with its shape, and how
    one became the other.
    """

    key: str
    key_shape: tuple[int, ...]
    path: str
    shape: tuple[int, ...]
    how: str


@dataclass(frozen=True)
class Imported:
    """What a file gives a model.

    Attributes:
        arrays: our path -> float32 array, every parameter and statistic of the model.
        lines: where each of them comes from, and what became of the rest of the file.
        grammar: whose names the file has.
    """

    arrays: dict[str, np.ndarray]
    lines: list[Line]
    grammar: str


def import_weights(
    path: str | os.PathLike,
    build: Build,
    *,
    supposed: Mapping[str, Grid] | None = None,
    resize_tables: bool = False,
    warm_start_slide: bool = False,
    merge_slide: bool = False,
    split_slide: bool = False,
    prefer_ema: bool = True,
) -> Imported:
    """Reads a weights file for a model; strict but for the conversions asked for.

    Args:
        path: the file, or another source, see `lambdanet.interop.sources`.
        build: makes the model; it runs only where initial values are needed, else it is traced for
            its shapes.
        supposed: grids of the model that the file was made with, see `grids.grids_of`; read for
            tables whose size the file does not say.
        resize_tables: resize tables that are for another size: of relative biases in windows
            (bicubically, per head) and learned positions (bilinearly).
        warm_start_slide: slide attention starts from the projections of another attention,
            reordered; what is new in it keeps its initial value.
        merge_slide: store the sums of fixed and learned kernels, the inference form of slide
            attention.
        split_slide: the file holds such sums; take the fixed kernels off again.
        prefer_ema: of a checkpoint with live and averaged weights take the averaged ones.

    Raises:
        FileNotFoundError, WeightsFileError: no such file, or one that cannot be read.
        NameMappingError: the weights do not fit; all problems at once.
        ValueError: a conversion that was asked for does not apply.
    """
    model = nnx.eval_shape((lambda: reparameterise(build())) if split_slide else build)
    slides = _slide_layers(model)
    for flag, given in (
        ("--warm-start-slide", warm_start_slide),
        ("--merge-slide", merge_slide),
        ("--split-slide", split_slide),
    ):
        if given and not slides:
            raise ValueError(f"{flag}: the model has no slide attention")
    if merge_slide and any(layer.merged for layer in slides.values()):
        raise ValueError(
            "--merge-slide: the model is merged already; give it as it is before, the flag makes "
            "the merged form"
        )
    state, ours, metadata = read_source(path, prefer_ema=prefer_ema)
    grids, known = grids_of(model), files.known_grids(metadata) if ours else Known()
    known = replace(known, supposed=supposed or {})
    state = {key: np.asarray(array, np.float32) for key, array in state.items()}
    shapes = {name: tuple(leaf.shape) for name, leaf in _flat(model).items()}
    tables = {"lambdanet": files.OWN_NAMES} if ours else model.torch_names
    grammar = choose_table(tables, state, shapes)
    rules = tables[grammar]

    places = find_places(state, rules, shapes)
    foreign = _foreign(slides, places)
    if warm_start_slide and not foreign:
        raise ValueError(
            "--warm-start-slide: the file has the weights of every slide attention; leave the flag "
            "out"
        )
    lines, notes = [], {}  # notes: our path -> what was done beside the rule's transform
    wanted = shapes
    if warm_start_slide:
        for at, keys in foreign.items():
            left_out = [key for key in keys if not _projections(at, places[key])]
            lines += [
                Line(key, state.pop(key).shape, "-", (), "left out: slide attention has none")
                for key in left_out
            ]
            pair = any(
                target.startswith(f"{at}/query/")
                for key in keys
                for target in _targets(places[key])
            )
            wanted = {
                name: shape for name, shape in wanted.items() if not name.startswith(f"{at}/")
            }
            wanted |= _source_shapes(at, slides[at], pair)
    resized = {}

    fit = getattr(model, "fit_array", None)

    def reshape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if name not in grids:
            if fit is None or array.shape == shape:
                return array
            array = fit(name, array, shape)
            if array.shape == shape:
                resized[name] = "inflated"
            return array
        rows, wanted = rows_of(array), grids[name]
        problem, found = known.problem(name, rows, wanted), known.grid(name, rows, wanted)
        if found and problem and resize_tables:
            resized[name] = f"resized from {found}"
            return _resize(name, array, found, wanted)
        if problem:
            raise ValueError(problem)
        return array

    try:
        arrays = convert(state, rules, wanted, reshape=reshape)
    except NameMappingError as error:
        hints = _hints(state, {} if split_slide else slides, bool(foreign) and not warm_start_slide)
        raise NameMappingError(
            "".join((f"{os.fspath(path)} (names: {grammar}): {error}", *hints))
        ) from None
    notes |= resized
    if warm_start_slide:
        for at, initial in initialise(lambda: _initial_values(build(), foreign), None).items():
            arrays, told = _warm_start(arrays, at, slides[at], initial)
            notes |= told
    if merge_slide or split_slide:
        parts = [
            name
            for name in arrays
            for at in slides
            if name.startswith((f"{at}/fixed_", f"{at}/deformed_"))
        ]
        notes |= dict.fromkeys(parts, "merged" if merge_slide else "split")
    lines = _lines(state, find_places(state, rules, wanted), arrays, notes) + lines
    filled = {line.path for line in lines}
    lines += [
        Line("-", (), name, arrays[name].shape, "initial value")
        for name in arrays
        if name not in filled
    ]
    if split_slide:
        before, arrays = arrays, _split(arrays, slides, _flat(nnx.eval_shape(build)))
        lines += [
            Line("-", (), name, arrays[name].shape, "zero, split")
            for name in arrays
            if name not in before
        ]
    if merge_slide:
        arrays = _merge(model, arrays)
    return Imported(
        {name: np.asarray(array, np.float32) for name, array in arrays.items()}, lines, grammar
    )


def _flat(model: nnx.Module) -> dict[str, Any]:
    _, params, stats = split_model(model)
    return flatten_names(params) | flatten_names(stats)


def _initial_values(model: nnx.Module, layers: Iterable[str]) -> dict[str, dict[str, jax.Array]]:
    """Path of a slide layer -> its arrays but for those of the projections, by their full paths."""
    flat = _flat(model)
    own = {
        at: [
            name
            for name in flat
            if name.startswith(f"{at}/") and name.split("/")[-2] not in PROJECTIONS
        ]
        for at in layers
    }
    return {at: {name: flat[name] for name in names} for at, names in own.items()}


def _slide_layers(model: nnx.Module) -> dict[str, SlideAttention]:
    found = (
        (path, module)
        for path, module in nnx.iter_modules(model)
        if isinstance(module, SlideAttention)
    )
    return {"/".join(map(str, path)): module for path, module in found}


def _targets(places: Sequence[Place]) -> list[str]:
    return [target for _, targets in places for target in targets]


def _foreign(
    slides: Mapping[str, SlideAttention], places: Mapping[str, list[Place]]
) -> dict[str, list[str]]:
    """Paths of the slide layers for which the file has weights, but of another attention -> the
    file's keys there.
    """
    found = {}
    for at in slides:
        keys = [
            key
            for key, known in places.items()
            if any(target.startswith(f"{at}/") for target in _targets(known))
        ]
        names = {target.removeprefix(f"{at}/") for key in keys for target in _targets(places[key])}
        if keys and not any(name.startswith(("fixed_", "deformed_")) for name in names):
            found[at] = keys
    return found


def _projections(at: str, places: Sequence[Place]) -> bool:
    return all(
        target.removeprefix(f"{at}/").split("/")[0] in PROJECTIONS for target in _targets(places)
    )


# --------------------------------------------------------------------------------------------------
# Conversions
# --------------------------------------------------------------------------------------------------


def _source_shapes(at: str, layer: SlideAttention, pair: bool) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of the projections that a slide layer can start from: one for q, k and v, or
    q and a pair.
    """
    if layer.share_qkv or layer.inner != layer.dim:
        raise ValueError(
            f"--warm-start-slide: {at} has share_qkv or dim_reduction; allowed: layers with all of "
            "q, k and v"
        )
    dim, shapes = (
        layer.dim,
        {f"{at}/output/kernel": (layer.dim, layer.dim), f"{at}/output/bias": (layer.dim,)},
    )
    for name, width in (
        {"query": dim, "key_value": 2 * dim}.items() if pair else {"qkv": 3 * dim}.items()
    ):
        shapes[f"{at}/{name}/kernel"] = (dim, width)
        if layer.qkv.bias is not None:
            shapes[f"{at}/{name}/bias"] = (width,)
    return shapes


def _warm_start(
    arrays: Mapping[str, np.ndarray],
    at: str,
    layer: SlideAttention,
    initial: Mapping[str, jax.Array],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Replaces the projections of another attention by those of a slide layer, whose other weights
    keep initial values.

    The other attentions have the columns [q | k | v][head][depth], in one array or two; slide has
    [head][q | k | v][depth].
    """
    arrays, notes = dict(arrays), {}
    for part in ("kernel", "bias"):
        names = [
            name
            for name in (f"{at}/{one}/{part}" for one in ("qkv", "query", "key_value"))
            if name in arrays
        ]
        if names:
            joint = np.concatenate([arrays.pop(name) for name in names], axis=-1)
            arrays[f"{at}/qkv/{part}"] = head_major_qkv(joint, layer.num_heads)
            notes |= dict.fromkeys(names, f"to qkv/{part}, head by head")
    return {**{name: np.asarray(array) for name, array in initial.items()}, **arrays}, notes


def _resize(path: str, array: np.ndarray, old: Grid, new: Grid) -> np.ndarray:
    """Returns a table in the size of another grid; ValueError for one that has no rule for that."""
    if old.kind == "window":
        return resize_table(array, old.size, new.size)
    if not path.endswith("position_embedding"):
        raise ValueError(
            f"it is for {old}, the model has {new}; --resize-tables resizes windows' relative "
            "biases and learned positions alone"
        )
    cells = jax.numpy.asarray(array.reshape(1, *old.size, -1))  # as the model does at run time
    return np.asarray(resize_bilinear(cells, new.size)).reshape(-1, array.shape[-1])


def _merge(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    graphdef, *trees = split_model(model)
    flat = [
        {name: jax.numpy.asarray(arrays[name]) for name in flatten_names(tree)} for tree in trees
    ]
    return _flat(reparameterise(nnx.merge(graphdef, *map(unflatten_names, flat, trees))))


def _split(
    arrays: Mapping[str, np.ndarray],
    slides: Mapping[str, SlideAttention],
    wanted: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Takes the fixed kernels off the sums; the sum of the biases stays with the learned path."""
    arrays = dict(arrays)
    for at, layer in slides.items():
        if layer.path == "fixed":
            raise ValueError(
                f"--split-slide: {at} has path='fixed', which has no learned kernel to hold what "
                "is left"
            )
        for name in [
            name
            for name in arrays
            if name.startswith(f"{at}/deformed_") and name.endswith("_kernel")
        ]:
            if layer.path == "deformed":
                arrays[name] = arrays[name] - np.tile(
                    shift_weight(layer.kernel_size), layer.head_dim
                )
        if f"{at}/fixed_bias" in wanted:
            arrays[f"{at}/fixed_bias"] = np.zeros(wanted[f"{at}/fixed_bias"].shape, np.float32)
    return arrays


# --------------------------------------------------------------------------------------------------
# What is said
# --------------------------------------------------------------------------------------------------


def _hints(
    state: Mapping[str, Any], slides: Mapping[str, SlideAttention], foreign: bool
) -> list[str]:
    """Returns the flags that would help, one text each."""
    merged = any(layer.merged for layer in slides.values())
    kernels = any("dep_conv.weight" in key or "deformed_kernel" in key for key in state)
    parts = any("dep_conv1.weight" in key or "fixed_bias" in key for key in state)
    found = {
        "--warm-start-slide starts slide attention from the projections in the file": foreign,
        "--merge-slide writes the merged form; name the model without `merged` then": merged
        and parts,
        "--split-slide takes the fixed kernels off the merged ones in the file": slides
        and not merged
        and kernels
        and not parts,
    }
    return [f"\n  Flag: {text}." for text, helps in found.items() if helps]


def _lines(
    state: Mapping[str, np.ndarray],
    places: Mapping[str, list[Place]],
    arrays: Mapping[str, np.ndarray],
    notes: Mapping[str, str],
) -> list[Line]:
    """One line per key of the file; every key has its one place, or `convert` would have refused
    the file.
    """
    lines = []
    for key, array in state.items():
        ((rule, targets),) = places[key]
        how = (
            rule.transform
            if isinstance(rule.transform, str)
            else rule.transform.__name__.strip("_").replace("_", " ")
        )
        for target in targets or ("-",):
            said = notes.get(target)
            text = "dropped" if not targets else f"{how}, {said}" if said else how
            if said and target not in arrays:  # part of a joint projection now
                target = target.replace("query/", "qkv/").replace("key_value/", "qkv/")
            lines.append(
                Line(
                    key, array.shape, target, arrays[target].shape if target in arrays else (), text
                )
            )
    return lines
