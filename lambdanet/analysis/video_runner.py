"""Runs a network of key frames over a clip so that the cost is saved for real: frames between key
frames run a program of which the rest of the backbone is no part.

    runner = VideoRunner(model, config, every=10)
    for shown in runner.run(frames):
        shown.result, shown.is_key, shown.seconds
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from lambdanet.ops.images import normalise
from lambdanet.ops.upsampled_pixels import pixel_scores


class Shown(NamedTuple):
    """What is known of a frame.

    Attributes:
        result: uint8 label map [height, width]; of a detector what its `detect` gives, as a dict of
            arrays without the axis of pictures.
        is_key: whether the frame's own features were computed and kept for others; always with a
            propagation from many frames.
        seconds: from the frame on the host to the result on the host, without compilation. With a
            propagation from many frames the first one waits for those that follow it.
    """

    result: Any
    is_key: bool
    seconds: float


class VideoRunner:
    """A model of key frames on the frames of clips, one after the other.

    Which frames are key frames is decided on the host: the first one, then one every `every`
    frames, or earlier where the propagation says so (`becomes_key`). Key frames and frames between
    have programs of their own, each compiled once for a size of frames, at its first use.

    With a propagation from many frames the features of each frame are computed once and kept as
    long as another frame reads them, which is memory for 2 every reach + 1 frames. Frame i reads
    the frames i + every o for o from -reach to reach, in place of those outside of the clip its
    first or last one, and is shown as soon as the last of them was read.

    A propagation that reads nothing of a key frame, 'none', is per frame for any `every`.

    Args:
        model: evaluation view of a `video_segmenter` or a `video_detector`.
        config: reads data.mean and data.std.
        every: frames from one key frame to the next, the most of them if the propagation chooses;
            1 is per frame. Of a propagation from many frames the step between those that it reads.
        reach: of a propagation from many frames, how many it reads on each side.
        adaptive: whether a propagation that can choose key frames does so.

    Attributes:
        compiled: the programs until now, by name ('key', 'next_key', 'chosen_key' and 'between', or
            'own' and 'mean'), shape of the frames and size of the results.
        compile_seconds: that this took, with a first call of each.

    Raises:
        ValueError: a model without key frames, or an `every` or `reach` that cannot be.
    """

    def __init__(
        self,
        model: nnx.Module,
        config: Any,
        *,
        every: int = 10,
        reach: int = 2,
        adaptive: bool = True,
    ):
        check_model(model, config.model.name)
        for name, value, least in (("every", every, 1), ("reach", reach, 0)):
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r}; allowed: a whole number, {least} or more")
        self.every, self.reach = every, reach
        propagation = model.propagation
        self.many, self.recursive = propagation.many, propagation.recursive
        self.per_frame = not propagation.key_needs
        self.adaptive = adaptive and hasattr(propagation, "becomes_key")
        self.compiled: dict[tuple, Any] = {}
        self.compile_seconds = 0.0
        self._graphdef, weights = nnx.split(model)
        self._weights = jax.device_put(weights)  # those of a file are on the host
        self._mean, self._std = config.data.mean, config.data.std

    def run(
        self, frames: Iterable[UInt8[np.ndarray, "h w c"]], size: tuple[int, int] | None = None
    ) -> Iterator[Shown]:
        """Yields what is found on each frame, in order.

        Args:
            frames: of one size; each is taken when it is needed, and none is kept.
            size: (height, width) of the label maps; of a detector that of the picture, which lies
                at the top left of its canvas, the frame. None is that of the frames.

        Raises:
            ValueError: frames of several sizes.
        """
        frames = _of_one_size(frames)
        return self._from_many(frames, size) if self.many else self._from_keys(frames, size)

    def _from_keys(self, frames: Iterator[np.ndarray], size: Any) -> Iterator[Shown]:
        key, since = None, 0
        for image in frames:
            at = image.shape, tuple(size or image.shape[:2])
            since, spent, name, known = since + 1, 0.0, "next_key", image
            if key is not None and since < self.every and not self.per_frame:
                result, chosen, own, spent = self._call("between", at, key, image)
                if not (self.adaptive and chosen):
                    yield Shown(result, False, spent)
                    continue
                if own is not None:
                    name, known = "chosen_key", own
            if key is None or not self.recursive:
                result, key, seconds = self._call("key", at, image)
            else:
                result, key, seconds = self._call(name, at, key, known)
            since = 0
            yield Shown(result, True, spent + seconds)

    def _from_many(self, frames: Iterator[np.ndarray], size: Any) -> Iterator[Shown]:
        ahead = self.every * self.reach
        kept, spent, count, at = {}, 0.0, 0, None

        def show(number: int) -> Shown:
            nonlocal spent
            offsets = range(-ahead, ahead + 1, self.every)
            read = [kept[min(max(number + offset, 0), count - 1)] for offset in offsets]
            result, seconds = self._call("mean", at, read, kept[number])
            kept.pop(number - ahead, None)
            seconds, spent = spent + seconds, 0.0
            return Shown(result, True, seconds)

        for count, image in enumerate(frames, 1):
            at = image.shape, tuple(size or image.shape[:2])
            _, kept[count - 1], seconds = self._call("own", at, image)
            spent += seconds
            if count > ahead:
                yield show(count - 1 - ahead)
        for number in range(max(count - ahead, 0), count):
            yield show(number)

    def _call(self, name: str, at: tuple, *given: Any) -> tuple:
        """Returns what a program gives, the result first and on the host, and its seconds."""
        start = time.perf_counter()
        if (name, *at) not in self.compiled:
            shape, size = at
            read = functools.partial(_found, canvas=shape[:2], size=size)
            program = functools.partial(getattr(self, f"_run_{name}"), read)
            program = jax.jit(program).lower(self._weights, *given).compile()
            jax.block_until_ready(program(self._weights, *given))  # the first call takes longer
            self.compiled[name, *at] = program
            self.compile_seconds += time.perf_counter() - start
        program, start = self.compiled[name, *at], time.perf_counter()
        result, *rest = jax.block_until_ready(program(self._weights, *given))
        result = jax.device_get(result)
        return result, *rest, time.perf_counter() - start

    # ---- Traced ----------------------------------------------------------------------------------

    def _run_key(self, read, weights, image):
        model = nnx.merge(self._graphdef, weights)
        key = model.key_frame(self._normal(image))
        return read(model, key.features), key

    def _run_next_key(self, read, weights, key, image):
        model = nnx.merge(self._graphdef, weights)
        key = model.next_key(key, self._normal(image))
        return read(model, key.features), key

    def _run_chosen_key(self, read, weights, key, own):
        model = nnx.merge(self._graphdef, weights)
        key = model.propagation.renew(key, model.propagation.prepare(own))
        return read(model, key.features), key

    def _run_between(self, read, weights, key, image):
        model = nnx.merge(self._graphdef, weights)
        own = model.current_frame(self._normal(image))
        result = read(model, model.propagation(key, own))
        if not self.adaptive:
            return result, None, None
        chosen = model.propagation.becomes_key(key, own)[0]
        return result, chosen, None if own.features is None else own

    def _run_own(self, read, weights, image):
        return None, nnx.merge(self._graphdef, weights).key_frame(self._normal(image))

    def _run_mean(self, read, weights, frames, current):
        model = nnx.merge(self._graphdef, weights)
        frames = jax.tree.map(lambda *arrays: jnp.stack(arrays), *frames)
        return (read(model, model.propagation(frames, current)),)

    def _normal(self, image):
        return normalise(image[None], self._mean, self._std)


def _found(
    model: nnx.Module, features: jax.Array, *, canvas: tuple[int, int], size: tuple[int, int]
) -> Any:
    """What is shown of features; the labels of pixels without up-sampled logits in memory."""
    if hasattr(model, "detections"):
        found = model.detections(features, jnp.asarray([size], jnp.int32), canvas)
        return jax.tree.map(lambda a: a[0], found)
    logits = model.decode(features).astype(jnp.float32)
    nothing = jnp.zeros((1, *size), jnp.int32)
    labels = pixel_scores(logits, nothing, align_corners=model.align_corners)[1]
    return labels[0].astype(jnp.uint8)


def _of_one_size(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    first = None
    for number, image in enumerate(frames):
        first = first or image.shape
        if image.shape != first:
            raise ValueError(
                f"frame {number} is {image.shape}, the first one {first} (height, width, "
                "channels); allowed: frames of one size"
            )
        yield image


def check_model(model: nnx.Module, name: str) -> None:
    """Raises ValueError for a model without key frames, concrete or abstract.

    Args:
        model: any.
        name: of the model.
    """
    if not hasattr(model, "propagate"):
        raise ValueError(
            f"{name!r} has no key frames; allowed: models that carry features from frame to frame, "
            "of the name 'video_segmenter' or 'video_detector'"
        )
