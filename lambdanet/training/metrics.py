"""Metrics of a run: metrics.jsonl always, TensorBoard on request, and one live line (or plain
lines) on the console.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lambdanet.atomic import write_file

FILE_NAME = "metrics.jsonl"


def read_records(workdir: str | Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
        ValueError: a line before the last is no record: names file, line and what to do.
    """
    path = Path(workdir) / FILE_NAME
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or type(record.get("step")) is not int:
                raise ValueError("no record with an integer 'step'")
            records.append({"split": "train"} | record)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one, too
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number} is damaged ({error}); delete that line, or move the "
                    "file away to go on without the curves so far"
                ) from error
    return records


def evaluated(workdir: str | Path, step: int) -> bool:
    """Returns whether metrics.jsonl has the evaluation of a step on the split 'eval'."""
    return any(r["step"] == step and r["split"] == "eval" for r in read_records(workdir))


def rewind(workdir: str | Path, step: int) -> None:
    """Drops the records after `step` and those of the test split, which are written anew; in one
    exchange.
    """
    path = Path(workdir) / FILE_NAME
    keep = [r for r in read_records(workdir) if r["step"] <= step and r["split"] != "test"]
    write_file(path, "".join(json.dumps(r) + "\n" for r in keep))


def json_value(value: Any) -> Any:
    """Returns plain values with None in place of nan, for which JSON has no number."""
    if isinstance(value, Mapping):
        return {k: json_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def outcome_line(outcome: Mapping[str, Any]) -> str:
    """Returns the numbers and texts of an outcome as one line of JSON."""
    plain = {k: v for k, v in outcome.items() if isinstance(v, (int, float, str))}
    return json.dumps(json_value(plain))


def opening(
    model: str, parameters: int, memory: Mapping[str, int], devices: int, start: int, steps: int
) -> str:
    """Returns the first line of a run: what is trained, on what, from where.

    Args:
        model: its name.
        parameters: their number.
        memory: bytes of the state by device.
        devices: their number in all processes.
        start: step that the run begins at.
        steps: its length.
    """
    how = f"continuing from step {start}" if start else "from the start"
    if start == steps:
        how = "finished before, only evaluated and reported again"
    kind = jax.devices()[0].device_kind
    where = f"{devices} x {kind}, {max(memory.values()):,} bytes each"
    return f"{model}, {parameters:,} parameters, {where}, {steps} steps: {how}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class NonFiniteError(FloatingPointError):
    """A metric of a training step became infinite or NaN; the message names step and values."""

    def advice(self, checkpoints: str, lr: float) -> str:
        """Returns the message with the checkpoints that are left and what to change."""
        return (
            f"{self}; nothing of it was saved. Good checkpoints in {checkpoints}. Lower optim.lr "
            f"(now {lr:g}), lengthen optim.warmup_epochs or set optim.clip_norm, and start in a "
            "new workdir."
        )


class Window:
    """Metrics of the last steps: some still on the device, the others summed up to the next record.

    Args:
        every: steps between records.
        last: the last step, which ends the last window.
        sums: what `sums` returned in the run that is continued, so that its records are those of
            a run without interruption.
    """

    def __init__(self, every: int, last: int, sums: Mapping[str, list[float]] | None = None):
        self._every, self._last = every, last
        self._pending: collections.deque = collections.deque()
        self._sums = {k: np.asarray(v, np.float64) for k, v in (sums or {}).items()}

    def sums(self) -> dict[str, list[float]]:
        """Returns (sum, weight) of every term since the last record, of the fetched steps."""
        return {k: v.tolist() for k, v in self._sums.items()}

    def add(self, step: int, terms: Mapping[str, tuple[jax.Array, jax.Array]]) -> None:
        """Notes a step's terms, name -> (sum, weight), without waiting for the device."""
        self._pending.append((step, terms))

    def fetch(self, most: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Fetches terms until at most `most` steps are outstanding, so that the device always has
        work queued, and yields (step, values) of every record that is complete: sums over sums of
        weights, of 'lr' the last value.

        Raises:
            NonFiniteError: a term is not finite.
        """
        if most == 0 and self._pending:  # so that what follows measures whole steps
            jax.block_until_ready(self._pending[-1])
        while len(self._pending) > most:
            step, terms = self._pending.popleft()
            terms = {k: np.asarray(jax.device_get(v), np.float64) for k, v in terms.items()}
            bad = [f"{k}={total / weight}" for k, (total, weight) in terms.items() if weight]
            bad = [text for text in bad if not math.isfinite(float(text.partition("=")[2]))]
            if bad:
                raise NonFiniteError(f"step {step} gave {', '.join(bad)}")
            self._sums = {k: self._sums.get(k, 0.0) + v for k, v in terms.items()}
            if step % self._every == 0 or step == self._last:
                sums, self._sums = self._sums | {k: terms[k] for k in terms if k == "lr"}, {}
                yield step, {k: float(v[0] / v[1]) for k, v in sums.items() if v[1]}


class MetricLog:
    """Writes the records of one run. Only the process with `write=True` touches files or the
    console.

    Each record is one JSON object with step, epoch and split ('train', 'eval' or 'test'), and null
    for what is nan. Train records hold the means over the steps since the one before;
    images_per_second and eta_seconds count the time spent in training only (not in compiling,
    evaluation or saving) and are missing while there is nothing to count. Auxiliary losses are
    records' keys auxiliary_NAME, the parts of a loss NAME_loss; both stand at the end of the live
    line by their names.

    Args:
        workdir: directory of the run.
        total_steps: length of the run.
        steps_per_epoch: turns steps into epochs.
        batch_size: global; for images per second.
        headline: the metric on the live line beside the loss.
        start_step: the step that the run starts or resumes at; later records in the file are
            dropped.
        tensorboard: also write event files to <workdir>/tensorboard.
        write: False in all processes but one.
        stream: console; None = standard output.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        headline: str = "accuracy",
        start_step: int = 0,
        tensorboard: bool = False,
        write: bool = True,
        stream: TextIO | None = None,
    ):
        self.total_steps, self.steps_per_epoch, self.batch_size = (
            total_steps,
            steps_per_epoch,
            batch_size,
        )
        self.headline, self._write = headline, write
        self.start_clock(start_step)
        self._file = self._board = self._progress = None
        if not write:
            return
        rewind(workdir, start_step)
        self._file = open(Path(workdir) / FILE_NAME, "a", buffering=1)
        if tensorboard:
            from tensorboardX import SummaryWriter  # needs a second to import, and few runs want it

            # Steps from purge_step on, written before a kill, are hidden by TensorBoard.
            self._board = SummaryWriter(
                str(Path(workdir) / "tensorboard"), purge_step=start_step + 1
            )
        self._stream = stream or sys.stdout
        console = Console(file=self._stream)
        if console.is_terminal:
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=console)
            self._task = self._progress.add_task(
                "starting (compiling the step)", total=total_steps, completed=start_step
            )
            self._progress.start()

    def message(self, text: str) -> None:
        """Shows a line of text above the live line."""
        if not self._write:
            return
        if self._progress:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def start_clock(self, step: int) -> None:
        """Starts measuring images per second at `step`, for example after the first, which
        compiles.
        """
        self._clock_step, self._spent, self._since = step, 0.0, time.perf_counter()

    def pause_clock(self) -> None:
        """Stops the clock while the run evaluates or saves."""
        self._spent += time.perf_counter() - self._since

    def resume_clock(self) -> None:
        """Lets the clock go on after `pause_clock`."""
        self._since = time.perf_counter()

    def train(self, step: int, values: Mapping[str, float], queued: int | None = None) -> None:
        """Adds a train record.

        Args:
            step: the step that the device has finished.
            values: means over the steps since the last record, but for 'lr', that of the step.
            queued: steps handed to the device so far, None = `step`. The speed is counted in these:
                of records that are fetched at once only the first shows one.
        """
        queued = step if queued is None else queued
        self.pause_clock()
        steps, speed, shown = queued - self._clock_step, {}, ""
        if steps > 0:
            eta = (self.total_steps - queued) * self._spent / steps
            rate = steps * self.batch_size / max(self._spent, 1e-9)
            speed = {"images_per_second": rate, "eta_seconds": eta}
            shown = f" {rate:.0f} img/s ETA {_duration(eta)}"
        self.start_clock(queued)
        self._record(step, "train", {**values, **speed})
        for name, value in values.items():
            if name.startswith("auxiliary_") or name.endswith("_loss"):
                name = name.removeprefix("auxiliary_").removesuffix("_loss")
                shown += f" {name} {value:.2e}"
        # Fits 80 columns without auxiliary losses, or a terminal would cut the end.
        headline = (
            f" {self.headline[:8]} {values[self.headline]:.3f}" if self.headline in values else ""
        )
        text = (
            f"step {step}/{self.total_steps} epoch {step / self.steps_per_epoch:.1f} loss "
            f"{values['loss']:.4f}{headline} lr {values['lr']:.1e}{shown}"
        )
        if self._progress:
            self._progress.update(self._task, completed=step, description=text)
        else:
            self.message(text)

    def evaluation(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds a record of an evaluation ('eval' or 'test') and shows it."""
        self._record(step, split, values)
        shown = "  ".join(
            f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
        )
        self.message(f"{split:<5} step {step}  {shown}")

    def _record(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if not self._write:
            return
        record = {
            "step": step,
            "epoch": round(step / self.steps_per_epoch, 6),
            "split": split,
            **values,
        }
        with self._named():
            self._file.write(json.dumps(json_value(record)) + "\n")
        if self._board:
            for key, value in values.items():
                self._board.add_scalar(f"{split}/{key}", value, step)

    def close(self) -> None:
        """Ends the live line and closes the files."""
        if self._progress:
            self._progress.stop()
        if self._file:
            with self._named():
                self._file.close()
        if self._board:
            self._board.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Gives an error of the file the file's name; a full disk's has none."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error
