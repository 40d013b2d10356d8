"""`prepare coco`: classes, boxes and masks of COCO's format, and all that is wrong at once."""

import json
import shlex

import numpy as np
import pytest
from absl import flags
from data_helpers import jpeg
from ml_collections import config_flags
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks

import models
from configs import base, own_objects
from lambdanet import config as config_lib
from lambdanet import data
from lambdanet.data import coco_entries, coco_files, objects, prepare, run_lengths

SIZE = (40, 30)
CATEGORIES = [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "cat"}]
L_SHAPE = [2, 2, 10, 2, 10, 12, 30, 12, 30, 20, 2, 20]


def bitmap(seed):
    return (np.random.default_rng(seed).random(SIZE[::-1]) < 0.3).astype(np.uint8)


def runs(mask):
    """COCO's uncompressed run lengths: by columns, beginning with zeros."""
    values, counts, last = mask.T.ravel(), [0], 0
    for value in values:
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": [int(c) for c in counts]}


def compressed(mask):
    return {"size": list(mask.shape), "counts": run_lengths.encode(mask).decode()}


def annotation(number, image, category=3, bbox=(2, 2, 28, 18), segmentation=None, **more):
    entry = dict(id=number, image_id=image, category_id=category, bbox=list(bbox), **more)
    return {**entry, "segmentation": [L_SHAPE] if segmentation is None else segmentation}


