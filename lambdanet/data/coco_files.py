"""COCO's format: files of annotations for folders of pictures, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lambdanet.data import box_sets, class_folders, holding_out, mask_pairs
from lambdanet.data.box_sets import BoxedPicture, BoxSet
from lambdanet.data.class_folders import UNPRINTED, printable
from lambdanet.data.coco_entries import has_mask, is_whole, read_annotation
from lambdanet.data.findings import (
    CUT,
    LEFT_OUT,
    NO_PICTURE,
    Findings,
    Folder,
    one_form,
    picture_size,
    why_another_size,
)
from lambdanet.data.objects import Objects

LISTS = ("images", "annotations", "categories")


@dataclasses.dataclass(frozen=True)
class Part:
    """One split: a file of annotations, and the folder that its file names are relative to."""

    annotations: Path
    images: Path


def parts(images: str, annotations: str, further: Sequence[str]) -> dict[str, Part]:
    """Returns split name -> files, of what the command line says.

    Args:
        images, annotations: of the split 'train'.
        further: texts NAME=ANNOTATIONS.json[,IMAGES]; without IMAGES it is that of 'train'.

    Raises:
        ValueError: a text of another form, a name that is given twice.
    """
    found = {"train": Part(Path(annotations), Path(images))}
    for text in further:
        name, _, files = text.partition("=")
        file, folder = (files, "") if files.endswith(".json") else files.rpartition(",")[::2]
        name = class_folders.SPLIT_FOLDERS.get(name.lower(), name)
        if not mask_pairs.SPLIT_NAME.fullmatch(name) or not file:
            raise ValueError(
                f"--split {text}: it must read NAME=ANNOTATIONS.json[,IMAGES], or be given once, "
                "as shares such as 0.8,0.1,0.1"
            )
        if name in found:
            raise ValueError(
                f"--split {text}: the split {name!r} is there already; ANNOTATIONS.json without "
                "--split is that of 'train'"
            )
        found[name] = Part(*(Path(os.path.expanduser(path)) for path in (file, folder or images)))
    return found


def find(
    parts: Mapping[str, Part],
    *,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    on_file: Callable[[], object] = lambda: None,
) -> BoxSet:
    """Reads files of annotations and every picture; whatever does not fit is among the findings,
    and left out.

    Classes are the categories in the order of their numbers, which may have gaps; all files must
    have the same. Masks are polygons or run lengths, compressed or not; a set in which no object
    has one has boxes alone.

    Findings, with file and id, are: no JSON, entries of another form, doubled numbers and names,
    categories that differ; pictures that are missing or damaged or have another size; objects of
    unknown pictures or categories, whose box has no area, lies or ends outside, whose mask has
    another size, no pixel or cannot be read; splits without objects.

    Args:
        parts: split name -> files; with only 'train', validation and test splits are taken from it.
        val_fraction, test_fraction: share of the pictures for these splits, where there is but one
            file (a mistake where there are more); see `holding_out.check_shares`.
        on_file: called after each picture.

    Raises:
        ValueError: fractions that are none; a folder of pictures that does not exist.
        OSError: a file cannot be read.
    """
    findings = Findings()
    if list(parts) != ["train"]:
        named = f"{', '.join(parts)} have files of annotations"
        findings.fatal += holding_out.why_useless(val_fraction, test_fraction, named)
    files = {name: _File(part, findings) for name, part in parts.items()}
    missing = sorted({str(p.images) for p in parts.values() if not p.images.is_dir()})
    if missing and not findings.fatal:
        raise ValueError(
            f"{', '.join(missing)}: no such folder; it is the one that the file names of the "
            "annotations are relative to"
        )
    first = next(iter(files.values()))
    same = {name for name, file in files.items() if file.numbers() == first.numbers()}
    for name, file in files.items():
        if name not in same:
            findings.stop(f"{file.name}: other categories than {first.name}; they must be the same")
    masks = any(file.has_masks() for file in files.values())
    splits = {name: file.pictures(masks, on_file) for name, file in files.items()}
    box_sets.check_splits(splits, findings)
    splits = {name: pictures for name, pictures in splits.items() if name in same}
    notes = ()
    if list(files) == ["train"] and not findings.fatal:
        splits, notes = box_sets.hold_out(splits["train"], val_fraction, test_fraction, findings)
    where = ", ".join(str(part.annotations) for part in parts.values())
    classes = tuple(entry["name"] for entry in first.categories)
    notes = (
        *notes,
        *(f.note for f in files.values() if f.note),
        *box_sets.notes_on(splits, classes),
    )
    return BoxSet(classes, tuple(first.categories), splits, notes, findings, where)


class _File:
    """One file of annotations."""

    def __init__(self, part: Part, findings: Findings):
        self.part, self.findings, self.name = part, findings, part.annotations.name
        self.folder = Folder(part.images)
        self.no_areas = 0  # objects of area 0, which some programs write where they know of none
        self.lists: dict[str, list[dict]] = {key: [] for key in LISTS}
        try:
            content = json.loads(part.annotations.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            findings.stop(f"{self.name}: cannot be read as JSON ({error})")
        else:
            self._take_lists(content)
        self.categories = sorted(self._unique("categories"), key=lambda entry: entry["id"])
        self._check_names()

    def _take_lists(self, content: Any) -> None:
        for key in LISTS:
            entries = content.get(key) if isinstance(content, dict) else None
            if not isinstance(entries, list):
                self.findings.stop(
                    f"{self.name}: needs an object with the lists {', '.join(LISTS)}; it has no "
                    f"list {key!r}"
                )
                continue
            for place, entry in enumerate(entries):
                if isinstance(entry, dict) and is_whole(entry.get("id")):
                    self.lists[key].append(entry)
                else:
                    text = json.dumps(entry)[:80]
                    self.findings.stop(
                        f"{self.name}: {key}[{place}] is {text}; it needs a whole number 'id'"
                    )

    def _unique(self, key: str) -> list[dict]:
        """Returns the entries of a list, each number once; reports the others."""
        found: dict[int, dict] = {}
        for entry in self.lists[key]:
            number = entry["id"]
            if found.setdefault(number, entry) is entry:
                continue
            text = f"{self.name}: {key}: id {number} stands there more than once"
            if key == "annotations":
                self.findings.mend(LEFT_OUT, text)
            else:
                self.findings.stop(text)
        return list(found.values())

    def _check_names(self) -> None:
        names: dict[str, int] = {}
        for entry in self.categories:
            name, text = entry.get("name"), f"{self.name}: category {entry['id']}"
            if not isinstance(name, str) or not name.strip() or name != name.strip():
                self.findings.stop(
                    f"{text} has the name {name!r}; it must have printable characters"
                )
                entry["name"] = ""
            elif any(unicodedata.category(c) in UNPRINTED for c in name):
                self.findings.stop(
                    f"{text} has the name {name!r}; it must have printable characters"
                )
            elif names.setdefault(one_form(name), entry["id"]) != entry["id"]:
                twin = names[one_form(name)]
                self.findings.stop(f"{text} has the name {name!r}, as category {twin} has")
        if not self.categories and self.lists["images"]:
            self.findings.stop(f"{self.name}: no categories")

    def numbers(self) -> dict[int, str]:
        """Returns number -> name of the categories."""
        return {entry["id"]: one_form(entry["name"]) for entry in self.categories}

    def has_masks(self) -> bool:
        """Whether any object has one."""
        return any(has_mask(entry.get("segmentation")) for entry in self.lists["annotations"])

    @property
    def note(self) -> str:
        """What the user should know of objects that were taken, or ''."""
        if not self.no_areas:
            return ""
        return (
            f"{self.name}: area 0 of {self.no_areas} object{'s' * (self.no_areas != 1)} is taken "
            "as not given: stored is the area of the mask, or of the box where there is none"
        )

    def pictures(self, masks: bool, on_file: Callable[[], object]) -> list[BoxedPicture]:
        """Returns the pictures that can be read, with their objects; reports everything else."""
        images = {entry["id"]: entry for entry in self._unique("images")}
        of_image: dict[int, list[dict]] = {number: [] for number in images}
        for entry in self._unique("annotations"):
            number = entry.get("image_id")
            if is_whole(number) and number in of_image:
                of_image[number].append(entry)
            else:
                text = f"{self.name}: annotation {entry['id']}: there is no image {number!r}"
                self.findings.mend(LEFT_OUT, text)
        classes = {entry["id"]: row for row, entry in enumerate(self.categories)}
        found, files = [], {}
        for number, image in images.items():
            name = image.get("file_name")
            size = self._size(image)
            if size is None:
                pass
            elif files.setdefault(file := self.folder.file(name), number) != number:
                self._report(image, f"has the file of image {files[file]}")
            else:
                objects = self._objects(of_image[number], name, size, classes, masks)
                found.append(BoxedPicture(file, name, number, size, objects))
            on_file()
        return found

    def _report(self, image: Mapping[str, Any], reason: str) -> None:
        name = printable(str(image.get("file_name")))
        text = f"{self.name}: image {image['id']} ({name}): {reason}"
        self.findings.mend(NO_PICTURE, text)

    def _size(self, image: Mapping[str, Any]) -> tuple[int, int] | None:
        """Returns the (width, height) of a picture; None, and reports it, if it cannot be used."""
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            return self._report(image, "it has no file_name")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or re.match(r"\w+://", name):
            return self._report(image, f"its file_name must be relative to {self.part.images}")
        size, reason = picture_size(self.folder.file(name))
        said = (image.get("width"), image.get("height"))
        if not reason and any(n not in (None, 0) for n in said):  # some programs leave it open
            reason = why_another_size(said, size)
        return self._report(image, reason) if reason else size

    def _objects(
        self,
        entries: list[dict],
        picture: str,
        size: tuple[int, int],
        classes: Mapping[int, int],
        masks: bool,
    ) -> Objects:
        rows = []
        for entry in entries:
            text = f"{self.name}: annotation {entry['id']} ({printable(picture)})"
            try:
                row, note = read_annotation(entry, size, classes, masks)
            except ValueError as error:
                self.findings.mend(LEFT_OUT, f"{text}: {error}")
                continue
            if note:
                self.findings.mend(CUT, f"{text}: {note}")
            self.no_areas += entry.get("area") == 0
            rows.append(row)
        boxes, labels, crowds, areas, counts = zip(*rows, strict=True) if rows else ((),) * 5
        return Objects(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(labels, np.int32),
            np.array(crowds, bool),
            np.array(areas, np.float32),
            tuple(counts) if masks else None,
        )
