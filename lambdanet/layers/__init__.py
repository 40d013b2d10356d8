"""Building blocks with two or more users."""

from lambdanet.layers.drop_path import DropPath
from lambdanet.layers.norm import batch_norm

__all__ = ["DropPath", "batch_norm"]
