"""The report of a training run: report.png (curves, and the task's own pictures) and report.md
(numbers).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from ml_collections import ConfigDict

from lambdanet import tasks
from lambdanet.analysis.figure_text import DPI, figure_text, literal_text
from lambdanet.analysis.text import markdown_table, markdown_text
from lambdanet.atomic import write_file
from lambdanet.config import to_plain
from lambdanet.training.metrics import read_records

COLORS = {"train": "#8c96a3", "eval": "#1f6feb", "test": "#d1242f"}
AVERAGED = "ema_"  # prefix of the averaged weights' values

Panels = Callable[[SubFigure, SubFigure], list[str]]


class Report(NamedTuple):
    """What `write_report` wrote.

    Attributes:
        png: the picture; None = it could not be written.
        markdown: the text; None likewise.
        problem: what is missing and why, for the run's log; '' = nothing.
    """

    png: Path | None
    markdown: Path | None
    problem: str

    @property
    def message(self) -> str:
        """Where it is, and what is missing, for the console."""
        missing = f"\nthe report is not whole: {self.problem}" if self.problem else ""
        return f"report: {self.markdown}\n        {self.png}{missing}"


def write_report(
    workdir: str | os.PathLike,
    *,
    config: ConfigDict,
    metrics: Mapping[str, str],
    split: str = "",
    result: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    panels: Panels | None = None,
) -> Report:
    """Writes report.png and report.md into the workdir.

    It comes after the last step of a run, which it must not turn into a failed one: it never
    raises, but leaves out what fails, and says so in the text and in what it returns.

    Args:
        workdir: a training run's directory; its metrics.jsonl gives the curves.
        config: the run's config.
        metrics: name of each metric -> 'max' (better when higher; in [0, 1], shown in percent) or
            'min' (shown as a number). The first is the headline: title and second curve.
        split: the split that `result` belongs to.
        result: those metrics, as far as they were measured, each also with the prefix 'ema_' if
            averaged weights were kept, and `count`; None = no evaluation.
        facts: further rows of the table, such as parameters, MACs, seconds.
        panels: draws the task's pictures into two figures, beside the curves and below them, and
            returns lines of Markdown; None = only the curves are drawn.

    Returns:
        The two paths, and what went wrong.
    """
    workdir, problems, records, lines = Path(workdir), [], {}, []
    png, markdown = workdir / "report.png", workdir / "report.md"
    try:
        records = read_curves(workdir)
    except Exception as error:  # damaged by hand or by a full disk; the numbers are still known
        problems.append(f"no curves: {_say(error)}")
    headline = next(iter(metrics))
    title = f"{config.model.name} on {config.data.source}"
    if result is not None and headline in result:
        value = _value(metrics, headline, result[headline])
        title += f": {split} {_label(headline)} {value} ({int(result['count']):,} images)"
    for drawn in (panels, None) if panels else (None,):
        try:
            with literal_text():
                figure, lines = _draw(records, metrics, title, drawn)
                # Laid out and written by matplotlib at once: an error in it is the panels' too.
                write_file(png, lambda path, figure=figure: figure.savefig(path, format="png"))
            break
        except Exception as error:
            problems.append(f"no {'pictures of the task' if drawn else 'picture'}: {_say(error)}")
    else:
        png = None
    try:
        text = _markdown(config, metrics, records, split, result, facts or {}, png, lines, problems)
        write_file(markdown, text)
    except Exception as error:
        markdown = None
        problems.append(f"no text: {_say(error)}")
    return Report(png, markdown, "; ".join(problems))


def _say(error: Exception) -> str:
    """Returns an error in a line; where it was raised is shown by train.py --verbosity=1."""
    logging.getLogger(__name__).debug("in the report", exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def read_curves(workdir: str | os.PathLike) -> dict[str, list[dict[str, Any]]]:
    """Returns the records of metrics.jsonl by split and in the order of steps; of a repeated step
    the later one.
    """
    by_step: dict[str, dict[int, dict]] = {}
    for record in read_records(workdir):
        by_step.setdefault(record["split"], {})[record["step"]] = record
    return {split: [steps[s] for s in sorted(steps)] for split, steps in by_step.items()}


def _draw(
    records: Mapping[str, list[dict]], metrics: Mapping[str, str], title: str, panels: Panels | None
) -> tuple[Figure, list[str]]:
    """Returns the picture, and the Markdown lines of the panels."""
    size = (17, 10.5) if panels else (17, 6)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    figure.suptitle(figure_text(title, 1150, size=17, weight="bold"), fontsize=17, weight="bold")
    curves, lines = figure, []
    if panels:
        top, below = figure.subfigures(2, 1, height_ratios=(1.0, 1.12))
        curves, side = top.subfigures(1, 2, width_ratios=(2.0, 1.05))
        lines = panels(side, below)
    shown = list(dict.fromkeys(("loss", next(iter(metrics)))))
    for axes, metric in zip(curves.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        draw_curves(axes, records, metric, percent=metrics.get(metric) == "max")
    return figure, lines


def draw_curves(
    axes: Axes, records: Mapping[str, list[dict]], metric: str, *, percent: bool
) -> None:
    """Draws a metric over training steps: training, evaluation (live and averaged weights) and the
    final test value; of the loss also its parts, NAME_loss, in training.
    """
    scale = 100.0 if percent else 1.0
    for split, color in COLORS.items():
        for key, line, mark in ((metric, "-", "D"), (AVERAGED + metric, "--", "s")):
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
                style = dict(marker=mark, ls="", ms=7, zorder=3)
            else:
                style = dict(ls=line, lw=1.0 if split == "train" else 2.0)
            axes.plot(steps, values, color=color, label=f"{name} {values[-1]:.4g}", **style)
    if metric == "loss":
        _draw_parts(axes, records.get("train", []))
    name = _label(metric)
    axes.set_title(
        figure_text(name[0].upper() + name[1:] + (" (%)" if percent else "")),
        fontsize=13,
        fontweight="bold",
    )
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, title="last value", alignment="left")


def _draw_parts(axes: Axes, records: list[dict]) -> None:
    """Draws the parts of a loss that has several, such as those of detection."""
    names = dict.fromkeys(k for r in records for k in r if k.endswith("_loss"))
    for name in names:
        points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
        steps, values = zip(*points, strict=True)
        label = figure_text(f"{_label(name.removesuffix('_loss'))} {values[-1]:.4g}")
        axes.plot(steps, values, lw=0.8, label=label)


def _label(metric: str) -> str:
    """Returns the name of a metric in words: 'ema_top5' is 'top-5 of averaged weights'."""
    name = metric.removeprefix(AVERAGED).replace("top5", "top-5 accuracy").replace("_", " ")
    name = name.replace("mean iou", "mean IoU").replace(" ap", " AP").replace("voc", "VOC")
    return name + (" of averaged weights" if metric.startswith(AVERAGED) else "")


def _value(metrics: Mapping[str, str], metric: str, value: float) -> str:
    percent = metrics.get(metric.removeprefix(AVERAGED)) == "max"
    return f"{100 * value:.2f} %" if percent else f"{value:.4f}"


def _optimiser(optim: ConfigDict) -> str:
    text = f"{optim.name}, lr {optim.lr:g}, {optim.schedule}, weight decay {optim.weight_decay:g}"
    text += f", layer decay {optim.layer_decay:g}" if optim.layer_decay != 1 else ""
    text += f", frozen {', '.join(optim.frozen)}" if optim.frozen else ""
    waits = f", head alone for {optim.frozen_epochs:g} epochs"
    return text + (waits if optim.frozen_epochs else "")


# --------------------------------------------------------------------------------------------------
# Text
# --------------------------------------------------------------------------------------------------
def _markdown(
    config: ConfigDict,
    metrics: Mapping[str, str],
    records: Mapping[str, list[dict]],
    split: str,
    result: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    png: Path | None,
    lines: list[str],
    problems: list[str],
) -> str:
    names = list(dict.fromkeys([*metrics, "loss"]))
    names += [AVERAGED + name for name in names]
    sources = {split: result or {}}
    sources |= {f"last {part}": (records.get(part) or [{}])[-1] for part in ("eval", "train")}
    rows = [
        (f"{source} {_label(name)}", _value(metrics, name, values[name]))
        for source, values in sources.items()
        for name in names
        if values.get(name) is not None
    ]
    if result is not None:
        rows.append((f"{split} images", f"{int(result['count']):,}"))
    speeds = [r["images_per_second"] for r in records.get("train", []) if "images_per_second" in r]
    if speeds:
        rows.append(("training images per second (median)", f"{np.median(speeds):,.0f}"))
    rows += [
        (key, f"{value:,}" if isinstance(value, int) else str(value))
        for key, value in facts.items()
    ]
    model, data, optim, train = config.model, config.data, config.optim, config.train
    own = {k: v for name in tasks.sections(config) for k, v in config.get(name, {}).items()}
    options, of_task = (
        ", ".join(f"{k}={v!r}" for k, v in to_plain(section).items() if k != "name")
        for section in (model, own)
    )
    length = f"{train.steps} steps" if train.steps else f"{train.epochs:g} epochs"
    bounds = {"at least": train.min_steps, "at most": train.max_steps}
    if not train.steps:
        length += "".join(f", {word} {steps:,} steps" for word, steps in bounds.items() if steps)
    size = "x".join(map(str, (*data.image_size, data.channels)))
    settings = [
        ("model", model.name + (f" ({options})" if options else "")),
        ("data", f"{data.source}, trained on {data.train_split}, {size}"),
        ("optimiser", _optimiser(optim)),
        ("training", f"batch {train.batch_size}, {length}, seed {config.seed}"),
        ("task", config.task + (f" ({of_task})" if of_task else "")),
    ]
    text = [f"# {markdown_text(f'{model.name} on {data.source}')}", ""]
    text += [f"**Incomplete report**: {markdown_text('; '.join(problems))}", ""] if problems else []
    text += [f"![curves and pictures]({png.name})", ""] if png else []
    for head, table in (("result", rows), ("setting", settings)):
        cells = [[markdown_text(cell) for cell in row] for row in table]
        text += [*markdown_table((head, "value"), cells), ""]
    text += lines
    if train.auxiliary_losses:
        text += ["The training loss includes the auxiliary losses, the other losses do not.", ""]
    text += ["Every setting is in config.json, every logged step in metrics.jsonl."]
    return "\n".join(text) + "\n"
