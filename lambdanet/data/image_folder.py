"""Images with one class each, turned once into a prepared data set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

import tensorflow_datasets as tfds
from rich import progress
from rich.console import Console
from rich.text import Text

from lambdanet.data import class_sets, overview, picture_set, preview, splitting, storage

Found = TypeVar("Found")


class PreparedFolder(tfds.core.GeneratorBasedBuilder):
    """Images with one class each; `file` is the original name, relative to their folder."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, folder: class_sets.Folder, bars: progress.Progress, *, data_dir: str):
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


def scanned(
    sources: Collection[str], directory: str, scan: Callable[[Callable[[], object]], Found]
) -> Found:
    """Returns what the scan of folders found that a set in `directory` is to be made of.

    Args:
        sources: the folders.
        directory: new or empty.
        scan: called with what it calls after each file.

    Raises:
        ValueError: `directory` is in use, or lies in one of the folders; what the scan raises.
        OSError: a file or folder cannot be read.
    """
    check_destination(sources, directory)
    with progress_bars() as bars:
        checking = bars.add_task("checking", total=None)
        found = scan(lambda: bars.advance(checking))
        bars.update(checking, total=bars.tasks[checking].completed)
    return found


def write_prepared(
    make_builder: Callable[[progress.Progress, str], tfds.core.DatasetBuilder],
    directory: str,
    finish: Callable[[Path], object] = lambda prepared: None,
) -> None:
    """Writes a prepared set to `directory` (new or empty), whole or not at all.

    Args:
        make_builder: of the bars, and the data_dir to prepare in.
        directory: for the prepared set.
        finish: called with the prepared directory before it is in its place; may add files.

    Raises:
        ValueError: `directory` is in use.
        OSError: a file cannot be read or written.
    """
    with progress_bars() as bars:
        if not storage.prepare_atomically(
            lambda scratch: make_builder(bars, scratch), directory, finish
        ):
            raise ValueError(f"{directory} was prepared by another process meanwhile")


def scan_and_write(
    sources: Collection[str],
    directory: str,
    scan: Callable[[Callable[[], object]], Found],
    make_builder: Callable[[Found, progress.Progress, str], tfds.core.DatasetBuilder],
) -> Found:
    """Scans folders and writes a prepared set to `directory` (new or empty); returns what the scan
    found.

    Args:
        sources: the folders.
        directory: for the prepared set.
        scan: called with what it calls after each file; raises ValueError with all problems.
        make_builder: of what was found, the bars, and the data_dir to prepare in.

    Raises:
        ValueError: the scan found problems, `directory` is in use, or lies in one of the folders.
        OSError: a file or folder cannot be read or written.
    """
    found = scanned(sources, directory, scan)
    write_prepared(lambda bars, scratch: make_builder(found, bars, scratch), directory)
    return found


def check_destination(sources: Collection[str], directory: str) -> None:
    """Raises ValueError for a directory that is a prepared set, is not empty, cannot be made, or
    lies in one of the sources, where a second preparation would take it for data.
    """
    if storage.is_prepared(directory):
        raise ValueError(
            f"{directory} is a prepared data set already; remove it to prepare it anew"
        )
    for source in sources:
        if Path(directory).resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(f"{directory} lies in {source}; name a directory outside of it")
    storage.check_free(Path(directory))
    storage.check_writable(Path(directory))


def write(found: picture_set.PictureSet, directory: str) -> None:
    """Writes the prepared set to `directory`, with a contact sheet and the tables as text.

    Args:
        found: without mistakes.
        directory: new or empty.

    Raises:
        ValueError: `directory` is in use.
        OSError: a file cannot be read or written.
    """
    write_prepared(
        lambda bars, scratch: PreparedFolder(found.folder, bars, data_dir=scratch),
        directory,
        lambda prepared: overview.write(preview.overview_of(found), prepared),
    )


def prepare(
    source: str,
    directory: str,
    *,
    images: str = "",
    columns: Sequence[str] = (),
    encoding: str = "",
    depth: int = 0,
    division: splitting.Division | None = None,
    on_error: str = "raise",
) -> class_sets.Folder:
    """Finds the images of `source` and writes the prepared set to `directory` (new or empty);
    returns what was written. The other arguments are those of `picture_set.find` and
    `class_sets.resolved`.

    Raises:
        ValueError: something is wrong with images (all of it listed), `directory` is in use, or
            lies in `source`.
        OSError: a file or folder cannot be read or written.
    """
    check_destination([source, *([images] if images else [])], directory)
    with progress_bars() as bars:
        found = picture_set.find(
            source,
            bars,
            images=images,
            columns=columns,
            encoding=encoding,
            depth=depth,
            division=division,
        )
    folder = class_sets.resolved(found.listing, found.folder, on_error)
    write(found, directory)
    return folder
