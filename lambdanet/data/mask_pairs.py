"""Which picture and which mask of two folders belong together, and in which split they are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from lambdanet.data import class_folders, label_maps
from lambdanet.data.class_search import LEFT_OUT
from lambdanet.data.findings import Findings

IN_SEQUENCES = "mistakes in sequences that are left out"
SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture and its mask: files relative to their folders."""

    image: str
    mask: str


class Search:
    """The walk over both folders.

    Args:
        images, masks: the folders.
        findings: gets what is wrong.
        sequences: pictures of a folder are one record, which is left out as a whole.
    """

    def __init__(self, images: Path, masks: Path, findings: Findings, *, sequences: bool = False):
        self.images, self.masks = images, masks
        self.findings, self.sequences = findings, sequences
        self.walks = {root: class_folders.Walk(root, lambda: None) for root in (images, masks)}
        self.damaged: set[tuple[Path, str]] = set()

    def shown(self, root: Path, path: str) -> str:
        """Returns the name of a file or folder for messages."""
        return class_folders.printable(f"{root.name}/{path}")

    def report(self, root: Path, path: str, text: str, what: str = LEFT_OUT) -> None:
        """Adds a mistake with what can be left out, and remembers the sequence.

        Args:
            root: one of the folders.
            path: of a file in it, or of a folder, with '/' as its end.
            text: names the file and what is wrong.
            what: is done, for `Findings.mend`; of sequences it is `IN_SEQUENCES`.
        """
        self.findings.mend(IN_SEQUENCES if self.sequences else what, text)
        self.damaged.add((root, path.rpartition("/")[0]))

    def is_left_out(self, pair: Pair) -> bool:
        """Whether the pair is of a sequence with a mistake."""
        names = ((self.images, pair.image), (self.masks, pair.mask))
        folders = {(root, name.rpartition("/")[0]) for root, name in names}
        return self.sequences and bool(folders & self.damaged)

    def notes(self) -> tuple[str, ...]:
        """Returns what was passed over."""
        return tuple(note for walk in self.walks.values() for note in walk.litter_notes())

    def pairs(self) -> dict[str, list[Pair]]:
        """Returns split -> pairs; '' is the split of a folder without splits."""
        found = self._pairs()
        for walk in self.walks.values():
            for problem in walk.problems:
                self.findings.mend(LEFT_OUT, problem)
        return found

    def _pairs(self) -> dict[str, list[Pair]]:
        splits = self._split_folders(self.images)
        if "train" not in splits:
            return {"": self._pairs_of(self.images, self.masks)}
        theirs = self._split_folders(self.masks)
        for root, own, other in ((self.images, splits, theirs), (self.masks, theirs, splits)):
            for entry in self.walks[root].entries(root):
                if entry not in own.values():
                    text = "beside train only folders of splits may stand"
                    self.findings.mend(LEFT_OUT, f"{self.shown(root, entry.name)}: {text}")
            for name in sorted(set(own) - set(other)):
                text = f"{self.shown(root, own[name].name)}: the other folder has no split {name!r}"
                if name == "train":
                    self.findings.stop(text)
                else:
                    self.findings.mend(LEFT_OUT, text)
        return {
            name: self._pairs_of(splits[name], theirs[name]) for name in splits if name in theirs
        }

    def _split_folders(self, root: Path) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for entry in sorted(root.iterdir()):
            name = class_folders.SPLIT_FOLDERS.get(entry.name.lower())
            if name and entry.is_dir():
                if name in found:
                    text = f"{self.shown(root, entry.name)}: a second folder of split {name!r}"
                    self.findings.stop(text)
                found.setdefault(name, entry)
        return found

    def _pairs_of(self, images: Path, masks: Path) -> list[Pair]:
        ours, theirs = self._files(self.images, images), self._files(self.masks, masks)
        if not (ours and theirs):
            looked_for = (
                (images, ours, "pictures", class_folders.FORMATS),
                (masks, theirs, "masks", label_maps.FORMATS),
            )
            self.findings.fatal += [
                f"{class_folders.printable(str(folder))}: no {kind} in it; looked for files of the "
                f"formats {', '.join(formats)}, with any ending"
                for folder, files, kind, formats in looked_for
                if not files
            ]
            return []
        shared = sorted(set(ours) & set(theirs))
        if not shared:
            self.findings.stop(f"no picture of {images} has a mask of its name in {masks}")
        for root, other, files, partners in (
            (self.images, self.masks, ours, theirs),
            (self.masks, self.images, theirs, ours),
        ):
            for stem in sorted(set(files) - set(partners)):
                wanted = "mask" if root is self.images else "picture"
                file = files[stem]
                text = f"{self.shown(root, file)}: no {wanted} of the name {stem}.* in {other.name}"
                self.report(root, file, text)
        return [Pair(ours[stem], theirs[stem]) for stem in shared]

    def _files(self, root: Path, folder: Path) -> dict[str, str]:
        """Returns path without ending, within `folder` -> file, within `root`."""
        found: dict[str, str] = {}
        stack = [folder]
        while stack:
            for entry in self.walks[root].entries(stack.pop()):
                if entry.is_dir():
                    stack.append(entry)
                    continue
                file = entry.relative_to(root).as_posix()
                stem = entry.relative_to(folder).with_suffix("").as_posix()
                if found.setdefault(stem, file) != file:
                    twin = f"the same name as {found[stem]} up to the ending"
                    self.findings.stop(f"{self.shown(root, file)}: {twin}")
        return found
