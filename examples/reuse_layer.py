"""A layer of lambdanet inside a Flax model of one's own, trained on scikit-learn's digits.

    PYTHONPATH=. python examples/reuse_layer.py [STEPS]

Only `create_attention` comes from lambdanet; any name of `lambdanet.attention.list_attention()` may
stand in place of 'lambda'.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from lambdanet.attention import create_attention


class Net(nnx.Module):
    """Two convolutions, an attention layer between them, a classifier."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        attention = dict(name="lambda", key_depth=8, scope=7)
        self.attention = create_attention(attention, 32, size=(8, 8), num_heads=4, rngs=rngs)
        self.second = nnx.Conv(32, 32, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.first(x))
        x = x + self.attention(x)  # a mixer has no residual inside; a context block has
        return self.head(nnx.relu(self.second(x)).mean((1, 2)))


@nnx.jit
def train_step(model: Net, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array):
    """One step; compiled as a whole, which is what makes it fast."""

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


@nnx.jit
def predict(model: Net, images: jax.Array) -> jax.Array:
    """The most likely class of every image."""
    return model(images).argmax(-1)


def main(steps: int = 300) -> float:
    """Trains on 1,437 digits and returns the accuracy on the other 360."""
    digits = load_digits()
    images = (digits.images[..., None] / 8 - 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:-360], order[-360:]
    model = Net(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
    draw = np.random.default_rng(1)
    for step in range(1, steps + 1):
        batch = draw.choice(train, 64, replace=False)
        loss = train_step(model, optimizer, images[batch], jnp.asarray(digits.target[batch]))
        if step % 100 == 0:
            print(f"step {step}/{steps} loss {loss:.4f}", flush=True)
    model = nnx.view(model, use_running_average=True)  # of the layer's batch norms
    accuracy = float((predict(model, images[test]) == digits.target[test]).mean())
    print(f"test accuracy {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
