"""Cutting clips out of longer ones: which frames, and which part of them.

A stored clip is a sequence of encoded pictures of one size; only those that are cut out are
decoded. Training draws where a clip begins and one geometry for all its frames; evaluation takes
views at fixed places in time and space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from lambdanet.data import decode, geometry

SHORT = ("loop", "refuse")
"""What to do with a stored clip that is shorter than what is cut out of it: begin again at its
first frame, or raise.
"""
Frames = Sequence[bytes | np.ndarray | Image.Image] | np.ndarray


def span(own: Any) -> int:
    """Returns how many stored frames a clip reaches over.

    Args:
        own: with frames and frame_stride.
    """
    return (own.frames - 1) * own.frame_stride + 1


def draw_numbers(length: int, own: Any, rng: np.random.Generator) -> np.ndarray:
    """Draws which frames a training clip consists of, int [frames].

    The first frame is uniform among those that leave room for the others. With `jitter` each frame
    is moved by up to so many, uniformly, within the stored clip; the order stays.

    Args:
        length: of the stored clip.
        own: the config's section `clips`; reads frames, frame_stride, jitter and short.
        rng: of the record. What is off draws nothing.

    Raises:
        ValueError: the stored clip is empty, or too short and `short` is 'refuse'.
    """
    _check_length(length, own)
    spare = length - span(own)
    numbers = own.frame_stride * np.arange(own.frames)
    if spare > 0:
        numbers = numbers + int(rng.integers(spare + 1))
    if own.jitter:
        numbers = numbers + rng.integers(-own.jitter, own.jitter + 1, own.frames)
        numbers = np.clip(numbers, 0, max(length, span(own)) - 1)
    return numbers % length


def view_numbers(length: int, own: Any) -> np.ndarray:
    """Returns which frames the views of evaluation consist of, int [eval_clips, frames]: evenly
    from the first to the last that there is room for, and a single one in the middle.

    Args:
        length: of the stored clip.
        own: the config's section `clips`.

    Raises:
        ValueError: as `draw_numbers`.
    """
    _check_length(length, own)
    spare = max(length - span(own), 0)
    places = np.linspace(0, 1, own.eval_clips) if own.eval_clips > 1 else np.array([0.5])
    starts = np.floor(places * spare + 0.5).astype(int)
    return (starts[:, None] + own.frame_stride * np.arange(own.frames)) % length


def _check_length(length: int, own: Any) -> None:
    if length < 1:
        raise ValueError("the clip has no frames")
    if own.short == "refuse" and length < span(own):
        raise ValueError(
            f"the clip has {length} frames, and clips.frames={own.frames} with "
            f"clips.frame_stride={own.frame_stride} need {span(own)}; ask for fewer, or set "
            "clips.short='loop', which begins again at its first frame"
        )


def view_geometries(
    picture_size: tuple[int, int], data: Any, crops: int
) -> list[geometry.Geometry]:
    """Returns the geometries of evaluation: the centred crop of `geometry.centred`, or several that
    lie evenly along the side on which it leaves more.

    Args:
        picture_size: (width, height).
        data: the config's section.
        crops: how many.
    """
    centred = geometry.centred(picture_size, data)
    if crops == 1:
        return [centred]
    sides = np.array([centred.box[2] - centred.box[0], centred.box[3] - centred.box[1]])
    free = np.array(picture_size) - sides
    axis = int(np.argmax(free))
    found = []
    for place in np.linspace(0, 1, crops):
        corner = np.array(centred.box[:2], float)
        corner[axis] = place * free[axis]
        box = tuple(float(edge) for edge in (*corner, *(corner + sides)))
        found.append(dataclasses.replace(centred, box=box))
    return found


def cut(
    frames: Frames,
    numbers: np.ndarray,
    place: Callable[[tuple[int, int]], geometry.Geometry],
    data: Any,
) -> list[Image.Image]:
    """Decodes some frames and applies one geometry to all of them.

    Args:
        frames: the stored clip: pixels uint8 [n, h, w, c], or of each frame what
            `decode.open_image` takes.
        numbers: which ones; each is decoded once.
        place: maps the (width, height) of the frames to the geometry.
        data: the config's section; reads channels and exif_orientation.

    Returns:
        One image of mode 'L' or 'RGB' per number.

    Raises:
        ValueError: frames of several sizes.
        ValueError, OSError: a frame cannot be decoded.
    """
    found: dict[int, Image.Image] = {}
    size, where, first = (0, 0), None, 0
    for number in map(int, numbers):
        if number in found:
            continue
        picture = _open(frames, number, data)
        if where is None:
            size, where, first = picture.size, place(picture.size), number
        if picture.size != size:
            shown = (f"{n} is {w} x {h}" for n, (w, h) in ((first, size), (number, picture.size)))
            raise ValueError(f"frames of several sizes: {', '.join(shown)}")
        try:
            found[number] = geometry.warp_image(picture, where, data.channels)
        except Exception as error:  # damaged files raise many types
            raise ValueError(f"frame {number}: {type(error).__name__}: {error}") from error
    return [found[number] for number in map(int, numbers)]


def _open(frames: Frames, number: int, data: Any) -> decode.Picture:
    try:
        return decode.open_image(frames[number], exif_orientation=data.exif_orientation)
    except Exception as error:  # damaged files raise many types
        raise ValueError(f"frame {number}: {type(error).__name__}: {error}") from error
