"""What somebody names for a prediction: files, folders and patterns of pictures or clips, and their
contents.
"""

from __future__ import annotations

import dataclasses
import difflib
import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from lambdanet.data import clip_folders, decode, frame_folders, picture_facts, video_files
from lambdanet.data.class_folders import MAX_BYTES, is_litter, listing, printable, why_no_image

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
OTHER_PICTURES = (
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpf", ".jpx", ".jpe", ".jif"),
    *(".jfif", ".mpo", ".apng", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".svg"),
    *(".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
"""Endings of pictures that are read if their content is of a format that is, and else named."""
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
LOOKED_FOR = {
    "picture": f"pictures, names that end with {', '.join(PICTURES)}, or without an ending whose "
    "content is one",
    "clip": f"folders of pictures, and videos, names that end with {', '.join(VIDEOS)}",
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What was found.

    Attributes:
        named: name of its results, without a suffix -> path.
        root: the folder that was named, or the one that all have in common.
        passed_over: other files in the folders.
    """

    named: dict[str, Path]
    root: Path
    passed_over: tuple[Path, ...] = ()


# ---- Paths ---------------------------------------------------------------------------------------


def find_inputs(given: Sequence[str], kind: str = "picture") -> Inputs:
    """Looks for the pictures or clips of the values of --input.

    A folder is searched with all below it, for names that end as pictures do, be they of a format
    that is read or of one that is to be named, and for files without an ending whose content is a
    picture; of clips, every folder with pictures in it is one, and every video. What systems leave
    in folders is passed over. What a pattern finds is taken whatever its name ends with.

    Args:
        given: files, folders and patterns (`*`, `?`, `[...]`, `**`).
        kind: 'picture' or 'clip'.

    Raises:
        ValueError: for each value what is wrong: no such file, nothing in the folder, nothing that
            matches.
    """
    if not any(given):
        raise ValueError(f"name {kind}s with --input=PATH: a file, a folder, or a pattern")
    found: dict[Path, None] = {}  # in order, each once
    passed_over: list[Path] = []
    problems: list[str] = []
    for value in given:
        path = Path(value)
        if path.is_dir():
            paths, others = _search(path, kind)
            passed_over += others
            if not paths:
                videos = [p for p in others if p.suffix.lower() in VIDEOS]
                more = f" There are videos, such as {videos[0].name}." if videos else ""
                problems.append(
                    f"--input={value}: no {kind} there; looked for {LOOKED_FOR[kind]}.{more}"
                )
        elif path.exists():
            paths = [path]
        elif glob.has_magic(value):
            paths = []
            for match in sorted(map(Path, glob.glob(value, recursive=True))):
                if match.is_dir():
                    paths += _search(match, kind)[0]
                elif not is_litter(match.name):
                    paths.append(match)
            if not paths:
                problems.append(f"--input={value}: no {kind} matches this pattern")
        else:
            paths = []
            problems.append(f"--input={value}: there is no such file or folder.{_nearest(path)}")
        found |= dict.fromkeys(map(_absolute, paths))
    if problems:
        raise ValueError("; ".join(text.removesuffix(".") for text in problems))
    root = Path(os.path.commonpath([p.parent for p in found]))
    if len(given) == 1 and Path(given[0]).is_dir() and _absolute(Path(given[0])) not in found:
        root = _absolute(Path(given[0]))
    return Inputs(_named(list(found), root), root, tuple(passed_over))


def _absolute(path: Path) -> Path:
    """A path without `..`, the name at its end as it is, also that of a link."""
    if ".." not in path.parts:
        return path.absolute()
    return path.resolve() if path.name == ".." else path.parent.resolve() / path.name


def _search(folder: Path, kind: str) -> tuple[list[Path], list[Path]]:
    """Returns the pictures or clips below a folder, and the other files."""
    found, others = [], []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        files = [Path(place, name) for name in sorted(names) if not is_litter(name)]
        pictures = [p for p in files if p.suffix.lower() in PICTURES and p.is_file()]
        if kind == "picture":
            taken = {p for p in files if p in set(pictures) or _is_other_picture(p)}
            found += taken
            others += [p for p in files if p not in taken]
        elif pictures or (not folders and any(map(_is_other_picture, files))):
            found.append(Path(place))
            folders.clear()  # what is below belongs to the clip, which says what is wrong with it
        else:
            videos = [p for p in files if p.suffix.lower() in VIDEOS]
            found += videos
            others += [p for p in files if p not in set(videos)]
    return sorted(found), others


def _is_other_picture(path: Path) -> bool:
    """Whether a file is a picture whose name ends otherwise: by a rarer ending, or, without one, by
    its content, as `prepare` sees it.
    """
    if path.suffix:
        return path.suffix.lower() in OTHER_PICTURES and path.is_file()
    return why_no_image(path, picture_facts.FORMATS) in ("", decode.HEIF_REASON)


def _nearest(path: Path) -> str:
    parent = path.absolute().parent
    names = sorted(os.listdir(parent)) if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {str(path.parent / close[0])!r}?" if close else ""


def _named(found: Sequence[Path], root: Path) -> dict[str, Path]:
    """Returns the paths by name: that within the folder `root`, without its suffix, or with it
    where two would have the same (all of them where that does not help).
    """
    names = [p.relative_to(root) for p in found]
    stems = [
        str(name if p.is_dir() else name.with_suffix(""))
        for name, p in zip(names, found, strict=True)
    ]
    chosen = {
        stem if stems.count(stem) == 1 else str(name): p
        for stem, name, p in zip(stems, names, found, strict=True)
    }
    # a.jpg and a.png beside a.jpg.png: whole names are always different
    return chosen if len(chosen) == len(found) else dict(zip(map(str, names), found, strict=True))


def check_outside(found: Iterable[Path], target: Path) -> None:
    """Raises ValueError if a picture lies in the folder that the results replace."""
    inside = [p for p in found if p.resolve().is_relative_to(target.resolve())]
    if inside:
        shown = listing([printable(str(p)) for p in inside])
        raise ValueError(
            f"what is to be predicted lies in {target}, which the results replace; move it, or "
            f"name another folder with --output=DIR:{shown}"
        )


# ---- Contents ------------------------------------------------------------------------------------


def read_picture(source: Any) -> tuple[Any, str]:
    """Returns what `decode.open_image` takes, and a note on what is left out of it.

    Args:
        source: path, image of Pillow, or uint8 [h, w], [h, w, 1], [h, w, 3] or, with alpha, [h, w,
            4].

    Raises:
        ValueError, OSError: a file that is empty, larger than 1 GiB, or cannot be read; pixels of
            another type or shape.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or 0 in source.shape:
            raise ValueError(
                f"pixels {source.dtype} {list(source.shape)}; allowed: uint8 [height, width] or "
                "[height, width, channels]"
            )
        pixels = source[:, :, None] if source.ndim == 2 else source
        if pixels.shape[2] not in (1, 3, 4):
            raise ValueError(f"{pixels.shape[2]} channels; allowed: 1, 3, or 4 with alpha")
        return (Image.fromarray(pixels) if pixels.shape[2] == 4 else pixels), ""
    contents = source if isinstance(source, Image.Image) else _bytes_of(Path(source))
    further = decode.further_frames(contents)
    return contents, f"has {further + 1} frames or pages, of which the first is used" * bool(
        further
    )


def _bytes_of(path: Path) -> bytes:
    size = path.stat().st_size
    if path.is_dir():
        raise ValueError("a folder")
    if size > MAX_BYTES:
        raise ValueError(f"{size / 2**30:.1f} GiB; allowed: up to {MAX_BYTES // 2**30}")
    if not size:
        raise ValueError("an empty file")
    return path.read_bytes()


def read_clip(source: Any, fps: float) -> tuple[Any, str]:
    """Returns the frames of a clip, each as `decode.open_image` takes it, and a note.

    Args:
        source: path of a folder of numbered frames or of a video; uint8 [t, h, w, c]; or a sequence
            of frames, each as `read_picture` takes it.
        fps: frames per second to take of a video; 0 = all of them, which must be evenly apart.

    Raises:
        ValueError, OSError: what is wrong with it.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            problems = frame_folders.clip_of(path)[1]
            if problems:
                raise ValueError("; ".join(problems))
        elif path.suffix.lower() in PICTURES:
            raise ValueError("a picture, and a clip is a folder of numbered frames or a video")
        elif not video_files.installed():
            raise ValueError(video_files.MISSING)
        elif reason := video_files.why_no_video(path, fps):
            raise ValueError(reason)
        return clip_folders.frames_of(path, fps), ""
    if not len(source):
        raise ValueError("a clip without frames")
    return [read_picture(frame)[0] for frame in source], ""


def why_unreadable(error: Exception, source: Any = None) -> str:
    """Returns what to say of a file that could not be read or decoded.

    Args:
        error: of the attempt.
        source: the input; of a file the format is named, if it is a picture of another one.
    """
    if isinstance(error, UnidentifiedImageError):
        is_file = isinstance(source, (str, os.PathLike)) and Path(source).is_file()
        reason = why_no_image(Path(source), picture_facts.FORMATS) if is_file else ""
        return reason if reason.startswith("format ") else "not an image"
    return f"cannot be read ({error or type(error).__name__})"
