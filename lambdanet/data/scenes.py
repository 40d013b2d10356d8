"""Drawing the scenes of the data set `digit_scenes`: digits with smooth edges, one over the other,
on a photograph; and their truth, pixel by pixel.

The order of drawing is the depth: what comes later lies on top. A digit's coverage of a pixel goes
from 0 to 1 across its edge, over two or three pixels. Where the uppermost digit covers less than
`BAND[0]`, the pixel belongs to what is below it; from `BAND[1]` on, to the digit; in between to
nobody, which the label map says by IGNORE. Instance masks have no such band: there a pixel belongs
to the uppermost digit that covers half of it.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from PIL import Image

from lambdanet.data import digits, photographs

SPLITS = {"train": 4800, "validation": 300, "test": 300}
SIDES = (64, photographs.NARROWEST)  # smallest and largest side of the canvas
COUNT = (2, 6)  # digits of a scene
DIGIT = (16, 40)  # side in pixels of the 8 x 8 cells of a digit
CLASSES = ("background", *map(str, range(10)))
IGNORE = 255
BAND = (0.25, 0.75)  # coverage between which a pixel belongs to nobody
INK = 0.4  # of a cell, 0 to 1, where the edge of a stroke is
SHARPNESS = 2.0  # coverage per ink, at the smallest size; it grows with the digit
VISIBLE = 0.75  # least part of every digit that the others leave visible
BRIGHTNESS = (0.5, 1.1)  # of the photograph, times its own
DISTANCE = (90.0, 220.0)  # of a digit's colour from the mean colour below it, in RGB of 0 to 255
OPACITY = (0.75, 1.0)  # the rest of the photograph's texture shows through


@dataclasses.dataclass(frozen=True)
class Material:
    """What the scenes of one split are made of.

    Attributes:
        split: its name.
        ink: cells of the split's digits, 0 to 1, [n, 8, 8].
        labels: their classes, 0 to 9, [n].
        rows: their rows in sklearn.datasets.load_digits, [n].
        photos: uint8 [h, w, 3] each: the split's part of each photograph.
    """

    split: str
    ink: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    photos: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image and its truth; digits from the lowest to the uppermost.

    Attributes:
        image: uint8 [h, w, 3].
        label_map: uint8 [h, w]: numbers of `CLASSES`, or IGNORE.
        labels: the digits, 0 to 9, [m].
        rows: of the digits in sklearn.datasets.load_digits, [m].
        masks: bool [m, h, w]: the visible part of each; no two overlap.
    """

    image: np.ndarray
    label_map: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    masks: np.ndarray

    @property
    def boxes(self) -> np.ndarray:
        """Left, top, right, bottom around the visible parts, in pixels, float32 [m, 4]; right and
        bottom are outside.
        """
        return np.stack([tight_box(mask) for mask in self.masks])


def tight_box(mask: np.ndarray) -> np.ndarray:
    """Returns left, top, right, bottom around what is set in a mask bool [h, w], float32 [4]."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


@functools.cache
def load_material(split: str) -> Material:
    """Loads digits and photographs; the digits of a split are those of the same split of the data
    set `digits`.
    """
    from sklearn.datasets import load_digits  # a second of imports that only the first run needs

    data = load_digits()
    rows = digits.split_rows(data.target)[split]
    ink = data.images[rows] / 16
    return Material(split, ink, data.target[rows], rows, photographs.parts(split))


def coverage(ink: np.ndarray, side: int, sharpness: float = SHARPNESS) -> np.ndarray:
    """Returns how much of each pixel a digit covers, 0 to 1.

    Args:
        ink: its cells, 0 to 1, [8, 8].
        side: what the 8 cells become, in pixels.
        sharpness: coverage per ink, at the smallest size; it grows with the digit.

    Returns:
        [s, s], s = 10/8 side: a cell more on every side, in which the strokes at the border end.
    """
    padded = Image.fromarray(np.pad(ink, 1).astype(np.float32))
    size = round(side * 10 / 8)
    smooth = np.asarray(padded.resize((size, size), Image.Resampling.BICUBIC))
    return np.clip(0.5 + sharpness * side / DIGIT[0] * (smooth - INK), 0, 1)


def draw(material: Material, index: int, size: tuple[int, int]) -> Scene:
    """Draws one scene, a pure function of the split, the index and the size.

    Args:
        material: of the split.
        index: which scene.
        size: (height, width) of the canvas.
    """
    # RandomState: its streams are frozen for good, while Generator methods may change between numpy
    # releases.
    rng = np.random.RandomState([list(SPLITS).index(material.split), index, *size])
    canvas = _background(material.photos, size, rng)
    count = rng.randint(COUNT[0], COUNT[1] + 1)
    chosen, covers = [], []
    while len(chosen) < count:
        number = rng.randint(len(material.rows))
        side = rng.randint(DIGIT[0], DIGIT[1] + 1)
        cover = _place(coverage(material.ink[number], side), size, rng)
        if _leaves_all_visible([*covers, cover]):
            chosen.append(number)
            covers.append(cover)
    label_map = np.zeros(size, np.uint8)
    for number, cover in zip(chosen, covers, strict=True):
        strength = np.float32(rng.uniform(*OPACITY)) * cover[..., None]
        canvas += strength * (_colour(canvas, cover, rng) - canvas)
        label_map[cover > BAND[0]] = IGNORE
        label_map[cover >= BAND[1]] = 1 + material.labels[number]
    image = np.round(canvas).astype(np.uint8)
    masks = _visible(np.stack(covers))
    return Scene(image, label_map, material.labels[chosen], material.rows[chosen], masks)


def _background(
    photos: tuple[np.ndarray, ...], size: tuple[int, int], rng: np.random.RandomState
) -> np.ndarray:
    photo = photos[rng.randint(len(photos))]
    top, left = (
        rng.randint(whole - part + 1) for whole, part in zip(photo.shape[:2], size, strict=True)
    )
    patch = photo[top : top + size[0], left : left + size[1]].astype(np.float32)
    patch = patch[:, ::-1] if rng.randint(2) else patch
    return np.minimum(patch * np.float32(rng.uniform(*BRIGHTNESS)), 255)


def _place(cover: np.ndarray, size: tuple[int, int], rng: np.random.RandomState) -> np.ndarray:
    """Lays a digit somewhere on an empty canvas."""
    top, left = (rng.randint(whole - len(cover) + 1) for whole in size)
    canvas = np.zeros(size, np.float32)
    canvas[top : top + len(cover), left : left + len(cover)] = cover
    return canvas


def _visible(covers: np.ndarray) -> np.ndarray:
    """Returns the visible parts, bool [m, h, w], of digits whose coverage is given likewise."""
    masks = covers >= 0.5
    above = np.zeros(masks.shape[1:], bool)
    for mask in masks[::-1]:
        mask &= ~above
        above |= mask
    return masks


def _leaves_all_visible(covers: list[np.ndarray]) -> bool:
    covers = np.stack(covers)
    seen, whole = (part.sum(axis=(1, 2)) for part in (_visible(covers), covers >= 0.5))
    return bool((seen >= VISIBLE * whole).all())


def _colour(canvas: np.ndarray, cover: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Draws a colour at a drawn distance from what is below, lighter or darker or of another
    hue.
    """
    below = np.tensordot(cover, canvas, 2) / cover.sum()
    colours = rng.uniform(0, 255, (64, 3)).astype(np.float32)
    apart = np.linalg.norm(colours - below, axis=1)
    return colours[np.argmin(np.abs(apart - rng.uniform(*DISTANCE)))]
