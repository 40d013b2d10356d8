"""Every attention block in one ResNet, and the hierarchical families, on real photographs: accuracy
with intervals and paired tests, robustness, step time; writes docs/study.md.

    python -m benchmarks.study [--data FOLDER] [--hours H] [--jobs N] [--quick] [--only GLOB]
    python -m benchmarks.study --speed      # only the step times, on a machine that does nothing else
    python -m benchmarks.study --report     # only the document, from the records

Trains all networks of configs/study.py on the photographs, and all blocks on the cued task of
configs/cued_digits.py, seed 0 of everything, then the other seeds of the cued task, then those of
the photographs, each by a program of its own with one core (benchmarks/study_run.py), `--jobs` of
them at a time. Then it times the training steps, each in turns with that of 'none' on all cores.
Every finished network is a line of the records at once; called again, it does what is missing, and
goes on with what `--hours` or a signal interrupted. Records of another recipe are not mixed in;
changed code is not noticed: remove the records to begin afresh.

Files: docs/study.md, docs/images/study_*.png, benchmarks/results/study.jsonl, and runs/study/ with
the prepared photographs and the runs. With --out all of them lie in DIR; --quick (few networks,
short runs) and --only have a DIR of their own by default, so that the document is never one of
parts. Its section 'Reading' is written by hand, and kept.
"""  # noqa: E501

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Children and this process alike: the runs are far too small for an accelerator, and would have to
# share it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks import harness, reading, study_data, study_records, study_report, training_command
from benchmarks.step_times import prepare_step
from benchmarks.study_plan import BASE, FULL, QUICK, Plan, Scope, all_runs, scope_of
from benchmarks.training_command import Files, files_in
from benchmarks.training_runs import ROOT, Run, train_all
from configs import study
from lambdanet import data


# --------------------------------------------------------------------------------------------------
# Training and measuring
# --------------------------------------------------------------------------------------------------
def prepare(source: Path, runs: Sequence[Run], files: Files) -> None:
    """Prepares the data of all tasks; ValueError if the records are of other photographs."""
    record = study_data.prepare(source, files.runs / "photos")
    earlier = [r for r in study_records.read(files.records) if r["suite"] == "data"]
    if earlier and earlier[0]["digest"] != record["digest"]:
        raise ValueError(
            f"{files.records} is of other photographs ({earlier[0]['digest']}) than {source} "
            f"({record['digest']}); name a new directory with --out"
        )
    study_records.put(files.records, record)
    for run in {run.task: run for run in runs if run.task != "photos"}.values():
        data.prepare_embedded(run.config.data)  # once, before several processes want it


def train(
    runs: Sequence[Run], scope: Scope, files: Files, jobs: int, until: float
) -> dict[str, str]:
    """Trains all networks that no record is of; returns the names of those that failed -> why."""
    now = study_records.current(study_records.read(files.records), scope.recipes)
    done = study_records.finished(now)
    earlier = [(record["task"], record["wall_seconds"]) for record in done.values()]
    left = [run for run in runs if (run.task, run.variant, run.seed) not in done]
    print(f"study: {len(runs)} networks, of {len(runs) - len(left)} there are records", flush=True)
    for run in left:
        if run.result is not None:  # a record was taken out of the file
            (run.workdir / "result.json").unlink()

    def keep(run: Run, failure: str | None) -> None:
        recipe = scope.recipes[run.task, run.variant]
        study_records.put(files.records, net_record(run, recipe, failure))

    return train_all(left, jobs, earlier=earlier, until=until, on_end=keep)


def net_record(run: Run, recipe: str, failure: str | None) -> study_records.Record:
    """Returns the record of a run: its outcome or, under `error`, why there is none."""
    machine = harness.environment()
    record = dict(suite="net", task=run.task, net=run.variant, kind=study.kind_of(run.variant))
    record |= dict(seed=run.seed, recipe=recipe, command=run.command)
    record |= {key: machine[key] for key in ("python", "jax", "device")}
    if failure is not None:
        return record | {"error": failure.replace(f"{ROOT}/", "")}
    outcome = run.result
    wanted = ("total_steps", "parameters", "macs", "accuracy", "loss", "count")
    record |= {key: outcome[key] for key in (*wanted, "train_seconds", "wall_seconds")}
    prefix = "correct_"
    bits = {k.removeprefix(prefix): v for k, v in outcome.items() if k.startswith(prefix)}
    shares = {k: study_records.unpack(v, outcome["count"]).mean() for k, v in bits.items()}
    return record | {"accuracies": {k: round(v, 6) for k, v in shares.items()}, "correct": bits}


