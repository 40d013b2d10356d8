"""What is done with each frame of a clip for one kind of result: how it becomes what a model reads,
and what is drawn and written. `drawing_of` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import UInt8

from lambdanet.analysis.console import say
from lambdanet.data import box_geometry
from lambdanet.data.record import DataInfo
from lambdanet.drawing import label_colours
from lambdanet.tasks import detection_files, segmentation_files
from lambdanet.tasks.segmentation_classes import all_names

Pixels = UInt8[np.ndarray, "h w c"]
Read = UInt8[np.ndarray, "_h _w c"]
"""What the model reads of it: another size."""


class LabelDrawing:
    """Label maps: overlays, index PNGs, a legend.

    Args:
        folder: where to.
        keep: whether index PNGs are written, to <folder>/labels.
        names: of the classes.
        config: reads the section data.
    """

    def __init__(self, folder: Path, keep: bool, names: list[str], config: Any):
        self.folder, self.keep, self.names, self.section = folder, keep, names, config.data

    def size(self, picture_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the `size` of `VideoRunner.run` for pictures of (height, width)."""
        return picture_size

    def prepare(self, contents: bytes | Pixels) -> tuple[Pixels, Read]:
        """Returns a picture in full, and as the model reads it."""
        return segmentation_files.both_sizes(contents, self.section)

    def draw(self, name: str, picture: Pixels, labels: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the picture under its colours; writes the label map."""
        if self.keep:
            index = label_colours.index_image(labels)
            segmentation_files.save_png(self.folder / "labels" / f"{name}.png", index)
        return label_colours.overlay(picture, labels)

    def finish(self) -> None:
        """Writes the legend."""
        legend = label_colours.legend(self.names)
        segmentation_files.save_png(self.folder / "legend.png", legend)


class BoxDrawing:
    """Objects: pictures with boxes, and COCO's predictions.json, in which frames are called as
    their files in the folder, those of a video by their number.

    Args:
        folder: where to.
        info: of the data, for the classes.
        count: of the classes.
        config: reads the sections data and detection.
        files: of the frames, in order; () for a video.
    """

    def __init__(
        self, folder: Path, info: DataInfo, count: int, config: Any, files: Sequence[str] = ()
    ):
        self.folder, self.config, self.files = folder, config, files
        self.names, numbers = detection_files.classes_of(info, count)
        self.results = detection_files.Results(self.names, numbers)

    def size(self, picture_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the `size` of `VideoRunner.run` for pictures of (height, width)."""
        return box_geometry.fitted(picture_size[::-1], self.config.data).size

    def prepare(self, contents: bytes | Pixels) -> tuple[Pixels, Read]:
        """Returns a picture in full, and on its canvas."""
        return detection_files.on_canvas(contents, self.config.data)

    def draw(
        self, name: str, picture: Pixels, found: dict[str, np.ndarray]
    ) -> UInt8[np.ndarray, "_h _w 3"]:
        """Returns the picture with its objects, small ones enlarged by a whole factor; keeps the
        objects.
        """
        size = picture.shape[:2]
        objects = detection_files.shown_objects(found, self.size(size), size, self.config)
        file = self.files[len(self.results.images)] if self.files else name
        self.results.add(file, size, objects)
        return np.asarray(detection_files.draw(picture, objects, self.names))

    def finish(self) -> None:
        """Writes the objects of all frames."""
        for note in self.results.write(self.folder):
            say(note)


Drawing = LabelDrawing | BoxDrawing


def drawing_of(
    model: nnx.Module,
    folder: Path,
    *,
    info: DataInfo,
    config: Any,
    label_maps: bool,
    files: Sequence[str] = (),
) -> Drawing:
    """Returns what fits a model, concrete or abstract.

    Args:
        model: a `video_segmenter` or a `video_detector`.
        folder: where to.
        info: of the data, for the names.
        config: the whole config.
        label_maps: see `LabelDrawing`; of a detector not read.
        files: see `BoxDrawing`; of a segmenter not read.
    """
    if hasattr(model, "detections"):
        return BoxDrawing(folder, info, model.num_classes, config, files)
    names = all_names(info, config, model.num_classes)
    return LabelDrawing(folder, label_maps, names, config)
