"""`prepare coco`: everything that is wrong with a set at once, and what is left out of it."""

import json
import unicodedata

import pytest
from coco_helpers import CATEGORIES, SIZE, annotation, bitmap, compressed, make_content, read, run
from data_helpers import jpeg

from lambdanet.data import box_sets, coco_files, prepare


@pytest.fixture
def content(tmp_path):
    return make_content(tmp_path)


MISTAKES = [
    (dict(iscrowd="0"), 'iscrowd is "0"; allowed: 0, 1'),
    (dict(iscrowd=2), "iscrowd is 2; allowed: 0, 1"),
    (dict(area=float("nan")), "area is NaN; allowed: a number of 0 or more, or none at all"),
    (dict(area="77"), 'area is "77"; allowed: a number'),
    (dict(area=-1), "area is -1; allowed: a number"),
    (dict(image=99), "annotation 5: there is no image 99"),
    (dict(image="10"), "annotation 5: there is no image '10'"),
    (dict(category=4), r"annotation 5 (a.jpg): category 4 is none of the 2 categories"),
    (dict(bbox=(5, 5, 0, 3)), "annotation 5 (a.jpg): bbox [5, 5, 0, 3] has no area: it is 0 w"),
    (dict(bbox=(5, 5, -2, 3)), "has no area"),
    (
        dict(bbox=(10, 10, 1e-7, 5)),
        "5] has no area: it is 1e-07 wide and 5 high (32 bits, which bo",
    ),
    (dict(bbox=(39.9999999, 10, 5, 5)), "5, 5] lies outside of the picture, which is 40 x 30"),
    (dict(bbox=(1, 1e308, 1, 1e308)), "1e+308] is not made of finite numbers"),
    (dict(area=1e39), "area is 1e+39; allowed: a number"),
    (dict(bbox=(45, 5, 9, 3)), "lies outside of the picture, which is 40 x 30"),
    (dict(bbox=(float("nan"), 5, 9, 3)), "is not made of finite numbers"),
    (dict(bbox=(1, 2, 3)), "bbox is [1, 2, 3]; it must be [left, top, width, height]"),
    (dict(bbox=("1", 2, 3, 4)), "bbox is"),
    (dict(segmentation=[]), "it has no mask (segmentation), and others have"),
    (dict(segmentation=[[]]), "it has no mask (segmentation), and others have"),
    (dict(segmentation=[[], [1, 2, 3, 4]]), "polygon [1, 2, 3, 4] must be"),
    (dict(segmentation=[[1, 2, 3, 4]]), "polygon [1, 2, 3, 4] must be x, y of three points or"),
    (dict(segmentation=[[-5, -5, -3, -5, -3, -3]]), "not a pixel of its mask is set"),
    (dict(segmentation=[[1e300, 0, 1, 1, 2, 2]]), "points beyond all bounds"),
    (dict(segmentation=compressed(bitmap(0)[:-1])), "its mask has size [29, 40]; [height, width]"),
    (dict(segmentation={"counts": [5, 7]}), "a mask of 12 pixels; its picture has 40 x 30"),
    (dict(segmentation={"counts": "\x00"}), "run lengths cannot be read"),
    (dict(segmentation={"counts": 7}), "counts is 7; allowed: text, or whole numbers"),
]


@pytest.mark.parametrize(("change", "problem"), MISTAKES)
def test_objects_with_mistakes_are_named_or_left_out(tmp_path, content, capsys, change, problem):
    content["annotations"].append(annotation(5, **{"image": 10, **change}))
    assert run(tmp_path, content) == 1
    said = capsys.readouterr().err
    assert f"all.json: {problem}" in said or ("all.json: annotation 5" in said and problem in said)
    assert "1 mistake; with --on-error=skip: 1 object left out" in said
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, content, "--on-error=skip", "--split=1") == 0
    assert "note: 1 object left out: all.json: annotation 5" in capsys.readouterr().out
    assert len(read(tmp_path)[0][10][1]) == 2


