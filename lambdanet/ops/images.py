"""From stored pixels to what a network reads."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def normalise(
    image: UInt8[Array, "*b h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*b h w c"]:
    """Maps uint8 images, or the frames of clips, to float32: (image / 255 - mean) / std, per
    channel (one value serves all channels).
    """
    scaled = image.astype(jnp.float32) / 255.0
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
