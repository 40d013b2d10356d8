"""Looks at a model: accuracy, summary, speed, attention maps, export, pseudo-labels.

    python eval.py --mode=accuracy --workdir=runs/digits
    python eval.py --mode=summary --config=configs/imagenet90.py:lambda_resnet50
    python eval.py --mode=export --workdir=runs/digits --step=best
    python eval.py --mode=describe --name='lambda_*'

The model is that of --workdir (its config.json and a checkpoint), or that of --config with the
weights of --weights (a safetensors, npz or PyTorch file). Every mode prints a table and writes its
results to --output as JSON. From Python, each mode is a function of a subject:

    subject = eval.load_subject(workdir="runs/digits")
    eval.accuracy(subject)["live"]["accuracy"]
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from flax import nnx
from ml_collections import ConfigDict

import models
from configs import base
from lambdanet import attention, data, tasks
from lambdanet import config as config_lib
from lambdanet.analysis import attention_maps, export, speed, summary
from lambdanet.analysis import text as text_lib
from lambdanet.analysis.predict import predict
from lambdanet.atomic import write_file
from lambdanet.config_flag import ConfigFlag, apply_overrides
from lambdanet.data import pseudo_labels
from lambdanet.interop import files
from lambdanet.interop.grids import grids_of
from lambdanet.ops.images import normalise
from lambdanet.training import checkpoint, evaluate, mesh, start_up
from lambdanet.training import state as state_lib
from lambdanet.training import step as step_lib
from lambdanet.training import weights as weights_lib

Weights = tuple[dict, dict]
console = text_lib.console(130)

# ---- The model and its weights -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model under evaluation.

    Attributes:
        config: the whole config, checked.
        task: its module of lambdanet.tasks.
        info: what the task found in the data; `tasks.UNKNOWN` where there is none.
        build: makes the model.
        graphdef: its evaluation view.
        workdir: the run whose checkpoint gives the weights; None = `weights`.
        weights: a file with weights instead; None with `workdir` None: as initialised.
        step: the checkpoint: 'latest', 'best' (by train.keep_best) or a step number.
        average: which weights all modes but `accuracy` use, 'live' or 'ema'; of a PyTorch file that
            has both, all modes. None = 'live' of a run, 'ema' of a file, as timm does.
    """

    config: ConfigDict
    task: Any
    info: data.DataInfo
    build: Callable[[], nnx.Module]
    graphdef: nnx.GraphDef
    workdir: str | os.PathLike | None
    weights: str | os.PathLike | None
    step: str
    average: str | None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.model.name

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return (*self.config.data.image_size, self.config.data.channels)

    def forward(self, weights: Weights, images: jax.Array) -> jax.Array:
        """The model's output for uint8 images [b, h, w, c]; `weights` is (params, stats)."""
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
                self.weights, model, params, stats, prefer_ema=averaged
            )
            return found, str(self.weights)
        if not self.workdir:
            raise ValueError("weights are needed: give --workdir=DIR (a run) or --weights=FILE")
        if self.step not in ("best", "latest") and not self.step.isdigit():
            allowed = "best, latest, or the number of a step"
            raise ValueError(f"--step={self.step}; allowed: {allowed}")
        wanted = int(self.step) if self.step.isdigit() else self.step
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


