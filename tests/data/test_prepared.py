"""Prepared directories whose metadata were edited by hand: refused by one error, nothing runs."""

import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_helpers import jpeg

from lambdanet.data import prepared, storage


@pytest.fixture
def copy(digits_dir, tmp_path):
    """A copy of the prepared digits that a test may spoil."""
    return Path(shutil.copytree(Path(digits_dir) / "digits" / "1.0.0", tmp_path / "1.0.0"))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def opened(directory):
    """The error's text, after a look at its first line."""
    with pytest.raises(ValueError) as error:
        prepared.open_prepared(directory)
    first, *rest = str(error.value).splitlines()
    assert first == (
        f"cannot open the prepared data set {directory}; restore the original files, or prepare "
        "the data set anew:"
    )
    return rest


def shards(content, value):
    content["splits"][0]["shardLengths"] = value


def feature(content, name, **values):
    content["featuresDict"]["features"][name].update(values)


INFO_EDITS = {
    "more records": (
        lambda c: shards(c, ["1078"]),
        "digits-train.array_record-00000-of-00001: 1077 records, but shardLengths of split 'train'"
        " in dataset_info.json says 1078",
    ),
    "fewer records": (lambda c: shards(c, ["1000"]), "1077 records, but .* says 1000"),
    "another shard": (
        lambda c: shards(c, ["1000", "77"]),
        "digits-train.array_record-00000-of-00002: missing; dataset_info.json names it for split",
    ),
    "a text as length": (lambda c: shards(c, ["many"]), "dataset_info.json: .*shardLengths"),
    "a negative length": (lambda c: shards(c, ["-5"]), r"split 'train' has shardLengths .-5."),
    "no lengths": (lambda c: shards(c, []), "split 'train' has no shardLengths"),
    "no splits": (lambda c: c.pop("splits"), "dataset_info.json: no splits"),
    "a doubled split": (
        lambda c: c["splits"][1].update(name="train"),
        "split 'train' stands there 2 times",
    ),
    "a renamed split": (
        lambda c: c["splits"][0].update(name="trian"),
        "digits-trian.array_record-.* missing",
    ),
    "another name": (lambda c: c.update(name="digit"), "digit-train.array_record-.* missing"),
    "no name": (lambda c: c.pop("name"), "name is ''; allowed: letters"),
    "another version": (lambda c: c.update(version="one"), "version is 'one'; it must read like"),
    "another format": (
        lambda c: c.update(fileFormat="tfrecord"),
        "fileFormat is 'tfrecord'; only 'array_record'",
    ),
    "a path in the template": (
        lambda c: c["splits"][0].update(
            filepathTemplate="../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        ),
        "filepathTemplate of split 'train' leads to",
    ),
    "an unknown variable": (
        lambda c: c["splits"][0].update(filepathTemplate="{SECRET}.{SHARD_X_OF_Y}"),
        "SECRET",
    ),
    "an unknown entry": (lambda c: c.update(colour="red"), "dataset_info.json: .*colour"),
    "features": (
        lambda c: c.update(features={"pythonClassName": "hostile.Feature", "tensor": {}}),
        "has an entry 'features'",
    ),
}
FEATURE_EDITS = {
    "fewer classes": (
        lambda c: feature(c, "label", classLabel={"numClasses": "9"}),
        "label.labels.txt: 10 class names, but numClasses in features.json is 9",
    ),
    "no classes": (
        lambda c: feature(c, "label", classLabel={}),
        "'label' has numClasses 0; allowed: 1 to",
    ),
    "countless classes": (
        lambda c: feature(c, "label", classLabel={"numClasses": str(10**15)}),
        "numClasses 1000000000000000; allowed: 1 to 1000000",
    ),
    "a foreign class": (
        lambda c: feature(c, "image", pythonClassName="hostile.Feature"),
        "feature 'image' is of class 'hostile.Feature'; allowed are those of tensorflow_datasets",
    ),
    "a foreign class outside": (
        lambda c: c.update(pythonClassName="hostile.Feature"),
        "feature '' is of class 'hostile",
    ),
    "another module of TFDS": (
        lambda c: feature(
            c, "id", pythonClassName="tensorflow_datasets.core.features.text_feature_test.Text"
        ),
        "is of class 'tensorflow_datasets.core.features.text_feature_test.Text'",
    ),
    "no class": (lambda c: c["featuresDict"]["features"]["id"].pop("pythonClassName"), "class ''"),
    "the old form": (
        lambda c: c.update(type="hostile.Feature", content={}),
        "has the form of old TFDS versions",
    ),
    "JSON inside JSON": (
        lambda c: c["featuresDict"]["features"].update(
            id={
                "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
                "jsonFeature": {"json": '{"feature": {"type": "hostile.F", "content": {}}}'},
            }
        ),
        "feature 'id' has no content, or one of its own kind",
    ),
    "no content": (
        lambda c: c["featuresDict"]["features"]["id"].pop("tensor"),
        "feature 'id' has no content",
    ),
    "another content": (
        lambda c: feature(
            c, "label", pythonClassName="tensorflow_datasets.core.features.image_feature.Image"
        ),
        "dataset_info.json, features.json: ",
    ),
    "an unknown dtype": (
        lambda c: feature(c, "image", image={"dtype": "float99", "shape": {}}),
        "features.json: ",
    ),
    "not a mapping": (lambda c: c.update(featuresDict=[1]), "features.json: Failed to parse"),
}


@pytest.mark.parametrize(
    "file, name",
    [("dataset_info.json", name) for name in INFO_EDITS]
    + [("features.json", name) for name in FEATURE_EDITS],
)
def test_edited_metadata_are_named(copy, tmp_path, monkeypatch, file, name):
    (tmp_path / "hostile.py").write_text("raise RuntimeError('this ran')")
    monkeypatch.syspath_prepend(tmp_path)
    change, message = (INFO_EDITS if file == "dataset_info.json" else FEATURE_EDITS)[name]
    edit(copy / file, change)
    problems = opened(copy)
    assert any(re.search(message, problem) for problem in problems), problems
    assert "hostile" not in sys.modules


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read as JSON .FileNotFoundError"),
        (b"", "cannot be read as JSON"),
        (b"[1, 2", "cannot be read as JSON"),
        (b"[1, 2]", "holds a list, not an object"),
        (b"null", "holds a NoneType, not an object"),
        (b"\xff\xfe{}", "cannot be read as JSON .UnicodeDecodeError"),
        (b"[" * 100_000, "cannot be read as JSON .RecursionError"),
    ],
)
def test_files_that_are_no_metadata_are_named(copy, file, content, message):
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    (problem,) = opened(copy)
    assert re.search(f"{file}: {message}", problem)


