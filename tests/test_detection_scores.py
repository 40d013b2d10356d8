"""Scores of detection: average precision against a loop over all detections, and the evaluators by
hand on the files that are written; VOC's rule; confusions; report and predictions.
"""

import contextlib
import io
import json
import tracemalloc

import numpy as np
import pytest
from covering import part
from detection_rows import FOUND, INFO, PLACES, SIZE, boxes_of, make_rows
from pycocotools import mask as run_lengths

from configs import base
from lambdanet.data.paste_masks import paste_masks
from lambdanet.data.record import DataInfo
from lambdanet.tasks import detection_files, detection_scores
from lambdanet.tasks.detection_matching import area_below, box_iou, confusion, voc_ap50
from lambdanet.tasks.detection_scores import STATISTICS


def brute_ap(rows, number, threshold):
    """COCO's average precision of one class at one IoU, all sizes, by loops."""
    marks = []  # (score, is right, is ignored)
    objects = 0
    for i in range(len(rows["id"])):
        true = [
            j for j in np.flatnonzero(rows["true_valid"][i])
            if rows["true_classes"][i, j] == number
        ]  # fmt: skip
        true.sort(key=lambda j, i=i: rows["true_crowd"][i, j])  # crowds last
        objects += sum(not rows["true_crowd"][i, j] for j in true)
        said = [
            j for j in np.flatnonzero(rows["valid"][i]) if rows["classes"][i, j] == number
        ]  # fmt: skip
        said.sort(key=lambda j, i=i: -rows["scores"][i, j])
        free = set(true)
        for j in said:
            best, chosen = threshold - 1e-10, None
            for g in true:
                crowd = rows["true_crowd"][i, g]
                if g not in free and not crowd:
                    continue
                if chosen is not None and not rows["true_crowd"][i, chosen] and crowd:
                    break
                iou = overlap(rows["boxes"][i, j], rows["true_boxes"][i, g], crowd)
                if iou >= best:
                    best, chosen = iou, g
            ignored = chosen is not None and rows["true_crowd"][i, chosen]
            if chosen is not None and not ignored:
                free.discard(chosen)
            marks.append((rows["scores"][i, j], chosen is not None, ignored))
    if not objects:
        return np.nan
    marks.sort(key=lambda mark: -mark[0])
    hits = np.array([right for _, right, ignored in marks if not ignored])
    right, wrong = hits.cumsum(), (~hits).cumsum()
    recall, precision = right / objects, right / (right + wrong)
    found = [precision[recall >= level].max(initial=0) for level in np.linspace(0, 1, 101)]
    return float(np.mean(found))


