"""What eval.py does with a model: functions of a `Subject` that print a table and return what they
found as plain values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, UInt8

from lambdanet import config as config_lib
from lambdanet import data, tasks
from lambdanet.analysis import attention_maps, export, speed, summary
from lambdanet.analysis.console import check_least, console, say, show_table
from lambdanet.analysis.predict import most_in_batch
from lambdanet.analysis.subject import DATA_ENTRY, Subject
from lambdanet.atomic import write_file
from lambdanet.data import geometry, info_file, pseudo_labels
from lambdanet.interop import files
from lambdanet.interop.grids import grids_of
from lambdanet.ops.images import normalise
from lambdanet.training import state as state_lib
from lambdanet.training.compiling import compiling
from lambdanet.training.metrics import json_value


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
    pictures, shapes = first_images(subject.batches(subject.split(split)), images)
    normal = normalise(pictures, subject.config.data.mean, subject.config.data.std)
    with compiling("the maps of attention", say):
        maps = attention_maps.capture_maps(nnx.merge(subject.graphdef, *weights), normal)
    paths = attention_maps.draw_maps(maps, pictures, folder, shapes)
    rows = [(k, v.shape, path) for (k, v), path in zip(maps.items(), paths, strict=True)]
    title = f"{subject.name}: attention of {source}"
    show_table(title, ("layer", "map", "picture"), rows)
    return {"pictures": {layer: str(path) for layer, _, path in rows}}


def first_images(
    batches: Iterable[Mapping[str, np.ndarray]], count: int
) -> tuple[UInt8[np.ndarray, "b h w c"], Int[np.ndarray, "b 2"]]:
    """Returns the first `count` images that could be read, or all if there are fewer, and height
    and width of the part at the top left of each that is picture; raises ValueError if there is
    none.
    """
    found: list[np.ndarray] = []
    shapes: list[np.ndarray] = []
    for batch in batches:
        read = np.asarray(batch["mask"]) > 0
        found += list(batch["image"][read])
        shapes += list(_picture_shapes(batch)[read])
        if len(found) >= count:
            break
    if not found:
        raise ValueError("no image of the split can be read")
    return np.stack(found[:count]), np.stack(shapes[:count])


def _picture_shapes(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns height and width of what is picture, and no padding: `image_shape` where the task
    says it; in front of the last label, where pixels have some, since padding has none; or all.
    """
    whole = np.array(batch["image"].shape[1:3])
    if "image_shape" in batch:
        return np.asarray(batch["image_shape"])
    shapes = np.repeat(whole[None], len(batch["image"]), 0)
    for shape, labels in zip(shapes, batch.get("label_map", ()), strict=False):
        rows, columns = np.nonzero(labels != geometry.IGNORE)
        if len(rows):
            shape[:] = rows.max() + 1, columns.max() + 1
    return shapes