@pytest.mark.parametrize(
    "names, message",
    [
        ("0\n1\n2\n3\n4\n5\n6\n7\n8\n8\n", "class names occur twice: '8'"),
        ("0\n1\n2\n3\n4\n5\n6\n7\n8\n", "9 class names, but numClasses in features.json is 10"),
        ("0\n1\n\n3\n4\n5\n6\n7\n8\n9\n", "9 class names"),
        ("\udcff", "cannot be read .UnicodeDecodeError"),
    ],
)
def test_edited_class_names_are_named(copy, names, message):
    (copy / "label.labels.txt").write_bytes(names.encode(errors="surrogateescape"))
    problems = opened(copy)
    assert any(re.search(f"label.labels.txt: {message}", p) for p in problems)


def test_damaged_shards_are_named(copy):
    train, test = (
        copy / f"digits-{name}.array_record-00000-of-00001" for name in ("train", "test")
    )
    train.write_bytes(train.read_bytes()[:5000])
    test.unlink()
    problems = opened(copy)
    assert any("digits-train" in p and "damaged" in p for p in problems)
    assert any("digits-test" in p and "missing" in p for p in problems)


class Nested(tfds.core.GeneratorBasedBuilder):
    """Labels inside of sequences, with and without names."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        objects = tfds.features.Sequence(
            {"kind": tfds.features.ClassLabel(names=["a", "b"]), "box": tfds.features.BBoxFeature()}
        )
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3)),
            "objects": objects,
            "number": tfds.features.ClassLabel(num_classes=3),
            "clip": tfds.features.Sequence(np.float32),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
        for i in range(3):
            objects = [{"kind": "b", "box": box}] * i
            yield (
                i,
                {"picture": jpeg((9, 9, 9)), "objects": objects, "number": i, "clip": [0.5] * i},
            )


def test_sound_directories_open_and_only_tfds_is_imported(tmp_path, monkeypatch):
    storage.prepare_atomically(lambda scratch: Nested(data_dir=scratch), tmp_path / "set")
    (tmp_path / "hostile.py").write_text("raise RuntimeError('this ran')")
    monkeypatch.syspath_prepend(tmp_path)
    edit(tmp_path / "set" / "dataset_info.json", lambda c: c.update(moduleName="hostile"))
    builder = pickle.loads(pickle.dumps(prepared.open_prepared(tmp_path / "set")))
    assert len(builder.as_data_source("train")) == 3 and "hostile" not in sys.modules
    assert builder.info.features["objects"]["kind"].names == ["a", "b"]
    assert builder.info.features["number"].names == ["0", "1", "2"]
    (tmp_path / "set" / "objects-kind.labels.txt").write_text("a\na\n")
    assert "objects-kind.labels.txt: class names occur twice: 'a'" in opened(tmp_path / "set")[0]
