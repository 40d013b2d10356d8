"""Runs that are killed, interrupted and damaged at random; `make chaos` starts them, not the suite.

Each test prints its numbers. CHAOS_KILLS says how many times a run is killed (default 100).
"""

import contextlib
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

from lambdanet.training.checkpoint import newest_step

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
    draw, kills, runs, half_saved, lost = random.Random(0), 0, 0, set(), 0
    while kills < KILLS:
        name, newest = f"killed{runs}", 0
        while True:
            process = start(root, name)
            try:
                process.wait(draw.uniform(0.0, seconds) if kills < KILLS else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                left = (root / name).glob("checkpoints/*.orbax-checkpoint-tmp")
                half_saved |= {(name, path.name, path.stat().st_ino) for path in left}
                lost += newest - min(newest, newest_step(root / name))
                newest = newest_step(root / name)
                continue
            code, out, err = finish(process)
            assert code == 0, err
            assert not newest or f"continuing from step {newest}" in out or newest == STEPS, out
            break
        runs += 1
        assert digest(root / name) == wanted
        shutil.rmtree(root / name)
    print(
        f"\n{kills} kills in {runs} runs, {len(half_saved)} of them during saves: {lost} saved "
        "steps lost, every end state and every record as without them"
    )
    assert lost == 0


@pytest.mark.parametrize("signals", [("SIGTERM",), ("SIGINT",), ("SIGTERM", "SIGINT")])
def test_signals_at_random_moments(root, straight, signals):
    wanted, seconds = straight
    draw, counts, name = random.Random(1), {}, "signalled" + "".join(signals)
    for _ in range(8):
        if newest_step(root / name) == STEPS:  # or the rest would meet a finished run
            # A signal in the last evaluation, when all is saved, cut that off.
            assert finish(start(root, name))[0] == 0
            assert digest(root / name) == wanted
            shutil.rmtree(root / name)
        process = start(root, name)
        time.sleep(draw.uniform(0.0, 1.2 * seconds))
        for one in signals:
            process.send_signal(getattr(signal, one))
            time.sleep(0.05)
        code, out, err = finish(process)
        assert clean(err), err
        # The negative ones: before the first line of the program.
        assert code in (0, 130, 143, -2, -15), (code, err)
        counts[code] = counts.get(code, 0) + 1
    assert finish(start(root, name))[0] == 0
    assert digest(root / name) == wanted
    print(f"\n{signals}: exit codes {counts}; the end state and records as without them")


def clean(err):
    """No traceback of ours. (Orbax logs some of its threads' when a read or write fails.)"""
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


def rename(folder):
    """The checkpoint before, under the name of the newest."""
    shutil.rmtree(folder)
    before = max(
        (p for p in folder.parent.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    )
    shutil.copytree(before, folder)


def test_damaged_newest_checkpoint(root, straight):
    wanted, _ = straight
    for damage in (flip, cut, lose, edit, rename):
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
    print("\n5 kinds of damage named; falling back ends in the same state")


def test_a_score_that_cannot_be_read(root, straight):
    shutil.copytree(root / "straight", root / "score")
    for folder in (root / "score" / "checkpoints").iterdir():
        (folder / "score.json").write_bytes(b"\xff{")
    code, _, err = finish(start(root, "score"))
    assert code == 0 and err.count("score.json cannot be read") >= 2 and clean(err), err
    print("\nunreadable scores: named, and nothing else")


@contextlib.contextmanager
def small_disk(folder):
    """A file system of its own, without room for a whole run."""
    folder.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(disk, how):
    """Returns whether it was done: with a file open for writing, no disk becomes read-only."""
    command = ["mount", "-o", f"remount,{how}", disk]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("part", ["", "checkpoints"])
def test_a_full_disk_loses_nothing(root, straight, part):
    name = f"full{part}"
    with small_disk(root / name / part):
        code, _, err = finish(start(root, name))
        assert code == 1 and f"{root / name}/" in err and clean(err), err[-2000:]
        assert "No space left" in err, err[-2000:]
        full = newest_step(root / name)
        assert remount(root / name / part, "size=100m")
        code, out, err = finish(start(root, name))
        assert code == 0 and (not full or f"continuing from step {full}" in out), err
        assert digest(root / name) == straight[0]
    print(f"\na full disk (after step {full}): named; with room again the same command goes on")


def test_a_disk_that_becomes_read_only_loses_nothing(root, straight):
    disk = root / "read_only" / "checkpoints"
    with small_disk(disk):
        assert remount(disk, "size=100m")
        process = start(root, "read_only")
        while newest_step(root / "read_only") < 6 and process.poll() is None:
            time.sleep(0.01)
        while not remount(disk, "ro") and process.poll() is None:
            time.sleep(0.001)
        code, _, err = finish(process)
        saved = newest_step(root / "read_only")
        assert code == 1 and "ead-only file system" in err and clean(err), err[-2000:]
        code, _, err = finish(start(root, "read_only"))
        assert code == 1 and str(disk) in err and clean(err), err[-2000:]
        assert newest_step(root / "read_only") == saved
        assert remount(disk, "rw")
        code, out, err = finish(start(root, "read_only"))
        assert code == 0 and f"continuing from step {saved}" in out, err
        assert digest(root / "read_only") == straight[0]
    print(f"\na disk that became read-only (after step {saved}): named; writable again it goes on")


def test_a_workdir_that_is_emptied_or_moved(root, straight):
    for name in ("emptied", "moved"):
        process = start(root, name)
        while newest_step(root / name) < 6 and process.poll() is None:
            time.sleep(0.01)
        (root / name).rename(root / f"{name}_away")
        if name == "emptied":
            (root / name).mkdir()
        code, _, err = finish(process)
        assert code == 1 and "CheckpointError" in err and clean(err), err[-2000:]
        assert f"{root / name}/checkpoints" in err, err[-2000:]
    print("\na workdir emptied or moved under a run: named")


def test_two_runs_in_one_workdir(root, straight):
    wanted, _ = straight
    first = start(root, "twice")
    while not (root / "twice" / "run.lock").exists() and first.poll() is None:
        time.sleep(0.02)
    code, _, err = finish(start(root, "twice"))
    assert code == 1 and "WorkdirBusyError" in err and f"process {first.pid}" in err, err
    assert finish(first)[0] == 0 and digest(root / "twice") == wanted
    print("\na second run was refused, the first one untouched")


@pytest.mark.parametrize("which, number", [(1, "SIGKILL"), (0, "SIGKILL"), (1, "SIGSTOP")])
def test_one_of_two_processes_is_killed_or_frozen(root, straight, which, number):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = ("--distributed", f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2",
            "--config.train.steps=100000", "--config.data.eval_split=",
            "--config.train.keep_best=", "--config.train.save_every=0.0")  # fmt: skip
    name = f"pair{which}{number}"
    pair = [start(root, name, *more, f"--process_id={i}") for i in range(2)]
    other = pair[1 - which]
    try:
        for line in pair[0].stdout:
            if "step 40/" in line:
                break
        pair[which].send_signal(getattr(signal, number))
        began = time.monotonic()
        _, err = other.communicate(timeout=60)
        seconds = time.monotonic() - began
        assert other.returncode != 0 and err
    finally:
        for process in pair:
            process.kill()
            process.wait()
    print(f"\n{number} of process {which} of two: the other ended after {seconds:.1f} s")
