"""The mean of frames: equal weights, the softmax of cosines, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxpr_sizes import largest_array

from lambdanet.ops.frame_mean import frame_mean


def draw(frames=5, channels=3):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((frames, 2, 3, 4, channels)).astype(np.float32)
    embedding = rng.standard_normal((frames, 2, 3, 4, 6)).astype(np.float32)
    return features, embedding


def test_equal_embeddings_have_equal_weights():
    features, embedding = draw()
    embedding[:] = embedding[:1]
    mean, weights = frame_mean(lambda frame: frame, (features, embedding), embedding[2])
    np.testing.assert_array_equal(weights, np.float32(1 / 5))
    np.testing.assert_allclose(mean, features.mean(0), atol=1e-6)


def test_it_is_the_softmax_of_cosines():
    features, embedding = draw()
    embedding[1, 0, 0, 0] = 0  # has no direction
    mean, weights = frame_mean(lambda frame: frame, (features, embedding), embedding[2])
    length = np.maximum(np.linalg.norm(embedding, axis=-1, keepdims=True), 1e-5)
    unit = embedding / length
    expected = np.exp((unit * unit[2]).sum(-1))
    expected /= expected.sum(0)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_allclose(mean, (expected[..., None] * features).sum(0), atol=1e-6)


def test_no_stack_of_frames_is_made():
    """Features are made in the loop, of one number each; neither they nor their gradients add up to
    an array of all frames.
    """
    factors, reference = jnp.arange(1.0, 20.0), jnp.ones((1, 8, 8, 16))

    def loss(base):
        def read(factor):
            features = jnp.sin(factor * base)
            return features, features

        return frame_mean(read, factors, reference)[0].sum()

    # The largest is that of the weights, of all frames but one number at each position.
    weights = 19 * 8 * 8
    assert largest_array(loss, jnp.ones((1, 8, 8, 16))) == weights
    assert largest_array(jax.grad(loss), jnp.ones((1, 8, 8, 16))) == weights
