"""torchvision's detectors of the size of our small ones, trained on a prepared set for so many
minutes and scored as ours:

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.detection_peer --data_dir=SET \\
        --detector=retinanet --image_size=192,256 --minutes=15

Pictures, augmentation, weight decay and clipping are those of configs/own_objects.py, the scorer is
that of the task. The learning rate rises and falls with the share of the minutes that
is over; the minutes are those of the training, with the reading of its batches, without the test.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

# Before anything loads torch; see `benchmarks.__main__`.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np
from flax import nnx

import models
from benchmarks import torch_detection
from benchmarks import torch_small_detection as twins
from configs import own_objects
from lambdanet import data, tasks
from lambdanet.analysis.text import markdown_table
from lambdanet.tasks import detection
from lambdanet.training import start_up

WARM_UP = 0.04
"""Share of the minutes."""
HEAD = ("detector", "parameters", "ours", "minutes", "steps", "lr", "loss")
METRICS = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")


def main(argv: list[str] | None = None) -> int:
    """Trains, tests and prints the row; progress goes to standard error."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = recipe(args)
    try:
        info = tasks.read_for_training(config)
        classes = detection.model_options(info, config)["num_classes"]
        parts = data.training_parts(config.data, info.features)
        test = read_test(config, info)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    size, scale = tuple(config.data.image_size), args.anchor_scale
    model = twins.build(twins.Options(args.detector, classes, size, scale, args.proposals))
    own = own_parameters(config.model.name, classes)
    count = sum(p.numel() for p in model.parameters())
    _say(
        f"torchvision's {args.detector}, {count:,} parameters ({config.model.name}: {own:,}), "
        f"{len(parts[0])} pictures, {classes} classes, {torch.get_num_threads()} threads"
    )
    maker = tasks.example_maker(config, info)
    reading = dict(batch_size=args.batch_size, seed=args.seed)
    batches = data.train_batches(parts, maker, config.data, **reading)
    try:
        steps, spent, loss = train(model, batches, args, config.optim)
    finally:
        batches.close()
    began = time.perf_counter()
    scores = evaluate(model, test, info, config, first=twins.FIRST_LABELS[args.detector])
    _say(
        f"tested on {sum(len(b['id']) for b in test)} pictures, {time.perf_counter() - began:.0f} s"
    )
    record = dict(detector=args.detector, parameters=count, ours=own, minutes=round(spent / 60, 2))
    record |= dict(steps=steps, lr=args.lr, loss=round(loss, 4), **scores)
    print(json.dumps(record) if args.json else "\n".join(table(record)))
    return 0


def recipe(args: argparse.Namespace) -> Any:
    """Returns the config of our small detector with the options of the command line."""
    config = own_objects.get_config(f"small_{args.detector}")
    config.data.data_dir, config.data.image_size = args.data_dir, args.image_size
    config.data.test_split, config.data.num_threads = args.test_split, 1
    config.detection.max_objects = args.max_objects
    return config


def own_parameters(name: str, classes: int) -> int:
    """Returns the number of parameters of our detector."""
    made = nnx.eval_shape(lambda: models.create_model(name, num_classes=classes, rngs=nnx.Rngs(0)))
    return sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(made, nnx.Param)))


def read_test(config: Any, info: data.DataInfo) -> list[dict[str, np.ndarray]]:
    """Returns the batches of the test split without padding; so what does not fit is known early.

    Raises:
        ValueError: the split cannot be read, or a picture has more than detection.max_objects.
    """
    found = []
    split = config.data.test_split
    for batch in tasks.eval_batches(config, info, split, batch_size=config.train.batch_size):
        kept = batch["mask"] > 0
        found.append({k: v[kept] for k, v in batch.items() if k not in ("mask", "masks")})
    return found


