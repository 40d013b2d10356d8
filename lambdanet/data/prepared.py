"""Opening a prepared TFDS directory that may have been edited, cut or made by others.

TFDS trusts its own metadata: wrong shard lengths shift records, doubled class names are taken, and
the Python class that features.json names is imported, whatever it is. Here everything is checked
before TFDS reads it, and what is wrong is said together: file, value, what is right.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import json_format
from tensorflow_datasets.core.features.feature import convert_feature_name_to_filename
from tensorflow_datasets.core.proto import dataset_info_pb2, feature_pb2

INFO, FEATURES = "dataset_info.json", "features.json"
MAX_BYTES = 64 * 2**20  # of a metadata file; real ones have kilobytes
MAX_CLASSES = 1_000_000
MAX_LISTED = 20  # problems named in one error
FIX = "restore the original files, or prepare the data set anew"


def _feature_classes() -> frozenset[str]:
    """Names, and former names, of the public features of TFDS: all that may be imported."""
    public = [getattr(tfds.features, name) for name in dir(tfds.features)]
    classes = [
        c for c in public if isinstance(c, type) and issubclass(c, tfds.features.FeatureConnector)
    ]
    own = {f"{c.__module__}.{c.__name__}" for c in classes}
    return frozenset(own.union(*(c.__dict__.get("ALIASES", ()) for c in classes)))


FEATURE_CLASSES = _feature_classes()


def open_prepared(directory: str | os.PathLike) -> tfds.core.DatasetBuilder:
    """Opens a prepared TFDS directory after checking all that its metadata say.

    Args:
        directory: holds dataset_info.json, features.json and ArrayRecord files.

    Returns:
        The builder of `tfds.builder_from_directory`. No code outside of TFDS was imported.

    Raises:
        ValueError: names the problems found, the file and the value: files that are missing, no
            JSON or of another form; another file format; features of a class that TFDS does not
            have; class names that are doubled or not as many as the classes; shards that are
            missing, damaged or hold another number of records than the metadata say.
    """
    where = Path(directory)
    info, features = dataset_info_pb2.DatasetInfo(), feature_pb2.Feature()
    problems = [*_parse(where / INFO, info), *_parse(where / FEATURES, features)]
    if not problems:
        found = itertools.chain(_info_problems(info), _feature_problems(where, features))
        problems = list(itertools.islice(found, MAX_LISTED))
    if not problems:
        try:
            builder = tfds.builder_from_directory(where)
            problems = list(itertools.islice(_shard_problems(where, builder), MAX_LISTED))
        except Exception as error:  # what else TFDS refuses: impossible shapes, unknown dtypes
            text = " ".join(str(error).split())
            problems = [f"{INFO}, {FEATURES}: {type(error).__name__}: {text}"]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"cannot open the prepared data set {where}; {FIX}:\n  {listed}")
    return builder


def _parse(path: Path, message: Any) -> list[str]:
    """Reads a JSON file into a protocol buffer; returns what is wrong with it."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return [f"{path.name}: {path.stat().st_size} bytes; allowed: up to {MAX_BYTES}"]
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return [f"{path.name}: cannot be read as JSON ({type(error).__name__}: {error})"]
    if not isinstance(content, dict):
        return [f"{path.name}: holds a {type(content).__name__}, not an object"]
    if path.name == FEATURES and "type" in content:
        return [f"{path.name}: has the form of old TFDS versions, with 'type' and 'content'"]
    try:
        json_format.ParseDict(content, message)
    except (json_format.ParseError, RecursionError, TypeError) as error:
        return [f"{path.name}: {error}"]
    return []


