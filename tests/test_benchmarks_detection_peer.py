"""torchvision's detectors trained beside ours: schedule, options, targets, two steps."""

import json

import numpy as np
import pytest

from benchmarks import detection_peer, torch_detection, torch_small_detection

needs_torch = pytest.mark.skipif(not torch_detection.installed(), reason="needs torchvision")


def test_rate_rises_and_falls():
    assert detection_peer.factor(0.0) == 0
    assert detection_peer.factor(detection_peer.WARM_UP) == pytest.approx(1)
    assert detection_peer.factor(1.0) == pytest.approx(0) == detection_peer.factor(1.5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--detector=ssd"], "mask_rcnn"),
        (["--image_size=192"], "wanted is HEIGHT,WIDTH"),
        (["--minutes=0"], "--minutes is 0.0"),
        (["--seed=-1"], "--seed is -1"),
        (["--image_size=16,64"], "sides of 32 or more"),
    ],
)
def test_wrong_options_are_refused(changed, said, capsys, tmp_path):
    with pytest.raises(SystemExit):
        detection_peer.main([f"--data_dir={tmp_path}", "--detector=retinanet", *changed])
    assert said in capsys.readouterr().err


def test_without_torchvision_there_is_no_peer(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch_detection, "installed", lambda: False)
    with pytest.raises(SystemExit):
        detection_peer.main([f"--data_dir={tmp_path}", "--detector=retinanet"])
    assert "torch and torchvision are not installed" in capsys.readouterr().err


@needs_torch
def test_a_missing_set_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        detection_peer.main([f"--data_dir={tmp_path / 'none'}", "--detector=retinanet"])
    assert "none" in capsys.readouterr().err.splitlines()[-1]


@needs_torch
def test_targets_leave_crowds_out_and_fill_the_canvas():
    batch = dict(
        image=np.zeros((1, 32, 40, 3), np.uint8),
        boxes=np.array([[[4, 8, 12, 24], [0, 0, 9, 9], [5, 5, 5, 9], [0, 0, 0, 0]]], np.float32),
        classes=np.array([[2, 1, 1, 0]], np.int32),
        valid=np.array([[True, True, True, False]]),
        crowd=np.array([[False, True, False, False]]),
        masks=np.ones((1, 4, 112, 112), np.uint8),
    )
    batch["masks"][:, :, :14] = 0  # an eighth
    (target,) = torch_small_detection.targets(batch, 1)
    assert target["boxes"].tolist() == [[4, 8, 12, 24]] and target["labels"].tolist() == [3]
    assert target["masks"].shape == (1, 32, 40)
    rows, columns = np.nonzero(target["masks"][0].numpy())
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (4, 10, 12, 24)


@needs_torch
@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_size_is_ours(detector):
    options = torch_small_detection.Options(detector, 3, (64, 64), 3.0, 20)
    model = torch_small_detection.build(options)
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(detection_peer.own_parameters(f"small_{detector}", 3), rel=0.01)


@needs_torch
@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_two_steps(detector, capsys, monkeypatch):
    def synthetic(args):
        config = recipe(args)
        config.data.source, config.data.synthetic_classes = "synthetic", 3
        config.data.synthetic_records = 4
        return config

    recipe = detection_peer.recipe
    monkeypatch.setattr(detection_peer, "recipe", synthetic)
    own = ["--data_dir=none", f"--detector={detector}", "--image_size=64,64", "--json"]
    detection_peer.main([*own, "--steps=2", "--batch_size=2", "--max_objects=5", "--log_seconds=0"])
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert record["steps"] == 2 and np.isfinite(record["loss"])
    masks = {"mask_ap", "mask_ap50"} if detector == "mask_rcnn" else set()
    assert {name for name in record if "_ap" in name} == {"box_ap", "box_ap50"} | masks
    assert "step 2 " in said.err and "ETA 0:00" in said.err
