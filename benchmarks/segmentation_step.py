"""Time and memory of one training step of whole segmentation networks, beside PyTorch's:

    python -m benchmarks.segmentation_step > docs/segmentation_speed.md

Two images of 512 x 512, 150 classes, SGD with momentum, no dropout. Each network runs in a process
of its own (`benchmarks.segmentation_worker`), so that its memory can be told; the processes take
turns, step by step. Where PyTorch has the same network, both begin with the same weights, and a
step counts only if loss and norm of the gradient are the same. Without torch, torchvision and
transformers those rows are left out.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import harness, step_times, torch_segmentation
from benchmarks.segmentation_worker import compiled_mib, training_config
from benchmarks.turns import Record, in_turns
from lambdanet.analysis.text import markdown_table

# Those of a group are in memory together, 5 to 6 GB each, and take turns.
GROUPS = (("fcn_resnet50", "ccnet_resnet50"), ("upernet_swin_tiny",))
BASELINE = ("torch", "fcn_resnet50")
# Relative. Many layers of float32 in two orders of summation.
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 2e-3
_DILATED = dict(name="resnet50", output_stride=8, stem="deep_narrow")
_AUXILIARY = dict(name="fcn", stage=3, channels=256)
_WIDE_FCN = dict(name="fcn", channels=512, num_convs=2, concat_input=True)
# mmsegmentation's networks of which it gives the memory: GB per GPU in training, two images.
OPENMM = {
    "FCN": (5.7, dict(backbone=_DILATED, head=_WIDE_FCN)),
    "CCNet": (6.0, dict(backbone=_DILATED, head=dict(name="criss_cross", channels=512))),
    "DANet": (7.4, dict(backbone=_DILATED, head="danet")),
    "UPerNet": (6.4, dict(backbone=dict(name="resnet50", stem="deep_narrow"), head="upernet")),
}
OPENMM_SIZE, OPENMM_CLASSES = (512, 1024), 19


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; the exit status is 1 if a network does not do what PyTorch's does."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.segmentation_step", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="only networks that match")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3, help="steps that count, after one more")
    args = parser.parse_args(argv)
    groups = [[n for n in group if fnmatch.fnmatchcase(n, args.only)] for group in GROUPS]
    if not any(groups) or args.rounds < 1:
        parser.error(f"--only={args.only} --rounds={args.rounds}: nothing to do")
    sizes = dict(side=args.side, batch=args.batch, classes=args.classes)
    records = {}
    for names in groups:
        records |= measure(names, rounds=args.rounds, **sizes)
    problems = differences(records)
    _print_report(records, sizes)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def measure(
    names: Sequence[str], *, rounds: int, side: int, batch: int, classes: int
) -> dict[tuple[str, str], Record]:
    """Runs the networks and, where installed, their twins in turns.

    Args:
        names: of our networks.
        rounds: steps after the first.
        side: of the images.
        batch: images per step.
        classes: of the labels.

    Returns:
        (framework, name) -> what its worker said: its facts, and `steps`, one dict per step.
    """
    twins = [name for name in names if torch_segmentation.installed(name)]
    sizes = [f"--side={side}", f"--batch={batch}", f"--classes={classes}"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            (framework, name): [framework, name, *sizes, f"--weights={Path(folder, name)}.npz"]
            for framework, name in [("torch", n) for n in twins] + [("ours", n) for n in names]
        }
        return in_turns("benchmarks.segmentation_worker", arguments, rounds=rounds)


def differences(records: Mapping[tuple[str, str], Record]) -> list[str]:
    """Returns in which steps a network does not do what its twin does."""
    problems = []
    for (framework, name), record in records.items():
        twin = records.get(("torch", name))
        if framework == "torch" or twin is None:
            continue
        for number, (ours, theirs) in enumerate(zip(record["steps"], twin["steps"], strict=True)):
            for key, tolerance in (("loss", LOSS_TOLERANCE), ("norm", NORM_TOLERANCE)):
                if not abs(ours[key] - theirs[key]) <= tolerance * abs(theirs[key]):
                    problems.append(
                        f"{name}, step {number}: {key} {ours[key]:.6g}, PyTorch's {theirs[key]:.6g}"
                    )
    return problems


def rows_of(records: Mapping[tuple[str, str], Record]) -> list[list[str]]:
    """Returns the rows of the table of times: medians and minima without the first step, ratios of
    the twin's and of torchvision's FCN to ours.
    """

    def least(key: tuple[str, str], what: str) -> float | None:
        steps = records[key]["steps"][1:] if key in records else []
        return min((step[what] for step in steps), default=None)

    rows = []
    for (framework, name), record in records.items():
        walls = [step["s"] for step in record["steps"][1:]]
        row = [name, framework, f"{record['parameters'] / 1e6:.2f}"]
        row.append(f"{record['macs'] / 1e9:.0f}" if "macs" in record else "")
        row += [f"{min(walls):.2f}", f"{statistics.median(walls):.2f}"]
        row.append(f"{least((framework, name), 'cpu_s'):.2f}")
        for other in (("torch", name), BASELINE):
            ratios = [
                least(other, what) / least((framework, name), what)
                for what in ("s", "cpu_s")
                if framework == "ours" and other in records
            ]
            row.append(" / ".join(f"{ratio:.2f}" for ratio in ratios))
        row.append(f"{record['steps'][-1]['peak_mib']:.0f}")
        row.append(f"{record['compiled_mib']:.0f}" if "compiled_mib" in record else "")
        rows.append(row)
    return rows


def openmm_mib(options: Mapping[str, Any]) -> float:
    """Returns the MiB of the compiled step of one of `OPENMM`; runs nothing."""
    config = training_config("fcn_resnet50", side=OPENMM_SIZE[0])
    config.data.image_size = OPENMM_SIZE
    config.model = dict(name="segmenter", auxiliary=_AUXILIARY, **options)
    make, train_step, batch = step_times.training_step(
        config, num_classes=OPENMM_CLASSES, batch_size=2
    )
    return compiled_mib(train_step.lower(jax.eval_shape(make), batch).compile())


def _print_report(records: Mapping[tuple[str, str], Record], sizes: Mapping[str, int]) -> None:
    facts = ", ".join(f"{key} {value}" for key, value in harness.environment().items())
    print("# Time and memory of a training step of segmentation\n")
    print("    python -m benchmarks.segmentation_step > docs/segmentation_speed.md\n")
    print(
        f"One step of SGD with momentum: {sizes['batch']} images of {sizes['side']} x "
        f"{sizes['side']}, {sizes['classes']} classes, float32, no dropout; "
        f"auxiliary head included. {facts}. "
        "`torch` is torchvision's `fcn_resnet50` and transformers' UPerNet, with the same weights, "
        "in eager mode. Every network has a process of its own; the FCNs and CCNet take turns step "
        "by step, then the UPerNets. GMAC: of one image in evaluation, without the auxiliary head. "
        "Seconds: the least, the median, the least of CPU time. Ratios, PyTorch's least seconds / "
        "ours, wall and CPU: above 1, ours is faster. MiB: the largest resident memory of the "
        "process, libraries and compiler included, and what the compiled program asks for.\n"
    )
    head = ("network", "framework", "M parameters", "GMAC", "s", "median s", "CPU s")
    head += ("same network", "torchvision's FCN", "resident MiB", "compiled MiB")
    print("\n".join(markdown_table(head, rows_of(records), left={0, 1})))
    print("\n## Memory beside mmsegmentation's\n")
    print(
        "Its figures are of a GPU in training with two images of 512 x 1024 and 19 classes, with "
        "ResNet-50; ours what the program of the same network asks for in 10^9 bytes, compiled "
        "for CPU (Winograd's tiles and kernels, which only CPU has, included).\n"
    )
    rows = [
        [name, f"{theirs:.1f}", f"{openmm_mib(options) / 1e9 * 2**20:.1f}"]
        for name, (theirs, options) in OPENMM.items()
    ]
    print("\n".join(markdown_table(("network", "mmsegmentation, GB", "ours, GB"), rows, left={0})))


if __name__ == "__main__":
    sys.exit(main())
