"""Whole runs on clips (in `make exhaustive`): killed and continued, on eight devices, on two
processes. One straight run of eight steps on one device is the reference. All are of train.py as
a program, whose convolutions round otherwise than those of the tests' process.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from run_helpers import finish, free_port, quick_compilation, saved_state, start_child

import eval as program
from configs import moving_digits
from lambdanet.config import to_json
from lambdanet.data import moving_digits as builder
from lambdanet.data import moving_scenes
from lambdanet.training.metrics import read_records

# The loop is that of test_segmentation_runs.py, which the suite has.
pytestmark = pytest.mark.exhaustive
HERE = Path(__file__).resolve().parent
RECIPE = f"{HERE.parents[1]}/configs/moving_digits.py:clip"
STEPS, HALF = 8, 4


def settings(data_dir):
    """What differs from the recipe, by key."""
    return {
        "data.data_dir": str(data_dir),
        "data.crop": "shift",
        "data.shift": 4,
        "data.color_jitter": (0.2, 0.2, 0.2),
        "clips.frames": 3,
        "clips.frame_stride": 2,
        "clips.jitter": 1,
        "clips.eval_clips": 2,
        "model.blocks": (1, 1),
        "model.widths": (8, 8),
        "model.inflated_blocks": ("all", "all"),
        "model.context": dict(name="nonlocal", after="stage2.1"),
        "model.dropout_rate": 0.2,
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


def make_config(data_dir):
    config = moving_digits.get_config("clip")
    for key, value in settings(data_dir).items():
        section, name = key.split(".")
        config[section][name] = value
    return config


def flags_of(data_dir, workdir, **changed):
    given = settings(data_dir) | changed
    flags = [f"--config={RECIPE}", f"--workdir={workdir}"]
    return flags + [f"--config.{key}={value}" for key, value in given.items()]


class Runs:
    """The reference run and the finished children."""

    def __init__(self, root):
        self.root, self.data = root, root / "data"
        self.config = make_config(self.data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moving_scenes, "SPLITS", {"train": 64, "validation": 8, "test": 21})
            builder.prepare(str(self.data), (64, 64))
        kill = flags_of(self.data, root / "kill")
        straight = flags_of(self.data, root / "straight")
        # Before the others, which find its programs in the cache.
        first = {"straight": start_child("train_child.py", "none", "0", *straight)}
        self.output, self.code = finish(first)
        assert self.code["straight"] == 0, self.output["straight"]
        self._finish({"kill": start_child("train_child.py", "kill", "6", *kill)})
        self._finish({"again": start_child("train_child.py", "none", "0", *kill)})
        self.outcome = self.printed("straight")

    def start_parallel(self):
        """The runs on several devices and processes."""
        root, text = self.root, to_json(self.config)
        jobs = [
            dict(workdir=str(root / name), config=text, steps=HALF, data=data, fsdp=fsdp)
            for name, data, fsdp in (("fsdp4", 2, 4), ("data8", 8, 1))
        ]
        pair = ["--distributed", "--num_processes=2"]
        pair += [f"--coordinator_address=127.0.0.1:{free_port()}"]
        short = flags_of(self.data, root / "pair", **{"train.steps": HALF})
        children = {
            "pair0": start_child("train_child.py", "none", "0", *short, *pair, "--process_id=0"),
            "pair1": start_child("train_child.py", "none", "0", *short, *pair, "--process_id=1"),
            "devices": start_child("devices_child.py", json.dumps(jobs), devices=8),
        }
        self._finish(children)

    def _finish(self, children):
        output, code = finish(children)
        self.output, self.code = self.output | output, self.code | code

    def printed(self, name):
        """The outcome that a child printed as its last line."""
        return json.loads(self.output[name][0].splitlines()[-1])

    def losses(self, name):
        records = read_records(self.root / name)
        return {r["step"]: r["loss"] for r in records if r["split"] == "train"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with quick_compilation():
        yield Runs(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def parallel_runs(runs):
    runs.start_parallel()
    return runs


def assert_near(losses, others):
    for step in range(1, HALF + 1):
        assert others[step] == pytest.approx(losses[step], abs=2e-4), step


def test_the_reference_run_learns_and_ends_with_the_test_split(runs):
    losses = runs.losses("straight")
    assert sorted(losses) == list(range(1, STEPS + 1)) and losses[STEPS] < losses[1]
    assert runs.outcome["count"] == 21 and 0 <= runs.outcome["accuracy"] <= 1
    last = read_records(runs.root / "straight")[-1]
    assert last["split"] == "test" and last["accuracy"] == runs.outcome["accuracy"]


def test_kill_9_and_continue_is_bitwise_the_straight_run(runs):
    assert runs.code["kill"] == -9, runs.output["kill"]
    assert runs.code["again"] == 0, runs.output["again"]
    assert f"continuing from step {HALF}" in runs.output["again"][0]
    one, other = (saved_state(runs.root / name, STEPS) for name in ("straight", "kill"))
    assert sorted(one) == sorted(other)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    assert runs.losses("kill") == runs.losses("straight")
    for name in ("accuracy", "loss", "ema_accuracy"):
        assert runs.printed("again")[name] == runs.outcome[name]


def test_eight_devices_train_like_one(parallel_runs):
    runs = parallel_runs
    assert runs.code["devices"] == 0, runs.output["devices"]
    assert_near(runs.losses("straight"), runs.losses("fsdp4"))
    assert_near(runs.losses("straight"), runs.losses("data8"))


def test_two_processes_train_and_evaluate_like_one(parallel_runs):
    runs = parallel_runs
    assert (runs.code["pair0"], runs.code["pair1"]) == (0, 0), (
        runs.output["pair0"],
        runs.output["pair1"],
    )
    assert_near(runs.losses("straight"), runs.losses("pair"))
    last = [runs.printed(name) for name in ("pair0", "pair1")]
    assert last[0]["count"] == last[1]["count"] == 21
    # The same checkpoint, evaluated by one process: every clip is counted once.
    found = program.accuracy(program.load_subject(workdir=runs.root / "pair"))["live"]
    for name in ("accuracy", "top5", "loss"):
        assert last[0][name] == last[1][name] == pytest.approx(found[name], abs=1e-5)
