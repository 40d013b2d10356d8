r"""Name tables: from the parameters of a PyTorch module to ours.

A table is a tuple of `Rule`. Modules keep theirs as `TORCH_NAMES`; a model joins the tables of its
parts:

    TORCH_NAMES = (
        Rule(r"head\.fc\.weight", "head/fc/kernel", "linear"),
        Rule(r"head\.fc\.bias", "head/fc/bias"),
        *prefixed(CONV, r"stem\.conv(\d)\.conv\.", r"stem/conv\1/conv"),
        *prefixed(BATCH_NORM, r"stem\.conv(\d)\.bn\.", r"stem/conv\1/norm"),
        # one fused projection: three targets, cut along the output channels by the targets' own
        sizes Rule(r"qkv\.weight", ("query/kernel", "key/kernel", "value/kernel"), "pointwise"),
    )

Everything here is plain Python and NumPy, so that any module may import it. Every transform but
`abn_scale` is linear and moves numbers without changing them, so the same table also maps the
gradients of a PyTorch module to the gradients of ours.
"""

import difflib
import logging
import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

_log = logging.getLogger(__name__)
_LISTED = 20  # names printed per kind of problem before the rest is only counted
_NAMED = 4  # names in a warning, likewise


class NameMappingError(ValueError):
    """The weights and the model do not fit together; the message lists every problem."""


def _copy(array: np.ndarray) -> np.ndarray:
    return array


def _conv(array: np.ndarray) -> np.ndarray:
    """[out, in, *window] -> [*window, in, out], for one, two or three spatial axes."""
    if array.ndim < 3:
        raise ValueError(
            "a convolution kernel has at least 3 axes (out, in, window), this has shape "
            f"{array.shape}"
        )
    return np.moveaxis(array, (0, 1), (-1, -2))


def _linear(array: np.ndarray) -> np.ndarray:
    """[out, in] -> [in, out]."""
    if array.ndim != 2:
        raise ValueError(f"a linear weight has 2 axes (out, in), this has shape {array.shape}")
    return array.T


def _pointwise(array: np.ndarray) -> np.ndarray:
    """[out, in, 1, ...] -> [in, out]: a 1x1 convolution, or already a linear weight, as a linear
    kernel.
    """
    if array.ndim < 2 or any(size != 1 for size in array.shape[2:]):
        raise ValueError(
            f"a 1x1 convolution kernel has the shape (out, in, 1, ...), this has {array.shape}"
        )
    return array.reshape(array.shape[:2]).T


def _vector(array: np.ndarray) -> np.ndarray:
    """[1, ..., c, ..., 1] -> [c]: a per-channel vector stored with broadcast axes."""
    if sum(size != 1 for size in array.shape) > 1:
        raise ValueError(f"only one axis may be longer than 1, this has shape {array.shape}")
    return array.reshape(-1)


def abn_scale(array: np.ndarray) -> np.ndarray:
    """Returns the weight of an InPlace-ABN, which scales by |weight| + 1e-5, as the scale of a
    batch norm; not linear.
    """
    return np.abs(array) + array.dtype.type(1e-5)


TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": _copy,
    "conv": _conv,
    "linear": _linear,
    "pointwise": _pointwise,
    "vector": _vector,
}
"""Transforms by name. A rule may also name a function of its own module: `array -> array`, linear,
pure NumPy.
"""


