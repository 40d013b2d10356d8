"""What command lines of the benchmarks have in common: files that they write and read."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def file_to_write(text: str) -> str:
    """Returns a path that can be written to, before anything is measured for it.

    For the `type` of an argument of argparse, which reports what is raised.

    Raises:
        argparse.ArgumentTypeError: it is a directory, its directory does not exist, or it may not
            be written.
    """
    path = Path(text)
    parent = path.absolute().parent
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; allowed: a file")
    if not parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no directory {parent}; make it first")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} may not be written; name another file")
    return text


def read_lines(path: str | Path, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns the objects of a file of JSON lines.

    Args:
        path: of the file.
        keys: what each object must have.

    Raises:
        ValueError: the file cannot be read, or a line is no such object; names it.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            for key in keys:
                record[key]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is no record: remove it") from error
        found.append(record)
    return found
