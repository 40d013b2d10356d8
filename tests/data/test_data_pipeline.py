"""Batches: order, exact resume under changed readers, process shards, damaged records, mixing,
evaluation.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_helpers import (
    describe,
    eval_batches,
    jpeg,
    open_source,
    prepare_unchecked,
    same,
    take,
    train_batches,
)

from lambdanet import data
from lambdanet.data import decode, pseudo_labels

ROOT = Path(__file__).parents[2]
ARGS = dict(batch_size=64, num_classes=10, seed=3)


def changed(config, **values):
    copy = config.copy_and_resolve_references()
    copy.update(values)
    return copy


def ids(batches):
    return np.concatenate([batch["id"] for batch in batches])


def test_batches_have_the_promised_types_and_cover_each_epoch_once(config):
    batches = take(train_batches(config, **ARGS), 34)
    image, label, number = batches[0]["image"], batches[0]["label"], batches[0]["id"]
    assert image.shape == (64, 8, 8, 1) and image.dtype == np.uint8
    assert (
        label.shape == number.shape == (64,)
        and label.dtype == np.int32
        and number.dtype == np.int64
    )
    order = ids(batches)
    first, second = order[:1077], order[1077:2154]
    assert len(set(first)) == len(set(second)) == 1077 and set(first) == set(
        second
    )  # batches straddle, nothing is lost
    assert (first == second).mean() < 0.02 and (
        np.sort(first) == first
    ).mean() < 0.02  # a new order each epoch


def test_order_and_augmentation_follow_the_seed(config):
    first, again = (take(train_batches(config, **ARGS), 3) for _ in range(2))
    other = take(train_batches(config, **ARGS | {"seed": 4}), 3)
    assert same(first, again) and not np.array_equal(ids(first), ids(other))
    plain = take(train_batches(changed(config, crop="none", flip=0.0), **ARGS), 3)
    assert np.array_equal(ids(first), ids(plain)) and not np.array_equal(
        first[0]["image"], plain[0]["image"]
    )


def test_resume_at_any_batch_and_with_other_threads(config):
    straight = take(train_batches(config, **ARGS), 25)
    for start, threads, prefetch in (
        (1, 1, 1),
        (16, 2, 3),
        (20, 0, 0),
    ):  # batch 16 is the one with the epoch's end
        config.num_threads, config.prefetch = threads, prefetch
        batches = train_batches(config, start=start, **ARGS)
        assert batches.state()["batches"] == start
        assert same(straight[start:], take(batches, 25 - start))
        assert batches.state()["batches"] == 25


def test_resume_with_other_worker_counts_continues_exactly(config):
    straight = take(train_batches(config, **ARGS), 14)
    config.num_workers, config.num_threads, config.prefetch = 2, 1, 2
    batches = train_batches(config, start=5, **ARGS)  # 0 -> 2 workers
    assert same(straight[5:10], take(batches, 5))
    position = batches.state()["batches"]
    config.num_workers = 0  # 2 -> 0
    assert same(straight[10:], take(train_batches(config, start=position, **ARGS), 4))
    config.num_workers = 1
    evaluated = list(eval_batches(config, "validation", batch_size=300, num_classes=10))
    config.num_workers = 0
    assert same(evaluated, list(eval_batches(config, "validation", batch_size=300, num_classes=10)))


def test_processes_share_the_global_batches(config):
    whole = take(train_batches(config, **ARGS), 4)
    for count in (2, 4):
        parts = [
            take(train_batches(config, process_index=p, process_count=count, start=1, **ARGS), 3)
            for p in range(count)
        ]
        joined = [
            {k: np.concatenate([part[i][k] for part in parts]) for k in whole[0]} for i in range(3)
        ]
        assert same(whole[1:], joined)
    with pytest.raises(
        ValueError, match="batch size 64 must be a positive multiple of the 3 processes"
    ):
        train_batches(config, process_count=3, **ARGS)
    with pytest.raises(ValueError, match="process index is 2; allowed: 0 to 1"):
        train_batches(config, process_index=2, process_count=2, **ARGS)


def test_evaluation_covers_the_split_in_order_and_pads(config):
    expected = data.Part(open_source(config, "test")).source.ids()
    batches = eval_batches(config, "test", batch_size=100, num_classes=10)
    assert len(batches) == 4
    for _ in range(2):  # may be iterated again
        found = list(batches)
        assert [b["mask"].sum() for b in found] == [100, 100, 100, 60] and found[0][
            "mask"
        ].dtype == np.float32
        kept = np.concatenate([b["mask"] for b in found]) == 1
        assert np.array_equal(ids(found)[kept], expected) and (ids(found)[~kept] == -1).all()
        assert not found[3]["image"][60:].any() and found[3]["image"].shape == (100, 8, 8, 1)
    halves = [
        list(
            eval_batches(
                config, "test", batch_size=100, num_classes=10, process_index=p, process_count=2
            )
        )
        for p in (0, 1)
    ]
    assert same(
        found, [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves, strict=True)]
    )


def test_stopping_early_and_closing_twice(config):
    for batch in eval_batches(config, "test", batch_size=50, num_classes=10):
        assert batch["mask"].all()
        break
    batches = train_batches(config, **ARGS)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="were closed"):
        next(batches)


def test_label_out_of_range_names_record_and_range(config):
    with pytest.raises(
        ValueError, match=r"record \d+ of split 'train' .*label \d is out of range; allowed: 0 to 4"
    ):
        take(train_batches(config, **ARGS | {"num_classes": 5}), 1)
    config.on_error = "skip"  # a mistake in the set-up is not skipped
    with pytest.raises(ValueError, match="out of range"):
        list(eval_batches(config, "test", batch_size=10, num_classes=9))


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"start": -1}, {"seed": -1}])
def test_wrong_arguments(config, change):
    with pytest.raises(ValueError):
        train_batches(config, **ARGS | change)


@pytest.fixture
def damaged(folder, tmp_path, config):
    """Twenty images of which two are damaged: one cut off, one with its pixel data gone."""
    (folder / "cat" / "3.jpg").write_bytes(jpeg((1, 2, 3), size=(400, 300))[:-40])
    (folder / "dog" / "5.jpg").write_bytes(jpeg((1, 2, 3), size=(400, 300))[:700])
    prepare_unchecked(folder, tmp_path / "prepared")
    config.source, config.data_dir = "image_folder", str(tmp_path / "prepared")
    config.eval_split = config.test_split = ""
    config.image_size, config.channels = (6, 5), 3
    return config


def test_damaged_record_raises_naming_its_file(damaged):
    with pytest.raises(
        data.CorruptRecordError,
        match=r"file (cat/3|dog/5).jpg: cannot decode.*data.on_error='skip'",
    ):
        take(train_batches(damaged, batch_size=20, num_classes=2, seed=0), 1)
    with pytest.raises(data.CorruptRecordError, match=r"file (cat/3|dog/5).jpg"):
        list(eval_batches(damaged, "train", batch_size=20, num_classes=2))


def test_damaged_record_raises_from_a_worker_process(damaged):
    damaged.num_workers = 1
    with pytest.raises(data.CorruptRecordError, match=r"file (cat/3|dog/5).jpg"):
        take(train_batches(damaged, batch_size=20, num_classes=2, seed=0), 1)


def test_damaged_records_are_replaced_and_counted(damaged):
    damaged.on_error = "skip"
    args = dict(batch_size=10, num_classes=2, seed=0)
    straight = take(train_batches(damaged, **args), 6)
    counts = [batch["skipped"] for batch in straight]
    assert counts[0].shape == () and counts[0].dtype == np.int32
    assert [counts[i] + counts[i + 1] for i in (0, 2, 4)] == [
        2,
        2,
        2,
    ]  # two in each epoch of two batches
    assert len(set(ids(straight[:2]))) == 18
    assert same(straight[3:], take(train_batches(damaged, start=3, **args), 3))
    batches = eval_batches(damaged, "train", batch_size=20, num_classes=2)
    (whole,) = batches
    assert batches.num_records == 20  # so an evaluation can say that two are missing
    assert whole["mask"].sum() == 18 and not whole["image"][whole["mask"] == 0].any()
    red, blue = whole["image"][..., 0].mean((1, 2)), whole["image"][..., 2].mean((1, 2))
    assert np.array_equal((blue > red)[whole["mask"] == 1], whole["label"][whole["mask"] == 1] == 1)


def test_many_damaged_records_in_a_row_raise(damaged, monkeypatch):
    damaged.on_error = "skip"
    monkeypatch.setattr(decode, "open_image", lambda data, **options: 1 / 0)
    with pytest.raises(ValueError, match="20 damaged records in a row; the last one: record"):
        take(train_batches(damaged, batch_size=2, num_classes=2, seed=0), 1)


@pytest.fixture
def mixed(config, tmp_path):
    """108 labelled digits, and 200 of the others labelled (all with class 7) by a file."""
    config.train_split = "train_labelled"
    chosen = open_source(config, "train_unlabelled").ids()[100:300]
    probabilities = np.zeros((200, 10))
    probabilities[:, 7] = 1.0
    config.pseudo_labels = str(tmp_path / "labels.json")
    pseudo_labels.write(
        config.pseudo_labels,
        chosen,
        probabilities,
        0.5,
        10,
        split="train_unlabelled",
        per_class=200,
    )
    return config, set(chosen.tolist())


def test_pseudo_labelled_records_are_mixed_in(mixed):
    config, chosen = mixed
    config.pseudo_fraction = 0.75
    parts = data.training_parts(config, describe(config).features)
    assert [len(part) for part in parts] == [108, 200]
    straight = take(train_batches(config, **ARGS), 12)
    pseudo = np.isin(ids(straight), list(chosen))
    assert [round(64 * 0.75)] * 12 == [
        np.isin(batch["id"], list(chosen)).sum() for batch in straight
    ]
    labels = np.concatenate([batch["label"] for batch in straight])
    assert (labels[pseudo] == 7).all() and len(set(labels[~pseudo])) == 10
    assert (
        len(set(ids(straight)[pseudo][:200])) == 200
        and len(set(ids(straight)[~pseudo][:108])) == 108
    )
    assert same(straight[7:], take(train_batches(config, start=7, **ARGS), 5))
    half = take(train_batches(config, process_index=1, process_count=2, **ARGS), 2)
    assert np.array_equal(ids(half), np.concatenate([batch["id"][32:] for batch in straight[:2]]))


def test_pseudo_labels_that_do_not_fit_are_refused(mixed):
    config, _ = mixed
    with pytest.raises(ValueError, match="data.pseudo_fraction=1.0; allowed: between 0 and 1"):
        train_batches(changed(config, pseudo_fraction=1.0), **ARGS)
    with pytest.raises(
        ValueError, match="labels split 'train_unlabelled', but data.pseudo_split='validation'"
    ):
        train_batches(changed(config, pseudo_split="validation"), **ARGS)
    with pytest.raises(ValueError, match="gives the field 'label', and this task reads only image"):
        data.training_parts(config, {"image": "image"})
    pseudo_labels.write(config.pseudo_labels, np.array([100000]), np.eye(10)[:1], 0.5, 10)
    with pytest.raises(
        ValueError, match="labels 1 records, of which 1 are not in split 'train_unlabelled'"
    ):
        train_batches(config, **ARGS)


def test_check_resume_accepts_other_readers_and_names_other_data(mixed):
    config, _ = mixed
    saved = train_batches(config, **ARGS).state()
    data.check_resume(
        saved,
        train_batches(changed(config, num_workers=2), process_count=2, start=5, **ARGS).state(),
    )
    other = changed(config, train_split="train", pseudo_labels="")
    current = train_batches(other, batch_size=32, num_classes=10, seed=4).state()
    with pytest.raises(ValueError) as error:
        data.check_resume(saved, current)
    for text in (
        "batch_size was 64 and is now 32",
        "seed was 3 and is now 4",
        "split was 'train_labelled' and is now 'train'",
        "records was 108 and is now 1077",
        "pseudo_labels was",
        "is now 'unset'",
    ):
        assert text in str(error.value)
    with pytest.raises(ValueError, match="number of batches consumed is missing"):
        data.check_resume({k: v for k, v in saved.items() if k != "batches"}, saved)


@pytest.mark.exhaustive
def test_workers_do_not_outlive_a_killed_parent(config):
    code = f"""
import sys
sys.path.append("tests")
from configs import base
from data_helpers import train_batches
if __name__ == "__main__":
    config = base.get_config().data
    config.data_dir, config.num_workers = {config.data_dir!r}, 1
    batches = train_batches(config, batch_size=8, num_classes=10, seed=0)
    next(batches)
    import multiprocessing
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 1
    os.kill(
        workers[0], signal.SIGTERM
    )  # what a scheduler sends to the whole group: the parent alone decides
    time.sleep(0.5)
    assert Path(f"/proc/{workers[0]}").exists()
    process.kill()
    process.communicate()
    deadline = time.time() + 20
    while Path(f"/proc/{workers[0]}").exists() and time.time() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{workers[0]}").exists()
