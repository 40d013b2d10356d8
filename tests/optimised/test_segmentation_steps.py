"""Real gradients of every segmentation head, each on a backbone of another family."""

import functools

import jax
import numpy as np
import pytest
from segmentation_matrix import HEADS, build, gradients
from small_backbones import FAMILIES


@pytest.mark.parametrize("number", range(len(HEADS)))
def test_steps(number):
    head, family = list(HEADS)[number], list(FAMILIES)[number % len(FAMILIES)]
    run = gradients(functools.partial(build, family, HEADS[head]))
    value, found = jax.jit(run)()
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in found.values())
    still = [path for path, g in found.items() if path.endswith("classify/kernel") and not g.any()]
    assert not still