def load_subject(
    config: ConfigDict | None = None,
    *,
    workdir: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    overrides: Mapping[str, str] | None = None,
    step: str = "latest",
    average: str | None = None,
    needs_data: bool = True,
) -> Subject:
    """Reads and checks the config, and asks the data for its classes.

    Args:
        config: of configs/FILE.py; None = config.json of the workdir.
        workdir: see `Subject`; likewise weights, step, average.
        weights: see `Subject`.
        overrides: texts by key, put into config.json's values.
        step: see `Subject`.
        average: see `Subject`.
        needs_data: False: without data the model gets its default number of classes.

    Raises:
        ConfigError, ValueError: what is wrong and what is allowed.
    """
    overrides, trusted = overrides or {}, config is not None
    if config is None:
        if not workdir:
            raise ValueError("give --workdir=DIR (a training run) or --config=configs/FILE.py")
        config = apply_overrides(config_lib.load(workdir, base.get_config()), overrides)
    with config.ignore_type():  # only training reads these
        config.data.pseudo_labels = config.train.init_weights = ""

    def shapes() -> nnx.Module:
        build = models.builder_from_config(config, tasks.options_without_data(config))
        return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(config.seed)))

    checks = dict(build=shapes, check_paths=needs_data, training=False)
    config_lib.validate(config, base.get_config(), models.registry, **checks)
    start_up.use_compilation_cache(config.train.cache_dir)
    task = tasks.get(config.task)
    try:
        # Where only the config.json of somebody's run points, nothing is written.
        if trusted or "data.data_dir" in overrides:
            data.prepare_embedded(config.data)
        info = task.read(data.open_builder(config.data))
        options = task.model_options(info, config)
    except (ValueError, OSError) as error:
        if needs_data:
            raise
        info, options = tasks.UNKNOWN, {}
        say(f"No data ({error}); the model is built as for its published number of classes.")
    build = models.builder_from_config(config, options)

    def build_model() -> nnx.Module:
        return build(rngs=nnx.Rngs(config.seed))

    graphdef = state_lib.views(build_model)[1]
    return Subject(
        config, task, info, build_model, graphdef, workdir, weights, str(step), average
    )  # fmt: skip


