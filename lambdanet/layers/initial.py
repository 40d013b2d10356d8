"""Initial values with PyTorch's conventions."""

from __future__ import annotations

from flax import nnx


def trunc_normal(stddev: float) -> nnx.Initializer:
    """Returns a normal initialiser cut at -2 and 2, as `trunc_normal_(std=stddev)` of PyTorch and
    timm.

    JAX's `truncated_normal(stddev)` cuts at two deviations instead, which leaves 0.88 of the
    deviation.
    """
    return nnx.initializers.truncated_normal(stddev, lower=-2 / stddev, upper=2 / stddev)
