"""Numbers of pictures and of categories in the files of detection, and in its score: splits whose
pictures have the same numbers, classes beyond those of the data.
"""

import contextlib
import io
import json

import numpy as np
import pytest
from detection_rows import INFO, make_rows
from matplotlib.figure import Figure
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from configs import base
from lambdanet.data.record import DataInfo
from lambdanet.tasks import detection_files, detection_panels, detection_scores
from lambdanet.tasks.shown_examples import examples_of


def evaluated(folder, name="predictions.json", kind="bbox"):
    """What pycocotools says of the files in a folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        run = COCOeval(truth, truth.loadRes(str(folder / name)), kind)
        run.evaluate(), run.accumulate(), run.summarize()
    return run.stats


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_pictures_of_two_splits_with_the_same_numbers_are_two(kind, tmp_path, capsys):
    rows = make_rows(5, masks=True)
    expected = detection_scores.scores(rows, INFO, kind).statistics
    rows["id"] = np.tile(np.arange(len(rows["id"]) // 2), 2)
    found = detection_scores.scores(rows, INFO, kind).statistics
    np.testing.assert_array_equal(list(found.values()), list(expected.values()))
    detection_files.write_results(rows, tmp_path, info=INFO, masks=True)
    said = " ".join(capsys.readouterr().out.split())
    assert f"Several of the {len(rows['id'])} pictures have the same number" in said
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert [image["id"] for image in truth["images"]] == list(range(1, len(rows["id"]) + 1))
    name = {"box": "predictions.json", "mask": "mask_predictions.json"}[kind]
    stats = evaluated(tmp_path, name, {"box": "bbox", "mask": "segm"}[kind])
    assert stats[0] == pytest.approx(expected["ap"], abs=1e-12)


def test_pictures_keep_their_numbers_where_all_are_different(tmp_path, capsys):
    rows = make_rows(5)
    rows["id"] = 7 * rows["id"][::-1].copy()
    detection_files.write_results(rows, tmp_path, info=INFO, masks=False)
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert [image["id"] for image in truth["images"]] == rows["id"].tolist()
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert {one["image_id"] for one in found} <= set(rows["id"].tolist())
    assert not capsys.readouterr().out


def test_the_example_of_a_record():
    ids = np.array([3, 1, 3, 1, 2])
    assert examples_of(ids, ids[:3]).tolist() == [0, 1, 2, -1, -1]
    assert examples_of(ids, ids[:0]).tolist() == [-1] * 5
    # of another process: only what is there once is known
    assert examples_of(ids, np.array([2, 3])).tolist() == [-1, -1, -1, -1, 0]
    assert examples_of(np.array([5, 6, 7]), np.array([7, 5])).tolist() == [1, -1, 0]


def test_boxes_are_drawn_on_their_own_picture(monkeypatch):
    rows = make_rows(4, count=4)
    rows["id"] = np.array([0, 1, 0, 1])
    images = np.zeros((4, 30, 40, 1), np.uint8)
    images[:] = np.arange(4)[:, None, None, None]
    examples = {"image": images, "image_shape": np.tile((30, 40), (4, 1)), "id": rows["id"]}
    drawn = {}

    def note(axes, image, rows, i, *rest):
        drawn[int(i)] = int(image[0, 0, 0])

    monkeypatch.setattr(detection_panels, "draw_picture", note)
    own = base.get_config().detection
    detection_panels.draw_pictures(Figure().subfigures(1, 1), rows, examples, INFO.classes, own)
    assert drawn == {0: 0, 1: 1, 2: 2, 3: 3}


def test_classes_beyond_those_of_the_data_take_no_number_from_them(tmp_path):
    info = DataInfo(INFO.features, INFO.classes, (7, 9, 30))
    rows = make_rows(2)
    categories = []
    for number, last in enumerate((2, 4)):  # 4: a class that the data does not have is found
        rows["classes"][0, 0], rows["valid"][0, 0] = last, True
        folder = tmp_path / str(number)
        detection_files.write_results(rows, folder, info=info, masks=False)
        categories.append(json.loads((folder / "truth.json").read_text())["categories"])
        found = json.loads((folder / "predictions.json").read_text())
        assert found[0]["category_id"] == {2: 30, 4: 32}[last]
        assert {one["category_id"] for one in found} == {7, 9, 30} | {found[0]["category_id"]}
    assert [one["id"] for one in categories[0]] == [7, 9, 30]
    assert [one["id"] for one in categories[1]] == [7, 9, 30, 31, 32]
    names = [*INFO.classes, "class 3", "class 4"]
    assert detection_files.classes_of(info, 5) == (names, [7, 9, 30, 31, 32])
    assert detection_files.classes_of(info, 2) == (names[:2], [7, 9])
    assert detection_files.classes_of(INFO, 4) == (names[:4], [1, 2, 3, 4])
    assert detection_files.classes_of(DataInfo({}, ()), 2) == (["class 0", "class 1"], [1, 2])
