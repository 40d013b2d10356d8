"""The task 'video_segmentation': pairs and their labels, evaluation against a loop over frames,
what it shares with segmentation, gradients, and what is refused.
"""

import functools
import io
import types

import covering
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx

import models
import train
from configs import base, smoke
from lambdanet import data, tasks
from lambdanet.config import ConfigError, validate
from lambdanet.config_memory import batch_problems
from lambdanet.data import moving_scenes
from lambdanet.data.record import CorruptRecordError, DataInfo, Record
from lambdanet.ops.images import normalise
from lambdanet.tasks import segmentation, video_segmentation
from lambdanet.training.state import flatten_names, split_model

INFO = DataInfo({"frames": "frames", "segmentation_mask": "masks"}, ("a", "b", "c"))
FLOW = dict(width=1 / 32, levels=3, half=False)
EMBED = dict(hidden_channels=4, embedding_channels=6)
PROPAGATIONS = {
    "none": {},
    "copy": {},
    "deep_feature_flow": FLOW,
    "flow_guided_aggregation": {**FLOW, **EMBED},
    "sparse_recursion": {**FLOW, **EMBED},
    "neighborhood_propagation": dict(embedding_channels=6, radius=1, ring=1),
}
SIDE = 16


@pytest.fixture
def config():
    config = base.get_config()
    config.task, config.data.source = "video_segmentation", "synthetic"
    config.data.image_size, config.data.channels = (SIDE, SIDE), 3
    config.data.synthetic_records, config.data.synthetic_classes = 12, 3
    config.propagation.max_distance = 3
    config.train.keep_best = "mean_iou"
    return config


def options(name):
    return dict(
        backbone=dict(
            name="resnet18", blocks=(1, 1), widths=(4, 6), stem="strided", zero_init_last=False
        ),
        head=dict(name="fcn", channels=4, dropout=0.0),
        propagation=dict(name=name, **PROPAGATIONS[name]),
        classifier_std=1.0,
    )


@functools.cache
def _built(name):
    made = models.create_model(
        "video_segmenter", **options(name), num_classes=3, image_size=(SIDE, SIDE), rngs=nnx.Rngs(0)
    )
    net = getattr(made.propagation, "flow_net", None)
    if net is not None:  # flows of about a cell in place of nearly none
        net.flow.kernel[...] *= 20
    return made


def build(name):
    """A network of its own; initialised once."""
    return nnx.clone(_built(name))


# ---- Examples ------------------------------------------------------------------------------------


def record(count=9, size=(12, 10), **fields):
    """Frame t has the red value 20 t at every pixel and label t modulo 3; the green values and, in
    one corner, the labels say where a pixel comes from.
    """
    height, width = size
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = 20 * np.arange(count)[:, None, None]
    frames[..., 1] = np.arange(height * width).reshape(size)
    masks = np.broadcast_to(np.arange(count)[:, None, None] % 3, frames.shape[:3]).astype(np.uint8)
    masks = masks[..., None].copy()
    masks[:, :5, :5] = 255
    return Record({"frames": frames, "segmentation_mask": masks, **fields}, 7, "record 7")


def example(made, config, rng):
    return video_segmentation.example(made, INFO, data.attributes(config), rng)


def examples(config, count=200, **options):
    made = record(**options)
    for seed in range(count):
        yield example(made, config, np.random.default_rng(seed))


