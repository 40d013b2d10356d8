"""Prepared data sets on disk: written whole or not at all.

Both sets that we prepare ourselves (`digits`, image folders) are TFDS data sets in ArrayRecord
files, the format of every other TFDS directory, so one reader (`sources.PreparedSource`) serves
them all and TensorFlow is never imported.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds


def is_prepared(directory: str | os.PathLike) -> bool:
    """Returns True if `directory` holds a complete prepared data set."""
    return (Path(directory) / "dataset_info.json").is_file()


def check_free(target: Path) -> None:
    """Raises ValueError if something stands there that is no empty directory."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"{target} exists and holds no prepared data set; name a new or an empty directory"
        )


def check_writable(target: Path) -> None:
    """Checks that `target` can be made, by making a folder where it would be, which is removed.

    Raises:
        ValueError: the system refuses; names the nearest folder that is there.
    """
    parent = next(p for p in Path(os.path.abspath(target)).parents if os.path.lexists(p))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".lambdanet-", dir=parent))
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"{target} cannot be made: nothing can be written in {parent} ({reason}); name another "
            "destination"
        ) from error


def prepare_atomically(
    make_builder: Callable[[str], tfds.core.DatasetBuilder],
    directory: str | os.PathLike,
    finish: Callable[[Path], object] = lambda prepared: None,
) -> bool:
    """Prepares a data set in a temporary directory beside `directory` and renames it into place.

    A killed preparation leaves `directory` absent, never half written, and its temporary files are
    removed by the next one; of two processes that prepare the same set at once, one wins and the
    other uses the winner's files.

    Args:
        make_builder: called with the temporary data_dir; returns the builder to prepare there.
        directory: where the prepared set (dataset_info.json and its ArrayRecord files) goes.
        finish: called with the directory of the prepared set before it is renamed; may add files.

    Returns:
        True if this call wrote the set, False if it was there already (or another process was
        faster).

    Raises:
        ValueError: `directory` exists and holds something else.
        OSError: the parent directory is not writable, or the disk is full.
    """
    target = Path(directory)
    if is_prepared(target):
        return False
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    scratch = tempfile.mkdtemp(prefix=f"{_scratch_prefix(target)}{os.getpid()}-", dir=target.parent)
    try:
        builder = make_builder(scratch)
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # TFDS announces a download, of which there is none
            tfds.disable_progress_bar()
            try:
                builder.download_and_prepare(file_format="array_record")
            except RuntimeError as error:  # so the writer of ArrayRecord names a full disk
                raise OSError(f"cannot write {target}: {error}") from error
        finish(Path(builder.data_dir))
        try:
            os.rename(
                builder.data_dir, target
            )  # atomic; replaces an empty directory, refuses a full one
        except OSError:
            if is_prepared(target):
                return False
            raise
        return True
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch_prefix(target: Path) -> str:
    return f".{target.name}.preparing-{socket.gethostname()}-"


def _remove_leftovers(target: Path) -> None:
    """Removes the temporary directories of preparations on this machine whose process is gone."""
    prefix = _scratch_prefix(target)
    for directory in target.parent.glob(f"{prefix}*"):
        process = directory.name[len(prefix) :].split("-")[0]
        try:
            os.kill(int(process), 0)  # signal 0 only asks whether the process exists
        except ProcessLookupError:
            shutil.rmtree(directory, ignore_errors=True)
        except PermissionError:
            pass  # alive, another user's
