"""Training runs of a suite: one program per network and seed, several at a time with one core each,
resumable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base
from lambdanet.atomic import write_file
from lambdanet.config import modernise, to_plain
from lambdanet.config_flag import apply_overrides, load_recipe
from lambdanet.training.continuing import changed_keys

ROOT = Path(__file__).resolve().parents[1]

# Bookkeeping of train.py that these runs do without; a run that is interrupted by a signal saves
# all the same.
RUN_OPTIONS = {
    "train.report": "false",
    "train.eval_every": "0.0",
    "train.save_every": "0.0",
    "train.keep_last": "1",
    "train.keep_best": "",
    "train.log_every": "50",
    "data.num_threads": "1",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: what, where, the flags and the config that define it, and the program that
    is given the flags.
    """

    task: str
    variant: str
    seed: int
    workdir: Path
    flags: tuple[str, ...]
    config: ConfigDict
    program: tuple[str, ...] = ("train.py",)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.task} {self.variant} seed {self.seed}"

    @property
    def command(self) -> str:
        """For records: all but the workdir."""
        return " ".join(["python", *self.program, *self.flags])

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished run gave; None if it is not finished."""
        path = self.workdir / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None


def make_run(
    task: str,
    variant: str,
    seed: int,
    directory: Path,
    recipe: str,
    options: Mapping[str, str],
    program: tuple[str, ...] = ("train.py",),
) -> Run:
    """Returns the run of a recipe, 'configs/FILE.py:ARGUMENT'; `options` are overrides of the
    config, as text.
    """
    overrides = {"seed": str(seed), **RUN_OPTIONS, **options}
    flags = (f"--config={recipe}", *(f"--config.{key}={value}" for key, value in overrides.items()))
    config = apply_overrides(load_recipe(str(ROOT / recipe)), overrides)
    workdir = directory / task / variant / f"seed{seed}"
    return Run(task, variant, seed, workdir, flags, config, program)


def train_all(
    runs: Sequence[Run],
    jobs: int,
    *,
    earlier: Iterable[tuple[str, float]] = (),
    until: float = math.inf,
    on_end: Callable[[Run, str | None], object] = lambda run, failure: None,
) -> dict[str, str]:
    """Trains every run that is not finished, with a line of progress for each.

    Args:
        runs: all of them; the finished ones tell how long the others will take.
        jobs: how many at a time, with one core each.
        earlier: (task, wall seconds) of runs that are not among them, which tell it, too.
        until: value of `time.monotonic` at which the runs in work save and stop.
        on_end: called after each run with it and with why it failed, None if it did not.

    Returns:
        Name of every run that failed -> why. All others are finished, if `until` was not reached.
    """
    drop_outdated(runs)
    waiting = [run for run in runs if run.result is None]
    done, failures, earlier = len(runs) - len(waiting), {}, list(earlier)
    print(f"training: {len(runs)} runs, {done} finished before, {jobs} at a time", flush=True)
    running: dict[subprocess.Popen, tuple[Run, float]] = {}
    try:
        while waiting or running:
            if time.monotonic() >= until:
                left = len(waiting) + len(running)
                print(f"the time is over with {left} runs left", flush=True)
                break
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[start(run)] = run, time.monotonic()
            time.sleep(0.1)
            for process in [p for p in running if p.poll() is not None]:
                run, began = running.pop(process)
                done += 1
                try:
                    result = finish(run, process.returncode, time.monotonic() - began)
                    said = (
                        f"accuracy {100 * result['accuracy']:6.2f} %, "
                        f"{result['wall_seconds']:.0f} s"
                    )
                except RuntimeError as error:
                    failures[run.name] = str(error)
                    said = "FAILED"
                on_end(run, failures.get(run.name))
                left = [*waiting, *(run for run, _ in running.values())]
                eta = eta_seconds(runs, left, jobs, earlier)
                print(f"[{done}/{len(runs)}] {run.name}: {said}, ETA {clock(eta)}", flush=True)
    finally:  # also when a signal stops this process: the runs save where they are
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failures


def drop_outdated(runs: Iterable[Run]) -> None:
    """Removes the directories of runs that another recipe made."""
    for run in runs:
        path = run.workdir / "config.json"
        if not path.is_file():
            continue
        saved, now = modernise(json.loads(path.read_text())), to_plain(run.config)
        changed = changed_keys(saved, now, to_plain(base.get_config()))
        for key in (
            "epochs",
            "steps",
        ):  # train.py may go on to another length; here all have the same
            if saved["train"][key] != now["train"][key]:
                changed.append(f"train.{key}: {saved['train'][key]} -> {now['train'][key]}")
        if changed:
            print(
                f"{run.name}: trained again, its recipe has changed ({'; '.join(changed)})",
                flush=True,
            )
            shutil.rmtree(run.workdir)


def start(run: Run) -> subprocess.Popen:
    """Starts the run's program with one core; its output goes to train.log in the workdir."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *run.program, f"--workdir={run.workdir}", *run.flags]
    environment = os.environ | {"PJRT_NPROC": "1", "OMP_NUM_THREADS": "1"}
    # glibc keeps freed memory instead of returning it: XLA asks for the same buffers in every step,
    # and fresh pages cost a fault each.
    environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    # One arena for all threads, since one of another thread than the first has no room for buffers
    # of 64 MiB and more, which would be mapped afresh in every step.
    environment["MALLOC_ARENA_MAX"] = "1"
    with open(run.workdir / "train.log", "w") as log:
        # A session of its own, so that Ctrl-C reaches it once, from `train_all`: a second signal
        # would not let it save.
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def finish(run: Run, status: int, seconds: float) -> dict[str, Any]:
    """Keeps the outcome that the program printed last as result.json; RuntimeError with the end of
    the log if there is none.
    """
    log = run.workdir / "train.log"
    lines = log.read_text(errors="replace").splitlines()
    outcome: Any = None
    with contextlib.suppress(IndexError, json.JSONDecodeError):
        outcome = json.loads(lines[-1])
    if (
        status
        or not isinstance(outcome, dict)
        or outcome["interrupted"]
        or not math.isfinite(outcome["accuracy"])
    ):
        raise RuntimeError(
            f"{run.name}: {run.program[-1]} ended with status {status}: "
            f"{' / '.join(lines[-2:])} ({log})"
        )
    result = {**outcome, "wall_seconds": round(seconds, 1)}
    write_file(run.workdir / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def eta_seconds(
    runs: Iterable[Run], left: Iterable[Run], jobs: int, earlier: Iterable[tuple[str, float]] = ()
) -> float:
    """Estimates the time for the runs that are left by the mean of the finished ones of the same
    task, those in `earlier` among them.
    """
    seconds: dict[str, list[float]] = {}
    finished = [(run.task, run.result["wall_seconds"]) for run in runs if run.result is not None]
    for task, value in (*earlier, *finished):
        seconds.setdefault(task, []).append(value)
    means = {task: sum(values) / len(values) for task, values in seconds.items()}
    return sum(means.get(run.task, max(means.values(), default=0.0)) for run in left) / jobs


def clock(seconds: float) -> str:
    """Returns h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
