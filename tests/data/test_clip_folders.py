"""`prepare clips` and `prepare frames`: what is stored, and everything that can be wrong with
frames, videos and masks, all at once and before anything is written.
"""

import io
import shutil
import sys

import numpy as np
import pytest
from data_helpers import jpeg, whole, write_video
from PIL import Image

from configs import base
from lambdanet import data, tasks
from lambdanet.data import (
    clip_folders,
    frame_folders,
    prepare,
    prepared,
    sequence_folders,
    splitting,
    video_files,
)

ALL = splitting.Division((1.0, 0.0, 0.0))


def section(directory):
    config = base.get_config().data
    config.source, config.data_dir = "tfds", str(directory)
    config.image_size, config.channels = (10, 12), 3
    return config


def clip(folder, count=3, *, first=0, step=1, size=(12, 10), name="{:05d}.jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture = jpeg((25 * i, 90, 30), size=size)
        (folder / name.format(first + i * step)).write_bytes(picture)
    return folder


@pytest.fixture
def root(tmp_path):
    """root/<class>/<clip>: 4 clips of each of two classes."""
    for label in ("jump", "run"):
        for number in range(4):
            clip(tmp_path / "root" / label / f"v{number}", 3 + number)
    return tmp_path / "root"


@pytest.fixture
def davis(tmp_path):
    """Three sequences with masks of black and white, and the palette that says what these are."""
    for name, count in (("bear", 4), ("cow", 5), ("dog", 5)):
        clip(tmp_path / "JPEGImages" / name, count)
        folder = tmp_path / "Annotations" / name
        folder.mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((10, 12), np.uint8)
            mask[2:5, i : i + 4] = 255
            Image.fromarray(mask).save(folder / f"{i:05d}.png")
    (tmp_path / "palette.csv").write_text("background,0,0,0\nobject,255,255,255\n")
    return tmp_path


def problems_of(call):
    with pytest.raises(ValueError) as error:
        call()
    return str(error.value)


# ---- Frame numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["f10.jpg", "f9.jpg", "f8.png"], ["f8.png", "f9.jpg", "f10.jpg"]),
        (["2.jpg", "12.jpg", "7.jpg"], ["2.jpg", "7.jpg", "12.jpg"]),  # one number in five
        (["cam2_01.jpg", "cam2_02.jpg"], ["cam2_01.jpg", "cam2_02.jpg"]),
        (["only1.jpg"], ["only1.jpg"]),
    ],
)
def test_frames_are_ordered_by_number(names, ordered):
    assert frame_folders.in_order(names) == (ordered, [])


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["1.jpg", "2.jpg", "4.jpg"], "missing between 2.jpg and 4.jpg: else there is every"),
        (["0.jpg", "5.jpg", "10.jpg", "20.jpg"], "10.jpg and 20.jpg: else there is one number in"),
        (["1.jpg", "01.jpg"], "1.jpg: the same frame number as 01.jpg"),
        (["a1.jpg", "b2.jpg"], "several names, such as a1.jpg and b2.jpg"),
        (["1.jpg", "title.jpg"], "title.jpg: no frame number"),
    ],
)
def test_numbers_that_are_wrong(names, problem):
    (found,) = frame_folders.in_order(names)[1]
    assert problem in found


# ---- Clips ---------------------------------------------------------------------------------------


def test_clips_become_a_set_that_the_task_reads(root, tmp_path, capsys):
    (root / "jump" / ".DS_Store").write_text("")
    assert prepare.main(["clips", str(root), str(tmp_path / "set"), "--split", "0.75,0.25"]) == 0
    said = capsys.readouterr().out
    assert "2 classes, train 6, validation 2" in said and "1 .DS_Store" in said
    assert "--config=configs/own_clips.py --workdir=runs/set" in said
    config = whole(section(tmp_path / "set"))
    config.task, config.clips.frames = "clips", 3
    info = tasks.get("clips").read(data.open_builder(config.data))
    assert info.classes == ("jump", "run")
    (batch,) = tasks.eval_batches(config, info, "validation", batch_size=2)
    assert batch["image"].shape == (2, 1, 3, 10, 12, 3) and set(batch["label"]) == {0, 1}
    source = data.open_source(config.data, "train", info.features)
    record = source.read(0)
    label, name = record.name.rpartition("file ")[2].split("/")
    files = sorted((root / label / name).iterdir())
    assert [bytes(f) for f in record.fields["frames"]] == [f.read_bytes() for f in files]
    assert info.classes[record.fields["label"]] == label


