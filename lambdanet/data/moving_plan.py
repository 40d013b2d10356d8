"""What a clip of the data set `moving_digits` consists of, before anything is drawn.

Each digit has a way of its own, a short line that it could go to and fro on, and a place on that
way, its phase. The moving digit's phase goes on by one from frame to frame; the others keep theirs.
Since phases are uniform, for every frame of every clip there is a clip that is just as likely, in
which another digit moves and that frame is the same to the bit (`swapped`). So one frame says
nothing about which of its digits moves, whatever looks at it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lambdanet.data import photographs
from lambdanet.data.scenes import Material

SPLITS = {"train": 2400, "validation": 300, "test": 300}
FRAMES = 8  # of a clip
COUNT = 3  # digits of a clip, each of another class
DIGIT = (16, 20)  # side in pixels of the 8 x 8 cells of a digit
SHARPNESS = 4.0  # of the strokes' edges, see `scenes.coverage`
PAN = 1  # most pixels per axis that the camera goes between two frames
WAYS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (down, right) of a step on a digit's way
STEP = 2  # pixels per axis between two frames on that way
PERIOD = 8  # frames until a digit is where it was
APART = 16  # least distance of two digits' middles along one axis, with both in mid-way
BRIGHTNESS = (0.5, 1.1)  # of the photograph, times its own
DISTANCE = (110.0, 230.0)  # of a digit's colour from the photograph's mean, in RGB of 0 to 255
BLURRED, COVERED = 0.15, 0.15  # share of the frames
BLUR = (1.0, 2.0)  # deviation in pixels
COVER = (0.3, 0.6)  # sides of what covers a frame, as fractions of the frame's
REACH = STEP * PERIOD // 4  # pixels per axis from mid-way to both ends
SIDES = (64, photographs.NARROWEST - PAN * (FRAMES - 1))
"""Smallest and largest side of the canvas."""


@dataclasses.dataclass(frozen=True)
class Damage:
    """What happens to a frame: nothing, or one of both.

    Attributes:
        blur: deviation in pixels; 0 = sharp.
        box: left, top, right, bottom of what covers it; None = nothing.
        colour: of what covers it, RGB.
    """

    blur: float = 0.0
    box: tuple[int, int, int, int] | None = None
    colour: tuple[int, int, int] = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is drawn at random about a clip. Digits stand from the lowest to the uppermost;
    pairs are (down, right).

    Attributes:
        background: float32 [H, W, 3]: all that the camera passes over.
        pan: pixels per frame that the photograph moves by.
        numbers: of the digits in the material, [m].
        sides: of their 8 cells in pixels, [m].
        colours: float32 [m, 3].
        middles: left upper corners of the digits in frame 0, were they in mid-way, [m, 2].
        ways: [m, 2].
        phases: where on its way each digit is in frame 0, [m], 0 to PERIOD - 1.
        moving: which digit moves on its way.
        damage: of each frame.
    """

    background: np.ndarray
    pan: tuple[int, int]
    numbers: np.ndarray
    sides: np.ndarray
    colours: np.ndarray
    middles: np.ndarray
    ways: np.ndarray
    phases: np.ndarray
    moving: int
    damage: tuple[Damage, ...]

    @property
    def corners(self) -> np.ndarray:
        """Left upper corners of the digits, (down, right), int [t, m, 2]."""
        frames = np.arange(FRAMES)[:, None]
        passed = frames * (np.arange(len(self.numbers)) == self.moving)
        on_way = swing(self.phases + passed)[..., None] * self.ways
        return self.middles + frames[..., None] * np.array(self.pan) + on_way


def swing(phase: np.ndarray) -> np.ndarray:
    """Returns how far a digit of that phase is from mid-way, in pixels: up and down evenly, always
    by STEP from one phase to the next.
    """
    passed = phase % PERIOD
    return STEP * np.minimum(passed, PERIOD - passed) - REACH


