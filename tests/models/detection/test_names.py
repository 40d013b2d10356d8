"""Keys of public detectors, written out from the grammars alone, fill ours exactly."""

import functools

import numpy as np
import pytest
from flax import nnx

import models
from lambdanet.interop.names import NameMappingError, choose_table, convert
from lambdanet.training.state import flatten_names
from models.detection.names import _without_epsilon

BLOCKS, WIDTHS, DIM, CLASSES = (1, 1, 1, 1), (4, 4, 8, 8), 8, 3
RESNET = dict(name="resnet50", blocks=BLOCKS, widths=WIDTHS)


def norm(name, channels, counter):
    parts = ("weight", "bias", "running_mean", "running_var")
    state = {f"{name}.{part}": (channels,) for part in parts}
    return {**state, **({f"{name}.num_batches_tracked": ()} if counter else {})}


def conv(name, out, into, side, bias=True):
    state = {f"{name}.weight": (out, into, side, side)}
    return {**state, **({f"{name}.bias": (out,)} if bias else {})}


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def inside(state, prefix):
    return {f"{prefix}{key}": shape for key, shape in state.items()}


def resnet(counter=True):
    state = conv("conv1", 4, 3, 7, bias=False) | norm("bn1", 4, counter)
    channels = 4
    for stage, width in enumerate(WIDTHS, 1):
        block, out = f"layer{stage}.0", 4 * width
        for number, (o, i, side) in enumerate(
            ((width, channels, 1), (width, width, 3), (out, width, 1)), 1
        ):
            state |= conv(f"{block}.conv{number}", o, i, side, bias=False)
            state |= norm(f"{block}.bn{number}", o, counter)
        state |= conv(f"{block}.downsample.0", out, channels, 1, bias=False)
        state |= norm(f"{block}.downsample.1", out, counter)
        channels = out
    return state


def torch_pyramid(first, old):
    layer = "" if old else ".0"
    state = {}
    for number, width in enumerate(WIDTHS[first:]):
        state |= conv(f"inner_blocks.{number}{layer}", DIM, 4 * width, 1)
        state |= conv(f"layer_blocks.{number}{layer}", DIM, DIM, 3)
    return state


def torch_retinanet(old=False, counter=True):
    state = inside(resnet(counter), "backbone.body.")
    neck = torch_pyramid(1, old)
    for extra in ("p6", "p7"):
        neck |= conv(f"extra_blocks.{extra}", DIM, DIM, 3)
    state |= inside(neck, "backbone.fpn.")
    for part, last, values in (
        ("classification_head", "cls_logits", CLASSES),
        ("regression_head", "bbox_reg", 4),
    ):
        for number in range(4):
            name = f"conv.{2 * number}" if old else f"conv.{number}.0"
            state |= conv(f"head.{part}.{name}", DIM, DIM, 3)
        state |= conv(f"head.{part}.{last}", 9 * values, DIM, 3)
    return state


def torch_rcnn(old=False, counter=True, masks=True):
    state = inside(resnet(counter), "backbone.body.")
    state |= inside(torch_pyramid(0, old), "backbone.fpn.")
    state |= conv("rpn.head.conv" if old else "rpn.head.conv.0.0", DIM, DIM, 3)
    state |= conv("rpn.head.cls_logits", 3, DIM, 1) | conv("rpn.head.bbox_pred", 12, DIM, 1)
    roi = linear("box_head.fc6", 16, DIM * 49) | linear("box_head.fc7", 16, 16)
    roi |= linear("box_predictor.cls_score", CLASSES + 1, 16)
    roi |= linear("box_predictor.bbox_pred", 4 * (CLASSES + 1), 16)
    if masks:
        for number in range(4):
            name = f"mask_fcn{number + 1}" if old else f"{number}.0"
            roi |= conv(f"mask_head.{name}", DIM, DIM, 3)
        roi |= conv("mask_predictor.conv5_mask", DIM, DIM, 2)
        roi |= conv("mask_predictor.mask_fcn_logits", CLASSES + 1, DIM, 1)
    return state | inside(roi, "roi_heads.")


def mm_pyramid(first, beyond):
    state = {}
    for number, width in enumerate(WIDTHS[first:]):
        state |= conv(f"neck.lateral_convs.{number}.conv", DIM, 4 * width, 1)
        state |= conv(f"neck.fpn_convs.{number}.conv", DIM, DIM, 3)
    for number in range(beyond):
        into = DIM if number else 4 * WIDTHS[-1]
        state |= conv(f"neck.fpn_convs.{number + 4 - first}.conv", DIM, into, 3)
    return state


def mm_retinanet():
    state = inside(resnet(), "backbone.") | mm_pyramid(1, 2)
    for tower in ("cls_convs", "reg_convs"):
        for number in range(4):
            state |= conv(f"bbox_head.{tower}.{number}.conv", DIM, DIM, 3)
    state |= conv("bbox_head.retina_cls", 9 * CLASSES, DIM, 3)
    return state | conv("bbox_head.retina_reg", 36, DIM, 3)


