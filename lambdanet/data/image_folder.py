"""Folders of images, one folder per class, turned once into a prepared data set."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import tensorflow_datasets as tfds
from rich import progress
from rich.console import Console
from rich.text import Text

from lambdanet.data import storage
from lambdanet.data.class_folders import Folder, scan

Found = TypeVar("Found")


class PreparedFolder(tfds.core.GeneratorBasedBuilder):
    """Images from class folders; `file` is the original name, relative to the folder."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, folder: Folder, bars: progress.Progress, *, data_dir: str):
        self.folder, self.bars = folder, bars
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "file": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=list(self.folder.class_names)),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, description=type(self).__doc__
        )

    def _split_generators(self, dl_manager):
        return {
            name: self._generate_examples(name, rows) for name, rows in self.folder.splits.items()
        }

    def _generate_examples(self, split, rows):
        for file, label in self.bars.track(rows, description=split):
            image = (self.folder.root / file).read_bytes()
            yield file, {"file": file, "image": image, "label": label}


class Rate(progress.ProgressColumn):
    """Files per second, over the whole time."""

    def render(self, task: progress.Task) -> Text:
        """Returns the rate as text."""
        rate = task.completed / max(task.elapsed or 0, 1e-3)
        return Text(f"{rate:.{int(rate < 10)}f}/s")


def progress_bars(*, visible: bool = True) -> progress.Progress:
    """Returns live bars on the standard error: count, rate and time left; without a terminal, one
    line each at the end; nothing unless `visible`.
    """
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        disable=not visible,
    )


def scan_and_write(
    sources: Collection[str],
    directory: str,
    scan: Callable[[Callable[[], object]], Found],
    make_builder: Callable[[Found, progress.Progress, str], tfds.core.DatasetBuilder],
    finish: Callable[[Found, Path], object] = lambda found, prepared: None,
) -> Found:
    """Scans folders and writes a prepared set to `directory` (new or empty); returns what the scan
    found.

    Args:
        sources: the folders.
        directory: for the prepared set.
        scan: called with what it calls after each file; raises ValueError with all problems.
        make_builder: of what was found, the bars, and the data_dir to prepare in.
        finish: called with what was found and the prepared directory before it is in its place; may
            add files.

    Raises:
        ValueError: the scan found problems, `directory` is in use, or lies in one of the folders.
        OSError: a file or folder cannot be read or written.
    """
    if storage.is_prepared(directory):
        raise ValueError(
            f"{directory} is a prepared data set already; remove it to prepare it anew"
        )
    for folder in sources:
        if Path(directory).resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(f"{directory} lies in {folder}; name a directory outside of it")
    with progress_bars() as bars:
        checking = bars.add_task("checking", total=None)
        found = scan(lambda: bars.advance(checking))
        bars.update(checking, total=bars.tasks[checking].completed)
        written = storage.prepare_atomically(
            lambda scratch: make_builder(found, bars, scratch),
            directory,
            lambda prepared: finish(found, prepared),
        )
    if not written:
        raise ValueError(f"{directory} was prepared by another process meanwhile")
    return found


def prepare(
    source: str, directory: str, *, val_fraction: float = 0.1, test_fraction: float = 0.0
) -> Folder:
    """Scans `source` and writes the prepared set to `directory` (new or empty); returns what was
    written.

    Raises:
        ValueError: the scan found problems (all of them listed), `directory` is in use, or lies in
            `source`, where it would be taken for a class.
        OSError: a file or folder cannot be read or written.
    """
    return scan_and_write(
        [source],
        directory,
        lambda on_file: scan(
            source, val_fraction=val_fraction, test_fraction=test_fraction, on_file=on_file
        ),
        lambda folder, bars, scratch: PreparedFolder(folder, bars, data_dir=scratch),
    )
