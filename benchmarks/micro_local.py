"""Part of suite `micro`: Slide attention and plain local attention after their projections, forward
and forward + backward.

Beside every lowering of ours: PyTorch, where it is installed. Slide attention there has two forms,
'two_paths' (as its training code runs) and 'merged' (one depthwise convolution); local attention is
'unfold'. Ours gets the learned kernel and the shift apart, too, and adds them inside the program,
as the module does.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import torch_local
from benchmarks.harness import Case, Prepared
from lambdanet.ops import neighborhood, slide_mix

HEAD_DIM = 32
# (batch, map side, heads, window): the maps of the first two stages of a hierarchical Transformer
# at 224.
SLIDE_SHAPES = ((4, 56, 3, 3), (4, 28, 6, 3), (2, 56, 3, 5))
LOCAL_SHAPES = ((4, 56, 3, 3), (2, 56, 3, 7), (4, 28, 6, 7))
TOLERANCE = 1e-4  # relative, float32
LITERAL = {
    "slide": "im2col",
    "local": "shift",
}  # the lowering nearest to the definition, against which all are checked


def cases() -> list[Case]:
    """Returns one case per shape, direction and candidate."""
    found = []
    for kind, shapes, impls, forms in (
        ("slide", SLIDE_SHAPES, slide_mix.IMPLS, ("two_paths", "merged")),
        ("local", LOCAL_SHAPES, neighborhood.LOWERINGS, ("unfold",)),
    ):
        for shape in shapes:
            name = "{0}_{1}x{1}_h{2}_k{3}".format(kind, *shape[1:])
            for direction in ("fwd", "train"):
                given = kind, shape, direction
                for impl in impls:
                    if not _hopeless(impl, direction):
                        found.append(
                            Case(
                                "micro",
                                name,
                                direction,
                                impl,
                                functools.partial(prepare, *given, impl),
                            )
                        )
                if importlib.util.find_spec("torch"):
                    for form in forms:
                        torch = functools.partial(prepare_torch, *given, form)
                        found.append(Case("micro", name, direction, form, torch, framework="torch"))
    return found


def _hopeless(impl: str, direction: str) -> bool:
    """The kernel gradient of XLA's depthwise convolution takes seconds on CPU: no use in waiting
    for it.
    """
    return impl == "conv" and direction == "train" and jax.default_backend() == "cpu"


def slide(
    q, k, v, learned, fixed_bias, learned_bias, position_bias, *, window: int, impl: str
) -> jax.Array:
    """The core of Slide attention as the module calls it: both kernels and both biases are added
    first.
    """
    shifts = jnp.asarray(slide_mix.shift_weight(window), learned.dtype)
    kernel, bias = shifts + learned, fixed_bias + learned_bias
    shared = dict(
        key_weight=kernel,
        value_weight=kernel,
        key_bias=bias,
        value_bias=bias,
        position_bias=position_bias,
    )
    return slide_mix.slide_mix(q, k, v, **shared, impl=impl)[0]


def local(q, k, v, *, window: int, impl: str) -> jax.Array:
    """Plain local attention, keys and values zero outside the map."""
    options = dict(kernel_size=(window, window), border="zero", scale=1.0)
    return neighborhood.neighborhood_attention(q, k, v, **options, impl=impl)[0]


FUNCTIONS: dict[str, Callable[..., jax.Array]] = {"slide": slide, "local": local}


@functools.lru_cache(maxsize=1)
def _problem(
    kind: str, shape: Sequence[int]
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """Returns the operands, the gradient of the output, and what every candidate has to find."""
    given = operands(kind, shape)
    cotangent = np.random.default_rng(1).normal(size=given["q"].shape).astype(np.float32)
    found = _program(kind, shape[3], "train", LITERAL[kind])(given, cotangent)
    return given, cotangent, {name: np.asarray(array) for name, array in found.items()}


def operands(kind: str, shape: Sequence[int]) -> dict[str, np.ndarray]:
    """Draws the arrays of a core for (batch, side of the map, heads, window)."""
    batch, side, heads, window = shape
    rng, slots = np.random.default_rng(0), window**2
    q, k, v = rng.normal(size=(3, batch, side, side, heads, HEAD_DIM)).astype(np.float32)
    arrays = dict(q=q * HEAD_DIM**-0.5, k=k, v=v)
    if kind == "slide":
        parts = dict(
            learned=(window, window, HEAD_DIM, slots),
            fixed_bias=(HEAD_DIM, slots),
            learned_bias=(HEAD_DIM, slots),
        )
        for name, size in parts.items():
            arrays[name] = rng.uniform(-1 / window, 1 / window, size).astype(np.float32)
        arrays["position_bias"] = rng.normal(scale=0.1, size=(heads, slots)).astype(np.float32)
    return arrays


def _program(
    kind: str, window: int, direction: str, impl: str
) -> Callable[..., dict[str, jax.Array]]:
    """Jitted: operands and gradient of the output -> the output 'y' and, for direction 'train', all
    gradients.
    """
    function = functools.partial(FUNCTIONS[kind], window=window, impl=impl)

    def train(operands, cotangent):
        y, pullback = jax.vjp(lambda operands: function(**operands), operands)
        return {"y": y, **pullback(cotangent)[0]}

    return jax.jit(
        train if direction == "train" else lambda operands, cotangent: {"y": function(**operands)}
    )


def prepare(kind: str, shape: Sequence[int], direction: str, impl: str) -> Prepared:
    """Compiles one lowering for one shape."""
    given, cotangent, expected = _problem(kind, tuple(shape))
    arrays = jax.tree.map(jnp.asarray, (given, cotangent))
    compiled = _program(kind, shape[3], direction, impl).lower(*arrays).compile()
    return Prepared(
        lambda: (jax.block_until_ready(compiled(*arrays)), None)[1],
        lambda: _compare(compiled(*arrays), expected),
        temp_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        **_work(kind, shape, direction),
    )


def prepare_torch(kind: str, shape: Sequence[int], direction: str, form: str) -> Prepared:
    """One of PyTorch's forms for one shape."""
    given, cotangent, expected = _problem(kind, tuple(shape))
    unfold = functools.partial(torch_local.local_unfold, window=shape[3])
    forms = {
        "two_paths": torch_local.slide_paths,
        "merged": torch_local.slide_merged,
        "unfold": unfold,
    }
    run = torch_local.runner(forms[form], given, cotangent, direction)
    return Prepared(
        lambda: (run(), None)[1],
        lambda: _compare(
            run(), {name: torch_local.layout(name, array) for name, array in expected.items()}
        ),
        **_work(kind, shape, direction),
    )


def _compare(found: Mapping[str, object], expected: Mapping[str, np.ndarray]):
    for name, array in found.items():
        error = np.abs(np.asarray(array) - expected[name]).max() / np.abs(expected[name]).max()
        assert error < TOLERANCE, (
            f"{'output' if name == 'y' else 'gradient of ' + name} is off by {error:.1e}"
        )


def _work(kind: str, shape: Sequence[int], direction: str) -> dict[str, float]:
    """Operations of the formula (of the merged one, for Slide attention), and bytes of q, k, v, y
    and their gradients.
    """
    batch, side, heads, window = shape
    elements = batch * side**2 * heads * HEAD_DIM
    macs = elements * 2 * (window**2 + (window**4 if kind == "slide" else 0))
    return dict(
        flops=2.0 * macs * (1 if direction == "fwd" else 3),
        bytes=4.0 * 4 * elements * (1 if direction == "fwd" else 2),
    )
