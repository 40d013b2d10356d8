"""Command line: draws samples of the data set `moving_digits`, as an animated picture.

python -m lambdanet.data.moving_picture docs/images/moving_digits.gif
"""

from __future__ import annotations

import colorsys
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lambdanet.data import moving_digits, moving_plan, moving_scenes, photographs, picture_program

ZOOM, GAP, SECONDS = 2, 4, 0.2


def picture(path: str | os.PathLike, size: tuple[int, int], columns: int = 5) -> None:
    """Draws training clips, below each its class map, and the flow to the next frame: its direction
    is the hue, its length the brightness; the moving digit is in a white box.
    """
    material = moving_scenes.load_material("train")
    clips = [moving_scenes.draw(material, index, size) for index in range(columns)]
    flows = [_coloured(moving_scenes.flow(clip, 1)[0]) for clip in clips]
    pages = []
    for t in range(moving_scenes.FRAMES - 1):  # the last frame has no next one
        page = Image.new(
            "RGB",
            (columns * (ZOOM * size[1] + GAP) - GAP, 3 * (ZOOM * size[0] + GAP) - GAP),
            "white",
        )
        for column, (clip, flow) in enumerate(zip(clips, flows, strict=True)):
            for row, image in enumerate((clip.frames[t], _painted(clip.label_map[t]), flow[t])):
                corner = column * (ZOOM * size[1] + GAP), row * (ZOOM * size[0] + GAP)
                shown = Image.fromarray(image).resize((ZOOM * size[1], ZOOM * size[0]), 0)
                page.paste(shown, corner)
                if row == 1:
                    box = clip.boxes[t, clip.moving].astype(int) * ZOOM + np.tile(corner, 2)
                    ImageDraw.Draw(page).rectangle(tuple(map(int, box)), outline="white")
        pages.append(page)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    about = dict(comment=photographs.ATTRIBUTION.encode())
    pages[0].save(
        path,
        "GIF",
        save_all=True,
        append_images=pages[1:],
        duration=int(1000 * SECONDS),
        loop=0,
        **about,
    )


def _painted(label_map: np.ndarray) -> np.ndarray:
    """Returns a class map in colours; what is ignored is white."""
    hues = [(0, 0, 0), *(colorsys.hsv_to_rgb(number / 10, 0.7, 0.9) for number in range(10))]
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(hues)] = np.round(255 * np.array(hues))
    return colours[label_map]


def _coloured(flow: np.ndarray) -> np.ndarray:
    """Returns a flow [t, h, w, 2] in colours."""
    most = moving_plan.PAN + moving_plan.STEP
    angle = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi) % 1
    length = np.minimum(np.linalg.norm(flow, axis=-1) / (most * 2**0.5), 1)
    hsv = np.stack([angle, np.ones_like(angle), 0.15 + 0.85 * length], axis=-1)
    stored = np.round(255 * hsv).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(f, "HSV").convert("RGB")) for f in stored])


def main(argv: list[str] | None = None) -> int:
    """Draws the picture that `argv` asks for; see `picture_program`."""
    about = __doc__.split("\n")[0]
    size = (64, 64)
    check = moving_digits.check_size
    return picture_program.run(argv, "moving_picture", about, size, check, picture)


if __name__ == "__main__":
    sys.exit(main())
