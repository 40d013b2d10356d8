"""What detectors are made of: suppression, box coder, focal loss, RoIAlign."""

import jax.numpy as jnp
from golden_harness import Fixture, Ours, channels_first, channels_last

from lambdanet.ops.boxes import decode_boxes, encode_boxes
from lambdanet.ops.detection_loss import sigmoid_focal_loss
from lambdanet.ops.nms import nms
from lambdanet.ops.roi_align import roi_align


def suppression(fixture: Fixture) -> Ours:
    """Indices by falling score, over all and by class."""
    threshold = fixture.config["iou_threshold"]

    def kept(boxes, scores, classes):
        keep = nms(boxes, scores, threshold, classes=classes)
        order = jnp.argsort(-scores, stable=True)
        return order[jnp.argsort(~keep[order], stable=True)], keep.sum()

    def run(params, inputs):
        boxes, scores, classes = (inputs[key] for key in ("boxes", "scores", "classes"))
        outputs = {}
        for key, own in (("keep", None), ("keep_batched", classes)):
            length = fixture.arrays[f"out/{key}"].size
            order, count = kept(boxes, scores, own)
            # -1 where more or fewer are kept than the reference keeps.
            outputs[f"out/{key}"] = jnp.where(count == length, order[:length], -1)
        return outputs

    return Ours(run)


def box_coder(fixture: Fixture) -> Ours:
    stds = tuple(fixture.config["stds"])

    def run(params, inputs):
        anchors = inputs["proposals"]
        return {
            "out/encoded": encode_boxes(inputs["gt"], anchors, stds),
            "out/decoded": decode_boxes(inputs["deltas"], anchors, stds, "upper"),
        }

    return Ours(run)


def focal_loss(fixture: Fixture) -> Ours:
    options = {key: fixture.config[key] for key in ("alpha", "gamma")}

    def run(params, inputs):
        return {"out/loss": sigmoid_focal_loss(inputs["logits"], inputs["targets"], **options)}

    return Ours(run, input_of={"x": "logits"})


def aligned(fixture: Fixture) -> Ours:
    """Boxes of any image in any order: each is computed on its own map."""
    config = fixture.config

    def run(params, inputs):
        features = channels_last(inputs["feat"])
        image, boxes = inputs["rois"][:, 0].astype(jnp.int32), inputs["rois"][:, 1:]
        outputs = {}
        for key, ratio in (("y", config["sampling_ratio"]), ("y_adaptive", 0)):
            found = roi_align(
                features[image],
                boxes[:, None],
                output_size=tuple(config["output_size"]),
                scale=config["spatial_scale"],
                sampling_ratio=ratio,
                aligned=config["aligned"],
            )
            outputs[f"out/{key}"] = channels_first(found[:, 0])
        return outputs

    return Ours(run, input_of={"x": "feat"})


FAMILIES = {
    "nms": suppression,
    "box_coder": box_coder,
    "focal_loss": focal_loss,
    "roi_align": aligned,
}
