"""What users may get wrong on the command lines of the benchmarks: named before anything runs."""

import json
import sys

import pytest

from benchmarks import __main__ as suites
from benchmarks import fit_cost_model, propagation, report, scaling, versions
from benchmarks.arguments import read_lines


@pytest.mark.parametrize(
    "main, given",
    [
        (suites.main, ["blocks", "--cases", "se_*"]),
        (versions.main, [sys.executable]),
        (fit_cost_model.main, ["no such file"]),
        (scaling.main, ["--models", "swin_tiny"]),
        (propagation.main, []),
    ],
    ids=["suites", "versions", "fit_cost_model", "scaling", "propagation"],
)
def test_a_file_that_cannot_be_written_is_refused_at_once(main, given, tmp_path, capsys):
    for path, why in ((tmp_path, "is a directory"), (tmp_path / "a" / "b", "no directory")):
        with pytest.raises(SystemExit):
            main([*given, "--json", str(path)])
        assert why in capsys.readouterr().err


@pytest.mark.parametrize("python", ["nowhere/python", "false"])
def test_an_interpreter_that_is_none_is_named(python, capsys):
    assert versions.main([python]) == 1
    assert f"error: {python} " in capsys.readouterr().err


def test_a_suite_or_cases_that_are_none_are_named(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        versions.main([sys.executable, "--suite", "micros"])
    assert "invalid choice: 'micros'" in capsys.readouterr().err
    monkeypatch.setattr(versions, "measure", lambda *_: {})
    assert versions.main([sys.executable, "--suite", "memory", "--cases", "m*"]) == 1
    assert "suite 'memory' has no times of the defaults in both for 'm*'" in capsys.readouterr().err


@pytest.mark.parametrize("line", ['{"case": 1', '{"suite": 1}', "[]"])
def test_a_damaged_line_is_named(line, tmp_path, monkeypatch, capsys):
    file = tmp_path / "cpu_ops.jsonl"
    file.write_text(json.dumps(dict(case="a", suite="s")) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"cpu_ops\.jsonl, line 2 is no record"):
        read_lines(file, keys=("case",))
    document = tmp_path / "document"
    document.write_text("<!-- table: ops -->\n<!-- end of the table -->\n")
    monkeypatch.setattr(report, "DOCUMENT", document)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.main([]) == 1 and "cpu_ops.jsonl, line 1 is no record" in capsys.readouterr().err


def test_a_file_that_is_missing_is_named(tmp_path, capsys):
    for main, given in (
        (fit_cost_model.main, ["no such file"]),
        (propagation.main, ["--json", str(tmp_path / "no such file"), "--draw", "a.png"]),
    ):
        with pytest.raises(SystemExit):
            main(given)
        assert "no such file cannot be read" in capsys.readouterr().err
