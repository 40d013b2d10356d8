"""The file of `python -m benchmarks gpu`: one JSON object per line, appended as things happen.

    {"machine": {...}}                                      what all that follows was measured on
    {"part": P, "unit": U, "event": "began"}
    {"part": P, "unit": U, "suite": ..., "case": ..., ...}  a measurement, with all keys of
                                                            `harness.LINE`
    {"part": P, "unit": U, "event": "ended", "seconds": S}  with "error" where there is no result
    {"part": P, "event": "left", "units": N}                when a part stops; 0: it is finished

A unit counts once it has ended: what a killed process leaves behind, half a line at the end
included, is as if it had not been.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import harness
from lambdanet.atomic import write_file

Record = dict[str, Any]
Unit = tuple[str, str]
"""Names of part and unit."""
START = "start"
"""The unit that failed if the process of a part ended before it began one."""


@dataclasses.dataclass
class Journal:
    """What a file says.

    Attributes:
        machine: what everything was measured on; None in an empty file.
        records: the measurements of all ended units, each with `part` and `unit`; no nulls.
        ended: seconds of every ended unit, in the order in which they ended.
        errors: why a unit, or a candidate of it, gave no result.
        open: the unit that began last and did not end.
        left: units that each part stopped before.
    """

    machine: Record | None = None
    records: list[Record] = dataclasses.field(default_factory=list)
    ended: dict[Unit, float] = dataclasses.field(default_factory=dict)
    errors: dict[Unit, list[str]] = dataclasses.field(default_factory=dict)
    open: Unit | None = None
    left: dict[str, int] = dataclasses.field(default_factory=dict)


def read(path: Path) -> Journal:
    """Reads a file; one that does not exist is empty.

    Raises:
        ValueError: a line before the last is no JSON object of the kinds above.
    """
    found, measured = Journal(), []
    for line in _lines(path):
        unit = line.get("part"), line.get("unit")
        if "machine" in line:
            found.machine = line["machine"]
        elif line.get("event") == "left":
            found.left[line["part"]] = line["units"]
            found.errors.pop((line["part"], START), None)
        elif line.get("event") == "began":
            found.open, measured = unit, []
        elif line.get("event") == "ended":
            found.ended[unit], found.open = line["seconds"], None
            found.records = [r for r in found.records if (r["part"], r["unit"]) != unit] + measured
            found.errors.pop(unit, None)
            if errors := _errors(line, measured):
                found.errors[unit] = errors
            measured = []
        else:
            measured.append({key: value for key, value in line.items() if value is not None})
    return found


def _errors(end: Record, measured: list[Record]) -> list[str]:
    """What failed; a candidate that was dropped because it is slow did not."""
    found = [f"{r['impl']}: {r['error']}" for r in measured if "error" in r]
    found = [error for error in found if ": dropped: " not in error]
    return [end["error"], *found] if "error" in end else found


def _lines(path: Path) -> list[Record]:
    """The lines of a file; what stands after the last line break is half a line."""
    if not path.exists():
        return []
    *whole, _ = path.read_text().split("\n")
    lines = []
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is no JSON ({error.msg}): {text[:80]!r}; take the line "
                "out, or name another folder with --out"
            ) from None
        if not isinstance(line, dict) or not ({"machine", "part"} & line.keys()):
            raise ValueError(
                f"{path}, line {number} is none of `python -m benchmarks gpu`: {text[:80]!r}; name "
                "another folder with --out"
            )
        lines.append(line)
    return lines


def cut(path: Path) -> None:
    """Cuts off half a line at the end, so that the next line does not go on with it."""
    if path.exists() and (text := path.read_text()) and not text.endswith("\n"):
        write_file(path, text[: text.rfind("\n") + 1])


def mend(path: Path) -> None:
    """Takes out what a process left behind that was killed: half a line, an open unit."""
    cut(path)
    if (unit := read(path).open) is not None:
        lines = _lines(path)
        began = [i for i, line in enumerate(lines) if line.get("event") == "began"][-1]
        assert (lines[began]["part"], lines[began]["unit"]) == unit
        _write(path, lines[:began])


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Writes a line to the end of the file and waits until it is on the disk."""
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def append_record(path: Path, unit: Unit, record: Mapping[str, Any]) -> None:
    """Writes a measurement of a unit."""
    of = dict(part=unit[0], unit=unit[1])
    append(path, of | dict.fromkeys(harness.LINE) | record)


def begin(path: Path, unit: Unit) -> None:
    """Writes that a unit begins."""
    append(path, dict(part=unit[0], unit=unit[1], event="began"))


def end(path: Path, unit: Unit, seconds: float, error: str | None = None) -> None:
    """Writes that a unit has ended, and why it has no result where it has none."""
    line = dict(part=unit[0], unit=unit[1], event="ended", seconds=round(seconds, 3))
    append(path, line if error is None else line | {"error": error})


def forget_failures(path: Path) -> int:
    """Takes the units that failed out of the file, so that they are tried again; returns how many
    there were.
    """
    failed = read(path).errors
    parts = {part for part, _ in failed}
    kept = [
        line
        for line in _lines(path)
        if (line.get("part"), line.get("unit")) not in failed
        and not (line.get("event") == "left" and line["part"] in parts)
    ]
    if failed:
        _write(path, kept)
    return len(failed)


def _write(path: Path, lines: list[Record]) -> None:
    write_file(path, "".join(json.dumps(line) + "\n" for line in lines))
