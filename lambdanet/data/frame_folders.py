"""Folders whose pictures are the frames of a clip, numbered in their names: their order, and what
is wrong with them.
"""

from __future__ import annotations

import re
from pathlib import Path

from lambdanet.data import class_folders, decode

NUMBER = re.compile(r"\d+(?=\D*$)")
"""Of the stem of a file's name: the last number in it."""
MOST_GAPS = 3  # that one problem names


def in_order(names: list[str]) -> tuple[list[str], list[str]]:
    """Returns the files in the order of their frame numbers, and what is wrong with these.

    The number of a frame is the last one in its name: frame_0001.jpg, 00001.jpg. Numbers may start
    anywhere and lie several apart, if all of them do.

    Args:
        names: of the files, without folders.
    """
    problems: list[str] = []
    numbers: dict[int, str] = {}
    kinds: dict[tuple[str, str], str] = {}
    for name in sorted(names):
        stem = Path(name).stem
        found = NUMBER.search(stem)
        if found is None:
            problems.append(f"{name}: no frame number in the name")
            continue
        kinds.setdefault((stem[: found.start()], stem[found.end() :]), name)
        twin = numbers.setdefault(int(found[0]), name)
        if twin != name:
            problems.append(f"{name}: the same frame number as {twin}")
    if len(kinds) > 1:
        first, second = list(kinds.values())[:2]
        problems.append(f"frames of several names, such as {first} and {second}: one clip a folder")
    order = sorted(numbers)
    if not problems:
        problems += _gaps([(number, numbers[number]) for number in order])
    return [numbers[number] for number in order], problems


def _gaps(frames: list[tuple[int, str]]) -> list[str]:
    steps = [after - before for (before, _), (after, _) in zip(frames, frames[1:], strict=False)]
    least = min(steps, default=1)
    gaps = [i for i, step in enumerate(steps) if step != least]
    if not gaps:
        return []
    named = ", ".join(f"{frames[i][1]} and {frames[i + 1][1]}" for i in gaps[:MOST_GAPS])
    more = f" and {len(gaps) - MOST_GAPS} more" if len(gaps) > MOST_GAPS else ""
    every = "every number" if least == 1 else f"one number in {least}"
    return [f"frames are missing between {named}{more}: else there is {every}"]


def clip_of(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the frames of a clip, names in order, and what is wrong with the folder, names of
    files first.

    Args:
        folder: of the frames; what systems leave in folders is passed over.
    """
    names, problems, sizes = [], [], {}
    for file in sorted(folder.iterdir()):
        if class_folders.is_litter(file.name):
            continue
        reason, size = "a folder among frames", (0, 0)
        if not file.is_dir():
            reason, size = look_at(file)
        if reason:
            problems.append(f"{file.name}: {reason}")
        else:
            sizes.setdefault(size, file.name)
        names += [] if file.is_dir() else [file.name]
    if not names:
        return [], [*problems, "no frames in it"]
    if len(sizes) > 1:
        shown = ", ".join(f"{name} is {w} x {h}" for (w, h), name in list(sizes.items())[:2])
        problems.append(f"frames of several sizes: {shown}")
    order, wrong = in_order(names)
    return order, [*problems, *wrong]


def look_at(file: Path) -> tuple[str, tuple[int, int]]:
    """Returns '' or why a file is no picture, and the (width, height) of the upright one."""
    if reason := class_folders.why_no_image(file):
        return reason, (0, 0)
    try:
        return "", decode.open_image(file.read_bytes()).size
    except Exception as error:  # damaged files raise many types
        return f"cannot be read ({type(error).__name__}: {error})", (0, 0)
