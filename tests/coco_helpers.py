"""A small set in COCO's format, prepared and read back."""

import json

import numpy as np
from data_helpers import jpeg
from PIL import Image

from configs import base
from lambdanet import data
from lambdanet.data import objects, prepare, run_lengths

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


def make_content(tmp_path):
    """Writes four pictures, two with objects, one with none, one with a crowd; masks of all kinds.

    Returns the annotations.
    """
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
