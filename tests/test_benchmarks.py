"""The benchmarks' harness on made-up candidates, and every candidate's correctness gate on tiny
problems.
"""

import io
import itertools
import json
import time
import types

import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import fit_cost_model, harness, input_suite, micro_lambda, torch_lambda


def case(name, impl, seconds=0.0, wrong="", closed=None, own=None):
    def check():
        if wrong:
            raise AssertionError(wrong)

    def run():
        time.sleep(seconds)
        return own

    prepared = harness.Prepared(run, check, items=4, flops=8.0, close=lambda: closed.append(impl))
    return harness.Case("made_up", name, "fwd", impl, lambda: prepared)


def test_candidates_are_checked_timed_and_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "SLOWEST_CALL", 0.3)
    closed = []
    cases = [
        case("a", "quick", 0.03, closed=closed),
        case("a", "wrong", wrong="7 instead of 8", closed=closed),
        case("a", "slow", 0.35, closed=closed),
        case("b", "own_clock", own=(0.5e-3, 0.25e-3), closed=closed),
    ]
    with open(tmp_path / "out.json", "w") as file:
        records = harness.run_cases(cases, rounds=3, out=file)
    quick, wrong, slow, own = records
    lines = [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()]
    assert lines == [
        dict.fromkeys(harness.LINE) | record for record in records
    ]  # null where something is not known
    assert quick["framework"] == "ours" and quick["flops"] == 8.0 and quick["suite"] == "made_up"
    assert 30 <= quick["ms"] <= quick["median_ms"] and quick["cpu_ms"] < 20
    assert quick["items_per_s"] == pytest.approx(4e3 / quick["ms"])
    assert wrong["error"] == "wrong result: 7 instead of 8" and "ms" not in wrong
    assert slow["error"].startswith("dropped: one call takes 0.")
    assert own["ms"] == 0.5 and own["cpu_ms"] == 0.25 and own["items_per_cpu_s"] == 16000
    assert sorted(closed) == ["own_clock", "quick", "slow", "wrong"]
    stream = io.StringIO()
    Console(file=stream, width=250).print(harness.table(records))
    lines = [line for line in stream.getvalue().splitlines() if "fwd" in line]
    assert "wrong result: 7 instead of 8" in lines[1]
    assert len(lines) == 4 and len({line.index("fwd") for line in lines}) == 1


def test_short_calls_are_repeated_within_a_sample(monkeypatch):
    ticks, calls = itertools.count(), []
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks) * 1e-3, process_time=lambda: 0.0)
    monkeypatch.setattr(
        harness, "time", clock
    )  # every look at the clock takes a millisecond, whatever else the machine does
    prepared = harness.Prepared(lambda: calls.append(1), lambda: None)
    (record,) = harness.run_cases([harness.Case("s", "n", "fwd", "i", lambda: prepared)], rounds=2)
    assert len(calls) == 1 + 2 * (1 + 20) and record["ms"] == pytest.approx(1 / 20)


