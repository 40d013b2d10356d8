"""The task 'clips': examples of training and evaluation, views, what it shares with
classification, and the loop around it.
"""

import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_helpers import jpeg
from flax import nnx

from configs import base, smoke
from lambdanet import data, tasks
from lambdanet.config_memory import batch_problems
from lambdanet.data import moving_scenes
from lambdanet.data.record import DataInfo, Record, UnusableRecordError
from lambdanet.tasks import classification, clips, mixing

INFO = DataInfo({"frames": "frames", "label": "label"}, ("a", "b", "c"))


@pytest.fixture
def config():
    config = base.get_config()
    config.task, config.data.source = "clips", "synthetic"
    config.data.image_size, config.data.channels = (8, 6), 3
    config.data.synthetic_records, config.data.synthetic_classes = 12, 3
    config.clips.frames, config.clips.frame_stride = 4, 2
    return config


class Tiny(nnx.Module):
    """Looks at a few sums over a clip."""

    takes_clips = True

    def __init__(self, num_classes: int, in_channels: int = 3, *, rngs: nnx.Rngs):
        self.fc = nnx.Linear(2 * in_channels, num_classes, rngs=rngs)

    def macs(self, height, width):
        return 3 * height * width

    def __call__(self, x, *, rngs=None):
        pooled = jnp.concatenate([x.mean((1, 2, 3)), (x[:, 1:] * x[:, :-1]).mean((1, 2, 3))], -1)
        return self.fc(pooled)


def record(count=9, label=1, **options):
    frames = [jpeg((25 * i, 90, 30), size=(16, 12), **options) for i in range(count)]
    return Record({"frames": frames, "label": label}, 7, "record 7")


def test_an_example_has_one_geometry_and_one_colour_for_all_frames(config):
    config.clips.frame_stride = 1
    config.data.crop, config.data.flip = "random_resized", 0.5
    config.data.color_jitter, config.data.random_erasing = (0.4, 0.4, 0.4), 1.0
    config.data.rand_augment = (1, 9.0)
    rng = np.random.default_rng(3)
    still = np.broadcast_to(rng.integers(0, 256, (1, 16, 12, 3), np.uint8), (8, 16, 12, 3))
    same = Record({"frames": still, "label": 2}, 0, "still")
    seen = set()
    for seed in range(6):
        found = clips.example(same, INFO, config, np.random.default_rng(seed))
        assert found["image"].shape == (4, 8, 6, 3) and found["image"].dtype == np.uint8
        assert (found["image"] == found["image"][:1]).all() and found["label"] == 2
        again = clips.example(same, INFO, config, np.random.default_rng(seed))
        assert np.array_equal(again["image"], found["image"])
        seen.add(found["image"].tobytes())
    assert len(seen) == 6


def test_views_of_evaluation_are_crops_of_clips_in_time(config):
    config.clips.eval_clips, config.clips.eval_crops = 2, 3
    found = clips.example(record(), INFO, config, None)["image"]
    assert found.shape == clips.blank(config)["image"].shape == (6, 4, 8, 6, 3)
    red = found[..., 0].mean((2, 3))
    assert np.abs(red[:3] - [0, 50, 100, 150]).max() < 8  # from the first frame
    assert np.abs(red[3:] - [50, 100, 150, 200]).max() < 8  # to the last
    config.clips.short = "refuse"
    with pytest.raises(ValueError, match="has 6 frames"):
        clips.example(record(6), INFO, config, None)
    with pytest.raises(UnusableRecordError, match="label 3 is out of range; allowed: 0 to 2"):
        clips.example(record(label=3), INFO, config, None)


def test_probabilities_of_views_are_averaged(config):
    model = Tiny(3, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (5, 4, 2, 8, 6, 3), np.uint8)
    views[:, 1:] //= 3
    batch = dict(image=views, label=np.array([0, 1, 2, 0, 7]), mask=np.array([1.0, 1, 1, 1, 0]))
    run = jax.jit(model)
    logits = [np.asarray(run(np.float32((v / 255 - 0.5) / 0.5))) for v in views.swapaxes(0, 1)]
    means = np.mean([np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits], 0)
    score = jax.jit(lambda batch: clips.score(model, batch, config))
    sums, rows = score(batch)
    np.testing.assert_allclose(rows["confidence"], means.max(1), rtol=1e-5)
    assert np.array_equal(rows["prediction"], means.argmax(1))
    nll = -np.log(means[np.arange(4), batch["label"][:4]]).sum()
    np.testing.assert_allclose(sums["loss"], nll, rtol=1e-5)
    assert sums["count"] == 4
    # One view is what classification does.
    one, _ = score(batch | {"image": views[:, :1]})
    expected, _ = classification.score_logits(logits[0], batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, expected)


