"""Assignment and sampling against torchvision's and mmdetection's rules as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops.matching import FORCED, ignore_crowds, match, sample


def draw(seed=0, anchors=60, objects=7):
    """Overlaps in tenths, so that many are equal; one object that nothing touches."""
    rng = np.random.default_rng(seed)
    iou = (rng.integers(0, 11, (anchors, objects)) / 10).astype(np.float32)
    iou[rng.random(iou.shape) < 0.5] = 0
    iou[:, 2] *= 0.5
    iou[:, 4] = 0
    valid = rng.random(objects) < 0.8
    valid[[2, 4]] = True
    return iou, valid


def loops(iou, valid, high, low, rule, minimum):
    """torchvision's Matcher and mmdetection's MaxIoUAssigner, line by line."""
    there = np.flatnonzero(valid)
    index, label = np.zeros(len(iou), int), np.zeros(len(iou), int)
    for i, row in enumerate(iou):
        if len(there):
            index[i] = there[np.argmax(row[there])]
            best = row[index[i]]
            label[i] = 1 if best >= high else 0 if best < low else -1
    for g in there:
        largest = iou[:, g].max()
        if rule != "none" and largest > 0 and largest >= minimum:
            for i in np.flatnonzero(iou[:, g] == largest):
                label[i] = 1
                if rule == "mmdet":
                    index[i] = g
    return index, label


@pytest.mark.parametrize("minimum", [0.0, 0.5])
@pytest.mark.parametrize("rule", FORCED)
def test_labels_are_those_of_the_references(rule, minimum):
    run = jax.jit(match, static_argnames=("high", "low", "force_match", "force_minimum"))
    for seed in range(5):
        iou, valid = draw(seed)
        options = dict(high=0.7, low=0.3, force_match=rule, force_minimum=minimum)
        found = run(iou, valid, **options)
        index, label = loops(iou, valid, np.float32(0.7), np.float32(0.3), rule, minimum)
        assert found.label.dtype == jnp.int8 and found.index.dtype == jnp.int32
        np.testing.assert_array_equal(found.label, label)
        np.testing.assert_array_equal(found.index[label == 1], index[label == 1])


def test_without_objects_all_is_negative():
    found = match(jnp.ones((5, 3)), jnp.zeros(3, bool), high=0.5, low=0.4, force_match="mmdet")
    assert not found.label.any()


def test_what_cannot_be_is_refused():
    iou, valid = draw()
    with pytest.raises(ValueError, match="'best'; allowed: 'none', 'torchvision', 'mmdet'"):
        match(iou, valid, high=0.5, low=0.4, force_match="best")
    with pytest.raises(ValueError, match="low=0.6 is above high=0.5"):
        match(iou, valid, high=0.5, low=0.6)


def test_negatives_in_crowds_are_ignored():
    coverage = jnp.array([[0.9, 0.0], [0.9, 0.0], [0.7, 0.0], [0.0, 0.9], [0.8, 0.1]])
    label = jnp.array([0, 1, 0, 0, -1], jnp.int8)
    found = ignore_crowds(label, coverage, jnp.array([True, False]), above=0.7 + 1e-6)
    assert found.tolist() == [-1, 1, 0, 0, -1] and found.dtype == jnp.int8


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(30, 60, (8, 24)), (5, 60, (5, 27)), (30, 10, (8, 10)), (0, 0, (0, 0)), (3, 2, (3, 2))],
)
def test_sample_counts(positives, negatives, expected):
    label = np.full(100, -1, np.int8)
    order = np.random.default_rng(0).permutation(100)
    label[order[:positives]], label[order[positives : positives + negatives]] = 1, 0
    found = sample(jnp.asarray(label), jax.random.key(0), 32, 0.25)
    assert (int(found.positive.sum()), int(found.negative.sum())) == expected
    assert not (found.positive & (label != 1)).any() and not (found.negative & (label != 0)).any()


def test_each_candidate_is_drawn_equally_often():
    label = jnp.asarray([1] * 6 + [0] * 10 + [-1] * 4, jnp.int8)
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.jit(jax.vmap(lambda key: sample(label, key, 8, 0.5)))(keys)
    share = (found.positive | found.negative).mean(0)
    np.testing.assert_allclose(share, [4 / 6] * 6 + [0.4] * 10 + [0] * 4, atol=0.03)
    everything = sample(label, keys[0], 40, 0.5)
    assert (everything.positive == (label == 1)).all()
    assert (everything.negative == (label == 0)).all()


def test_labels_are_torchvisions():
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("torchvision.models.detection._utils")
    for seed in range(3):
        iou, _ = draw(seed)
        iou = np.delete(iou, 4, 1)  # the object that nothing touches takes everything there
        for forced in (False, True):
            theirs = utils.Matcher(0.7, 0.3, forced)(torch.tensor(iou.T)).numpy()
            rule = "torchvision" if forced else "none"
            found = match(iou, np.ones(6, bool), high=0.7, low=0.3, force_match=rule)
            label = np.where(theirs >= 0, 1, np.where(theirs == -1, 0, -1))
            np.testing.assert_array_equal(found.label, label)
            np.testing.assert_array_equal(found.index[label == 1], theirs[label == 1])
