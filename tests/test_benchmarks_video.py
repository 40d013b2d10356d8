"""Benchmark of videos: what its tables are made of, and that the mean of frames needs no stack."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import video_speed
from lambdanet.ops.frame_mean import frame_mean

SMALL = dict(channels=32, stride=4, in_channels=3, width=1 / 32, levels=3, half=False)
EMBED = dict(hidden_channels=4, embedding_channels=8)


@pytest.fixture
def tiny(monkeypatch):
    backbone = dict(name="resnet18", blocks=(1, 1), widths=(4, 6), stem="strided")
    monkeypatch.setattr(video_speed, "BACKBONE", backbone)
    monkeypatch.setattr(video_speed, "HEAD", dict(name="fcn", channels=4))
    options = {
        "none": {},
        "copy": {},
        "deep_feature_flow": dict(width=1 / 32, levels=3, half=False),
        "neighborhood_propagation": dict(embedding_channels=6, radius=1),
    }
    monkeypatch.setattr(video_speed, "PROPAGATIONS", options)


@pytest.mark.exhaustive
def test_work_is_that_of_what_a_frame_needs(tiny):
    found = {}
    for name in video_speed.PROPAGATIONS:
        model = video_speed.build_segmenter(name, 16)
        rows = {row["path"]: row["macs"] for row in model.summary_rows(16, 16)}
        own = video_speed.work_of(model, 16)
        head = sum(macs for path, macs in rows.items() if path.startswith("head/"))
        assert own["key"] == own["backbone"] + head
        found[name] = own["carried"] - head - own["propagation"], own
        calls = video_speed.calls_of(model, 16)
        (_, logits), carried = calls["key"](), calls["carried"]()
        assert logits.shape == carried.shape == (1, 16, 16, 19)
        assert np.isfinite(carried).all()
    early = sum(
        macs
        for path, macs in rows.items()
        if path.startswith(("backbone/stem", "backbone/stages/0"))
    )
    assert {name: rest for name, (rest, _) in found.items()} == {
        "none": found["none"][1]["backbone"],
        "copy": 0,
        "deep_feature_flow": 0,
        "neighborhood_propagation": early,
    }
    assert 0 < early < found["none"][1]["backbone"]


def test_table_of_propagation_weighs_one_key_frame_against_nine(monkeypatch):
    work = {name: dict(key=2e9, carried=1e9) for name in ("none", "copy")}
    seconds = {("none", "key"): [9.0, 0.1, 0.01], ("none", "carried"): [0.1]}
    seconds |= {("copy", "key"): [0.12], ("copy", "carried"): [0.02, 0.01, 5.0]}
    none, copy = video_speed.propagation_rows(work, seconds)
    assert none == ["`none`", "2.00", "1.00", "100.0", "100.0", "100.0", "1.00"]
    assert copy == ["`copy`", "2.00", "1.00", "120.0", "20.0", "30.0", "3.33"]


def test_table_of_recomputation():
    planned = {"none": 4 * 2**20, "block": 2**20}
    seconds = {"none": [2.0, 1.0, 9.0], "block": [3.0]}
    none, block = video_speed.recomputation_rows("net", planned, seconds)
    assert none == ["`net`", "`none`", "4", "1.00", "2000", "1.00"]
    assert block == ["`net`", "`block`", "1", "0.25", "3000", "1.50"]


def test_calls_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    spent = video_speed.in_turns(calls, 2, warm=1)
    assert "".join(order) == "aabb" * 2
    assert {name: len(times) for name, times in spent.items()} == {"a": 2, "b": 2}


def test_the_stack_is_the_same_mean():
    draw = np.random.default_rng(0)
    frames = [jnp.asarray(draw.standard_normal((5, 1, 2, 3, 4)), jnp.float32) for _ in range(2)]
    read = lambda frame: (jnp.sin(frame[0]), frame[1])  # noqa: E731
    results = [mean(read, frames, frames[1][2]) for mean in (frame_mean, video_speed.stacked_mean)]
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_memory_of_the_mean_does_not_grow_with_the_frames():
    one, many = (
        video_speed.aggregation_mib("one after the other", "fwd", reach, side=16, **SMALL, **EMBED)
        for reach in (1, 9)
    )
    stack = video_speed.aggregation_mib("a stack", "fwd", 9, side=16, **SMALL, **EMBED)
    assert many < 1.02 * one < 0.5 * stack


@pytest.mark.exhaustive
def test_a_step_on_clips_learns_and_recomputes():
    planned = {}
    for remat in ("none", "block"):
        compiled, run = video_speed.clip_step("small_i3d", remat, frames=8, side=32)
        planned[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert planned["block"] < 0.8 * planned["none"]
    losses = [float(run()[1]["loss"][0]) for _ in range(3)]  # the first step's rate is 0
    assert np.isfinite(losses).all() and losses[0] == losses[1] != losses[2]
