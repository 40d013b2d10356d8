"""Drawing the clips of the data set `moving_digits`: digits on a photograph that the camera pans
over, all of which move with it but one, and the truth of it, pixel by pixel.

Everything moves by whole pixels, so the flow is exact: where a pixel has a class, its very value
stands where the flow points to, unless another digit has come over it.

What is drawn at random, and why one frame says nothing about which digit moves: `moving_plan`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from lambdanet.data import moving_plan, scenes
from lambdanet.data.moving_plan import COUNT, FRAMES, SHARPNESS, SIDES, SPLITS, Damage, Plan
from lambdanet.data.scenes import IGNORE, Material, load_material

__all__ = ["COUNT", "FRAMES", "SIDES", "SPLITS", "Clip", "draw", "flow", "load_material", "render"]

CLASSES = scenes.CLASSES


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip of t frames and its truth; digits from the lowest to the uppermost.

    Attributes:
        frames: uint8 [t, h, w, 3], some of them blurred or covered.
        sharp: the same before that; all truth is of these.
        owners: int8 [t, h, w]: the uppermost digit whose ink touches the pixel, from 1; 0 = none.
        label_map: uint8 [t, h, w]: numbers of `CLASSES`, or IGNORE where the owner's ink does not
            fill the pixel.
        digits: their classes, 0 to 9, [m].
        rows: of the digits in sklearn.datasets.load_digits, [m].
        moving: which digit does not move with the photograph.
        boxes: left, top, right, bottom of each digit, what others hide of it included, in pixels,
            float32 [t, m, 4]; right and bottom are outside.
        motion: (right, down) of the photograph, then of every digit to the next frame, int
            [t - 1, 1 + m, 2].
        damage: 0 for a sharp frame, 1 for a blurred, 2 for a covered one, [t].
    """

    frames: np.ndarray
    sharp: np.ndarray
    owners: np.ndarray
    label_map: np.ndarray
    digits: np.ndarray
    rows: np.ndarray
    moving: int
    boxes: np.ndarray
    motion: np.ndarray
    damage: np.ndarray

    @property
    def label(self) -> int:
        """The class of the digit that does not move with the photograph."""
        return int(self.digits[self.moving])


def draw(material: Material, index: int, size: tuple[int, int]) -> Clip:
    """Draws one clip, a pure function of the split, the index and the size: see
    `moving_plan.plan`."""
    return render(moving_plan.plan(material, index, size), material, size)


def render(drawn: Plan, material: Material, size: tuple[int, int]) -> Clip:
    """Draws the clip of a plan.

    Args:
        drawn: the plan.
        material: that it was drawn from.
        size: (height, width) of the canvas.
    """
    inks = [
        scenes.coverage(material.ink[number], side, SHARPNESS)
        for number, side in zip(drawn.numbers, drawn.sides, strict=True)
    ]
    digits, corners = material.labels[drawn.numbers], drawn.corners
    sharp = np.empty((FRAMES, *size, 3), np.uint8)
    owners = np.zeros((FRAMES, *size), np.int8)
    label_map = np.zeros((FRAMES, *size), np.uint8)
    for t in range(FRAMES):
        canvas = _window(drawn.background, drawn.pan, t, size).copy()
        for k, (ink, (top, left)) in enumerate(zip(inks, corners[t], strict=True)):
            place = slice(top, top + len(ink)), slice(left, left + len(ink))
            canvas[place] += ink[..., None] * (drawn.colours[k] - canvas[place])
            touched = ink > 0
            owners[t][place][touched] = k + 1
            label_map[t][place][touched] = IGNORE
            label_map[t][place][ink == 1] = 1 + digits[k]
        sharp[t] = np.round(canvas)
    own = np.array([scenes.tight_box(ink >= 0.5) for ink in inks])
    steps = np.diff(corners, axis=0)[..., ::-1]
    panned = np.broadcast_to(np.array(drawn.pan[::-1]), (FRAMES - 1, 1, 2))
    return Clip(
        frames=np.stack([_damaged(f, d) for f, d in zip(sharp, drawn.damage, strict=True)]),
        sharp=sharp,
        owners=owners,
        label_map=label_map,
        digits=digits,
        rows=material.rows[drawn.numbers],
        moving=drawn.moving,
        boxes=(own + np.tile(corners[..., ::-1], 2)).astype(np.float32),
        motion=np.concatenate([panned, steps], axis=1),
        damage=np.array([1 if d.blur else 2 if d.box else 0 for d in drawn.damage]),
    )


def flow(clip: Clip, towards: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the flow of every frame to the next or the one before.

    Args:
        clip: of `draw`.
        towards: 1 = to the next frame, -1 = to the one before.

    Returns:
        (flow, valid): float32 [t, h, w, 2], (right, down) in pixels, and bool [t, h, w]: where the
        pixel has a class, and the point that it shows can be seen in the other frame. The frame
        that has no other has zeros and nothing valid.
    """
    height, width = clip.owners.shape[1:]
    flows = np.zeros((*clip.owners.shape, 2), np.float32)
    valid = np.zeros(clip.owners.shape, bool)
    rows, columns = np.indices((height, width))
    for t in range(len(clip.owners)):
        other = t + towards
        if not 0 <= other < len(clip.owners):
            continue
        motion = towards * clip.motion[min(t, other)]
        moved = motion[clip.owners[t]]
        there = rows + moved[..., 1], columns + moved[..., 0]
        inside = (there[0] >= 0) & (there[0] < height) & (there[1] >= 0) & (there[1] < width)
        there = tuple(np.where(inside, place, 0) for place in there)
        same = clip.owners[other][there] == clip.owners[t]
        flows[t] = moved
        valid[t] = inside & same & (clip.label_map[t] != IGNORE)
    return flows, valid


def _window(
    background: np.ndarray, pan: tuple[int, int], frame: int, size: tuple[int, int]
) -> np.ndarray:
    """Returns what the camera sees: the photograph moves by `pan`, so the camera against it."""
    top, left = (
        (FRAMES - 1 - frame if step > 0 else frame) * abs(step) if step else 0 for step in pan
    )
    return background[top : top + size[0], left : left + size[1]]


def _damaged(frame: np.ndarray, damage: Damage) -> np.ndarray:
    if damage.blur:
        blurred = Image.fromarray(frame).filter(ImageFilter.GaussianBlur(damage.blur))
        return np.asarray(blurred)
    if damage.box:
        left, top, right, bottom = damage.box
        frame = frame.copy()
        frame[top:bottom, left:right] = damage.colour
    return frame
