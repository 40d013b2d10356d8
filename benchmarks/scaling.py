"""What training on many devices takes, from compiled programs of few; writes docs/scaling.md.

    python -m benchmarks.scaling [--models NAME ...] [--devices 8,64] [--json FILE]
    python -m benchmarks.scaling --report                      # from the records that there are
    python -m benchmarks.scaling --step_ms MS --images N       # the hosts that one's own step needs

Compiles the training step of train.py for shapes alone, on fake CPU devices, for three meshes: all
devices on the axis 'data', all on 'fsdp', or 4 on 'fsdp' and the rest on 'data'. It reads the bytes
that lie on a device and the collectives, takes a law from the programs for 8 devices, checks it on
the others, and goes on by it to 1024. Each job is a process of its own and a line of the
records at once; called again, it does what is missing. Changed code is not noticed: remove the
records to begin afresh.

Files: the tables of docs/scaling.md, docs/images/scaling.png, benchmarks/results/scaling.jsonl.
With --json the records are in FILE, and the tables are printed instead; models or devices of one's
own need it, so that the page is never one of parts.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, scaling_records, scaling_report
from benchmarks.arguments import file_to_write
from benchmarks.scaling_law import LAYOUTS, mesh_sizes
from benchmarks.scaling_records import ROOT, Job
from lambdanet.atomic import write_file
from lambdanet.registry import suggest

RECIPES = {
    "lambda_resnet50": "configs/imagenet350.py:50@128",
    "swin_tiny": "configs/imagenet300.py:swin_tiny",
}
"""Of the models, which also say the size of the images and the precision."""
LARGER = {
    "lambda_resnet152": "configs/imagenet350.py:152@224",
    "lambda_resnet420": "configs/imagenet350.py:420@320",
    "swin_small": "configs/imagenet300.py:swin_small",
    "swin_base": "configs/imagenet300.py:swin_base",
}
"""Of which only the state is counted."""
DEVICES, ALLOWED = (8, 64), (8, 16, 32, 64)
BATCH = 32  # images per device
EXTRAPOLATED = tuple(2**k for k in range(11))
REPEATS = 1  # of writing and reading a checkpoint
DOCUMENT, PICTURE = ROOT / "docs" / "scaling.md", ROOT / "docs" / "images" / "scaling.png"
RESULTS = ROOT / "benchmarks" / "results"


def states(recipe: str) -> Job:
    """The job that counts the state for meshes of all numbers of devices."""
    layouts = {layout: [[*mesh_sizes(layout, n)] for n in EXTRAPOLATED] for layout in LAYOUTS}
    return dict(what="states", recipe=recipe, layouts=layouts)


def program(recipe: str, data: int, fsdp: int, batch: int = BATCH) -> Job:
    """The job that compiles a training step."""
    return dict(what="program", recipe=recipe, data=data, fsdp=fsdp, batch=batch)


def checkpoint_times(recipe: str) -> Job:
    """The job that writes and reads a checkpoint."""
    return dict(what="checkpoint_times", recipe=recipe, repeats=REPEATS)


def jobs_of(names: Sequence[str], devices: Sequence[int]) -> list[Job]:
    """Returns all jobs, see `scaling_records.do`; a program that two layouts share is one job."""
    found = [states(recipe) for recipe in (*map(RECIPES.get, names), *LARGER.values())]
    for recipe in map(RECIPES.get, names):
        found += [program(recipe, *mesh_sizes(layout, n))
            for n in (1, *devices) for layout in LAYOUTS]  # fmt: skip
        found += [checkpoint_times(recipe)]
    return list({scaling_records.key(job): job for job in found}.values())


def model_of(name: str, devices: Sequence[int], found: Mapping[str, Any]) -> scaling_report.Model:
    """Returns what the records say of a model; the law may lack programs to be checked on.

    Args:
        name: of the model.
        devices: the first is what the law is taken from.
        found: of `scaling_records`.

    Raises:
        ValueError: another record is missing.
    """
    recipe, (least, *others) = RECIPES[name], devices
    needed = {mesh_sizes(layout, n) for n in (1, least) for layout in LAYOUTS}
    programs = {sizes: get(found, program(recipe, *sizes)) for sizes in sorted(needed)}
    for sizes in (mesh_sizes(layout, n) for n in others for layout in LAYOUTS):
        if (record := found.get(scaling_records.key(program(recipe, *sizes)))) is not None:
            programs[sizes] = record
    times = get(found, checkpoint_times(recipe))
    return scaling_report.Model(name, get(found, states(recipe)), programs, times, BATCH)


def get(found: Mapping[str, Any], job: Job) -> Any:
    """Returns what a job gave; raises ValueError if there is no record of it."""
    try:
        return found[scaling_records.key(job)]
    except KeyError:
        raise ValueError(
            f"no record of {scaling_records.name(job)}; call without --report to make it"
        ) from None


def tables_of(
    models: Sequence[scaling_report.Model], found: Mapping[str, Any]
) -> dict[str, Callable[[], str]]:
    """Returns name -> what writes the table."""
    larger = {
        name: get(found, states(recipe))
        for name, recipe in (RECIPES | LARGER).items()
        if name in LARGER or name in [m.name for m in models]
    }
    of_models = ("state", "devices", "collectives", "law", "extrapolated", "checkpoint", "fits")
    written = {
        name: functools.partial(getattr(scaling_report, f"table_{name}"), models)
        for name in of_models
    }
    rows, pixels = report.read(RESULTS / "cpu_input.jsonl"), 3 * 224**2
    written["input"] = functools.partial(scaling_report.table_input, rows, pixels)
    written["larger"] = functools.partial(scaling_report.table_larger, larger)
    return written


def hosts_of(images: int, step_ms: float) -> str:
    """Returns what a step of some length on each device asks of the hosts."""
    rows = report.read(RESULTS / "cpu_input.jsonl")
    rate = images / step_ms * 1e3
    plain, augmented = (rate / each for each in scaling_report.core_rates(rows))
    return (
        f"{images} images in {step_ms:g} ms: {rate:.0f} images/s and device, {plain:.1f} cores and "
        f"device, with RandAugment {augmented:.1f}"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments; ends the program with a message at wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", default=[*RECIPES])
    parser.add_argument("--devices", default=",".join(map(str, DEVICES)), metavar="N,N")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="records of one's own")
    parser.add_argument("--report", action="store_true", help="compile nothing, write the tables")
    parser.add_argument("--step_ms", type=float, metavar="MS", help="of one's own step")
    parser.add_argument("--images", type=int, metavar="N", help="on a device in that step")
    args = parser.parse_args(argv)
    problems = [
        f"--models {name}; allowed: {', '.join(RECIPES)}.{suggest(name, [*RECIPES])}"
        for name in args.models
        if name not in RECIPES
    ]
    given = args.devices.split(",")
    numbers = sorted({int(n) for n in given if n.isdecimal()})
    if (
        len(numbers) != len(given)
        or numbers[:1] != [8]
        or len(numbers) < 2
        or not set(numbers) <= set(ALLOWED)
    ):
        problems.append(
            f"--devices {args.devices}; allowed: 8 and one or more of 16, 32, 64, such as 8,64"
        )
    args.devices = tuple(numbers)
    if (args.step_ms is None) != (args.images is None):
        problems.append("--step_ms and --images belong together: give both, or neither")
    elif args.images is not None and not (args.images > 0 and 0 < args.step_ms < float("inf")):
        problems.append(
            f"--step_ms {args.step_ms} --images {args.images}; allowed: more than 0 of each"
        )
    own = sorted(args.models) != sorted(RECIPES) or args.devices != DEVICES
    if args.images is not None and (own or args.report or args.json):
        problems.append(
            "--step_ms reads no records: leave out --models, --devices, --report, --json"
        )
    elif own and args.json is None:
        problems.append("models or devices of one's own: name a file for their records by --json")
    if problems:
        parser.error("\n  ".join(problems))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 1 if a job failed, 130 if it was stopped."""
    args = parse(argv)
    if args.images is not None:
        print(hosts_of(args.images, args.step_ms))
        return 0
    path = Path(args.json or RESULTS / "scaling.jsonl")
    try:
        if args.report:
            found = scaling_records.read(path)
        else:
            found = scaling_records.do_all(jobs_of(args.models, args.devices), path)
        models = [model_of(name, args.devices, found) for name in args.models]
        tables = tables_of(models, found)
        if args.json is None:
            write_file(DOCUMENT, scaling_report.fill(DOCUMENT, tables))
            scaling_report.draw(models, PICTURE)
            print(f"Written: {DOCUMENT}, {PICTURE}, {path}")
        else:
            print("\n\n".join(f"{name}\n\n{write()}" for name, write in tables.items()))
            print(f"Written: {path}")
    except (RuntimeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
