"""Weights from a file, a run or the hub into the nested dicts of a model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lambdanet.interop import files, sources
from lambdanet.interop.grids import grids_of
from lambdanet.interop.names import NameMappingError
from lambdanet.registry import show
from lambdanet.training.checkpoint_meta import CheckpointError
from lambdanet.training.state import TrainState, flatten_names, initialise, unflatten_names

HEADS = {
    "load": "takes all of it",
    "new": "takes all but what depends on the classes and blocks that its network does not have",
    "propagation": "takes all but what carries features from frame to frame",
    "backbone": "takes the backbone and leaves the heads as initialised",
}
"""Values of `train.init_head`, the one that takes most first, and what each does."""

SOURCE_KEYS = {"train.init_weights", "train.init_average"}
"""Keys of a config that say where weights come from."""

Closest = Callable[[Mapping[str, np.ndarray]], str]
"""Arrays by PyTorch's names -> a sentence on the model that they are nearest to, or ''."""


def read_source(
    source: str | os.PathLike | sources.Source,
    *,
    prefer_ema: bool = True,
    numbers: int | None = None,
) -> files.Stored:
    """Reads the named arrays of a source of weights.

    Args:
        source: a weights file, a folder, a workdir or a repository, see `sources.resolve`.
        prefer_ema: with live and averaged weights, take the averaged ones.
        numbers: see `files.read_state`.

    Raises:
        FileNotFoundError, WeightsFileError: as `sources.resolve` and `files.read_state`.
        CheckpointError: a run without a whole checkpoint.
    """
    found = sources.resolve(source)
    if not found.is_run:
        return files.read_state(found.path, prefer_ema=prefer_ema, numbers=numbers)
    from lambdanet.training.run_weights import read_run  # imports orbax, which takes seconds

    arrays, config = read_run(found.path, prefer_ema=prefer_ema)
    model = {"image_size": config["data"]["image_size"], **config["model"]}
    return files.Stored(arrays, True, files.export_metadata(model))


def normalisation_of(source: str | os.PathLike | sources.Source) -> dict[str, tuple[float, ...]]:
    """Returns the `mean` and `std` that pictures had when the weights of a source were trained, by
    what a run or a file that one exported says; {} where nobody does.

    Raises:
        FileNotFoundError, WeightsFileError, CheckpointError: as `read_source`.
    """
    found = sources.resolve(source)
    if not found.is_run:
        return files.normalisation_of(files.read_metadata(found.path))
    from lambdanet.training.run_weights import config_of  # imports orbax, which takes seconds

    data = config_of(found.path)["data"]
    return {name: tuple(data[name]) for name in ("mean", "std")}


def source_problems(train: Any) -> list[str]:
    """Returns what is wrong with train.init_weights as a source; [] where it can be read, and where
    it is ''.

    Args:
        train: the config's section; reads init_weights and init_average.
    """
    if not train.init_weights:
        return []
    try:
        read_source(train.init_weights, prefer_ema=train.init_average == "ema")
    except (ValueError, OSError) as error:
        return [f"train.init_weights = {show(train.init_weights)}: {error}"]
    return []


def read_weights(
    source: str | os.PathLike | sources.Source,
    model: Any,
    params: dict,
    stats: dict,
    *,
    head: str = "load",
    prefer_ema: bool = True,
    closest: Closest | None = None,
) -> tuple[dict, dict]:
    """Reads weights, ours or PyTorch's, strictly: every parameter and statistic must be among them.

    Args:
        source: see `read_source`.
        model: the model, abstract will do; says for which maps and windows its tables are, gives
            its `torch_names` for files with PyTorch's names, may say by `backbone_path` that its
            backbone lies elsewhere than at 'backbone', and may fit arrays of a network of another
            form by `fit_array`: a network of clips inflates kernels of images; its `head_advice` is
            said where all fits but what depends on the classes.
        params: its parameters, arrays or shapes; gives names, shapes and dtypes.
        stats: its batch-norm statistics, likewise.
        head: 'load', or what to keep of `params` and `stats`: 'new', the classifier, whatever the
            file has for it, and of what the model has `inserted` into a plain network that which
            the file lacks (our file may be of a model whose backbone it is); 'propagation', what
            carries features from frame to frame, whatever the file has for it; 'backbone', all but
            the backbone, of which the file is, with a classifier of its own or without, and the
            norms on the backbone's outputs if the file has none, as classifiers have none.
        prefer_ema: with live and averaged weights, take the averaged ones.
        closest: finds the model that a file of another one is nearest to.

    Returns:
        (params, stats) with NumPy arrays from the file; what is kept is as it was given.

    Raises:
        FileNotFoundError, WeightsFileError, CheckpointError: as `read_source`.
        NameMappingError: missing, unused and mis-shaped names and tables for another map or
            window, all at once, and what would help: another `head`, or another model.
        ValueError: 'backbone' or 'propagation' for a model that has none.
    """
    trees = params, stats
    flat = [flatten_names(tree) for tree in trees]
    shapes = {name: tuple(leaf.shape) for part in flat for name, leaf in part.items()}
    # of a backbone's file the rest is left, so a file may be as large as the whole model
    numbers = sum(map(math.prod, shapes.values()))
    label, stored = str(source), None

    def read(head: str) -> dict[str, np.ndarray]:
        nonlocal stored
        _check_head(model, head)
        if stored is None:
            stored = read_source(source, prefer_ema=prefer_ema, numbers=numbers)
        return _fit(stored, label, model, shapes, head)

    try:
        found = read(head)
    except files.WeightsFileError:
        raise
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        for other, taken in HEADS.items():
            if other != head and _fits(read, other):
                advice = (
                    f"  This file fits with --config.train.init_head={other}, which {taken} (in "
                    f"Python: create_model(..., pretrained_head={other!r}))."
                )
                if other == "new" and (said := getattr(model, "head_advice", "")):
                    advice += f"\n  {said}"
                raise NameMappingError(f"{error}\n{advice}") from error
        if isinstance(error, NameMappingError) and (said := _is_of(stored, closest)):
            raise NameMappingError(f"{error}\n  {said}") from error
        raise
    named = (
        {
            name: found[name].astype(leaf.dtype) if name in found else leaf
            for name, leaf in part.items()
        }
        for part in flat
    )
    return tuple(map(unflatten_names, named, trees))


