"""Over how many devices the batch of a program is split that is being traced.

Under `jax.jit` arrays have the shape of the whole batch, wherever its parts lie. What chooses by
how much memory or time something takes has to choose by the part of one device.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

_DEVICES = contextvars.ContextVar("devices", default=1)


def devices() -> int:
    """Returns the number of devices; 1 where nobody has said anything."""
    return _DEVICES.get()


@contextlib.contextmanager
def over(count: int) -> Iterator[None]:
    """Inside, `devices` returns `count`."""
    token = _DEVICES.set(count)
    try:
        yield
    finally:
        _DEVICES.reset(token)


def split(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Returns a function that is `over` so many devices whenever it is called, or traced."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with over(count):
            return function(*args)

    return call
