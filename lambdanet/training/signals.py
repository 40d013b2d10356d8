"""SIGTERM and Ctrl-C as a wish to save and stop, agreed upon by all processes."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class Received(list):
    """Names of the signals that came; a context, at whose end the former handlers are back."""

    def __init__(self):
        super().__init__()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Received:
        """Notes SIGTERM and SIGINT from now on instead of dying; a second one does what it did
        before, and where that was the system's default raises KeyboardInterrupt. Outside the main
        thread, to which Python delivers signals, it does nothing.
        """
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Puts the former handlers back; calling it twice does no harm."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if self:
            former = self._before.get(number)
            if callable(former):
                former(number, frame)
            raise KeyboardInterrupt(f"second signal ({name}): stopped without saving")
        self.append(name)
        text = f"{name}: stops after this step and saves; a second signal stops without saving\n"
        os.write(2, text.encode())  # compiling may take minutes; print is not safe in a handler


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set in any process; all must ask at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
