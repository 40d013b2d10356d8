"""Name tables of detectors: what checkpoints of torchvision and mmdetection call the parameters."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
from flax import nnx

from lambdanet.interop.names import CONV, LINEAR, POINTWISE, Rule, prefixed
from lambdanet.layers import fpn

Table = tuple[Rule, ...]

BACKBONE_GRAMMARS = {
    "torchvision": ("torchvision",),
    "mmdetection": ("mmseg", "torchvision", "official"),
}
"""Grammars of a backbone in a framework's files; the first that it has is taken."""


def tables(backbone: nnx.Module, detector: nnx.Module) -> dict[str, Table]:
    """Returns framework -> table of a detector, of every framework that has its backbone.

    torchvision's published files were made with frozen norms that divide by sqrt(var), where ours
    divide by sqrt(var + 1e-5), and these norms count no batches. So a file without such counters is
    read by the table 'torchvision_frozen', which takes 1e-5 off the variances, and one with them by
    'torchvision'.

    Args:
        backbone: the backbone.
        detector: the whole.

    Raises:
        ValueError: there is none.
    """
    own = backbone.torch_names
    found = {}
    heads = {"torchvision": _torchvision, "mmdetection": _mmdetection}
    for framework, grammars in BACKBONE_GRAMMARS.items():
        grammar = next((grammar for grammar in grammars if grammar in own), None)
        if grammar is None:
            continue
        prefix = r"backbone\.body\." if framework == "torchvision" else r"backbone\."
        body = prefixed(own[grammar], prefix, "backbone")
        parts = heads[framework](detector)
        if framework == "torchvision":
            found["torchvision_frozen"] = (*_frozen(body), *parts)
        found[framework] = (*body, *parts)
    if not found:
        raise ValueError(
            f"no PyTorch name table for this detector: the backbone's are for {', '.join(own)}; a "
            f"detector needs one of {', '.join(sorted({*sum(BACKBONE_GRAMMARS.values(), ())}))}"
        )
    return found


def _frozen(table: Table) -> Table:
    return tuple(
        replace(rule, transform=_without_epsilon)
        if isinstance(rule.target, str) and rule.target.endswith("/norm/var")
        else rule
        for rule in table
        if rule.target is not None or "num_batches" not in rule.pattern
    )


def _without_epsilon(variance: np.ndarray) -> np.ndarray:
    """var -> var - 1e-5, so that sqrt(var + epsilon) is what sqrt(var) was."""
    return variance - variance.dtype.type(1e-5)


def _torchvision(detector: nnx.Module) -> Table:
    neck, maps = r"backbone\.fpn\.", detector.num_maps
    rules = [
        # files of before 2022 have no Sequential around each layer
        *prefixed(POINTWISE, neck + r"inner_blocks\.(\d+)\.(?:0\.)?", r"neck/laterals/\1"),
        *prefixed(CONV, neck + r"layer_blocks\.(\d+)\.(?:0\.)?", r"neck/smooth/\1"),
    ]
    for number in range(len(detector.strides) - maps):
        rules += prefixed(CONV, rf"{neck}extra_blocks\.p{6 + number}\.", f"neck/beyond/{number}")
    if hasattr(detector, "head"):
        for theirs, last, tower, ours in (
            ("classification_head", "cls_logits", "class_tower", "classify"),
            ("regression_head", "bbox_reg", "box_tower", "regress"),
        ):
            head = rf"head\.{theirs}\."
            for number in range(len(detector.head.class_tower.convs)):
                path = f"head/{tower}/convs/{number}/conv"
                rules += prefixed(CONV, rf"{head}conv\.(?:{number}\.0|{2 * number})\.", path)
            rules += prefixed(CONV, rf"{head}{last}\.", f"head/{ours}")
        return tuple(rules)
    rpn, roi = r"rpn\.head\.", r"roi_heads\."
    rules += [
        *prefixed(CONV, rf"{rpn}conv\.(\d+)\.0\.", r"rpn/tower/convs/\1/conv"),
        *prefixed(CONV, rf"{rpn}conv\.", "rpn/tower/convs/0/conv"),
        *prefixed(POINTWISE, rf"{rpn}cls_logits\.", "rpn/objectness"),
        *prefixed(POINTWISE, rf"{rpn}bbox_pred\.", "rpn/regress"),
        *prefixed(_first_layer(detector), rf"{roi}box_head\.fc6\.", "box_head/fc1"),
        *prefixed(LINEAR, rf"{roi}box_head\.fc7\.", "box_head/fc2"),
        *prefixed(LINEAR, rf"{roi}box_predictor\.cls_score\.", "box_head/classify"),
        *prefixed(LINEAR, rf"{roi}box_predictor\.bbox_pred\.", "box_head/regress"),
    ]
    if detector.mask_head is not None:
        for number in range(len(detector.mask_head.tower.convs)):
            path = f"mask_head/tower/convs/{number}/conv"
            theirs = rf"{roi}mask_head\.(?:{number}\.0|mask_fcn{number + 1})\."
            rules += prefixed(CONV, theirs, path)
        predictor = rf"{roi}mask_predictor\."
        rules += prefixed(_DOUBLE, rf"{predictor}conv5_mask\.", "mask_head/double")
        rules += prefixed(POINTWISE, rf"{predictor}mask_fcn_logits\.", "mask_head/classify")
    return tuple(rules)


