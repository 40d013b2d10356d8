"""Weights from a file into the nested dicts of a model."""

from __future__ import annotations

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lambdanet.interop import files
from lambdanet.interop.names import NameMappingError
from lambdanet.training.state import TrainState, flatten_names, unflatten_names

HEAD = "head/fc"  # where every backbone has its classifier


def read_weights(
    path: str | os.PathLike, model: Any, params: dict, stats: dict, *, new_head: bool = False
) -> tuple[dict, dict]:
    """Reads a weights file, ours or PyTorch's, strictly: every parameter and statistic must be in
    it.

    Args:
        path: safetensors, npz or PyTorch file.
        model: the model, abstract will do; its `torch_names` is read for files with PyTorch's
            names.
        params: its parameters, arrays or shapes; gives names, shapes and dtypes.
        stats: its batch-norm statistics, likewise.
        new_head: keep the classifier of `params` (arrays, then), whatever the file has for it.

    Returns:
        (params, stats) with NumPy arrays from the file.

    Raises:
        FileNotFoundError, WeightsFileError: no such file, or one that cannot be read.
        NameMappingError: missing, unused and mis-shaped names, all at once.
    """
    trees = params, stats
    flat = [flatten_names(tree) for tree in trees]
    shapes = {name: tuple(leaf.shape) for part in flat for name, leaf in part.items()}
    ours = files.read_metadata(path).get("layout") == files.LAYOUT
    found = files.load_weights_file(
        path, lambda: model.torch_names, shapes, allow_head_mismatch=HEAD if new_head else None
    )

    made_for = files.image_size_of(files.read_metadata(path)) if ours else None
    check_maps(path, model, set(found), made_for)

    def pick(name: str, leaf: Any) -> Any:
        return leaf if new_head and name.startswith(HEAD + "/") else found[name].astype(leaf.dtype)

    named = ({name: pick(name, leaf) for name, leaf in part.items()} for part in flat)
    return tuple(map(unflatten_names, named, trees))


def check_maps(
    path: str | os.PathLike, model: Any, names: set[str], image_size: tuple[int, int] | None
) -> None:
    """Checks that arrays over positions stand for the map that the model has.

    Such arrays are lists of positions: their length says nothing of height and width. A module that
    holds some says for which map in its attribute `grid` or `size`.

    Args:
        path: of the file, for messages.
        model: that gets the weights.
        names: paths of the arrays that come from the file.
        image_size: (height, width) of the images that the file was made for; None = a foreign file,
            whose maps are taken to be square where they can be.

    Raises:
        NameMappingError: names every module whose map has another shape, with both shapes.
    """
    problems = []
    for at, module in nnx.iter_modules(model):
        grid = getattr(module, "grid", None) or getattr(module, "size", None)
        prefix = "/".join(map(str, at)) + "/"
        if not _is_grid(grid) or not any(name.startswith(prefix) for name in names):
            continue
        count = grid[0] * grid[1]
        if image_size:
            theirs = files.grid_of(count, image_size)
        else:
            side = math.isqrt(count)
            theirs = (side, side) if side**2 == count else grid
        if tuple(grid) != theirs and _has_positions(module, count):
            where = f"images of {image_size[0]}x{image_size[1]}" if image_size else "square images"
            problems.append(
                f"{prefix[:-1]}: the file's {count} positions are a map of {theirs[0]}x{theirs[1]} "
                f"({where}), the model's one of {grid[0]}x{grid[1]}"
            )
    if problems:
        listed = "\n  ".join(problems)
        raise NameMappingError(
            f"{os.fspath(path)} does not fit the model's image_size:\n  {listed}\nConvert it with "
            "`python -m models.import_weights ... --resize-tables`, or build the model for the "
            "file's image_size"
        )


def _is_grid(value: Any) -> bool:
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    return pair and all(type(n) is int and n > 0 for n in value)


def _has_positions(module: nnx.Module, count: int) -> bool:
    """Whether a module has an array of its own with an axis of that many positions."""
    own = (value for value in vars(module).values() if isinstance(value, nnx.Param))
    return any(count in value.shape for value in own)


def start_from(
    now: TrainState, path: str, model: Any, shardings: Any, *, new_head: bool
) -> TrainState:
    """Returns the state of step 0 with the weights of a file, also as the first moving averages;
    see `read_weights`.
    """
    params, stats = read_weights(path, model, now.params, now.stats, new_head=new_head)
    # Each tree gets arrays of its own: the step donates them, and a buffer may be given away only
    # once.
    params, stats, average = (
        jax.tree.map(jnp.array, tree)
        for tree in (params, stats, {"params": params, "stats": stats})
    )
    return jax.device_put(
        now.replace(params=params, stats=stats, ema=average if now.ema else {}), shardings
    )
