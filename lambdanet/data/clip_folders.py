"""Clips with one class each, from class folders of video files or of folders of frames, turned once
into a prepared data set.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds
from rich import progress

from lambdanet.data import (
    class_folders,
    class_search,
    class_sets,
    duplicates,
    frame_folders,
    image_folder,
    splitting,
    video_files,
)
from lambdanet.data.findings import Findings


class PreparedClips(tfds.core.GeneratorBasedBuilder):
    """Clips from class folders; `file` is the original folder or video, relative to the root, and
    frames are in order.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, folder: class_sets.Folder, fps: float, bars: progress.Progress, *, data_dir: str
    ):
        self.folder, self.fps, self.bars = folder, fps, bars
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "file": tfds.features.Text(),
            "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
            "label": tfds.features.ClassLabel(names=list(self.folder.class_names)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description=type(self).__doc__,
        )

    def _split_generators(self, dl_manager):
        return {
            name: self._generate_examples(name, rows) for name, rows in self.folder.splits.items()
        }

    def _generate_examples(self, split, rows):
        for name, label in self.bars.track(rows, description=split):
            frames = frames_of(self.folder.root / name, self.fps)
            yield name, {"file": name, "frames": frames, "label": label}


def frames_of(clip: Path, fps: float) -> list[bytes]:
    """Returns the frames of a folder as they are, or those of a video as JPEG files."""
    if not clip.is_dir():
        return list(video_files.jpegs(clip, fps))
    return [file.read_bytes() for file in files_of(clip)]


def files_of(clip: Path) -> list[Path]:
    """Returns the frames of a folder in order, or the one file of a video."""
    if not clip.is_dir():
        return [clip]
    names = [file.name for file in clip.iterdir() if not class_folders.is_litter(file.name)]
    return [clip / name for name in frame_folders.in_order(names)[0]]


class ClipSearch(class_search.Search):
    """The walk over class folders of clips: what stands in a class folder is a clip, be it a file
    or a folder.
    """

    holds = "clips"

    def __init__(self, root: Path, on_file: Callable[[], object], findings: Findings, fps: float):
        super().__init__(root, on_file, findings)
        self.fps, self.decodes = fps, video_files.installed()

    def rows(self, top: Path) -> list[tuple[str, str]]:
        """Returns the (name, class) pairs of a folder of class folders."""
        found = []
        for folder in self.entries(top):
            if not folder.is_dir():
                self.pass_over(folder)
                continue
            entries = self.entries(folder)
            if not entries:
                self.report(folder, "/: class without clips")
            for entry in entries:
                if self._is_clip(entry):
                    found.append((entry.relative_to(self.root).as_posix(), folder.name))
                self.on_file()
        return found

    def _is_clip(self, entry: Path) -> bool:
        """Whether a file or folder can be used; reports what is wrong with it."""
        if entry.is_dir():
            problems = frame_folders.clip_of(entry)[1]
            for problem in problems:
                self.report(entry, f"/: {class_folders.printable(problem)}")
            return not problems
        if not class_folders.why_no_image(entry):
            reason = "a picture, and a clip is a folder of frames or a video file"
        elif self.decodes:
            reason = video_files.why_no_video(entry, self.fps)
        else:
            reason = video_files.MISSING
            if any(reason in text for text in self.findings.fatal):
                return False
            self.findings.stop(f"{self.shown(entry)}: {reason}")
            return False
        if reason:
            self.report(entry, f": {reason}")
        return not reason


def prepare(
    source: str,
    directory: str,
    *,
    fps: float = 0.0,
    division: splitting.Division | None = None,
    on_error: str = "raise",
) -> class_sets.Folder:
    """Scans `source` and writes the prepared set to `directory` (new or empty); returns what was
    written.

    Args:
        source: folder of class folders, or of train/, validation/, test/ of them, as in
            `class_search.list_folder`; in a class folder stand video files and folders of frames.
        directory: for the prepared set.
        fps: frames per second to take of video files; 0 = all.
        division: where there are no split folders; see `class_search.settle`.
        on_error: 'skip': what is wrong is left out, and counted in the notes.

    Raises:
        ValueError: the scan found problems (all of them listed), `directory` is in use, or lies in
            `source`, where it would be taken for a class.
        OSError: a file or folder cannot be read or written.
    """
    if not 0 <= fps <= 1000:
        raise ValueError(f"fps {fps:g}; allowed: 0 (all frames) to 1000")

    def scan(on_file: Callable[[], object]) -> class_sets.Folder:
        listing = class_search.list_folder(
            source, on_file=on_file, search=functools.partial(ClipSearch, fps=fps)
        )
        folder = class_sets.resolved(listing, class_sets.settle(listing, division), on_error)
        clips = {
            split: [
                (
                    duplicates.Copy(split, name, folder.class_names[label]),
                    files_of(folder.root / name),
                )
                for name, label in rows
            ]
            for split, rows in folder.splits.items()
        }
        warnings = (*folder.warnings, *duplicates.warnings_of_files(clips, "clips"))
        return dataclasses.replace(folder, warnings=warnings)

    return image_folder.scan_and_write(
        [source],
        directory,
        scan,
        lambda folder, bars, scratch: PreparedClips(folder, fps, bars, data_dir=scratch),
    )
