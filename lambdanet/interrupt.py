"""Signals that end a program: one line and the usual code; needs nothing but Python, so that it can
be called before the slow imports.
"""

from __future__ import annotations

import os
import signal
import sys
from types import TracebackType


def leave_quietly() -> None:
    """From now on SIGTERM and Ctrl-C end the process at once with one line and the code that shells
    give for the signal (143, 130). A KeyboardInterrupt that whoever handles signals later raises
    ends it the same way, once it has come all the way up.

    Python's own handler raises KeyboardInterrupt, of which an import in progress makes a traceback,
    or nothing at all.
    """

    def leave(number: int, _: object) -> None:
        name = signal.Signals(number).name
        os.write(2, f"{name}: ended; what is saved is whole\n".encode())
        os._exit(128 + number)

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        print(error, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(128 + signal.SIGINT)  # at an ordinary exit JAX would wait for other processes

    sys.excepthook = tell
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
