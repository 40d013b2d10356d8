"""Auxiliary losses: added to the loss with their weights, recorded term by term, refused where the
model has none.
"""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from step_helpers import make_train_step

from configs import base
from lambdanet import config as configs
from lambdanet import config_flag
from lambdanet.registry import Registry
from lambdanet.training.metrics import MetricLog, read_records
from lambdanet.training.state import make_init, views

CLASSES, TERMS = 3, (("mean", 0.5), ("square", 0.25))


class TinyNet(nnx.Module):
    """A linear classifier whose pooled features have two terms of their own."""

    def __init__(self, rngs: nnx.Rngs):
        self.fc = nnx.Linear(12, CLASSES, rngs=rngs)
        self.auxiliary_losses = ("mean", "square")

    def __call__(self, x, *, return_auxiliary=False, rngs=None):
        logits = self.fc(x.reshape(len(x), -1))
        terms = {"mean": logits.mean(), "square": (logits**2).mean()}
        return (logits, terms) if return_auxiliary else logits


def build():
    return TinyNet(nnx.Rngs(0))


def run(pairs, accumulate=1):
    """Returns the parameters before and after one step of gradient descent with rate 1, the batch
    and the metrics.
    """
    config = base.get_config()
    config.classification.label_smoothing = 0.0
    config.train.update(dict(auxiliary_losses=pairs, accumulate=accumulate))
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 256, (4, 2, 2, 3)).astype(np.uint8),
        "label": np.array([0, 2, 1, 1]),
    }
    tx = optax.sgd(1.0)
    one = jax.jit(make_train_step(views(build)[0], tx, config))
    start = make_init(build, tx, ema=False)()
    after, metrics = one(start, batch)
    return start.params, after.params, batch, metrics


@pytest.mark.parametrize("accumulate", [1, 2])
def test_terms_are_weighted_into_the_loss_and_recorded(accumulate):
    before, after, batch, metrics = run(TERMS, accumulate)

    def parts(params):
        graphdef = nnx.split(build(), nnx.Param)[0]
        logits, terms = nnx.merge(graphdef, params)(
            batch["image"] / 127.5 - 1.0, return_auxiliary=True
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), terms

    def loss(params):
        cross_entropy, terms = parts(params)
        return cross_entropy + 0.5 * terms["mean"] + 0.25 * terms["square"]

    cross_entropy, terms = parts(before)
    expected = {"loss": loss(before), "cross_entropy": cross_entropy}
    expected |= {f"auxiliary_{name}": value for name, value in terms.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    assert all(value.dtype == jnp.float32 and value.shape == () for value in metrics.values())
    gradient = jax.grad(loss)(before)
    jax.tree.map(
        lambda a, b, g: np.testing.assert_allclose(a, b - g, rtol=1e-5, atol=1e-6),
        after,
        before,
        gradient,
    )


def test_a_weight_of_zero_only_records():
    _, plain, _, metrics = run(())
    _, same, _, recorded = run((("mean", 0.0),))
    assert "cross_entropy" not in metrics and not [
        name for name in metrics if name.startswith("auxiliary")
    ]
    assert (
        float(recorded["auxiliary_mean"]) != 0
        and recorded["cross_entropy"] == recorded["loss"] == metrics["loss"]
    )
    jax.tree.map(np.testing.assert_array_equal, plain, same)


def test_unknown_terms_are_refused_before_device_work():
    registry = Registry("model")
    registry.register("tiny_net", lambda *, rngs=None: None)
    config = base.get_config()
    config.model.name = "tiny_net"

    def problems(value, model=build):
        overridden = config_flag.apply_overrides(config, {"train.auxiliary_losses": value})
        try:
            configs.validate(
                overridden, base.get_config(), registry, build=lambda: nnx.eval_shape(model)
            )
        except configs.ConfigError as error:
            return error.problems
        return []

    assert problems("(('mean', 0.5),)") == []
    (problem,) = problems("(('maen', 0.5), ('square', 1))")
    assert (
        "TinyNet has no auxiliary loss 'maen'; it has mean, square. Did you mean 'mean'?" in problem
    )
    (problem,) = problems("(('mean', 0.5),)", lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert "Linear has no auxiliary loss 'mean'; it has none" in problem
    for wrong in (
        "('mean', 0.5)",
        "(('mean', -1),)",
        "(('mean', 'x'),)",
        "(('mean', 1), ('mean', 2))",
    ):
        (problem,) = problems(wrong)
        assert (
            "train.auxiliary_losses = " in problem
            and "pairs (name, weight >= 0), each name once" in problem
        )


def test_records_and_the_live_line_show_them(tmp_path):
    stream = io.StringIO()
    log = MetricLog(tmp_path, total_steps=10, steps_per_epoch=5, batch_size=4, stream=stream)
    values = {
        "loss": 1.5,
        "cross_entropy": 1.0,
        "accuracy": 0.5,
        "lr": 0.1,
        "auxiliary_mean": 0.25,
        "auxiliary_square": 3e-5,
    }
    log.train(5, values, 5)
    log.close()
    (record,) = read_records(tmp_path)
    assert {key: record[key] for key in values} == json.loads(json.dumps(values))
    assert stream.getvalue().rstrip().endswith("mean 2.50e-01 square 3.00e-05")
