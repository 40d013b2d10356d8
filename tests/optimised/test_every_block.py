"""Every registered attention block, in every stage of a small ResNet, trains: finite losses that
fall, gradients everywhere.
"""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from step_helpers import make_train_step

from configs import base
from lambdanet.attention import kind, list_attention
from lambdanet.training.state import TrainState, flatten_names, make_init, views
from models import create_model

CLASSES, SIDE, STEPS = 4, 8, 3
# Where the defaults, made for large maps, leave a single position to attend to on maps of 8x8 and
# 4x4.
OPTIONS = {
    "cbam": dict(reduction=4),  # one hidden unit of a ReLU may be dead
    "asp_object_context": dict(dilations=(1, 2)),
    "interlaced": dict(group_size=(2, 2)),
    "pyramid_object_context": dict(sizes=(1, 2)),
}


MIXERS, CONTEXTS = list_attention(kind="mixer"), list_attention(kind="context")
# Mixers one by one, since one specification serves a stage; context blocks several to a network,
# which saves compiling.
GROUPS = [(name,) for name in MIXERS] + [
    tuple(CONTEXTS[i : i + 4]) for i in range(0, len(CONTEXTS), 4)
]


def build(names: tuple[str, ...]) -> nnx.Module:
    specs = [dict(name=name, **OPTIONS.get(name, {})) for name in names]
    if kind(names[0]) == "mixer":
        place = dict(attention=specs[0])
    else:
        place = dict(context=tuple(dict(spec, after="stage*.*") for spec in specs))
    tiny = dict(
        block="basic",
        blocks=(1, 1),
        widths=(32, 64),
        in_channels=1,
        image_size=(SIDE, SIDE),
        num_classes=CLASSES,
    )
    return create_model("resnet_digits", **tiny, **place, rngs=nnx.Rngs(0))


def train(names: tuple[str, ...]) -> tuple[TrainState, dict]:
    """The state after some steps on one batch, and the metrics of each."""
    config = base.get_config()
    config.data.mean, config.data.std = (0.5,), (0.25,)
    tx = optax.sgd(0.05, momentum=0.5)
    make = functools.partial(build, names)
    init, step = (
        make_init(make, tx, ema=False),
        make_train_step(views(make)[0], tx, config, seed=0),
    )
    image = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 1)).astype(np.uint8)
    batch = {"image": image, "label": np.arange(8, dtype=np.int32) % CLASSES}

    @functools.partial(
        jax.jit, compiler_options={"xla_backend_optimization_level": 0}
    )  # runs once: compiling is the cost
    def run(batch):
        return jax.lax.scan(lambda s, _: step(s, batch), init(), length=STEPS)

    return run(batch)


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_trains_in_every_stage(names):
    state, metrics = train(names)
    losses = np.asarray(metrics["loss"])
    assert np.isfinite(losses).all() and np.isfinite(metrics["grad_norm"]).all(), metrics
    assert losses[1] < losses[0] - 1e-4, "one step lowers the loss of the same batch"
    gradients = flatten_names(
        state.opt_state[0].trace
    )  # what lies behind a zero scale has one from the second step on
    for stage in (0, 1):
        for number, name in enumerate(names):
            part = "attention/" if kind(name) == "mixer" else f"context/post/{number}/"
            own = {
                path: g
                for path, g in gradients.items()
                if path.startswith(f"stages/{stage}/blocks/0/{part}")
            }
            assert own, f"no parameter of {name} in stage {stage}"
            idle = [
                path
                for path, gradient in own.items()
                if path.endswith("kernel") and not np.any(gradient)
            ]
            assert not idle, f"{idle} of {name} got no gradient in {STEPS} steps"