def mm_mask_rcnn():
    state = inside(resnet(), "backbone.") | mm_pyramid(0, 0)
    state |= conv("rpn_head.rpn_conv", DIM, DIM, 3)
    state |= conv("rpn_head.rpn_cls", 3, DIM, 1) | conv("rpn_head.rpn_reg", 12, DIM, 1)
    box, mask = "roi_head.bbox_head", "roi_head.mask_head"
    state |= linear(f"{box}.shared_fcs.0", 16, DIM * 49) | linear(f"{box}.shared_fcs.1", 16, 16)
    state |= linear(f"{box}.fc_cls", CLASSES + 1, 16) | linear(f"{box}.fc_reg", 4 * CLASSES, 16)
    for number in range(4):
        state |= conv(f"{mask}.convs.{number}.conv", DIM, DIM, 3)
    state |= conv(f"{mask}.upsample", DIM, DIM, 2)
    return state | conv(f"{mask}.conv_logits", CLASSES, DIM, 1)


@functools.cache
def abstract(name, classes=CLASSES, backbone="small"):
    options = {} if "retinanet" in name else dict(fc_channels=16, mask_channels=DIM)
    backbone = RESNET if backbone == "small" else backbone
    return nnx.eval_shape(
        lambda: models.create_model(
            name, backbone=backbone, channels=DIM, num_classes=classes, rngs=nnx.Rngs(0), **options
        )
    )


def shapes_of(model):
    flat = flatten_names(nnx.to_pure_dict(nnx.state(model)))
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def arrays(state):
    draw = np.random.default_rng(0)
    return {key: draw.uniform(0.5, 1.5, shape).astype(np.float32) for key, shape in state.items()}


FILES = {
    "retinanet": ("retinanet_resnet50_torchvision", torch_retinanet(), "torchvision"),
    "retinanet_published": (
        "retinanet_resnet50_torchvision",
        torch_retinanet(old=True, counter=False),
        "torchvision_frozen",
    ),
    "faster_rcnn": ("faster_rcnn_resnet50_torchvision", torch_rcnn(masks=False), "torchvision"),
    "mask_rcnn": ("mask_rcnn_resnet50_torchvision", torch_rcnn(), "torchvision"),
    "mask_rcnn_published": (
        "mask_rcnn_resnet50_torchvision",
        torch_rcnn(old=True, counter=False),
        "torchvision_frozen",
    ),
    "mm_retinanet": ("retinanet_resnet50_mmdet", mm_retinanet(), "mmdetection"),
    "mm_mask_rcnn": ("mask_rcnn_resnet50_mmdet", mm_mask_rcnn(), "mmdetection"),
}


@pytest.mark.parametrize("file", FILES)
def test_every_key_has_its_place(file):
    name, keys, grammar = FILES[file]
    model = abstract(name)
    shapes, state = shapes_of(model), arrays(keys)
    tables = model.torch_names
    assert choose_table(tables, list(state), shapes) == grammar
    found = convert(state, tables[grammar], shapes)
    assert {path: array.shape for path, array in found.items()} == shapes


def test_layouts():
    """What is no plain transposition: regions are flattened channels last, masks doubled."""
    name, keys, grammar = FILES["mask_rcnn"]
    model, state = abstract(name), arrays(keys)
    found = convert(state, model.torch_names[grammar], shapes_of(model))
    draw = np.random.default_rng(1)
    region = draw.standard_normal((DIM, 7, 7)).astype(np.float32)
    theirs = state["roi_heads.box_head.fc6.weight"] @ region.reshape(-1)
    ours = region.transpose(1, 2, 0).reshape(-1) @ found["box_head/fc1/kernel"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    theirs = state["roi_heads.mask_predictor.conv5_mask.weight"]  # [in, out, row, column]
    np.testing.assert_array_equal(found["mask_head/double/kernel"][1, 0], theirs[:, :, 1, 0])


def test_frozen_norms_of_published_files_had_no_epsilon():
    name, keys, grammar = FILES["retinanet_published"]
    model, state = abstract(name), arrays(keys)
    found = convert(state, model.torch_names[grammar], shapes_of(model))
    variance = state["backbone.body.bn1.running_var"]
    np.testing.assert_allclose(found["backbone/stem/conv1/norm/var"] + 1e-5, variance, rtol=1e-6)
    assert _without_epsilon(variance).dtype == variance.dtype


@pytest.mark.parametrize("file", ["retinanet", "mask_rcnn"])
def test_class_heads_are_replaceable(file):
    name, keys, grammar = FILES[file]
    model = abstract(name, classes=CLASSES + 2)
    shapes, state = shapes_of(model), arrays(keys)
    with pytest.raises(NameMappingError, match="mis-shaped"):
        convert(state, model.torch_names[grammar], shapes)
    found = convert(state, model.torch_names[grammar], shapes, allow_head_mismatch=model.classifier)
    left = {path.rpartition("/")[0] for path in set(shapes) - set(found)}
    assert left == set(model.classifier)
    other = shapes_of(abstract(name))
    assert {path.rpartition("/")[0] for path in shapes if shapes[path] != other[path]} == left


def test_a_classifiers_weights_become_the_backbone():
    state = arrays(resnet() | linear("fc", 1000, 4 * WIDTHS[-1]))
    for name in ("small_retinanet", "mask_rcnn"):
        model = abstract(name)
        shapes = {k: v for k, v in shapes_of(model).items() if k.startswith("backbone/")}
        tables = model.backbone_names
        table = choose_table(tables, list(state), shapes)
        assert set(convert(state, tables[table], shapes)) == set(shapes)


def test_a_backbone_of_no_framework_has_no_table():
    with pytest.raises(ValueError, match="no PyTorch name table"):
        _ = abstract("retinanet", backbone="lambda_resnet50").torch_names
