"""Folders of pictures: which files in them count, and what is wrong with one."""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from PIL import UnidentifiedImageError

from lambdanet.data import decode

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP")
"""What may be in a folder; MPO is a phone's .jpg with a second picture, of which the first counts.
"""
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found")
"""What systems leave in folders, in lower case; names that start with a dot are litter too."""
UNPRINTED = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories: control characters, bytes that are not UTF-8, line and paragraph ends."""
MAX_BYTES = 2**30
MAX_LISTED = 1000  # problems named in one error
SCREEN = 30  # lines of a list that stay in view; what a longer one comes to stands at its end
MOST_CAUSES = 8
PLACE = re.compile(r"^(?:[^:]+: line \d+: )?(?:[^:]+: )?")
"""Where a problem is: a file, perhaps the row of a table that names it."""


def listing(problems: list[str]) -> str:
    """Returns one indented line per problem, at most MAX_LISTED, and how many more there are; of
    more than SCREEN also how many have one cause, at the end.
    """
    more = [f"... and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    lines = problems[:MAX_LISTED] + more
    if len(problems) > SCREEN:
        lines += ["by cause:", *(f"  {line}" for line in by_cause(problems))]
    return "".join(f"\n  {line}" for line in lines)


def by_cause(problems: list[str]) -> list[str]:
    """Returns how many problems are alike but for their places and numbers, with the first of each,
    the commonest kind first.
    """
    alike: dict[str, list[str]] = collections.defaultdict(list)
    for text in problems:
        alike[re.sub(r"\d+", "0", PLACE.sub("", text))].append(text)
    groups = sorted(alike.values(), key=len, reverse=True)
    lines = [f"{len(of)} like this: {of[0]}" if len(of) > 1 else of[0] for of in groups]
    left = sum(map(len, groups[MOST_CAUSES:]))
    return [*lines[:MOST_CAUSES], *([f"{left} others"] if left else [])]


def is_litter(name: str) -> bool:
    """Whether systems leave a file or folder of that name behind."""
    return name.startswith(".") or name.lower() in LITTER


class Walk:
    """A walk over the files of a folder that collects problems and litter."""

    def __init__(self, root: Path, on_file: Callable[[], object]):
        self.root, self.on_file = root, on_file
        self.problems: list[str] = []
        self.litter: collections.Counter[str] = collections.Counter()

    def entries(self, directory: Path) -> list[Path]:
        """Returns what a folder holds, sorted, without the litter, which is counted; reports one
        that cannot be read.
        """
        try:
            entries = sorted(directory.iterdir())
        except OSError as error:
            self.report(directory, f"/: cannot be read ({error.strerror})")
            return []
        found = []
        for entry in entries:
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


def printable(name: str) -> str:
    """Returns a name without characters that would disturb a terminal."""
    return name if name.isprintable() else ascii(name)[1:-1]


def why_no_image(file: Path, formats: tuple[str, ...] = FORMATS) -> str:
    """Returns '' for an image of these formats that can be stored and read, else the reason why
    not.
    """
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
            if image.format not in formats:
                return f"format {image.format}; allowed: {', '.join(formats)}"
    except ValueError as error:
        return str(error)
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # headers that are damaged raise many types
        return f"cannot be read ({type(error).__name__}: {error})"
    return ""
