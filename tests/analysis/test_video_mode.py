"""eval.py --mode=video: folders of frames and videos in and out, and everything that can be wrong
with them, before any weights are read.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from data_helpers import jpeg, write_video
from PIL import Image
from saved_run import make_run
from video_helpers import CLASSES, detector_options, options

import eval as program
from lambdanet.data import video_files

FLAGS = dict(
    weights=None, step="latest", average=None, split=None, batch_size=0, batch_sizes=[1],
    repeats=1, images=1, threshold=0.9, name="*", input=[], every=None, reach=None, label_maps=None,
    top=None, fps=None, classes=None,
)  # fmt: skip
SIZE = (21, 26)  # height, width


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    model = {"name": "video_segmenter", **options("deep_feature_flow")}
    return make_run(tmp_path_factory.mktemp("video") / "run", model)


def frames(folder, count=5, *, size=SIZE, first=0):
    """A folder of frames of noise."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(first, first + count):
        picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"frame_{number:03d}.png")
    return folder


def run(workdir, output, *, overrides=None, **given):
    recipe = SimpleNamespace(path=None, overrides=overrides or {})
    given = {name: [str(v)] if name == "input" else v for name, v in given.items()}
    flags = SimpleNamespace(**FLAGS | given, workdir=workdir, output=str(output))
    program.run("video", flags, recipe)
    return json.loads((output / "video.json").read_text())


def error_of(workdir, output, **given):
    with pytest.raises((ValueError, OSError)) as error:
        run(workdir, output, **given)
    assert not (output / "video").exists()
    return str(error.value)


# ---- Folders of frames ---------------------------------------------------------------------------


def test_a_folder_of_frames(workdir, tmp_path, capsys):
    clip, output = frames(tmp_path / "clip"), tmp_path / "out"
    found = run(workdir, output, input=clip, every=2)
    assert found["frames"] == 5 and found["key_frames"] == [0, 2, 4] and found["every"] == 2
    parts = found["parts"]
    assert {name: part["frames"] for name, part in parts.items()} == {
        "reading": 5, "key frames": 3, "frames between": 2, "drawing and writing": 5
    }  # fmt: skip
    assert all(part["seconds"] > 0 for part in parts.values())
    total = sum(part["seconds"] for part in parts.values())
    assert found["frames_per_second"] == pytest.approx(5 / total)
    written = output / "video" / "clip"
    assert (written / "legend.png").exists()
    names = [f"frame_{i:03d}.png" for i in range(5)]
    for kind in ("labels", "overlays"):
        assert sorted(p.name for p in (written / kind).iterdir()) == names
    seen = set()
    for name in names:
        labels = np.asarray(Image.open(written / "labels" / name))
        mixed = np.asarray(Image.open(written / "overlays" / name))
        picture = np.asarray(Image.open(clip / name))
        assert labels.shape == SIZE and mixed.shape == (*SIZE, 3)
        assert np.array_equal(mixed[labels == 0], picture[labels == 0])
        seen |= set(labels.ravel().tolist())
    assert 1 < len(seen) <= CLASSES
    said = capsys.readouterr().out
    assert "frames between" in said and "frames/s" in said and "Compilation took" in said


def test_frames_are_scaled_for_the_model_and_label_maps_are_not(workdir, tmp_path):
    scaled = run(
        workdir,
        tmp_path,
        input=frames(tmp_path / "clip", 2),
        overrides={"data.scale_base": "16"},
        label_maps=False,
    )
    assert scaled["frames"] == 2 and not (tmp_path / "video" / "clip" / "labels").exists()
    with Image.open(tmp_path / "video" / "clip" / "overlays" / "frame_000.png") as picture:
        assert picture.size == SIZE[::-1]


def test_what_is_wrong_with_a_folder(workdir, tmp_path):
    output, clip = tmp_path / "out", tmp_path / "clip"
    assert "name a clip with --input=PATH" in error_of(workdir, output)
    assert "there is no such file or folder" in error_of(workdir, output, input=clip)
    clip.mkdir()
    assert "no frames in it" in error_of(workdir, output, input=clip)
    frames(clip)
    (clip / "frame_002.png").unlink()
    text = error_of(workdir, output, input=clip)
    assert "frames are missing between frame_001.png and frame_003.png" in text
    frames(clip)
    frames(clip, 1, first=5, size=(20, 26))
    text = error_of(workdir, output, input=clip)
    assert "frames of several sizes: frame_000.png is 26 x 21, frame_005.png is 26 x 20" in text
    picture = clip / "frame_000.png"
    text = error_of(workdir, output, input=picture)
    assert f"--input={picture}: a picture, and a clip is a folder" in text


