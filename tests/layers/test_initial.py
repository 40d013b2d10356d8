"""Initial values against PyTorch's conventions."""

import jax
import numpy as np
import pytest

from lambdanet.layers import trunc_normal


@pytest.mark.parametrize("stddev", [0.02, 1.0])
def test_cut_at_two_and_not_at_two_deviations(stddev):
    drawn = np.asarray(trunc_normal(stddev)(jax.random.key(0), (300, 300)))
    assert np.isfinite(drawn).all() and np.abs(drawn).max() <= 2
    # A normal cut at two deviations has 0.880 of its deviation.
    assert drawn.std() == pytest.approx(stddev * (1.0 if stddev < 1 else 0.880), rel=0.02)
