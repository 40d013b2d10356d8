"""A folder that must stay where it is while a run writes into it."""

from __future__ import annotations

import os
import weakref
from pathlib import Path


class HeldFolder:
    """Notices that a folder was moved, removed or replaced since this was made.

    Args:
        path: an existing folder.
    """

    def __init__(self, path: Path):
        self._path = path
        # Held open, since file systems over a network may number a folder anew after its last use.
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._stat = lambda: os.fstat(handle)
        self.release = weakref.finalize(self, os.close, handle)

    def is_there(self) -> bool:
        """Returns whether the path still leads to the folder it led to at first."""
        try:
            return os.path.samestat(self._stat(), os.stat(self._path))
        except OSError:
            return False
