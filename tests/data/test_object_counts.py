"""Too little room for the objects of evaluation is known when a run starts."""

import json

import numpy as np
import pytest
from coco_helpers import SIZE, annotation, make_content, run
from data_helpers import jpeg

from configs import own_objects
from lambdanet import tasks
from lambdanet.data import object_counts
from lambdanet.data.record import DataInfo, Record


@pytest.fixture
def config(tmp_path, capsys):
    """Of a set whose validation split has two pictures with one and three objects with masks."""
    content = make_content(tmp_path)
    entries = [annotation(1, 10), *(annotation(n, 20, bbox=(1, 1, 9, 9)) for n in (2, 3, 4))]
    (tmp_path / "val.json").write_text(json.dumps({**content, "annotations": entries}))
    assert run(tmp_path, content, f"--split=val={tmp_path / 'val.json'}") == 0
    config = own_objects.get_config("small_mask_rcnn")
    config.data.source, config.data.data_dir = "tfds", str(tmp_path / "out")
    config.data.test_split = ""
    return config


def test_what_evaluation_needs_is_known_before_training(config):
    config.detection.max_objects, config.detection.mask_bytes = 3, 256
    tasks.read_for_training(config)
    config.detection.max_objects, config.detection.mask_bytes = 2, 20
    with pytest.raises(ValueError) as error:
        tasks.read_for_training(config)
    said = str(error.value)
    assert (
        "detection.max_objects=2, but the split 'validation' has pictures with up to 3 ob" in said
    )
    assert (
        "file deep/b.png), and an evaluation needs all of them: set detection.max_objects=3" in said
    )
    assert "detection.mask_bytes=20, but the split 'validation' has pictures with up to" in said
    config.detection.mask_bytes = 256
    config.data.test_split, config.data.eval_split = "validation", ""
    with pytest.raises(ValueError, match="max_objects=2, but the split 'validation'"):
        tasks.read_for_training(config)
    config.data.test_split = ""  # training takes the largest objects
    tasks.read_for_training(config)


class Source:
    """Records as a set of somebody else may have them; the second cannot be read."""

    def __len__(self):
        return 2

    def read(self, index):
        if index:
            raise OSError("damaged")
        boxes = np.array([[1, 1, 9, 9], [5, 5, 5, 9], [2, 2, 8, 8]], np.float32)
        fields = {"image": jpeg((9, 9, 9), SIZE), "boxes": boxes, "classes": [0, 1, 1]}
        return Record(fields, 7, "record 7")


def test_objects_that_are_left_out_need_no_room(monkeypatch):
    config, info = own_objects.get_config(), DataInfo({"boxes": "b", "classes": "c"}, ("a", "b"))
    monkeypatch.setattr(object_counts.sources, "open_source", lambda *_: Source())
    for on_error, most, problems in (("raise", 3, 0), ("raise", 2, 1), ("skip", 2, 0)):
        config.data.on_error, config.detection.max_objects = on_error, most
        found = object_counts.room_problems(config, info, ["validation", "validation"])
        assert len(found) == problems, (on_error, most)
