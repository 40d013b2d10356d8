"""A small Transformer on patches, in the style of ViT, whose attention is given by name.

    PYTHONPATH=. python examples/swap_attention.py [NAME ...]

Every block maps [b, h, w, c] to the same shape, so the network keeps its tokens as a map and knows
nothing of what stands inside. Prints parameters and the training step's time for each name.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lambdanet.attention import create_attention, kind

NAMES = ("mhsa", "lambda", "neighborhood", "shifted_window")
OPTIONS = {"lambda": dict(key_depth=16, scope=7), "shifted_window": dict(window_size=4)}
"""Options beside the defaults."""


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); a context block has its own residual."""

    def __init__(self, dim: int, name: str, size: tuple[int, int], *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(dim, rngs=rngs), nnx.LayerNorm(dim, rngs=rngs)
        spec = {"name": name, **OPTIONS.get(name, {})}
        self.attention = create_attention(spec, dim, size=size, num_heads=4, rngs=rngs)
        self.residual = kind(name) == "mixer"
        self.hidden = nnx.Linear(dim, 4 * dim, rngs=rngs)
        self.out = nnx.Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.attention(self.norm1(x))
        x = x + y if self.residual else y
        return x + self.out(nnx.gelu(self.hidden(self.norm2(x))))


class SmallTransformer(nnx.Module):
    """Patches of 4x4, learned positions, `depth` blocks, a classifier."""

    def __init__(self, name: str, *, dim: int = 64, depth: int = 4, side: int = 64, rngs: nnx.Rngs):
        size = (side // 4, side // 4)
        self.patches = nnx.Conv(3, dim, (4, 4), strides=(4, 4), rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (*size, dim)))
        self.blocks = nnx.List([Block(dim, name, size, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(dim, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patches(x) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


@nnx.jit
def train_step(model: SmallTransformer, images: jax.Array, labels: jax.Array):
    """Loss and gradient of one batch."""

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    return nnx.value_and_grad(loss)(model)


def main(names=NAMES, *, batch: int = 8, repeats: int = 5, **options) -> dict[str, float]:
    """Times every name and returns seconds per step."""
    side = options.get("side", 64)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(batch, side, side, 3)), jnp.float32)
    labels = jnp.arange(batch) % 10
    seconds = {}
    print(f"{'attention':<24} {'parameters':>10} {'ms':>8}")
    for name in names:
        model = SmallTransformer(name, rngs=nnx.Rngs(0), **options)
        count = sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
        jax.block_until_ready(train_step(model, images, labels))  # compiles
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(train_step(model, images, labels))
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
        print(f"{name:<24} {count:>10,} {1000 * seconds[name]:>8.1f}", flush=True)
    return seconds


if __name__ == "__main__":
    main(sys.argv[1:] or NAMES)