def _info_problems(info: Any) -> Iterator[str]:
    if not re.fullmatch(r"\w+", info.name):
        yield f"{INFO}: name is {info.name!r}; allowed: letters, digits and underscores"
    if not re.fullmatch(r"\d+\.\d+\.\d+", info.version):
        yield f"{INFO}: version is {info.version!r}; it must read like '1.0.0'"
    formats = [info.file_format, *info.alternative_file_formats]
    if "array_record" not in formats:
        yield f"{INFO}: fileFormat is {info.file_format!r}; only 'array_record' is read here"
    if info.HasField("features"):
        yield f"{INFO}: has an entry 'features', which belongs into {FEATURES}"
    if not info.splits:
        yield f"{INFO}: no splits"
    for name, count in collections.Counter(split.name for split in info.splits).items():
        if not re.fullmatch(r"[\w.-]+", name):
            yield f"{INFO}: a split is called {name!r}"
        if count > 1:
            yield f"{INFO}: split {name!r} stands there {count} times"
    for split in info.splits:
        if not split.shard_lengths:
            yield f"{INFO}: split {split.name!r} has no shardLengths"
        if any(length < 0 for length in split.shard_lengths):
            yield f"{INFO}: split {split.name!r} has shardLengths {list(split.shard_lengths)}"


def _feature_problems(where: Path, top: Any) -> Iterator[str]:
    if top.WhichOneof("content") != "features_dict":
        yield f"{FEATURES}: the outermost feature must be a FeaturesDict"
    stack = [("", top)]
    while stack:
        name, feature = stack.pop()
        kind, label = feature.WhichOneof("content"), f"{FEATURES}: feature {name!r}"
        if feature.python_class_name not in FEATURE_CLASSES:
            yield (
                f"{label} is of class {feature.python_class_name!r}; allowed are those of "
                "tensorflow_datasets.features, nothing else is imported"
            )
        if kind is None or kind == "json_feature":
            yield f"{label} has no content, or one of its own kind"
        elif kind == "features_dict":
            stack += [
                (convert_feature_name_to_filename(key, name or None), child)
                for key, child in feature.features_dict.features.items()
            ]
        elif kind == "sequence":
            stack.append((name, feature.sequence.feature))
        elif kind == "class_label":
            yield from _label_problems(where / f"{name}.labels.txt", feature.class_label, label)
        elif kind == "image" and feature.image.HasField("label"):
            yield from _label_problems(where / f"{name}.labels.txt", feature.image.label, label)


def _label_problems(path: Path, class_label: Any, label: str) -> Iterator[str]:
    """Compares numClasses with the file of names; a set without such a file has numbers for
    names.
    """
    number = class_label.num_classes
    if not 1 <= number <= MAX_CLASSES:
        yield f"{label} has numClasses {number}; allowed: 1 to {MAX_CLASSES}"
    if not path.exists():
        return
    try:
        if path.stat().st_size > MAX_BYTES:
            yield f"{path.name}: {path.stat().st_size} bytes; allowed: up to {MAX_BYTES}"
            return
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        yield f"{path.name}: cannot be read ({type(error).__name__}: {error})"
        return
    names = [line.strip() for line in lines if line.strip()]  # as TFDS reads them
    doubled = [name for name, count in collections.Counter(names).items() if count > 1]
    if doubled:
        yield f"{path.name}: class names occur twice: {', '.join(map(repr, doubled[:5]))}"
    if len(names) != number:
        yield f"{path.name}: {len(names)} class names, but numClasses in {FEATURES} is {number}"


def _shard_problems(where: Path, builder: tfds.core.DatasetBuilder) -> Iterator[str]:
    """Compares the metadata with the ArrayRecord files: less than a millisecond for each."""
    for split in builder.info.splits.values():
        template = split.filename_template.replace(filetype_suffix="array_record")
        files = template.sharded_filepaths(num_shards=split.num_shards)
        for file, length in zip(map(Path, files), split.shard_lengths, strict=True):
            if file.parent.resolve() != where.expanduser().resolve():
                yield f"{INFO}: filepathTemplate of split {split.name!r} leads to {file}"
            elif not file.is_file():
                yield f"{file.name}: missing; {INFO} names it for split {split.name!r}"
            else:
                found = _count(file)
                if found is None:
                    yield f"{file.name}: damaged, it cannot be read as ArrayRecord"
                elif found != length:
                    yield (
                        f"{file.name}: {found} records, but shardLengths of split {split.name!r} "
                        f"in {INFO} says {length}"
                    )


def _count(file: Path) -> int | None:
    """Returns the number of records in an ArrayRecord file, None if it is damaged."""
    try:
        reader = ArrayRecordReader(str(file))
        count = reader.num_records() if reader.ok() else None
        reader.close()  # tells what is wrong with a reader that is not ok
        return count
    except RuntimeError:
        return None
