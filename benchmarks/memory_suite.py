"""Suite `memory`: temporary memory of every attention block on growing maps, beside the formula of
its largest intermediate.

Nothing is executed and no array is made: each block is lowered for shapes and compiled, and the
compiler says how many bytes the program needs beside its inputs and outputs. `fwd` is the
evaluation view, `train` the training view with the gradients of all parameters and of the input for
a given gradient of the output. Batch 1, float32.

On CPU the program is compiled without library fusions: into those XLA packs whole attentions, and
the memory that the library then takes by itself is in no account (0 bytes for an n x n softmax).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.harness import Case, Prepared
from configs import attention_zoo
from lambdanet.attention import create_attention
from lambdanet.training import state

SIDES, DIM = (32, 64, 128), 256

OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "lambda": lambda side: dict(scope=7),
    # Cells of sqrt(n) positions, which gives the fewest weights; `side` is a power of two.
    "interlaced": lambda side: dict(
        group_size=(2 ** (side.bit_length() // 2), side // 2 ** (side.bit_length() // 2))
    ),
}
"""Options by block, as a function of the map's side, where the defaults are not meant for maps of
all sizes.
"""

FORMULAS: dict[str, tuple[str, Callable[[Any, int], float]]] = {
    "lambda": ("n c", lambda block, n: n * block.dim),
    "mhsa": ("n c (heads n^2 in blocks)", lambda block, n: n * block.dim),
    "bottleneck_attention": ("n c (heads n^2 in blocks)", lambda block, n: n * block.dim),
    "halo_attention": (
        "heads n window^2",
        lambda block, n: block.num_heads * n * block.window_size**2,
    ),
    "slide": ("n c", lambda block, n: n * block.dim),
    "window": (
        "heads n window^2",
        lambda block, n: block.num_heads * n * math.prod(block.window_size),
    ),
    "neighborhood": (
        "heads n k^2",
        lambda block, n: block.num_heads * n * math.prod(block.kernel_size),
    ),
    "cross_shaped_window": ("n c (heads n^1.5 stripe in blocks)", lambda block, n: n * block.dim),
    "spatial_reduction": ("n c (heads n^2 / r^2 in blocks)", lambda block, n: n * block.dim),
    "linformer": ("heads n slots", lambda block, n: block.num_heads * n * block.num_projected),
    "nonlocal": ("n c (n^2 / 4 in blocks)", lambda block, n: n * block.dim),
    "nonlocal_gaussian": ("n c (n^2 / 4 in blocks)", lambda block, n: n * block.dim),
    "nonlocal_dot": ("n c", lambda block, n: n * block.dim),
    "nonlocal_concatenation": ("n c", lambda block, n: n * block.dim),
    "cgnl": ("n c", lambda block, n: n * block.dim),
    "cgnlx": ("n c", lambda block, n: n * block.dim),
    "double_attention": (
        "n (features + 2 descriptors)",
        lambda b, n: n * (b.feature_dim + 2 * b.num_descriptors),
    ),
    "criss_cross": ("2 n^1.5 = n (h + w)", lambda block, n: 2 * n**1.5),
    "rcca": ("2 n^1.5 = n (h + w)", lambda block, n: 2 * n**1.5),
    "interlaced": ("2 n^1.5 = n (cells + cell)", lambda block, n: 2 * n**1.5),
    "position_attention": ("n c (n^2 in blocks)", lambda block, n: n * block.dim),
    "channel_attention": ("n c", lambda block, n: n * block.dim),
    "object_context": ("n c (n^2 in blocks)", lambda block, n: n * block.dim),
    "pyramid_object_context": ("n c (n^2 in blocks)", lambda block, n: n * block.dim),
    "asp_object_context": ("n c (n^2 / 16 in blocks)", lambda block, n: n * block.dim),
    "gc": ("n", lambda block, n: n),
    "cbam": ("2 n", lambda block, n: 2 * n),
    "se": ("c", lambda block, n: block.dim),
}
"""By variant: elements of the largest intermediate, in words and as a function of the block and of
n positions (square).
"""


def cases(sides: Sequence[int] = SIDES, dim: int = DIM) -> list[Case]:
    """Returns two cases per variant of the attention zoo; new blocks are among them."""
    return [
        Case(
            "memory",
            name,
            direction,
            "xla",
            functools.partial(prepare, name, spec, direction, sides, dim),
        )
        for name, spec in attention_zoo.variants().items()
        if spec is not None
        for direction in ("fwd", "train")
    ]


def prepare(
    name: str, spec: Mapping[str, Any], direction: str, sides: Sequence[int] = SIDES, dim: int = DIM
) -> Prepared:
    """Compiles a block for each side; the facts are the bytes, the formula's bytes and the growth
    between the last two.

    Args:
        name: the variant, which `FORMULAS` may know.
        spec: its name and options.
        direction: 'fwd' or 'train'.
        sides: of square maps, rising.
        dim: channels.
    """
    try:
        measured = {
            side: temporary_bytes(options_at(spec, side), direction, side, dim) for side in sides
        }
    except ValueError as error:  # a block may refuse a size
        return Prepared(None, lambda: None, facts={"error": str(error)})
    text, elements = FORMULAS.get(name, ("(none given)", None))
    facts: dict[str, Any] = {
        "channels": dim,
        "sides": list(sides),
        "bytes": list(measured.values()),
    }
    facts |= {"growth": growth(list(measured.items())), "formula": text}
    if elements is not None:
        expected = {
            side: elements(abstract_block(options_at(spec, side), side, dim), side * side)
            for side in sides
        }
        facts["formula_bytes"] = [4 * math.ceil(count) for count in expected.values()]
        facts["formula_growth"] = growth(list(expected.items()))
    return Prepared(None, lambda: None, facts=facts)


def options_at(spec: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Returns the spec with the options of `OPTIONS` for this map, unless it sets them itself."""
    return {**OPTIONS.get(spec["name"], lambda side: {})(side), **spec}


