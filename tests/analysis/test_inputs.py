"""What --input may name, and what is said where there is nothing to predict."""

import os

import numpy as np
import pytest
from data_helpers import jpeg
from PIL import Image

from lambdanet.analysis import inputs


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(*given, kind="picture"):
    return set(inputs.find_inputs([str(value) for value in given], kind).named)


def test_every_picture_of_a_folder_has_a_name_of_its_own(tmp_path):
    touch(tmp_path, "b.jpg", "a.jpg", "sub/a.png", "sub/a.jpg", "Thumbs.db", "notes.txt")
    assert names(tmp_path) == {"a", "b", "sub/a.jpg", "sub/a.png"}
    found = inputs.find_inputs([str(tmp_path)])
    assert [p.name for p in found.passed_over] == ["notes.txt"]
    touch(tmp_path, "a.png", "a.jpg.png")  # a.jpg by its whole name, a.jpg.png without its ending
    found = inputs.find_inputs([str(tmp_path)]).named
    assert len(found) == 6 and found["a.jpg"].name == "a.jpg"


def test_files_patterns_and_several_of_them(tmp_path):
    touch(tmp_path, "one/a.jpg", "two/a.jpg", "two/b.jpg", "two/c.dat", "x[1].png")
    assert names(tmp_path / "one" / "a.jpg") == {"a"}
    assert names(tmp_path / "x[1].png") == {"x[1]"}, "a file before a pattern"
    assert names(tmp_path / "one" / "a.jpg", tmp_path / "two" / "a.jpg") == {"one/a", "two/a"}
    assert names(tmp_path / "two" / "*.jpg", tmp_path / "two" / "a.jpg") == {"a", "b"}
    assert names(tmp_path / "**" / "*.jpg") == {"one/a", "two/a", "two/b"}
    assert names(tmp_path / "*") == {"one/a", "two/a", "two/b", "x[1]"}, "folders are searched"
    assert "c" in names(tmp_path / "two" / "*"), "a pattern takes whatever matches"


def test_the_folder_that_names_in_files_are_relative_to(tmp_path, monkeypatch):
    touch(tmp_path, "one/deep/a.jpg", "two/b.jpg", "here/c.jpg")
    monkeypatch.chdir(tmp_path / "here")

    def relative(*given):
        found = inputs.find_inputs([str(value) for value in given])
        return [path.relative_to(found.root).as_posix() for path in found.named.values()]

    assert relative(tmp_path / "one") == ["deep/a.jpg"], "the folder that was named"
    assert relative("../one") == ["deep/a.jpg"] and relative("..")[-1] == "two/b.jpg"
    assert relative(tmp_path / "one" / "deep" / "*.jpg") == ["a.jpg"]
    assert relative("../one", "../two/b.jpg", "c.jpg") == [
        "one/deep/a.jpg",
        "two/b.jpg",
        "here/c.jpg",
    ]


def test_nothing_to_predict_is_said_for_each_value_at_once(tmp_path):
    touch(tmp_path, "empty/notes.txt", "film/a.MP4", "photo.jpg")
    wrong = [tmp_path / name for name in ("empty", "film", "*.gif", "phot.jpg")]
    with pytest.raises(ValueError) as error:
        names(*wrong)
    none, film, pattern, missing = str(error.value).split("; --input=")
    assert "no picture there; looked for pictures, names that end with .png" in none
    assert "There are videos, such as a.MP4" in film
    assert pattern.endswith("*.gif: no picture matches this pattern")
    assert missing.endswith(f"such file or folder. Did you mean {str(tmp_path / 'photo.jpg')!r}?")
    for given in ([], [""]):
        with pytest.raises(ValueError, match="name pictures with --input=PATH"):
            inputs.find_inputs(given)


