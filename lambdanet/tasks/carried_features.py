"""The features of every frame of a clip, in evaluation: key frames at fixed intervals and what is
carried from them, or for each frame those of its neighbours.

Models have `key_frame(image)`, `next_key(key, image)`, `propagate(key, image)` and a `propagation`
of key frames that says whether it reads `many` of them (`VideoSegmenter` and `VideoDetector` of
models/video).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from lambdanet.data import key_frames
from lambdanet.ops.images import normalise


def check_others(model: nnx.Module, config: Any) -> None:
    """Raises ValueError for a model that reads pairs where training gives many frames, or the other
    way round.

    Args:
        model: see above.
        config: reads propagation.others.
    """
    others = config.propagation.others
    if model.propagation.many and others < 1:
        raise ValueError(
            f"propagation.others={others}, but model.propagation reads many frames; allowed: 1 or "
            "more, 2 as in its source"
        )
    if others and not model.propagation.many:
        raise ValueError(
            f"propagation.others={others}, but model.propagation reads one key frame; allowed: 0"
        )


def over_frames(
    model: nnx.Module,
    clip: UInt8[Array, "b t h w c"],
    given: Any,
    config: Any,
    read: Callable[[jax.Array, Any], Any],
) -> Any:
    """Returns what `read` makes of the features of every frame, one frame after the other.

    A propagation from one key frame: frames 0, interval, 2 interval, ... are key frames, whose own
    features are read; the others have those of the last key frame, carried. A propagation from many
    frames: the results of `key_frame` are made once for every frame, and each reads `reach` of them
    on each side in steps of `interval`.

    Args:
        model: evaluation view.
        clip: as stored.
        given: a tree of arrays [t, ...], of which `read` gets those of the frame.
        config: reads data.mean, data.std, propagation.interval and propagation.reach.
        read: (features [b, y, x, d], entry of `given`) -> a tree of arrays.

    Returns:
        The trees, with an axis of t frames in front.
    """
    images = jnp.moveaxis(clip, 1, 0)
    many = _from_neighbours if model.propagation.many else _from_keys
    return many(model, images, given, config, read)


def _normal(image: jax.Array, config: Any) -> jax.Array:
    return normalise(image, config.data.mean, config.data.std)


def _from_keys(model, images, given, config, read):
    def first(key, image):
        key = model.key_frame(image)
        return key, key.features

    def renewed(key, image):
        key = model.next_key(key, image)
        return key, key.features

    def carried(key, image):
        return key, model.propagate(key, image)

    # What happens at each frame: the first key frame has none before it.
    kinds = np.where(np.arange(len(images)) % config.propagation.interval, 2, 1)
    kinds[0] = 0

    def step(key, frame):
        kind, image, own = frame
        key, features = jax.lax.switch(kind, (first, renewed, carried), key, _normal(image, config))
        return key, read(features, own)

    shapes = jax.eval_shape(lambda image: model.key_frame(_normal(image, config)), images[0])
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.scan(step, nothing, (jnp.asarray(kinds), images, given))[1]


def _from_neighbours(model, images, given, config, read):
    interval, reach = config.propagation.interval, config.propagation.reach
    keys = jax.lax.map(lambda image: model.key_frame(_normal(image, config)), images)
    numbers = key_frames.window(len(images), interval, reach)

    def step(frame):
        current, near, own = frame
        around = jax.tree.map(lambda a: a[near], keys)
        return read(model.propagation(around, current), own)

    # What is known of a key frame is all that is needed of the current one.
    return jax.lax.map(step, (keys, jnp.asarray(numbers), given))
