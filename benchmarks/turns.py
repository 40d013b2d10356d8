"""Processes that do one step each in turns: every network has a process of its own, so that its
memory is its own, and frameworks meet the same state of the machine.

A worker answers with one line of JSON once it is ready, and one for every line that it reads.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Record = dict[str, Any]


def in_turns(
    module: str, arguments: Mapping[Any, Sequence[str]], *, rounds: int
) -> dict[Any, Record]:
    """Runs workers in turns, starting one after the other.

    Args:
        module: to be run with python -m.
        arguments: of every worker.
        rounds: steps of each after its first.

    Returns:
        What each worker said: its facts, and `steps`, one dict per step.
    """
    found = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for key, own in arguments.items():
            workers[key] = stack.enter_context(_worker(module, own))
            found[key] = {**_answer(workers[key], key), "steps": []}
        for _ in range(rounds + 1):
            for key, worker in workers.items():
                print("step", file=worker.stdin, flush=True)
                found[key]["steps"].append(_answer(worker, key))
    return found


def serve(step: Callable[[], Record], facts: Record) -> None:
    """Is a worker until the input ends: each step's answer and, beside it, s, cpu_s and peak_mib.

    Args:
        step: does one and waits for it.
        facts: what is known before.
    """
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        said = step()
        seconds = dict(s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KiB on Linux
        print(json.dumps({**said, "peak_mib": peak, **seconds}), flush=True)


@contextlib.contextmanager
def _worker(module: str, arguments: Sequence[str]) -> Iterator[subprocess.Popen]:
    command, pipe = [sys.executable, "-m", module, *arguments], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _answer(worker: subprocess.Popen, key: Any) -> Record:
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"the worker of {key} ended with status {worker.wait()}")
    return json.loads(line)
