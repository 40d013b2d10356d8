"""Parts of a network by depth: learning rates that fall towards the stem, what stays frozen until
when, and the optimiser's table at the start of a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lambdanet.training.state import flatten_names

_PLACE = re.compile(r"(?P<root>(?:[^/]+/)*?)stages/(?P<stage>\d+)/(?:blocks/(?P<block>\d+)/)?.*")
_STEM = re.compile(r"(?P<root>(?:[^/]+/)*?)stem/.*")


def places(names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Returns where in the backbone each parameter stands: path -> (depth, words for it).

    The stem is 0 and the blocks of all stages count on from 1; an embedding or a table before the
    blocks of a stage counts to the block before, a norm behind them to the last one. All else
    (final norm, classifier, neck and heads of dense models) is one deeper than the last block.

    Args:
        names: parameter paths of a whole model; its backbone may lie below another one.

    Raises:
        ValueError: no path has a block of a stage ('.../stages/0/blocks/0/...').
    """
    found = {name: _PLACE.fullmatch(name) for name in names}
    blocks = {
        (m["root"], int(m["stage"]), int(m["block"])) for m in found.values() if m and m["block"]
    }
    if not blocks:
        some = list(found)[:: max(len(found) // 4, 1)]
        raise ValueError(
            "optim.layer_decay goes by the blocks of stages ('stages/0/blocks/0/...'), and this "
            f"model has none; set it to 1.0. Its paths are, for example: {', '.join(some)}"
        )
    root = min(root for root, _, _ in blocks)
    numbers = {place: i for i, place in enumerate(sorted(b[1:] for b in blocks if b[0] == root), 1)}
    words = {0: "stem"} | {i: f"stage {s + 1}, block {b + 1}" for (s, b), i in numbers.items()}
    head = len(numbers) + 1
    words[head] = "head"

    def depth(name: str) -> int:
        match = found[name]
        if match is None or match["root"] != root:
            stem = _STEM.fullmatch(name)
            return 0 if stem and stem["root"] == root else head
        stage = int(match["stage"])
        if match["block"]:
            return numbers[stage, int(match["block"])]
        behind = name.startswith(f"{root}stages/{stage}/norm/")
        return max((i for (s, _), i in numbers.items() if s < stage + behind), default=0)

    return {name: (depth(name), words[depth(name)]) for name in found}


def decay_factors(decay: float, names: Iterable[str]) -> dict[str, float]:
    """Returns the factor of each parameter's learning rate: decay^(L + 1 - depth) for L blocks, so
    1 for the head and decay^(L + 1) for the stem (Clark et al. 2020, "ELECTRA"; Bao et al. 2022,
    "BEiT"); see `places` for depth. With decay 1 all are 1, whatever the model.
    """
    names = list(names)
    if decay == 1:
        return dict.fromkeys(names, 1.0)
    depths = {name: depth for name, (depth, _) in places(names).items()}
    return {name: decay ** (max(depths.values()) - depth) for name, depth in depths.items()}


def pretrained_rules(model: Any) -> tuple[str, ...]:
    """Returns regexes on paths for what a pretrained network brings along: the backbone of a model
    of several parts, of a backbone all but its classifier; never what was `inserted` into it.

    Args:
        model: concrete or abstract; gives `classifier`, and may give `backbone_names`,
            `backbone_path` and `inserted`, see `lambdanet.training.weights.read_weights`.
    """
    has_parts = hasattr(type(model), "backbone_names")
    root = getattr(model, "backbone_path", "backbone") + "/" if has_parts else ""
    new = (*(() if has_parts else model.classifier), *getattr(model, "inserted", ()))
    but = "|".join(re.escape(f"{path}/") for path in new)
    return ((f"(?!{but})" if but else "") + re.escape(root) + ".*",)


def table(
    optim: Any, params: Any, factors: dict[str, float], *, held: Sequence[str] = (), thaw: int = 0
) -> str:
    """Returns the optimiser's groups as a table of text: parts in the order of their depth, their
    parameters, the factor of their learning rate, and until when they are frozen.

    Neighbours that differ in nothing share a line.

    Args:
        optim: `config.optim`; reads name, lr, weight_decay, layer_decay, frozen.
        params: the parameters, or their shapes.
        factors: path -> factor of the learning rate, all in all.
        held: regexes of what is frozen before step `thaw`.
        thaw: 0 = nothing is.
    """
    flat = flatten_names(params)
    try:
        where = places(flat)
    except ValueError:  # no blocks: one part
        where = dict.fromkeys(flat, (0, "all"))

    def frozen(name: str) -> str:
        if any(re.fullmatch(rule, name) for rule in optim.frozen):
            return "always"
        waits = thaw and any(re.fullmatch(rule, name) for rule in held)
        return f"until step {thaw:,}" if waits else "no"

    groups: dict[tuple, int] = {}
    for name, leaf in sorted(flat.items(), key=lambda item: where[item[0]][0]):
        key = (*where[name], factors[name], frozen(name))
        groups[key] = groups.get(key, 0) + math.prod(leaf.shape)
    lines: list[list[Any]] = []  # first part, last part, parameters, factor, frozen
    for (_, part, factor, until), count in groups.items():
        if lines and lines[-1][3:] == [factor, until]:
            lines[-1][1:3] = [part, lines[-1][2] + count]
        else:
            lines.append([part, part, count, factor, until])
    rows = [("part", "parameters", "lr factor", "frozen")]
    for first, last, count, factor, until in lines:
        part = first if first == last else f"{first} to {last}"
        rows.append((part, f"{count:,}", f"{factor:.3g}", until))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    shown = [
        f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}"
        for row in rows
    ]
    return "\n".join(
        [f"{optim.name}, lr {optim.lr:g}, weight decay {optim.weight_decay:g}", *shown]
    )
