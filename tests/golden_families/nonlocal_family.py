"""The non-local blocks of AlexHex7/Non-local_pytorch, PySlowFast, CGNL's authors, timm and mmcv."""

import math

from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.attention import create_attention
from lambdanet.attention.nonlocal_block import TORCH_NAMES

_MODES = {
    "nonlocal_embedded_gaussian_2d": "embedded_gaussian",
    "nonlocal_dot_3d": "dot_product",
    "nonlocal_gaussian_sub": "gaussian",
    "nonlocal_concat": "concatenation",
}
_INSTANTIATIONS = {"softmax": "embedded_gaussian", "dot_product": "dot_product"}


def _block(fixture: Fixture, name: str, dim: int, **options) -> Ours:
    def call(block, inputs):
        x = channels_last(inputs["x"])
        y = block(x)
        _, seen = nnx.capture(nnx.view(block, capture=True), nnx.Intermediate)(x)
        (weights,) = seen["attention_map"]
        grid = weights.shape[x.ndim :]
        return {
            "out/y": channels_first(y),
            "out/attn": weights.reshape(len(x), -1, math.prod(grid)),
        }

    return module_case(
        fixture,
        lambda: create_attention(dict(name=name, **options), dim, rngs=nnx.Rngs(0)),
        TORCH_NAMES,
        call,
    )


def alexhex7(fixture: Fixture) -> Ours:
    """NONLocalBlock{1,2,3}D(in_channels, inter_channels, sub_sample, bn_layer); the file is the
    mode.
    """
    arguments = dict(fixture.config["args"])
    dim, batch_norm = arguments.pop("in_channels"), arguments.pop("bn_layer")
    options = dict(
        mode=_MODES[fixture.family],
        inner_dim=arguments.pop("inter_channels") or "half",
        sub_sample=arguments.pop("sub_sample"),
        norm="batch" if batch_norm else "none",
        zero_init="norm" if batch_norm else "conv",
    )
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"
    return _block(fixture, "nonlocal_alexhex7", dim, **options)


def fair(fixture: Fixture) -> Ours:
    """Nonlocal(dim, dim_inner, pool_size, instantiation)."""
    arguments = dict(fixture.config["args"])
    dim, pool = arguments.pop("dim"), arguments.pop("pool_size")
    options = dict(
        mode=_INSTANTIATIONS[arguments.pop("instantiation")],
        inner_dim=arguments.pop("dim_inner"),
        sub_sample=pool is not None,
        pool_size=pool and tuple(pool),
        init="he",
    )
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"
    return _block(fixture, "nonlocal_fair", dim, **options)


def cgnl_repo(fixture: Fixture) -> Ours:
    """SpatialNL(inplanes, planes, use_scale)."""
    arguments = dict(fixture.config["args"])
    dim = arguments.pop("inplanes")
    options = dict(
        inner_dim=arguments.pop("planes"), scale="inner" if arguments.pop("use_scale") else "none"
    )
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"
    return _block(fixture, "nonlocal_cgnl_repo", dim, **options)


def timm(fixture: Fixture) -> Ours:
    """NonLocalAttn(in_channels, use_scale)."""
    arguments = dict(fixture.config["args"])
    dim = arguments.pop("in_channels")
    options = dict(scale="input" if arguments.pop("use_scale", True) else "none")
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"
    return _block(fixture, "nonlocal_timm", dim, **options)


def mmcv(fixture: Fixture) -> Ours:
    """NonLocal{1,2,3}d(in_channels, reduction, use_scale, norm_cfg, mode, sub_sample)."""
    arguments = dict(fixture.config["args"])
    dim, batch_norm = arguments.pop("in_channels"), arguments.pop("norm_cfg", None) is not None
    options = dict(
        mode=arguments.pop("mode"),
        inner_dim=max(dim // arguments.pop("reduction", 2), 1),
        sub_sample=arguments.pop("sub_sample", False),
        scale="inner" if arguments.pop("use_scale", True) else "none",
    )
    if batch_norm:
        options |= dict(norm="batch", zero_init="norm", out_bias=False)
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"
    return _block(fixture, "nonlocal_mmcv", dim, **options)


FAMILIES = {
    **dict.fromkeys(_MODES, alexhex7),
    "nonlocal_fair_softmax_3d": fair,
    "nonlocal_fair_dot_3d": fair,
    "nonlocal_cgnlrepo": cgnl_repo,
    "nonlocal_timm": timm,
    "nonlocal_mmcv": mmcv,
}
