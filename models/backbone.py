"""Pieces that every backbone has: the view that switches recomputation, the input's check, the
classifier, lines of the summary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.interop.names import Rule

CLASSIFIER_PARTS = re.compile(r"(head|norm)/.*|stages/\d+/class_(token|position)")
"""Paths of what a backbone without classifier (num_classes=0) may lack: classifier, final norm,
class token.
"""

Row = tuple[str, str, tuple[int, ...], int]
"""One line of a summary: name below the module, type, output shape without the batch,
multiply-accumulates.
"""


class Recompute(nnx.Module):
    """Mixin of modules that may recompute activations in the backward pass: the attribute `remat`.

    A view can switch it: without a gradient it has no use, and what layers sow does not come out of
    a recomputed region that holds lists of modules. On CPU a program that takes gradients is to be
    compiled with `lambdanet.training.start_up.recomputing_options`, or no memory is saved.
    """

    remat: bool

    def set_view(self, remat: bool | None = None):
        """Mode switch.

        Args:
          remat: whether to recompute; None leaves it as it is.
        """
        if remat is not None:
            self.remat = remat


class Classifier(nnx.Module):
    """Dropout and a linear layer, in float32.

    Args:
        dim: input channels.
        num_classes: outputs.
        dropout_rate: dropout on the input.
        kernel_init: how the kernel starts; the bias starts at zero.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        dropout_rate: float,
        kernel_init: nnx.Initializer,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.dropout = nnx.Dropout(dropout_rate)
        self.fc = nnx.Linear(
            dim,
            num_classes,
            kernel_init=kernel_init,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "b c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b classes"]:
        """Maps pooled features [b, dim] to float32 logits [b, num_classes]; `rngs.dropout` is read
        in the training view.
        """
        return self.fc(self.dropout(x.astype(jnp.float32), rngs=rngs))


def require_classifier(model: nnx.Module) -> None:
    """Raises ValueError if a model was built with num_classes=0."""
    if model.head is None:
        raise ValueError(
            f"this {type(model).__name__} has no classifier (num_classes is 0); use features, or "
            "build it with num_classes of 1 or more"
        )


def without_classifier(
    model: nnx.Module, tables: Mapping[str, tuple[Rule, ...]]
) -> Mapping[str, tuple[Rule, ...]]:
    """Returns name tables for a model as it is: where it has no classifier, they drop what a file
    has for it, see `CLASSIFIER_PARTS`.
    """
    if model.head is not None:
        return tables
    dropped = {
        grammar: [
            replace(rule, target=None, transform="copy") if _classifies(rule) else rule
            for rule in rules
        ]
        for grammar, rules in tables.items()
    }
    # Rules that differed in their targets alone are one now.
    return {grammar: tuple(dict.fromkeys(rules)) for grammar, rules in dropped.items()}


def _classifies(rule: Rule) -> bool:
    return isinstance(rule.target, str) and CLASSIFIER_PARTS.fullmatch(rule.target) is not None


def check_images(x: jax.Array, channels: int) -> None:
    """Raises ValueError unless `x` has four axes and so many channels."""
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(
            f"images have shape {x.shape}; expected [batch, height, width, {channels}]"
        )


def summary_row(path: str, kind: str, shape: tuple[int, ...], macs: int = 0) -> dict[str, Any]:
    """Returns one line of `summary_rows`: a layer's path and type, the shape of its output without
    the batch, its multiply-accumulates.
    """
    return dict(path=path, type=kind, output_shape=shape, macs=macs)