def factor(share: float) -> float:
    """Returns the learning rate over its peak when this share of the time is over."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min((share - WARM_UP) / (1 - WARM_UP), 1.0)))


def train(
    model: Any, batches: Iterable[Mapping], args: argparse.Namespace, optim: Any
) -> tuple[int, float, float]:
    """Trains for args.minutes, or args.steps steps if that is not 0.

    Returns:
        (steps, seconds, mean loss of the last line of progress, or of the steps after it where
        these are ten or more).
    """
    update = twins.optimizer(model, args.lr, optim.weight_decay)
    first, whole = twins.FIRST_LABELS[args.detector], 60 * args.minutes
    step, losses, shown, latest = 0, [], 0, math.nan
    began = said = time.perf_counter()
    for batch in batches:
        spent = time.perf_counter() - began
        share = step / args.steps if args.steps else spent / whole
        if share >= 1:
            break
        # the first step of the warm-up has a rate, too
        rate = args.lr * factor(max(share, 1e-3))
        for group in update.param_groups:
            group["lr"] = rate
        losses.append(twins.train_step(model, update, batch, first=first, clip=optim.clip_norm))
        step += 1
        now = time.perf_counter()
        if now - said >= args.log_seconds:
            means = {k: float(np.mean([one[k] for one in losses])) for k in losses[0]}
            images = args.batch_size * (step - shown) / (now - said)
            left = (now - began) * (args.steps / step - 1) if args.steps else whole - (now - began)
            parts = " ".join(f"{k} {v:.2e}" for k, v in means.items() if k != "loss")
            _say(
                f"step {step} {_clock(now - began)} loss {means['loss']:.4f} lr {rate:.1e} "
                f"{images:.1f} img/s ETA {_clock(max(left, 0))} {parts}"
            )
            latest, losses, shown, said = means["loss"], [], step, now
    if losses and (math.isnan(latest) or len(losses) >= 10):
        latest = float(np.mean([one["loss"] for one in losses]))
    return step, time.perf_counter() - began, latest


def evaluate(
    model: Any, test: Iterable[Mapping], info: data.DataInfo, config: Any, *, first: int
) -> dict[str, float]:
    """Returns `METRICS` in [0, 1], those of masks only of a detector that has them.

    Args:
        model: of `twins.build`.
        test: of `read_test`.
        info: of the data.
        config: the recipe.
        first: label of class 0.
    """
    parts = []
    for batch in test:
        found = twins.detect(model, batch["image"], first=first)
        boxes = (found["boxes"], batch["image_shape"], batch["original_shape"])
        rows = {name: batch[key] for key, name in detection.TRUTH.items() if key in batch}
        rows |= {name: found[name] for name in ("scores", "classes", "valid")}
        rows |= dict(id=batch["id"], boxes=np.asarray(detection.stored_boxes(*boxes)))
        if config.detection.masks:
            rows["masks"] = np.round(255 * found["masks"]).astype(np.uint8)
        parts.append(rows)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scores = detection.finish({}, rows, info, config)
    return {name: scores[name] for name in METRICS if name in scores}


def table(record: Mapping[str, Any]) -> list[str]:
    """Returns the lines of the Markdown table of one run."""
    names = [name for name in METRICS if name in record]
    row = [record["detector"], f"{record['parameters']:,}", f"{record['ours']:,}"]
    row += [f"{record['minutes']:.1f}", str(record["steps"]), f"{record['lr']:g}"]
    row += [f"{record['loss']:.3f}", *(f"{100 * record[name]:.1f}" for name in names)]
    labels = [name.replace("_ap", " AP") + " %" for name in names]
    return markdown_table((*HEAD, *labels), [row], left={0})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection_peer", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--data_dir", required=True, metavar="SET", help="of python -m lambdanet.data.prepare")
    add("--detector", required=True, choices=sorted(twins.FIRST_LABELS))
    add("--image_size", type=_size, default=(192, 192), metavar="HEIGHT,WIDTH")
    add("--minutes", type=float, default=15.0, help="of training")
    add("--steps", type=int, default=0, help="instead of the minutes")
    add("--batch_size", type=int, default=8)
    add("--seed", type=int, default=0, help="of weights, order and augmentation")
    add("--lr", type=float, default=1e-3, help="peak of the learning rate")
    add("--max_objects", type=int, default=100, help="as many as the fullest picture has")
    add("--anchor_scale", type=float, default=3.0, help="smallest side of a level / its stride")
    add("--proposals", type=int, default=100, help="of Mask R-CNN, per picture")
    add("--test_split", default="test")
    add("--threads", type=int, default=1, help="of torch")
    add("--log_seconds", type=float, default=10.0, help="between lines of progress")
    add("--json", action="store_true", help="one line of JSON instead of a table")
    return parser


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted is HEIGHT,WIDTH: 192,256") from None
    return height, width


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in ("minutes", "batch_size", "lr", "max_objects", "anchor_scale", "proposals"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} is {getattr(args, name)}; allowed: more than 0")
    for name in ("steps", "seed"):
        if getattr(args, name) < 0:
            parser.error(f"--{name} is {getattr(args, name)}; allowed: 0 or more")
    if args.threads < 1 or min(args.image_size) < 32:
        parser.error(
            f"--threads is {args.threads}, --image_size {args.image_size}; allowed: 1 thread or "
            "more, sides of 32 or more"
        )
    if not torch_detection.installed():
        parser.error("torch and torchvision are not installed; without them there is no peer")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    start_up.prepare_cpu()
    sys.exit(main())
