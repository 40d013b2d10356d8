"""Tables and picture of the performance document from measurements."""

import json

import pytest

from benchmarks import blocks_suite, report


@pytest.fixture
def document(tmp_path, monkeypatch):
    for name in ("DOCUMENT", "RESULTS", "PICTURE", "BLOCKS_PICTURE"):
        monkeypatch.setattr(report, name, tmp_path / name.lower())
    report.RESULTS.mkdir()
    record = dict(
        suite="micro",
        case="a_4x4",
        direction="fwd",
        cpu_ms=1.0,
        temp_mib=2.0,
        gemm_share=0.5,
        copy_share=0.25,
    )
    ours = [
        dict(record, framework="ours", impl=impl, ms=ms)
        for impl, ms in (("auto", 9.0), ("auto", 2.0), ("dense", 1.6))
    ]
    ours[1]["lowering"] = "rows"
    torch = [
        dict(record, framework="torch", impl="conv", ms=5.0),
        dict(record, framework="torch", impl="slow", error="dropped"),
    ]
    del torch[1]["cpu_ms"]
    lines = "".join(json.dumps(r) + "\n" for r in ours + torch)
    (report.RESULTS / "cpu_blocks.jsonl").touch()
    for name in ("micro_lambda", "micro_local", "micro_attention"):
        (report.RESULTS / f"cpu_{name}.jsonl").write_text(lines)
    return report.DOCUMENT


def test_a_table_is_written_anew_and_the_rest_is_kept(document):
    document.write_text(
        "By hand.\n<!-- table: micro_lambda -->\nold\n<!-- end of the table -->\nMore.\n"
    )
    assert report.main([]) == 0
    text = document.read_text()
    assert text.startswith("By hand.\n<!-- table: micro_lambda -->\n| case")
    assert text.endswith("<!-- end of the table -->\nMore.\n")
    # The later of two measurements; fastest lowering with ours / it; each form with it / ours.
    ours = "| `a_4x4` | forward | 2.00 (rows) | 1.00 | 2.0 | 50 % | 25 % | dense 1.60 (1.25) |"
    assert f"{ours} conv 5.00 (**2.50x**), slow: dropped |" in text and "old" not in text
    assert report.PICTURE.read_bytes()[:4] == b"\x89PNG"


def test_an_unknown_table_is_refused_and_nothing_is_written(document, capsys):
    document.write_text("<!-- table: nano -->\n<!-- end of the table -->\n")
    assert report.main([]) == 1 and document.read_text().count("\n") == 2
    assert (
        "no table 'nano'; known: micro_lambda, micro_local, micro_attention"
        in capsys.readouterr().err
    )


def test_measured_blocks_have_rows_and_the_others_are_named(document):
    document.write_text("<!-- table: blocks -->\n<!-- end of the table -->\n")
    assert report.main([]) == 0
    cases = sum(len(block.maps) for block in blocks_suite.BLOCKS.values())
    lines = document.read_text().splitlines()[1:-1]
    names = ", ".join(f"`{name}`" for name in blocks_suite.BLOCKS)
    assert lines == [f"Not measured yet, {2 * cases} of {2 * cases} rows: {names}."]
    assert not report.BLOCKS_PICTURE.exists()

    def record(name, framework, impl, direction="fwd", **values):
        given = dict(suite="blocks", case=name, direction=direction, framework=framework)
        return dict(given, impl=impl, **values)

    times = dict(cpu_ms=3.0, temp_mib=1.25)
    records = [
        record("mhsa_28x28_d256", "ours", "auto", ms=2.0, **times),
        record("mhsa_28x28_d256", "torch", "sdpa", ms=1.0, cpu_ms=1.0),
        record("window_28x28_d256", "ours", "auto", ms=2.0, **times),
        record("window_28x28_d256", "torch", "timm", ms=20.0, cpu_ms=1.0),
        record("window_28x28_d256", "torch", "fused", ms=16.0, cpu_ms=1.0),
        record("se_28x28_d256", "ours", "auto", error="wrong result: output is off"),
        record("gc_28x28_d256", "ours", "auto", "train", ms=1.0, **times),
        record("gc_28x28_d256", "torch", "timm", "train", error="dropped: one call takes 4.0 s"),
        record("forgotten_28x28", "ours", "auto", ms=1.0, **times),
    ]
    lines = "".join(json.dumps(r) + "\n" for r in records)
    (report.RESULTS / "cpu_blocks.jsonl").write_text(lines)
    assert report.main([]) == 0
    text = document.read_text()
    for row in (
        "| `mhsa` | 28x28x256 | forward | 2.00 | 3.00 | 1.25 | sdpa 1.00 | **0.50x** |",
        "| `window` | 28x28x256 | forward | 2.00 | 3.00 | 1.25 | fused 16.00 | **8.00x** |",
        "| `se` | 28x28x256 | forward | wrong result: output is off |  |  | not measured yet |  |",
        "| `gc` | 28x28x256 | forward + backward | 1.00 | 3.00 | 1.25 | dropped: one call takes "
        "4.0 s |  |",
        f"| geometric mean, 2 of {cases} |  | forward |  |  |  |  | **2.00x** |",
    ):
        assert row in text
    assert text.count("| `") == 4 and f"Not measured yet, {2 * cases - 4} of" in text
    assert "forgotten" not in text and "](images/blocks_picture)" in text
    assert report.BLOCKS_PICTURE.read_bytes()[:4] == b"\x89PNG"
