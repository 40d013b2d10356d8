"""What carrying features, averaging frames and recomputing activations cost in networks of videos:

    python -m benchmarks.video_speed > docs/video_speed.md

Three tables. Milliseconds of key frames and of the frames between them, beside the network run on
every frame. Temporary memory of flow-guided aggregation for growing numbers of frames, beside a
stack of all that is warped. Temporary memory and milliseconds of a training step on a long clip,
by what is recomputed in the backward pass.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import models
from benchmarks import harness, step_times
from configs import base
from lambdanet.analysis.text import markdown_table
from lambdanet.ops.frame_mean import unit
from lambdanet.training import start_up, state
from models.video import Frame, aggregation

Name = TypeVar("Name", bound=Hashable)

SIDE, INTERVAL, ROUNDS = 256, 10, 15
BACKBONE = dict(name="resnet50", output_stride=16)
HEAD = dict(name="fcn", channels=64)
# About a tenth of the backbone's work. A sixth level would be a map of 2 x 2, smaller than its
# kernels: for such a convolution XLA's CPU backend takes many times as long.
FLOW = dict(width=0.8, levels=5)
PROPAGATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "copy": {},
    "deep_feature_flow": FLOW,
    "neighborhood_propagation": {},
}

REACHES, FEATURES = (1, 3, 9), 64
AGGREGATION = dict(channels=1024, stride=16, in_channels=3)

FRAMES, CLIP_SIDE, STEPS = 64, 112, 3
NETWORKS = ("small_i3d", "i3d_resnet50")
RECOMPUTED = ("none", "block", "stage")


def main() -> None:
    """Prints the tables."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.video_speed", description=__doc__.split("\n")[0]
    ).parse_args()
    print("# Cost of carrying, averaging and recomputing\n")
    print("    python -m benchmarks.video_speed > docs/video_speed.md\n")
    facts = ", ".join(f"{key} {value}" for key, value in harness.environment().items())
    print(f"float32; {facts}.\n")
    _print_propagation()
    _print_aggregation()
    _print_recomputation()


def in_turns(
    calls: Mapping[Name, Callable[[], Any]], rounds: int, *, warm: int = 1
) -> dict[Name, list[float]]:
    """Times calls that take turns.

    Args:
        calls: what to run; the results are waited for.
        rounds: how often each is timed.
        warm: calls before each timed one, which undo what the others left in the caches.

    Returns:
        Seconds of every call.
    """
    spent: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(warm):
                jax.block_until_ready(call())
            began = time.perf_counter()
            jax.block_until_ready(call())
            spent[name].append(time.perf_counter() - began)
    return spent


# --------------------------------------------------------------------------------------------------
# Key frames and the frames between them
# --------------------------------------------------------------------------------------------------


def build_segmenter(name: str, side: int) -> nnx.Module:
    """Returns the evaluation view of the segmenter with a propagation of `PROPAGATIONS`."""
    model = models.create_model(
        "video_segmenter",
        backbone=BACKBONE,
        head=HEAD,
        propagation=dict(name=name, **PROPAGATIONS[name]),
        num_classes=19,
        image_size=(side, side),
        rngs=nnx.Rngs(0),
    )
    return nnx.view(model, deterministic=True, use_running_average=True)


def calls_of(model: nnx.Module, side: int) -> dict[str, Callable[[], Any]]:
    """Returns what computes the logits of a key frame and of the frame after it."""
    graphdef, params, stats = state.split_model(model)

    @jax.jit
    def key_frame(params, stats, image):
        model = nnx.merge(graphdef, params, stats)
        key = model.key_frame(image)
        return key, model.decode(key.features, image.shape[1:3])

    @jax.jit
    def carried(params, stats, key, image):
        model = nnx.merge(graphdef, params, stats)
        return model.decode(model.propagate(key, image), image.shape[1:3])

    draw = np.random.default_rng(0)
    first, second = jnp.asarray(draw.standard_normal((2, 1, side, side, 3)), jnp.float32)
    key, _ = key_frame(params, stats, first)
    return {
        "key": functools.partial(key_frame, params, stats, first),
        "carried": functools.partial(carried, params, stats, key, second),
    }