def export_model(subject: Subject, folder: str | os.PathLike) -> dict[str, Any]:
    """Writes one StableHLO file that runs without this library, and the weights as safetensors.

    Returns:
        What goes with the program: inputs and outputs, classes, preprocessing.
    """
    (weights, source), folder = subject.load_weights(), Path(folder)
    kind, config = subject.task.predictions(), data.attributes(subject.config)
    blank = subject.task.blank(config)
    inputs = {name: np.asarray(blank[name]) for name in kind.INPUTS}

    def forward(*arrays: jax.Array) -> Any:
        # as if they were given: folded into each other, they would round otherwise than in predict
        model = nnx.merge(subject.graphdef, *jax.lax.optimization_barrier(weights))
        found = kind.answer(model, dict(zip(inputs, arrays, strict=True)), config)
        return found if len(found) > 1 else next(iter(found.values()))

    given = {name: np.repeat(array[None], 3, 0) for name, array in inputs.items()}
    shape = given["image"].shape
    given["image"] = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with compiling("the program for every platform, and here twice to compare them", say):
        file = folder / "model.stablehlo"
        program = export.export_model(forward, file, inputs=list(inputs.values()))
        difference = export.check_exported(program, forward, *given.values())
    flat = state_lib.flatten_names(weights[0]) | state_lib.flatten_names(weights[1])
    known = subject.info is not tasks.UNKNOWN
    options = subject.task.model_options(subject.info, subject.config) if known else {}
    plain = options | config_lib.to_plain(subject.config.model)
    plain["image_size"] = plain.get("image_size", subject.image_shape[-3:-1])
    abstract = nnx.eval_shape(subject.build)
    seen = {"mean": subject.config.data.mean, "std": subject.config.data.std}
    metadata = files.export_metadata(plain, grids_of(abstract), seen)
    if known:
        metadata[DATA_ENTRY] = json.dumps(info_file.to_plain(subject.info))
    path = folder / "model.safetensors"
    files.save_safetensors(path, flat, metadata)
    written = ((program, "program and weights, needs jax only"), (path, "weights, for --weights"))
    rows = [(file, f"{file.stat().st_size / 1e6:.2f}", what) for file, what in written]
    show_table(f"{subject.name} from {source}", ("file", "MB", "holds"), rows)
    names, notes = subject.class_names()
    for note in notes:
        say(note)
    say(
        f"Reloaded: outputs differ by {difference:.1e} of the largest one. Use it anywhere by "
        f"examples/predict_exported.py, or after `import jax.export`:\n  exported = "
        f"jax.export.deserialize(bytearray(open({str(program)!r}, 'rb').read()))\n  outputs = "
        f"exported.call({', '.join(inputs)})"
    )
    for name, array in inputs.items():
        say(f"  {name}: {array.dtype} [batch, {', '.join(map(str, array.shape))}]")
    outputs = jax.eval_shape(forward, *given.values())
    return {
        "source": source,
        "task": subject.config.task,
        "platforms": export.PLATFORMS,
        "reload_difference": difference,
        "inputs": {name: _described(array.dtype, array.shape) for name, array in inputs.items()},
        "outputs": jax.tree.map(lambda a: _described(a.dtype, a.shape[1:]), outputs),
        "batch_size": most_in_batch(subject.config),  # others round otherwise
        "classes": names,
        "class_ids": subject.known_info.class_ids,
        "preprocessing": kind.describe_preprocessing(config),
    }


def _described(dtype: Any, shape: Sequence[int]) -> dict[str, Any]:
    return {"dtype": str(dtype), "shape": ["batch", *shape]}


def split_probabilities(
    forward: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n classes"]]:
    """Runs a classifier over the evaluation batches of a split.

    Args:
        forward: maps weights and uint8 images [b, h, w, c] to logits.
        weights: pytree of arrays.
        batches: dicts with image, id and mask; rows with mask 0 are left out.

    Returns:
        (ids [n], softmax probabilities float32 [n, classes]).

    Raises:
        ValueError: there is no batch.
    """
    probabilities = jax.jit(lambda weights, images: jax.nn.softmax(forward(weights, images)))
    ids, rows = [], []
    for batch in batches:
        keep = np.asarray(batch["mask"]) > 0
        ids.append(np.asarray(batch["id"])[keep])
        rows.append(np.asarray(probabilities(weights, batch["image"]))[keep])
    if not ids:
        raise ValueError("no batches to predict: the split has no records")
    return np.concatenate(ids), np.concatenate(rows)


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
    batches = subject.batches(split)
    ids, probabilities = split_probabilities(subject.forward, weights, batches)
    path, count = folder / "pseudo_labels.json", probabilities.shape[1]
    chosen = pseudo_labels.write(path, ids, probabilities, threshold, count, split=split)
    names = subject.known_info.names(count)
    rows = zip(names, chosen["class_counts"], strict=True)
    show_table(f"Pseudo-labels for {split} by {source}", ("class", "labelled"), rows)
    say(
        f"{chosen['selected']} of {chosen['records']} records; {chosen['qualified']} reach "
        f"{threshold}"
    )
    say(f"Written: {path}; train with --config.data.pseudo_labels={path}")
    return chosen
