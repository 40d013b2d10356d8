"""Names to factories: the one registry that attention blocks and models share."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

LARGEST = 2**31 - 1  # of an integer among the options: sizes and counts are 32-bit in compiled code
HANDED_IN = ("dim", "rngs")  # parameters that the host gives, which are no options


def suggest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest known name, or an empty string."""
    # a text of a thousand letters is no misspelt name, and comparing it takes seconds
    close = difflib.get_close_matches(str(name)[:100], [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def show(value: Any, most: int = 200) -> str:
    """Returns a value as text for an error message: its repr, cut to `most` letters.

    Python itself refuses to write integers of thousands of digits and very deep nests.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"an unprintable {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text)} characters)"


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float (True and False are neither) that a float holds."""
    try:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:  # an integer beyond all floats
        return False


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value (of a config, say) can be what an annotation says; annotations of other
    kinds accept anything.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is typing.Literal:
        return value in args
    if annotation in (None, types.NoneType):
        return value is None
    if annotation is bool or annotation is str:
        return isinstance(value, annotation)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return is_number(value)
    if annotation is tuple or origin in (tuple, Sequence):
        if not isinstance(value, (tuple, list)):
            return False
        if origin is Sequence or (len(args) == 2 and args[1] is Ellipsis):
            return all(fits(v, args[0]) for v in value)
        return not args or (
            len(args) == len(value) and all(fits(v, a) for v, a in zip(value, args, strict=True))
        )
    if isinstance(origin or annotation, type) and issubclass(origin or annotation, Mapping):
        return isinstance(value, Mapping)
    return True


def _numbers(value: Any, whole: bool) -> Iterator[float]:
    """Yields the numbers in a value, however deep; only the integers with `whole`."""
    if isinstance(value, (tuple, list)):
        for entry in value:
            yield from _numbers(entry, whole)
    elif isinstance(value, int if whole else (int, float)) and not isinstance(value, bool):
        yield value


def _annotation_text(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "").replace("collections.abc.", "")


def signature(factory: Callable[..., Any]) -> inspect.Signature:
    """Returns the signature of a function, or of a class's constructor without `self`, its
    annotations evaluated.

    `inspect.signature` of an NNX module class gives (*args, **kwargs): its metaclass defines
    `__call__`. A class without a constructor takes nothing, whatever `object`'s says.
    """
    if not inspect.isclass(factory):
        return inspect.signature(factory, eval_str=True)
    if factory.__init__ is object.__init__:
        return inspect.Signature()
    declared = inspect.signature(factory.__init__, eval_str=True)
    return declared.replace(
        parameters=list(declared.parameters.values())[1:], return_annotation=declared.empty
    )


class Registry:
    """A table of named factories with their preset options.

    Args:
        kind: what the entries are, for error messages ('attention', 'model').
        bounds: option -> least and greatest value of the numbers in it, for `option_problems`.
        largest: of integers of other options.
        handed_in: parameters of the factories that the host gives, which are no options.
        listed_by: a command that lists the names, of a table too long for an error message.
    """

    def __init__(
        self,
        kind: str,
        *,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        largest: int = LARGEST,
        handed_in: tuple[str, ...] = HANDED_IN,
        listed_by: str = "",
    ):
        self.listed_by = listed_by
        self.kind, self.bounds, self.largest = kind, dict(bounds or {}), largest
        self.handed_in = handed_in
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
        """Returns (factory, preset options); raises ValueError if unknown, with the nearest name,
        and the others or the command that lists them.
        """
        if not isinstance(name, str) or name not in self._entries:
            names = self.names()
            known = f"Known: {', '.join(names)}"
            if self.listed_by:
                known = f"`{self.listed_by}` lists all {len(names)}"
            raise ValueError(f"unknown {self.kind} {show(name)}.{suggest(name, names)} {known}")
        factory, preset = self._entries[name]
        return factory, dict(preset)

    def parameters(self, name: str) -> Mapping[str, inspect.Parameter]:
        """Returns the factory's parameters by name, as its signature declares them."""
        return signature(self.lookup(name)[0]).parameters

    def option_problems(
        self, name: str, options: Mapping[str, Any], also: tuple[str, ...] = ()
    ) -> dict[str, str]:
        """Returns what is wrong with options, by option: those that the factory does not declare,
        with the nearest one that it does, values that its annotations rule out, and numbers that no
        memory or time suffices for.

        Args:
            name: the entry.
            options: values by name.
            also: keys that stand beside the options, for suggestions.
        """
        declared = self.parameters(name)
        known = [p for p in declared if p not in self.handed_in]
        problems = {}
        for option, value in options.items():
            if option not in known:
                nearest = suggest(option, [*known, *also])
                problems[option] = (
                    f"{self.kind} '{name}' has no option {option!r}.{nearest} "
                    f"Options: {', '.join(known) or 'none'}"
                )
                continue
            annotation = declared[option].annotation
            low, high = self.bounds.get(option, (-self.largest, self.largest))
            whole = option not in self.bounds  # other floats are the factory's business
            outside = [n for n in _numbers(value, whole) if not low <= n <= high]
            if annotation is not inspect.Parameter.empty and not fits(value, annotation):
                problems[option] = (
                    f"option {option!r} of {self.kind} '{name}' must be "
                    f"{_annotation_text(annotation)}, not {show(value)}"
                )
            elif outside:
                problems[option] = (
                    f"option {option!r} of {self.kind} '{name}' must be from {low:,} to {high:,}, "
                    f"not {show(outside[0])}"
                )
        return problems

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Raises ValueError naming every option that the factory does not declare; values are the
        factory's own business.
        """
        declared = self.parameters(name)
        unknown = {o: v for o, v in options.items() if o not in declared or o in self.handed_in}
        if problems := self.option_problems(name, unknown):
            raise ValueError("; ".join(problems.values()))

    def options(self, name: str, **values: Any) -> list[str]:
        """Returns one text per option, 'name: type = value', the value being that of `values`, the
        preset or the signature.
        """
        values = self.lookup(name)[1] | values
        return [
            str(parameter.replace(default=values.get(option, parameter.default)))
            for option, parameter in self.parameters(name).items()
            if option not in self.handed_in
        ]

    def describe(self, name: str) -> str:
        """Returns the name, its signature, its preset options and its docstring as text."""
        factory, preset = self.lookup(name)
        preset_text = "".join(f"\n  preset {k}={v!r}" for k, v in preset.items())
        doc = inspect.getdoc(factory) or ""
        return (
            f"{name}: "
            f"{factory.__module__}.{factory.__qualname__}{signature(factory)}{preset_text}\n\n{doc}"
        )
