"""Checks annotations in tests, shapes of arrays included: jaxtyping's import hook with beartype.

A call is checked when it returns, its arguments then, too: what refuses wrong shapes itself, by an
error that says what to do, is to be seen doing so.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from flax import nnx

# Whatever has annotations of shapes.
PACKAGES = (
    *("lambdanet.analysis", "lambdanet.attention", "lambdanet.data.label_maps"),
    "lambdanet.drawing",
    "lambdanet.experimental",
    *("lambdanet.data.pseudo_labels", "lambdanet.layers", "lambdanet.ops", "models"),
    *("lambdanet.tasks.classification", "lambdanet.tasks.classification_panels"),
    *("lambdanet.tasks.segmentation", "lambdanet.tasks.segmentation_classes"),
)


@runtime_checkable
class Keys(Protocol):
    """What layers draw their parameters from in place of `nnx.Rngs`: `InitKeys` is one."""

    def params(self) -> jax.Array: ...


# As for other type checkers, an int is a float; as for JAX, an array of NumPy is one of JAX.
_ARRAY = jax.Array | np.ndarray
_CONF = BeartypeConf(
    is_pep484_tower=True, hint_overrides=FrozenDict({jax.Array: _ARRAY, nnx.Rngs: nnx.Rngs | Keys})
)


def install() -> None:
    """To be called before anything imports lambdanet or models."""
    jaxtyping.Array = _ARRAY
    jaxtyping.install_import_hook(PACKAGES, "type_checker.checked")


def checked(stub):
    """Called by jaxtyping with two functions of a signature: one without its result, called in
    advance, whose return annotation is Any, and one with it.
    """
    return stub if stub.__annotations__.get("return") is Any else beartype(stub, conf=_CONF)
