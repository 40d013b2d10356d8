"""What is learnt: one module of plain functions per task, all with the same names (`CONTRACT`).

The training loop, the readers and the report know a task only as functions that are handed to them;
`get` is the one place where its name is looked up. A further task is one module here, one entry in
`TASKS`, a section in `configs/base.py` for the keys that are its own, and the contract's test
(tests/test_tasks.py) runs it.

On the host:
    METRICS: dict[str, 'max' | 'min']    what `finish` may return, and when it is better; the first
        one is the headline: progress line, curves, report
    read(builder) -> DataInfo    which features of a set are used, and the classes' names
    model_options(info, config) -> dict    what the data decides about the model
    example(record, info, config, rng) -> dict    a record as arrays of fixed shapes, in a reader's
        thread or process; `rng` draws the augmentation, None gives the evaluation form
    blank(config) -> dict    the example that fills the last evaluation batch, masked out there
    finish(sums, rows, info, config) -> dict[str, float]    the metrics of a split
    panels(side, below, *, sums, rows, examples, info, config) -> list[str]    draws the task's
        pictures into two parts of the report's figure and returns lines of Markdown

Traced:
    mix(batch, key, config) -> batch    what mixes examples with each other
    loss(model, batch, config, rngs) -> (scalar, {name: (sum, weight)})    what is minimised, and
        what is shown, 'loss' (the scalar's own) among it
    score(model, batch, config) -> (sums, rows)    sums over the rows whose `mask` is 1 (arrays of
        any shape), and rows [b, ...] that go to the host

A task may also have, on the host:
    SECTIONS: tuple[str, ...]    the config's sections that it reads for itself; without it, the one
        of its name
    metrics(config) -> dict    those of METRICS that `finish` returns with this config, the headline
        first; without it, all
    input_shape(config) -> tuple    of what the model takes, without the batch; without it, height,
        width and channels of an image
    check_data(info, config)    raises ValueError if options of training do not fit the data
    weigh_classes(info, config) -> DataInfo    with what training has to know of the whole split
    check_model(model, config)    raises ValueError if this kind of model cannot do it
    class_table(sums, rows, info, config) -> (columns, rows, remark)    results by class
    confusions(sums, rows, info, config) -> (columns, rows)    the most frequent ones of two classes
    write_results(rows, folder, *, info, config, prefix) -> paths    writes what a model says of a
        split in a format of other programs; `prefix` begins the files' names
    predictions() -> module    what predicts for single inputs, a module with the names of
        `PREDICTIONS`; loaded when it is needed, as it draws

A module of predictions has:
    READS: 'picture' | 'clip'    what an input is
    OPTIONS    those of `Predictor` that it reads: 'top', 'fps'
    INPUTS    names of the arrays that the traced function reads
    ITEMS, COLUMNS    the list among the values, and what a table calls the parts of its entries
    class_names(info, config, count) -> list[str]    a name for every class
    example(contents, config) -> dict    an input as arrays of fixed shapes, by the functions that
        evaluation prepares its records with; `config` as plain attributes, here and below
    describe_preprocessing(config) -> dict    the same in words and numbers
    answer(model, batch, config) -> dict of arrays [b, ...]    traced
    values(found, example, names, config, top) -> dict    plain values of one input
    summary(values) -> str    for a line of a table
    drawings(contents, values, names, config) -> dict    kind of picture -> picture
and perhaps collector(names, info), an object whose `add(file, values)` takes notice of each input,
`file` being its path within the folder of the inputs, and whose `write(folder)` writes a file about
all of them and returns notes on it.

Batches hold the arrays of the examples, `id` int64 [b], and in evaluation `mask` float32 [b]. The
loss is a mean over something (images, pixels that are not ignored, objects); the weight beside its
sum says over how much, by which micro-batches are averaged. `config` is the whole config; in
`example` and `blank` it comes as plain attributes (`records.attributes`), which travel to worker
processes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from lambdanet import data
from lambdanet.data.record import DataInfo
from lambdanet.registry import suggest
from lambdanet.tasks import (
    classification,
    clips,
    detection,
    segmentation,
    video_detection,
    video_segmentation,
)

TASKS: dict[str, ModuleType] = {
    "classification": classification,
    "segmentation": segmentation,
    "detection": detection,
    "clips": clips,
    "video_segmentation": video_segmentation,
    "video_detection": video_detection,
}

CONTRACT = (
    "METRICS",
    "read",
    "model_options",
    "example",
    "blank",
    "mix",
    "loss",
    "score",
    "finish",
    "panels",
)

OPTIONAL = (
    "SECTIONS",
    "metrics",
    "input_shape",
    "check_data",
    "weigh_classes",
    "check_model",
    "class_table",
    "confusions",
    "write_results",
    "predictions",
)

PREDICTIONS = (
    "READS",
    "OPTIONS",
    "INPUTS",
    "ITEMS",
    "COLUMNS",
    "class_names",
    "example",
    "describe_preprocessing",
    "answer",
    "values",
    "summary",
    "drawings",
)

UNKNOWN = DataInfo({}, ("any",))
"""Stands for data that nobody has looked at."""


def get(name: str) -> ModuleType:
    """Returns the module of a task; raises ValueError with the nearest name if there is none."""
    if name not in TASKS:
        raise ValueError(
            f"task {name!r}; allowed: {', '.join(TASKS)}.{suggest(str(name), list(TASKS))}"
        )
    return TASKS[name]


def options_without_data(config: Any) -> dict[str, Any]:
    """Returns the task's `model_options` for a model that is only built to check its options."""
    return get(config.task).model_options(UNKNOWN, config)


