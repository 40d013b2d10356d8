"""The report of a training run: report.png (curves, confusion matrix, sample predictions) and
report.md (numbers).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from lambdanet.config import to_plain
from lambdanet.training.metrics import read_records

COLORS = {"train": "#8c96a3", "eval": "#1f6feb", "test": "#d1242f"}
RIGHT, WRONG = "#1a7f37", "#d1242f"
NUMBERED_CLASSES = (
    20  # a confusion matrix of more classes is drawn for the ones with the most errors
)
# sample predictions are chosen among so many records, so that no second pass over a large split is
# needed
SAMPLE_POOL = 512
SAMPLE_GRID = (4, 12)  # rows, columns
METRICS = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "loss": "loss",
    "ema_accuracy": "accuracy of averaged weights",
    "ema_loss": "loss of averaged weights",
}


def write_report(
    workdir: str | os.PathLike,
    *,
    config: ConfigDict,
    class_names: Sequence[str] = (),
    split: str = "",
    result: Mapping[str, Any] | None = None,
    batches: Iterable[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Writes report.png and report.md into the workdir.

    Args:
        workdir: a training run's directory; its metrics.jsonl gives the curves.
        config: the run's config.
        class_names: name of each class; empty = their numbers.
        split: the split that `result` belongs to.
        result: what `evaluate` returned for it: accuracy, top5, loss, count, and per record
            predictions, labels, ids and confidences; None = only the curves are drawn.
        batches: evaluation batches of that split (image uint8 [b, h, w, c], id, mask), for the
            sample predictions; only as many as needed are read.
        facts: further rows of the table, such as parameters, MACs, seconds.

    Returns:
        The two paths (png, md).
    """
    workdir = Path(workdir)
    records = read_curves(workdir)
    figure = Figure(figsize=(17, 10.5), layout="constrained", facecolor="white")
    model = config.model.name
    title = f"{model} on {config.data.source}"
    if result is not None:
        title += (
            f": {split} accuracy {100 * result['accuracy']:.2f} % ({int(result['count'])} images)"
        )
    figure.suptitle(title, fontsize=17, fontweight="bold")
    if result is None:
        left, right = figure.subplots(1, 2)
        draw_curves(left, records, "loss")
        draw_curves(right, records, "accuracy")
    else:
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.0, 1.12))
        loss, accuracy, confusion = top.subplots(1, 3, width_ratios=(1, 1, 1.05))
        draw_curves(loss, records, "loss")
        draw_curves(accuracy, records, "accuracy")
        draw_confusion(confusion, result["labels"], result["predictions"], class_names, split)
        draw_samples(bottom, result, batches, class_names)
    png, markdown = workdir / "report.png", workdir / "report.md"
    figure.savefig(png, dpi=110)
    markdown.write_text(_markdown(config, records, split, result, class_names, facts or {}))
    return png, markdown


def read_curves(workdir: str | os.PathLike) -> dict[str, list[dict[str, Any]]]:
    """Returns the records of metrics.jsonl by split and in the order of steps; of a repeated step
    the later one.
    """
    by_step: dict[str, dict[int, dict]] = {}
    for record in read_records(workdir):
        by_step.setdefault(record["split"], {})[record["step"]] = record
    return {split: [steps[s] for s in sorted(steps)] for split, steps in by_step.items()}


def confusion_matrix(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], num_classes: int
) -> np.ndarray:
    """Returns counts [true class, predicted class]."""
    flat = np.asarray(labels, np.int64) * num_classes + np.asarray(predictions, np.int64)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def draw_curves(axes: Axes, records: Mapping[str, list[dict]], metric: str) -> None:
    """Draws a metric over training steps: training, evaluation (live and EMA weights) and the final
    test value.
    """
    scale = 100.0 if metric == "accuracy" else 1.0
    for split in ("train", "eval", "test"):
        for key, style in ((metric, "-"), (f"ema_{metric}", "--")):
            points = [
                (r["step"], scale * r[key])
                for r in records.get(split, [])
                if r.get(key) is not None
            ]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            name = split + (" (EMA)" if key != metric else "")
            if len(points) == 1:
                axes.plot(
                    steps,
                    values,
                    "D" if key == metric else "s",
                    color=COLORS[split],
                    ms=7,
                    zorder=3,
                    label=f"{name} {values[-1]:.4g}",
                )
            else:
                width = 1.0 if split == "train" else 2.0
                axes.plot(
                    steps,
                    values,
                    style,
                    color=COLORS[split],
                    lw=width,
                    label=f"{name} {values[-1]:.4g}",
                )
    axes.set_title(
        metric.capitalize() + (" (%)" if metric == "accuracy" else ""),
        fontsize=13,
        fontweight="bold",
    )
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, title="last value", alignment="left")


