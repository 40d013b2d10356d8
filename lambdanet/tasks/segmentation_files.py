"""Predictions of segmentation as files: index PNGs, overlays, a legend."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError

from lambdanet.analysis import label_colours
from lambdanet.atomic import write_file
from lambdanet.data import decode, geometry
from lambdanet.data.record import DataInfo
from lambdanet.ops.images import normalise
from lambdanet.ops.upsampled_pixels import pixel_scores
from lambdanet.tasks import segmentation
from lambdanet.tasks.segmentation_classes import all_names

MOST_NAMED = 5  # classes that a line of the table names


def write(
    model: nnx.Module, files: Mapping[str, Path], folder: Path, *, info: DataInfo, config: Any
) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[str]]:
    """Writes for every picture NAME_labels.png, whose values are the classes (a palette shows their
    colours), and NAME_overlay.png, the picture under these colours except where the class is 0; and
    legend.png.

    Args:
        model: evaluation view.
        files: what the outputs are called, without a suffix -> picture.
        folder: where they go.
        info: of the data, for the names.
        config: reads the sections data and segmentation. Pictures are segmented at their own size,
            or with data.scale_base at the size where their short side is that; what is written has
            the size of the picture.

    Returns:
        (columns, rows, problems): picture, label map, classes by share; the pictures that cannot be
        read, and why.
    """
    graphdef, state = nnx.split(model)

    @functools.partial(jax.jit, static_argnums=2)  # compiled once for each size of picture
    def predict(state: Any, image: jax.Array, size: tuple[int, int]) -> jax.Array:
        images = normalise(image[None], config.data.mean, config.data.std)
        logits, align = segmentation.scores(nnx.merge(graphdef, state), images, config)
        nothing = jnp.zeros((1, *size), jnp.int32)
        return pixel_scores(logits, nothing, align_corners=align)[1][0].astype(jnp.uint8)

    names, rows, problems = all_names(info, config, model.num_classes), [], []
    for name, path in files.items():
        try:
            image, scaled = read_picture(path, config.data)
        except UnidentifiedImageError:
            problems.append(f"{path}: not an image")
            continue
        except Exception as error:  # damaged files raise many types
            problems.append(f"{path}: cannot be read ({error})")
            continue
        labels = np.asarray(predict(state, scaled, image.shape[:2]))
        written = folder / f"{name}_labels.png"
        save_png(written, label_colours.index_image(labels))
        mixed = Image.fromarray(label_colours.overlay(image, labels))
        save_png(folder / f"{name}_overlay.png", mixed)
        rows.append((str(path), str(written), _shares(labels, names)))
    save_png(folder / "legend.png", label_colours.legend(names))
    return ("picture", "label map", "classes"), rows, problems


def read_picture(
    path: Path, data: Any
) -> tuple[UInt8[np.ndarray, "h w c"], UInt8[np.ndarray, "sh sw c"]]:
    """Returns a picture in full, and at the size at which it is segmented."""
    return both_sizes(path.read_bytes(), data)


def both_sizes(
    contents: bytes | UInt8[np.ndarray, "h w c"], data: Any
) -> tuple[UInt8[np.ndarray, "h w c"], UInt8[np.ndarray, "sh sw c"]]:
    """Returns the picture of a file's bytes, or of pixels, in full, and at the size at which it is
    segmented.
    """

    def resized(base: int) -> np.ndarray:
        picture = decode.open_image(contents, exif_orientation=data.exif_orientation)
        factor = base / min(picture.size) if base else 1.0
        width, height = geometry.scaled_size(picture.size, factor)
        options = dict(channels=data.channels, interpolation="bilinear")
        whole = (0, 0, *picture.size)
        image = decode.crop_and_resize(picture, whole, size=(height, width), **options)
        return decode.to_array(image)

    full = resized(0)
    return full, resized(data.scale_base) if data.scale_base else full


def _shares(labels: Int[np.ndarray, "h w"], names: list[str]) -> str:
    counts = np.bincount(labels.ravel(), minlength=len(names))
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    shown = [f"{names[i]} {100 * counts[i] / labels.size:.1f} %" for i in order[:MOST_NAMED]]
    return ", ".join(shown + ["..."] * (len(order) > MOST_NAMED))


def save_png(path: Path, image: Image.Image) -> None:
    """Writes a picture, complete or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: image.save(temporary, format="png"))
