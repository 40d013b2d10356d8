"""Segmentation as a task: examples, the loss of several outputs, counts and IoU, whole runs."""

import io
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx
from PIL import Image

import eval as program
import train
from configs import base, digit_scenes
from lambdanet import data, tasks
from lambdanet.data import examples
from lambdanet.data.record import CorruptRecordError, DataInfo, Record
from lambdanet.layers.resize import resize_bilinear
from lambdanet.ops.segmentation_loss import segmentation_loss
from lambdanet.tasks import segmentation, segmentation_classes

INFO = DataInfo(
    {"image": "image", "segmentation_mask": "segmentation_mask"}, ("sky", "sea", "sand")
)


@pytest.fixture
def config():
    config = base.get_config()
    config.task, config.data.image_size, config.data.channels = "segmentation", (16, 24), 3
    config.data.mean, config.data.std = (0.5,), (0.25,)
    return config


class Maps(nnx.Module):
    """A stand-in with the outputs it is given, functions of the images."""

    align_corners = False

    def __init__(self, **maps):
        self.maps = maps

    def outputs(self, images, *, rngs=None):
        return {name: make(images) for name, make in self.maps.items()}

    def __call__(self, images, *, rngs=None):
        return resize_bilinear(self.outputs(images)["logits"], images.shape[1:3])


def constant(seed, shape=(4, 6), classes=3):
    maps = jnp.asarray(
        2 * np.random.default_rng(seed).standard_normal((8, *shape, classes)), jnp.float32
    )
    # With the images in it: what is constant would be computed while compiling, which takes long.
    return lambda images: maps[: len(images)] + 0.0 * jnp.sum(images)


def batch(size=(16, 24), count=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (count, *size), np.uint8)
    labels[rng.random(labels.shape) < 0.25] = 255
    return {
        "image": rng.integers(0, 256, (count, *size, 3), np.uint8),
        "label_map": labels,
        "mask": np.ones(count, np.float32),
    }


# ---- Data ----------------------------------------------------------------------------------------


def builder(**features):
    return types.SimpleNamespace(info=types.SimpleNamespace(features=features), data_dir="the set")


def test_read_finds_pictures_and_label_maps():
    image = tfds.features.Image(shape=(None, None, 3))
    mask = tfds.features.LabeledImage(labels=["a", "b"], shape=(None, None, 1))
    plain = tfds.features.Image(shape=(None, None, 1))
    for features, expected in (
        (dict(image=image, segmentation_mask=mask), ("image", "segmentation_mask", ("a", "b"))),
        (dict(photo=image, annotation=plain), ("photo", "annotation", ())),
        (
            dict(image_left=image, segmentation_label=plain),
            ("image_left", "segmentation_label", ()),
        ),
    ):
        info = segmentation.read(builder(**features))
        assert (*info.features.values(), info.classes) == expected
    with pytest.raises(ValueError, match="the set needs"):
        segmentation.read(builder(image=image))


def test_the_number_of_classes(config):
    assert segmentation.model_options(INFO, config) == {"num_classes": 3}
    config.segmentation.reduce_zero_label = True
    assert segmentation.model_options(INFO, config) == {"num_classes": 2}
    assert tasks.options_without_data(config) == {"num_classes": 1}
    unnamed = DataInfo(INFO.features, ())
    with pytest.raises(ValueError, match="'segmentation_mask' does not say how many"):
        segmentation.model_options(unnamed, config)
    config.model.num_classes = 2
    assert segmentation.model_options(unnamed, config) == {"num_classes": 2}
    assert segmentation_classes.all_names(unnamed, config, 2) == ["class 0", "class 1"]
    config.model.num_classes = 256
    with pytest.raises(ValueError, match="256 classes; allowed: up to 255"):
        segmentation.model_options(unnamed, config)


def test_class_weights_are_counted_where_the_classes_are_known(config, tmp_path):
    weights = config.segmentation.class_weights = (1.0, 2.0)
    with pytest.raises(ValueError, match=r"2 numbers; allowed: 3, one per class \(sky, sea, sand"):
        segmentation.check_data(INFO, config)
    config.segmentation.reduce_zero_label = True
    segmentation.check_data(INFO, config)
    config.segmentation.update(reduce_zero_label=False, class_weights=())
    segmentation.check_data(INFO, config)
    # a run says so before anything is traced, an evaluation does not read them
    config.segmentation.class_weights, config.model.name = weights, "small_fcn"
    config.data.source, config.data.synthetic_classes = "synthetic", 3
    config.data.synthetic_records, config.train.keep_best = 12, ""
    config.train.batch_size, config.train.cache_dir = 4, ""
    with pytest.raises(ValueError, match="^segmentation.class_weights has 2 numbers"):
        train.run(config, tmp_path, stream=io.StringIO())
    assert program.load_subject(config).info.classes


