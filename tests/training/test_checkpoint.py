"""Checkpoints: round trip, retention, and every way in which one cannot be written, read or
continued.
"""

import contextlib
import copy
import json
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from lambdanet.training import checkpoint, checkpoint_meta, continuing
from lambdanet.training.state import TrainState

CONFIG = base.get_config().to_dict() | {
    "model": {"name": "net", "attention": {"name": "lambda", "scope": 7}}
}
CONFIG["train"] = CONFIG["train"] | {"ema_decay": 0.9}


def make_state(width=64, step=0):
    params = {
        "layers": {0: {"kernel": jnp.linspace(-1, 1, 8 * width).reshape(8, width)}},
        "bias": jnp.ones(width, jnp.bfloat16),
    }
    stats = {"norm": {"mean": jnp.arange(width, dtype=jnp.float32) + step}}
    ema = jax.tree.map(jnp.copy, {"params": params, "stats": stats})
    return TrainState(jnp.asarray(step), params, stats, optax.adam(0.1).init(params), ema)


def abstract(state):
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )


def save(workdir, *steps, config=CONFIG, **options):
    checkpoints = checkpoint.Checkpoints(workdir, **options)
    for step, metrics in steps:
        assert checkpoints.save(step, make_state(step=step), {"batches": step}, config, metrics)
    checkpoints.wait()
    return checkpoints


def test_round_trip_retention_and_weights(tmp_path):
    accuracies = {10: 0.5, 20: 0.9, 30: 0.7, 40: None, 50: 0.8}
    steps = [
        (s, {"accuracy": a, "loss": 1.0} if a is not None else None) for s, a in accuracies.items()
    ]
    checkpoints = save(tmp_path, *steps, keep_last=2, keep_best="accuracy")
    assert (
        checkpoints.steps() == [20, 40, 50]
        and checkpoints.best_step() == 20
        and checkpoints.latest_step() == 50
    )
    assert not checkpoints.save(50, make_state(step=50), {}, CONFIG)  # there already
    wanted = make_state(step=50)
    state, data_state, config, step = checkpoints.restore(abstract(wanted))
    assert step == 50 and data_state == {"batches": 50} and config == json.loads(json.dumps(CONFIG))
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, state, wanted)
    # Another reader while the run is open: weights only, of the live or the averaged model.
    shapes = abstract(wanted)
    _, stats, step = checkpoint.load_weights(tmp_path, "live", "best", shapes.params, shapes.stats)
    assert step == 20 and stats["norm"]["mean"][0] == 20
    params, stats, step = checkpoint.load_weights(
        tmp_path, "ema", "latest", shapes.params, shapes.stats
    )
    assert (
        step == 50
        and stats["norm"]["mean"][0] == 50
        and params["layers"][0]["kernel"].shape == (8, 64)
    )
    with pytest.raises(
        checkpoint.CheckpointError, match=r"no checkpoint of step 30 .* \[20, 40, 50\]"
    ):
        checkpoint.load_weights(tmp_path, "live", 30, shapes.params, shapes.stats)
    checkpoints.close()


def test_smallest_loss_is_best(tmp_path):
    steps = [(s, {"loss": loss}) for s, loss in ((1, 0.9), (2, 0.3), (3, 0.5), (4, 0.6))]
    checkpoints = save(tmp_path, *steps, keep_last=1, keep_best="loss")
    assert checkpoints.steps() == [2, 4] and checkpoints.best_step() == 2
    checkpoints.close()


