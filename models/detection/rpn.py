"""The region proposal network: boxes that may hold an object of any class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from lambdanet.ops.boxes import clip_boxes
from lambdanet.ops.matching import sample
from lambdanet.ops.nms import nms

from .anchoring import Anchors, Targets
from .box_losses import BoxCoder
from .parts import Sizes, Tower, WideLinear, flat_levels, positions

LEAST_SIDE = 1e-3
"""Of a proposal, in pixels."""


@dataclass(frozen=True)
class Proposing:
    """Numbers of a region proposal network.

    Args:
        samples: anchors per picture that training looks at.
        positive_fraction: the most of them that are positive.
        before: proposals of every level before suppression, in (training, evaluation).
        after: proposals of a picture after it, in (training, evaluation).
        nms_threshold: overlap above which the lower score of the same level is suppressed.
    """

    samples: int
    positive_fraction: float
    before: tuple[int, int]
    after: tuple[int, int]
    nms_threshold: float


class RegionProposal(nnx.Module):
    """Objectness and offsets of every anchor: convolutions and two 1x1, shared by all levels.

    Source: Ren et al. 2015, "Faster R-CNN", on a pyramid as in Lin et al. 2017. Kernels start
    normal 0.01.

    Args:
        dim: channels of the levels.
        anchors: of the levels.
        coder: of the offsets.
        numbers: see `Proposing`.
        num_convs: number of convolutions.
        norm: after them, see `ConvAct`.
        dtype: activation dtype; results are float32.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        *,
        anchors: Anchors,
        coder: BoxCoder,
        numbers: Proposing,
        num_convs: int,
        norm: str,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.anchors, self.coder, self.numbers = anchors, coder, numbers
        init = nnx.initializers.normal(0.01)
        options = dict(norm=norm, kernel_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.tower = Tower(dim, dim, num_convs, **options)
        last = dict(std=0.01, param_dtype=param_dtype, rngs=rngs)
        self.objectness = WideLinear(dim, anchors.count, **last)
        self.regress = WideLinear(dim, 4 * anchors.count, **last)

    def __call__(
        self, levels: Sequence[Float[Array, "b _h _w c"]]
    ) -> tuple[list[Float[Array, "b _n"]], list[Float[Array, "b _n 4"]]]:
        """Returns (logits, offsets) of the anchors of every level, in float32."""
        maps = [self.tower(x) for x in levels]
        logits = flat_levels([self.objectness(x) for x in maps], 1)
        return [x[..., 0] for x in logits], flat_levels([self.regress(x) for x in maps], 4)

    def proposals(
        self,
        logits: Sequence[Float[Array, "b _n"]],
        deltas: Sequence[Float[Array, "b _n 4"]],
        anchors: Sequence[np.ndarray],
        image_shapes: Int[Array, "b 2"],
        *,
        training: bool,
    ) -> tuple[Float[Array, "b p 4"], Array]:
        """Returns boxes and which of them there are, by falling score, without a gradient.

        Args:
            logits: of the anchors of every level.
            deltas: likewise.
            anchors: of every level.
            image_shapes: height and width of each picture.
            training: which of the two numbers of proposals.
        """
        numbers = self.numbers
        most, after = (pair[0 if training else 1] for pair in (numbers.before, numbers.after))

        def one(logits, deltas, image_shape):
            boxes, scores = [], []
            for level, level_logits, level_deltas in zip(anchors, logits, deltas, strict=True):
                inside = self.anchors.inside(level, image_shape)
                best, places = jax.lax.top_k(
                    jnp.where(inside, level_logits, -jnp.inf), min(most, len(level))
                )
                found = self.coder.decode(level_deltas[places], jnp.asarray(level)[places])
                found = clip_boxes(found, image_shape)
                sides = found[:, 2:] - found[:, :2]
                valid = (best > -jnp.inf) & jnp.all(sides >= LEAST_SIDE, axis=-1)
                kept = nms(found, best, numbers.nms_threshold, valid=valid)
                boxes.append(found)
                scores.append(jnp.where(kept, best, -jnp.inf))
            boxes, scores = jnp.concatenate(boxes), jnp.concatenate(scores)
            best, order = jax.lax.top_k(scores, min(after, len(scores)))
            valid = best > -jnp.inf
            return jnp.where(valid[:, None], boxes[order], 0.0), valid

        logits, deltas = jax.lax.stop_gradient((list(logits), list(deltas)))
        return jax.vmap(one)(logits, deltas, image_shapes)

    def losses(
        self,
        logits: Sequence[Float[Array, "b _n"]],
        deltas: Sequence[Float[Array, "b _n 4"]],
        anchors: Sequence[np.ndarray],
        image_shapes: Int[Array, "b 2"],
        targets: Targets,
        keys: jax.Array,
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """Returns 'objectness' and 'proposal_box' as (sum, weight): over the anchors that are
        drawn, in float32.

        Args:
            logits: of the anchors of every level.
            deltas: likewise.
            anchors: of every level.
            image_shapes: height and width of each picture.
            targets: see `Targets`.
            keys: one per picture.
        """
        every = np.concatenate(anchors)
        numbers = self.numbers

        def one(logits, deltas, image_shape, boxes, valid, crowd, key):
            found = self.anchors.assign(every, image_shape, boxes, valid, crowd)
            drawn = sample(found.label, key, numbers.samples, numbers.positive_fraction)
            looked_at = drawn.positive | drawn.negative
            entropy = optax.sigmoid_binary_cross_entropy(logits, drawn.positive * 1.0)
            own = jnp.where(drawn.positive[:, None], boxes[found.index], every)
            box = self.coder.losses(deltas, jnp.asarray(every), own)
            return (
                jnp.sum(jnp.where(looked_at, entropy, 0.0)),
                jnp.sum(jnp.where(drawn.positive, box, 0.0)),
                jnp.sum(looked_at * 1.0),
            )

        sums = jax.vmap(one)(
            jnp.concatenate(logits, axis=1),
            jnp.concatenate(deltas, axis=1),
            image_shapes,
            *(targets[key] for key in ("boxes", "valid", "crowd")),
            keys,
        )
        objectness, box, weight = map(jnp.sum, sums)
        return {"objectness": (objectness, weight), "proposal_box": (box, weight)}

    def rows(self, sizes: Sizes) -> list[tuple]:
        """Returns the summary for levels of these sizes."""
        rows = [(f"tower/{name}", *rest) for name, *rest in self.tower.rows(sizes)]
        area = positions(sizes)
        rows.append(self.objectness.row("objectness", area, sizes[0]))
        return [*rows, self.regress.row("regress", area, sizes[0])]
