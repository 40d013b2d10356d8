"""The runner of videos: what the naive loop gives, at the cost that it is there for."""

import functools

import covering
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from video_helpers import PROPAGATIONS, SIDE, moved_detector, moved_segmenter

from configs import base
from lambdanet.analysis.video_runner import VideoRunner
from lambdanet.ops.images import normalise

COMPILED = "/jax/core/compile/backend_compile_duration"


segmenter = functools.cache(moved_segmenter)


def make(name, *, every=3, reach=1, adaptive=False, **options):
    config = base.get_config()
    model = nnx.clone(segmenter(name, **options))
    return model, VideoRunner(model, config, every=every, reach=reach, adaptive=adaptive), config


def clip(count, size=(SIDE, SIDE), seed=0):
    """Frames of noise that drifts, so that neighbours resemble each other."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 256, (size[0], size[1] + count, 3), dtype=np.uint8)
    return [np.ascontiguousarray(wide[:, i : i + size[1]]) for i in range(count)]


def compiled(model):
    """The methods that are called frame by frame."""
    each = (model.key_frame, model.next_key, model.current_frame, model.propagate)
    return *map(jax.jit, each), jax.jit(model.decode, static_argnums=1)


def naive(model, methods, config, frames, size, *, every=1, reach=1, adaptive=False):
    """(logits, is_key) of each frame, by the methods of the model."""
    key_frame, next_key, current_frame, propagate, decode = methods
    images = [normalise(f[None], config.data.mean, config.data.std) for f in frames]
    moved, last = model.propagation, len(images) - 1
    if moved.many:
        for number, image in enumerate(images):
            read = [min(max(number + every * o, 0), last) for o in range(-reach, reach + 1)]
            keys = [key_frame(images[i]) for i in read]
            key = jax.tree.map(lambda *a: jnp.stack(a), *keys)
            yield decode(propagate(key, image), size)[0], True
        return
    key, since = None, 0
    for image in images:
        since += 1
        if key is None:
            key, since = key_frame(image), 0
        elif since == every or not moved.key_needs:
            key, since = next_key(key, image), 0
        elif adaptive and moved.becomes_key(key, current_frame(image))[0]:
            key, since = next_key(key, image), 0
        features = propagate(key, image) if since else key.features
        yield decode(features, size)[0], since == 0


def check_against_naive(model, runner, config, frames, size=None, methods=None, **given):
    """Each label is the one with the largest logit of the naive loop, up to 1e-5 of it."""
    seen, keys, methods = set(), [], methods or compiled(model)
    found = runner.run(frames, size)
    size = size or frames[0].shape[:2]
    for shown, (logits, is_key) in zip(
        found, naive(model, methods, config, frames, size, **given), strict=True
    ):
        assert shown.result.shape == size and shown.result.dtype == np.uint8
        own = np.take_along_axis(np.asarray(logits), shown.result[..., None].astype(int), -1)
        assert np.max(np.max(logits, -1) - own[..., 0]) <= 1e-5 * np.max(np.abs(logits))
        assert shown.is_key == is_key and shown.seconds > 0
        seen |= set(shown.result.ravel().tolist())
        keys.append(is_key)
    assert len(seen) > 1, "all labels are equal: nothing is compared"
    return keys


# Of one key frame and of many frames; the suite has the second.
CARRIED = ["deep_feature_flow", "flow_guided_aggregation"]
LOOPS = CARRIED[1:]


@pytest.mark.parametrize("name", covering.part(PROPAGATIONS, LOOPS))
def test_the_runner_gives_what_the_naive_loop_gives(name):
    model, runner, config = make(name, every=3)
    methods = compiled(model)
    keys = check_against_naive(model, runner, config, clip(8), methods=methods, every=3)
    per_frame = name in ("none", "flow_guided_aggregation")
    assert keys == [per_frame or i % 3 == 0 for i in range(8)]
    if name in ("deep_feature_flow", "flow_guided_aggregation"):  # all kinds of programs
        larger = (2 * SIDE - 1, SIDE + 5)  # label maps of the picture that frames are scaled from
        check_against_naive(model, runner, config, clip(2), larger, methods, every=3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("partial", [True, False])
def test_a_propagation_that_chooses_its_key_frames(partial):
    """Thresholds in the middle of what the flow network says of the clip: some are chosen."""
    model, _, config = make("sparse_recursion", partial=partial)
    frames, moved = clip(10), model.propagation
    images = normalise(np.stack(frames), config.data.mean, config.data.std)
    quality = moved.flow_net(images[1:], images[:-1], (4, 4)).quality
    moved.threshold = float(jnp.median(quality))
    moved.key_share = float(jnp.median((quality <= moved.threshold).mean((1, 2))))
    runner = VideoRunner(model, config, every=4)
    keys = check_against_naive(model, runner, config, frames, every=4, adaptive=True)
    chosen = np.flatnonzero(keys)
    assert max(np.diff([*chosen, len(keys)])) <= 4 and 3 < len(chosen) < len(keys)
    names = {name for name, *_ in runner.compiled}
    assert ("chosen_key" in names) == partial  # whose features are known then


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CARRIED)
def test_a_detector_finds_what_it_finds_by_its_methods(name):
    config, size = base.get_config(), (50, 64)  # of the picture in its canvas
    model, frames = moved_detector(name), clip(4, (64, 64))
    detect = jax.jit(lambda features: model.detections(features, jnp.array([size]), (64, 64)))
    key_frame, propagate = jax.jit(model.key_frame), jax.jit(model.propagate)
    runner = VideoRunner(model, config, every=2, reach=1)
    found = runner.run(frames, size)
    key, seen = None, 0
    images = [normalise(f[None], config.data.mean, config.data.std) for f in frames]
    for number, shown in enumerate(found):
        if model.propagation.many:
            read = [key_frame(images[i]) for i in np.clip([number - 2, number, number + 2], 0, 3)]
            key = jax.tree.map(lambda *a: jnp.stack(a), *read)
        elif number % 2 == 0:
            key = key_frame(images[number])
        plain = number % 2 == 0 and not model.propagation.many
        features = key.features if plain else propagate(key, images[number])
        expected = {k: v[0] for k, v in detect(features).items()}
        assert set(shown.result) == set(expected)
        for part, value in expected.items():
            np.testing.assert_allclose(shown.result[part], value, rtol=1e-4, atol=1e-4)
        seen += int(shown.result["valid"].sum())
        assert shown.result["boxes"][shown.result["valid"]].max() <= 64
    assert seen > 4


@pytest.mark.parametrize("name", covering.part(CARRIED, LOOPS))
def test_clips_shorter_than_what_is_read(name):
    model, runner, config = make(name, every=2, reach=2)
    methods = compiled(model)
    for count in (1, 2, 5):
        given = dict(methods=methods, every=2, reach=2)
        check_against_naive(model, runner, config, clip(count), **given)
    assert list(runner.run([])) == []


def test_a_frame_alone_is_the_mean_of_itself():
    model, runner, config = make("flow_guided_aggregation", reach=0)
    check_against_naive(model, runner, config, clip(3), every=3, reach=0)


def test_every_frame_a_key_frame_is_per_frame():
    model, runner, config = make("neighborhood_propagation", every=1)
    assert all(check_against_naive(model, runner, config, clip(3), every=1))
    assert {name for name, *_ in runner.compiled} == {"key"}


@pytest.mark.parametrize("name", covering.part(PROPAGATIONS, LOOPS))
def test_programs_are_compiled_once_for_a_size(name):
    _, runner, _ = make(name, every=2)
    compiled = []

    def listen(event, seconds, **_):
        compiled.append(event) if event == COMPILED else None

    list(runner.run(clip(6)))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        first = dict(runner.compiled)
        list(runner.run(clip(9, seed=1)))
        assert runner.compiled == first and not compiled
        list(runner.run(clip(6, (SIDE, 2 * SIDE))))
        assert len(runner.compiled) == 2 * len(first) == 2 * len(compiled) > 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("name", covering.part(PROPAGATIONS, LOOPS))
def test_frames_between_do_not_pay_for_the_backbone(name):
    """The last stage is nearly all of this backbone's work; only partial updates read it."""
    partial = {"partial": False} if name == "sparse_recursion" else {}
    _, runner, _ = make(name, every=2, widths=(4, 64), **partial)
    list(runner.run(clip(3)))
    flops = {n: p.cost_analysis()["flops"] for (n, *_), p in runner.compiled.items()}
    if name == "none":
        assert set(flops) == {"key"}
    elif name == "flow_guided_aggregation":
        assert set(flops) == {"own", "mean"} and flops["mean"] < 0.5 * flops["own"]
    else:
        assert flops["between"] < 0.5 * flops["key"], flops