def test_clips_are_smoothed_and_mixed_as_images_are(config):
    model = Tiny(3, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    batch = dict(
        image=rng.integers(0, 256, (4, 2, 8, 6, 3), np.uint8), label=np.array([0, 1, 2, 0])
    )
    config.classification.label_smoothing = 0.3

    def loss(batch):
        return jax.jit(lambda batch: clips.loss(model, batch, config, nnx.Rngs(0))[0])(batch)

    def log_probabilities(image):
        logits = np.asarray(jax.jit(model)(np.float32((image / 255 - 0.5) / 0.5)))
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    value = loss(batch)
    target = np.asarray(mixing.soft_targets(batch["label"], 3, 0.3))
    logs = log_probabilities(batch["image"])
    np.testing.assert_allclose(value, -(target * logs).sum(1).mean(), rtol=1e-5)
    config.classification.cutmix_alpha = 1.0
    mixed = jax.jit(lambda batch: clips.mix(batch, jax.random.key(1), config))(batch)
    share = mixing.mixture_map(mixed["mixture"][0], 8, 6)
    assert 0 < share.mean() < 1 and set(np.unique(share)) == {0.0, 1.0}
    image = np.where(np.asarray(share)[..., None] == 1, batch["image"], mixed["partner_image"])
    other = np.asarray(mixing.soft_targets(mixed["partner_label"], 3, 0.3))
    logs = log_probabilities(image)
    wanted = -((other + float(share.mean()) * (target - other)) * logs).sum(1).mean()
    np.testing.assert_allclose(loss(mixed), wanted, rtol=1e-4)


def test_the_pictures_of_a_report_are_four_frames():
    frames = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    shown = clips.four_frames(frames)[..., 0]
    assert shown.shape == (4, 6)
    assert [shown[0, 0], shown[0, 3], shown[2, 0], shown[2, 3]] == [0, 2, 4, 6]
    assert clips.four_frames(frames[:1]).max() == 0


def test_sets_without_frames_or_with_several_are_refused():
    import tensorflow_datasets as tfds

    image, label = tfds.features.Image(), tfds.features.ClassLabel(num_classes=2)
    masks = tfds.features.Sequence(tfds.features.LabeledImage(labels=2, shape=(None, None, 1)))
    many = tfds.features.Sequence(image)

    def found(**features):
        info = types.SimpleNamespace(features={"label": label, **features})
        return clips.read(types.SimpleNamespace(info=info, data_dir="a set")).features["frames"]

    assert found(video=many, masks=masks) == "video"
    assert found(frames=many, flow=many) == "frames"
    for features in (dict(image=image), dict(one=many, two=many), dict(masks=masks)):
        with pytest.raises(ValueError, match="feature 'frames' of type Sequence of Image"):
            found(**features)


def test_memory_counts_frames_and_views(config):
    config.data.image_size, config.train.batch_size = (256, 256), 8
    config.clips.frames = 32
    assert not batch_problems(config, limit=2 * 2**30)
    config.clips.eval_clips, config.clips.eval_crops = 10, 3
    (text,) = batch_problems(config, limit=2 * 2**30)
    assert "clips.eval_clips = 10" in text and "train.eval_batch_size = 8" in text


def test_smoke_shortens_the_clips(config):
    config.clips.frames, config.clips.eval_clips = 32, 10
    assert smoke.apply_smoke(config).clips.frames == 4 and config.clips.eval_clips == 1


@pytest.mark.exhaustive
def test_a_run_on_moving_digits_trains_evaluates_and_reports(tmp_path, monkeypatch):
    """The whole loop, with a model of this file."""
    import models
    import train

    monkeypatch.setattr(moving_scenes, "SPLITS", {"train": 8, "validation": 4, "test": 4})
    monkeypatch.setitem(models.registry._entries, "tiny_clips", (Tiny, {}))
    config = base.get_config()
    config.task, config.model.name, config.data.source = "clips", "tiny_clips", "moving_digits"
    config.data.data_dir = str(tmp_path / "data")
    config.data.image_size, config.data.channels, config.data.num_threads = (64, 64), 3, 1
    config.clips.frames, config.clips.eval_clips = 3, 2
    config.train.batch_size, config.train.steps, config.train.cache_dir = 4, 3, ""
    config.train.eval_every = config.train.save_every = 0.0
    found = train.run(config, tmp_path / "run", devices=jax.devices()[:1], stream=io.StringIO())
    assert found["step"] == 3 and 0 <= found["accuracy"] <= 1 and found["count"] == 4
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| MACs per image | 12,288 |" in report and "Incomplete" not in report
    info = tasks.get("clips").read(data.open_builder(config.data))
    assert info.classes == tuple(map(str, range(10)))
