"""Class folders: which records stand in them, and what does not belong there."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from lambdanet.data import class_folders, splitting
from lambdanet.data.class_folders import SPLIT_FOLDERS, printable
from lambdanet.data.class_sets import Listing
from lambdanet.data.findings import Findings

LEFT_OUT = "files and folders left out"
MOST_AROUND = 3  # folders in one another that may stand around the folders of splits
DOCUMENT = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|makefile)\b.*|.*\.(md|rst|txt|pdf|html?|"
    r"csv|tsv|json|ya?ml|xml|py|sh|zip|tar|gz)",
    re.IGNORECASE,
)
"""Names of files that may stand beside class folders and are none of the records."""


class Search(class_folders.Walk):
    """The walk over class folders of images.

    Args:
        root: the folder.
        on_file: called after each record.
        findings: gets what is wrong.
        depth: how many folder names make a class; 0 = all down to the images.

    Attributes:
        holds: what is in them, for messages.
        unread: classes whose folder cannot be used as it is.
        shallow: images that stand at less than `depth`, with the number of folders above them.
    """

    holds = "images"

    def __init__(
        self, root: Path, on_file: Callable[[], object], findings: Findings, depth: int = 0
    ):
        super().__init__(root, on_file)
        self.findings, self.depth, self.documents = findings, depth, []
        self.unread: list[str] = []
        self.shallow: list[tuple[Path, int]] = []

    def report(self, path: Path, reason: str) -> None:
        """Adds a file or folder that can be left out."""
        self.findings.mend(LEFT_OUT, f"{self.shown(path)}{reason}")

    def shown(self, path: Path) -> str:
        """Returns the name of a file or folder for messages."""
        return printable(path.relative_to(self.root).as_posix())

    def split_folders(self, train: Path) -> dict[str, Path]:
        """Returns split name -> folder of the layout with splits."""
        folders: dict[str, Path] = {}
        for entry in self.entries(self.root):
            split = SPLIT_FOLDERS.get(entry.name.lower())
            if not os.path.isdir(entry):
                self.pass_over(entry)
            elif split is None:
                allowed = ", ".join(SPLIT_FOLDERS)
                self.report(entry, f": beside {train.name}/ only folders named {allowed} may stand")
            elif split in folders:
                self.findings.stop(f"{self.shown(entry)}/: a second folder for split {split!r}")
            else:
                folders[split] = entry
        return folders

    def pass_over(self, file: Path) -> None:
        """Passes over a document that stands where class folders are expected, and reports any
        other file.
        """
        if DOCUMENT.fullmatch(file.name):
            self.documents.append(self.shown(file))
        else:
            self.report(file, ": a file where class folders are expected")

    def rows(self, top: Path) -> list[tuple[str, str]]:
        """Returns the (name, class) pairs below a folder of class folders."""
        return self._rows(top, top, (os.path.realpath(top),))

    def _rows(self, folder: Path, top: Path, above: tuple[str, ...]) -> list[tuple[str, str]]:
        """Returns the pairs below a folder.

        Args:
            folder: `top`, or any below it.
            top: the folder of class folders.
            above: where the folders on the way from `top` really are, links followed.
        """
        place, before = folder.relative_to(top).parts, len(self.findings)
        entries = self.entries(folder)
        if place and len(self.findings) > before:  # it is closed
            self.unread.append("/".join(place))
        directories = [entry for entry in entries if os.path.isdir(entry)]
        files = sorted(set(entries) - set(directories))
        folders = [entry for entry in directories if os.path.realpath(entry) not in above]
        for entry in sorted(set(directories) - set(folders)):
            self.report(entry, "/: a link to a folder that it lies in")
        if place and not files and not folders and len(self.findings) == before:
            self.report(folder, f"/: class without {self.holds}")
        found = []
        if len(place) >= self.depth > 0 or (place and not folders and not self.depth):
            name = "/".join(place[: self.depth or None])
            found = [(file.relative_to(self.root).as_posix(), name) for file in files]
            for _ in files:
                self.on_file()
        elif place and folders and not self.depth and self._images(files):
            self.unread.append("/".join(place))
            self.findings.stop(
                f"{self.shown(folder)}/: images and folders stand in it. With --depth={len(place)} "
                "all of it is one class; else move the images into a folder of their own"
            )
        elif files and not place and not folders:
            self.findings.stop(
                f"{printable(str(top))}: {len(files)} files and no folders in it; every class "
                "needs a folder of its own, or a table (.csv) says which file is of which class"
            )
        else:
            for file in files:
                if place and self.depth and self._images([file]):
                    self.shallow.append((file, len(place)))
                else:
                    self.pass_over(file)
        for entry in folders:
            found += self._rows(entry, top, (*above, os.path.realpath(entry)))
        return found

    def settle_depth(self, found: bool) -> None:
        """Reports the images that stand above `depth`, each if others stand where they should.

        Args:
            found: some do.

        Raises:
            ValueError: none do: the one mistake is the number.
        """
        if self.shallow and not found:
            counts = sorted(collections.Counter(depth for _, depth in self.shallow).items())
            stand = " and ".join(f"{depth} ({count})" for depth, count in counts)
            raise ValueError(
                f"--depth={self.depth}, but the {self.holds} of {self.root} stand at depth {stand},"
                f" such as {self.shown(self.shallow[0][0])}; allowed: up to {counts[-1][0]}, or 0, "
                "as without --depth: all folders down to them make the class"
            )
        for file, depth in self.shallow:
            reason = f": a file where class folders are expected, at depth {depth} of --depth"
            self.report(file, f"{reason}={self.depth}")

    def _images(self, files: Iterable[Path]) -> bool:
        return any(not class_folders.why_no_image(file) for file in files)

    def notes(self) -> tuple[str, ...]:
        """Returns what was passed over."""
        named = ", ".join(self.documents)
        documents = (f"passed over beside the class folders: {named}",) if named else ()
        return (*self.litter_notes(), *documents)


def list_folder(
    source: str | os.PathLike,
    *,
    on_file: Callable[[], object] = lambda: None,
    search: Callable[[Path, Callable[[], object], Findings], Search] = Search,
) -> Listing:
    """Lists the records of `source`; images are not opened.

    Two layouts are read: `source/<split>/<class>/<file>` with a folder `train` and optionally
    `validation` and `test`, each by any name of `SPLIT_FOLDERS`, in any case; or
    `source/<class>/<file>`, which is to be divided. The first is meant if `train` holds a folder: a
    folder `train` of nothing but files is a class of that name.

    Class folders may be nested: the class is the path from the split (or `source`) down to the
    images, 'animals/cat', or the first `depth` names of it.

    Names that start with a dot and those of `class_folders.LITTER` are passed over and counted in
    the notes; documents, such as a README, beside class folders are named there.

    Args:
        source: the folder.
        on_file: called after each record.
        search: makes the walk over a root.

    Raises:
        ValueError: `source` is no folder, or one around the folders of splits; no record stands as
            deep as `depth` says.
    """
    root = Path(source)
    if not root.is_dir():
        raise ValueError(
            f"{root} is not a directory; expected class folders, or train/ (and validation/, "
            "test/) of them, or a table (.csv) of files and labels"
        )
    findings = Findings()
    walk = search(root, on_file, findings)
    train = _train_folder(root)
    if train is None:
        if not walk.depth:
            _check_not_around(root)
        layout = "SRC/<class>/<file>, because it has no folder train/ with folders in it"
        splits = {"": walk.rows(root)}
    else:
        layout = f"SRC/<split>/<class>/<file>, because {train.name}/ holds folders"
        folders = walk.split_folders(train)
        splits = {name: walk.rows(folders[name]) for name in splitting.SPLITS if name in folders}
    walk.settle_depth(any(splits.values()))
    return Listing(root, layout, splits, findings, walk.notes(), walk.holds, walk.unread)


def _train_folder(root: Path) -> Path | None:
    """Returns the folder of training if it holds a folder, the sign of the layout with splits."""
    for entry in _folders(root):
        if SPLIT_FOLDERS.get(entry.name.lower()) == "train" and _folders(entry):
            return entry
    return None


def _check_not_around(root: Path) -> None:
    """Checks that the folders of splits do not lie deeper, as in many an archive that was unpacked:
    their names would become parts of class names.

    Meant is a folder with train/ (of folders) beside another split, or all alone on the way down.

    Raises:
        ValueError: names the folders to prepare.
    """
    around = []
    places = [(entry, len(_folders(root)) == 1) for entry in _folders(root)]
    for _ in range(MOST_AROUND):
        deeper = []
        for place, alone in places:
            folders = _folders(place)
            splits = {SPLIT_FOLDERS.get(entry.name.lower()) for entry in folders} - {None}
            meant = len(splits) > 1 or (alone and len(folders) == 1)
            if "train" in splits and meant and _train_folder(place):
                around.append((place, folders))
            else:
                deeper += [(entry, alone and len(folders) == 1) for entry in folders]
        places = deeper
    if not around:
        return
    place, folders = around[0]
    held = ", ".join(f"{e.name}/" for e in folders if SPLIT_FOLDERS.get(e.name.lower()))
    more = f" and in {len(around) - 1} other folders" if len(around) > 1 else ""
    raise ValueError(
        f"{printable(str(root))}: the splits lie deeper, in {printable(str(place))} ({held}){more}:"
        " prepare that folder; if train/ is a class, rename it"
    )


def _folders(place: Path) -> list[Path]:
    """Returns the folders in a folder, sorted, without what systems leave and links to folders that
    they lie in; none of one that is closed, which the walk reports.
    """
    try:
        with os.scandir(place) as entries:  # which says what is a folder without a look at each
            found = sorted(Path(entry) for entry in entries if entry.is_dir())
    except OSError:
        return []
    real = Path(os.path.realpath(place))
    return [
        entry
        for entry in found
        if not class_folders.is_litter(entry.name)
        and not real.is_relative_to(os.path.realpath(entry))
    ]
