"""Accuracy and speed of features that are carried from key frames, by how far key frames are apart:

    python -m benchmarks.propagation --data=moving_digits --json=FILE --workdirs none=DIR NAME=DIR
    python -m benchmarks.propagation --json=FILE --draw=docs/images/propagation.png

The workdirs are of runs of configs/moving_digits.py:propagate,NAME or configs/own_videos.py:NAME;
'copy' has the weights of 'none', unless it has a workdir. Every frame of every clip of the test
split counts. Appends what is measured to the file, as JSON, and prints what the file has of this
set and split as a table; --draw makes the plot of all that it has. --speed measures speed again,
which asks for a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Bool, Int, UInt8
from matplotlib.figure import Figure
from scipy import ndimage

import eval as program
from benchmarks.arguments import file_to_write, read_lines
from lambdanet import data
from lambdanet.analysis.subject import Subject
from lambdanet.analysis.text import markdown_table
from lambdanet.analysis.video_runner import VideoRunner
from lambdanet.atomic import write_file
from lambdanet.tasks.segmentation_classes import class_iou
from lambdanet.training import start_up

INTERVALS, REACH = (1, 2, 5, 10), 2
TIMED_CLIPS, TIMED_FRAMES, TURNS = 3, 16, 10
TOLERANCE = 0.008  # of the diagonal, for boundaries: DAVIS
NAMES = {
    "none": "per frame",
    "copy": "copy",
    "deep_feature_flow": "feature flow (DFF)",
    "neighborhood_propagation": "neighbourhood attention",
    "flow_guided_aggregation": f"flow-guided aggregation (FGFA, K = {REACH})",
    "sparse_recursion": "sparse recursion",
}
COLORS = ("#24292f", "#8c96a3", "#1f6feb", "#1a7f37", "#d1570a", "#8250df")
COLUMNS = ("network", "l", "mIoU %", "F %", "as l = 1, %", "key ms", "between ms", "frames/s")
IGNORED = 255
Clip = tuple[UInt8[np.ndarray, "t h w c"], UInt8[np.ndarray, "t h w"]]
Record = dict[str, Any]


def clips(subject: Subject, split: str) -> Iterator[Clip]:
    """Yields all frames of every clip of a split as evaluation has them, and their label maps."""
    config = data.attributes(subject.config)
    source = data.open_source(subject.config.data, split, subject.info.features)
    for index in range(len(source)):
        record, own = source.read(index), copy.copy(config)
        own.propagation = copy.copy(config.propagation)
        own.propagation.eval_frames = len(record.fields["frames"])
        found = subject.task.example(record, subject.info, own, None)
        yield np.concatenate([found["frames"], found["image"][None]]), found["label_map"]


def subject_of(name: str, workdir: str) -> tuple[Subject, nnx.Module]:
    """Returns a run and its model in the evaluation view; a run of 'none' can be made 'copy', since
    neither has weights of its own.

    Raises:
        ValueError: the run is of another propagation.
    """
    subject = program.load_subject(None, workdir=workdir)
    trained = subject.config.model.propagation.name
    if (name, trained) == ("copy", "none"):
        changed = {"model.propagation": "{'name': 'copy'}"}
        subject = program.load_subject(None, workdir=workdir, overrides=changed)
    elif trained != name:
        raise ValueError(f"{name}={workdir}: that run is of model.propagation.name={trained!r}")
    weights, _ = subject.load_weights()
    return subject, nnx.merge(subject.graphdef, *weights)


def confusion(
    truth: UInt8[np.ndarray, "t h w"], said: UInt8[np.ndarray, "t h w"], classes: int
) -> Int[np.ndarray, "k k"]:
    """Counts pixels by (true, predicted) class; those without a class count nowhere."""
    known = truth != IGNORED
    pairs = truth[known].astype(np.int64) * classes + said[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def mean_iou(counts: Int[np.ndarray, "k k"]) -> float:
    """Returns the mean over the classes that there are, as in the task."""
    right, true = np.diag(counts), counts.sum(1)
    return float(np.nanmean(class_iou(right, true + counts.sum(0) - right, true)))


def boundary_f(truth: UInt8[np.ndarray, "h w"], said: UInt8[np.ndarray, "h w"]) -> float:
    """Returns the F value of the boundaries between classes: the harmonic mean of the shares of
    predicted boundary pixels near a true one and of true ones near a predicted one; 1 where there
    are none in either.

    Source of the measure: DAVIS (Perazzi et al., 2016), which approximates it by discs as well.
    """
    edges = [_edges(labels) for labels in (truth, said)]
    if not any(edge.any() for edge in edges):
        return 1.0
    radius = max(round(TOLERANCE * float(np.hypot(*truth.shape))), 1)
    near = [ndimage.distance_transform_edt(~e) <= radius if e.any() else e for e in edges]
    recall, precision = ((edges[i] & near[1 - i]).sum() / max(edges[i].sum(), 1) for i in (0, 1))
    return 2 * precision * recall / max(precision + recall, 1e-9)


def _edges(labels: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels whose right or lower neighbour is of another class."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def accuracy(
    name: str, workdir: str, intervals: Sequence[int], split: str, boundaries: bool
) -> Iterator[Record]:
    """Yields what one network finds on all clips of a split, at every interval."""
    subject, model = subject_of(name, workdir)
    classes, whole, first = model.num_classes, list(clips(subject, split)), []
    for every in intervals:
        runner = VideoRunner(model, subject.config, every=every, reach=REACH, adaptive=False)
        counts, own, scores, keys = np.zeros((2, classes, classes), np.int64), [], [], 0
        for number, (frames, truth) in enumerate(whole):
            shown = list(runner.run(frames))
            said, keys = np.stack([s.result for s in shown]), keys + sum(s.is_key for s in shown)
            counts[0] += confusion(truth, said, classes)
            own.append(said)
            before = first[number] if first else said
            counts[1] += confusion(np.where(truth == IGNORED, IGNORED, before), said, classes)
            if boundaries:
                scores += [boundary_f(*seen(t, s)) for t, s in zip(truth, said, strict=True)]
        first = first or own
        yield dict(
            kind="accuracy",
            split=split,
            network=name,
            interval=every,
            mean_iou=mean_iou(counts[0]),
            boundary_f=float(np.mean(scores)) if scores else None,
            as_first=mean_iou(counts[1]),
            frames=sum(map(len, own)),
            keys=keys,
        )


def speed(workdirs: Mapping[str, str], split: str) -> Iterator[Record]:
    """Yields the milliseconds of a key frame and of a frame between two, for every network: medians
    over the frames of some clips, all networks in turns, warm and waited for.
    """
    runners, seconds = {}, {}
    for name, workdir in workdirs.items():
        subject, model = subject_of(name, workdir)
        runners[name] = VideoRunner(model, subject.config, every=4, reach=REACH, adaptive=False)
        seconds[name] = {True: [], False: []}
        whole = list(itertools.islice(clips(subject, split), TIMED_CLIPS))
    for turn in range(TURNS + 1):
        for name, runner in runners.items():
            for frames, _ in whole:
                for shown in runner.run(frames[:TIMED_FRAMES]):
                    if turn:  # the first one compiles
                        seconds[name][shown.is_key].append(shown.seconds)
    for name, found in seconds.items():
        key, between = (
            1e3 * statistics.median(found[k]) if found[k] else None for k in (True, False)
        )
        yield dict(kind="speed", network=name, key_ms=key, between_ms=between)


def seen(truth: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the rows and columns that have no label at all, the padding."""
    known = truth != IGNORED
    rows, columns = known.any(1), known.any(0)
    return truth[rows][:, columns], said[rows][:, columns]


