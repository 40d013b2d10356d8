"""What one case of `python -m benchmarks.scaling` does, in a process of its own.

    python -m benchmarks.scaling_program JOB

JOB is a JSON object with `what`, the name of a function here, and its arguments; the last line of
the output is the JSON object that it returns. Programs are compiled for shapes alone; nothing of
them runs. XLA_FLAGS decides how many devices there are.

Operations that have a form of their own on CPU are traced in the form of a TPU, which a GPU shares
but for its fused attention: only what XLA's CPU compiler makes of it is the CPU's.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

import models
from benchmarks import collectives, harness, memory_suite
from lambdanet import tasks
from lambdanet.config_flag import load_recipe
from lambdanet.data.record import DataInfo
from lambdanet.training import checkpoint, mesh, optimizer, programs, schedule, state
from lambdanet.training.packing import Packing

ROOT = Path(__file__).resolve().parents[1]
IMAGES, CLASSES = 1_281_167, 1000  # of ImageNet, which the recipes are for
PLATFORM = "tpu"


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Has whatever is traced inside take the form that it has on another platform."""
    with mock.patch.object(jax, "default_backend", lambda: platform):
        yield


def set_up(recipe: str) -> dict[str, Any]:
    """Returns what train.py makes of a recipe before there are devices.

    Args:
        recipe: 'configs/FILE.py:ARGUMENT'.

    Returns:
        dict(config, build, tx, abstract: the state's shapes, schedule).
    """
    config = load_recipe(str(ROOT / recipe))
    info = DataInfo({}, tuple(map(str, range(CLASSES))))
    make = models.builder_from_config(config, tasks.get(config.task).model_options(info, config))

    def build() -> nnx.Module:
        return make(rngs=nnx.Rngs(config.seed))

    epoch = IMAGES / config.train.batch_size
    total, epoch = schedule.plan(config.train, epoch)
    lr = schedule.make_schedule(config.optim, total_steps=total, steps_per_epoch=epoch)
    tx = optimizer.make_optimizer(config.optim, lr, *state.abstract_weights(build))
    abstract = jax.eval_shape(state.make_init(build, tx, ema=config.train.ema_decay > 0))
    return dict(config=config, build=build, tx=tx, abstract=abstract, schedule=lr)


def state_bytes(abstract: Any, device_mesh: Mesh | AbstractMesh, min_size: int) -> dict[str, int]:
    """Returns the bytes of each part of the state that lie on one device, by shapes alone, and how
    many bytes of the parameters are split over devices (`split_params`: before they are).
    """
    shardings = mesh.state_shardings(abstract, device_mesh, min_size)

    def held(part: str) -> int:
        leaves = zip(*map(jax.tree.leaves, (getattr(abstract, part), getattr(shardings, part))),
                     strict=True)  # fmt: skip
        return sum(
            int(np.prod(s.shard_shape(a.shape), dtype=np.int64)) * a.dtype.itemsize
            for a, s in leaves
        )

    found = {part: held(part) for part in ("params", "opt_state", "stats", "ema", "step")}
    leaves = zip(*map(jax.tree.leaves, (abstract.params, shardings.params)), strict=True)
    split = sum(a.size * a.dtype.itemsize for a, s in leaves if not s.is_fully_replicated)
    return found | {"split_params": split}


def states(*, recipe: str, layouts: Mapping[str, Sequence[tuple[int, int]]]) -> dict[str, Any]:
    """Returns the bytes of the state per device for meshes of any size, of which no device exists.

    Args:
        recipe: see `set_up`.
        layouts: name -> sizes (data, fsdp).

    Returns:
        dict(parameters, arrays, layouts: name -> [of `state_bytes` with data and fsdp]).
    """
    made = set_up(recipe)
    least, abstract = made["config"].mesh.fsdp_min_size, made["abstract"]
    found = {
        name: [
            dict(data=data, fsdp=fsdp)
            | state_bytes(abstract, AbstractMesh((data, fsdp), mesh.AXES), least)
            for data, fsdp in sizes
        ]
        for name, sizes in layouts.items()
    }
    leaves = jax.tree.leaves(abstract.params)
    count = dict(parameters=sum(leaf.size for leaf in leaves), arrays=len(leaves))
    return count | {"layouts": found}


