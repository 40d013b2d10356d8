"""What fine-tuning gains over training from random weights, at equal steps:

    python -m benchmarks.finetune [--data FOLDER] [--out DIR] [--quick]

A network is trained on one half of the classes; then on the other half, from its weights in several
ways and from random weights, with all pictures and with a few of each class, seeds 0, 1, 2. FOLDER
holds train/, validation/ and test/ of class folders; without it the embedded digits are taken,
which prove little: every network learns them.

Every run is one of `train.run` in a directory of its own below DIR (runs/finetune); called again,
the command skips what is finished and continues what was interrupted. Prints a table, and writes
DIR/finetune.jsonl with every run. --quick: one seed, a few steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

import eval as program
import train
from benchmarks import harness
from configs import digits as digits_recipe
from configs import photos
from lambdanet.analysis.text import markdown_table
from lambdanet.atomic import write_file
from lambdanet.data import digits, image_folder
from lambdanet.interop import files as weight_files
from lambdanet.training import start_up
from lambdanet.training.metrics import json_value
from lambdanet.training.state import flatten_names

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "validation", "test")

WAYS: dict[str, dict[str, Any]] = {
    "from random weights": {},
    "fine-tuned": {"init": True},
    "layer decay 0.75": {"init": True, "optim.layer_decay": 0.75},
    "head alone for a fifth": {"init": True, "optim.frozen_epochs": 0.2},
    "both": {"init": True, "optim.layer_decay": 0.75, "optim.frozen_epochs": 0.2},
    "head alone": {"init": True, "optim.frozen": (r"(?!head/fc/).*",)},
}
"""Row of the table -> whether it starts from the pre-trained weights, and keys of the config; the
frozen epochs as a share of the run."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        seeds: of every way.
        pretrain_steps: on the first half of the classes.
        steps: on the second half.
        amounts: training pictures of each class of the second half; 0 = all.
        ways: of `WAYS`.
    """

    seeds: Sequence[int] = (0, 1, 2)
    pretrain_steps: int = 400
    steps: int = 120
    amounts: Sequence[int] = (0, 20)
    ways: Sequence[str] = tuple(WAYS)


QUICK = Plan(seeds=(0,), pretrain_steps=20, steps=5, ways=tuple(WAYS)[:2])


def write_digits(folder: Path) -> Path:
    """Writes the digits of scikit-learn as class folders in splits, and returns the folder."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    for split, rows in digits.split_rows(found.target).items():
        for row in rows:
            place = folder / split / str(found.target[row])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row]).save(place / f"{row:04}.png")
    return folder


def prepare_part(source: Path, classes: Sequence[str], scratch: Path, few: int = 0) -> Path:
    """Prepares a part of a folder of splits of class folders, unless it is there; returns where.

    Args:
        source: the folder.
        classes: those that are taken.
        scratch: directory for links to the pictures, and the prepared set beside it.
        few: training pictures of each class, spread over the sorted names; 0 = all.
    """
    prepared = scratch.with_name(scratch.name + "_prepared")
    if prepared.is_dir():
        return prepared
    for split in SPLITS:
        for name in classes:
            place = scratch / split / name
            place.mkdir(parents=True, exist_ok=True)
            found = sorted(p for p in (source / split / name).iterdir() if p.is_file())
            if few and split == "train":
                found = [found[i] for i in np.linspace(0, len(found) - 1, few).astype(int)]
            for file in found:
                link = place / file.name
                if not link.exists():
                    link.symlink_to(file.resolve())
    image_folder.prepare(str(scratch), str(prepared))
    return prepared


def recipe(embedded: bool, prepared: Path, steps: int, seed: int) -> ConfigDict:
    """Returns the config that all runs share: the digits', or `configs/photos.py:cpu` with pictures
    of 32 x 32 and a small ResNet, so that all runs together take minutes.
    """
    config = digits_recipe.get_config("conv") if embedded else photos.get_config("cpu")
    config.seed = seed
    config.data.source, config.data.data_dir = "image_folder", str(prepared)
    if not embedded:
        config.data.image_size = (32, 32)
        model = dict(name="resnet18", stem="strided", blocks=(1, 1, 1), widths=(24, 48, 96))
        config.model = ConfigDict(model | dict(zero_init_last=False))
    run, optim = config.train, config.optim
    run.steps, run.min_steps, run.max_steps = steps, 0, 0
    run.eval_every = run.save_every = 0.0
    run.keep_last, run.keep_best, run.report, run.log_every = 1, "", False, 20
    run.eval_batch_size = 128
    optim.warmup_epochs = 0.05 * steps * run.batch_size / records(prepared)
    return config


def records(prepared: Path) -> int:
    """Returns how many training records a prepared set has."""
    info = json.loads((prepared / "dataset_info.json").read_text())
    counts = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
    return counts["train"]


