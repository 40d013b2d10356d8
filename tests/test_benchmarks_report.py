"""Tables and picture of the performance document from measurements."""

import json

import pytest

from benchmarks import report


@pytest.fixture
def document(tmp_path, monkeypatch):
    for name in ("DOCUMENT", "RESULTS", "PICTURE"):
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
    for name in ("micro_lambda", "micro_local", "micro_blocks"):
        (report.RESULTS / f"cpu_{name}.jsonl").write_text(lines)
    return report.DOCUMENT


def test_a_table_is_written_anew_and_the_rest_is_kept(document):
    document.write_text(
        "By hand.\n<!-- table: micro_lambda -->\nold\n<!-- end of the table -->\nMore.\n"
    )
    assert report.main() == 0
    text = document.read_text()
    assert text.startswith("By hand.\n<!-- table: micro_lambda -->\n| case")
    assert text.endswith("<!-- end of the table -->\nMore.\n")
    # The later of two measurements; fastest lowering with ours / it; each form with it / ours.
    ours = "| `a_4x4` | forward | 2.00 (rows) | 1.00 | 2.0 | 50 % | 25 % | dense 1.60 (1.25) |"
    assert f"{ours} conv 5.00 (**2.50x**), slow: dropped |" in text and "old" not in text
    assert report.PICTURE.read_bytes()[:4] == b"\x89PNG"


def test_an_unknown_table_is_refused_and_nothing_is_written(document, capsys):
    document.write_text("<!-- table: nano -->\n<!-- end of the table -->\n")
    assert report.main() == 1 and document.read_text().count("\n") == 2
    assert (
        "no table 'nano'; known: micro_lambda, micro_local, micro_blocks" in capsys.readouterr().err
    )
