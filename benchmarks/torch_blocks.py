"""PyTorch's forms of our blocks, by the names of `blocks_suite`."""

from __future__ import annotations

from benchmarks import (
    torch_attention,
    torch_context,
    torch_object_context,
    torch_timm,
    torch_windows,
)
from benchmarks.torch_forms import Builder, literal

_nonlocal = literal(torch_context.nonlocal_block)
_criss_cross = literal(torch_context.criss_cross)
_cgnl = literal(torch_context.cgnl)
_windows = {"timm": torch_timm.windows, "fused": torch_timm.fused_windows}

FORMS: dict[str, dict[str, Builder]] = {
    "mhsa": {"sdpa": literal(torch_attention.mhsa, channels_last=True)},
    "bottleneck_attention": {"timm": torch_timm.bottleneck},
    "halo_attention": {"timm": torch_timm.halo},
    "lambda": {"timm": torch_timm.lambda_block},
    "slide": {"eager": literal(torch_windows.slide, channels_last=True)},
    "window": _windows,
    "shifted_window": _windows,
    "cross_shaped_window": {
        "eager": literal(torch_windows.cross_shaped_window, channels_last=True)
    },
    "neighborhood": {"eager": literal(torch_windows.neighborhood, channels_last=True)},
    "spatial_reduction": {"timm": torch_timm.reduced},
    "linformer": {"eager": literal(torch_attention.linformer, channels_last=True)},
    "se": {"timm": torch_timm.squeeze_excite},
    "cbam": {"timm": torch_timm.cbam},
    "gc": {"timm": torch_timm.global_context},
    "nonlocal": {"eager": _nonlocal},
    "nonlocal_gaussian": {"eager": _nonlocal},
    "nonlocal_dot": {"eager": _nonlocal},
    "nonlocal_concatenation": {"eager": _nonlocal},
    "nonlocal_timm": {"timm": torch_timm.nonlocal_attention},
    "cgnl": {"eager": _cgnl},
    "cgnlx": {"eager": _cgnl},
    "double_attention": {"eager": literal(torch_context.double_attention)},
    "criss_cross": {"eager": _criss_cross},
    "rcca": {"eager": _criss_cross},
    "interlaced": {"eager": literal(torch_context.interlaced)},
    "position_attention": {"eager": literal(torch_context.position_attention)},
    "channel_attention": {"eager": literal(torch_context.channel_attention)},
    "object_context": {"eager": literal(torch_object_context.object_context)},
    "pyramid_object_context": {"eager": literal(torch_object_context.pyramid_object_context)},
    "asp_object_context": {"eager": literal(torch_object_context.asp_object_context)},
    "vanilla_attention": {"eager": literal(torch_attention.vanilla_attention, channels_last=True)},
    "less_attention": {"eager": literal(torch_attention.less_attention, channels_last=True)},
}
"""By name: candidates, 'timm' for its modules, 'eager' for formulas written here, 'sdpa' and
'fused' for what runs in `scaled_dot_product_attention`."""
