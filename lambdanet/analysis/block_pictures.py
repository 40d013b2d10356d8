"""Command line: draws where every attention block looks, before any training.

    python -m lambdanet.analysis.block_pictures docs/images/attention [NAME ...]

Each block stands on random features of a part of a photograph of scikit-learn, on a map of 16x16,
with random weights, all of them drawn alike: the pictures show where a block can look, not what it
learns to look at. For that, `python eval.py --mode=attention --workdir=RUN`.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from PIL import Image

from lambdanet.analysis.attention_maps import capture_maps, draw_maps
from lambdanet.atomic import write_file
from lambdanet.attention import create_attention, list_attention, registry
from lambdanet.attention.vanilla_attention import VanillaAttention
from lambdanet.data.photographs import parts
from lambdanet.registry import suggest

SIDE, PATCH, DIM, HEADS = 64, 4, 32, 4
MAP = (SIDE // PATCH, SIDE // PATCH)
CONTRAST = 1.0
"""Deviation of the features: with more, softmaxes of random weights choose single places."""

SPECS: dict[str, Mapping[str, Any]] = {
    "lambda": dict(key_depth=8, scope=7),
    "halo_attention": dict(block_size=4, halo_size=2),
    "window": dict(window_size=4),
    "shifted_window": dict(window_size=4),
    "cross_shaped_window": dict(stripe_width=2),
    "neighborhood": dict(kernel_size=5),
    "spatial_reduction": dict(sr_ratio=2),
    "cbam": dict(reduction=4),
    "interlaced": dict(group_size=(4, 4)),
    "pyramid_object_context": dict(sizes=(2,)),
}
"""Options, where the defaults are meant for other maps or would look like another block's."""

WITHOUT = {"linformer": "its keys are mixtures of all positions and lie nowhere on the map"}
"""Blocks of which there is no picture, and why."""

COLOURS, WIDTH = 128, 960
"""What a picture is reduced to: numbers of colours, and of pixels."""


class OnFeatures(nnx.Module):
    """A block on features of an image: random 4x4 patches, of deviation `CONTRAST`."""

    def __init__(self, name: str, *, rngs: nnx.Rngs):
        kernel = (PATCH, PATCH)
        self.patches = nnx.Conv(3, DIM, kernel, strides=kernel, use_bias=False, rngs=rngs)
        carried = name == "less_attention"  # takes the logits of a layer before it
        self.first = VanillaAttention(DIM, num_heads=HEADS, rngs=rngs) if carried else None
        spec = {"name": name, **SPECS.get(name, {})}
        self.block = create_attention(spec, DIM, size=MAP, num_heads=HEADS, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Any:
        x = self.patches(images)
        x = CONTRAST * (x - x.mean()) / x.std()
        return self.block(x) if self.first is None else self.block(*self.first(x))


def block_names() -> list[str]:
    """Returns the blocks that there are pictures of: presets look like their blocks, but one."""
    plain = [n for n in list_attention() if not registry.lookup(n)[1] or n == "shifted_window"]
    return [n for n in plain if n not in WITHOUT]


def picture_of(name: str, folder: Path) -> list[Path]:
    """Draws what a block captures; returns <folder>/<name>.png, or one file per captured array."""
    model = nnx.view(
        OnFeatures(name, rngs=nnx.Rngs(0)), deterministic=True, use_running_average=True,
        raise_if_not_found=False,
    )  # fmt: skip
    draw = np.random.default_rng(0)
    for path, weight in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        shape = weight[...].shape
        if path[-1] == "kernel" and "theta" not in path and "psi" not in path:  # these start at I
            deviation = np.prod(shape[:-1], dtype=float) ** -0.5
            weight.set_value(jnp.asarray(draw.normal(0, deviation, shape), jnp.float32))
        elif path[-1] == "scale":
            weight.set_value(jnp.ones(shape))
    photo = Image.fromarray(parts("train")[1]).resize((2 * SIDE, 2 * SIDE), Image.Resampling.BOX)
    photo = np.asarray(photo)[SIDE // 2 : -SIDE // 2, SIDE // 2 : -SIDE // 2][None]
    maps = capture_maps(model, photo.astype(np.float32) / 127.5 - 1)
    maps = {_title(name, p): value for p, value in maps.items() if p.startswith("block")}
    with tempfile.TemporaryDirectory() as drawn:
        return [_reduce(path, folder / path.name) for path in draw_maps(maps, photo, drawn)]


def _title(name: str, path: str) -> str:
    """The block's name, with the part of it that a captured array is of."""
    inner = [p for p in path.split("/")[1:] if not p.isdecimal()]
    return "/".join([name, *inner])


def _reduce(drawn: Path, path: Path) -> Path:
    image = Image.open(drawn).convert("RGB")
    if image.width > WIDTH:
        size = (WIDTH, round(image.height * WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    image = image.quantize(COLOURS, dither=Image.Dither.NONE)
    return write_file(path, functools.partial(image.save, format="png", optimize=True))


def main(argv: list[str] | None = None) -> int:
    """Draws the pictures that `argv` asks for and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lambdanet.analysis.block_pictures", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", help="where the pictures go; made if needed")
    parser.add_argument("names", nargs="*", metavar="NAME", help="blocks; default all")
    given, known = parser.parse_args(argv), block_names()
    for name in given.names:
        if name in WITHOUT:
            parser.error(f"{name!r} has no picture: {WITHOUT[name]}")
        if name not in known:
            parser.error(f"{name!r}; allowed: {', '.join(known)}.{suggest(name, known)}")
    folder = Path(given.folder)
    os.makedirs(folder, exist_ok=True)
    for name in given.names or known:
        print(*picture_of(name, folder), sep="\n", flush=True)
        jax.clear_caches()
    return 0


if __name__ == "__main__":
    sys.exit(main())
