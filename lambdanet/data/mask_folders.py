"""Folders of pictures and of their masks: what is in them, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lambdanet.data import (
    class_folders,
    class_histogram,
    decode,
    duplicates,
    holding_out,
    label_maps,
    mask_pairs,
)
from lambdanet.data.class_histogram import Count
from lambdanet.data.mask_coding import Coding, read_names, read_palette
from lambdanet.data.mask_pairs import Pair


@dataclasses.dataclass(frozen=True)
class MaskFolders:
    """What was found.

    Attributes:
        images, masks: the folders.
        coding: of the masks, with the names of all classes.
        splits: split name -> pairs that can be used.
        pixels: split name -> pixels of each class in each of its pictures, int32 [n, k + 1]; see
            `class_histogram.by_picture`.
        notes: what the user should know.
        problems: what is wrong.
    """

    images: Path
    masks: Path
    coding: Coding
    splits: dict[str, list[Pair]]
    pixels: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, Count]:
        """Split name -> histogram."""
        return {name: class_histogram.total(pixels) for name, pixels in self.pixels.items()}


def find(
    images: str | os.PathLike,
    masks: str | os.PathLike,
    *,
    classes: str = "",
    colours: str = "",
    ignore: int = label_maps.IGNORE,
    reduce_zero_label: bool = False,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    divide_folders: bool = True,
    also: Iterable[str] = (),
    on_file: Callable[[], object] = lambda: None,
) -> MaskFolders:
    """Pairs pictures with masks and reads every one; whatever does not fit is among the problems of
    what was found, and left out.

    A picture and a mask belong together if their paths within the two folders are equal up to the
    ending: IMAGES/a/1.jpg and MASKS/a/1.png. If IMAGES has a folder `train` (or `training`), its
    folders are the splits, and those of MASKS too; otherwise validation and test splits are taken,
    see `holding_out.hold_out`.

    Problems are those of `also`, names, partners that are missing, files that cannot be read,
    sizes, labels, fewer than two classes.

    Args:
        images, masks: the folders.
        classes: a file of class names, see `read_names`; '': the numbers are the names, as many as
            occur.
        colours: a palette, see `read_palette`; '': the masks are index pictures.
        ignore, reduce_zero_label: see `Coding`; not with a palette.
        val_fraction, test_fraction: share of the pictures for these splits, where there are none;
            see `holding_out.check_shares`. Given where there are some they are a problem.
        divide_folders: see `holding_out.hold_out`.
        also: problems that the caller has found.
        on_file: called after each pair.

    Raises:
        ValueError: a folder that is none, fractions that are none, a palette beside other codings.
        OSError: a folder or a file of names cannot be read.
    """
    for folder in (images, masks):
        if not Path(folder).is_dir():
            raise ValueError(f"{folder} is not a directory")
    holding_out.check_shares(val_fraction, test_fraction)
    if colours and (classes or reduce_zero_label or ignore != label_maps.IGNORE):
        raise ValueError(
            "a palette has the class names and the ignored colours in it: leave out --classes, "
            "--ignore and --reduce-zero-label"
        )
    if colours:
        coding, problems = read_palette(colours)
    else:
        names, problems = read_names(classes) if classes else ((), [])
        coding = Coding(names, ignore, reduce_zero_label)
    search = mask_pairs.Search(Path(images), Path(masks))
    paired = search.pairs()
    check = _Check(search, coding, labels=not problems)
    right = {split: check.histograms(pairs, on_file) for split, pairs in paired.items()}
    splits = {split: list(of) for split, of in right.items()}
    counts = {split: list(of.values()) for split, of in right.items()}
    if set(splits) != {""}:
        folders = f"{images} has folders of splits"
        problems += holding_out.why_useless(val_fraction, test_fraction, folders)
    problems = [*problems, *also, *search.problems]
    number = len(coding.names) or class_histogram.occurring(counts)
    if not problems:
        whole = class_histogram.by_picture(sum(counts.values(), []), number)
        problems = _too_few(class_histogram.total(whole), colours)
    if not coding.names:
        coding = dataclasses.replace(coding, names=tuple(map(str, range(number))))
    notes = search.notes()
    if set(splits) == {""}:
        parts, said = holding_out.hold_out(
            [pair.image for pair in splits[""]],
            val_fraction,
            test_fraction,
            divide_folders=divide_folders,
        )
        notes = (*notes, *said)
        counts = {name: [counts[""][i] for i in rows] for name, rows in parts.items()}
        splits = {name: [splits[""][i] for i in rows] for name, rows in parts.items()}
    pixels = {name: class_histogram.by_picture(of, number) for name, of in counts.items()}
    found = MaskFolders(Path(images), Path(masks), coding, splits, pixels)
    files = {name: [(p.image, Path(images) / p.image) for p in of] for name, of in splits.items()}
    notes = (
        *notes,
        *class_histogram.absent(found.counts, coding.names),
        *duplicates.warnings_of_files(files),
    )
    return dataclasses.replace(found, notes=notes, problems=tuple(problems))


def checked(found: MaskFolders) -> MaskFolders:
    """Returns what was found if nothing is wrong with it.

    Raises:
        ValueError: lists all problems.
    """
    if found.problems:
        raise ValueError(
            f"{found.images} and {found.masks} cannot be prepared; move these away or repair them:"
            f"{class_folders.listing(list(found.problems))}"
        )
    return found


def _too_few(whole: Count, colours: str) -> list[str]:
    """Returns the problem of masks with fewer than two classes, of which nothing can be learnt."""
    found = np.flatnonzero(whole.pixels[:-1])
    if len(found) > 1:
        return []
    reason = f"only class {found[0]} has pixels" if len(found) else "no pixel has a class"
    if not whole.pixels[-1]:
        return [reason]
    share = f"{100 * whole.pixels[-1] / whole.pixels.sum():.2f} % are ignored"
    hint = "; masks of black and white need --colours with rows like 'thing,255,255,255'"
    return [f"{reason}, {share}{'' if colours else hint}"]


class _Check:
    """Reads pairs and collects what is wrong with them."""

    def __init__(self, search: mask_pairs.Search, coding: Coding, *, labels: bool):
        self.search, self.coding, self.labels = search, coding, labels

    def histograms(
        self, pairs: list[Pair], on_file: Callable[[], object]
    ) -> dict[Pair, np.ndarray]:
        """Returns the histogram, int [256], of every pair that is right."""
        found = {}
        for pair in pairs:
            size = self._picture_size(pair)
            labels = self._label_map(pair, size)
            if size is not None and labels is not None:
                found[pair] = class_histogram.of_labels(labels)
            on_file()
        return found

    def _picture_size(self, pair: Pair) -> tuple[int, int] | None:
        file = self.search.images / pair.image
        reason = class_folders.why_no_image(file)
        if not reason:
            try:
                picture = decode.open_image(file.read_bytes())
                picture.load()  # a picture that is cut off has a whole header
                return picture.size
            except Exception as error:  # damaged files raise many types
                reason = str(error)
        self.search.report(self.search.images, pair.image, reason)
        return None

    def _label_map(self, pair: Pair, size: tuple[int, int] | None) -> np.ndarray | None:
        if not self.labels:
            return None
        try:
            return self.coding.read((self.search.masks / pair.mask).read_bytes(), size)
        except Exception as error:  # damaged files raise many types
            self.search.report(self.search.masks, pair.mask, str(error))
        return None
