"""The small forms for 8x8 grey digits: two stages, 8x8 and 4x4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..registration import DIGITS, registry
from .hierarchical import HierarchicalTransformer

STEM = dict(name="conv", kernel_size=3, stride=1, padding=1)
"""Keeps the 8x8 positions."""


def register_digits(
    names: Mapping[str, tuple], common: Mapping[str, Any], *, mlp_ratio: int = 4, stem: Any = STEM
) -> None:
    """Registers the forms of a family.

    Args:
        names: name -> attention of the two stages.
        common: options of all networks of the family; its stem is left out.
        mlp_ratio: of both stages.
        stem: embedding of the image.
    """
    for name, attention in names.items():
        options = dict(
            blocks=(2, 2),
            widths=(32, 64),
            num_heads=(2, 4),
            mlp_ratios=(mlp_ratio, mlp_ratio),
            attention=attention,
            **DIGITS,
        )
        registry.register(name, HierarchicalTransformer, **{**common, **options, "stem": stem})
