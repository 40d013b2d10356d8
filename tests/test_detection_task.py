"""Detection as a task: options and checks, the loss of several terms, boxes back in pixels of the
stored picture, drawn objects.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import models
from configs import base, coco, digit_scenes, own_objects
from lambdanet import config as config_lib
from lambdanet import tasks
from lambdanet.config import ConfigError
from lambdanet.data.record import DataInfo
from lambdanet.drawing.box_drawing import SHORTEST, draw_objects
from lambdanet.tasks import detection, detection_panels

INFO = DataInfo({"image": "image", "boxes": "objects/bbox"}, ("cat", "dog", "owl"))


@pytest.fixture
def config():
    config = base.get_config()
    config.task, config.train.keep_best = "detection", "box_ap"
    config.data.mean, config.data.std = (0.5,), (0.25,)
    return config


def test_what_is_measured_follows_the_config(config):
    boxes = [name for name in detection.METRICS if name.startswith("box_")]
    assert list(tasks.metrics(config)) == boxes and boxes[0] == "box_ap"
    config.detection.masks = True
    assert set(tasks.metrics(config)) == set(detection.METRICS) - {"voc_ap50"}
    config.detection.metric = "voc"
    assert next(iter(tasks.metrics(config))) == "voc_ap50"
    assert set(tasks.metrics(config)) == set(detection.METRICS)


def problems(config, model="small_retinanet", **changes):
    config.model.name = model
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value

    def build():
        made = models.builder_from_config(config, tasks.options_without_data(config))
        return nnx.eval_shape(lambda: made(rngs=nnx.Rngs(0)))

    with pytest.raises(ConfigError) as error:
        config_lib.validate(
            config, base.get_config(), models.registry, build=build, check_paths=False
        )
    return str(error.value)


def test_everything_wrong_is_said_at_once(config):
    text = problems(
        config,
        detection__max_objects=0,
        detection__mask_bytes=1,
        detection__metric="coca",
        detection__shown_score=1.5,
        data__crop="random_resized",
        data__rand_augment=(2, 9.0),
        train__keep_best="box_ap60",
    )
    for part in ("max_objects", "mask_bytes", "Did you mean 'coco'", "shown_score", "'scale_crop'"):
        assert part in text
    assert "RandAugment moves pixels" in text and "metrics of 'detection': box_ap," in text


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("small_retinanet", dict(train__keep_best="mask_ap"), "need detection.masks=True"),
        ("small_retinanet", dict(train__keep_best="voc_ap50"), "needs detection.metric='voc'"),
        ("small_retinanet", dict(detection__masks=True), "gives boxes alone"),
        ("small_mask_rcnn", {}, "set detection.masks=True, or take model.name='faster_rcnn'"),
        ("resnet18", {}, "with model.backbone='resnet18'"),
    ],
)
def test_what_does_not_fit_together(config, model, changes, said):
    assert said in problems(config, model, **changes)


def test_the_number_of_classes_and_masks(config):
    assert detection.model_options(INFO, config) == {"num_classes": 3}
    config.model.num_classes = 2
    with pytest.raises(ValueError, match="num_classes=2, but the data has 3 classes"):
        detection.model_options(INFO, config)
    config.detection.masks = True
    with pytest.raises(ValueError, match="have no masks: set it to False, and take a model"):
        detection.model_options(INFO, config)


def test_the_loss_is_the_sum_of_means_and_shows_each(config):
    class Terms(nnx.Module):
        def losses(self, images, shapes, targets, *, rngs):
            assert set(targets) == {"boxes", "classes", "valid", "crowd"}
            assert images.dtype == jnp.float32 and rngs.dropout() is not None
            count = targets["valid"].sum()
            return {"box": (jnp.float32(6.0), count), "mask": (jnp.float32(0.0), 0 * count)}

    m = config.detection.max_objects = 4
    rows = {
        "image": np.zeros((2, 8, 8, 1), np.uint8), "image_shape": np.full((2, 2), 8),
        "boxes": np.zeros((2, m, 4), np.float32), "classes": np.zeros((2, m), np.int32),
        "valid": np.arange(2 * m).reshape(2, m) < 3, "crowd": np.zeros((2, m), bool),
    }  # fmt: skip
    value, terms = detection.loss(Terms(), rows, config, nnx.Rngs(dropout=0))
    assert float(value) == 2.0 and set(terms) == {"loss", "box_loss", "mask_loss"}
    assert tuple(map(float, terms["loss"])) == (4.0, 2.0)
    assert tuple(map(float, terms["box_loss"])) == (6.0, 3.0)
    assert tuple(map(float, terms["mask_loss"])) == (0.0, 0.0)
    rows["valid"][:] = False
    assert float(detection.loss(Terms(), rows, config, nnx.Rngs(dropout=0))[0]) == 6.0


def test_boxes_go_back_to_the_stored_picture():
    boxes = jnp.array([[[0.0, 0, 32, 16], [8, 4, 16, 8], [30, 15, 40, 20]]])
    found = detection.stored_boxes(boxes, jnp.array([[16, 32]]), jnp.array([[50, 100]]))
    expected = [[0, 0, 100, 50], [25, 12.5, 50, 25], [93.75, 46.875, 100, 50]]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_scores_hand_over_detections_and_truth(config):
    class Detector(nnx.Module):
        def detect(self, images, shapes):
            count = len(images)
            return {
                "boxes": jnp.tile(jnp.array([1.0, 2, 3, 4]), (count, 5, 1)),
                "scores": jnp.ones((count, 5), jnp.bfloat16),
                "classes": jnp.zeros((count, 5), jnp.int32),
                "valid": jnp.ones((count, 5), bool),
                "masks": jnp.full((count, 5, 4, 4), 0.5),
            }

    config.data.image_size, config.detection.masks = (16, 16), True
    config.detection.max_objects, config.detection.mask_bytes = 3, 256
    blank = detection.blank(config)
    rows = jax.tree.map(lambda a: np.stack([a] * 2), blank) | {"mask": np.array([1.0, 0.0])}
    sums, found = detection.score(Detector(), rows, config)
    assert float(sums["count"]) == 1 and found["scores"].dtype == jnp.float32
    assert found["masks"].dtype == jnp.uint8 and int(found["masks"].max()) == 128
    assert {*detection.TRUTH.values(), "boxes", "scores", "classes", "valid", "masks"} == set(found)
    config.detection.masks = False
    rows = {k: v for k, v in rows.items() if not k.startswith("mask") or k == "mask"}
    assert not [name for name in detection.score(Detector(), rows, config)[1] if "mask" in name]


def test_objects_are_legible_at_any_size():
    rng = np.random.default_rng(0)
    boxes = np.array([[0, 0, 3, 2], [1.4, 0.2, 2.9, 1.8], [-5, -5, 900, 900]], np.float32)
    classes, labels = np.array([0, 7, 300]), ["cat 90 %", "x" * 200, "line\nbreak"]
    for shape in ((2, 3, 1), (40, 600, 3), (1100, 700, 3)):
        image = rng.integers(0, 256, shape, np.uint8)
        masks = rng.random((3, *shape[:2])) < 0.5
        drawn = draw_objects(image, boxes, classes, labels, masks)
        assert max(drawn.size) >= SHORTEST and drawn.mode == "RGB"
        assert drawn.width % shape[1] == 0 == drawn.height % shape[0]
    nothing = draw_objects(image, boxes[:0], classes[:0], [])
    np.testing.assert_array_equal(np.asarray(nothing), image)


def test_recipes_say_what_is_learnt():
    config = coco.get_config("mask_rcnn,lambda_resnet50,3x")
    assert config.detection.masks and config.model.name == "mask_rcnn_lambda_resnet50"
    assert (config.train.epochs, config.optim.step_epochs) == (36.0, (27, 33))
    assert (config.optim.lr, config.optim.frozen) == (0.02, coco.FROZEN)
    assert round(config.optim.warmup_epochs * coco.TRAIN_IMAGES / 16) == 500
    swin = coco.get_config("retinanet,swin_tiny")
    assert (swin.optim.name, swin.optim.weight_decay, swin.train.epochs) == ("adamw", 0.05, 12.0)
    assert not swin.detection.masks and swin.train.keep_best == "box_ap"
    assert coco.get_config("").model.name == "mask_rcnn_resnet50_mmdet"
    own = own_objects.get_config("small_mask_rcnn")
    assert own.detection.masks and own.train.keep_best == "mask_ap"
    own.detection.metric, own.train.keep_best = "voc", "voc_ap50"  # as its docstring says
    config_lib.validate(own, base.get_config(), models.registry, check_paths=False)
    assert digit_scenes.get_config("instances").train.keep_best == "mask_ap"
    with pytest.raises(ValueError, match="argument 'upernet'; allowed: faster_rcnn, retinanet"):
        digit_scenes.get_config("detect,upernet")
    with pytest.raises(ValueError, match=r"\. Did you mean 'small_mask_rcnn'"):
        own_objects.get_config("small_mask_rnn")


def test_the_stem_and_the_first_stage_are_frozen_and_all_statistics():
    from lambdanet.training.optimizer import match_mask
    from lambdanet.training.state import flatten_names, split_model

    config = coco.get_config("mask_rcnn,lambda_resnet50,smoke")
    model = nnx.eval_shape(lambda: models.create_from_config(config, rngs=nnx.Rngs(0)))
    _, params, stats = split_model(model)
    for tree, stays in ((params, ("backbone/stem/", "backbone/stages/0/")), (stats, "backbone/")):
        frozen = flatten_names(match_mask(config.optim.frozen, tree))
        assert frozen and all(value == path.startswith(stays) for path, value in frozen.items())


def test_bitmaps_of_objects_count_as_memory(config):
    from lambdanet.config_memory import batch_problems

    config.detection.max_objects = 10_000
    assert not batch_problems(config, limit=2**30)
    config.detection.masks = True
    (text,) = batch_problems(config, limit=2**30)
    assert "detection.max_objects = 10000" in text


@pytest.mark.parametrize("count", [detection_panels.NAMED, detection_panels.NAMED + 1])
def test_names_stand_in_pictures_of_few_objects_only(count):
    corners = np.arange(count, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    boxes = (corners + np.float32([0, 0, 2, 2]))[None]
    rows = dict(
        boxes=boxes,
        classes=np.zeros((1, count), np.int32),
        scores=np.full((1, count), 0.9, np.float32),
        valid=np.ones((1, count), bool),
        true_boxes=boxes,
        true_valid=np.ones((1, count), bool),
    )
    axes = Figure().subplots()
    image, own = np.zeros((20, 20, 3), np.uint8), SimpleNamespace(shown_score=0.5, masks=False)
    detection_panels.draw_picture(axes, image, rows, 0, np.ones(4), ["cell"], own)
    assert len(axes.patches) == 2 * count
    assert [t.get_text() for t in axes.texts] == ["cell 90"] * (
        count if count <= detection_panels.NAMED else 0
    )


@pytest.mark.parametrize("width", [20, 3], ids=["moved", "cut"])
def test_names_stay_in_their_picture(width):
    boxes = np.float32([[[width - 1, 0, width, 4], [0, 10, 2, 20]]])
    rows = dict(
        boxes=boxes,
        classes=np.zeros((1, 2), np.int32),
        scores=np.full((1, 2), 0.9, np.float32),
        valid=np.ones((1, 2), bool),
        true_boxes=boxes,
        true_valid=np.zeros((1, 2), bool),
    )
    figure = Figure(figsize=(6, 3), dpi=50)
    canvas, axes = FigureCanvasAgg(figure), figure.add_axes((0.3, 0.1, 0.4, 0.8))
    axes.axis("off")
    image, own = np.zeros((20, width, 3), np.uint8), SimpleNamespace(shown_score=0.5, masks=False)
    detection_panels.draw_picture(axes, image, rows, 0, np.ones(4), ["a long name of it"], own)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    frame = axes.get_window_extent()
    left, right = int(frame.x0) - 1, int(frame.x1) + 2
    top = len(pixels) - int(frame.y1) - 2
    assert (pixels[:, :left] == 255).all() and (pixels[:, right:] == 255).all()
    assert (pixels[:top] == 255).all()
    inside = pixels[top + 2 : top + 30, left + 2 : right - 2]
    assert (inside.max(2) > 90).any(), "the name is there"
