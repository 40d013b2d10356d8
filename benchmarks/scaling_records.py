"""The jobs of `python -m benchmarks.scaling`, each done once in a process of its own, and the lines
of benchmarks/results/scaling.jsonl that keep what they gave.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lambdanet.atomic import write_file

Job = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]


def key(job: Mapping[str, Any]) -> str:
    """Returns a text that is the same for the same job."""
    return json.dumps(job, sort_keys=True)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Returns what the jobs of a file gave, by `key`; nothing if there is no such file.

    Raises:
        ValueError: a line is no record.
    """
    found = {}
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], 1):
        try:
            record = json.loads(line)
            found[key(record["job"])] = record["found"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is no record: remove it") from error
    return found


def do_all(jobs: Sequence[Job], path: Path) -> dict[str, dict[str, Any]]:
    """Does the jobs that the file has no record of, one after the other, each with a line of
    progress.

    Args:
        jobs: see `do`.
        path: of the file; every finished job is in it at once.

    Returns:
        What all jobs of the file gave, by `key`.

    Raises:
        RuntimeError: a job failed; what it said.
    """
    found = read(path)
    left = [job for job in jobs if key(job) not in found]
    print(f"scaling: {len(jobs)} jobs, {len(jobs) - len(left)} done before", flush=True)
    began = time.monotonic()
    for number, job in enumerate(left, 1):
        at = time.monotonic()
        found[key(job)] = do(job)
        lines = [json.dumps({"job": json.loads(k), "found": v}) + "\n" for k, v in found.items()]
        write_file(path, "".join(lines))
        now = time.monotonic()
        rest = (now - began) / number * (len(left) - number)
        print(f"[{number}/{len(left)}] {name(job)}: {now - at:.0f} s, about {rest:.0f} s left",
              flush=True)  # fmt: skip
    return found


def name(job: Mapping[str, Any]) -> str:
    """Returns a job as a person names it."""
    numbers = {k: v for k, v in job.items() if isinstance(v, (int, str)) and k != "what"}
    return " ".join([job["what"], *(f"{k}={v}" for k, v in numbers.items())])


def do(job: Job) -> dict[str, Any]:
    """Runs benchmarks/scaling_program.py with as many fake CPU devices as the job's mesh has.

    Raises:
        RuntimeError: it failed; the end of what it said.
    """
    devices = job.get("data", 1) * job.get("fsdp", 1)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # what is read is written anew
    command = [sys.executable, "-m", "benchmarks.scaling_program", json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise RuntimeError(f"{name(job)}: exit status {done.returncode}\n{said}")
    return json.loads(done.stdout.splitlines()[-1])
