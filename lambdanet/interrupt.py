"""Signals in a program's first seconds, while it still imports; needs nothing but Python."""

from __future__ import annotations

import os
import signal


def leave_quietly() -> None:
    """From now on SIGTERM and Ctrl-C end the process at once with one line and the code that shells
    give for the signal (143, 130).

    Python's own handler raises KeyboardInterrupt, of which an import in progress makes a traceback,
    or nothing at all.
    """

    def leave(number: int, _: object) -> None:
        name = signal.Signals(number).name
        os.write(2, f"{name}: ended before anything was done\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
