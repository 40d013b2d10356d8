"""One network of the study: trains as train.py does, then reads the test split for a record.

    python -m benchmarks.study_run --config=configs/study.py:se --workdir=runs/study_se

The last line is the outcome of train.py and, beside it, macs, and for the pictures as they are and
every variation of benchmarks/study_variations.py `correct_NAME`: which of the stored test images
the network is right about, as hexadecimal digits, eight images in two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from flax import nnx

import eval as looking
import train
from benchmarks import study_records
from benchmarks.study_variations import CLEAN, VARIATIONS
from lambdanet.config_flag import ConfigFlag
from lambdanet.training import evaluate, metrics, start_up, step


def tested(workdir: Path, accuracy: float, *, vary: bool) -> dict[str, Any]:
    """Returns the network's macs and what it gets right of the test split.

    Args:
        workdir: of a finished run.
        accuracy: what its last evaluation gave for the same pictures.
        vary: whether pictures are varied, too.

    Raises:
        RuntimeError: another accuracy comes out.
    """
    subject = looking.load_subject(workdir=workdir)
    weights, _ = subject.load_weights("live")
    eval_step = step.make_eval_step(subject.graphdef, subject.config, score=subject.task.score)
    eval_step = jax.jit(eval_step)
    batches = list(subject.batches(subject.split()))
    pictures = np.concatenate([batch["image"] for batch in batches])
    found = {"macs": nnx.eval_shape(subject.build).macs(*subject.config.data.image_size)}
    for name, change in VARIATIONS.items() if vary else [(CLEAN, VARIATIONS[CLEAN])]:
        images = np.split(change(pictures), len(batches))
        varied = [batch | {"image": image} for batch, image in zip(batches, images, strict=True)]
        rows = evaluate.evaluate(eval_step, {"": weights}, varied).rows[""]
        right = rows["label"] == rows["prediction"]
        if name == CLEAN and abs(right.mean() - accuracy) > 1e-6:
            raise RuntimeError(
                f"{workdir}: the run ended with a test accuracy of {accuracy}, its checkpoint has "
                f"{right.mean()}"
            )
        found[f"correct_{name}"] = study_records.pack(right)
    return found


def main(argv: list[str]) -> None:
    """Reads the flags, trains, tests, prints the outcome as JSON."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}; keys start with --config.")
    logging.set_verbosity(logging.WARNING)
    start_up.prepare_cpu()
    config, workdir = CONFIG.value, Path(flags.FLAGS.workdir)
    outcome = train.run(config, workdir)
    if not outcome["interrupted"]:
        vary = config.data.source == "image_folder"
        outcome |= tested(workdir, outcome["accuracy"], vary=vary)
    print(metrics.outcome_line(outcome))


if __name__ == "__main__":
    CONFIG = ConfigFlag("configs/study.py")
    flags.declare_key_flag("config")
    flags.DEFINE_string("workdir", None, "the run's directory; a run there goes on", required=True)
    app.run(main)
