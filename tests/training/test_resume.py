"""Whole runs of train.py: killed, terminated, continued, on other devices, and, in `make
exhaustive`, on devices that all hold the state, or share it from the first step, and on several
processes; all must train the same.

One straight run of twenty steps on one device is the reference. The other runs are started
together, since each process spends seconds on imports and compiling.
"""

import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from run_helpers import finish, free_port, quick_compilation, saved_state, start_child

import train
from configs import digits
from lambdanet.config import to_json
from lambdanet.training.metrics import read_records

HERE = Path(__file__).resolve().parent
STEPS, HALF = 20, 10


def make_config(data_dir):
    config = digits.get_config("lambda")
    config.data.data_dir = str(data_dir)
    config.model.blocks, config.model.widths = (1, 1), (8, 16)
    config.model.dropout_rate, config.model.drop_path_rate = 0.2, 0.2
    # Constant, so that a run of ten steps is the beginning of one of twenty; large, so that ten
    # steps move the weights.
    config.optim.schedule, config.optim.warmup_epochs, config.optim.lr = "constant", 0.0, 0.02
    config.train.steps, config.train.batch_size, config.train.log_every = STEPS, 32, 1
    config.classification.mixup_alpha, config.train.ema_decay = 0.2, 0.99
    config.train.eval_every, config.train.save_every = 0.0, HALF * 32 / 1077
    config.train.keep_last, config.train.report = 3, False
    config.train.cache_dir = ""  # the suite has its own
    return config


def flags_of(config, workdir, **overrides):
    """The command-line flags that turn configs/digits.py into `config`."""
    recipe = json.loads(to_json(digits.get_config("lambda")))
    flags = [f"--config={HERE.parents[1]}/configs/digits.py", f"--workdir={workdir}"]
    for section, values in json.loads(to_json(config)).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            value = overrides.get(f"{section}.{key}", value)
            if value != recipe[section].get(key):
                value = tuple(value) if isinstance(value, list) else value
                flags.append(f"--config.{section}.{key}={value}")
    return flags


class Runs:
    """The reference run and the finished children with their work directories."""

    def __init__(self, root):
        self.root = root
        self.config = make_config(root / "data")
        self.straight = root / "straight"
        self.outcome = train.run(
            self.config, self.straight, stream=io.StringIO(), devices=jax.devices()[:1]
        )
        self.leave_half("shared")
        term = flags_of(self.config, root / "term", **{"data.num_workers": 1})
        children = {
            "kill": start_child(
                "train_child.py", "kill", "15", *flags_of(self.config, root / "kill")
            ),
            "term": start_child("train_child.py", "term", "10", *term),
            "shared": self.start_on_eight(("shared", STEPS, 2, 4)),
        }
        self.output, self.code = finish(children)

    def leave_half(self, name):
        """What a machine with one device leaves after ten steps, to be continued on eight."""
        shutil.copytree(self.straight, self.root / name)
        shutil.rmtree(self.root / name / "checkpoints" / str(STEPS))

    def start_on_eight(self, *jobs):
        """Runs of (name, steps, data, fsdp) one after the other, in a child."""
        jobs = [
            dict(workdir=str(self.root / name), steps=steps, data=data, fsdp=fsdp)
            for name, steps, data, fsdp in jobs
        ]
        text = to_json(self.config)
        jobs = [dict(job, config=text) for job in jobs]
        return start_child("devices_child.py", json.dumps(jobs), devices=8)

    def start_more(self):
        """Every device holds the whole state; eight share it from the first step."""
        self.leave_half("moved")
        jobs = ("moved", STEPS, 8, 1), ("fsdp4", HALF, 2, 4)
        output, code = finish({"devices": self.start_on_eight(*jobs)})
        self.output, self.code = self.output | output, self.code | code

    def start_pair(self):
        """A run on two processes."""
        address = f"--coordinator_address=127.0.0.1:{free_port()}"
        flags = flags_of(self.config, self.root / "pair", **{"train.steps": HALF})
        flags += ["--distributed", "--num_processes=2", address]
        children = {
            f"pair{i}": start_child("train_child.py", "none", "0", *flags, f"--process_id={i}")
            for i in range(2)
        }
        output, code = finish(children)
        self.output, self.code = self.output | output, self.code | code

    def state(self, name, step=STEPS):
        return saved_state(self.root / name, step)

    def steps(self, name):
        return sorted(
            int(p.name) for p in (self.root / name / "checkpoints").iterdir() if p.name.isdigit()
        )

    def losses(self, name):
        return {
            r["step"]: r["loss"] for r in read_records(self.root / name) if r["split"] == "train"
        }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with quick_compilation():
        yield Runs(tmp_path_factory.mktemp("runs"))


def assert_bitwise_equal(runs, name):
    one, other = runs.state("straight"), runs.state(name)
    assert sorted(one) == sorted(other)
    assert {"step", "params/head/fc/kernel", "ema/params/head/fc/kernel"} <= set(one)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    assert runs.losses(name) == runs.losses("straight")  # of every step, once


