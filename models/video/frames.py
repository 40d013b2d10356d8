"""What is known of a frame, and the form of what carries features from one to another."""

from __future__ import annotations

from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from ..backbone import Row
from .registration import registry

PARTS = ("image", "low", "features")
"""What a propagation may need of a frame."""


class Frame(NamedTuple):
    """A frame, or several with an axis of frames in front; None for what nobody needs.

    Attributes:
        image: [b, y, x, c], normalised.
        low: the early map of the backbone that is cheap to compute.
        features: the map that the head reads.
        embedding: what a propagation has prepared of the features.
    """

    image: jax.Array | None = None
    low: jax.Array | None = None
    features: jax.Array | None = None
    embedding: jax.Array | None = None


class Propagation(nnx.Module):
    """Base of what makes the features of a frame from those of a key frame.

    A class is registered in `models.video.registry` and is called with a key frame and the current
    one, (Frame, Frame) -> features of the current frame [b, h, w, c]. Of
    `models.video.registration.HANDED_IN` it declares what it reads: `channels` and `stride` of the
    features, `in_channels` of the image, `low_channels` and `low_stride` of the low map.

    Attributes:
        key_needs: parts of the key frame that it reads, of `PARTS`.
        needs: parts of the current frame.
        many: whether it reads several frames at once, [t, b, ...].
        recursive: whether a key frame takes something over from the one before it, by `renew`.
    """

    key_needs: tuple[str, ...] = ("features",)
    needs: tuple[str, ...] = ()
    many: bool = False
    recursive: bool = False

    def prepare(self, frame: Frame) -> Frame:
        """Returns a key frame with what is computed once for all frames that it is carried to."""
        return frame

    def renew(self, old: Frame, new: Frame) -> Frame:
        """Returns the key frame that follows another one: the new one, as it is or with what the
        old one knows.
        """
        return new

    def rows(
        self, image: tuple[int, int], low: tuple[int, int], features: tuple[int, int]
    ) -> list[Row]:
        """Returns the lines of the summary for images and maps of these sizes."""
        return []


@registry.register("none")
class PerFrame(Propagation):
    """Each frame's own features: no propagation, the measure of its loss."""

    key_needs = ()
    needs = ("features",)

    def __call__(self, key: Frame, current: Frame) -> Float[Array, "b h w c"]:
        """Returns the current frame's own features."""
        return current.features


@registry.register("copy")
class Copy(Propagation):
    """The key frame's features as they are: what any propagation has to be better than."""

    def __call__(self, key: Frame, current: Frame) -> Float[Array, "b h w c"]:
        """Returns the features of the key frame."""
        return key.features
