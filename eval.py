"""Looks at a model: accuracy, summary, speed, attention maps, predictions, videos, export,
pseudo-labels.

    python eval.py --mode=accuracy --workdir=runs/digits
    python eval.py --mode=summary --config=configs/imagenet90.py:lccc
    python eval.py --mode=predict --workdir=runs/digits --input=FILE_OR_FOLDER_OR_PATTERN
    python eval.py --mode=video --workdir=runs/moving --input=CLIP_OR_FRAMES --every=10
    python eval.py --mode=export --workdir=runs/digits --step=best
    python eval.py --mode=describe --name='lambda_*'

The model is that of --workdir (its config.json and a checkpoint), or that of --config with the
weights of --weights: a file (safetensors, npz or PyTorch's), a folder, a workdir, or a repository
of the hub, hf:OWNER/NAME; without it those of the config's train.init_weights, if it takes them
whole. Every mode prints a table and writes its results to --output as JSON. From Python, each mode
is a function of a subject:

    subject = eval.load_subject(workdir="runs/digits")
    eval.accuracy(subject)["live"]["accuracy"]

`lambdanet.analysis.predict` has the shorter ways to a run: `Predictor(workdir)(pictures)` and
`load_model(workdir)`.
"""

from __future__ import annotations

from lambdanet import interrupt

if __name__ == "__main__":
    interrupt.leave_quietly()  # the imports below take seconds

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from flax import nnx
from ml_collections import ConfigDict

import models
from configs import base
from lambdanet import attention, tasks
from lambdanet import config as config_lib
from lambdanet.analysis import subject as subject_lib
from lambdanet.analysis.accuracy import accuracy
from lambdanet.analysis.console import say
from lambdanet.analysis.modes import (
    draw_attention,
    export_model,
    label_split,
    measure_speed,
    summarise,
    write_results,
)
from lambdanet.analysis.predict import counted
from lambdanet.analysis.predict_mode import run_predict
from lambdanet.analysis.video_mode import run_video
from lambdanet.config_flag import ConfigFlag, apply_overrides, define_path
from lambdanet.data.class_folders import listing
from lambdanet.interop import sources
from lambdanet.registry import suggest
from lambdanet.training import start_up
from lambdanet.training import state as state_lib
from models import pretrained, segmentation


def load_subject(
    config: ConfigDict | None = None,
    *,
    workdir: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    overrides: Mapping[str, str] | None = None,
    step: str = "latest",
    average: str | None = None,
    needs_data: bool = True,
    needs_weights: bool = True,
) -> subject_lib.Subject:
    """Reads and checks the config, and asks the run or the data for the classes.

    Args:
        config: of configs/FILE.py, left as it is; None = config.json of the workdir.
        workdir: see `Subject`; likewise weights, step, average.
        weights: a source of weights, see `Subject`; None without workdir: the config's
            train.init_weights, if train.init_head is 'load'.
        overrides: texts by key, put in place of the config's values.
        needs_data: False: what the run or the weights keep of the data is enough; without that and
            without data the model gets its default number of classes.
        needs_weights: False: where none are named, the config's are not looked for.

    Raises:
        ConfigError, ValueError: what is wrong and what is allowed.
        FileNotFoundError: no such weights.
    """
    overrides, step, trusted = overrides or {}, str(step), config is not None
    subject_lib.check_choice(step, average, weights)
    if config is None:
        if not workdir:
            raise ValueError("give --workdir=DIR (a training run) or --config=configs/FILE.py")
        config = config_lib.load(workdir, base.get_config())
    config_lib.check_type(config)
    config = apply_overrides(config, overrides)  # a copy
    train = config.get("train") if needs_weights and not weights and not workdir else None
    if isinstance(train, ConfigDict) and train.get("init_head") == "load":
        weights = train.get("init_weights")
    for section, key in (("data", "pseudo_labels"), ("train", "init_weights")):
        if isinstance(config.get(section), ConfigDict):  # if not, `validate` says so
            with config.ignore_type():
                config[section][key] = ""  # only training reads it

    def shapes() -> nnx.Module:
        build = models.builder_from_config(config, tasks.options_without_data(config))
        return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(config.seed)))

    checks = dict(build=shapes, check_paths=needs_data, training=False)
    config_lib.validate(config, base.get_config(), models.registry, **checks)
    found = sources.resolve(weights) if weights else None
    start_up.use_compilation_cache(config.train.cache_dir)
    # Where only the config.json of somebody's run points, nothing is written.
    prepares = trusted or "data.data_dir" in overrides
    where = dict(workdir=workdir, weights=found, needs_data=needs_data, prepares=prepares)
    info, options = subject_lib.find_info(config, **where)
    build = models.builder_from_config(config, options)

    def build_model() -> nnx.Module:
        return build(rngs=nnx.Rngs(config.seed))

    graphdef = state_lib.views(build_model)[1]
    if info is not tasks.UNKNOWN:
        subject_lib.check_classes(workdir, found, info, build_model)
    if found:
        subject_lib.say_what_fits(found, info, build_model, config.data, pretrained.normalisation)
    source = (workdir, found, step, average, models.closest_model)
    return subject_lib.Subject(config, tasks.get(config.task), info, build_model, graphdef, *source)