def growth(measured: Sequence[tuple[int, float]]) -> float:
    """Returns p of bytes ~ n^p, n the number of positions, between the last two of some pairs (side
    of the map, bytes).
    """
    (side, less), (larger, more) = measured[-2:]
    return math.log(max(more, 1) / max(less, 1)) / (2 * math.log(larger / side))


def abstract_block(spec: Mapping[str, Any], side: int, dim: int) -> nnx.Module:
    """Returns the block without arrays."""
    return nnx.eval_shape(lambda: create_attention(spec, dim, size=(side, side), rngs=nnx.Rngs(0)))


def temporary_bytes(spec: Mapping[str, Any], direction: str, side: int, dim: int) -> int:
    """Returns the bytes that the compiled block needs beside inputs and outputs, for one map [1,
    side, side, dim].
    """
    function, operands = program(spec, direction, side, dim)
    compiled = jax.jit(function).lower(*operands).compile(without_fusions())
    return compiled.memory_analysis().temp_size_in_bytes


def without_fusions() -> dict[str, str] | None:
    """Returns the compiler's options under which no memory is left out of its account."""
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if jax.default_backend() == "cpu" else None


def program(
    spec: Mapping[str, Any], direction: str, side: int, dim: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns a function of a block and its operands, without arrays: parameters, statistics, one
    map [1, side, side, dim].

    `fwd` gives the output; `train` takes the gradient of the output, too, and gives the output, the
    new statistics and the gradients of the parameters and of the map.
    """

    def build():
        return create_attention(spec, dim, size=(side, side), rngs=nnx.Rngs(0))

    training, evaluation = state.views(build)
    params, stats = state.abstract_weights(build)
    x = jax.ShapeDtypeStruct((1, side, side, dim), jnp.float32)

    def forward(params, stats, x):
        return nnx.merge(evaluation, params, stats)(x)

    def train(params, stats, x, cotangent):
        def run(params, x):
            block = nnx.merge(training, params, stats)
            y = block(x, rngs=nnx.Rngs(dropout=0))
            return y, nnx.to_pure_dict(nnx.state(block, nnx.BatchStat))

        y, pullback, stats = jax.vjp(run, params, x, has_aux=True)
        return y, stats, pullback(cotangent)

    return (forward, (params, stats, x)) if direction == "fwd" else (train, (params, stats, x, x))
