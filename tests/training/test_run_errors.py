"""What train.run refuses, and how it stops: wrong inputs give messages that say what to do."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import app
from flax import nnx

import models
import train
from configs import base, digits
from lambdanet.config import ConfigError, validate
from lambdanet.interop import files
from lambdanet.training import checkpoint, run_weights, state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def make_config(data_dir):
    config = digits.get_config("conv")
    config.data.data_dir = str(data_dir)
    config.model.blocks, config.model.widths = (1,), (4,)
    config.optim.warmup_epochs, config.optim.frozen = 0.0, (r"stem/.*",)
    config.train.accumulate = 2
    config.train.steps, config.train.batch_size, config.train.log_every = 6, 16, 1
    config.train.eval_every, config.train.save_every = 0.0, 2 * 16 / 1077
    config.train.report, config.train.cache_dir, config.train.keep_best = False, "", ""
    config.data.eval_split = config.data.test_split = ""
    return config


def run(config, workdir):
    return train.run(config, workdir, stream=io.StringIO(), devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    assert run(make_config(data_dir), workdir)["step"] == 6
    return workdir


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    data_dir, tmp_path
):
    config = make_config(data_dir)
    # The warm-up gives the first step lr 0, the second one that overflows.
    config.optim.name, config.optim.lr, config.optim.warmup_epochs = "sgd", 1e38, 4 * 16 / 1077
    config.train.save_every = 16 / 1077  # every step
    with pytest.raises(FloatingPointError) as error:
        run(config, tmp_path)
    text = str(error.value)
    assert (
        "step 2 gave" in text
        and "Good checkpoints" in text
        and "[1]" in text
        and "optim.clip_norm" in text
    )
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["1"]


def test_another_model_or_optimiser_is_refused_with_the_changed_keys(data_dir, finished):
    config = make_config(data_dir)
    config.model.widths, config.optim.lr, config.train.log_every = (8,), 0.5, 3
    with pytest.raises(checkpoint.CheckpointError) as error:
        run(config, finished)
    text = str(error.value)
    assert (
        "model.widths: [4] -> [8]" in text
        and "optim.lr: 0.004 -> 0.5" in text
        and "log_every" not in text
    )
    assert (
        json.loads((finished / "config.json").read_text())["optim"]["lr"] == 0.004
    )  # the record of the run is untouched


def test_a_run_that_became_shorter_is_refused(data_dir, finished):
    config = make_config(data_dir)
    config.train.steps = 4
    with pytest.raises(
        checkpoint.CheckpointError, match="holds step 6, but this run has only 4 steps"
    ):
        run(config, finished)


def test_a_damaged_checkpoint_stops_the_run(data_dir, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy" / "checkpoints" / "6" / "meta" / "metadata").write_text("{")
    with pytest.raises(
        checkpoint.CheckpointError,
        match="step 6 is damaged.*\n.*\n.*delete it to go on from step 4",
    ):
        run(make_config(data_dir), tmp_path / "copy")


def test_workdir_that_cannot_be_written(data_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        run(make_config(data_dir), tmp_path / "file" / "run")


def test_fewer_classes_than_the_data_has(data_dir, tmp_path):
    config = make_config(data_dir)
    config.model.num_classes = 4
    with pytest.raises(ValueError, match="model.num_classes=4, but the data has 10 classes"):
        run(config, tmp_path)


def test_batch_that_does_not_divide(data_dir, tmp_path):
    config = make_config(data_dir)
    config.train.accumulate = 3
    with pytest.raises(ValueError, match="train.batch_size"):
        run(config, tmp_path)


def test_accumulation_and_frozen_parameters_work_in_a_whole_run(finished):
    """As the config has them."""
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 6 and np.isfinite(losses).all()


def test_arguments_that_nothing_reads_are_refused(tmp_path):
    with pytest.raises(app.UsageError, match=r"\['config.train.steps=3'\]; keys start with --"):
        train.main(["train.py", "config.train.steps=3"])
    command = [sys.executable, "train.py", f"--workdir={tmp_path / 'run'}", "--num_processes=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert "--num_processes=2: only with --distributed" in done.stderr + done.stdout


def test_options_of_a_start_without_its_file_are_refused_with_all_others(data_dir, tmp_path):
    config = make_config(data_dir)
    config.train.init_head, config.train.init_average, config.train.keep_last = "new", "live", 0
    with pytest.raises(ConfigError) as caught:
        run(config, tmp_path)
    said = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "train.init_head = 'new', train.init_weights = '': init_head chooses" in said
    assert "train.init_average = 'live', train.init_weights = ''" in said and "set init_" in said
    config.train.init_head, config.train.keep_last = "backbone", 2
    for reads in (dict(resumes=True), dict(training=False)):  # what only a start reads
        validate(config, base.get_config(), models.registry, **reads)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("notes.txt", "is no PyTorch zip checkpoint, safetensors or npz file"),
        ("missing.pth", "no weights file"),
        ("empty", "no weights file"),
        ("started", "no checkpoint"),
        ("hf:me", "hf:OWNER/NAME"),
    ],
)
def test_a_start_from_what_are_no_weights_is_refused_with_all_others(
    data_dir, tmp_path, source, says
):
    (tmp_path / "notes.txt").write_text("no weights")
    (tmp_path / "empty").mkdir()
    (tmp_path / "started" / checkpoint.FOLDER).mkdir(parents=True)
    config = make_config(data_dir)
    config.train.init_weights = source if ":" in source else str(tmp_path / source)
    config.train.keep_last = 0
    with pytest.raises(ConfigError) as caught:
        run(config, tmp_path / "new" / "run")
    (first, second) = sorted(caught.value.problems)
    assert first.startswith("train.init_weights = ") and says in first
    assert second.startswith("train.keep_last")
    assert not (tmp_path / "new").exists()  # no empty workdir is left


@pytest.mark.exhaustive
def test_a_run_starts_from_the_newest_checkpoint_of_another(data_dir, finished, tmp_path):
    config = make_config(data_dir)
    config.train.steps, config.train.init_weights, config.optim.lr = 1, str(finished), 1e-12
    assert run(config, tmp_path / "run")["step"] == 1
    (first, _), (second, _) = (run_weights.read_run(d, prefer_ema=True)
                               for d in (finished, tmp_path / "run"))  # fmt: skip
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, atol=0.6 * np.abs(array).max(),
                                   err_msg=name)  # fmt: skip
        if not name.endswith(("mean", "var")):
            np.testing.assert_allclose(second[name], array, atol=1e-6, err_msg=name)
    config.model.widths = (8,)
    with pytest.raises(ValueError, match="mis-shaped(.|\n)*own word they are of model 'resnet_dig"):
        run(config, tmp_path / "other")


def test_weights_for_other_classes_name_the_key_that_takes_them(data_dir, tmp_path):
    config, file = make_config(data_dir), tmp_path / "weights.safetensors"
    config.train.steps, config.train.init_weights = 1, str(file)
    build = models.builder_from_config(config, {"num_classes": 12})
    _, params, stats = state.split_model(build(rngs=nnx.Rngs(0)))
    flat = state.flatten_names(params) | state.flatten_names(stats)
    files.save_safetensors(file, flat, files.export_metadata({"name": config.model.name}))
    with pytest.raises(ValueError, match=r"mis-shaped(.|\n)*--config.train.init_head=new"):
        run(config, tmp_path / "run")
    config.train.init_head = "new"
    assert run(config, tmp_path / "run")["step"] == 1
