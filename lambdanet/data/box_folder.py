"""Pictures with boxes, turned once into a prepared data set for detection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from rich import progress

from lambdanet import atomic
from lambdanet.data import box_sets, box_sheet, image_folder, overview
from lambdanet.data.box_sets import BoxSet
from lambdanet.data.objects import CATEGORIES


class PreparedBoxes(tfds.core.GeneratorBasedBuilder):
    """Pictures with objects. `objects/bbox` is left, top, right, bottom in pixels, right and bottom
    are outside; `is_crowd` marks boxes around many objects, and difficult ones; `area` is in
    pixels; `mask`, if there are masks, the `counts` of COCO's compressed run lengths, whose `size`
    is that of the image; `id` and `file` are the picture's original ones.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, found: BoxSet, bars: progress.Progress, *, data_dir: str):
        self.found, self.bars = found, bars
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        entries = {
            "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=list(self.found.classes)),
            "is_crowd": np.bool_,
            "area": np.float32,
        }
        if self.found.masks:
            entries["mask"] = tfds.features.Text()
        features = {
            "id": np.int64,
            "file": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "objects": tfds.features.Sequence(entries),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description=type(self).__doc__,
        )

    def _split_generators(self, dl_manager):
        return {
            name: self._generate_examples(name, pictures)
            for name, pictures in self.found.splits.items()
        }

    def _generate_examples(self, split, pictures):
        for picture in self.bars.track(pictures, description=split):
            found = picture.found
            entries = [
                {"bbox": box, "label": int(label), "is_crowd": bool(crowd), "area": area}
                for box, label, crowd, area in zip(
                    found.boxes, found.classes, found.crowd, found.area, strict=True
                )
            ]
            if self.found.masks:
                masks = found.masks or ()
                entries = [{**e, "mask": m} for e, m in zip(entries, masks, strict=True)]
            example = {
                "id": picture.id,
                "file": picture.name,
                "image": picture.file.read_bytes(),
                "objects": entries,
            }
            yield picture.id, example


def overview_of(found: BoxSet) -> overview.Overview:
    """Returns the contact sheet, and the table with all that was said."""
    return overview.make(
        box_sheet.draw(found),
        box_sets.table(found.splits, found.classes),
        warnings=found.warnings,
        notes=found.notes,
        findings=found.findings.lines(),
    )


def write(found: BoxSet, directory: str) -> None:
    """Writes the prepared set to `directory`, with a contact sheet and the table as text.

    Args:
        found: without mistakes that stop it.
        directory: new or empty.

    Raises:
        ValueError: `directory` is in use.
        OSError: a file cannot be read or written.
    """

    def finish(prepared: Path) -> None:
        if found.categories:
            text = json.dumps(list(found.categories), indent=1)
            atomic.write_file(prepared / CATEGORIES, text)
        overview.write(overview_of(found), prepared)

    image_folder.write_prepared(
        lambda bars, scratch: PreparedBoxes(found, bars, data_dir=scratch), directory, finish
    )
