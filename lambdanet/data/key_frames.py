"""Which frames of a sequence are key frames, and of which an example of video tasks consists.

Pure functions of numbers; the keys of the config are those of its section `propagation`.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def draw(length: int, own: Any, rng: np.random.Generator) -> np.ndarray:
    """Draws the frames of a training example, int [n + 1], the current one last.

    A pair (key, current): how far they are apart is uniform from 0 to `max_distance`, as far as the
    sequence reaches, and where they lie is uniform. Several frames (`others`): the current one is
    uniform, the others are that far before or behind it by offsets of up to `max_distance` that
    differ, and beyond the ends of the sequence its first and last frame stand in.

    Sources: Deep Feature Flow (Zhu et al., 2017) for pairs, whose code draws the current frame
    first and repeats the first frame where a key frame would lie before it; Flow-Guided Feature
    Aggregation (Zhu et al., 2017) for several.

    Args:
        length: frames of the sequence.
        own: reads max_distance and others.
        rng: of the record.

    Raises:
        ValueError: the sequence is empty.
    """
    _check(length)
    if not own.others:
        distance = int(rng.integers(min(own.max_distance, length - 1) + 1))
        current = int(rng.integers(distance, length))
        return np.array([current - distance, current])
    current = int(rng.integers(length))
    offsets = rng.choice(2 * own.max_distance + 1, own.others, replace=False) - own.max_distance
    return np.append(np.clip(current + offsets, 0, length - 1), current)


def middle(length: int, count: int) -> tuple[np.ndarray, int]:
    """Returns the frames of an evaluation example, consecutive ones from the middle, int [count],
    and how many of them, from the first, are no repetition.

    Args:
        length: frames of the sequence; a shorter one is filled up with its last frame.
        count: frames of the example.

    Raises:
        ValueError: the sequence is empty.
    """
    _check(length)
    start = max(length - count, 0) // 2
    return np.minimum(start + np.arange(count), length - 1), min(length, count)


def window(length: int, interval: int, reach: int) -> np.ndarray:
    """Returns which frames are read for each, int [length, 2 reach + 1]: `reach` on each side, in
    steps of `interval`, the first and the last frame being repeated beyond the ends.
    """
    steps = interval * np.arange(-reach, reach + 1)
    return np.clip(np.arange(length)[:, None] + steps, 0, length - 1)


def _check(length: int) -> None:
    if length < 1:
        raise ValueError("the sequence has no frames")
