"""Blocks and whole small networks of Swin, Slide-Swin, PVT, PVTv2, CSWin and NAT."""

import functools

import jax.numpy as jnp
from flax import nnx
from golden_harness import Fixture, Ours, channels_last, module_case

import models
from lambdanet.attention import cross_shaped_window, spatial_reduction, window
from lambdanet.interop.names import choose_table
from lambdanet.training.state import flatten_names, split_model
from models.hierarchical.blocks import TransformerBlock
from models.hierarchical.cswin import cross_shaped
from models.hierarchical.names import block_names
from models.hierarchical.pvt import reductions
from models.hierarchical.swin import windows

# --------------------------------------------------------------------------------------------------
# Blocks
# --------------------------------------------------------------------------------------------------


def swin_block(fixture: Fixture) -> Ours:
    """timm's SwinTransformerBlock on maps [b, h, w, c], which rolls before it pads; and the mask it
    adds to the logits.
    """
    config = fixture.config
    assert config["origin"].startswith("timm") and config["layout"] == "x: (B, H, W, C)"
    size, side, shift = (
        _pair(config[key]) for key in ("input_resolution", "window_size", "shift_size")
    )
    options = dict(
        window_size=side,
        shift_size=shift,
        qkv_bias=config["qkv_bias"],
        padding="roll_pad",
        size=size,
    )
    attention = functools.partial(
        window.WindowAttention, config["dim"], num_heads=config["num_heads"], **options
    )

    def call(block, inputs):
        seen = window.region_mask(size, side, shift, padding="roll_pad")
        return {"out/y": block(inputs["x"]), "buffer/mask": jnp.where(seen, 0.0, -100.0)}

    return _block(fixture, attention, window.TORCH_NAMES, call, epsilon=config["ln_eps"])


def pvt_v2_block(fixture: Fixture) -> Ours:
    """The authors' Block on tokens [b, h*w, c] of a map of height H and width W."""
    config = fixture.config
    assert config["ln_eps_attn"] == 1e-5, config
    ratio = {"linear": True} if config["linear"] else {"sr_ratio": config["sr_ratio"]}
    attention = functools.partial(
        spatial_reduction.SpatialReductionAttention,
        config["dim"],
        num_heads=config["num_heads"],
        **ratio,
    )
    mlp = "depthwise_linear" if config["linear"] else "depthwise"
    size, epsilon = (config["H"], config["W"]), config["ln_eps_block"]
    return _block(
        fixture,
        attention,
        spatial_reduction.TORCH_NAMES,
        _on_tokens(size),
        mlp=mlp,
        epsilon=epsilon,
    )


def cswin_block(fixture: Fixture) -> Ours:
    """The authors' CSWinBlock on tokens [b, side*side, c]; the last stage's is global, whatever its
    `split_size`.
    """
    config = fixture.config
    options = dict(
        num_heads=config["num_heads"],
        stripe_width=None if config["last_stage"] else config["split_size"],
        qkv_bias=config["qkv_bias"],
        size=_pair(config["reso"]),
    )
    attention = functools.partial(
        cross_shaped_window.CrossShapedWindowAttention, config["dim"], **options
    )
    names = dict(attention="", epsilon=config["ln_eps"])
    return _block(
        fixture,
        attention,
        cross_shaped_window.TORCH_NAMES,
        _on_tokens(_pair(config["reso"])),
        **names,
    )


def _block(
    fixture, make_attention, rules, call, *, attention=r"attn\.", mlp="plain", epsilon
) -> Ours:
    config = fixture.config
    hidden = int(config["dim"] * config["mlp_ratio"])

    def build():
        rngs = nnx.Rngs(0)
        return TransformerBlock(
            config["dim"],
            make_attention(rngs=rngs),
            hidden=hidden,
            mlp=mlp,
            epsilon=epsilon,
            rngs=rngs,
        )

    return module_case(fixture, build, block_names(rules, attention=attention), call)


def _on_tokens(size):
    def call(block, inputs):
        x = inputs["x"]
        return {"out/y": block(x.reshape(x.shape[0], *size, x.shape[-1])).reshape(x.shape)}

    return call