def test_features_of_each_frame_are_computed_once_and_then_forgotten(monkeypatch):
    _, runner, _ = make("flow_guided_aggregation", every=2, reach=1)
    called, call = [], runner._call

    def count(name, *given):
        called.append(name)
        return call(name, *given)

    monkeypatch.setattr(runner, "_call", count)
    read = []
    frames = (read.append(i) or frame for i, frame in enumerate(clip(9)))
    shown = runner.run(frames)
    for number, _ in enumerate(shown):
        assert len(read) == min(number + 2 + 1, 9), "no more of the clip than what is needed"
        assert len(shown.gi_frame.f_locals["kept"]) <= 2 * 2 + 1
    assert called.count("own") == called.count("mean") == 9


def test_what_is_wrong_is_said():
    config = base.get_config()
    config.model = {"name": "resnet_digits"}
    with pytest.raises(ValueError, match="'resnet_digits' has no key frames.*'video_segmenter'"):
        VideoRunner(object(), config)
    model, runner, config = make("copy")
    for given in (dict(every=0), dict(every=2.0), dict(reach=-1), dict(every=True)):
        ((name, value),) = given.items()
        with pytest.raises(ValueError, match=f"{name}={value}; allowed: a whole number"):
            VideoRunner(model, config, **given)
    frames = [*clip(2), *clip(1, (SIDE, SIDE + 1))]
    with pytest.raises(ValueError, match=r"frame 2 is \(16, 17, 3\), the first one \(16, 16, 3\)"):
        list(runner.run(frames))