def work_of(model: nnx.Module, side: int) -> dict[str, int]:
    """Returns the multiply-adds of the backbone, of a key frame, of a frame that is carried to, and
    of the propagation alone.
    """
    rows = model.summary_rows(side, side)

    def total(*paths: str) -> int:
        return sum(row["macs"] for row in rows if f"{row['path']}/".startswith(paths))

    early = {
        "features": ("backbone/",),
        "low": ("backbone/stem/", *(f"backbone/stages/{n}/" for n in range(model.low_index + 1))),
    }
    needed = {path for need in model.propagation.needs for path in early.get(need, ())}
    return {
        "backbone": total("backbone/"),
        "key": total("backbone/", "head/"),
        "carried": total("propagation/", "head/", *needed),
        "propagation": total("propagation/"),
    }


def propagation_rows(
    work: Mapping[str, Mapping[str, int]], seconds: Mapping[tuple[str, str], list[float]]
) -> list[list[str]]:
    """Returns the rows of the first table, by medians.

    Args:
        work: name of the propagation -> what `work_of` returns.
        seconds: (name, 'key' or 'carried') -> of its calls.
    """
    middle = {call: 1e3 * statistics.median(times) for call, times in seconds.items()}
    rows, whole = [], middle["none", "key"]
    for name, own in work.items():
        key, carried = middle[name, "key"], middle[name, "carried"]
        mean = (key + (INTERVAL - 1) * carried) / INTERVAL
        numbers = [f"{own[kind] / 1e9:.2f}" for kind in ("key", "carried")]
        numbers += [f"{key:.1f}", f"{carried:.1f}", f"{mean:.1f}", f"{whole / mean:.2f}"]
        rows.append([f"`{name}`", *numbers])
    return rows


def _print_propagation() -> None:
    built = {name: build_segmenter(name, SIDE) for name in PROPAGATIONS}
    work = {name: work_of(model, SIDE) for name, model in built.items()}
    calls = {
        (name, kind): call
        for name, model in built.items()
        for kind, call in calls_of(model, SIDE).items()
    }
    rows = propagation_rows(work, in_turns(calls, ROUNDS))
    own = work["deep_feature_flow"]
    print("## Key frames and the frames between\n")
    print(
        f"`video_segmenter` with ResNet-50 at output stride {BACKBONE['output_stride']} and an "
        f"`fcn` head of {HEAD['channels']} channels, one picture of {SIDE} x {SIDE}. FlowNet-S "
        f"with {FLOW['levels']} levels of {FLOW['width']} of their width, scale map included, has "
        f"{own['propagation'] / 1e9:.2f} GMAC, the backbone {own['backbone'] / 1e9:.2f}. Medians "
        f"of {ROUNDS} calls in turns, logits of every pixel included; per frame, with a key frame "
        f"every {INTERVAL}; and how many times as fast that is as the network on every frame.\n"
    )
    head = ("propagation", "key, GMAC", "carried, GMAC", "key, ms", "carried, ms")
    head += ("per frame, ms", "times as fast")
    print("\n".join(markdown_table(head, rows, left={0})))


# --------------------------------------------------------------------------------------------------
# The mean of many frames
# --------------------------------------------------------------------------------------------------


def stacked_mean(read: Callable[[Any], Any], frames: Any, reference: jax.Array) -> tuple:
    """Returns what `frame_mean` does, from stacks of all features and embeddings that are read."""
    features, embedding = jax.lax.map(jax.checkpoint(read), frames)
    cosine = jnp.sum(unit(embedding) * unit(reference), -1)
    weights = jax.nn.softmax(cosine, 0)
    return jnp.sum(weights[..., None] * features, 0), weights


MEANS = {"one after the other": aggregation.frame_mean, "a stack": stacked_mean}


def aggregation_mib(mean: str, direction: str, reach: int, *, side: int, **options: Any) -> float:
    """Returns the MiB that the compiled aggregation of 2 reach + 1 frames needs beside operands and
    results; nothing is run.

    Args:
        mean: a key of `MEANS`.
        direction: 'fwd': in evaluation, embeddings made before; 'train': in training, with the
            gradients of all parameters and features.
        reach: frames on each side.
        side: of the features.
        options: of `FlowGuidedAggregation`.
    """
    evaluation = direction == "fwd"
    model = nnx.eval_shape(lambda: aggregation.FlowGuidedAggregation(**options, rngs=nnx.Rngs(0)))
    graphdef, params, stats = state.split_model(nnx.view(model, deterministic=evaluation))

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def frame(*front: int) -> Frame:
        image = array(*front, *(side * options["stride"],) * 2, options["in_channels"])
        return Frame(image=image, features=array(*front, side, side, options["channels"]))

    current, frames = frame(1), frame(2 * reach + 1, 1)
    if evaluation:
        channels = model.embed.layers[-1].out_features
        frames = frames._replace(embedding=array(2 * reach + 1, 1, side, side, channels))

    def run(params, stats, frames, current):
        return nnx.merge(graphdef, params, stats)(frames, current)

    def loss(params, features, stats, frames, current):
        both = (frames._replace(features=features[0]), current._replace(features=features[1]))
        return jnp.sum(run(params, stats, *both) ** 2)

    features = (frames.features, current.features)
    with mock.patch.object(aggregation, "frame_mean", MEANS[mean]):
        if evaluation:
            lowered = jax.jit(run).lower(params, stats, frames, current)
        else:
            gradient = jax.jit(jax.grad(loss, (0, 1)))
            lowered = gradient.lower(params, features, stats, frames, current)
    return lowered.compile().memory_analysis().temp_size_in_bytes / 2**20


