"""torchvision's three detectors, with random weights, find what ours find and have the same losses.

Their transform of the pictures is left out: both get pictures that are resized and padded already.
Needs PyTorch and torchvision; nothing is downloaded.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from lambdanet.training import state, weights
from models.detection import regions

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed; requirements-dev.txt lists it"
)
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
from torch_helpers import randomise  # noqa: E402
from torchvision.models.detection import _utils as torch_utils  # noqa: E402
from torchvision.models.detection import roi_heads as torch_roi_heads  # noqa: E402
from torchvision.models.detection.image_list import ImageList  # noqa: E402

DETECTORS = {
    "retinanet": "retinanet_resnet50_fpn",
    "faster_rcnn": "fasterrcnn_resnet50_fpn",
    "mask_rcnn": "maskrcnn_resnet50_fpn",
}
THRESHOLDS = {"retinanet": 0.012, "faster_rcnn": 0.02, "mask_rcnn": 0.02}
CANVAS, SIZES = (128, 192), ((128, 192), (100, 150), (120, 97))
OBJECTS = 4


class Untransformed(torch.nn.Module):
    """In the place of GeneralizedRCNNTransform: nothing."""

    def forward(self, images, targets=None):
        return images, targets

    def postprocess(self, detections, *sizes):
        return detections


class Images(ImageList):
    """What the detectors take for a list of pictures."""

    def __iter__(self):
        return iter(self.tensors)


def reference(name):
    """torchvision's detector; its last layers say more than zeros."""
    detector = getattr(torchvision.models.detection, DETECTORS[name])(
        weights=None, weights_backbone=None
    )
    detector = randomise(detector)
    with torch.no_grad():
        for key, parameter in detector.named_parameters():
            last = key.split(".")[-2]
            if last in ("cls_logits", "bbox_reg", "bbox_pred", "cls_score"):
                parameter.mul_(1 if parameter.ndim == 1 else 5)
    detector.transform = Untransformed()
    if name == "retinanet":
        detector.score_thresh = THRESHOLDS[name]
    else:
        detector.roi_heads.score_thresh = THRESHOLDS[name]
    return detector


def loaded(name, detector, tmp_path, **options):
    """Our detector with the same weights: graphs of training and evaluation, and its weights."""

    def build():
        return models.create_model(
            f"{name}_resnet50_torchvision",
            score_threshold=THRESHOLDS[name],
            image_size=CANVAS,
            rngs=nnx.Rngs(0),
            **options,
        )

    torch.save(detector.state_dict(), tmp_path / "reference.pth")
    params, stats = weights.read_weights(
        tmp_path / "reference.pth", nnx.eval_shape(build), *state.abstract_weights(build)
    )
    return state.views(build), params, stats


def pictures(count):
    draw = np.random.default_rng(0)
    images = np.zeros((count, 3, *CANVAS), np.float32)
    for image, (h, w) in zip(images, SIZES, strict=False):
        image[:, :h, :w] = draw.standard_normal((3, h, w))
    return images


def ours(images):
    return jnp.moveaxis(jnp.asarray(images), 1, -1)


@pytest.mark.parametrize("name", DETECTORS)
def test_detections(name, tmp_path):
    detector = reference(name)
    (_, evaluation), params, stats = loaded(name, detector, tmp_path)
    images = pictures(3)
    with torch.no_grad():
        theirs = detector(Images(torch.from_numpy(images), list(SIZES)))

    @jax.jit
    def run(images, shapes):
        with jax.default_matmul_precision("highest"):
            return nnx.merge(evaluation, params, stats).detect(images, shapes)

    found = jax.tree.map(np.asarray, run(ours(images), jnp.asarray(SIZES, jnp.int32)))
    model = nnx.merge(evaluation, params, stats)
    background = 0 if name == "retinanet" else 1  # a class of its own among their labels
    labels = np.arange(model.num_outputs) + background
    np.testing.assert_array_equal(model.class_numbers, labels)
    for index, expected in enumerate(theirs):
        mine = {key: value[index][found["valid"][index]] for key, value in found.items()}
        scores = expected["scores"].numpy()
        assert len(scores) == len(mine["scores"]) >= 50
        np.testing.assert_allclose(mine["scores"], scores, atol=1e-4, rtol=0)
        taken = set()
        for place in range(len(scores)):
            # equal scores may come in any order; two boxes without area, which suppress none, may
            # be equal
            near = np.flatnonzero(np.abs(mine["scores"] - scores[place]) < 1e-6)
            box, label = expected["boxes"][place].numpy(), expected["labels"][place].item()
            away = np.abs(mine["boxes"][near] - box).max(axis=1)
            same = near[(away < 1e-2) & (mine["classes"][near] + background == label)]
            free = [match for match in same if match not in taken]
            assert free, (index, place)
            if len(same) > 1:
                sides = mine["boxes"][same][:, 2:] - mine["boxes"][same][:, :2]
                assert sides.min(axis=1).max() < 1e-2, (index, place)
            taken.add(free[0])
            if name == "mask_rcnn":
                mask = expected["masks"][place, 0].numpy()
                np.testing.assert_allclose(mine["masks"][free[0]], mask, atol=1e-3)