def measure_steps(
    base: Run,
    runs: Sequence[Run],
    rounds: int,
    until: float,
    kept: Callable[[study_records.Record], None],
) -> None:
    """Times the training step of each run's network in turns with that of the base; if that is
    among them, against itself, which shows what the ratios are worth.

    Args:
        base: the run of `BASE`.
        runs: of the same task, one for each network.
        rounds: samples of both.
        until: value of `time.monotonic` after which no other network is begun.
        kept: called with each record.
    """
    prepared = functools.cache(functools.partial(prepare_step, base))
    for done, run in enumerate(runs, 1):
        if time.monotonic() >= until:
            print(f"the time is over with {len(runs) - done + 1} step times left", flush=True)
            return
        step = prepared if run is base else functools.partial(prepare_step, run)
        cases = [
            harness.Case("step", run.task, "train", BASE, prepared),
            harness.Case("step", run.task, "train", run.variant, step),
        ]
        first, own = harness.run_cases(cases, rounds=rounds)
        record = dict(suite="step", task=run.task, net=run.variant)
        record["recipe"] = study_records.recipe_digest(run.task, run.config)
        record |= harness.environment()
        if error := own.get("error") or first.get("error"):
            record["error"] = error
        else:
            ratio = own["median_ms"] / first["median_ms"]
            record |= dict(ms=own["median_ms"], base_ms=first["median_ms"], ratio=ratio)
        kept(record)
        said = error or f"{record['ms']:.1f} ms, {record['ratio']:.2f} x {BASE}"
        print(f"step times: [{done}/{len(runs)}] {run.variant}: {said}", flush=True)


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------
def run(plan: Plan, files: Files, args: argparse.Namespace) -> dict[str, str]:
    """Does what is missing and writes the document.

    Args:
        plan: what.
        files: where.
        args: data, jobs, hours, speed, report of the command line.

    Returns:
        Name of every run that failed -> why; the document shows them as failed.
    """
    until = time.monotonic() + args.hours * 3600
    runs, failures, scope = all_runs(plan, files.runs), {}, scope_of(plan)
    reading.read(files.document, study_report.COMMAND)  # its marks, before hours of training
    if not args.report:
        prepare(args.data, runs, files)
        if not args.speed:
            failures = train(runs, scope, files, args.jobs, until)
        photos = {run.variant: run for run in runs if run.task == "photos"}
        now = study_records.current(study_records.read(files.records), scope.recipes)
        timed = {r["net"] for r in now if r["suite"] == "step"} if not args.speed else set()
        left = [run for name, run in photos.items() if name not in timed]
        if left and time.monotonic() < until:
            put = functools.partial(study_records.put, files.records)
            measure_steps(photos[BASE], left, plan.rounds, until, put)
    study_report.write(
        study_records.read(files.records),
        scope,
        document=files.document,
        images=files.images,
        records_file=files.records,
    )
    return failures


def parse(argv: Sequence[str] | None) -> tuple[Plan, Path | None, argparse.Namespace]:
    """Returns the plan, the directory of --out, and all arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "clothing",
        help="photographs in train/, validation/ and test/ (../shared/data/clothing)",
    )
    parser.add_argument(
        "--hours", metavar="H", type=float, default=math.inf, help="stop after so long (never)"
    )
    training_command.add_jobs(parser)
    parser.add_argument(
        "--quick", action="store_true", help="a few networks, short runs; about 5 minutes"
    )
    parser.add_argument("--only", metavar="GLOB", help=f"only the networks that match, and {BASE}")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where everything is written")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--speed", action="store_true", help="measure the step times, train nothing")
    what.add_argument("--report", action="store_true", help="write the document, measure nothing")
    args = parser.parse_args(argv)
    training_command.check_jobs(parser, args)
    if not args.hours > 0:
        parser.error(f"--hours is {args.hours}; allowed: more than 0")
    plan, out = QUICK if args.quick else FULL, args.out
    if args.only:
        plan = dataclasses.replace(plan, nets=dict.fromkeys(plan.nets, (BASE, args.only)))
        if not {*plan.names("photos"), *plan.names("cued")} - {BASE} and args.only != BASE:
            parser.error(f"--only is {args.only!r}; networks: {', '.join(study.NETS)}")
    if out is None and (args.quick or args.only):
        out = ROOT / "runs" / ("study_quick" if args.quick else "study_only")
    return plan, None if out is None else out.absolute(), args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 1 if a run failed, 2 for wrong input."""
    plan, out, args = parse(argv)

    def work() -> tuple[Files, dict[str, str]]:
        files = files_in(ROOT, "study", "study.md", "study.jsonl", out)
        return files, run(plan, files, args)

    return training_command.finish(work)


if __name__ == "__main__":
    sys.exit(main())
