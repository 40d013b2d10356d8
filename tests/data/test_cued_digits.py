"""The long-range data set: what is drawn, that no short-sighted network can bind cue and digit, and
its preparation.
"""

import colorsys
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_helpers import describe, open_source, sizes, train_batches
from flax import nnx
from sklearn.datasets import load_digits

import models
from configs import base
from configs import cued_digits as recipe
from lambdanet import config as config_lib
from lambdanet.data import cued_digits, cued_picture, decode, digits

SIZE = (64, 64)


@pytest.fixture(scope="module")
def scenes():
    """Forty scenes of every split."""
    return {
        split: [cued_digits.draw(cued_digits.load_material(split), i, SIZE) for i in range(40)]
        for split in cued_digits.SPLITS
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir with a small prepared set."""
    directory = tmp_path_factory.mktemp("cued")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cued_digits, "SPLITS", {"train": 20, "validation": 10, "test": 10})
        cued_digits.prepare(str(directory), SIZE)
    return directory


def test_scenes_are_a_pure_function_of_split_index_and_size(scenes):
    for split, drawn in scenes.items():
        again = cued_digits.draw(cued_digits.load_material(split), 17, SIZE)
        assert np.array_equal(again.image, drawn[17].image) and np.array_equal(
            again.boxes, drawn[17].boxes
        )
    assert len({scene.image.tobytes() for drawn in scenes.values() for scene in drawn}) == 120
    # Drawn once and written down: the stream never changes.
    assert scenes["test"][3].rows.tolist() == [985, 881] and scenes["test"][3].boxes.tolist() == [
        [2, 3, 18, 19],
        [44, 48, 60, 64],
        [52, 13, 60, 21],
    ]


def test_digits_of_the_splits_are_those_of_the_set_digits(scenes):
    target = load_digits().target
    parts = digits.split_rows(target)
    for split, drawn in scenes.items():
        for scene in drawn:
            assert set(scene.rows) <= set(parts[split])
            assert target[scene.rows[0]] == scene.label != target[scene.rows[1]]
        assert np.bincount([scene.label for scene in drawn]).tolist() == [4] * 10
    widths = [
        [photo.shape[1] for photo in cued_digits.load_material(split).photos]
        for split in cued_digits.SPLITS
    ]
    assert (
        np.sum(widths, axis=0).tolist() == [640, 640] and np.min(widths) >= cued_digits.SIDES[1]
    )  # disjoint and wide enough


@pytest.mark.parametrize("size", [(64, 64), (80, 128)])
def test_objects_keep_the_distance_and_lie_on_the_canvas(size):
    rng = np.random.RandomState(0)
    for _ in range(200):
        boxes = cued_digits.place(size, rng)
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= size).all()
        assert (boxes[:, 2:] - boxes[:, :2]).tolist() == [[16, 16], [16, 16], [8, 8]]
        pixels = [
            np.array([(r, c) for r in range(b[0], b[2]) for c in range(b[1], b[3])]) for b in boxes
        ]
        for (first, second), gap in zip(
            ((0, 1), (0, 2), (1, 2)), cued_digits.gaps(boxes), strict=True
        ):
            brute = np.abs(pixels[first][:, None] - pixels[second]).max(axis=-1).min()
            assert brute == gap >= 28 * min(size) // 64


def test_the_label_is_the_digit_of_the_cues_tint(scenes):
    for scene in (scene for drawn in scenes.values() for scene in drawn):
        hues = []
        for top, left, bottom, right in scene.boxes:
            part = scene.image[top:bottom, left:right].reshape(-1, 3) / 255
            hues.append(
                colorsys.rgb_to_hsv(*part[np.argmax(np.ptp(part, axis=1))])[0]
            )  # the most colourful pixel
        away = [abs((hue - hues[2] + 0.5) % 1 - 0.5) for hue in hues[:2]]
        assert away[0] < 0.2 < 0.3 < away[1]
        assert scene.tints[0] == scene.tints[2] != scene.tints[1]


def perturbed(context):
    """The recipe's network in evaluation, split, with parameters and statistics that hide nothing
    (no branch starts at 0).
    """
    config = recipe.get_config("none")
    config.model.context = context
    net = models.create_from_config(config, num_classes=10, rngs=nnx.Rngs(0))
    graphdef, weights = nnx.split(nnx.view(net, deterministic=True, use_running_average=True))
    rng = np.random.RandomState(0)
    return graphdef, jax.tree.map(
        lambda w: w + 0.2 * jnp.asarray(rng.uniform(-1, 1, w.shape), w.dtype), weights
    )


@pytest.mark.exhaustive
def test_receptive_field_of_the_plain_net_is_below_the_distance():
    graphdef, weights = perturbed(None)

    image = np.random.RandomState(1).uniform(0, 1, (*SIZE, 3)).astype(np.float32)
    images = np.repeat(image[None], 129, axis=0)
    for line in range(
        64
    ):  # image `line` has another row there, image 64 + line another column; the last stays
        images[line, line] = 1 - images[line, line]
        images[64 + line, :, line] = 1 - images[64 + line, :, line]
    features = jax.jit(
        lambda images, weights: nnx.merge(graphdef, weights).features(images)[-1][:, 4, 4]
    )(images, weights)
    changed = (np.asarray(features) != np.asarray(features[-1])).any(axis=-1)[:-1].reshape(2, 64)
    extents = [np.ptp(np.flatnonzero(lines)) + 1 for lines in changed]
    assert extents == [
        27,
        27,
    ]  # 7x7; pooling at stride 2: +4; 3x3 at stride 4: +8; the same again: +8
    assert max(extents) < cued_digits.distance(SIZE)


@pytest.mark.parametrize(
    "context, binds", [(None, False), (dict(name="nonlocal", after="stage1.1"), True)]
)
def test_only_a_global_block_sees_cue_and_digit_together(context, binds):
    scene = cued_digits.draw(cued_digits.load_material("train"), 4, SIZE)
    images = np.repeat(scene.image[None] / 255.0, 4, axis=0).astype(np.float32)
    for box, rows in (
        (scene.boxes[0], (1, 3)),
        (scene.boxes[2], (2, 3)),
    ):  # other colours of the digit, of the cue, of both
        top, left, bottom, right = box
        for row in rows:
            images[row, top:bottom, left:right] = images[row, top:bottom, left:right, ::-1]
    graphdef, weights = perturbed(context)
    logits = jax.jit(lambda images, weights: nnx.merge(graphdef, weights)(images))(images, weights)
    plain, digit, cue, both = np.asarray(logits, np.float64)
    # Zero if and only if the logits are a sum of what digit and cue give each by itself.
    interaction = np.abs(plain - digit - cue + both).max() / np.abs(plain - digit).max()
    assert interaction > 1e-3 if binds else interaction < 1e-4


def test_pipeline_reads_the_prepared_set(prepared, scenes):
    config = recipe.get_config().data
    config.data_dir = str(prepared)
    info = describe(config)
    assert sizes(config) == {"train": 20, "validation": 10, "test": 10} and len(info.classes) == 10
    assert os.listdir(prepared / "cued_digits" / "64x64") == ["1.0.0"]  # no temporary directory
    source = open_source(config, "validation")
    record = next(
        record for record in map(source.read, range(10)) if record.id == 27
    )  # after the 20 of train
    assert (
        np.array_equal(
            decode.to_array(decode.open_image(record.fields["image"]).load()),
            scenes["validation"][7].image,
        )
        and record.fields["label"] == 7
    )
    batches = train_batches(config, batch_size=4, num_classes=10, seed=0)
    batch = next(batches)
    batches.close()
    assert batch["image"].shape == (4, *SIZE, 3)
    for number, image, label in zip(batch["id"], batch["image"], batch["label"], strict=True):
        assert (
            np.array_equal(image, scenes["train"][number].image)
            and label == scenes["train"][number].label
        )


def test_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("disk full")

    monkeypatch.setattr(cued_digits, "draw", fail)
    with pytest.raises(ValueError, match="disk full"):
        cued_digits.prepare(str(tmp_path), SIZE)
    assert os.listdir(tmp_path / "cued_digits" / "64x64") == []


def test_wrong_canvas_directory_and_channels_are_named(tmp_path):
    for size in ((32, 64), (64, 200)):
        with pytest.raises(ValueError, match=r"data.image_size=.*canvas.*sides from 64 to 128"):
            cued_digits.prepare(str(tmp_path), size)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match="cannot prepare the cued digits under data.data_dir=.*file.*writable"
    ):
        cued_digits.prepare(str(tmp_path / "file"), SIZE)
    config = recipe.get_config()
    config.data.channels = 1
    with pytest.raises(config_lib.ConfigError, match="the colours are the task"):
        config_lib.validate(config, base.get_config(), models.registry, check_paths=False)


def test_picture_command(tmp_path, capsys):
    file = tmp_path / "new" / "samples.png"
    assert cued_picture.main([str(file)]) == 0
    assert decode.open_image(file.read_bytes()).size[0] > 800
    assert cued_picture.main([str(file), "--size", "20", "20"]) == 1
    assert "sides from 64 to 128" in capsys.readouterr().err
