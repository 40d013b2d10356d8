"""Two tinted digits and a coloured cue far apart on a photograph, as a TFDS data set: a task that
needs long range.

The label is the class of the digit whose tint the cue has. Everything is real and embedded in
scikit-learn: the handwritten digits, and the patches of its two photographs that they stand on.

Between any two of the three objects lies at least a set distance: no square window narrower than
`distance` pixels holds parts of two. A network whose receptive field is smaller and that only
averages at the end is a sum of terms that each see at most one object. Tints are exchangeable, so
the best that such a sum can do under cross entropy ignores the cue: it finds the two classes and
guesses, 50 %.

How the constants were found, on validation with networks like that of configs/cued_digits.py, one
short run each, so a record of the search and no measurement: with six tints on bright photographs
the digits were hardly read. Darker photographs let them be read, but cue and digit were bound
neither by squeeze-excite nor by a non-local block, nor with four tints. With two tints and a cue of
8 instead of 6 pixels squeeze-excite bound them; the non-local block did once the photographs had
lost most of their colour and the tints were nearly saturated. Three tints were bound slowly on grey
photographs of medium brightness, and not on dark ones, where digits can be read without their
colour. Small batches gave more for the same number of images. Without a global block the choice
between the two digits stayed at chance throughout. What the constants below give:
docs/comparison.md.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lambdanet.data import digits, photographs, storage

SPLITS = {"train": 6000, "validation": 1000, "test": 1000}
# smallest and largest side of the canvas: room for the distance, and within every photo part
SIDES = (64, photographs.NARROWEST)
DISTANCE = 28  # at side 64; it grows with the canvas
DIGIT, CUE = 16, 8  # sides of the boxes of a digit and of the cue, at every canvas size
TINTS = 2  # hues, evenly around the colour circle: red and cyan
# most deviation of a hue, as a fraction of the step between two hues; drawn anew for every object
HUE_NOISE = 0.15
SATURATION, VALUE = (
    (0.8, 1.0),
    (0.8, 1.0),
)  # ranges of a colour's saturation and brightness, drawn likewise
BACKGROUND = 0.2  # brightness of the photograph
CHROMA = 0.3  # how much of the photograph's colour stays


@dataclasses.dataclass(frozen=True)
class Material:
    """What the scenes of one split are made of.

    Attributes:
        split: its name.
        ink: all digits, 0 to 1, [n, DIGIT, DIGIT].
        rows: rows of `ink` that belong to the split, by class.
        photos: uint8 [h, w, 3] each: the split's part of each photograph.
    """

    split: str
    ink: np.ndarray
    rows: tuple[np.ndarray, ...]
    photos: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image and what is on it; the objects are in the order: the digit that the label means,
    the other digit, cue.

    Attributes:
        image: uint8 [h, w, 3].
        label: class of the digit whose tint the cue has.
        rows: of the two digits, in sklearn.datasets.load_digits.
        tints: number of each object's hue, 0 to TINTS - 1.
        boxes: top, left, bottom, right of each object, [3, 4]; bottom and right are outside.
    """

    image: np.ndarray
    label: int
    rows: np.ndarray
    tints: np.ndarray
    boxes: np.ndarray


@functools.cache
def load_material(split: str) -> Material:
    """Loads digits and photographs; the digits of a split are those of the same split of the data
    set `digits`.
    """
    from sklearn.datasets import load_digits  # a second of imports that only the first run needs

    data = load_digits()
    shapes = [Image.fromarray(np.uint8(np.round(image * (255 / 16)))) for image in data.images]
    ink = (
        np.stack(
            [np.asarray(shape.resize((DIGIT, DIGIT), Image.Resampling.BICUBIC)) for shape in shapes]
        )
        / 255
    )
    rows = digits.split_rows(data.target)[split]
    by_class = tuple(rows[data.target[rows] == number] for number in range(10))
    return Material(split, ink, by_class, photographs.parts(split))


def check_size(size: tuple[int, int]) -> None:
    """Raises ValueError unless a canvas of that size has room for the distance and the photographs
    cover it.
    """
    if not all(SIDES[0] <= side <= SIDES[1] for side in size):
        raise ValueError(
            f"data.image_size={tuple(size)} is the canvas of data.source='cued_digits'; allowed: "
            f"sides from {SIDES[0]} to "
            f"{SIDES[1]}"
        )


def distance(size: tuple[int, int]) -> int:
    """Returns the least distance of two objects on a canvas of that size, in pixels, along one axis
    at least.
    """
    return DISTANCE * min(size) // SIDES[0]


def gaps(boxes: np.ndarray) -> np.ndarray:
    """Returns how far the objects of a placement are apart.

    Args:
        boxes: [..., 3, 4] as in `Scene`.

    Returns:
        [..., 3]: per pair, the larger of the differences of rows and of columns between the nearest
            pixels. The smallest
        square window that holds pixels of both is one wider.
    """
    first, second = boxes[..., (0, 0, 1), :], boxes[..., (1, 2, 2), :]
    between = np.maximum(
        first[..., :2] - (second[..., 2:] - 1), second[..., :2] - (first[..., 2:] - 1)
    )
    return between.max(axis=-1)


