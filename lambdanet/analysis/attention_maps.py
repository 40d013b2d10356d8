"""What the attention layers of a model look at: maps captured in one forward pass, and pictures of
them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from lambdanet.analysis.figure_text import literal_text
from lambdanet.atomic import write_file
from lambdanet.training.state import flatten_names

# Queries shown, as fractions of height and width of the part of an image that is picture: the
# centre and four points around it.
QUERIES = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))


def capture_maps(
    model: nnx.Module, images: Float[Array, "b h w c"]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Runs a model once and returns what every attention block attends to, or gates.

    A block shows itself if it has the view attribute `capture` and then sows one or more
    `nnx.Intermediate` of these:

        attention_map [b, map, *query position, *context position]   the weight with which the value at a context position
                      enters the output at a query position; one map per head or pass; query axes of
                      length 1 if all queries share it. Lambda layers have weights of both signs
                      that do not sum to one.
        gate          [b, h or 1, w or 1, c or 1]                     factor or response per position and channel
        channel_map   [b, c, c]                                       weight of each channel in each output channel

    Args:
        model: evaluation view.
        images: normalised images.

    Returns:
        Path -> array. The path is the block's for an attention map, the block's with '/gate' or
        '/channel_map' for those.

    Raises:
        ValueError: no layer of the model can show its attention.
    """  # noqa: E501
    try:
        model = nnx.view(model, capture=True)
    except ValueError as error:  # no module has the attribute
        raise ValueError(
            f"{type(model).__name__}: no layer of this model can show its attention; every block "
            "of lambdanet.attention can (model options attention= and context=; those of a "
            "segmenter or a detector are in its backbone=, a segmenter's also in its head=)"
        ) from error

    # What is sown below a list of layers does not come out of a recomputed region (flax gives the
    # list, whose keys are numbers, a key of text), and without a gradient nothing is recomputed.
    model = nnx.view(model, remat=False, raise_if_not_found=False)
    graphdef, weights = nnx.split(model)

    def run(weights, images):
        return nnx.to_pure_dict(
            nnx.capture(nnx.merge(graphdef, weights), nnx.Intermediate)(images)[1]
        )

    shown = {}
    for name, value in flatten_names(jax.jit(run)(weights, images)).items():
        layer, kind, call = name.rsplit("/", 2)  # sow makes a tuple with one entry per call
        if kind in ("attention_map", "gate", "channel_map"):
            path = layer if kind == "attention_map" else f"{layer}/{kind}"
            shown[path if call == "0" else f"{path}/{call}"] = np.asarray(value)
    return shown


