"""Folders of pictures and of their masks: what is in them, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lambdanet.data import class_histogram, duplicates, holding_out, label_maps, mask_pairs
from lambdanet.data.class_histogram import Count
from lambdanet.data.findings import Findings, picture_size
from lambdanet.data.mask_coding import Coding, read_names, read_palette
from lambdanet.data.mask_pairs import Pair

PAIRS = "pairs of picture and mask left out"


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
        findings: what is wrong.
    """

    images: Path
    masks: Path
    coding: Coding
    splits: dict[str, list[Pair]]
    pixels: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    findings: Findings = dataclasses.field(default_factory=Findings)

    @property
    def counts(self) -> dict[str, Count]:
        """Split name -> histogram."""
        return {name: class_histogram.total(pixels) for name, pixels in self.pixels.items()}

    @functools.cached_property
    def warnings(self) -> tuple[str, ...]:
        """What may spoil a training, or what is measured of it."""
        return duplicates.warnings_of_files(
            {
                name: [(duplicates.Copy(name, p.image), [self.images / p.image]) for p in pairs]
                for name, pairs in self.splits.items()
            }
        )


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
    also: Iterable[tuple[str, str]] = (),
    on_file: Callable[[], object] = lambda: None,
) -> MaskFolders:
    """Pairs pictures with masks and reads every one; whatever does not fit is among the findings,
    and left out.

    A picture and a mask belong together if their paths within the two folders are equal up to the
    ending: IMAGES/a/1.jpg and MASKS/a/1.png. If IMAGES has a folder `train` (or `training`), its
    folders are the splits, and those of MASKS too; otherwise validation and test splits are taken,
    see `holding_out.hold_out`.

    Findings are those of `also`, names, partners that are missing, files that cannot be read,
    sizes, labels, fewer than two classes, a split of which nothing is left.

    Args:
        images, masks: the folders.
        classes: a file of class names, see `read_names`; '': the numbers are the names, as many as
            occur.
        colours: a palette, see `read_palette`; '': the masks are index pictures.
        ignore, reduce_zero_label: see `Coding`; not with a palette.
        val_fraction, test_fraction: share of the pictures for these splits, where there are none;
            see `holding_out.check_shares`. Given where there are some they are a problem.
        divide_folders: see `holding_out.hold_out`; where they are not, a folder with a mistake is
            left out as a whole.
        also: (path, problem) pairs of the caller, see `mask_pairs.Search.report`.
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
    findings = Findings()
    findings.fatal += problems
    search = mask_pairs.Search(Path(images), Path(masks), findings, sequences=not divide_folders)
    paired = search.pairs()
    for path, problem in also:
        search.report(search.images, path, f"{search.shown(search.images, path)}: {problem}")
    check = _Check(search, coding, labels=not problems)
    read = {split: check.histograms(pairs, on_file) for split, pairs in paired.items()}
    right = {
        split: {pair: counted for pair, counted in of.items() if not search.is_left_out(pair)}
        for split, of in read.items()
    }
    for split, pairs in paired.items():
        if pairs and not right[split] and not problems:
            findings.stop(f"none of the pairs{f' of split {split!r}' * bool(split)} can be used")
    splits = {split: list(of) for split, of in right.items()}
    counts = {split: list(of.values()) for split, of in right.items()}
    if set(splits) != {""}:
        folders = f"{images} has folders of splits"
        findings.fatal += holding_out.why_useless(val_fraction, test_fraction, folders)
    number = len(coding.names) or class_histogram.occurring(counts)
    if not findings.fatal:
        whole = class_histogram.by_picture(sum(counts.values(), []), number)
        findings.fatal += _too_few(class_histogram.total(whole), colours)
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
    found = MaskFolders(Path(images), Path(masks), coding, splits, pixels, findings=findings)
    absent = class_histogram.absent(found.counts, coding.names)
    return dataclasses.replace(found, notes=(*notes, *absent))


def resolved(found: MaskFolders, on_error: str) -> MaskFolders:
    """Returns what is to be written, with all notes.

    Args:
        found: with its findings.
        on_error: 'raise', or 'skip': pairs with mistakes are left out, and counted in the notes.

    Raises:
        ValueError: lists the mistakes.
    """
    left_out = found.findings.resolve(f"{found.images} and {found.masks}", on_error)
    return dataclasses.replace(found, notes=(*found.notes, *left_out))


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
        search = self.search
        for pair in pairs:
            size, reason = picture_size(search.images / pair.image)
            wrong = [f"{search.shown(search.images, pair.image)}: {reason}"] if reason else []
            if self.labels:
                try:
                    content = (search.masks / pair.mask).read_bytes()
                    labels = self.coding.read(content, None if reason else size)
                except Exception as error:  # damaged files raise many types
                    wrong.append(f"{search.shown(search.masks, pair.mask)}: {error}")
            if wrong:
                search.report(search.images, pair.image, "; ".join(wrong), PAIRS)
            elif self.labels:
                found[pair] = class_histogram.of_labels(labels)
            on_file()
        return found
