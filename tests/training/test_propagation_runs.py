"""Whole runs of propagation (in `make exhaustive`): killed and continued, on eight devices, on two
processes, started from the weights of another propagation. One straight run of eight steps
on one device is the reference.
"""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from run_helpers import finish, free_port, quick_compilation, saved_state, start_child

import eval as program
import train
from configs import moving_digits
from lambdanet.config import to_json
from lambdanet.data import moving_digits as builder
from lambdanet.data import moving_scenes
from lambdanet.interop import files
from lambdanet.interop.names import NameMappingError
from lambdanet.training.metrics import read_records

# The loop is that of test_segmentation_runs.py, which the suite has.
pytestmark = pytest.mark.exhaustive
HERE = Path(__file__).resolve().parent
RECIPE = f"{HERE.parents[1]}/configs/moving_digits.py:propagate"
STEPS, HALF = 8, 4
SIDE = 64
FLOW = dict(width=1 / 32, levels=3, half=False)


def settings(data_dir):
    """What differs from the recipe, by key."""
    backbone = dict(
        name="resnet18",
        blocks=(1, 1),
        widths=(4, 8),
        stem="strided",
        output_stride=4,
        zero_init_last=False,
    )
    return {
        "data.data_dir": str(data_dir),
        "data.flip": 0.5,
        "model.backbone": backbone,
        "model.head": dict(name="fcn", channels=8),
        "model.propagation": dict(name="deep_feature_flow", **FLOW),
        "optim.schedule": "constant",
        "optim.warmup_epochs": 0.0,
        "optim.lr": 0.01,
        "train.batch_size": 16,
        "train.steps": STEPS,
        "train.log_every": 1,
        "train.ema_decay": 0.9,
        "train.eval_every": 0.0,
        "train.save_every": 1.0,  # four steps
        "train.keep_last": 3,
        "train.report": False,
        "train.cache_dir": "",
    }


def make_config(data_dir, **changed):
    config = moving_digits.get_config("propagate,deep_feature_flow")
    for key, value in {**settings(data_dir), **changed}.items():
        section, name = key.split(".")
        config[section][name] = value
    return config


def flags_of(data_dir, workdir, **changed):
    given = settings(data_dir) | changed
    flags = [f"--config={RECIPE},deep_feature_flow", f"--workdir={workdir}"]
    return flags + [f"--config.{key}={value}" for key, value in given.items()]


def run(config, workdir, stream=None):
    return train.run(config, workdir, stream=stream or io.StringIO(), devices=jax.devices()[:1])