def continue_run(runs, name):
    stream = io.StringIO()
    outcome = train.run(runs.config, runs.root / name, stream=stream, devices=jax.devices()[:1])
    return outcome, stream.getvalue()


def test_the_reference_run_learns_and_ends_with_the_test_split(runs):
    assert sorted(runs.losses("straight")) == list(range(1, STEPS + 1))
    assert runs.outcome["loss"] < np.log(10) - 0.05  # what a network that knows nothing has
    assert runs.outcome["step"] == STEPS and not runs.outcome["interrupted"]
    last = read_records(runs.straight)[-1]
    assert (
        last["split"] == "test"
        and last["count"] == 360
        and last["accuracy"] == runs.outcome["accuracy"]
    )
    assert runs.steps("straight") == [HALF, STEPS]


def test_kill_9_and_continue_is_bitwise_the_straight_run(runs):
    assert runs.code["kill"] == -9, runs.output["kill"]
    assert runs.steps("kill") == [HALF]
    assert (
        max(runs.losses("kill")) > HALF
    )  # records of lost steps, which the continuation must drop
    outcome, text = continue_run(runs, "kill")
    assert "continuing from step 10" in text
    assert_bitwise_equal(runs, "kill")
    assert (
        outcome["loss"] == runs.outcome["loss"] and outcome["ema_loss"] == runs.outcome["ema_loss"]
    )


def test_sigterm_saves_exits_with_0_and_continues_bitwise_with_other_workers(runs):
    # The first part read its data with a worker process, the second reads with threads.
    assert runs.code["term"] == 0, runs.output["term"]
    assert (
        "SIGTERM" in runs.output["term"][0]
        and "the same command continues" in runs.output["term"][0]
    )
    assert json.loads(runs.output["term"][0].splitlines()[-1])["interrupted"] is True
    assert runs.steps("term") == [HALF, HALF + 1]
    continue_run(runs, "term")
    assert_bitwise_equal(runs, "term")


def test_finished_run_is_only_evaluated_again(runs):
    before = runs.losses("straight")
    outcome, text = continue_run(runs, "straight")
    assert "finished before" in text and outcome["accuracy"] == runs.outcome["accuracy"]
    assert runs.losses("straight") == before
    assert [r["split"] for r in read_records(runs.straight)].count("test") == 1


@pytest.fixture(scope="module")
def more_runs(runs):
    runs.start_more()
    return runs


def bytes_per_device(runs, child, job=0):
    """(what each of the eight devices holds of the state, the whole state)"""
    assert runs.code[child] == 0, runs.output[child]
    outcome = json.loads(runs.output[child][0].splitlines()[-1])[job]
    (each,) = set(outcome["bytes_per_device"].values())
    assert len(outcome["bytes_per_device"]) == 8
    return each, sum(leaf.nbytes for leaf in runs.state("straight").values())


def assert_continued(runs, name):
    """The losses after a checkpoint of one device are those that it would have had."""
    one, eight = runs.losses("straight"), runs.losses(name)
    assert sorted(eight) == sorted(one)
    for step in range(HALF + 1, STEPS + 1):
        assert eight[step] == pytest.approx(one[step], abs=1e-4), step


def test_one_device_checkpoint_continues_on_eight_that_share_the_state(runs):
    each, whole = bytes_per_device(runs, "shared")
    assert each < 0.5 * whole  # a quarter of every array that divides
    assert_continued(runs, "shared")


@pytest.mark.exhaustive
def test_one_device_checkpoint_continues_on_eight_that_all_hold_it(more_runs):
    each, whole = bytes_per_device(more_runs, "devices", 0)
    assert each == whole
    assert_continued(more_runs, "moved")


@pytest.mark.exhaustive
def test_eight_devices_that_share_the_state_train_like_one(more_runs):
    one, eight = more_runs.losses("straight"), more_runs.losses("fsdp4")
    for step in range(1, HALF + 1):
        assert eight[step] == pytest.approx(one[step], abs=1e-5), step
    each, whole = bytes_per_device(more_runs, "devices", 1)
    assert each < 0.5 * whole


@pytest.mark.exhaustive
def test_two_processes_train_like_one_and_only_the_first_writes(runs):
    runs.start_pair()
    assert (runs.code["pair0"], runs.code["pair1"]) == (0, 0), (
        runs.output["pair0"],
        runs.output["pair1"],
    )
    one, two = runs.losses("straight"), runs.losses("pair")
    for step in range(1, HALF + 1):
        assert two[step] == pytest.approx(one[step], abs=1e-5), step
    assert runs.steps("pair") == [HALF]
    last = [json.loads(runs.output[p][0].splitlines()[-1]) for p in ("pair0", "pair1")]
    assert last[0]["count"] == last[1]["count"] == 360 and last[0]["loss"] == last[1]["loss"]
    assert (
        "step 1/10" in runs.output["pair0"][0]
        and "step" not in runs.output["pair1"][0].splitlines()[-2]
    )
    records = read_records(runs.root / "pair")
    assert [r["split"] for r in records].count("test") == 1
