"""The mesh and its errors, the placement rule, and the metric log."""

import io
import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from lambdanet.training import mesh, metrics

ONE = jax.devices()[:1]


def test_mesh_has_two_auto_axes():
    made = mesh.make_mesh(devices=ONE)
    assert dict(made.shape) == {"data": 1, "fsdp": 1} and made.axis_types == (
        AxisType.Auto,
        AxisType.Auto,
    )


@pytest.mark.parametrize(
    ("data", "fsdp", "text"),
    [
        (-1, 3, "mesh.fsdp=3 does not divide the 8 devices"),
        (4, 4, "mesh.data=4 x mesh.fsdp=4 is 16, but there are 8 devices; set mesh.data=2 or -1"),
        (4, 1, "is 4, but there are 8 devices"),
        (0, 1, "allowed: fsdp >= 1"),
        (-1, 0, "allowed: fsdp >= 1"),
    ],
)
def test_wrong_sizes_say_what_fits(data, fsdp, text):
    with pytest.raises(ValueError) as error:
        mesh.make_mesh(data, fsdp, devices=list(range(8)))  # refused before any device is looked at
    assert text in str(error.value)


def test_no_device_is_refused():
    with pytest.raises(ValueError, match="devices is empty; allowed: at least one device"):
        mesh.make_mesh(devices=[])


def test_batch_must_divide_over_devices_and_micro_batches():
    class Mesh8:
        size = 8

    mesh.check_batch("train.batch_size", 64, Mesh8, 4)
    with pytest.raises(
        ValueError,
        match=r"train.batch_size=72 .* 8 devices x 4 micro-batches.*nearest that does is 64",
    ):
        mesh.check_batch("train.batch_size", 72, Mesh8, 4)
    with pytest.raises(ValueError, match="nearest that does is 8"):
        mesh.check_batch("train.eval_batch_size", 3, Mesh8)


def test_large_arrays_are_split_along_their_largest_axis_that_divides():
    made = jax.sharding.AbstractMesh((2, 4), mesh.AXES)
    shapes = {
        "kernel": (3, 3, 64, 128),
        "odd": (9, 20, 7),
        "small": (8,),
        "indivisible": (31, 33),
        "scalar": (),
    }
    tree = {k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}
    specs = jax.tree.map(lambda s: s.spec, mesh.state_shardings(tree, made, min_size=64))
    assert specs == {
        "kernel": PartitionSpec(None, None, None, "fsdp"),
        "odd": PartitionSpec(None, "fsdp"),
        "small": PartitionSpec(),
        "indivisible": PartitionSpec(),
        "scalar": PartitionSpec(),
    }
    assert mesh.batch_sharding(made).spec == PartitionSpec(("data", "fsdp"))


def values(loss):
    return {"loss": loss, "accuracy": 0.5, "lr": 0.1}


def test_metric_log_records_rewinds_and_survives_a_cut_line(tmp_path):
    options = dict(total_steps=40, steps_per_epoch=10.0, batch_size=8)
    stream = io.StringIO()
    log = metrics.MetricLog(tmp_path, stream=stream, **options)
    log.start_clock(1)
    for step in (10, 20, 30):
        log.train(step, queued=step, values=values(1.0 / step))
    log.evaluation(30, "eval", {"accuracy": 0.75})
    log.evaluation(30, "test", {"accuracy": 0.5})
    log.close()
    assert "step 20/40 epoch 2.0 loss 0.0500 accuracy 0.500 lr 1.0e-01" in stream.getvalue()
    assert (
        "img/s ETA 0:0" in stream.getvalue()
        and "eval  step 30  accuracy 0.7500" in stream.getvalue()
    )
    file = tmp_path / metrics.FILE_NAME
    with open(file, "a") as out:
        out.write('{"step": 31, "los')  # a kill in the middle of a write
    records = metrics.read_records(tmp_path)
    assert [(r["step"], r["split"]) for r in records] == [
        (10, "train"),
        (20, "train"),
        (30, "train"),
        (30, "eval"),
        (30, "test"),
    ]
    assert records[0]["epoch"] == 1.0 and records[0]["images_per_second"] > 0

    # Continued from step 20: what came later is dropped before the first new record.
    log = metrics.MetricLog(tmp_path, start_step=20, stream=stream, **options)
    log.train(30, queued=30, values=values(7.0))
    log.close()
    assert [(r["step"], r["loss"]) for r in metrics.read_records(tmp_path)] == [
        (10, 0.1),
        (20, 0.05),
        (30, 7.0),
    ]
    file.write_text("broken\n" + json.dumps({"step": 1, "split": "train"}) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        metrics.read_records(tmp_path)


def test_only_the_writing_process_writes(tmp_path):
    stream = io.StringIO()
    log = metrics.MetricLog(
        tmp_path, total_steps=4, steps_per_epoch=2, batch_size=8, write=False, stream=stream
    )
    log.start_clock(0)
    log.train(1, queued=1, values=values(1.0))
    log.evaluation(1, "eval", {"accuracy": 0.5})
    log.message("hello")
    log.close()
    assert stream.getvalue() == "" and list(tmp_path.iterdir()) == []


def test_terminal_shows_one_live_line(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    log = metrics.MetricLog(
        tmp_path, total_steps=4, steps_per_epoch=2, batch_size=8, stream=stream, tensorboard=True
    )
    log.start_clock(0)
    log.train(1, queued=1, values=values(0.25))
    log.message("a [bracket] above")
    log.close()
    assert "loss 0.2500" in stream.getvalue() and "a [bracket] above" in stream.getvalue()
    assert any((tmp_path / "tensorboard").iterdir())
