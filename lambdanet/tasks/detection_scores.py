"""Average precision of detection on the host, by COCO's own evaluator; Pascal VOC's is in
`detection_matching`.

Rows are what `detection.score` returns, over all records of a split: detections in pixels of the
stored pictures, and the exact truth. Whoever wants to check a number needs no code from here:
`detection_files.write_results` writes both as files that pycocotools reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as run_lengths

from lambdanet.data.paste_masks import PastedMasks
from lambdanet.data.record import DataInfo

METRICS = ("coco", "voc")  # detection.metric: what is the headline
STATISTICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six of the evaluator's; an area counts as small below 32^2 pixels of the stored
picture, as large above 96^2."""
KINDS = {"box": "bbox", "mask": "segm"}
Rows = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Average precision of one kind, boxes or masks; nan where there is nothing to find.

    Attributes:
        statistics: names of `STATISTICS` -> [0, 1].
        classes: likewise 'ap' and 'ap50' -> one value per class.
        precision: at IoU 0.5, [recall 0, 0.01, ... 1, classes]; nan for a class without objects.
        objects: that count (no crowds), by class.
    """

    statistics: Mapping[str, float]
    classes: Mapping[str, np.ndarray]
    precision: np.ndarray
    objects: np.ndarray


# --------------------------------------------------------------------------------------------------
# COCO's format
# --------------------------------------------------------------------------------------------------


def all_names(rows: Rows, info: DataInfo) -> list[str]:
    """Returns a name for every class of data, truth and detections; 'class 7' where the data has
    none.
    """
    seen = [rows["true_classes"][rows["true_valid"]], rows["classes"][rows["valid"]]]
    count = max([len(info.classes), *(int(c.max()) + 1 for c in seen if c.size)])
    return [*info.classes, *(f"class {i}" for i in range(len(info.classes), count))]


def picture_ids(rows: Rows) -> tuple[list[int], bool]:
    """Returns a number for every picture, and whether they are those of the set: pictures of
    several splits may have the same, as files in COCO's format count for themselves; then all are
    counted anew, 1, 2, ...
    """
    stored = [int(number) for number in rows["id"]]
    if len(set(stored)) == len(stored):
        return stored, True
    return list(range(1, len(stored) + 1)), False


def truth(
    rows: Rows,
    names: Sequence[str],
    numbers: Sequence[int] | None = None,
    pictures: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Returns the truth as COCO's annotations: images, annotations, categories.

    Args:
        rows: original_shape [n, 2], true_boxes [n, m, 4], true_classes, true_valid, true_crowd and
            area [n, m], and with masks mask_counts [n, bytes].
        names: of the classes.
        numbers: of the categories, one per class; None = 1, 2, ...
        pictures: numbers of the pictures, all different; None = 1, 2, ...
    """
    numbers = numbers or range(1, len(names) + 1)
    images, annotations = [], []
    for i, picture in enumerate(_counted(rows, pictures)):
        height, width = (int(side) for side in rows["original_shape"][i])
        images.append({"id": int(picture), "height": height, "width": width})
        counts = _counts(rows["mask_counts"][i]) if "mask_counts" in rows else []
        for place, j in enumerate(np.flatnonzero(rows["true_valid"][i])):
            found = {
                "id": len(annotations) + 1,  # 0 would count as 'not matched'
                "image_id": int(picture),
                "category_id": int(numbers[rows["true_classes"][i, j]]),
                "bbox": _box(rows["true_boxes"][i, j]),
                "area": float(rows["area"][i, j]),
                "iscrowd": int(rows["true_crowd"][i, j]),
            }
            if counts:
                found["segmentation"] = {"size": [height, width], "counts": counts[place]}
            annotations.append(found)
    categories = [{"id": int(n), "name": name} for n, name in zip(numbers, names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def results(
    rows: Rows,
    kind: str,
    numbers: Sequence[int] | None = None,
    pictures: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Returns the detections as COCO's results: image_id, category_id, score, and bbox (left, top,
    width, height) or segmentation (compressed run lengths).

    Args:
        rows: original_shape [n, 2], boxes [n, k, 4], scores, classes and valid [n, k], and for
            masks: masks uint8 [n, k, side, side], 255 times the probability.
        kind: 'box' or 'mask'.
        numbers: as for `truth`.
        pictures: as for `truth`.
    """
    found = []
    for i, picture in enumerate(_counted(rows, pictures)):
        at = np.flatnonzero(rows["valid"][i])
        coded: Iterable[Any] = map(_box, rows["boxes"][i, at])
        if kind == "mask":
            shape = tuple(int(side) for side in rows["original_shape"][i])
            soft = rows["masks"][i, at].astype(np.float32) / 255
            coded = map(encode, PastedMasks(soft, rows["boxes"][i, at], shape))
        for j, code in zip(at, coded, strict=True):
            number = int(rows["classes"][i, j])
            found.append(
                {
                    "image_id": int(picture),
                    "category_id": int(numbers[number]) if numbers else number + 1,
                    {"box": "bbox", "mask": "segmentation"}[kind]: code,
                    "score": float(rows["scores"][i, j]),
                }
            )
    return found


def encode(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Returns a mask as COCO's compressed run lengths: size, and counts as text."""
    coded = run_lengths.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def _counted(rows: Rows, pictures: Sequence[int] | None) -> Sequence[int]:
    return range(1, len(rows["original_shape"]) + 1) if pictures is None else pictures


def _box(box: np.ndarray) -> list[float]:
    left, top, right, bottom = box.astype(np.float64).tolist()
    return [left, top, right - left, bottom - top]


def _counts(row: np.ndarray) -> list[str]:
    text = row.tobytes().rstrip(b"\0").decode()
    return text.split("\n") if text else []


# --------------------------------------------------------------------------------------------------
# COCO's score
# --------------------------------------------------------------------------------------------------


def scores(rows: Rows, info: DataInfo, kind: str) -> Scores:
    """Returns COCO's scores of boxes or masks, by faster-coco-eval where it is installed (its
    numbers are the same), else by pycocotools.

    The last few are kept by the rows' contents: metrics, tables, pictures and files need the same.

    Args:
        rows: of a whole split.
        info: for the number of classes.
        kind: 'box' or 'mask'.
    """
    digest = hashlib.blake2b(f"{kind} {len(info.classes)}".encode())
    for name in sorted(rows):
        digest.update(name.encode() + str(rows[name].shape).encode())
        digest.update(np.ascontiguousarray(rows[name]).data)
    key = digest.digest()
    if key not in _KEPT:
        names = all_names(rows, info)
        while len(_KEPT) >= _MOST_KEPT:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = coco_scores(truth(rows, names), results(rows, kind), kind)
    return _KEPT[key]


_KEPT: dict[bytes, Scores] = {}
_MOST_KEPT = 4  # boxes and masks, of live and averaged weights


@functools.cache
def evaluator() -> tuple[Any, Any]:
    """Returns the classes COCO and COCOeval of the fastest evaluator that is installed."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    except ImportError:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval


def coco_scores(
    annotations: Mapping[str, Any], found: Sequence[dict[str, Any]], kind: str
) -> Scores:
    """Returns what COCO's evaluator says.

    Args:
        annotations: of `truth`.
        found: of `results`.
        kind: 'box' or 'mask'.
    """
    coco, make = evaluator()
    with contextlib.redirect_stdout(io.StringIO()):  # it reports on its progress
        true = coco()
        true.dataset = {"info": {}, **annotations}
        true.createIndex()
        if found:
            said = true.loadRes([dict(one) for one in found])  # which it writes into
        else:
            said = coco()
            said.dataset = {"info": {}, **annotations, "annotations": []}
            said.createIndex()
        run = make(true, said, KINDS[kind])
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = np.where(run.eval["precision"] < 0, np.nan, run.eval["precision"])[..., 0, -1]
    at_half = precision[0]  # [recall, class]
    objects = np.zeros(len(annotations["categories"]), np.int64)
    place = {category["id"]: i for i, category in enumerate(annotations["categories"])}
    for one in annotations["annotations"]:
        objects[place[one["category_id"]]] += not one["iscrowd"]
    values = (float(v) if v >= 0 else float("nan") for v in run.stats)
    by_class = {"ap": precision.mean((0, 1)), "ap50": at_half.mean(0)}
    return Scores(dict(zip(STATISTICS, values, strict=False)), by_class, at_half, objects)


def remark(found: Scores, names: Sequence[str]) -> str:
    """Returns what has no object to find, so that its average precision is nan; '' for nothing."""
    absent = [name for name, count in zip(names, found.objects, strict=True) if not count]
    sizes = [
        name.removeprefix("ap_")
        for name, value in found.statistics.items()
        if name.startswith("ap_") and np.isnan(value)
    ]
    said = []
    if absent:
        said.append(
            f"Without an object in truth, so nan and left out of the mean: {', '.join(absent)}."
        )
    if sizes:
        said.append(f"No object is {' or '.join(sizes)}, so their AP is nan.")
    return " ".join(said)
