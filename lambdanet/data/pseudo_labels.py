"""Pseudo-labels: a teacher's confident predictions for unlabelled records, balanced over classes,
in a JSON file.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lambdanet.atomic import write_file
from lambdanet.registry import show

FORMAT = "lambdanet pseudo-labels 1"
FIELD = "label"
"""The field of a record that a file has values for."""


def write(
    path: str | os.PathLike,
    ids: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n classes"],
    threshold: float,
    num_classes: int,
    *,
    split: str = "",
    per_class: int | None = None,
) -> dict[str, Any]:
    """Selects records and writes their labels.

    A record qualifies if its largest probability is at least `threshold`; of each class the most
    confident ones are taken, up to an equal quota. This is the class balance of Noisy Student (Xie
    et al. 2019), without its repetition of records of rare classes.

    Args:
        path: of the JSON file; it appears whole or not at all.
        ids: stable record numbers, all different (the batches' `id`).
        probabilities: the teacher's, rows summing to one.
        threshold: least confidence, in [0, 1].
        num_classes: number of classes; must equal the columns of `probabilities`.
        split: the split that the ids belong to; stored, and compared with data.pseudo_split when it
            is read.
        per_class: quota; None = qualifying records / classes, rounded up.

    Returns:
        dict(selected, qualified, records, per_class_quota, class_counts).

    Raises:
        ValueError: shapes or values that do not fit, or no record qualifies.
    """
    ids, probabilities = np.asarray(ids), np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.shape != (len(ids), num_classes):
        raise ValueError(
            f"probabilities have shape {probabilities.shape}; expected ({len(ids)}, {num_classes})"
        )
    if len(np.unique(ids)) != len(ids):
        raise ValueError("ids must be unique: one prediction per record")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold is {threshold}; allowed: 0 <= threshold <= 1")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities contain NaN or infinity")
    labels, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    qualified = int((confidence >= threshold).sum())
    if qualified == 0:
        raise ValueError(
            f"no record reaches confidence {threshold}; the largest is "
            f"{confidence.max(initial=0):.4f}"
        )
    quota = -(-qualified // num_classes) if per_class is None else per_class
    if quota < 1:
        raise ValueError(f"per_class is {per_class}; allowed: at least 1")
    order = np.lexsort((ids, -confidence))  # most confident first, ties by id
    order = order[confidence[order] >= threshold]
    chosen = np.sort(
        np.concatenate([order[labels[order] == c][:quota] for c in range(num_classes)])
    )
    counts = np.bincount(labels[chosen], minlength=num_classes).tolist()
    summary = dict(
        selected=len(chosen),
        qualified=qualified,
        records=len(ids),
        per_class_quota=quota,
        class_counts=counts,
    )
    content = dict(
        format=FORMAT,
        split=split,
        threshold=threshold,
        num_classes=num_classes,
        **summary,
        ids=ids[chosen].tolist(),
        labels=labels[chosen].tolist(),
        confidences=[round(float(c), 6) for c in confidence[chosen]],
    )
    write_file(path, json.dumps(content))
    return summary


def read_file(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the whole content of a file made by `write`: format, split, threshold, num_classes,
    ids, labels, ...

    Raises:
        ValueError: missing, not such a file, or damaged.
    """
    try:
        with open(path) as file:
            content = json.load(file)
    except OSError as error:
        raise ValueError(
            f"cannot read pseudo-labels {os.fspath(path)!r}: {error}; write them with eval.py "
            "--mode=pseudo_label"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not a JSON file of pseudo-labels: {error}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{os.fspath(path)!r} is not a file of pseudo-labels (format {FORMAT!r})")
    for key, low, high in (("ids", -(2**63), 2**63), ("labels", 0, 2**31)):
        found = content.get(key)
        listed = isinstance(found, list)
        if not listed or not all(type(v) is int and low <= v < high for v in found):
            raise ValueError(
                f"{os.fspath(path)!r}: {key} is {show(found)}; allowed: a list of integers from "
                f"{low} below {high}; write the file anew with eval.py --mode=pseudo_label"
            )
    ids, labels = content["ids"], content["labels"]
    if len(ids) != len(labels):
        raise ValueError(f"{os.fspath(path)!r} has {len(ids)} ids but {len(labels)} labels")
    if len(set(ids)) != len(ids):
        raise ValueError(f"{os.fspath(path)!r}: ids occur twice; allowed: one label per record")
    if not isinstance(content.get("split"), str):
        raise ValueError(
            f"{os.fspath(path)!r}: split is {show(content.get('split'))}; allowed: the text of the "
            "split that the ids belong to, or ''"
        )
    return content


def read_fields(
    path: str | os.PathLike,
) -> tuple[str, Int[np.ndarray, " n"], dict[str, np.ndarray]]:
    """Returns (split, record ids, fields by name) of a file made by `write`."""
    content = read_file(path)
    ids, labels = (np.asarray(content[key], np.int64) for key in ("ids", "labels"))
    return content["split"], ids, {FIELD: labels}


def digest(path: str | os.PathLike) -> str:
    """Returns a short hash of ids and labels, by which a resume notices that the file changed."""
    content = read_file(path)
    pairs = sorted(zip(content["ids"], content["labels"], strict=True))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]
