"""Time of inference and of a training step of whole detectors, beside torchvision's:

    python -m benchmarks.detection_step > docs/detection_speed.md

Two pictures of 320 x 320. Each network runs in a process of its own (`benchmarks.detection_worker`)
and takes turns with its twin, step by step; both begin with the same weights, and what they find or
lose has to be the same. Without torch and torchvision only ours are measured.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, torch_detection
from benchmarks.turns import Record, in_turns
from lambdanet.analysis.text import markdown_table
from lambdanet.ops.nms import nms
from lambdanet.ops.roi_align import multi_level_roi_align
from lambdanet.training import start_up

CASES = [(n, d) for n in ("retinanet", "mask_rcnn") for d in ("inference", "training")]
BOXES = 2000
# Relative. Which anchors and proposals Mask R-CNN learns from is drawn by each for itself.
TOLERANCES = {"found": 0.02, "score": 0.02, ("retinanet", "loss"): 1e-3, ("mask_rcnn", "loss"): 0.1}


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; the exit status is 1 if a network does not do what its twin does."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection_step", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="only networks that match")
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="steps that count, after one more")
    args = parser.parse_args(argv)
    cases = [case for case in CASES if fnmatch.fnmatchcase(case[0], args.only)]
    if not cases or args.rounds < 1:
        parser.error(f"--only={args.only} --rounds={args.rounds}: nothing to do")
    records = {}
    for case in cases:
        records |= measure(*case, side=args.side, batch=args.batch, rounds=args.rounds)
    problems = differences(records)
    _print_report(records, args.side, args.batch)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def measure(
    name: str, direction: str, *, side: int, batch: int, rounds: int
) -> dict[tuple[str, str, str], Record]:
    """Runs a network and, where installed, its twin in turns.

    Args:
        name: of the detector.
        direction: 'inference' | 'training'.
        side: of the pictures.
        batch: pictures per step.
        rounds: steps after the first.

    Returns:
        (framework, name, direction) -> what its worker said: `steps`, one dict per step.
    """
    frameworks = ("torch", "ours") if torch_detection.installed() else ("ours",)
    with tempfile.TemporaryDirectory() as folder:
        own = [f"--side={side}", f"--batch={batch}", f"--weights={Path(folder, 'first.npz')}"]
        keys = [(framework, name, direction) for framework in frameworks]
        arguments = {key: [*key, *own] for key in keys}
        return in_turns("benchmarks.detection_worker", arguments, rounds=rounds)


def differences(records: Mapping[tuple[str, str, str], Record]) -> list[str]:
    """Returns in which steps a network does not do what its twin does."""
    problems = []
    for (framework, name, direction), record in records.items():
        twin = records.get(("torch", name, direction))
        if framework == "torch" or twin is None:
            continue
        for number, (ours, theirs) in enumerate(zip(record["steps"], twin["steps"], strict=True)):
            for key in ours.keys() & {"found", "score", "loss"}:
                tolerance = TOLERANCES.get(key) or TOLERANCES[name, key]
                if not abs(ours[key] - theirs[key]) <= tolerance * abs(theirs[key]):
                    problems.append(
                        f"{name}, {direction}, step {number}: {key} {ours[key]:.6g}, torchvision's "
                        f"{theirs[key]:.6g}"
                    )
    return problems


def rows_of(records: Mapping[tuple[str, str, str], Record]) -> list[list[str]]:
    """Returns the rows of the table: without the first step, the medians of wall and CPU time, and
    the ratios of the twin's to ours.
    """

    def middle(key: tuple[str, str, str], what: str) -> float:
        return statistics.median(step[what] for step in records[key]["steps"][1:])

    rows = []
    for key in records:
        framework, name, direction = key
        walls = [step["s"] for step in records[key]["steps"][1:]]
        twin = ("torch", name, direction)
        ratios = [
            f"{middle(twin, what) / middle(key, what):.2f}"
            for what in ("s", "cpu_s")
            if framework == "ours" and twin in records
        ]
        last = records[key]["steps"][-1]
        rows.append(
            [
                *(name, direction, framework),
                f"{1000 * min(walls):.0f}",
                f"{1000 * middle(key, 's'):.0f}",
                f"{1000 * middle(key, 'cpu_s'):.0f}",
                " / ".join(ratios),
                f"{last['found']}" if "found" in last else f"{last['loss']:.4f}",
                f"{last['peak_mib']:.0f}",
            ]
        )
    return rows


def operations() -> dict[str, Callable[[], jax.Array]]:
    """Returns what is timed alone, by name; compiled at the first call."""
    draw = np.random.default_rng(0)

    def boxes(count: int, least: float, most: float) -> jax.Array:
        corner = draw.uniform(0, 280, (count, 2))
        sides = draw.uniform(least, most, (count, 2))
        return jnp.asarray(np.concatenate([corner, corner + sides], -1), jnp.float32)

    candidates = boxes(BOXES, 5, 120)
    scores = jnp.asarray(draw.uniform(size=BOXES), jnp.float32)
    strides = (4, 8, 16, 32)
    maps = [
        jnp.asarray(draw.standard_normal((1, 320 // s, 320 // s, 256)), jnp.float32)
        for s in strides
    ]
    proposals = boxes(512, 10, 150)[None]

    def regions(maps: list[jax.Array]) -> jax.Array:
        options = dict(strides=strides, output_size=(7, 7))
        return multi_level_roi_align(maps, proposals, **options)

    suppress = jax.jit(lambda boxes, scores: nms(boxes, scores, 0.5))
    forward = jax.jit(regions)
    backward = jax.jit(jax.grad(lambda maps: jnp.sum(regions(maps) ** 2)))
    return {
        f"suppression of {BOXES} boxes": lambda: suppress(candidates, scores),
        "RoIAlign of 512 boxes, 7 x 7 x 256": lambda: forward(maps),
        "the same with its gradient": lambda: backward(maps),
    }


def operation_rows(repeats: int = 15) -> list[list[str]]:
    """Returns the least and the median of milliseconds of each of `operations`."""
    rows = []
    for name, run in operations().items():
        jax.block_until_ready(run())
        spent = []
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready(run())
            spent.append(1000 * (time.perf_counter() - began))
        rows.append([name, f"{min(spent):.1f}", f"{statistics.median(spent):.1f}"])
    return rows


def _print_report(records: Mapping, side: int, batch: int) -> None:
    facts = ", ".join(f"{key} {value}" for key, value in harness.environment().items())
    print("# Time of detectors\n")
    print("    python -m benchmarks.detection_step > docs/detection_speed.md\n")
    print(
        f"{batch} pictures of {side} x {side}, float32, random weights, the same in both "
        f"frameworks; ResNet-50, trained whole, norms included, by SGD. {facts}. "
        "`torch` is torchvision in eager mode. Every network has a process of its own and takes "
        "turns with its twin. Milliseconds of a step: the least, the median, the median of CPU "
        "time. Ratio, torchvision's medians / ours, wall and CPU: above 1, ours is faster. "
        "Result: detections, or the last loss. MiB: the largest resident memory.\n"
    )
    head = ("network", "direction", "framework", "ms", "median ms", "CPU ms", "ratio")
    head += ("result", "resident MiB")
    print("\n".join(markdown_table(head, rows_of(records), left={0, 1, 2})))
    print("\n## Operations\n")
    head = ("operation", "ms", "median ms")
    print("\n".join(markdown_table(head, operation_rows(), left={0})))


if __name__ == "__main__":
    start_up.prepare_cpu()
    sys.exit(main())
