"""The task 'video_detection': examples, what evaluation at interval 1 is equal to, frames that are
not counted, checks, and the loop around it.
"""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detector_helpers import DETECTORS, evaluation, loud
from flax import nnx
from matplotlib.figure import Figure

import models
import train
from configs import base, moving_digits
from lambdanet import config as config_lib
from lambdanet import data, tasks
from lambdanet.config import ConfigError
from lambdanet.data.record import DataInfo, Record, UnusableRecordError
from lambdanet.tasks import detection, video_detection
from lambdanet.training.metrics import read_records

INFO = DataInfo({"frames": "frames", "boxes": "boxes", "classes": "classes"}, ("a", "b", "c"))
SIZE = (64, 64)


def spec(name):
    own = {k: v for k, v in DETECTORS[name].items() if k not in ("num_classes", "image_size")}
    own["backbone"] = {**own["backbone"], "zero_init_last": False}
    return {**own, "name": name, "first_stage": 3, "num_levels": 2}


@pytest.fixture
def config():
    config = base.get_config()
    config.task, config.train.keep_best = "video_detection", "box_ap50"
    config.data.image_size, config.data.channels = SIZE, 3
    config.detection.max_objects = 4
    config.propagation.eval_frames, config.propagation.interval = 5, 1
    config.model = dict(
        name="video_detector",
        detector=spec("retinanet"),
        propagation=dict(name="deep_feature_flow", width=1 / 32, levels=3, half=False),
    )
    return config


def record(number=0, frames=5, size=(48, 64)):
    """Noise on which bright rectangles move to the right, the second from frame 1 on."""
    rng = np.random.default_rng(number)
    clip = rng.integers(0, 60, (frames, *size, 3), np.uint8)
    boxes = np.zeros((frames, 2, 4), np.float32)
    for t in range(frames):
        boxes[t] = [[4 + 3 * t, 8, 20 + 3 * t, 20], [10 + t, 26, 24 + t, 44]]
        for left, top, right, bottom in boxes[t, : 1 + (t > 0)].astype(int):
            clip[t, top:bottom, left:right] = 255
    boxes[0, 1] = 0
    fields = {"frames": clip, "boxes": boxes, "classes": np.array([2, 0])}
    return Record(fields, 10 + number, f"record {number}")


def model(config):
    made = models.builder_from_config(config, {"num_classes": 3})(rngs=nnx.Rngs(0))
    return evaluation(loud(made, factor=200.0))


def batch_of(examples, pad=0):
    rows = {k: np.stack([one[k] for one in examples]) for k in examples[0]}
    return rows | {"mask": np.arange(len(examples)).__lt__(len(examples) - pad).astype(np.float32)}


def rows_of(task, made, batch, config):
    graphdef, state = nnx.split(made)
    run = jax.jit(lambda state, batch: task.score(nnx.merge(graphdef, state), batch, config))
    return jax.tree.map(np.asarray, run(state, batch))


def box_around(image):
    rows, columns = np.nonzero(image[..., 0] > 150)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_a_training_example_has_one_geometry_and_the_current_frames_boxes(config):
    config.data.flip, config.data.crop, config.data.scale_range = 0.5, "scale_crop", (0.8, 1.4)
    config.data.color_jitter = (0.2, 0.0, 0.0)
    config.propagation.max_distance = 3
    seen, distances = set(), set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        found = video_detection.example(record(), INFO, config, rng)
        assert found["frames"].shape == (1, *SIZE, 3) and found["image"].shape == (*SIZE, 3)
        assert found["same"] == np.array_equal(found["frames"][0], found["image"])
        assert found["valid"].dtype == bool and found["boxes"].shape == (4, 4)
        height, width = found["image_shape"]
        assert height <= SIZE[0] and width <= SIZE[1]
        valid = found["boxes"][found["valid"]]
        if found["valid"][0] and found["classes"][0] == 2:
            box = found["boxes"][0]
            inside = found["image"][
                int(box[1]) : int(np.ceil(box[3])), int(box[0]) : int(np.ceil(box[2]))
            ]
            assert (inside[1:-1, 1:-1] > 150).all()
        assert (valid[:, 2] <= width).all() and (valid[:, 3] <= height).all()
        again = video_detection.example(record(), INFO, config, np.random.default_rng(seed))
        assert all(np.array_equal(found[k], again[k]) for k in found)
        seen.add(found["image"].tobytes())
        distances.add(bool(found["same"]))
    assert len(seen) > 6 and distances == {True, False}


