"""Everything that is to be known of a GPU, by one command, within a time:

    python -m benchmarks gpu [--minutes M] [--out DIR] [--rounds N] [--retry] [--report] [--tiny]

In this order: equality of every lowering; constants of the cost model; the lambda core; the fused
kernel against XLA; attention cores against cuDNN; training steps at batch sizes that fill the
memory; the host's pipeline; PyTorch and timm, where they are installed. Each part has a share of
the time; what is left over goes to those that needed more. The same command continues: what is
measured is not measured again, also if the code has changed since; remove the file to begin afresh.
Written: benchmarks/results/gpu.jsonl (`gpu_journal`) and
docs/performance_gpu.md; or gpu.jsonl and performance_gpu.md in DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import gpu_journal, gpu_report
from benchmarks.gpu_part import AFRESH
from benchmarks.gpu_parts import PARTS
from lambdanet.analysis.text import console

ROOT = Path(__file__).resolve().parents[1]
DESCRIBED = 300.0  # seconds in which the device must have said what it is
GRACE = 30.0  # seconds after the time until a unit that is still at work is cut off

Start = Callable[[str, float, float], int | None]
"""(part, its seconds, seconds of the whole) -> exit status of its process, negative for a signal,
None if it was cut off because the time was over."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--minutes", metavar="M", type=float, default=25.0, help="the time (25)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where everything is written")
    parser.add_argument("--rounds", metavar="N", type=int, default=15, help="samples (15)")
    parser.add_argument("--retry", action="store_true", help="try again what failed before")
    parser.add_argument(
        "--report", action="store_true", help="write the page, measure nothing; needs no GPU"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a miniature on any backend, in runs/gpu_tiny"
    )


def main(args: argparse.Namespace, start: Start | None = None) -> int:
    """Runs the command.

    Args:
        args: of `add_arguments`.
        start: starts the process of a part and waits for it; None for real processes.

    Returns:
        The exit status: 0, 1 if something failed, 2 for wrong input, 130 if stopped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 0
    try:
        document, file = _places(args)
        gpu_report.read_reading(document)  # its marks, before minutes on a machine
        with _alone(file) as lock:
            gpu_journal.mend(file)
            if args.retry:
                print(f"{gpu_journal.forget_failures(file)} units are tried again", flush=True)
            if not args.report:
                status = _measure(file, 60 * args.minutes, start or _processes(file, args, lock))
            known = gpu_journal.read(file)
            if status == 2 or (status and known.machine is None):  # it has been said why
                return status
            if known.machine is None:
                raise ValueError(f"{file} has no measurements; run the command without --report")
            gpu_report.write(known, document)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status or _tell(known, document, file)


def _places(args: argparse.Namespace) -> tuple[Path, Path]:
    """Returns where page and measurements are; ValueError for wrong options."""
    wrong = [
        f"--{name} is {getattr(args, name)}; allowed: more than 0, and finite"
        for name in ("minutes", "rounds")
        if not 0 < getattr(args, name) < math.inf
    ]
    if args.report and args.retry:
        wrong.append("--report measures nothing, and --retry asks to: leave one out")
    if wrong:
        raise ValueError("; ".join(wrong))
    out = ROOT / "runs" / "gpu_tiny" if args.tiny and args.out is None else args.out
    pages, results = (
        (ROOT / "docs", ROOT / "benchmarks" / "results")
        if out is None
        else (out.absolute(), out.absolute())
    )
    for folder in (pages / "images", results):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out: cannot make {folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise ValueError(f"--out: cannot write to {folder}; name another folder")
    return pages / "performance_gpu.md", results / "gpu.jsonl"


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[int]:
    """Holds the file's folder against a second run; so do processes that get the descriptor."""
    held = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield held
    except BlockingIOError:
        raise ValueError(
            f"another `python -m benchmarks gpu` writes to {file}; wait for it, or name another "
            "folder with --out"
        ) from None
    finally:
        os.close(held)


def _processes(file: Path, args: argparse.Namespace, lock: int) -> Start:
    """Returns what runs a part in a process of its own."""

    def start(part: str, seconds: float, left: float) -> int | None:
        command = [sys.executable, "-m", "benchmarks.gpu_part", part, "--file", str(file)]
        command += ["--rounds", str(args.rounds), "--seconds", f"{seconds}", "--left", f"{left}"]
        environment = os.environ | (PARTS[part].environment if part in PARTS else {})
        names = environment.get("JAX_PLATFORMS")
        if names and "cpu" not in names.split(","):
            environment["JAX_PLATFORMS"] = f"{names},cpu"  # on which results are checked
        command += ["--tiny"] * args.tiny
        with subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[lock]) as process:
            try:
                return process.wait(timeout=left + GRACE)
            except subprocess.TimeoutExpired:
                return None
            finally:
                process.kill()

    return start


def _measure(file: Path, seconds: float, start: Start) -> int:
    """Runs the parts in their order, each within its share of the time, then what is missing within
    the rest.

    Returns:
        0; 2 if the device is refused, 130 if it was stopped, which has then been said.
    """
    began = time.monotonic()
    end = began + seconds
    try:
        if (status := start("machine", DESCRIBED, DESCRIBED)) != 0:
            if status != 2:
                print(f"error: looking at the device ended with {status}", file=sys.stderr)
            return 2
        for last in (False, True):
            share = 0.0
            for name, part in PARTS.items():
                share += part.share
                until = end if last else began + share * seconds
                # What PyTorch is asked for follows from what is installed and how far `networks`
                # came.
                _run_part(file, name, until, end, start, again=last and name == "torch")
    except KeyboardInterrupt:
        gpu_journal.mend(file)
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


def _run_part(
    file: Path, name: str, until: float, end: float, start: Start, *, again: bool
) -> None:
    """Starts the process of a part until it says that it is done, or the time is over; `again`:
    once even if it has said so.
    """
    while again or gpu_journal.read(file).left.get(name) != 0:
        again = False
        if (now := time.monotonic()) >= until:
            return
        status = start(name, until - now, end - now)
        gpu_journal.cut(file)
        if status == AFRESH:
            continue
        if status in (0, None):
            return
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        unit = gpu_journal.read(file).open
        gpu_journal.end(file, unit or (name, gpu_journal.START), 0.0, f"its process ended {how}")
        if unit is None:
            return


def _tell(known: gpu_journal.Journal, document: Path, file: Path) -> int:
    """Prints what was found; returns the exit status."""
    for part in PARTS:
        records = [record for record in known.records if record["part"] == part]
        if records:
            print(f"\n{part}")
            console(200).print(gpu_report.console_table(records, known))
    for (part, unit), errors in known.errors.items():
        for error in errors:
            print(f"failed: {part}: {unit}: {error}", file=sys.stderr)
    missing = [part for part in PARTS if known.left.get(part) != 0]
    if missing:
        print(f"not finished: {', '.join(missing)}; the same command continues")
    print(f"Written: {document}, {file}")
    return int(bool(known.errors))
