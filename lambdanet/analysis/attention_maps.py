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
from matplotlib.patheffects import withStroke

from lambdanet.training.state import flatten_names

# Queries shown, as fractions of height and width: the centre and four points around it.
QUERIES = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))


def capture_maps(model: nnx.Module, images: Float[Array, "b h w c"]) -> dict[str, Float[np.ndarray, "b m qh qw ch cw"]]:
    """Runs a model once and returns the attention of every layer that can show it.

    A layer can if it has the view attribute `capture` and then sows `attention_map` as an `nnx.Intermediate`. For a
    lambda layer the map is a_nm = q_n . (softmax(k)_m + E_nm): the weight with which the value at m enters the output
    at n. It has both signs and does not sum to one.

    Args:
        model: evaluation view.
        images: normalised images.

    Returns:
        Layer path -> weights [image, head, query row, query column, context row, context column].

    Raises:
        ValueError: no layer of the model can show its attention.
    """
    try:
        graphdef, weights = nnx.split(nnx.view(model, capture=True))
    except ValueError as error:  # no module has the attribute
        raise ValueError(
            f"{type(model).__name__}: no layer of this model can show its attention; lambda layers can "
            "(model option attention='lambda')"
        ) from error

    def run(weights, images):
        return nnx.to_pure_dict(nnx.capture(nnx.merge(graphdef, weights), nnx.Intermediate)(images)[1])

    captured = flatten_names(jax.jit(run)(weights, images))
    end = "/attention_map/0"  # sow makes a tuple with one entry per call
    return {name.removesuffix(end): np.asarray(value) for name, value in captured.items() if name.endswith(end)}


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
    cell = (width / columns, height / rows)
    panel = (2.0, 2.0 * height / width)
    size = (panel[0] * (1 + len(QUERIES)) + 1.1, panel[1] * count + 0.7)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    figure.suptitle(
        f"{layer}: what {len(QUERIES)} queries attend to (map {rows}x{columns}, mean of heads)", fontsize=12
    )
    grid = figure.subplots(count, 1 + len(QUERIES), squeeze=False)
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)
    outline = [withStroke(linewidth=2.5, foreground="black")]
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, title in zip(grid[0], ("image", *(f"query {i + 1}" for i in range(len(QUERIES)))), strict=True):
        axes.set_title(title, fontsize=10)
    for line, image, attended in zip(grid, images, weights, strict=True):
        line[0].imshow(
            image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255, extent=whole
        )
        for number, (y, x) in enumerate(QUERIES, 1):
            row, column = int(y * rows), int(x * columns)
            strength = attended[row, column] / max(float(np.abs(attended[row, column]).max()), 1e-12)
            line[number].imshow(image.mean(axis=-1), cmap="gray", vmin=-100, vmax=255, extent=whole)
            opacity = 0.85 * np.abs(strength) ** 0.5  # weak weights leave the image visible
            shading = line[number].imshow(strength, cmap="RdBu_r", vmin=-1, vmax=1, alpha=opacity, extent=whole)
            corner = (column * cell[0] - 0.5, row * cell[1] - 0.5)
            for axes in (line[0], line[number]):
                axes.add_patch(Rectangle(corner, *cell, fill=False, edgecolor="#ffd33d", lw=1.8))
            middle = (corner[0] + cell[0] / 2, corner[1] + cell[1] / 2)
            style = dict(color="#ffd33d", ha="center", va="center", fontsize=9, fontweight="bold")
            line[0].text(*middle, str(number), path_effects=outline, **style)
    bar = figure.colorbar(shading, ax=grid, shrink=0.85, pad=0.01, aspect=30, ticks=(-1, 0, 1))
    bar.set_ticklabels(("subtracts", "0", "adds"))
    path = folder / f"{layer.replace('/', '.')}.png"
    figure.savefig(path, dpi=110)
    return path
