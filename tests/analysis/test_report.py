"""The report of a run: its two files, what they count, and what a failure in it costs."""

import functools
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from configs import base
from lambdanet.analysis import report
from lambdanet.data.record import DataInfo
from lambdanet.tasks.classification import panels
from lambdanet.tasks.classification_panels import (
    SHOWN_CLASSES,
    confusion_matrix,
    draw_confusion,
    draw_samples,
)

METRICS = {"accuracy": "max", "top5": "max", "loss": "min"}
RESULT = {"accuracy": 10 / 12, "top5": 1.0, "loss": 0.3, "ema_loss": 0.25, "count": 12}


@pytest.fixture
def workdir(tmp_path):
    """A workdir with metrics of two steps, one of them trained twice."""
    train = [(1, 2.0, 0.1, 100.0), (2, 9.9, 0.9, 100.0), (2, 1.0, 0.5, 300.0)]
    records = [
        dict(step=step, epoch=step / 2, split="train", loss=loss, accuracy=accuracy)
        | dict(images_per_second=speed)
        for step, loss, accuracy, speed in train
    ]
    records.append(dict(step=2, epoch=1.0, split="eval", loss=1.5, accuracy=0.4, ema_accuracy=0.3))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path


def evaluated(classes, channels=1):
    """Twelve records of three classes, of which two of class 1 are wrong, as panels get them."""
    labels = np.arange(12) % 3
    predictions = labels.copy()
    predictions[[4, 7]] = [2, 0]
    rows = dict(label=labels, prediction=predictions, id=100 + np.arange(12))
    rows["confidence"] = np.linspace(0.5, 0.9, 12)
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, channels), dtype=np.uint8)
    return dict(
        sums={},
        rows=rows,
        examples={"image": images, "id": 100 + np.arange(12)},
        info=DataInfo({}, tuple(classes)),
        config=base.get_config(),
    )


def write(workdir, **options):
    options = dict(metrics=METRICS, split="test", result=RESULT) | options
    return report.write_report(workdir, config=base.get_config(), **options)


def test_report_of_a_run(workdir):
    drawn = functools.partial(panels, **evaluated(("cat", "dog", "a class with a long name")))
    png, markdown, problem = write(workdir, facts={"parameters": 41914}, panels=drawn)
    assert not problem and {p.name for p in workdir.iterdir()} == {
        "metrics.jsonl",
        "report.md",
        "report.png",
    }
    with Image.open(png) as picture:
        assert picture.width > 1000 and picture.height > 700
        colors = np.unique(
            np.asarray(picture.convert("RGB").resize((200, 120))).reshape(-1, 3), axis=0
        )
        assert len(colors) > 200, "the picture is nearly empty"
    text = markdown.read_text()
    for part in (
        "test accuracy | 83.33 %",
        "test loss of averaged weights | 0.2500",
        "last eval accuracy of averaged weights | 30.00 %",
        "41,914",
        "last train loss | 1.0000",
        "per second (median) | 200",
        r"cutmix\_alpha=0.0, label\_smoothing=0.1",
        "loss includes label smoothing",
    ):
        assert part in text
    assert "| dog | cat | 1 | 25.0 % |" in text
    assert "| dog | a class with a long name | 1 | 25.0 % |" in text
    assert "| dog | 4 | 100.0 | 50.0 | 66.7 |" in text and "balanced accuracy) 83.3 %" in text


def test_metrics_of_another_task(workdir):
    """Nothing but the names and their directions is known of a task: no accuracy, no panels."""
    record = dict(step=3, epoch=1.5, split="eval", loss=0.5, box_ap=0.25)
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    result = dict(box_ap=0.125, mean_error=3.0, count=1234)
    png, markdown, problem = report.write_report(
        workdir,
        config=base.get_config(),
        metrics={"box_ap": "max", "mean_error": "min"},
        split="test",
        result=result,
    )
    text = markdown.read_text()
    assert png.stat().st_size > 10_000 and not problem
    assert "| test box AP | 12.50 % |" in text and "| test mean error | 3.0000 |" in text
    assert "| last eval box AP | 25.00 % |" in text and "| test images | 1,234 |" in text
    assert "accuracy" not in text and "| last eval loss | 0.5000 |" in text


def test_curves_alone(workdir):
    png, markdown, _ = report.write_report(workdir, config=base.get_config(), metrics=METRICS)
    assert png.stat().st_size > 10_000 and "test accuracy" not in markdown.read_text()


def test_curve_of_a_share_is_in_percent(workdir):
    axes = Figure().subplots()
    report.draw_curves(axes, report.read_curves(workdir), "accuracy", percent=True)
    assert [line.get_label() for line in axes.lines] == ["train 50", "eval 40", "eval (EMA) 30"]
    assert axes.get_title() == "Accuracy (%)"


def test_later_record_of_a_repeated_step_wins(workdir):
    curves = report.read_curves(workdir)
    assert [(r["step"], r["loss"]) for r in curves["train"]] == [(1, 2.0), (2, 1.0)]


# --------------------------------------------------------------------------------------------------
# What goes wrong in a report is said, and costs no more than that part
# --------------------------------------------------------------------------------------------------
def raises(side, below):
    side.subplots().set_title("half drawn")
    raise KeyError("no such row")


