"""The lambda layers of timm and of lucidrains/lambda-networks."""

import math

from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.attention.lambda_layer import TORCH_NAMES, LambdaLayer
from lambdanet.layers import avg_pool


def _layer(fixture: Fixture, dim: int, stride: int = 1, **options) -> Ours:
    def call(layer, inputs):
        y = layer(channels_last(inputs["x"]))
        return {"out/y": channels_first(avg_pool(y, 2) if stride == 2 else y)}

    batch, _, *spatial = fixture.config["input_shape"]
    return module_case(
        fixture,
        lambda: LambdaLayer(dim, **options, rngs=nnx.Rngs(0)),
        TORCH_NAMES,
        call,
        norm_count=batch * math.prod(spatial),
    )


def lucid(fixture: Fixture) -> Ours:
    """LambdaLayer(dim, dim_k, n | r, heads, dim_out, dim_u); n: side of a square map, r: local
    scope with bias.
    """
    arguments = dict(fixture.config["ctor"])
    side, scope = arguments.pop("n", None), arguments.pop("r", None)
    options = dict(
        dim=arguments.pop("dim"),
        dim_out=arguments.pop("dim_out"),
        key_depth=arguments.pop("dim_k"),
        num_heads=arguments.pop("heads"),
        intra_depth=arguments.pop("dim_u"),
        scope=scope,
        size=(side, side) if scope is None else None,
        pos_bias=scope is not None,
    )
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"
    return _layer(fixture, **options)


def timm(fixture: Fixture) -> Ours:
    """LambdaLayer(dim, feat_size, stride, num_heads, dim_head, r, qk_ratio, qkv_bias); stride 2
    pools after it.
    """
    arguments = dict(fixture.config["ctor"])
    dim, heads, scope = arguments.pop("dim"), arguments.pop("num_heads"), arguments.pop("r")
    ratio, size = arguments.pop("qk_ratio", 1.0), arguments.pop("feat_size", None)
    key_depth = arguments.pop("dim_head") or _divisible(dim * ratio, 8) // heads
    options = dict(
        dim=dim,
        num_heads=heads,
        key_depth=key_depth,
        scope=scope,
        size=tuple(size) if scope is None else None,
        pos_bias=scope is not None,
        qkv_bias=arguments.pop("qkv_bias", False),
        stride=arguments.pop("stride", 1),
    )
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"
    return _layer(fixture, **options)


def _divisible(value: float, divisor: int) -> int:
    """timm's make_divisible: the nearest multiple, never more than a tenth below the value."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


FAMILIES = {
    "lambda_lucid_global": lucid,
    "lambda_lucid_local": lucid,
    "lambda_timm_conv": timm,
    "lambda_timm_relpos": timm,
}
