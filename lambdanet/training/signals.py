"""SIGTERM and Ctrl-C as a wish to save and stop, agreed upon by all processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


def catch(received: list[str]) -> Callable[[], None]:
    """Notes the names of SIGTERM and SIGINT in `received` instead of dying; a second signal raises
    KeyboardInterrupt.

    Outside the main thread, to which Python delivers signals, it does nothing.

    Args:
        received: list that the names are appended to.

    Returns:
        A function that puts the former handlers back; calling it twice does no harm.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def handler(number, _):
        if received:
            raise KeyboardInterrupt(
                f"second signal ({signal.Signals(number).name}): stopped without saving"
            )
        received.append(signal.Signals(number).name)

    before = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}

    def undo() -> None:
        while before:
            signal.signal(*before.popitem())

    return undo


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set in any process; all must ask at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
