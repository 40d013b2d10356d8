"""What a trained network says of pictures and clips, from Python:

    predictor = Predictor("runs/clothing")
    for found in predictor(["a.jpg", "b.png"]):
        print(found["classes"][0])  # {'class': 'shoes', 'number': 7, 'probability': 0.93}

Paths, images of Pillow and uint8 arrays are prepared as evaluation prepares its records, by the
same functions, and run in batches of one shape, so that one program is compiled for all. The run's
class names are those that it keeps (classes.json); the data need not be there.
"""

from __future__ import annotations

import collections
import concurrent.futures
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from PIL import Image

from lambdanet import data
from lambdanet.analysis import inputs
from lambdanet.analysis.subject import Subject
from lambdanet.data.class_folders import listing
from lambdanet.data.paste_masks import PastedMasks

MOST_IN_BATCH = 32  # pictures, where nothing else is asked for
TOP = 5  # classes, likewise


class Outcome(NamedTuple):
    """What became of one input.

    Attributes:
        source: as it was given.
        values: see `Predictor`; None if it could not be read.
        problem: why not; '' else.
        note: what was left out of it; '' for nothing.
    """

    source: Any
    values: dict[str, Any] | None
    problem: str
    note: str


class Predictor:
    """A trained network that is called with pictures, or with clips.

    Called, it takes one input or a sequence of them and returns a list with a dict for each:

        classification   classes: list of {class, number, probability}, the `top` most probable;
            and clips    probabilities: float64 [all classes]
        segmentation     width, height; classes: list of {class, number, share}, the largest first;
                         labels: uint8 [height, width], the class of every pixel
        detection        width, height; objects: list of {class, number, score, box}, the best
                         first, box = [left, top, right, bottom] in pixels; with masks also
                         masks: bool [objects, height, width]

    and `note`, a text, where something was left out, such as the further pages of a TIFF file. The
    networks of videos predict for single pictures.

    An input is a path, an image of Pillow, or uint8 [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]
    (alpha); of clips the path of a folder of numbered frames or of a video, uint8 [t, h, w, c], or
    a list of frames.

    Args:
        run: the workdir of a training run, or a `Subject` of `eval.load_subject`, which also reads
            files of weights.
        step: of a workdir: 'latest', 'best' or a number.
        average: of a workdir: 'live' (None is the same) or 'ema'.
        batch_size: most inputs that are run together; 0 = as evaluation, at most 32. Fewer inputs
            make a batch of the next power of two.
        top: classes to return, of classification and clips; None = 5.
        fps: frames per second to take of videos, of clips; None = all of them. Give what `python -m
            lambdanet.data.prepare clips --fps` was given.

    Attributes:
        names: of the classes.
        source: where the weights come from.
        notes: what the user should know, such as that the run keeps no class names.

    Raises:
        ValueError: no such run, checkpoint or weights; an option that the task does not read.
    """

    def __init__(
        self,
        run: str | os.PathLike | Subject,
        *,
        step: str | int = "latest",
        average: str | None = None,
        batch_size: int = 0,
        top: int | None = None,
        fps: float | None = None,
    ):
        subject = run if isinstance(run, Subject) else open_run(run, step=step, average=average)
        self.subject, self._config = subject, data.attributes(subject.config)
        self.kind = subject.task.predictions()
        options = {"top": top, "fps": fps}
        unread = [k for k, v in options.items() if v is not None and k not in self.kind.OPTIONS]
        if unread:
            raise ValueError(
                f"{unread[0]}={options[unread[0]]}: not for the task {subject.config.task!r}"
            )
        for name, value, least in (("batch_size", batch_size, 0), ("top", top, 1), ("fps", fps, 0)):
            if value is not None and value < least:
                raise ValueError(f"{name}={value}; allowed: {least} or more")
        self._top, self._fps = TOP if top is None else top, fps or 0.0
        self._most = batch_size or most_in_batch(subject.config)
        weights, self.source = subject.load_weights()
        self._weights = jax.device_put(weights)
        self.names, self.notes = subject.class_names()
        if not subject.config.data.exif_orientation:
            self.notes = [*self.notes, _AS_STORED]
        graphdef, config, kind = subject.graphdef, self._config, self.kind
        self._answer = jax.jit(
            lambda weights, batch: kind.answer(nnx.merge(graphdef, *weights), batch, config)
        )

    def __call__(self, given: Any) -> list[dict[str, Any]]:
        """Returns what is found, see the class.

        Raises:
            TypeError: something that is no input.
            ValueError: names every input that cannot be read, and why; see `stream` for the others.
        """
        sources = self._sources(given)
        found = list(self.stream(sources))
        problems = [
            f"{f'input {number}' if not isinstance(one.source, (str, os.PathLike)) else one.source}"
            f": {one.problem}"
            for number, one in enumerate(found)
            if one.problem
        ]
        if problems:
            raise ValueError(
                f"{counted(len(problems), self.kind.READS)} of {len(found)} cannot be read:"
                f"{listing(problems)}"
            )
        return [
            {k: np.asarray(v) if isinstance(v, PastedMasks) else v for k, v in one.values.items()}
            | ({"note": one.note} if one.note else {})
            for one in found
        ]

    def stream(self, sources: Sequence[Any]) -> Iterator[Outcome]:
        """Yields what became of each input, in order, masks as `PastedMasks`. The next batches are
        read and computed meanwhile; an input that cannot be read keeps no others waiting.
        """
        size = self.batch_size(len(sources))
        rows: list[_Read] = []
        running: collections.deque = collections.deque()
        threads = max(self._config.data.num_threads, 1)
        pool = concurrent.futures.ThreadPoolExecutor(threads)
        try:
            for read in _in_order(pool, self._read, sources, 2 * size):
                rows.append(read)
                if sum(row.example is not None for row in rows) == size:
                    running.append((rows, self._start(rows, size)))
                    rows = []
                    if len(running) > 1:  # the device works on the next one meanwhile
                        yield from self._finish(*running.popleft())
            if rows:
                running.append((rows, self._start(rows, size)))
            while running:
                yield from self._finish(*running.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def batch_size(self, count: int) -> int:
        """Returns how many inputs are run together, of so many."""
        return min(self._most, 1 << max(count - 1, 0).bit_length())

    def contents(self, source: Any) -> tuple[Any, str]:
        """Returns the contents of an input, and a note; see `inputs.read_picture` and
        `inputs.read_clip`.
        """
        if self.kind.READS == "clip":
            return inputs.read_clip(source, self._fps)
        return inputs.read_picture(source)

    def _sources(self, given: Any) -> list[Any]:
        axes = 4 if self.kind.READS == "clip" else 3
        single = isinstance(given, (str, os.PathLike, Image.Image))
        if single or (isinstance(given, np.ndarray) and given.ndim <= axes):
            return [given]
        if isinstance(given, Mapping) or not isinstance(given, Iterable):
            raise TypeError(f"{type(given).__name__}; allowed: {_ALLOWED}, or a sequence of them")
        sources = list(given)
        kinds = (str, os.PathLike, Image.Image, np.ndarray)
        kinds += (list, tuple) if self.kind.READS == "clip" else ()
        for number, source in enumerate(sources):
            if not isinstance(source, kinds):
                raise TypeError(
                    f"input {number} is of type {type(source).__name__}; allowed: {_ALLOWED}"
                )
        return sources

    def _read(self, source: Any) -> _Read:
        note = ""
        try:
            contents, note = self.contents(source)
            return _Read(source, self.kind.example(contents, self._config), "", note)
        except Exception as error:  # damaged files raise many types
            return _Read(source, None, inputs.why_unreadable(error, source), note)

    def _start(self, rows: Sequence[_Read], size: int) -> Any:
        """Starts the network on the rows that could be read; the batch is filled up with the
        last one.
        """
        examples = [row.example for row in rows if row.example is not None]
        if not examples:
            return {}
        examples += examples[-1:] * (size - len(examples))
        batch = {name: np.stack([one[name] for one in examples]) for name in self.kind.INPUTS}
        return self._answer(self._weights, batch)

    def _finish(self, rows: Sequence[_Read], found: Any) -> Iterator[Outcome]:
        found, at = jax.device_get(found), 0
        for row in rows:
            values = None
            if row.example is not None:
                own = {name: array[at] for name, array in found.items()}
                values = self.kind.values(own, row.example, self.names, self._config, self._top)
                at += 1
            yield Outcome(row.source, values, row.problem, row.note)


_AS_STORED = (
    "Photos are taken as they are stored, those of a phone held upright on their side "
    "(data.exif_orientation=False); --config.data.exif_orientation=True turns them."
)
_ALLOWED = "a path, an image of Pillow, a uint8 array"


class _Read(NamedTuple):
    source: Any
    example: dict[str, np.ndarray] | None
    problem: str
    note: str


def _in_order(
    pool: concurrent.futures.Executor, work: Callable[[Any], Any], items: Iterable, ahead: int
) -> Iterator[Any]:
    """Yields work(item) of each, in order; at most `ahead` of them are done or begun."""
    waiting: collections.deque = collections.deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def load_model(
    workdir: str | os.PathLike, *, step: str | int = "latest", average: str | None = None
) -> nnx.Module:
    """Returns the network of a run with its weights, in evaluation view.

    It takes normalised images, `lambdanet.ops.images.normalise(images, data.mean, data.std)` of
    uint8 [b, h, w, c] with the values of the run's config.json; `Predictor` does this, too.

    Args:
        workdir: of the run.
        step: 'latest', 'best' (by the run's train.keep_best) or a number.
        average: 'live' (None is the same) or 'ema', the averaged weights.

    Raises:
        ValueError: no such run or checkpoint.
    """
    subject = open_run(workdir, step=step, average=average)
    return nnx.merge(subject.graphdef, *subject.load_weights()[0])


def open_run(
    workdir: str | os.PathLike, *, step: str | int = "latest", average: str | None = None
) -> Subject:
    """Returns `eval.load_subject` of a run, without its data.

    The library knows neither the networks nor the keys of configs: they stand beside it, and are
    looked for here, when they are needed.

    Raises:
        ModuleNotFoundError: this library was installed without them.
    """
    try:
        load = importlib.import_module("eval").load_subject
    except (ModuleNotFoundError, AttributeError) as error:
        raise ModuleNotFoundError(
            f"a run is read by eval.py of the repository, which cannot be imported here ({error}): "
            "start Python in the repository's folder, or name that folder in PYTHONPATH"
        ) from error
    return load(workdir=workdir, step=str(step), average=average, needs_data=False)


def most_in_batch(config: Any) -> int:
    """Returns how many pictures are run together, where nobody says how many."""
    return min(config.train.eval_batch_size or config.train.batch_size, MOST_IN_BATCH)


def counted(count: int, noun: str) -> str:
    """Returns '1 picture', '2 pictures'."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
