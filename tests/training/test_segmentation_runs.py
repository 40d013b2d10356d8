"""Whole runs of segmentation: a straight one of eight steps on one device, what eval.py makes of
it, and against it, in `make exhaustive`, runs that are killed and continued, on eight devices, on
two processes.
"""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from run_helpers import finish, free_port, quick_compilation, saved_state, start_child

import eval as program
import train
from configs import digit_scenes
from lambdanet.config import to_json
from lambdanet.data import digit_scenes as builder
from lambdanet.data import scenes
from lambdanet.training.metrics import read_records

HERE = Path(__file__).resolve().parent
RECIPE = f"{HERE.parents[1]}/configs/digit_scenes.py:segment,none"
STEPS, HALF = 8, 4


def settings(data_dir):
    """What differs from the recipe, by key."""
    backbone = dict(name="resnet18", blocks=(1, 1), widths=(8, 16), output_stride=4)
    return {
        "data.data_dir": str(data_dir),
        "data.image_size": (64, 64),
        "data.train_split": "train",
        "data.eval_split": "validation",
        "data.test_split": "test",
        "data.flip": 0.5,
        "model.backbone": backbone,
        "model.head": dict(name="fcn", channels=8),
        "model.auxiliary": dict(name="fcn", stage=1, channels=8),
        "segmentation.ohem": "ocnet",
        "segmentation.ohem_min_kept": 2000,
        "optim.schedule": "constant",
        "optim.warmup_epochs": 0.0,
        "optim.lr": 0.01,
        "train.batch_size": 16,
        "train.steps": STEPS,
        "train.log_every": 1,
        "train.ema_decay": 0.9,
        "train.eval_every": 0.0,
        "train.save_every": 1.0,  # four steps
        "train.keep_last": 3,
        "train.report": False,
        "train.cache_dir": "",
    }


def make_config(data_dir):
    config = digit_scenes.get_config("segment,none")
    for key, value in settings(data_dir).items():
        section, name = key.split(".")
        config[section][name] = value
    return config


def flags_of(data_dir, workdir, **changed):
    given = settings(data_dir) | changed
    flags = [f"--config={RECIPE}", f"--workdir={workdir}"]
    return flags + [f"--config.{key}={value}" for key, value in given.items()]


