"""Clips with one class each, from class folders of video files or of folders of frames, turned once
into a prepared data set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds
from rich import progress

from lambdanet.data import class_folders, frame_folders, image_folder, video_files


class PreparedClips(tfds.core.GeneratorBasedBuilder):
    """Clips from class folders; `file` is the original folder or video, relative to the root, and
    frames are in order.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, folder: class_folders.Folder, fps: float, bars: progress.Progress, *, data_dir: str
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
    return [(clip / name).read_bytes() for name in frame_folders.clip_of(clip)[0]]


class ClipSearch(class_folders.Search):
    """The walk over class folders of clips."""

    holds = "clips"

    def __init__(self, root: Path, on_file: Callable[[], object], fps: float):
        super().__init__(root, on_file)
        self.fps, self.decodes, self.undecoded = fps, video_files.installed(), 0

    def list_images(self, directory: Path) -> list[str]:
        """Returns the clips of one class, relative to the root."""
        entries = self.entries(directory)
        if not entries:
            self.report(directory, "/: class without clips")
        for entry in entries:
            for problem in self._problems(entry):
                self.report(entry, problem)
            self.on_file()
        return [entry.relative_to(self.root).as_posix() for entry in entries]

    def _problems(self, entry: Path) -> list[str]:
        if entry.is_dir():
            found = frame_folders.clip_of(entry)[1]
            return [f"/: {class_folders.printable(problem)}" for problem in found]
        if not class_folders.why_no_image(entry):
            return [": a picture, and a clip is a folder of frames or a video file"]
        if self.decodes:
            reason = video_files.why_no_video(entry, self.fps)
            return [f": {reason}"] if reason else []
        self.undecoded += 1
        return [f": {video_files.MISSING}"] if self.undecoded == 1 else []


def prepare(
    source: str,
    directory: str,
    *,
    fps: float = 0.0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
) -> class_folders.Folder:
    """Scans `source` and writes the prepared set to `directory` (new or empty); returns what was
    written.

    Args:
        source: folder of class folders, or of train/, validation/, test/ of them, as in
            `class_folders.scan`; in a class folder stand video files and folders of frames.
        directory: for the prepared set.
        fps: frames per second to take of video files; 0 = all.
        val_fraction, test_fraction: as in `class_folders.scan`.

    Raises:
        ValueError: the scan found problems (all of them listed), `directory` is in use, or lies in
            `source`, where it would be taken for a class.
        OSError: a file or folder cannot be read or written.
    """
    if not 0 <= fps <= 1000:
        raise ValueError(f"fps {fps:g}; allowed: 0 (all frames) to 1000")
    return image_folder.scan_and_write(
        [source],
        directory,
        lambda on_file: class_folders.scan(
            source,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            on_file=on_file,
            search=lambda root, on_file: ClipSearch(root, on_file, fps),
        ),
        lambda folder, bars, scratch: PreparedClips(folder, fps, bars, data_dir=scratch),
    )
