"""Attention of PVT (spatial reduction) and of one branch of CSWin (stripes with a position
encoding).
"""

from collections.abc import Callable, Mapping

import jax
from flax import nnx
from golden_harness import Fixture, Ours, module_case

from lambdanet.attention import cross_shaped_window, spatial_reduction
from lambdanet.interop.names import CONV, prefixed

Arrays = Mapping[str, jax.Array]


def sra(fixture: Fixture) -> Ours:
    """Attention(dim, num_heads, sr_ratio, linear_attn, qkv_bias) on a map of H x W, given as a
    list.
    """
    config = fixture.config
    assert config["ln_eps"] == 1e-5
    linear = config["linear_attn"]  # which does not read the reference's sr_ratio
    options = dict(
        sr_ratio=None if linear else config["sr_ratio"], linear=linear, qkv_bias=config["qkv_bias"]
    )

    def build():
        heads = config["num_heads"]
        return spatial_reduction.SpatialReductionAttention(
            config["dim"], num_heads=heads, **options, rngs=nnx.Rngs(0)
        )

    call = as_list((config["H"], config["W"]), lambda layer, inputs: layer(inputs["x"]))
    return module_case(fixture, build, spatial_reduction.TORCH_NAMES, call)


def lepe(fixture: Fixture) -> Ours:
    """LePEAttention(dim, resolution, idx, split_size, num_heads) on stacked queries, keys and
    values.
    """
    config = fixture.config
    side, heads = config["resolution"], config["num_heads"]
    stripe = (config["H_sp"], config["W_sp"])
    vertical = {-1: (side, side), 0: (side, config["split_size"]), 1: (config["split_size"], side)}
    assert stripe == vertical[config["idx"]]

    def build():
        return cross_shaped_window.StripeAttention(config["dim"], rngs=nnx.Rngs(0))

    def mix(layer, inputs):
        return layer(*inputs["x"], stripe=stripe, num_heads=heads)[0]

    return module_case(fixture, build, prefixed(CONV, r"get_v\.", ""), as_list((side, side), mix))


def as_list(size: tuple[int, int], mix: Callable[[nnx.Module, Arrays], jax.Array]) -> Callable:
    """A call whose inputs and output are lists of positions [..., H W, c] around `mix`, which takes
    and returns maps.
    """

    def call(layer, inputs):
        maps = {name: a.reshape(*a.shape[:-2], *size, a.shape[-1]) for name, a in inputs.items()}
        y = mix(layer, maps)
        return {"out/y": y.reshape(y.shape[0], -1, y.shape[-1])}

    return call


FAMILIES = {"pvt_sra": sra, "cswin_lepe": lepe}
