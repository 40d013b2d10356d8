"""What eval.py does with a model: functions of a `Subject` that print a table and return what they
found as plain values.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lambdanet import config as config_lib
from lambdanet import data, tasks
from lambdanet.analysis import attention_maps, export, speed, summary
from lambdanet.analysis.console import check_least, console, say, show_table
from lambdanet.analysis.predict import predict
from lambdanet.analysis.subject import Subject
from lambdanet.atomic import write_file
from lambdanet.data import pseudo_labels
from lambdanet.data.class_folders import is_litter
from lambdanet.interop import files
from lambdanet.interop.grids import grids_of
from lambdanet.ops.images import normalise
from lambdanet.training import state as state_lib
from lambdanet.training.metrics import json_value

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def write_results(folder: Path, mode: str, subject: Subject, results: dict[str, Any]) -> None:
    """Writes <folder>/<mode>.json."""
    text = json.dumps(json_value({"model": subject.name} | results), indent=2) + "\n"
    say(f"Written: {write_file(folder / f'{mode}.json', text)}")


# ---- Modes ---------------------------------------------------------------------------------------


def summarise(subject: Subject) -> dict[str, Any]:
    """Path, type, output shape, parameters and MACs of every layer; nothing is allocated.

    Weights that were named are read, so that it is known whether they fit.
    """
    if subject.weights:
        say(f"The weights of {subject.load_weights()[1]} fit.")
    model = nnx.view(
        nnx.eval_shape(subject.build), deterministic=True, use_running_average=True,
        raise_if_not_found=False,
    )  # fmt: skip
    rows = summary.summarise(model, *subject.image_shape[-3:-1])
    abstract = state_lib.abstract_weights(subject.build)
    flops = summary.compiler_flops(subject.forward, abstract, subject.image_shape)
    totals = summary.totals(rows)
    say(f"{subject.name}, {'x'.join(map(str, subject.image_shape))}")
    console.print(summary.summary_table(rows))
    say(
        f"{2 * totals['macs']:,} FLOPs by the papers' closed forms, two per MAC. The compiler "
        "counts "
        f"{flops:,.0f}\nfor the lowerings chosen here: with element-wise work, without taps on "
        "padding, loop bodies once."
    )
    return {**totals, "compiler_flops": flops, "rows": rows}


def measure_speed(
    subject: Subject, *, batch_sizes: Sequence[int] = (1, 8, 64), repeats: int = 20
) -> dict[str, Any]:
    """Times the forward pass by batch size, on one device; without weights as initialised."""
    check_least("repeats", repeats, 1)
    for size in batch_sizes:
        check_least("batch_sizes", size, 1)
    if subject.workdir or subject.weights:
        weights, _ = subject.load_weights()
    else:  # the values of the weights do not change the time
        weights = jax.jit(lambda: state_lib.split_model(subject.build())[1:])()
    shape = subject.image_shape
    results = speed.measure(subject.forward, weights, shape, batch_sizes, repeats=repeats)
    device = jax.devices()[0].device_kind
    say(f"{subject.name}: forward pass on {shape} images, {device}")
    console.print(speed.speed_table(results))
    return {"device": device, "results": results}


def draw_attention(
    subject: Subject, folder: str | os.PathLike, *, split: str | None = None, images: int = 3
) -> dict[str, Any]:
    """Writes a PNG per attention layer: where several queries of the first images look."""
    check_least("images", images, 1)
    if len(subject.image_shape) != 3:
        raise ValueError(f"not for the task {subject.config.task!r}: maps are drawn over one image")
    weights, source = subject.load_weights()
    pictures = first_images(subject.batches(subject.split(split)), images)
    normal = normalise(pictures, subject.config.data.mean, subject.config.data.std)
    maps = attention_maps.capture_maps(nnx.merge(subject.graphdef, *weights), normal)
    paths = attention_maps.draw_maps(maps, pictures, folder)
    rows = [(k, v.shape, path) for (k, v), path in zip(maps.items(), paths, strict=True)]
    title = f"{subject.name}: attention of {source}"
    show_table(title, ("layer", "map", "picture"), rows)
    return {"pictures": {layer: str(path) for layer, _, path in rows}}


def first_images(batches: Iterable[Mapping[str, np.ndarray]], count: int) -> np.ndarray:
    """Returns the first `count` images that could be read, or all if there are fewer; raises
    ValueError if there is none.
    """
    found: list[np.ndarray] = []
    for batch in batches:
        found += list(batch["image"][np.asarray(batch["mask"]) > 0])
        if len(found) >= count:
            break
    if not found:
        raise ValueError("no image of the split can be read")
    return np.stack(found[:count])


def export_model(subject: Subject, folder: str | os.PathLike) -> dict[str, Any]:
    """Writes one StableHLO file that runs without this library, and the weights as safetensors."""
    (weights, source), folder = subject.load_weights(), Path(folder)
    forward, shape = functools.partial(subject.forward, weights), subject.image_shape
    program = export.export_model(forward, folder / "model.stablehlo", image_shape=shape)
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    difference = export.check_exported(program, forward, images)
    flat = state_lib.flatten_names(weights[0]) | state_lib.flatten_names(weights[1])
    options = (
        {}
        if subject.info is tasks.UNKNOWN
        else subject.task.model_options(subject.info, subject.config)
    )
    plain = options | config_lib.to_plain(subject.config.model)
    plain["image_size"] = plain.get("image_size", shape[-3:-1])
    abstract = nnx.eval_shape(subject.build)
    path = folder / "model.safetensors"
    files.save_safetensors(path, flat, files.export_metadata(plain, grids_of(abstract)))
    written = ((program, "program and weights, needs jax only"), (path, "weights, for --weights"))
    rows = [(file, f"{file.stat().st_size / 1e6:.2f}", what) for file, what in written]
    show_table(f"{subject.name} from {source}", ("file", "MB", "holds"), rows)
    say(
        f"Reloaded: outputs differ by {difference:.1e} of the largest one. Use it anywhere, after "
        f"`import jax.export`:\n  exported = jax.export.deserialize(bytearray(open({str(program)!r}"
        f", 'rb').read()))\n  outputs = exported.call(images)  # uint8 [batch, "
        f"{', '.join(map(str, shape))}]"
    )
    return {"source": source, "platforms": export.PLATFORMS, "reload_difference": difference}


def label_split(
    subject: Subject, folder: str | os.PathLike, *, split: str | None = None, threshold: float = 0.9
) -> dict[str, Any]:
    """Writes class-balanced labels above a confidence for a split (None: data.pseudo_split), for
    data.pseudo_labels of another run.

    Raises:
        ValueError: a task without one class per image; no record reaches the threshold.
    """
    known = subject.info is not tasks.UNKNOWN
    unread = [n for n in (pseudo_labels.FIELD, "image") if n not in subject.info.features]
    if known and unread:
        raise ValueError(
            f"task = {subject.config.task!r} reads no field {unread[0]!r}, and pseudo-labels are "
            "classes of images; allowed: 'classification'"
        )
    split, folder = split or subject.config.data.pseudo_split, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights, source = subject.load_weights()
    ids, probabilities = predict(subject.forward, weights, subject.batches(split))
    path, count = folder / "pseudo_labels.json", probabilities.shape[1]
    chosen = pseudo_labels.write(path, ids, probabilities, threshold, count, split=split)
    names = [
        *subject.info.classes,
        *(f"class {i}" for i in range(len(subject.info.classes), count)),
    ]
    rows = zip(names, chosen["class_counts"], strict=True)
    show_table(f"Pseudo-labels for {split} by {source}", ("class", "labelled"), rows)
    say(
        f"{chosen['selected']} of {chosen['records']} records; {chosen['qualified']} reach "
        f"{threshold}"
    )
    say(f"Written: {path}; train with --config.data.pseudo_labels={path}")
    return chosen


def write_predictions(subject: Subject, folder: Path, pictures: str) -> dict[str, Any]:
    """Writes what the model says of pictures, in the form of its task; pictures that cannot be read
    are left out, and named as `problems` in what is returned.

    Args:
        subject: of `load_subject`.
        folder: where to.
        pictures: a file, or a folder that is searched with all below it.

    Raises:
        ValueError: the task has no such form, or there is no picture.
    """
    write = getattr(subject.task, "write_predictions", None)
    if write is None:
        able = [n for n, task in tasks.TASKS.items() if hasattr(task, "write_predictions")]
        raise ValueError(f"not for the task {subject.config.task!r}; for: {', '.join(able)}")
    if not pictures:
        raise ValueError("name a picture, or a folder of them, with --pictures=PATH")
    found = find_pictures(Path(pictures))
    weights, source = subject.load_weights()
    info = data.DataInfo({}, ()) if subject.info is tasks.UNKNOWN else subject.info
    model = nnx.merge(subject.graphdef, *weights)
    columns, rows, problems = write(model, found, folder, info=info, config=subject.config)
    show_table(f"{subject.name} from {source}: predictions", columns, rows)
    say(f"Written: {folder}")
    shown = [dict(zip(columns, row, strict=True)) for row in rows]
    return {"source": source, "pictures": shown, "problems": problems}


def find_pictures(path: Path) -> dict[str, Path]:
    """Returns the pictures at a path by name: the path within the folder without its suffix, or
    with it where two would have the same (all of them where that does not help). What systems leave
    in folders is passed over.

    Raises:
        ValueError: there is none.
    """
    if path.is_file():
        return {path.stem: path}
    found = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    found = sorted(p for p in found if not any(map(is_litter, p.relative_to(path).parts)))
    if not found:
        raise ValueError(
            f"--pictures={path}: no picture there; looked for names that end with "
            f"{', '.join(SUFFIXES)}"
        )
    names = [p.relative_to(path) for p in found]
    stems = [str(name.with_suffix("")) for name in names]
    chosen = {
        stem if stems.count(stem) == 1 else str(name): p
        for stem, name, p in zip(stems, names, found, strict=True)
    }
    # a.jpg and a.png beside a.jpg.png: whole names are always different
    return chosen if len(chosen) == len(found) else dict(zip(map(str, names), found, strict=True))
