"""Export of a trained model as one StableHLO file that runs without this library.

Loading it needs jax alone:

    exported = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    logits = exported.call(images)  # uint8 [b, height, width, channels] -> float32 [b, classes]

That is of classification. Of the other tasks:

    segmentation    images -> labels uint8 [b, height, width], the class of every pixel
    clips           views uint8 [b, views, frames, height, width, c] -> logarithms of the
                    probabilities float32 [b, classes], averaged over the views
    detection       images, image_shapes int32 [b, 2] -> a dict of arrays [b, ...]; the shapes are
                    (height, width) of the part of each canvas that is picture

The weights and the normalisation of the images are inside, so one file is the whole model; the
batch size is symbolic. What must be done with a picture first, and the names of the classes, stand
in export.json; examples/predict_exported.py does it. The weights alone, to be read by other
programs, are what `lambdanet.interop` writes as safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from lambdanet.atomic import write_file

PLATFORMS = ("cpu", "cuda", "tpu")
Forward = Callable[..., Any]
"""Maps arrays [b, ...] to an array or a dict of arrays [b, ...]."""


def export_model(
    forward: Forward,
    path: str | os.PathLike,
    *,
    inputs: Sequence[np.ndarray],
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Writes `forward` with everything it closes over; the file appears whole or not at all.

    Args:
        forward: its weights are closed over and end up in the file.
        path: the file.
        inputs: one example of each argument of `forward`, without the batch, which stays open.
        platforms: where the file shall run.

    Returns:
        The path.
    """
    (batch,) = jax_export.symbolic_shape("batch")
    abstract = [jax.ShapeDtypeStruct((batch, *np.shape(a)), np.asarray(a).dtype) for a in inputs]
    exported = jax_export.export(jax.jit(forward), platforms=tuple(platforms))(*abstract)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_file(path, bytes(exported.serialize()))


def load_exported(path: str | os.PathLike) -> Forward:
    """Returns the function in an exported file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no exported model at {path}; `python eval.py --mode=export` writes one"
        )
    return jax_export.deserialize(bytearray(path.read_bytes())).call


def check_exported(
    path: str | os.PathLike, forward: Forward, *inputs: np.ndarray, tolerance: float = 1e-5
) -> float:
    """Reloads an exported file and compares its outputs with those of `forward` for some inputs.

    Returns:
        The largest difference, as a fraction of the largest value of the same array.

    Raises:
        ValueError: the difference is above `tolerance`.
    """
    pairs = zip(
        jax.tree.leaves(jax.jit(forward)(*inputs)),
        jax.tree.leaves(load_exported(path)(*inputs)),
        strict=True,
    )
    differences = []
    for ours, theirs in pairs:
        ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs))
        differences.append(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-12))
    difference = float(np.max(differences))
    if not difference <= tolerance:
        raise ValueError(
            f"{path}: reloaded outputs differ by {difference:.3g} of the largest one, allowed: "
            f"{tolerance:g}"
        )
    return difference
