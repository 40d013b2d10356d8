"""The one way in which this project writes a file: complete or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_file(path: str | os.PathLike, content: str | bytes | Callable[[str], None]) -> Path:
    """Writes a file so that a reader, or a kill at any moment, never meets half of it.

    The content goes to a temporary file beside `path` (same file system, name starting with a dot),
    is flushed to the disk and takes the place of `path` in one exchange. A failure leaves what was
    there before, and no temporary file.

    Args:
        path: the file; its directory must exist.
        content: text (written as UTF-8), bytes, or a function that is given the temporary file's
            name and writes it.

    Returns:
        The path.

    Raises:
        FileNotFoundError: the directory does not exist.
        OSError: what the file system says, a full disk for example.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the directory {path.parent} does not exist")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    os.close(handle)
    try:
        if callable(content):
            content(temporary)
        else:
            data = content.encode() if isinstance(content, str) else content
            Path(temporary).write_bytes(data)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(
            temporary, 0o666 & ~umask
        )  # mkstemp makes private files; this one gets the usual mode
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # Ctrl-C just after the exchange
            os.unlink(temporary)
        raise
    return path
