"""`prepare coco`: classes, boxes and masks of COCO's format."""

import json
import shlex
import shutil

import numpy as np
import pytest
from absl import flags
from coco_helpers import (
    CATEGORIES,
    L_SHAPE,
    SIZE,
    annotation,
    bitmap,
    make_content,
    read,
    run,
    runs,
)
from data_helpers import jpeg
from ml_collections import config_flags
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks

import models
from configs import base, own_objects
from lambdanet import config as config_lib
from lambdanet import data
from lambdanet.data import (
    box_sets,
    box_sheet,
    coco_entries,
    coco_files,
    dense_sheet,
    objects,
    prepare,
    run_lengths,
)
from lambdanet.drawing import box_drawing


@pytest.fixture
def content(tmp_path):
    return make_content(tmp_path)


def test_prepared_sets_hold_everything(tmp_path, content, capsys):
    assert run(tmp_path, content, "--split=1") == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["class", "train"]
    assert rows[1:3] == [["0", "cat", "1", "1"], ["1", "dog", "2", "2"]]
    assert rows[3][-1] == "1" and "crowds" in rows[3][0]
    assert "2 classes, train 4" in out and "at most 2 objects in a picture; with masks" in out
    assert "pictures without objects in train: 1 (kept)" in out
    assert "pictures of crowds alone in train: 1 (kept)" in out
    assert (
        "train with: python train.py --config=configs/own_objects.py:small_mask_rcnn --work" in out
    )
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
    content["annotations"][1]["segmentation"] = [[]]
    assert run(tmp_path, content, "--split=1") == 0
    out = capsys.readouterr().out
    assert "without masks" in out and "detection.masks" not in out
    found, info = read(tmp_path, masks=False)
    assert "masks" not in info.features
    assert found[10][1].area.tolist() == [28 * 18, 77.5]


def test_the_home_is_known_within_a_split(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = coco_files.parts("images", "a.json", ["val=~/v.json,~/more", "hard=~/h.json"])
    assert found["validation"] == coco_files.Part(tmp_path / "v.json", tmp_path / "more")
    assert found["hard"].annotations == tmp_path / "h.json"


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
        ("val", "must read NAME=ANNOTATIONS.json[,IMAGES], or be given once, as shares such as"),
        (".8,.3", "'.8,.3' must be the shares of training, validation and test, together 1"),
        ("train=x.json", "the split 'train' is there already"),
        ("v-1=x.json", "must read NAME="),
    ):
        assert run(tmp_path, content, "--split", text) == 1
        assert problem in capsys.readouterr().err
    other["categories"] = CATEGORIES[:1]
    (tmp_path / "val.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="val.json: other categories than all.json"):
        found = coco_files.parts(str(tmp_path / "images"), str(tmp_path / "all.json"), [split])
        box_sets.resolved(coco_files.find(found), "raise")


def test_the_printed_command_trains(tmp_path, content, capsys):
    more = [annotation(100 + n, 10) for n in range(100)]
    content["annotations"] += more
    assert run(tmp_path, content) == 0
    for entry in content["annotations"]:
        del entry["segmentation"]
    (tmp_path / "all.json").write_text(json.dumps(content))
    names = [str(tmp_path / name) for name in ("images", "all.json", "without masks")]
    assert prepare.main(["coco", *names, "--split=1"]) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("train with: ")]
    for line, name in zip(lines, ("small_mask_rcnn", "small_retinanet"), strict=True):
        config = config_of(shlex.split(line.removeprefix("train with: python train.py ")))
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
    command = ["train.py", *(o for o in options if o.startswith("--config."))]
    holder = config_flags.DEFINE_config_dict("config", recipe, flag_values=values, sys_argv=command)
    values(command)
    return holder.value


def test_shares_may_be_written_without_their_zeros(tmp_path, content):
    assert run(tmp_path, content, "--split", ".4,.6") == 0
    assert len(read(tmp_path, "train")[0]) + len(read(tmp_path, "validation")[0]) == 4


def test_area_0_is_none_at_all(tmp_path, content, capsys):
    for entry, area in zip(content["annotations"], (0, 0.0, 0, 12), strict=True):
        entry["area"] = area
    assert run(tmp_path, content, "--split=1") == 0
    assert "note: all.json: area 0 of 3 objects is taken as not given" in capsys.readouterr().out
    found, _ = read(tmp_path)
    masks = found[10][1].masks
    assert found[10][1].area.tolist() == [run_lengths.area(mask, SIZE) for mask in masks]
    assert found[20][1].area.tolist() == [1000] and found[40][1].area.tolist() == [12]
    shutil.rmtree(tmp_path / "out")
    for entry in content["annotations"]:
        entry["segmentation"] = [[]]
    assert run(tmp_path, content, "--split=1") == 0
    found, _ = read(tmp_path, masks=False)
    assert found[10][1].area.tolist() == [28 * 18, 1200] and found[20][1].area.tolist() == [1000]


def test_one_class_and_one_object_are_one(tmp_path, content, capsys):
    content["annotations"] = [annotation(1, 10)]
    content["categories"] = [{"id": 3, "name": "cat"}]
    assert run(tmp_path, content, "--split=1") == 0
    out = capsys.readouterr().out
    assert ": 1 class, train 4" in out and "note: at most 1 object in a picture" in out


def test_what_exporters_write_differently_is_the_same(tmp_path, content, capsys):
    content["images"][0].update(width=None, height=None)
    content["images"][1].update(width=0, height=0)
    content["annotations"][0].update(iscrowd=True, area=None)
    other = {**content, "categories": [{"id": 3, "name": "cat", "color": "red"}, CATEGORIES[0]]}
    (tmp_path / "val.json").write_text(json.dumps(other))
    assert run(tmp_path, content, "--split", f"val={tmp_path / 'val.json'}") == 0
    said = "warning: pictures of validation that are in train, too: 4; a score on pictures of the"
    assert said in capsys.readouterr().out
    assert read(tmp_path)[0][10][1].crowd.tolist() == [True, False]


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


def test_the_sheet_shows_masks_and_stripes_those_of_crowds(tmp_path, content, capsys):
    assert run(tmp_path, content, "--split=1") == 0
    sheet = tmp_path / "out" / "contact_sheet.png"
    assert f"note: {sheet} shows images of every class" in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.width > 2 * dense_sheet.SIDE
    assert (tmp_path / "out" / "summary.txt").read_text().startswith("     class")
    parts = coco_files.parts(str(tmp_path / "images"), str(tmp_path / "all.json"), [])
    found = coco_files.find(parts, val_fraction=0)
    for number, covered in ((10, bitmap(0) | polygon_bitmap()), (40, bitmap(1)), (30, None)):
        (boxed,) = [p for p in found.splits["train"] if p.id == number]
        drawn = np.asarray(box_sheet.picture(found, boxed)).astype(int)[40:-2, 2:-2]
        painted = np.abs(drawn - (200, 0, 0)).max(axis=2) > 20
        if covered is None:
            assert not painted.any()
            continue
        whole = covered.astype(bool).repeat(6, axis=0).repeat(6, axis=1)[40:-2, 2:-2]
        if number == 40:
            rows, columns = np.indices(painted.shape) + np.array([40, 2])[:, None, None]
            whole &= (rows + columns) // box_drawing.STRIPE % 2 == 0
        assert (painted != whole).mean() < 0.04  # the lines of boxes, and a name


def polygon_bitmap():
    return run_lengths.decode(run_lengths.of_polygons([L_SHAPE], SIZE), SIZE)
