"""What is wrong with pictures and annotations that are to be prepared, all of it at once."""

from __future__ import annotations

import collections
import json
import unicodedata
from pathlib import Path, PurePosixPath

from lambdanet.data import class_folders, decode

ON_ERROR = ("raise", "skip")
LEFT_OUT = "objects left out"
NO_PICTURE = "pictures left out, with their objects"
CUT = "boxes cut at the border of their pictures"
MAX_NAMED = 3  # mistakes of one kind that a note gives as examples
_ONE = {  # the kinds begin with one of these
    "files and folders": "file or folder",
    "categories": "category",
    "classes": "class",
    "boxes": "box",
    "images": "image",
    "mistakes": "mistake",
    "objects": "object",
    "pairs": "pair",
    "pictures": "picture",
    "rows": "row",
}


class Findings:
    """What is wrong with a set: mistakes that stop it, and those of single objects or pictures,
    which can be left out.
    """

    def __init__(self):
        self.fatal: list[str] = []
        self.mendable: dict[str, list[str]] = collections.defaultdict(list)

    def __len__(self) -> int:
        return len(self.fatal) + sum(map(len, self.mendable.values()))

    def stop(self, text: str) -> None:
        """Adds a mistake that nothing can be left out for."""
        self.fatal.append(text)

    def mend(self, what: str, text: str) -> None:
        """Adds a mistake that goes away with `what` is done: 'objects left out', for example."""
        self.mendable[what].append(text)

    def lines(self) -> list[str]:
        """Returns all mistakes, a line each."""
        lines = [f"wrong: {text}" for text in self.fatal]
        return lines + [
            f"{what}: {text}" for what, texts in self.mendable.items() for text in texts
        ]

    def resolve(self, where: str, on_error: str) -> tuple[str, ...]:
        """Returns notes on what was left out.

        Args:
            where: the files, for the message.
            on_error: 'raise', or 'skip' to leave out what can be.

        Raises:
            ValueError: lists the mistakes: all with 'raise', those that stop it with 'skip'.
        """
        mended = [text for texts in self.mendable.values() for text in texts]
        wrong = self.fatal + (mended if on_error == "raise" else [])
        notes = tuple(
            f"{counted(len(texts), what)}: {'; '.join(texts[:MAX_NAMED])}"
            f"{'; ...' if len(texts) > MAX_NAMED else ''}"
            for what, texts in self.mendable.items()
        )
        if wrong:
            counts = ", ".join(counted(len(t), what) for what, t in self.mendable.items())
            hint = f"; with --on-error=skip: {counts}" if on_error == "raise" and counts else ""
            left_out = f"\nafter --on-error=skip, with {'; '.join(notes)}" if notes else ""
            mistakes = f"{len(wrong)} mistake{'s' * (len(wrong) != 1)}{hint}"
            again = f"\n{mistakes}" if len(wrong) > class_folders.SCREEN else ""
            raise ValueError(
                f"{where} cannot be prepared; {mistakes}:{class_folders.listing(wrong)}{again}"
                f"{left_out if on_error == 'skip' else ''}"
            )
        return notes


def counted(number: int, what: str) -> str:
    """Returns '1 box cut at the border of its picture' for (1, 'boxes cut at the border of their
    pictures').
    """
    if number == 1:
        many = next(many for many in _ONE if what.startswith(many))
        rest = what.removeprefix(many).replace("their pictures", "its picture")
        what = _ONE[many] + rest.replace("their", "its")
    return f"{number:,} {what}"


def one_form(text: str) -> str:
    """Returns a name in Unicode's form NFC: 'e' and an accent are the letter with the accent. What
    looks the same is the same then; systems and programs store names in either form.
    """
    return unicodedata.normalize("NFC", text)


def files_by_name(folder: Path, findings: Findings, ending: str = "") -> dict[str, Path]:
    """Returns the files of a folder by name up to the ending, in one Unicode form.

    Args:
        folder: which is listed; what systems leave in folders is passed over.
        findings: gets two files of one name.
        ending: of the files, small; '' = any.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if class_folders.is_litter(file.name) or not file.suffix.lower().endswith(ending):
            continue
        twin = found.setdefault(one_form(file.stem), file)
        if twin != file:
            hint = " (in another Unicode form)" if twin.stem != file.stem else ""
            text = f"{folder.name}/{file.name}: the same name as {twin.name} up to the ending"
            findings.stop(f"{text}{hint}")
    return found


class Folder:
    """Finds the files of a folder by names in any Unicode form; lists a folder once at most.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self.listed: dict[Path, dict[str, list[str]]] = {}

    def file(self, name: str) -> Path:
        """Returns the file of that relative name, or where it would be: in exactly this form if
        there is one, else the only one in another form.
        """
        if name.isascii() or _exists(self.path / name):
            return self.path / name
        found = self.path
        for part in PurePosixPath(name).parts:
            if not _exists(found / part):
                twins = self._names(found).get(one_form(part), [])
                part = twins[0] if len(twins) == 1 else part
            found = found / part
        return found

    def _names(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self.listed:
            names = self.listed[folder] = collections.defaultdict(list)
            for file in folder.iterdir() if folder.is_dir() else ():
                names[one_form(file.name)].append(file.name)
        return self.listed[folder]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def picture_size(file: Path) -> tuple[tuple[int, int], str]:
    """Decodes a picture; returns the (width, height) of the upright one, and '' or what is wrong.

    Args:
        file: need not exist.
    """
    try:
        if not file.exists():
            return (0, 0), "there is no such picture"
        if file.is_dir():
            return (0, 0), "a folder, and no picture"
    except OSError as error:  # a name that is too long
        return (0, 0), f"cannot be read ({error.strerror})"
    if reason := class_folders.why_no_image(file):
        return (0, 0), reason
    try:
        picture = decode.open_image(file.read_bytes())
        picture.load()  # a picture that is cut off has a whole header
        return picture.size, ""
    except Exception as error:  # damaged files raise many types
        return (0, 0), str(error)


def why_another_size(said: tuple[int, int], size: tuple[int, int]) -> str:
    """Returns '' if an annotation's (width, height) is the picture's, else what is wrong."""
    if said == size:
        return ""
    turned = said == size[::-1]
    hint = (
        " (the camera's orientation turns it upright, which counts: annotate the upright picture; "
        "or, if the annotations are of the pixels as they lie in the file, take that mark out of a "
        "copy of the pictures, for example by exiftool -Orientation= FILES)"
    )
    hint = hint if turned else ""
    width, height = (json.dumps(n) if isinstance(n, (str, float)) else n for n in said)
    return f"says {width} x {height}, and the picture has {size[0]} x {size[1]}{hint}"