def check_model(config: Any, model: Any) -> None:
    """Raises ValueError if the config's task needs another kind of model."""
    check = getattr(get(config.task), "check_model", None)
    if check is not None:
        check(model, config)


def sections(config: Any) -> tuple[str, ...]:
    """Returns the names of the config's sections that are the task's own."""
    return getattr(get(config.task), "SECTIONS", (config.task,))


def metrics(config: Any) -> dict[str, str]:
    """Returns what the task's `finish` gives with this config -> 'max' or 'min'."""
    task = get(config.task)
    return task.metrics(config) if hasattr(task, "metrics") else task.METRICS


def input_shape(config: Any) -> tuple[int, ...]:
    """Returns the shape of what the model takes, without the batch: height, width and channels of
    an image, or what the task's own `input_shape` says.
    """
    task = get(config.task)
    if hasattr(task, "input_shape"):
        return task.input_shape(config)
    return (*config.data.image_size, config.data.channels)


def write_results(
    config: Any, info: DataInfo, rows: dict[str, np.ndarray], folder: Path, prefix: str = ""
) -> list[Path]:
    """Writes the task's files of the results of a split, if it has any; returns them."""
    write = getattr(get(config.task), "write_results", None)
    return write(rows, folder, info=info, config=config, prefix=prefix) if write else []


def read_for_training(config: Any) -> DataInfo:
    """Opens the data and returns what the config's task finds in it; raises ValueError if it lacks
    something, or if options of training do not fit it.
    """
    task = get(config.task)
    info = task.read(data.open_builder(config.data))
    if hasattr(task, "check_data"):
        task.check_data(info, config)
    return task.weigh_classes(info, config) if hasattr(task, "weigh_classes") else info


def example_maker(config: Any, info: DataInfo) -> data.MakeExample:
    """Returns the task's `example` as a function of record and generator, which pickles."""
    plain = data.attributes(config)
    return functools.partial(_example, get(config.task).example, info, plain)


def _example(make: Any, info: DataInfo, config: Any, record: data.Record, rng: Any) -> dict:
    return make(record, info, config, rng)


def eval_batches(
    config: Any,
    info: DataInfo,
    split: str,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> data.EvalBatches:
    """Returns the evaluation batches of a split for the config's task.

    Args:
        config: the whole config.
        info: what the task's `read` found.
        split: split text.
        batch_size: global, over all processes.
        process_index, process_count: which rows of each global batch this process reads.

    Raises:
        ValueError: the split cannot be opened.
    """
    return data.eval_batches(
        data.Part(data.open_source(config.data, split, info.features)),
        example_maker(config, info),
        get(config.task).blank(data.attributes(config)),
        config.data,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )


def check_evaluation(
    eval_step: Callable[..., Any], state: Any, config: Any, batch_size: int
) -> None:
    """Traces one step of evaluation, which computes nothing: what a model refuses of the pictures
    of evaluation, whose size need not be that of training, is known before the first step.

    Args:
        eval_step: of `make_eval_step`.
        state: with params and stats, arrays or their shapes.
        config: the whole config.
        batch_size: global, over all processes.

    Raises:
        ValueError: what the model says, and where the sizes come from.
    """
    if not (config.data.eval_split or config.data.test_split):
        return
    blank = get(config.task).blank(data.attributes(config)) | {"mask": np.float32(1)}
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *np.shape(value)), np.asarray(value).dtype)
        for name, value in blank.items()
    }
    try:
        jax.eval_shape(eval_step, state.params, state.stats, batch)
    except ValueError as error:
        raise ValueError(f"evaluation, with images of {batch['image'].shape}: {error}") from error


def finisher(config: Any, info: DataInfo) -> Callable[[dict, dict], dict[str, float]]:
    """Returns the task's `finish` as a function of sums and rows."""
    return lambda sums, rows: get(config.task).finish(sums, rows, info, config)
