"""The contract of tasks, and one that exists only here through the unchanged loop."""

import io
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from flax import nnx

import eval as program
import train
from configs import base
from lambdanet import data, tasks
from lambdanet.config import ConfigError
from lambdanet.data import sources
from lambdanet.ops.images import normalise
from lambdanet.training import state
from models.video import Frame

# ---- The contract --------------------------------------------------------------------------------


@pytest.fixture
def config():
    config = base.get_config()
    config.data.source, config.data.synthetic_records, config.data.synthetic_classes = (
        "synthetic", 12, 3,
    )  # fmt: skip
    config.train.batch_size = 4
    return config


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_has_exactly_the_names_of_the_contract(name):
    task = tasks.get(name)
    own = {n for n, v in vars(task).items() if getattr(v, "__module__", name) == task.__name__}
    assert set(tasks.CONTRACT) <= set(vars(task))
    assert all(mode in ("max", "min") for mode in task.METRICS.values())
    # Whatever else a task defines for itself (and its tests) is no second interface to the loop.
    assert own >= set(tasks.CONTRACT) - {"METRICS"}
    sections = getattr(task, "SECTIONS", (name,))
    assert set(sections) <= set(base.get_config()), "its own keys have a section"


@pytest.mark.parametrize(
    ("task", "model", "fix"),
    [
        ("segmentation", "resnet18", "model.name='segmenter' with model.backbone='resnet18'"),
        ("classification", "small_fcn", "set task='segmentation'"),
        ("classification", "small_retinanet", "set task='detection'"),
        ("segmentation", "small_retinanet", "set task='detection'"),
        ("clips", "resnet18", "'resnet18' takes no clips"),
        ("video_segmentation", "resnet18", "model.name='video_segmenter' with a backbone"),
        ("video_detection", "resnet18", "model.name='video_detector' with a model.detector that"),
        ("video_segmentation", "small_fcn", "'video_segmenter' with the same backbone and head"),
        ("detection", "resnet18", "'mask_rcnn' with model.backbone='resnet18'"),
        ("detection", "small_fcn", "'small_fcn' finds no objects"),
        ("detection", "small_mask_rcnn", "set detection.masks=True"),
    ],
)
def test_a_model_of_another_task_is_refused_with_the_way_to_go(task, model, fix, config, tmp_path):
    config.task, config.model.name, config.train.keep_best = task, model, ""
    for start in (lambda: train.run(config, tmp_path), lambda: program.load_subject(config)):
        with pytest.raises(ConfigError, match=fix):
            start()


