"""What `eval.py --mode=predict` does: pictures or clips through a network, and what it says of them
as a table, as files for other programs, and drawn.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lambdanet.analysis import inputs
from lambdanet.analysis.console import say, show_table
from lambdanet.analysis.predict import Outcome, Predictor, counted
from lambdanet.analysis.result_folder import check_replaceable, replaced
from lambdanet.analysis.subject import Subject
from lambdanet.data.class_folders import listing, printable
from lambdanet.data.image_folder import progress_bars
from lambdanet.data.paste_masks import PastedMasks
from lambdanet.tasks.segmentation_files import save_png

LINES, TABLE = "predictions.jsonl", "predictions.csv"
SHOWN = 20  # lines of the printed table
DIGITS = 6  # behind the point, of probabilities, shares and scores in files; boxes have 2


def run_predict(
    subject: Subject,
    folder: Path,
    given: Sequence[str],
    *,
    batch_size: int = 0,
    top: int | None = None,
    fps: float | None = None,
) -> dict[str, Any]:
    """Predicts and writes <folder>/predictions.jsonl, one object a line: file, what `Predictor`
    returns but for arrays, and the pictures that were drawn; predictions.csv, one row for each
    class or object; NAME_....png, drawn; and of segmentation legend.png, of detection
    predictions.json in COCO's form, whose file names are relative to the folder of the inputs.

    What an earlier call wrote there is replaced when all is done; until then, and if this fails,
    it stays.

    Args:
        subject: of `load_subject`.
        folder: where to.
        given: files, folders and patterns, see `inputs.find_inputs`.
        batch_size: see `Predictor`.
        top: see `Predictor`.
        fps: see `Predictor`.

    Returns:
        What is to be known of the call; `problems` are the inputs that could not be read.

    Raises:
        ValueError: nothing to predict, or nothing of it can be read; inputs in `folder`; something
            else is there; options that do not fit.
    """
    kind = subject.task.predictions()
    found = inputs.find_inputs(given, kind.READS)
    _check_no_video(subject, kind, found)
    inputs.check_outside(found.named.values(), folder)
    check_replaceable(folder, LINES)
    predictor = Predictor(subject, batch_size=batch_size, top=top, fps=fps)
    count, start = len(found.named), time.perf_counter()
    for note in (*predictor.notes, _passed_over(found)):
        if note:
            say(note)
    say(
        f"{counted(count, kind.READS)} in batches of {predictor.batch_size(count)}; the first one "
        "takes longer, as the program is compiled."
    )
    with replaced(folder) as fresh:
        writer = _Writer(fresh, found, predictor)
        with progress_bars() as bars:
            outcomes = predictor.stream(list(found.named.values()))
            for name, one in bars.track(
                zip(found.named, outcomes, strict=True), total=count, description="predicting"
            ):
                writer.add(name, one)
        writer.finish()
        if not writer.written:
            what = f"none of the {count} {kind.READS}s can be read"
            what = what if count > 1 else f"the {kind.READS} cannot be read"
            raise ValueError(f"{what}:{listing(writer.problems)}")
    seconds = time.perf_counter() - start
    title = f"{subject.name} from {predictor.source}: predictions"
    show_table(title, (kind.READS, kind.ITEMS), writer.rows)
    if writer.written > SHOWN:
        say(f"... and {writer.written - SHOWN:,} more in {TABLE}.")
    for note in writer.notes:
        say(note)
    say(f"Written: {folder} ({LINES}, {TABLE}, pictures)")
    return {
        "source": predictor.source,
        "task": subject.config.task,
        "inputs": list(given),
        "count": writer.written,
        "seconds": seconds,
        "per_second": writer.written / seconds,
        "written": str(folder),
        "notes": [*predictor.notes, *writer.notes],
        "problems": writer.problems,
        "what": kind.READS,
    }


class _Writer:
    """The files of results, one input after the other."""

    def __init__(self, folder: Path, found: inputs.Inputs, predictor: Predictor):
        self.folder, self.predictor, self.kind = folder, predictor, predictor.kind
        self.root = found.root
        self.config, self.names = predictor._config, predictor.names
        options = dict(encoding="utf-8", errors="surrogateescape", newline="")
        self.lines = open(folder / LINES, "w", **options)
        self.table = open(folder / TABLE, "w", **options)
        self.csv = csv.writer(self.table)
        self.csv.writerow(("file", *self.kind.COLUMNS))
        make = getattr(self.kind, "collector", None)
        self.collector = make(self.names, predictor.subject.known_info) if make else None
        self.rows: list[tuple[str, str]] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.written = 0

    def add(self, name: str, one: Outcome) -> None:
        """Writes what was found of one input."""
        file = shown_path(one.source)
        if one.note:
            self.notes.append(f"{printable(file)}: {one.note}.")
        problem, drawn = one.problem, []
        if not problem:
            try:  # the pixels are read anew: all of them would not fit into the memory
                contents = self.predictor.contents(one.source)[0]
                drawn = list(
                    self.kind.drawings(contents, one.values, self.names, self.config).items()
                )
            except Exception as error:  # damaged files raise many types
                problem = inputs.why_unreadable(error)
        if problem:
            self.problems.append(f"{printable(file)}: {problem}")
            return
        pictures = {kind: f"{name}_{kind}.png" for kind, _ in drawn}
        for kind, picture in drawn:
            save_png(self.folder / pictures[kind], picture)
        values = plain(one.values)
        line = {"file": file, **values, "drawn": pictures}
        self.lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.csv.writerows((file, *_flat(item)) for item in values[self.kind.ITEMS])
        if self.collector:
            self.collector.add(one.source.relative_to(self.root).as_posix(), one.values)
        if len(self.rows) < SHOWN:
            self.rows.append((file, self.kind.summary(one.values)))
        self.written += 1

    def finish(self) -> None:
        """Closes the files and writes those about all inputs."""
        self.lines.close()
        self.table.close()
        if self.collector:
            self.notes += self.collector.write(self.folder)


def shown_path(path: Path) -> str:
    """Returns a path relative to the working directory where it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `Predictor` gives for one input as JSON values: without arrays, numbers rounded
    to `DIGITS`, boxes to 2 digits.
    """

    def rounded(key: str, value: Any) -> Any:
        if key == "box":
            return [round(edge, 2) for edge in value]
        return round(value, DIGITS) if isinstance(value, float) else value

    return {
        key: [{k: rounded(k, v) for k, v in item.items()} for item in value]
        if isinstance(value, list)
        else value
        for key, value in values.items()
        if not isinstance(value, (np.ndarray, PastedMasks))
    }


def _flat(item: Mapping[str, Any]) -> list[Any]:
    return [v for value in item.values() for v in (value if isinstance(value, list) else [value])]


def _passed_over(found: inputs.Inputs) -> str:
    files = found.passed_over
    if not files:
        return ""
    more = ", ..." * (len(files) > 3)
    shown = ", ".join(printable(p.name) for p in files[:3])
    return f"{counted(len(files), 'other file')} passed over: {shown}{more}"


def _check_no_video(subject: Subject, kind: Any, found: inputs.Inputs) -> None:
    """Raises ValueError for videos where pictures are read, with the way to go."""
    videos = [p for p in found.named.values() if p.suffix.lower() in inputs.VIDEOS]
    if kind.READS == "clip" or not videos:
        return
    shown = shown_path(videos[0])
    way = f"cut its frames out (`ffmpeg -i {shown} frames/%06d.png`) and name their folder"
    if subject.config.task.startswith("video_"):
        way = f"`--mode=video --input={shown}` runs it frame after frame"
    raise ValueError(
        f"--input={shown}: a video, and --mode=predict with the task {subject.config.task!r} reads "
        f"pictures; {way}"
    )
