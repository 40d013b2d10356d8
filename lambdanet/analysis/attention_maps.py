"""What the attention layers of a model look at: maps captured in one forward pass, and pictures of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lambdanet.training.state import flatten_names

# Queries shown, as fractions of height and width: the centre and four points around it.
QUERIES = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))


def capture_maps(model: nnx.Module, images: Float[Array, "b h w c"]) -> dict[str, Float[np.ndarray, "b m qh qw ch cw"]]:
    """Runs a model once and returns the attention of every layer that can show it.

    A layer can if it has the view attribute `capture` and then sows its map as an `nnx.Intermediate`. For a lambda
    layer the map is a_nm = q_n . (softmax(k)_m + E_nm): the weight with which the value at m enters the output at n.
    It has both signs and does not sum to one.

    Args:
        model: evaluation view.
        images: normalised images.

    Returns:
        Layer path -> weights [image, head, query row, query column, context row, context column].

    Raises:
        ValueError: no layer of the model can show its attention.
    """
    try:
        view = nnx.view(model, capture=True)
    except ValueError:  # no module knows the attribute
        view = None
    captured = {}
    if view is not None:
        run = jax.jit(lambda x: nnx.to_pure_dict(nnx.capture(view, nnx.Intermediate)(x)[1]))
        captured = flatten_names(run(images))
    maps = {name.rsplit("/attention_map", 1)[0]: np.asarray(value) for name, value in captured.items()}
    if not maps:
        raise ValueError(
            f"{type(model).__name__}: no layer of this model can show its attention; models whose config has "
            "attention='lambda' can"
        )
    return maps


def draw_maps(
    maps: Mapping[str, Float[np.ndarray, "b m qh qw ch cw"]],
    images: UInt8[np.ndarray, "b h w c"],
    folder: str | os.PathLike,
) -> list[Path]:
    """Draws one picture per layer: a row per image; in the columns, what each of several queries attends to.

    Red adds the value of that place to the output of the query, blue subtracts it; the mean over the heads is drawn, on
    one scale per panel. The outlined square is the query.

    Args:
        maps: of `capture_maps`.
        images: the same images, before normalisation.
        folder: created if needed.

    Returns:
        The files, in the order of `maps`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw_layer(layer, values.mean(axis=1), images, folder) for layer, values in maps.items()]


def _draw_layer(layer: str, weights: np.ndarray, images: np.ndarray, folder: Path) -> Path:
    count, (height, width) = len(images), images.shape[1:3]
    rows, columns = weights.shape[1:3]
    figure = Figure(figsize=(2.1 * (1 + len(QUERIES)), 2.25 * count + 0.9), layout="constrained", facecolor="white")
    figure.suptitle(
        f"{layer}: what {len(QUERIES)} queries attend to (map {rows}x{columns}, mean over heads)", fontsize=12
    )
    grid = figure.subplots(count, 1 + len(QUERIES), squeeze=False)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    shading = None
    for axes_row, image, attended in zip(grid, images, weights, strict=True):
        picture = image.squeeze(-1) if image.shape[-1] == 1 else image
        grey = image.mean(axis=-1)
        for axes in axes_row:
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].imshow(picture, cmap="gray", vmin=0, vmax=255, extent=extent)
        for number, (axes, (y, x)) in enumerate(zip(axes_row[1:], QUERIES, strict=True), 1):
            row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
            values = attended[row, column]
            strength = values / max(float(np.abs(values).max()), 1e-12)
            axes.imshow(grey, cmap="gray", vmin=-100, vmax=255, extent=extent)
            shading = axes.imshow(
                strength, cmap="RdBu_r", vmin=-1, vmax=1, alpha=np.abs(strength) ** 0.5 * 0.85, extent=extent
            )
            cell_h, cell_w = height / rows, width / columns
            corner = (column * cell_w - 0.5, row * cell_h - 0.5)
            for target, color in ((axes, "#ffd33d"), (axes_row[0], "#ffd33d")):
                target.add_patch(Rectangle(corner, cell_w, cell_h, fill=False, edgecolor=color, lw=1.8))
            axes_row[0].text(
                corner[0] + cell_w / 2,
                corner[1] + cell_h / 2,
                str(number),
                color="#ffd33d",
                ha="center",
                va="center",
                fontsize=9,
            )
            if axes_row is grid[0]:
                axes.set_title(f"query {number}", fontsize=10)
    grid[0][0].set_title("image", fontsize=10)
    bar = figure.colorbar(shading, ax=grid, shrink=0.8, pad=0.01, ticks=(-1, 0, 1))
    bar.set_ticklabels(("subtracts", "0", "adds"))
    path = folder / f"{layer.replace('/', '.')}.png"
    figure.savefig(path, dpi=110)
    return path