# Those of videos and clips are the others' with more frames; all tests of runs classify.
@pytest.mark.parametrize("name", part(tasks.TASKS, ["segmentation"]))
def test_every_task_runs_on_synthetic_records(name, config):
    config.task, task = name, tasks.get(name)
    info = task.read(data.open_builder(config.data))
    options = task.model_options(info, config)
    batches = list(tasks.eval_batches(config, info, "validation", batch_size=8))
    assert [batch["mask"].sum() for batch in batches] == [8, 4]
    blank = task.blank(data.attributes(config))
    assert {k: v.shape for k, v in blank.items()} == {k: batches[0][k].shape[1:] for k in blank}
    make = tasks.example_maker(config, info)
    parts = data.training_parts(config.data, info.features)
    reader = data.train_batches(parts, make, config.data, batch_size=4, seed=0)
    batch = next(reader)
    reader.close()
    # What only the score needs, such as the truth in pixels of the stored picture, is not trained.
    assert {"image"} < set(batch) & set(blank)
    assert all(blank[k].dtype == batch[k].dtype for k in set(batch) & set(blank))

    class Flat(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(64, options["num_classes"], rngs=rngs)

        def __call__(self, x, *, rngs=None):
            return self.fc(x.reshape(len(x), -1))

    class Still(Flat):
        """Takes clips, and looks at the mean of their frames."""

        def __call__(self, x, *, rngs=None):
            return super().__call__(x.mean(1))

    class Dense(nnx.Module):
        align_corners = False

        def __init__(self, rngs):
            self.fc = nnx.Linear(1, options["num_classes"], rngs=rngs)

        def outputs(self, x, *, rngs=None):
            return {"logits": self.fc(x[:, ::2, ::2])}

    class Carried(Dense):
        """Gives every frame the features of its key frame."""

        propagation = types.SimpleNamespace(many=False)

        def clip_outputs(self, frames, same=None, *, rngs=None):
            return self.outputs(frames[:, -1])

        def key_frame(self, image):
            return Frame(features=image[:, ::2, ::2])

        def next_key(self, key, image):
            return self.key_frame(image)

        def propagate(self, key, image):
            return key.features

        def decode(self, features, size):
            return self.fc(features).repeat(2, 1).repeat(2, 2)

    class Boxes(nnx.Module):
        """Finds four boxes, of which the last is none."""

        def __init__(self, rngs):
            self.fc = nnx.Linear(64, 4 * 4, rngs=rngs)

        def losses(self, x, shapes, targets, *, rngs):
            error = jnp.abs(self.fc(x.reshape(len(x), -1)).reshape(-1, 4, 4))
            error = error - targets["boxes"][:, :4]
            positive = targets["valid"] & ~targets["crowd"]
            return {
                "box": (jnp.sum(jnp.abs(error).mean(-1) * positive[:, :4]), positive[:, :4].sum()),
                "classification": (jnp.float32(3), jnp.int32(0)),
            }

        def detect(self, x, shapes):
            corner = jnp.abs(self.fc(x.reshape(len(x), -1)).reshape(-1, 4, 4))
            boxes = corner + jnp.array([0.0, 0.0, 4.0, 4.0])
            count = jnp.arange(4)[None].repeat(len(x), 0)
            return dict(boxes=boxes, scores=1 / (1 + count), classes=count % 3, valid=count < 3)

    class Moving(Boxes):
        """Gives every frame the boxes of its key frame."""

        propagation = types.SimpleNamespace(many=False)

        def clip_losses(self, frames, shapes, targets, same=None, *, rngs):
            return self.losses(frames[:, -1], shapes, targets, rngs=rngs)

        def key_frame(self, image):
            return Frame(features=image)

        def next_key(self, key, image):
            return self.key_frame(image)

        def propagate(self, key, image):
            return key.features

        def detections(self, features, shapes, size):
            return self.detect(features, shapes)

    model = {"segmentation": Dense, "detection": Boxes, "clips": Still,
             "video_segmentation": Carried, "video_detection": Moving}  # fmt: skip
    model = model.get(name, Flat)(nnx.Rngs(0))

    @jax.jit
    def loss_of(batch):
        return task.loss(model, task.mix(batch, jax.random.key(0), config), config, nnx.Rngs(0))

    score = jax.jit(lambda batch: task.score(model, batch, config))
    value, terms = loss_of(batch)
    # One thing more is shown than what is minimised: a metric, or the parts of the loss.
    parts = {term for term in terms if term.endswith("_loss")}
    assert (
        value.shape == ()
        and "loss" in terms
        and (set(terms) & set(task.METRICS)) - {"loss"} | parts
    )
    assert float(terms["loss"][0] / terms["loss"][1]) == pytest.approx(float(value), rel=1e-6)
    sums, rows = score(batches[1])
    assert all(len(row) == 8 for row in rows.values())
    counted = batches[1]["mask"] > 0  # as `evaluate` hands them on
    rows = {k: np.asarray(v)[counted] for k, v in {**rows, "id": batches[1]["id"]}.items()}
    found = task.finish(jax.tree.map(np.asarray, sums), rows, info, config)
    assert list(found) == list(tasks.metrics(config))
    # The synthetic pictures are too small for objects that COCO counts as larger than small.
    assert all(np.isfinite(v) or k.endswith(("_medium", "_large")) for k, v in found.items())
    broken = {**batches[1], "image": batches[1]["image"].copy()}
    broken["image"][4:] = 99  # what is masked does not count
    again, _ = score(broken)
    jax.tree.map(np.testing.assert_array_equal, sums, again)


def test_an_unknown_task_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="task 'clasification'.*Did you mean 'classification'?"):
        tasks.get("clasification")


def test_attributes_pickle_and_keep_the_values(config):
    plain = data.attributes(config)
    assert plain.data.crop_scale == tuple(config.data.crop_scale) and plain.seed == 0


# ---- A task of this file: the mean of the image, by a constant -----------------------------------


def read(builder):
    image = sources.find_feature(builder, "image", type(builder.info.features["image"]))
    return data.DataInfo({"image": image}, ())


def example(record, info, config, rng):
    image = np.asarray(record.fields["image"])
    return {"image": image, "target": np.float32(image.mean() / 255)}


def blank(config):
    image = np.zeros((*config.data.image_size, config.data.channels), np.uint8)
    return {"image": image, "target": np.float32(0)}


