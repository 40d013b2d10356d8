"""Compares our modules with golden fixtures: arrays that reference implementations wrote (see
tests/golden/README.md).

A builder (`tests/golden_families`) turns a fixture into `Ours`: functions that compute every array
of the fixture. This file runs them in float32 with the highest matmul precision on the CPU and
compares all of it. Nothing in a fixture may stay unread: an array that is neither an input nor
compared nor listed in `NOT_PRODUCED` with its reason is a failure.
"""

import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lambdanet.interop.names import Rule, convert
from lambdanet.training.state import flatten_names, split_model, unflatten_names

GRADIENT_TOLERANCE = 1e-4
UNIT_ROUNDOFF = 2.0**-24  # of float32
KINDS = ("in", "param", "out", "after_train", "cotangent", "grad", "buffer", "merged", "meta")

NOT_PRODUCED: dict[tuple[str, str], str] = {}
"""(glob on the family, glob on the array's key) -> why our module does not give this array. Keep it
short.
"""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Fixture:
    """One fixture, or one prefixed sub-case of it.

    Args:
      stem: file name without suffix.
      config: what the reference was built with.
      arrays: key ("in/x", "out/y", ...) -> array.
      case: prefix of the sub-case ("1d"), "" for the main case; already removed from the keys.
    """

    stem: str
    config: dict
    arrays: Arrays
    case: str = ""

    @classmethod
    def load(cls, path: Path) -> "Fixture":
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return cls(path.stem, json.loads(str(arrays.pop("config"))), arrays)

    @property
    def family(self) -> str:
        return self.config["family"]

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose key begins with the prefix, without it."""
        return {
            key[len(prefix) :]: array
            for key, array in self.arrays.items()
            if key.startswith(prefix)
        }

    def cases(self) -> list["Fixture"]:
        """The main case, if it has arrays, and the prefixed sub-cases."""
        split: dict[str, dict[str, np.ndarray]] = {}
        for key, array in self.arrays.items():
            first, _, rest = key.partition("/")
            if first in KINDS or first.startswith("feat_"):
                first, rest = "", key
            split.setdefault(first, {})[rest] = array
        return [Fixture(self.stem, self.config, arrays, case) for case, arrays in split.items()]


@dataclass(frozen=True)
class Ours:
    """Our side of one case.

    Args:
      outputs: (params, inputs) -> key ("out/y", "feat_shape/stem") -> array in the reference's
        layout; evaluation mode.
      params: our path -> array, what gradients are taken of; {} for functions without parameters.
      to_ours: PyTorch-named arrays (gradients, statistics) -> our path -> array; None without
          parameters.
      train: (params, inputs) -> (outputs as above with "_train" at the end of their keys, our path
        -> running statistic after the call in PyTorch's convention); None if there is no training
        mode.
      checked: keys that the builder itself compares while building.
      tolerance: of outputs, relative to the reference's largest absolute value.
      input_of: name of a gradient of an input -> that input's name, where the two differ.
      counted: key -> mask of the values that are compared, by which both sides are multiplied, for
        gradients that libraries differ in at kinks.
    """

    outputs: Callable[[Arrays, Arrays], dict[str, jax.Array]]
    params: Arrays = field(default_factory=dict)
    to_ours: Callable[[Arrays], dict[str, np.ndarray]] | None = None
    train: Callable[[Arrays, Arrays], tuple[dict[str, jax.Array], dict[str, jax.Array]]] | None = (
        None
    )
    checked: tuple[str, ...] = ()
    tolerance: float = 1e-5
    input_of: Mapping[str, str] = field(default_factory=dict)
    counted: Arrays = field(default_factory=dict)


Builder = Callable[[Fixture], Ours]


@dataclass(frozen=True)
class Pair:
    """One array of ours beside the reference's.

    Args:
      key: name for messages.
      ours: our array.
      reference: the reference's, in our layout.
      tolerance: allowed difference, as a fraction of the reference's largest absolute value.
      floor: difference that is allowed in any case, see `gradient_floor`.
    """

    key: str
    ours: np.ndarray
    reference: np.ndarray
    tolerance: float
    floor: float = 0.0

    def problem(self) -> str | None:
        """What is wrong, or None."""
        ours, reference = np.asarray(self.ours), np.asarray(self.reference)
        if ours.shape != reference.shape:
            return f"{self.key}: shape {ours.shape}, the reference has {reference.shape}"
        if reference.dtype.kind in "iub":
            return (
                None
                if np.array_equal(ours, reference)
                else f"{self.key}: {ours}, the reference has {reference}"
            )
        difference = np.abs(ours.astype(np.float64) - reference.astype(np.float64))
        worst = difference.max(initial=0.0)
        largest = np.abs(reference).max(initial=0.0)
        if worst <= max(self.tolerance * largest, self.floor):  # false for NaN, too
            return None
        where = tuple(int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
        return (
            f"{self.key}: differs by {worst:.3g} at {where}, {worst / max(largest, 1e-300):.2g} of "
            "the largest value "
            f"{largest:.3g}; allowed {self.tolerance:.0e}, or a difference of {self.floor:.1g}"
        )


def gradient_floor(fixture: Fixture) -> float:
    """The difference below which a gradient of a case says nothing: 2^-24 sqrt(n) G.

    A gradient that is zero in exact arithmetic (the bias of keys, which a softmax cancels) consists
    of rounding alone and has no scale of its own. It is a sum of terms as large as those of the
    other gradients of the case. A sum of n float32 terms, each off by at most 2^-24 of its size and
    at random, is off by 2^-24 sqrt(n) times the root of the sum of their squares, of which G, the
    largest value in any gradient of the case, is the measure at hand; n is the number of values in
    the largest input, each of which enters every parameter's gradient. In the fixtures that is 5e-7
    to 4e-6 of G. Gradients that vanish differ by at most 0.4 of it there, and are below 7e-6 of G;
    all others are above 4e-5 of G. Only gradients a hundredth of the largest and smaller are
    compared less strictly than by `GRADIENT_TOLERANCE`.
    """
    largest = [np.abs(array).max() for array in fixture.under("grad/").values()]
    sizes = [array.size for array in fixture.under("in/").values()]
    return UNIT_ROUNDOFF * max(sizes, default=0) ** 0.5 * float(max(largest, default=0.0))


def check(fixture: Fixture, families: Mapping[str, Builder]) -> None:
    """Asserts that every array of a fixture is reproduced; the message lists all that is not."""
    if fixture.family not in families:
        raise AssertionError(
            f"no builder for the family {fixture.family!r} of {fixture.stem}; add one to "
            "tests/golden_families "
            f"(families with builders: {', '.join(sorted(families))})"
        )
    problems, compared = [], 0
    for case in fixture.cases():
        prefix = f"{case.case}/" if case.case else ""
        pairs, missing = run(case, families[fixture.family](case))
        compared += len(pairs)
        found = [problem for pair in pairs if (problem := pair.problem())]
        problems += [prefix + problem for problem in missing + found]
    if not problems and not compared:
        problems = ["the fixture holds nothing to compare"]
    if problems:
        raise AssertionError(
            f"{fixture.stem}: {len(problems)} problems\n  " + "\n  ".join(problems)
        )


def run(
    fixture: Fixture, ours: Ours, evaluate: Callable | None = None
) -> tuple[list[Pair], list[str]]:
    """Computes our side of one case.

    Args:
      fixture: the case.
      ours: what its builder made.
      evaluate: (function, *arguments) -> result; None compiles and runs, `jax.eval_shape` gives
        shapes alone. What runs once is compiled without XLA's optimisations, which would take most
        of the time.

    Returns:
      One pair per compared array, and what could not be compared.
    """
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        return _run(fixture, ours, evaluate or _compile_and_run)


def _compile_and_run(function: Callable, *arguments):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*arguments)


def _run(fixture: Fixture, ours: Ours, evaluate: Callable) -> tuple[list[Pair], list[str]]:
    inputs = {name: jax.device_put(array) for name, array in fixture.under("in/").items()}
    params = {path: jax.device_put(array) for path, array in ours.params.items()}
    # Without cotangents, the gradients are those of the sum.
    cotangents = fixture.under("cotangent/") or {
        name: np.ones_like(array) for name, array in fixture.under("out/").items()
    }
    pairs: list[Pair] = []
    read = {
        key for key in fixture.arrays if key.split("/")[0] in ("in", "param", "cotangent")
    } | set(ours.checked)

    def take(key: str, array, tolerance: float = ours.tolerance, floor: float = 0.0) -> None:
        if key in fixture.arrays:
            reference, mask = fixture.arrays[key], ours.counted.get(key)
            if mask is not None and not isinstance(array, jax.ShapeDtypeStruct):
                array, reference = array * mask, reference * mask
            pairs.append(Pair(key, array, reference, tolerance, floor))
            read.add(key)

    def take_named(prefix: str, arrays, tolerance: float, floor: float = 0.0) -> None:
        theirs = fixture.under(prefix)
        if not theirs or ours.to_ours is None:
            return
        for path, reference in ours.to_ours(theirs).items():
            pairs.append(Pair(f"{prefix}... -> {path}", arrays[path], reference, tolerance, floor))
        read.update(prefix + key for key in theirs)

    wanted_inputs, wanted_params = fixture.under("grad/in/"), fixture.under("grad/param/")
    names = {name: ours.input_of.get(name, name) for name in wanted_inputs}

    def loss(params, floating, inputs):
        outputs = ours.outputs(params, {**inputs, **floating})
        return sum(
            jnp.sum(outputs[f"out/{name}"] * cotangent) for name, cotangent in cotangents.items()
        )

    # One program, which is quicker compiled than its parts.
    def everything(params, inputs):
        found = {"outputs": ours.outputs(params, inputs)}
        if wanted_inputs or wanted_params:
            floating = {name: inputs[name] for name in names.values()}
            found["gradients"] = jax.grad(loss, (0, 1))(params, floating, inputs)
        if ours.train:
            found["train"] = ours.train(params, inputs)
        return found

    found = evaluate(everything, params, inputs)
    for key, array in found["outputs"].items():
        take(key, array)

    if "gradients" in found:
        param_grads, input_grads = found["gradients"]
        floor = gradient_floor(fixture)
        for name, own in names.items():
            take(f"grad/in/{name}", input_grads[own], GRADIENT_TOLERANCE, floor)
        take_named("grad/param/", param_grads, GRADIENT_TOLERANCE, floor)

    if "train" in found:
        outputs, statistics = found["train"]
        for key, array in outputs.items():
            take(key, array)
        take_named("after_train/", statistics, ours.tolerance)

    unread = [
        key for key in fixture.arrays if key not in read and not _excused(fixture.family, key)
    ]
    return pairs, [
        f"{key}: our module gives no such array, and it is not in NOT_PRODUCED" for key in unread
    ]


def module_case(
    fixture: Fixture,
    build: Callable[[], nnx.Module],
    rules: Iterable[Rule],
    call: Callable[[nnx.Module, Arrays], dict[str, jax.Array]],
    *,
    norm_count: int | None = None,
    weights: Arrays | None = None,
    checked: tuple[str, ...] = (),
    tolerance: float = 1e-5,
) -> Ours:
    """Our side of a fixture made by one NNX module.

    Args:
      fixture: the fixture.
      build: makes the module; only traced for its shapes, the weights all come from the fixture.
      rules: the module's name table.
      call: (module, inputs) -> outputs by key; called in both modes.
      norm_count: values per channel that batch norms average over (batch times positions), for
        fixtures with a training call.
      weights: PyTorch key -> array, where the fixture holds a rule instead of `param/*`.
      checked: as in `Ours`.
      tolerance: as in `Ours`.
    """
    rules = tuple(rules)
    model = nnx.eval_shape(build)
    _, params_like, stats_like = split_model(model)
    shapes = {
        path: leaf.shape
        for path, leaf in (flatten_names(params_like) | flatten_names(stats_like)).items()
    }
    arrays = convert(fixture.under("param/") if weights is None else weights, rules, shapes)
    stats = {path: jax.device_put(arrays.pop(path)) for path in flatten_names(stats_like)}
    graphdefs = {}
    for mode, flag in (("eval", True), ("train", False)):
        view = nnx.view(
            model, deterministic=flag, use_running_average=flag, raise_if_not_found=False
        )
        graphdefs[mode] = split_model(view)[0]

    def merged(mode, params):
        return nnx.merge(
            graphdefs[mode],
            unflatten_names(params, params_like),
            unflatten_names(stats, stats_like),
        )

    def outputs(params, inputs):
        return call(merged("eval", params), inputs)

    def train(params, inputs):
        module = merged("train", params)
        results = {f"{key}_train": value for key, value in call(module, inputs).items()}
        after = flatten_names(split_model(module)[2])
        return results, {
            path: _as_torch_statistic(path, stats[path], new, norm_count)
            for path, new in after.items()
        }

    def to_ours(torch_named):
        return convert(torch_named, rules, shapes, require_all=False)

    return Ours(outputs, arrays, to_ours, train if norm_count else None, checked, tolerance)


def _as_torch_statistic(
    path: str, before: jax.Array, after: jax.Array, count: int, momentum: float = 0.9
) -> jax.Array:
    """PyTorch adds the UNBIASED batch variance, Flax the biased one: scales the added part by n /
    (n - 1).
    """
    if not path.endswith("/var"):
        return after
    added = after - momentum * before
    return momentum * before + added * (count / (count - 1))


def _excused(family: str, key: str) -> bool:
    return any(fnmatch.fnmatch(family, f) and fnmatch.fnmatch(key, k) for f, k in NOT_PRODUCED)


def channels_last(x):
    """[b, c, *spatial] -> [b, *spatial, c]."""
    return jnp.moveaxis(x, 1, -1)


def channels_first(x):
    """[b, *spatial, c] -> [b, c, *spatial]."""
    return jnp.moveaxis(x, -1, 1)
