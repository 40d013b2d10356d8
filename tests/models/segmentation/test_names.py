"""Keys of segmentation networks in public code, written out from the grammars alone, fill ours
exactly.
"""

import numpy as np
import pytest
from flax import nnx

import models
from lambdanet.interop.names import NameMappingError, choose_table, convert
from lambdanet.training.state import flatten_names

BLOCKS, WIDTHS, CLASSES, HEAD = (1, 1, 1, 1), (8, 12, 16, 24), 7, 16


def norm(name, channels, *, counter=True):
    parts = ("weight", "bias", "running_mean", "running_var")
    state = {f"{name}.{part}": (channels,) for part in parts}
    return {**state, **({f"{name}.num_batches_tracked": ()} if counter else {})}


def conv(name, out, into, side, *, bias=False):
    state = {f"{name}.weight": (out, into, side, side)}
    return {**state, **({f"{name}.bias": (out,)} if bias else {})}


def module(name, out, into, side, *, norm_name="bn"):
    """mmcv's ConvModule."""
    return conv(f"{name}.conv", out, into, side) | norm(f"{name}.{norm_name}", out)


def pair(name, out, into, side, *, first=0, bias=False, counter=True):
    """A convolution and a norm in a Sequential."""
    return conv(f"{name}.{first}", out, into, side, bias=bias) | norm(
        f"{name}.{first + 1}", out, counter=counter
    )


def inside(state, prefix):
    return {f"{prefix}{key}": shape for key, shape in state.items()}


def bottlenecks(channels, *, counter=True):
    state = {}
    for stage, width in enumerate(WIDTHS, 1):
        block, out = f"layer{stage}.0", 4 * width
        for number, (o, i, side) in enumerate(
            ((width, channels, 1), (width, width, 3), (out, width, 1)), 1
        ):
            state |= conv(f"{block}.conv{number}", o, i, side)
            state |= norm(f"{block}.bn{number}", o, counter=counter)
        state |= conv(f"{block}.downsample.0", out, channels, 1)
        state |= norm(f"{block}.downsample.1", out, counter=counter)
        channels = out
    return state


def deep_resnet():
    """CCNet's and OCNet's: in-place norms, which count no batches."""
    state = {}
    for number, (o, i) in enumerate(((8, 3), (8, 8), (16, 8)), 1):
        state |= conv(f"conv{number}", o, i, 3) | norm(f"bn{number}", o, counter=False)
    return state | bottlenecks(16, counter=False)


def plain_resnet():
    return conv("conv1", 8, 3, 7) | norm("bn1", 8) | bottlenecks(8)


LAST, THIRD = 4 * WIDTHS[-1], 4 * WIDTHS[-2]


def official_dsn():
    state = pair("dsn", HEAD, THIRD, 3, bias=True, counter=False)
    return state | conv("dsn.3", CLASSES, HEAD, 1, bias=True)


def projections(name, names, dim, reduced):
    query, key, value = names
    return {
        **conv(f"{name}.{query}", reduced, dim, 1, bias=True),
        **conv(f"{name}.{key}", reduced, dim, 1, bias=True),
        **conv(f"{name}.{value}", dim, dim, 1, bias=True),
    }


OFFICIAL = ("query_conv", "key_conv", "value_conv")


