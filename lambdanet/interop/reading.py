"""What reading a stranger's file has in common: one error, and bounds."""

import contextlib
import os
import stat
import zipfile
from collections.abc import Iterator

RUN_FOLDER = "checkpoints"
"""What the workdir of a run has in it."""
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".pyth", ".bin", ".ckpt", ".tar")
"""Names of weights files end with one of these; what a file is, its content tells."""
_LISTED = 10  # of what stands beside a file that is not there
_FREE = 64 * 2**20  # bytes that a file may always unpack to
_RATIO = 20  # and times its size; weights compress by less than two, unless most of them are zero
# Bytes of a checkpoint per number that the model has: averaged weights, two moments of an optimiser
# and a spare, in float64; and what stands beside them.
_PER_NUMBER, _BESIDE = 40, 2**30


class WeightsFileError(ValueError):
    """A weights file is damaged, of a kind that is not read, or refused."""


@contextlib.contextmanager
def one_error(path: str, what: str = "is damaged or cut short") -> Iterator[None]:
    """Turns whatever goes wrong inside into a WeightsFileError that names the file.

    A file made to harm makes libraries fail in any way, and none of them is the reader's business.
    """
    try:
        yield
    except WeightsFileError:
        raise
    except Exception as error:
        said = brief(f"{type(error).__name__}: {error}")
        raise WeightsFileError(f"{path} {what} ({said}); fetch or copy it again") from error


def brief(text: str, most: int = 200) -> str:
    """Returns a text from a file, or from an error about it, for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def check_is_file(path: str, numbers: int | None = None) -> None:
    """Checks that a path can be read without blocking and without end.

    Args:
        path: the file.
        numbers: of the model that wants the weights; None = not known.

    Raises:
        FileNotFoundError: no such file; names the weights files and runs beside it.
        WeightsFileError: no ordinary file, or one far larger than the model needs.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        folder = os.path.dirname(path) or "."
        there = f"the directory {folder} does not exist"
        if os.path.isdir(folder):
            there = f"in {folder} there are: {_beside(folder)}"
        raise FileNotFoundError(f"no weights file {path}; {there}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise WeightsFileError(
            f"{path} is {kind}; give a weights file (.safetensors, .pth, .pt, .npz)"
        )
    if numbers is not None and status.st_size > _PER_NUMBER * numbers + _BESIDE:
        raise WeightsFileError(
            f"{path} has {status.st_size:,} bytes, the model {numbers:,} numbers; it is refused "
            "unread, as no checkpoint of this model is that large"
        )


def _beside(folder: str) -> str:
    """Returns the names of what in a folder could be meant as weights."""
    names = [
        name
        for name in sorted(os.listdir(folder))
        if not name.startswith(".")
        and (
            os.path.isdir(os.path.join(folder, name, RUN_FOLDER))
            or (name.lower().endswith(SUFFIXES) and os.path.isfile(os.path.join(folder, name)))
        )
    ]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}" if names else "no weights files and no runs"


def room(path: str) -> int:
    """Returns the bytes that what a file holds may take in memory."""
    return max(_FREE, _RATIO * os.path.getsize(path))


def check_archive(archive: zipfile.ZipFile, path: str) -> None:
    """Checks that a zip archive unpacks to no more than `room`, whatever its entries share.

    Raises:
        WeightsFileError: it would, or an entry is packed in a way that neither NumPy nor PyTorch
            uses (bzip2 and LZMA unpack without bounds).
    """
    entries = archive.infolist()
    total, most = sum(entry.file_size for entry in entries), room(path)
    if total > most:
        raise WeightsFileError(
            f"{path} would unpack to {total:,} bytes, far more than weights do; allowed: {most:,}"
        )
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise WeightsFileError(
                f"{path}: the entry {brief(entry.filename)} is compressed by method "
                f"{entry.compress_type}; allowed: stored, deflated"
            )
