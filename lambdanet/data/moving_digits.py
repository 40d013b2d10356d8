"""Clips of digits on a panning photograph, one of which moves by itself and is the label, as a TFDS
data set that needs no download. What is drawn, and how: `moving_scenes`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lambdanet.data import digit_scenes, digits, moving_scenes, photographs, storage

ZERO = 128  # how a flow of nothing is stored


class MovingDigits(tfds.core.GeneratorBasedBuilder):
    """Clips of three real handwritten digits of scikit-learn on one of its two photographs, over
    which the camera pans. All move with it but one, and its class is the label; some frames are
    blurred or covered. The splits share neither digits nor parts of the photographs.

    Features:
        frames: RGB, [h, w, 3] each.
        label: class of the digit that moves by itself.
        segmentation_mask: per pixel of every frame the uppermost digit's class, background, or 255
            on edges; what a frame would show if it were neither blurred nor covered, like all that
            follows.
        flow_next, flow_back: where each pixel goes to in the next frame and in the one before, as
            `decode_flow` reads it.
        digits: the classes of the digits, from the lowest to the uppermost.
        moving: which of them moves by itself.
        boxes: left, top, right, bottom by frame and digit, in pixels, with what others hide of it;
            right and bottom are outside.
        damage: by frame, 0 = none, 1 = blurred, 2 = partly covered.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, size: tuple[int, int], *, data_dir: str):
        self.size = size
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(*self.size, 3), encoding_format="png")
        label_map = tfds.features.LabeledImage(
            labels=list(moving_scenes.CLASSES), shape=(*self.size, 1), encoding_format="png"
        )
        frames, count = moving_scenes.FRAMES, moving_scenes.COUNT
        features = {
            "id": np.int64,  # unique over the splits
            "frames": tfds.features.Sequence(image, length=frames),
            "label": tfds.features.ClassLabel(names=list(moving_scenes.CLASSES[1:])),
            "segmentation_mask": tfds.features.Sequence(label_map, length=frames),
            "flow_next": tfds.features.Sequence(image, length=frames),
            "flow_back": tfds.features.Sequence(image, length=frames),
            "digits": tfds.features.Tensor(shape=(count,), dtype=np.int64),
            "moving": np.int64,
            "boxes": tfds.features.Tensor(shape=(frames, count, 4), dtype=np.float32),
            "damage": tfds.features.Tensor(shape=(frames,), dtype=np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description=f"{type(self).__doc__}\n{photographs.ATTRIBUTION}",
            citation=digit_scenes.CITATION,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in moving_scenes.SPLITS}

    def _generate_examples(self, split):
        material = moving_scenes.load_material(split)
        splits = moving_scenes.SPLITS
        first = sum(list(splits.values())[: list(splits).index(split)])
        for index in range(splits[split]):
            clip = moving_scenes.draw(material, index, self.size)
            flows = {
                name: [
                    encode_flow(*pair)
                    for pair in zip(*moving_scenes.flow(clip, towards), strict=True)
                ]
                for name, towards in (("flow_next", 1), ("flow_back", -1))
            }
            yield (
                index,
                {
                    "id": first + index,
                    "frames": [digits.png_bytes(frame) for frame in clip.frames],
                    "label": clip.label,
                    "segmentation_mask": [digits.png_bytes(m) for m in clip.label_map],
                    **flows,
                    "digits": clip.digits,
                    "moving": clip.moving,
                    "boxes": clip.boxes,
                    "damage": clip.damage,
                },
            )


def encode_flow(flow: np.ndarray, valid: np.ndarray) -> bytes:
    """Returns a PNG of the flow of a frame.

    Args:
        flow: (right, down) in whole pixels from -128 to 127, [h, w, 2].
        valid: whether the point is seen in the other frame, bool [h, w].
    """
    coded = np.concatenate([flow + ZERO, 255 * valid[..., None]], axis=-1)
    return digits.png_bytes(coded.astype(np.uint8))


def decode_flow(stored: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `encode_flow` was given: float32 [h, w, 2] and bool [h, w]."""
    coded = np.asarray(Image.open(io.BytesIO(stored)))
    return coded[..., :2].astype(np.float32) - ZERO, coded[..., 2] > 0


def check_size(size: tuple[int, int]) -> None:
    """Raises ValueError unless the digits have room on a canvas of that size and the photographs
    cover all that the camera passes.
    """
    low, high = moving_scenes.SIDES
    if not all(low <= side <= high for side in size):
        raise ValueError(
            f"data.image_size={tuple(size)} is the canvas of data.source='moving_digits'; allowed: "
            f"sides from {low} to {high}"
        )


def directory(data_dir: str | os.PathLike, size: tuple[int, int]) -> Path:
    """Returns where the prepared set with that canvas (height, width) is, or would be."""
    name = f"{size[0]}x{size[1]}"
    return Path(data_dir) / "moving_digits" / name / str(MovingDigits.VERSION)


def prepare(data_dir: str, size: tuple[int, int]) -> str:
    """Prepares the set with that canvas under `data_dir` unless it is there; returns the directory
    of the prepared set.

    Args:
        data_dir: holds moving_digits/HxW/VERSION, one directory per size.
        size: (height, width) of the canvas.

    Raises:
        ValueError: no such canvas, or the directory is not writable.
    """
    check_size(size)
    where = directory(data_dir, size)
    try:
        storage.prepare_atomically(
            lambda scratch: MovingDigits(tuple(size), data_dir=scratch), where
        )
    except OSError as error:
        raise ValueError(
            f"cannot prepare the moving digits under data.data_dir={os.fspath(data_dir)!r}: "
            f"{error}; name a writable directory"
        ) from error
    return str(where)
