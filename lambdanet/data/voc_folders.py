"""Pascal VOC's format: one XML file of annotations per picture, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lambdanet.data import box_sets, class_folders, holding_out, lined_xml, mask_pairs
from lambdanet.data.box_sets import BoxedPicture, BoxSet
from lambdanet.data.class_folders import FORMATS, UNPRINTED, printable
from lambdanet.data.findings import (
    CUT,
    LEFT_OUT,
    NO_PICTURE,
    Findings,
    files_by_name,
    one_form,
    picture_size,
    why_another_size,
)
from lambdanet.data.mask_coding import read_names
from lambdanet.data.objects import Objects, box_text, check_boxes

PICTURES, ANNOTATIONS, LISTS = "JPEGImages", "Annotations", "ImageSets/Main"
EDGES = ("xmin", "ymin", "xmax", "ymax")
WHOLE = re.compile(r"[0-9]{1,9}")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf)", re.I)
"""What Python's `float` takes, without what only Python writes: '1_0', digits of other scripts."""
POINT = "it is a point, as a click leaves it; of an object of one pixel give edges 1 apart"
DIFFICULT = {"": False, "0": False, "false": False, "1": True, "true": True}


@dataclasses.dataclass(frozen=True)
class _Object:
    """An object as it is written."""

    name: str
    line: int
    edges: tuple[float, ...]
    difficult: bool


@dataclasses.dataclass(frozen=True)
class _Annotated:
    """A picture and its annotation."""

    file: Path
    size: tuple[int, int]
    objects: list[_Object]


def find(
    root: str | os.PathLike,
    *,
    classes: str = "",
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    on_file: Callable[[], object] = lambda: None,
) -> BoxSet:
    """Reads annotations and pictures; what does not fit is among the findings, and left out.

    ROOT has the folders JPEGImages and Annotations, one picture and one .xml of the same name up to
    the ending, and perhaps ImageSets/Main, whose .txt files are the splits, one name per line.
    Those with two columns say which pictures show a class, and are passed over; so is trainval.txt
    beside train.txt and val.txt, whose sum it is. Without lists, validation and test splits are
    taken.

    Boxes count from 1, the last pixel included; if one begins at 0, from 0, and the last is
    outside. Objects marked as difficult become crowds: they are neither missed nor found.

    Findings, with file and line, are: no XML; names in two splits; pictures or annotations that are
    missing, pictures that are damaged or have another size; objects whose class is none of the
    names, whose box has no area, lies or ends outside or is not made of numbers; splits without
    objects.

    Args:
        root: the folder.
        classes: a file of class names, see `mask_coding.read_names`; '': those that occur, sorted.
        val_fraction, test_fraction: share of the pictures for these splits, where there are no
            lists (a mistake where there are); see `holding_out.check_shares`.
        on_file: called after each picture.

    Raises:
        ValueError: ROOT lacks a folder, fractions that are none.
        OSError: a file or folder cannot be read.
    """
    for folder in (PICTURES, ANNOTATIONS):
        if not (Path(root) / folder).is_dir():
            raise ValueError(f"{root} has no folder {folder}; it needs {PICTURES}, {ANNOTATIONS}")
    findings = Findings()
    names, problems = read_names(classes) if classes else ((), [])
    names = tuple(map(one_form, names))
    findings.fatal += problems
    search = _Search(Path(root), findings)
    lists, notes = search.lists()
    if search.listed:
        findings.fatal += holding_out.why_useless(val_fraction, test_fraction, f"{LISTS} has lists")
    annotated = {
        stem: found for stem in sorted(set().union(*lists.values()))
        if (found := search.read(stem, on_file)) is not None
    }  # fmt: skip
    written = [o for picture in annotated.values() for o in picture.objects]
    if not names:
        names = tuple(sorted({o.name for o in written}))
    first_pixel = 0 if any(0 in o.edges[:2] for o in written) else 1
    if not first_pixel:
        notes = (*notes, "boxes begin at 0: they count from 0, and the last pixel is outside")
    numbers = {name: row for row, name in enumerate(names)}
    pictures = {
        stem: BoxedPicture(
            found.file,
            found.file.name,
            number,
            found.size,
            search.objects(stem, found, numbers, first_pixel),
        )
        for number, (stem, found) in enumerate(annotated.items())
    }
    splits = {
        name: [pictures[stem] for stem in stems if stem in pictures]
        for name, stems in lists.items()
    }
    box_sets.check_splits(splits, findings)
    if not search.listed and not findings.fatal:
        splits, said = box_sets.hold_out(splits["train"], val_fraction, test_fraction, findings)
        notes = (*notes, *said)
    notes = (*notes, *box_sets.notes_on(splits, names))
    return BoxSet(names, (), splits, notes, findings, str(root))