def test_a_frame_that_is_cut_off_is_named(workdir, tmp_path):
    clip = frames(tmp_path / "clip", size=(64, 64))
    whole = (clip / "frame_003.png").read_bytes()
    (clip / "frame_003.png").write_bytes(whole[: len(whole) // 2])
    text = error_of(workdir, tmp_path / "out", input=clip)
    assert "frame_003.png: cannot be read" in text
    (clip / "frame_003.png").unlink()
    cut = jpeg((1, 2, 3), (64, 64))[:-30]  # whose header is whole
    (clip / "frame_003.jpg").write_bytes(cut)
    with pytest.raises(ValueError, match="clip, frame frame_003: cannot be read .*truncated"):
        run(workdir, tmp_path / "out", input=clip)


# ---- Options and models --------------------------------------------------------------------------


def test_options_that_do_not_fit(workdir, tmp_path):
    clip = frames(tmp_path / "clip", 2)
    text = error_of(workdir, tmp_path / "out", input=clip, every=0)
    assert "--every=0; allowed: 1 or more" in text
    text = error_of(workdir, tmp_path / "out", input=clip, reach=2)
    assert "--reach=2: the propagation 'deep_feature_flow' reads no more than one other" in text
    views = {"segmentation.inference": "slide", "segmentation.eval_flip": "True"}
    text = error_of(workdir, tmp_path / "out", input=clip, overrides=views)
    assert "segmentation.inference='slide': a video is segmented whole" in text
    assert "--config.segmentation.eval_flip=False" in text


@pytest.mark.exhaustive
def test_a_shorter_clip_leaves_no_frames_of_the_longer_one(workdir, tmp_path):
    clip, out = frames(tmp_path / "clip", 4), tmp_path / "out"
    run(workdir, out, input=clip)
    for number in (2, 3):
        (clip / f"frame_{number:03d}.png").unlink()
    run(workdir, out, input=clip)
    written = out / "video" / "clip"
    for folder in ("overlays", "labels"):
        assert len(list((written / folder).iterdir())) == 2
    before = sorted(written.rglob("*"))
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="holds what was written of .*--output=DIR"):
        run(workdir, out, input=frames(tmp_path / "other" / "clip", 3))
    assert sorted(written.rglob("*")) == before
    assert [p.name for p in (out / "video").iterdir()] == ["clip"]


@pytest.mark.exhaustive
def test_frames_by_themselves_have_no_interval(tmp_path):
    workdir = make_run(tmp_path / "run", {"name": "video_segmenter", **options("none")})
    clip = frames(tmp_path / "clip", 2)
    text = error_of(workdir, tmp_path / "out", input=clip, every=3)
    assert "--every=3: the propagation is 'none', every frame by itself" in text
    assert run(workdir, tmp_path / "out", input=clip)["every"] == 1


@pytest.mark.exhaustive  # test_video_runner.py has what is computed
def test_a_propagation_from_many_frames(tmp_path):
    model = {"name": "video_segmenter", **options("flow_guided_aggregation")}
    workdir, clip = make_run(tmp_path / "run", model), frames(tmp_path / "clip")
    given = {"propagation.interval": "1", "propagation.reach": "1"}
    found = run(workdir, tmp_path / "out", input=clip, overrides=given)
    assert found["every"] == 1 and found["key_frames"] == [0, 1, 2, 3, 4]
    assert found["parts"]["frames between"] == {"frames": 0, "seconds": 0.0}
    text = error_of(workdir, tmp_path / "no", input=clip, reach=-1)
    assert "--reach=-1; allowed: 0 or more" in text


def test_a_model_without_key_frames(tmp_path):
    model = {k: v for k, v in options("copy").items() if k != "propagation"}
    workdir = make_run(tmp_path / "run", {"name": "segmenter", **model})
    text = error_of(workdir, tmp_path / "out", input=frames(tmp_path / "clip", 2))
    assert "'segmenter' has no key frames" in text and "'video_segmenter'" in text


@pytest.mark.exhaustive
def test_a_detector(tmp_path):
    model = {"name": "video_detector", **detector_options("copy")}
    workdir = make_run(tmp_path / "run", model, "video_detection")
    clip, shown = frames(tmp_path / "clip", 3), {"detection.shown_score": "0.0"}
    found = run(workdir, tmp_path / "out", input=clip, every=2, overrides=shown)
    assert found["frames"] == 3 and found["key_frames"] == [0, 2]
    written = tmp_path / "out" / "video" / "clip"
    names = ["clip.txt", "overlays", "predictions.json"]
    assert sorted(p.name for p in written.iterdir()) == names
    coco = json.loads((written / "predictions.json").read_text())
    names = sorted(p.name for p in clip.iterdir())
    assert [(p["file_name"], p["height"], p["width"]) for p in coco["images"]] == [
        (name, *SIZE) for name in names
    ]
    of_frames = [[a for a in coco["annotations"] if a["image_id"] == i] for i in (1, 2, 3)]
    assert all(of_frames), "without objects nothing is compared"
    pairs = [[(a["bbox"], a["score"]) for a in found] for found in of_frames]
    assert pairs[0] == pairs[1] != pairs[2], "the key frame's objects are copied"
    for (left, top, width, height), _ in sum(pairs, []):
        assert 0 <= left <= left + width <= SIZE[1] and 0 <= top <= top + height <= SIZE[0]
    for name in names:
        with Image.open(written / "overlays" / name) as picture:
            assert picture.width == SIZE[1] * (picture.height // SIZE[0])  # enlarged
    text = error_of(workdir, tmp_path / "no", input=clip, label_maps=True)
    assert "--label_maps=True: 'video_detector' finds boxes" in text


def test_flags_of_other_modes_are_not_ignored():
    given = SimpleNamespace(**FLAGS | dict(input=["clip"], every=3, top=2))
    with pytest.raises(ValueError) as error:
        program.check_flags("accuracy", given)
    assert str(error.value) == (
        "--input=['clip']: only for --mode=predict and video; leave it out; "
        "--top=2: only for --mode=predict; leave it out; "
        "--every=3: only for --mode=video; leave it out"
    )
    program.check_flags("video", SimpleNamespace(**FLAGS | dict(input=["clip"], reach=0)))
    with pytest.raises(ValueError, match="--mode=video takes one --input, not 2"):
        program.check_flags("video", SimpleNamespace(**FLAGS | dict(input=["a", "b"])))
    program.check_flags("accuracy", SimpleNamespace(**FLAGS))


# ---- Video files ---------------------------------------------------------------------------------


def write_clip(path, times=(0.0, 0.04, 0.08, 0.4, 0.44), size=SIZE):
    """Writes a video of noise."""
    pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in times]
    video_files.write(str(path), zip(times, pictures, strict=True), 25.0)
    return path


@pytest.mark.exhaustive
def test_a_video_of_variable_rate_keeps_its_size_and_times(workdir, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    found = run(workdir, tmp_path / "out", input=clip, every=3)
    assert found["frames"] == 5 and found["key_frames"] == [0, 3]
    written = tmp_path / "out" / "video" / "clip.mp4"
    names = sorted(p.name for p in written.iterdir())
    assert names == ["clip.txt", "legend.png", "overlay.mp4"]
    shown = list(video_files.decoded(written / "overlay.mp4"))
    assert [t for t, _ in shown] == pytest.approx([0, 0.04, 0.08, 0.4, 0.44], abs=1e-4)
    assert shown[0][1].size == SIZE[::-1]
    run(workdir, tmp_path / "out", input=clip, label_maps=True)
    labels = sorted((written / "labels").iterdir())
    assert [p.name for p in labels] == [f"{i:06d}.png" for i in range(5)]


def test_a_video_that_breaks_leaves_no_half_of_it(workdir, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4")
    decoded = video_files.decoded

    def broken(file):
        for number, frame in enumerate(decoded(file)):
            if number == 3:
                raise OSError("damaged")
            yield frame

    monkeypatch.setattr(video_files, "decoded", broken)
    with pytest.raises(ValueError, match="clip.mp4, frame 000003: cannot be read .damaged"):
        run(workdir, tmp_path / "out", input=clip)
    assert list((tmp_path / "out" / "video").iterdir()) == []


@pytest.mark.exhaustive
def test_a_video_that_changes_its_size_or_ends_early(workdir, tmp_path, monkeypatch, capsys):
    clip, decoded = write_clip(tmp_path / "clip.mp4"), video_files.decoded

    def cropped(file):
        for number, (seconds, picture) in enumerate(decoded(file)):
            yield seconds, picture.crop((0, 0, 20, 20)) if number == 2 else picture

    monkeypatch.setattr(video_files, "decoded", cropped)
    with pytest.raises(ValueError, match="frame 000002: 20 x 20, and the first frame is 26 x 21"):
        run(workdir, tmp_path / "out", input=clip)

    def shorter(file):
        yield from list(decoded(file))[:4]

    monkeypatch.setattr(video_files, "decoded", shorter)
    assert run(workdir, tmp_path / "out", input=clip)["frames"] == 4
    assert "Only 4 of the 5 frames that the file lists can be decoded" in capsys.readouterr().out


def test_a_video_of_one_frame(workdir, tmp_path):
    found = run(workdir, tmp_path / "out", input=write_clip(tmp_path / "clip.mp4", (0.0,)))
    assert found["frames"] == 1 and found["key_frames"] == [0]
    (frame,) = video_files.decoded(tmp_path / "out" / "video" / "clip.mp4" / "overlay.mp4")
    assert frame[1].size == SIZE[::-1]


def test_what_is_wrong_with_a_video(workdir, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    sound, empty, junk = (tmp_path / name for name in ("sound.wav", "empty.mp4", "junk.avi"))
    write_video(sound, (), audio_only=True)
    empty.write_bytes(b"")
    junk.write_bytes(b"junk" * 500)
    for file, reason in (
        (sound, "no video in it, only audio"),
        (empty, "an empty file"),
        (junk, "cannot be read as a video"),
    ):
        assert f"--input={file}: {reason}" in error_of(workdir, tmp_path / "out", input=file)


def test_a_pyav_that_cannot_write(workdir, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(sys.modules["av"], "codecs_available", {"mpeg4"})
    text = error_of(workdir, tmp_path / "out", input=clip)
    assert "this PyAV has no encoder libx264" in text and "folder of frames" in text


def test_a_video_without_pyav(workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"0000ftyp")
    text = error_of(workdir, tmp_path / "out", input=tmp_path / "clip.mp4")
    assert "PyAV" in text and "`pip install av`" in text
