"""The recipe of moving digits with each block over space and time: test accuracy, time and memory
of a training step, parameters.

    python -m benchmarks.clip_blocks --weights FILE [--seeds N [N ...]] [--jobs N]

Trains every variant of configs/moving_digits.py:clip by `train.py`, each with one core, from the
weights of configs/moving_digits.py:reader, in runs/clip_blocks/BLOCK/seedN; called again, it skips
what is finished and continues what was interrupted. Then it times their steps in turns, with all
cores, and prints a Markdown table. Memory is what the compiler plans for one step beside its
operands and results.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import harness, step_times
from benchmarks.training_runs import ROOT, RUN_OPTIONS, Run, train_all
from configs import moving_digits
from lambdanet.analysis.text import markdown_table
from lambdanet.config_flag import apply_overrides
from lambdanet.training import start_up

CLASSES = 10


def main(argv: list[str] | None = None) -> int:
    """Trains, measures, prints the table; the exit status is 1 if a run failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clip_blocks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--weights", required=True, help="exported from the reader's run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, with one core each")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each network that count")
    args = parser.parse_args(argv)
    if args.jobs < 1 or args.rounds < 1:
        parser.error(f"--jobs={args.jobs} --rounds={args.rounds}; allowed: at least 1")
    start_up.prepare_cpu()
    runs = make_runs(args.seeds, ROOT / "runs" / "clip_blocks", args.weights)
    failures = train_all(runs, args.jobs)
    if failures:
        print("\n".join(failures.values()), file=sys.stderr)
        return 1
    configs = {block: moving_digits.get_config(f"clip,{block}") for block in moving_digits.BLOCKS}
    measured = measure_steps(configs, rounds=args.rounds)
    print(", ".join(f"{key} {value}" for key, value in harness.environment().items()))
    shown = ", ".join(map(str, args.seeds))
    head = ("block", f"test accuracy, %, seed {shown}", "ms per step", "MiB", "parameters")
    print("\n".join(markdown_table(head, rows_of(runs, measured), left={0})))
    return 0


def make_runs(seeds: Sequence[int], directory: Path, weights: str) -> list[Run]:
    """Returns the runs of every block with every seed, all from the same weights."""
    runs, begin = (
        [],
        {"train.init_head": "new", "train.init_weights": str(Path(weights).absolute())},
    )
    for block in moving_digits.BLOCKS:
        for seed in seeds:
            overrides = {"seed": str(seed), **RUN_OPTIONS, **begin}
            arg = f"clip,{block}"
            flags = (
                f"--config=configs/moving_digits.py:{arg}",
                *(f"--config.{key}={value}" for key, value in overrides.items()),
            )
            config = apply_overrides(moving_digits.get_config(arg), overrides)
            runs.append(Run("clip", block, seed, directory / block / f"seed{seed}", flags, config))
    return runs


def measure_steps(configs: Mapping[str, Any], *, rounds: int) -> dict[str, dict[str, float]]:
    """Times the training steps of several networks in turns, after one that does not count.

    Args:
        configs: name -> whole config.
        rounds: steps of each.

    Returns:
        name -> dict(ms: median, mib: temporary memory of the compiled step, parameters).
    """
    states, steps, facts = {}, {}, {}
    for name, config in configs.items():
        make, step, batch = step_times.training_step(
            config, num_classes=CLASSES, batch_size=config.train.batch_size
        )
        states[name] = make()
        compiled = step.lower(states[name], batch).compile()
        steps[name] = compiled, batch
        facts[name] = {
            "mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(states[name].params)),
        }
    seconds = {name: [] for name in configs}
    for _ in range(1 + rounds):
        for name, (step, batch) in steps.items():
            began = time.perf_counter()
            states[name], _ = jax.block_until_ready(step(states[name], batch))
            seconds[name].append(time.perf_counter() - began)
    return {
        name: {"ms": 1e3 * statistics.median(seconds[name][1:]), **facts[name]} for name in configs
    }


def rows_of(runs: Sequence[Run], measured: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Returns the rows of the table: of each block the accuracies of its finished runs."""
    rows = []
    for block, facts in measured.items():
        found = [100 * run.result["accuracy"] for run in runs if run.variant == block]
        text = ", ".join(f"{value:.1f}" for value in found)
        mean = f" (mean {statistics.mean(found):.1f})" if len(found) > 1 else ""
        row = [f"`{block}`", text + mean, f"{facts['ms']:.0f}", f"{facts['mib']:.0f}"]
        rows.append([*row, f"{facts['parameters']:,}"])
    return rows


if __name__ == "__main__":
    sys.exit(main())
