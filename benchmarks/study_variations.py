"""Pictures as they are and varied a little, the same for every network: shifts, noise, blur."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

Pictures = UInt8[np.ndarray, "n h w c"]

SHIFT = 3 / 32  # of the side; 6 of 64 pixels, which is no multiple of the stem's stride
NOISE = (16, 32)  # standard deviations, of 255
BLUR = (1, 2)  # standard deviations, pixels


def shifted(pictures: Pictures, down: int, right: int) -> Pictures:
    """Moves the pictures by a part `SHIFT` of their sides, at least a pixel, in directions of -1, 0
    or 1; the outermost pixels are repeated.
    """
    height, width = pictures.shape[1:3]
    rows, columns = (max(round(SHIFT * side), 1) for side in (height, width))
    edges = ((0, 0), (rows, rows), (columns, columns), (0, 0))
    top, left = rows - down * rows, columns - right * columns
    return np.pad(pictures, edges, mode="edge")[:, top : top + height, left : left + width]


def noisy(pictures: Pictures, deviation: float) -> Pictures:
    """Adds Gaussian noise, the same in every call, to every pixel and channel."""
    noise = np.random.default_rng(0).standard_normal(pictures.shape, np.float32)
    return np.clip(np.rint(pictures + deviation * noise), 0, 255).astype(np.uint8)


def blurred(pictures: Pictures, deviation: float) -> Pictures:
    """Convolves rows and columns with a Gaussian."""
    wide = pictures.astype(np.float32)
    wide = ndimage.gaussian_filter(wide, (0, deviation, deviation, 0), mode="nearest")
    return np.rint(wide).astype(np.uint8)


CLEAN = "clean"
VARIATIONS: dict[str, Callable[[Pictures], Pictures]] = {
    CLEAN: lambda pictures: pictures,
    "shift_up": functools.partial(shifted, down=-1, right=0),
    "shift_down": functools.partial(shifted, down=1, right=0),
    "shift_left": functools.partial(shifted, down=0, right=-1),
    "shift_right": functools.partial(shifted, down=0, right=1),
    **{f"noise_{value}": functools.partial(noisy, deviation=value) for value in NOISE},
    **{f"blur_{value}": functools.partial(blurred, deviation=value) for value in BLUR},
}

GROUPS = {
    "shift": tuple(name for name in VARIATIONS if name.startswith("shift")),
    **{name: (name,) for name in VARIATIONS if name.startswith(("noise", "blur"))},
}
"""What the tables show -> variations whose accuracies are averaged for it."""
