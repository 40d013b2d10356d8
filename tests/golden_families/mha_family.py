"""torch.nn.MultiheadAttention and timm's BottleneckAttn and HaloAttn."""

from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.attention import bottleneck_attention, halo_attention, mhsa


def mha(fixture: Fixture) -> Ours:
    """MultiheadAttention(embed_dim, num_heads, bias, batch_first); inputs q, k, v [b, tokens,
    channels].
    """
    arguments = dict(fixture.config["args"])
    assert arguments.pop("batch_first") and fixture.config["input_layout"] == "(B,N,E)"
    dim, bias = arguments.pop("embed_dim"), arguments.pop("bias")
    options = dict(num_heads=arguments.pop("num_heads"), qkv_bias=bias, output_bias=bias)
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"

    def call(layer, inputs):
        keys = dict(context=inputs["k"], value_context=inputs["v"])
        y, sown = nnx.capture(nnx.view(layer, capture=True), nnx.Intermediate)(inputs["q"], **keys)
        return {"out/y": y, "out/attn": nnx.to_pure_dict(sown)["attention_map"][0]}

    return module_case(
        fixture,
        lambda: mhsa.MultiHeadSelfAttention(dim, **options, rngs=nnx.Rngs(0)),
        mhsa.TORCH_NAMES,
        call,
    )


def bottleneck(fixture: Fixture) -> Ours:
    """BottleneckAttn(dim, dim_out, feat_size, stride, num_heads, dim_head, qk_ratio, qkv_bias,
    scale_pos_embed).
    """
    arguments = dict(fixture.config["args"])
    options = dict(_common(arguments), size=tuple(arguments.pop("feat_size")))
    return _timm(
        fixture,
        bottleneck_attention,
        "BottleneckAttention",
        arguments,
        options,
        pool=arguments.pop("stride"),
    )


def halo(fixture: Fixture) -> Ours:
    """HaloAttn(..., stride, block_size, halo_size, avg_down); strides that do not divide the block
    become a pool.
    """
    arguments = dict(fixture.config["args"])
    options = dict(
        _common(arguments),
        block_size=arguments.pop("block_size"),
        halo_size=arguments.pop("halo_size"),
    )
    stride, pool = arguments.pop("stride"), 1
    if arguments.pop("avg_down") or options["block_size"] % stride:
        stride, pool = 1, stride
    return _timm(
        fixture, halo_attention, "HaloAttention", arguments, dict(options, stride=stride), pool=pool
    )


def _common(arguments: dict) -> dict:
    dim, heads = arguments.pop("dim"), arguments.pop("num_heads")
    dim_out = arguments.pop("dim_out") or dim
    ratio, depth = arguments.pop("qk_ratio"), arguments.pop("dim_head")
    return dict(
        dim=dim,
        dim_out=dim_out,
        num_heads=heads,
        key_depth=depth or _divisible(dim_out * ratio, 8) // heads,
        qkv_bias=arguments.pop("qkv_bias"),
        scale_relative=arguments.pop("scale_pos_embed"),
    )


def _divisible(value: float, divisor: int) -> int:
    """timm's make_divisible: the nearest multiple, never more than a tenth below the value."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _timm(
    fixture: Fixture, module, name: str, arguments: dict, options: dict, *, pool: int
) -> Ours:
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"
    assert fixture.config["input_layout"] == "NCHW"

    def call(layer, inputs):
        y = layer(channels_last(inputs["x"]))
        if pool > 1:  # timm's nn.AvgPool2d(2, 2), whatever the stride
            y = nnx.avg_pool(y, (2, 2), (2, 2))
        return {"out/y": channels_first(y)}

    return module_case(
        fixture,
        lambda: getattr(module, name)(**options, rngs=nnx.Rngs(0)),
        module.TORCH_NAMES,
        call,
    )


FAMILIES = {"mha": mha, "bottleneck_attn": bottleneck, "halo_attn": halo}
