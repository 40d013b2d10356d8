"""`python -m benchmarks gpu` in miniature on the CPU: order, resuming, failures, time, refusal."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import (
    gpu_equality,
    gpu_journal,
    gpu_part,
    gpu_parts,
    gpu_report,
    gpu_sizes,
    gpu_suite,
    harness,
)
from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_sizes import TINY

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["equality", "constants", "lambda", "fused", "attention", "networks", "host", "torch"]


def arguments(out, *words):
    parser = argparse.ArgumentParser()
    gpu_suite.add_arguments(parser)
    return parser.parse_args(["--out", str(out), "--rounds", "1", *words])


def run(out, *words, started=None):
    """The command with its parts in this process; `started` gets the names of those begun."""

    def start(name, seconds, left):
        if started is not None:
            started.append(name)
        given = [name, "--file", str(out / "gpu.jsonl"), "--rounds", "1", "--seconds", str(seconds)]
        return gpu_part.main([*given, "--left", str(left), *[w for w in words if w == "--tiny"]])

    return gpu_suite.main(arguments(out, *words), start)


def lines(out):
    return [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]


# --------------------------------------------------------------------------------------------------
# The whole in miniature


# Still smaller than --tiny: one core, one batch size that fits.
SMALL = dataclasses.replace(TINY, equality=((), (), (("mhsa", 4),)), memory=42_000)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run, and what it returned."""
    out = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_sizes, "TINY", SMALL)
        return out, run(out, "--tiny")


@pytest.mark.exhaustive
def test_all_parts_run_in_their_order_and_nothing_fails(finished):
    out, status = finished
    known = gpu_journal.read(out / "gpu.jsonl")
    assert status == 0 and not known.errors, known.errors
    assert list(PARTS) == ORDER == list(known.left) and set(known.left.values()) == {0}
    assert sum(part.share for part in PARTS.values()) == pytest.approx(1)
    assert list(dict.fromkeys(name for name, _ in known.ended)) == ORDER
    for record in known.records:
        if record["part"] == "equality":
            assert 0 <= record["off"] < record["allowed"]
        elif record["part"] not in ("networks", "torch"):
            assert record["ms"] > 0
    arithmetics = {r["unit"].split("_")[-1] for r in known.records if r["part"] == "equality"}
    assert {f"{name.split('_')[-1]} train" for name in gpu_equality.ARITHMETICS} == arithmetics
    assert {r["impl"] for r in known.records if r["part"] == "fused"} == {
        "auto",
        "fused_interpreted",
    }
    # The memory says no at some batch size, and all below it ran.
    networks = [r for r in known.records if r["part"] == "networks"]
    assert [r["fits"] for r in networks] == [True] * (len(networks) - 1) + [False]
    assert len(networks) > 1 and all("ms" in r for r in networks[:-1])
    assert all(r["needs_mib"] > r["limit_mib"] for r in networks[-1:])


@pytest.mark.exhaustive
def test_the_page_of_a_miniature_claims_nothing(finished):
    out, _ = finished
    text = (out / "performance_gpu.md").read_text()
    assert text.startswith("# A miniature\n") and "Performance on a GPU" not in text
    assert "**no number here says anything about a GPU**" in text
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == list(gpu_report.HEADINGS.values())
    assert "Every part is measured" in text or "PyTorch is not installed" in text
    assert not (ROOT / "docs" / "performance_gpu.md").exists()


