"""Building blocks with two or more users."""

from lambdanet.layers.check import check_map
from lambdanet.layers.conv import ACTIVATIONS, ConvNormAct, activation_function
from lambdanet.layers.drop_path import DropPath
from lambdanet.layers.init_keys import InitKeys
from lambdanet.layers.norm import batch_norm
from lambdanet.layers.pooling import avg_pool, max_pool

__all__ = [
    "ACTIVATIONS",
    "ConvNormAct",
    "DropPath",
    "InitKeys",
    "activation_function",
    "avg_pool",
    "batch_norm",
    "check_map",
    "max_pool",
]