def ccnet():
    head = pair("conva", HEAD, LAST, 3, counter=False)
    head |= projections("cca", OFFICIAL, HEAD, HEAD // 8) | {"cca.gamma": (1,)}
    head |= pair("convb", HEAD, HEAD, 3, counter=False)
    head |= pair("bottleneck", HEAD, LAST + HEAD, 3, counter=False)
    head |= conv("bottleneck.3", CLASSES, HEAD, 1, bias=True)
    return deep_resnet() | inside(head, "head.") | official_dsn()


def ocnet_base():
    unit = pair("f_key", 8, HEAD, 1, bias=True, counter=False)
    unit |= pair("f_query", 8, HEAD, 1, bias=True, counter=False)  # the same layer once more
    unit |= conv("f_value", 8, HEAD, 1, bias=True) | conv("W", HEAD, 8, 1, bias=True)
    block = inside(unit, "stages.0.")
    block |= pair("conv_bn_dropout", HEAD, 2 * HEAD, 1, bias=True, counter=False)
    head = pair("context", HEAD, LAST, 3, bias=True, counter=False) | inside(block, "context.2.")
    return deep_resnet() | head | conv("cls", CLASSES, HEAD, 1, bias=True) | official_dsn()


def danet():
    head = pair("conv5a", HEAD, LAST, 3) | pair("conv5c", HEAD, LAST, 3)
    head |= projections("sa", OFFICIAL, HEAD, HEAD // 8)
    head |= {"sa.gamma": (1,), "sc.gamma": (1,)}
    head |= pair("conv51", HEAD, HEAD, 3) | pair("conv52", HEAD, HEAD, 3)
    for number in (6, 7, 8):
        head |= conv(f"conv{number}.1", CLASSES, HEAD, 1, bias=True)
    auxiliary = pair("conv5", HEAD, THIRD, 3) | conv("conv5.4", CLASSES, HEAD, 1, bias=True)
    backbone = plain_resnet() | {"fc.weight": (1000, LAST), "fc.bias": (1000,)}
    return {
        **inside(backbone, "pretrained."),
        **inside(head, "head."),
        **inside(auxiliary, "auxlayer."),
    }


def openmm_auxiliary(dim):
    state = module("convs.0", HEAD, dim, 3) | conv("conv_seg", CLASSES, HEAD, 1, bias=True)
    return inside(state, "auxiliary_head.")


def openmm_resnet():
    state = {}
    for number, (o, i) in enumerate(((4, 3), (4, 4), (8, 4))):
        state |= conv(f"stem.{3 * number}", o, i, 3) | norm(f"stem.{3 * number + 1}", o)
    return inside(state | bottlenecks(8), "backbone.")


def openmm_concat(block):
    head = module("convs.0", HEAD, LAST, 3) | module("convs.1", HEAD, HEAD, 3) | block
    head |= module("conv_cat", HEAD, LAST + HEAD, 3) | conv("conv_seg", CLASSES, HEAD, 1, bias=True)
    return openmm_resnet() | inside(head, "decode_head.") | openmm_auxiliary(THIRD)


def openmm_ccnet():
    block = projections("cca", OFFICIAL, HEAD, HEAD // 8) | {"cca.gamma.scale": ()}
    return openmm_concat(block)


def openmm_nonlocal():
    block = {
        **conv("nl_block.theta.conv", HEAD // 2, HEAD, 1, bias=True),
        **conv("nl_block.phi.conv", HEAD // 2, HEAD, 1, bias=True),
        **conv("nl_block.g.conv", HEAD // 2, HEAD, 1, bias=True),
        **module("nl_block.conv_out", HEAD, HEAD // 2, 1),
    }
    return openmm_concat(block)


def openmm_upernet(dims):
    head = {}
    for number in range(4):
        head |= module(f"psp_modules.{number}.1", HEAD, dims[-1], 1)
    head |= module("bottleneck", HEAD, dims[-1] + 4 * HEAD, 3)
    for number, dim in enumerate(dims[:-1]):
        head |= module(f"lateral_convs.{number}", HEAD, dim, 1)
        head |= module(f"fpn_convs.{number}", HEAD, HEAD, 3)
    head |= module("fpn_bottleneck", HEAD, 4 * HEAD, 3)
    head |= conv("conv_seg", CLASSES, HEAD, 1, bias=True)
    return inside(head, "decode_head.") | openmm_auxiliary(dims[-2])


def layer_norm(name, dim):
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def linear(name, out, into, *, bias=True):
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


SWIN = dict(widths=(8, 16, 32, 64), num_heads=(1, 2, 4, 8))


def openmm_upernet_swin():
    state = conv("patch_embed.projection", 8, 3, 4, bias=True) | layer_norm("patch_embed.norm", 8)
    for stage, (dim, heads) in enumerate(zip(SWIN["widths"], SWIN["num_heads"], strict=True)):
        block = f"stages.{stage}.blocks.0"
        state |= layer_norm(f"{block}.norm1", dim) | layer_norm(f"{block}.norm2", dim)
        window = f"{block}.attn.w_msa"
        state |= linear(f"{window}.qkv", 3 * dim, dim) | linear(f"{window}.proj", dim, dim)
        state |= {f"{window}.relative_position_bias_table": (13 * 13, heads)}
        state |= {f"{window}.relative_position_index": (49, 49)}
        state |= linear(f"{block}.ffn.layers.0.0", 4 * dim, dim)
        state |= linear(f"{block}.ffn.layers.1", dim, 4 * dim)
        if stage < 3:
            merging = f"stages.{stage}.downsample"
            state |= layer_norm(f"{merging}.norm", 4 * dim)
            state |= linear(f"{merging}.reduction", 2 * dim, 4 * dim, bias=False)
        state |= layer_norm(f"norm{stage}", dim)
    return inside(state, "backbone.") | openmm_upernet(SWIN["widths"])


def openmm_semantic_fpn():
    dims = [4 * width for width in WIDTHS]
    neck, head = {}, {}
    for number, dim in enumerate(dims):
        neck |= conv(f"lateral_convs.{number}.conv", HEAD, dim, 1, bias=True)
        neck |= conv(f"fpn_convs.{number}.conv", HEAD, HEAD, 3, bias=True)
        for index in range(max(1, number)):
            head |= module(f"scale_heads.{number}.{2 * index}", HEAD, HEAD, 3)
    head |= conv("conv_seg", CLASSES, HEAD, 1, bias=True)
    return openmm_resnet() | inside(neck, "neck.") | inside(head, "decode_head.")


def torchvision_fcn():
    head = pair("classifier", LAST // 4, LAST, 3) | conv(
        "classifier.4", CLASSES, LAST // 4, 1, bias=True
    )
    auxiliary = pair("aux_classifier", HEAD, THIRD, 3)
    auxiliary |= conv("aux_classifier.4", CLASSES, HEAD, 1, bias=True)
    return inside(plain_resnet(), "backbone.") | head | auxiliary


RESNET = dict(blocks=BLOCKS, widths=WIDTHS)
# keys -> (framework, network, options of its backbone, of its head)
CASES = {
    ccnet: ("ccnet", "ccnet_resnet50", RESNET, {}),
    ocnet_base: ("ocnet", "ocnet_base_resnet50", RESNET, dict(key_dim=8, value_dim=8)),
    danet: ("danet", "danet_resnet50", RESNET, {}),
    openmm_ccnet: ("mmsegmentation", "nonlocal_resnet50", RESNET, dict(name="criss_cross")),
    openmm_nonlocal: ("mmsegmentation", "nonlocal_resnet50", RESNET, {}),
    openmm_upernet_swin: ("mmsegmentation", "upernet_swin_tiny", dict(SWIN, blocks=BLOCKS), {}),
    openmm_semantic_fpn: (
        "mmsegmentation",
        "semantic_fpn_resnet50",
        RESNET,
        dict(neck_channels=HEAD),
    ),
    torchvision_fcn: ("torchvision", "fcn_resnet50", RESNET, dict(channels=None)),
}


def small(name, backbone, head):
    """The network of that name with other sizes."""
    preset = models.registry.lookup(name)[1]

    def spec(part):
        return {"name": part} if isinstance(part, str) else dict(part)

    parts = dict(
        backbone=spec(preset["backbone"]) | backbone,
        head=spec(preset["head"]) | {"channels": HEAD} | head,
        num_classes=CLASSES,
    )
    if preset.get("auxiliary"):
        parts["auxiliary"] = preset["auxiliary"] | {"channels": HEAD}
    if parts["head"]["name"] == "fcn":
        parts["head"].pop("channels")
    return nnx.eval_shape(lambda: models.create_model(name, **parts, rngs=nnx.Rngs(0)))


def arrays(keys):
    draw = np.random.default_rng(0)
    return {key: draw.standard_normal(shape).astype(np.float32) for key, shape in keys.items()}


@pytest.mark.parametrize("keys", CASES)
def test_every_key_has_its_place(keys):
    framework, name, backbone, head = CASES[keys]
    model = small(name, backbone, head)
    state = arrays(keys())
    leaves = flatten_names(nnx.to_pure_dict(nnx.state(model)))
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    tables = model.torch_names
    assert choose_table(tables, state, shapes) == framework
    ours = convert(state, tables[framework], shapes)
    assert {path: array.shape for path, array in ours.items()} == shapes
    with pytest.raises(NameMappingError, match="1 missing"):
        convert({k: v for k, v in state.items() if k != MISSING[keys]}, tables[framework], shapes)
    with pytest.raises(NameMappingError, match="head.extra"):
        convert({**state, "head.extra": np.zeros(3)}, tables[framework], shapes)


MISSING = {
    ccnet: "head.convb.0.weight",
    ocnet_base: "context.2.stages.0.W.bias",
    danet: "head.sc.gamma",
    openmm_ccnet: "decode_head.cca.gamma.scale",
    openmm_nonlocal: "decode_head.nl_block.g.conv.bias",
    openmm_upernet_swin: "decode_head.fpn_bottleneck.conv.weight",
    openmm_semantic_fpn: "neck.fpn_convs.2.conv.bias",
    torchvision_fcn: "aux_classifier.4.bias",
}


def test_in_place_norms_of_a_whole_network_bring_their_scale():
    framework, name, backbone, head = CASES[ccnet]
    model, state = small(name, backbone, head), arrays(ccnet())
    leaves = flatten_names(nnx.to_pure_dict(nnx.state(model)))
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    ours = convert(state, model.torch_names[framework], shapes)
    for path, key in (
        ("head/mix/norm/scale", "head.convb.1.weight"),
        ("auxiliary/convs/0/norm/scale", "dsn.1.weight"),
        ("backbone/stages/2/blocks/0/conv2/norm/scale", "layer3.0.bn2.weight"),
    ):
        np.testing.assert_allclose(ours[path], np.abs(state[key]) + 1e-5, rtol=1e-6)