def record(labels, size=None):
    height, width = size or labels.shape
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(labels).save(file, format="png")
    fields = {"image": image, "segmentation_mask": file.getvalue()}
    return Record(fields, 7, "record 7, file a.png")


def test_examples_of_training_and_evaluation(config):
    labels = np.zeros((10, 12), np.uint8)
    labels[3:, 6:], labels[0, 0] = 2, 255
    config.data.crop, config.data.scale_range, config.data.flip = "scale_crop", (0.5, 0.5), 0.5
    plain = data.attributes(config)
    seen = segmentation.example(record(labels), INFO, plain, np.random.default_rng(0))
    assert seen["image"].shape == (16, 24, 3) and seen["label_map"].shape == (16, 24)
    # Half the picture is 5 x 6; the rest of the canvas is padding.
    assert (seen["label_map"] != 255).sum() in (29, 30) and set(np.unique(seen["label_map"])) >= {2}
    assert (seen["image"][5:] == 128).all()
    whole = segmentation.example(record(labels), INFO, plain, None)
    assert (whole["label_map"] != 255).any() and whole["label_map"].dtype == np.uint8
    config.segmentation.eval_size = (10, 12)
    exact = segmentation.example(record(labels), INFO, data.attributes(config), None)
    np.testing.assert_array_equal(exact["label_map"], labels)
    np.testing.assert_array_equal(exact["image"], record(labels).fields["image"])
    blank = segmentation.blank(data.attributes(config))
    assert {k: (v.shape, v.dtype) for k, v in blank.items()} == {
        k: (v.shape, v.dtype) for k, v in exact.items()
    }
    assert (blank["label_map"] == 255).all()


def test_wrong_label_maps_name_file_value_and_place(config):
    plain, labels = data.attributes(config), np.zeros((4, 5), np.uint8)
    labels[2, 3] = 3
    with pytest.raises(CorruptRecordError, match="file a.png: label 3 at row 2, column 3"):
        segmentation.example(record(labels), INFO, plain, None)
    labels[2, 3] = 1
    with pytest.raises(CorruptRecordError, match="5 x 4 pixels, its picture 6 x 4"):
        segmentation.example(record(labels, (4, 6)), INFO, plain, None)


class Stored:
    """A set of records in memory."""

    def __init__(self, *records):
        self.records, self.read = records, records.__getitem__

    def __len__(self):
        return len(self.records)


def test_records_with_wrong_label_maps_are_skipped_like_damaged_pictures(config, caplog):
    right = np.ones((16, 24), np.uint8)
    cut = record(right)
    cut.fields["segmentation_mask"] = cut.fields["segmentation_mask"][:-30]
    wrong = {
        "label 7 at row 0": record(right * 7),
        "24 x 16 pixels, its picture 20 x 16": record(right, (16, 20)),
        "cannot decode the label map": cut,
    }
    make = tasks.example_maker(config, INFO)
    part = data.Part(Stored(*wrong.values(), record(right)))
    for number, message in enumerate(wrong):
        with pytest.raises(CorruptRecordError, match=f"file a.png: .*{message}.*on_error='skip'"):
            examples.TrainExamples([part], make, "raise")(number, np.random.default_rng(0))
    config.data.on_error = "skip"
    found = examples.TrainExamples([part], make, "skip")(0, np.random.default_rng(0))
    assert found["skipped"] == 3 and (found["label_map"] == 1).all()
    assert all(message in caplog.text for message in wrong)
    given = tasks.get("segmentation").blank(data.attributes(config))
    batches = data.eval_batches(part, make, given, config.data, batch_size=4)
    (rows,) = batches
    assert rows["mask"].tolist() == [0, 0, 0, 1] and batches.num_records == 4


# ---- Training ------------------------------------------------------------------------------------


pixel_loss = jax.jit(segmentation_loss, static_argnames=("ohem", "threshold", "min_kept"))


def loss_of(model, rows, config):
    """The task's loss, compiled."""
    return jax.jit(lambda rows: segmentation.loss(model, rows, config, nnx.Rngs(0)))(rows)


def score_of(model, rows, config):
    """The task's score, compiled."""
    return jax.jit(lambda rows: segmentation.score(model, rows, config))(rows)


