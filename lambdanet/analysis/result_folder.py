"""A folder of results that a later call replaces completely or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_replaceable(target: Path, mark: str, origin: str = "") -> None:
    """Raises ValueError if something else than earlier results of the same kind stands there.

    Args:
        target: the folder, which need not exist.
        mark: a file that all such results have.
        origin: what that file must say; '' = anything.
    """
    if target.is_file():
        raise ValueError(f"{target} is a file; move it away, or name a folder with --output=DIR")
    path = target / mark
    if not target.exists() or (not path.exists() and not any(target.iterdir())):
        return
    of = "something else"
    if path.exists():
        of = path.read_text().strip() if origin else origin
    if of != origin:
        raise ValueError(
            f"{target} holds what was written of {of}; move it away, or name another folder with "
            "--output=DIR"
        )


@contextlib.contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Gives a new folder to write into, which takes the place of `target` when the block ends; a
    block that fails leaves what was there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        fresh = Path(scratch) / target.name
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(Path(scratch) / ".before")
        fresh.rename(target)