def test_an_evaluation_example_has_the_truth_of_every_frame(config):
    config.propagation.eval_frames = 7
    found = video_detection.example(record(), INFO, config, None)
    assert found["counted"].tolist() == [True] * 5 + [False] * 2
    assert found["valid"].sum(1).tolist() == [1, 2, 2, 2, 2, 0, 0]
    assert found["classes"][:, 0].tolist() == [2] * 5 + [0] * 2
    assert found["image_shape"].tolist() == found["original_shape"].tolist() == [48, 64]
    frames = np.concatenate([found["frames"], found["image"][None]])
    for t in range(5):
        assert box_around(frames[t, :23, :64]) == found["true_boxes"][t, 0].tolist()
    assert np.array_equal(frames[5], frames[4]) and np.array_equal(frames[6], frames[4])
    blank = video_detection.blank(data.attributes(config))
    assert {k: (v.shape, v.dtype) for k, v in blank.items()} == {
        k: (v.shape, v.dtype) for k, v in found.items()
    }
    config.detection.max_objects = 1
    with pytest.raises(UnusableRecordError, match="2 objects, but detection.max_objects=1"):
        video_detection.example(record(), INFO, config, None)


@pytest.mark.exhaustive
def test_at_interval_1_it_is_detection_in_every_frame(config):
    made, records = model(config), [record(0), record(1, size=(96, 128))]
    clips = batch_of([video_detection.example(one, INFO, config, None) for one in records])
    sums, rows = rows_of(video_detection, made, clips, config)
    assert sums["count"] == 2
    rows["id"] = np.array([one.id for one in records])
    flat = video_detection.by_frame(rows)
    single, ids = [], []
    for one in records:
        for t in range(5):
            own = frame_of(one, t)
            single.append(detection.example(own, INFO, config, None))
            ids.append(own.id)
    _, expected = rows_of(detection, made, batch_of(single), config)
    expected["id"] = np.array(ids)
    assert set(flat) == set(expected) and flat["valid"].any()
    for name, values in expected.items():
        np.testing.assert_allclose(flat[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    found = video_detection.finish(sums, rows, INFO, config)
    np.testing.assert_allclose(
        list(found.values()), list(detection.finish(sums, expected, INFO, config).values())
    )
    assert list(found) == list(tasks.metrics(config)) and np.isfinite(found["box_ap50"])


def frame_of(one, t):
    boxes, there = one.fields["boxes"][t], one.fields["boxes"][t].any(1)
    fields = dict(image=one.fields["frames"][t], boxes=boxes[there])
    return Record(fields | {"classes": one.fields["classes"][there]}, 5 * one.id + t, "frame")


def test_between_key_frames_the_features_are_carried(config):
    config.model.propagation = dict(name="copy")
    config.propagation.interval = 3
    clips = batch_of([video_detection.example(record(), INFO, config, None)])
    _, rows = rows_of(video_detection, model(config), clips, config)
    scores = rows["scores"][0]
    assert (scores[1] == scores[0]).all() and (scores[2] == scores[0]).all()
    assert (scores[3] != scores[0]).any() and (scores[4] == scores[3]).all()


def test_frames_that_are_not_counted_are_left_out(config):
    config.propagation.eval_frames = 6
    made = model(config)
    example = video_detection.example(record(), INFO, config, None)
    sums, rows = rows_of(video_detection, made, batch_of([example]), config)
    rows["id"] = np.array([7])
    flat = video_detection.by_frame(rows)
    assert flat["id"].tolist() == [42, 43, 44, 45, 46] and len(flat["boxes"]) == 5
    assert flat["original_shape"].tolist() == [[48, 64]] * 5
    columns, lines, _ = video_detection.class_table(sums, rows, INFO, config)
    assert columns[1] == "objects" and [line[1] for line in lines] == ["4", "0", "5"]


def test_panels_and_files_show_frames(config, tmp_path):
    made = model(config)
    example = video_detection.example(record(), INFO, config, None)
    _, rows = rows_of(video_detection, made, batch_of([example]), config)
    rows["id"] = np.array([7])
    figure = Figure()
    side, below = figure.subfigures(1, 2)
    examples = {**batch_of([example]), "id": rows["id"]}
    options = dict(info=INFO, config=config)
    found = dict(sums={}, rows=rows, examples=examples)
    lines = video_detection.panels(side, below, **found, **options)
    assert lines
    shown = [image for axes in figure.axes for image in axes.images]
    assert sum(image.get_array().shape == (48, 64, 3) for image in shown) == 5
    written = video_detection.write_results(rows, tmp_path, **options)
    assert {path.name for path in written} == {"predictions.json", "truth.json"}
    assert written[-1].read_text().count('"height": 48') == 5


def test_the_loss_is_that_of_the_current_frame(config):
    """With the current frame as key frame, that of detection."""
    config.model.propagation = dict(name="copy")
    config.propagation.max_distance = 0
    made = models.builder_from_config(config, {"num_classes": 3})(rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(made)
    rng = np.random.default_rng
    batch = batch_of([video_detection.example(record(n), INFO, config, rng(n)) for n in range(2)])
    assert batch["same"].all()

    @jax.jit
    def both(state, batch):
        return [
            task.loss(nnx.merge(graphdef, state, copy=True), batch, config, nnx.Rngs(dropout=0))
            for task in (video_detection, detection)
        ]

    (value, terms), (expected, _) = both(state, batch)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert set(terms) == {"loss", "classification_loss", "box_loss"}


def problems(config, **changes):
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(detection__masks=True), "objects of videos have no masks: set masks=False"),
        (dict(train__keep_best="voc_ap50"), "needs detection.metric='voc'"),
        (dict(train__keep_best="mask_ap"), "keep_best must be a metric of the task"),
        (dict(data__crop="shift"), "have the crops 'none'"),
        (dict(data__rand_augment=(2, 9.0)), "RandAugment moves pixels"),
        (dict(propagation__others=2), "model.propagation reads one key frame; allowed: 0"),
        (
            dict(model__propagation=dict(name="flow_guided_aggregation")),
            "reads many frames; allowed: 1 or more",
        ),
    ],
)
def test_what_does_not_fit_together(config, changes, said):
    assert said in problems(config, **changes)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("small_retinanet", "'video_detector' with a model.detector='small_retinanet' that reads"),
        ("small_fcn", "'small_fcn' carries no objects from frame to frame"),
    ],
)
def test_a_model_of_another_task_is_refused(config, name, said):
    config.model = dict(name=name)
    assert said in problems(config)


def test_a_detector_of_masks_is_refused(config):
    own = {
        k: v for k, v in DETECTORS["mask_rcnn"].items() if k not in ("num_classes", "image_size")
    }
    config.model.detector = {**own, "name": "mask_rcnn", "first_stage": 3, "num_levels": 2}
    assert "learns masks, which moving objects do not have" in problems(config)


@pytest.mark.exhaustive
def test_a_run_trains_evaluates_and_reports(tmp_path):
    config = moving_digits.get_config("detect,deep_feature_flow,smoke")
    config.train.steps, config.train.eval_every, config.train.report = 2, 0.0, True
    config.train.cache_dir, config.data.synthetic_records = "", 16
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        outcome = train.run(config, tmp_path, stream=io.StringIO(), devices=jax.devices()[:1])
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    assert outcome["step"] == 2 and 0 <= outcome["box_ap50"] <= 1
    records = [r for r in read_records(tmp_path) if r["split"] == "train"]
    assert records and all(np.isfinite(r["classification_loss"]) for r in records)
    assert (tmp_path / "report.md").is_file() and jnp.isfinite(outcome["box_ap"])
