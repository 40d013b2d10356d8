"""Slide attention of the Slide-Swin code, its variant in the DAT++ code, plain local attention and
the merged form.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.attention.slide import TORCH_NAMES, SlideAttention, reparameterise


def attention(fixture: Fixture) -> Ours:
    """SlideAttention(dim, num_heads, ka, qkv_bias, qk_scale) on tokens [b, H*W, C]; out/attn [b,
    heads, slots, H*W].
    """
    arguments, size = _arguments(fixture), _size(fixture)

    def call(layer, inputs):
        shown = nnx.view(layer, capture=True)
        y, sown = nnx.capture(shown, nnx.Intermediate)(_map(inputs["x"], size))
        weights = nnx.to_pure_dict(sown)["slot_weights"][0]
        return {
            "out/y": y.reshape(inputs["x"].shape),
            "out/attn": weights.reshape(*weights.shape[:3], -1),
        }

    return _case(fixture, arguments, call)


def reparameterised(fixture: Fixture) -> Ours:
    """The same module; its merged weights in PyTorch's layout, and its output."""
    arguments, size = _arguments(fixture), _size(fixture)

    def call(layer, inputs):
        x = _map(inputs["x"], size)
        merged = reparameterise(layer)
        return {
            "out/y": layer(x).reshape(inputs["x"].shape),
            "out/merged": merged(x).reshape(inputs["x"].shape),
            "merged/dep_conv.weight": jnp.transpose(merged.deformed_kernel[...], (3, 2, 0, 1)),
            "merged/dep_conv.bias": merged.deformed_bias[...],
        }

    # Parameter gradients of this family are exactly twice those of the loss, and those of
    # slide_attention_a, which has the same arrays: they were summed over two backward passes.
    # Gradients of the inputs were not.
    def twice(layer, inputs):
        graphdef, params = nnx.split(layer)
        return call(
            nnx.merge(graphdef, jax.tree.map(lambda p: 2 * p - jax.lax.stop_gradient(p), params)),
            inputs,
        )

    return _case(fixture, arguments, twice)


def dat(fixture: Fixture) -> Ours:
    """The variant of DAT++ on [b, C, H, W]: dim_reduction, rpb, share_qkv, share_dwc_kernel."""
    arguments = _arguments(fixture)

    def call(layer, inputs):
        return {"out/y": channels_first(layer(channels_last(inputs["x"])))}

    return _case(fixture, arguments, call)


def _arguments(fixture: Fixture) -> dict:
    config = dict(fixture.config)
    for key in ("origin", "layout", "note", "family", "H", "W"):
        config.pop(key, None)
    options = dict(
        dim=config.pop("dim"), num_heads=config.pop("num_heads"), kernel_size=config.pop("ka")
    )
    names = dict(
        qkv_bias="qkv_bias",
        qk_scale="scale",
        dim_reduction="dim_reduction",
        share_qkv="share_qkv",
        share_dwc_kernel="share_kernel",
    )
    options |= {names[key]: config.pop(key) for key in list(config) if key in names}
    if not config.pop("rpb", True):
        options["position_bias"] = "none"
    assert not config, f"constructor arguments without a counterpart here: {config}"
    return options


def _size(fixture: Fixture) -> tuple[int, int]:
    return fixture.config["H"], fixture.config["W"]


def _map(tokens: jax.Array, size: tuple[int, int]) -> jax.Array:
    return tokens.reshape(len(tokens), *size, -1)


def _case(fixture: Fixture, options: dict, call) -> Ours:
    return module_case(
        fixture, lambda: SlideAttention(**options, rngs=nnx.Rngs(0)), TORCH_NAMES, call
    )


FAMILIES = {
    "slide_attention": attention,
    "slide_attention_dat": dat,
    "slide_im2col": attention,
    "slide_reparam": reparameterised,
}
