"""The arrays of a checkpoint: a checksum of each, and what differs between two sets of shapes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def _checksums(flat: dict[str, jax.Array]) -> jax.Array:
    """Returns uint32 [n], the sum of each array's bit patterns modulo 2^32: exact, so the same on
    any mesh.
    """

    def total(leaf: jax.Array) -> jax.Array:
        bits = (
            leaf.astype(jnp.uint8)
            if leaf.dtype == bool
            else jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{leaf.dtype.itemsize * 8}"))
        )
        return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([total(flat[name]) for name in sorted(flat)])


def checksums(flat: Mapping[str, jax.Array]) -> dict[str, int]:
    """Returns the checksum of every array by name."""
    return dict(zip(sorted(flat), np.asarray(_checksums(dict(flat))).tolist(), strict=True))


def describe_difference(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    exact: bool,
    most: int = 8,
) -> str:
    """Compares name -> shape tables; returns '' if they agree, otherwise lines with the first
    `most` of each kind.

    Args:
        found: what the checkpoint holds.
        wanted: what the model needs.
        exact: also report arrays that only the checkpoint has.
        most: lines per kind.
    """
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted)) if exact else []
    shapes = sorted(n for n in wanted if n in found and wanted[n] != found[n])

    def near(name: str) -> str:
        close = difflib.get_close_matches(name, extra, n=1, cutoff=0.8)
        return f" (the checkpoint has {close[0]})" if close else ""

    groups = [
        (
            "the checkpoint lacks",
            [f"{n} {wanted[n]}{near(n)}" for n in missing[:most]],
            len(missing),
        ),
        ("only the checkpoint has", [f"{n} {found[n]}" for n in extra[:most]], len(extra)),
        (
            "shapes differ:",
            [f"{n}: checkpoint {found[n]}, model {wanted[n]}" for n in shapes[:most]],
            len(shapes),
        ),
    ]
    lines = []
    for title, items, count in groups:
        if count:
            more = [f"    ... and {count - most} more"] if count > most else []
            lines += [f"  {title}", *(f"    {item}" for item in items), *more]
    return "\n".join(lines)
