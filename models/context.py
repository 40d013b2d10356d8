"""Where context blocks stand in a network: places by name, their checks, and their fit to networks
of another depth.

An entry is a mapping with `name` (a registered context block), `after` (a place or a tuple of
places), optionally `placement`, and the block's own options. A place is the name of a residual
block, 'stage3.4' for the fourth block of the third stage, both counted from 1, or a shell pattern
over those names: 'stage3.*', 'stage[23].*', 'stage*.*'.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any

from lambdanet.attention import kind, list_attention
from lambdanet.attention import registry as attention_registry
from lambdanet.registry import suggest

ContextEntry = Mapping[str, Any]
Context = ContextEntry | tuple[ContextEntry | None, ...] | None
"""None as the first entry of a tuple: what follows stands alone, see `replace_context`."""

PLACEMENTS = ("post", "pre", "standard", "identity")
"""Where in a residual block a context block may stand; the first is the default."""

_OWN_KEYS = ("name", "after", "placement")


def place_context(
    context: Context, blocks: tuple[int, ...]
) -> dict[tuple[int, int], list[tuple[str, dict[str, Any]]]]:
    """Resolves all entries.

    Args:
        context: entries without problems, see `context_problems`.
        blocks: number of blocks per stage.

    Returns:
        (stage, block), both counted from 0 -> (placement, attention spec) of every entry there, in
        the given order. An entry stands once in a block, however many of its places name it.
    """
    found: dict[tuple[int, int], list[tuple[str, dict[str, Any]]]] = {}
    for entry in context_entries(context):
        spec = {key: value for key, value in entry.items() if key not in ("after", "placement")}
        for position, name in _block_names(blocks).items():
            if any(fnmatch.fnmatchcase(name, place) for place in _places(entry["after"])):
                found.setdefault(position, []).append((entry.get("placement", PLACEMENTS[0]), spec))
    return found


def fit_context(context: Context, blocks: tuple[int, ...]) -> Context:
    """Moves preset places to stages of another depth.

    Args:
        context: the preset's entries.
        blocks: the new number of blocks per stage.

    Returns:
        The same with every block name beyond its stage's last block moved to that one. Patterns,
        and names of stages that do not exist, stay as they are; the model refuses the latter.
    """

    def move(place: str) -> str:
        named = re.fullmatch(r"stage(\d+)\.(\d+)", place)
        if named is None or not 1 <= int(named[1]) <= len(blocks):
            return place
        return f"stage{named[1]}.{min(int(named[2]), blocks[int(named[1]) - 1])}"

    fitted = tuple(
        {**entry, "after": tuple(dict.fromkeys(map(move, _places(entry["after"]))))}
        for entry in context_entries(context)
    )
    return fitted[0] if isinstance(context, Mapping) else fitted


def replace_context(name: str, preset: Context, given: Any) -> Any:
    """Returns the context that a caller asks for in place of a preset's.

    Args:
        name: the model.
        preset: its own entries.
        given: those of the caller. None is no context at all; a tuple whose first entry is None
            stands alone, without what the preset has.

    Returns:
        `given` without that None.

    Raises:
        ValueError: a block of the preset that `given` does not name would be dropped unsaid.
    """
    if isinstance(given, tuple) and given[:1] == (None,):
        return given[1:]
    if not isinstance(given, (Mapping, tuple)):
        return given
    named = [entry.get("name") for entry in context_entries(given) if isinstance(entry, Mapping)]
    dropped = tuple(entry for entry in context_entries(preset) if entry["name"] not in named)
    if dropped:
        own = tuple(context_entries(given))
        raise ValueError(
            f"context is {given!r}, which would drop what '{name}' has, {dropped!r}; allowed: "
            f"both, context={dropped + own!r}, or yours alone, context={(None, *own)!r}"
        )
    return given


def context_problems(
    context: Any, blocks: tuple[int, ...], *, also: tuple[str, ...] = ()
) -> list[str]:
    """Returns what is wrong with the option `context` of a network with these blocks per stage, one
    text per problem.

    Args:
        context: the option.
        blocks: number of blocks per stage.
        also: keys of an entry that the network reads itself, and checks itself.
    """
    form = "None, an entry dict(name=..., after='stage3.4'), or a tuple of entries"
    if not (context is None or isinstance(context, (Mapping, tuple))):
        return [f"context is {context!r}; allowed: {form}"]
    problems = []
    for number, entry in enumerate(context_entries(context)):
        label = f"context[{number}]" if isinstance(context, tuple) else "context"
        if not isinstance(entry, Mapping) or not {"name", "after"} <= set(entry):
            problems.append(f"{label} is {entry!r}; allowed: a mapping with 'name' and 'after'")
            continue
        placement = entry.get("placement", PLACEMENTS[0])
        if placement not in PLACEMENTS:
            hint = suggest(placement, PLACEMENTS)
            problems.append(
                f"{label} has the placement {placement!r}; allowed: {', '.join(PLACEMENTS)}.{hint}"
            )
        problems += _name_problems(label, entry, also) + _place_problems(
            label, entry["after"], blocks
        )
    return problems


def _name_problems(label: str, entry: ContextEntry, also: tuple[str, ...]) -> list[str]:
    name = entry["name"]
    try:
        of_kind = kind(name) if isinstance(name, str) else None
    except ValueError as error:
        return [f"{label}: {error}"]
    if of_kind != "context":
        what = f"name {name!r}" if of_kind is None else f"'{name}' is {of_kind}"
        if of_kind == "mixer":
            what = f"'{name}' is a mixer, which is no addition to other layers: attention='{name}'"
        return [f"{label}: {what}; allowed as context: {', '.join(list_attention(kind='context'))}"]
    own = {key: value for key, value in entry.items() if key not in (*_OWN_KEYS, *also)}
    problems = attention_registry.option_problems(name, own, also=("placement", *also))
    return [f"{label}: {problem}" for problem in problems.values()]


def _place_problems(label: str, after: Any, blocks: tuple[int, ...]) -> list[str]:
    places = _places(after)
    if not places or not all(isinstance(place, str) for place in places):
        return [
            f"{label} is after {after!r}; allowed: a place such as 'stage3.4' or 'stage[23].*', or "
            "a tuple of places"
        ]
    names = list(_block_names(blocks).values())
    lines = (
        f"stage{stage}.1" + (f" to stage{stage}.{count}" if count > 1 else "")
        for stage, count in enumerate(blocks, 1)
    )
    known = ", ".join(lines)
    return [
        f"{label} is after {place!r}, which matches no block; the blocks are {known}"
        for place in places
        if not fnmatch.filter(names, place)
    ]


def context_entries(context: Any) -> tuple[Any, ...]:
    """Returns the entries of the option `context`, of whatever form."""
    return () if context is None else (context,) if isinstance(context, Mapping) else context


def _places(after: Any) -> tuple[Any, ...]:
    return after if isinstance(after, tuple) else (after,)


def _block_names(blocks: tuple[int, ...]) -> dict[tuple[int, int], str]:
    """(stage, block), both from 0 -> the block's name."""
    return {(s, b): f"stage{s + 1}.{b + 1}" for s, count in enumerate(blocks) for b in range(count)}
