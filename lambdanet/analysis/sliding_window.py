"""Dense prediction on pictures larger than what a model is trained on, and at several sizes.

    logits = slide(forward, images, crop=(512, 512), stride=(341, 341))
    scores = average_views(forward, images, scales=(0.75, 1.0, 1.25), flip=True)

Both are traced: they compile once for each size of picture, whatever the number of windows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambdanet.layers.resize import resize_bilinear

Forward = Callable[[Float[Array, "b h w c"]], Float[Array, "b h w k"]]
"""Maps normalised images of any size to logits of that size."""


def window_starts(length: int, crop: int, stride: int) -> tuple[int, ...]:
    """Returns where windows of `crop` begin along an axis: every `stride`, the last one moved back
    so that it ends with the axis. One window if the axis is not longer than it.

    Raises:
        ValueError: a stride below 1, or above the crop, which would leave gaps.
    """
    if not 1 <= stride <= crop:
        raise ValueError(
            f"sliding window: stride {stride} with windows of {crop} pixels; allowed: 1 to {crop}"
        )
    count = max(-(-(length - crop) // stride), 0) + 1
    return tuple(max(min(i * stride, length - crop), 0) for i in range(count))


def slide(
    forward: Forward,
    images: Float[Array, "b h w c"],
    *,
    crop: tuple[int, int],
    stride: tuple[int, int],
) -> Float[Array, "b h w k"]:
    """Runs a model on overlapping windows and averages the logits of each pixel.

    Every pixel's value is the sum over the windows that hold it, in float32, divided by their
    number: mmsegmentation's `slide` mode, with the same windows. They are worked off one after the
    other; a side of the picture that is shorter than the window is taken whole.

    Args:
        forward: the model.
        images: normalised.
        crop: height and width of the windows.
        stride: steps between windows along both axes, at most the crop.

    Raises:
        ValueError: see `window_starts`.
    """
    sides = images.shape[1:3]
    starts = [window_starts(*axis) for axis in zip(sides, crop, stride, strict=True)]
    size = tuple(min(pair) for pair in zip(sides, crop, strict=True))
    if all(len(axis) == 1 for axis in starts):
        return forward(images).astype(jnp.float32)
    windows = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 2).astype(np.int32)
    covered = [np.zeros(side, np.float32) for side in sides]
    for cover, axis, length in zip(covered, starts, size, strict=True):
        for start in axis:
            cover[start : start + length] += 1

    def look(start: jax.Array) -> Float[Array, "b ch cw k"]:
        part = (images.shape[0], *size, images.shape[3])
        return forward(jax.lax.dynamic_slice(images, (0, *start, 0), part)).astype(jnp.float32)

    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        logits, place = look(start), (0, *start, 0)
        logits += jax.lax.dynamic_slice(total, place, logits.shape)
        return jax.lax.dynamic_update_slice(total, logits, place), None

    classes = jax.eval_shape(look, jax.ShapeDtypeStruct((2,), jnp.int32)).shape[-1]
    total = jnp.zeros((images.shape[0], *sides, classes), jnp.float32)
    total, _ = jax.lax.scan(add, total, windows)
    return total / np.outer(*covered)[..., None]


def average_views(
    forward: Forward,
    images: Float[Array, "b h w c"],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Float[Array, "b h w k"]:
    """Runs a model on a picture at several sizes, as it is and mirrored, and averages.

    Logits are resized to the picture bilinearly; their probabilities are averaged; the logarithm of
    the average is returned, which serves as logits. One view is returned as it is.

    Args:
        forward: the model, or `slide` with one.
        images: normalised.
        scales: factors of the sides; pictures are resized with antialiasing.
        flip: also look at each mirrored left and right.
    """
    sides = images.shape[1:3]
    total, views = 0.0, 0
    for scale in scales:
        size = tuple(max(int(side * scale + 0.5), 1) for side in sides)
        scaled = images
        if size != sides:
            scaled = jax.image.resize(images, (images.shape[0], *size, images.shape[3]), "bilinear")
        for mirrored in (False, True)[: 1 + flip]:
            logits = forward(scaled[:, :, ::-1] if mirrored else scaled)
            logits = resize_bilinear(logits.astype(jnp.float32), sides)
            logits = logits[:, :, ::-1] if mirrored else logits
            if len(scales) == 1 and not flip:
                return logits
            total, views = total + jax.nn.softmax(logits), views + 1
    return jnp.log(jnp.maximum(total / views, np.finfo(np.float32).tiny))


def looker(
    forward: Forward,
    *,
    crop: tuple[int, int] | None,
    stride: tuple[int, int] | None,
    scales: Sequence[float],
    flip: bool,
) -> Forward:
    """Returns the model looked through: `average_views` over `slide`, `crop` None being the whole
    picture at once.
    """
    if crop is not None:
        forward = functools.partial(slide, forward, crop=crop, stride=stride)
    return functools.partial(average_views, forward, scales=scales, flip=flip)