@pytest.mark.exhaustive  # tests/test_memory_growth.py has the command with another suite
def test_command_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        micro_lambda,
        "SHAPES",
        (micro_lambda.Shape(1, 3, 8, 4, 3), micro_lambda.Shape(2, 4, 8, 4, 3)),
    )
    out = tmp_path / "out.json"
    assert command.main(["micro", "--cases", "*3x3*", "--rounds", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "lambda_3x3_d8_h4_r3" in printed and "4x4" not in printed and "row_chunks" in printed
    assert {json.loads(line)["direction"] for line in out.read_text().splitlines()} == {
        "fwd",
        "train",
    }
    assert command.main(["micro", "--cases", "nothing"]) == 2
    assert (
        "no case of suite 'micro' matches 'nothing'; cases: lambda_3x3_d8_h4_r3,"
        in capsys.readouterr().err
    )
    monkeypatch.setattr(micro_lambda, "cases", lambda: [case("x", "bad", wrong="off", closed=[])])
    assert command.main(["micro", "--cases", "x"]) == 1


@pytest.mark.parametrize("impl", ["auto", "row_chunks"])
@pytest.mark.parametrize("direction", ["fwd", "train"])
def test_lambda_cores_pass_their_gate_and_a_wrong_one_does_not(impl, direction, monkeypatch):
    shape = micro_lambda.Shape(2, 5, 8, 4, 7, 2)
    prepared = micro_lambda.prepare(shape, direction, impl)
    prepared.check()
    assert prepared.facts["lowering"] in micro_lambda.cost_model.GRID_IMPLS
    right = micro_lambda.lambda_mix.mix
    monkeypatch.setattr(micro_lambda.lambda_mix, "mix", lambda *a, **k: right(*a, **k) * 1.001)
    with pytest.raises(AssertionError, match="is off by"):
        micro_lambda.prepare(shape, direction, impl).check()


@pytest.mark.parametrize("form", torch_lambda.FORMS)
def test_torch_forms_of_the_lambda_core_pass_the_same_gate(form):
    pytest.importorskip("torch")
    for scope in (3, 9):
        micro_lambda.prepare_torch(micro_lambda.Shape(2, 5, 8, 4, scope), "train", form).check()


def test_rates_are_found_again_from_times_they_made(tmp_path, capsys):
    """The fit of made-up times chooses as they do, although it starts from nothing; and a wrong
    choice is told.
    """
    device = micro_lambda.cost_model.DEVICES["cpu"]
    lines = []
    for shape in micro_lambda.SEVENTEEN[::2]:
        geometry = micro_lambda.geometry(shape)
        for direction, rates in device.rates.items():
            for impl in rates:
                ms = (
                    1e3
                    * micro_lambda.cost_model.estimate(geometry, impl, device, direction).seconds
                )
                lines.append(
                    dict(case=shape.name, direction=direction, framework="ours", impl=impl, ms=ms)
                )
            lines.append(
                dict(
                    case=shape.name,
                    direction=direction,
                    framework="torch",
                    impl="conv_rr1",
                    ms=2 * ms,
                )
            )
    path = tmp_path / "times.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ours, theirs, names = fit_cost_model.read(str(path))
    fitted = fit_cost_model.fit(ours, device)
    assert fitted.rates.keys() == device.rates.keys() and fitted.rates != device.rates
    assert max(row["ratio"] for row in fit_cost_model.losses(ours, theirs, names, fitted)) < 1.02
    for found in ours["fwd"].values():
        found["dense"] = 0.5 * min(found.values())
    assert (
        min(
            row["ratio"]
            for row in fit_cost_model.losses(ours, theirs, names, device)
            if row["direction"] == "fwd"
        )
        >= 2.0
    )
    fit_cost_model.main([str(path), "--json", str(tmp_path / "table.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert len(rows) == 18 and all(
        row["ratio"] == 1.0 and row["torch"] == "conv_rr1" for row in rows
    )
    assert capsys.readouterr().out.count("lambda_") == 18


def test_names_and_number_of_the_lambda_shapes():
    names = [shape.name for shape in micro_lambda.SHAPES]
    assert (
        len(micro_lambda.TWELVE) == 12
        and len(micro_lambda.SEVENTEEN) == 17
        and len(set(names)) == len(names)
    )
    assert names[0] == "lambda_7x7_d512_h4_r23" and "lambda_14x14_d256_h4_r23_u4" in names
    assert [name for name in names if name.startswith("lambda_b64_")] == names[17:]


@pytest.mark.exhaustive
def test_input_cases_pass_their_gate(monkeypatch):
    monkeypatch.setattr(input_suite, "FILES", 3)
    names = []
    for entry in input_suite.cases():
        prepared = entry.prepare()
        prepared.check()
        prepared.close()
        names.append(entry.name)
    assert (
        names[:2] == ["decode_crop_flip", "decode_crop_flip_bicubic"]
        and "pipeline_4_threads" in names
    )