def program(*, recipe: str, data: int, fsdp: int, batch: int) -> dict[str, Any]:
    """Compiles the training step of a recipe for a mesh, and reads what it holds and moves.

    Args:
        recipe: see `set_up`.
        data, fsdp: sizes of the mesh, all devices there are.
        batch: images per device.

    Returns:
        Bytes per device (of the state's parts by shapes; operands, results, those of them that
        share memory, temporary memory by the compiler); the collectives as XLA's partitioner makes
        them, which all platforms have in common, as [kind, group, bytes of the result, sliced,
        number], and `combined`, how many of each kind XLA's CPU compiler makes of them; seconds to
        trace and to compile.
    """
    made = set_up(recipe)
    config, abstract = made["config"], made["abstract"]
    device_mesh = mesh.make_mesh(data, fsdp)
    shardings = mesh.state_shardings(abstract, device_mesh, config.mesh.fsdp_min_size)
    task = tasks.get(config.task)
    placed = state.with_shardings(abstract, shardings)
    packing = Packing(placed)
    step = programs.jitted_step(
        config, made["build"], made["tx"], packing, loss=task.loss, mix=task.mix,
        schedule=made["schedule"], mesh=device_mesh, frozen=config.optim.frozen,
    )  # fmt: skip
    rows, count = mesh.batch_sharding(device_mesh), batch * device_mesh.size
    shape = (count, *tasks.input_shape(config))
    given = {
        "image": jax.ShapeDtypeStruct(shape, np.uint8, sharding=rows),
        "label": jax.ShapeDtypeStruct((count,), np.int32, sharding=rows),
    }
    began = time.perf_counter()
    with traced_for(PLATFORM):
        arrays, numbers = packing.abstract(placed)
        lowered = step.lower(arrays, given, numbers)
    traced = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"}
        options |= unoptimised()
        compiled = lowered.compile((memory_suite.without_fusions() or {}) | options)
        written = [*Path(folder).glob("*after_spmd-partitioning*.txt")]
        # Programs of one device are not partitioned.
        partitioned = written[0].read_text() if written else compiled.as_text()
    memory, moved = compiled.memory_analysis(), collections.Counter()
    for one in collectives.collectives(partitioned):
        moved[one.kind, one.group, one.bytes, one.sliced] += one.times
    combined = collections.Counter()
    for one in collectives.collectives(compiled.as_text()):
        combined[one.kind] += one.times
    return dict(
        state=state_bytes(abstract, device_mesh, config.mesh.fsdp_min_size),
        operands=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes,
        shared=memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        collectives=[[*key, number] for key, number in moved.items()],
        combined=dict(combined),
        image_size=list(config.data.image_size),
        dtype=config.model.get("dtype", "float32"),
        global_batch=config.train.batch_size,
        trace_s=round(traced - began, 1),
        compile_s=round(time.perf_counter() - traced, 1),
    )


def unoptimised() -> dict[str, Any]:
    """Returns the compiler's options that save most of its time: nothing runs the machine code.

    Neither the collectives nor the plan of the memory depends on them.
    """
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        options["xla_cpu_use_fusion_emitters"] = False  # as tests/conftest.py does
    return options


def checkpoint_times(*, recipe: str, repeats: int) -> dict[str, Any]:
    """Writes the state of a recipe as train.py does, reads it back, and removes it.

    Random numbers stand in all arrays, as equal ones would be compressed away. It lies in the
    folder for temporary files, and is read while the kernel still has it in memory.

    Args:
        recipe: see `set_up`.
        repeats: of which the fastest counts, for each time by itself.

    Returns:
        dict(bytes: of the arrays, on_disk, handed_over: seconds until the next step may begin,
        written: until all is on the disk, read: with all checksums).
    """
    made = set_up(recipe)
    device_mesh = mesh.make_mesh(1, 1, devices=jax.devices()[:1])
    shardings = mesh.state_shardings(made["abstract"], device_mesh, 0)
    draw = np.random.default_rng(0)
    filled = jax.tree.map(
        lambda a: jax.numpy.asarray(draw.standard_normal(a.shape), a.dtype), made["abstract"]
    )
    target, times = state.with_shardings(made["abstract"], shardings), []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = checkpoint.Checkpoints(folder, keep_best="")
            began = time.perf_counter()
            checkpoints.save(1, filled, {"batches": 1}, {})
            handed = time.perf_counter()
            checkpoints.wait()
            written = time.perf_counter()
            jax.block_until_ready(checkpoints.restore(target)[0])
            times.append((handed - began, written - began, time.perf_counter() - written))
            on_disk = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
            checkpoints.close()
    handed_over, written, read = (round(min(each), 3) for each in zip(*times, strict=True))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(filled))
    return dict(bytes=size, on_disk=on_disk, handed_over=handed_over, written=written, read=read)


def main() -> None:
    """Does the job of the command line and prints what it gives."""
    job = json.loads(sys.argv[1])
    jobs: dict[str, Callable[..., dict[str, Any]]] = dict(
        states=states, program=program, checkpoint_times=checkpoint_times
    )
    found = jobs[job.pop("what")](**job)
    print(json.dumps(found | {"environment": harness.environment()}))


if __name__ == "__main__":
    main()
