"""What images are like, read from the files: size, colours, frames, whether they are damaged."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageChops
from PIL.TiffImagePlugin import BITSPERSAMPLE

from lambdanet.data import class_folders, decode, duplicates, orientation

FORMATS = (*class_folders.FORMATS, "GIF", "TIFF")
"""Of pictures with a class; of several frames or pages the first one counts."""
GREY_MODES = ("1", "L", "LA")
AT_ONCE = 1024  # files that are handed to the threads together
THREADS = min(8, os.cpu_count() or 1)
"""Pillow decodes without the interpreter's lock."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a picture is like.

    Attributes:
        size: (width, height) of the upright picture.
        grey: all its pixels are.
        frames: more than 1 if it is animated or has several pages.
        mode: Pillow's, of its pixels.
        deep: they have 16 bits a channel, of which Pillow keeps the upper 8.
        transparent: parts of it are.
        turned: its camera says that it lies on a side, or is mirrored.
        digest: of its bytes.
    """

    size: tuple[int, int]
    grey: bool
    frames: int
    mode: str
    deep: bool
    transparent: bool
    turned: bool
    digest: bytes


def look(file: Path) -> Facts:
    """Reads and decodes a picture; a JPEG at an eighth of its size, which reads all of the file.

    Raises:
        ValueError: no picture of one of `FORMATS`, grey of more than 8 bits, too large.
        OSError: damaged, cut off, or not readable.
    """
    if reason := class_folders.why_no_image(file, FORMATS):
        raise ValueError(reason)
    data = file.read_bytes()
    picture = decode.open_image(data)
    image = picture.stored
    # The second picture in a phone's .jpg is of no concern.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    mode, transparent = image.mode, image.has_transparency_data
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (1, 1))
    image.load()
    return Facts(
        size=picture.size,
        grey=mode in GREY_MODES or _is_grey(image),
        frames=frames,
        mode=mode,
        deep=_is_deep(image, data),
        transparent=transparent,
        turned=picture.turn != orientation.TURNS[1],
        digest=duplicates.digest(data),
    )


def _is_deep(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        return data[24] > 8  # the header comes first, and has the bits of a channel there
    return image.format == "TIFF" and max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8


def _is_grey(image: Image.Image) -> bool:
    """Whether red, green and blue are equal everywhere, in means over small squares."""
    image = image.convert("RGBA") if image.mode in ("P", "PA") else image
    small = image.convert("RGB").reduce(max(1, min(image.size) // 64))
    red, green, blue = small.split()
    return not any(ImageChops.difference(red, c).getbbox() for c in (green, blue))


def examine(
    root: Path, files: Sequence[str], on_file: Callable[[], object]
) -> dict[str, Facts | str]:
    """Returns file -> facts, or the reason why it cannot be used.

    Args:
        root: that the files are relative to.
        files: the pictures.
        on_file: called after each.
    """
    found: dict[str, Facts | str] = {}
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(files), AT_ONCE):
            part = files[start : start + AT_ONCE]
            for file, result in zip(
                part, threads.map(_facts, [root / f for f in part]), strict=True
            ):
                found[file] = result
                on_file()
    return found


def _facts(file: Path) -> Facts | str:
    try:
        return look(file)
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise many types
        return str(error) or type(error).__name__


def notes(found: Iterable[Facts]) -> tuple[str, ...]:
    """Returns what is done to pictures that are not plain, with counts."""
    found = list(found)
    counts = collections.Counter()
    for facts in found:
        counts["pictures animated or of several pages: the first frame counts"] += facts.frames > 1
        counts["pictures turned upright, as their camera says"] += facts.turned
        counts["pictures with transparency, laid on white"] += facts.transparent
        counts["pictures of CMYK or YCbCr, converted to RGB"] += facts.mode in ("CMYK", "YCbCr")
        counts["pictures of 16 bits a channel, of which the upper 8 are read"] += facts.deep
        counts["pictures with a palette, converted to RGB"] += facts.mode in ("P", "PA")
        counts["grey pictures"] += facts.grey
    return tuple(f"{what}: {count} of {len(found)}" for what, count in counts.items() if count)
