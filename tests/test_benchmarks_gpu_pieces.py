"""Pieces of `python -m benchmarks gpu`: its file, batch sizes, gates, page."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from covering import part

from benchmarks import gpu_equality, gpu_journal, gpu_networks, gpu_report
from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_sizes import TINY

ROOT = Path(__file__).resolve().parent.parent


def test_a_unit_counts_as_it_ended_last_and_what_is_slow_has_not_failed(tmp_path):
    file, unit = tmp_path / "gpu.jsonl", ("first", "a fwd")
    for impl in ("old", "new"):  # a process died, the next began again
        gpu_journal.begin(file, unit)
        gpu_journal.append_record(file, unit, dict(impl=impl, error="dropped: one call takes 4 s"))
    gpu_journal.end(file, unit, 1.0)
    known = gpu_journal.read(file)
    assert [r["impl"] for r in known.records] == ["new"] and not known.errors and not known.open


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        ({}, [64]),
        ({64: True}, [64, 128]),
        ({64: True, 128: True, 256: False}, [64, 128, 256]),
        ({64: False}, [64, 32]),
        ({64: False, 32: False, 16: True}, [64, 32, 16]),
        ({64: False, 32: False, 16: False, 8: False, 4: False, 2: False, 1: False},
         [64, 32, 16, 8, 4, 2, 1]),
    ],
)  # fmt: skip
def test_batch_sizes_double_until_one_does_not_fit(fits, expected):
    assert gpu_networks.batches(64, fits) == expected


def test_out_of_memory_says_no_and_other_errors_do_not(monkeypatch):
    def raising(text):
        def training_step(*args, **options):
            raise jax.errors.JaxRuntimeError(text)

        return training_step

    name, options = TINY.networks[0]
    given = name, dict(options), 2, TINY
    monkeypatch.setattr(gpu_networks.step_times, "training_step", raising("RESOURCE_EXHAUSTED: 1"))
    prepared = gpu_networks.prepare(*given)
    assert prepared.run is None and prepared.facts["fits"] is False
    monkeypatch.setattr(gpu_networks.step_times, "training_step", raising("INTERNAL: 1"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        gpu_networks.prepare(*given)


def test_a_wrong_lowering_is_not_equal(monkeypatch):
    (core, *_) = gpu_equality.cores(*TINY.equality).values()
    right = gpu_equality.lambda_mix.mix
    monkeypatch.setattr(
        gpu_equality.lambda_mix,
        "mix",
        lambda *a, impl, **k: right(*a, impl=impl, **k) * (1 if impl == "dense" else 1.001),
    )
    gpu_equality.prepare(core, "float32", "dense").check()
    with pytest.raises(AssertionError, match="is off by 1.0e-03, allowed 2e-05"):
        gpu_equality.prepare(core, "float32", "query_first").check()


def test_a_result_that_is_no_number_is_wrong():
    assert gpu_equality._off(np.array([np.nan, 1.0]), np.ones(2)) == float("inf")


GPU = dict(
    device="NVIDIA X", backend="gpu", devices=1, memory_gib=70.0, cores=8, python="3.11",
    jax="0.10", platform="cuda 13", compute_capability="9.0", miniature=False,
)  # fmt: skip


def test_the_page_of_a_gpu_says_which_and_keeps_what_was_written_by_hand(tmp_path):
    records = [
        dict(part="constants", unit="gemm", case="gemm_bfloat16", impl="xla", ms=2.0, flops=1e12),
        dict(part="constants", unit="copy", case="copy", impl="xla", ms=1.0, bytes=3e9),
        dict(part="constants", unit="launch", case="launch", impl="8", ms=1.0, products=8),
        dict(part="constants", unit="launch", case="launch", impl="18", ms=1.02, products=18),
    ]
    known = gpu_journal.Journal(machine=GPU, records=records, left=dict.fromkeys(PARTS, 0))
    page = tmp_path / "page.md"
    gpu_report.write(known, page)
    page.write_text(page.read_text().replace("(not written yet)", "Fast."))
    gpu_report.write(known, page)
    text = page.read_text()
    assert text.startswith("# Performance on a GPU\n") and "\nFast.\n" in text
    assert "Device: NVIDIA X" in text and "compute capability 9.0" in text
    assert "| gemm_bfloat16 | 500.00 |  | TFLOP/s |" in text
    assert "| copy | 3000.0 | 3350 | GB/s read and written |" in text
    assert "| launch | 2.00 | 5.0 | microseconds per operation |" in text
    page.write_text("# Performance on a GPU\n")
    with pytest.raises(ValueError, match="the hand-written part must stand once"):
        gpu_report.write(known, page)


def test_pytorchs_networks_are_those_that_timm_makes():
    from benchmarks import gpu_sizes, gpu_torch

    measured = {name for name, _ in gpu_sizes.FULL.networks}
    assert {"resnet50", "swin_tiny", "pvt_v2_b1"} <= measured & set(gpu_torch.TWINS)
    assert all(isinstance(name, str) for name in gpu_torch.TWINS.values())


@pytest.mark.parametrize("kind", part(["lambda", "attention", "network"], ["lambda"]))
def test_pytorch_passes_the_same_gate(kind):
    pytest.importorskip("torch")
    from benchmarks import gpu_torch

    shape = TINY.lambdas[0]
    if kind == "lambda":
        for form in gpu_torch.torch_lambda.FORMS:
            for dtype in gpu_torch.DTYPES:
                gpu_torch.prepare_lambda(shape, "train", form, dtype).check()
    elif kind == "attention":
        for core in gpu_torch.SDPA:
            prepared = gpu_torch.prepare_attention(core, 4, "train", "bfloat16")
            prepared.check()
            prepared.run()
    else:
        pytest.importorskip("timm")
        gpu_torch.prepare_network("resnet18", 2, TINY).check()


@pytest.mark.exhaustive
def test_the_page_is_made_without_a_device(tmp_path):
    """The command itself looks for none: the processes of its parts want the device's memory."""
    gpu_journal.append(tmp_path / "gpu.jsonl", {"machine": GPU})
    words = [sys.executable, "-m", "benchmarks", "gpu", "--report", "--out", str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "none_at_all"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "performance_gpu.md").read_text()
    assert text.startswith("# Performance on a GPU\n") and "- Not finished: equality." in text
