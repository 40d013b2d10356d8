"""timm's modules that compute the same as blocks of ours, with our parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.torch_forms import Form, of_module
from lambdanet.attention import (
    bottleneck_attention,
    halo_attention,
    lambda_layer,
    nonlocal_block,
    se,
    spatial_reduction,
    window,
)
from lambdanet.interop.names import BATCH_NORM, POINTWISE, Rule, prefixed

Params = Mapping[str, np.ndarray]


def bottleneck(block: Any, side: int, params: Params) -> Form:
    """BottleneckAttn."""
    from timm.layers.bottleneck_attn import BottleneckAttn

    module = BottleneckAttn(block.dim, feat_size=block.size, num_heads=block.num_heads)
    return of_module(module, params, bottleneck_attention.TORCH_NAMES)


def halo(block: Any, side: int, params: Params) -> Form:
    """HaloAttn."""
    from timm.layers.halo_attn import HaloAttn

    windows = dict(block_size=block.block_size, halo_size=block.halo_size)
    module = HaloAttn(block.dim, num_heads=block.num_heads, **windows)
    return of_module(module, params, halo_attention.TORCH_NAMES)


def lambda_block(block: Any, side: int, params: Params) -> Form:
    """LambdaLayer."""
    from timm.layers.lambda_layer import LambdaLayer

    depth, scope = block.key_depth, block.scope[0]
    module = LambdaLayer(block.dim, num_heads=block.num_heads, dim_head=depth, r=scope)
    return of_module(module, params, lambda_layer.TORCH_NAMES)


def windows(block: Any, side: int, params: Params) -> Form:
    """The attention of SwinTransformerBlock, with its shift and windows, as timm runs it."""
    swin = _swin(block, side)
    table = window.TORCH_NAMES
    return of_module(swin.attn, params, table, call=swin._attn, channels_last=True)


def fused_windows(block: Any, side: int, params: Params) -> Form:
    """The same by PyTorch's own core, which timm has as an option."""
    swin = _swin(block, side)
    swin.attn.fused_attn = True
    table = window.TORCH_NAMES
    return of_module(swin.attn, params, table, call=swin._attn, channels_last=True)


def _swin(block: Any, side: int) -> Any:
    from timm.models.swin_transformer import SwinTransformerBlock

    grid = dict(window_size=block.window_size, shift_size=block.shift_size)
    return SwinTransformerBlock(block.dim, (side, side), num_heads=block.num_heads, **grid)


def reduced(block: Any, side: int, params: Params) -> Form:
    """The attention of PVTv2, which is PVT's without `linear`."""
    from timm.models.pvt_v2 import Attention

    module = Attention(block.dim, num_heads=block.num_heads, sr_ratio=block.sr_ratio)

    def call(x: Any) -> Any:
        return module(x.flatten(1, 2), (side, side)).view(x.shape)

    return of_module(module, params, spatial_reduction.TORCH_NAMES, call=call, channels_last=True)


def squeeze_excite(block: Any, side: int, params: Params) -> Form:
    """SEModule."""
    from timm.layers.squeeze_excite import SEModule

    return of_module(SEModule(block.dim, rd_channels=block.hidden), params, se.TORCH_NAMES)


def cbam(block: Any, side: int, params: Params) -> Form:
    """CbamModule, with the biases that ours has; it has [mean, max] where ours has [max, mean]."""
    from timm.layers.cbam import CbamModule

    module = CbamModule(block.dim, rd_channels=block.hidden, mlp_bias=True)
    return of_module(module, params, _CBAM)


def global_context(block: Any, side: int, params: Params) -> Form:
    """GlobalContext that adds, with the epsilon of the authors' layer norm."""
    from timm.layers.global_context import GlobalContext

    module = GlobalContext(block.dim, fuse_add=True, fuse_scale=False, rd_channels=block.hidden)
    module.mlp_add.norm.eps = block.add.norm.epsilon
    return of_module(module, params, _GLOBAL_CONTEXT)


def nonlocal_attention(block: Any, side: int, params: Params) -> Form:
    """NonLocalAttn."""
    from timm.layers.non_local_attn import NonLocalAttn

    return of_module(NonLocalAttn(block.dim), params, nonlocal_block.TORCH_NAMES)


def _swapped(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel[:, ::-1], (0, 1), (-1, -2))


_CBAM = (
    *prefixed(POINTWISE, r"channel\.fc1\.", "reduce"),
    *prefixed(POINTWISE, r"channel\.fc2\.", "expand"),
    Rule(r"spatial\.conv\.conv\.weight", "spatial/conv/kernel", _swapped),
    *prefixed(BATCH_NORM, r"spatial\.conv\.bn\.", "spatial/norm"),
)
_GLOBAL_CONTEXT = (
    *prefixed(POINTWISE, r"conv_attn\.", "mask"),
    *prefixed(POINTWISE, r"mlp_add\.fc1\.", "add/reduce"),
    Rule(r"mlp_add\.norm\.weight", "add/norm/scale"),
    Rule(r"mlp_add\.norm\.bias", "add/norm/bias"),
    *prefixed(POINTWISE, r"mlp_add\.fc2\.", "add/expand"),
)