def describe(name: str = "*") -> None:
    """Prints signature, options and paper of what has that name, or the names of a pattern."""
    found = [("model", n, models.describe) for n in models.list_models(name)]
    found += [("attention", n, attention.describe) for n in attention.list_attention(name)]
    heads = segmentation.registry
    found += [("head", n, heads.describe) for n in heads.names(name)]
    if not found:
        known = [*models.list_models(), *attention.list_attention(), *heads.names()]
        raise ValueError(
            f"--name={name}: no such model, attention block or segmentation head."
            f"{suggest(name, known)} Leave it out to see all"
        )
    listed = "\n".join(f"{kind:<10} {n}" for kind, n, _ in found)
    one = len({n for _, n, _ in found}) == 1  # a block and a head may share a name
    say("\n\n".join(f"{kind}: {text(n)}" for kind, n, text in found) if one else listed)


# ---- Flags ---------------------------------------------------------------------------------------

MODES = (
    *("accuracy", "summary", "speed", "attention", "predict", "video", "export", "pseudo_label"),
    "describe",
)
NEED_DATA = ("accuracy", "attention", "pseudo_label")
ONLY_FOR = {
    "input": ("predict", "video"),
    "classes": ("predict", "export"),
    **dict.fromkeys(("top", "fps"), ("predict",)),
    **dict.fromkeys(("every", "reach", "label_maps"), ("video",)),
}
"""Flags that few modes read, and which would do nothing in others."""