class Runs:
    """The reference run and the finished children."""

    def __init__(self, root):
        self.root, self.data = root, root / "data"
        self.config = make_config(self.data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moving_scenes, "SPLITS", {"train": 64, "validation": 8, "test": 21})
            builder.prepare(str(self.data), (SIDE, SIDE))
        self.outcome = run(self.config, root / "straight")
        kill = flags_of(self.data, root / "kill")
        children = {"kill": start_child("train_child.py", "kill", "6", *kill)}
        self.output, self.code = finish(children)

    def start_parallel(self):
        """The runs on several devices and processes."""
        root, text = self.root, to_json(self.config)
        job = dict(workdir=str(root / "fsdp4"), config=text, steps=HALF, data=2, fsdp=4)
        pair = ["--distributed", "--num_processes=2"]
        pair += [f"--coordinator_address=127.0.0.1:{free_port()}"]
        short = flags_of(self.data, root / "pair", **{"train.steps": HALF})
        children = {
            "pair0": start_child("train_child.py", "none", "0", *short, *pair, "--process_id=0"),
            "pair1": start_child("train_child.py", "none", "0", *short, *pair, "--process_id=1"),
            "devices": start_child("devices_child.py", json.dumps([job]), devices=8),
        }
        output, code = finish(children)
        self.output, self.code = self.output | output, self.code | code

    def state(self, name, step=STEPS):
        return saved_state(self.root / name, step)

    def losses(self, name):
        records = read_records(self.root / name)
        return {r["step"]: r["loss"] for r in records if r["split"] == "train"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with quick_compilation():
        yield Runs(tmp_path_factory.mktemp("propagation"))


@pytest.fixture(scope="module")
def parallel_runs(runs):
    runs.start_parallel()
    return runs


def test_the_reference_run_learns_and_ends_with_the_test_split(runs):
    losses = runs.losses("straight")
    assert sorted(losses) == list(range(1, STEPS + 1)) and losses[STEPS] < losses[1]
    assert runs.outcome["count"] == 21 and 0 <= runs.outcome["mean_iou"] <= 1
    last = read_records(runs.root / "straight")[-1]
    assert last["split"] == "test" and last["pixel_accuracy"] == runs.outcome["pixel_accuracy"]


def test_kill_9_and_continue_is_bitwise_the_straight_run(runs):
    assert runs.code["kill"] == -9, runs.output["kill"]
    stream = io.StringIO()
    outcome = run(runs.config, runs.root / "kill", stream)
    assert f"continuing from step {HALF}" in stream.getvalue()
    one, other = runs.state("straight"), runs.state("kill")
    assert sorted(one) == sorted(other)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    assert runs.losses("kill") == runs.losses("straight")
    for name in ("mean_iou", "pixel_accuracy", "loss", "ema_mean_iou"):
        assert outcome[name] == runs.outcome[name]


def test_eight_devices_train_like_one(parallel_runs):
    runs = parallel_runs
    assert runs.code["devices"] == 0, runs.output["devices"]
    one, eight = runs.losses("straight"), runs.losses("fsdp4")
    for step in range(1, HALF + 1):
        assert eight[step] == pytest.approx(one[step], abs=2e-4), step


FLAGS = dict(
    weights=None, step="latest", average=None, split=None, batch_size=0, batch_sizes=[1],
    repeats=1, images=1, threshold=0.9, name="*", input=[], top=None, fps=None, classes=None,
)  # fmt: skip


def evaluate(mode, workdir, output, overrides=None):
    recipe = SimpleNamespace(path=None, overrides=overrides or {})
    flags = SimpleNamespace(**FLAGS, workdir=workdir, output=str(output))
    program.run(mode, flags, recipe)
    return json.loads((output / f"{mode}.json").read_text())


def test_two_processes_train_and_evaluate_like_one(parallel_runs, tmp_path):
    runs = parallel_runs
    assert (runs.code["pair0"], runs.code["pair1"]) == (0, 0), (
        runs.output["pair0"],
        runs.output["pair1"],
    )
    one, two = runs.losses("straight"), runs.losses("pair")
    for step in range(1, HALF + 1):
        assert two[step] == pytest.approx(one[step], abs=2e-4), step
    last = [json.loads(runs.output[p][0].splitlines()[-1]) for p in ("pair0", "pair1")]
    assert last[0]["count"] == last[1]["count"] == 21
    # The same checkpoint, evaluated by one process: every pixel of every frame is counted once.
    found = evaluate("accuracy", runs.root / "pair", tmp_path)["live"]
    for name in ("mean_iou", "pixel_accuracy", "loss"):
        assert last[0][name] == last[1][name] == pytest.approx(found[name], abs=1e-5)


def test_weights_start_another_propagation(runs, tmp_path):
    """All but the propagation, which stays as initialised; `load` says that this would fit."""
    evaluate("export", runs.root / "straight", tmp_path)
    path = tmp_path / "model.safetensors"
    stored = files.load_safetensors(path)
    changed = {
        "model.propagation": dict(name="neighborhood_propagation", embedding_channels=4, radius=1),
        "optim.frozen": (),
        "train.init_weights": str(path),
        "train.steps": 1,
        "optim.lr": 1e-12,
        "optim.weight_decay": 0.0,
        "train.keep_best": "",
        "data.eval_split": "",
        "data.test_split": "",
    }
    with pytest.raises(NameMappingError, match=r"fits with --config.train.init_head=propagation"):
        run(make_config(runs.data, **changed), tmp_path / "load")
    config = make_config(runs.data, **changed, **{"train.init_head": "propagation"})
    run(config, tmp_path / "other")
    found = saved_state(tmp_path / "other", 1)
    for name in ("backbone/stages/0/blocks/0/conv1/conv/kernel", "head/classify/kernel"):
        np.testing.assert_allclose(found[f"params/{name}"], stored[name], atol=1e-6)
    assert "params/propagation/reduce/kernel" in found
    assert not any("flow_net" in name for name in found)
