"""A word while a program compiles, which takes from seconds to minutes and shows nothing itself."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SILENT, EVERY = 2.0, 20.0  # seconds before the first line, and between further ones


def announced(
    function: Callable[..., Any], what: str, say: Callable[[str], object]
) -> Callable[..., Any]:
    """Returns a jitted function as one whose first call says that it compiles, see `compiling`.

    Args:
        function: jitted.
        what: its name in the lines, such as 'the training step'.
        say: shows a line.
    """
    called = False

    def call(*args: Any) -> Any:
        nonlocal called
        if called:
            return function(*args)
        called = True
        with compiling(what, say):
            return function(*args)

    return call


@contextlib.contextmanager
def compiling(what: str, say: Callable[[str], object]) -> Iterator[None]:
    """Around what compiles: after two seconds a line says so, then one every 20 seconds with the
    time so far, and one at the end with all of it. What takes less is passed over in silence.

    Args:
        what: is compiled, for the lines.
        say: shows a line; called from another thread.
    """
    began, done = time.perf_counter(), threading.Event()

    def watch() -> None:
        if done.wait(SILENT):
            return
        say(f"compiling {what} ...")
        while not done.wait(EVERY):
            say(f"compiling {what} ... {time.perf_counter() - began:.0f} s")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        spent = time.perf_counter() - began
        done.set()
        watcher.join()
    if spent >= SILENT:
        say(f"compiled {what} in {spent:.0f} s")
