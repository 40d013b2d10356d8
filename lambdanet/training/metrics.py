"""Metrics of a run: metrics.jsonl always, TensorBoard on request, and one live line (or plain
lines) on the console.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

FILE_NAME = "metrics.jsonl"


def read_records(workdir: str | Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
        ValueError: a line before the last is no JSON.
    """
    path = Path(workdir) / FILE_NAME
    lines = path.read_text().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: {error}") from error
    return records


def rewind(workdir: str | Path, step: int) -> None:
    """Drops the records after `step` and those of the test split, which are written anew; in one
    exchange.
    """
    path = Path(workdir) / FILE_NAME
    keep = [r for r in read_records(workdir) if r["step"] <= step and r["split"] != "test"]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(r) + "\n" for r in keep))
    os.replace(temporary, path)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class MetricLog:
    """Writes the records of one run. Only the process with `write=True` touches files or the
    console.

    Each record is one JSON object with step, epoch and split ('train', 'eval' or 'test'). Train
    records hold the means over the steps since the one before; images_per_second and eta_seconds
    count the time spent in training only (not in compiling, evaluation or saving) and are missing
    while there is nothing to count. Auxiliary losses are records' keys auxiliary_NAME, and stand at
    the end of the live line by their names.

    Args:
        workdir: directory of the run.
        total_steps: length of the run.
        steps_per_epoch: turns steps into epochs.
        batch_size: global; for images per second.
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
        self._write = write
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

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a train record: means over the steps since the last one, but for 'lr', that of the
        step itself.
        """
        self.pause_clock()
        steps, speed, shown = step - self._clock_step, {}, ""
        if steps > 0:
            eta = (self.total_steps - step) * self._spent / steps
            speed = {
                "images_per_second": steps * self.batch_size / max(self._spent, 1e-9),
                "eta_seconds": eta,
            }
            shown = f" {speed['images_per_second']:.0f} img/s ETA {_duration(eta)}"
        self.start_clock(step)
        self._record(step, "train", {**values, **speed})
        auxiliary = {
            k.removeprefix("auxiliary_"): v for k, v in values.items() if k.startswith("auxiliary_")
        }
        shown += "".join(f" {name} {value:.2e}" for name, value in auxiliary.items())
        text = (  # fits 80 columns without auxiliary losses, or a terminal would cut the end
            f"step {step}/{self.total_steps} epoch {step / self.steps_per_epoch:.1f} loss "
            f"{values['loss']:.4f} "
            f"acc {values['accuracy']:.3f} lr {values['lr']:.1e}{shown}"
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
        self._file.write(json.dumps(record) + "\n")
        if self._board:
            for key, value in values.items():
                self._board.add_scalar(f"{split}/{key}", value, step)

    def close(self) -> None:
        """Ends the live line and closes the files."""
        for part in (self._file, self._board):
            if part:
                part.close()
        if self._progress:
            self._progress.stop()