def test_weights_that_are_not_there(tmp_path):
    config = copy.deepcopy(CONFIG)
    config["train"]["ema_decay"] = 0.0
    save(tmp_path, (3, None), config=config).close()
    shapes = abstract(make_state())
    with pytest.raises(
        checkpoint.CheckpointError, match=r"metric 'accuracy'.*use 'latest' or one of \[3\]"
    ):
        checkpoint.load_weights(tmp_path, "live", "best", shapes.params, shapes.stats)
    with pytest.raises(checkpoint.CheckpointError, match="train.ema_decay=0"):
        checkpoint.load_weights(tmp_path, "ema", "latest", shapes.params, shapes.stats)
    with pytest.raises(checkpoint.CheckpointError, match="'live', 'ema'"):
        checkpoint.load_weights(tmp_path, "average", "latest", shapes.params, shapes.stats)
    with pytest.raises(checkpoint.CheckpointError, match="no folder 'checkpoints'"):
        checkpoint.load_weights(
            tmp_path / "elsewhere", "live", "latest", shapes.params, shapes.stats
        )


def largest_file(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def flip_bits(folder, places=16):
    # Data files start with a header; the rest of the largest one is array data, which orbax itself
    # does not check, and now and then what a later write has replaced. One place may be there.
    file = largest_file(folder / "state")
    raw = bytearray(file.read_bytes())
    for place in range(1, places):
        raw[place * len(raw) // places] ^= 0x10
    file.write_bytes(raw)


def cut_short(folder):
    file = largest_file(folder / "state")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def break_meta(folder):
    (folder / "meta" / "metadata").write_text('{"config": {')


def remove_index(folder):
    (folder / "state" / "_METADATA").unlink()


def edit_meta(folder):
    """The position of the data, one batch further: still JSON, still a position."""
    path = folder / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["data"]["batches"] += 1
    path.write_text(json.dumps(meta))


def edit_config(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace('"ema_decay": 0.9', '"ema_decay": 0.8'))


def lose_arrays(folder):
    largest_file(folder / "state").unlink()


DAMAGE = [flip_bits, cut_short, break_meta, remove_index, edit_meta, edit_config, lose_arrays]


def test_one_flipped_bit_is_named_or_changes_nothing(tmp_path):
    save(tmp_path, (10, None)).close()
    wanted, named = make_state(step=10), 0
    file = largest_file(tmp_path / "checkpoints" / "10" / "state")
    whole = file.read_bytes()
    for place in range(1, 8):
        raw = bytearray(whole)
        raw[place * len(raw) // 8] ^= 0x10
        file.write_bytes(raw)
        try:
            state = checkpoint.Checkpoints(tmp_path).restore(abstract(wanted))[0]
        except checkpoint.CheckpointError:
            named += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, state, wanted)
    assert named >= 4


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_never_passed_over(tmp_path, damage):
    save(tmp_path, (10, None), (20, None)).close()
    folder = tmp_path / "checkpoints" / "20"
    damage(folder)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoints.restore(abstract(make_state()))
    text = str(error.value)
    assert (
        "step 20 is damaged" in text
        and str(folder) in text
        and "delete it to go on from step 10" in text
    )
    assert "train.damaged='fall_back'" in text
    state, _, _, step = checkpoints.restore(abstract(make_state()), 10)
    assert step == 10 and int(state.step) == 10
    # Going on: refused unless asked for; then the damaged one is set aside, never deleted.
    with pytest.raises(checkpoint.DamagedError):
        checkpoints.resume(abstract(make_state()), lambda step, config: None)
    seen = []
    found = checkpoints.resume(
        abstract(make_state()), lambda step, config: seen.append(step), damaged="fall_back"
    )
    assert found.step == 10 and found.meta["data"] == {"batches": 10} and seen[-1] == 10
    assert checkpoints.steps() == [10] and (folder.parent / "20.damaged").is_dir()
    checkpoints.save(20, make_state(step=20), {"batches": 20}, CONFIG)
    checkpoints.wait()
    assert checkpoints.steps() == [10, 20]
    checkpoints.close()


def forget_an_array(folder):
    """An index that is still JSON but lacks an array is damage, not another model."""
    path = folder / "state" / "_METADATA"
    index = json.loads(path.read_text())
    del index["tree_metadata"][next(k for k in index["tree_metadata"] if "bias" in k)]
    path.write_text(json.dumps(index))


def test_an_index_without_an_array_is_damage(tmp_path):
    save(tmp_path, (10, None)).close()
    forget_an_array(tmp_path / "checkpoints" / "10")
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(checkpoint.DamagedError, match="names other arrays than were written"):
        checkpoints.restore(abstract(make_state()))
    checkpoints.close()


def test_without_a_whole_checkpoint_nothing_is_set_aside(tmp_path):
    save(tmp_path, (10, None), (20, None)).close()
    for step in (10, 20):
        break_meta(tmp_path / "checkpoints" / str(step))
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="nothing was renamed.*step 20 is damaged"):
        checkpoints.resume(abstract(make_state()), lambda step, config: None, damaged="fall_back")
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]
    checkpoints.close()


