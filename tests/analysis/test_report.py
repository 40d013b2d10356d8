"""The report of a run: its two files, and what they count."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import base
from lambdanet.analysis import report


@pytest.fixture
def run(tmp_path):
    """A workdir with metrics of four steps, and the test result of twelve 8x8 images, two of them
    wrong.
    """
    records = [
        {
            "step": 1,
            "epoch": 0.5,
            "split": "train",
            "loss": 2.0,
            "accuracy": 0.1,
            "images_per_second": 100.0,
        },
        {
            "step": 2,
            "epoch": 1.0,
            "split": "train",
            "loss": 9.9,
            "accuracy": 0.9,
            "images_per_second": 100.0,
        },
        {
            "step": 2,
            "epoch": 1.0,
            "split": "train",
            "loss": 1.0,
            "accuracy": 0.5,
            "images_per_second": 300.0,
        },
        {
            "step": 2,
            "epoch": 1.0,
            "split": "eval",
            "loss": 1.5,
            "accuracy": 0.4,
            "ema_accuracy": 0.3,
        },
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    labels = np.arange(12) % 3
    predictions = labels.copy()
    predictions[[4, 7]] = [2, 0]  # both are class 1
    result = {
        "accuracy": 10 / 12,
        "top5": 1.0,
        "loss": 0.3,
        "count": 12,
        "labels": labels,
        "predictions": predictions,
        "ids": 100 + np.arange(12),
        "confidences": np.linspace(0.5, 0.9, 12),
    }
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    # The last batch is padded: its rows with mask 0 repeat an id and must not count.
    ids = np.concatenate([100 + np.arange(12), [100] * 4])
    mask = np.concatenate([np.ones(12), np.zeros(4)])
    batches = [
        {"image": images[i : i + 8], "id": ids[i : i + 8], "mask": mask[i : i + 8]} for i in (0, 8)
    ]
    return tmp_path, result, batches


def test_report_of_a_run(run):
    workdir, result, batches = run
    png, markdown = report.write_report(
        workdir,
        config=base.get_config(),
        class_names=("cat", "dog", "a class with a long name"),
        split="test",
        result=result,
        batches=batches,
        facts={"parameters": 41914},
    )
    with Image.open(png) as picture:
        assert picture.width > 1000 and picture.height > 700
        colors = np.unique(
            np.asarray(picture.convert("RGB").resize((200, 120))).reshape(-1, 3), axis=0
        )
        assert len(colors) > 200, "the picture is nearly empty"
    text = markdown.read_text()
    for part in (
        "test accuracy | 83.33 %",
        "41,914",
        "last train loss | 1.0000",
        "per second (median) | 200",
    ):
        assert part in text
    assert "| dog | cat | 1 |" in text and "| dog | a class with a long name | 1 |" in text
    assert "top-5" not in text, "top-5 of three classes says nothing"


def test_wrong_predictions_come_first(run):
    from matplotlib.figure import Figure

    _, result, batches = run
    figure = Figure()
    report.draw_samples(figure, result, batches, ("x", "y", "z"))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 12
    assert titles[0].endswith("(is y)") and titles[0].startswith("x"), (
        "the wrong ones, the most confident of them first"
    )
    assert titles[1].endswith("(is y)") and titles[1].startswith("z")
    assert not any("(is" in t for t in titles[2:])


def test_curves_alone(run):
    workdir, _, _ = run
    png, markdown = report.write_report(workdir, config=base.get_config())
    assert png.stat().st_size > 10_000 and "test accuracy" not in markdown.read_text()


def test_later_record_of_a_repeated_step_wins(run):
    curves = report.read_curves(run[0])
    assert [(r["step"], r["loss"]) for r in curves["train"]] == [(1, 2.0), (2, 1.0)]


def test_confusion_matrix():
    counts = report.confusion_matrix(np.array([0, 1, 1, 2]), np.array([0, 2, 2, 1]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 2], [0, 1, 0]]


def test_many_classes_show_the_worst():
    from matplotlib.figure import Figure

    labels = np.arange(50)
    predictions = labels.copy()
    predictions[30] = 40
    axes = Figure().subplots()
    report.draw_confusion(axes, labels, predictions, [f"c{i}" for i in range(50)], "test")
    shown = [t.get_text() for t in axes.get_yticklabels()]
    assert len(shown) == report.NUMBERED_CLASSES and {"c30", "c40"} <= set(shown)
    assert "of 50 classes" in axes.get_title()
