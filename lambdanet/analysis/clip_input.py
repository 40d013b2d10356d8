"""A clip that somebody names by its path: a folder of numbered frames, or a video file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lambdanet.data import class_folders, decode, frame_folders, video_files


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip that was looked at; its frames are read one by one.

    Attributes:
        path: of the folder or the file.
        files: the frames of a folder in order; () for a video.
        times: seconds at which the frames of a video are shown; () for a folder.
    """

    path: Path
    files: tuple[str, ...] = ()
    times: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """How many frames there are; those of a damaged video may be fewer."""
        return len(self.files) or len(self.times)

    @property
    def name(self) -> str:
        """The folder's name, or the video's with its ending."""
        return self.path.resolve().name

    @property
    def rate(self) -> float:
        """Frames per second of a video, by the median of its steps; 1 for a single frame."""
        step = float(np.median(np.diff(self.times))) if len(self.times) > 1 else 1.0
        return 1 / step if step > 0 else 1.0

    def frame_name(self, number: int) -> str:
        """Returns the name of a frame: its file's without the ending, of a video its number."""
        return Path(self.files[number]).stem if self.files else f"{number:06d}"

    def pictures(self) -> Iterator[tuple[float, bytes | np.ndarray]]:
        """Yields (seconds, picture as `decode.open_image` takes it), one at a time; of a folder,
        which has no times, the number of the frame.

        Raises:
            OSError, ValueError: a file or a part of it cannot be read.
        """
        if self.files:
            for number, name in enumerate(self.files):
                yield float(number), (self.path / name).read_bytes()
        else:
            for seconds, picture in video_files.decoded(self.path):
                yield seconds, np.asarray(picture)

    def size(self, *, exif_orientation: bool) -> tuple[int, int]:
        """Returns (height, width) of the first frame, upright."""
        _, first = next(self.pictures())
        return decode.open_image(first, exif_orientation=exif_orientation).size[::-1]


def open_clip(path: str) -> Clip:
    """Looks at a clip: all names and sizes of a folder, all time stamps of a video. Frames that are
    not evenly apart are taken as they are.

    Args:
        path: value of --input.

    Raises:
        ValueError: what is wrong with it.
    """
    if not path:
        raise ValueError("name a clip with --input=PATH: a folder of numbered frames, or a video")
    at = Path(path)
    if at.is_dir():
        files, problems = frame_folders.clip_of(at)
        if problems:
            listed = class_folders.listing([class_folders.printable(p) for p in problems])
            raise ValueError(f"--input={path}: no clip of frames in this folder:{listed}")
        return Clip(at, files=tuple(files))
    reason, times = "", []
    if not at.exists():
        reason = "there is no such file or folder"
    elif not class_folders.why_no_image(at):
        reason = (
            "a picture, and a clip is a folder of numbered frames or a video file; for pictures "
            "--mode=predict --input=PATH"
        )
    elif not video_files.installed():
        reason = video_files.MISSING
    else:
        reason, times = video_files.look_at(at)
    if reason:
        raise ValueError(f"--input={path}: {reason}")
    return Clip(at, times=tuple(times))
