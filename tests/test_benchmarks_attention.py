"""The correctness gate of softmax attention in suite `micro`, on small maps."""

import dataclasses

import pytest
from covering import part

from benchmarks import micro_attention


@pytest.mark.parametrize("name", part(micro_attention.CORES, ["position"]))
def test_candidates_pass_their_gate_and_a_wrong_one_does_not(name, monkeypatch):
    prepared = micro_attention.prepare(name, 6, "train", 16)
    prepared.check()
    assert prepared.temp_mib > 0 and prepared.flops > 0
    right = micro_attention.CORES[name]
    wrong = dataclasses.replace(right, function=lambda *a: right.function(*a) * 1.001)
    monkeypatch.setitem(micro_attention.CORES, name, wrong)
    with pytest.raises(AssertionError, match="output is off by"):
        micro_attention.prepare(name, 6, "fwd", None).check()


def test_every_core_has_a_case_per_map_and_the_chunks_that_cut_it():
    cases = micro_attention.cases()
    names = {case.name for case in cases}
    assert len(names) == len(micro_attention.CORES) * len(micro_attention.SIDES)
    smallest = [case.impl for case in cases if case.name == "attention_mhsa_16x16"]
    assert set(smallest) == {"auto", "all", "chunk_32", "chunk_64", "chunk_128"}
