"""Rows of a split as `detection.score` gives them, drawn by chance."""

import numpy as np
from pycocotools import mask as run_lengths

from lambdanet.data.record import DataInfo

INFO = DataInfo({"image": "image"}, ("cat", "dog", "owl"))
SIZE, PLACES, FOUND, CELLS = (60, 80), 6, 9, 14  # (height, width); objects; detections; of masks


def boxes_of(rng, count):
    corner = rng.uniform(0, (SIZE[1] - 12, SIZE[0] - 12), (count, 2))
    far = np.minimum(corner + rng.uniform(6, 40, (count, 2)), (SIZE[1], SIZE[0]))
    return np.concatenate([corner, far], 1).astype(np.float32)


def bitmap(box):
    mask = np.zeros(SIZE, np.uint8)
    left, top, right, bottom = box.round().astype(int)
    mask[top:bottom, left:right] = 1
    mask[top, left] = 0
    return mask


def make_rows(seed=0, count=12, masks=False):
    """Detections near the objects, some of a wrong class, some of nothing, some twice; crowds."""
    rng = np.random.default_rng(seed)
    rows = {
        "id": np.arange(100, 100 + count), "original_shape": np.tile(SIZE, (count, 1)),
        "boxes": np.zeros((count, FOUND, 4), np.float32),
        "scores": rng.random((count, FOUND)).astype(np.float32),
        "classes": rng.integers(0, 3, (count, FOUND)).astype(np.int32),
        "valid": rng.random((count, FOUND)) < 0.85,
        "true_boxes": np.zeros((count, PLACES, 4), np.float32),
        "true_classes": rng.integers(0, 3, (count, PLACES)).astype(np.int32),
        "true_valid": np.arange(PLACES) < rng.integers(0, PLACES + 1, (count, 1)),
        "true_crowd": rng.random((count, PLACES)) < 0.1,
        "area": np.zeros((count, PLACES), np.float32),
    }  # fmt: skip
    rows["masks"] = np.zeros((count, FOUND, CELLS, CELLS), np.uint8)
    rows["mask_counts"] = np.zeros((count, 4096), np.uint8)
    for i in range(count):
        true = rows["true_boxes"][i] = boxes_of(rng, PLACES)
        rows["area"][i] = (true[:, 2:] - true[:, :2]).prod(1)
        near = rng.integers(0, PLACES, FOUND)
        rows["boxes"][i] = boxes_of(rng, FOUND)
        hits = rng.random(FOUND) < 0.7
        moved = (true[near] + rng.normal(0, 2.0, (FOUND, 4))).astype(np.float32)
        rows["boxes"][i, hits] = np.clip(moved, 0, (SIZE[1], SIZE[0]) * 2)[hits]
        same = hits & (rng.random(FOUND) < 0.8)
        rows["classes"][i, same] = rows["true_classes"][i, near][same]
        rows["masks"][i] = 255 * (rng.random((FOUND, CELLS, CELLS)) < 0.95)
        coded = [
            run_lengths.encode(np.asfortranarray(bitmap(box)))["counts"]
            for box in true[rows["true_valid"][i]]
        ]
        text = np.frombuffer(b"\n".join(coded), np.uint8)
        rows["mask_counts"][i, : len(text)] = text
    return rows if masks else {k: v for k, v in rows.items() if not k.startswith("mask")}