def test_pairs_and_the_label_map_of_the_current_frame(config):
    config.data.image_size = (12, 10)
    seen = set()
    for found in examples(config):
        assert found["frames"].shape == (1, 12, 10, 3) and found["image"].shape == (12, 10, 3)
        key, current = (int(a[-1, -1, 0]) // 20 for a in (found["frames"][0], found["image"]))
        assert found["same"] == (key == current) and found["same"].dtype == bool
        assert set(np.unique(found["label_map"][5:])) == {current % 3}
        assert (found["label_map"][:5, :5] == 255).all() and found["label_map"].dtype == np.uint8
        seen.add((key, current))
    assert {current - key for key, current in seen} == {0, 1, 2, 3}


def test_others_come_in_front_of_the_current_frame(config):
    config.data.image_size, config.propagation.others = (12, 10), 3
    for found in examples(config, 40):
        assert found["frames"].shape == (3, 12, 10, 3) and not found["same"]
        numbers = found["frames"][:, -1, -1, 0] // 20
        current = int(found["image"][-1, -1, 0]) // 20
        assert np.abs(numbers.astype(int) - current).max() <= 3
        assert set(np.unique(found["label_map"][5:])) == {current % 3}


@pytest.mark.parametrize("crop", ["shift", "scale_crop", "random_resized"])
def test_one_geometry_and_one_colour_for_all_frames_and_the_labels(config, crop):
    config.data.image_size, config.data.crop, config.data.shift = (48, 40), crop, 3
    config.data.flip, config.data.cat_max_ratio = 0.5, 1.0
    config.data.interpolation = "bilinear"
    rng, seen = np.random.default_rng(3), set()
    labels = rng.integers(0, 3, (12, 10), np.uint8).repeat(4, 0).repeat(4, 1)
    still = np.broadcast_to((80 * labels)[None, ..., None], (5, 48, 40, 3))
    masks = np.broadcast_to(labels[None, ..., None], (5, 48, 40, 1))
    same = Record({"frames": still, "segmentation_mask": masks}, 0, "still")
    for seed in range(6):
        found = example(same, config, np.random.default_rng(seed))
        assert (found["frames"] == found["image"]).all()
        # At most pixels, those that lie within a square, the colour is the label's.
        known = (found["image"][..., 0] % 80 == 0) & (found["label_map"] != 255)
        value = found["image"][..., 0] // 80
        assert (value == found["label_map"])[known].mean() > 0.9
        seen.add(found["image"].tobytes())
        config.data.photometric_distortion, config.data.random_erasing = True, 1.0
        coloured = example(same, config, np.random.default_rng(seed))
        assert (coloured["frames"] == coloured["image"]).all()
        assert not np.array_equal(coloured["image"], found["image"])
        config.data.photometric_distortion, config.data.random_erasing = False, 0.0
    assert len(seen) == 6


def test_evaluation_takes_whole_frames_of_the_middle(config):
    config.segmentation.eval_size, config.propagation.eval_frames = (12, 14), 4
    found = example(record(9), config, None)
    blank = video_segmentation.blank(data.attributes(config))
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in blank.items()
    }
    assert (found["frames"][:, 0, 0, 0] // 20).tolist() == [2, 3, 4]
    assert found["image"][0, 0, 0] == 100 and (blank["label_map"] == 255).all()
    assert (found["label_map"][..., 10:] == 255).all()  # padding
    assert found["label_map"][:, 8, 8].tolist() == [2, 0, 1, 2]


def test_shorter_sequences_are_filled_up_without_labels(config):
    config.data.image_size, config.propagation.eval_frames = (12, 10), 5
    found = example(record(3), config, None)
    clip = np.concatenate([found["frames"], found["image"][None]])
    assert (clip[:, 0, 0, 0] // 20).tolist() == [0, 1, 2, 2, 2]
    assert found["label_map"][:, 8, 8].tolist() == [0, 1, 2, 255, 255]
    assert video_segmentation.shown_frame(found["label_map"][None]).tolist() == [2]
    assert video_segmentation.shown_frame(np.full((1, 5, 2, 2), 255)).tolist() == [4]


@pytest.mark.parametrize("training", [True, False])
def test_records_whose_label_maps_do_not_fit_are_refused_by_name(config, training):
    def says(made):
        rng = np.random.default_rng(0) if training else None
        with pytest.raises(CorruptRecordError) as caught:
            example(made, config, rng)
        return str(caught.value)

    whole = record(4)
    masks = whole.fields["segmentation_mask"]
    assert says(record(4, segmentation_mask=masks[:3])) == "record 7: 4 frames, 3 label maps"
    wrong = says(record(4, segmentation_mask=masks + 3))
    assert wrong.startswith("record 7, frame ") and "allowed: 0 to 2" in wrong
    assert "has 9 x 12 pixels, its picture 10 x 12" in says(
        record(4, segmentation_mask=masks[:, :, :9])
    )


def test_frames_that_do_not_fit_are_refused(config):
    frames = [np.zeros((4, side, 3), np.uint8) for side in (4, 5)]
    masks = [np.zeros(f.shape[:2], np.uint8) for f in frames]
    made = Record({"frames": frames, "segmentation_mask": masks}, 0, "record 0")
    with pytest.raises(ValueError, match="frames of several sizes: 0 is 4 x 4, 1 is 5 x 4"):
        example(made, config, None)
    empty = Record({"frames": [], "segmentation_mask": []}, 0, "record 0")
    with pytest.raises(ValueError, match="no frames"):
        example(empty, config, None)


def test_sets_without_label_maps_of_frames_are_refused():
    image, sequence = tfds.features.Image(), tfds.features.Sequence
    masks = sequence(tfds.features.LabeledImage(labels=["x", "y"], shape=(None, None, 1)))
    bare = sequence(tfds.features.Image(shape=(None, None, 1)))

    def found(**features):
        info = types.SimpleNamespace(features={"id": np.int64, **features})
        return video_segmentation.read(types.SimpleNamespace(info=info, data_dir="a set"))

    one = found(video=sequence(image), truth=masks)
    assert one == DataInfo({"frames": "video", "segmentation_mask": "truth"}, ("x", "y"))
    named = found(frames=sequence(image), segmentation_mask=bare, flow=sequence(image))
    assert named.features["segmentation_mask"] == "segmentation_mask" and named.classes == ()
    for features in (
        dict(frames=sequence(image)),
        dict(frames=sequence(image), segmentation_mask=image),
        dict(frames=sequence(image), one=masks, two=masks),
    ):
        with pytest.raises(ValueError, match="that holds a label map for every frame"):
            found(**features)
    with pytest.raises(ValueError, match="'frames' of type Sequence of Image"):
        found(image=image, masks=masks)


# ---- Training ------------------------------------------------------------------------------------


def pairs(count=1, same=(False, False)):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, SIDE, SIDE)).astype(np.uint8)
    labels[:, :3] = 255
    return {
        "frames": rng.integers(0, 256, (2, count, SIDE, SIDE, 3), np.uint8),
        "image": rng.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8),
        "label_map": labels,
        "same": np.array(same),
    }


