"""Which detection belongs to which object, without COCO's evaluator: Pascal VOC's average
precision, and what is taken for what.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

IOU = 0.5  # from which on a detection is of an object
Rows = Mapping[str, np.ndarray]


def voc_ap50(rows: Rows, count: int) -> Float[np.ndarray, " classes"]:
    """Returns each class's average precision as Pascal VOC has it since 2010: the area below the
    curve of precision, made falling, over recall; nan without objects.

    Detections go by falling score. One is right if the object of its class with which it overlaps
    most does so with an IoU of at least 0.5 and was not found before; if that object is `crowd`
    (VOC's `difficult`), it counts neither way. Source: VOCdevkit, VOCevaldet.m.

    Args:
        rows: see `detection_scores`.
        count: of the classes.
    """
    found = np.full(count, np.nan)
    for number in range(count):
        mine = rows["true_valid"] & (rows["true_classes"] == number)
        objects = int((mine & ~rows["true_crowd"]).sum())
        if not objects:
            continue
        said = np.argwhere(rows["valid"] & (rows["classes"] == number))
        order = np.argsort([-rows["scores"][i, j] for i, j in said], kind="stable")
        hits, taken = [], set()
        for i, j in said[order]:
            at = np.flatnonzero(mine[i])
            overlap = box_iou(rows["boxes"][i, j][None], rows["true_boxes"][i, at])[0]
            best = int(overlap.argmax()) if len(at) else -1
            if best < 0 or overlap[best] < IOU:
                hits.append(False)
            elif not rows["true_crowd"][i, at[best]]:
                hits.append((i, best) not in taken)
                taken.add((i, best))
        found[number] = area_below(np.array(hits, bool), objects)
    return found


def area_below(hits: Bool[np.ndarray, " n"], objects: int) -> float:
    """Returns the area below the falling envelope of precision over recall.

    Args:
        hits: whether each detection is right, by falling score.
        objects: that there are to find.
    """
    right = hits.cumsum()
    precision = right / np.maximum(np.arange(1, len(hits) + 1), 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float(falling[hits].sum() / objects)


def box_iou(
    first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]
) -> Float[np.ndarray, "n m"]:
    """Returns the intersection over union of all pairs of boxes (left, top, right, bottom), in
    float64; 0 where both are empty.
    """
    first, second = (boxes.astype(np.float64) for boxes in (first, second))
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    other = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(other - corner, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0.0)


def confusion(rows: Rows, count: int, least: float) -> np.ndarray:
    """Returns how often objects of each class are found as each class, [true, found]; the last row
    holds detections of nothing, the last column objects that are not found.

    Detections from the score `least` on take, by falling score, the free object of any class with
    which they overlap most, from an IoU of 0.5 on. What lies in a crowd does not count.

    Args:
        rows: of a whole split.
        count: of the classes.
        least: score.
    """
    counts = np.zeros((count + 1, count + 1), np.int64)
    for i in range(len(rows["id"])):
        said = np.flatnonzero(rows["valid"][i] & (rows["scores"][i] >= least))
        said = said[np.argsort(-rows["scores"][i, said], kind="stable")]
        true = np.flatnonzero(rows["true_valid"][i])
        overlaps = box_iou(rows["boxes"][i, said], rows["true_boxes"][i, true])
        crowd, free = rows["true_crowd"][i, true], np.ones(len(true), bool)
        for j, overlap in zip(said, overlaps, strict=True):
            number = rows["classes"][i, j]
            best = int(np.where(free | crowd, overlap, -1).argmax()) if len(true) else -1
            if best < 0 or not (free | crowd)[best] or overlap[best] < IOU:
                counts[count, number] += not _in_crowd(rows, i, j, true[crowd])
            elif not crowd[best]:
                free[best] = False
                counts[rows["true_classes"][i, true[best]], number] += 1
        for missed in true[free & ~crowd]:
            counts[rows["true_classes"][i, missed], count] += 1
    return counts


def _in_crowd(rows: Rows, i: int, j: int, crowds: np.ndarray) -> bool:
    """Whether most of a detection lies in one crowd."""
    box = rows["boxes"][i, j].astype(np.float64)
    area = max(float((box[2:] - box[:2]).clip(0).prod()), 1e-9)
    for crowd in rows["true_boxes"][i, crowds].astype(np.float64):
        inside = np.minimum(box[2:], crowd[2:]) - np.maximum(box[:2], crowd[:2])
        if inside.clip(0).prod() / area >= IOU:
            return True
    return False
