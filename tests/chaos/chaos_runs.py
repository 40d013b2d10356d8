"""Runs that are killed, interrupted and damaged at random; `make chaos` starts them, not the suite.

Each test prints its numbers. CHAOS_KILLS says how many times a run is killed (default 100).
"""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("CHAOS_KILLS", "100"))
STEPS = 60
OPTIONS = (
    "--config=configs/digits.py:conv", "--config.model.blocks=(1,)", "--config.model.widths=(4,)",
    "--config.train.batch_size=16", f"--config.train.steps={STEPS}",
    "--config.optim.warmup_epochs=0.0", "--config.train.eval_every=0.074",  # 5 steps
    "--config.train.save_every=0.0446",  # 3 steps
    "--config.train.log_every=4", "--config.train.report=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("chaos")


def start(root, name, *more):
    command = [sys.executable, "train.py", *OPTIONS, f"--workdir={root / name}"]
    command += [f"--config.data.data_dir={root}/data", f"--config.train.cache_dir={root}/cache"]
    return subprocess.Popen(
        [*command, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def digest(workdir):
    """SHA-256 over the final state, and the records of evaluations and training."""
    flat = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / "state")
    state = hashlib.sha256()
    for name in sorted(flat):
        state.update(name.encode() + np.ascontiguousarray(flat[name]).tobytes())
    keep = ("step", "split", "loss", "accuracy", "lr")
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return state.hexdigest(), [{k: r[k] for k in keep if k in r} for r in lines]


@pytest.fixture(scope="module")
def straight(root):
    """What a run without interruption ends with, and how long it takes once programs are cached."""
    assert finish(start(root, "first"))[0] == 0
    began = time.monotonic()
    assert finish(start(root, "straight"))[0] == 0
    return digest(root / "straight"), time.monotonic() - began


def test_kills_at_random_moments(root, straight):
    wanted, seconds = straight
    draw, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        name = f"killed{runs}"
        while True:
            process = start(root, name)
            try:
                process.wait(draw.uniform(0.0, seconds) if kills < KILLS else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                continue
            code, out, err = finish(process)
            assert code == 0, err
            break
        runs += 1
        assert digest(root / name) == wanted
        shutil.rmtree(root / name)
    print(f"\n{kills} kills in {runs} runs: every end state and every record as without them")


@pytest.mark.parametrize("signals", [("SIGTERM",), ("SIGINT",), ("SIGTERM", "SIGINT")])
def test_signals_at_random_moments(root, straight, signals):
    wanted, seconds = straight
    draw, counts, name = random.Random(1), {}, "signalled" + "".join(signals)
    for _ in range(8):
        process = start(root, name)
        time.sleep(draw.uniform(0.0, 1.2 * seconds))
        for one in signals:
            process.send_signal(getattr(signal, one))
            time.sleep(0.05)
        code, out, err = finish(process)
        assert clean(err) or len(signals) == 2, err
        assert code in (0, 130, 143, 1), (code, err)
        counts[code] = counts.get(code, 0) + 1
    assert finish(start(root, name))[0] == 0
    assert digest(root / name) == wanted
    print(f"\n{signals}: exit codes {counts}; the end state and records as without them")


def clean(err):
    """No traceback of ours. (TensorStore's threads leave some when a read fails.)"""
    return 'train.py", line' not in err


def largest(folder):
    """The largest file of array data."""
    return max((f for f in folder.glob("**/d/*") if f.is_file()), key=lambda f: f.stat().st_size)


def flip(folder):
    raw = bytearray(largest(folder / "state").read_bytes())
    raw[len(raw) // 2] ^= 1
    largest(folder / "state").write_bytes(raw)


def cut(folder):
    file = largest(folder / "state")
    file.write_bytes(file.read_bytes()[:-7])


def lose(folder):
    largest(folder / "state").unlink()


def edit(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


def test_damaged_newest_checkpoint(root, straight):
    wanted, _ = straight
    for damage in (flip, cut, lose, edit):
        name = f"damaged_{damage.__name__}"
        shutil.copytree(root / "straight", root / name)
        newest = root / name / "checkpoints" / str(STEPS)
        damage(newest)
        code, _, err = finish(start(root, name))
        assert code == 1 and f"step {STEPS} is damaged" in err and clean(err), err
        code, _, err = finish(start(root, name, "--config.train.damaged=fall_back"))
        assert code == 0 and "set aside" in err, err
        assert (newest.parent / f"{STEPS}.damaged").is_dir()
        assert digest(root / name)[0] == wanted[0]
    print("\n4 kinds of damage named; falling back ends in the same state")


def test_a_full_disk_loses_nothing(root, straight, tmp_path):
    wanted, _ = straight
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk])
    if made.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        code, _, err = finish(start(disk, "run", f"--config.data.data_dir={root}/data",
                                    f"--config.train.cache_dir={root}/cache"))  # fmt: skip
        assert code == 1 and "checkpoint" in err and clean(err), err[-2000:]
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        code, _, err = finish(start(disk, "run", f"--config.data.data_dir={root}/data",
                                    f"--config.train.cache_dir={root}/cache"))  # fmt: skip
        assert code == 0 and digest(disk / "run") == wanted, err
    finally:
        subprocess.run(["umount", disk], check=True)
    print("\na full disk: named; with room again the same command ends in the same state")


def test_two_runs_in_one_workdir(root, straight):
    wanted, _ = straight
    first = start(root, "twice")
    while not (root / "twice" / "run.lock").exists() and first.poll() is None:
        time.sleep(0.02)
    code, _, err = finish(start(root, "twice"))
    assert code == 1 and "WorkdirBusyError" in err and f"process {first.pid}" in err, err
    assert finish(first)[0] == 0 and digest(root / "twice") == wanted
    print("\na second run was refused, the first one untouched")


def test_one_of_two_processes_is_killed(root, straight):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = ("--distributed", f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2",
            "--config.train.steps=100000", "--config.data.eval_split=",
            "--config.train.keep_best=", "--config.train.save_every=0.0")  # fmt: skip
    pair = [start(root, "pair", *more, f"--process_id={i}") for i in range(2)]
    try:
        for line in pair[0].stdout:
            if "step 40/" in line:
                break
        pair[1].kill()
        began = time.monotonic()
        pair[0].communicate(timeout=60)
        seconds = time.monotonic() - began
        assert pair[0].returncode != 0
    finally:
        for process in pair:
            process.kill()
    print(f"\none of two processes killed: the other ended after {seconds:.1f} s")