def trained(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Trains a run that is not finished, and returns its outcome."""
    result = directory / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
    began = time.monotonic()
    outcome = train.run(config, directory, stream=io.StringIO())
    if outcome["interrupted"]:
        raise KeyboardInterrupt
    kept = {key: outcome[key] for key in ("accuracy", "loss", "count", "step", "parameters")}
    kept["seconds"] = round(time.monotonic() - began, 1)
    write_file(result, json.dumps(json_value(kept)) + "\n")
    return kept


def weights_of(workdir: Path) -> Path:
    """Writes the weights of a finished run as a file, and returns it."""
    path = workdir / "weights.safetensors"
    if not path.is_file():
        subject = program.load_subject(workdir=workdir)
        (params, stats), _ = subject.load_weights()
        weight_files.save_safetensors(
            path,
            flatten_names(params) | flatten_names(stats),
            weight_files.export_metadata({"name": subject.name}),
        )
    return path


def run(plan: Plan, folder: Path | None, out: Path) -> list[dict[str, Any]]:
    """Trains everything and returns one record per run on the second half."""
    source = folder or write_digits(out / "digits")
    classes = sorted(p.name for p in (source / "train").iterdir() if p.is_dir())
    if len(classes) < 4:
        raise ValueError(f"{source}: {len(classes)} classes; two halves need four or more")
    half = len(classes) // 2
    first = prepare_part(source, classes[:half], out / "first_half")
    targets = {
        few: prepare_part(source, classes[half:], out / f"second_half_{few or 'all'}", few=few)
        for few in plan.amounts
    }
    rows, count = [], len(plan.seeds) * (1 + len(plan.amounts) * len(plan.ways))
    began, done = time.monotonic(), 0
    before = {}
    for seed in plan.seeds:
        workdir = out / f"pretrained_{seed}"
        found = trained(recipe(folder is None, first, plan.pretrain_steps, seed), workdir)
        before[seed], done = (weights_of(workdir), found["accuracy"]), done + 1
    for (few, prepared), way, seed in itertools.product(targets.items(), plan.ways, plan.seeds):
        config = recipe(folder is None, prepared, plan.steps, seed)
        # or how common classes are in training decides more than how they look
        config.classification.class_weights = "balanced"
        passes = plan.steps * config.train.batch_size / records(prepared)
        weights, reached = before[seed]
        for key, value in WAYS[way].items():
            if key == "init":
                config.train.init_weights, config.train.init_head = str(weights), "new"
            elif key == "optim.frozen_epochs":
                config.optim.frozen_epochs = value * passes
            else:
                section, name = key.split(".")
                config[section][name] = value
        place = f"{few or 'all'}_{way.replace(' ', '_')}_{seed}"
        facts = dict(way=way, few=few, seed=seed, records=records(prepared))
        found = trained(config, out / place)
        rows.append(facts | found | {"pretrained_accuracy": reached})
        done += 1
        eta = (time.monotonic() - began) / done * (count - done)
        print(
            f"[{done}/{count}] {way}, {few or 'all'} pictures per class, seed {seed}: "
            f"accuracy {100 * found['accuracy']:.1f} %, {found['seconds']:.0f} s, "
            f"ETA {eta / 60:.0f} min",
            flush=True,
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the mean test accuracy of each way over the seeds, by amount of data, as Markdown."""
    amounts = {row["few"]: row["records"] for row in rows}
    head = ["second half of the classes", *(f"{n:,} pictures, %" for n in amounts.values())]
    cells = []
    for way in dict.fromkeys(row["way"] for row in rows):
        line = [way]
        for few in amounts:
            found = [100 * r["accuracy"] for r in rows if (r["way"], r["few"]) == (way, few)]
            each = ", ".join(f"{value:.1f}" for value in found)
            line.append(f"{math.fsum(found) / len(found):.1f} ({each})")
        cells.append(line)
    return markdown_table(head, cells, left=(0,))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 2 for wrong input, 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", metavar="FOLDER", type=Path, help="train/, validation/, test/")
    parser.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "runs" / "finetune")
    parser.add_argument("--quick", action="store_true", help="one seed, a few steps")
    args = parser.parse_args(argv)
    folder = args.data and args.data.absolute()
    missing = [split for split in SPLITS if folder and not (folder / split).is_dir()]
    if missing:
        parser.error(f"--data={args.data} has no folder {', '.join(missing)}")
    start_up.use_eigen_convolutions()  # as train.py does
    start_up.keep_freed_memory()
    out = args.out.absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
        rows = run(QUICK if args.quick else Plan(), folder, out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    records = [{"suite": "environment", **harness.environment()}, *rows]
    text = "".join(json.dumps(json_value(record)) + "\n" for record in records)
    print("\n".join(["", *table(rows), "", f"Written: {write_file(out / 'finetune.jsonl', text)}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
