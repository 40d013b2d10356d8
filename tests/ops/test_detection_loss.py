"""Losses of detectors against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops.boxes import pairwise_giou
from lambdanet.ops.detection_loss import (
    giou_loss,
    mask_cross_entropy,
    sigmoid_focal_loss,
    smooth_l1,
)

focal_loss = jax.jit(sigmoid_focal_loss, static_argnames=("alpha", "gamma"))


def test_focal_loss():
    logits = np.linspace(-8, 8, 33)
    for target in (0.0, 1.0):
        p = 1 / (1 + np.exp(-logits * (2 * target - 1)))
        expected = (0.25 if target else 0.75) * (1 - p) ** 2 * -np.log(p)
        found = focal_loss(np.float32(logits), np.full(33, target, np.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
        half = (1 - p) ** 1.5 * -np.log(p) * (0.5 if target else 0.5)
        targets = np.full(33, target, np.float32)
        found = focal_loss(np.float32(logits), targets, alpha=0.5, gamma=1.5)
        np.testing.assert_allclose(found, half, rtol=1e-4, atol=1e-7)
    half = jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    assert jax.eval_shape(sigmoid_focal_loss, half, half).dtype == jnp.float32
    targets = np.array([0, 1, 0, 1], np.float32)
    extreme = jax.jit(jax.grad(lambda x: sigmoid_focal_loss(x, targets).sum()))
    assert np.isfinite(extreme(np.array([-200, -200, 200, 200], np.float32))).all()


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1(beta):
    distance = np.linspace(-3, 3, 61)
    size = np.abs(distance)
    small = size**2 / (2 * beta) if beta else size
    expected = np.where(size < beta, small, size - beta / 2)
    found = smooth_l1(jnp.float32(distance + 2), jnp.full(61, 2.0), beta=beta)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_giou_loss():
    rng = np.random.default_rng(0)
    boxes, targets = np.float32(rng.uniform(0, 20, (2, 9, 4)))
    for each in (boxes, targets):
        each[:, 2:] = each[:, :2] + rng.uniform(1, 20, (9, 2))
    loss = jax.jit(giou_loss)
    expected = 1 - np.diagonal(jax.jit(pairwise_giou)(boxes, targets))
    np.testing.assert_allclose(loss(boxes, targets), expected, atol=1e-5)
    np.testing.assert_allclose(loss(boxes, boxes), 0, atol=1e-6)
    empty = np.zeros((2, 4), np.float32)
    gradient = jax.jit(jax.grad(lambda x: giou_loss(x, empty).sum()))(empty)
    assert np.isfinite(gradient).all()


def test_mask_cross_entropy():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((2, 3, 4, 5)), rng.random((2, 3, 4, 5))
    p = 1 / (1 + np.exp(-logits))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean((-2, -1))
    found = mask_cross_entropy(jnp.float32(logits), jnp.float32(targets))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_losses_are_torchvisions():
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(0)
    boxes = np.float32(rng.uniform(0, 20, (2, 9, 4)))
    boxes[..., 2:] += boxes[..., :2] + 1
    theirs = ops.generalized_box_iou_loss(*map(torch.tensor, boxes))
    np.testing.assert_allclose(giou_loss(*boxes), theirs, atol=1e-5)
    smooth = torch.nn.functional.smooth_l1_loss(
        *map(torch.tensor, boxes), beta=1 / 9, reduction="none"
    )
    np.testing.assert_allclose(smooth_l1(*boxes, beta=1 / 9), smooth, rtol=1e-5)
