"""What detectors are called with, checked by shape and type, so that a mistake ends here and not
somewhere inside, or nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ..backbone import check_images

_KINDS = {
    "boxes": ((4,), jnp.floating, "floats, left, top, right and bottom in pixels"),
    "classes": ((), jnp.integer, "integers"),
    "valid": ((), jnp.bool_, "bool"),
    "crowd": ((), jnp.bool_, "bool"),
}
"""Target -> axes after picture and object, type, words for both."""


def check_pictures(images: jax.Array, image_shapes: jax.Array, channels: int) -> None:
    """Raises ValueError unless images are [b, h, w, channels] with b >= 1, and shapes [b, 2]."""
    check_images(images, channels)
    batch = images.shape[0]
    if batch == 0:
        raise ValueError(f"images have shape {images.shape}; expected one picture or more")
    shape = jnp.shape(image_shapes)
    if len(shape) != 2 or shape[0] != batch or shape[1] != 2:
        raise ValueError(
            f"image_shapes have shape {shape}; expected ({batch}, 2): height and width of every "
            "picture in its canvas"
        )


def check_targets(
    targets: Mapping[str, jax.Array], batch: int, masks: bool
) -> Mapping[str, jax.Array]:
    """Returns targets with room for one object at least, by one that is not valid.

    Args:
        targets: see `anchoring.Targets`.
        batch: number of pictures.
        masks: whether masks are read.

    Raises:
        ValueError: one is missing, or has another shape or type; lists all problems.
    """
    wanted = [*_KINDS, *(["masks"] if masks else [])]
    missing = [name for name in wanted if name not in targets]
    if missing:
        raise ValueError(
            f"targets have no {', '.join(missing)}; needed are {', '.join(wanted)}, of every "
            "object of every picture"
        )
    shape = jnp.shape(targets["valid"])
    objects = shape[1] if len(shape) == 2 else "objects"
    problems = []
    for name, (rest, kind, words) in _KINDS.items():
        found, expected = targets[name], (batch, objects, *rest)
        if jnp.shape(found) != expected or not jnp.issubdtype(found.dtype, kind):
            expected = str(expected).replace("'", "")
            problems.append(
                f"{name} is {found.dtype} of shape {jnp.shape(found)}; expected {expected}, {words}"
            )
    if masks:
        found = jnp.shape(targets["masks"])
        if len(found) != 4 or found[:2] != (batch, objects) or found[2] != found[3]:
            problems.append(
                f"masks have shape {found}; expected ({batch}, {objects}, s, s), each in the "
                "coordinates of its box"
            )
    if problems:
        raise ValueError("targets: " + "; ".join(problems))
    if objects:
        return targets
    return {
        name: jnp.zeros((batch, 1, *value.shape[2:]), value.dtype)
        for name, value in ((name, targets[name]) for name in wanted)
    }
