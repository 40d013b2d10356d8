"""The measures, table and plot of the benchmark of propagations."""

import json

import numpy as np
import pytest

from benchmarks import propagation


def test_confusion_and_its_mean_iou():
    truth = np.array([[[0, 1, 255], [1, 1, 0]]], np.uint8)
    said = np.array([[[0, 1, 1], [0, 1, 0]]], np.uint8)
    counts = propagation.confusion(truth, said, 3)
    assert counts.tolist() == [[2, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert propagation.mean_iou(counts) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_f_of_boundaries():
    truth = np.zeros((100, 100), np.uint8)
    truth[30:60, 30:60] = 1
    near, far = np.roll(truth, 1, 1), np.roll(truth, 12, 0)
    assert propagation.boundary_f(truth, truth) == propagation.boundary_f(truth, near) == 1
    assert 0.3 < propagation.boundary_f(truth, far) < 0.6  # two of four sides lie on each other
    nothing = np.zeros_like(truth)
    assert propagation.boundary_f(truth, nothing) == propagation.boundary_f(nothing, truth) == 0
    assert propagation.boundary_f(nothing, nothing) == 1
    padded = np.pad(truth, ((0, 0), (0, 9)), constant_values=255)
    seen = propagation.seen(padded, np.pad(truth, ((0, 0), (0, 9)), constant_values=1))
    assert all(np.array_equal(part, truth) for part in seen)


def records(name, intervals):
    """Those of clips of 8 frames: 8 ms for a key frame, 2 ms between."""
    found = [
        dict(data=name, kind="speed", network="none", key_ms=9.0, between_ms=None),
        dict(data=name, kind="speed", network="copy", key_ms=80.0, between_ms=20.0),
        dict(data=name, kind="speed", network="copy", key_ms=8.0, between_ms=2.0),
    ]
    for network in ("none", "copy"):
        for every in intervals if network == "copy" else intervals[:1]:
            found.append(dict(
                data=name, kind="accuracy", split="test", network=network, interval=every,
                mean_iou=0.5 + 0.01 * every, boundary_f=None if name == "a" else 0.25,
                as_first=1.0, frames=16, keys=16 if network == "none" else 2 * -(-8 // every),
            ))  # fmt: skip
    return found


def test_accuracy_and_the_newest_speed_are_joined():
    none, first, fifth = propagation.joined(records("b", (1, 5)))
    assert none["frames_per_second"] == pytest.approx(1000 / 9)
    assert first["frames_per_second"] == pytest.approx(125)
    assert fifth["frames_per_second"] == pytest.approx(8000 / (2 * 8 + 6 * 2))
    newer = {**records("b", (5,))[-1], "mean_iou": 0.9}
    assert propagation.joined([*records("b", (1, 5)), newer])[-1]["mean_iou"] == 0.9


def test_the_table():
    lines = propagation.table(propagation.joined(records("b", (1, 5))))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert cells == [
        ["per frame", "", "51.00", "25.0", "100.0", "9.00", "", "111"],
        ["copy", "1", "51.00", "25.0", "100.0", "8.00", "", "125"],
        ["copy", "5", "55.00", "25.0", "100.0", "8.00", "2.00", "286"],
    ]
    assert propagation.table(propagation.joined(records("a", (1,))))[2].split("|")[4].strip() == ""


def test_the_plot_is_made_of_a_file(tmp_path):
    path, plot = tmp_path / "measured.jsonl", tmp_path / "plot.png"
    lines = [json.dumps(r) for r in records("a", (1, 2)) + records("b", (1, 10))]
    path.write_text("\n".join(lines) + "\n")
    propagation.main([f"--json={path}", f"--draw={plot}"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_unknown_networks_are_refused(capsys, tmp_path):
    for given in ([], ["--workdirs", "other=dir"]):
        with pytest.raises(SystemExit):
            propagation.main([f"--json={tmp_path / 'no'}", *given])
        assert "allowed: NAME=DIR with a name of none, copy" in capsys.readouterr().err
