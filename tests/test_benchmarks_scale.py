"""Suite `scale` on small maps: its facts, and how much memory grows with the map."""

import pytest
from covering import part

from benchmarks import scale_suite
from benchmarks.harness import run_cases


def test_cases_are_layers_and_models_in_both_directions():
    names = [(case.name, case.direction) for case in scale_suite.cases()]
    assert (
        len(names) == len(set(names))
        and ("lambda_1024x1024", "train") in names
        and ("compile_swin_tiny", "fwd") in names
    )


@pytest.mark.parametrize("direction", part(["fwd", "train"], ["train"]))
def test_facts_of_a_layer(direction):
    (case,) = (
        c for c in scale_suite.cases() if (c.name, c.direction) == ("slide_256x256", direction)
    )
    small = scale_suite.Case(
        case.suite,
        case.name,
        direction,
        case.impl,
        lambda: scale_suite.prepare_layer("slide", 16, direction),
    )
    (record,) = run_cases([small], rounds=1)
    maps = 2 if direction == "fwd" else 4  # input and output, and their gradients
    assert record["total_mib"] >= record["temp_mib"] + maps * 16 * 16 * 64 * 4 / 2**20
    assert record["ms"] > 0 and record["compile_s"] > 0 and "error" not in record
