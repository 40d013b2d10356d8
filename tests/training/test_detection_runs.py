"""Whole runs of instance segmentation (in `make exhaustive`): killed and continued, on eight
devices, on two processes; and what eval.py makes of a run. One straight run of eight steps
on one device is the reference. All are of train.py as a program, whose convolutions round otherwise
than those of the tests' process.
"""

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from run_helpers import finish, free_port, quick_compilation, saved_state, start_child

import eval as program
from configs import digit_scenes
from lambdanet.config import to_json
from lambdanet.data import digit_scenes as builder
from lambdanet.data import scenes
from lambdanet.training.metrics import read_records

# The loop is that of test_segmentation_runs.py, which the suite has.
pytestmark = pytest.mark.exhaustive
HERE = Path(__file__).resolve().parent
RECIPE = f"{HERE.parents[1]}/configs/digit_scenes.py:instances"
STEPS, HALF = 8, 4
RETINANET = "detect,retinanet"
LOSSES = ("objectness", "proposal_box", "classification", "box", "mask")


def settings(data_dir):
    """What differs from the recipe, by key."""
    gate = dict(name="se", after="stage2.1", placement="standard")
    backbone = dict(name="resnet18", stem="strided", blocks=(1, 1), widths=(8, 16), context=gate)
    return {
        "data.data_dir": str(data_dir),
        "data.image_size": (64, 64),
        "data.flip": 0.5,
        "model.backbone": backbone,
        "model.channels": 8,
        "model.first_stage": 1,
        "model.num_levels": 3,
        "model.fc_channels": 16,
        "model.mask_channels": 8,
        "model.mask_convs": 1,
        "model.proposals_before": (32, 32),
        "model.proposals_after": (16, 16),
        "model.rpn_samples": 32,
        "model.roi_samples": 16,
        "model.before_nms": 64,
        "model.max_detections": 10,
        "model.score_threshold": 0.0,
        "optim.schedule": "constant",
        "optim.warmup_epochs": 0.0,
        "optim.lr": 0.003,
        "train.batch_size": 16,
        "train.steps": STEPS,
        "train.log_every": 1,
        "train.eval_every": 0.0,
        "train.save_every": 1.0,  # four steps
        "train.keep_last": 3,
        "train.report": False,
        "train.cache_dir": "",
    }


NOT_RETINANET = ("fc_", "mask_", "proposals_", "rpn_", "roi_")


