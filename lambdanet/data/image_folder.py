"""Folders of images, one folder per class, turned once into a prepared data set."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError

from lambdanet.data import decode, digits, storage

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_LISTED = 20  # problems named in one error


@dataclasses.dataclass(frozen=True)
class Folder:
    """What a scan found: `splits` maps a split name to its (file relative to `root`, class index)
    pairs.
    """

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]


def scan(
    source: str | os.PathLike, *, val_fraction: float = 0.1, test_fraction: float = 0.0
) -> Folder:
    """Lists the images of `source` and refuses whatever is not one.

    Two layouts are read: `source/<split>/<class>/<file>` with a folder `train` and optionally
    `validation` (or `val`, `valid`) and `test`; or `source/<class>/<file>`, from which stratified
    validation and test splits are taken. Only the header of each file is read. Names that start
    with a dot are passed over.

    Args:
        source: the folder.
        val_fraction, test_fraction: share of the records for these splits, second layout only.

    Raises:
        ValueError: lists the empty classes, the files that are no 8-bit images in one of `FORMATS`,
            files where a folder is expected and the other way round, and classes of other splits
            that `train` lacks.
    """
    root = Path(source)
    if not root.is_dir():
        raise ValueError(
            f"{root} is not a directory; expected class folders, or train/ (and validation/, "
            "test/) of them"
        )
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must be >= 0, together "
            "< 1"
        )
    problems: list[str] = []
    splits: dict[str, list[tuple[str, int]]] = {}
    if (root / "train").is_dir():
        folders = {}
        for entry in _entries(root):
            if not entry.is_dir() or entry.name not in SPLIT_FOLDERS:
                problems.append(
                    f"{entry.name}: beside train/ only folders named {', '.join(SPLIT_FOLDERS)} "
                    "may stand"
                )
            elif SPLIT_FOLDERS[entry.name] in folders:
                problems.append(
                    f"{entry.name}/: a second folder for split {SPLIT_FOLDERS[entry.name]!r}"
                )
            else:
                folders[SPLIT_FOLDERS[entry.name]] = entry
        class_names = tuple(entry.name for entry in _entries(root / "train") if entry.is_dir())
        splits = {
            name: _list_classes(root, folders[name], class_names, problems)
            for name in sorted(folders)
        }
    else:
        class_names = tuple(entry.name for entry in _entries(root) if entry.is_dir())
        found = _list_classes(root, root, class_names, problems)
    if not class_names:
        problems.append("no class folders")
    if problems:
        more = [f"... and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        listed = "\n  ".join(problems[:MAX_LISTED] + more)
        raise ValueError(f"{root} cannot be prepared; move these away or repair them:\n  {listed}")
    return Folder(root, class_names, splits or _split(found, val_fraction, test_fraction))


def _split(
    found: list[tuple[str, int]], val_fraction: float, test_fraction: float
) -> dict[str, list[tuple[str, int]]]:
    """Holds stratified shares of the records out; a split without records is left out."""
    labels = np.array([label for _, label in found])
    held_out = digits.stratified_split(
        labels, [round(val_fraction * len(found)), round(test_fraction * len(found))]
    )
    rest = np.setdiff1d(np.arange(len(found)), np.concatenate(held_out))
    parts = {"train": rest, "validation": held_out[0], "test": held_out[1]}
    return {name: [found[i] for i in rows] for name, rows in parts.items() if len(rows)}


def _entries(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))


def _list_classes(
    root: Path, directory: Path, class_names: tuple[str, ...], problems: list[str]
) -> list[tuple[str, int]]:
    """Returns the (relative file, class) pairs under `directory`; appends what is wrong to
    `problems`.
    """
    found = []
    for entry in _entries(directory):
        if not entry.is_dir():
            problems.append(f"{entry.relative_to(root)}: a file where class folders are expected")
            continue
        if entry.name not in class_names:
            problems.append(
                f"{entry.relative_to(root)}/: class {entry.name!r} does not occur in train/"
            )
            continue
        files = _entries(entry)
        if not files:
            problems.append(f"{entry.relative_to(root)}/: class without images")
        for file in files:
            relative = file.relative_to(root).as_posix()
            reason = _why_no_image(file)
            if reason:
                problems.append(f"{relative}: {reason}")
            else:
                found.append((relative, class_names.index(entry.name)))
    return found


def _why_no_image(file: Path) -> str:
    if file.is_dir():
        return "a folder inside a class folder"
    try:
        with Image.open(file) as image:
            if image.format not in FORMATS:
                return f"format {image.format}; allowed: {', '.join(FORMATS)}"
            return decode.why_unsupported(image.mode)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return "not an image"


class PreparedFolder(tfds.core.GeneratorBasedBuilder):
    """Images from class folders; `file` is the original name, relative to the folder."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, folder: Folder, *, data_dir: str):
        self.folder = folder
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
        started = time.monotonic()
        for count, (file, label) in enumerate(rows, start=1):
            yield (
                file,
                {"file": file, "image": (self.folder.root / file).read_bytes(), "label": label},
            )
            _progress(split, count, len(rows), started)


def _progress(split: str, count: int, total: int, started: float) -> None:
    """One live line per split on a terminal, else a line per tenth."""
    if sys.stderr.isatty():
        if count % 50 == 0 or count == total:
            rate = count / max(time.monotonic() - started, 1e-9)
            end = "\n" if count == total else ""
            print(
                f"\r{split}: {count}/{total} images, {rate:.0f}/s ",
                end=end,
                file=sys.stderr,
                flush=True,
            )
    elif count * 10 // total != (count - 1) * 10 // total:
        print(f"{split}: {count}/{total} images", file=sys.stderr, flush=True)


def prepare(
    source: str, directory: str, *, val_fraction: float = 0.1, test_fraction: float = 0.0
) -> Folder:
    """Scans `source` and writes the prepared set to `directory` (new or empty); returns what was
    written.

    Raises:
        ValueError: the scan found problems (all of them listed), or `directory` is in use.
    """
    if storage.is_prepared(directory):
        raise ValueError(
            f"{directory} is a prepared data set already; remove it to prepare it anew"
        )
    folder = scan(source, val_fraction=val_fraction, test_fraction=test_fraction)
    if not storage.prepare_atomically(
        lambda scratch: PreparedFolder(folder, data_dir=scratch), directory
    ):
        raise ValueError(f"{directory} was prepared by another process meanwhile")
    return folder
