"""Export of a trained model as one StableHLO file that runs without this library.

Loading it needs jax alone:

    exported = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    logits = exported.call(images)  # uint8 [b, height, width, channels] -> float32 [b, classes]

Detectors give a dict of arrays [b, ...] in place of logits, for images that fill their canvas.
The weights and the normalisation of the images are inside, so one file is the whole model; the
batch size is symbolic. The weights alone, to be read by other programs, are what
`lambdanet.interop` writes as safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Float, UInt8

from lambdanet.atomic import write_file

PLATFORMS = ("cpu", "cuda", "tpu")
Outputs = Float[Array, "b classes"] | dict[str, jax.Array]
Forward = Callable[[UInt8[Array, "b ..."]], Outputs]


def export_model(
    forward: Forward,
    path: str | os.PathLike,
    *,
    image_shape: tuple[int, ...],
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Writes `forward` with everything it closes over; the file appears whole or not at all.

    Args:
        forward: maps uint8 images to logits; its weights are closed over and end up in the file.
        path: the file.
        image_shape: (height, width, channels), of clips frames before them; the batch stays open.
        platforms: where the file shall run.

    Returns:
        The path.
    """
    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    exported = jax_export.export(jax.jit(forward), platforms=tuple(platforms))(images)
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
    path: str | os.PathLike,
    forward: Forward,
    images: UInt8[np.ndarray, "b ..."],
    tolerance: float = 1e-5,
) -> float:
    """Reloads an exported file and compares its outputs with those of `forward`.

    Returns:
        The largest difference, as a fraction of the largest value of the same array.

    Raises:
        ValueError: the difference is above `tolerance`.
    """
    pairs = zip(
        jax.tree.leaves(jax.jit(forward)(images)),
        jax.tree.leaves(load_exported(path)(images)),
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
