"""Benchmarks under another JAX: what is compared, and what is measured again."""

import json
import stat
import sys

from benchmarks import versions


def test_what_is_slower_is_measured_again_and_the_best_time_counts(monkeypatch, tmp_path, capsys):
    times = {
        "old": iter([{("a", "fwd"): 1.0, ("b", "fwd"): 2.0}, *[{("b", "fwd"): 2.2}] * 2]),
        "new": iter(
            [
                {("a", "fwd"): 1.1, ("b", "fwd"): 4.0, ("only here", "fwd"): 1.0},
                {("b", "fwd"): 2.6},
                {("b", "fwd"): 3.0},
            ]
        ),
    }
    asked = []

    def measure(python, suite, cases, rounds):
        asked.append((python, suite, cases, rounds))
        return next(times[python])

    monkeypatch.setattr(versions, "measure", measure)
    monkeypatch.setattr(versions, "jax_of", lambda python: {"old": "1", "new": "2"}[python])
    monkeypatch.setattr(sys, "executable", "old")
    out = tmp_path / "lines.jsonl"
    assert versions.main(["new", "--suite", "micro", "--rounds", "3", "--json", str(out)]) == 0
    again = [("old", "micro", "b", 3), ("new", "micro", "b", 3)]
    assert asked == [("old", "micro", "*", 3), ("new", "micro", "*", 3), *again * versions.AGAIN]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["case"], line["jax 1"], line["jax 2"]) for line in lines] == [
        ("a", 1.0, 1.1),
        ("b", 2.0, 2.6),
    ]
    printed = capsys.readouterr().out
    assert "1.30" in printed and "1.10" not in printed
    assert "fwd: 2 cases, jax 2 takes 1.20 of the time of jax 1" in printed


def test_times_are_those_of_ours_at_its_defaults(tmp_path):
    lines = [
        dict(case="a", direction="fwd", framework="ours", impl="auto", ms=2.0),
        dict(case="a", direction="fwd", framework="ours", impl="dense", ms=1.0),
        dict(case="a", direction="fwd", framework="torch", impl="auto", ms=3.0),
        dict(case="b", direction="fwd", framework="ours", impl="auto", ms=None),
    ]
    made = tmp_path / "made.jsonl"
    made.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # As if it were an interpreter: copies the lines to the file that is asked for.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nfor last; do :; done\ncp "{made}" "$last"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    assert versions.measure(str(python), "micro", "*", 1) == {("a", "fwd"): 2.0}