def test_the_loss_sums_all_outputs_and_shows_them(config):
    rows = batch()
    labels = jnp.asarray(rows["label_map"], jnp.int32)
    maps = {name: constant(i) for i, name in enumerate(("logits", "auxiliary", "position"))}
    model = Maps(**maps)
    own = config.segmentation
    own.auxiliary_weight, own.branch_weight = 0.25, 2.0
    value, terms = loss_of(model, rows, config)
    each = [pixel_loss(make(labels), labels) for make in maps.values()]
    expected = each[0].value + 0.25 * each[1].value + 2.0 * each[2].value
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    shown = {name: float(total / weight) for name, (total, weight) in terms.items()}
    assert shown["loss"] == pytest.approx(float(value), rel=1e-6)
    assert shown["cross_entropy"] == pytest.approx(float(each[0].value), rel=1e-6)
    assert shown["auxiliary_head"] == pytest.approx(float(each[1].value), rel=1e-6)
    assert shown["auxiliary_position"] == pytest.approx(float(each[2].value), rel=1e-6)
    valid = (rows["label_map"] != 255).sum()
    assert float(terms["loss"][1]) == float(terms["pixel_accuracy"][1]) == valid
    own.auxiliary_weight = own.branch_weight = 0.0
    value, terms = loss_of(model, rows, config)
    assert float(value) == pytest.approx(float(each[0].value), rel=1e-6)
    assert set(terms) == {"loss", "pixel_accuracy"}


def test_only_the_main_output_is_mined(config):
    rows = batch()
    labels = jnp.asarray(rows["label_map"], jnp.int32)
    model = Maps(logits=constant(0), auxiliary=constant(1))
    config.segmentation.ohem, config.segmentation.ohem_min_kept = "ocnet", 50
    config.segmentation.ohem_threshold = 0.05
    value, _ = loss_of(model, rows, config)
    options = dict(ohem="ocnet", threshold=0.05, min_kept=50)
    main = pixel_loss(constant(0)(labels), labels, **options).value
    other = pixel_loss(constant(1)(labels), labels).value
    assert float(value) == pytest.approx(float(main + 0.4 * other), rel=1e-6)


def test_the_category_consistent_loss_needs_an_embedding(config):
    rows = batch()
    config.segmentation.category_consistent = 0.5
    with pytest.raises(ValueError, match="gives no 'embedding'"):
        segmentation.loss(Maps(logits=constant(0)), rows, config, nnx.Rngs(0))
    model = Maps(logits=constant(0), embedding=constant(3, classes=4))
    value, terms = loss_of(model, rows, config)
    term = terms["auxiliary_category_consistent"]
    assert float(value) == pytest.approx(
        float(terms["cross_entropy"][0] / term[1] + 0.5 * term[0] / term[1]), rel=1e-5
    )


def test_a_batch_without_labels(config):
    rows = batch()
    rows["label_map"][:] = 255
    model = Maps(logits=constant(0), auxiliary=constant(1), embedding=constant(3, classes=4))
    config.segmentation.category_consistent = 1.0

    @jax.jit
    @jax.value_and_grad
    def value(scale, rows):
        scaled = Maps(**{k: lambda x, make=make: scale * make(x) for k, make in model.maps.items()})
        return segmentation.loss(scaled, rows, config, nnx.Rngs(0))[0]

    loss, gradient = value(1.0, rows)
    assert float(loss) == 0.0 and float(gradient) == 0.0


# ---- Evaluation ----------------------------------------------------------------------------------


def counted(rows, predictions):
    counts = np.zeros((3, 3), np.int64)
    for true, said, mask in zip(rows["label_map"], predictions, rows["mask"], strict=True):
        for t in range(3):
            for s in range(3):
                counts[t, s] += int(mask) * ((true == t) & (said == s)).sum()
    return counts


def test_scores_count_every_labelled_pixel_of_the_images_that_count(config):
    rows = batch()
    rows["mask"][2] = 0
    model = Maps(logits=constant(0))
    sums, per_image = score_of(model, rows, config)
    predictions = np.asarray(model(rows["image"])).argmax(-1)
    counts = counted(rows, predictions)
    np.testing.assert_array_equal(sums["confusion"], counts)
    found = segmentation.finish(jax.tree.map(np.float64, sums), per_image, INFO, config)
    assert list(found) == list(segmentation.METRICS)
    right = np.diag(counts)
    iou = right / (counts.sum(0) + counts.sum(1) - right)
    assert found["mean_iou"] == pytest.approx(iou.mean())
    assert found["pixel_accuracy"] == pytest.approx(right.sum() / counts.sum())
    labels = np.where(rows["mask"][:, None, None] > 0, rows["label_map"], 255).astype(np.int32)
    mean = pixel_loss(constant(0)(labels), jnp.asarray(labels)).value
    assert found["loss"] == pytest.approx(float(mean), rel=1e-5)
    np.testing.assert_array_equal(per_image["intersection"].sum(0), right)
    np.testing.assert_array_equal(per_image["prediction"][:2], predictions[:2])


