"""The model that a stranger's file is nearest to, among all that PyTorch has a form of."""

import numpy as np
import pytest

import models

WIDTHS = (64, 128, 256, 512)


def layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norm(name, width):
    return layer(name, width) | {f"{name}.running_{what}": (width,) for what in ("mean", "var")}


def mlp(name, width, ratio):
    fc1, fc2 = (ratio * width, width), (width, ratio * width)
    return layer(f"{name}.mlp.fc1", *fc1) | layer(f"{name}.mlp.fc2", *fc2)


def transformer_block(name, attention, width, ratio):
    """What the blocks of all families have; `attention` is the prefix of their projections."""
    found = layer(f"{name}.norm1", width) | layer(f"{name}.norm2", width)
    return found | layer(f"{attention}proj", width, width) | mlp(name, width, ratio)


def end(width):
    return layer("norm", width) | layer("head", 1000, width)


def swin(widths, blocks, grammar="official"):
    found = layer("patch_embed.proj", widths[0], 3, 4, 4) | layer("patch_embed.norm", widths[0])
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for number in range(count):
            at = f"layers.{stage}.blocks.{number}"
            found |= transformer_block(at, f"{at}.attn.", width, 4)
            found |= layer(f"{at}.attn.qkv", 3 * width, width)
            found[f"{at}.attn.relative_position_bias_table"] = (169, width // 32)
        if stage < 3:
            at = f"layers.{stage + (grammar == 'timm')}.downsample"
            found |= layer(f"{at}.norm", 4 * width)
            found[f"{at}.reduction.weight"] = (2 * width, 4 * width)
    found |= end(widths[-1])
    if grammar == "timm":
        found |= {key.replace("head.", "head.fc."): found.pop(key) for key in list(found)
                  if key.startswith("head.")}  # fmt: skip
    return found


def pvt(blocks):
    found, before = {"cls_token": (1, 1, 512)}, 3
    numbers = zip((64, 128, 320, 512), blocks, (8, 4, 2, 1), (8, 8, 4, 4), strict=True)
    for stage, (width, count, reduction, ratio) in enumerate(numbers, 1):
        side, tokens = (4 if stage == 1 else 2), (224 // 2 ** (stage + 1)) ** 2 + (stage == 4)
        found |= layer(f"patch_embed{stage}.proj", width, before, side, side)
        found |= layer(f"patch_embed{stage}.norm", width)
        found[f"pos_embed{stage}"] = (1, tokens, width)
        for number in range(count):
            at = f"block{stage}.{number}"
            found |= transformer_block(at, f"{at}.attn.", width, ratio)
            found |= layer(f"{at}.attn.q", width, width) | layer(f"{at}.attn.kv", 2 * width, width)
            if reduction > 1:
                found |= layer(f"{at}.attn.sr", width, width, reduction, reduction)
                found |= layer(f"{at}.attn.norm", width)
        before = width
    return found | end(512)


def nat(blocks, ratio):
    found = layer("patch_embed.proj.0", 32, 3, 3, 3) | layer("patch_embed.proj.1", 64, 32, 3, 3)
    found |= layer("patch_embed.norm", 64)
    for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True)):
        for number in range(count):
            at = f"levels.{stage}.blocks.{number}"
            found |= transformer_block(at, f"{at}.attn.", width, ratio)
            found |= layer(f"{at}.attn.qkv", 3 * width, width)
            found[f"{at}.attn.rpb"] = (width // 32, 13, 13)
        if stage < 3:
            at = f"levels.{stage}.downsample"
            found[f"{at}.reduction.weight"] = (2 * width, width, 3, 3)
            found |= layer(f"{at}.norm", 2 * width)
    return found | end(512)


def cswin(blocks):
    found = layer("stage1_conv_embed.0", 64, 3, 7, 7) | layer("stage1_conv_embed.2", 64)
    for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), 1):
        halves = 1 if stage == 4 else 2
        for number in range(count):
            at = f"stage{stage}.{number}"
            found |= transformer_block(at, f"{at}.", width, 4)
            found |= layer(f"{at}.qkv", 3 * width, width)
            for half in range(halves):
                found |= layer(f"{at}.attns.{half}.get_v", width // halves, 1, 3, 3)
        if stage < 4:
            found |= layer(f"merge{stage}.conv", 2 * width, width, 3, 3)
            found |= layer(f"merge{stage}.norm", 2 * width)
    return found | end(512)


def resnet(blocks, *, gates=False, dense=False):
    """torchvision's ResNets of bottlenecks, and those of the authors of CBAM."""
    found = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    before = 64
    for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), 1):
        for number in range(count):
            at, out = f"layer{stage}.{number}", 4 * width
            found |= {f"{at}.conv1.weight": (width, before, 1, 1)} | norm(f"{at}.bn1", width)
            found |= {f"{at}.conv2.weight": (width, width, 3, 3)} | norm(f"{at}.bn2", width)
            found |= {f"{at}.conv3.weight": (out, width, 1, 1)} | norm(f"{at}.bn3", out)
            if number == 0:
                found |= {f"{at}.downsample.0.weight": (out, before, 1, 1)}
                found |= norm(f"{at}.downsample.1", out)
            if gates:
                found |= layer(f"{at}.cbam.ChannelGate.mlp.1", out // 16, out)
                found |= layer(f"{at}.cbam.ChannelGate.mlp.3", out, out // 16)
                found[f"{at}.cbam.SpatialGate.spatial.conv.weight"] = (1, 2, 7, 7)
                found |= norm(f"{at}.cbam.SpatialGate.spatial.bn", 1)
            before = out
    if not dense:
        return found | layer("fc", 1000, before)
    found = {f"backbone.{key}": shape for key, shape in found.items()}
    for name, into, channels in (("classifier", 2048, 512), ("aux_classifier", 1024, 256)):
        found |= {f"{name}.0.weight": (channels, into, 3, 3)} | norm(f"{name}.1", channels)
        found |= layer(f"{name}.4", 21, channels, 1, 1)
    return found


SAMPLES = {
    "swin_tiny": swin((96, 192, 384, 768), (2, 2, 6, 2)),
    "swin_small": swin((96, 192, 384, 768), (2, 2, 18, 2), "timm"),
    "pvt_tiny": pvt((2, 2, 2, 2)),
    "nat_tiny": nat((3, 4, 18, 5), 3),
    "cswin_tiny": cswin((1, 2, 21, 1)),
    "resnet50": resnet((3, 4, 6, 3)),
    "cbam_resnet50": resnet((3, 4, 6, 3), gates=True),
    "fcn_resnet50": resnet((3, 4, 6, 3), dense=True),
}


def arrays_of(shapes):
    """Arrays that take no memory."""
    return {key: np.broadcast_to(np.float16(0), shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_of_every_family_is_told(name):
    arrays = arrays_of(SAMPLES[name])
    said = models.closest_model(arrays)
    assert f"closest model is {name!r}: all " in said, said


@pytest.mark.parametrize(("rename", "says"), [("head.{}", "171 of the 173"), ("fc.{}", "171 of")])
def test_a_classifier_of_its_own_does_not_matter(rename, says):
    shapes = dict(SAMPLES["swin_tiny"])
    del shapes["head.weight"], shapes["head.bias"]
    shapes |= {rename.format("weight"): (7, 768), rename.format("bias"): (7,)}
    assert f"closest model is 'swin_tiny': {says}" in models.closest_model(arrays_of(shapes))


def test_no_model_is_near_to_what_is_no_network():
    for keys in (
        {"encoder.weight": (3,)},
        {"layer1.0.weight": (3,)},
        {"layer1.0.a": (), "x": (2, 3)},
    ):
        assert models.closest_model(arrays_of(keys)) == ""


@pytest.mark.exhaustive  # all models of that depth are compared
def test_a_part_of_a_network_is_told():
    shapes = SAMPLES["resnet50"]
    some = {key: shape for key, shape in shapes.items() if ".bn2." not in key}
    assert "closest model is 'resnet50': 203 of the 267" in models.closest_model(arrays_of(some))
