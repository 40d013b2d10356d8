"""Scores of checkpoints: one that cannot be read costs no more than itself."""

import jax.numpy as jnp
import pytest

from lambdanet.training import checkpoint
from lambdanet.training.state import TrainState

CONFIG = {"train": {"keep_best": "loss", "ema_decay": 0.0}}


def save(workdir, scores):
    """A checkpoint per step, with the loss of an evaluation or None."""
    checkpoints = checkpoint.Checkpoints(workdir, keep_last=9, keep_best="loss")
    for step, loss in scores.items():
        state = TrainState(jnp.asarray(step), {"w": jnp.ones(2)}, {}, {}, {})
        score = None if loss is None else {"loss": loss}
        assert checkpoints.save(step, state, {"batches": step}, CONFIG, score)
    return checkpoints


@pytest.mark.parametrize("name", ["score.json", "metrics/metrics", "meta/metadata"])
@pytest.mark.parametrize(
    "content",
    [b"\xff{", b"\x00" * 9, b"", b"[]", b'"text"', b"[" * 100_000, b'{"a":' * 900 + b"1}"],
    ids=["binary", "zeros", "nothing", "list", "text", "deep list", "deep object"],
)
def test_one_bad_score_file_blocks_no_start_and_is_named(tmp_path, name, content, caplog):
    save(tmp_path, {1: None, 2: 0.5, 3: 0.7}).close()
    path = tmp_path / "checkpoints" / "1" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    checkpoints = checkpoint.Checkpoints(tmp_path, keep_last=1, keep_best="loss")
    assert checkpoints.steps() == [1, 2, 3] and checkpoints.best_step() == 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(str(path)) and "that step has no score" in said and len(said) < 1000
    checkpoints.close()
    again = save(tmp_path, {4: 0.9})
    assert again.best_step() == 2
    again.close()
