"""Which frames are drawn, taken for evaluation, and read around each."""

import types

import numpy as np
import pytest

from lambdanet.data import key_frames


def own(**given):
    return types.SimpleNamespace(**{"max_distance": 3, "others": 0, **given})


def drawn(length, count=3000, **given):
    rng = np.random.default_rng(0)
    return np.stack([key_frames.draw(length, own(**given), rng) for _ in range(count)])


def test_pairs_have_every_distance_and_place_as_often():
    pairs = drawn(10)
    key, current = pairs.T
    assert key.min() == 0 and current.max() == 9
    shares = np.bincount(current - key) / len(pairs)
    assert len(shares) == 4 and np.abs(shares - 1 / 4).max() < 0.03
    for distance in range(4):
        places = np.bincount(key[current - key == distance], minlength=10)
        expected = 1 / (10 - distance)
        assert np.abs(places[: 10 - distance] / places.sum() - expected).max() < 0.04
        assert places[10 - distance :].sum() == 0


def test_pairs_of_short_sequences_reach_as_far_as_there_are_frames():
    key, current = drawn(3, 300).T
    assert set((current - key).tolist()) == {0, 1, 2} and current.max() == 2
    assert not drawn(1, 20).any()
    assert np.array_equal(*drawn(10, 50, max_distance=0).T)


def test_others_are_distinct_offsets_on_both_sides_and_end_with_the_current_one():
    frames = drawn(9, others=2)
    assert frames.shape == (3000, 3) and set(frames[:, -1].tolist()) == set(range(9))
    inner = frames[(frames[:, -1] >= 3) & (frames[:, -1] <= 5)]
    offsets = inner[:, :2] - inner[:, 2:]
    assert set(np.unique(offsets).tolist()) == set(range(-3, 4))
    assert (offsets[:, 0] != offsets[:, 1]).all()
    ends = frames[frames[:, -1] == 0]  # what would lie before the first frame is the first frame
    assert ends.min() == 0 and 0.5 < (ends[:, 0] == 0).mean() < 0.65  # 4 of 7


@pytest.mark.parametrize(
    ("length", "count", "expected", "counted"),
    [(8, 8, range(8), 8), (9, 4, range(2, 6), 4), (10, 4, range(3, 7), 4),
     (2, 4, (0, 1, 1, 1), 2), (1, 1, (0,), 1)],
)  # fmt: skip
def test_evaluation_takes_the_middle_and_repeats_the_last(length, count, expected, counted):
    numbers, real = key_frames.middle(length, count)
    assert numbers.tolist() == list(expected) and real == counted


def test_windows_repeat_the_ends():
    assert key_frames.window(4, 1, 1).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    assert key_frames.window(5, 2, 2)[1].tolist() == [0, 0, 1, 3, 4]
    assert key_frames.window(3, 7, 0).tolist() == [[0], [1], [2]]


def test_an_empty_sequence_is_refused():
    for read in (lambda: drawn(0, 1), lambda: key_frames.middle(0, 4)):
        with pytest.raises(ValueError, match="no frames"):
            read()