def test_everything_wrong_with_frames_is_said_at_once(root, tmp_path):
    (root / "run" / "v3" / "00001.jpg").unlink()
    clip(root / "jump" / "v1", 1, first=4, size=(14, 10))
    (root / "jump" / "v2" / "00003.jpg").write_bytes(b"no picture")
    (root / "jump" / "v3" / "inner").mkdir()
    (root / "run" / "v0" / "title.jpg").write_bytes(jpeg((0, 0, 0)))
    shutil.rmtree(root / "run" / "v1")
    (root / "run" / "v1").mkdir()
    (root / "run" / "frame.jpg").write_bytes(jpeg((0, 0, 0)))
    (root / "walk").mkdir()
    (root / "frame.bin").write_text("")
    text = problems_of(lambda: clip_folders.prepare(str(root), str(tmp_path / "set")))
    for problem in (
        "run/v3/: frames are missing between 00000.jpg and 00002.jpg",
        "jump/v1/: frames of several sizes: 00000.jpg is 12 x 10, 00004.jpg is 14 x 10",
        "jump/v2/: 00003.jpg: not an image",
        "jump/v3/: inner: a folder among frames",
        "run/v0/: title.jpg: no frame number in the name",
        "run/v1/: no frames in it",
        "run/frame.jpg: a picture, and a clip is a folder of frames or a video file",
        "walk/: class without clips",
        "frame.bin: a file where class folders are expected",
    ):
        assert problem in text, problem
    assert not (tmp_path / "set").exists()
    found = clip_folders.prepare(str(root), str(tmp_path / "set"), division=ALL, on_error="skip")
    assert found.class_names == ("jump", "run")
    assert found.splits == {"train": [("jump/v0", 0), ("run/v2", 1)]}
    assert "files and folders left out: " in found.notes[-1]