def main(argv: list[str]) -> None:
    """Reads the flags, runs a mode and writes its results; wrong input ends with its message."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    given = flags.FLAGS
    logging.set_verbosity(logging.ERROR)
    start_up.prepare_cpu()
    try:
        check_flags(given.mode, given)
        run(given.mode, given, CONFIG)
    except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        said = str(error) or type(error).__name__  # Python's MemoryError says nothing
        sys.exit(f"eval.py --mode={given.mode}: {said}")


def check_flags(mode: str, given: Any) -> None:
    """Raises ValueError if flags are set (`given` has them) that only other modes read."""
    values = {name: getattr(given, name) for name, only in ONLY_FOR.items() if mode not in only}
    problems = [
        f"--{name}={value}: only for --mode={' and '.join(ONLY_FOR[name])}; leave it out"
        for name, value in values.items()
        if value not in (None, [])
    ]
    if mode == "video" and len(given.input) > 1:
        problems.append(f"--mode=video takes one --input, not {len(given.input)}")
    if problems:
        raise ValueError("; ".join(problems))


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
        needs_weights=mode not in ("summary", "speed"),
    ).with_names(given.classes)
    config_lib.check_workdir(folder, "output" if given.output else "workdir")
    modes = {
        "accuracy": lambda: accuracy(
            subject, split=given.split, batch_size=given.batch_size, folder=folder
        ),
        "summary": lambda: summarise(subject),
        "speed": lambda: measure_speed(
            subject, batch_sizes=given.batch_sizes, repeats=given.repeats
        ),
        "attention": lambda: draw_attention(
            subject, folder / "attention", split=given.split, images=given.images
        ),
        "predict": lambda: run_predict(
            subject,
            folder / "predictions",
            given.input,
            batch_size=given.batch_size,
            top=given.top,
            fps=given.fps,
        ),
        "video": lambda: run_video(
            subject,
            folder / "video",
            "".join(given.input),
            every=given.every,
            reach=given.reach,
            label_maps=given.label_maps,
        ),
        "export": lambda: export_model(subject, folder),
        "pseudo_label": lambda: label_split(
            subject, folder, split=given.split, threshold=given.threshold
        ),
    }
    results = modes[mode]()
    if mode != "pseudo_label":  # that file is the result
        write_results(folder, mode, subject, results)
    if problems := results.get("problems"):
        left = counted(len(problems), results["what"])
        raise ValueError(
            f"{left} {'is' if len(problems) == 1 else 'are'} left out:{listing(problems)}"
        )


if __name__ == "__main__":
    CONFIG = ConfigFlag(None)
    flags.declare_key_flag("config")
    flags.DEFINE_enum("mode", "accuracy", MODES, "what to do")
    define_path("workdir", "a training run; gives config and weights")
    flags.DEFINE_string(
        "weights",
        None,
        "weights instead of a checkpoint: a file, a folder, a workdir, or hf:OWNER/NAME[@REVISION]"
        "[/FILE]",
    )
    flags.DEFINE_string("step", "latest", "checkpoint: 'latest', 'best' or a step number")
    flags.DEFINE_enum(
        "average",
        None,
        subject_lib.AVERAGES,
        "of a run, in all modes but accuracy (default live); of a file that has both (ema)",
    )
    define_path("output", "directory for results; default <workdir>/eval or runs/eval")
    flags.DEFINE_string(
        "split", None, "split; default the test split, for pseudo_label pseudo_split"
    )
    flags.DEFINE_integer("batch_size", 0, "0 = that of the config", lower_bound=0)
    flags.DEFINE_multi_integer("batch_sizes", [1, 8, 64], "speed (repeat the flag)", lower_bound=1)
    flags.DEFINE_integer("repeats", 20, "speed: timed calls per batch size", lower_bound=1)
    define_path(
        "input",
        "predict: a picture (of clips a video or a folder of frames), a folder or a quoted pattern "
        "of them, repeated for more; video: one clip, a folder of numbered frames or a video file",
        many=True,
    )
    define_path("classes", "predict, export: a text file with the name of one class on each line")
    flags.DEFINE_integer("top", None, "predict: classes that are named; default 5", lower_bound=1)
    flags.DEFINE_float("fps", None, "predict, clips: frames a second of videos; default all", 0.0)
    flags.DEFINE_integer(
        "every",
        None,
        "video: a key frame every so many frames; of a propagation from many frames the step "
        "between those that it reads; default propagation.interval",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "reach",
        None,
        "video, of a propagation from many frames: how many it reads on each side; default "
        "propagation.reach",
        lower_bound=0,
    )
    flags.DEFINE_bool(
        "label_maps", None, "video, of a segmenter: write index PNGs; default: those of a folder"
    )
    flags.DEFINE_integer("images", 3, "attention: number of images", lower_bound=1)
    flags.DEFINE_float("threshold", 0.9, "pseudo_label: least confidence", 0.0, 1.0)
    flags.DEFINE_string("name", "*", "describe: a model, attention block or head, or a pattern")
    app.run(main)
