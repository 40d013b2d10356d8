"""What short whole runs write down, and what they need to go on: one tiny network, many ways."""

import functools
import io
import re
import signal
import time

import jax
import numpy as np
import pytest
from data_helpers import jpeg, open_source, prepare_unchecked
from flax import nnx
from run_helpers import quick_compilation

import models
import train
from configs import digits
from lambdanet import data
from lambdanet.data import examples, pseudo_labels
from lambdanet.interop import files
from lambdanet.training import metrics, programs, state

BATCH = 16


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def tiny(data_dir, steps):
    config = digits.get_config("conv")
    config.data.data_dir = str(data_dir)
    config.model.blocks, config.model.widths = (1,), (4,)
    # so that a run of some steps is the beginning of a longer one
    config.optim.schedule, config.optim.warmup_epochs = "constant", 0.0
    config.train.steps, config.train.batch_size, config.train.log_every = steps, BATCH, 1
    config.train.eval_every = config.train.save_every = 0.0
    config.train.report, config.train.cache_dir, config.train.keep_best = False, "", ""
    config.data.eval_split = config.data.test_split = ""
    return config


def run(config, workdir, stream=None):
    return train.run(config, workdir, stream=stream or io.StringIO(), devices=jax.devices()[:1])


def after_every_step(monkeypatch, do):
    """Has `do(number of steps done)` called when a training step was started."""
    program = programs.training_program

    def training_program(*arguments, **options):
        step = program(*arguments, **options)

        def followed(number, *given):
            result = step(number, *given)
            do(number + 1)
            return result

        return followed

    monkeypatch.setattr(programs, "training_program", training_program)


# ---- Interrupted where an evaluation is due ------------------------------------------------------


def test_an_evaluation_that_a_signal_cut_off_is_made_up_for(data_dir, tmp_path, monkeypatch):
    """The signal comes in the step after which it is due; the run that goes on makes it."""
    config = tiny(data_dir, 4)
    config.data.eval_split, config.train.keep_best = "validation[:48]", "accuracy"
    config.train.eval_every = 2 * BATCH / 1077
    run(config, tmp_path / "plain")
    after_every_step(monkeypatch, lambda done: done == 2 and signal.raise_signal(signal.SIGTERM))
    assert run(config, tmp_path / "stopped")["interrupted"]
    assert not (tmp_path / "stopped" / "checkpoints" / "2" / "score.json").exists()
    assert not run(config, tmp_path / "stopped")["interrupted"]
    assert (tmp_path / "stopped" / "checkpoints" / "2" / "score.json").exists()
    plain, stopped = (
        [
            (r["step"], r["accuracy"], r["loss"])
            for r in metrics.read_records(tmp_path / name)
            if r["split"] == "eval"
        ]
        for name in ("plain", "stopped")
    )
    assert plain == stopped and [step for step, *_ in plain] == [2, 4]


# ---- Records of a run that goes on ---------------------------------------------------------------


def test_no_record_after_a_resume_shows_a_speed_that_nothing_had(data_dir, tmp_path, monkeypatch):
    pause = 0.02
    after_every_step(monkeypatch, lambda _: time.sleep(pause))
    for steps in (3, 10):
        config = tiny(data_dir, steps)
        config.train.save_every = 4 * BATCH / 1077  # a pause of the clock in between
        run(config, tmp_path)
    speeds = [r.get("images_per_second", 0.0) for r in metrics.read_records(tmp_path)]
    assert len(speeds) == 10 and sum(speed > 0 for speed in speeds[3:]) >= 3
    assert max(speeds) <= BATCH / pause


# ---- Damaged records that are passed over --------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """Twenty pictures, two of them cut off."""
    root = tmp_path / "photos"
    for name, colour in (("cat", (250, 0, 0)), ("dog", (0, 0, 250))):
        (root / name).mkdir(parents=True)
        for i in range(10):
            (root / name / f"{i}.jpg").write_bytes(jpeg(colour))
    for name in ("cat/3.jpg", "dog/5.jpg"):
        (root / name).write_bytes(jpeg((1, 2, 3), size=(400, 300))[:700])
    prepare_unchecked(root, tmp_path / "prepared")
    return tmp_path / "prepared"


def test_skipped_records_are_counted_apart_and_named(damaged, tmp_path, caplog):
    examples._say_skipped.cache_clear()
    config = tiny(damaged, 6)
    config.data.source, config.data.channels, config.data.on_error = "image_folder", 3, "skip"
    config.data.mean, config.data.std = (0.5,), (0.25,)
    config.data.test_split = "train"
    stream = io.StringIO()
    outcome = run(config, tmp_path / "run", stream)
    # 96 examples: every picture four times and 16 a fifth, of which the damaged ones may be two
    assert 8 <= outcome["skipped_records"] <= 10 and outcome["test_skipped_records"] == 2
    assert outcome["count"] == 18
    last = [r for r in metrics.read_records(tmp_path / "run") if r["split"] == "train"][-1]
    assert last["skipped_records"] == outcome["skipped_records"]
    assert f"{outcome['skipped_records']} damaged records were replaced" in stream.getvalue()
    for name in ("cat/3.jpg", "dog/5.jpg"):
        said = rf"skipped: record \d+ of split 'train' of .*, file {name}: cannot decode the image"
        assert any(re.match(said, record.getMessage()) for record in caplog.records), name


# ---- Files that only the start reads -------------------------------------------------------------


def test_a_run_goes_on_without_the_files_of_its_start(data_dir, tmp_path):
    """Weights that are gone or another's, labels and data that were moved."""
    config = tiny(tmp_path / "data", 1)
    data.prepare_embedded(config.data)
    build = models.builder_from_config(config, {"num_classes": 10})
    _, *parts = state.split_model(build(rngs=nnx.Rngs(1)))
    flat = functools.reduce(dict.__or__, map(state.flatten_names, parts))
    start, labels = tmp_path / "start.safetensors", tmp_path / "labels.json"
    files.save_safetensors(start, flat, files.export_metadata({"name": config.model.name}))
    config.data.train_split, config.data.pseudo_split = "train_labelled", "train_unlabelled"
    ids = open_source(config.data, "train_unlabelled").ids()[:40]
    answers = np.eye(10)[np.arange(40) % 10]
    pseudo_labels.write(labels, ids, answers, 0.5, 10, split="train_unlabelled")
    config.train.init_weights, config.data.pseudo_labels = str(start), str(labels)
    assert run(config, tmp_path / "run")["step"] == 1

    start.unlink()
    labels.rename(tmp_path / "moved.json")
    (tmp_path / "data").rename(tmp_path / "moved")
    config.data.data_dir = str(tmp_path / "moved")
    config.data.pseudo_labels = str(tmp_path / "moved.json")
    for steps, weights in ((2, str(start)), (3, "")):
        config.train.steps, config.train.init_weights = steps, weights
        assert run(config, tmp_path / "run")["step"] == steps
