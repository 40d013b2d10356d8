"""Paths that Orbax can take.

It reads `[`, `*`, `\\` and their like in a directory as patterns, a name like `gs:` as a store, and
fails at names that are not UTF-8.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

_PLAIN = re.compile(r"[\w./ +=,@-]*")  # what certainly has no meaning of its own


def plain_path(directory: Path) -> Path:
    """Returns a path to the directory in which no character has a meaning of its own.

    That is the directory itself, or a symbolic link to it in a private folder of the system's
    directory for temporary files. The link has the same name in every process and stays there.

    Args:
        directory: absolute.

    Raises:
        OSError: the link cannot be made; the message says why it is needed.
    """
    if _PLAIN.fullmatch(str(directory)):
        return directory
    folder = Path(tempfile.gettempdir()) / f"lambdanet-{os.getuid()}"
    link = folder / hashlib.sha256(os.fsencode(directory)).hexdigest()[:20]
    try:
        if not _PLAIN.fullmatch(str(folder)):
            raise OSError(f"the temporary directory {folder} has such characters, too")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise OSError(f"{folder} is not a private folder of yours")
        if not link.is_symlink():
            fresh = folder / f".{link.name}.{os.getpid()}"
            fresh.symlink_to(directory, target_is_directory=True)
            os.replace(fresh, link)
        if os.readlink(link) != str(directory):
            raise OSError(f"{link} points elsewhere")
    except OSError as error:
        characters = ascii("".join(sorted(set(_PLAIN.sub("", str(directory))))))
        raise OSError(
            f"{directory} has characters that the checkpoint library may take for patterns "
            f"({characters}), and no link around them can be made: {error}; name a workdir without "
            "them"
        ) from error
    return link
