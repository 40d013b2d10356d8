"""Opening data sets: digits, prepared TFDS directories, synthetic images."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_helpers import describe, jpeg, open_source, sizes
from sklearn.datasets import load_digits

from lambdanet import data
from lambdanet.data import decode, digits, label_maps, storage

ROOT = Path(__file__).parents[2]


def all_ids(config, split):
    return open_source(config, split).ids()


def test_digits_splits_are_stratified_disjoint_and_fixed(config):
    info = describe(config)
    assert len(info.classes) == 10 and info.classes == tuple("0123456789")
    assert sizes(config) == {
        "train": 1077, "validation": 360, "test": 360, "train_labelled": 108, "train_unlabelled": 969  # noqa: E501
    }  # fmt: skip
    parts = {split: all_ids(config, split) for split in sizes(config)}
    everything = np.concatenate([parts["train"], parts["validation"], parts["test"]])
    assert sorted(everything) == list(range(1797))
    assert sorted(np.concatenate([parts["train_labelled"], parts["train_unlabelled"]])) == sorted(
        parts["train"]
    )
    target = load_digits().target
    for split, ids in parts.items():
        expected = np.bincount(target) * len(ids) / 1797
        assert np.abs(np.bincount(target[ids]) - expected).max() < 1.1, split
    assert sorted(parts["test"])[:6] == [1, 2, 10, 22, 27, 29]  # the split never changes


def test_digits_pixels_survive_exactly(config):
    source = open_source(config, "validation")
    original = load_digits()
    for index in (0, 100, 359):
        record = source.read(index)
        image = decode.to_array(decode.open_image(record.fields["image"]).load())
        assert np.array_equal(image[..., 0], np.round(original.images[record.id] * 255 / 16))
        assert record.fields["label"] == original.target[record.id]


def test_stratified_split_largest_remainder():
    labels = np.repeat([0, 1, 2], [50, 30, 21])
    first, second = digits.stratified_split(labels, [20, 31])
    assert np.bincount(labels[first]).tolist() == [10, 6, 4] and len(second) == 31
    assert not set(first) & set(second)
    with pytest.raises(ValueError, match="cannot split 101 records"):
        digits.stratified_split(labels, [100, 2])


@pytest.mark.exhaustive
def test_racing_preparations_leave_one_whole_set(tmp_path):
    (tmp_path / "digits").mkdir()
    process = subprocess.Popen(["true"])
    process.wait()  # its number now belongs to nobody, as after a kill -9
    leftover = Path(f"{tmp_path}/digits/{storage._scratch_prefix(Path('1.0.0'))}{process.pid}-abc")
    (leftover / "digits").mkdir(parents=True)
    code = f"from lambdanet.data import digits; print(digits.prepare({str(tmp_path)!r}))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0].decode().strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == [f"{tmp_path}/digits/1.0.0"] * 2
    assert os.listdir(tmp_path / "digits") == [
        "1.0.0"
    ]  # no temporary directory, not even that of the killed one
    assert (
        len(tfds.builder_from_directory(tmp_path / "digits" / "1.0.0").as_data_source(split="test"))
        == 360
    )


def test_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, *args):
        yield 0, {"id": 0, "image": digits.png_bytes(np.zeros((8, 8), np.uint8)), "label": 0}
        raise RuntimeError("disk full")

    monkeypatch.setattr(digits.Digits, "_generate_examples", fail)
    with pytest.raises(ValueError, match="cannot prepare the digits.*disk full"):
        digits.prepare(str(tmp_path))
    assert os.listdir(tmp_path / "digits") == []


def test_unwritable_data_dir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match="cannot prepare the digits under data.data_dir=.*file.*writable"
    ):
        digits.prepare(str(tmp_path / "file"))


@pytest.fixture
def tfds_config(config):
    """The digits read as any prepared TFDS directory."""
    config.source, config.data_dir = "tfds", digits.prepare(config.data_dir)
    return config


def test_tfds_directory_with_slices_and_sums(tfds_config):
    assert len(open_source(tfds_config, "train[:50%]+validation")) == 538 + 360
    assert len(open_source(tfds_config, "train[:10]")) == 10
    assert np.array_equal(all_ids(tfds_config, "train[:10]"), all_ids(tfds_config, "train")[:10])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train_split": "trian"}, r"split 'trian'.*Splits: train \(1077\), validation"),
        ({"train_split": "train[:0]"}, "cannot read split 'train.:0.'.*0 length Splits"),
        ({"train_split": "train[:10"}, "cannot read split"),
        (
            {"data_dir": "missing/1.0.0"},
            "data_dir='missing/1.0.0' does not exist; name the directory that holds",
        ),
        (
            {"source": "image_folder", "data_dir": "tests"},
            "no prepared data set.*lambdanet.data.prepare",
        ),
        ({"source": "folder"}, "unknown data.source 'folder'; allowed: digits, cued_digits"),
    ],
)
def test_what_cannot_be_opened_is_named(tfds_config, change, message):
    tfds_config.update(change)
    with pytest.raises(ValueError, match=message):
        open_source(tfds_config, tfds_config.train_split)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("eval_split", "--config.data.eval_split= --config.train.keep_best="),
        ("test_split", "--config.data.test_split="),
        ("train_split", ""),
    ],
)
def test_a_split_that_a_run_can_do_without_is_told_how(tfds_config, key, options):
    tfds_config[key] = "elsewhere"
    with pytest.raises(ValueError, match=f"^data.{key} = 'elsewhere': ") as caught:
        open_source(tfds_config, "elsewhere")
    assert str(caught.value).endswith(f"; '' = none ({options})") == bool(options)


class Pairs(tfds.core.GeneratorBasedBuilder):
    """A set whose features have other names, and one without classes."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, label, *, data_dir):
        self.label_feature = label
        super().__init__(data_dir=data_dir)

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3)),
            "kind": self.label_feature,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            yield i, {"picture": jpeg((9, 9, 9)), "kind": i}


