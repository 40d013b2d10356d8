"""Trains a model on images: `python train.py --config=configs/digits.py --workdir=runs/digits`.

The same command continues an interrupted run from its last checkpoint, and on a finished run
repeats evaluation and report. SIGTERM or Ctrl-C saves, says how to go on, and exits with 0. Any key
of the config can be overridden: `--config.optim.lr=1e-3`. On several hosts, start it on each with
--distributed (on clusters that JAX does not recognise also --coordinator_address, --num_processes
and --process_id); the workdir must be shared. From Python: `train.run(config, workdir)`.
"""

from __future__ import annotations

from lambdanet import interrupt, train_flags

if __name__ == "__main__":
    interrupt.leave_quietly()  # the imports below take seconds
    CONFIG = train_flags.define()

import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
from absl import app, flags, logging
from flax import nnx
from ml_collections import ConfigDict

import models
from configs import base
from lambdanet import config as config_lib
from lambdanet import data, tasks
from lambdanet.training import checkpoint as checkpoint_lib
from lambdanet.training import evaluate, mesh, metrics, optimizer, programs, schedule, signals
from lambdanet.training import state as state_lib
from lambdanet.training import step as step_lib
from lambdanet.training import weights as weights_lib
from lambdanet.training.advice import tell_advice
from lambdanet.training.continuing import check_continues
from lambdanet.training.packing import Packing
from lambdanet.training.run_lock import hold as hold_workdir
from lambdanet.training.start_up import join_cluster, leave, prepare_cpu, use_compilation_cache
from models import pretrained


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Trains, evaluates and reports; continues what is in the workdir.

    A signal lets the step in work end, saves, and returns; a second one raises KeyboardInterrupt.

    Args:
        config: see configs/base.py.
        workdir: gets config.json, classes.json, metrics.jsonl, checkpoints/, report.png and .md.
        devices, stream (where progress is shown): None = all, standard output.

    Returns:
        step, total_steps, interrupted, train_seconds (of all calls of the run), parameters,
        bytes_per_device (of the state); if not interrupted also metrics ('ema_*', too) and count of
        the test (else the eval) split, report (its path); (test_)skipped_records if any.

    Raises:
        ConfigError, CheckpointError, WorkdirBusyError, ValueError: before any training.
        FloatingPointError: a metric became infinite or NaN.
    """

    def shapes() -> nnx.Module:
        build = models.builder_from_config(config, tasks.options_without_data(config))
        return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(config.seed)))

    with signals.Received() as received:
        checks = dict(workdir=workdir, resumes=checkpoint_lib.newest_step(workdir) > 0)
        checks |= dict(build=shapes, public=pretrained.for_backbone)
        config_lib.validate(config, base.get_config(), models.registry, **checks)
        use_compilation_cache(config.train.cache_dir)
        with hold_workdir(workdir):
            return _run(config, Path(workdir).absolute(), received, devices, stream)


def _run(config, workdir, received, devices, stream) -> dict[str, Any]:
    """The run itself, from the mesh to the report, with a checked config."""
    task, train, plain = tasks.get(config.task), config.train, config_lib.to_plain(config)

    # ---- Mesh ------------------------------------------------------------------------------------
    device_mesh = mesh.make_mesh(config.mesh.data, config.mesh.fsdp, devices=devices)
    eval_batch_size = train.eval_batch_size or train.batch_size
    mesh.check_batch("train.batch_size", train.batch_size, device_mesh, train.accumulate)
    mesh.check_batch("train.eval_batch_size", eval_batch_size, device_mesh)
    rows = mesh.batch_sharding(device_mesh)
    process = dict(process_index=jax.process_index(), process_count=jax.process_count())

    # ---- Data ------------------------------------------------------------------------------------
    data.prepare_embedded(config.data)
    info = tasks.read_for_training(config)
    finish, make_example = tasks.finisher(config, info), tasks.example_maker(config, info)
    parts = data.training_parts(config.data, info.features)
    steps_per_epoch = sum(map(len, parts)) / train.batch_size
    total_steps, epoch = schedule.plan(train, steps_per_epoch)
    length = dict(total_steps=total_steps, steps_per_epoch=epoch)
    config_lib.check_lengths(config, **length)
    evaluated = {
        split: tasks.eval_batches(config, info, split, batch_size=eval_batch_size, **process)
        for split in {config.data.eval_split, config.data.test_split} - {""}
    }

    # ---- Model, optimiser, steps -----------------------------------------------------------------
    build = models.builder_from_config(config, task.model_options(info, config))

    def build_model() -> nnx.Module:
        return build(rngs=nnx.Rngs(config.seed))

    abstract_model = nnx.eval_shape(build_model)
    lr = schedule.make_schedule(config.optim, **length)
    held = programs.held_back(abstract_model, schedule.thaw_step(config.optim, epoch))
    weights = state_lib.split_model(abstract_model)[1:]
    tx = optimizer.make_optimizer(config.optim, lr, *weights, **held)
    init = state_lib.make_init(build_model, tx, ema=train.ema_decay > 0)
    abstract = jax.eval_shape(init)
    shardings = mesh.state_shardings(abstract, device_mesh, config.mesh.fsdp_min_size)
    graphdef = state_lib.views(build_model)[1]
    eval_step = step_lib.make_eval_step(graphdef, config, score=task.score)
    tasks.check_evaluation(eval_step, abstract, config, eval_batch_size)

    # ---- State: restored or new ------------------------------------------------------------------
    mode = tasks.metrics(config).get(train.keep_best.removeprefix("ema_"), "")
    checkpoints = checkpoint_lib.Checkpoints(workdir, train.keep_last, train.keep_best, mode=mode)
    known = (workdir, total_steps, plain, config_lib.to_plain(base.get_config()))
    check = functools.partial(check_continues, *known, config_lib.modernise)
    target = state_lib.with_shardings(abstract, shardings)
    packing = Packing(target)
    saved = checkpoints.resume(target, check, damaged=train.damaged)
    start, position, progress = 0, 0, checkpoint_lib.NO_PROGRESS
    if saved:
        start, position, progress = saved.step, saved.meta["data"], saved.meta["progress"]
    reading = dict(batch_size=train.batch_size, seed=config.seed, start=start, **process)
    batches = data.train_batches(parts, make_example, config.data, **reading)
    if saved:
        data.check_resume(position, batches.state())
        state = saved.state
        del saved  # or its buffers, which the first step donates, would be kept
    else:
        closest = models.closest_model
        state = weights_lib.start(init, train, abstract_model, shardings, closest)
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    memory = mesh.bytes_per_device(state)
    outcome = dict(total_steps=total_steps, parameters=parameters, bytes_per_device=memory)

    def due(step: int, every: float) -> bool:
        period = max(round(every * epoch), 1)
        return step == total_steps or (every > 0 and step % period == 0)

    # ---- Loop: evaluate, save, next batch, step, log ---------------------------------------------
    # A signal may have come between a step and the evaluation due after it: that one is owed.
    owed = start > 0 and due(start, train.eval_every) and not metrics.evaluated(workdir, start)
    main_process, headline = jax.process_index() == 0, next(iter(tasks.metrics(config)))
    data.keep_info(info, workdir, begins=not start, write=main_process)
    if main_process:
        config_lib.save(config, workdir)
    shown = dict(batch_size=train.batch_size, headline=headline, tensorboard=train.tensorboard)
    shown |= dict(total_steps=total_steps, steps_per_epoch=steps_per_epoch, start_step=start)
    log = metrics.MetricLog(workdir, **shown, write=main_process, stream=stream)
    own = dict(loss=task.loss, mix=task.mix, schedule=lr, mesh=device_mesh, say=log.message)
    train_step = programs.training_program(config, build_model, tx, packing, **own, **held)
    eval_step = programs.evaluation_program(eval_step, device_mesh, log.message)
    run_eval = functools.partial(evaluate.evaluate, eval_step, sharding=rows)
    window = metrics.Window(train.log_every, total_steps, progress["window"])
    step, skipped, counted, began = start, 0, {}, time.perf_counter() - progress["seconds"]
    state, whole = packing.pack(state), packing.unpack  # for fast calls
    try:
        what = (config.model.name, parameters, memory, device_mesh.size, start, total_steps)
        log.message(metrics.opening(*what))
        said = dict(begins=not start, published=pretrained.normalisation)
        tell_advice(log.message, config, abstract_model, total_steps, **said, **held)
        while True:
            # Several processes agree on a signal every log_every steps, as it takes a round trip.
            asked = process["process_count"] == 1 or step % train.log_every == 0
            stop = asked and signals.any_process(bool(received))
            saves = step > start and (stop or due(step, train.save_every))
            evaluates = owed or (step > start and due(step, train.eval_every))
            evaluates = evaluates and bool(config.data.eval_split) and not stop
            if evaluates or saves:
                for at, means in window.fetch(0):  # raises before anything not finite is saved
                    log.train(at, means | counted, step)
                log.pause_clock()
                score = None
                if evaluates:
                    weights = evaluate.weights_of(whole(state))
                    found = run_eval(weights, evaluated[config.data.eval_split])
                    score = found.metrics(finish) | {"count": found.count}
                    log.evaluation(step, "eval", score)
                if saves:
                    now = {"seconds": time.perf_counter() - began, "window": window.sums()}
                    items = whole(state), batches.state(), plain, score
                    checkpoints.save(step, *items, progress=now)
                elif owed:
                    checkpoints.add_score(step, score)
                owed = False
                log.resume_clock()
            if stop or step == total_steps:
                break
            # Drawn after the save, so that in every checkpoint data position and step agree.
            batch = next(batches)
            skipped += int(batch.pop("skipped", 0))
            counted = {"skipped_records": skipped} if skipped else {}
            del batch["id"]
            state, terms = train_step(step, state, mesh.put_batch(batch, rows))
            step += 1
            window.add(step, terms)
            for at, means in window.fetch(2 if step > start + 1 else 0):
                log.train(at, means | counted, step)
            if step in (start + 1, held["thaw"] + 1):
                log.start_clock(step)  # a program's first step compiles
        checkpoints.wait()
        spent = time.perf_counter() - began
        outcome |= dict(step=step, interrupted=stop, train_seconds=spent) | counted
        if skipped:
            log.message(f"{skipped} damaged records were replaced (data.on_error='skip')")
        if stop:
            kept = f"step {step} of {total_steps} is saved" if step else "no step was done yet"
            who = received[0] if received else "signal to another process"
            log.message(f"{who}: {kept}; the same command continues")
            return outcome

        # ---- Final evaluation and report ---------------------------------------------------------
        received.release()  # everything is saved: from here on a signal may end the process
        split, result, panels = config.data.test_split or config.data.eval_split, None, None
        if split:
            found = run_eval(evaluate.weights_of(whole(state)), evaluated[split])
            result = found.metrics(finish) | {"count": found.count}
            outcome |= result | ({"test_skipped_records": found.skipped} if found.skipped else {})
            if config.data.test_split:
                log.evaluation(step, "test", result)
            shown = dict(sums=found.sums[""], rows=found.rows[""], examples=found.examples)
            panels = functools.partial(task.panels, **shown, info=info, config=config)
            if main_process:
                tasks.write_results(config, info, found.rows[""], workdir)
        if train.report and main_process:
            from lambdanet.analysis.report import write_report  # imports matplotlib

            macs = abstract_model.macs(*config.data.image_size)
            facts = {"parameters": parameters, "MACs per image": macs, "seconds": round(spent, 1)}
            shown = dict(metrics=tasks.metrics(config), split=split, result=result, facts=facts)
            written = write_report(workdir, config=config, panels=panels, **shown)
            outcome["report"] = str(written.markdown)
            log.message(written.message)
        return outcome
    except metrics.NonFiniteError as error:
        checkpoints.wait()
        raise FloatingPointError(error.advice(checkpoints.kept(), config.optim.lr)) from error
    finally:
        log.close()
        batches.close()
        checkpoints.close()


def main(argv: list[str]) -> None:
    """Reads the flags, runs, prints the outcome as JSON; wrong input: its message, exit code 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}; keys start with --config.")
    given = flags.FLAGS
    if not given["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax writes thirty lines per checkpoint otherwise
    try:
        config = CONFIG.value
        prepare_cpu(config)
        join_cluster(given.flag_values_dict())
        outcome = run(config, given.workdir)
    except (ValueError, ArithmeticError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        if given.verbosity > 0:
            raise
        leave(f"{type(error).__name__}: {error}\n(--verbosity=1 shows where it was raised)")
    print(metrics.outcome_line(outcome))


if __name__ == "__main__":
    app.run(main)