@pytest.mark.exhaustive
def test_what_a_killed_process_left_is_measured_again_and_nothing_else(finished, tmp_path):
    whole = (finished[0] / "gpu.jsonl").read_text()
    units = [
        u for name, u in gpu_journal.read(finished[0] / "gpu.jsonl").ended if name == "constants"
    ]
    # Killed in the middle of a record of the last unit of `constants`; the later parts, which would
    # cost time only, say that they are finished.
    end = whole.index(f'"unit": "{units[-1]}", "suite"') + 40
    for name in ORDER[2:]:
        gpu_journal.append(tmp_path / "gpu.jsonl", dict(part=name, event="left", units=0))
    rest = (tmp_path / "gpu.jsonl").read_text()
    (tmp_path / "gpu.jsonl").write_text(rest + whole[:end])
    known = gpu_journal.read(tmp_path / "gpu.jsonl")
    assert ("constants", units[-2]) in known.ended and ("constants", units[-1]) not in known.ended
    assert not [r for r in known.records if r["unit"] == units[-1]]
    started = []
    assert run(tmp_path, "--tiny", started=started) == 0
    assert started == ["machine", "constants", "torch"]
    again = [line["unit"] for line in lines(tmp_path) if line.get("event") == "began"]
    assert again.count(units[-1]) == 1 and again.count(units[-2]) == 1
    before = whole[: whole.index(f'"unit": "{units[-1]}"')].rsplit("\n", 1)[0]
    assert (tmp_path / "gpu.jsonl").read_text().startswith(rest + before)
    assert run(tmp_path, "--tiny", started=(again := [])) == 0 and again == ["machine", "torch"]


def test_a_gpu_is_asked_for_by_name_and_the_miniature_told_of(made_up, tmp_path, capsys):
    started = []
    assert run(tmp_path, started=started) == 2 and started == ["machine"]
    said = capsys.readouterr().err
    assert "no GPU: the backends that JAX finds are cpu (" in said and "--tiny" in said
    assert not (tmp_path / "performance_gpu.md").exists()


# --------------------------------------------------------------------------------------------------
# Made-up parts


@pytest.fixture
def made_up():
    """Two parts in place of all; {part: {unit: what it does}}."""
    units, kept = {"first": {}, "second": {}}, dict(PARTS)

    def cases(name):
        def prepare(action):
            return harness.Prepared(action, lambda: None)

        return lambda sizes, records: [
            harness.Case(name, unit, "fwd", "it", lambda a=action: prepare(a))
            for unit, action in units[name].items()
        ]

    PARTS.clear()
    PARTS.update({name: gpu_parts.Part(cases(name), 0.5) for name in units})
    yield units
    PARTS.clear()
    PARTS.update(kept)


def fail():
    raise KeyError("no such thing")


def test_a_failure_is_kept_and_the_run_goes_on(made_up, tmp_path, capsys):
    made_up["first"] = dict(a=lambda: None, b=fail, c=lambda: None)
    made_up["second"] = dict(d=lambda: None)
    assert run(tmp_path, "--tiny") == 1
    known = gpu_journal.read(tmp_path / "gpu.jsonl")
    assert [unit for _, unit in known.ended] == ["a fwd", "b fwd", "c fwd", "d fwd"]
    assert known.errors == {("first", "b fwd"): ["it: KeyError: 'no such thing'"]}
    assert "failed: first: b fwd: it: KeyError" in capsys.readouterr().err
    assert "- **Failed**: first, b fwd" in (tmp_path / "performance_gpu.md").read_text()
    made_up["first"]["b"] = lambda: None
    assert run(tmp_path, "--tiny") == 1  # kept until it is tried again
    assert run(tmp_path, "--tiny", "--retry") == 0
    assert "1 units are tried again" in capsys.readouterr().out


def test_a_device_that_may_be_spoilt_gets_a_new_process(made_up, tmp_path):
    def out_of_memory():
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    made_up["first"], started = dict(a=out_of_memory, b=lambda: None), []
    assert run(tmp_path, "--tiny", started=started) == 1
    assert started == ["machine", "first", "first", "second"]


