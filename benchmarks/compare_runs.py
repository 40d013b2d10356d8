"""Training runs of the comparison: one `train.py` command per task, variant and seed, several at a
time, resumable.
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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import attention_zoo, base, digits
from lambdanet import attention
from lambdanet.atomic import write_file
from lambdanet.config import modernise, to_plain
from lambdanet.config_flag import apply_overrides, load_recipe
from lambdanet.training.continuing import changed_keys

ROOT = Path(__file__).resolve().parents[1]

NO_RESIDUAL = {"model.attention_residual": "(False, False)"}
ABLATION = {
    "vanilla": {"model.vanilla_blocks": "(2, 3)", **NO_RESIDUAL},
    "reuse": {"model.transform": "reuse", **NO_RESIDUAL},
    "less": NO_RESIDUAL,
    "less_residual": {},
    "less_residual_diagonality": {
        "train.auxiliary_losses": "(('symmetry', 0.1), ('diagonality', 0.1))"
    },
}
"""The parts of LaViT, added one after the other to its digits form: attention of its own in every
layer; the first layer's logits reused as they are; less-attention; the attention residual too (the
preset); the diagonality-preserving loss too."""

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
    """One training run: what, where, and the flags and the config that define it."""

    task: str
    variant: str
    seed: int
    workdir: Path
    flags: tuple[str, ...]
    config: ConfigDict

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.task} {self.variant} seed {self.seed}"

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished run gave; None if it is not finished."""
        path = self.workdir / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None


def make_run(
    task: str, variant: str, seed: int, directory: Path, options: Mapping[str, str]
) -> Run:
    """Returns the run of a variant of a task; `options` are overrides of the config, as text."""
    if task == "backbones":
        row = next(row for row, model in digits.MODELS.items() if model == variant)
        recipe = f"configs/digits.py:{row}"
    elif task == "lavit":
        recipe, options = "configs/digits.py:lavit", {**ABLATION[variant], **options}
    else:
        recipe = f"configs/attention_zoo.py:{task},{variant}"
    overrides = {"seed": str(seed), **RUN_OPTIONS, **options}
    flags = (f"--config={recipe}", *(f"--config.{key}={value}" for key, value in overrides.items()))
    config = apply_overrides(load_recipe(str(ROOT / recipe)), overrides)
    return Run(task, variant, seed, directory / task / variant / f"seed{seed}", flags, config)


def train_all(runs: Sequence[Run], jobs: int) -> dict[str, str]:
    """Trains every run that is not finished, with a line of progress for each.

    Args:
        runs: all of them; the finished ones tell how long the others will take.
        jobs: how many at a time, with one core each.

    Returns:
        Name of every run that failed -> why. All others are finished.
    """
    drop_outdated(runs)
    waiting = [run for run in runs if run.result is None]
    done, failures = len(runs) - len(waiting), {}
    print(f"training: {len(runs)} runs, {done} finished before, {jobs} at a time", flush=True)
    running: dict[subprocess.Popen, tuple[Run, float]] = {}
    try:
        while waiting or running:
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
                eta = eta_seconds(runs, [*waiting, *(run for run, _ in running.values())], jobs)
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
    """Starts train.py with one core; its output goes to train.log in the run's directory."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train.py", f"--workdir={run.workdir}", *run.flags]
    environment = os.environ | {"PJRT_NPROC": "1", "OMP_NUM_THREADS": "1"}
    # glibc keeps freed memory instead of returning it: XLA asks for the same buffers in every step,
    # and fresh pages cost a fault each.
    environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    with open(run.workdir / "train.log", "w") as log:
        # A session of its own, so that Ctrl-C reaches it once, from `train_all`: a second signal
        # would not let it save.
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def finish(run: Run, status: int, seconds: float) -> dict[str, Any]:
    """Keeps the outcome that train.py printed last as result.json; RuntimeError with the end of the
    log if there is none.
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
            f"{run.name}: train.py ended with status {status}: {' / '.join(lines[-2:])} ({log})"
        )
    result = {**outcome, "wall_seconds": round(seconds, 1)}
    write_file(run.workdir / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def eta_seconds(runs: Iterable[Run], left: Iterable[Run], jobs: int) -> float:
    """Estimates the time for the runs that are left by the mean of the finished ones of the same
    task.
    """
    seconds: dict[str, list[float]] = {}
    for run in runs:
        if (result := run.result) is not None:
            seconds.setdefault(run.task, []).append(result["wall_seconds"])
    means = {task: sum(values) / len(values) for task, values in seconds.items()}
    return sum(means.get(run.task, max(means.values(), default=0.0)) for run in left) / jobs


def clock(seconds: float) -> str:
    """Returns h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def accuracy_record(run: Run, failure: str | None) -> dict[str, Any]:
    """Returns the record of a run: its outcome or, under `error`, why there is none."""
    kind = "backbone"
    if run.task in attention_zoo.TASKS:
        spec = attention_zoo.variants()[run.variant]
        kind = "convolutions" if spec is None else attention.kind(spec["name"])
    record = dict(suite="accuracy", task=run.task, variant=run.variant, kind=kind, seed=run.seed)
    record["command"] = " ".join(["python train.py", *run.flags])
    if failure is not None:
        return record | {"error": failure}
    wanted = ("total_steps", "accuracy", "loss", "count", "train_seconds", "wall_seconds")
    return record | {key: run.result[key] for key in wanted}