def _check_head(model: Any, head: str) -> None:
    if head == "backbone" and not hasattr(model, "backbone_names"):
        raise ValueError(
            "train.init_head='backbone' is for models of a backbone and heads, and "
            f"{type(model).__name__} is a backbone itself; allowed: 'load', 'new'"
        )
    if head == "propagation" and not hasattr(model, head):
        raise ValueError(
            "train.init_head='propagation' is for models that carry features from frame to frame, "
            f"and {type(model).__name__} does not; allowed: 'load', 'new', 'backbone'"
        )


def _fit(
    stored: files.Stored, label: str, model: Any, shapes: Mapping[str, tuple[int, ...]], head: str
) -> dict[str, np.ndarray]:
    """Returns path -> array of what is taken of the stored arrays."""
    part = getattr(model, "backbone_path", "backbone") if head == "backbone" else ""
    new = model.classifier if head == "new" else (head,) if head == "propagation" else ()
    inserted = getattr(model, "inserted", ()) if head == "new" else ()
    if part:
        inserted = (f"{part}/output_norms",)
    found = files.fit_state(
        stored,
        label,
        lambda: model.backbone_names if part else model.torch_names,
        {name: shape for name, shape in shapes.items() if name.startswith(part)},
        grids=grids_of(model),
        allow_head_mismatch=(*new, *inserted),
        part=part,
        holder="backbone" if head == "new" and not hasattr(model, "backbone_names") else "",
        fit=getattr(model, "fit_array", None),
    )
    kept = tuple(f"{path}/" for path in new)
    return {name: array for name, array in found.items() if not name.startswith(kept)}


def _fits(read: Callable[[str], Any], head: str) -> bool:
    try:
        read(head)
    except ValueError:
        return False
    return True


def _is_of(stored: files.Stored, closest: Closest | None) -> str:
    """Returns a sentence on the model that the weights are of, or are nearest to; '' if unknown."""
    if not stored.ours:
        return closest(stored.arrays) if closest else ""
    model = files.model_of(stored.metadata)
    name = model.pop("name", "")
    return f"By their own word they are of model {name!r} with {show(model)}." if name else ""


def start(
    init: Callable[[], TrainState],
    train: Any,
    model: Any,
    shardings: Any,
    closest: Closest | None = None,
) -> TrainState:
    """Returns the state of step 0: as initialised, or with the weights of train.init_weights, also
    as the first moving averages. They are read first, so that no device works in vain.

    Args:
        init: gives the state as initialised.
        train: the config's section; reads init_weights, init_head and init_average.
        model: see `read_weights`.
        shardings: of the state.
        closest: see `read_weights`.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`.
    """
    if not train.init_weights:
        return initialise(init, shardings)
    shapes = jax.eval_shape(init)
    found = read_weights(
        train.init_weights,
        model,
        shapes.params,
        shapes.stats,
        head=train.init_head,
        prefer_ema=train.init_average == "ema",
        closest=closest,
    )
    now = initialise(init, shardings)
    params, stats = fill(found, (now.params, now.stats))
    # Each tree gets arrays of its own: the step donates them, and a buffer may be given away only
    # once.
    params, stats, average = (
        jax.tree.map(jnp.array, tree)
        for tree in (params, stats, {"params": params, "stats": stats})
    )
    return jax.device_put(
        now.replace(params=params, stats=stats, ema=average if now.ema else {}), shardings
    )


def fill(found: Any, own: Any) -> Any:
    """Returns a tree of `read_weights` for shapes with the arrays of `own` where it has none."""
    return jax.tree.map(
        lambda array, leaf: leaf if isinstance(array, jax.ShapeDtypeStruct) else array, found, own
    )
