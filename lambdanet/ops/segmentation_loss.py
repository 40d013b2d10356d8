"""Cross entropy over the pixels of a batch: means, class weights, online hard example mining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lambdanet.ops.upsampled_pixels import IGNORED, pixel_cross_entropy, resize_matrix

MEANS = ("valid", "all")
OHEMS = ("none", "ccnet", "ocnet", "mmseg")
_ZOOM = 8  # of CCNet's search
_TINY = np.finfo(np.float32).tiny


class SegmentationLoss(NamedTuple):
    """A mean over pixels.

    Attributes:
        value: the loss; 0 where no pixel counts.
        weight: what the sum was divided by without mining: the weight of a micro-batch.
        right: labelled pixels for whose class no logit is larger.
        valid: labelled pixels.
    """

    value: jax.Array
    weight: jax.Array
    right: jax.Array
    valid: jax.Array


def segmentation_loss(
    logits: Float[Array, "b h w k"],
    labels: Int[Array, "b height width"],
    *,
    mean: str = "valid",
    class_weights: Sequence[float] = (),
    ohem: str = "none",
    threshold: float = 0.7,
    min_kept: int = 100_000,
    align_corners: bool = False,
    band_rows: int = 0,
) -> SegmentationLoss:
    """Returns the mean cross entropy of logits that are up-sampled to the labels, in float32.

    With l the cross entropy of a pixel and w the weight of its class: sum(w l) / sum(w) over the
    labelled pixels (PyTorch's mean); with `mean='all'` ignored pixels count as well, with l = 0 and
    w = 1, so that the loss falls with their share (mmsegmentation's default).

    Mining keeps pixels whose true class has a small probability p. With n labelled pixels:

        'ocnet': t = max(threshold, the min(n, min_kept)-th smallest p of the batch); keeps p <= t,
            everything if min_kept >= n; the mean is over kept pixels, whatever `mean` says
        'ccnet': the same, t being searched on a map of an eighth of the size, with min_kept / 64
        'mmseg': t = max(threshold, p number min(n - 1, min_kept b) from zero, in rising order);
            keeps p < t; divided by all that `mean` counts, kept or not. `threshold=0` keeps the
            min_kept b hardest

    What is kept is a constant for the gradient. The references search each device's images by
    themselves; here it is the whole (micro-)batch.

    Sources: openseg.pytorch / CCNet `loss/criterion.py` (OhemCrossEntropy2d), mmsegmentation 1.2
    `OHEMPixelSampler` and `CrossEntropyLoss`.

    Args:
        logits: of k classes, at any size; up-sampled bilinearly, never all at once.
        labels: 0 <= label < k, or 255 for pixels without a class.
        mean: one of `MEANS`.
        class_weights: k numbers >= 0; () = all 1.
        ohem: one of `OHEMS`.
        threshold: see above.
        min_kept: see above.
        align_corners: of the up-sampling.
        band_rows: see `pixel_cross_entropy`.

    Raises:
        ValueError: names or numbers that are not allowed.
    """
    classes = logits.shape[-1]
    for key, value, allowed in (("mean", mean, MEANS), ("ohem", ohem, OHEMS)):
        if value not in allowed:
            raise ValueError(
                f"segmentation loss: {key}={value!r}; allowed: {', '.join(map(repr, allowed))}"
            )
    if len(class_weights) not in (0, classes):
        raise ValueError(
            f"segmentation loss: {len(class_weights)} class weights for {classes} classes; give "
            "one for each class, or ()"
        )
    found = pixel_cross_entropy(logits, labels, align_corners=align_corners, band_rows=band_rows)
    valid = labels != IGNORED
    weights = valid.astype(jnp.float32)
    if class_weights:
        table = jnp.asarray(class_weights, jnp.float32)
        weights = jnp.where(valid, table[jnp.clip(labels, 0, classes - 1)], 0.0)
    count = jnp.sum(valid, dtype=jnp.int32)
    weight = jnp.sum(weights) if class_weights else count.astype(jnp.float32)
    if mean == "all":
        weight += (valid.size - count).astype(jnp.float32)
    divisor = weight
    if ohem != "none":
        p = jax.lax.stop_gradient(jnp.exp(-found.cross_entropy))
        if ohem == "mmseg":
            kept = mmseg_kept(p, valid, threshold, min_kept)
        else:
            search = (logits, labels, align_corners)
            coarse = coarse_probabilities(*search) if ohem == "ccnet" else None
            kept = official_kept(p, valid, threshold, min_kept, coarse)
        weights = jnp.where(kept, weights, 0.0)
        divisor = weight if ohem == "mmseg" else jnp.sum(weights)
    value = jnp.sum(weights * found.cross_entropy) / jnp.maximum(divisor, _TINY)
    right = jnp.sum(found.right, dtype=jnp.int32)
    return SegmentationLoss(value, weight, right.astype(jnp.float32), count.astype(jnp.float32))


# --------------------------------------------------------------------------------------------------
# Online hard example mining
# --------------------------------------------------------------------------------------------------


def mmseg_kept(
    p: Float[Array, "b h w"], valid: Bool[Array, "b h w"], threshold: float, min_kept: int
) -> Bool[Array, "b h w"]:
    """Returns the pixels that mmsegmentation's sampler keeps; see `segmentation_loss`."""
    count = jnp.sum(valid, dtype=jnp.int32)
    place = jnp.minimum(min_kept * len(p), jnp.maximum(count - 1, 0)) + 1
    limit = jnp.maximum(kth_smallest(p, valid, place), threshold)
    return valid & (p < limit)


def official_kept(
    p: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    threshold: float,
    min_kept: int,
    coarse: tuple[jax.Array, jax.Array] | None = None,
) -> Bool[Array, "b h w"]:
    """Returns the pixels that OCNet's loss keeps, or CCNet's; see `segmentation_loss`.

    Args:
        p: probabilities of the labelled classes.
        valid: which pixels are labelled.
        threshold: pixels up to it are kept in any case.
        min_kept: how many are kept at least.
        coarse: the same two on a smaller map, to search there with min_kept / 64; None = OCNet.
    """
    searched, known = (p, valid) if coarse is None else coarse
    least = min_kept if coarse is None else min_kept // _ZOOM**2
    count = jnp.sum(known, dtype=jnp.int32)
    limit = jnp.float32(threshold)
    if least > 0:
        place = jnp.clip(count, 1, least)
        limit = jnp.maximum(limit, kth_smallest(searched, known, place))
    limit = jnp.where(least >= count, jnp.inf, limit)
    return valid & (p <= limit)


def kth_smallest(
    values: Float[Array, "*n"], valid: Bool[Array, "*n"], place: Int[Array, ""]
) -> Float[Array, ""]:
    """Returns the value number `place` (from 1) in rising order among the valid ones.

    Finds its bits from the highest on, by counting: no sort, whose network over all devices' pixels
    costs more than these 31 sums. Values must not be negative; with too few valid ones it is NaN.
    """
    # Of numbers >= 0 the bit patterns, read as integers, have the order of the values.
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
    bits = jnp.where(valid, bits, jnp.iinfo(jnp.int32).max)

    def add_bit(step, found):
        bit = jnp.int32(1) << (30 - step)
        below = jnp.sum(bits < found + bit, dtype=jnp.int32)
        return jnp.where(below < place, found + bit, found)

    found = jax.lax.fori_loop(0, 31, add_bit, jnp.int32(0))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def coarse_probabilities(
    logits: Float[Array, "b h w k"], labels: Int[Array, "b height width"], align_corners: bool
) -> tuple[Float[Array, "b ch cw"], Bool[Array, "b ch cw"]]:
    """Returns (p, valid) on the map of an eighth of the size on which CCNet searches: as
    `scipy.ndimage.zoom` of the up-sampled probabilities (order 1) and of the labels (order 0).
    """
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    pairs, shares, nearest = zip(*map(_zoom_axis, labels.shape[1:]), strict=True)
    matrices = [
        resize_matrix(before, after, align_corners=align_corners)[pair.ravel()]
        for before, after, pair in zip(logits.shape[1:3], labels.shape[1:], pairs, strict=True)
    ]
    exact = jax.lax.Precision.HIGHEST
    up = jnp.einsum("Hh,Ww,bhwk->bHWk", *matrices, logits, precision=exact)
    up = jax.nn.softmax(up)
    batch, (rows, columns) = len(logits), (pair.shape[1] for pair in pairs)
    up = up.reshape(batch, 2, rows, 2, columns, -1)
    mixed = jnp.einsum("yr,xc,byrxck->brck", *shares, up, precision=exact)
    label = labels[:, nearest[0]][:, :, nearest[1]]
    own = label[..., None] == jnp.arange(logits.shape[-1])
    return jnp.where(own, mixed, 0.0).sum(-1), label != IGNORED


def _zoom_axis(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where `zoom` by 1/8 looks along an axis: the two neighbours [2, n], their shares [2, n], and
    the nearest [n].
    """
    count = max(round(size / _ZOOM), 1)
    at = np.arange(count) * ((size - 1) / max(count - 1, 1))
    low = np.minimum(np.floor(at).astype(int), size - 1)
    share = (at - low).astype(np.float32)
    pair = np.stack([low, np.minimum(low + 1, size - 1)])
    return pair, np.stack([1 - share, share]), np.floor(at + 0.5).astype(int)
