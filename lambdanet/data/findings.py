"""What is wrong with pictures and annotations that are to be prepared, all of it at once."""

from __future__ import annotations

import collections
import json
from pathlib import Path

from lambdanet.data import class_folders, decode

ON_ERROR = ("raise", "skip")
LEFT_OUT = "objects left out"
NO_PICTURE = "pictures left out, with their objects"
CUT = "boxes cut at the border of their pictures"
MAX_NAMED = 3  # mistakes of one kind that a note gives as examples


class Findings:
    """What is wrong with a set: mistakes that stop it, and those of single objects or pictures,
    which can be left out.
    """

    def __init__(self):
        self.fatal: list[str] = []
        self.mendable: dict[str, list[str]] = collections.defaultdict(list)

    def stop(self, text: str) -> None:
        """Adds a mistake that nothing can be left out for."""
        self.fatal.append(text)

    def mend(self, what: str, text: str) -> None:
        """Adds a mistake that goes away with `what` is done: 'objects left out', for example."""
        self.mendable[what].append(text)

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
        if wrong:
            counts = ", ".join(f"{len(texts)} {what}" for what, texts in self.mendable.items())
            hint = f"; with --on-error=skip: {counts}" if on_error == "raise" and counts else ""
            raise ValueError(
                f"{where} cannot be prepared; {len(wrong)} mistakes{hint}:"
                f"{class_folders.listing(wrong)}"
            )
        return tuple(
            f"{len(texts)} {what}: {'; '.join(texts[:MAX_NAMED])}"
            f"{'; ...' if len(texts) > MAX_NAMED else ''}"
            for what, texts in self.mendable.items()
        )


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
    hint = " (the camera's orientation counts: annotate the upright picture)" if turned else ""
    width, height = (json.dumps(n) if isinstance(n, (str, float)) else n for n in said)
    return f"says {width} x {height}, and the picture has {size[0]} x {size[1]}{hint}"