def draw_confusion(
    axes: Axes, labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str], split: str
) -> None:
    """Draws the confusion matrix with counts; of more than NUMBERED_CLASSES classes, those with the
    most errors.
    """
    num_classes = len(class_names) or int(max(np.max(labels), np.max(predictions))) + 1
    counts = confusion_matrix(labels, predictions, num_classes)
    names = list(class_names) or [str(i) for i in range(num_classes)]
    title = f"Confusion on {split}"
    if num_classes > NUMBERED_CLASSES:
        errors = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
        shown = np.sort(np.argsort(-errors, kind="stable")[:NUMBERED_CLASSES])
        counts, names = counts[np.ix_(shown, shown)], [names[i] for i in shown]
        title += f" ({NUMBERED_CLASSES} of {num_classes} classes, most errors)"
    # Each row is coloured by its share, so that a few errors show beside hundreds of right answers.
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = 10 if len(names) <= 12 else 7
    for i, j in np.argwhere(counts):
        color = "white" if share[i, j] > 0.3 else (WRONG if i != j else "black")
        weight = "bold" if i != j else "normal"
        axes.text(
            j,
            i,
            str(counts[i, j]),
            ha="center",
            va="center",
            fontsize=size,
            color=color,
            fontweight=weight,
        )
    rotation = 0 if max(map(len, names)) <= 3 else 60
    axes.set_xticks(range(len(names)), [_short(n) for n in names], rotation=rotation, fontsize=size)
    axes.set_yticks(range(len(names)), [_short(n) for n in names], fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=13, fontweight="bold")


def draw_samples(
    figure: Any,
    result: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
) -> None:
    """Draws a grid of images with true class, predicted class and confidence: wrong ones first,
    then right ones.
    """
    rows, columns = SAMPLE_GRID
    labels, predictions = np.asarray(result["labels"]), np.asarray(result["predictions"])
    confidences, ids = np.asarray(result["confidences"]), np.asarray(result["ids"])
    images = _first_images(batches, SAMPLE_POOL)
    known = np.array([i for i, record in enumerate(ids) if int(record) in images], np.int64)
    wrong = known[labels[known] != predictions[known]]
    right = known[labels[known] == predictions[known]]
    wrong = wrong[np.argsort(-confidences[wrong], kind="stable")][: rows * columns]
    right = right[
        np.linspace(0, max(len(right) - 1, 0), min(len(right), rows * columns - len(wrong))).astype(
            int
        )
    ]
    chosen = np.concatenate([wrong, right])
    figure.suptitle(
        f"Predictions: the wrong ones first ({int((labels != predictions).sum())} of {len(labels)} "
        "are wrong)",
        fontsize=13,
        fontweight="bold",
    )
    grid = np.atleast_2d(figure.subplots(rows, columns))
    for axes in grid.flat:
        axes.axis("off")
    names = list(class_names) or [
        str(i) for i in range(int(max(labels.max(), predictions.max())) + 1)
    ]
    for axes, i in zip(grid.flat, chosen, strict=False):
        image = images[int(ids[i])]
        ok = labels[i] == predictions[i]
        axes.imshow(
            image.squeeze(-1) if image.shape[-1] == 1 else image,
            cmap="gray",
            interpolation="nearest",
        )
        said, true = _short(names[predictions[i]]), _short(names[labels[i]])
        text = (
            f"{said}  {100 * confidences[i]:.0f} %"
            if ok
            else f"{said}  {100 * confidences[i]:.0f} %  (is {true})"
        )
        axes.set_title(
            text,
            fontsize=10,
            color=RIGHT if ok else WRONG,
            fontweight="normal" if ok else "bold",
            pad=3,
        )


