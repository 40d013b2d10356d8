"""Folders of images, one folder per class: which files they hold, and what is wrong with them."""

from __future__ import annotations

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from lambdanet.data import decode, digits

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP")
"""What may be in a folder; MPO is a phone's .jpg with a second picture, of which the first counts.
"""
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found")
"""What systems leave in folders, in lower case; names that start with a dot are litter too."""
UNPRINTED = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories: control characters, bytes that are not UTF-8, line and paragraph ends."""
MAX_BYTES = 2**30
MAX_LISTED = 20  # problems named in one error


@dataclasses.dataclass(frozen=True)
class Folder:
    """What a scan found.

    Attributes:
        root: the folder.
        class_names: in the order of their numbers, sorted.
        splits: split name -> (file relative to `root`, class index) pairs.
        notes: what the user should know: what was passed over, names that are easily confused.
    """

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]
    notes: tuple[str, ...] = ()


def scan(
    source: str | os.PathLike,
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    on_file: Callable[[], object] = lambda: None,
    search: Callable[[Path, Callable[[], object]], Search] | None = None,
) -> Folder:
    """Lists the images of `source` and refuses whatever is not one.

    Two layouts are read: `source/<split>/<class>/<file>` with a folder `train` and optionally
    `validation` (or `val`, `valid`) and `test`, in any case; or `source/<class>/<file>`, from which
    validation and test splits are taken, see `hold_out`. The first is meant if `train` holds a
    folder: a folder `train` of nothing but files is a class of that name.

    Only the header of each file is read. Names that start with a dot and those in `LITTER` are
    passed over and counted in the notes.

    Args:
        source: the folder.
        val_fraction, test_fraction: share of the records for these splits, second layout only.
        on_file: called after each file.
        search: makes the walk over a root, given `on_file`; None = `Search`, that over images.

    Raises:
        ValueError: lists the empty classes, the files that are no 8-bit images in one of `FORMATS`
            or too large, splits without images, files where a folder is expected and the other way
            round, names that cannot be stored, and classes of other splits that `train` lacks.
        OSError: a folder cannot be read.
    """
    root = Path(source)
    if not root.is_dir():
        raise ValueError(
            f"{root} is not a directory; expected class folders, or train/ (and validation/, "
            "test/) of them"
        )
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must be >= 0, together "
            "< 1"
        )
    search = (search or Search)(root, on_file)
    train = _train_folder(root)
    if train is None:
        layout = "SRC/<class>/<file>, because it has no folder train/ with folders in it"
        class_names = search.class_names(root)
        splits, found = {}, search.list_classes(root, class_names)
    else:
        layout = f"SRC/<split>/<class>/<file>, because {train.name}/ holds folders"
        folders = search.split_folders(train)
        class_names = search.class_names(train)
        splits = {
            name: search.list_split(folders[name], class_names, train) for name in sorted(folders)
        }
    problems = search.problems if class_names else [*search.problems, "no class folders"]
    if problems:
        raise ValueError(
            f"{root} cannot be prepared; move these away or repair them (it was read as {layout}):"
            f"{listing(problems)}"
        )
    notes = (*_confusable(class_names), *search.litter_notes())
    splits = splits or hold_out(found, val_fraction, test_fraction)
    wanted = {"validation": val_fraction, "test": test_fraction}
    for name in wanted.keys() - splits.keys():
        if wanted[name] and train is not None:
            notes = (*notes, f"no split {name!r}: no such folder stands beside {train.name}/")
        elif wanted[name]:
            size = f"{wanted[name]:g} of {len(found)} {search.holds}"
            notes = (*notes, f"no split {name!r}: {size} is none that a class could spare")
    return Folder(root, class_names, splits, notes)


def hold_out(
    found: list[tuple[str, int]], val_fraction: float, test_fraction: float
) -> dict[str, list[tuple[str, int]]]:
    """Takes stratified validation and test splits from the records; one record of every class stays
    in training, whatever the fractions, so that classes of one record are trained on only.

    Args:
        found: (file, class) pairs.
        val_fraction, test_fraction: share of all records, as far as the classes can spare them.

    Returns:
        The records of 'train', 'validation' and 'test' in order, a pure function of the arguments;
        a split without records is left out.
    """
    labels = np.array([label for _, label in found], np.int64)
    # RandomState: its stream is frozen for good. The first of a name is often of the same series.
    order = np.random.RandomState(0).permutation(len(found))
    kept = order[np.unique(labels[order], return_index=True)[1]]
    spare = np.setdiff1d(np.arange(len(found)), kept)
    validation = min(round(val_fraction * len(found)), len(spare))
    test = min(round(test_fraction * len(found)), len(spare) - validation)
    held_out = [spare[p] for p in digits.stratified_split(labels[spare], [validation, test])]
    rest = np.setdiff1d(np.arange(len(found)), np.concatenate(held_out))
    parts = {"train": rest, "validation": held_out[0], "test": held_out[1]}
    return {name: [found[i] for i in rows] for name, rows in parts.items() if len(rows)}


def listing(problems: list[str]) -> str:
    """Returns one indented line per problem, at most MAX_LISTED, and how many more there are."""
    more = [f"... and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    return "".join(f"\n  {line}" for line in problems[:MAX_LISTED] + more)


def is_litter(name: str) -> bool:
    """Whether systems leave a file or folder of that name behind."""
    return name.startswith(".") or name.lower() in LITTER


def _train_folder(root: Path) -> Path | None:
    """Returns the folder `train` if it holds a folder, the sign of the layout with splits."""
    for entry in sorted(root.iterdir()):
        if entry.name.lower() == "train" and entry.is_dir():
            if any(e.is_dir() and not is_litter(e.name) for e in entry.iterdir()):
                return entry
    return None


def _confusable(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Notes the classes whose names differ only in upper and lower case."""
    alike = collections.defaultdict(list)
    for name in class_names:
        alike[name.casefold()].append(name)
    return tuple(
        f"classes whose names differ only in case: {', '.join(names)}"
        for names in alike.values()
        if len(names) > 1
    )


