"""The category-consistent loss against loops, and its corners: few classes, ignored and wrong
labels, zero distances.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops.category_consistent_loss import category_consistent_loss

CLASSES, IGNORED = 5, 255
loss = jax.jit(
    category_consistent_loss,
    static_argnums=2,
    static_argnames=("ignore_label", "variance_margin", "distance_margin"),
)


def by_hand(h, labels, *, dv=0.5, dd=1.5, weights=(1.0, 1.0, 0.001)):
    h, labels = np.float64(h).reshape(-1, h.shape[-1]), np.ravel(labels)
    present = [c for c in range(CLASSES) if (labels == c).any()]
    means = {c: h[labels == c].mean(0) for c in present}
    variance = distance = regularisation = 0.0
    for c in present:
        costs = []
        for row in h[labels == c]:
            d = np.linalg.norm(means[c] - row)
            costs.append(0 if d <= dv else (d - dv) ** 2 if d <= dd else d - dd + (dd - dv) ** 2)
        variance += np.mean(costs) / len(present)
        regularisation += np.linalg.norm(means[c]) / len(present)
        for other in present:
            if other != c:
                gap = max(0, 2 * dd - np.linalg.norm(means[c] - means[other]))
                distance += gap**2 / (len(present) * (len(present) - 1))
    terms = (variance, distance, regularisation)
    return (np.dot(weights, terms), *terms)


def data(scale=0.5, classes=4):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, (2, 5, 3))  # class 4 is never present
    labels[0, 0] = IGNORED
    return (scale * rng.standard_normal((2, 5, 3, 6)) + 0.3 * (labels[..., None] % 7)).astype(
        np.float32
    ), labels


def test_equals_the_loops():
    features, labels = data()
    distances = [
        np.linalg.norm(features[labels == c] - features[labels == c].mean(0), axis=-1)
        for c in range(4)
    ]
    assert {int(piece) for d in distances for piece in np.digitize(d, (0.5, 1.5))} >= {1, 2}
    np.testing.assert_allclose(
        loss(features, labels, CLASSES), by_hand(features, labels), rtol=1e-5
    )
    near = 0.1 * features  # all within the margin, the means too close
    np.testing.assert_allclose(loss(near, labels, CLASSES), by_hand(near, labels), rtol=1e-5)
    assert loss(near, labels, CLASSES).variance == 0


def test_weights_and_margins():
    features, labels = data()
    terms = loss(
        features,
        labels,
        CLASSES,
        variance_margin=0.2,
        distance_margin=0.8,
        variance_weight=2.0,
        distance_weight=3.0,
        regularisation_weight=0.5,
    )
    np.testing.assert_allclose(
        terms, by_hand(features, labels, dv=0.2, dd=0.8, weights=(2, 3, 0.5)), rtol=1e-5
    )


def test_slope_is_two_before_the_second_margin_and_one_after_it():
    """Two positions of one class at -d and d: each is d from the mean, and moves away from it by
    half of its own step.
    """

    def variance(d):
        return loss(jnp.stack([-d, d]).reshape(1, 2, 1), np.zeros((1, 2), int), CLASSES).variance

    slope = jax.jit(jax.grad(variance))
    slopes = [float(slope(d)) for d in (0.4, 1.0, 1.499, 1.501, 9.0)]
    np.testing.assert_allclose(slopes, [0, 1, 1.998, 1, 1], rtol=1e-4)
    np.testing.assert_allclose(variance(1.5), 1, rtol=1e-6)


@jax.jit
def gradient(features, labels):
    return jax.grad(lambda h: loss(h, labels, CLASSES).total)(features)


def test_one_class_has_no_distance():
    features, labels = data()
    labels = np.where(labels == 2, 2, IGNORED)
    terms = loss(features, labels, CLASSES)
    np.testing.assert_allclose(terms, by_hand(features, labels), rtol=1e-5)
    assert terms.distance == 0 and terms.variance > 0
    assert np.isfinite(gradient(features, labels)).all()


def test_nothing_labelled_is_zero():
    features, labels = data()
    labels = np.full_like(labels, IGNORED)
    assert all(term == 0 for term in loss(features, labels, CLASSES))
    np.testing.assert_array_equal(gradient(features, labels), 0)


def test_zero_distances_have_finite_gradients():
    """Equal features: every position is its mean, all means coincide, and with zeros the means have
    no norm.
    """
    labels = data()[1]
    slope = gradient(np.zeros((2, 5, 3, 6), np.float32), labels)
    assert np.isfinite(slope).all()


def test_ignored_positions_do_not_matter():
    features, labels = data()
    changed = np.where((labels == IGNORED)[..., None], 1e6, features).astype(np.float32)
    np.testing.assert_array_equal(loss(changed, labels, CLASSES), loss(features, labels, CLASSES))
    inside = loss(features, np.where(labels == IGNORED, 4, labels), CLASSES, ignore_label=4)
    np.testing.assert_array_equal(inside, loss(features, labels, CLASSES))


@pytest.mark.parametrize("wrong", [CLASSES, 254, -1])
def test_a_wrong_label_is_not_silent(wrong):
    features, labels = data()
    labels[1, 2, 2] = wrong
    assert all(np.isnan(term) for term in loss(features, labels, CLASSES))


def test_bfloat16_features_are_summed_in_float32():
    features, labels = data()
    low = jnp.asarray(features, jnp.bfloat16)
    terms = loss(low, labels, CLASSES)
    assert terms.total.dtype == jnp.float32
    np.testing.assert_allclose(terms, by_hand(np.asarray(low, np.float32), labels), rtol=1e-5)


def test_wrong_arguments_are_named():
    features, labels = data()
    with pytest.raises(
        ValueError, match=r"labels have shape \(2, 5, 2\).*expected integers of shape \(2, 5, 3\)"
    ):
        category_consistent_loss(features, labels[..., :2], CLASSES)
    with pytest.raises(ValueError, match="dtype float32"):
        category_consistent_loss(features, labels.astype(np.float32), CLASSES)
    with pytest.raises(ValueError, match="allowed: 0 <= variance_margin <= distance_margin"):
        category_consistent_loss(features, labels, CLASSES, variance_margin=2.0)
