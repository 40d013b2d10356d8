"""Which kernels of a network of clips reach over several frames, and how they start from those of
images.
"""

from __future__ import annotations

import numpy as np

INFLATIONS = ("none", "3x1x1", "3x3x3")
STARTS = ("mean", "centre")


def inflated(
    where: str | tuple[str | tuple[int, ...], ...], blocks: tuple[int, ...]
) -> set[tuple[int, int]]:
    """Returns the blocks that are inflated, (stage, block), both from 0.

    Args:
        where: 'paper' (all of the first stage, of the last the even ones counted from 1, of those
            between the odd ones), or per stage 'all' or 1-based numbers.
        blocks: number of blocks per stage.
    """
    found = set()
    for stage, count in enumerate(blocks):
        numbers = range(1, count + 1)
        if where != "paper":
            chosen = numbers if where[stage] == "all" else where[stage]
        elif stage == 0:
            chosen = numbers
        else:
            chosen = numbers[1::2] if stage == len(blocks) - 1 else numbers[::2]
        found |= {(stage, number - 1) for number in chosen}
    return found


def kernel_frames(inflation: str, block: str) -> tuple[int, int]:
    """Returns the frames under the first two kernels of an inflated block."""
    if inflation == "none":
        return 1, 1
    return (3, 1) if inflation == "3x1x1" or block == "basic" else (1, 3)


def inflate(
    path: str, array: np.ndarray, shape: tuple[int, ...], start: str = "mean"
) -> np.ndarray:
    """Returns a kernel of images [h, w, in, out] as one of clips, [t, h, w, in, out].

    Args:
        path: of the parameter.
        array: from a file.
        shape: that the parameter has. If it has no axis more than the array, or another size, the
            array is returned as it is.
        start: 'mean', every frame gets a t-th of it; 'centre', the middle frame all of it.
    """
    if not path.endswith("/kernel") or len(shape) != 5 or shape[1:] != array.shape:
        return array
    if start == "centre":
        kernel = np.zeros(shape, array.dtype)
        kernel[shape[0] // 2] = array
        return kernel
    return np.broadcast_to(array / np.asarray(shape[0], array.dtype), shape)
