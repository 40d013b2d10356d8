"""Every registered attention block, in every stage of a small ResNet, trains: finite losses that fall, gradients everywhere."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from configs import base
from lambdanet.attention import kind, list_attention
from lambdanet.training.state import TrainState, flatten_names, make_init, views
from lambdanet.training.step import make_train_step
from models import create_model

CLASSES, SIDE, STEPS = 4, 8, 3
# Where the defaults, made for large maps, leave a single position to attend to on maps of 8x8 and 4x4.
OPTIONS = {
    "cbam": dict(reduction=4),  # one hidden unit of a ReLU may be dead
    "asp_object_context": dict(dilations=(1, 2)),
    "interlaced": dict(group_size=(2, 2)),
    "pyramid_object_context": dict(sizes=(1, 2)),
}


def build(name: str) -> nnx.Module:
    spec = dict(name=name, **OPTIONS.get(name, {}))
    place = dict(attention=spec) if kind(name) == "mixer" else dict(context=dict(spec, after="stage*.*"))
    tiny = dict(block="basic", blocks=(1, 1), widths=(32, 64), in_channels=1, image_size=(SIDE, SIDE), num_classes=CLASSES)
    return create_model("resnet_digits", **tiny, **place, rngs=nnx.Rngs(0))


def train(name: str) -> tuple[TrainState, dict]:
    """The state after some steps on one batch, and the metrics of each."""
    config = base.get_config()
    config.data.mean, config.data.std = (0.5,), (0.25,)
    tx = optax.sgd(0.05, momentum=0.5)
    make = functools.partial(build, name)
    init, step = make_init(make, tx, ema=False), make_train_step(views(make)[0], tx, config, num_classes=CLASSES, seed=0)
    image = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 1)).astype(np.uint8)
    batch = {"image": image, "label": np.arange(8, dtype=np.int32) % CLASSES}

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # runs once: compiling is the cost
    def run(batch):
        return jax.lax.scan(lambda s, _: step(s, batch), init(), length=STEPS)

    return run(batch)


@pytest.mark.parametrize("name", list_attention(kind="mixer") + list_attention(kind="context"))
def test_trains_in_every_stage(name):
    state, metrics = train(name)
    losses = np.asarray(metrics["loss"])
    assert np.isfinite(losses).all() and np.isfinite(metrics["grad_norm"]).all(), metrics
    assert losses[1] < losses[0] - 1e-4, "one step lowers the loss of the same batch"
    gradients = flatten_names(state.opt_state[0].trace)  # what lies behind a zero scale has one from the second step on
    for block in ("stages/0/blocks/0/", "stages/1/blocks/0/"):
        own = {path: g for path, g in gradients.items() if path.startswith((block + "attention/", block + "context/"))}
        assert own, f"no parameter of {name} in {block}"
        idle = [path for path, gradient in own.items() if path.endswith("kernel") and not np.any(gradient)]
        assert not idle, f"{idle} got no gradient in {STEPS} steps"
