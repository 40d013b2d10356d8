"""What is chosen by the size of a batch is chosen by the part of it that one device has."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from configs import base
from lambdanet import batch_split
from lambdanet.ops import (
    attention_lowering,
    content_lambda,
    cost_model,
    softmax_attention,
    spectral_lambda,
)
from lambdanet.tasks import classification
from lambdanet.training import mesh, programs, state, step
from lambdanet.training.packing import Packing
from models import create_model

DEVICES, EACH = 8, 4


def test_the_batch_is_that_of_one_device():
    assert cost_model.static_batch(64) == 64
    with batch_split.over(8):
        assert cost_model.static_batch(64) == cost_model.static_batch(16, 4) == 8
        assert cost_model.static_batch(4) == 1  # fewer examples than devices
        with batch_split.over(2):
            assert cost_model.static_batch(64) == 32
        (b,) = jax.export.symbolic_shape("b")
        assert cost_model.static_batch(b) == 1 and cost_model.static_batch(b, 16) == 2
    with pytest.raises(ZeroDivisionError), batch_split.over(8):
        _ = 1 // 0
    assert batch_split.devices() == 1


@pytest.fixture
def asked(monkeypatch):
    """Batch sizes and problems that lowerings were chosen for."""
    found, impl, chunk = [], cost_model.choose_impl, attention_lowering.choose_chunk

    def choose_impl(geometry, *options):
        found.append(geometry.batch)
        return impl(geometry, *options)

    def choose_chunk(pairs, *options):
        found.append(pairs.problems)
        return chunk(pairs, *options)

    monkeypatch.setattr(cost_model, "choose_impl", choose_impl)
    monkeypatch.setattr(softmax_attention, "choose_chunk", choose_chunk)
    return found


@pytest.mark.parametrize(
    "attention", [dict(name="lambda", scope=3), dict(name="mhsa", num_heads=1)]
)
def test_both_programs_of_a_run_choose_by_it(asked, attention):
    config = base.get_config()
    options = dict(blocks=(1,), widths=(8,), num_classes=10, attention=attention)

    def build():
        return create_model("lambda_resnet_digits", rngs=nnx.Rngs(0), **options)

    asked.clear()
    kinds = (AxisType.Auto,) * 2  # as of make_mesh
    devices, tx = AbstractMesh((DEVICES, 1), mesh.AXES, axis_types=kinds), optax.sgd(0.1)
    abstract = jax.eval_shape(state.make_init(build, tx, ema=False))
    shardings = mesh.state_shardings(abstract, devices, 0)
    own = dict(loss=classification.loss, mix=classification.mix, mesh=devices)
    packing = Packing(state.with_shardings(abstract, shardings))
    train = programs.jitted_step(
        config, build, tx, packing, schedule=optax.constant_schedule(0.1), frozen=(), **own
    )
    score = step.make_eval_step(state.views(build)[1], config, score=classification.score)
    evaluate = programs.evaluation_program(score, devices, print)
    image = jax.ShapeDtypeStruct((DEVICES * EACH, 8, 8, 1), np.uint8)
    label = jax.ShapeDtypeStruct((DEVICES * EACH,), np.int32)
    arrays, numbers = packing.abstract(abstract)
    jax.eval_shape(train, arrays, {"image": image, "label": label}, numbers)
    assert set(asked) == {EACH}
    asked.clear()
    mask = jax.ShapeDtypeStruct((DEVICES * EACH,), np.float32)
    batch = {"image": image, "label": label, "mask": mask}
    jax.eval_shape(evaluate, abstract.params, abstract.stats, batch)
    assert set(asked) == {EACH}


def turns(jaxpr):
    """Turns of the loops of a program."""
    return [eqn.params["length"] for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]


def test_loops_over_parts_of_the_batch_have_the_turns_of_one_device(monkeypatch):
    keys, v = np.ones((DEVICES, 16, 1, 2), np.float32), np.ones((DEVICES, 16, 1, 3), np.float32)
    monkeypatch.setattr(content_lambda, "MASKED_ELEMENTS", 2 * keys.size)

    def content(count):
        def program(keys, v):
            return content_lambda.masked_content_lambdas(keys, v, np.tri(16, dtype=bool))

        return turns(jax.make_jaxpr(batch_split.split(program, count))(keys, v))

    assert content(1) == [8] and content(2) == [4]
    q, v = np.ones((DEVICES, 8, 8, 1, 2), np.float32), np.ones((DEVICES, 8, 8, 1, 3), np.float32)
    monkeypatch.setattr(spectral_lambda, "tiles_per_group", lambda *_: 1)

    def by_frequencies(q, v, table):
        return spectral_lambda.by_frequencies(q, v, table, (1, 1))

    def spectral(count):
        program = batch_split.split(by_frequencies, count)
        return turns(jax.make_jaxpr(program)(q, v, np.ones((3, 3, 1, 2), np.float32)))

    assert spectral(1) == [DEVICES] and spectral(DEVICES // 2) == [2]