def joined(records: Sequence[Record]) -> list[Record]:
    """Returns the newest accuracy of every set, split, network and interval, with its speed:
    key_ms, between_ms and, by how many of its frames are key frames, frames_per_second.
    """
    speeds = {(r["data"], r["network"]): r for r in records if r["kind"] == "speed"}
    found = {}
    for r in records:
        timed = speeds.get((r["data"], r["network"]))
        if r["kind"] == "accuracy" and timed:
            between = (r["frames"] - r["keys"]) * (timed["between_ms"] or 0.0)
            spent = r["keys"] * timed["key_ms"] + between
            rate = {"frames_per_second": 1e3 * r["frames"] / spent}
            key = r["data"], r["split"], r["network"], r["interval"]
            found[key] = {**timed, **r, **rate}
    return list(found.values())


def table(records: Sequence[Record]) -> list[str]:
    """Returns the lines of the table of `joined` records in Markdown."""

    def shown(value: float | None, form: str, factor: float = 1) -> str:
        return "" if value is None else format(factor * value, form)

    rows = [
        (
            NAMES[r["network"]],
            str(r["interval"]) if r["network"] != "none" else "",
            shown(r["mean_iou"], ".2f", 100),
            shown(r["boundary_f"], ".1f", 100),
            shown(r["as_first"], ".1f", 100),
            shown(r["key_ms"], ".2f"),
            shown(r["between_ms"] if r["interval"] > 1 else None, ".2f"),
            shown(r["frames_per_second"], ".0f"),
        )
        for r in sorted(records, key=lambda r: list(NAMES).index(r["network"]))
    ]
    return markdown_table(COLUMNS, rows, left={0})


