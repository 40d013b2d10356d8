"""One network of `benchmarks.detection_step` in a process of its own, see `benchmarks.turns`.

    python -m benchmarks.detection_worker ours|torch NAME inference|training --side N --batch N
    --weights FILE.npz

PyTorch's twin writes its first weights to FILE, ours begins with them where the file exists.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before anything loads torch; see `benchmarks.__main__`.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import models
from benchmarks import torch_detection
from benchmarks.turns import serve
from lambdanet.training import start_up, state, weights

RATE, MOMENTUM = 1e-4, 0.9
OBJECTS, ROOM, MASK_SIDE = 8, 100, 112
THRESHOLDS = {"retinanet": 0.012, "mask_rcnn": 0.02}
FIRST_LABELS = {"retinanet": 0, "mask_rcnn": 1}
Step = Callable[[], dict[str, float]]


def main(argv: list[str] | None = None) -> None:
    """Runs the worker until its input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection_worker")
    parser.add_argument("framework", choices=("ours", "torch"))
    parser.add_argument("name", choices=THRESHOLDS)
    parser.add_argument("direction", choices=("inference", "training"))
    for option in ("--side", "--batch"):
        parser.add_argument(option, type=int, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    args = parser.parse_args(argv)
    sizes = dict(train=dict(batch_size=args.batch), data=dict(image_size=(args.side, args.side)))
    start_up.prepare_cpu(sizes)  # as train.py does
    images, targets = pictures(args.batch, args.side)
    training = args.direction == "training"
    if args.framework == "ours":
        step = prepare(build(args.name, args.side), args.weights, images, targets, training)
    else:
        model = torch_detection.build(args.name, side=args.side, threshold=THRESHOLDS[args.name])
        kept = {k: v.numpy() for k, v in model.state_dict().items()}
        np.savez(args.weights, **kept)
        step = torch_detection.prepare(
            model,
            images,
            targets,
            first_label=FIRST_LABELS[args.name],
            training=training,
            rate=RATE,
            momentum=MOMENTUM,
        )
    serve(step, {})


def build(name: str, side: int) -> Callable[[], nnx.Module]:
    """Returns what makes our detector with torchvision's conventions."""
    return lambda: models.create_model(
        f"{name}_resnet50_torchvision",
        score_threshold=THRESHOLDS[name],
        image_size=(side, side),
        rngs=nnx.Rngs(0),
    )


def pictures(batch: int, side: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns random pictures of one size, and `OBJECTS` objects of each that fill their boxes."""
    draw = np.random.default_rng(0)
    corner = draw.uniform(0, 0.6 * side, (batch, OBJECTS, 2))
    boxes = np.concatenate([corner, corner + draw.uniform(0.06, 0.35, corner.shape) * side], -1)
    return draw.standard_normal((batch, side, side, 3), np.float32), dict(
        boxes=boxes.astype(np.float32),
        classes=draw.integers(0, 90, (batch, OBJECTS)).astype(np.int32),
        masks=np.ones((batch, OBJECTS, side, side), np.uint8),
    )


def prepare(
    make: Callable[[], nnx.Module],
    path: Path,
    images: np.ndarray,
    targets: dict[str, np.ndarray],
    training: bool,
) -> Step:
    """Compiles our step and returns it: of SGD (loss), or what is found (found, score).

    Args:
        make: the model.
        path: of weights; where there is none the model's own are taken.
        images: [b, side, side, 3].
        targets: of `pictures`.
        training: which of the two.
    """
    train, evaluation = state.views(make)
    if path.exists():
        found = weights.read_weights(path, nnx.eval_shape(make), *state.abstract_weights(make))
    else:
        found = jax.jit(lambda: state.split_model(make())[1:])()
    params, stats = jax.tree.map(jnp.array, found)
    x, shapes = jnp.asarray(images), jnp.full((len(images), 2), images.shape[1], jnp.int32)
    if not training:
        run = jax.jit(lambda p, s, x, shapes: nnx.merge(evaluation, p, s).detect(x, shapes))

        def detect() -> dict[str, float]:
            found = jax.block_until_ready(run(params, stats, x, shapes))
            scores = np.asarray(found["scores"])
            return dict(found=int(found["valid"].sum()), score=float(scores.sum()))

        return detect
    tx = optax.sgd(RATE, MOMENTUM)
    current: list[Any] = [(params, stats, tx.init(params), jax.random.key(0))]
    objects = in_room(targets)

    def loss_of(params, stats, key):
        model = nnx.merge(train, params, stats, copy=True)
        found = model.losses(x, shapes, objects, rngs=nnx.Rngs(dropout=key))
        loss = sum(total / jnp.maximum(weight, 1) for total, weight in found.values())
        return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    @jax.jit
    def run(params, stats, moments, key):
        key, own = jax.random.split(key)
        (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, stats, own)
        updates, moments = tx.update(gradient, moments)
        return loss, (optax.apply_updates(params, updates), stats, moments, key)

    def step() -> dict[str, float]:
        loss, current[0] = jax.block_until_ready(run(*current[0]))
        return dict(loss=float(loss))

    return step


def in_room(targets: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns the objects as a batch of training has them: in room for `ROOM`, with crops."""
    boxes, classes = targets["boxes"], targets["classes"]
    batch, count = classes.shape
    more = ((0, 0), (0, ROOM - count))
    return dict(
        boxes=jnp.asarray(np.pad(boxes, (*more, (0, 0)))),
        classes=jnp.asarray(np.pad(classes, more)),
        valid=jnp.asarray(np.pad(np.ones((batch, count), bool), more)),
        crowd=jnp.zeros((batch, ROOM), bool),
        masks=jnp.ones((batch, ROOM, MASK_SIDE, MASK_SIDE), jnp.uint8),
    )


if __name__ == "__main__":
    main()