def place(size: tuple[int, int], rng: np.random.RandomState) -> np.ndarray:
    """Draws boxes [3, 4] of two digits and the cue, uniformly among all placements that keep the
    distance.
    """
    sides = np.array([DIGIT, DIGIT, CUE])
    while True:
        corners = rng.randint(0, np.array(size) - sides[:, None] + 1, (512, 3, 2))
        boxes = np.concatenate([corners, corners + sides[:, None]], axis=-1)
        kept = np.flatnonzero(gaps(boxes).min(axis=-1) >= distance(size))
        if len(kept):
            return boxes[kept[0]]


def draw(material: Material, index: int, size: tuple[int, int]) -> Scene:
    """Draws one scene, a pure function of the split, the index and the size; labels go round with
    the index.

    Args:
        material: of the split.
        index: which scene.
        size: (height, width) of the canvas.
    """
    # RandomState: its streams are frozen for good, while Generator methods may change between numpy
    # releases.
    rng = np.random.RandomState([list(SPLITS).index(material.split), index, *size])
    label = index % 10
    classes = (label, (label + rng.randint(1, 10)) % 10)
    rows = np.array(
        [material.rows[number][rng.randint(len(material.rows[number]))] for number in classes]
    )
    tints = rng.permutation(TINTS)[[0, 1, 0]]
    boxes = place(size, rng)

    photo = material.photos[rng.randint(len(material.photos))]
    top, left = rng.randint(photo.shape[0] - size[0] + 1), rng.randint(photo.shape[1] - size[1] + 1)
    patch = photo[top : top + size[0], left : left + size[1]]
    canvas = BACKGROUND * (CHROMA * patch + (1 - CHROMA) * patch.mean(axis=-1, keepdims=True))
    offsets = np.arange(CUE) - (CUE - 1) / 2
    disc = np.clip(CUE / 2 + 0.5 - np.hypot(offsets[:, None], offsets), 0, 1)
    for ink, tint, (top, left, bottom, right) in zip(
        (*material.ink[rows], disc), tints, boxes, strict=True
    ):
        hue = (tint + rng.uniform(-HUE_NOISE, HUE_NOISE)) / TINTS
        colour = 255 * np.array(
            colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(*SATURATION), rng.uniform(*VALUE))
        )
        part = canvas[top:bottom, left:right]
        part += ink[..., None] * (colour - part)
    return Scene(np.round(canvas).astype(np.uint8), label, rows, tints, boxes)


class CuedDigits(tfds.core.GeneratorBasedBuilder):
    """Two tinted handwritten digits and a coloured cue on a photograph; the class is that of the
    digit of the cue's tint.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, size: tuple[int, int], *, data_dir: str):
        self.size = size
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "id": np.int64,  # unique over the splits
                "image": tfds.features.Image(shape=(*self.size, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=[str(d) for d in range(10)]),
                "rows": tfds.features.Tensor(
                    shape=(2,), dtype=np.int64
                ),  # as in `Scene`, like the next two
                "tints": tfds.features.Tensor(shape=(3,), dtype=np.int64),
                "boxes": tfds.features.Tensor(shape=(3, 4), dtype=np.int64),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, description=type(self).__doc__
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        material = load_material(split)
        first = sum(list(SPLITS.values())[: list(SPLITS).index(split)])
        for index in range(SPLITS[split]):
            scene = draw(material, index, self.size)
            example = {
                "id": first + index,
                "image": digits.png_bytes(scene.image),
                "label": scene.label,
            }
            yield index, example | {"rows": scene.rows, "tints": scene.tints, "boxes": scene.boxes}


def directory(data_dir: str | os.PathLike, size: tuple[int, int]) -> Path:
    """Returns where the prepared set with that canvas (height, width) is, or would be."""
    name = f"{size[0]}x{size[1]}"
    return Path(data_dir) / "cued_digits" / name / str(CuedDigits.VERSION)


def prepare(data_dir: str, size: tuple[int, int]) -> str:
    """Prepares the set with that canvas under `data_dir` unless it is there; returns the directory
    of the prepared set.

    Args:
        data_dir: holds cued_digits/HxW/VERSION, one directory per size.
        size: (height, width) of the canvas.

    Raises:
        ValueError: no such canvas, or the directory is not writable.
    """
    check_size(size)
    where = directory(data_dir, size)
    try:
        storage.prepare_atomically(lambda scratch: CuedDigits(tuple(size), data_dir=scratch), where)
    except OSError as error:
        raise ValueError(
            f"cannot prepare the cued digits under data.data_dir={os.fspath(data_dir)!r}: {error}; "
            "name a writable directory"
        ) from error
    return str(where)