def draw_maps(
    maps: Mapping[str, Float[np.ndarray, "..."]],
    images: UInt8[np.ndarray, "b h w c"],
    folder: str | os.PathLike,
    shapes: Int[np.ndarray, "b 2"] | None = None,
) -> list[Path]:
    """Draws one picture per captured array, with a row per image.

    Attention maps: in the columns, what each of several queries attends to. Red adds the value of
    that place to the output of the query, blue subtracts it; the mean over the maps is drawn, on
    one scale per panel; the outlined square is the query. Gates: the mean over the channels as a
    map and the mean over the positions as a curve. Channel maps: the matrix.

    Args:
        maps: of `capture_maps`.
        images: the same images, before normalisation.
        folder: created if needed.
        shapes: height and width of the part at the top left of each image that is picture, and no
            padding: queries lie there. None: all of it is.

    Returns:
        The files, in the order of `maps`.

    Raises:
        ValueError: an array of another rank.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw = {6: _draw_layer, 4: _draw_gate, 3: _draw_channels}
    wrong = [f"{name} {values.shape}" for name, values in maps.items() if values.ndim not in draw]
    if wrong:
        raise ValueError(
            f"cannot draw {', '.join(wrong)}; allowed: 6 axes (attention map), 4 (gate), 3 "
            "(channel map)"
        )
    paths = []
    for name, values in maps.items():
        paths.append(folder / f"{name.replace('/', '.')}.png")
        shown = values.mean(axis=1) if values.ndim == 6 else values
        with literal_text():
            about = (_parts(images, shapes),) if values.ndim == 6 else ()
            figure = draw[values.ndim](name, shown, images, *about)
            save = functools.partial(figure.savefig, dpi=110, format="png")
            write_file(paths[-1], save)
    return paths


def _parts(images: np.ndarray, shapes: np.ndarray | None) -> np.ndarray:
    """Returns which fraction of height and width of each image is picture, float [b, 2]."""
    if shapes is None:
        return np.ones((len(images), 2))
    return np.asarray(shapes) / images.shape[1:3]


def query_cells(rows: int, columns: int, part: np.ndarray) -> list[tuple[int, int]]:
    """Returns row and column of the map at which each of `QUERIES` is; only the first where all
    queries share one map.

    Args:
        rows, columns: of the map, over the whole image.
        part: fractions of height and width of the image that are picture.
    """
    queries = QUERIES if rows * columns > 1 else QUERIES[:1]
    return [(int(y * part[0] * rows), int(x * part[1] * columns)) for y, x in queries]


def _draw_layer(layer: str, weights: np.ndarray, images: np.ndarray, parts: np.ndarray) -> Figure:
    count, (height, width) = len(images), images.shape[1:3]
    rows, columns = weights.shape[1:3]
    queries = QUERIES if rows * columns > 1 else QUERIES[:1]
    cell = (width / columns, height / rows)
    panel = (2.0, 2.0 * height / width)
    size = (panel[0] * (1 + len(queries)) + 1.1, panel[1] * count + 0.7)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    if len(queries) > 1:
        title = (
            f"{layer}: what {len(queries)} queries attend to (map {rows}x{columns}, mean of heads)"
        )
    else:
        title = f"{layer}:\nwhat every query attends to"
    figure.suptitle(title, fontsize=12 if len(queries) > 1 else 9)
    grid = figure.subplots(count, 1 + len(queries), squeeze=False)
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)
    outline = [withStroke(linewidth=2.5, foreground="black")]
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, title in zip(
        grid[0], ("image", *(f"query {i + 1}" for i in range(len(queries)))), strict=True
    ):
        axes.set_title(title, fontsize=10)
    for line, image, attended, part in zip(grid, images, weights, parts, strict=True):
        line[0].imshow(
            image.squeeze(-1) if image.shape[-1] == 1 else image,
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=whole,
        )
        for number, (row, column) in enumerate(query_cells(rows, columns, part), 1):
            strength = attended[row, column] / max(
                float(np.abs(attended[row, column]).max()), 1e-12
            )
            line[number].imshow(image.mean(axis=-1), cmap="gray", vmin=-100, vmax=255, extent=whole)
            opacity = 0.85 * np.abs(strength) ** 0.5  # weak weights leave the image visible
            shading = line[number].imshow(
                strength, cmap="RdBu_r", vmin=-1, vmax=1, alpha=opacity, extent=whole
            )
            corner = (column * cell[0] - 0.5, row * cell[1] - 0.5)
            for axes in (line[0], line[number]):
                axes.add_patch(Rectangle(corner, *cell, fill=False, edgecolor="#ffd33d", lw=1.8))
            middle = (corner[0] + cell[0] / 2, corner[1] + cell[1] / 2)
            style = dict(color="#ffd33d", ha="center", va="center", fontsize=9, fontweight="bold")
            line[0].text(*middle, str(number), path_effects=outline, **style)
    bar = figure.colorbar(shading, ax=grid, shrink=0.85, pad=0.01, aspect=30, ticks=(-1, 0, 1))
    bar.set_ticklabels(("subtracts", "0", "adds"))
    return figure


def _draw_gate(layer: str, gates: np.ndarray, images: np.ndarray) -> Figure:
    where, which = gates.shape[1:3] != (1, 1), gates.shape[-1] > 1
    count, (height, width) = len(images), images.shape[1:3]
    panel, columns = 2.0 * height / width, 1 + where + 2 * which
    figure = Figure(
        figsize=(2.2 * columns + 0.8, panel * count + 0.8), layout="constrained", facecolor="white"
    )
    what = f"gate of {gates.shape[1]}x{gates.shape[2]} positions and {gates.shape[-1]} channels"
    figure.suptitle(f"{layer.removesuffix('/gate')}: {what}", fontsize=11)
    ratios = [1] * (1 + where) + [2] * which
    grid = figure.subplots(count, len(ratios), squeeze=False, width_ratios=ratios)
    for line, image, gate in zip(grid, images, gates, strict=True):
        _show_image(line[0], image)
        if where:
            shading = line[1].imshow(gate.mean(axis=-1), cmap="viridis")
            line[1].set(xticks=[], yticks=[])
            figure.colorbar(shading, ax=line[1], shrink=0.8, pad=0.02)
        if which:
            mean = gate.mean(axis=(0, 1))
            line[-1].plot(
                np.arange(len(mean)), mean, lw=1.2, color="#1f5fa8", drawstyle="steps-mid"
            )
            line[-1].grid(alpha=0.3)
            line[-1].tick_params(labelsize=8)
    grid[0][0].set_title("image", fontsize=10)
    if where:
        grid[0][1].set_title("mean over channels", fontsize=10)
    if which:
        grid[0][-1].set_title("mean over positions, by channel", fontsize=10)
    return figure


def _draw_channels(layer: str, weights: np.ndarray, images: np.ndarray) -> Figure:
    figure = Figure(figsize=(5.2, 2.2 * len(images) + 0.6), layout="constrained", facecolor="white")
    figure.suptitle(
        f"{layer.removesuffix('/channel_map')}: weight of each channel (column) in each (row)",
        fontsize=10,
    )
    grid = figure.subplots(len(images), 2, squeeze=False)
    for line, image, matrix in zip(grid, images, weights, strict=True):
        _show_image(line[0], image)
        figure.colorbar(line[1].imshow(matrix, cmap="viridis"), ax=line[1], shrink=0.8, pad=0.02)
        line[1].tick_params(labelsize=8)
    return figure


def _show_image(axes: Any, image: np.ndarray) -> None:
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