def plan(material: Material, index: int, size: tuple[int, int]) -> Plan:
    """Draws what a clip consists of, a pure function of the split, the index and the size; labels
    go round with the index.

    Args:
        material: of the split.
        index: which clip.
        size: (height, width) of the canvas.
    """
    # RandomState: its streams are frozen for good, while Generator methods may change between numpy
    # releases.
    rng = np.random.RandomState([list(SPLITS).index(material.split), index, *size])
    label = index % 10
    others = np.delete(np.arange(10), label)[rng.permutation(9)[: COUNT - 1]]
    classes = np.array([label, *others])[rng.permutation(COUNT)]
    numbers = np.array([_one_of(np.flatnonzero(material.labels == c), rng) for c in classes])
    sides = rng.randint(DIGIT[0], DIGIT[1] + 1, COUNT)
    pans = [(y, x) for y in range(-PAN, PAN + 1) for x in range(-PAN, PAN + 1) if (y, x) != (0, 0)]
    pan = pans[rng.randint(len(pans))]
    ways = np.array(WAYS)[rng.randint(len(WAYS), size=COUNT)]
    background = _background(material.photos, size, pan, rng)
    return Plan(
        background=background,
        pan=pan,
        numbers=numbers,
        sides=sides,
        colours=np.stack([_colour(background.mean((0, 1)), rng) for _ in range(COUNT)]),
        middles=_middles(sides, ways, pan, size, rng),
        ways=ways,
        phases=rng.randint(PERIOD, size=COUNT),
        moving=int(np.flatnonzero(classes == label)[0]),
        damage=tuple(_damage(size, rng) for _ in range(FRAMES)),
    )


def swapped(drawn: Plan, frame: int, moving: int) -> Plan:
    """Returns the plan in which another digit moves and one frame is the same; the same plan again
    if it is swapped back.

    Args:
        drawn: a plan.
        frame: which frame stays as it is.
        moving: which digit is to move.
    """
    phases = drawn.phases.copy()
    phases[drawn.moving] += frame
    phases[moving] -= frame
    return dataclasses.replace(drawn, phases=phases % PERIOD, moving=moving)


def _one_of(values: np.ndarray, rng: np.random.RandomState) -> int:
    return int(values[rng.randint(len(values))])


def _background(
    photos: tuple[np.ndarray, ...],
    size: tuple[int, int],
    pan: tuple[int, int],
    rng: np.random.RandomState,
) -> np.ndarray:
    photo = photos[rng.randint(len(photos))]
    whole = [side + (FRAMES - 1) * abs(step) for side, step in zip(size, pan, strict=True)]
    top, left = (rng.randint(a - b + 1) for a, b in zip(photo.shape[:2], whole, strict=True))
    part = photo[top : top + whole[0], left : left + whole[1]].astype(np.float32)
    part = part[:, ::-1] if rng.randint(2) else part
    return np.minimum(part * np.float32(rng.uniform(*BRIGHTNESS)), 255)


def _middles(
    sides: np.ndarray,
    ways: np.ndarray,
    pan: tuple[int, int],
    size: tuple[int, int],
    rng: np.random.RandomState,
) -> np.ndarray:
    """Draws where the digits are: anywhere that keeps every digit inside in every frame, whichever
    moves, and all of them apart.
    """
    reach = REACH * np.abs(ways)
    panned = (FRAMES - 1) * np.array(pan)
    low = reach - np.minimum(panned, 0)
    boxes = np.round(sides * 10 / 8).astype(int)[:, None]
    high = np.array(size) - boxes - reach - np.maximum(panned, 0)
    while True:
        drawn = low + np.floor(rng.uniform(size=(256, len(sides), 2)) * (high - low + 1)).astype(
            int
        )
        centres = drawn + boxes / 2
        gaps = np.abs(centres[:, :, None] - centres[:, None]).max(-1)
        gaps[:, np.arange(len(sides)), np.arange(len(sides))] = np.inf
        kept = np.flatnonzero(gaps.min((1, 2)) >= APART)
        if len(kept):
            return drawn[kept[0]]


def _colour(mean: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Draws a colour at a drawn distance from the photograph's mean colour."""
    colours = rng.uniform(0, 255, (64, 3)).astype(np.float32)
    apart = np.linalg.norm(colours - mean, axis=1)
    return colours[np.argmin(np.abs(apart - rng.uniform(*DISTANCE)))]


def _damage(size: tuple[int, int], rng: np.random.RandomState) -> Damage:
    kind, blur, colour = rng.uniform(), rng.uniform(*BLUR), rng.randint(256, size=3)
    sides = [round(side * share) for side, share in zip(size, rng.uniform(*COVER, 2), strict=True)]
    top, left = (rng.randint(whole - side + 1) for whole, side in zip(size, sides, strict=True))
    if kind < BLURRED:
        return Damage(blur=blur)
    if kind < BLURRED + COVERED:
        box = (left, top, left + sides[1], top + sides[0])
        return Damage(box=box, colour=tuple(int(c) for c in colour))
    return Damage()
