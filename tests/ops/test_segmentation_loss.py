"""The loss of segmentation against the plain way and the official loops (mmsegmentation's: the
fixtures)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from covering import part

from lambdanet.layers.resize import resize_bilinear
from lambdanet.ops import segmentation_loss as mining
from lambdanet.ops import upsampled_pixels
from lambdanet.ops.segmentation_loss import segmentation_loss
from lambdanet.ops.upsampled_pixels import class_counts, pixel_cross_entropy, pixel_scores

IGNORED = 255
compiled_loss = jax.jit(
    segmentation_loss, static_argnames=("mean", "class_weights", "ohem", "threshold", "min_kept")
)


def draw(low, full, classes=6, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((batch, *low, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (batch, *full), np.int32)
    labels[rng.random(labels.shape) < 0.2] = IGNORED
    return jnp.asarray(logits), jnp.asarray(labels)


@functools.partial(jax.jit, static_argnums=2)
def plain(logits, labels, align_corners):
    """All up-sampled at once."""
    up = resize_bilinear(logits, labels.shape[1:], align_corners=align_corners)
    valid = labels != IGNORED
    each = optax.softmax_cross_entropy_with_integer_labels(up, jnp.where(valid, labels, 0))
    return jnp.where(valid, each, 0.0), up


SIZES = [
    ((5, 7), (20, 28), 3),  # the last band is not full
    ((5, 7), (23, 31), 0),
    ((4, 3), (8, 12), 1),
    ((9, 11), (9, 11), 4),  # nothing to up-sample
    ((1, 1), (6, 5), 2),
    ((8, 8), (5, 3), 2),
    ((6, 6), (1, 1), 0),
]
CASES = [(*sizes, align_corners) for sizes in SIZES for align_corners in (False, True)]


@pytest.mark.parametrize(
    ("low", "full", "rows", "align_corners"),
    part(CASES, [(*SIZES[0], False), (*SIZES[1], True), (*SIZES[5], True)]),
)
def test_equals_up_sampling_everything(low, full, rows, align_corners):
    logits, labels = draw(low, full)
    cotangent = np.random.default_rng(1).standard_normal(labels.shape).astype(np.float32)

    def bands(logits):
        found = pixel_cross_entropy(logits, labels, align_corners=align_corners, band_rows=rows)
        return jnp.sum(found.cross_entropy * cotangent), found

    def whole(logits):
        each, up = plain(logits, labels, align_corners)
        return jnp.sum(each * cotangent), (each, up)

    @jax.jit
    def results(logits):
        scores = pixel_scores(logits, labels, align_corners=align_corners, band_rows=rows)
        both = (jax.value_and_grad(loss, has_aux=True)(logits) for loss in (bands, whole))
        return *both, scores

    ((_, ours), gradient), ((_, (each, up)), expected), (scores, predicted) = results(logits)
    up = np.asarray(up)
    np.testing.assert_allclose(ours.cross_entropy, each, atol=3e-5)
    np.testing.assert_allclose(gradient, expected, atol=3e-5)
    np.testing.assert_allclose(scores, each, atol=3e-5)
    np.testing.assert_array_equal(predicted, up.argmax(-1))
    np.testing.assert_array_equal(ours.right, (predicted == labels) & (labels != IGNORED))


def test_low_precision_logits_are_up_sampled_in_float32():
    logits, labels = draw((4, 4), (16, 16))
    low = np.asarray(logits, jnp.bfloat16)
    each = jax.jit(lambda x: pixel_cross_entropy(x, labels).cross_entropy)
    assert each(low).dtype == jnp.float32
    np.testing.assert_allclose(each(low), each(low.astype(np.float32)))
    gradient = jax.eval_shape(jax.grad(lambda x: each(x).sum()), low)
    assert gradient.dtype == jnp.bfloat16


def test_up_sampled_logits_of_the_batch_are_never_held():
    logits, labels = (
        jax.ShapeDtypeStruct((2, 32, 32, 40), jnp.float32),
        jax.ShapeDtypeStruct((2, 128, 128), jnp.int32),
    )
    whole = 2 * 128 * 128 * 40 * 4

    def memory(function):
        compiled = jax.jit(jax.grad(function)).lower(logits, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    bands = memory(lambda x, y: segmentation_loss(x, y, band_rows=4).value)
    assert bands < 0.35 * whole < 0.5 * memory(lambda x, y: plain(x, y, False)[0].mean())


@pytest.mark.parametrize("mean", mining.MEANS)
@pytest.mark.parametrize("ohem", mining.OHEMS)
def test_a_batch_without_labels_gives_zero_and_finite_gradients(mean, ohem):
    logits, labels = draw((4, 4), (16, 16))
    labels = jnp.full_like(labels, IGNORED)

    @jax.jit
    @jax.value_and_grad
    def value(logits, labels):
        return segmentation_loss(logits, labels, mean=mean, ohem=ohem).value

    loss, gradient = value(logits, labels)
    assert float(loss) == 0.0 and not np.any(gradient)


def test_a_label_that_is_no_class_does_not_train_silently():
    logits, labels = draw((4, 4), (8, 8))
    for wrong in (6, -1):
        labels = np.array(labels)
        labels[0, 0, 0] = wrong
        assert np.isnan(compiled_loss(logits, labels).value)


def test_means_and_class_weights():
    logits, labels = draw((8, 8), (8, 8), classes=3)
    each, valid = np.float64(plain(logits, labels, False)[0]), np.asarray(labels) != IGNORED
    plainly = compiled_loss(logits, labels)
    assert float(plainly.value) == pytest.approx(each.sum() / valid.sum(), rel=1e-5)
    assert float(plainly.weight) == float(plainly.valid) == valid.sum()
    everything = compiled_loss(logits, labels, mean="all")
    assert float(everything.value) == pytest.approx(each.mean(), rel=1e-5)
    weights = (0.5, 2.0, 0.0)
    w = np.where(valid, np.asarray(weights)[np.minimum(labels, 2)], 0)
    weighted = compiled_loss(logits, labels, class_weights=weights)
    assert float(weighted.value) == pytest.approx((w * each).sum() / w.sum(), rel=1e-5)
    both = compiled_loss(logits, labels, class_weights=weights, mean="all")
    expected = (w * each).sum() / (w.sum() + (~valid).sum())
    assert float(both.value) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="2 class weights for 3 classes"):
        segmentation_loss(logits, labels, class_weights=(1.0, 1.0))
    with pytest.raises(ValueError, match="mean='some'; allowed: 'valid', 'all'"):
        segmentation_loss(logits, labels, mean="some")
    with pytest.raises(ValueError, match="ohem='top'; allowed: 'none', 'ccnet', 'ocnet', 'mmseg'"):
        segmentation_loss(logits, labels, ohem="top")


# ---- Mining --------------------------------------------------------------------------------------


def official(p, labels, searched, known, threshold, least):
    """The official loops, on flat arrays: which pixels are kept."""
    valid = labels != IGNORED
    values = np.sort(searched[known])
    if least >= len(values):
        return valid
    limit = threshold
    if least > 0:
        limit = max(threshold, values[min(len(values), least) - 1])
    return valid & (p <= limit)


@pytest.mark.parametrize("min_kept", [0, 100, 900, 10**6])
@pytest.mark.parametrize("threshold", [0.05, 0.7])
def test_ocnet_keeps_what_the_official_loops_keep(min_kept, threshold):
    logits, labels = draw((8, 8), (24, 32))
    each = plain(logits, labels, True)[0]
    p, flat = np.exp(-np.asarray(each)), np.asarray(labels)
    kept = official(p, flat, p, flat != IGNORED, threshold, min_kept)
    options = dict(threshold=threshold, min_kept=min_kept, align_corners=True)
    ours = segmentation_loss(logits, labels, ohem="ocnet", **options)
    expected = np.asarray(each)[kept].mean()
    assert float(ours.value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("min_kept", [0, 400, 900, 10**6])
def test_ccnet_searches_on_an_eighth_of_the_size(min_kept):
    zoom = pytest.importorskip("scipy.ndimage").zoom
    logits, labels = draw((9, 11), (65, 81))
    each, up = plain(logits, labels, True)
    probabilities = np.asarray(jax.nn.softmax(up)).transpose(0, 3, 1, 2)
    small = zoom(probabilities, (1, 1, 1 / 8, 1 / 8), order=1)
    target = zoom(np.asarray(labels), (1, 1 / 8, 1 / 8), order=0)
    known = target != IGNORED
    index = np.where(known, target, 0)[:, None]
    searched = np.take_along_axis(small, index, 1)[:, 0]
    p, valid = mining.coarse_probabilities(logits, labels, True)
    np.testing.assert_array_equal(valid, known)
    np.testing.assert_allclose(np.asarray(p)[known], searched[known], atol=1e-5)
    kept = official(
        np.exp(-np.asarray(each)), np.asarray(labels), searched, known, 0.05, min_kept // 64
    )
    options = dict(threshold=0.05, min_kept=min_kept, align_corners=True)
    ours = segmentation_loss(logits, labels, ohem="ccnet", **options)
    assert float(ours.value) == pytest.approx(np.asarray(each)[kept].mean(), rel=1e-3)


def test_threshold_zero_keeps_the_hardest():
    logits, labels = draw((8, 8), (8, 8))
    each = np.sort(np.asarray(plain(logits, labels, False)[0]).ravel())[::-1]
    ours = compiled_loss(logits, labels, ohem="mmseg", threshold=0.0, min_kept=10)
    expected = each[:20].sum() / (np.asarray(labels) != IGNORED).sum()
    assert float(ours.value) == pytest.approx(expected, rel=1e-5)


def test_kth_smallest_is_exact():
    rng = np.random.default_rng(0)
    values = rng.random((3, 50)).astype(np.float32)
    values[0, :4] = 0.0, 1.0, values[0, 5], 1e-40
    valid = rng.random(values.shape) < 0.7
    order = np.sort(values[valid])
    pick = jax.jit(mining.kth_smallest)
    found = [pick(values, valid, k + 1) for k in range(len(order))]
    # Numbers below the smallest normal one may be flushed to zero by either side.
    np.testing.assert_array_equal(np.maximum(found, 1e-37), np.maximum(order, 1e-37))


# ---- Counts --------------------------------------------------------------------------------------


def test_class_counts_leave_ignored_pixels_out():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (3, 9, 7), np.int32)
    labels[rng.random(labels.shape) < 0.3] = IGNORED
    predictions = rng.integers(0, 4, labels.shape, np.int32)
    expected = np.zeros((3, 4, 4), np.int64)
    for image, true, said in zip(expected, labels, predictions, strict=True):
        for t, s in zip(true.ravel(), said.ravel(), strict=True):
            if t != IGNORED:
                image[t, s] += 1
    found = jax.jit(class_counts, static_argnums=2)(labels, predictions, 4)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


def test_bands_cover_every_row_once():
    plan = upsampled_pixels._plan((16, 16), (61, 64), 3, False, 7)
    whole = np.zeros((plan.rows.shape[0] * plan.rows.shape[1], 16), np.float32)
    for number, (start, rows) in enumerate(zip(plan.starts, plan.rows, strict=True)):
        band = slice(number * rows.shape[0], (number + 1) * rows.shape[0])
        whole[band, start : start + rows.shape[1]] = rows
    np.testing.assert_array_equal(whole[:61], upsampled_pixels.resize_matrix(16, 61))
    assert not whole[61:].any() and plan.rows.shape[2] <= 4