def test_what_evaluation_refuses_is_said_before_the_first_step(tmp_path):
    """Not at the first evaluation, which may be hours later: it may see other sizes."""
    config = digit_scenes.get_config("segment,none,smoke")
    config.model.backbone.attention = {"name": "bottleneck_attention", "num_heads": 2}
    config.model.backbone.attention_blocks = ((), (), (), "all")
    config.segmentation.eval_size = (48, 64)
    with pytest.raises(
        ValueError, match=r"^evaluation, with images of \(8, 48, 64, 3\): .*size \(8, 8\)"
    ):
        train.run(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_predictions_for_the_report_are_small(config):
    rows = batch(size=(200, 250))
    model = Maps(logits=constant(0))
    _, per_image = score_of(model, rows, config)
    assert max(per_image["prediction"].shape[1:]) <= segmentation.THUMBNAIL


def test_a_class_that_never_occurs_is_left_out_of_the_mean(config):
    counts = np.array([[6, 2, 0], [2, 6, 1], [0, 0, 0]])
    sums = {"confusion": counts, "loss": 17.0}
    found = segmentation.finish(sums, {}, INFO, config)
    assert found["mean_iou"] == pytest.approx((6 / 10 + 6 / 11) / 2)
    columns, table, remark = segmentation.class_table(sums, {}, INFO, config)
    assert table[2] == ("sand", "nan", "nan", "0.00") and table[0][:2] == ("sky", "60.00")
    assert len(columns) == len(table[0]) and remark.endswith("left out of the mean: sand.")
    assert segmentation_classes.remark(np.ones(3), INFO.classes) == ""
    with pytest.raises(ValueError, match="no pixel of the split has a label"):
        segmentation.finish({"confusion": 0 * counts, "loss": 0.0}, {}, INFO, config)


def test_windows_and_views_give_what_the_whole_picture_gives(config):
    """For a model that looks at single pixels, however it is cut or mirrored."""

    class Pixel(Maps):
        def outputs(self, images, *, rngs=None):
            return {"logits": images @ jnp.array([[1.0, 0, 1], [0, 2.0, 0], [0.5, 0, 0]])}

    rows, model = batch(), Pixel()
    whole, _ = score_of(model, rows, config)
    own = config.segmentation
    own.inference, own.slide_crop, own.slide_stride, own.eval_flip = "slide", (8, 10), (5, 7), True
    slid, _ = score_of(model, rows, config)
    np.testing.assert_array_equal(slid["confusion"], whole["confusion"])
    np.testing.assert_allclose(slid["loss"], whole["loss"], rtol=1e-5)


# ---- The report ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 40])
def test_panels(config, classes):
    from matplotlib.figure import Figure

    from lambdanet.analysis.figure_text import literal_text

    rng = np.random.default_rng(0)
    true = rng.integers(0, 9, (5, classes))
    true[:, 1] = 0
    rows = {
        "intersection": true // 2, "union": true + 3, "true": true, "id": np.arange(5),
        "prediction": rng.integers(0, classes, (5, 8, 8), np.uint8),
    }  # fmt: skip
    labels = rng.integers(0, classes, (4, 16, 16), np.uint8)
    labels[:, 0] = 255
    examples = {
        "image": rng.integers(0, 256, (4, 16, 16, 3), np.uint8), "label_map": labels,
        "id": np.arange(4),
    }  # fmt: skip
    info = DataInfo(INFO.features, tuple(f"$c_{i}$" for i in range(classes)))
    counts = np.diag(np.full(classes, 90.0))
    counts[0, 2], counts[2, 0] = 10, 30
    found = dict(sums={"confusion": counts}, rows=rows, examples=examples)
    with literal_text():
        figure = Figure(figsize=(17, 10), layout="constrained")
        parts = figure.subfigures(1, 2)
        lines = segmentation.panels(*parts, **found, info=info, config=config)
        figure.savefig(io.BytesIO(), format="png")
    assert any("left out of the mean" in line for line in lines)
    begin = lines.index("Most frequent confusions:")
    assert lines[begin + 2] == "| true | predicted | pixels | of the true class |"
    assert lines[begin + 4 :] == [
        r"| \$c\_2\$ | \$c\_0\$ | 30 | 25.0 % |", r"| \$c\_0\$ | \$c\_2\$ | 10 | 10.0 % |", "",
    ]  # fmt: skip
    assert json.dumps(lines)