class _Search:
    """The walk over the folders of a set."""

    def __init__(self, root: Path, findings: Findings):
        self.root, self.findings = root, findings
        self.listed = False
        self.annotations = files_by_name(root / ANNOTATIONS, findings, ".xml")
        self.pictures = files_by_name(root / PICTURES, findings)

    def lists(self) -> tuple[dict[str, list[str]], tuple[str, ...]]:
        """Returns split -> names of its pictures, and notes."""
        annotated = list(self.annotations)
        folder = self.root / LISTS
        files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
        found, of_split = {}, {}
        for file in files:
            if (stems := self._names(file)) is None:
                continue
            name = file.stem.lower()
            split = class_folders.SPLIT_FOLDERS.get(name, name)
            twin = of_split.setdefault(split, file.name)
            if twin != file.name:
                self.findings.stop(f"{LISTS}/{file.name}: the split {split!r}, as {twin} is")
            elif not mask_pairs.SPLIT_NAME.fullmatch(split):
                self.findings.stop(
                    f"{LISTS}/{file.name}: {split!r} is no name of a split; allowed: letters, "
                    "digits and _, a letter first"
                )
            found[name] = stems
        self.listed = bool(found)
        if not found:
            bare = len(self.pictures.keys() - set(annotated))
            note = f"pictures without annotations: {bare} (passed over)"
            return {"train": annotated}, (note,) if bare else ()
        notes = ()
        whole, parts = found.get("trainval"), [found.get(n) for n in ("train", "val")]
        if whole is not None and all(p is not None for p in parts):
            if set(whole) == set().union(*parts):
                del found["trainval"]
                notes = ("trainval.txt is train.txt and val.txt: not stored; the split text is "
                         "'train+validation'",)  # fmt: skip
        elif whole is not None and "train" not in found:
            found["train"] = found.pop("trainval")
            notes = ("trainval.txt is the split 'train'",)
        self._check_overlap(found)
        unlisted = len(set(annotated) - set().union(*found.values()))
        if unlisted:
            notes = (*notes, f"annotations that no list of {LISTS} names: {unlisted} (passed over)")
        named = {class_folders.SPLIT_FOLDERS.get(name, name): name for name in found}
        order = [*(n for n in ("train", "validation", "test") if n in named), *named]
        return {name: found[named[name]] for name in dict.fromkeys(order)}, notes

    def _names(self, file: Path) -> list[str] | None:
        """Returns the names of a list; None if it is one of a class, with two columns."""
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except ValueError as error:
            self.findings.stop(f"{LISTS}/{file.name}: is no UTF-8 text ({error})")
            return None
        names: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            name = one_form(line.strip())
            if len(name.split()) == 2 and name.split()[1] in ("-1", "0", "1"):
                return None
            if name and names.setdefault(name, number) != number:
                text = (
                    f"{LISTS}/{file.name}: line {number}: {name} stands on line {names[name]}, too"
                )
                self.findings.stop(text)
        return list(names)

    def _check_overlap(self, found: Mapping[str, list[str]]) -> None:
        of_name: dict[str, str] = {}
        for split, stems in found.items():
            for stem in stems:
                if of_name.setdefault(stem, split) != split:
                    text = (
                        f"{LISTS}/{split}.txt: {printable(stem)} stands in {of_name[stem]}.txt, too"
                    )
                    self.findings.stop(text)

    def read(self, stem: str, on_file: Callable[[], object]) -> _Annotated | None:
        """Returns a picture with its annotation; None, and reports it, if either is missing or
        cannot be read.
        """
        where = f"{ANNOTATIONS}/{stem}.xml"
        file = self.pictures.get(stem)
        try:
            if stem not in self.annotations:
                raise FileNotFoundError
            top = lined_xml.read(self.annotations[stem])
            if top.tag != "annotation":
                raise ValueError(
                    f"line {top.line}: its outermost element is {top.tag[:40]!r}, not 'annotation'"
                )
            if file is None:
                raise ValueError(
                    f"no picture {PICTURES}/{printable(stem)}.* ({', '.join(FORMATS)})"
                )
            size, reason = picture_size(file)
            if reason:
                where = f"{PICTURES}/{file.name}"
                raise ValueError(reason)
            self._check_size(top.find("size"), size)
            objects = [self._object(entry, printable(where)) for entry in top.all("object")]
        except FileNotFoundError:
            text = f"{printable(where)}: there is no such file"
            return self.findings.mend(NO_PICTURE, text)
        except OSError as error:  # a folder, a file of somebody else, a name that is too long
            text = f"{printable(where)}: cannot be read ({error.strerror})"
            return self.findings.mend(NO_PICTURE, text)
        except ValueError as error:
            return self.findings.mend(NO_PICTURE, f"{printable(where)}: {error}")
        finally:
            on_file()
        return _Annotated(file, size, [o for o in objects if o is not None])

    def _check_size(self, said: lined_xml.Element | None, size: tuple[int, int]) -> None:
        numbers = [] if said is None else [said.text_of(tag) for tag in ("width", "height")]
        if any(text not in ("", "0") for text in numbers):  # some programs leave it open
            whole = tuple(int(text) if WHOLE.fullmatch(text) else text for text in numbers)
            if reason := why_another_size(whole, size):
                raise ValueError(f"line {said.line}: {reason}")

    def _object(self, entry: lined_xml.Element, where: str) -> _Object | None:
        name, box = one_form(entry.text_of("name")), entry.find("bndbox")
        if not name or any(unicodedata.category(c) in UNPRINTED for c in name):
            text = f"{where}: line {entry.line}: name {name!r} is no class"
            return self.findings.mend(LEFT_OUT, text)
        said = [] if box is None else [box.text_of(tag) for tag in EDGES]
        if not said or not all(map(NUMBER.fullmatch, said)):
            text = f"{where}: line {entry.line}: bndbox is {said or 'missing'}; it needs numbers "
            return self.findings.mend(LEFT_OUT, f"{text}{', '.join(EDGES)}")
        edges = tuple(map(float, said))
        difficult = DIFFICULT.get(entry.text_of("difficult").lower())
        if difficult is None:
            said = entry.text_of("difficult")[:40]
            text = f"{where}: line {entry.line}: difficult is {said!r}; allowed: 0, 1"
            return self.findings.mend(LEFT_OUT, text)
        return _Object(name, (box or entry).line, edges, difficult)

    def objects(
        self, stem: str, picture: _Annotated, classes: Mapping[str, int], first_pixel: int
    ) -> Objects:
        """Returns the objects of a picture that are right; reports the others."""
        rows = []
        for found in picture.objects:
            text = f"{ANNOTATIONS}/{printable(stem)}.xml: line {found.line}"
            box = np.array([found.edges]) - np.array([[first_pixel, first_pixel, 0, 0]])
            written = box_text(found.edges)
            problems, cut, mended = check_boxes(box, picture.size, (written,))
            if found.edges[:2] == found.edges[2:]:  # a click, not a box of one pixel
                problems, mended = {0: f"{written} has no area: {POINT}"}, [False]
            if found.name not in classes:
                problems, mended = {0: f"class {found.name!r} is none of the names"}, [False]
            if problems:
                self.findings.mend(CUT if mended[0] else LEFT_OUT, f"{text}: {problems[0]}")
            if not problems or mended[0]:
                rows.append((cut[0] if problems else box[0], classes[found.name], found.difficult))
        boxes, labels, crowds = zip(*rows, strict=True) if rows else ((),) * 3
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        return Objects(boxes, np.array(labels, np.int32), np.array(crowds, bool), area)
