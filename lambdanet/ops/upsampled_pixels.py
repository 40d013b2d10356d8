"""Full-resolution cross entropy and predictions from low-resolution logits, a band of rows at a
time.

Up-sampled logits are what dominates the memory of segmentation: 150 classes at 512 x 512 are 157 MB
per image, and as much again for their gradient. Here a band of rows is up-sampled (two small matrix
products), reduced to one number per pixel, and forgotten; the backward pass makes it again.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

IGNORED = 255
"""The label of pixels that have no class."""
BAND_ELEMENTS = 2**19
"""Up-sampled logits per image that a band has at most, unless a row alone has more."""


class Pixels(NamedTuple):
    """What is known of each pixel, [b, height, width].

    Attributes:
        cross_entropy: float32, 0 where the label is `IGNORED`, NaN where it is no class.
        right: bool, whether no class has a larger logit than the labelled one; False where ignored.
    """

    cross_entropy: jax.Array
    right: jax.Array


def resize_matrix(before: int, after: int, *, align_corners: bool = False) -> np.ndarray:
    """Returns the matrix [after, before] of linear interpolation along one axis, float32: that of
    `layers.resize.resize_bilinear` and of PyTorch.
    """
    at = np.arange(after, dtype=np.float64)
    if align_corners:
        at = at * ((before - 1) / max(after - 1, 1))
    else:
        at = np.clip((at + 0.5) * before / after - 0.5, 0, before - 1)
    low = np.minimum(np.floor(at).astype(np.int64), before - 1)
    matrix, rows = np.zeros((after, before)), np.arange(after)
    matrix[rows, low] += 1 - (at - low)
    matrix[rows, np.minimum(low + 1, before - 1)] += at - low
    return matrix.astype(np.float32)


def pixel_cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Int[Array, "b height width"],
    *,
    align_corners: bool = False,
    band_rows: int = 0,
) -> Pixels:
    """Cross entropy of every pixel from logits that are up-sampled to the labels bilinearly.

    With u the up-sampled logits of a pixel and t its label: log sum exp(u) - u_t. Equals the same
    of `resize_bilinear(logits, labels.shape[1:])` in values and gradients, in float32.

    Args:
        logits: of k classes, at any size.
        labels: 0 <= label < k, or `IGNORED`.
        align_corners: see `layers.resize.resize_bilinear`.
        band_rows: rows of pixels that are up-sampled at once; 0 = by `BAND_ELEMENTS`.

    Raises:
        ValueError: shapes that do not belong together, or labels that are not integers.
    """
    _check(logits, labels)
    return _pixels(logits, labels, align_corners, band_rows)


def pixel_scores(
    logits: Float[Array, "b h w k"],
    labels: Int[Array, "b height width"],
    *,
    align_corners: bool = False,
    band_rows: int = 0,
) -> tuple[Float[Array, "b height width"], Int[Array, "b height width"]]:
    """Returns the cross entropy of every pixel, as `pixel_cross_entropy`, and the class with the
    largest up-sampled logit, int32; of equal ones the first.
    """
    _check(logits, labels)

    def band(up, label):
        return (_reduce(up, label)[0], jnp.argmax(up, -1).astype(jnp.int32))

    return _over_bands(band, logits, labels, align_corners, band_rows)


def _check(logits: jax.Array, labels: jax.Array) -> None:
    if logits.ndim != 4 or labels.ndim != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            f"pixel cross entropy: logits {logits.shape} and labels {labels.shape}; expected [b, "
            "h, w, classes] and [b, height, width]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"pixel cross entropy: labels are {labels.dtype}; expected integers")


# --------------------------------------------------------------------------------------------------
# Bands
# --------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """Where bands lie: `starts` [n] first low-resolution rows, `rows` [n, band, span] matrices that
    make a band of as many rows, `columns` [width, w].
    """

    starts: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


@functools.lru_cache(maxsize=64)
def _plan(
    before: tuple[int, int], after: tuple[int, int], classes: int, align: bool, band: int
) -> _Plan:
    height, width = after
    band = band or max(BAND_ELEMENTS // (width * classes), 1)
    count = -(-height // min(band, height))
    band = -(-height // count)
    matrix = np.zeros((count * band, before[0]), np.float32)  # rows beyond the last stay zero
    matrix[:height] = resize_matrix(before[0], height, align_corners=align)
    used = [np.flatnonzero(part.any(0)) for part in matrix.reshape(count, band, -1)]
    span = max((int(u[-1] - u[0]) + 1 for u in used if len(u)), default=1)
    starts = [min(int(u[0]) if len(u) else 0, before[0] - span) for u in used]
    parts = matrix.reshape(count, band, -1)
    rows = [part[:, s : s + span] for part, s in zip(parts, starts, strict=True)]
    columns = resize_matrix(before[1], width, align_corners=align)
    return _Plan(np.asarray(starts, np.int32), np.stack(rows), columns)


def _plan_of(logits: jax.Array, labels: jax.Array, align: bool, band: int) -> _Plan:
    return _plan(logits.shape[1:3], labels.shape[1:], logits.shape[3], align, band)


def _product(spec: str, matrix: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum(spec, matrix, x, precision=jax.lax.Precision.HIGHEST)


def _up(plan: _Plan, logits: jax.Array, start: jax.Array, rows: jax.Array) -> jax.Array:
    """A band of up-sampled logits [b, band, width, k]; columns first, while the rows are few."""
    part = jax.lax.dynamic_slice_in_dim(logits, start, plan.rows.shape[2], 1).astype(jnp.float32)
    if plan.columns.shape[0] != plan.columns.shape[1]:
        part = _product("Ww,bswk->bsWk", plan.columns, part)
    return _product("rs,bsWk->brWk", rows, part)


def _cut(plan: _Plan, array: jax.Array, fill: int) -> jax.Array:
    """[b, height, width] as bands [n, b, band, width]."""
    count, band = plan.rows.shape[:2]
    array = jnp.pad(
        array, ((0, 0), (0, count * band - array.shape[1]), (0, 0)), constant_values=fill
    )
    return array.reshape(array.shape[0], count, band, -1).swapaxes(0, 1)


def _join(bands: jax.Array, height: int) -> jax.Array:
    """Inverse of `_cut`."""
    _, batch, _, width = bands.shape
    return bands.swapaxes(0, 1).reshape(batch, -1, width)[:, :height]


def _over_bands(band, logits, labels, align: bool, band_rows: int):
    plan = _plan_of(logits, labels, align, band_rows)

    def body(_, given):
        start, rows, label = given
        return None, band(_up(plan, logits, start, rows), label)

    _, found = jax.lax.scan(body, None, (plan.starts, plan.rows, _cut(plan, labels, IGNORED)))
    return jax.tree.map(lambda a: _join(a, labels.shape[1]), found)


def _reduce(up: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns cross entropy, log sum exp and `right` of a band."""
    classes = up.shape[-1]
    largest = up.max(-1)
    total = largest + jnp.log(jnp.exp(up - largest[..., None]).sum(-1))
    own = jnp.where(label[..., None] == jnp.arange(classes), up, 0.0).sum(-1)
    valid = label != IGNORED
    known = (label >= 0) & (label < classes)
    value = jnp.where(valid, jnp.where(known, total - own, math.nan), 0.0)
    return value, total, valid & (own >= largest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pixels(logits: jax.Array, labels: jax.Array, align: bool, band_rows: int) -> Pixels:
    return _forward(logits, labels, align, band_rows)[0]


def _forward(logits, labels, align, band_rows):
    value, total, right = _over_bands(_reduce, logits, labels, align, band_rows)
    return Pixels(value, right), (logits, labels, total)


def _backward(align, band_rows, kept, cotangents):
    logits, labels, total = kept
    plan = _plan_of(logits, labels, align, band_rows)
    classes, span = logits.shape[3], plan.rows.shape[2]
    weight = jnp.where(labels == IGNORED, 0.0, cotangents.cross_entropy)

    def body(gradient, given):
        start, rows, label, total, weight = given
        up = _up(plan, logits, start, rows)
        up = jnp.exp(up - total[..., None]) - (label[..., None] == jnp.arange(classes))
        part = _product("rs,brWk->bsWk", rows, up * weight[..., None])
        if plan.columns.shape[0] != plan.columns.shape[1]:
            part = _product("Ww,bsWk->bswk", plan.columns, part)
        part += jax.lax.dynamic_slice_in_dim(gradient, start, span, 1)
        return jax.lax.dynamic_update_slice_in_dim(gradient, part, start, 1), None

    bands = [_cut(plan, a, f) for a, f in ((labels, IGNORED), (total, 0), (weight, 0))]
    zeros = jnp.zeros(logits.shape, jnp.float32)
    gradient, _ = jax.lax.scan(body, zeros, (plan.starts, plan.rows, *bands))
    return gradient.astype(logits.dtype), None


_pixels.defvjp(_forward, _backward)


def class_counts(
    labels: Int[Array, "b height width"], predictions: Int[Array, "b height width"], classes: int
) -> Int[Array, "b k k"]:
    """Counts the pixels of each (true class, predicted class) in each image, int32; pixels whose
    label is no class are left out.
    """
    valid = (labels >= 0) & (labels < classes)
    index = jnp.where(valid, labels * classes + predictions, classes**2)  # dropped beyond the end

    def one(index):
        return jnp.zeros(classes**2, jnp.int32).at[index.ravel()].add(1, mode="drop")

    return jax.vmap(one)(index).reshape(len(labels), classes, classes)
