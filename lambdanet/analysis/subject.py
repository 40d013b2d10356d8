"""The model under evaluation with its config, data and weights."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from lambdanet import data, tasks
from lambdanet.analysis.console import say
from lambdanet.data import info_file
from lambdanet.interop import files, sources
from lambdanet.ops.images import normalise
from lambdanet.training import checkpoint
from lambdanet.training import state as state_lib
from lambdanet.training import weights as weights_lib
from lambdanet.training.advice import Published, normalisation_advice

Weights = tuple[dict, dict]
AVERAGES = ("live", "ema")
MOST_NAMED = 20  # classes that a message names
DATA_ENTRY = "data"  # of the metadata of exported weights: what `info_file.to_plain` gives


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model under evaluation.

    Attributes:
        config: the whole config, checked.
        task: its module of lambdanet.tasks.
        info: what the task found in the data, or what the run keeps of them; `tasks.UNKNOWN` where
            there is neither.
        build: makes the model.
        graphdef: its evaluation view.
        workdir: the run whose checkpoint gives the weights; None = `weights`.
        weights: weights of elsewhere instead, see `lambdanet.interop.sources`; None with `workdir`
            None: as initialised.
        step: the checkpoint: 'latest', 'best' (by train.keep_best) or a step number.
        average: which weights all modes but `accuracy` use, 'live' or 'ema'; of `weights` that have
            both, all modes. None = 'live' of a workdir, 'ema' of `weights`, as timm does.
        closest: see `lambdanet.training.weights.read_weights`.
        named: names of the classes in place of those of `info`, see `with_names`.
    """

    config: ConfigDict
    task: Any
    info: data.DataInfo
    build: Callable[[], nnx.Module]
    graphdef: nnx.GraphDef
    workdir: str | os.PathLike | None
    weights: sources.Source | None
    step: str
    average: str | None
    closest: weights_lib.Closest | None = None
    named: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.model.name

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width, channels of what the model takes; of clips the frames before them."""
        return tasks.input_shape(self.config)

    @property
    def known_info(self) -> data.DataInfo:
        """What the task found in the data or the run keeps of it; without classes if nothing is
        known, but with the numbers by which the model has its outputs, if it does.
        """
        if self.info is not tasks.UNKNOWN:
            return self.info
        numbers = getattr(nnx.eval_shape(self.build), "class_numbers", ())
        return data.DataInfo({}, (), tuple(numbers))

    def class_names(self) -> tuple[list[str], list[str]]:
        """Returns a name for every class of the model, and what there is to say about them."""
        if self.named:
            return list(self.named), []
        info, count = self.known_info, nnx.eval_shape(self.build).num_classes
        names = self.task.predictions().class_names(info, self.config, count)
        if len(info.classes) >= count:
            return names, []
        where = f"{self.workdir}/{info_file.FILE_NAME}" if self.workdir else self.weights
        named = f"names only {len(info.classes)} of {count}" if info.classes else "is missing"
        named = named if self.workdir else "keeps no names of classes"
        return names, [
            f"{where} {named}, so classes are numbered, such as {names[-1]!r}; --mode=predict and "
            "export name them by --classes=FILE."
        ]

    def with_names(self, file: str | os.PathLike | None) -> Subject:
        """Returns the same with names of classes of a text file, one a line in the order of the
        model's outputs; None: as it is.

        Raises:
            ValueError, OSError: no text, or not as many lines as the model has classes.
        """
        if file is None:
            return self
        try:
            lines = Path(file).read_text(encoding="utf-8-sig").rstrip().splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"--classes={file}: is no UTF-8 text ({error})") from error
        count = nnx.eval_shape(self.build).num_classes
        if len(lines) != count:
            raise ValueError(
                f"--classes={file}: {len(lines)} lines; needed: {count}, the name of one class of "
                "the model on each"
            )
        return dataclasses.replace(self, named=tuple(line.strip() for line in lines))

    def forward(self, weights: Weights, images: jax.Array) -> jax.Array | dict[str, jax.Array]:
        """The model's output for uint8 images [b, h, w, c], of a detector several arrays; `weights`
        is (params, stats).
        """
        normal = normalise(images, self.config.data.mean, self.config.data.std)
        return nnx.merge(self.graphdef, *weights)(normal)

    def load_weights(self, which: str | None = None) -> tuple[Weights, str]:
        """Returns ((params, stats), where they come from); `which`: 'live' | 'ema', None =
        `average`.

        Raises:
            ValueError: no weights were named, or they do not fit.
        """
        params, stats = state_lib.abstract_weights(self.build)
        if self.weights:
            model = nnx.eval_shape(self.build)
            averaged = self.average != "live"
            found = weights_lib.read_weights(
                self.weights, model, params, stats, prefer_ema=averaged, closest=self.closest
            )
            return found, str(self.weights)
        if not self.workdir:
            raise ValueError("weights are needed: give --workdir=DIR (a run) or --weights=SOURCE")
        wanted = int(self.step) if self.step.isdecimal() else self.step
        which = which or self.average or "live"
        params, stats, number = checkpoint.load_weights(self.workdir, which, wanted, params, stats)
        return (params, stats), f"{self.workdir}, step {number}"

    def split(self, name: str | None = None) -> str:
        """Returns the split to evaluate: the one named, else data.test_split, else eval_split."""
        split = name or self.config.data.test_split or self.config.data.eval_split
        if not split:
            raise ValueError("the config names no test_split and no eval_split: give --split=NAME")
        return split

    def batches(self, split: str, batch_size: int = 0) -> data.EvalBatches:
        """Returns a split's batches; `batch_size` 0 = the config's, rounded up to the devices."""
        train = self.config.train
        wanted = batch_size or train.eval_batch_size or train.batch_size
        size = -(-wanted // jax.device_count()) * jax.device_count()
        return tasks.eval_batches(self.config, self.info, split, batch_size=size)


def kept_info(
    workdir: str | os.PathLike | None, weights: sources.Source | None
) -> data.DataInfo | None:
    """Returns what a file of weights says of its data in its metadata, or else what a run keeps of
    them; None where neither does.

    Raises:
        ValueError: that is damaged.
    """
    if weights and weights.is_run:
        workdir = weights.path
    elif weights:
        stored = files.read_metadata(weights.path).get(DATA_ENTRY)
        if stored is not None:
            try:
                return info_file.from_plain(json.loads(stored))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{weights}: its metadata {DATA_ENTRY!r}: {error}") from error
    return info_file.load(workdir) if workdir else None


def find_info(
    config: ConfigDict,
    *,
    workdir: str | os.PathLike | None,
    weights: sources.Source | None,
    needs_data: bool,
    prepares: bool,
) -> tuple[data.DataInfo, dict[str, Any]]:
    """Returns `Subject.info`, and the options that it gives the model: of the data where they are
    needed or nothing is kept of them.

    Args:
        config: checked.
        workdir: see `kept_info`.
        weights: see `kept_info`.
        needs_data: whether the data must be there.
        prepares: whether an embedded set may be written.

    Raises:
        ValueError, OSError: there are no data and they are needed; what is kept of them is damaged
            or does not fit the config.
    """
    task, info = tasks.get(config.task), kept_info(workdir, weights)
    if info is not None and not needs_data:
        return info, task.model_options(info, config)
    try:
        if prepares:
            data.prepare_embedded(config.data)
        found = task.read(data.open_builder(config.data))
        options = task.model_options(found, config)
    except (ValueError, OSError) as error:
        if needs_data:
            raise
        without = f"no {info_file.FILE_NAME} in the run and " if workdir else ""
        say(
            f"Nothing says which classes there are: {without}no data ({error}); the model is built "
            "for its published number of classes, or --config.model.num_classes=N."
        )
        return tasks.UNKNOWN, {}
    return found, options


def check_classes(
    workdir: str | os.PathLike | None,
    source: sources.Source | None,
    info: data.DataInfo,
    build: Callable[[], nnx.Module],
) -> None:
    """Says how the classes of the data differ from those that the weights were trained with.

    Args:
        workdir: see `kept_info`.
        source: see `kept_info`.
        info: of the data.
        build: makes the model.

    Raises:
        ValueError: a class has another number in the data than in the weights, and the model's
            outputs do not go by the numbers of the origin: they would be taken for other classes.
    """
    kept = kept_info(workdir, source)
    if kept is not None and (text := info_file.difference(kept, info)):
        own = {name: number for number, name in enumerate(kept.classes)}
        moved = any(own.get(name, number) != number for number, name in enumerate(info.classes))
        if moved and getattr(nnx.eval_shape(build), "class_outputs", None) is None:
            raise ValueError(
                f"the data has the classes of {source or workdir} under other numbers ({text}), so "
                "that outputs would be taken for other classes: evaluate on the data of the "
                "training, or prepare these anew with their classes in the order of the weights: "
                f"{', '.join(kept.classes[:MOST_NAMED])}"
                f"{', ...' if len(kept.classes) > MOST_NAMED else ''}"
            )
        say(f"The data has other classes than the weights were trained with: {text}.")


def say_what_fits(
    source: sources.Source,
    info: data.DataInfo,
    build: Callable[[], nnx.Module],
    section: ConfigDict,
    published: Published,
) -> None:
    """Says what nothing checks: the order of the outputs, see `say_order`, and a normalisation that
    the weights did not learn with.

    Args:
        source: of the weights.
        info: of `find_info`.
        build: makes the model.
        section: the config's section data.
        published: see `normalisation_advice`.
    """
    if info is not tasks.UNKNOWN:
        say_order(source, info, nnx.eval_shape(build))
    for text in normalisation_advice(source, section, published):
        say(text)


def say_order(source: sources.Source, info: data.DataInfo, model: nnx.Module) -> None:
    """Says so where weights name no classes, as those of PyTorch do not: their outputs are taken in
    the order of the data's classes, or by their numbers where the model has them by numbers.
    """
    if source.is_run or DATA_ENTRY in files.read_metadata(source.path) or not info.classes:
        return
    shown, how = info.classes[:3], "in the order of the data's"
    if getattr(model, "class_outputs", None) is not None:
        numbers = info.numbers(len(info.classes))
        shown = [f"{number} {name}" for number, name in zip(numbers, shown, strict=False)]
        how = "by the numbers of the data's"
    say(
        f"The weights of {source} do not name their classes: outputs are taken {how}, "
        f"{', '.join(shown)}{', ...' if len(info.classes) > 3 else ''}"
    )


def check_choice(step: str, average: str | None, weights: str | os.PathLike | None) -> None:
    """Raises ValueError for a step or an average that no weights can be chosen by."""
    if step not in ("best", "latest") and not step.isdecimal():
        raise ValueError(f"--step={step}; allowed: best, latest, or the number of a step")
    if weights and step != "latest":
        raise ValueError(
            f"--step={step} and --weights={weights}: a file has no steps; leave one out"
        )
    if average not in (None, *AVERAGES):
        raise ValueError(f"--average={average}; allowed: {', '.join(AVERAGES)}")
