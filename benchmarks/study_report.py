"""The document of the study: what is measured so far, decisions, tables and pictures, from records
alone, and the hand-written reading, which is kept.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import reading, study_decisions, study_plots, study_records
from benchmarks.study_data import DIGEST, ORIGIN
from benchmarks.study_decisions import p_value, signed
from benchmarks.study_plan import BASE, Scope
from benchmarks.study_results import Result, results
from benchmarks.study_variations import GROUPS
from lambdanet.analysis.text import markdown_table, markdown_text
from lambdanet.atomic import write_file

COMMAND = "make study"
TITLES = {"photos": "Photographs", "cued": "Cued digits"}
Record = dict[str, Any]


def write(
    records: list[Record], scope: Scope, *, document: Path, images: Path, records_file: Path
) -> None:
    """Writes the document, keeping its reading, and its pictures.

    Args:
        records: of the file.
        scope: what it is about.
        document: where it is written.
        images: folder of the pictures.
        records_file: where the records lie, for the link.
    """
    by_hand = reading.read(document, COMMAND)
    links = [Path(os.path.relpath(p, document.parent)).as_posix() for p in (images, records_file)]
    text, photos = markdown(records, scope, by_hand, *links)
    study_plots.draw_accuracy(photos, images / "study_accuracy.png")
    study_plots.draw_robustness(photos, images / "study_robustness.png")
    write_file(document, text)


def markdown(
    records: list[Record], scope: Scope, by_hand: str, images: str, records_file: str
) -> tuple[str, dict[str, Result]]:
    """Returns the whole document, and the results on the photographs.

    Args:
        records: of the file.
        scope: what the document is about.
        by_hand: the hand-written part.
        images: folder of the pictures, relative to the document.
        records_file: likewise.
    """
    now = study_records.current(records, scope.recipes)
    found = {task: results(now, task, names) for task, names in scope.expected.items()}
    photos, cued = found["photos"], found.get("cued", {})
    any_photo = any(r.accuracy is not None for r in photos.values())
    parts = [
        "# A study on real photographs",
        "",
        f"Written by `{COMMAND}` (`python -m benchmarks.study`) but for the section Reading; every "
        f"number stands in [{records_file.rpartition('/')[2]}]({records_file}) or follows from "
        "the answers to single pictures that it holds, with the command of every run.",
        "",
        *_state(records, now, found, scope.seeds),
        "",
        "## Reading",
        "",
        reading.begin(COMMAND),
        by_hand,
        reading.END,
        "",
        "## Which attention when",
        "",
        "By fixed rules from the tables below ([study_decisions.py](../benchmarks/"
        "study_decisions.py)). A difference is called shown where its corrected p-value is below "
        f"{study_decisions.SHOWN}; a best mean that is not shown is a guess.",
        "",
        *markdown_table(
            ("wanted", "take", "because"), study_decisions.table(photos, cued), left=(0, 1, 2)
        ),
        "",
        f"## {TITLES['photos']}",
        "",
        *([f"![accuracy against cost]({images}/study_accuracy.png)", ""] if any_photo else []),
        *_table(photos),
        "",
        "## Robustness",
        "",
        "Test accuracy, %, of the same networks on varied pictures: shifted by 3/32 of the side up,"
        " down, left and right (their mean), with Gaussian noise of 16 and 32 of 255, and blurred "
        "by Gaussians of 1 and 2 pixels. No network saw noise or blur in training.",
        "",
        *([f"![robustness]({images}/study_robustness.png)", ""] if any_photo else []),
        *_robustness(photos),
        "",
        *(_cued(cued) if cued else []),
        *_method(records),
    ]
    return "\n".join(parts).rstrip() + "\n", photos


def _cued(cued: Mapping[str, Result]) -> list[str]:
    return [
        f"## {TITLES['cued']}",
        "",
        "Two tinted digits and a cue far apart ([cued_digits.py](../configs/cued_digits.py)); a "
        "network that cannot bind the cue is right about half the time. Step times are in "
        "[comparison.md](comparison.md).",
        "",
        *_table(cued),
        "",
    ]


def _state(
    records: list[Record], now: list[Record], found: Mapping[str, dict[str, Result]], seeds: Any
) -> list[str]:
    lines = []
    for task, of_task in found.items():
        counts = [sum(seed in r.seeds for r in of_task.values()) for seed in seeds]
        done = ", ".join(
            f"seed {seed}: {'complete' if count == len(of_task) else f'{count} of {len(of_task)}'}"
            for seed, count in zip(seeds, counts, strict=True)
        )
        lines.append(f"- {TITLES[task]}, {len(of_task)} networks: {done}.")
        for r in of_task.values():
            if r.failure:
                lines.append(f"- Failed: `{r.name}`, {markdown_text(r.failure)}")
    timed = sum(r.ratio is not None for r in found["photos"].values())
    lines.append(f"- Step times: {timed} of {len(found['photos'])}.")
    others = sum("recipe" in r for r in records) - len(now)
    if others:
        lines.append(f"- {others} records of other recipes are in the file and not shown.")
    return ["Measured so far:", "", *lines]


def _table(of_task: Mapping[str, Result]) -> list[str]:
    head = ["#", "network", "kind", "parameters", "MMACs", f"step x {BASE}", "seeds"]
    head += ["accuracy %", "95 %", f"less {BASE}", "95 %", "p", "corrected p"]
    several = any(len(r.seeds) > 1 for r in of_task.values())
    head += ["each seed"] * several
    rows = []
    for r in of_task.values():
        row = [str(r.number), f"`{r.name}`", r.kind]
        if r.accuracy is None:
            if r.failure:
                rows.append([*row, *[""] * 4, "failed", *[""] * (5 + several)])
            continue
        row += [f"{r.parameters:,}", f"{r.macs / 1e6:.2f}"]
        row += ["" if r.ratio is None else f"{r.ratio:.2f}", str(len(r.seeds))]
        row += [f"{r.accuracy:.2f}", f"{r.low:.1f} to {r.high:.1f}"]
        d = r.difference
        if d is None:
            row += [""] * 4
        else:
            row += [signed(d.mean), f"{signed(d.low)} to {signed(d.high)}"]
            row += [p_value(d.p), p_value(d.corrected)]
        row += [", ".join(f"{a:.1f}" for a in r.by_seed)] * several
        rows.append(row)
    return _with_missing(head, rows, of_task)


def _with_missing(
    head: list[str], rows: list[list[str]], of_task: Mapping[str, Result]
) -> list[str]:
    """Returns a table, and below it the names of the networks that it lacks."""
    missing = [f"`{r.name}`" for r in of_task.values() if r.accuracy is None and not r.failure]
    below = ["", f"Missing, {len(missing)} of {len(of_task)}: {', '.join(missing)}."]
    return [*markdown_table(head, rows, left=(1, 2)), *(below if missing else [])]


def _robustness(photos: Mapping[str, Result]) -> list[str]:
    head = ["#", "network", "kind", "unvaried", *(group.replace("_", " ") for group in GROUPS)]
    rows = []
    for r in photos.values():
        if r.accuracy is not None:
            cells = [f"{r.varied[group]:.1f}" for group in GROUPS]
            rows.append([str(r.number), f"`{r.name}`", r.kind, f"{r.accuracy:.1f}", *cells])
    return _with_missing(head, rows, photos)


def _method(records: list[Record]) -> list[str]:
    lines = ["## How it was measured", ""]
    runs = [r for r in records if r["suite"] == "net"]
    steps = [r for r in records if r["suite"] == "step"]
    for data in (r for r in records if r["suite"] == "data"):
        origin = f"from {ORIGIN}" if data["digest"] == DIGEST else "not those of the project"
        images = ", ".join(f"{count:,} {split}" for split, count in data["images"].items())
        twice = ", ".join(f"{count} of {pair}" for pair, count in data["duplicates"].items())
        counts = sum(map(collections.Counter, data["classes"].values()), collections.Counter())
        most, least = max(counts, key=counts.get), min(counts, key=counts.get)
        lines.append(
            f"- **Photographs**: {images}, {len(counts)} classes, {markdown_text(most)} "
            f"{counts[most]} to {markdown_text(least)} {counts[least]}; "
            f"{origin}. The same picture in two splits, byte by byte: {twice}. Prepared by "
            "`python -m lambdanet.data.prepare`."
        )
    versions = sorted({f"Python {r['python']}, jax {r['jax']}, {r['device']}" for r in runs})
    lines += [
        "- **Networks**: [configs/study.py](../configs/study.py). A mixer replaces the 3x3 "
        "convolutions of the second and third stage, a context block stands after the first and "
        "the second; the families are small forms of four stages. One recipe for all, chosen on "
        f"the validation split with `{BASE}` alone; the test split was read once by each network.",
        f"- **Machine**: {'; '.join(versions) or 'none yet'}; one core for each run, float32. Step "
        f"times: forward, backward and update, each in turns with `{BASE}`, medians"
        + (f", {sorted({r['cores'] for r in steps})[-1]} cores." if steps else "."),
        "- **Intervals**: percentile bootstrap of 10,000 resamples over test images and, where "
        "there are several, seeds. Three seeds show too little of how much trainings vary.",
        f"- **Tests** against `{BASE}`, paired by picture. With one seed McNemar's exact test, "
        "which is about the networks as trained; with several a t-test whose variance is that of "
        "both networks over their seeds and that of their difference over pictures "
        "([paired_statistics.py](../benchmarks/paired_statistics.py)), which is about training "
        "again, too. Corrected: by Holm's procedure over all networks of a task, so that the "
        "chance of any false one is at most 5 %.",
    ]
    return lines