# --------------------------------------------------------------------------------------------------
# Networks: every key of the reference's state dict finds its place in the preset's network, by the
# table of its grammar
# --------------------------------------------------------------------------------------------------


def swin_net(fixture: Fixture) -> Ours:
    config = fixture.config
    attention = (windows(_window(config)),) * len(config["depths"])
    return _net(
        fixture,
        "swin_tiny",
        config["depths"],
        attention=attention,
        image_size=_pair(config["img_size"]),
    )


def slide_swin_net(fixture: Fixture) -> Ours:
    config = fixture.config
    assert config["patch_size"] == 4, config
    slide, count = dict(name="slide", kernel_size=config["ka"]), config["num_slide_stages"]
    attention = (slide,) * count + (windows(_window(config)),) * (len(config["depths"]) - count)
    return _net(
        fixture,
        "slide_swin_tiny",
        config["depths"],
        attention=attention,
        image_size=_pair(config["img_size"]),
    )


def pvt_net(fixture: Fixture) -> Ours:
    """Learned positions belong to maps of `img_size`; the input may have another size."""
    config = fixture.config
    assert (config["ln_eps_block"], config["ln_eps_patch_sr"]) == (1e-6, 1e-5), config
    attention = reductions(*config["sr_ratios"])
    return _net(
        fixture,
        "pvt_tiny",
        config["depths"],
        attention=attention,
        image_size=_pair(config["img_size"]),
    )


def pvt_v2_net(fixture: Fixture) -> Ours:
    config = fixture.config
    assert (config["ln_eps_block"], config["ln_eps_patch_sr"]) == (1e-6, 1e-5), config
    if config["linear"]:
        return _net(fixture, "pvt_v2_b2_li", config["depths"])
    return _net(fixture, "pvt_v2_b1", config["depths"], attention=reductions(*config["sr_ratios"]))


def cswin_net(fixture: Fixture) -> Ours:
    config = fixture.config
    attention = cross_shaped(
        *config["split_size"][:-1]
    )  # the last stage is global, whatever it says
    return _net(
        fixture,
        "cswin_tiny",
        config["depth"],
        attention=attention,
        image_size=_pair(config["img_size"]),
    )


def nat_net(fixture: Fixture) -> Ours:
    config = fixture.config
    attention = dict(name="neighborhood", kernel_size=config["kernel_size"])
    name = "nat_small" if config["layer_scale"] else "nat_mini"
    size = fixture.arrays["in/x"].shape[2:]
    return _net(fixture, name, config["depths"], attention=attention, image_size=size)


def _net(fixture: Fixture, name: str, depths, **options) -> Ours:
    config = fixture.config
    assert config["layout"] == "x: (B,3,H,W); out logits", config
    widths = config.get("embed_dims") or [
        config["embed_dim"] * 2**stage for stage in range(len(depths))
    ]
    ratios = config.get("mlp_ratios") or [config.get("mlp_ratio", 4)] * len(depths)
    options |= dict(
        blocks=tuple(depths),
        widths=tuple(widths),
        num_heads=tuple(config["num_heads"]),
        mlp_ratios=tuple(ratios),
    )

    def build():
        return models.create_model(
            name, num_classes=config["num_classes"], **options, rngs=nnx.Rngs(0)
        )

    def call(model, inputs):
        return {"out/y": model(channels_last(inputs["x"]))}

    model = nnx.eval_shape(build)
    tables = model.torch_names
    table = tables[
        choose_table(tables, fixture.under("param/"), flatten_names(split_model(model)[1]))
    ]
    return module_case(fixture, build, table, call, tolerance=1e-4)


def _window(config):
    side = config["window_size"]
    return side if isinstance(side, int) else tuple(side)


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


FAMILIES = {
    "swin_block": swin_block,
    "pvtv2_block": pvt_v2_block,
    "cswin_block": cswin_block,
    "swin_net": swin_net,
    "slide_swin_net": slide_swin_net,
    "pvt_net": pvt_net,
    "pvtv2_net": pvt_v2_net,
    "cswin_net": cswin_net,
    "nat_net": nat_net,
}