def overlap(box, other, crowd):
    box, other = box.astype(float), other.astype(float)
    width, height = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = max(width, 0) * max(height, 0)
    first, second = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return shared / (first if crowd else first + second - shared)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_a_loop(seed):
    rows = make_rows(seed)
    found = detection_scores.scores(rows, INFO, "box")
    thresholds = np.linspace(0.5, 0.95, 10)
    table = np.array([[brute_ap(rows, k, t) for t in thresholds] for k in range(3)])
    assert found.statistics["ap"] == pytest.approx(table.mean(), abs=1e-12)
    assert found.statistics["ap50"] == pytest.approx(table[:, 0].mean(), abs=1e-12)
    assert found.statistics["ap75"] == pytest.approx(table[:, 5].mean(), abs=1e-12)
    np.testing.assert_allclose(found.classes["ap"], table.mean(1), atol=1e-12)
    np.testing.assert_allclose(found.classes["ap50"], table[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.precision.mean(0), table[:, 0], atol=1e-12)
    counts = rows["true_classes"][rows["true_valid"] & ~rows["true_crowd"]]
    np.testing.assert_array_equal(found.objects, np.bincount(counts, minlength=3))


def evaluators():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    yield COCO, COCOeval
    with contextlib.suppress(ImportError):
        from faster_coco_eval import COCO, COCOeval_faster

        yield COCO, COCOeval_faster


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_the_evaluators_by_hand_on_the_files_give_the_same(kind, tmp_path, monkeypatch):
    rows = make_rows(3, masks=True)
    ours = detection_scores.scores(rows, INFO, kind).statistics
    info = DataInfo(INFO.features, INFO.classes, (2, 17, 90))
    paths = detection_files.write_results(rows, tmp_path, info=info, masks=True)
    assert [p.name for p in paths] == ["predictions.json", "mask_predictions.json", "truth.json"]
    file = {"box": "predictions.json", "mask": "mask_predictions.json"}[kind]
    used = {one["category_id"] for one in json.loads((tmp_path / file).read_text())}
    assert used == {2, 17, 90}
    for coco, make in evaluators():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco(str(tmp_path / "truth.json"))
            run = make(
                truth, truth.loadRes(str(tmp_path / file)), {"box": "bbox"}.get(kind, "segm")
            )
            run.evaluate(), run.accumulate(), run.summarize()
        for name, value in zip(STATISTICS, run.stats, strict=False):
            assert (value < 0 and np.isnan(ours[name])) or ours[name] == pytest.approx(
                value, abs=1e-12
            ), name
        names = detection_scores.all_names(rows, INFO)
        monkeypatch.setattr(detection_scores, "evaluator", lambda pair=(coco, make): pair)
        annotations = detection_scores.truth(rows, names)
        again = detection_scores.coco_scores(
            annotations, detection_scores.results(rows, kind), kind
        )
        np.testing.assert_allclose(list(again.statistics.values()), list(ours.values()), atol=1e-12)


def test_masks_are_coded_one_at_a_time():
    rows = make_rows(6, count=2, masks=True)
    coded = []
    for i in range(2):
        at = np.flatnonzero(rows["valid"][i])
        soft = rows["masks"][i, at].astype(np.float32) / 255
        every = paste_masks(soft, rows["boxes"][i, at], SIZE)
        coded += run_lengths.encode(np.asfortranarray(every.transpose(1, 2, 0), np.uint8))
    found = [one["segmentation"] for one in detection_scores.results(rows, "mask")]
    assert found == [{"size": list(c["size"]), "counts": c["counts"].decode()} for c in coded]


def peak(run):
    """Returns the most bytes of arrays that a call held at once."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_masks_of_large_pictures_take_the_memory_of_few(tmp_path):
    shape, count = (600, 800), 60
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 300, (count, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 5
    found = {
        "boxes": boxes, "scores": np.full(count, 0.9, np.float32), "valid": np.ones(count, bool),
        "classes": np.zeros(count, np.int32), "masks": np.full((count, 28, 28), 0.9, np.float32),
    }  # fmt: skip
    rows = {name: value[None] for name, value in found.items()} | {
        "id": np.array([1]), "original_shape": np.array([shape]),
        "masks": np.full((1, count, 28, 28), 230, np.uint8),
    }  # fmt: skip
    few = 12 * shape[0] * shape[1]  # bytes; all masks are 60 such, and 60 more as they are coded
    assert peak(lambda: detection_scores.results(rows, "mask")) < few
    config = base.get_config()
    config.detection.masks = True

    def write():
        objects = detection_files.shown_objects(found, shape, shape, config)
        results = detection_files.Results(["cell"], [1])
        results.add("a.png", shape, objects)
        results.write(tmp_path)

    assert peak(write) < few


def test_perfect_detections_have_precision_one_and_none_have_none():
    rows = make_rows(1, masks=True)
    perfect = dict(rows)
    for name in ("boxes", "classes", "valid"):
        perfect[name] = rows[f"true_{name}"]
    perfect["valid"] = rows["true_valid"] & ~rows["true_crowd"]
    perfect["scores"] = np.ones(perfect["valid"].shape, np.float32)
    found = detection_scores.scores(perfect, INFO, "box")
    assert found.statistics["ap"] == 1.0 and np.isnan(found.statistics["ap_large"])
    assert detection_scores.remark(found, INFO.classes) == "No object is large, so their AP is nan."
    nothing = dict(rows, valid=np.zeros_like(rows["valid"]))
    for kind in ("box", "mask"):
        assert detection_scores.scores(nothing, INFO, kind).statistics["ap"] == 0.0
    empty = dict(rows, true_valid=np.zeros_like(rows["true_valid"]))
    found = detection_scores.scores(empty, INFO, "box")
    assert all(map(np.isnan, found.statistics.values()))
    assert "cat, dog, owl" in detection_scores.remark(found, INFO.classes)


def test_what_changes_in_the_rows_changes_the_score():
    rows = make_rows(2)
    first = detection_scores.scores(rows, INFO, "box")
    assert detection_scores.scores(dict(rows), INFO, "box") is first
    rows["scores"] = rows["scores"][:, ::-1].copy()
    assert detection_scores.scores(rows, INFO, "box").statistics != first.statistics


def test_voc_by_hand():
    box = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    said = box[[0, 0, 1, 2]] + np.array([[0, 0, 0, 0], [1, 0, 1, 0], [8, 0, 8, 0], [1, 0, 1, 0]])
    rows = {
        "id": np.array([5]), "true_boxes": box[None], "true_classes": np.zeros((1, 3), int),
        "true_valid": np.ones((1, 3), bool), "true_crowd": np.array([[False, False, True]]),
        "boxes": said[None].astype(np.float32), "classes": np.zeros((1, 4), int),
        "scores": np.array([[0.5, 0.9, 0.8, 0.7]]), "valid": np.ones((1, 4), bool),
    }  # fmt: skip
    # 0.9 right; 0.8 overlaps too little: wrong; 0.7 is of the difficult one: does not count; 0.5
    # is of what 0.9 has found: wrong. Recall 1/2 at precision 1.
    found = voc_ap50(rows, 2)
    assert found[0] == 0.5 and np.isnan(found[1])
    rows["boxes"][0, 2] = box[1]
    assert voc_ap50(rows, 2)[0] == 1.0
    hits = np.array([True, False, True, False, False, True])
    assert area_below(hits, 4) == pytest.approx((1 + 2 / 3 + 1 / 2) / 4)


def test_iou_of_pairs():
    rng = np.random.default_rng(0)
    first, second = boxes_of(rng, 5), boxes_of(rng, 4)
    expected = [[overlap(a, b, False) for b in second] for a in first]
    np.testing.assert_allclose(box_iou(first, second), expected, rtol=1e-12)
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4)))[0, 0] == 0


def test_confusions_by_hand():
    rows = make_rows(0, count=1)
    rows["true_valid"][:], rows["valid"][:] = np.arange(PLACES) < 3, np.arange(FOUND) < 4
    rows["true_boxes"][0, :3] = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 60, 20]]
    rows["true_classes"][0, :3], rows["true_crowd"][0] = [0, 1, 2], False
    rows["true_crowd"][0, 2] = True
    rows["boxes"][0, :4] = [[0, 0, 10, 9], [50, 50, 60, 60], [41, 1, 50, 9], [20, 0, 30, 10]]
    rows["classes"][0, :4], rows["scores"][0, :4] = [1, 0, 0, 1], [0.9, 0.8, 0.7, 0.4]
    expected = np.zeros((4, 4), int)
    expected[0, 1] = expected[3, 0] = expected[1, 3] = 1  # 0 as 1; nothing as 0; 1 missed
    np.testing.assert_array_equal(confusion(rows, 3, 0.5), expected)
    expected[1, 3], expected[1, 1] = 0, 1
    np.testing.assert_array_equal(confusion(rows, 3, 0.4), expected)


@pytest.mark.parametrize(
    ("classes", "masks"),
    part([(c, m) for c in (3, 30) for m in (False, True)], [(3, False), (30, True)]),
)
def test_panels(classes, masks):
    from matplotlib.figure import Figure

    from lambdanet.analysis.figure_text import literal_text
    from lambdanet.tasks import detection

    config = base.get_config()
    config.detection.masks = masks
    rows = make_rows(4, masks=True)
    info = DataInfo(INFO.features, tuple(f"$c_{i}$" for i in range(classes)))
    rng = np.random.default_rng(0)
    examples = {
        "image": rng.integers(0, 256, (5, 48, 40, 1), np.uint8),
        "image_shape": np.tile((30, 40), (5, 1)), "id": rows["id"][:5],
    }  # fmt: skip
    shown = dict(sums={}, rows=rows, examples=examples, info=info, config=config)
    with literal_text():
        figure = Figure(figsize=(17, 10), layout="constrained")
        lines = detection.panels(*figure.subfigures(1, 2), **shown)
        figure.savefig(io.BytesIO(), format="png")
    assert any(r"\$c\_2\$" in line for line in lines) and any("large" in line for line in lines)
    nothing = dict(rows, valid=np.zeros_like(rows["valid"]), true_valid=rows["true_valid"] & False)
    with literal_text():
        figure = Figure(figsize=(17, 10), layout="constrained")
        detection.panels(*figure.subfigures(1, 2), **{**shown, "rows": nothing})
        figure.savefig(io.BytesIO(), format="png")
