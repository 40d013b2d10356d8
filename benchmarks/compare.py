"""Every attention variant in the same small ResNet, trained by one recipe and measured: writes
docs/comparison.md.

    python -m benchmarks.compare [--quick] [--only GLOB] [--out DIR] [--jobs N]

Trains all variants of configs/attention_zoo.py on both tasks, all backbones of configs/digits.py,
and LaViT with and without its parts, each run being one `train.py` command with a directory of its
own, `--jobs` of them at a time with one core each; then, alone on the machine, times their training
steps in turns and asks the compiler for the memory of every block (benchmarks/memory_suite.py).
Called again, it skips what is finished, continues what was interrupted, does again what has another
recipe by now, and writes the document anew. Changed code is not noticed: remove the runs to begin
afresh.

Files: docs/comparison.md, docs/images/comparison_*.png, benchmarks/results/cpu_compare.jsonl, which
holds every number of the document, and runs/compare/ with the runs. With --out all of them lie in
DIR; --quick (a few variants, short runs) and --only have a DIR of their own by default, so that the
document is never one of parts. Its section 'Reading' is written by hand, and kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Children and this process alike: the runs are far too small for an accelerator, and would have to
# share it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks import compare_report, harness, memory_suite, training_command
from benchmarks.compare_runs import ABLATION, accuracy_record, make_run
from benchmarks.step_times import prepare_step
from benchmarks.training_command import Files
from benchmarks.training_runs import ROOT, Run, train_all
from configs import attention_zoo, digits
from lambdanet import data
from lambdanet.atomic import write_file
from lambdanet.config import to_plain


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained and measured.

    Attributes:
        seeds: seeds by task.
        steps: steps by task; a task that is not named has the recipe's length.
        variants: shell patterns; a variant or a backbone takes part if one matches.
        sides: sides of the maps whose memory is measured.
        channels: of those maps.
        rounds: samples of each step time.
        options: further overrides of the config, as text.
    """

    seeds: Mapping[str, Sequence[int]]
    steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    variants: Sequence[str] = ("*",)
    sides: Sequence[int] = memory_suite.SIDES
    channels: int = memory_suite.DIM
    rounds: int = 15
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def names(self, task: str) -> list[str]:
        """Returns the variants that take part in a task, in the order of the tables; ValueError if
        a pattern matches none.
        """
        blocks = list(attention_zoo.variants())
        of_task = {"backbones": list(digits.MODELS.values()), "lavit": list(ABLATION)}
        known = [*blocks, *of_task["backbones"], *of_task["lavit"]]
        for pattern in self.variants:
            if not fnmatch.filter(known, pattern):
                raise ValueError(f"no variant matches {pattern!r}; variants: {', '.join(known)}")
        return [
            n
            for n in of_task.get(task, blocks)
            if any(fnmatch.fnmatchcase(n, pattern) for pattern in self.variants)
        ]


FULL = Plan(
    seeds={"cued": (0,), "digits": (0, 1, 2), "backbones": (0, 1, 2), "lavit": (0, 1, 2)},
    steps={"backbones": 1683},  # the Transformers' own length
)
QUICK = Plan(
    seeds={"cued": (0,), "digits": (0,), "backbones": (0,), "lavit": (0,)},
    steps={"cued": 50, "digits": 100, "backbones": 100, "lavit": 100},
    variants=(
        "none",
        "lambda",
        "mhsa",
        "se",
        "gc",
        "criss_cross",
        "resnet_digits",
        "lambda_resnet_digits",
        "less",
    ),
    sides=(16, 32, 64),
    channels=64,
    rounds=5,
)


def files_in(out: Path | None) -> Files:
    """Returns the project's own places, or all of them in one directory; ValueError if one cannot
    be written.
    """
    return training_command.files_in(ROOT, "compare", "comparison.md", "cpu_compare.jsonl", out)


