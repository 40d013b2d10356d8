"""Benchmark of detectors: our step on a small network, its table, and that a network that does
something else than torchvision's is noticed.
"""

import sys

import jax
import numpy as np
import pytest
from detector_helpers import build

from benchmarks import detection_step, detection_worker, turns

SMALL = dict(mask_convs=0, max_detections=3, score_threshold=0.0, num_classes=90)


@pytest.mark.exhaustive
@pytest.mark.parametrize("training", [True, False])
def test_steps_of_a_small_network(training, tmp_path):
    images, targets = detection_worker.pictures(2, 64)
    assert (targets["boxes"][..., 2:] - targets["boxes"][..., :2] > 3).all()
    assert targets["boxes"].min() >= 0 and targets["boxes"].max() <= 64
    step = detection_worker.prepare(
        lambda: build("mask_rcnn", **SMALL), tmp_path / "none.npz", images, targets, training
    )
    if training:
        assert all(np.isfinite(step()["loss"]) for _ in range(2))
    else:
        assert step()["found"] == 6 and step()["score"] > 0


def test_objects_have_room():
    _, targets = detection_worker.pictures(2, 64)
    padded = detection_worker.in_room(targets)
    assert padded["boxes"].shape == (2, detection_worker.ROOM, 4)
    np.testing.assert_array_equal(padded["valid"].sum(1), detection_worker.OBJECTS)
    np.testing.assert_array_equal(padded["boxes"][padded["valid"]], targets["boxes"].reshape(-1, 4))


WORKER = """
import sys
from benchmarks.turns import serve
serve(lambda: dict(loss=2.0), dict(name=sys.argv[1]))
"""


def test_workers_take_turns(tmp_path, monkeypatch):
    (tmp_path / "a_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(p for p in sys.path if p)}")
    found = turns.in_turns("a_worker", {"one": ["1"], "two": ["2"]}, rounds=2)
    assert [record["name"] for record in found.values()] == ["1", "2"]
    for record in found.values():
        assert [step["loss"] for step in record["steps"]] == [2.0] * 3
        assert all(step["s"] >= 0 and step["peak_mib"] > 0 for step in record["steps"])


def records(direction="training", factor=1.0, **changed):
    said = dict(loss=2.0) if direction == "training" else dict(found=200, score=9.0)
    steps = [dict(said, s=s, cpu_s=2 * s, peak_mib=100.0) for s in (9.0, 4.0, 3.0, 5.0)]
    ours = [
        {**step, "s": step["s"] / 2, "cpu_s": factor * step["cpu_s"], **changed} for step in steps
    ]
    return {
        ("torch", "retinanet", direction): dict(steps=steps),
        ("ours", "retinanet", direction): dict(steps=ours),
    }


def test_table_leaves_the_first_step_out():
    theirs, ours = detection_step.rows_of(records(factor=0.25))
    assert theirs[2:] == ["torch", "3000", "4000", "8000", "", "2.0000", "100"]
    assert ours[2:] == ["ours", "1500", "2000", "2000", "2.00 / 4.00", "2.0000", "100"]


@pytest.mark.parametrize(
    ("direction", "changed", "found"),
    [
        ("training", {}, 0),
        ("training", dict(loss=2.01), 4),
        ("training", dict(loss=float("nan")), 4),
        ("inference", {}, 0),
        ("inference", dict(found=190), 4),
        ("inference", dict(score=8.0), 4),
    ],
)
def test_other_results_are_noticed(direction, changed, found):
    assert len(detection_step.differences(records(direction, **changed))) == found


def test_operations_are_finite():
    suppress, *_ = detection_step.operations().values()
    kept = jax.block_until_ready(suppress())
    assert 0 < kept.sum() < detection_step.BOXES


def test_nothing_to_do_is_refused(capsys):
    with pytest.raises(SystemExit):
        detection_step.main(["--only=none*"])
    assert "--only=none*" in capsys.readouterr().err
