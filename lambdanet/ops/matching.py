"""Which anchor or proposal is to find which object, and which of them a loss looks at."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

FORCED = ("none", "torchvision", "mmdet")


class Match(NamedTuple):
    """The object of each anchor.

    Attributes:
        index: int32 [a], the object's number; of use where the label is 1.
        label: int8 [a]: 1 positive, 0 negative, -1 ignored.
    """

    index: jax.Array
    label: jax.Array


class Sample(NamedTuple):
    """Which anchors a loss looks at.

    Attributes:
        positive: bool [a].
        negative: bool [a].
    """

    positive: jax.Array
    negative: jax.Array


def match(
    iou: Float[Array, "a g"],
    valid: Bool[Array, " g"],
    *,
    high: float,
    low: float,
    force_match: str = "none",
    force_minimum: float = 0.0,
) -> Match:
    """Assigns the object with the largest overlap (the first of equal ones) to each anchor.

    Positive if the overlap is >= `high`, negative if < `low`, else ignored. An object can force the
    anchors whose overlap with it is the largest that any anchor has with it, equal ones included:

        'none': it cannot.
        'torchvision': they become positive and keep the object of their own largest overlap.
        'mmdet': they become positive for this object; of several objects, for the last.

    Only overlaps > 0 can force: an object that no anchor touches would take all anchors in both
    references. No valid object: all anchors are negative.

    Sources: torchvision `Matcher`, mmdetection `MaxIoUAssigner`.

    Args:
        iou: overlaps of anchors with objects.
        valid: which objects there are; leave crowds out and give them to `ignore_crowds`.
        high: see above.
        low: see above.
        force_match: one of `FORCED`.
        force_minimum: the least overlap that can force (mmdetection's min_pos_iou).

    Raises:
        ValueError: another `force_match`, or low > high.
    """
    if force_match not in FORCED:
        raise ValueError(
            f"match: force_match={force_match!r}; allowed: {', '.join(map(repr, FORCED))}"
        )
    if low > high:
        raise ValueError(f"match: low={low} is above high={high}; give low <= high")
    overlap = jnp.where(valid, iou, -1.0)
    best = overlap.max(1)
    index = overlap.argmax(1).astype(jnp.int32)
    label = jnp.where(best >= high, 1, jnp.where(best < low, 0, -1))
    if force_match != "none":
        largest = overlap.max(0)
        forces = valid & (largest > 0) & (largest >= force_minimum)
        forced = (overlap == largest) & forces
        label = jnp.where(forced.any(1), 1, label)
        if force_match == "mmdet":
            last = jnp.max(jnp.where(forced, jnp.arange(len(valid), dtype=jnp.int32), -1), 1)
            index = jnp.where(last >= 0, last, index)
    return Match(index, label.astype(jnp.int8))


def ignore_crowds(
    label: Int[Array, " a"],
    coverage: Float[Array, "a g"],
    crowd: Bool[Array, " g"],
    *,
    above: float,
) -> Int[Array, " a"]:
    """Returns labels in which negative anchors in crowds are ignored.

    A crowd is a region of objects that nobody has told apart, so that an anchor in it is neither
    right nor wrong. Anchors of which more than the share `above` lies in one crowd become -1 if
    they were 0. Source: Detectron's RPN (its crowd filter threshold is 0.7).

    Args:
        label: of `match`.
        coverage: `boxes.pairwise_coverage` of the anchors and the objects.
        crowd: which objects are crowds.
        above: see above.
    """
    inside = jnp.any((coverage > above) & crowd, 1)
    return jnp.where(inside & (label == 0), -1, label).astype(label.dtype)


def sample(
    label: Int[Array, " a"],
    key: PRNGKeyArray | Shaped[Array, "2"],
    count: int,
    positive_fraction: float,
) -> Sample:
    """Draws at most `count` anchors, at most the given share of them positive.

    min(int(count * positive_fraction), positives there are) positive ones, and negative ones up to
    `count` or to what there is; all subsets equally likely. Source: torchvision
    `BalancedPositiveNegativeSampler`, mmdetection `RandomSampler`.

    Args:
        label: of `match`, for one image.
        key: of this image.
        count: see above; `count` >= 2 a with a fraction of 0.5 takes all.
        positive_fraction: between 0 and 1.
    """
    keys = jax.random.split(key)
    most = int(count * positive_fraction)
    positive = _draw(label == 1, keys[0], most, jnp.int32(most))
    left = count - jnp.sum(positive, dtype=jnp.int32)
    return Sample(positive, _draw(label == 0, keys[1], count, left))


def _draw(candidates, key, most, number):
    """A random subset of `number` <= `most` candidates, or all if there are no more."""
    most = min(most, len(candidates))
    rank = jnp.where(candidates, jax.random.uniform(key, candidates.shape), -1.0)
    values, places = jax.lax.top_k(rank, most)
    chosen = (values >= 0) & (jnp.arange(most) < number)
    return jnp.zeros(len(candidates), bool).at[places].set(chosen)