def run(plan: Plan, files: Files, jobs: int) -> dict[str, str]:
    """Trains, measures and writes the document.

    Args:
        plan: what.
        files: where.
        jobs: training runs at a time.

    Returns:
        Name of every run that failed -> why; the document shows them as failed.
    """
    runs = []
    for task, seeds in plan.seeds.items():
        options = {
            **plan.options,
            **({"train.steps": str(plan.steps[task])} if task in plan.steps else {}),
        }
        of_task = [
            make_run(task, name, seed, files.runs, options)
            for seed in seeds
            for name in plan.names(task)
        ]
        for run in of_task[:1]:  # once, before several processes want it
            data.prepare_embedded(run.config.data)
        runs += of_task
    failures = train_all(runs, jobs)
    records = [accuracy_record(run, failures.get(run.name)) for run in runs]
    firsts = {(run.task, run.variant): run for run in reversed(runs) if run.name not in failures}
    records += measured_steps(list(firsts.values())[::-1], plan.rounds, files.runs / "steps.json")
    blocks = [name for name in attention_zoo.variants() if any(name == run.variant for run in runs)]
    records += measured_memory(blocks, plan.sides, plan.channels, files.runs / "memory.json")
    write_file(files.records, "".join(json.dumps(record) + "\n" for record in records))
    compare_report.write(records, files.document, files.images, files.records)
    return failures


# --------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------
def measured_steps(runs: Sequence[Run], rounds: int, kept: Path) -> list[dict[str, Any]]:
    """Times the training steps of all variants of a task in turns.

    Args:
        runs: one per task and variant.
        rounds: samples each.
        kept: file with the records of an earlier call; taken if they are of the same networks.

    Returns:
        What the machine was, then one record per run: time, parameters and MACs of the network.
    """
    wanted = json.loads(
        json.dumps([rounds, [[run.task, run.variant, to_plain(run.config.model)] for run in runs]])
    )
    if kept.is_file() and (earlier := json.loads(kept.read_text()))["of"] == wanted:
        return earlier["records"]
    print(f"step times: {len(runs)} training steps, in turns", flush=True)
    cases = [
        harness.Case("step", r.task, "train", r.variant, functools.partial(prepare_step, r))
        for r in runs
    ]
    records = [
        {"suite": "environment", **harness.environment()},
        *harness.run_cases(cases, rounds=rounds),
    ]
    write_file(kept, json.dumps({"of": wanted, "records": records}))
    return records


def measured_memory(
    names: Sequence[str], sides: Sequence[int], channels: int, kept: Path
) -> list[dict[str, Any]]:
    """Compiles the blocks of the variants for maps of several sizes; what an earlier call has kept
    is not done again.
    """
    specs = json.loads(json.dumps(attention_zoo.variants()))
    wanted = {
        name: [specs[name], list(sides), channels] for name in names if specs[name] is not None
    }
    earlier = json.loads(kept.read_text()) if kept.is_file() else {}
    found = {
        name: entry
        for name, entry in earlier.items()
        if name in wanted and entry["of"] == wanted[name]
    }
    cases: dict[str, list[harness.Case]] = {}
    for case in memory_suite.cases(sides, channels):
        if case.name in wanted and case.name not in found:
            cases.setdefault(case.name, []).append(case)
    for done, (name, group) in enumerate(cases.items(), 1):
        print(f"memory: [{done}/{len(cases)}] {name}", flush=True)
        found[name] = {"of": wanted[name], "records": harness.run_cases(group, rounds=1)}
        write_file(kept, json.dumps(found))
    return [record for name in wanted for record in found[name]["records"]]


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 1 if a run failed, 2 for wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few variants, short runs; no more than 5 minutes"
    )
    parser.add_argument("--only", metavar="GLOB", help="only the variants whose name matches")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where everything is written")
    training_command.add_jobs(parser)
    args = parser.parse_args(argv)
    training_command.check_jobs(parser, args)
    plan, out = QUICK if args.quick else FULL, args.out
    if args.only:
        plan = dataclasses.replace(plan, variants=(args.only,))
    if out is None and (args.quick or args.only):
        out = ROOT / "runs" / ("compare_quick" if args.quick else "compare_only")

    def work() -> tuple[Files, dict[str, str]]:
        plan.names("digits")
        files = files_in(None if out is None else out.absolute())
        return files, run(plan, files, args.jobs)

    return training_command.finish(work)


if __name__ == "__main__":
    sys.exit(main())