def draw(records: Sequence[Record], path: Path) -> None:
    """Draws mean IoU of `joined` records against frames per second, one panel for each set and
    split, one line for each network; the numbers at the points are l.
    """
    sets = list(dict.fromkeys(f"{r['data']}, {r['split']}" for r in records))
    figure = Figure(figsize=(7.2 * len(sets), 5.6), layout="constrained", facecolor="white")
    for axes, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for color, network in zip(COLORS, NAMES, strict=True):
            points = [r for r in records if f"{r['data']}, {r['split']}" == name]
            points = [r for r in points if r["network"] == network]
            points = sorted(points, key=lambda r: r["interval"])
            x = [r["frames_per_second"] for r in points]
            y = [100 * r["mean_iou"] for r in points]
            if points:
                axes.plot(x, y, "-o", color=color, label=NAMES[network], ms=5, lw=1.3)
            for place, r in zip(zip(x, y, strict=True), points if len(points) > 1 else (),
                                strict=False):  # fmt: skip
                axes.annotate(
                    str(r["interval"]), place, (4, 4), textcoords="offset points",
                    color=color, fontsize=8,
                )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        axes.set_title(f"{name}: mean IoU against speed", fontsize=13, fontweight="bold")
        axes.set_xlabel("frames per second (log)")
        axes.set_ylabel("mean IoU, %")
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    write_file(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def main(argv: list[str] | None = None) -> None:
    """Measures what has a workdir, or draws what is in the file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.propagation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", default="own", help="what the data is called in table and plot")
    parser.add_argument("--workdirs", nargs="+", default=[], metavar="NAME=DIR", help="runs")
    parser.add_argument(
        "--json", type=file_to_write, metavar="FILE", required=True, help="lines are appended to it"
    )
    parser.add_argument("--speed", action="store_true", help="measure speed alone")
    parser.add_argument("--split", default="test", help="of the data, or a part: 'test[:10]'")
    parser.add_argument("--boundaries", action="store_true", help="F of boundaries, too")
    parser.add_argument("--draw", metavar="PNG", help="draw what is in the file")
    args = parser.parse_args(argv)
    file = Path(args.json)
    if args.draw:
        try:
            draw(joined(read_lines(file)), Path(args.draw))
        except ValueError as error:
            parser.error(str(error))
        return
    workdirs = dict(entry.split("=", 1) for entry in args.workdirs)
    if not workdirs or set(workdirs) - set(NAMES):
        names = ", ".join(NAMES)
        parser.error(f"--workdirs={args.workdirs}; allowed: NAME=DIR with a name of {names}")
    start_up.prepare_cpu()
    if "none" in workdirs:
        workdirs.setdefault("copy", workdirs["none"])
    workdirs = {name: workdirs[name] for name in NAMES if name in workdirs}
    own = {"data": args.data}
    with open(file, "a") as out:
        for name, workdir in workdirs.items() if not args.speed else ():
            intervals = INTERVALS[:1] if name == "none" else INTERVALS
            for record in accuracy(name, workdir, intervals, args.split, args.boundaries):
                print(json.dumps({**own, **record}), file=out, flush=True)
        for record in speed(workdirs, args.split):
            print(json.dumps({**own, **record}), file=out, flush=True)
    found = [
        r for r in joined(read_lines(file)) if (r["data"], r["split"]) == (args.data, args.split)
    ]
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
