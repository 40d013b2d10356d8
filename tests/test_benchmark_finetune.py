"""The benchmark of fine-tuning, in miniature on the embedded digits."""

import dataclasses

import pytest
from run_helpers import quick_compilation

from benchmarks import finetune


def test_a_folder_without_splits_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        finetune.main([f"--data={tmp_path}"])
    assert "has no folder train, validation, test" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_both_halves_are_trained_and_a_second_call_only_reads(tmp_path, monkeypatch, capsys):
    ways = tuple(finetune.WAYS)
    plan = dataclasses.replace(finetune.QUICK, amounts=(3,), ways=(ways[0], ways[4]))
    monkeypatch.setattr(finetune, "QUICK", plan)
    command = ["--quick", f"--out={tmp_path}"]
    with quick_compilation():
        assert finetune.main(command) == 0
    first = capsys.readouterr().out
    assert "| second half of the classes | 15 pictures, % |" in first
    assert all(f"| {way} |" in first for way in plan.ways)
    assert (tmp_path / "pretrained_0" / "weights.safetensors").is_file()

    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(finetune.train, "run", fail)
    assert finetune.main(command) == 0
    table = [line for line in first.splitlines() if line.startswith("|")]
    assert table == [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