# ---- Output --------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Prints a text as it is."""
    console.print(text, markup=False, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a table; long cells are folded, never cut."""
    say(title)
    console.print(text_lib.console_table(columns, rows))


def write_results(folder: Path, mode: str, subject: Subject, results: dict[str, Any]) -> None:
    """Writes <folder>/<mode>.json."""
    text = json.dumps({"model": subject.name} | results, indent=2) + "\n"
    say(f"Written: {write_file(folder / f'{mode}.json', text)}")


# ---- Modes: functions of a subject, each returns what it found as plain values
# --------------------


def accuracy(subject: Subject, *, split: str | None = None, batch_size: int = 0) -> dict[str, Any]:
    """The task's metrics of the live and, if the run kept them, the averaged weights.

    Args:
        subject: of `load_subject`.
        split: None = the test split, else the evaluation split.
        batch_size: 0 = the config's.

    Returns:
        dict(split, live, ema): per kind of weights the metrics, count and source.
    """
    split, averaged = subject.split(split), subject.config.train.ema_decay and not subject.weights
    loaded = {which: subject.load_weights(which) for which in ("live", *["ema"] * bool(averaged))}
    eval_step = step_lib.make_eval_step(subject.graphdef, subject.config, score=subject.task.score)
    found = evaluate.evaluate(
        jax.jit(eval_step),
        {which: weights for which, (weights, _) in loaded.items()},
        subject.batches(split, batch_size),
        sharding=mesh.batch_sharding(mesh.make_mesh()),
    )
    finish = tasks.finisher(subject.config, subject.info)
    results, rows, metrics = {"split": split}, [], subject.task.METRICS
    for which, (_, source) in loaded.items():
        values = finish(found.sums[which], found.rows[which])
        skipped = {"skipped_records": found.skipped} if found.skipped else {}
        results[which] = {**values, "count": found.count, **skipped, "source": source}
        shown = (
            f"{100 * values[k]:.2f}" if m == "max" else f"{values[k]:.4f}"
            for k, m in metrics.items()
        )
        rows.append((which, *shown, found.count, source))
    titles = (f"{name} %" if mode == "max" else name for name, mode in metrics.items())
    show_table(f"{subject.name} on {split}", ("weights", *titles, "images", "from"), rows)
    return results


def summarise(subject: Subject) -> dict[str, Any]:
    """Path, type, output shape, parameters and MACs of every layer; nothing is allocated.

    Weights that were named are read, so that it is known whether they fit.
    """
    if subject.weights:
        say(f"The weights of {subject.load_weights()[1]} fit.")
    model = nnx.view(
        nnx.eval_shape(subject.build), deterministic=True, use_running_average=True,
        raise_if_not_found=False,
    )  # fmt: skip
    rows = summary.summarise(model, *subject.image_shape[:2])
    abstract = state_lib.abstract_weights(subject.build)
    flops = summary.compiler_flops(subject.forward, abstract, subject.image_shape)
    totals = summary.totals(rows)
    say(f"{subject.name}, {'x'.join(map(str, subject.image_shape))}")
    console.print(summary.summary_table(rows))
    say(
        f"{2 * totals['macs']:,} FLOPs by the papers' closed forms, two per MAC. The compiler "
        "counts "
        f"{flops:,.0f}\nfor the lowerings chosen here: with element-wise work, without taps on "
        "padding, loop bodies once."
    )
    return {**totals, "compiler_flops": flops, "rows": rows}


def measure_speed(
    subject: Subject, *, batch_sizes: Sequence[int] = (1, 8, 64), repeats: int = 20
) -> dict[str, Any]:
    """Times the forward pass by batch size, on one device; without weights as initialised."""
    if subject.workdir or subject.weights:
        weights, _ = subject.load_weights()
    else:  # the values of the weights do not change the time
        weights = jax.jit(lambda: state_lib.split_model(subject.build())[1:])()
    shape = subject.image_shape
    results = speed.measure(subject.forward, weights, shape, batch_sizes, repeats=repeats)
    device = jax.devices()[0].device_kind
    say(f"{subject.name}: forward pass on {shape} images, {device}")
    console.print(speed.speed_table(results))
    return {"device": device, "results": results}


def draw_attention(
    subject: Subject, folder: Path, *, split: str | None = None, images: int = 3
) -> dict[str, Any]:
    """Writes a PNG per attention layer: where several queries of the first images look."""
    weights, source = subject.load_weights()
    batch = next(iter(subject.batches(subject.split(split))))
    pictures = batch["image"][np.asarray(batch["mask"]) > 0][:images]
    normal = normalise(pictures, subject.config.data.mean, subject.config.data.std)
    maps = attention_maps.capture_maps(nnx.merge(subject.graphdef, *weights), normal)
    paths = attention_maps.draw_maps(maps, pictures, folder)
    rows = [(k, v.shape, path) for (k, v), path in zip(maps.items(), paths, strict=True)]
    title = f"{subject.name}: attention of {source}"
    show_table(title, ("layer", "map", "picture"), rows)
    return {"pictures": {layer: str(path) for layer, _, path in rows}}


def export_model(subject: Subject, folder: Path) -> dict[str, Any]:
    """Writes one StableHLO file that runs without this library, and the weights as safetensors."""
    weights, source = subject.load_weights()
    forward, shape = functools.partial(subject.forward, weights), subject.image_shape
    program = export.export_model(forward, folder / "model.stablehlo", image_shape=shape)
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    difference = export.check_exported(program, forward, images)
    flat = state_lib.flatten_names(weights[0]) | state_lib.flatten_names(weights[1])
    options = (
        {}
        if subject.info is tasks.UNKNOWN
        else subject.task.model_options(subject.info, subject.config)
    )
    plain = options | config_lib.to_plain(subject.config.model)
    plain["image_size"] = plain.get("image_size", shape[:2])
    abstract = nnx.eval_shape(subject.build)
    path = folder / "model.safetensors"
    files.save_safetensors(path, flat, files.export_metadata(plain, grids_of(abstract)))
    written = ((program, "program and weights, needs jax only"), (path, "weights, for --weights"))
    rows = [(file, f"{file.stat().st_size / 1e6:.2f}", what) for file, what in written]
    show_table(f"{subject.name} from {source}", ("file", "MB", "holds"), rows)
    say(
        f"Reloaded: outputs differ by {difference:.1e} of the largest one. Use it anywhere, after "
        f"`import jax.export`:\n  exported = jax.export.deserialize(bytearray(open({str(program)!r}"
        f", 'rb').read()))\n  logits = exported.call(images)  # uint8 [batch, "
        f"{', '.join(map(str, shape))}]"
    )
    return {"source": source, "platforms": export.PLATFORMS, "reload_difference": difference}


def label_split(
    subject: Subject, folder: Path, *, split: str | None = None, threshold: float = 0.9
) -> dict[str, Any]:
    """Writes class-balanced labels above a confidence for a split (None: data.pseudo_split), for
    data.pseudo_labels of another run.
    """
    split = split or subject.config.data.pseudo_split
    weights, source = subject.load_weights()
    ids, probabilities = predict(subject.forward, weights, subject.batches(split))
    path, count = folder / "pseudo_labels.json", probabilities.shape[1]
    chosen = pseudo_labels.write(path, ids, probabilities, threshold, count, split=split)
    names = [
        *subject.info.classes,
        *(f"class {i}" for i in range(len(subject.info.classes), count)),
    ]
    rows = zip(names, chosen["class_counts"], strict=True)
    show_table(f"Pseudo-labels for {split} by {source}", ("class", "labelled"), rows)
    say(
        f"{chosen['selected']} of {chosen['records']} records; {chosen['qualified']} reach "
        f"{threshold}"
    )
    say(f"Written: {path}; train with --config.data.pseudo_labels={path}")
    return chosen


def describe(name: str = "*") -> None:
    """Prints signature, options and paper of one model or block, or the names of a pattern."""
    found = [("model", n, models.describe) for n in models.list_models(name)]
    found += [("attention", n, attention.describe) for n in attention.list_attention(name)]
    if not found:
        raise ValueError(
            f"--name={name}: no such model or attention block; leave it out to see all"
        )
    listed = "\n".join(f"{kind:<10} {n}" for kind, n, _ in found)
    say(listed if len(found) > 1 else found[0][2](found[0][1]))


# ---- Flags ---------------------------------------------------------------------------------------

MODES = ("accuracy", "summary", "speed", "attention", "export", "pseudo_label", "describe")
NEED_DATA = ("accuracy", "attention", "pseudo_label")


def main(argv: list[str]) -> None:
    """Reads the flags, runs a mode and writes its results; wrong input ends with its message."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    given = flags.FLAGS
    logging.set_verbosity(logging.ERROR)
    start_up.prepare_cpu()
    try:
        run(given.mode, given, CONFIG)
    except (ValueError, OSError, MemoryError) as error:  # it cannot be done; the message says why
        sys.exit(f"eval.py --mode={given.mode}: {error}")


def run(mode: str, given: Any, recipe: Any) -> None:
    """Runs a mode with the flags' values; `recipe` is the `ConfigFlag`."""
    if mode == "describe":
        return describe(given.name)
    folder = Path(given.output or Path(given.workdir or "runs") / "eval")
    subject = load_subject(
        recipe.value if recipe.path else None,
        overrides=recipe.overrides,
        workdir=given.workdir,
        weights=given.weights,
        step=given.step,
        average=given.average,
        needs_data=mode in NEED_DATA,
    )
    config_lib.check_workdir(folder)
    modes = {
        "accuracy": lambda: accuracy(subject, split=given.split, batch_size=given.batch_size),
        "summary": lambda: summarise(subject),
        "speed": lambda: measure_speed(
            subject, batch_sizes=given.batch_sizes, repeats=given.repeats
        ),
        "attention": lambda: draw_attention(
            subject, folder / "attention", split=given.split, images=given.images
        ),
        "export": lambda: export_model(subject, folder),
        "pseudo_label": lambda: label_split(
            subject, folder, split=given.split, threshold=given.threshold
        ),
    }
    results = modes[mode]()
    if mode != "pseudo_label":  # that file is the result
        write_results(folder, mode, subject, results)


if __name__ == "__main__":
    CONFIG = ConfigFlag(None)
    flags.declare_key_flag("config")
    flags.DEFINE_enum("mode", "accuracy", MODES, "what to do")
    flags.DEFINE_string("workdir", None, "a training run; gives config and weights")
    flags.DEFINE_string("weights", None, "weights file instead of a checkpoint")
    flags.DEFINE_string("step", "latest", "checkpoint: 'latest', 'best' or a step number")
    flags.DEFINE_enum(
        "average",
        None,
        ("live", "ema"),
        "of a run, in all modes but accuracy (default live); of a file that has both (ema)",
    )
    flags.DEFINE_string(
        "output", None, "directory for results; default <workdir>/eval or runs/eval"
    )
    flags.DEFINE_string(
        "split", None, "split; default the test split, for pseudo_label pseudo_split"
    )
    flags.DEFINE_integer("batch_size", 0, "0 = that of the config", lower_bound=0)
    flags.DEFINE_multi_integer("batch_sizes", [1, 8, 64], "speed (repeat the flag)", lower_bound=1)
    flags.DEFINE_integer("repeats", 20, "speed: timed calls per batch size", lower_bound=1)
    flags.DEFINE_integer("images", 3, "attention: number of images", lower_bound=1)
    flags.DEFINE_float("threshold", 0.9, "pseudo_label: least confidence", 0.0, 1.0)
    flags.DEFINE_string("name", "*", "describe: a model or attention block, or a pattern")
    app.run(main)
