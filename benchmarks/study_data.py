"""The study's photographs: prepared once, and what has to be known of them."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from lambdanet.atomic import write_file
from lambdanet.data import image_folder, storage

SPLITS = ("train", "validation", "test")
ORIGIN = (
    "github.com/alexeygrigorev/clothing-dataset-small, commit "
    "11961516512414bf9f6c150a832cfd21b54a6b54 (CC0), long sides resized to 96 pixels"
)
DIGEST = "17e878ea442e"
"""Of these photographs."""


def prepare(source: Path, directory: Path) -> dict[str, Any]:
    """Prepares a folder of photographs, unless that was done, and describes it.

    Args:
        source: with train/, validation/ and test/, each with a folder per class.
        directory: for the prepared set; what describes it is kept beside it.

    Returns:
        The record of suite 'data': digest of all names and contents, images by split and class,
        and how many pictures of one split are in another one, too, byte by byte.

    Raises:
        ValueError: there is no such folder, it cannot be prepared, or `directory` was prepared from
            other pictures.
    """
    missing = [split for split in SPLITS if not (source / split).is_dir()]
    if missing:
        raise ValueError(
            f"{source} has no folder {', '.join(missing)}; name a folder of photographs with "
            f"{', '.join(SPLITS)} and class folders in them with --data; the published study is of "
            f"{ORIGIN}"
        )
    record, kept = describe(source), directory.with_suffix(".json")
    if not storage.is_prepared(directory):
        image_folder.prepare(str(source), str(directory))
        write_file(kept, json.dumps(record) + "\n")
    elif not kept.is_file() or json.loads(kept.read_text())["digest"] != record["digest"]:
        raise ValueError(f"{directory} was prepared from other pictures than {source}; remove it")
    return record


def describe(source: Path) -> dict[str, Any]:
    """Returns the record of a folder, see `prepare`."""
    whole, contents, classes = hashlib.sha256(), {}, {}
    for split in SPLITS:
        files = sorted(file for file in (source / split).glob("*/*") if file.is_file())
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        for file, digest in zip(files, digests, strict=True):
            whole.update(f"{file.relative_to(source).as_posix()} {digest}\n".encode())
        contents[split] = digests
        classes[split] = dict(collections.Counter(file.parent.name for file in files))
    twice = {
        f"{first}, {second}": sum(digest in set(contents[first]) for digest in contents[second])
        for first, second in itertools.combinations(SPLITS, 2)
    }
    images = {split: len(digests) for split, digests in contents.items()}
    digest = whole.hexdigest()[:12]
    return dict(suite="data", digest=digest, images=images, classes=classes, duplicates=twice)