def _first_images(
    batches: Iterable[Mapping[str, Any]], count: int
) -> dict[int, UInt8[np.ndarray, "h w c"]]:
    images: dict[int, np.ndarray] = {}
    for batch in batches:
        for image, record, mask in zip(batch["image"], batch["id"], batch["mask"], strict=True):
            if mask:
                images[int(record)] = np.asarray(image)
        if len(images) >= count:
            break
    return images


def _short(name: str, length: int = 12) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _markdown(
    config: ConfigDict,
    records: Mapping[str, list[dict]],
    split: str,
    result: Mapping[str, Any] | None,
    class_names: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    rows: list[tuple[str, str]] = []
    sources = [
        (split, result or {}),
        *((f"last {name}", (records.get(name) or [{}])[-1]) for name in ("eval", "train")),
    ]
    for source, values in sources:
        for key, label in METRICS.items():
            if values.get(key) is not None and ("top5" not in key or len(class_names) > 5):
                value = values[key]
                rows.append(
                    (
                        f"{source} {label}",
                        f"{value:.4f}" if key.endswith("loss") else f"{100 * value:.2f} %",
                    )
                )
    if result is not None:
        rows.append((f"{split} images", f"{int(result['count']):,}"))
    speeds = [r["images_per_second"] for r in records.get("train", []) if "images_per_second" in r]
    if speeds:
        rows.append(("training images per second (median)", f"{np.median(speeds):,.0f}"))
    rows += [
        (key, f"{value:,}" if isinstance(value, int) else str(value))
        for key, value in facts.items()
    ]
    options = ", ".join(f"{k}={v!r}" for k, v in to_plain(config.model).items() if k != "name")
    data, optim, train, own = config.data, config.optim, config.train, config.classification
    length = f"{train.steps} steps" if train.steps else f"{train.epochs:g} epochs"
    settings = [
        ("model", config.model.name + (f" ({options})" if options else "")),
        (
            "data",
            f"{data.source}, trained on {data.train_split}, "
            f"{data.image_size[0]}x{data.image_size[1]}x{data.channels}",
        ),
        (
            "optimiser",
            f"{optim.name}, lr {optim.lr:g}, {optim.schedule}, weight decay {optim.weight_decay:g}",
        ),
        (
            "training",
            f"batch {train.batch_size}, {length}, label smoothing {own.label_smoothing:g}, seed "
            f"{config.seed}",
        ),
    ]
    lines = [
        f"# {config.model.name} on {data.source}",
        "",
        "![curves, confusion matrix, predictions](report.png)",
        "",
    ]
    lines += ["| result | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows), ""]
    lines += ["| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in settings), ""]
    if result is not None:
        lines += _common_confusions(result, class_names)
    if own.label_smoothing or own.mixup_alpha or own.cutmix_alpha or train.auxiliary_losses:
        lines.append(
            "The training loss includes label smoothing, mixing and auxiliary losses, the other "
            "losses do not.\n"
        )
    lines.append("Every setting is in config.json, every logged step in metrics.jsonl.")
    return "\n".join(lines) + "\n"


def _common_confusions(
    result: Mapping[str, Any], class_names: Sequence[str], most: int = 5
) -> list[str]:
    labels, predictions = np.asarray(result["labels"]), np.asarray(result["predictions"])
    num_classes = len(class_names) or int(max(labels.max(), predictions.max())) + 1
    counts = confusion_matrix(labels, predictions, num_classes)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = [(i // num_classes, i % num_classes) for i in order if counts.flat[i]]
    if not pairs:
        return []
    names = list(class_names) or [str(i) for i in range(num_classes)]
    rows = [f"| {names[i]} | {names[j]} | {counts[i, j]} |" for i, j in pairs]
    return [
        "Most frequent confusions:",
        "",
        "| true | predicted | images |",
        "|---|---|---|",
        *rows,
        "",
    ]