def draws_a_wrong_formula(side, below):
    side.subplots().set_title("$a_$")  # matplotlib parses it when the picture is laid out
    return ["never shown"]


@pytest.mark.parametrize("failing", [raises, draws_a_wrong_formula])
def test_panels_that_fail_leave_the_curves(workdir, failing):
    png, markdown, problem = write(workdir, panels=failing)
    assert problem.startswith("no pictures of the task: ") and png.stat().st_size > 10_000
    text = markdown.read_text()
    assert "**Incomplete report**: no pictures of the task" in text and "83.33 %" in text
    assert "never shown" not in text


def test_damaged_metrics_leave_the_result(workdir):
    (workdir / "metrics.jsonl").write_text('{"loss": 1}\n{"step": 1, "split": "train"}\n')
    png, markdown, problem = write(workdir)
    assert "no curves: ValueError" in problem and "line 1 is damaged" in problem and png.exists()
    assert "test accuracy | 83.33 %" in markdown.read_text()


def test_workdir_that_is_gone(tmp_path):
    png, markdown, problem = write(tmp_path / "gone")
    assert png is None and markdown is None and "does not exist" in problem


# --------------------------------------------------------------------------------------------------
# Class names are data
# --------------------------------------------------------------------------------------------------
ODD = ("US$", "$5_$10", "$a$", "a^2_b\\$", "a|b", "<none>", "two\nlines", "中文", "", "\ud800")


def test_any_class_name_is_drawn_and_written_literally(workdir, recwarn):
    given = evaluated([*ODD, "x" * 5000, "*bold*"])
    labels = np.arange(12)
    given["rows"] |= {"label": labels, "prediction": (labels + 1) % 12}
    _, markdown, problem = write(workdir, panels=functools.partial(panels, **given))
    assert not problem and not [str(w.message) for w in recwarn]  # such as of missing glyphs
    text = markdown.read_text()
    rows = text.split("| true |")[1].split("\n\n")[0].splitlines()[2:]
    assert [row.replace(r"\|", "").count("|") for row in rows] == [5] * 10
    assert rows[1] == r"| \$5\_\$10 | \$a\$ | 1 | 100.0 % |"
    assert rows[4].startswith(r"| a\|b | \<none\> |")
    assert r"for lack of a font, \#7 is 中文." in text  # in the picture it is '#7'


@pytest.mark.parametrize("long", ["1", "class with a really long name "])
def test_captions_neither_overlap_nor_leave_the_picture(long):
    """As real class names did; nine names differ in their last character only."""
    figure = Figure(figsize=(17, 10.5), layout="constrained")
    top, below = figure.subfigures(2, 1)
    given = evaluated([f"{long}{i}" for i in range(9)])
    given["rows"]["prediction"] = (given["rows"]["label"] + 1) % 9
    panels(top, below, **given)
    FigureCanvasAgg(figure).draw()
    drawn = [a.title.get_window_extent() for a in below.axes if a.get_title()]
    assert len(drawn) == 12
    for i, one in enumerate(drawn):
        assert 0 <= one.x0 and one.x1 <= figure.bbox.width
        assert not any(one.overlaps(other) for other in drawn[i + 1 :])
    ticks = [tick.get_text() for tick in top.axes[0].get_yticklabels()]
    assert len(set(ticks)) == 9, "shortened names must stay different"


# --------------------------------------------------------------------------------------------------
# The pictures of classification
# --------------------------------------------------------------------------------------------------
def test_wrong_predictions_come_first():
    figure, given = Figure(figsize=(17, 5.5)), evaluated("xyz")
    draw_samples(figure, given["rows"], given["examples"], "xyz")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 12
    assert titles[0].endswith("(is y)") and titles[0].startswith("x"), (
        "the wrong ones, the most confident of them first"
    )
    assert titles[1].endswith("(is y)") and titles[1].startswith("z")
    assert not any("(is" in t for t in titles[2:])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_channels_and_none_at_all(channels):
    figure = Figure()
    given = evaluated(["one name for two classes"] * 3, channels)
    panels(*figure.subfigures(2, 1), **given)
    given["examples"] = {"image": np.zeros((0, 8, 8, channels), np.uint8), "id": np.zeros(0, int)}
    panels(*Figure().subfigures(2, 1), **given)
    wrong = [axes.get_title() for axes in figure.axes if "\nis " in axes.get_title()]
    assert len(wrong) == 2


def test_confusion_matrix():
    counts = confusion_matrix(np.array([0, 1, 1, 2]), np.array([0, 2, 2, 1]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 2], [0, 1, 0]]


def test_many_classes_show_the_worst():
    labels = np.repeat(np.arange(50_000), 2)
    predictions = labels.copy()
    predictions[60] = 40_000
    axes = Figure().subplots()
    names = [f"c{i}" for i in range(50_000)]
    draw_confusion(axes, labels, predictions, names)
    shown = [t.get_text() for t in axes.get_yticklabels()]
    assert len(shown) == SHOWN_CLASSES and {"c30", "c40000"} <= set(shown)
    assert "of 50,000 classes" in axes.get_title()
    row, column = shown.index("c30"), shown.index("c40000")
    cells = {t.get_position(): t.get_text() for t in axes.texts}
    assert cells[column, row] == cells[row, row] == "1" and cells[column, column] == "2"
