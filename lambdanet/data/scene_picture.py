"""Command line: draws samples of the data set `digit_scenes` with their truth.

python -m lambdanet.data.scene_picture docs/images/digit_scenes.png
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from lambdanet.data import digit_scenes, photographs, picture_program, scenes


def picture(path: str | os.PathLike, size: tuple[int, int], columns: int = 7) -> None:
    """Draws training images, below each its label map, and its objects with boxes around them."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    material = scenes.load_material("train")
    colours = np.array([(0, 0, 0), *colormaps["tab10"].colors])
    figure = Figure(figsize=(1.9 * columns, 6.6), layout="constrained")
    grid = figure.subplots(3, columns)
    for index, column in enumerate(grid.T):
        scene = scenes.draw(material, index, size)
        ignored = scene.label_map == scenes.IGNORE
        truth = np.where(ignored[..., None], 1.0, colours[np.where(ignored, 0, scene.label_map)])
        grey = np.repeat(scene.image.mean(axis=-1, keepdims=True) / 512, 3, axis=-1)
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            grey[mask] = colours[1 + label]
        for axes, shown in zip(column, (scene.image, truth, grey), strict=True):
            axes.imshow(shown, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        for label, (left, top, right, bottom) in zip(scene.labels, scene.boxes, strict=True):
            corner = (left - 0.5, top - 0.5)
            colour = colours[1 + label]
            column[2].add_patch(
                Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour)
            )
            column[2].annotate(
                str(label),
                corner,
                color="white",
                fontsize=7,
                va="bottom",
                backgroundcolor=(0, 0, 0, 0.4),
            )
    for axes, name in zip(grid[:, 0], ("image", "label map", "objects"), strict=True):
        axes.set_ylabel(name)
    patches = [Patch(color=c, label=n) for c, n in zip(colours, scenes.CLASSES, strict=True)]
    patches += [Patch(facecolor="white", edgecolor="grey", label="255: ignored")]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    about = {"Copyright": photographs.ATTRIBUTION} if Path(path).suffix == ".png" else None
    figure.savefig(path, dpi=100, metadata=about)


def main(argv: list[str] | None = None) -> int:
    """Draws the picture that `argv` asks for; see `picture_program`."""
    about = __doc__.split("\n")[0]
    size = (96, 96)
    return picture_program.run(argv, "scene_picture", about, size, digit_scenes.check_size, picture)


if __name__ == "__main__":
    sys.exit(main())
