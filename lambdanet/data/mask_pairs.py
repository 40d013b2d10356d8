"""Which picture and which mask of two folders belong together, and in which split they are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from lambdanet.data import class_folders, label_maps

SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture and its mask: files relative to their folders."""

    image: str
    mask: str


class Search:
    """The walk over both folders."""

    def __init__(self, images: Path, masks: Path):
        self.images, self.masks = images, masks
        self.walks = {root: class_folders.Walk(root, lambda: None) for root in (images, masks)}
        self.own: list[str] = []

    @property
    def problems(self) -> list[str]:
        """All problems so far, by folder."""
        return [*self.own, *(p for walk in self.walks.values() for p in walk.problems)]

    def report(self, root: Path, file: str, reason: str) -> None:
        """Adds a problem with a file of one of the folders."""
        self.own.append(f"{class_folders.printable(f'{root.name}/{file}')}: {reason}")

    def notes(self) -> tuple[str, ...]:
        """Returns what was passed over."""
        return tuple(note for walk in self.walks.values() for note in walk.litter_notes())

    def pairs(self) -> dict[str, list[Pair]]:
        """Returns split -> pairs; '' is the split of a folder without splits."""
        splits = self._split_folders(self.images)
        if "train" not in splits:
            return {"": self._pairs_of(self.images, self.masks)}
        theirs = self._split_folders(self.masks)
        for root, own, other in ((self.images, splits, theirs), (self.masks, theirs, splits)):
            for entry in self.walks[root].entries(root):
                if entry not in own.values():
                    self.report(root, entry.name, "beside train only folders of splits may stand")
            for name in sorted(set(own) - set(other)):
                self.report(root, own[name].name, f"the other folder has no split {name!r}")
        return {
            name: self._pairs_of(splits[name], theirs[name]) for name in splits if name in theirs
        }

    def _split_folders(self, root: Path) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for entry in sorted(root.iterdir()):
            name = class_folders.SPLIT_FOLDERS.get(entry.name.lower())
            if name and entry.is_dir():
                if name in found:
                    self.report(root, entry.name, f"a second folder of split {name!r}")
                found.setdefault(name, entry)
        return found

    def _pairs_of(self, images: Path, masks: Path) -> list[Pair]:
        ours, theirs = self._files(self.images, images), self._files(self.masks, masks)
        if not (ours and theirs):
            looked_for = (
                (images, ours, "pictures", class_folders.FORMATS),
                (masks, theirs, "masks", label_maps.FORMATS),
            )
            self.own += [
                f"{class_folders.printable(str(folder))}: no {kind} in it; looked for files of the "
                f"formats {', '.join(formats)}, with any ending"
                for folder, files, kind, formats in looked_for
                if not files
            ]
            return []
        for root, other, files, partners in (
            (self.images, self.masks, ours, theirs),
            (self.masks, self.images, theirs, ours),
        ):
            for stem in sorted(set(files) - set(partners)):
                wanted = "mask" if root is self.images else "picture"
                self.report(root, files[stem], f"no {wanted} of the name {stem}.* in {other.name}")
        return [Pair(ours[stem], theirs[stem]) for stem in sorted(set(ours) & set(theirs))]

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
                    self.report(root, file, f"the same name as {found[stem]} up to the ending")
        return found
