"""The suites' times under another JAX, beside those of the interpreter that runs this.

    python -m benchmarks.versions PYTHON [--suite blocks] [--cases GLOB] [--rounds N] [--json FILE]

PYTHON is the interpreter of an environment with the other JAX and this project's requirements; both
run `python -m benchmarks SUITE` from here. Whole suites are run one after the other, ours alone
where neither environment has PyTorch. What is slower by more than `SLOWER` in the other is then
measured again, `AGAIN` times in each, in turns; the best times count, so that a busy moment of the
machine is not taken for the compiler's. Prints a table of what is still slower, and the geometric
means; --json writes all ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.__main__ import SUITES
from benchmarks.arguments import file_to_write
from lambdanet.analysis.text import console, console_table
from lambdanet.atomic import write_file

SLOWER, AGAIN = 1.15, 2

Times = dict[tuple[str, str], float]  # by case and direction, milliseconds


def measure(python: str, suite: str, cases: str, rounds: int) -> Times:
    """Returns the best times of ours at its defaults, as one run of a suite gives them."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines.jsonl"
        command = [python, "-m", "benchmarks", suite, "--cases", cases]
        command += ["--rounds", str(rounds), "--json", str(lines)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        records = [json.loads(line) for line in lines.read_text().splitlines()]
    return {
        (r["case"], r["direction"]): r["ms"]
        for r in records
        if r["framework"] == "ours" and r["impl"] == "auto" and r["ms"] is not None
    }


def jax_of(python: str) -> str:
    """Returns the version of JAX that an interpreter has.

    Raises:
        RuntimeError: there is no such interpreter, or it has no JAX.
    """
    command = [python, "-c", "import jax; print(jax.__version__)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise RuntimeError(f"{python} cannot be run: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{python} is no interpreter with JAX: {' '.join(said)}") from error
    return done.stdout.strip()


def compare(pythons: tuple[str, str], suite: str, cases: str, rounds: int) -> tuple[Times, Times]:
    """Returns the best times under both interpreters of what both have measured."""
    found = tuple(measure(python, suite, cases, rounds) for python in pythons)
    for case in dict.fromkeys(case for case, _ in slower(*found)):
        for _ in range(AGAIN):
            for python, times in zip(pythons, found, strict=True):
                for key, ms in measure(python, suite, case, rounds).items():
                    times[key] = min(ms, times.get(key, ms))
    return found


def slower(one: Times, other: Times) -> list[tuple[str, str]]:
    """Returns the keys of what takes more than `SLOWER` times as long in the other."""
    return [key for key in one if key in other and other[key] > SLOWER * one[key]]


def main(argv: list[str] | None = None) -> int:
    """Compares one suite; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.versions", description=__doc__.split("\n")[0]
    )
    parser.add_argument("python", help="interpreter with the other JAX")
    suites = ", ".join(SUITES)
    parser.add_argument("--suite", default="blocks", choices=SUITES, metavar="SUITE", help=suites)
    parser.add_argument("--cases", default="*", metavar="GLOB")
    parser.add_argument("--rounds", type=int, default=15, help="samples per case")
    parser.add_argument(
        "--json", type=file_to_write, metavar="FILE", help="write one JSON object per case"
    )
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; allowed: at least 1")
    pythons = sys.executable, args.python
    try:
        names = [f"jax {jax_of(python)}" for python in pythons]
        one, other = compare(pythons, args.suite, args.cases, args.rounds)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    both = [key for key in one if key in other]
    if not both:
        print(
            f"error: suite {args.suite!r} has no times of the defaults in both for {args.cases!r}",
            file=sys.stderr,
        )
        return 1
    lines = [
        dict(suite=args.suite, case=case, direction=direction)
        | {names[0]: round(one[case, direction], 4), names[1]: round(other[case, direction], 4)}
        for case, direction in both
    ]
    if args.json:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_file(args.json, text)
    rows = [
        [*key, f"{one[key]:.3f}", f"{other[key]:.3f}", f"{other[key] / one[key]:.2f}"]
        for key in slower(one, other)
    ]
    heads = ["case", "direction", *(f"{name}, ms" for name in names), "ratio"]
    console(130).print(console_table(heads, rows, right=(2, 3, 4)))
    for direction in dict.fromkeys(direction for _, direction in both):
        ratios = [other[key] / one[key] for key in both if key[1] == direction]
        part = f"{statistics.geometric_mean(ratios):.2f} of the time of {names[0]}"
        print(f"{direction}: {len(ratios)} cases, {names[1]} takes {part}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