@pytest.mark.parametrize(("status", "said"), [(-11, "by signal SIGSEGV"), (1, "with status 1")])
def test_a_process_that_dies_costs_its_unit_alone(made_up, tmp_path, status, said):
    made_up["first"] = dict(a=lambda: None, b=lambda: None)
    file, deaths = tmp_path / "gpu.jsonl", []

    def start(name, seconds, left):
        if name == "first" and not deaths:
            deaths.append(name)
            gpu_journal.begin(file, (name, "a fwd"))
            with open(file, "a") as half:
                half.write('{"part": "first", "unit": "a fw')
            return status
        return gpu_part.main([name, "--file", str(file), "--tiny", "--rounds", "1"])

    assert gpu_suite.main(arguments(tmp_path, "--tiny"), start) == 1
    known = gpu_journal.read(file)
    assert known.errors == {("first", "a fwd"): [f"its process ended {said}"]}
    assert ("first", "b fwd") in known.ended and known.left == {"first": 0, "second": 0}


def test_a_process_that_dies_before_it_begins_is_told_of(made_up, tmp_path):
    made_up["second"] = dict(a=lambda: None)
    file = tmp_path / "gpu.jsonl"

    def start(name, seconds, left):
        if name == "first":
            return 3
        return gpu_part.main([name, "--file", str(file), "--tiny", "--rounds", "1"])

    assert gpu_suite.main(arguments(tmp_path, "--tiny"), start) == 1
    known = gpu_journal.read(file)
    assert known.errors == {("first", "start"): ["its process ended with status 3"]}
    assert known.left == {"second": 0}
    assert run(tmp_path, "--tiny") == 0  # it works now


