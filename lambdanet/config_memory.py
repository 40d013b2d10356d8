"""Whether a config fits into the memory of the machine: lower bounds, from shapes alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lambdanet.data.box_geometry import MASK_SIDE
from lambdanet.registry import show
from lambdanet.training.state import flatten_names, split_model

CARRIED = ("video_segmentation", "video_detection")
"""Tasks whose examples are described by the section `propagation`."""
SECTIONS = ("data", "detection", "clips", "propagation", "train")
"""Of the config: those that `batch_problems` reads."""
_GIB = 2**30
_BATCH_OVERHEAD = 4096  # bytes of Python objects and queues per batch read ahead
_WORKER = 64 * 2**20  # bytes that a reader process holds at least, beyond what it shares
_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def host_memory() -> int:
    """Returns the bytes of memory that this process may use at most: the machine's, or its
    container's.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _CGROUP:
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):  # no container of this kind, or 'max'
            continue
    return total


def batch_problems(
    config: ConfigDict, *, training: bool = True, limit: int | None = None
) -> list[str]:
    """Returns one text per kind of batch that does not fit into the host's memory.

    Readers hold (prefetch + num_threads) batches of uint8 images, and of the bitmaps of objects,
    each worker process as many; the step makes float32 images of one. A clip is as many images as
    it has frames, in evaluation times its views, of which one at a time is made float32, as is one
    frame after the other where features are carried from frame to frame.

    Args:
        config: whose `SECTIONS` have passed their own checks.
        training: False: only evaluation's batches are read.
        limit: bytes; None = `host_memory()` of every process.
    """
    data, train, problems = config.data, config.train, []
    images, own = math.prod((*data.image_size, data.channels)), config.detection
    trained, views, clips, carried = 1, 1, config.clips, config.propagation
    if config.task == "clips":
        images, views = images * clips.frames, clips.eval_clips * clips.eval_crops
    elif config.task in CARRIED:
        trained, views = 1 + max(carried.others, 1), carried.eval_frames
    masked = config.task == "detection" and own.masks
    bitmaps = own.max_objects * MASK_SIDE**2 if masked else 0
    readers = max(data.num_workers, 1)
    ahead = readers * (data.prefetch + data.num_threads)
    evaluated = train.eval_batch_size or (train.batch_size if views > 1 else 0)
    sizes = {"train.eval_batch_size": evaluated}
    if training or not train.eval_batch_size:
        sizes = {"train.batch_size": train.batch_size, **sizes}
    for key, size in sizes.items():
        evaluates = key == "train.eval_batch_size"
        held = images * (views if evaluates else trained)
        needed = ahead * (size * (held + bitmaps) + _BATCH_OVERHEAD)
        needed += 4 * size * images * (1 if evaluates else trained)
        needed += data.num_workers * _WORKER
        if over := _exceeds(needed, limit, lambda: host_memory() * jax.process_count()):
            keys = ("image_size", "channels", "prefetch", "num_threads", "num_workers")
            values = ", ".join(f"data.{k} = {data[k]!r}" for k in keys)
            values += f", detection.max_objects = {own.max_objects}" if masked else ""
            if config.task == "clips":
                keys = ("frames", "eval_clips", "eval_crops")
                values += "".join(f", clips.{k} = {clips[k]}" for k in keys)
            elif config.task in CARRIED:
                keys = ("others", "eval_frames")
                values += "".join(f", propagation.{k} = {carried[k]}" for k in keys)
            problems.append(
                f"{key} = {size}, {values}: batches read ahead would take {over}; make one of them "
                "smaller"
            )
            break  # the other kind has the same cause
    return problems


def model_problems(config: ConfigDict, model: Any, limit: int | None = None) -> list[str]:
    """Returns one text per part of training that does not fit into the memory of the host, or of
    all devices together: the state (weights, gradient, one momentum), and the activations of one
    micro-batch.

    Of activations, those count that `model.summary_rows` lists: all of them where the backward pass
    needs them, else the largest.

    Args:
        config: that passed its own checks.
        model: with abstract or real parameters.
        limit: bytes; None = the host's or the devices' memory, whichever is more.
    """
    name, problems = config.model.name, []
    leaves = flatten_names(split_model(model)[1])
    sizes = {path: math.prod(a.shape) for path, a in leaves.items()}
    stored = sum(sizes[path] * np.dtype(a.dtype).itemsize for path, a in leaves.items())
    copies = 3 + (config.train.ema_decay > 0)
    if over := _exceeds(copies * stored, limit, device_memory):
        path = max(sizes, key=sizes.get)
        given = {k: v for k, v in config.model.to_dict().items() if k != "name"}
        options = ", ".join(f"model.{k} = {show(v, 80)}" for k, v in given.items())
        problems.append(
            f"model.name = {name!r}{', ' if options else ''}{options}: {sum(sizes.values()):,} "
            f"parameters, with which weights, gradient and momenta would take {over}; the largest "
            f"parameter is {path} with shape {leaves[path].shape}"
        )
    rows = getattr(model, "summary_rows", None)
    if rows is None:
        return problems
    train, shape = config.train, config.data.image_size
    outputs = [math.prod(row["output_shape"]) for row in rows(*shape)]
    whole = config.model.get("remat", "none") == "none" and not config.optim.frozen
    bytes_each = np.dtype(getattr(model, "dtype", np.float32)).itemsize
    micro = train.batch_size // train.accumulate
    kinds = {
        "train.batch_size": (micro, sum(outputs) if whole else max(outputs)),
        "train.eval_batch_size": (train.eval_batch_size or train.batch_size, max(outputs)),
    }
    for key, (count, values) in kinds.items():
        if over := _exceeds(count * values * bytes_each, limit, device_memory):
            fix = "a smaller batch or image, or a larger train.accumulate"
            fix += " or model.remat = 'block'" if whole else ""
            problems.append(
                f"{key} = {train[key.partition('.')[2]]}, train.accumulate = {train.accumulate}, "
                f"data.image_size = {shape}: the layers' outputs of '{name}' for "
                f"{count} examples would take {over}; give {fix}"
            )
            break
    return problems


def device_memory() -> int:
    """Returns the bytes of all devices together; 0 where they do not say, as on CPU."""
    local = ((device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices())
    return sum(local) * jax.process_count()


def _exceeds(needed: int, limit: int | None, more: Callable[[], int]) -> str:
    """Returns '' if it fits, else both numbers; devices are only asked for in doubt, since that
    starts them.
    """
    if limit is None:
        limit = host_memory()
        if needed > limit:
            limit = max(limit, more())
    return (
        f"at least {needed / _GIB:,.1f} GiB, and there are {limit / _GIB:,.1f}"
        if needed > limit
        else ""
    )