@pytest.mark.exhaustive
def test_the_losses_are_those_of_segmentation(config):
    """Without propagation those of the current frame, and where the key frame is the current one
    those of the key frame.
    """
    config.segmentation.ohem, config.segmentation.ohem_min_kept = "ocnet", 100
    config.segmentation.class_weights = (1.0, 2.0, 0.5)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(task, model, batch):
        return task.loss(model, batch, config, nnx.Rngs(0))

    batch = pairs()
    one = {k: batch[k] for k in ("image", "label_map")}
    expected = loss(segmentation, build("none"), one)
    found = loss(video_segmentation, build("none"), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    for name in ("copy", "deep_feature_flow"):
        alike = {**batch, "frames": one["image"][:, None], "same": np.ones(2, bool)}
        found = loss(video_segmentation, build(name), alike)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, err_msg=name)
        other = loss(video_segmentation, build(name), batch)
        assert abs(float(other[0] - expected[0])) > 1e-3


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "others"),
    covering.part(
        [("flow_guided_aggregation", 2), ("sparse_recursion", 0)], [("sparse_recursion", 0)]
    ),
)
def test_gradients_reach_flow_embedding_and_backbone(config, name, others):
    config.propagation.others = others
    graphdef, params, stats = split_model(build(name))
    batch = pairs(max(others, 1))

    def loss(params):
        model = nnx.merge(graphdef, params, stats)
        return video_segmentation.loss(model, batch, config, nnx.Rngs(0))[0]

    found = flatten_names(jax.jit(jax.grad(loss))(params))
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    for part in ("propagation/flow_net/flow", "propagation/flow_net/encode/0",
                 "propagation/embed/layers/0", "propagation/embed/layers/2", "backbone/stem",
                 "head/classify"):  # fmt: skip
        of_part = [leaf for path, leaf in found.items() if path.startswith(part)]
        assert of_part and any(np.any(leaf) for leaf in of_part), part
    if name == "sparse_recursion":
        assert np.any(found["propagation/flow_net/quality/kernel"])


# ---- Evaluation ----------------------------------------------------------------------------------


