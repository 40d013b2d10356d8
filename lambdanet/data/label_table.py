"""Tables of files and labels (CSV): one row per image, and what is wrong with the rows."""

from __future__ import annotations

import codecs
import collections
import csv
import difflib
import io
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

from lambdanet.data.class_folders import SPLIT_FOLDERS, printable
from lambdanet.data.class_sets import Listing
from lambdanet.data.findings import Findings, Folder
from lambdanet.data.splitting import SPLITS

ROWS = "rows left out"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".JPG")
"""What a name without one may lack."""
ENDINGS = (".csv", ".tsv")
DELIMITERS = ",;\t"
COLUMNS = {
    "file": ("file", "filename", "file_name", "filepath", "file_path", "path", "image"),
    "label": ("label", "class", "class_name", "category"),
    "split": ("split", "subset", "set"),
}
"""What a column may be called, in any case, the likelier name first."""


def list_table(
    table: str | os.PathLike,
    *,
    images: str = "",
    columns: Sequence[str] = (),
    encoding: str = "",
    on_file: Callable[[], object] = lambda: None,
) -> Listing:
    """Lists the records of a table; images are not opened.

    The first line names the columns: one for the file, one for the label, and perhaps one for the
    split; see `COLUMNS`. Others are passed over. They are set off by commas, semicolons or tabs.

    Args:
        table: the file.
        images: the folder that the files are relative to; '' = that of the table. Absolute names
            and those with '..' do, if they end up in it.
        columns: names of the columns (file, label) or (file, label, split); () = by `COLUMNS`.
        encoding: of the table; '' = UTF-8, or UTF-16 with its mark.
        on_file: called after each row.

    Raises:
        ValueError: no such file or folder, no text in this encoding, columns that are missing.
    """
    table = Path(table)
    root = Path(images or table.parent)
    if not root.is_dir():
        raise ValueError(f"--images={root} is not a directory")
    text = _text(table, encoding)
    delimiter = max(DELIMITERS, key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    findings = Findings()
    try:
        head = [name.strip() for name in next(reader, [])]
        places = _places(table, head, columns)
        rows = _Rows(table, root, bool(images), places, len(head), findings)
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.add(reader.line_num, row)
                on_file()
    except csv.Error as error:
        raise ValueError(f"{table}: line {reader.line_num}: {error}") from error
    if rows.missing and not rows.seen:
        others = [text for text in findings.mendable.pop(ROWS) if text not in rows.missing]
        for text in others:
            findings.mend(ROWS, text)
        findings.stop(rows.none_there())
    unread = [printable(n) for i, n in enumerate(head) if i not in places.values()]
    read = ", ".join(f"{what}={head[at]!r}" for what, at in places.items())
    notes = (f"columns {read}" + (f"; passed over: {', '.join(unread)}" if unread else ""),)
    splits = {name: rows.splits[name] for name in ("", *SPLITS) if name in rows.splits}
    layout = f"the rows of {table}" + (", which name the splits" if "split" in places else "")
    return Listing(root, layout, splits or {"": []}, findings, notes)


def _text(table: Path, encoding: str) -> str:
    """Returns the content of the table."""
    data = table.read_bytes()
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode(encoding or ("utf-16" if marked else "utf-8-sig"))
    except LookupError as error:
        raise ValueError(f"--encoding={encoding}: {error}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        hint = "" if encoding else "; save it as UTF-8, or name its own, such as --encoding=cp1252"
        raise ValueError(
            f"{table}: line {line}: byte 0x{data[error.start]:02x} is no {error.encoding}{hint}"
        ) from error


def _places(table: Path, head: list[str], columns: Sequence[str]) -> dict[str, int]:
    """Returns which column is which: 'file', 'label' and perhaps 'split' -> place."""
    listed = ", ".join(map(repr, head)) or "none"
    small = [name.casefold() for name in head]
    if columns:
        wanted = dict(zip(COLUMNS, [(name,) for name in columns], strict=False))
        given = head
    else:
        wanted, given = COLUMNS, small
    places = {}
    for what, names in wanted.items():
        name = next((name for name in names if name in given), None)
        if name is not None:
            places[what] = given.index(name)
            if given.count(name) > 1:
                raise ValueError(f"{table}: the column {name!r} is there more than once")
            continue
        if what == "split" and not columns:
            continue
        close = [c for n in names for c in difflib.get_close_matches(n, given, 1, 0.7)]
        hint = f"; did you mean {head[given.index(close[0])]!r}?" if close else ""
        fix = "" if columns else "; name yours with --columns FILE,LABEL[,SPLIT]"
        raise ValueError(
            f"{table}: the first line names no column {', '.join(names)}, but {listed}{hint}{fix}"
        )
    return places


class _Rows:
    """The rows so far, by split, and what is wrong with them.

    Args:
        table: the file.
        root: what the names are relative to.
        named: whether --images said so.
        places: of the columns.
        width: how many columns there are.
        findings: gets what is wrong.
    """

    def __init__(
        self,
        table: Path,
        root: Path,
        named: bool,
        places: dict[str, int],
        width: int,
        findings: Findings,
    ):
        self.named, self.given = named, root
        self.table, self.places, self.width, self.findings = table, places, width, findings
        self.folder, self.root = Folder(root), os.path.abspath(root)
        self.seen: dict[str, tuple[int, str, str]] = {}
        self.splits: dict[str, list[tuple[str, str]]] = {}
        self.missing: dict[str, str] = {}  # problem -> name, of files that are not there
        self.fixes: collections.Counter[tuple[str, ...]] = collections.Counter()

    def add(self, line: int, row: list[str]) -> None:
        """Adds a row, or reports what is wrong with it."""
        where = f"{self.table.name}: line {line}"
        if len(row) != self.width:
            text = f"{where}: {len(row)} columns, and the first line has {self.width}"
            return self.findings.mend(ROWS, text)
        cells = {what: row[place].strip() for what, place in self.places.items()}
        for what in cells:
            if not cells[what]:
                return self.findings.mend(ROWS, f"{where}: no {what}")
        file, label, split = cells["file"], cells["label"], ""
        if "split" in cells:
            split = SPLIT_FOLDERS.get(cells["split"].lower(), "")
            if not split:
                text = f"split {cells['split']!r}; allowed: {', '.join(SPLIT_FOLDERS)}"
                return self.findings.mend(ROWS, f"{where}: {text}")
        name = os.path.relpath(os.path.join(self.root, file), self.root)
        if name.split(os.sep)[0] == os.pardir:
            fix = "--images must name a folder that holds all images, and names be relative to it"
            text = f"{where}: {printable(file)} lies outside of {self.root}; {fix}"
            self.missing[text] = file
            return self.findings.mend(ROWS, text)
        found = self.folder.file(PurePath(name).as_posix())
        if not os.path.isfile(found):
            kind = "a folder" if os.path.isdir(found) else "no such file"
            there, fixes = self._near(name)
            if fixes:
                self.fixes[fixes] += 1
                kind = f"no such file, but {printable(there)} is"
            text = f"{where}: {printable(file)}: {kind}"
            self.missing[text] = file
            return self.findings.mend(ROWS, text)
        name = found.relative_to(self.folder.path).as_posix()
        first, *said = self.seen.setdefault(name, (line, label, split))
        if first != line and said == [label, split]:
            text = f"{where}: {printable(name)} stands on line {first}, too"
            return self.findings.mend(ROWS, text)
        if first != line:
            text = f"{label!r} {split}".strip()
            other = f"{said[0]!r} {said[1]}".strip()
            return self.findings.stop(
                f"{where}: {printable(name)} is {text} here and {other} on line {first}"
            )
        self.splits.setdefault(split, []).append((name, label))

    def _near(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Returns a file that is there in place of a name, and what makes the one of the other; ''
        and () where none is found.
        """
        around = os.path.normpath(self.given / os.pardir)
        folders = [(self.root, ()), (os.path.dirname(self.root), (f"give --images {around}",))]
        slashed, suffixes = [(name, ())], [("", ())]
        if "\\" in name:
            slashed.append((name.replace("\\", "/"), ("write / in place of \\",)))
        if os.path.splitext(name)[1].lower() not in SUFFIXES:
            suffixes += [(suffix, (f"add {suffix} to the names",)) for suffix in SUFFIXES]
        ways = itertools.product(folders, slashed, suffixes)
        for (top, move), (start, slash), (end, add) in ways:
            there = os.path.join(top, start + end)
            if os.path.isfile(there):
                return there if move else start + end, slash + add + move
        return "", ()

    def none_there(self) -> str:
        """Returns what is wrong if no file of the table is there: one mistake, with the way out."""
        text, name = next(iter(self.missing.items()))
        where = f"the folder of --images, {self.given}" if self.named else str(self.given)
        said = f"none of the files is there, such as {printable(name)}, looked for in {where}"
        if self.fixes:
            (fixes, found), *_ = self.fixes.most_common(1)
            return f"{said}; {found} are there if you {' and '.join(fixes)}"
        if "lies outside of" in text:
            return f"{said}{text[text.index('; ') :]}"
        below = sorted(p for p in Path(self.root).iterdir() if (p / name).is_file())
        if below:
            return f"{said}; they are in {below[0]}: give --images {below[0]}"
        if self.named:
            return f"{said}; its names must be relative to that folder"
        return f"{said}: name their folder with --images"