def errors(model, batch, config, **options):
    image = normalise(batch["image"], config.data.mean, config.data.std)
    return (model(image, **options)[:, 0] - batch["target"]) ** 2


def loss(model, batch, config, rngs):
    # Every second image counts: a weight that is not the size of the batch.
    counted = jnp.arange(len(batch["target"])) % 2 == 0
    weight = counted.sum().astype(jnp.float32)
    total = jnp.sum(errors(model, batch, config, rngs=rngs) * counted)
    return total / weight, {"loss": (total, weight)}


def score(model, batch, config):
    squared = errors(model, batch, config) * batch["mask"]
    return {"squared": squared.sum(), "count": batch["mask"].sum()}, {"squared": squared}


def finish(sums, rows, info, config):
    assert len(rows["squared"]) == int(sums["count"]) == len(rows["id"])
    return {"error": float(sums["squared"] / sums["count"])}


def panels(side, below, *, sums, rows, examples, info, config):
    assert sums["count"] == len(rows["squared"])
    side.subplots().plot(np.sort(rows["squared"]))
    return [f"{len(examples['image'])} images were looked at."]


DUMMY = types.SimpleNamespace(
    METRICS={"error": "min"},
    model_options=lambda info, config: {"num_classes": 1},
    mix=lambda batch, key, config: batch,
    read=read, example=example, blank=blank, loss=loss, score=score, finish=finish, panels=panels,
)  # fmt: skip


@pytest.fixture
def dummy(monkeypatch, config):
    monkeypatch.setitem(tasks.TASKS, "dummy", DUMMY)
    config.task, config.data.test_split = "dummy", "test"
    config.model.name, config.model.blocks, config.model.widths = "resnet_digits", (1,), (4,)
    config.optim.warmup_epochs, config.optim.schedule = 0.0, "constant"
    config.train.steps, config.train.log_every, config.train.cache_dir = 6, 1, ""
    config.train.eval_every = config.train.save_every = 1.0  # three steps
    config.train.keep_best, config.train.ema_decay = "error", 0.5
    return config


def run(config, workdir):
    return train.run(config, workdir, devices=jax.devices()[:1], stream=io.StringIO())


def test_another_task_trains_evaluates_reports_and_resumes(dummy, tmp_path):
    whole = run(dummy, tmp_path / "whole")
    assert {"error", "ema_error"} <= set(whole) and whole["step"] == 6
    assert "12 images were looked at." in (tmp_path / "whole" / "report.md").read_text()
    assert data.info_file.load(tmp_path / "whole") == data.DataInfo({"image": "image"}, ())
    dummy.train.steps, dummy.train.report = 3, False
    run(dummy, tmp_path / "parts")
    dummy.train.steps = 6
    parts = run(dummy, tmp_path / "parts")
    assert parts["error"] == whole["error"] and parts["ema_error"] == whole["ema_error"]

    def evaluations(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [r for r in map(json.loads, lines) if r["split"] == "eval"]

    assert evaluations("parts") == evaluations("whole") and len(evaluations("whole")) == 2


def test_micro_batches_are_averaged_by_the_weight_of_their_loss(dummy):
    import optax
    from step_helpers import means

    from lambdanet.training import step

    dummy.train.accumulate = 2

    class Constant(nnx.Module):
        def __init__(self):
            self.value = nnx.Param(jnp.zeros(1))

        def __call__(self, x, *, rngs=None):
            return jnp.broadcast_to(self.value[...], (len(x), 1))

    tx, (graphdef, _) = optax.sgd(1.0), state.views(Constant)
    start = state.make_init(Constant, tx, ema=False)()
    # Micro-batches of 3 rows count 2 of them each; with 5 in all the weights differ below.
    batch = dict(
        image=np.zeros((6, 2, 2, 1), np.uint8), target=np.arange(6, dtype=np.float32),
    )  # fmt: skip

    def uneven(model, rows, config, rngs):
        counted = rows["target"] < 4  # rows 0 and 2 of 0, 2, 4; rows 1 and 3 of 1, 3, 5
        counted = counted & (rows["target"] != 3)
        weight = counted.sum().astype(jnp.float32)
        total = jnp.sum(errors(model, rows, config, rngs=rngs) * counted)
        return total / weight, {"loss": (total, weight)}

    train_step = step.make_train_step(graphdef, tx, dummy, loss=uneven, mix=DUMMY.mix, seed=0)
    after, terms = train_step(start, batch)
    kept = np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(means(terms)["loss"], (kept**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(after.params["value"], 2 * kept.mean(), rtol=1e-6)