def make_config(data_dir, arg="instances"):
    config = digit_scenes.get_config(arg)
    for key, value in settings(data_dir).items():
        section, name = key.split(".")
        if arg == "instances" or not name.startswith(NOT_RETINANET):
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
            patch.setattr(scenes, "SPLITS", {"train": 64, "validation": 16, "test": 21})
            builder.prepare(str(self.data), (64, 64))
        kill = flags_of(self.data, root / "kill")
        straight = flags_of(self.data, root / "straight")
        # Before the others, which find its programs in the cache.
        first = {"straight": start_child("train_child.py", "none", "0", *straight)}
        self.output, self.code = finish(first)
        assert self.code["straight"] == 0, self.output["straight"]
        self._finish({"kill": start_child("train_child.py", "kill", "6", *kill)})
        self._finish({"again": start_child("train_child.py", "none", "0", *kill)})
        self.outcome = self.printed("straight")

    def start_parallel(self):
        """The runs on several devices and processes."""
        root = self.root
        text = {arg: to_json(make_config(self.data, arg)) for arg in ("instances", RETINANET)}
        jobs = [
            dict(workdir=str(root / name), config=text[arg], steps=HALF, data=data, fsdp=fsdp)
            for name, arg, data, fsdp in (
                ("fsdp4", "instances", 2, 4),
                ("retinanet1", RETINANET, 1, 1),
                ("retinanet8", RETINANET, 2, 4),
            )
        ]
        pair = ["--distributed", "--num_processes=2"]
        pair += [f"--coordinator_address=127.0.0.1:{free_port()}"]
        short = flags_of(self.data, root / "pair", **{"train.steps": HALF})
        children = {
            "pair0": start_child("train_child.py", "none", "0", *short, *pair, "--process_id=0"),
            "pair1": start_child("train_child.py", "none", "0", *short, *pair, "--process_id=1"),
            "devices": start_child("devices_child.py", json.dumps(jobs), devices=8),
        }
        self._finish(children)

    def _finish(self, children):
        output, code = finish(children)
        self.output, self.code = self.output | output, self.code | code

    def printed(self, name):
        """The outcome that a child printed as its last line."""
        return json.loads(self.output[name][0].splitlines()[-1])

    def losses(self, name):
        records = read_records(self.root / name)
        return {r["step"]: r["loss"] for r in records if r["split"] == "train"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with quick_compilation():
        yield Runs(tmp_path_factory.mktemp("detection"))


@pytest.fixture(scope="module")
def parallel_runs(runs):
    runs.start_parallel()
    return runs


def by_hand(folder, file, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        run = COCOeval(truth, truth.loadRes(str(folder / file)), kind)
        run.evaluate(), run.accumulate(), run.summarize()
    return run.stats


def test_the_reference_run_learns_and_ends_with_files_of_the_test_split(runs):
    losses = runs.losses("straight")
    assert sorted(losses) == list(range(1, STEPS + 1)) and losses[STEPS] < losses[1]
    first, last = (read_records(runs.root / "straight")[i] for i in (0, -1))
    assert {f"{name}_loss" for name in LOSSES} <= set(first)
    assert first["loss"] == pytest.approx(sum(first[f"{name}_loss"] for name in LOSSES), rel=1e-5)
    assert last["split"] == "test" and runs.outcome["count"] == 21
    assert last["box_ap_large"] is None is runs.outcome["box_ap_large"]
    for file, kind, name in (("", "bbox", "box"), ("mask_", "segm", "mask")):
        stats = by_hand(runs.root / "straight", f"{file}predictions.json", kind)
        found = [runs.outcome[f"{name}_{key}"] for key in ("ap", "ap50", "ap75", "ap_small")]
        np.testing.assert_allclose(found, stats[:4], atol=1e-12)


def test_kill_9_and_continue_is_bitwise_the_straight_run(runs):
    assert runs.code["kill"] == -9, runs.output["kill"]
    assert runs.code["again"] == 0, runs.output["again"]
    assert f"continuing from step {HALF}" in runs.output["again"][0]
    one, other = (saved_state(runs.root / name, STEPS) for name in ("straight", "kill"))
    assert sorted(one) == sorted(other)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    assert runs.losses("kill") == runs.losses("straight")
    texts = [(runs.root / name / "predictions.json").read_text() for name in ("straight", "kill")]
    assert texts[0] == texts[1] and runs.printed("again")["mask_ap"] == runs.outcome["mask_ap"]


def assert_near(losses, others, within=1e-5):
    """The losses of the first half are equal at every step: no other proposal is drawn, and no
    pixel of a mask's target is another.
    """
    steps = range(1, HALF + 1)
    found = [others[step] for step in steps]
    np.testing.assert_allclose(found, [losses[step] for step in steps], rtol=0, atol=within)


def test_eight_devices_train_like_one(parallel_runs):
    runs = parallel_runs
    assert runs.code["devices"] == 0, runs.output["devices"]
    assert_near(runs.losses("straight"), runs.losses("fsdp4"))
    assert_near(runs.losses("retinanet1"), runs.losses("retinanet8"), within=1e-4)


def test_two_processes_train_and_evaluate_like_one(parallel_runs, tmp_path):
    runs = parallel_runs
    assert (runs.code["pair0"], runs.code["pair1"]) == (0, 0), (
        runs.output["pair0"],
        runs.output["pair1"],
    )
    assert_near(runs.losses("straight"), runs.losses("pair"))
    last = [runs.printed(name) for name in ("pair0", "pair1")]
    assert last[0]["count"] == last[1]["count"] == 21
    # The same checkpoint, evaluated by one process: every picture and object is there once.
    found = evaluate("accuracy", runs.root / "pair", tmp_path)["live"]
    for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap_small"):
        assert last[0][name] == last[1][name] == pytest.approx(found[name], abs=1e-12)
    for file in ("predictions.json", "truth.json"):
        ours, theirs = (json.loads((d / file).read_text()) for d in (tmp_path, runs.root / "pair"))
        if file == "truth.json":
            assert ours == theirs
            continue
        assert len(ours) == len(theirs) > 0
        ours, theirs = (
            sorted(found, key=lambda one: (one["image_id"], -one["score"]))
            for found in (ours, theirs)
        )
        for first, second in zip(ours, theirs, strict=True):
            assert first["score"] == pytest.approx(second["score"], abs=1e-5)


FLAGS = dict(
    weights=None, step="latest", average=None, split=None, batch_size=0, batch_sizes=[1],
    repeats=1, images=1, threshold=0.9, name="*", input=[], top=None, fps=None, classes=None,
)  # fmt: skip


def evaluate(mode, workdir, output, overrides=None, **given):
    recipe = SimpleNamespace(path=None, overrides=overrides or {})
    flags = SimpleNamespace(**FLAGS | given, workdir=workdir, output=str(output))
    program.run(mode, flags, recipe)
    return json.loads((output / f"{mode}.json").read_text())


def test_accuracy_shows_the_classes_and_writes_the_files(runs, tmp_path, capsys):
    found = evaluate("accuracy", runs.root / "straight", tmp_path, batch_size=5)
    live = found["live"]
    for name in ("box_ap", "mask_ap50"):
        assert live[name] == pytest.approx(runs.outcome[name], abs=1e-12)
    assert live["box_ap_large"] is None
    assert [row["class"] for row in live["classes"]] == list("0123456789")
    assert sum(int(row["objects"]) for row in live["classes"]) == len(
        json.loads((tmp_path / "truth.json").read_text())["annotations"]
    )
    shown = capsys.readouterr().out
    assert "mask_ap75 %" in shown and "No object is medium or large" in shown
    voc = evaluate(
        "accuracy", runs.root / "straight", tmp_path, {"detection.metric": "voc"}
    )  # fmt: skip
    assert 0 <= voc["live"]["voc_ap50"] <= 1 and "VOC AP50 %" in voc["live"]["classes"][0]


def test_predictions_of_pictures_of_any_size(runs, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes = {"a.png": (50, 70), "grey.png": (64, 64), "below/b.png": (20, 200), "tiny.png": (3, 2)}
    for name, size in sizes.items():
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels[..., 0] if name == "grey.png" else pixels).save(pictures / name)
    given = {"detection.shown_score": "0.0"}
    found = evaluate("predict", runs.root / "straight", tmp_path, given, input=[str(pictures)])
    folder = tmp_path / "predictions"
    written = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
    assert written == ["a_objects.png", "below", "below/b_objects.png", "grey_objects.png"] + [
        "predictions.csv",
        "predictions.json",
        "predictions.jsonl",
        "tiny_objects.png",
    ]
    with Image.open(folder / "tiny_objects.png") as image:
        assert min(image.size) >= 320  # enlarged, so that boxes and text have room
    coco = json.loads((folder / "predictions.json").read_text())
    assert len(coco["images"]) == found["count"] == 4 and len(coco["categories"]) == 10
    shapes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    assert sorted(shapes.values()) == sorted(size[::-1] for size in sizes.values())
    for one in coco["annotations"]:
        left, top, width, height = one["bbox"]
        limit = shapes[one["image_id"]]
        assert left >= 0 and top >= 0 and left + width <= limit[0] + 1e-3
        assert top + height <= limit[1] + 1e-3
        assert tuple(one["segmentation"]["size"]) == limit[::-1]
    assert coco["annotations"]
    (pictures / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="1 picture is left out:"):
        evaluate("predict", runs.root / "straight", tmp_path, input=[str(pictures)])


def test_summary_speed_attention_and_export(runs, tmp_path):
    workdir = runs.root / "straight"
    summary = evaluate("summary", workdir, tmp_path)
    assert summary["parameters"] == sum(row["parameters"] for row in summary["rows"])
    assert evaluate("speed", workdir, tmp_path)["results"]
    assert evaluate("attention", workdir, tmp_path)["pictures"]
    assert evaluate("export", workdir, tmp_path)["reload_difference"] < 1e-5
    with pytest.raises(ValueError, match="'detection' reads no field 'label'"):
        evaluate("pseudo_label", workdir, tmp_path, split="test[:10]")
