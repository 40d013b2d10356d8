"""What evaluation needs room for: the most objects of a picture, and the longest masks of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lambdanet.data import decode, sources
from lambdanet.data.objects import read_objects
from lambdanet.data.record import DataInfo, Record


def room_problems(config: Any, info: DataInfo, splits: Iterable[str]) -> list[str]:
    """Returns what `detection.max_objects` and `detection.mask_bytes` are too small for, one text
    per split and key; no pixel is decoded for it, unless something is too small.

    Every record of the splits is looked at, whatever the set, as sets do not say how many objects
    their pictures have. A record that cannot be read is left to the evaluation.

    Args:
        config: reads the sections data and detection.
        info: of `objects.read`.
        splits: texts of the config; equal ones are read once.

    Raises:
        ValueError: a split cannot be opened.
    """
    problems = []
    for split in dict.fromkeys(splits):
        for key, (most, name) in _most(split, config, info).items():
            allowed = config.detection[key]
            if most > allowed:
                what = {"max_objects": "objects", "mask_bytes": "bytes of masks"}[key]
                problems.append(
                    f"detection.{key}={allowed}, but the split {split!r} has pictures with up to "
                    f"{most} {what} ({name}), and an evaluation needs all of them: set "
                    f"detection.{key}={most} or more"
                )
    return problems


def _most(split: str, config: Any, info: DataInfo) -> dict[str, tuple[int, str]]:
    """Returns the largest need of a split for each key, and the name of its record."""
    source = sources.open_source(config.data, split, info.features)
    most: dict[str, tuple[int, str]] = {}
    for index in range(len(source)):
        try:
            record = source.read(index)
            needs = _needs(len(record.fields["classes"]), record.fields.get("masks"), config)
            small = any(number > config.detection[key] for key, number in needs.items())
            if small and config.data.on_error == "skip":
                needs = _without_mistakes(record, config, info)
        except Exception:  # damaged files raise many types
            continue
        for key, number in needs.items():
            if number > most.get(key, (0, ""))[0]:
                most[key] = (number, record.name)
    return most


def _needs(objects: int, masks: Sequence[bytes | str] | None, config: Any) -> dict[str, int]:
    if not config.detection.masks or masks is None:
        return {"max_objects": objects}
    return {"max_objects": objects, "mask_bytes": sum(map(len, masks)) + max(objects - 1, 0)}


def _without_mistakes(record: Record, config: Any, info: DataInfo) -> dict[str, int]:
    """The needs of the objects that are not left out."""
    exif = config.data.exif_orientation
    size = decode.open_image(record.fields["image"], exif_orientation=exif).size
    classes = len(info.classes) or config.model.num_classes
    options = dict(on_error="skip", masks=config.detection.masks)
    found = read_objects(record, size, classes, **options)
    return _needs(len(found), found.masks, config)
