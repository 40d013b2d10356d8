"""Signals that end a program: one line and the usual code; needs nothing but Python, so that it can
be called before the slow imports.
"""

from __future__ import annotations

import os
import signal


def leave_quietly() -> None:
    """From now on SIGTERM and Ctrl-C end the process at once with one line and the code that shells
    give for the signal (143, 130).

    Python's own handler raises KeyboardInterrupt wherever the program is: of that an import in
    progress or a callback of JAX makes a traceback, or nothing at all.
    """

    def leave(number: int, _: object) -> None:
        name = signal.Signals(number).name
        os.write(2, f"{name}: ended; what is saved is whole\n".encode())
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a live line hides the cursor
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
