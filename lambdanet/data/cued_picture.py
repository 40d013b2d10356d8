"""Command line: draws samples of the data set `cued_digits`.

python -m lambdanet.data.cued_picture docs/images/cued_digits.png
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lambdanet.data import cued_digits, picture_program


def picture(path: str | os.PathLike, size: tuple[int, int], columns: int = 6) -> None:
    """Draws training images under their labels, and below each which digit the cue means."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    material = cued_digits.load_material("train")
    figure = Figure(figsize=(1.9 * columns, 4.3), layout="constrained")
    for index, column in enumerate(figure.subplots(2, columns).T):
        scene = cued_digits.draw(material, index, size)
        for axes in column:
            axes.imshow(scene.image, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        column[0].set_title(f"label {scene.label}")
        middles = [
            ((left + right - 1) / 2, (top + bottom - 1) / 2)
            for top, left, bottom, right in scene.boxes
        ]
        column[1].plot(*zip(middles[2], middles[0], strict=True), "w--", linewidth=1)
        for colour, (top, left, bottom, right) in zip(
            ("white", "grey", "white"), scene.boxes, strict=True
        ):
            box = Rectangle(
                (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=colour
            )
            column[1].add_patch(box)
        column[1].set_xlabel(f"least distance {cued_digits.gaps(scene.boxes).min()} px")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> int:
    """Draws the picture that `argv` asks for; see `picture_program`."""
    about = __doc__.split("\n")[0]
    size = (64, 64)
    return picture_program.run(argv, "cued_picture", about, size, cued_digits.check_size, picture)


if __name__ == "__main__":
    sys.exit(main())
