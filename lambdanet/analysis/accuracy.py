"""The mode `accuracy` of eval.py: a task's metrics of a split."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambdanet import tasks
from lambdanet.analysis.console import check_least, say, show_table
from lambdanet.analysis.subject import Subject
from lambdanet.training import evaluate, mesh, programs
from lambdanet.training import step as step_lib

_MOST_COLUMNS = 5  # metrics of a table beside each other


def accuracy(
    subject: Subject,
    *,
    split: str | None = None,
    batch_size: int = 0,
    folder: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """The task's metrics of the live and, if the run kept them, the averaged weights.

    Args:
        subject: of `load_subject`.
        split: None = the test split, else the evaluation split.
        batch_size: 0 = the config's.
        folder: where the task's files of results go, such as predictions.json of detection; None =
            none are written.

    Returns:
        dict(split, live, ema): per kind of weights the metrics, count and source, and of tasks that
        have them classes and confusions, a dict for each row of their tables.
    """
    check_least("batch_size", batch_size, 0)
    split, averaged = subject.split(split), subject.config.train.ema_decay and not subject.weights
    loaded = {which: subject.load_weights(which) for which in ("live", *["ema"] * bool(averaged))}
    eval_step = step_lib.make_eval_step(subject.graphdef, subject.config, score=subject.task.score)
    devices = mesh.make_mesh()
    found = evaluate.evaluate(
        programs.evaluation_program(eval_step, devices, say),
        {which: weights for which, (weights, _) in loaded.items()},
        subject.batches(split, batch_size),
        sharding=mesh.batch_sharding(devices),
    )
    finish = tasks.finisher(subject.config, subject.info)
    results, metrics = {"split": split}, tasks.metrics(subject.config)
    for which, (_, source) in loaded.items():
        values = finish(found.sums[which], found.rows[which])
        skipped = {"skipped_records": found.skipped} if found.skipped else {}
        results[which] = {**values, "count": found.count, **skipped, "source": source}
    _show_metrics(f"{subject.name} on {split}", metrics, results, list(loaded))
    class_table = getattr(subject.task, "class_table", None)
    about = dict(info=subject.info, config=subject.config)
    for which in loaded if class_table else ():
        columns, lines, remark = class_table(found.sums[which], found.rows[which], **about)
        show_table(f"Classes, {which} weights", columns, lines)
        if remark:
            say(remark)
        results[which]["classes"] = [dict(zip(columns, line, strict=True)) for line in lines]
    confusions = getattr(subject.task, "confusions", None)
    for which in loaded if confusions else ():
        columns, lines = confusions(found.sums[which], found.rows[which], **about)
        if lines:
            show_table(f"Most frequent confusions, {which} weights", columns, lines)
        results[which]["confusions"] = [dict(zip(columns, line, strict=True)) for line in lines]
    for which in loaded if folder else ():
        prefix = "" if which == "live" else f"{which}_"
        rows = found.rows[which]
        if paths := tasks.write_results(subject.config, subject.info, rows, Path(folder), prefix):
            say(f"Written: {', '.join(map(str, paths))}")
    return results


def _show_metrics(
    title: str, metrics: Mapping[str, str], results: Mapping[str, Any], weights: list[str]
) -> None:
    """Prints the metrics by kind of weights; where they are many, one below the other."""
    titles = [f"{name} %" if mode == "max" else name for name, mode in metrics.items()]
    cells = [
        [
            f"{100 * results[which][name]:.2f}" if mode == "max" else f"{results[which][name]:.4f}"
            for name, mode in metrics.items()
        ]
        for which in weights
    ]
    rows = [
        (which, *line, results[which]["count"], results[which]["source"])
        for which, line in zip(weights, cells, strict=True)
    ]
    columns = ("weights", *titles, "images", "from")
    if len(metrics) > _MOST_COLUMNS:
        columns, *rows = zip(columns, *rows, strict=True)
    show_table(title, columns, rows)