def test_a_damaged_folder_that_was_set_aside_stays(tmp_path):
    for _ in range(2):
        save(
            tmp_path,
            *((s, None) for s in (10, 20) if not (tmp_path / "checkpoints" / f"{s}").exists()),
        ).close()
        break_meta(tmp_path / "checkpoints" / "20")
        checkpoints = checkpoint.Checkpoints(tmp_path)
        found = checkpoints.resume(abstract(make_state()), lambda *_: None, damaged="fall_back")
        assert found.step == 10
        checkpoints.close()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["10", "20.damaged", "20.damaged2"]


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "denied")])
def test_what_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch, error):
    checkpoints = save(tmp_path, (10, None), (20, None))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints._manager, "restore", fail)
    with pytest.raises(checkpoint.CheckpointError, match="step 20 cannot be read") as raised:
        checkpoints.resume(abstract(make_state()), lambda *_: None, damaged="fall_back")
    assert not isinstance(raised.value, checkpoint.DamagedError)
    assert checkpoints.steps() == [10, 20]
    checkpoints.close()


def test_a_renamed_folder_is_another_step_only_in_name(tmp_path):
    save(tmp_path, (32, None)).close()
    (tmp_path / "checkpoints" / "32").rename(tmp_path / "checkpoints" / "33")
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(checkpoint.DamagedError, match="step 33 is damaged"):
        checkpoints.meta()
    checkpoints.close()


def old_meta(**changes):
    """What versions until 2026-11 wrote: seconds beside the position, no digest."""
    config = {"train": {"keep_best": "accuracy", "ema_decay": 0.0}}
    meta = {"config": config, "data": {"batches": 7, "seconds": 2.5}, "checksums": {}}
    return {k: v for k, v in (meta | changes).items() if v is not None}


def test_older_checkpoints_are_read():
    meta = checkpoint_meta.check_meta(7, old_meta())
    assert meta["progress"] == {"seconds": 2.5, "window": {}}


@pytest.mark.parametrize(
    "meta, text",
    [
        ([], "no mapping but list"),
        (old_meta(config=None), "no mapping 'config'"),
        (old_meta(checksums=3), "no mapping 'checksums'"),
        (old_meta(data={}), "another step: None batches"),
        (old_meta(data={"batches": 10**9}), "another step: 1000000000 batches read by step 7"),
        (old_meta(data={"batches": True}), "another step"),
        (old_meta(data={"batches": 7, "seconds": "x"}), "no number 'progress.seconds' but 'x'"),
        (
            checkpoint_meta.make_meta(7, **old_meta(progress={"seconds": 1.0})),
            "no mapping 'progress' with a mapping 'window'",
        ),
        (old_meta(digest="0"), "digest is wrong"),
        (old_meta(progress=checkpoint_meta.NO_PROGRESS), "digest is wrong"),  # taken out
        (old_meta(config={"train": 3}), "no text 'config.train.keep_best'"),
        (old_meta(config={"train": {"keep_best": "", "ema_decay": "x"}}), "config.train.ema_decay"),
    ],
)
def test_entries_that_are_missing_or_of_another_type_are_named(meta, text):
    with pytest.raises(ValueError, match=text):
        checkpoint_meta.check_meta(7, meta)