@dataclass(frozen=True)
class Rule:
    r"""One line of a name table.

    Args:
      pattern: regular expression that must match the whole PyTorch key, for example
          `r"stages\.(\d+)\.bn\.weight"`.
      target: our '/'-path, in which `\1`, `\2`, ... stand for the groups of the pattern; a tuple of
        several paths cuts the transformed array along its LAST axis (the output channels) into
        pieces of the targets' own sizes, in that order; None drops the key (counters such as
        `num_batches_tracked`).
      transform: a name in `TRANSFORMS` or a function `array -> array`; applied before the array is
        cut. A function may cut by itself and return a tuple, one array per target. With no target
        it only looks at what is dropped, and may refuse it with a ValueError.
      piece: (index, count) where the array is one of `count` equal pieces of its only target along
        the LAST axis: the query, key or value of a joint projection. The others have keys of their
        own.
    """

    pattern: str
    target: str | tuple[str, ...] | None
    transform: str | Callable[[np.ndarray], np.ndarray | tuple[np.ndarray, ...]] = "copy"
    piece: tuple[int, int] | None = None

    def __post_init__(self):
        re.compile(self.pattern)
        if isinstance(self.transform, str) and self.transform not in TRANSFORMS:
            raise ValueError(
                f"unknown transform {self.transform!r} in the rule {self.pattern!r}; named "
                "transforms are "
                f"{', '.join(TRANSFORMS)}; anything else is passed as a function"
            )
        if self.piece is not None and not isinstance(self.target, str):
            raise ValueError(
                f"the rule {self.pattern!r} fills a piece of {self.target!r}; allowed: of one path"
            )

    def targets(self, match: re.Match) -> tuple[str, ...]:
        """Our paths for one matched key."""
        if self.target is None:
            return ()
        templates = (self.target,) if isinstance(self.target, str) else self.target
        return tuple(match.expand(template) for template in templates)

    def apply(self, array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Transforms one PyTorch array and cuts it into pieces of the given target shapes."""
        function = TRANSFORMS[self.transform] if isinstance(self.transform, str) else self.transform
        array = function(array)
        if isinstance(array, tuple):
            return list(array)
        if len(shapes) <= 1:
            return [array][: len(shapes)]
        sizes = [shape[-1] if shape else 0 for shape in shapes]
        if array.ndim == 0 or sum(sizes) != array.shape[-1]:
            raise ValueError(f"the last axis of {array.shape} cannot be cut into pieces of {sizes}")
        return np.split(array, np.cumsum(sizes)[:-1], axis=-1)


BATCH_NORM = (
    Rule(r"weight", "scale"),
    Rule(r"bias", "bias"),
    Rule(r"running_mean", "mean"),
    Rule(r"running_var", "var"),
    Rule(r"num_batches_tracked", None),
)
LAYER_NORM = (Rule(r"weight", "scale"), Rule(r"bias", "bias"))
CONV = (Rule(r"weight", "kernel", "conv"), Rule(r"bias", "bias"))
LINEAR = (Rule(r"weight", "kernel", "linear"), Rule(r"bias", "bias"))
POINTWISE = (Rule(r"weight", "kernel", "pointwise"), Rule(r"bias", "bias"))


def prefixed(rules: Sequence[Rule], torch: str, path: str) -> tuple[Rule, ...]:
    r"""A part's table placed inside a larger module.

    Args:
      rules: the part's table.
      torch: regular expression put before each pattern, with its dot: `r"stages\.(\d+)\.attn\."`.
          It may have groups.
      path: our path of the part, without a slash at the end: `r"stages/\1/attention"`; "" leaves
        the targets as they are.

    Returns:
      The rules with both prefixes. Numbered groups in the part's own targets keep their meaning
      (they are renumbered).
    """
    groups = re.compile(torch).groups

    def place(target: str) -> str:
        target = re.sub(r"\\(\d+)", lambda found: rf"\{int(found[1]) + groups}", target)
        return f"{path}/{target}" if path else target

    out = []
    for rule in rules:
        target = rule.target
        if isinstance(target, str):
            target = place(target)
        elif target is not None:
            target = tuple(place(one) for one in target)
        out.append(replace(rule, pattern=f"{torch}(?:{rule.pattern})", target=target))
    return tuple(out)


Place = tuple[Rule, tuple[str, ...]]
"""A rule that knows a key, and our paths that it fills from it."""


def find_places(
    keys: Iterable[str], rules: Sequence[Rule], paths: Container[str]
) -> dict[str, list[Place]]:
    """Finds the rule of every key: PyTorch key -> no place (unknown), one, or several (the table
    contradicts itself).

    Several rules may know a key, since one table serves networks that have different blocks under
    the same name. Rules with a target that the model lacks then stand back, and of the others the
    one that fills the most paths is taken.

    Args:
      keys: PyTorch keys.
      rules: the model's table.
      paths: our paths of the model.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    found: dict[str, list[Place]] = {}
    for key in keys:
        places = [
            (rule, rule.targets(match))
            for pattern, rule in compiled
            if (match := pattern.fullmatch(key))
        ]
        if len(places) > 1:
            places = [
                place for place in places if all(path in paths for path in place[1])
            ] or places[:1]
            most = max(len(targets) for _, targets in places)
            places = [place for place in places if len(place[1]) == most]
        found[key] = places
    return found


def choose_table(
    tables: Mapping[str, Sequence[Rule]], keys: Collection[str], paths: Container[str]
) -> str:
    """Returns the name of the table that a file follows: the one that finds a place in the model
    for the most keys.

    So the two grammars of Swin are told apart by `layers.0.downsample`, which timm does not have,
    or `layers.3.downsample`, which the authors do not have. Of tables that do equally well the
    first is taken.

    Args:
      tables: grammar -> table, as a model's `torch_names`.
      keys: PyTorch keys of the file.
      paths: our paths of the model.
    """

    def fitting(name: str) -> int:
        places = find_places(keys, tables[name], paths).values()
        return sum(
            len(found) == 1 and all(path in paths for path in found[0][1]) for found in places
        )

    return max(tables, key=fitting)


def convert(
    torch_state: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    target_shapes: Mapping[str, tuple[int, ...]],
    *,
    allow_head_mismatch: Sequence[str] = (),
    require_all: bool = True,
    reshape: Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Maps a PyTorch state (or its gradients) to ours by a name table; strict.

    Args:
      torch_state: PyTorch key -> array in PyTorch's layout.
      rules: the model's table, see `find_places` for keys that stand in several of its rules.
      target_shapes: our '/'-path -> shape, of every parameter and every running statistic.
      allow_head_mismatch: paths of the classifier ("head/fc"). What lies under them may be
        missing, unused or of another shape; those paths are then left out of the result, so that
        the caller keeps its own, and a warning counts them and names the first.
      require_all: False allows a part of the model's arrays (gradients exist for parameters only).
      reshape: (our path, array in our layout, the model's shape) -> array; called for every
        array, it returns it as it should be, or as it is where it knows none better; ValueError for
        what cannot be.

    Returns:
      Our path -> array in our layout, dtypes unchanged.

    Raises:
      NameMappingError: if anything is missing, unused or mis-shaped, or if two rules or two keys
        claim the same thing; all problems at once, with the nearest names.
    """
    known, target_shapes, joints = _cut_targets(
        find_places(torch_state, rules, target_shapes), target_shapes
    )
    found: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    kept: set[str] = set()
    unused, shapes, conflicts = [], [], []

    heads = tuple(head.rstrip("/") + "/" for head in allow_head_mismatch)

    def in_head(path: str) -> bool:
        return (path + "/").startswith(heads)

    for key, array in torch_state.items():
        places = known[key]
        if not places:
            unused.append(f"{key} {tuple(np.shape(array))}: no rule knows it")
            continue
        if len(places) > 1:
            conflicts.append(
                f"{key}: matched by several rules: " + ", ".join(rule.pattern for rule, _ in places)
            )
            origin |= {path: key for _, paths in places for path in paths}
            continue
        rule, paths = places[0]
        absent = [path for path in paths if path not in target_shapes]
        if absent:
            if all(in_head(path) for path in paths):
                kept.update(paths)
                continue
            near = [f"{path}{_nearest(path, target_shapes)}" for path in absent]
            unused.append(f"{key} {tuple(np.shape(array))}: the model has no {', '.join(near)}")
            continue
        wanted = [tuple(target_shapes[path]) for path in paths]
        try:
            pieces = rule.apply(np.asarray(array), wanted)
            if reshape is not None:
                cut = zip(paths, pieces, wanted, strict=True)
                pieces = [reshape(path, piece, shape) for path, piece, shape in cut]
        except ValueError as error:
            pieces, problem = None, f"{key} -> {', '.join(paths) or 'dropped'}: {error}"
        else:
            wrong = [
                f"{key} {tuple(np.shape(array))} -> {path}: gives {piece.shape}, the model has "
                f"{shape}"
                for path, piece, shape in zip(paths, pieces, wanted, strict=True)
                if piece.shape != shape
            ]
            problem = "; ".join(wrong)
        for path in paths:
            if path in origin:
                conflicts.append(f"{path}: filled by both {origin[path]} and {key}")
            origin[path] = key
        if problem:
            if paths and all(in_head(path) for path in paths):
                kept.update(paths)
            else:
                shapes.append(problem)
            continue
        found.update(zip(paths, pieces, strict=True))

    missing = []
    if require_all:
        spare = [line.split(" ")[0] for line in unused]
        for path, shape in target_shapes.items():
            if path in origin:
                continue
            if in_head(path):
                kept.add(path)
            else:
                as_torch = path.replace("/", ".")
                missing.append(
                    f"{path} {tuple(shape)}{_nearest(as_torch, spare, 'unused in the file')}"
                )
    _raise_problems(missing, unused, shapes, conflicts)
    kept &= set(target_shapes)
    if kept:
        first, more = sorted(kept)[:_NAMED], len(kept) - _NAMED
        _log.warning(
            "%d %s not taken from the weights, the model keeps its own: %s%s",
            len(kept),
            "array is" if len(kept) == 1 else "arrays are",
            ", ".join(first),
            f" and {more} more" if more > 0 else "",
        )
    for path, pieces in joints.items():
        if all(piece in found for piece in pieces):
            found[path] = np.concatenate([found.pop(piece) for piece in pieces], axis=-1)
    return found


def _cut_targets(
    known: Mapping[str, list[Place]], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, list[Place]], dict[str, tuple[int, ...]], dict[str, list[str]]]:
    """Gives every piece of a joint target a path of its own.

    Returns:
      The places and the shapes with 'path [1/3]', 'path [2/3]', ... for 'path', and 'path' -> its
      pieces.
    """
    known, shapes, joints = dict(known), dict(shapes), {}
    for key, places in known.items():
        if len(places) != 1 or places[0][0].piece is None:
            continue
        rule, (path,) = places[0]
        index, count = rule.piece
        names = [f"{path} [{number}/{count}]" for number in range(1, count + 1)]
        known[key] = [(rule, (names[index],))]
        if path in shapes:
            *rest, last = shapes.pop(path)
            shapes |= dict.fromkeys(names, (*rest, last // count))
            joints[path] = names
    return known, shapes, joints


def _nearest(name: str, names: Sequence[str] | Mapping[str, object], what: str = "nearest") -> str:
    close = difflib.get_close_matches(name, list(names), n=2, cutoff=0.5)
    return f" ({what}: {', '.join(close)})" if close else ""


def _raise_problems(
    missing: list[str], unused: list[str], shapes: list[str], conflicts: list[str]
) -> None:
    kinds = (
        ("missing (the model needs them, the weights lack them)", missing),
        ("unused (in the weights, not in the model)", unused),
        ("mis-shaped", shapes),
        ("claimed twice", conflicts),
    )
    lines = []
    for title, items in kinds:
        if items:
            lines.append(f"  {len(items)} {title}:")
            lines += [f"    {item}" for item in items[:_LISTED]]
            if len(items) > _LISTED:
                lines.append(f"    ... and {len(items) - _LISTED} more")
    if lines:
        raise NameMappingError(
            "the weights do not fit the model:\n" + "\n".join(lines) + "\n"
            "  Fix: build the model with the options the weights were made with."
        )
