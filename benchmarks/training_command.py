"""What the commands that train many networks share: where they keep what they make, how many run at
a time, how they end.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from lambdanet.training import start_up


@dataclasses.dataclass(frozen=True)
class Files:
    """Where everything lies; `files_in` makes one."""

    runs: Path
    document: Path
    images: Path
    records: Path


def files_in(root: Path, suite: str, document: str, records: str, out: Path | None) -> Files:
    """Returns the project's own places, or all of them in one directory.

    Args:
        root: of the project.
        suite: name of its runs.
        document: name of the document in docs/.
        records: name of the file in benchmarks/results/; in `out` it is that of the suite.
        out: the directory; None for the project's own places.

    Raises:
        ValueError: one cannot be written.
    """
    if out is None:
        docs, results = root / "docs", root / "benchmarks" / "results"
        files = Files(root / "runs" / suite, docs / document, docs / "images", results / records)
    else:
        files = Files(out / "runs", out / document, out / "images", out / f"{suite}.jsonl")
    for directory in (files.runs, files.document.parent, files.images, files.records.parent):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as error:
            raise ValueError(
                f"cannot write to {directory}: {error}; name a writable directory with --out"
            ) from error
    return files


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Adds --jobs, by default as many as there are cores."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=cores, help=f"training runs at a time ({cores})"
    )


def check_jobs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with a message if --jobs is no number of runs."""
    if args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}; allowed: at least 1")


def finish(work: Callable[[], tuple[Files, Mapping[str, str]]]) -> int:
    """Works and returns the exit status: 1 if a run failed, 2 for wrong input, 130 if stopped.

    Args:
        work: returns where everything lies, and the names of the runs that failed -> why.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start_up.prepare_cpu()  # as train.py does, and as it does for large steps
    start_up.compute_in_calling_thread()
    try:
        files, failures = work()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    for reason in failures.values():
        print(f"failed: {reason}", file=sys.stderr)
    print(f"Written: {files.document}, {files.records}")
    return int(bool(failures))