def test_features_are_found_by_type_or_named_in_the_error(tmp_path, config):
    config.source, config.eval_split, config.test_split = "tfds", "", ""
    for name, feature in (
        ("classes", tfds.features.ClassLabel(names=["a", "b", "c"])),
        ("plain", np.int64),
    ):
        storage.prepare_atomically(
            lambda scratch, f=feature: Pairs(f, data_dir=scratch), tmp_path / name
        )
    config.data_dir = str(tmp_path / "classes")
    info = describe(config)
    assert info.classes == ("a", "b", "c") and sizes(config) == {"train": 3}
    assert dict(info.features) == {"image": "picture", "label": "kind"}
    assert sorted(open_source(config, "train").read(i).fields["label"] for i in range(3)) == [
        0,
        1,
        2,
    ]
    config.data_dir = str(tmp_path / "plain")
    with pytest.raises(
        ValueError, match="needs a feature 'label' of type ClassLabel.*kind: Tensor, picture: Image"
    ):
        describe(config)


def test_synthetic_source(config):
    config.source, config.image_size, config.channels = "synthetic", (6, 5), 3
    config.synthetic_records, config.synthetic_classes = 40, 4
    info = describe(config)
    assert len(info.classes) == 4 and sizes(config) == dict.fromkeys(
        ("train", "validation", "test"), 40
    )
    first, second = (open_source(config, "train").read(7) for _ in range(2))
    assert (
        np.array_equal(first.fields["image"], second.fields["image"])
        and first.fields["image"].shape == (6, 5, 3)
        and first.fields["label"] == second.fields["label"]
    )
    other = open_source(config, "validation").read(7)
    assert not np.array_equal(first.fields["image"], other.fields["image"])
    assert {open_source(config, "train").read(i).fields["label"] for i in range(40)} == set(
        range(4)
    )
    with pytest.raises(
        ValueError, match="no split 'train_labelled'; allowed: train, validation, test"
    ):
        open_source(config, "train_labelled")


def test_synthetic_label_maps_are_there_for_who_asks(config):
    config.source, config.image_size, config.channels = "synthetic", (21, 13), 3
    config.synthetic_records, config.synthetic_classes = 40, 300
    mask, names = label_maps.find_mask(data.open_builder(config), "image")
    assert mask == "segmentation_mask" and len(names) == 255  # more a label map cannot hold
    features = {"image": "image", mask: mask}
    first, second = (data.open_source(config, "train", features).read(7) for _ in range(2))
    found = label_maps.read_label_map(first.fields[mask], 255, name="it", size=(13, 21))
    assert np.array_equal(found[..., None], second.fields[mask])
    assert len(np.unique(found)) == 6 and (found[:8, :8] == found[0, 0]).all()
    plain = open_source(config, "train").read(7)
    assert mask not in plain.fields and np.array_equal(plain.fields["image"], first.fields["image"])
