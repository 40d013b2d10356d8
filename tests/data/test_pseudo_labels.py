"""Selection, file format and errors of pseudo-labels."""

import json
import os

import numpy as np
import pytest

from lambdanet.data import pseudo_labels

# classes 0, 0, 0, 1, 1, 2 with these confidences
CONFIDENCE = [0.99, 0.95, 0.90, 0.97, 0.60, 0.92]
CLASSES = [0, 0, 0, 1, 1, 2]


def probabilities():
    rows = np.full((6, 3), 0.0)
    for row, (label, confidence) in enumerate(zip(CLASSES, CONFIDENCE, strict=True)):
        rows[row] = (1 - confidence) / 2
        rows[row, label] = confidence
    return rows


IDS = np.array([10, 11, 12, 13, 14, 15])


def labels_of(path):
    _, ids, fields = pseudo_labels.read_fields(path)
    return dict(zip(ids.tolist(), fields["label"].tolist(), strict=True))


def test_most_confident_records_up_to_an_equal_quota(tmp_path):
    path = tmp_path / "labels.json"
    summary = pseudo_labels.write(path, IDS, probabilities(), 0.8, 3, split="train")
    # five qualify, so the quota is ceil(5 / 3) = 2: class 0 loses its weakest, class 1 has one
    # above the threshold
    assert summary == dict(
        selected=4, qualified=5, records=6, per_class_quota=2, class_counts=[2, 1, 1]
    )
    assert labels_of(path) == {10: 0, 11: 0, 13: 1, 15: 2}
    content = pseudo_labels.read_file(path)
    assert content["split"] == "train" and content["threshold"] == 0.8
    assert np.allclose(content["confidences"], [0.99, 0.95, 0.97, 0.92])
    assert os.listdir(tmp_path) == ["labels.json"]


def test_quota_can_be_given(tmp_path):
    path = tmp_path / "labels.json"
    pseudo_labels.write(path, IDS, probabilities(), 0.0, 3, per_class=1)
    assert labels_of(path) == {10: 0, 13: 1, 15: 2}
    pseudo_labels.write(path, IDS, probabilities(), 0.0, 3, per_class=9)
    assert len(labels_of(path)) == 6


def test_ties_are_broken_by_id(tmp_path):
    path = tmp_path / "labels.json"
    pseudo_labels.write(path, np.array([5, 3, 4]), np.array([[1.0, 0.0]] * 3), 0.5, 2, per_class=2)
    assert labels_of(path) == {3: 0, 4: 0}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"threshold": 1.5}, "threshold is 1.5; allowed"),
        ({"threshold": 0.999}, "no record reaches confidence 0.999; the largest is 0.99"),
        ({"num_classes": 4}, r"shape \(6, 3\); expected \(6, 4\)"),
        ({"ids": np.zeros(6, int)}, "ids must be unique"),
        ({"probabilities": np.full((6, 3), np.nan)}, "NaN"),
        ({"per_class": 0}, "per_class is 0"),
    ],
)
def test_wrong_arguments_write_nothing(tmp_path, change, message):
    args = dict(ids=IDS, probabilities=probabilities(), threshold=0.5, num_classes=3) | change
    with pytest.raises(ValueError, match=message):
        pseudo_labels.write(tmp_path / "labels.json", **args)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not a JSON file"),
        ("[1, 2]", "not a file of pseudo-labels"),
        (
            '{"format": "lambdanet pseudo-labels 1", "ids": [1, 2], "labels": [1]}',
            "2 ids but 1 labels",
        ),
        ('{"format": "lambdanet pseudo-labels 1"}', "ids is None; allowed: a list of integers"),
        ('{"format": "lambdanet pseudo-labels 1", "ids": 5}', "ids is 5; allowed: a list"),
        (
            '{"format": "lambdanet pseudo-labels 1", "ids": [1], "labels": [1.5]}',
            r"labels is \[1.5\]; allowed: a list of integers from 0",
        ),
        (
            '{"format": "lambdanet pseudo-labels 1", "ids": [1, 1], "labels": [0, 1]}',
            "ids occur twice",
        ),
        (
            '{"format": "lambdanet pseudo-labels 1", "ids": [1], "labels": [1]}',
            "split is None; allowed: the text",
        ),
    ],
)
def test_foreign_files_are_refused(tmp_path, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=message):
        pseudo_labels.read_fields(tmp_path / "file")
    with pytest.raises(ValueError, match="cannot read pseudo-labels.*eval.py"):
        pseudo_labels.read_fields(tmp_path / "missing")


def test_digest_follows_labels_not_order(tmp_path):
    def digest(name, ids, labels):
        content = dict(format=pseudo_labels.FORMAT, split="", ids=ids, labels=labels)
        (tmp_path / name).write_text(json.dumps(content))
        return pseudo_labels.digest(tmp_path / name)

    first = digest("a", [1, 3], [2, 4])
    assert first == digest("b", [3, 1], [4, 2]) != digest("c", [1, 3], [2, 5])
