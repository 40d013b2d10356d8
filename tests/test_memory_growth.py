"""What the blocks claim about memory, from the compiler: bytes by map size, nothing is run."""

import json

import pytest
from covering import part

from benchmarks import __main__ as command
from benchmarks import memory_suite
from configs import attention_zoo

SIDES, DIM = (32, 64), 32
# Largest power p of n in bytes ~ n^p that the methods promise; interlaced with cells of sqrt(n)
# positions.
CLAIMS = {
    "cgnl": 1.0,
    "criss_cross": 1.5,
    "double_attention": 1.0,
    "interlaced": 1.5,
    "lambda": 1.0,
    "linformer": 1.0,
}


def facts(name, direction):
    return memory_suite.prepare(name, attention_zoo.variants()[name], direction, SIDES, DIM).facts


@pytest.mark.parametrize("direction", part(["fwd", "train"], ["train"]))
@pytest.mark.parametrize("name", part(CLAIMS, ["cgnl", "criss_cross", "lambda"]))
def test_memory_grows_no_faster_than_claimed(name, direction):
    found = facts(name, direction)
    assert found["growth"] < CLAIMS[name] + 0.1, found
    assert found["formula_growth"] == pytest.approx(CLAIMS[name])


@pytest.mark.parametrize("direction", ["fwd", "train"])
def test_attention_over_all_pairs_is_seen_to_be_quadratic(direction):
    # The measure must see n x n weights that are held, or the test above could not fail.
    spec = {"name": "position_attention", "query_chunk": None}
    found = memory_suite.prepare("position_attention", spec, direction, SIDES, DIM).facts
    assert found["growth"] == pytest.approx(2.0, abs=0.1)
    assert all(
        measured >= 4 * side**4 for side, measured in zip(SIDES, found["bytes"], strict=True)
    )


# Bytes of a training step on a map of 128x128 with 256 channels, MiB.
LIMITS = {"mhsa": 600, "bottleneck_attention": 700, "position_attention": 700}
IN_BLOCKS = (
    *LIMITS,
    *("object_context", "pyramid_object_context", "asp_object_context"),
    *("spatial_reduction", "cross_shaped_window", "window", "nonlocal", "nonlocal_gaussian"),
)


@pytest.mark.parametrize("name", part(IN_BLOCKS, ["mhsa"]))
def test_softmax_attention_takes_linear_memory_on_large_maps(name):
    spec = attention_zoo.variants()[name]
    found = memory_suite.prepare(name, spec, "train", (64, 128), 256).facts
    assert found["growth"] <= 1.1, found
    assert found["bytes"][-1] <= LIMITS.get(name, 1e9) * 2**20


def test_the_suite_prints_and_records_bytes_beside_the_formula(monkeypatch, capsys, tmp_path):
    cases = memory_suite.cases((8, 16), 8)
    monkeypatch.setattr(memory_suite, "cases", lambda: cases)
    assert command.main(["memory", "--cases", "se", "--json", str(tmp_path / "out.jsonl")]) == 0
    assert "formula" in capsys.readouterr().out
    forward, train = (
        json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()
    )
    assert (forward["direction"], train["direction"]) == ("fwd", "train") and forward["ms"] is None
    assert forward["sides"] == [8, 16] and forward["formula_bytes"] == [4 * 8, 4 * 8]
    refused = memory_suite.prepare("lambda", {"name": "lambda", "num_heads": 3}, "fwd", (8, 16), 8)
    assert "heads" in refused.facts["error"] and "bytes" not in refused.facts