def evaluation(count=5, clips=3):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (clips, count, SIDE, SIDE)).astype(np.uint8)
    labels[1, 3:] = 255  # a shorter sequence
    labels[:, :, :2] = 255
    return {
        "frames": rng.integers(0, 256, (clips, count - 1, SIDE, SIDE, 3), np.uint8),
        "image": rng.integers(0, 256, (clips, SIDE, SIDE, 3), np.uint8),
        "label_map": labels,
        "mask": np.array([1.0, 1.0, 0.0], np.float32)[:clips],
    }


def frame_by_frame(model, batch, config):
    """The confusion matrices of clips, in plain Python and NumPy."""
    own, matrices = config.propagation, []
    key_frame, next_key, propagate = map(
        jax.jit, (model.key_frame, model.next_key, model.propagate)
    )
    decode = jax.jit(model.decode, static_argnums=1)
    for clip, last, labels in zip(batch["frames"], batch["image"], batch["label_map"], strict=True):
        images = normalise(np.concatenate([clip, last[None]])[:, None], (0.5,), (0.5,))
        counts, key, length = np.zeros((3, 3), int), None, len(images)
        for t, image in enumerate(images):
            if model.propagation.many:
                near = [min(max(t + own.interval * n, 0), length - 1)
                        for n in range(-own.reach, own.reach + 1)]  # fmt: skip
                around = [key_frame(images[n]) for n in near]
                around = jax.tree.map(lambda *a: jnp.stack(a), *around)
                features = propagate(around, image)
            elif t % own.interval == 0:
                key = key_frame(image) if key is None else next_key(key, image)
                features = key.features
            else:
                features = propagate(key, image)
            predicted = np.asarray(decode(features, (SIDE, SIDE)))[0].argmax(-1)
            for true in range(3):
                for said in range(3):
                    counts[true, said] += ((labels[t] == true) & (predicted == said)).sum()
        matrices.append(counts)
    return np.stack(matrices)


# tests/analysis/test_video_runner.py has loops of the other kinds.
@pytest.mark.parametrize("name", covering.part(PROPAGATIONS, ["sparse_recursion"]))
def test_evaluation_is_that_of_a_loop_over_frames(config, name):
    config.propagation.interval, config.propagation.reach = 2, 1
    model = build(name)
    graphdef, params, stats = split_model(model)
    view = nnx.view(model, deterministic=True, use_running_average=True)
    batch = evaluation()
    graphdef = nnx.split(view, nnx.Param, nnx.BatchStat)[0]
    score = jax.jit(lambda p, s, b: video_segmentation.score(nnx.merge(graphdef, p, s), b, config))
    sums, rows = score(params, stats, batch)
    expected = frame_by_frame(view, batch, config)
    # Of two classes that are nearly equal either may win.
    assert np.abs(sums["confusion"] - expected[:2].sum(0)).sum() <= 2
    assert expected[:2].sum() == 14 * SIDE * (5 + 3)
    for clip in range(2):
        right, true = np.diag(expected[clip]), expected[clip].sum(1)
        assert np.abs(rows["intersection"][clip] - right).sum() <= 2
        assert np.array_equal(rows["true"][clip], true)
        union = true + expected[clip].sum(0) - right
        assert np.abs(rows["union"][clip] - union).sum() <= 2
    assert not rows["true"][2].any() and rows["prediction"].shape == (3, SIDE, SIDE)
    found = video_segmentation.finish(jax.tree.map(np.asarray, sums), rows, INFO, config)
    assert found["pixel_accuracy"] == pytest.approx(
        np.trace(expected[:2].sum(0)) / expected[:2].sum(), abs=1e-3
    )
    # The prediction that is kept is that of the last frame with labels.
    short = {k: v[1:2] for k, v in batch.items()}
    labels = np.where(np.arange(5)[None, :, None, None] == 2, short["label_map"], 255)
    third = score(params, stats, {**short, "label_map": labels})[1]
    kept = np.asarray(rows["prediction"][1])
    right = (kept == batch["label_map"][1, 2]) & (batch["label_map"][1, 2] != 255)
    assert right.sum() == np.asarray(third["intersection"][0]).sum()


