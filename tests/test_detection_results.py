"""predictions.json of --mode=predict is a file of annotations as others: COCO's API reads it, and
`prepare coco` takes it as it is.
"""

import contextlib
import io

import numpy as np
import pytest
from data_helpers import jpeg
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from configs import base
from lambdanet import data
from lambdanet.data import objects, prepare
from lambdanet.data.paste_masks import PastedMasks
from lambdanet.data.record import DataInfo
from lambdanet.tasks import detection_files

SIZE = (30, 40)
INFO = DataInfo({}, ("cat", "dog"), (3, 18))
NAMES = ["a.jpg", "b.jpg", "deep/c.jpg", "deep/d.jpg"]


def values_of(seed, masks):
    """What a prediction says of a picture; the last two objects have no pixel."""
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 10, (4, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 8
    boxes[2, 2], boxes[3, 3] = boxes[2, 0], boxes[3, 1]
    found = [
        {"class": "dog", "number": 1, "score": 0.9 - 0.1 * i, "box": box.tolist()}
        for i, box in enumerate(boxes)
    ]
    soft = np.full((4, 28, 28), 0.9, np.float32)
    shown = {"masks": PastedMasks(soft, boxes, SIZE)} if masks else {}
    return {"width": SIZE[1], "height": SIZE[0], "objects": found} | shown


@pytest.fixture(params=[False, True], ids=["boxes", "masks"])
def written(request, tmp_path):
    """A folder of pictures, predictions.json about it, and what was said of each."""
    said, collector = {}, detection_files.collector(["cat", "dog", "class 2"], INFO)
    for seed, name in enumerate(NAMES):
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg((200, 10 * seed, 0), SIZE[::-1]))
        said[name] = values_of(seed, request.param)
        collector.add(name, said[name])
    notes = collector.write(tmp_path)
    assert notes == ["predictions.json is without 8 objects without a pixel."]
    return tmp_path, said, request.param


def test_cocos_api_reads_what_was_predicted(written):
    folder, said, masks = written
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "predictions.json"))
        found = coco.loadAnns(coco.getAnnIds(areaRng=[0, 10**5], iscrowd=False))
        assert len(found) == 2 * len(NAMES)
        run = COCOeval(coco, coco, "segm" if masks else "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    assert run.stats[0] == pytest.approx(1.0)
    for one in found:
        expected = coco.annToMask(one).sum() if masks else one["bbox"][2] * one["bbox"][3]
        assert one["area"] == expected > 0 and one["iscrowd"] == 0


def test_what_was_predicted_is_prepared_as_it_is(written, capsys):
    folder, said, masks = written
    paths = [str(folder / name) for name in ("pictures", "predictions.json", "set")]
    assert prepare.main(["coco", *paths, "--split=0.5,0.5"]) == 0, capsys.readouterr()
    section = base.get_config().data
    section.source, section.data_dir = "tfds", str(folder / "set")
    info = objects.read(data.open_builder(section))
    assert info.classes == ("cat", "dog", "class 2") and info.class_ids == (3, 18, 19)
    count = 0
    for split in ("train", "validation"):
        source = data.open_source(section, split, info.features)
        for record in map(source.read, range(len(source))):
            values, options = said[NAMES[record.id - 1]], dict(on_error="raise", masks=masks)
            found = objects.read_objects(record, SIZE[::-1], 3, **options)
            boxes = [one["box"] for one in values["objects"][:2]]
            np.testing.assert_allclose(found.boxes, boxes, rtol=1e-5)
            if masks:
                areas = [mask.sum() for mask in values["masks"]][:2]
                assert found.area.tolist() == areas
            count += len(found)
    assert count == 2 * len(NAMES)
