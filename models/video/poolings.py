"""The two max-poolings of C2D and I3D: after the stem, over time and space, and before the second
stage, over time.

Sources: Wang et al. 2018, "Non-local Neural Networks", table 1; the authors' code
(video-nonlocal-net); pytorchvideo 0.1.5.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from lambdanet.layers import max_pool, max_pool_cells

from ..resnet.blocks import strided_size

POOLINGS = {
    "paper": (3, True, 3),
    "code": (2, False, 2),
    "padded": (2, True, 2),
    "sparse": (1, True, 2),
    "space": (1, True, 1),
}
"""Name -> (frames under the window of the stem's pooling, whether that window, 3x3/2, is padded at
the border of the frame, frames under the window before the second stage). Windows of three frames
stand around every second one; windows of two share none, and an odd frame is dropped; one is none.
"""


def pool_frames(x: Float[Array, "b t h w c"], window: int) -> Float[Array, "b ot h w c"]:
    """Takes the largest value over windows of 3, 2 or 1 frames; a clip of one frame stays."""
    if window == 1 or x.shape[1] == 1:
        return x
    if window == 2:
        return max_pool_cells(x, (2, 1, 1))
    lines = x.reshape(*x.shape[:2], -1, x.shape[-1])
    return max_pool(lines, (3, 1), (2, 1)).reshape(x.shape[0], -1, *x.shape[2:])


def pool_space(x: Float[Array, "b t h w c"], padded: bool) -> Float[Array, "b t oh ow c"]:
    """Takes the largest value over windows of 3x3 with stride 2 in every frame.

    Args:
        x: clips.
        padded: windows stand around every second position; else the first one starts at the border,
            and what fills no window is dropped.
    """
    maps = x.reshape(-1, *x.shape[2:])
    if padded:
        y = max_pool(maps, 3, 2)
    else:
        # Windows around odd positions are windows around even ones of a map with one more before.
        wide = jnp.pad(maps, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=-jnp.inf)
        rows, columns = (space_out(n, padded) for n in maps.shape[1:3])
        y = max_pool(wide, 3, 2)[:, 1 : rows + 1, 1 : columns + 1]
    return y.reshape(*x.shape[:2], *y.shape[1:])


def frames_out(frames: int, window: int) -> int:
    """Returns how many frames `pool_frames` leaves."""
    return {1: frames, 2: max(frames // 2, 1), 3: strided_size(frames, 2)}[window]


def space_out(size: int, padded: bool) -> int:
    """Returns how many positions `pool_space` leaves of an axis."""
    return strided_size(size, 2) if padded else max((size - 1) // 2, 1)
