"""Weights for tests from NumPy, which compile no initialiser; nor does `device_put`."""

import jax
import numpy as np
from flax import nnx


def drawn(model, seed=0):
    """The model, which may be one of shapes alone, with random parameters and statistics: variances
    are positive, and no zero scale hides a branch.
    """
    rng = np.random.default_rng(seed)
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        value = np.asarray(rng.standard_normal(variable.shape))
        if path[-1] == "var":
            value = np.exp(0.3 * value)
        elif path[-1] in ("scale", "gamma"):
            value = 1 + 0.2 * value
        else:
            value = 0.2 * value
        variable.set_value(jax.device_put(value.astype(variable.dtype)))
    return model
