"""Suppression against the greedy loop in float64 and torchvision's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detection_oracles import greedy

from lambdanet.ops.nms import nms, select

COUNT = 70  # two words of 32 and a part


@functools.partial(jax.jit, static_argnums=2)
def keep(boxes, scores, threshold, valid=None, classes=None):
    return nms(boxes, scores, threshold, valid=valid, classes=classes)


chosen = jax.jit(select, static_argnames=("iou_threshold", "count"))


def draw(seed, kind="some"):
    """Whole coordinates: overlaps are exact quotients, at no threshold by rounding."""
    rng = np.random.default_rng(seed)
    if kind == "chain":  # each suppresses its neighbours only
        corner, size = np.arange(COUNT)[:, None] * [3, 0], np.full((COUNT, 2), 10)
    elif kind == "all":
        corner, size = rng.integers(0, 3, (COUNT, 2)), rng.integers(40, 44, (COUNT, 2))
    else:
        corner, size = rng.integers(0, 40, (COUNT, 2)), rng.integers(0, 25, (COUNT, 2))
    scores = rng.integers(0, 40, COUNT) / 40  # many are equal
    if kind == "chain":
        scores = np.linspace(1, 0, COUNT)
    boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
    return boxes, scores.astype(np.float32), rng.random(COUNT) < 0.8, rng.integers(0, 3, COUNT)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("kind", ["some", "all", "chain"])
def test_equals_the_greedy_loop(kind, threshold):
    for seed in range(4):
        boxes, scores, valid, classes = draw(seed, kind)
        found = keep(boxes, scores, threshold, valid, classes.astype(np.int32))
        expected = greedy(boxes, scores, threshold, classes, valid)
        assert sorted(expected) == list(np.flatnonzero(found))


@pytest.mark.parametrize("kind", ["some", "all", "chain"])
def test_without_classes_and_select(kind):
    boxes, scores, valid, classes = draw(0, kind)
    expected = greedy(boxes, scores, 0.3)
    assert sorted(expected) == list(np.flatnonzero(keep(boxes, scores, 0.3)))
    expected = greedy(boxes, scores, 0.3, classes, valid)
    for count in (5, COUNT + 9):
        options = dict(iou_threshold=0.3, count=count)
        found = chosen(boxes, scores, classes.astype(np.int32), valid, **options)
        assert found.classes.dtype == jnp.int32
        found = type(found)(*map(np.asarray, found))
        first = expected[:count]
        assert found.valid.tolist() == [True] * len(first) + [False] * (count - len(first))
        for ours, values in (
            (found.boxes, boxes),
            (found.scores, scores),
            (found.classes, classes),
        ):
            np.testing.assert_array_equal(ours[: len(first)], values[first])
            assert len(ours) == count and not np.any(ours[len(first) :])


def test_an_overlap_equal_to_the_threshold_is_kept():
    boxes = np.array([[0, 0, 2, 2], [0, 0, 1, 2]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert keep(boxes, scores, 0.5).tolist() == [True, True]
    assert keep(boxes, scores, 0.49).tolist() == [True, False]


def test_padding_changes_nothing():
    boxes, scores, valid, _ = draw(3)
    alone = np.asarray(keep(boxes, scores, 0.4, valid))
    more = [np.concatenate([boxes, boxes]), np.concatenate([scores, scores + 5])]
    valid = np.concatenate([valid, np.zeros(COUNT, bool)])
    found = np.asarray(keep(*more, 0.4, valid, np.zeros(2 * COUNT, np.int32)))
    np.testing.assert_array_equal(found[:COUNT], alone)
    assert not found[COUNT:].any()


def test_one_box_none_valid_and_odd_numbers():
    box = np.array([[0, 0, 5, 5]], np.float32)
    assert keep(box, np.array([-1e30], np.float32), 0.5).tolist() == [True]
    assert keep(box, np.ones(1, np.float32), 0.5, np.array([False])).tolist() == [False]
    empty, ones = np.zeros((40, 4), np.float32), np.ones(40, np.float32)
    assert keep(empty, ones, 0.5).tolist() == [True] * 40  # torchvision: 0 / 0 is not above 0.5
    bad = np.concatenate([box, box, box])
    bad[1, 2] = np.nan
    scores = np.array([0.5, 0.9, 0.7], np.float32)
    assert keep(bad, scores, 0.5).tolist() == [False, True, True]


def test_images_of_a_batch_are_apart():
    images = [draw(seed, kind) for seed, kind in enumerate(("some", "all", "chain"))]
    boxes, scores, valid, _ = (np.stack(arrays) for arrays in zip(*images, strict=True))
    found = jax.jit(jax.vmap(lambda b, s, v: nms(b, s, 0.5, valid=v)))(boxes, scores, valid)
    for number, (b, s, v, _) in enumerate(images):
        assert sorted(greedy(b, s, 0.5, valid=v)) == list(np.flatnonzero(found[number]))


def test_memory_is_a_bit_for_each_pair():
    shapes = (
        jax.ShapeDtypeStruct((2048, 4), jnp.float32),
        jax.ShapeDtypeStruct((2048,), jnp.float32),
    )
    optimised = {"xla_backend_optimization_level": 3}
    compiled = jax.jit(lambda b, s: nms(b, s, 0.5)).lower(*shapes).compile(optimised)
    assert compiled.memory_analysis().temp_size_in_bytes < 2048**2 / 4


def test_keeps_what_torchvision_keeps():
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    for seed in range(3):
        boxes, scores, _, classes = draw(seed)
        scores = np.random.default_rng(seed).permutation(COUNT).astype(np.float32)
        tensors = [torch.tensor(array) for array in (boxes, scores, classes)]
        theirs = ops.batched_nms(*tensors, 0.5).numpy()
        options = dict(iou_threshold=0.5, count=len(theirs))
        found = chosen(boxes, scores, classes.astype(np.int32), np.ones(COUNT, bool), **options)
        np.testing.assert_array_equal(found.scores, scores[theirs])
        assert int(nms(boxes, scores, 0.5, classes=jnp.asarray(classes, jnp.int32)).sum()) == len(
            theirs
        )
