"""Names to factories: the one registry that attention blocks and models share."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Mapping
from typing import Any


def suggest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def signature(factory: Callable[..., Any]) -> inspect.Signature:
    """Returns the signature of a function, or of a class's constructor without `self`, its
    annotations evaluated.

    `inspect.signature` of an NNX module class gives (*args, **kwargs): its metaclass defines
    `__call__`.
    """
    if not inspect.isclass(factory):
        return inspect.signature(factory, eval_str=True)
    declared = inspect.signature(factory.__init__, eval_str=True)
    return declared.replace(
        parameters=list(declared.parameters.values())[1:], return_annotation=declared.empty
    )


class Registry:
    """A table of named factories with their preset options.

    Args:
        kind: what the entries are, for error messages ('attention', 'model').
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}

    def register(self, name: str, factory: Callable[..., Any] | None = None, **preset: Any):
        """Adds `name`; used as a decorator or called with the factory.

        Args:
            name: the public name; registering it twice raises ValueError.
            factory: the class or function that builds the entry.
            **preset: option values that this name stands for; callers may override them.
        """
        if factory is None:
            return lambda f: self.register(name, f, **preset)
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice")
        self._entries[name] = (factory, preset)
        self.check_options(name, preset)
        return factory

    def names(self, pattern: str = "*") -> list[str]:
        """Returns the sorted names that match a shell pattern."""
        return sorted(n for n in self._entries if fnmatch.fnmatchcase(n, pattern))

    def lookup(self, name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Returns (factory, preset options); raises ValueError with the nearest name if unknown."""
        if name not in self._entries:
            raise ValueError(
                f"unknown {self.kind} {name!r}.{suggest(name, list(self._entries))} Known: "
                f"{', '.join(self.names())}"
            )
        factory, preset = self._entries[name]
        return factory, dict(preset)

    def parameters(self, name: str) -> Mapping[str, inspect.Parameter]:
        """Returns the factory's parameters by name, as its signature declares them."""
        return signature(self.lookup(name)[0]).parameters

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Raises ValueError naming every option the factory does not declare and the nearest one it
        does.
        """
        known = [p for p in self.parameters(name) if p not in ("dim", "rngs")]
        bad = [o for o in options if o not in known]
        if bad:
            lines = [f"{o!r}.{suggest(o, known)}" for o in bad]
            raise ValueError(
                f"{self.kind} '{name}' has no option {' and no option '.join(lines)} Options: "
                f"{', '.join(known)}"
            )

    def describe(self, name: str) -> str:
        """Returns the name, its signature, its preset options and its docstring as text."""
        factory, preset = self.lookup(name)
        preset_text = "".join(f"\n  preset {k}={v!r}" for k, v in preset.items())
        doc = inspect.getdoc(factory) or ""
        return (
            f"{name}: "
            f"{factory.__module__}.{factory.__qualname__}{signature(factory)}{preset_text}\n\n{doc}"
        )