def _mmdetection(detector: nnx.Module) -> Table:
    rules = list(prefixed(fpn.torch_names(detector.num_maps), r"neck\.", "neck"))
    if hasattr(detector, "head"):
        head = r"bbox_head\."
        for theirs, tower in (("cls_convs", "class_tower"), ("reg_convs", "box_tower")):
            path = rf"head/{tower}/convs/\1/conv"
            rules += prefixed(CONV, rf"{head}{theirs}\.(\d+)\.conv\.", path)
        rules += prefixed(CONV, rf"{head}retina_cls\.", "head/classify")
        return (*rules, *prefixed(CONV, rf"{head}retina_reg\.", "head/regress"))
    rpn, roi = r"rpn_head\.", r"roi_head\."
    rules += [
        *prefixed(CONV, rf"{rpn}rpn_conv\.", "rpn/tower/convs/0/conv"),
        *prefixed(POINTWISE, rf"{rpn}rpn_cls\.", "rpn/objectness"),
        *prefixed(POINTWISE, rf"{rpn}rpn_reg\.", "rpn/regress"),
        *prefixed(_first_layer(detector), rf"{roi}bbox_head\.shared_fcs\.0\.", "box_head/fc1"),
        *prefixed(LINEAR, rf"{roi}bbox_head\.shared_fcs\.1\.", "box_head/fc2"),
        *prefixed(LINEAR, rf"{roi}bbox_head\.fc_cls\.", "box_head/classify"),
        *prefixed(LINEAR, rf"{roi}bbox_head\.fc_reg\.", "box_head/regress"),
    ]
    if detector.mask_head is not None:
        mask = rf"{roi}mask_head\."
        rules += prefixed(CONV, rf"{mask}convs\.(\d+)\.conv\.", r"mask_head/tower/convs/\1/conv")
        rules += prefixed(_DOUBLE, rf"{mask}upsample\.", "mask_head/double")
        rules += prefixed(POINTWISE, rf"{mask}conv_logits\.", "mask_head/classify")
    return tuple(rules)


def _transposed(array: np.ndarray) -> np.ndarray:
    """ConvTranspose2d's [in, out, kh, kw] -> [kh, kw, in, out]."""
    return array.transpose(2, 3, 0, 1)


_DOUBLE = (Rule(r"weight", "kernel", _transposed), Rule(r"bias", "bias"))


def _first_layer(detector: nnx.Module) -> tuple[Rule, ...]:
    """The layer on a flattened region, theirs channels-first, ours channels-last."""
    transform = functools.partial(_flattened, side=detector.box_size)
    return Rule(r"weight", "kernel", transform), Rule(r"bias", "bias")


def _flattened(array: np.ndarray, *, side: int) -> np.ndarray:
    """[out, c h w] -> [h w c, out]."""
    out, inner = array.shape
    if inner % side**2:
        raise ValueError(f"a layer on regions of {side} x {side} cannot have {inner} inputs")
    return array.reshape(out, -1, side, side).transpose(2, 3, 1, 0).reshape(inner, out)
