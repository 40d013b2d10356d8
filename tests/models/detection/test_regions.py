"""What the second stage makes of proposals."""

import jax
import jax.numpy as jnp
import numpy as np

from models.detection import regions

mask_targets = jax.jit(regions.mask_targets, static_argnames=("size", "binary"))


def test_targets_of_masks_do_not_hang_on_rounding():
    """The box of an object itself, which is among the proposals, is cut out of its mask at places
    whose values are exactly one half: a last bit of the box must not decide there.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:112, :112] - 55.5
    radii = rng.uniform(1000, 3100, (20, 2, 1, 1))
    masks = jnp.asarray([x**2 / radii[:, 0] + y**2 / radii[:, 1] <= 1], jnp.uint8)
    corners = rng.uniform(0, 60, (20, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 40, (20, 2))], axis=1)[None]
    boxes = boxes.astype(np.float32)

    def targets(proposals, binary=True):
        given = (masks, boxes, proposals, np.arange(20, dtype=np.int32)[None])
        return np.asarray(mask_targets(*given, size=28, binary=binary))

    halves = targets(boxes, binary=False) == 0.5
    assert halves.sum() > 50
    assert (targets(boxes)[halves] == 1).all()
    for bit in (-np.inf, np.inf):
        np.testing.assert_array_equal(targets(np.nextafter(boxes, np.float32(bit))), targets(boxes))