def test_nothing_is_begun_that_would_not_end_in_time(made_up, tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(gpu_part, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def five_seconds():  # every unit runs twice: once to see how long it takes, once for a round
        now[0] += 5.0
        return 1.0, 1.0

    made_up["first"] = dict.fromkeys("abcdefgh", five_seconds)
    file = tmp_path / "gpu.jsonl"
    words = ["first", "--file", str(file), "--tiny", "--rounds", "1"]
    assert gpu_part.main([*words, "--seconds", "35", "--left", "100"]) == 0
    known = gpu_journal.read(file)
    assert known.left == {"first": 5} and now == [30.0]
    assert list(known.ended.values()) == [10.0] * 3
    said = capsys.readouterr().out.splitlines()
    assert said[1] == (
        "[first 2/8] b fwd: measured in 10.0 s; 6 a minute, this part 1:00, time left 1:20"
    )
    assert gpu_part.main([*words, "--seconds", "0"]) == 0 and now == [30.0]


def test_parts_have_shares_and_then_what_is_left_over(made_up, tmp_path, monkeypatch):
    now, file, calls = [0.0], tmp_path / "gpu.jsonl", []
    monkeypatch.setattr(gpu_suite, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def start(name, seconds, left):
        calls.append((name, seconds, left))
        if name == "machine":
            return gpu_part.main([name, "--file", str(file), "--tiny"])
        now[0] += seconds if name == "first" else 10.0
        left = 0 if name == "second" or len(calls) > 3 else 7
        gpu_journal.append(file, dict(part=name, event="left", units=left))
        return 0

    assert gpu_suite.main(arguments(tmp_path, "--tiny", "--minutes", "2"), start) == 0
    # Half of two minutes for each; the first gets what the second does not need.
    assert calls[1:] == [("first", 60, 120), ("second", 60, 60), ("first", 50, 50)]


def test_a_process_is_cut_off_when_the_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "GRACE", 0.2)
    with gpu_suite._alone(tmp_path / "gpu.jsonl") as lock:
        start = gpu_suite._processes(tmp_path / "gpu.jsonl", arguments(tmp_path, "--tiny"), lock)
        assert start("equality", 0.0, 0.0) is None
    assert not (tmp_path / "gpu.jsonl").exists()


def test_a_run_that_is_stopped_keeps_what_is_complete(made_up, tmp_path, capsys):
    def stop():
        raise KeyboardInterrupt

    made_up["first"] = dict(a=lambda: None, b=stop, c=lambda: None)
    assert run(tmp_path, "--tiny") == 130
    assert "stopped; the same command continues" in capsys.readouterr().err
    known = gpu_journal.read(tmp_path / "gpu.jsonl")
    assert list(known.ended) == [("first", "a fwd")] and known.open is None
    assert (tmp_path / "performance_gpu.md").exists()


def test_measurements_of_another_machine_are_not_mixed_in(made_up, tmp_path, capsys):
    assert run(tmp_path, "--tiny") == 0
    header, *rest = (tmp_path / "gpu.jsonl").read_text().splitlines(keepends=True)
    changed = json.loads(header)
    changed["machine"]["device"] = "NVIDIA X"
    (tmp_path / "gpu.jsonl").write_text(json.dumps(changed) + "\n" + "".join(rest))
    assert run(tmp_path, "--tiny") == 2
    said = capsys.readouterr().err
    assert "device NVIDIA X there, cpu here" in said and "--out" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0", "--rounds", "-1"],
         "--minutes is 0.0; allowed: more than 0, and finite; --rounds is -1; allowed: more"),
        (["--minutes", "inf"], "--minutes is inf; allowed"),
        (["--report"], "has no measurements; run the command without --report"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(tmp_path, capsys, words, said):
    assert command.main(["gpu", "--out", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_file_is_refused_and_kept(tmp_path, capsys):
    text = '{"machine": {}}\n{"part": "a", "un\n{"part": "a", "event": "left", "units": 0}\n'
    (tmp_path / "gpu.jsonl").write_text(text)
    assert run(tmp_path, "--tiny") == 2
    assert "line 2 is no JSON" in capsys.readouterr().err
    assert (tmp_path / "gpu.jsonl").read_text() == text


def test_two_runs_do_not_write_to_one_file(tmp_path, capsys):
    with gpu_suite._alone(tmp_path / "gpu.jsonl"):
        assert run(tmp_path, "--tiny") == 2
    assert "another `python -m benchmarks gpu` writes to" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# Real processes


@pytest.mark.exhaustive
def test_a_run_that_is_killed_continues(tmp_path):
    """Only the command is killed: the process of its part must notice and let go of the file."""
    words = [sys.executable, "-m", "benchmarks", "gpu", "--tiny", "--rounds", "1"]
    words += ["--out", str(tmp_path)]
    told = dict(cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(words, **told) as running:
        for line in running.stdout:
            if line.startswith("[equality 4/"):
                break
        running.kill()
        file = tmp_path / "gpu.jsonl"
        before = gpu_journal.read(file).ended
        for _ in range(300):
            done = subprocess.run(words, **told)
            if "another `python -m benchmarks gpu` writes" not in done.stderr:
                break
            time.sleep(0.2)
    assert done.returncode == 0, done.stdout + done.stderr
    known = gpu_journal.read(file)
    assert list(known.left) == ORDER and not known.errors and "Written: " in done.stdout
    began = [(li["part"], li["unit"]) for li in lines(tmp_path) if li.get("event") == "began"]
    assert sorted(began) == sorted(known.ended) and len(before) >= 4
    first = next(line for line in done.stdout.splitlines() if line.startswith("[equality "))
    assert int(first[len("[equality ") :].split("/")[0]) <= len(before) + 3


HANGS = """
import time
from benchmarks import gpu_part, gpu_parts, harness
case = harness.Case("first", "a", "fwd", "it", lambda: time.sleep(60))
gpu_part.LONGEST = 0.5
gpu_part.PARTS["equality"] = gpu_parts.Part(lambda sizes, records: [case], 1.0)
gpu_part.main(["equality", "--file", "gpu.jsonl", "--tiny"])
"""


@pytest.mark.exhaustive
def test_a_unit_that_hangs_ends_its_process(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HANGS], cwd=tmp_path, env=environment, timeout=50, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Timeout" in done.stderr
    assert gpu_journal.read(tmp_path / "gpu.jsonl").open == ("equality", "a fwd")


@pytest.mark.exhaustive
def test_the_command_refuses_without_a_gpu(tmp_path):
    words = [sys.executable, "-m", "benchmarks", "gpu", "--out", str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "no GPU: the backends that JAX finds are cpu" in done.stderr
