"""PyTorch checkpoints of torchvision's, timm's (ResNet-RS, SE-ResNet, byobnet) and CBAM's networks
fill ours exactly.
"""

import functools

import numpy as np
import pytest
from flax import nnx

import models
from lambdanet.interop.names import NameMappingError, convert
from lambdanet.training.state import flatten_names


def norm(name, channels):
    state = {
        f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")
    }
    return {**state, f"{name}.num_batches_tracked": ()}


def conv(name, channels_out, channels_in, side):
    return {f"{name}.weight": (channels_out, channels_in, side, side)}


def torchvision_bottlenecks(widths, channels, *, shortcut=("0", "1"), se_ratio=0, cbam=False):
    state = {}
    for stage, width in enumerate(widths, 1):
        block, out = f"layer{stage}.0", 4 * width
        for number, (o, i, side) in enumerate(
            ((width, channels, 1), (width, width, 3), (out, width, 1)), 1
        ):
            state |= conv(f"{block}.conv{number}", o, i, side) | norm(f"{block}.bn{number}", o)
        if se_ratio:
            hidden = out // se_ratio
            state |= {**conv(f"{block}.se.fc1", hidden, out, 1), f"{block}.se.fc1.bias": (hidden,)}
            state |= {**conv(f"{block}.se.fc2", out, hidden, 1), f"{block}.se.fc2.bias": (out,)}
        if cbam:
            gate, spatial = f"{block}.cbam.ChannelGate.mlp", f"{block}.cbam.SpatialGate.spatial"
            state |= {f"{gate}.1.weight": (out // 16, out), f"{gate}.1.bias": (out // 16,)}
            state |= {f"{gate}.3.weight": (out, out // 16), f"{gate}.3.bias": (out,)}
            state |= conv(f"{spatial}.conv", 1, 2, 7) | norm(f"{spatial}.bn", 1)
        state |= conv(f"{block}.downsample.{shortcut[0]}", out, channels, 1) | norm(
            f"{block}.downsample.{shortcut[1]}", out
        )
        channels = out
    return state | {"fc.weight": (7, channels), "fc.bias": (7,)}


def torchvision(**gates):
    state = conv("conv1", 8, 3, 7) | norm("bn1", 8)
    return state | torchvision_bottlenecks((8, 8, 8, 16), 8, **gates)


def timm_resnetrs():
    state = {}
    for index, (o, i) in zip((0, 3, 6), ((4, 3), (4, 4), (8, 4)), strict=True):
        state |= conv(f"conv1.{index}", o, i, 3)
    state |= (
        norm("conv1.1", 4)
        | norm("conv1.4", 4)
        | norm("bn1", 8)
        | conv("maxpool.0", 8, 8, 3)
        | norm("maxpool.1", 8)
    )
    return state | torchvision_bottlenecks((8, 8, 8, 16), 8, shortcut=("1", "2"), se_ratio=4)


def timm_byobnet():
    state = {}
    for number, (o, i) in enumerate(((3, 3), (4, 3), (8, 4)), 1):
        state |= conv(f"stem.conv{number}.conv", o, i, 3) | norm(f"stem.conv{number}.bn", o)
    channels = 8
    for stage, width in enumerate((8, 8, 8, 16)):
        block, out = f"stages.{stage}.0", 4 * width
        state |= conv(f"{block}.conv1_1x1.conv", width, channels, 1) | norm(
            f"{block}.conv1_1x1.bn", width
        )
        if stage < 2:
            state |= conv(f"{block}.conv2_kxk.conv", width, width, 3) | norm(
                f"{block}.conv2_kxk.bn", width
            )
        else:
            layer, v = f"{block}.self_attn", width // 4
            state |= (
                conv(f"{layer}.qkv", 64 + 16 + v, width, 1)
                | norm(f"{layer}.norm_q", 64)
                | norm(f"{layer}.norm_v", v)
            )
            state |= {
                f"{layer}.conv_lambda.weight": (16, 1, 9, 9, 1),
                f"{layer}.conv_lambda.bias": (16,),
            }
            state |= norm(f"{block}.post_attn", width)
        state |= conv(f"{block}.conv3_1x1.conv", out, width, 1) | norm(f"{block}.conv3_1x1.bn", out)
        state |= conv(f"{block}.shortcut.conv", out, channels, 1) | norm(
            f"{block}.shortcut.bn", out
        )
        channels = out
    return state | {"head.fc.weight": (7, channels), "head.fc.bias": (7,)}


CASES = {
    "resnet50": torchvision,
    "resnet_rs50": timm_resnetrs,
    "se_resnet50": functools.partial(torchvision, se_ratio=16),
    "cbam_resnet50": functools.partial(torchvision, cbam=True),
    "lambda_resnet26t": timm_byobnet,
}


def tiny(name, **overrides):
    small = dict(blocks=(1, 1, 1, 1), widths=(8, 8, 8, 16), num_classes=7)
    return nnx.eval_shape(lambda: models.create_model(name, **small, **overrides, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", CASES)
def test_every_key_has_its_place(name):
    model = tiny(name)
    rng = np.random.default_rng(0)
    state = {key: rng.normal(size=shape).astype(np.float32) for key, shape in CASES[name]().items()}
    leaves = flatten_names(nnx.to_pure_dict(nnx.state(model)))
    (table,) = model.torch_names.values()
    ours = convert(state, table, {path: leaf.shape for path, leaf in leaves.items()})
    assert {path: array.shape for path, array in ours.items()} == {
        path: leaf.shape for path, leaf in leaves.items()
    }
    count = sum(
        array.size for key, array in state.items() if not key.endswith("num_batches_tracked")
    )
    assert sum(array.size for array in ours.values()) == count
    fc = next(key for key in state if key.endswith("fc.weight"))
    np.testing.assert_array_equal(ours["head/fc/kernel"], state[fc].T)


def test_a_checkpoint_of_another_network_is_refused():
    model = tiny("resnet50")
    state = {key: np.zeros(shape, np.float32) for key, shape in timm_resnetrs().items()}
    shapes = {
        path: leaf.shape for path, leaf in flatten_names(nnx.to_pure_dict(nnx.state(model))).items()
    }
    with pytest.raises(NameMappingError, match="conv1.0.weight"):
        convert(state, model.torch_names["torchvision"], shapes)


def test_networks_without_a_pytorch_counterpart_say_so():
    with pytest.raises(
        ValueError,
        match="no PyTorch name table for stem='cifar' with shortcut='conv'; there is one for",
    ):
        _ = tiny("resnet50", stem="cifar").torch_names
