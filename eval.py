"""Looks at a model: accuracy, summary, speed, attention maps, export, pseudo-labels.

    python eval.py --mode=accuracy --workdir=runs/digits
    python eval.py --mode=summary --config=configs/imagenet90.py:lambda_resnet50
    python eval.py --mode=export --workdir=runs/digits --step=best
    python eval.py --mode=describe --name='lambda_*'

The model is that of --workdir (its config.json and a checkpoint), or that of --config with the
weights of --weights (a safetensors, npz or PyTorch file). Every mode prints a table and writes its
results to --output as JSON.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

import models
from configs import base
from lambdanet import attention, config_flag, data
from lambdanet import config as configs
from lambdanet.analysis import attention_maps, export, speed, summary
from lambdanet.analysis.predict import predict
from lambdanet.data import pseudo_labels
from lambdanet.interop import files
from lambdanet.training import checkpoint, mesh, start_up, state, step
from lambdanet.training.evaluate import evaluate
from lambdanet.training.weights import read_weights

MODES = ("accuracy", "summary", "speed", "attention", "export", "pseudo_label", "describe")

CONFIG = config_flag.ConfigFlag(None)
MODE = flags.DEFINE_enum("mode", "accuracy", MODES, "what to do")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "directory of a training run; gives config and weights"
)
WEIGHTS = flags.DEFINE_string(
    "weights", None, "weights file (safetensors, npz, PyTorch) instead of a checkpoint"
)
STEP = flags.DEFINE_string(
    "step", "latest", "checkpoint: 'latest', 'best' (by train.keep_best) or a step number"
)
AVERAGE = flags.DEFINE_enum(
    "average", "live", ("live", "ema"), "weights used by all modes but accuracy, which shows both"
)
OUTPUT = flags.DEFINE_string(
    "output", None, "directory for results; default <workdir>/eval, without a workdir runs/eval"
)
SPLIT = flags.DEFINE_string(
    "split",
    None,
    "split; default data.test_split, else eval_split; for pseudo_label data.pseudo_split",
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "evaluation batch size; 0 = that of the config", lower_bound=0
)
BATCH_SIZES = flags.DEFINE_multi_integer(
    "batch_sizes", [1, 8, 64], "speed: sizes (repeat the flag)", lower_bound=1
)
REPEATS = flags.DEFINE_integer("repeats", 20, "speed: timed calls per batch size", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 3, "attention: number of images", lower_bound=1)
THRESHOLD = flags.DEFINE_float("threshold", 0.9, "pseudo_label: least confidence", 0.0, 1.0)
NAME = flags.DEFINE_string("name", "*", "describe: a model or attention block, or a pattern")

console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)


# --------------------------------------------------------------------------------------------------
# The model and its weights
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Subject:
    """The model under evaluation: how to build it, the graph of its evaluation view, sizes, and its
    classes.
    """

    config: ConfigDict
    build: Callable[[], nnx.Module]
    graphdef: nnx.GraphDef
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # height, width, channels
    name: str

    def forward(self, weights: tuple[dict, dict], images: jax.Array) -> jax.Array:
        """Logits of uint8 images [b, h, w, c]; `weights` is (params, stats)."""
        normal = step.normalise(images, self.config.data.mean, self.config.data.std)
        return nnx.merge(self.graphdef, *weights)(normal)


def load_subject() -> Subject:
    """Reads and validates the config, and finds the number of classes."""
    if CONFIG.path:
        config = CONFIG.value
    elif WORKDIR.value:
        config = config_flag.apply_overrides(
            configs.load(WORKDIR.value, base.get_config()), CONFIG.overrides
        )
    else:
        raise ValueError(
            "nothing to look at: give --workdir=DIR (a training run) or --config=configs/FILE.py"
        )
    needs_data = MODE.value in ("accuracy", "attention", "pseudo_label")
    with config.ignore_type():
        config.data.pseudo_labels = config.train.init_weights = ""  # only training reads them
    validate = functools.partial(
        configs.validate, config, base.get_config(), models.registry, check_paths=needs_data
    )
    validate()
    start_up.use_compilation_cache(config.train.cache_dir)
    try:
        info = data.describe(config.data)
        num_classes, class_names = (
            config.model.get("num_classes", info.num_classes),
            info.class_names,
        )
    except (ValueError, FileNotFoundError) as error:
        if needs_data:
            raise
        default = models.registry.parameters(config.model.name)["num_classes"].default
        default = models.registry.lookup(config.model.name)[1].get("num_classes", default)
        num_classes, class_names = config.model.get("num_classes", default), ()
        say(f"No data ({error}); the model gets {num_classes} classes.")
    if num_classes < len(class_names):
        raise ValueError(
            f"model.num_classes={num_classes}, but the data has {len(class_names)} classes"
        )
    class_names += tuple(f"class {i}" for i in range(len(class_names), num_classes))

    def build() -> nnx.Module:
        return models.create_from_config(
            config, {"num_classes": num_classes}, rngs=nnx.Rngs(config.seed)
        )

    validate(build=lambda: nnx.eval_shape(build))
    shape = (*config.data.image_size, config.data.channels)
    return Subject(
        config, build, state.views(build)[1], num_classes, class_names, shape, config.model.name
    )


def load_weights(subject: Subject, which: str) -> tuple[tuple[dict, dict], str]:
    """Returns ((params, stats), where they come from), from --weights or from a checkpoint of
    --workdir.
    """
    params, stats = state.abstract_weights(subject.build)
    if WEIGHTS.value:
        return read_weights(
            WEIGHTS.value, nnx.eval_shape(subject.build), params, stats
        ), WEIGHTS.value
    if not WORKDIR.value:
        raise ValueError(
            f"--mode={MODE.value} needs weights: give --workdir=DIR (a training run) or "
            "--weights=FILE"
        )
    if STEP.value not in ("best", "latest") and not STEP.value.isdigit():
        raise ValueError(f"--step={STEP.value}; allowed: best, latest, or the number of a step")
    wanted = int(STEP.value) if STEP.value.isdigit() else STEP.value
    params, stats, number = checkpoint.load_weights(WORKDIR.value, which, wanted, params, stats)
    return (params, stats), f"{WORKDIR.value}, step {number}"


def eval_split(subject: Subject) -> str:
    split = SPLIT.value or subject.config.data.test_split or subject.config.data.eval_split
    if not split:
        raise ValueError("the config names no test_split and no eval_split: give --split=NAME")
    return split


def eval_batches(subject: Subject, split: str):
    """Batches of a split, the batch size rounded up to a multiple of the devices."""
    wanted = (
        BATCH_SIZE.value or subject.config.train.eval_batch_size or subject.config.train.batch_size
    )
    size = -(-wanted // jax.device_count()) * jax.device_count()
    return data.eval_batches(
        subject.config.data, split, batch_size=size, num_classes=subject.num_classes
    )


def write_results(subject: Subject, results: dict[str, Any]) -> None:
    path = output_dir() / f"{MODE.value}.json"
    path.write_text(json.dumps({"model": subject.name} | results, indent=2) + "\n")
    say(f"Written: {path}")


def say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def print_table(title: str, columns: tuple[str, ...], rows: Any) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(str, row))
    say(title)
    console.print(table)


def output_dir() -> Path:
    folder = Path(OUTPUT.value or Path(WORKDIR.value or "runs") / "eval")
    configs.check_workdir(folder)
    return folder


# --------------------------------------------------------------------------------------------------
# Modes
# --------------------------------------------------------------------------------------------------


def run_accuracy(subject: Subject) -> None:
    """Top-1, top-5 and loss of the live and, if the run kept them, the averaged weights."""
    split, rows = eval_split(subject), []
    sharding = mesh.batch_sharding(mesh.make_mesh())
    eval_step = jax.jit(step.make_eval_step(subject.graphdef, subject.config, subject.num_classes))
    results: dict[str, Any] = {"split": split}
    for which in (
        ("live", "ema") if subject.config.train.ema_decay and not WEIGHTS.value else ("live",)
    ):
        weights, source = load_weights(subject, which)
        out = evaluate(eval_step, *weights, eval_batches(subject, split), sharding=sharding)
        numbers = ("accuracy", "top5", "loss", "count", "skipped_records")
        results[which] = {k: out[k] for k in numbers if k in out} | {"source": source}
        top1, top5, loss = (
            f"{100 * out['accuracy']:.2f}",
            f"{100 * out['top5']:.2f}",
            f"{out['loss']:.4f}",
        )
        rows.append((which, top1, top5, loss, out["count"], source))
    print_table(
        f"{subject.name} on {split}",
        ("weights", "top-1 %", "top-5 %", "loss", "images", "from"),
        rows,
    )
    write_results(subject, results)


def run_summary(subject: Subject) -> None:
    """Path, type, output shape, parameters and MACs of every layer; nothing is allocated."""
    model = nnx.view(nnx.eval_shape(subject.build), deterministic=True, use_running_average=True)
    rows = summary.summarise(model, *subject.image_shape[:2])
    totals = summary.totals(rows)
    flops = summary.compiler_flops(
        subject.forward, state.abstract_weights(subject.build), subject.image_shape
    )
    say(f"{subject.name}, {'x'.join(map(str, subject.image_shape))}")
    console.print(summary.summary_table(rows))
    say(
        f"{2 * totals['macs']:,} FLOPs by the papers' closed forms, two per MAC. The compiler "
        f"counts {flops:,.0f}"
    )
    say(
        "for the lowerings chosen here: with element-wise work, without taps on padding, loop "
        "bodies once."
    )
    write_results(subject, {**totals, "compiler_flops": flops, "rows": rows})


def run_speed(subject: Subject) -> None:
    """Forward pass by batch size, on one device."""
    if WORKDIR.value or WEIGHTS.value:
        weights, _ = load_weights(subject, AVERAGE.value)
    else:  # the values of the weights do not change the time
        weights = jax.jit(lambda: state.split_model(subject.build())[1:])()
    results = speed.measure(
        subject.forward, weights, subject.image_shape, BATCH_SIZES.value, repeats=REPEATS.value
    )
    device = jax.devices()[0].device_kind
    say(f"{subject.name}: forward pass on {subject.image_shape} images, {device}")
    console.print(speed.speed_table(results))
    write_results(subject, {"device": device, "results": results})


def run_attention(subject: Subject) -> None:
    """PNG per attention layer: where several queries of several images look."""
    weights, source = load_weights(subject, AVERAGE.value)
    batch = next(iter(eval_batches(subject, eval_split(subject))))
    images = batch["image"][np.asarray(batch["mask"]) > 0][: IMAGES.value]
    normal = step.normalise(images, subject.config.data.mean, subject.config.data.std)
    maps = attention_maps.capture_maps(nnx.merge(subject.graphdef, *weights), normal)
    folder = output_dir() / "attention"
    paths = attention_maps.draw_maps(maps, images, folder)
    rows = [
        (layer, values.shape, path)
        for (layer, values), path in zip(maps.items(), paths, strict=True)
    ]
    print_table(f"{subject.name}: attention of {source}", ("layer", "map", "picture"), rows)
    write_results(
        subject, {"pictures": {layer: str(path) for layer, path in zip(maps, paths, strict=True)}}
    )


def run_export(subject: Subject) -> None:
    """One StableHLO file that runs without this library, and the weights as safetensors."""
    weights, source = load_weights(subject, AVERAGE.value)
    folder = output_dir()
    forward = functools.partial(subject.forward, weights)
    program = export.export_model(
        forward, folder / "model.stablehlo", image_shape=subject.image_shape
    )
    images = np.random.default_rng(0).integers(0, 256, (3, *subject.image_shape), dtype=np.uint8)
    difference = export.check_exported(program, forward, images)
    flat = state.flatten_names(weights[0]) | state.flatten_names(weights[1])
    plain = configs.to_plain(subject.config.model) | {"num_classes": subject.num_classes}
    files.save_safetensors(folder / "model.safetensors", flat, files.export_metadata(plain))
    written = (
        (program, "program and weights, needs jax only"),
        (folder / "model.safetensors", "weights, for --weights"),
    )
    rows = [(path, f"{path.stat().st_size / 1e6:.2f}", what) for path, what in written]
    print_table(f"{subject.name} from {source}", ("file", "MB", "holds"), rows)
    say(
        f"Reloaded: logits differ by {difference:.1e} of the largest one. Use it anywhere, after "
        "`import jax.export`:"
    )
    say(f"  exported = jax.export.deserialize(bytearray(open({str(program)!r}, 'rb').read()))")
    say(
        "  logits = exported.call(images)  # uint8 [batch, "
        f"{', '.join(map(str, subject.image_shape))}]"
    )
    write_results(
        subject, {"source": source, "platforms": export.PLATFORMS, "reload_difference": difference}
    )


def run_pseudo_label(subject: Subject) -> None:
    """Class-balanced labels above --threshold for data.pseudo_split, for data.pseudo_labels of
    another run.
    """
    split = SPLIT.value or subject.config.data.pseudo_split
    weights, source = load_weights(subject, AVERAGE.value)
    path = output_dir() / "pseudo_labels.json"
    ids, probabilities = predict(subject.forward, weights, eval_batches(subject, split))
    chosen = pseudo_labels.write(
        path, ids, probabilities, THRESHOLD.value, subject.num_classes, split=split
    )
    rows = zip(subject.class_names, chosen["class_counts"], strict=True)
    print_table(f"Pseudo-labels for {split} by {source}", ("class", "labelled"), rows)
    say(
        f"{chosen['selected']} of {chosen['records']} records; {chosen['qualified']} reach "
        f"{THRESHOLD.value}"
    )
    say(f"Written: {path}; train with --config.data.pseudo_labels={path}")


def run_describe() -> None:
    """Signature, options and paper of one model or block, or the list of those whose name fits a
    pattern.
    """
    found = {
        "model": models.list_models(NAME.value),
        "attention": attention.list_attention(NAME.value),
    }
    describe = {"model": models.describe, "attention": attention.describe}
    names = [(kind, name) for kind, listed in found.items() for name in listed]
    if not names:
        raise ValueError(
            f"--name={NAME.value}: no such model or attention block; leave it out to see all"
        )
    say(
        "\n".join(f"{k:<10} {n}" for k, n in names)
        if len(names) > 1
        else describe[names[0][0]](names[0][1])
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)
    start_up.use_eigen_convolutions()
    start_up.keep_freed_memory()
    run = globals()[f"run_{MODE.value}"]
    try:
        run() if MODE.value == "describe" else run(load_subject())
    except (
        ValueError,
        FileNotFoundError,
    ) as error:  # what was asked for cannot be done; the message says why
        sys.exit(f"eval.py --mode={MODE.value}: {error}")


if __name__ == "__main__":
    app.run(main)