def test_the_interval_decides(config):
    """Copied features are the own ones at an interval of one, and those of the first frame at five;
    a reach of nothing reads the frame alone.
    """
    batch = evaluation()

    def confusion(name, batch=batch, **given):
        config.propagation.update(given)
        view = nnx.view(build(name), deterministic=True, use_running_average=True)
        score = jax.jit(lambda batch: video_segmentation.score(view, batch, config)[0])
        return np.asarray(score(batch)["confusion"])

    own = confusion("none", interval=3)
    assert np.array_equal(confusion("copy", interval=1), own)
    assert not np.array_equal(confusion("copy", interval=5), own)
    first = {**batch, "frames": np.repeat(batch["frames"][:, :1], 4, 1)}
    first["image"] = first["frames"][:, 0]
    assert np.array_equal(confusion("none", first), confusion("copy", interval=5))


# ---- What is refused, and the loop ---------------------------------------------------------------


def problems(config, name="copy"):
    config.model = {"name": "video_segmenter", **options(name)}

    def shapes():
        built = models.builder_from_config(config, tasks.options_without_data(config))
        return nnx.eval_shape(lambda: built(rngs=nnx.Rngs(0)))

    try:
        validate(config, base.get_config(), models.registry, build=shapes, check_paths=False)
    except ConfigError as error:
        return error.problems
    return []


def test_ranges_are_refused_together(config):
    assert problems(config) == []
    config.propagation.update(max_distance=-1, others=101, interval=0, reach=-2, eval_frames=0)
    config.segmentation.inference, config.segmentation.eval_flip = "slide", True
    said = "\n".join(problems(config))
    for text in (
        "propagation.max_distance = -1: must be an integer from 0",
        "propagation.others = 101: must be an integer from 0 to 100",
        "propagation.interval = 0: must be an integer from 1",
        "propagation.reach = -2: must be an integer from 0",
        "propagation.eval_frames = 0: must be an integer from 1",
        "features are carried between whole frames of one size",
    ):
        assert text in said, text


def test_how_many_frames_a_propagation_reads_must_fit(config):
    (said,) = problems(config, "flow_guided_aggregation")
    assert "propagation.others=0, but model.propagation reads many frames" in said
    config.propagation.others = 2
    assert problems(config, "flow_guided_aggregation") == []
    (said,) = problems(config, "copy")
    assert "propagation.others=2, but model.propagation reads one key frame; allowed: 0" in said
    config.propagation.others = 8
    (said,) = problems(config, "flow_guided_aggregation")
    assert "propagation.max_distance = 3: more others than offsets" in said


def test_memory_counts_the_frames(config):
    config.data.image_size, config.train.batch_size = (512, 512), 8
    assert not batch_problems(config, limit=2**30)
    config.propagation.eval_frames = 200
    (text,) = batch_problems(config, limit=2**30)
    assert "propagation.eval_frames = 200" in text and "train.eval_batch_size = 8" in text
    config.propagation.eval_frames, config.propagation.others = 2, 100
    (text,) = batch_problems(config, limit=2**30)
    assert "propagation.others = 100" in text and text.startswith("train.batch_size = 8")


def test_smoke_runs_have_few_frames(config):
    config.model.update(name="video_segmenter", **options("copy"))
    config.propagation.eval_frames = 100
    assert smoke.apply_smoke(config).propagation.eval_frames == 4


@pytest.mark.exhaustive
def test_a_run_on_moving_digits_trains_evaluates_and_reports(tmp_path, monkeypatch, config):
    monkeypatch.setattr(moving_scenes, "SPLITS", {"train": 8, "validation": 4, "test": 4})
    config.model.name = "video_segmenter"
    config.model.update(options("deep_feature_flow"))
    config.data.source, config.data.data_dir = "moving_digits", str(tmp_path / "data")
    config.data.image_size, config.data.num_threads = (64, 64), 1
    config.propagation.eval_frames, config.propagation.interval = 10, 4
    config.train.batch_size, config.train.steps, config.train.cache_dir = 4, 3, ""
    config.train.eval_every = config.train.save_every = 0.0
    found = train.run(config, tmp_path / "run", devices=jax.devices()[:1], stream=io.StringIO())
    assert found["step"] == 3 and 0 <= found["mean_iou"] <= 1 and found["count"] == 4
    report = (tmp_path / "run" / "report.md").read_text()
    assert "interval=4" in report and "ohem=" in report and "Incomplete" not in report
    info = tasks.get("video_segmentation").read(data.open_builder(config.data))
    assert info.classes == ("background", *map(str, range(10)))
