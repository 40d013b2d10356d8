"""Trains a model on images: `python train.py --config=configs/digits.py --workdir=runs/digits`.

The same command continues an interrupted run from its last checkpoint, and on a finished run
repeats evaluation and report. SIGTERM or Ctrl-C saves, says how to go on, and exits with 0. Any key
of the config can be overridden: `--config.optim.lr=1e-3`. On several hosts, start it on each with
--distributed (on clusters that JAX does not recognise also --coordinator_address, --num_processes
and --process_id); the workdir must be shared.
"""

from __future__ import annotations

import collections
import functools
import itertools
import json
import math
import os
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from absl import app, flags, logging
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import models
from configs import base
from lambdanet import config as config_lib
from lambdanet import data
from lambdanet.config_flag import ConfigFlag
from lambdanet.training import (
    checkpoint,
    evaluate,
    mesh,
    metrics,
    optimizer,
    schedule,
    signals,
    start_up,
    state,
    step,
    weights,
)


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Trains, evaluates and reports.

    Args:
        config: see configs/base.py.
        workdir: made if needed; holds config.json, metrics.jsonl, checkpoints/, report.png and
            report.md.
        devices: None = all.
        stream: where progress is shown; None = standard output.

    Returns:
        step, total_steps, interrupted, train_seconds (of the loop, over all calls that made up the
        run), parameters, bytes_per_device (of the state); if not interrupted also accuracy, top5,
        loss and count on the test split (without one, the eval split), with the prefix 'ema_' too
        if averages are kept, and report, its path; skipped_records if damaged ones were replaced.

    Raises:
        ConfigError, CheckpointError, ValueError: what is wrong and what is allowed, before any
            training.
        FloatingPointError: a metric became infinite or NaN.
    """

    # ----------------------------------------------------------------------------------------------
    # Config and workdir
    # ----------------------------------------------------------------------------------------------
    def build(num_classes: int) -> nnx.Module:
        return models.create_from_config(
            config, num_classes=num_classes, rngs=nnx.Rngs(config.seed)
        )

    shapes = lambda: nnx.eval_shape(lambda: build(10))  # noqa: E731
    config_lib.validate(config, base.get_config(), models.registry, build=shapes, workdir=workdir)
    workdir, train, plain = Path(workdir).absolute(), config.train, config_lib.to_plain(config)
    start_up.use_compilation_cache(train.cache_dir)

    # ----------------------------------------------------------------------------------------------
    # Mesh
    # ----------------------------------------------------------------------------------------------
    device_mesh = mesh.make_mesh(config.mesh.data, config.mesh.fsdp, devices=devices)
    eval_batch_size = train.eval_batch_size or train.batch_size
    mesh.check_batch("train.batch_size", train.batch_size, device_mesh, train.accumulate)
    mesh.check_batch("train.eval_batch_size", eval_batch_size, device_mesh)
    rows, replicated = mesh.batch_sharding(device_mesh), NamedSharding(device_mesh, PartitionSpec())
    process = dict(process_index=jax.process_index(), process_count=jax.process_count())
    main_process = jax.process_index() == 0

    # ----------------------------------------------------------------------------------------------
    # Data
    # ----------------------------------------------------------------------------------------------
    info = data.describe(config.data)
    num_classes = config.model.get("num_classes") or info.num_classes
    if num_classes < info.num_classes:
        raise ValueError(
            f"model.num_classes={num_classes}, but the data has {info.num_classes} classes"
        )
    steps_per_epoch = info.train_records / train.batch_size
    total_steps = train.steps or max(round(train.epochs * steps_per_epoch), 1)

    def eval_batches(split: str) -> data.EvalBatches:
        return data.eval_batches(
            config.data, split, batch_size=eval_batch_size, num_classes=num_classes, **process
        )

    # ----------------------------------------------------------------------------------------------
    # Model, optimiser, steps
    # ----------------------------------------------------------------------------------------------
    abstract_model = nnx.eval_shape(lambda: build(num_classes))
    graphdef_train, graphdef_eval = state.views(lambda: build(num_classes))
    lr = schedule.make_schedule(
        config.optim, total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )
    tx = optimizer.make_optimizer(config.optim, lr, state.split_model(abstract_model)[1])
    init = state.make_init(lambda: build(num_classes), tx, ema=train.ema_decay > 0)
    abstract = jax.eval_shape(init)
    shardings = mesh.state_shardings(abstract, device_mesh, config.mesh.fsdp_min_size)
    options = dict(num_classes=num_classes, seed=config.seed, schedule=lr, mesh=device_mesh)
    train_step = step.make_train_step(graphdef_train, tx, config, **options)
    train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated))
    eval_step = step.make_eval_step(graphdef_eval, config, num_classes)
    eval_step = jax.jit(eval_step, out_shardings=evaluate.eval_shardings(device_mesh))

    # ----------------------------------------------------------------------------------------------
    # State: restored or new
    # ----------------------------------------------------------------------------------------------
    checkpoints = checkpoint.Checkpoints(workdir, train.keep_last, train.keep_best)
    start = checkpoints.latest_step() or 0
    saved = checkpoints.meta(start) if start else None
    if saved:
        defaults = config_lib.to_plain(base.get_config())
        checkpoint.check_continues(workdir, start, total_steps, saved["config"], plain, defaults)
    batches = data.train_batches(
        config.data,
        batch_size=train.batch_size,
        num_classes=num_classes,
        seed=config.seed,
        start=saved["data"]["batches"] if saved else 0,
        **process,
    )
    if saved:
        data.check_resume(saved["data"], batches.state())
        now, *_ = checkpoints.restore(state.with_shardings(abstract, shardings), start)
    else:
        now = state.initialise(init, shardings)
        if train.init_weights:
            now = weights.start_from(
                now,
                train.init_weights,
                abstract_model,
                shardings,
                new_head=train.init_head == "new",
            )
    outcome: dict[str, Any] = {
        "total_steps": total_steps,
        "parameters": sum(p.size for p in jax.tree.leaves(now.params)),
        "bytes_per_device": mesh.bytes_per_device(now),
    }
    if main_process:
        config_lib.save(config, workdir)

    # ----------------------------------------------------------------------------------------------
    # Loop: evaluate, save, next batch, step, log
    # ----------------------------------------------------------------------------------------------
    log = metrics.MetricLog(
        workdir,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        batch_size=train.batch_size,
        start_step=start,
        tensorboard=train.tensorboard,
        write=main_process,
        stream=stream,
    )
    pending: collections.deque = collections.deque()  # (step, metrics) still on the device
    window: list[dict[str, float]] = []  # metrics since the last record
    skipped = 0

    def fetch(most: int) -> None:
        """Fetches metrics until at most `most` steps are outstanding, so that the device always has
        work queued.
        """
        while len(pending) > most:
            number, values = pending.popleft()
            values = {k: float(v) for k, v in jax.device_get(values).items()}
            bad = [f"{k}={v}" for k, v in values.items() if not math.isfinite(v)]
            if bad:
                checkpoints.wait()
                raise FloatingPointError(
                    f"step {number} gave {', '.join(bad)}; nothing of it was saved. Good "
                    "checkpoints in "
                    f"{checkpoints.directory}: {checkpoints.steps() or 'none'}. Lower optim.lr "
                    f"(now {config.optim.lr:g}), "
                    "lengthen optim.warmup_epochs or set optim.clip_norm, and start in a new "
                    "workdir."
                )
            window.append(values)
            if number % train.log_every == 0 or number == total_steps:
                means = {k: sum(w[k] for w in window) / len(window) for k in values} | {
                    "lr": values["lr"]
                }
                log.train(number, means | ({"skipped_records": skipped} if skipped else {}))
                window.clear()

    def evaluate_split(split: str) -> dict[str, Any]:
        """Evaluates the live weights and, with the prefix 'ema_', the averaged ones."""
        result = evaluate.evaluate(
            eval_step, now.params, now.stats, eval_batches(split), sharding=rows
        )
        if now.ema:
            ema = evaluate.evaluate(
                eval_step, now.ema["params"], now.ema["stats"], eval_batches(split), sharding=rows
            )
            result |= {f"ema_{k}": ema[k] for k in ("accuracy", "top5", "loss")}
        return result

    def scalars(result: dict[str, Any]) -> dict[str, float | int]:
        return {k: v for k, v in result.items() if isinstance(v, (int, float))}

    def due(every: float) -> bool:
        return at == total_steps or (every > 0 and at % max(round(every * steps_per_epoch), 1) == 0)

    def spent() -> float:
        """Seconds in this loop, over all calls that made up this run."""
        return (saved["data"]["seconds"] if saved else 0.0) + time.perf_counter() - began

    received: list[str] = []
    undo_signals = signals.catch(received)
    at, began = start, time.perf_counter()
    try:
        kind, most = jax.devices()[0].device_kind, max(outcome["bytes_per_device"].values())
        what = (
            f"{config.model.name}, {outcome['parameters']:,} parameters, {device_mesh.size} x "
            f"{kind}, {most:,} bytes each"
        )
        how = (
            f"continuing from step {start}"
            if start < total_steps
            else "finished before, only evaluated and reported again"
        )
        log.message(f"{what}, {total_steps} steps" + (f": {how}" if start else ""))
        while True:
            # Several processes agree on a signal every log_every steps, since asking takes a round
            # trip.
            asked = process["process_count"] == 1 or at % train.log_every == 0
            stop = asked and signals.any_process(bool(received))
            if at > start and (stop or due(train.eval_every) or due(train.save_every)):
                fetch(0)  # raises before anything that is not finite could be saved
                log.pause_clock()
                score = None
                if config.data.eval_split and due(train.eval_every) and not stop:
                    score = scalars(evaluate_split(config.data.eval_split))
                    log.evaluation(at, "eval", score)
                if stop or due(train.save_every):
                    checkpoints.save(at, now, batches.state() | {"seconds": spent()}, plain, score)
                log.resume_clock()
            if stop or at == total_steps:
                break
            # Drawn after the save, so that in every checkpoint the data position and the step
            # agree.
            batch = next(batches)
            skipped += int(batch.get("skipped", 0))
            now, values = train_step(
                now, mesh.put_batch({k: batch[k] for k in ("image", "label")}, rows)
            )
            at += 1
            pending.append((at, values))
            fetch(2 if at > start + 1 else 0)
            if at == start + 1:
                log.start_clock(at)  # the first step compiles
        checkpoints.wait()
        outcome |= {"step": at, "interrupted": stop, "train_seconds": spent()}
        if skipped:
            outcome["skipped_records"] = skipped
            log.message(
                f"{skipped} damaged records were replaced by their neighbours "
                "(data.on_error='skip')"
            )
        if stop:
            kept = f"step {at} of {total_steps} is saved" if at else "no step was done yet"
            log.message(
                f"{received[0] if received else 'signal to another process'}: {kept}; the same "
                "command continues"
            )
            return outcome

        # ------------------------------------------------------------------------------------------
        # Final evaluation and report
        # ------------------------------------------------------------------------------------------
        undo_signals()  # everything is saved: from here on a signal may simply end the process
        split = config.data.test_split or config.data.eval_split
        result = evaluate_split(split) if split else None
        if result:
            outcome |= scalars(result)
            if config.data.test_split:
                log.evaluation(at, "test", scalars(result))
        if train.report and main_process:
            from lambdanet.analysis.report import write_report  # imports matplotlib
            from lambdanet.tasks import classification_panels

            facts = {
                "parameters": outcome["parameters"],
                "MACs per image": abstract_model.macs(*config.data.image_size),
            }
            facts["seconds of training"] = round(outcome["train_seconds"], 1)
            panels = None
            if split:
                found = [
                    (b["image"][b["mask"] > 0], b["id"][b["mask"] > 0])
                    for b in itertools.islice(eval_batches(split), -(-512 // eval_batch_size))
                ]
                names = {
                    "label": "labels",
                    "prediction": "predictions",
                    "confidence": "confidences",
                    "id": "ids",
                }
                panels = functools.partial(
                    classification_panels.panels,
                    rows={k: result[v] for k, v in names.items()},
                    examples={
                        "image": np.concatenate([i for i, _ in found]),
                        "id": np.concatenate([i for _, i in found]),
                    },
                    info=types.SimpleNamespace(classes=info.class_names),
                    config=config,
                )
            png, text, problem = write_report(
                workdir,
                config=config,
                metrics={"accuracy": "max", "top5": "max", "loss": "min"},
                split=split,
                result=result,
                facts=facts,
                panels=panels,
            )
            if problem:
                log.message(f"report: {problem}")
            outcome["report"] = str(text)
            log.message(f"report: {text}\n        {png}")
        return outcome
    finally:
        undo_signals()
        log.close()
        batches.close()
        checkpoints.close()


# --------------------------------------------------------------------------------------------------
# Flags
# --------------------------------------------------------------------------------------------------
if __name__ == "__main__":
    CONFIG = ConfigFlag("configs/digits.py")
    flags.DEFINE_string(
        "workdir", None, "directory of the run; an existing run there is continued", required=True
    )
    flags.DEFINE_bool(
        "distributed", False, "join the other processes by jax.distributed before anything else"
    )
    flags.DEFINE_string(
        "coordinator_address", None, "host:port of process 0; none = found from the cluster"
    )
    flags.DEFINE_integer(
        "num_processes", None, "number of processes; none = found from the cluster"
    )
    flags.DEFINE_integer(
        "process_id", None, "number of this process; none = found from the cluster"
    )


def main(_: list[str]) -> None:
    """Reads the flags, runs, prints the outcome as one line of JSON; wrong input gives its message
    and exit code 1.
    """
    given = flags.FLAGS
    if not given["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax writes thirty lines per checkpoint otherwise
    start_up.use_eigen_convolutions()
    start_up.keep_freed_memory()
    try:
        config = CONFIG.value
        if given.distributed:
            jax.distributed.initialize(
                given.coordinator_address, given.num_processes, given.process_id
            )
        outcome = run(config, given.workdir)
    except (ValueError, FloatingPointError) as error:
        if given.verbosity > 0:
            raise
        sys.exit(f"{type(error).__name__}: {error}\n(--verbosity=1 shows where it was raised)")
    print(json.dumps({k: v for k, v in outcome.items() if isinstance(v, (int, float, str))}))


if __name__ == "__main__":
    app.run(main)