@pytest.fixture
def content(tmp_path):
    """Four pictures: two with objects, one with none, one with a crowd; masks of all kinds."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    images = []
    for number, name in ((10, "a.jpg"), (20, "deep/b.png"), (30, "c.jpg"), (40, "d.jpg")):
        file = tmp_path / "images" / name
        if name == "deep/b.png":
            Image.new("RGBA", (20, 200), (9, 9, 9, 0)).save(file)  # 1 : 10, transparent
        else:
            file.write_bytes(jpeg((200, 0, 0), SIZE))
        width, height = Image.open(file).size
        images.append(dict(id=number, file_name=name, width=width, height=height))
    tall = np.zeros((200, 20), np.uint8)
    tall[5:105, 3:13] = 1
    entries = [
        annotation(1, 10),
        annotation(2, 10, 18, (0, 0, 40, 30), runs(bitmap(0)), area=77.5, iscrowd=0),
        annotation(3, 20, 18, (3, 5, 10, 100), compressed(tall)),
        annotation(4, 40, 3, (0, 0, 40, 30), runs(bitmap(1)), iscrowd=1),
    ]
    return {"images": images, "annotations": entries, "categories": CATEGORIES}


def run(tmp_path, content, *options):
    (tmp_path / "all.json").write_text(json.dumps(content))
    paths = [str(tmp_path / name) for name in ("images", "all.json", "out")]
    return prepare.main(["coco", *paths, *options])


def read(tmp_path, split="train", masks=True):
    """What a prepared split holds: id -> (picture, objects), and the DataInfo."""
    section = base.get_config().data
    section.source, section.data_dir = "tfds", str(tmp_path / "out")
    info = objects.read(data.open_builder(section))
    source = data.open_source(section, split, info.features)
    found = {}
    for record in map(source.read, range(len(source))):
        size = (20, 200) if record.id == 20 else SIZE
        options = dict(on_error="raise", masks=masks)
        found[record.id] = record, objects.read_objects(record, size, len(info.classes), **options)
    return found, info


def test_prepared_sets_hold_everything(tmp_path, content, capsys):
    assert run(tmp_path, content, "--val-fraction=0") == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["class", "train"]
    assert rows[1:3] == [["0", "cat", "1", "1"], ["1", "dog", "2", "2"]]
    assert rows[3][-1] == "1" and "crowds" in rows[3][0]
    assert "2 classes, train 4" in out and "at most 2 objects in a picture; with masks" in out
    assert "pictures without objects in train: 1 (kept)" in out
    assert "pictures of crowds alone in train: 1 (kept)" in out
    assert "train with --config=configs/own_objects.py:small_mask_rcnn --config.data" in out
    found, info = read(tmp_path)
    assert info.classes == ("cat", "dog") and info.class_ids == (3, 18)
    assert json.loads((tmp_path / "out" / "categories.json").read_text()) == CATEGORIES[::-1]
    assert sorted(found) == [10, 20, 30, 40] and len(found[30][1]) == 0
    record, first = found[10]
    assert record.fields["image"] == (tmp_path / "images" / "a.jpg").read_bytes()
    assert "file a.jpg" in record.name
    assert first.boxes.tolist() == [[2, 2, 30, 20], [0, 0, 40, 30]]
    assert first.classes.tolist() == [0, 1] and not first.crowd.any()
    drawn = Image.new("L", SIZE)
    points = list(zip(L_SHAPE[::2], L_SHAPE[1::2], strict=True))
    ImageDraw.Draw(drawn).polygon(points, fill=1)
    polygon = run_lengths.decode(first.masks[0], SIZE)
    assert np.abs(polygon.astype(int) - np.asarray(drawn)).sum() < 60  # up to its border
    assert first.area.tolist() == [polygon.sum(), 77.5]
    assert np.array_equal(run_lengths.decode(first.masks[1], SIZE), bitmap(0))
    tall = run_lengths.decode(found[20][1].masks[0], (20, 200))
    assert tall.sum() == 1000 and found[20][1].area.tolist() == [1000]
    assert found[40][1].crowd.tolist() == [True]
    assert np.array_equal(run_lengths.decode(found[40][1].masks[0], SIZE), bitmap(1))


def test_sets_without_masks_have_boxes_alone(tmp_path, content, capsys):
    for entry in content["annotations"]:
        del entry["segmentation"]
    content["annotations"][0]["segmentation"] = []
    assert run(tmp_path, content, "--val-fraction=0") == 0
    out = capsys.readouterr().out
    assert "without masks" in out and "detection.masks" not in out
    found, info = read(tmp_path, masks=False)
    assert "masks" not in info.features
    assert found[10][1].area.tolist() == [28 * 18, 77.5]


def test_splits_from_several_files_and_folders(tmp_path, content, capsys):
    other = {**content, "images": content["images"][:1], "annotations": content["annotations"][:1]}
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jpg").write_bytes(jpeg((0, 0, 250), SIZE))
    (tmp_path / "val.json").write_text(json.dumps(other))
    split = f"val={tmp_path / 'val.json'},{tmp_path / 'more'}"
    assert run(tmp_path, content, "--split", split, "--split", f"hard={tmp_path / 'val.json'}") == 0
    assert "train 4, validation 1, hard 1" in capsys.readouterr().out
    assert read(tmp_path, "validation")[0][10][0].fields["image"] == jpeg((0, 0, 250), SIZE)
    assert read(tmp_path, "hard")[0][10][0].fields["image"] == jpeg((200, 0, 0), SIZE)
    for text, problem in (
        ("val", "must read NAME=ANNOTATIONS.json"),
        ("train=x.json", "the split 'train' is there already"),
        ("v-1=x.json", "must read NAME="),
    ):
        assert run(tmp_path, content, "--split", text) == 1
        assert problem in capsys.readouterr().err
    other["categories"] = CATEGORIES[:1]
    (tmp_path / "val.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="val.json: other categories than all.json"):
        found = coco_files.parts(str(tmp_path / "images"), str(tmp_path / "all.json"), [split])
        coco_files.scan(found)


def test_the_printed_command_trains(tmp_path, content, capsys):
    more = [annotation(100 + n, 10) for n in range(100)]
    content["annotations"] += more
    assert run(tmp_path, content) == 0
    for entry in content["annotations"]:
        del entry["segmentation"]
    (tmp_path / "all.json").write_text(json.dumps(content))
    names = [str(tmp_path / name) for name in ("images", "all.json", "without masks")]
    assert prepare.main(["coco", *names, "--val-fraction=0"]) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("train with ")]
    for line, name in zip(lines, ("small_mask_rcnn", "small_retinanet"), strict=True):
        config = config_of(shlex.split(line.removeprefix("train with ")))
        config_lib.validate(config, base.get_config(), models.registry)
        assert config.task == "detection" and config.model.name == name
        assert config.detection.max_objects == 102
        info = objects.read(data.open_builder(config.data))
        assert len(data.open_source(config.data, config.data.train_split, info.features)) in (3, 4)


def config_of(options):
    """The config that options of train.py say."""
    file, _, argument = options[0].partition(":")
    assert file == "--config=configs/own_objects.py"
    recipe, values = own_objects.get_config(argument), flags.FlagValues()
    command = ["train.py", *options[1:]]
    holder = config_flags.DEFINE_config_dict("config", recipe, flag_values=values, sys_argv=command)
    values(command)
    return holder.value


def test_what_exporters_write_differently_is_the_same(tmp_path, content, capsys):
    content["images"][0].update(width=None, height=None)
    content["images"][1].update(width=0, height=0)
    content["annotations"][0].update(iscrowd=True, area=None)
    other = {**content, "categories": [{"id": 3, "name": "cat", "color": "red"}, CATEGORIES[0]]}
    (tmp_path / "val.json").write_text(json.dumps(other))
    assert run(tmp_path, content, "--split", f"val={tmp_path / 'val.json'}") == 0
    said = "note: pictures of train that validation has, too: 4 (kept; a score on"
    assert said in capsys.readouterr().out
    assert read(tmp_path)[0][10][1].crowd.tolist() == [True, False]


MISTAKES = [
    (dict(iscrowd="0"), 'iscrowd is "0"; allowed: 0, 1'),
    (dict(iscrowd=2), "iscrowd is 2; allowed: 0, 1"),
    (dict(area=float("nan")), "area is NaN; allowed: a number of 0 or more, or none at all"),
    (dict(area="77"), 'area is "77"; allowed: a number'),
    (dict(area=-1), "area is -1; allowed: a number"),
    (dict(image=99), "annotation 5: there is no image 99"),
    (dict(image="10"), "annotation 5: there is no image '10'"),
    (dict(category=4), r"annotation 5 (a.jpg): category 4 is none of the 2 categories"),
    (dict(bbox=(5, 5, 0, 3)), "annotation 5 (a.jpg): box (5, 5, 5, 8) has no area: it is 0 wide"),
    (dict(bbox=(5, 5, -2, 3)), "has no area"),
    (dict(bbox=(45, 5, 9, 3)), "lies outside of the picture, which is 40 x 30"),
    (dict(bbox=(float("nan"), 5, 9, 3)), "is not made of finite numbers"),
    (dict(bbox=(1, 2, 3)), "bbox is [1, 2, 3]; it must be [left, top, width, height]"),
    (dict(bbox=("1", 2, 3, 4)), "bbox is"),
    (dict(segmentation=[]), "it has no mask (segmentation), and others have"),
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
    assert "1 mistakes; with --on-error=skip: 1 objects left out" in said
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, content, "--on-error=skip", "--val-fraction=0") == 0
    assert "note: 1 objects left out: all.json: annotation 5" in capsys.readouterr().out
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
        "image 30 (c.jpg): there is no such picture",
        "image 40 (d.jpg): ",
        "image 50 (../x.jpg): its file_name must be relative to",
        "image 60 (None): it has no file_name",
        "f.jpg): cannot be read (File name too long)",
        "image 91 (deep): a folder, and no picture",
        'image 92 (e.jpg): says "40" x 30, and the picture has 40 x 30',
        "annotations: id 1 stands there more than once",
        "annotation 9 (e.jpg): box (30, 0, 50, 20) ends outside of the picture",
    ):
        assert problem in said
    assert run(tmp_path, content, "--on-error=skip", "--val-fraction=0") == 0
    out = capsys.readouterr().out
    assert "9 pictures left out, with their objects: all.json: image 10" in out
    assert "1 boxes cut at the border of their pictures" in out
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
            coco_files.scan(coco_files.parts("images", str(tmp_path / "all.json"), []))
    capsys.readouterr()
    assert prepare.main(["coco", "nowhere", str(tmp_path / "no.json"), str(tmp_path / "o")]) == 1
    assert "no.json" in capsys.readouterr().err


def test_nothing_is_written_over_or_into_the_pictures(tmp_path, content, capsys):
    assert run(tmp_path, content) == 0
    assert run(tmp_path, content) == 1
    assert "is a prepared data set already" in capsys.readouterr().err
    folder = tmp_path / "images"
    assert prepare.main(["coco", str(folder), str(tmp_path / "all.json"), str(folder / "o")]) == 1
    assert "lies in" in capsys.readouterr().err


def test_uncompressed_runs_and_polygons_equal_pycocotools():
    for seed in range(5):
        mask = bitmap(seed)
        assert coco_entries.read_mask(runs(mask), SIZE) == run_lengths.encode(mask)
    two = [L_SHAPE, [20, 2, 35, 2, 35, 9.5]]
    whole = coco_masks.decode(coco_masks.frPyObjects(two, 30, 40)).any(axis=2)
    assert np.array_equal(run_lengths.decode(coco_entries.read_mask(two, SIZE), SIZE), whole)
