"""Blocks whose context is a few numbers per sample: CGNL, double attention, global context,
squeeze-excite, CBAM.
"""

import jax.numpy as jnp
from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.attention import cbam, cgnl, double_attention, gc, se


def _block(fixture: Fixture, build, rules, **options) -> Ours:
    """A module called on one NCHW map."""

    def call(module, inputs):
        return {"out/y": channels_first(module(channels_last(inputs["x"])))}

    return module_case(fixture, lambda: build(nnx.Rngs(0)), rules, call, **options)


def _no_more(arguments: dict) -> None:
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"


def compact_generalized(fixture: Fixture) -> Ours:
    """SpatialCGNL(inplanes, planes, use_scale, groups), SpatialCGNLx(..., order); pre_z is the
    kernel's output.
    """
    arguments = dict(fixture.config["args"])
    dim, rbf = arguments.pop("inplanes"), "order" in arguments
    options = dict(
        inner_dim=arguments.pop("planes"),
        use_scale=arguments.pop("use_scale"),
        groups=arguments.pop("groups"),
        kernel="rbf" if rbf else "dot",
        **({"order": arguments.pop("order")} if rbf else {}),
    )
    _no_more(arguments)

    def build():
        return cgnl.CompactGeneralizedNonLocal(dim, **options, rngs=nnx.Rngs(0))

    def call(module, inputs):
        module = nnx.view(module, capture=True)
        y, recorded = nnx.capture(module, nnx.Intermediate)(channels_last(inputs["x"]))
        (response,) = nnx.to_pure_dict(recorded)["gate"]
        return {"out/y": channels_first(y), "out/pre_z": channels_first(response)}

    # With the dot kernel the group norm cancels the sums of phi and g (see the block's docstring):
    # what is left of their gradients is epsilon and rounding. tests/attention/test_cgnl.py checks
    # these gradients where nothing cancels them.
    return module_case(fixture, build, cgnl.TORCH_NAMES, call)


def double(fixture: Fixture) -> Ours:
    """DoubleAttentionLayer(in_channels, c_m, c_n, reconstruct): no residual, no norm."""
    arguments = dict(fixture.config["args"])
    dim = arguments.pop("in_channels")
    options = dict(
        feature_dim=arguments.pop("c_m"),
        num_descriptors=arguments.pop("c_n"),
        project_out=arguments.pop("reconstruct"),
    )
    _no_more(arguments)

    def build(rngs):
        return double_attention.DoubleAttention(
            dim, **options, norm="none", residual=False, rngs=rngs
        )

    return _block(fixture, build, double_attention.TORCH_NAMES)


def double_video(fixture: Fixture) -> Ours:
    """DoubleAttentionLayer(in_channels, c_m, c_n, k) on clips whose k frames are consecutive in the
    batch.
    """
    arguments = dict(fixture.config["args"])
    dim, frames = arguments.pop("in_channels"), arguments.pop("k")
    options = dict(
        feature_dim=arguments.pop("c_m"), num_descriptors=arguments.pop("c_n"), project_out=False
    )
    _no_more(arguments)

    def call(module, inputs):
        images = channels_last(inputs["x"])
        clips = images.reshape(-1, frames, *images.shape[1:])
        y = module(clips)
        return {"out/y": channels_first(jnp.reshape(y, (*images.shape[:-1], y.shape[-1])))}

    def build():
        return double_attention.DoubleAttention(
            dim, **options, norm="none", residual=False, rngs=nnx.Rngs(0)
        )

    return module_case(fixture, build, double_attention.TORCH_NAMES, call)


def context_block(fixture: Fixture) -> Ours:
    """mmcv's ContextBlock(in_channels, ratio, pooling_type, fusion_types); int(in_channels * ratio)
    hidden channels.
    """
    arguments = dict(fixture.config["args"])
    dim = arguments.pop("in_channels")
    hidden = int(dim * arguments.pop("ratio"))
    fusion = {
        ("channel_add",): "add",
        ("channel_mul",): "mul",
        ("channel_add", "channel_mul"): "both",
    }[tuple(sorted(arguments.pop("fusion_types")))]
    pooling = {"att": "attention", "avg": "average"}[arguments.pop("pooling_type")]
    _no_more(arguments)

    def build(rngs):
        # The lower bound states the exact number where `dim` is no multiple of it.
        options = dict(reduction=-(-dim // hidden), min_hidden=hidden)
        return gc.GlobalContext(dim, **options, fusion=fusion, pooling=pooling, rngs=rngs)

    return _block(fixture, build, gc.TORCH_NAMES)


def squeeze_excite(fixture: Fixture) -> Ours:
    """timm's SEModule(channels, reduction), with biases; moskomule's SELayer(channel, reduction),
    without.
    """
    arguments = dict(fixture.config["args"])
    bias = "channels" in arguments
    dim, ratio = arguments.pop("channels" if bias else "channel"), arguments.pop("reduction")
    _no_more(arguments)
    return _block(
        fixture,
        lambda rngs: se.SqueezeExcite(dim, ratio=ratio, bias=bias, rngs=rngs),
        se.TORCH_NAMES,
    )


def channel_and_spatial(fixture: Fixture) -> Ours:
    """CBAM(gate_channels, reduction_ratio, pool_types, no_spatial)."""
    arguments = dict(fixture.config["args"])
    dim = arguments.pop("gate_channels")
    options = dict(
        reduction=arguments.pop("reduction_ratio"),
        pools=tuple(arguments.pop("pool_types")),
        spatial=not arguments.pop("no_spatial"),
    )
    _no_more(arguments)
    return _block(
        fixture,
        lambda rngs: cbam.ConvolutionalBlockAttention(dim, **options, rngs=rngs),
        cbam.TORCH_NAMES,
    )


FAMILIES = {
    "cbam": channel_and_spatial,
    "cbam_channel_only": channel_and_spatial,
    "cgnl_dot": compact_generalized,
    "cgnl_rbf": compact_generalized,
    "double_attention": double,
    "double_attention_video": double_video,
    "gc": context_block,
    "se": squeeze_excite,
    "se_nobias": squeeze_excite,
}