NAN = float("nan")


@pytest.mark.parametrize("losses", [(2.0, 1.0, NAN), (1.0, NAN, 2.0), (NAN, 1.0, 2.0)])
def test_what_is_not_finite_is_never_the_best(tmp_path, losses, caplog):
    steps = [(step, {"loss": loss}) for step, loss in enumerate(losses, 1)]
    checkpoints = save(tmp_path, *steps, keep_last=1, keep_best="loss")
    best = losses.index(1.0) + 1
    assert checkpoints.best_step() == best and checkpoints.steps() == sorted({best, 3})
    checkpoints.close()
    assert "loss is nan, so it cannot be the best" in caplog.text
    again = checkpoint.Checkpoints(tmp_path, keep_best="loss", read_only=True)
    assert again.best_step() == best
    again.close()


def test_scores_of_older_versions_and_unreadable_ones(tmp_path, caplog):
    save(tmp_path, *((s, None) for s in (1, 2, 3, 4)), keep_last=9).close()
    for step, text in ((1, '{"loss": 0.5}'), (2, '{"loss": NaN}'), (3, '{"loss'), (4, "[]")):
        folder = tmp_path / "checkpoints" / str(step) / "metrics"
        folder.mkdir()
        (folder / "metrics").write_text(text)
    checkpoints = checkpoint.Checkpoints(tmp_path, keep_best="loss")
    assert checkpoints.best_step() == 1
    assert caplog.text.count("that step has no score") == 2 and "3/metrics" in caplog.text
    checkpoints.close()


def test_a_score_can_come_after_the_checkpoint(tmp_path):
    checkpoints = save(tmp_path, (1, {"accuracy": 0.5}), (2, None), keep_last=1)
    checkpoints.add_score(2, {"accuracy": NAN})
    assert checkpoints.best_step() == 1
    checkpoints.add_score(2, {"accuracy": 0.9, "loss": 1.0})
    assert checkpoints.best_step() == 2
    checkpoints.close()
    again = checkpoint.Checkpoints(tmp_path, keep_last=1)
    assert again.best_step() == 2
    again.save(3, make_state(step=3), {"batches": 3}, CONFIG, {"accuracy": 0.8})
    again.wait()
    assert again.steps() == [2, 3]
    again.close()


