"""Weights from a file into the nested dicts of a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lambdanet.interop import files
from lambdanet.interop.grids import grids_of
from lambdanet.interop.names import NameMappingError
from lambdanet.training.state import TrainState, flatten_names, unflatten_names

HEADS = {
    "load": "takes all of it",
    "new": "takes all but what depends on the classes and blocks that its network does not have",
    "propagation": "takes all but what carries features from frame to frame",
    "backbone": "takes the backbone and leaves the heads as initialised",
}
"""Values of `train.init_head`, the one that takes most first, and what each does."""


def read_weights(
    path: str | os.PathLike,
    model: Any,
    params: dict,
    stats: dict,
    *,
    head: str = "load",
    prefer_ema: bool = True,
) -> tuple[dict, dict]:
    """Reads a weights file, ours or PyTorch's, strictly: every parameter and statistic must be in
    it.

    Args:
        path: safetensors, npz or PyTorch file.
        model: the model, abstract will do; says for which maps and windows its tables are, gives
            its `torch_names` for files with PyTorch's names, may say by `backbone_path` that its
            backbone lies elsewhere than at 'backbone', and may fit arrays of a network of another
            form by `fit_array`: a network of clips inflates kernels of images.
        params: its parameters, arrays or shapes; gives names, shapes and dtypes.
        stats: its batch-norm statistics, likewise.
        head: 'load', or what to keep of `params` and `stats` (arrays, then): 'new', the classifier,
            whatever the file has for it, and of what the model has `inserted` into a plain network
            that which the file lacks (our file may be of a model whose backbone it is);
            'propagation', what carries features from frame to frame, whatever the file has for it;
            'backbone', all but the backbone, of which the file is, with a classifier of its own or
            without.
        prefer_ema: of a PyTorch checkpoint with live and averaged weights take the averaged ones.

    Returns:
        (params, stats) with NumPy arrays from the file.

    Raises:
        FileNotFoundError, WeightsFileError: no such file, or one that cannot be read.
        NameMappingError: missing, unused and mis-shaped names and tables for another map or
            window, all at once.
        ValueError: 'backbone' or 'propagation' for a model that has none.
    """
    trees = params, stats
    flat = [flatten_names(tree) for tree in trees]
    shapes = {name: tuple(leaf.shape) for part in flat for name, leaf in part.items()}
    part = getattr(model, "backbone_path", "backbone") if head == "backbone" else ""
    if part and not hasattr(model, "backbone_names"):
        raise ValueError(
            "train.init_head='backbone' is for models of a backbone and heads, and "
            f"{type(model).__name__} is a backbone itself; allowed: 'load', 'new'"
        )
    if head == "propagation" and not hasattr(model, head):
        raise ValueError(
            "train.init_head='propagation' is for models that carry features from frame to frame, "
            f"and {type(model).__name__} does not; allowed: 'load', 'new', 'backbone'"
        )
    new = model.classifier if head == "new" else (head,) if head == "propagation" else ()
    inserted = getattr(model, "inserted", ()) if head == "new" else ()

    def kept(name: str) -> bool:
        return any(name.startswith(f"{path}/") for path in new) or not name.startswith(part)

    shapes = {name: shape for name, shape in shapes.items() if name.startswith(part)}
    found = files.load_weights_file(
        path,
        lambda: model.backbone_names if part else model.torch_names,
        shapes,
        grids=grids_of(model),
        allow_head_mismatch=(*new, *inserted),
        part=part,
        holder="backbone" if head == "new" and not hasattr(model, "backbone_names") else "",
        prefer_ema=prefer_ema,
        fit=getattr(model, "fit_array", None),
    )

    def pick(name: str, leaf: Any) -> Any:
        own = kept(name) or name not in found  # what was inserted
        return leaf if own else found[name].astype(leaf.dtype)

    named = ({name: pick(name, leaf) for name, leaf in part.items()} for part in flat)
    return tuple(map(unflatten_names, named, trees))


def _fits(read: Callable[[str], Any], head: str) -> bool:
    try:
        read(head)
    except ValueError:
        return False
    return True


def start_from(now: TrainState, train: Any, model: Any, shardings: Any) -> TrainState:
    """Returns the state of step 0 with the weights of a file, also as the first moving averages;
    see `read_weights`.

    Args:
        now: the state, its arrays as initialised.
        train: the config's section; reads init_weights, init_head and init_average.
        model: see `read_weights`.
        shardings: of the state.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`; what does not fit names the value of
            init_head with which the file would, if there is one.
    """

    def read(head: str) -> tuple[dict, dict]:
        averaged = train.init_average == "ema"
        own = (model, now.params, now.stats)
        return read_weights(train.init_weights, *own, head=head, prefer_ema=averaged)

    try:
        params, stats = read(train.init_head)
    except files.WeightsFileError:
        raise
    except ValueError as error:
        for head, taken in HEADS.items():
            if head != train.init_head and _fits(read, head):
                advice = f"  This file fits with --config.train.init_head={head}, which {taken}."
                raise NameMappingError(f"{error}\n{advice}") from error
        raise
    # Each tree gets arrays of its own: the step donates them, and a buffer may be given away only
    # once.
    params, stats, average = (
        jax.tree.map(jnp.array, tree)
        for tree in (params, stats, {"params": params, "stats": stats})
    )
    return jax.device_put(
        now.replace(params=params, stats=stats, ema=average if now.ema else {}), shardings
    )
