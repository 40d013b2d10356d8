"""The table of models: `python -m models [pattern] [image side]` prints name, parameters and MACs
as Markdown.
"""

import sys

import jax
from flax import nnx

from . import create_model, list_models, registry


def main(pattern: str = "*", side: str = "") -> None:
    """Prints one row per model; `side` in pixels replaces the size that a model is made for."""
    names = list_models(pattern)
    if not names:
        sys.exit(f"no model matches {pattern!r}; known: {', '.join(list_models())}")
    if side and not side.isdigit():
        sys.exit(f"image side {side!r}; allowed: a number of pixels")
    print("| model | parameters | GMACs | image |\n|---|---:|---:|---|")
    for name in names:
        default = registry.lookup(name)[1].get(
            "image_size", registry.parameters(name)["image_size"].default
        )
        size = (int(side), int(side)) if side else default
        model = nnx.eval_shape(
            lambda name=name, size=size: create_model(name, image_size=size, rngs=nnx.Rngs(0))
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        print(f"| {name} | {count:,} | {model.macs(*size) / 1e9:.3f} | {size[0]}x{size[1]} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
