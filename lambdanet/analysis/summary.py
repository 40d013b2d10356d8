"""The table of a model: path, type, output shape, parameters and multiply-adds of every layer, with
exact totals. Nothing is allocated or run.

    model = nnx.eval_shape(lambda: models.create_model("lambda_resnet50", rngs=nnx.Rngs(0)))
    rows = summary.summarise(model, 224, 224)
    summary.totals(rows)  # {"parameters": ..., "macs": ...}
    rich.print(summary.summary_table(rows))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from rich.table import Table

from lambdanet.analysis.text import console_table
from lambdanet.training.state import flatten_names, split_model


def summarise(model: nnx.Module, height: int, width: int) -> list[dict[str, Any]]:
    """Joins a model's own rows with the sizes of its parameters.

    Args:
        model: has `summary_rows(height, width)`; may be abstract (`nnx.eval_shape`).
        height: of the input, pixels.
        width: of the input, pixels.

    Returns:
        Rows with path, type, output_shape, parameters, macs. A parameter is counted in the row with
        the longest path that contains it, and in a last row 'other parameters' if there is none, so
        that the column always adds up.
    """
    rows = [dict(row) | {"parameters": 0} for row in model.summary_rows(height, width)]
    by_path = {row["path"]: row for row in rows}
    rest = 0
    for name, leaf in flatten_names(split_model(model)[1]).items():
        parts = name.split("/")
        prefixes = ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]
        row = next((by_path[p] for p in prefixes if p in by_path), None)
        if row is None:
            rest += math.prod(leaf.shape)
        else:
            row["parameters"] += math.prod(leaf.shape)
    if rest:
        rows.append(
            {
                "path": "other parameters",
                "type": "",
                "output_shape": (),
                "parameters": rest,
                "macs": 0,
            }
        )
    return rows


def totals(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Returns the sums of the parameter and the multiply-add column."""
    return {key: sum(row[key] for row in rows) for key in ("parameters", "macs")}


def compiler_flops(
    forward: Callable[[Any, jax.Array], jax.Array], weights: Any, image_shape: tuple[int, ...]
) -> float:
    """FLOPs that XLA counts for one image, from the program before optimisation; nothing is
    allocated or run.

    Two per multiply-add, without the taps of a convolution that fall on padding, plus all
    element-wise work; the body of a loop (`impl='row_chunks'`) is counted once.

    Args:
        forward: maps weights and uint8 images [b, h, w, c] to logits.
        weights: pytree of arrays or `jax.ShapeDtypeStruct`.
        image_shape: (height, width, channels).
    """
    lowered = jax.jit(forward).lower(weights, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8))
    return float(lowered.cost_analysis()["flops"])


def summary_table(rows: list[dict[str, Any]]) -> Table:
    """Returns the rows as a rich table with a line of totals."""
    total = totals(rows)
    columns = ("path", "type", "output", "parameters", "MACs", "% MACs")
    cells = [
        [
            row["path"],
            row["type"],
            "x".join(str(n) for n in row["output_shape"]),
            f"{row['parameters']:,}",
            f"{row['macs']:,}",
            f"{100 * row['macs'] / max(total['macs'], 1):.1f}",
        ]
        for row in rows
    ]
    footer = ("total", "", "", f"{total['parameters']:,}", f"{total['macs']:,}", "100.0")
    return console_table(columns, cells, right=(2, 3, 4, 5), footer=footer)
