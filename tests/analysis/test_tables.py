"""Summary, speed and predictions: exact totals, and timings of what really ran."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from lambdanet.analysis import speed, summary
from lambdanet.analysis.modes import split_probabilities
from lambdanet.training.state import split_model


def parameter_count(model) -> int:
    return sum(p.size for p in jax.tree.leaves(split_model(model)[1]))


@pytest.mark.parametrize("name", ["resnet18", "lambda_resnet50", "lambda_resnet26rpt_256"])
def test_totals_are_exact(name):
    model = nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0)))
    rows = summary.summarise(model, 256, 256)
    assert summary.totals(rows) == {
        "parameters": parameter_count(model),
        "macs": model.macs(256, 256),
    }
    assert not [row for row in rows if row["path"] == "other parameters"]


class Partial(nnx.Module):
    """Its rows leave out one of its two layers; a name of one is the beginning of the other's."""

    def __init__(self, rngs):
        self.fc = nnx.Linear(3, 4, rngs=rngs)
        self.fc2 = nnx.Linear(4, 5, rngs=rngs)

    def summary_rows(self, h, w):
        return [{"path": "fc", "type": "linear", "output_shape": (h, w, 4), "macs": 12 * h * w}]


def test_rows_that_miss_parameters():
    rows = summary.summarise(Partial(nnx.Rngs(0)), 2, 2)
    assert [(row["path"], row["parameters"]) for row in rows] == [
        ("fc", 16),
        ("other parameters", 25),
    ]
    assert summary.summary_table(rows).row_count == 2


def test_compiler_flops_of_a_matrix_product():
    def forward(weight, images):
        return images.reshape(len(images), -1).astype(jnp.float32) @ weight

    flops = summary.compiler_flops(forward, jax.ShapeDtypeStruct((48, 10), jnp.float32), (4, 4, 3))
    assert flops == pytest.approx(2 * 48 * 10, abs=60)


def test_speed_runs_the_calls_it_reports():
    calls = []

    def forward(weight, images):
        jax.debug.callback(lambda: calls.append(1), ordered=True)
        return images.reshape(len(images), -1).astype(jnp.float32) @ weight

    results = speed.measure(
        forward, np.ones((12, 2), np.float32), (2, 2, 3), [1, 4], repeats=3, warmup=1
    )
    jax.effects_barrier()
    assert len(calls) == 2 * (3 + 1)
    assert [r["batch_size"] for r in results] == [1, 4]
    for r in results:
        assert 0 < r["fastest_ms"] <= r["median_ms"] <= r["slowest_ms"] and r["compile_seconds"] > 0
        assert r["images_per_second"] == pytest.approx(1e3 * r["batch_size"] / r["median_ms"])
    assert speed.speed_table(results).row_count == 2


def test_predictions_leave_out_the_padding_and_keep_ids_whole():
    images = np.arange(4, dtype=np.uint8).reshape(2, 2, 1, 1, 1)
    ids = np.array([[5, 2**40], [7, 5]])
    masks = np.array([[1, 1], [1, 0]], np.float32)
    batches = [dict(image=i, id=n, mask=m) for i, n, m in zip(images, ids, masks, strict=True)]
    forward = lambda weight, x: x[:, 0, 0, :].astype(jnp.float32) * weight  # noqa: E731
    found, probabilities = split_probabilities(forward, jnp.array([0.0, np.log(2)]), batches)
    assert found.tolist() == [5, 2**40, 7]
    np.testing.assert_allclose(probabilities[:, 1], [1 / 2, 2 / 3, 4 / 5], rtol=1e-5)
    with pytest.raises(ValueError, match="no records"):
        split_probabilities(forward, jnp.ones(2), [])
