"""Command line of the benchmarks.

    python -m benchmarks micro|blocks|ops|model|dispatch|input|memory|scale [--cases GLOB]
    [--rounds N] [--json FILE]
    python -m benchmarks gpu [--minutes M] [--out DIR]

micro: attention cores, each lowering and, where installed, PyTorch's forms; blocks: every block,
whole, beside PyTorch's form of it; ops: operations that XLA's CPU backend runs badly; model: whole
networks; dispatch: Python's share of a training step; input: the data pipeline; memory: temporary
memory of every block; scale: layers on large maps, and seconds to compile a network; gpu: all that
is to be known of a GPU, see `gpu_suite`.

Prints a table; --json appends one JSON object per measurement. The exit status is 1 if a result was
wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import os
import sys

# Before anything loads torch: threads that wait by spinning would take the cores from the other
# framework.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from benchmarks import gpu_suite, harness
from benchmarks.arguments import file_to_write
from lambdanet.analysis.text import console
from lambdanet.training import start_up

SUITES = {
    "micro": "micro_suite",
    "blocks": "blocks_suite",
    "input": "input_suite",
    "ops": "ops_suite",
    "model": "model_suite",
    "dispatch": "dispatch_suite",
    "memory": "memory_suite",
    "scale": "scale_suite",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one suite and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    suites = parser.add_subparsers(dest="suite", metavar="suite", required=True)
    for name in SUITES:
        suite = suites.add_parser(name, help=f"benchmarks/{SUITES[name]}.py")
        suite.add_argument(
            "--cases", default="*", metavar="GLOB", help="only cases whose name matches"
        )
        suite.add_argument("--rounds", type=int, default=15, help="samples per candidate, in turns")
        suite.add_argument(
            "--json", type=file_to_write, metavar="FILE", help="append one JSON object per line"
        )
    gpu_suite.add_arguments(suites.add_parser("gpu", help="all that is to be known of a GPU"))
    args = parser.parse_args(argv)
    if args.suite == "gpu":
        return gpu_suite.main(args)
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; allowed: at least 1")
    start_up.use_eigen_convolutions()
    start_up.keep_freed_memory()  # as train.py does; PyTorch beside us profits likewise
    if args.suite != "dispatch":  # as train.py does for large steps
        start_up.compute_in_calling_thread()
    cases = importlib.import_module(f"benchmarks.{SUITES[args.suite]}").cases()
    chosen = [case for case in cases if fnmatch.fnmatchcase(case.name, args.cases)]
    if not chosen:
        names = ", ".join(dict.fromkeys(case.name for case in cases))
        print(
            f"error: no case of suite {args.suite!r} matches {args.cases!r}; cases: {names}",
            file=sys.stderr,
        )
        return 2
    print(", ".join(f"{key} {value}" for key, value in harness.environment().items()))
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open(args.json, "a")) if args.json else None
        records = harness.run_cases(chosen, rounds=args.rounds, out=out)
    console(250).print(harness.table(records))
    return int(any("wrong result" in record.get("error", "") for record in records))


if __name__ == "__main__":
    sys.exit(main())
