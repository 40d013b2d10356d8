"""Building blocks with two or more users."""

from lambdanet.layers.check import check_map
from lambdanet.layers.conv import ACTIVATIONS, ConvNormAct, activation_function
from lambdanet.layers.drop_path import DropPath
from lambdanet.layers.init_keys import InitKeys
from lambdanet.layers.layer_scale import LayerScale
from lambdanet.layers.norm import batch_norm
from lambdanet.layers.pointwise import PointwiseNormAct
from lambdanet.layers.pooling import adaptive_avg_pool, avg_pool, max_over, max_pool, max_pool_cells
from lambdanet.layers.resize import resize_bilinear, resize_macs

__all__ = [
    "ACTIVATIONS",
    "ConvNormAct",
    "DropPath",
    "InitKeys",
    "LayerScale",
    "PointwiseNormAct",
    "activation_function",
    "adaptive_avg_pool",
    "avg_pool",
    "batch_norm",
    "check_map",
    "max_over",
    "max_pool",
    "max_pool_cells",
    "resize_bilinear",
    "resize_macs",
]
