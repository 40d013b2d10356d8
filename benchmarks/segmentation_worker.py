"""One network of `benchmarks.segmentation_step` in a process of its own, so that its memory is its
own: prepares itself, then does one training step for every line that it reads.

    python -m benchmarks.segmentation_worker ours|torch NAME --side N --batch N --classes N
    --weights FILE.npz

PyTorch's twin writes its first weights to FILE, ours begins with them where the file exists. Every
answer is a line of JSON: first what is known before the steps, then one per step.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before anything loads torch; see `benchmarks.__main__`.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np
from flax import nnx

import models
from benchmarks import step_times, torch_segmentation
from benchmarks.turns import serve
from configs import base
from lambdanet.ops.images import normalise
from lambdanet.training import start_up, state, weights

RATE, MOMENTUM, DECAY = 1e-2, 0.9, 5e-4
Step = Callable[[], tuple[float, float]]  # gives the loss and the norm of the gradient


def main(argv: list[str] | None = None) -> None:
    """Runs the worker until its input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segmentation_worker")
    parser.add_argument("framework", choices=("ours", "torch"))
    parser.add_argument("name")
    for option in ("--side", "--batch", "--classes"):
        parser.add_argument(option, type=int, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    args = parser.parse_args(argv)
    sizes = dict(train=dict(batch_size=args.batch), data=dict(image_size=(args.side, args.side)))
    start_up.prepare_cpu(sizes)  # as train.py does
    config = training_config(args.name, side=args.side)
    build = prepare_ours if args.framework == "ours" else prepare_torch
    step, facts = build(config, args.classes, args.batch, args.weights)

    def say() -> dict[str, float]:
        loss, norm = step()
        return dict(loss=loss, norm=norm)

    serve(say, facts)


def training_config(name: str, *, side: int) -> Any:
    """Returns the config of a training run with SGD of a preset without dropout."""
    config = base.get_config()
    config.task, config.train.cache_dir = "segmentation", ""
    config.data.channels, config.data.image_size = 3, (side, side)
    optim = config.optim
    optim.name, optim.schedule, optim.warmup_epochs = "sgd", "constant", 0.0
    optim.lr, optim.momentum, optim.weight_decay, optim.no_decay = RATE, MOMENTUM, DECAY, ()
    config.model = dict(name=name, **without_dropout(name), align_corners=False)
    return config


def without_dropout(name: str) -> dict[str, Any]:
    """Returns the parts of a preset with all rates of dropout at zero."""
    preset = models.registry.lookup(name)[1]
    parts = {part: preset.get(part) for part in ("backbone", "head", "auxiliary")}
    parts = {k: dict(name=v) if isinstance(v, str) else dict(v) for k, v in parts.items() if v}
    if "drop_path_rate" in parts["backbone"]:
        parts["backbone"]["drop_path_rate"] = 0.0
    for part in parts.keys() - {"backbone"}:
        parts[part]["dropout"] = 0.0
    return parts


def prepare_ours(config: Any, classes: int, batch: int, path: Path) -> tuple[Step, dict[str, Any]]:
    """Compiles the step that train.py runs, and returns (step, facts: parameters, multiply-adds
    of one image, MiB of the compiled program, seconds to compile).
    """
    make, train_step, rows = step_times.training_step(config, num_classes=classes, batch_size=batch)
    current = [make()]

    def build() -> nnx.Module:
        return models.create_from_config(config, num_classes=classes, rngs=nnx.Rngs(0))

    model = nnx.eval_shape(build)
    if path.exists():
        found = weights.read_weights(path, model, *state.abstract_weights(build))
        params, stats = jax.tree.map(jax.numpy.array, found)
        current[0] = current[0].replace(params=params, stats=stats)
    began = time.perf_counter()
    compiled = train_step.lower(current[0], rows).compile()
    seconds = time.perf_counter() - began

    def step() -> tuple[float, float]:
        current[0], terms = jax.block_until_ready(compiled(current[0], rows))
        loss, weight = terms["loss"]
        return float(loss / weight), float(terms["grad_norm"][0])

    size = sum(leaf.size for leaf in jax.tree.leaves(current[0].params))
    facts = dict(parameters=size, macs=model.macs(*config.data.image_size))
    return step, dict(**facts, compile_s=seconds, compiled_mib=compiled_mib(compiled))


def compiled_mib(compiled: Any) -> float:
    """Returns what a compiled program needs: operands, results that replace none of them, and
    temporary memory.
    """
    memory = compiled.memory_analysis()
    own = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (memory.argument_size_in_bytes + own + memory.temp_size_in_bytes) / 2**20


def prepare_torch(config: Any, classes: int, batch: int, path: Path) -> tuple[Step, dict[str, Any]]:
    """Builds PyTorch's twin, writes its weights, and returns (step, facts: parameters)."""
    model = torch_segmentation.build(config.model.name, num_classes=classes)
    kept = {k: v.numpy() for k, v in model.state_dict().items() if "num_batches" not in k}
    np.savez(path, **kept)
    rows = step_times.random_batch(config, num_classes=classes, batch_size=batch)
    images = np.asarray(normalise(rows["image"], config.data.mean, config.data.std))
    step = torch_segmentation.train_step(
        model,
        images,
        rows["label_map"],
        auxiliary_weight=config.segmentation.auxiliary_weight,
        rate=RATE,
        momentum=MOMENTUM,
        decay=DECAY,
    )
    return step, dict(parameters=sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
