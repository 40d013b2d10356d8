"""Bilinear resizing against the interpolation formula of PyTorch, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_macs import jaxpr_macs

from lambdanet.layers import resize_bilinear, resize_macs


def axis_formula(x, length, align_corners):
    """Interpolates axis 0: source position of every result, its two neighbours, their distances."""
    before = x.shape[0]
    out = []
    for i in range(length):
        if align_corners:
            source = i * (before - 1) / (length - 1) if length > 1 else 0.0
        else:
            source = max((i + 0.5) * before / length - 0.5, 0.0)
        low = int(source)
        high = min(low + 1, before - 1)
        out.append(x[low] * (1 - (source - low)) + x[high] * (source - low))
    return np.stack(out)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((3, 4), (7, 9)),
        ((7, 9), (3, 4)),
        ((1, 5), (4, 5)),
        ((4, 5), (1, 1)),
        ((2, 2), (2, 2)),
        ((5, 1), (3, 8)),
    ],
)
def test_equals_the_formula(before, after, align_corners):
    x = np.random.default_rng(0).normal(size=(2, *before, 3))
    expected = axis_formula(np.moveaxis(x, 1, 0), after[0], align_corners)  # oh b w c
    expected = axis_formula(np.moveaxis(expected, 2, 0), after[1], align_corners)  # ow oh b c
    ours = jax.jit(lambda x: resize_bilinear(x, after, align_corners=align_corners))(jnp.float32(x))
    np.testing.assert_allclose(ours, expected.transpose(2, 1, 0, 3), rtol=0, atol=2e-6)


def test_equals_what_pytorch_prints():
    """torch.nn.functional.interpolate(torch.tensor([[[[1., 4., 2.]]]]), (1, 5), mode="bilinear",
    align_corners=...).
    """
    x = jnp.asarray([1.0, 4.0, 2.0]).reshape(1, 1, 3, 1)
    corners = resize_bilinear(x, (1, 5), align_corners=True).ravel()
    np.testing.assert_allclose(corners, [1.0, 2.5, 4.0, 3.0, 2.0], atol=1e-6)
    squares = resize_bilinear(x, (1, 5)).ravel()
    np.testing.assert_allclose(squares, [1.0, 2.2, 4.0, 2.8, 2.0], atol=1e-6)


def test_bfloat16_is_interpolated_in_float32():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 3, 4)), jnp.bfloat16)
    y = resize_bilinear(x, (7, 7), align_corners=True)
    assert y.dtype == jnp.bfloat16
    exact = resize_bilinear(x.astype(jnp.float32), (7, 7), align_corners=True)
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("before", "after"), [((3, 4), (7, 9)), ((3, 4), (3, 8)), ((3, 4), (6, 4)), ((3, 4), (3, 4))]
)
def test_multiply_adds_are_those_of_the_program(before, after):
    counted = jaxpr_macs(lambda x: resize_bilinear(x, after), jnp.ones((1, *before, 5)))
    assert counted == resize_macs(before, after, 5)


def test_empty_size_is_refused():
    with pytest.raises(ValueError, match=r"size is \(0, 4\); allowed"):
        resize_bilinear(jnp.ones((1, 2, 2, 1)), (0, 4))
