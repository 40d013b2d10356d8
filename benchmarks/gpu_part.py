"""One part of `python -m benchmarks gpu`, in a process of its own, so that a kernel that ends the
process or spoils the device for it takes nothing else with it, and each part has all the memory.

    python -m benchmarks.gpu_part PART --file FILE [--tiny] [--rounds N] [--seconds S] [--left S]

PART: one of `gpu_parts.PARTS`, or `machine`, which writes what everything is measured on to an
empty file and refuses another one's. Exit status: 0 when the part or its time is over, 2 for wrong
input, `AFRESH` to be started again, because a unit failed in a way that may have spoilt the device
for this process; any other if the process died.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.extend import backend as backends

from benchmarks import gpu_journal, gpu_sizes, harness
from benchmarks.gpu_parts import PARTS
from lambdanet.training import start_up

AFRESH = 75
LONGEST = 300.0  # seconds; a unit that takes longer hangs: its process ends
SAME = ("device", "backend", "python", "jax", "miniature")
"""What must be the same for measurements to stand in one file."""


def machine(miniature: bool) -> dict[str, Any]:
    """Returns what is measured on; ValueError if it is no GPU and this is no miniature."""
    name = jax.default_backend()
    if name != "gpu" and not miniature:
        found = ", ".join(
            f"{key} ({len(client.devices())} x {client.devices()[0].device_kind})"
            for key, client in backends.backends().items()
        )
        raise ValueError(
            f"no GPU: the backends that JAX finds are {found}. On a machine with an NVIDIA GPU, "
            "`pip install -r requirements-gpu.txt` lets JAX find it. --tiny runs all of it in "
            "miniature on any backend, which shows that the command works and measures nothing"
        )
    device = jax.devices()[0]
    found = dict(harness.environment(), backend=name, platform=device.client.platform_version)
    found["platform"] = " ".join(found["platform"].split())
    found["devices"] = jax.device_count()
    if capability := getattr(device, "compute_capability", None):
        found["compute_capability"] = str(capability)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    found["memory_gib"] = None if limit is None else round(limit / 2**30, 1)
    return found | {"miniature": miniature}


def identify(file: Path, miniature: bool) -> None:
    """Writes the machine to an empty file; ValueError if what is there is of another one."""
    now, then = machine(miniature), gpu_journal.read(file).machine
    if then is None:
        gpu_journal.append(file, {"machine": now})
        return
    changed = [f"{key} {then[key]} there, {now[key]} here" for key in SAME if then[key] != now[key]]
    if changed:
        raise ValueError(
            f"{file} has measurements of something else ({'; '.join(changed)}); name another "
            "folder with --out, or move the file away"
        )


def work(part: str, file: Path, args: argparse.Namespace) -> int:
    """Measures what is missing of a part, as long as there is time; returns the exit status."""
    began, sizes = time.monotonic(), gpu_sizes.TINY if args.tiny else gpu_sizes.FULL
    until, end = began + args.seconds, began + args.left
    spent: list[float] = []
    parent = os.getppid()
    while True:
        if os.getppid() != parent:  # who started this is dead, and the next run wants the file
            return 0
        known = gpu_journal.read(file)
        groups = harness.in_turns(PARTS[part].cases(sizes, known.records))
        units = {f"{group[0].name} {group[0].direction}": group for group in groups}
        missing = [name for name in units if (part, name) not in known.ended]
        # None is begun that would not end in time if it took as long as the longest before it.
        if not missing or time.monotonic() + max(spent, default=0.0) >= until:
            break
        name = missing[0]
        failed = _measure((part, name), units[name], file, args.rounds, spent)
        place = f"{part} {len(units) - len(missing) + 1}/{len(units)}"
        mean, left = sum(spent) / len(spent), end - time.monotonic()
        print(
            f"[{place}] {name}: {failed or 'measured'} in {spent[-1]:.1f} s; {60 / mean:.0f} a "
            f"minute, this part {_clock(mean * (len(missing) - 1))}, time left {_clock(left)}",
            flush=True,
        )
        if "RuntimeError: " in failed:
            return AFRESH
    gpu_journal.append(file, dict(part=part, event="left", units=len(missing)))
    return 0


def _measure(
    unit: gpu_journal.Unit, group: Sequence[Any], file: Path, rounds: int, spent: list[float]
) -> str:
    """Measures a unit and writes it; returns what failed."""
    began = time.monotonic()
    gpu_journal.begin(file, unit)
    faulthandler.dump_traceback_later(LONGEST, exit=True, file=sys.__stderr__)
    records, error = [], None
    try:
        records = harness.run_group(group, rounds, kept=Exception)
    except Exception as raised:
        error = harness.said(raised)
    finally:
        faulthandler.cancel_dump_traceback_later()
    spent.append(time.monotonic() - began)
    for record in records:
        gpu_journal.append_record(file, unit, record)
    gpu_journal.end(file, unit, spent[-1], error)
    return "; ".join(gpu_journal.read(file).errors.get(unit, []))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{seconds:02}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one part and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_part", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("part", choices=("machine", *PARTS))
    parser.add_argument("--file", type=Path, required=True, help="the file of measurements")
    parser.add_argument("--tiny", action="store_true", help="the miniature")
    parser.add_argument("--rounds", type=int, default=15, help="samples per candidate")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for this part")
    parser.add_argument("--left", type=float, default=3600.0, help="for the whole command")
    args = parser.parse_args(argv)
    try:
        if args.part == "machine":
            identify(args.file, args.tiny)
            return 0
        return work(args.part, args.file, args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    start_up.prepare_cpu()
    sys.exit(main())