class Runs:
    """The reference run and the finished children."""

    def __init__(self, root):
        self.root, self.data = root, root / "data"
        self.config = make_config(self.data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scenes, "SPLITS", {"train": 64, "validation": 24, "test": 37})
            builder.prepare(str(self.data), (64, 64))
        self.outcome = train.run(
            self.config, root / "straight", stream=io.StringIO(), devices=jax.devices()[:1]
        )

    def start_others(self):
        """The run that is killed, and those on several devices and processes."""
        root, text = self.root, to_json(self.config)
        job = dict(workdir=str(root / "fsdp4"), config=text, steps=HALF, data=2, fsdp=4)
        pair = ["--distributed", "--num_processes=2"]
        pair += [f"--coordinator_address=127.0.0.1:{free_port()}"]
        short = flags_of(self.data, root / "pair", **{"train.steps": HALF})
        kill = flags_of(self.data, root / "kill")
        children = {
            "kill": start_child("train_child.py", "kill", "6", *kill),
            "pair0": start_child("train_child.py", "none", "0", *short, *pair, "--process_id=0"),
            "pair1": start_child("train_child.py", "none", "0", *short, *pair, "--process_id=1"),
            "devices": start_child("devices_child.py", json.dumps([job]), devices=8),
        }
        self.output, self.code = finish(children)

    def state(self, name, step=STEPS):
        return saved_state(self.root / name, step)

    def losses(self, name):
        records = read_records(self.root / name)
        return {r["step"]: r["loss"] for r in records if r["split"] == "train"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with quick_compilation():
        yield Runs(tmp_path_factory.mktemp("segmentation"))


@pytest.fixture(scope="module")
def other_runs(runs):
    runs.start_others()
    return runs


def test_the_reference_run_learns_and_ends_with_the_test_split(runs):
    losses = runs.losses("straight")
    assert sorted(losses) == list(range(1, STEPS + 1)) and losses[STEPS] < losses[1]
    assert runs.outcome["count"] == 37 and 0 <= runs.outcome["mean_iou"] <= 1
    last = read_records(runs.root / "straight")[-1]
    assert last["split"] == "test" and last["pixel_accuracy"] == runs.outcome["pixel_accuracy"]
    first = read_records(runs.root / "straight")[0]
    assert {"auxiliary_head", "cross_entropy", "pixel_accuracy"} <= set(first)


@pytest.mark.exhaustive
def test_kill_9_and_continue_is_bitwise_the_straight_run(other_runs):
    runs = other_runs
    assert runs.code["kill"] == -9, runs.output["kill"]
    stream = io.StringIO()
    outcome = train.run(runs.config, runs.root / "kill", stream=stream, devices=jax.devices()[:1])
    assert f"continuing from step {HALF}" in stream.getvalue()
    one, other = runs.state("straight"), runs.state("kill")
    assert sorted(one) == sorted(other)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    assert runs.losses("kill") == runs.losses("straight")
    for name in ("mean_iou", "pixel_accuracy", "loss", "ema_mean_iou"):
        assert outcome[name] == runs.outcome[name]


@pytest.mark.exhaustive
def test_eight_devices_train_like_one(other_runs):
    runs = other_runs
    assert runs.code["devices"] == 0, runs.output["devices"]
    one, eight = runs.losses("straight"), runs.losses("fsdp4")
    for step in range(1, HALF + 1):
        assert eight[step] == pytest.approx(one[step], abs=2e-4), step


@pytest.mark.exhaustive
def test_two_processes_train_and_evaluate_like_one(other_runs, tmp_path):
    runs = other_runs
    assert (runs.code["pair0"], runs.code["pair1"]) == (0, 0), (
        runs.output["pair0"],
        runs.output["pair1"],
    )
    one, two = runs.losses("straight"), runs.losses("pair")
    for step in range(1, HALF + 1):
        assert two[step] == pytest.approx(one[step], abs=2e-4), step
    last = [json.loads(runs.output[p][0].splitlines()[-1]) for p in ("pair0", "pair1")]
    assert last[0]["count"] == last[1]["count"] == 37
    # The same checkpoint, evaluated by one process: every pixel is counted once.
    found = evaluate("accuracy", runs.root / "pair", tmp_path)["live"]
    for name in ("mean_iou", "pixel_accuracy", "loss"):
        assert last[0][name] == last[1][name] == pytest.approx(found[name], abs=1e-5)


FLAGS = dict(
    weights=None, step="latest", average=None, split=None, batch_size=0, batch_sizes=[1],
    repeats=1, images=1, threshold=0.9, name="*", input=[], top=None, fps=None, classes=None,
)  # fmt: skip


def evaluate(mode, workdir, output, overrides=None, **given):
    recipe = SimpleNamespace(path=None, overrides=overrides or {})
    flags = SimpleNamespace(**FLAGS | given, workdir=workdir, output=str(output))
    program.run(mode, flags, recipe)
    return json.loads((output / f"{mode}.json").read_text())


def test_accuracy_shows_the_classes(runs, tmp_path, capsys):
    found = evaluate("accuracy", runs.root / "straight", tmp_path)
    assert found["live"]["mean_iou"] == pytest.approx(runs.outcome["mean_iou"], abs=1e-6)
    assert [row["class"] for row in found["ema"]["classes"]][:2] == ["background", "0"]
    assert "IoU %" in capsys.readouterr().out


@pytest.mark.exhaustive  # tests/analysis/test_sliding_window.py has what is computed
def test_accuracy_by_windows_and_views(runs, tmp_path):
    slid = evaluate(
        "accuracy", runs.root / "straight", tmp_path,
        {"segmentation.inference": "slide", "segmentation.slide_crop": "(48, 48)",
         "segmentation.eval_flip": "true", "segmentation.eval_scales": "(0.75, 1.0)"},
    )  # fmt: skip
    assert 0 <= slid["live"]["mean_iou"] <= 1 and slid["live"]["count"] == 37


def test_predictions_of_pictures_of_any_size(runs, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (50, 70)), ("a.jpg", (64, 64)), ("below/b.png", (33, 47))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(pictures / name)
    output = tmp_path / "out"
    found = evaluate("predict", runs.root / "straight", output, input=[str(pictures)])
    folder = output / "predictions"
    written = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    assert written == sorted(
        [f"{n}_{k}.png" for n in ("a.png", "a.jpg", "below/b") for k in ("labels", "overlay")]
        + ["legend.png"]
    )
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    sizes = {tuple(json.loads(line)[k] for k in ("width", "height")) for line in lines}
    assert sizes == {(70, 50), (64, 64), (47, 33)}
    with Image.open(folder / "below" / "b_labels.png") as image:
        assert image.mode == "P" and image.size == (47, 33) and np.asarray(image).max() < 11
    assert found["count"] == 3
    with pytest.raises(ValueError, match="there is no such file or folder"):
        evaluate("predict", runs.root / "straight", output, input=[str(tmp_path / "nothing")])


def test_pictures_that_cannot_be_read_keep_no_others_waiting(runs, tmp_path, capsys):
    pictures, output = tmp_path / "pictures", tmp_path / "out"
    (pictures / "__MACOSX").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(
        pictures / "z.png"
    )
    whole = (pictures / "z.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[:2000])
    (pictures / "text.jpg").write_text("no picture")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(pictures / "deep.png")
    for litter in ("._z.png", "__MACOSX/z.png"):
        (pictures / litter).write_text("left by a system")
    with pytest.raises(ValueError, match="^3 pictures are left out:") as error:
        evaluate("predict", runs.root / "straight", output, input=[str(pictures)])
    cut, deep, text = str(error.value).splitlines()[1:]
    assert "cut.png: cannot be read (" in cut and "deep.png: cannot be read (pixel mode" in deep
    assert text.endswith("text.jpg: not an image")
    written = sorted(p.name for p in (output / "predictions").glob("*.png"))
    assert written == ["legend.png", "z_labels.png", "z_overlay.png"]
    found = json.loads((output / "predict.json").read_text())
    assert found["count"] == 1 and len(found["problems"]) == 3


def test_summary_speed_and_export(runs, tmp_path):
    summary = evaluate("summary", runs.root / "straight", tmp_path)
    assert summary["parameters"] == sum(row["parameters"] for row in summary["rows"])
    assert evaluate("speed", runs.root / "straight", tmp_path)["results"]
    exported = evaluate("export", runs.root / "straight", tmp_path)
    assert exported["reload_difference"] < 1e-5
    with pytest.raises(ValueError, match="'segmentation' reads no field 'label'"):
        evaluate("pseudo_label", runs.root / "straight", tmp_path, split="test[:10]")