def test_pictures_of_other_endings_and_of_none_are_found_by_what_they_are(tmp_path):
    touch(tmp_path, "a.HEIC", "b.avif", "c.jp2", "LICENSE", "empty", "notes.txt", "x.json")
    (tmp_path / "scan").write_bytes(jpeg((1, 2, 3)))
    (tmp_path / "phone").write_bytes(b"\0\0\0\x18ftypheic" + b"0" * 99)
    Image.new("RGB", (4, 4)).save(tmp_path / "camera.jfif", "JPEG")
    found = inputs.find_inputs([str(tmp_path)])
    assert set(found.named) == {"a", "b", "c", "camera", "scan", "phone"}
    assert {p.name for p in found.passed_over} == {"LICENSE", "empty", "notes.txt", "x.json"}
    touch(tmp_path, "clips/run/1.heic")  # what is wrong with it is said where it is read
    assert names(tmp_path / "clips", kind="clip") == {"run"}


def test_sentences_are_joined_without_a_second_stop(tmp_path):
    with pytest.raises(ValueError) as error:
        names(tmp_path / "missing.jpg", tmp_path / "x[y*", tmp_path)
    assert ".;" not in str(error.value) and not str(error.value).endswith(".")


def test_clips_are_folders_of_pictures_and_videos(tmp_path):
    touch(tmp_path, "run/f_1.png", "run/f_2.png", "jump.mp4", "more/walk/1.jpg", "more/x.avi")
    assert names(tmp_path, kind="clip") == {"run", "jump", "more/walk", "more/x"}
    assert names(tmp_path / "run", kind="clip") == {"run"}
    assert names(tmp_path / "jump.mp4", kind="clip") == {"jump"}
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no clip there; looked for folders of pictures, and vid"):
        names(tmp_path / "none", kind="clip")


def test_inputs_among_the_results_are_refused(tmp_path):
    touch(tmp_path, "photos/a.jpg", "photos/eval/predictions/a_classes.png")
    found = inputs.find_inputs([str(tmp_path / "photos")]).named
    target = tmp_path / "photos" / "eval" / "predictions"
    with pytest.raises(ValueError, match="which the results replace; move it.*\n.*a_classes.png"):
        inputs.check_outside(found.values(), target)
    inputs.check_outside([tmp_path / "photos" / "a.jpg"], target)


# ---- Contents ------------------------------------------------------------------------------------


def test_frames_behind_the_first_are_noted(tmp_path):
    pages = [Image.new("RGB", (4, 4), (30 * i, 0, 0)) for i in range(3)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        contents, note = inputs.read_picture(tmp_path / name)
        assert note == "has 3 frames or pages, of which the first is used", name
        with Image.open(tmp_path / name) as picture:
            assert inputs.read_picture(picture)[1] == note
    (tmp_path / "one.jpg").write_bytes(jpeg((1, 2, 3)))
    assert inputs.read_picture(tmp_path / "one.jpg")[1] == ""
    assert inputs.read_picture(str(tmp_path / "one.jpg"))[0] == jpeg((1, 2, 3))


def test_pixels_of_other_kinds_are_refused():
    for wrong in (np.zeros((4, 4, 3)), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match="allowed: uint8"):
            inputs.read_picture(wrong)
    with pytest.raises(ValueError, match="2 channels; allowed: 1, 3, or 4"):
        inputs.read_picture(np.zeros((4, 4, 2), np.uint8))
    assert inputs.read_picture(np.zeros((4, 5), np.uint8))[0].shape == (4, 5, 1)
    assert inputs.read_picture(np.zeros((4, 5, 4), np.uint8))[0].mode == "RGBA"


def test_files_that_are_none(tmp_path, monkeypatch):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(ValueError, match="an empty file"):
        inputs.read_picture(empty)
    with pytest.raises(ValueError, match="a folder"):
        inputs.read_picture(tmp_path)
    with pytest.raises(FileNotFoundError):
        inputs.read_picture(tmp_path / "none")
    os.truncate(empty, inputs.MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(ValueError, match="1.0 GiB; allowed: up to 1"):
        inputs.read_picture(empty)


def test_what_is_wrong_with_a_clip(tmp_path):
    for source, text in (([], "a clip without frames"), (tmp_path, "no frames in it")):
        with pytest.raises(ValueError, match=text):
            inputs.read_clip(source, 0.0)
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="a picture, and a clip is a folder"):
        inputs.read_clip(tmp_path / "a.png", 0.0)
