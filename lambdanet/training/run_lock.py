"""One run at a time in a workdir."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging

from lambdanet.training import signals

FILE_NAME = "run.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class WorkdirBusyError(ValueError):
    """Another run is at work in this workdir."""


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds the lock of a workdir; nothing in it is touched before.

    The operating system takes the lock back when the process ends, however it ends: what a dead
    process leaves is a file without a lock. Where the file system knows no locks, a living process
    on this host that the file names counts as holding it. With several processes the first one
    takes the lock, and all learn of a refusal.

    Args:
        workdir: an existing directory.

    Raises:
        WorkdirBusyError: names process, host and since when.
    """
    problem, file = "", None
    if jax.process_index() == 0:
        path = Path(workdir) / FILE_NAME
        file = open(path, "a+")
        problem = _take(file, path)
    if signals.any_process(bool(problem)):
        if file:
            file.close()
        raise WorkdirBusyError(problem or f"{workdir} is in use, says the first process")
    try:
        yield
    finally:
        if file:
            file.close()


def _take(file: Any, path: Path) -> str:
    """Takes the lock and writes who holds it; returns what is in the way, '' if nothing is."""
    me = {"pid": os.getpid(), "host": socket.gethostname()}
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _busy(path, _holder(file))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        other = _holder(file)
        if other.get("host") == me["host"] and other.get("pid") != me["pid"] and _alive(other):
            return _busy(path, other)
        logging.warning("%s: this file system knows no locks; start no second run there", path)
    file.truncate(0)
    file.write(json.dumps(me | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n")
    file.flush()
    return ""


def _holder(file: Any) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read(10_000))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    try:
        os.kill(int(holder["pid"]), 0)  # signal 0 only asks whether the process exists
    except (ProcessLookupError, KeyError, ValueError, TypeError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _busy(path: Path, holder: dict[str, Any]) -> str:
    who = "process {pid} on {host}, since {since}".format(
        **{key: holder.get(key, "?") for key in ("pid", "host", "since")}
    )
    return (
        f"{path.parent} is in use by another run ({who}). Wait for it or stop it (kill "
        f"{holder.get('pid', 'PID')}), or name another workdir with --workdir=DIR"
    )
