"""Fused position term of a local lambda layer for NVIDIA GPUs from Hopper on (Pallas, Mosaic GPU).

Status: experimental. Values and gradients are equal to those of the other lowerings in Pallas'
interpret mode, and the kernels lower to Mosaic GPU modules; both are tested. None of them has run
on a GPU, and no time is known: `python -m benchmarks gpu` checks and times them on one. Only `impl
'fused'` of the lambda layer takes it, 'auto' never does.

    y[b, n, h, :] = sum_{t, u} (q[b, n, h, :] . E[t, u, :]) v[b, n + t, u, :]

Attention order, tap by tap: neither the position lambdas (n k v numbers per image) nor the logits
(n h taps) are written to memory. No softmax couples the taps, so there is no running maximum, and
the backward pass saves only the inputs.

One program is one warpgroup and owns a tile of queries. It keeps their vectors and its sums in
registers, in float32, walks over the taps and multiplies each logit with the window of values that
this tap sees: a tile of the padded map, moved by the offset of the tap. The skew from taps to keys
is thus the address of a window, no data moves for it. All windows together are the tile and its
halo, read through the L1 cache. No two programs write the same number:

    y   one program per tile of queries and block of value depth
    dq  the same programs: dL[t] = dy . v, dq += dL[t] E[t]; and dE[t] = the sum of dL[t] q over the
        tile, written per program and added up afterwards
    dv  one program per tile of keys: windows of q and dy that move the other way, logits computed
    again

so there are no atomic additions, and gradients repeat bit by bit.

The products run on the float32 units. A tensor core multiplies 64 rows that share their keys; the
windows of 64 queries differ, so attention order would need the logits of each row shifted by its
own amount in between, for which Pallas has no memory reference, and a table with the shifts written
out multiplies the work by the number of different shifts.

Array layouts and letters as in `lambdanet.ops.position_lambda`, for maps with two axes and
dilation 1.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

# tiles are multiples of 8 x 8: the four warps of a warpgroup take two rows each, lanes run along
# the columns
SIDE = 8
DEPTH = (
    16  # channels are padded to multiples of 16: four lanes with four neighbouring channels each
)
# heads * value depth that one program keeps per query of an 8 x 8 tile: 128 registers per thread
VALUES_PER_PROGRAM = 256

# [rows, columns, channels] over the 128 threads of a warpgroup, as the two constants above say.
_TILED = plgpu.Layout.TILED(
    plgpu.Tiling(((SIDE, SIDE, DEPTH), (2, SIDE, DEPTH), (4,))),
    warp_dims=(-7,),
    lane_dims=(-3, -2),
    vector_dim=-1,
)

_LOAD_TAKES_INDEX = (
    "idx" in inspect.signature(plgpu.load).parameters
)  # until JAX 0.10; later it is a reference's `.at`


def fused_position_term(
    q: Float[Array, "b y x h k"],
    v: Float[Array, "b y x u v"],
    table: Float[Array, "r s u k"],
    *,
    tile: tuple[int, int] = (8, 8),
    interpret: bool = False,
) -> Float[Array, "b y x h v"]:
    """Applies the position lambdas of a relative table to the queries of a two-dimensional map in
    one kernel.

    Equal to `position_lambda.position_term` with dilation 1, up to rounding; products and sums are
    float32 whatever the dtype of the inputs. Temporary memory is linear in the number of pixels;
    most of it is one float32 table of partial gradients per tile in the backward pass. Not measured
    on any GPU.

    Args:
        q: queries, bfloat16 or float32 (float64 in interpret mode).
        v: values, in the dtype of `q`.
        table: relative embeddings, an odd number of taps per axis. Taps that the map cannot reach
            (`relative_table.clip_table`) cost time and change nothing.
        tile: rows and columns of queries per program, multiples of 8. Maps are padded to whole
            tiles.
        interpret: runs the kernels in Pallas' interpret mode, on any backend; for tests.

    Returns:
        The position part of the layer's output, in the dtype of `q`.

    Raises:
        ValueError: not a GPU from Hopper on, a map that is not two-dimensional, even taps, shapes
            or dtypes that do not belong together, or a tile that the layout of threads does not
            fit.
    """
    if v.ndim != 5 or q.ndim != 5 or table.ndim != 4:
        raise ValueError(
            "impl 'fused' takes maps with two axes: q [b, y, x, h, k], v [b, y, x, u, v], table "
            "[r, s, u, k]; "
            f"got shapes {q.shape}, {v.shape}, {table.shape}. Take impl 'auto' for maps with one "
            "or three axes"
        )
    if q.shape[:3] != v.shape[:3] or table.shape[2:] != (v.shape[-2], q.shape[-1]):
        raise ValueError(
            f"q {q.shape}, v {v.shape} and table {table.shape} do not belong together: q and v "
            "need the same batch and "
            f"map, the table two tap axes, then u={v.shape[-2]}, k={q.shape[-1]}"
        )
    if any(r % 2 == 0 for r in table.shape[:2]):
        raise ValueError(
            f"table has {table.shape[:2]} taps per axis; each must be odd, so that one tap is the "
            "centre"
        )
    if len(tile) != 2 or any(side < SIDE or side % SIDE for side in tile):
        raise ValueError(f"tile is {tile}; both sides must be multiples of {SIDE}")
    allowed = ("bfloat16", "float32", "float64") if interpret else ("bfloat16", "float32")
    if q.dtype != v.dtype or q.dtype.name not in allowed:
        raise ValueError(
            f"q is {q.dtype}, v is {v.dtype}; both must be the same of {', '.join(allowed)}"
        )
    if not interpret:
        _require_hopper()
    return _term(q, v, table, tuple(tile), interpret)


def _require_hopper() -> None:
    backend = jax.default_backend()
    advice = "take impl 'auto', which runs on every backend"
    if backend != "gpu":
        raise ValueError(
            f"impl 'fused' is a kernel for NVIDIA GPUs from Hopper on, the backend is {backend!r}; "
            f"{advice}"
        )
    capability = str(jax.devices()[0].compute_capability)
    major = capability.partition(".")[0]
    if not major.isdecimal() or int(major) < 9:
        raise ValueError(
            "impl 'fused' needs an NVIDIA GPU of compute capability 9.0 or newer, this one has "
            f"{capability!r}; {advice}"
        )


# --------------------------------------------------------------------------------------------------
# Values and gradients on whole arrays


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _term(q, v, table, tile, interpret):
    """q [b, y, x, h, k], v [b, y, x, u, v], table [r, s, u, k] -> [b, y, x, h, v]"""
    plan = _Plan(q, v, table, tile, interpret)
    operands = (
        plan.pad(q, plan.key_depth),
        plan.pad(v, plan.value_depth, halo=True),
        plan.pad_table(table),
    )
    y = plan.run(
        _forward,
        operands,
        jax.ShapeDtypeStruct((*plan.padded, plan.heads, plan.value_depth), q.dtype),
    )
    return plan.crop(y, v.shape[-1])


def _term_forward(q, v, table, tile, interpret):
    return _term(q, v, table, tile, interpret), (q, v, table)


def _term_backward(tile, interpret, saved, dy):
    q, v, table = saved
    plan = _Plan(q, v, table, tile, interpret)
    embeddings = plan.pad_table(table)
    dq, dtable = plan.run(
        _query_gradients,
        (
            plan.pad(q, plan.key_depth),
            plan.pad(v, plan.value_depth, halo=True),
            embeddings,
            plan.pad(dy, plan.value_depth),
        ),
        (
            jax.ShapeDtypeStruct(
                (plan.blocks, *plan.padded, plan.heads, plan.key_depth), plan.wide
            ),
            jax.ShapeDtypeStruct((plan.programs, *embeddings.shape), plan.wide),
        ),
    )
    dv = plan.run(
        _value_gradients,
        (
            plan.pad(q, plan.key_depth, halo=True),
            embeddings,
            plan.pad(dy, plan.value_depth, halo=True),
        ),
        jax.ShapeDtypeStruct((*plan.padded, v.shape[-2], plan.value_depth), v.dtype),
    )
    dq = plan.crop(dq.sum(0), q.shape[-1]).astype(q.dtype)
    dtable = jnp.moveaxis(dtable.sum(0), 0, 2)[..., : table.shape[-1]].astype(table.dtype)
    return dq, plan.crop(dv, v.shape[-1]), dtable


_term.defvjp(_term_forward, _term_backward)


# --------------------------------------------------------------------------------------------------
# Kernels: one call is one program


def _forward(plan, program, q_ref, v_ref, table_ref, y_ref):
    image, row, column, block = plan.place(program)
    depth = pl.ds(block * plan.block, plan.block)
    queries = [plan.window(q_ref, image, row, column, h) for h in range(plan.heads)]

    def tap(sums, plane, i, j):
        embedding = plan.embedding(table_ref, plane, i, j)
        values = plan.window(v_ref, image, row + i, column + j, plane, depth)
        logits = [plan.inner(query, embedding) for query in queries]
        return [
            s + plan.along_channels(a, plan.block) * values
            for s, a in zip(sums, logits, strict=True)
        ]

    sums = [plan.zeros(plan.block)] * plan.heads
    for plane in range(plan.planes):
        sums = plan.over_taps(functools.partial(tap, plane=plane), sums)
    for h, total in enumerate(sums):
        plan.write(y_ref, (image, *plan.tile_at(row, column), h, depth), total.astype(y_ref.dtype))


def _query_gradients(plan, program, q_ref, v_ref, table_ref, dy_ref, dq_ref, dtable_ref):
    image, row, column, block = plan.place(program)
    depth = pl.ds(block * plan.block, plan.block)
    queries = [plan.window(q_ref, image, row, column, h) for h in range(plan.heads)]
    outer = [plan.window(dy_ref, image, row, column, h, depth) for h in range(plan.heads)]

    def tap(sums, plane, i, j):
        embedding = plan.embedding(table_ref, plane, i, j)
        values = plan.window(v_ref, image, row + i, column + j, plane, depth)
        slopes = [
            plan.along_channels(plan.inner(dy, values), plan.key_depth) for dy in outer
        ]  # d y . dy / d logit
        products = sum(slope * query for slope, query in zip(slopes, queries, strict=True))
        # Lanes first, then the warps through shared memory.
        plan.write(
            dtable_ref,
            (program, plane, i, j, slice(None)),
            jnp.sum(jnp.sum(products, axis=1), axis=0),
        )
        return [s + slope * embedding for s, slope in zip(sums, slopes, strict=True)]

    sums = [plan.zeros(plan.key_depth)] * plan.heads
    for plane in range(plan.planes):
        sums = plan.over_taps(functools.partial(tap, plane=plane), sums)
    for h, total in enumerate(sums):
        plan.write(dq_ref, (block, image, *plan.tile_at(row, column), h, slice(None)), total)


def _value_gradients(plan, program, q_ref, table_ref, dy_ref, dv_ref):
    image, row, column, block = plan.place(program)
    depth = pl.ds(block * plan.block, plan.block)
    last_i, last_j = plan.taps[0] - 1, plan.taps[1] - 1

    for plane in range(plan.planes):

        def tap(total, i, j, plane=plane):
            embedding = plan.embedding(table_ref, plane, i, j)
            for h in range(
                plan.heads
            ):  # the query that sees this key through tap i is reach - i rows further on
                at = (image, row + last_i - i, column + last_j - j, h)
                logits = plan.inner(plan.window(q_ref, *at), embedding)
                total += plan.along_channels(logits, plan.block) * plan.window(dy_ref, *at, depth)
            return total

        total = plan.over_taps(tap, plan.zeros(plan.block))
        plan.write(
            dv_ref, (image, *plan.tile_at(row, column), plane, depth), total.astype(dv_ref.dtype)
        )


def _divide(a: jax.Array, b: int) -> tuple[jax.Array, jax.Array]:
    """Quotient and remainder."""
    return lax.div(a, np.int32(b)), lax.rem(a, np.int32(b))


class _Plan:
    """Static sizes of one call, the padding to whole tiles, and how a program reads, writes and
    multiplies.
    """

    def __init__(
        self, q: jax.Array, v: jax.Array, table: jax.Array, tile: tuple[int, int], interpret: bool
    ):
        self.interpret = interpret
        self.tile = tile
        self.taps = table.shape[:2]
        self.planes, self.heads = v.shape[-2], q.shape[-2]
        self.wide = jnp.promote_types(q.dtype, jnp.float32)  # dtype of products and sums
        self.shape = v.shape[1:3]
        self.tiles = tuple(-(-size // side) for size, side in zip(self.shape, tile, strict=True))
        self.padded = (
            v.shape[0],
            *(count * side for count, side in zip(self.tiles, tile, strict=True)),
        )
        self.key_depth = -(-q.shape[-1] // DEPTH) * DEPTH
        groups = -(-v.shape[-1] // DEPTH)
        room = VALUES_PER_PROGRAM * SIDE * SIDE // (tile[0] * tile[1] * self.heads * DEPTH)
        self.blocks = -(-groups // max(1, room))
        self.block = -(-groups // self.blocks) * DEPTH  # value depth of one program
        self.value_depth = self.blocks * self.block
        self.programs = math.prod((v.shape[0], *self.tiles, self.blocks))

    def pad(self, a: jax.Array, channels: int, *, halo: bool = False) -> jax.Array:
        """[b, y, x, ., c] -> whole tiles and `channels` channels; with `halo` also the reach of the
        taps around them.
        """
        reach = [(r - 1) // 2 if halo else 0 for r in self.taps]
        around = [
            (m, p - s + m) for m, p, s in zip(reach, self.padded[1:], self.shape, strict=True)
        ]
        return jnp.pad(a, [(0, 0), *around, (0, 0), (0, channels - a.shape[-1])])

    def pad_table(self, table: jax.Array) -> jax.Array:
        """[r, s, u, k] -> [u, r, s, key depth] in the dtype of the sums."""
        table = jnp.moveaxis(table, 2, 0).astype(self.wide)
        return jnp.pad(table, [(0, 0)] * 3 + [(0, self.key_depth - table.shape[-1])])

    def crop(self, a: jax.Array, channels: int) -> jax.Array:
        return a[:, : self.shape[0], : self.shape[1], :, :channels]

    def run(self, kernel: Callable, operands: Sequence[jax.Array], out: Any) -> Any:
        """Runs all programs of a kernel; interpret mode knows no mesh of plgpu.kernel, so it takes
        the plain call.
        """
        if self.interpret:
            return pl.pallas_call(
                lambda *refs: kernel(self, pl.program_id(0), *refs),
                out_shape=out,
                grid=(self.programs,),
                interpret=True,
            )(*operands)

        def body(*refs):
            kernel(self, lax.axis_index("program"), *refs)

        body.__name__ = kernel.__name__.strip("_")
        return plgpu.kernel(body, out_type=out, grid=(self.programs,), grid_names=("program",))(
            *operands
        )

    def place(self, program: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Image, first row, first column and block of value depth; programs of one tile are
        neighbours.
        """
        rest, block = _divide(program, self.blocks)
        rest, column = _divide(rest, self.tiles[1])
        image, row = _divide(rest, self.tiles[0])
        return image, row * self.tile[0], column * self.tile[1], block

    def over_taps(self, tap: Callable, sums: Any) -> Any:
        """Calls sums = tap(sums, i=row, j=column) for every tap in order."""

        rows, columns = (
            np.int32(r) for r in self.taps
        )  # or they are int64 with 64-bit types switched on

        def over_columns(i, sums):
            return lax.fori_loop(np.int32(0), columns, lambda j, sums: tap(sums, i=i, j=j), sums)

        return lax.fori_loop(np.int32(0), rows, over_columns, sums)

    def tile_at(self, row, column) -> tuple:
        return pl.ds(row, self.tile[0]), pl.ds(column, self.tile[1])

    def window(self, ref, image, row, column, plane, depth=slice(None)) -> jax.Array:
        """[rows, columns, depth] of an array [b, y, x, ., c], in the dtype of the sums."""
        return self.read(ref, (image, *self.tile_at(row, column), plane, depth), _TILED).astype(
            self.wide
        )

    def embedding(self, ref, plane, i, j) -> jax.Array:
        """One embedding, repeated for every query of the tile: [rows, columns, key depth]."""
        found = self.read(ref, (plane, i, j, slice(None)), _TILED.reduce((0, 1)))
        return self.laid_out(lax.broadcast_in_dim(found, (*self.tile, self.key_depth), (2,)))

    def inner(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=-1)

    def along_channels(self, a: jax.Array, depth: int) -> jax.Array:
        return self.laid_out(lax.broadcast_in_dim(a, (*self.tile, depth), (0, 1)))

    def zeros(self, depth: int) -> jax.Array:
        return self.laid_out(jnp.zeros((*self.tile, depth), self.wide))

    def laid_out(self, a: jax.Array) -> jax.Array:
        return a if self.interpret else plgpu.layout_cast(a, _TILED)

    def read(self, ref, index: tuple, layout) -> jax.Array:
        if self.interpret:
            return ref[index]
        # 'optimized' asks for whole cache lines, which windows that start anywhere cannot promise.
        if _LOAD_TAKES_INDEX:
            return plgpu.load(ref, index, layout=layout, optimized=False)
        return plgpu.load(ref.at[index], layout=layout, optimized=False)

    def write(self, ref, index: tuple, value: jax.Array) -> None:
        if not self.interpret and hasattr(plgpu, "store"):
            plgpu.store(ref.at[index], value, optimized=False)
        else:
            ref[index] = value