def test_a_split_of_foreign_classes_alone_stops_it_though_they_are_left_out(root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "splits" / "Training")
    clip(tmp_path / "splits" / "Testing" / "walk" / "v0")
    command = ["clips", str(tmp_path / "splits"), str(tmp_path / "set"), "--on-error=skip"]
    assert prepare.main(command) == 1
    assert "split 'test' has no clips of classes that train has" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_copies_of_clips_are_warned_of(root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "splits" / "train")
    test = tmp_path / "splits" / "test"
    clip(test / "run" / "copy", 4, name="{}_again.jpg", first=8)  # 11 lies before 8 by letters
    clip(test / "jump" / "other", 6, step=2, size=(13, 10))
    for folder, video in ((root.parent / "splits" / "train", "a.mp4"), (test, "b.mp4")):
        write_video(folder / "jump" / video, range(0, 400, 40))
    assert prepare.main(["clips", str(tmp_path / "splits"), str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert "warning: clips of test that are in train, too: 2; a score on clips of the " in said
    assert "train: train/jump/v1 = test: test/run/copy" in said
    assert "train: train/jump/a.mp4 = test: test/jump/b.mp4" in said
    assert "warning: clips under two classes, of which one is wrong: 4" in said


def test_clips_of_one_group_stay_together(root, tmp_path, capsys):
    command = ["clips", str(root), str(tmp_path / "set"), "--split=0.5,0.5", "--group=v[01]"]
    assert prepare.main([*command, "--seed=3"]) == 0
    assert "--group: 2 groups of 4 records, the largest of 2; 4 match no" in capsys.readouterr().out
    clips = {}
    for split in ("train", "validation"):
        source = data.open_source(section(tmp_path / "set"), split, {"label": "label"})
        for record in map(source.read, range(len(source))):
            clips[record.name.rpartition("file ")[2]] = split
    assert len(clips) == 8 and set(clips.values()) == {"train", "validation"}
    assert clips["jump/v0"] == clips["run/v0"] and clips["jump/v1"] == clips["run/v1"]


def test_videos_without_pyav_are_one_problem(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    for name in ("a.mp4", "b.mp4"):
        (root / "run" / name).write_bytes(b"0000ftyp")
    assert prepare.main(["clips", str(root), str(tmp_path / "set")]) == 1
    said = capsys.readouterr().err
    assert said.count("PyAV") == 1 and "run/a.mp4: a video file" in said
    assert "`pip install av`" in said and not (tmp_path / "set").exists()


def test_frames_at_even_times():
    shown = [(10.0, "a"), (10.04, "b"), (10.5, "c"), (10.6, "d"), (11.0, "e")]
    assert list(video_files.evenly(iter(shown), 0)) == list("abcde")
    assert list(video_files.evenly(iter(shown), 5)) == ["a", "b", "b", "d", "d", "e"]
    assert list(video_files.evenly(iter(shown), 1)) == ["a", "e"]
    assert list(video_files.evenly(iter(shown[:1]), 5)) == ["a"]
    assert list(video_files.evenly(iter([]), 5)) == []
    assert video_files.why_uneven([0, 0.033, 0.067, 0.1]) == ""
    assert video_files.why_uneven([0.5]) == ""
    assert "33 to 100 ms apart" in video_files.why_uneven([0, 0.033, 0.066, 0.166])


def test_videos_are_decoded(root, tmp_path):
    write_video(root / "run" / "even.mp4", range(0, 400, 40))
    clip_folders.prepare(str(root), str(tmp_path / "set"), division=ALL)
    source = data.open_source(section(tmp_path / "set"), "train", {"frames": "frames"})
    records = [source.read(i) for i in range(9)]
    (found,) = [r.fields["frames"] for r in records if r.name.endswith("even.mp4")]
    pictures = [np.asarray(Image.open(io.BytesIO(f))) for f in found]
    assert len(pictures) == 10 and pictures[0].shape == (16, 32, 3)
    reds = np.array([p[..., 0].mean() for p in pictures])
    assert np.abs(reds - np.arange(20, 220, 20)).max() < 10
    assert len(clip_folders.frames_of(root / "run" / "even.mp4", 12.5)) == 5


def test_everything_wrong_with_videos_is_said_at_once(root, tmp_path):
    write_video(root / "run" / "uneven.mp4", [0, 40, 80, 400, 440])
    write_video(root / "run" / "sound.wav", (), audio_only=True)
    (root / "run" / "empty.mp4").write_bytes(b"")
    (root / "run" / "junk.avi").write_bytes(b"junk" * 500)
    (root / "run" / "notes.txt").write_text("no video")
    text = problems_of(lambda: clip_folders.prepare(str(root), str(tmp_path / "set")))
    for problem in (
        "run/uneven.mp4: a variable frame rate, frames are 40 to 320 ms apart",
        "run/sound.wav: no video in it, only audio",
        "run/empty.mp4: an empty file",
        "run/junk.avi: cannot be read as a video",
        "run/notes.txt: ",
    ):
        assert problem in text, problem
    assert not (tmp_path / "set").exists()
    for name in ("sound.wav", "empty.mp4", "junk.avi", "notes.txt"):
        (root / "run" / name).unlink()
    clip_folders.prepare(str(root), str(tmp_path / "set"), fps=25)


# ---- Sequences with masks ------------------------------------------------------------------------


def arguments(davis, *more):
    folders = (str(davis / "JPEGImages"), str(davis / "set"), "--masks", str(davis / "Annotations"))
    return ["frames", *folders, "--colours", str(davis / "palette.csv"), *more]


def test_sequences_become_records_of_frames_and_label_maps(davis, capsys):
    assert prepare.main(arguments(davis, "--split", "0.7,0.3")) == 0
    said = capsys.readouterr().out
    assert "2 classes, train 2, validation 1" in said and "made of whole folders" in said
    builder = prepared.open_prepared(davis / "set")
    assert builder.info.features["segmentation_mask"].feature.names == ["background", "object"]
    features = {k: k for k in ("frames", "segmentation_mask")}
    seen = {}
    for split in ("train", "validation"):
        source = data.open_source(section(davis / "set"), split, features)
        for record in map(source.read, range(len(source))):
            seen[record.name.rpartition("file ")[2]] = record.fields
    assert sorted(seen) == ["bear", "cow", "dog"]
    for name, found in seen.items():
        files = sorted((davis / "JPEGImages" / name).iterdir())
        assert [bytes(f) for f in found["frames"]] == [f.read_bytes() for f in files]
        masks = [np.asarray(Image.open(io.BytesIO(m))) for m in found["segmentation_mask"]]
        stored = sorted((davis / "Annotations" / name).iterdir())
        for mask, file in zip(masks, stored, strict=True):
            assert np.array_equal(mask, np.asarray(Image.open(file)) == 255)


def test_everything_wrong_with_sequences_is_said_at_once(davis, capsys):
    (davis / "Annotations" / "bear" / "00002.png").unlink()
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (davis / folder / "cow" / f"00001.{ending}").unlink()
    (davis / "JPEGImages" / "dog" / "00004.jpg").write_bytes(jpeg((0, 0, 0), size=(14, 10)))
    (davis / "JPEGImages" / "dog" / "00001.jpg").write_bytes(b"cut")
    assert prepare.main(arguments(davis)) == 1
    said = capsys.readouterr().err
    for problem in (
        "JPEGImages/bear/00002.jpg: no mask of the name bear/00002.*",
        "JPEGImages/cow/: frames are missing between 00000.jpg and 00002.jpg",
        "JPEGImages/dog/: frames of several sizes",
        "JPEGImages/dog/: 00001.jpg: not an image",
        "dog/00004.png: ",
    ):
        assert problem in said, problem
    assert not (davis / "set").exists()
    assert "with --on-error=skip: 6 mistakes in sequences that are left out" in said
    assert prepare.main(arguments(davis, "--on-error=skip")) == 1
    assert "none of the pairs can be used" in capsys.readouterr().err


def test_sequences_with_mistakes_are_left_out_as_a_whole(davis, capsys):
    (davis / "Annotations" / "bear" / "00002.png").unlink()
    (davis / "Annotations" / "cow" / "00003.png").write_bytes(b"cut")
    for kind in ("JPEGImages", "Annotations"):
        shutil.copytree(davis / kind / "dog", davis / kind / "emu")
    assert prepare.main(arguments(davis, "--on-error=skip", "--split=0.5,0.5")) == 0
    said = capsys.readouterr().out
    assert "2 classes, train 1, validation 1" in said
    assert "note: 2 mistakes in sequences that are left out: JPEGImages/bear/00002.jpg: no" in said
    assert "warning: pictures of validation that are in train, too: 5; a score" in said
    builder = prepared.open_prepared(davis / "set")
    assert {k: v.num_examples for k, v in builder.info.splits.items()} == {
        "train": 1, "validation": 1
    }  # fmt: skip


def test_one_sequence_is_not_shared_out(davis):
    for name in ("bear", "dog"):
        shutil.rmtree(davis / "JPEGImages" / name)
        shutil.rmtree(davis / "Annotations" / name)
    found = sequence_folders.prepare(
        str(davis / "JPEGImages"),
        str(davis / "set"),
        masks=str(davis / "Annotations"),
        colours=str(davis / "palette.csv"),
        val_fraction=0.4,
    )
    assert {k: {n: len(p) for n, p in v.items()} for k, v in found.splits.items()} == {
        "train": {"cow": 5}
    }
    said = "no split 'validation': there is but one folder, and its pictures stay together"
    assert said in found.notes