def test_everything_that_is_wrong_is_said_at_once(tmp_path, content, capsys):
    images, entries = content["images"], content["annotations"]
    images[0]["width"] = 41
    images[1].update(width=200, height=20)
    (tmp_path / "images" / "c.jpg").unlink()
    (tmp_path / "images" / "d.jpg").write_bytes(jpeg((1, 2, 3), (90, 90))[:-200])
    images += [dict(id=50, file_name="../x.jpg"), dict(id=60), dict(id=70, file_name="a.jpg")]
    images += [dict(id=80, file_name="e.jpg"), dict(id=90, file_name="f" * 300 + ".jpg")]
    images += [dict(id=91, file_name="deep"), dict(id=92, file_name="e.jpg", width="40", height=30)]
    (tmp_path / "images" / "e.jpg").write_bytes(jpeg((1, 2, 3), SIZE))
    entries += [entries[0], annotation(9, 80, bbox=(30, 0, 20, 20)), annotation(11, 80)]
    assert run(tmp_path, content) == 1
    said = capsys.readouterr().err
    for problem in (
        "all.json: image 10 (a.jpg): says 41 x 30, and the picture has 40 x 30",
        "image 20 (deep/b.png): says 200 x 20, and the picture has 20 x 200 (the camera's",
        "as they lie in the file, take that mark out of a copy of the pictures, for example",
        "image 30 (c.jpg): there is no such picture",
        "image 40 (d.jpg): ",
        "image 50 (../x.jpg): its file_name must be relative to",
        "image 60 (None): it has no file_name",
        "f.jpg): cannot be read (File name too long)",
        "image 91 (deep): a folder, and no picture",
        'image 92 (e.jpg): says "40" x 30, and the picture has 40 x 30',
        "annotations: id 1 stands there more than once",
        "annotation 9 (e.jpg): bbox [30, 0, 20, 20] ends outside of the picture",
    ):
        assert problem in said
    assert run(tmp_path, content, "--on-error=skip", "--split=1") == 0
    out = capsys.readouterr().out
    assert "9 pictures left out, with their objects: all.json: image 10" in out
    assert "1 box cut at the border of its picture" in out
    found, _ = read(tmp_path)
    assert sorted(found) == [70, 80]  # the file of image 10, which was left out, is free again
    assert found[80][1].boxes.tolist() == [[30, 0, 40, 20], [2, 2, 30, 20]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda c: c["categories"].append({"id": 5, "name": "dog"}),
            "category 18 has the name 'do",
        ),
        (
            lambda c: c["categories"].append({"id": 3, "name": "x"}),
            "categories: id 3 stands there m",
        ),
        (lambda c: c["categories"].append({"id": 5, "name": "a\nb"}), "category 5 has the name 'a"),
        (lambda c: c["categories"].append({"id": 5}), "category 5 has the name None"),
        (lambda c: c["categories"].clear(), "no categories"),
        (lambda c: c["images"].append(c["images"][0]), "images: id 10 stands there more than once"),
        (lambda c: c["images"].append({"id": "7"}), 'images[4] is {"id": "7"}; it needs a whole n'),
        (lambda c: c.pop("annotations"), "it has no list 'annotations'"),
        (lambda c: c["annotations"].clear(), "split 'train' has no objects, or crowds alone"),
        (lambda c: c["images"].clear(), "split 'train' has no pictures"),
    ],
)
def test_mistakes_that_nothing_can_be_left_out_for(tmp_path, content, capsys, change, problem):
    content["categories"] = [dict(entry) for entry in CATEGORIES]
    change(content)
    assert run(tmp_path, content, "--on-error=skip") == 1
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_json(tmp_path, content, capsys):
    run(tmp_path, content)
    for text in ("{", "[]", "7", '{"images": 3}'):
        (tmp_path / "all.json").write_text(text)
        with pytest.raises(ValueError, match="all.json: (cannot be read as JSON|needs an object)"):
            parts = coco_files.parts("images", str(tmp_path / "all.json"), [])
            box_sets.resolved(coco_files.find(parts), "raise")
    capsys.readouterr()
    assert prepare.main(["coco", "nowhere", str(tmp_path / "no.json"), str(tmp_path / "o")]) == 1
    assert "no.json" in capsys.readouterr().err


def test_a_folder_of_pictures_that_does_not_exist_is_said_once(tmp_path, content, capsys):
    (tmp_path / "images").rename(tmp_path / "pictures")
    for option in ("--on-error=skip", "--preview"):
        assert run(tmp_path, content, option) == 1
        said = capsys.readouterr().err
        assert (
            f"error: {tmp_path / 'images'}: no such folder; it is" in said and "a.jpg" not in said
        )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_file_names_match_in_any_unicode_form(tmp_path, content, capsys, form):
    """Those of pictures and of their folders; of two files, the one in the same form."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    ours, theirs = (
        unicodedata.normalize(f, "gr\u00f6\u00dfe/caf\u00e9.jpg") for f in (form, other)
    )
    folder = tmp_path / "images"
    (folder / theirs).parent.mkdir()
    (folder / "a.jpg").rename(folder / theirs)
    content["images"][0]["file_name"] = ours
    content["images"].append({"id": 11, "file_name": theirs})
    assert run(tmp_path, content) == 1
    assert f"image 11 ({theirs}): has the file of image 10" in capsys.readouterr().err
    del content["images"][-1]
    assert run(tmp_path, content, "--split=1") == 0
    assert read(tmp_path)[0][10][0].fields["image"] == jpeg((200, 0, 0), SIZE)
    (folder / ours).parent.mkdir(exist_ok=True)
    (folder / ours).write_bytes(jpeg((0, 200, 0), SIZE))
    part = coco_files.parts(str(folder), str(tmp_path / "all.json"), [])
    found = coco_files.find(part, val_fraction=0).splits["train"][0]
    assert found.file == folder / ours and found.name == ours


def test_a_split_of_which_all_objects_are_left_out_is_not_written(tmp_path, content, capsys):
    entries = [annotation(1, 10, bbox=(5, 5, 0, 3)), annotation(2, 20, 7)]
    (tmp_path / "val.json").write_text(json.dumps({**content, "annotations": entries}))
    split = f"--split=validation={tmp_path / 'val.json'}"
    assert run(tmp_path, content, split, "--on-error=skip") == 1
    said = capsys.readouterr().err
    assert "split 'validation' has no objects, or crowds alone: nothing can be measured" in said
    assert "after --on-error=skip, with 2 objects left out: val.json: annotation 1 (a.jpg)" in said
    assert not (tmp_path / "out").exists()