@pytest.mark.parametrize("name", ["lr=[0.1]", "[abl]/run", "a\\b", "{x}*?", "gs:", "\udcff"])
def test_any_name_of_a_workdir(tmp_path, name):
    workdir = tmp_path / name
    save(workdir, (1, None)).close()
    shapes = abstract(make_state())
    _, stats, step = checkpoint.load_weights(workdir, "live", "latest", shapes.params, shapes.stats)
    assert step == 1 and stats["norm"]["mean"][0] == 1
    assert (workdir / "checkpoints" / "1" / "state").is_dir()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_workdir_that_is_gone_is_noticed(tmp_path, replaced):
    checkpoints = save(tmp_path / "run", (1, None))
    (tmp_path / "run").rename(tmp_path / "moved")
    if replaced:  # as by a save in the background, which makes the folders that it misses
        shutil.copytree(tmp_path / "moved", tmp_path / "run")
    with pytest.raises(checkpoint.CheckpointError, match="is gone: it was moved, removed or"):
        checkpoints.save(2, make_state(step=2), {"batches": 2}, CONFIG)
    with pytest.raises(checkpoint.CheckpointError, match="is gone"):
        checkpoints.close()


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 100 bytes in this process."""
    largest, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, most))


@pytest.mark.parametrize("noticed_by", ["wait", "save", "close"])
def test_a_disk_that_takes_no_more(tmp_path, noticed_by):
    checkpoints = save(tmp_path, (10, None))
    with full_disk():
        checkpoints.save(20, make_state(step=20), {"batches": 20}, CONFIG)
        with pytest.raises(checkpoint.CheckpointError) as error:
            if noticed_by == "save":
                checkpoints.save(30, make_state(step=30), {"batches": 30}, CONFIG)
            else:
                getattr(checkpoints, noticed_by)()
        with contextlib.suppress(checkpoint.CheckpointError):
            checkpoints.close()
        # Other threads write on after the first error; a process that ends takes them along.
        files = None
        while files != (files := sorted(tmp_path.rglob("*"))):
            time.sleep(0.3)
    text = str(error.value)
    assert str(tmp_path / "checkpoints") in text and "Good ones there: [10]" in text
    assert "too large" in text or "Error writing" in text  # EFBIG, seen by Python or TensorStore
    again = checkpoint.Checkpoints(tmp_path)
    assert again.steps() == [10] and again.restore(abstract(make_state()))[3] == 10
    assert again.save(20, make_state(step=20), {"batches": 20}, CONFIG)
    again.close()
    assert checkpoint.newest_step(tmp_path) == 20


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    save(tmp_path, (10, None)).close()
    leftover = tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    reader = checkpoint.Checkpoints(tmp_path, read_only=True)
    assert leftover.exists() and reader.latest_step() == 10
    reader.close()
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 10
    checkpoints.close()
    assert not leftover.exists()


def test_foreign_checkpoint_lists_names_and_shapes(tmp_path):
    checkpoints = save(tmp_path, (10, None))
    other = make_state(width=32)
    other.params["head"] = {"kernel": jnp.zeros((2, 2))}
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoints.restore(abstract(other))
    text = str(error.value)
    assert "another model or optimiser" in text
    assert "params/head/kernel (2, 2)" in text
    assert "params/layers/0/kernel: checkpoint (8, 64), model (8, 32)" in text
    smaller = make_state()
    del smaller.params["bias"]
    with pytest.raises(
        checkpoint.CheckpointError, match="only the checkpoint has\n    params/bias"
    ):
        checkpoints.restore(abstract(smaller))
    checkpoints.close()


def test_unusable_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder belongs")
    with pytest.raises(checkpoint.CheckpointError, match=str(tmp_path / "checkpoints")):
        checkpoint.Checkpoints(tmp_path)


def test_changed_keys_lists_what_makes_another_run():
    config = copy.deepcopy(CONFIG)
    config["train"] |= {"epochs": 99.0, "log_every": 1, "batch_size": 128}
    config["model"]["attention"] = {"name": "lambda", "scope": 9, "key_depth": 8}
    config["optim"]["lr"] = 0.5
    config["data"]["num_workers"] = 3
    saved = json.loads(json.dumps(CONFIG))
    assert continuing.changed_keys(saved, CONFIG) == []
    assert continuing.changed_keys(saved, config) == [
        "model.attention.key_depth: '(not set)' -> 8",
        "model.attention.scope: 7 -> 9",
        "optim.lr: 0.004 -> 0.5",
        "train.batch_size: 64 -> 128",
    ]


def test_a_key_that_is_newer_than_the_run_has_its_default_there():
    saved, config = copy.deepcopy(CONFIG), copy.deepcopy(CONFIG)
    del saved["optim"]["lr"]
    del saved["model"]["attention"]
    defaults = {
        "optim": {"lr": CONFIG["optim"]["lr"]},
        "model": {"attention": CONFIG["model"]["attention"]},
    }
    of_model = continuing.changed_keys(saved, config, defaults)
    assert of_model and all(
        line.startswith("model.attention") for line in of_model
    )  # options of a model have no such default
    config["optim"]["lr"] = 0.5
    assert f"optim.lr: {CONFIG['optim']['lr']} -> 0.5" in continuing.changed_keys(
        saved, config, defaults
    )
