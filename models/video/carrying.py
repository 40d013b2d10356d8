"""What networks of videos share: one map of the backbone, and the propagation that carries it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ..backbone import summary_row
from .frames import Frame
from .propagation_options import propagation_builder


class Carrying(nnx.Module):
    """Mixin of networks whose head reads one map of the backbone, which a propagation may carry
    from a key frame to other frames.

        key = key_frame(image)                 the whole backbone
        features = propagate(key, image)       what the propagation needs

    The parts of the backbone that a propagation does not need are not in the compiled program of
    `propagate`: XLA leaves out what nothing reads. In the training view that needs batch norms with
    frozen statistics.

    A network has `features`, `feature_info` and `feature_sizes` of its backbone, and calls
    `build_propagation` at the end of its constructor.

    Attributes:
        propagation: see `Propagation`.
        map_index: which of the backbone's maps is carried.
        low_index: which is the early one that some propagations read.
    """

    def build_propagation(
        self,
        spec: Any,
        *,
        map_index: int,
        low_stage: int,
        in_channels: int,
        dtype: str,
        param_dtype: str,
        rngs: nnx.Rngs,
    ) -> None:
        """Adds the propagation.

        Args:
            spec: a name, or a mapping with `name` and options.
            map_index: see the class.
            low_stage: which of the backbone's maps is the early one, from 1.
            in_channels: channels of the image.
            dtype: of activations.
            param_dtype: of stored parameters.
            rngs: initialisation source.

        Raises:
            ValueError: no such stage, or parts that do not fit each other.
        """
        info = self.feature_info
        if low_stage > len(info):
            raise ValueError(f"low_stage is {low_stage}; allowed: 1 to {len(info)}")
        self.map_index, self.low_index = map_index, low_stage - 1
        own, low = info[map_index], info[self.low_index]
        build, wanted = propagation_builder(spec)
        given = dict(
            channels=own["channels"],
            stride=own["stride"],
            in_channels=in_channels,
            low_channels=low["channels"],
            low_stride=low["stride"],
            dtype=jnp.dtype(dtype),
            param_dtype=jnp.dtype(param_dtype),
            rngs=rngs,
        )
        self.propagation = build(**{name: given[name] for name in wanted})

    def key_frame(self, image: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None) -> Frame:
        """Returns what `propagate` reads of a key frame.

        Args:
            image: normalised.
            rngs: `dropout` stream; read in the training view.
        """
        needs = (*self.propagation.key_needs, "features")
        return self.propagation.prepare(self._frame(image, needs, rngs))

    def next_key(
        self, key: Frame, image: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Frame:
        """Returns the key frame after another one, with what that hands on."""
        return self.propagation.renew(key, self.key_frame(image, rngs=rngs))

    def current_frame(
        self, image: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Frame:
        """Returns what the propagation reads of the current frame; arguments as of `key_frame`."""
        return self._frame(image, self.propagation.needs, rngs)

    def propagate(
        self, key: Frame, image: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b _y _x d"]:
        """Returns the features of a frame, which the head reads.

        Args:
            key: of `key_frame`; for a propagation from many frames those with an axis of frames in
                front (`jax.tree.map(lambda *a: jnp.stack(a), *frames)`).
            image: the current frame.
            rngs: as in `key_frame`.
        """
        return self.propagation(key, self.current_frame(image, rngs=rngs))

    def clip_features(
        self,
        frames: Float[Array, "b t h w c"],
        same: Bool[Array, " b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b _y _x d"]:
        """Returns the features of the last frame of each clip, from the frames before it: what
        training has losses of.

        Args:
            frames: normalised; (key, current), or several frames before the current one for a
                propagation from many.
            same: clips whose key frame is the current one: their features stay as they are, without
                flow or scale. None for none; not for a propagation from many.
            rngs: as in `key_frame`.

        Raises:
            ValueError: more or fewer frames than the propagation reads, or `same` for one from
                many.
        """
        moved, many = self.propagation, self.propagation.many
        batch, count = frames.shape[:2]
        if count < 2 or (count > 2 and not many):
            raise ValueError(
                f"{type(moved).__name__} on clips of {count} frames; allowed: "
                f"{'2 or more' if many else 'pairs (key, current)'}"
            )
        if many and same is not None:
            raise ValueError(f"{type(moved).__name__} reads many frames; same= is for pairs")
        before = jnp.moveaxis(frames[:, :-1], 1, 0)
        key = self._frame(before.reshape(-1, *frames.shape[2:]), moved.key_needs, rngs)
        if many:
            key = jax.tree.map(lambda a: a.reshape(count - 1, batch, *a.shape[1:]), key)
        features = moved(key, self._frame(frames[:, -1], moved.needs, rngs))
        if same is not None and key.features is not None:
            features = jnp.where(same[:, None, None, None], key.features, features)
        return features

    def propagation_rows(self, h: int, w: int) -> list[dict[str, Any]]:
        """Returns the lines of the summary for the propagation's work on one [h, w] frame, without
        the backbone's.
        """
        sizes = self.feature_sizes(h, w)
        rows = self.propagation.rows((h, w), sizes[self.low_index], sizes[self.map_index])
        return [summary_row(f"propagation/{name}", *rest) for name, *rest in rows]

    def _frame(self, image: jax.Array, needs: Sequence[str], rngs: nnx.Rngs | None) -> Frame:
        """What is needed of frames [b, h, w, c]."""
        low = features = None
        if "low" in needs or "features" in needs:
            maps = self.features(image, rngs=rngs)
            low = maps[self.low_index] if "low" in needs else None
            features = maps[self.map_index] if "features" in needs else None
        return Frame(image if "image" in needs else None, low, features)

    def _maps(self, features: jax.Array) -> list[jax.Array]:
        """The maps that the head is given; it reads the last one."""
        return [features] * (self.map_index + 1)
