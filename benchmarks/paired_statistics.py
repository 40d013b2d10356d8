"""Intervals and tests for networks that answered the same test images: which of them each got
right, for one or several seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from scipy import stats

RESAMPLES = 10_000
LEVEL = 0.95


def interval(
    correct: Bool[np.ndarray, "seeds images"],
    base: Bool[np.ndarray, "base_seeds images"] | None = None,
) -> tuple[float, float]:
    """Returns the ends of the bootstrap's 95 % percentile interval of the accuracy or, given a
    base, of the difference to it.

    Each of 10,000 resamples draws as many images as there are, the same ones for the network, its
    base and every other network, and as many seeds of each as there are. With one seed only the
    images vary. Of few seeds the bootstrap sees too little: their variance comes out as (seeds - 1)
    / seeds of what it is.

    Args:
        correct: whether the network of a seed is right about an image.
        base: the same for another network.
    """
    rng = np.random.default_rng(1)
    values = _resampled(correct, rng)
    if base is not None:
        values = values - _resampled(base, rng)
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _resampled(correct: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    seeds, images = correct.shape
    by_seed = _draws(images) @ correct.T.astype(np.float32) / images
    drawn = rng.integers(seeds, size=(RESAMPLES, seeds))
    return np.take_along_axis(by_seed, drawn, axis=1).mean(axis=1)


@functools.cache
def _draws(images: int) -> np.ndarray:
    """How often each resample has each image, float32 [resamples, images]."""
    rng = np.random.default_rng(0)
    return rng.multinomial(images, np.full(images, 1 / images), size=RESAMPLES).astype(np.float32)


def paired_p(
    correct: Bool[np.ndarray, "seeds images"], base: Bool[np.ndarray, "seeds images"]
) -> float:
    """Returns the two-sided p-value of 'both networks are equally good'.

    With one seed it is that of McNemar's exact test: how often a fair coin decides as one-sidedly
    between the images that only one of the two gets right. It is about these two trained networks.

    With several seeds it is about training again, too, as of readers and cases in studies of many
    readers: t = D / sqrt(V_1 + V_2 + V_i), where D is the difference of the accuracies, V_1 and V_2
    are the variances of the two networks' accuracies over their seeds, divided by the number of
    seeds, and V_i is that over images of the difference of their means over seeds, divided by the
    number of images; degrees of freedom by Welch and Satterthwaite. That one seed's answers to an
    image differ from another's is in all three, so that the test errs on the side of 'equal'.

    Args:
        correct: whether the network of a seed is right about an image.
        base: the same for another network with as many seeds.
    """
    seeds, images = correct.shape
    if seeds == 1:
        won, lost = int((correct & ~base).sum()), int((base & ~correct).sum())
        return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    of_images = correct.mean(axis=0) - base.mean(axis=0)
    variances = np.array(
        [
            correct.mean(axis=1).var(ddof=1) / seeds,
            base.mean(axis=1).var(ddof=1) / seeds,
            of_images.var(ddof=1) / images,
        ]
    )
    difference, total = abs(of_images.mean()), variances.sum()
    if total == 0.0:  # every seed and image says the same
        return 0.0 if difference else 1.0
    freedom = total**2 / (variances**2 / [seeds - 1, seeds - 1, images - 1]).sum()
    return float(2 * stats.t.sf(difference / np.sqrt(total), freedom))


def holm(values: Sequence[float]) -> list[float]:
    """Returns p-values that are corrected for their number by Holm's procedure, in their order:
    with a bound on them, the chance of any false discovery is below that bound.
    """
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(values)[order] * factors), 1.0)
    return corrected.tolist()
