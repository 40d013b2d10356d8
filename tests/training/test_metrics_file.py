"""metrics.jsonl as it should not be: binary, without steps, cut off; file and line are named."""

import io

import pytest

from lambdanet.training import metrics

GOOD = b'{"step": 1, "split": "eval", "loss": 0.5}\n'
BAD = {
    "binary": b"\xff\xfe\x00\x81",
    "zeros": b"\x00" * 20,
    "no step": b'{"loss": 1}',
    "a text for a step": b'{"step": "1"}',
    "a truth for a step": b'{"step": true}',
    "a fraction for a step": b'{"step": 1.5}',
    "a list": b"[1, 2]",
    "null": b"null",
    "deep": b"[" * 100_000,
}


def open_log(workdir):
    return metrics.MetricLog(
        workdir, total_steps=9, steps_per_epoch=3.0, batch_size=2, stream=io.StringIO()
    )


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_line_is_named_by_whoever_reads_it(tmp_path, kind):
    path = tmp_path / metrics.FILE_NAME
    path.write_bytes(GOOD + BAD[kind] + b"\n" + GOOD)
    before = path.read_bytes()
    for read in (metrics.read_records, lambda run: metrics.evaluated(run, 1), open_log):
        with pytest.raises(ValueError) as error:
            read(tmp_path)
        said = str(error.value)
        assert said.startswith(f"{path}, line 2 is damaged (") and "delete that line" in said
        assert len(said) < 1000
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", BAD)
def test_the_last_line_may_be_cut_off(tmp_path, kind):
    (tmp_path / metrics.FILE_NAME).write_bytes(GOOD + BAD[kind])
    assert [record["step"] for record in metrics.read_records(tmp_path)] == [1]
    open_log(tmp_path).close()