def objects(count):
    """Boxes, classes and masks; the second picture has none, the third half as many."""
    draw = np.random.default_rng(1)
    corner = draw.uniform(0, 50, (count, OBJECTS, 2))
    boxes = np.concatenate([corner, corner + draw.uniform(16, 45, corner.shape)], -1)
    valid = np.arange(OBJECTS) < np.array([OBJECTS, 0, OBJECTS // 2])[:count, None]
    return dict(
        boxes=(boxes * valid[..., None]).astype(np.float32),
        classes=draw.integers(0, 90, valid.shape).astype(np.int32),
        valid=valid,
        crowd=np.zeros_like(valid),
        masks=draw.integers(0, 2, (*valid.shape, 112, 112)).astype(np.uint8),
    )


def unsampled(name, detector):
    """Takes sampling out of both; returns the options of ours."""
    if name == "retinanet":
        return {}
    everything = torch_utils.BalancedPositiveNegativeSampler(10**6, 0.5)
    # at most forty positive proposals, of which there are fewer
    seconds = torch_utils.BalancedPositiveNegativeSampler(40_000, 0.001)
    detector.rpn.fg_bg_sampler, detector.roi_heads.fg_bg_sampler = everything, seconds
    detector.rpn._pre_nms_top_n = detector.rpn._post_nms_top_n = dict(training=100, testing=100)
    return dict(
        rpn_samples=10**6,
        roi_samples=40_000,
        roi_positive_fraction=0.001,
        proposals_before=(100, 100),
        proposals_after=(100, 100),
    )


def torch_targets(targets, background):
    return [
        dict(
            boxes=torch.from_numpy(targets["boxes"][index][valid]),
            labels=torch.from_numpy(targets["classes"][index][valid] + background).long(),
            masks=torch.from_numpy(targets["masks"][index][valid]),
        )
        for index, valid in enumerate(targets["valid"])
    ]


def same_mask_targets(targets):
    """In the place of theirs, which cut full-size bitmaps: what ours cut out of the crops."""
    rows = iter(range(len(targets["valid"])))

    def project(masks, boxes, index, side):
        row = next(rows)
        if len(boxes) == 0:
            return torch.zeros(0, side, side)
        found = regions.mask_targets(
            jnp.asarray(targets["masks"][row][None]),
            jnp.asarray(targets["boxes"][row][None]),
            jnp.asarray(boxes.detach().numpy()[None]),
            jnp.asarray(index.numpy().astype(np.int32)[None]),
            size=side,
            binary=False,
        )
        return torch.from_numpy(np.array(found[0]))

    return project


@pytest.mark.parametrize("name", DETECTORS)
def test_losses(name, tmp_path, monkeypatch):
    detector = reference(name)
    options = unsampled(name, detector)
    (train, _), params, stats = loaded(name, detector, tmp_path, **options)
    images, targets = pictures(3), objects(3)
    monkeypatch.setattr(torch_roi_heads, "project_masks_on_boxes", same_mask_targets(targets))
    detector.train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    background = 0 if name == "retinanet" else 1
    with torch.no_grad():
        theirs = detector(
            Images(torch.from_numpy(images), list(SIZES)), torch_targets(targets, background)
        )

    @jax.jit
    def run(images, shapes, targets):
        with jax.default_matmul_precision("highest"):
            model = nnx.merge(train, params, stats)
            model = nnx.view(model, use_running_average=True)
            return model.losses(images, shapes, targets, rngs=nnx.Rngs(dropout=0))

    found = run(ours(images), jnp.asarray(SIZES, jnp.int32), jax.tree.map(jnp.asarray, targets))
    found = {key: float(total / jnp.maximum(weight, 1)) for key, (total, weight) in found.items()}
    names = {
        "objectness": "loss_objectness",
        "proposal_box": "loss_rpn_box_reg",
        "classification": "classification" if name == "retinanet" else "loss_classifier",
        "box": "bbox_regression" if name == "retinanet" else "loss_box_reg",
        "mask": "loss_mask",
    }
    expected = {key: theirs[names[key]].item() for key in found}
    print(found, expected)
    assert len(found) == len(theirs) == {"retinanet": 2, "faster_rcnn": 4, "mask_rcnn": 5}[name]
    assert all(value > 1e-5 for value in expected.values()), expected
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
