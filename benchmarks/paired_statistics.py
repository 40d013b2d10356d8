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
    """Returns the exact two-sided p-value of McNemar's test and, for several seeds, of what it is
    then: the sign-flip test on every image's number of seeds won minus seeds lost.

    If both networks were equally good, an image's difference d could as well be -d. The p-value is
    the probability that the sum of all is as far from zero as the one that was seen. It is about
    these trained networks: that training again would give others is not in it.

    Args:
        correct: whether the network of a seed is right about an image.
        base: the same for another network with as many seeds.
    """
    differences = correct.sum(axis=0, dtype=int) - base.sum(axis=0, dtype=int)
    chances = np.ones(1)  # of the sums -total, ..., total
    for size in range(1, len(correct) + 1):
        count = int((abs(differences) == size).sum())
        signs = np.zeros(2 * size * count + 1)  # size * (2 wins - count), by steps of 2 size
        signs[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, signs)
    total = len(chances) // 2
    sums = np.arange(-total, total + 1)
    return float(min(chances[abs(sums) >= abs(differences.sum())].sum(), 1.0))


def holm(values: Sequence[float]) -> list[float]:
    """Returns p-values that are corrected for their number by Holm's procedure, in their order:
    with a bound on them, the chance of any false discovery is below that bound.
    """
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(values)[order] * factors), 1.0)
    return corrected.tolist()