def _print_aggregation() -> None:
    rows = []
    for direction, label in (("fwd", "forward"), ("train", "forward + backward")):
        for mean in MEANS:
            measure = functools.partial(aggregation_mib, mean, direction, side=FEATURES)
            numbers = [f"{measure(reach, **AGGREGATION):.0f}" for reach in REACHES]
            rows.append([label, mean, *numbers])
    one = FEATURES**2 * AGGREGATION["channels"] * 4 / 2**20
    print("\n## Memory of flow-guided aggregation\n")
    print(
        f"Features of {FEATURES} x {FEATURES} x {AGGREGATION['channels']}, {one:.0f} MiB a frame, "
        "embeddings of 2048 channels, 2 K + 1 frames. MiB that the compiled program needs beside "
        "operands and results; the features of all frames are operands, their gradients results. "
        "`a stack` is the same with all warped features and embeddings at once; in the backward "
        "pass both recompute what they read of a frame.\n"
    )
    head = ("direction", "frames", *(f"K = {reach}" for reach in REACHES))
    print("\n".join(markdown_table(head, rows, left={0, 1})))


# --------------------------------------------------------------------------------------------------
# A training step on a long clip
# --------------------------------------------------------------------------------------------------


def clip_step(name: str, remat: str, *, frames: int, side: int) -> tuple[Any, Callable[[], Any]]:
    """Compiles train.py's step on one clip.

    Args:
        name: of the network.
        remat: what it recomputes.
        frames: of the clip.
        side: of the frames.

    Returns:
        (the compiled step, what does one).
    """
    config = base.get_config()
    config.task, config.clips.frames, config.train.cache_dir = "clips", frames, ""
    config.data.image_size, config.data.channels = (side, side), 3
    config.model = dict(name=name, remat=remat)
    make, step, batch = step_times.training_step(config, num_classes=400, batch_size=1)
    current = [make()]
    compiled = step.lower(current[0], batch).compile()

    def run() -> Any:
        current[0], terms = compiled(current[0], batch)
        return current[0], terms

    return compiled, run


def _print_recomputation() -> None:
    rows = []
    for name in NETWORKS:
        steps = {
            remat: clip_step(name, remat, frames=FRAMES, side=CLIP_SIDE) for remat in RECOMPUTED
        }
        spent = in_turns({remat: run for remat, (_, run) in steps.items()}, STEPS)
        rows += recomputation_rows(
            name, {r: c.memory_analysis().temp_size_in_bytes for r, (c, _) in steps.items()}, spent
        )
    print("\n## Recomputation in a training step\n")
    print(
        f"train.py's step on one clip of {FRAMES} frames of {CLIP_SIDE} x {CLIP_SIDE}. MiB that "
        "the compiled program needs beside state and clip; milliseconds: medians of "
        f"{STEPS} steps in turns. Shares are of `none`.\n"
    )
    head = ("network", "`model.remat`", "MiB", "share", "ms", "share")
    print("\n".join(markdown_table(head, rows, left={0, 1})))


def recomputation_rows(
    name: str, planned: Mapping[str, int], seconds: Mapping[str, list[float]]
) -> list[list[str]]:
    """Returns the rows of a network in the last table.

    Args:
        name: of the network.
        planned: `model.remat` -> bytes.
        seconds: `model.remat` -> of its steps.
    """
    rows = []
    for remat, own in planned.items():
        times = [statistics.median(seconds[key]) for key in (remat, "none")]
        memory = [f"{own / 2**20:.0f}", f"{own / planned['none']:.2f}"]
        spent = [f"{1e3 * times[0]:.0f}", f"{times[0] / times[1]:.2f}"]
        rows.append([f"`{name}`", f"`{remat}`", *memory, *spent])
    return rows


if __name__ == "__main__":
    start_up.prepare_cpu()
    main()