class Walk:
    """A walk over the files of a folder that collects problems and litter."""

    def __init__(self, root: Path, on_file: Callable[[], object]):
        self.root, self.on_file = root, on_file
        self.problems: list[str] = []
        self.litter: collections.Counter[str] = collections.Counter()

    def entries(self, directory: Path) -> list[Path]:
        """Returns what a folder holds, sorted, without the litter, which is counted."""
        found = []
        for entry in sorted(directory.iterdir()):
            if not is_litter(entry.name):
                found.append(entry)
            elif entry.name == ".DS_Store" or not entry.name.startswith("."):
                self.litter[entry.name] += 1
            else:
                self.litter["other names starting with a dot"] += 1
        return found

    def report(self, path: Path, reason: str) -> None:
        """Adds a problem with a file or folder."""
        self.problems.append(f"{printable(path.relative_to(self.root).as_posix())}{reason}")

    def litter_notes(self) -> tuple[str, ...]:
        """Returns a note on what was passed over, if anything was."""
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.litter.items()))
        return (f"passed over: {counts}",) if counts else ()


class Search(Walk):
    """The walk over class folders.

    Attributes:
        holds: what is in them, for messages.
    """

    holds = "images"

    def split_folders(self, train: Path) -> dict[str, Path]:
        """Returns split name -> folder of the layout with splits."""
        folders: dict[str, Path] = {}
        for entry in self.entries(self.root):
            split = SPLIT_FOLDERS.get(entry.name.lower())
            if not entry.is_dir() or split is None:
                allowed = ", ".join(SPLIT_FOLDERS)
                self.report(entry, f": beside {train.name}/ only folders named {allowed} may stand")
            elif split in folders:
                self.report(entry, f"/: a second folder for split {split!r}")
            else:
                folders[split] = entry
        return folders

    def class_names(self, directory: Path) -> tuple[str, ...]:
        """Returns the sorted names of the class folders; reports those that cannot be stored."""
        folders = [e for e in sorted(directory.iterdir()) if e.is_dir() and not is_litter(e.name)]
        forms: dict[str, str] = {}
        for folder in folders:
            name = folder.name
            twin = forms.setdefault(unicodedata.normalize("NFC", name), name)
            if twin != name:
                self.report(folder, f"/: looks like {twin!r}, in another Unicode form; merge them")
            if name != name.strip() or any(unicodedata.category(c) in UNPRINTED for c in name):
                reason = "UTF-8, without control characters, line breaks and outer spaces"
                self.report(folder, f"/: a class name must be {reason}; rename it")
        return tuple(folder.name for folder in folders)

    def list_split(
        self, directory: Path, class_names: tuple[str, ...], train: Path
    ) -> list[tuple[str, int]]:
        """Returns `list_classes` of the folder of a split; reports one that holds nothing."""
        before = len(self.problems)
        found = self.list_classes(directory, class_names, train)
        if not found and len(self.problems) == before:
            self.report(directory, f"/: split without {self.holds}")
        return found

    def list_classes(
        self, directory: Path, class_names: tuple[str, ...], train: Path | None = None
    ) -> list[tuple[str, int]]:
        """Returns the (relative file, class) pairs under a folder of class folders."""
        found = []
        for entry in self.entries(directory):
            if not entry.is_dir():
                self.report(entry, ": a file where class folders are expected")
            elif entry.name not in class_names:
                self.report(entry, f"/: class {entry.name!r} does not occur in {train.name}/")
            else:
                label = class_names.index(entry.name)
                found += [(file, label) for file in self.list_images(entry)]
        return found

    def list_images(self, directory: Path) -> list[str]:
        """Returns the images of one class, relative to the root."""
        files = self.entries(directory)
        if not files:
            self.report(directory, "/: class without images")
        images = []
        for file in files:
            reason = why_no_image(file)
            if reason:
                self.report(file, f": {reason}")
            else:
                images.append(file.relative_to(self.root).as_posix())
            self.on_file()
        return images


def printable(name: str) -> str:
    """Returns a name without characters that would disturb a terminal."""
    return name if name.isprintable() else ascii(name)[1:-1]


def why_no_image(file: Path) -> str:
    """Returns '' for an image that can be stored and read, else the reason why not."""
    try:
        if file.is_dir():
            return "a folder inside a class folder"
        if not file.is_file():
            return "neither a file nor a link to one"
        if any(unicodedata.category(c) == "Cs" for c in file.name):
            return "a file name must be UTF-8; rename it"
        if file.stat().st_size > MAX_BYTES:
            return f"{file.stat().st_size / 2**30:.1f} GiB; allowed: up to {MAX_BYTES // 2**30}"
        with open(file, "rb") as content, decode.read_header(content) as image:
            if image.format not in FORMATS:
                return f"format {image.format}; allowed: {', '.join(FORMATS)}"
    except ValueError as error:
        return str(error)
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # headers that are damaged raise many types
        return f"cannot be read ({type(error).__name__}: {error})"
    return ""
