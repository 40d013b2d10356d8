"""Building blocks with two or more users."""

from lambdanet.layers.captures import Captures
from lambdanet.layers.check import as_pair, check_floating, check_map, is_count
from lambdanet.layers.conv import ACTIVATIONS, ClipConv, Conv2d, ConvNormAct, activation_function
from lambdanet.layers.drop_path import DropPath
from lambdanet.layers.fpn import FeaturePyramid
from lambdanet.layers.init_keys import InitKeys
from lambdanet.layers.initial import trunc_normal
from lambdanet.layers.layer_scale import LayerScale
from lambdanet.layers.linear import Linear
from lambdanet.layers.norm import LayerNorm, batch_norm
from lambdanet.layers.pointwise import PointwiseNormAct
from lambdanet.layers.pooling import adaptive_avg_pool, avg_pool, max_over, max_pool, max_pool_cells
from lambdanet.layers.resize import resize_bilinear, resize_macs, resize_nearest

__all__ = [
    "ACTIVATIONS",
    "Captures",
    "ClipConv",
    "Conv2d",
    "ConvNormAct",
    "DropPath",
    "FeaturePyramid",
    "InitKeys",
    "LayerScale",
    "Linear",
    "PointwiseNormAct",
    "activation_function",
    "as_pair",
    "adaptive_avg_pool",
    "avg_pool",
    "batch_norm",
    "check_floating",
    "check_map",
    "is_count",
    "LayerNorm",
    "max_over",
    "max_pool",
    "max_pool_cells",
    "resize_bilinear",
    "resize_macs",
    "resize_nearest",
    "trunc_normal",
]
