"""Benchmark of segmentation's training step: its config, its step on a small network, and that a
network that does something else than PyTorch's is noticed.
"""

import numpy as np
import pytest

import models
from benchmarks import segmentation_step, segmentation_worker, step_times, torch_segmentation


def test_networks_are_trained_without_dropout():
    names = [name for group in segmentation_step.GROUPS for name in group]
    for name in names:
        model = segmentation_worker.training_config(name, side=64).model
        assert model.head["dropout"] == model.auxiliary["dropout"] == 0.0
        assert model.backbone.get("drop_path_rate", 0.0) == 0.0
        preset = models.registry.lookup(name)[1]
        assert preset["backbone"]["name"] == model.backbone["name"]
    assert set(torch_segmentation.TWINS) < set(names)


def test_a_batch_has_labels_of_the_task():
    config = segmentation_worker.training_config("fcn_resnet50", side=8)
    batch = step_times.random_batch(config, num_classes=5, batch_size=2)
    assert batch["image"].shape == (2, 8, 8, 3) and batch["label_map"].shape == (2, 8, 8)
    assert batch["label_map"].max() == 4
    config.task = "classification"
    batch = step_times.random_batch(config, num_classes=5, batch_size=2)
    assert batch["label"].shape == (2,)


@pytest.mark.exhaustive
def test_steps_of_a_small_network_learn_and_say_what_they_need(tmp_path):
    config = segmentation_worker.training_config("fcn_resnet50", side=16)
    backbone = dict(name="resnet18", blocks=(1, 1), widths=(4, 8), in_channels=3)
    config.model = dict(name="segmenter", backbone=backbone, head=dict(name="fcn", channels=4))
    step, facts = segmentation_worker.prepare_ours(config, 3, 2, tmp_path / "none.npz")
    losses, norms = zip(*(step() for _ in range(4)), strict=True)
    assert losses[-1] < losses[0] and min(norms) > 0
    assert facts["compiled_mib"] > facts["parameters"] * 4 * 2 / 2**20  # weights and momentum


STEPS = [dict(loss=1.0, norm=2.0, s=s, cpu_s=2 * s, peak_mib=100.0) for s in (9.0, 4.0, 3.0, 5.0)]


def records(**changed):
    ours = [{**step, "s": step["s"] / 2, "cpu_s": step["cpu_s"] / 3, **changed} for step in STEPS]
    return {
        ("torch", "fcn_resnet50"): dict(parameters=2_000_000, steps=STEPS),
        ("ours", "fcn_resnet50"): dict(
            parameters=2_000_000, steps=ours, compiled_mib=70.0, macs=2e9
        ),
        ("ours", "ccnet_resnet50"): dict(parameters=3_000_000, steps=STEPS, compiled_mib=80.0),
    }


def test_table_leaves_the_first_step_out_and_compares_with_both():
    theirs, ours, other = segmentation_step.rows_of(records())
    assert theirs[:4] == ["fcn_resnet50", "torch", "2.00", ""]
    assert theirs[4:] == ["3.00", "4.00", "6.00", "", "", "100", ""]
    assert ours[3:] == ["2", "1.50", "2.00", "2.00", "2.00 / 3.00", "2.00 / 3.00", "100", "70"]
    assert other[7:] == ["", "1.00 / 1.00", "100", "80"]


@pytest.mark.parametrize(
    ("changed", "found"),
    [({}, 0), (dict(loss=1.001), 4), (dict(norm=2.1), 4), (dict(loss=float("nan")), 4)],
)
def test_other_losses_and_gradients_are_noticed(changed, found):
    assert len(segmentation_step.differences(records(**changed))) == found


def test_nothing_to_do_is_refused(capsys):
    with pytest.raises(SystemExit):
        segmentation_step.main(["--only=none*"])
    assert "--only=none*" in capsys.readouterr().err


def test_torchvisions_step_lowers_the_loss():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    model = torch_segmentation.build("fcn_resnet50", num_classes=3)
    draw = np.random.default_rng(0)
    images, labels = draw.standard_normal((2, 32, 32, 3), np.float32), np.zeros((2, 32, 32), int)
    options = dict(auxiliary_weight=0.4, rate=1e-2, momentum=0.9, decay=5e-4)
    step = torch_segmentation.train_step(model, images, labels, **options)
    losses = [step()[0] for _ in range(3)]
    assert losses[-1] < losses[0]
