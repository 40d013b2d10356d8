"""Convolutions of clips: every lowering gives what XLA's own does, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops.clip_convolution import clip_convolution

CASES = {
    "stem": ((2, 5, 6, 5, 2), (5, 3, 3, 2, 3), (2, 2, 2), (2, 1, 1), ("frames", "stacked")),
    "pixels": ((2, 4, 3, 2, 3), (3, 1, 1, 3, 2), (1, 1, 1), (1, 0, 0), ("lines", "frames")),
    "strided": ((1, 5, 3, 2, 3), (3, 1, 1, 3, 2), (2, 2, 2), (1, 0, 0), ("frames", "stacked")),
    "one": ((2, 3, 4, 5, 3), (1, 3, 3, 3, 2), (1, 1, 1), (0, 1, 1), ("frames", "stacked", "auto")),
    "cube": ((1, 1, 4, 4, 17), (3, 3, 3, 17, 2), (1, 1, 1), (1, 1, 1), ("auto",)),
}


@pytest.mark.parametrize("case", CASES)
def test_lowerings_agree(case):
    size, sides, stride, padding, impls = CASES[case]
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (size, sides))
    options = dict(stride=stride, padding=[(pad, pad) for pad in padding])

    def run(impl):
        def loss(x, kernel):
            y = clip_convolution(x, kernel, **options, impl=impl)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)

    expected = run("conv")
    for impl in impls:
        for ours, theirs in zip(*map(jax.tree.leaves, (run(impl), expected)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=impl)


def test_a_kernel_of_one_frame_is_the_convolution_of_the_frames_without_a_copy():
    x, kernel = jnp.zeros((2, 3, 8, 8, 4)), jnp.zeros((1, 3, 3, 4, 4))
    same = ((0, 0), (1, 1), (1, 1))
    text = str(jax.make_jaxpr(lambda x, k: clip_convolution(x, k, padding=same))(x, kernel))
    assert text.count("conv_general_dilated[") == 1 and "float32[2,5" not in text
    assert "concatenate" not in text and "f32[6,8,8,4]" in text


def test_refusals():
    x, kernel = jnp.zeros((1, 2, 3, 3, 4)), jnp.zeros((1, 3, 3, 4, 4))
    with pytest.raises(ValueError, match="impl is 'planes'; allowed: auto, conv"):
        clip_convolution(x, kernel, impl="planes")
    with pytest.raises(ValueError, match="'lines' does not allow kernel"):
        clip_convolution(x, kernel, impl="lines")
    with pytest.raises(ValueError, match="as many channels in both"):
        clip_convolution(x[..., :3], kernel)
    with pytest.raises(ValueError, match="dilation of 1 over time"):
        clip_convolution(x, kernel, dilation=(2, 1, 1))
