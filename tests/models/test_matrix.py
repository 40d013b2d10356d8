"""Every mixer in every backbone family: it trains, or it is refused with the reason and the way
out.

One network per family holds all mixers in both of its stages, and its training step is traced:
every pair builds, fits, has gradients of the right shapes (one family in the suite, all in `make
exhaustive`). Real steps are run of as many blocks as it takes for each mixer and each family to be
in one of them, two of these in the suite; tests/attention/test_all_blocks.py has a gradient of each
block by itself. ResNets are trained with every block in tests/optimised/test_every_block.py.
"""

import functools

import jax
import numpy as np
import optax
import pytest
from covering import part
from flax import nnx
from step_helpers import make_train_step

from configs import base
from lambdanet.attention import list_attention
from lambdanet.training.state import flatten_names, make_init, views
from models import create_model

CLASSES, SIDE, STEPS = 4, 8, 2
# Options for maps of 8x8 and 4x4, where the defaults are for larger ones.
OPTIONS = {
    "cross_shaped_window": dict(stripe_width=2),
    "halo_attention": dict(block_size=4, halo_size=1),
    "lambda": dict(key_depth=4, scope=3),
    "neighborhood": dict(kernel_size=3),
    "shifted_window": dict(window_size=4),
    "spatial_reduction": dict(sr_ratio=2),
    "window": dict(window_size=4),
}
# The families' networks for digits; LaViT's has logits that pass between its stages, which other
# mixers do not hand on.
FAMILIES = {
    "pvt": {},
    "pvt_v2": {},
    "swin": {},
    "cswin": {},
    "nat": {},
    "lavit": dict(attention_residual=(False, False)),
}
MIXERS = list_attention(kind="mixer")


def build(family, first, last):
    """The family's network for digits, very narrow: `first` and `last` are the mixers of its two
    stages.
    """
    specs = [
        tuple(dict(name=name, **OPTIONS.get(name, {})) for name in stage) for stage in (first, last)
    ]
    tiny = dict(
        blocks=(len(first), len(last)),
        widths=(16, 16),
        num_heads=(2, 2),
        mlp_ratios=(1, 1),
        num_classes=CLASSES,
    )
    tiny |= FAMILIES[family]
    return create_model(
        f"{family}_digits",
        **tiny,
        image_size=(SIDE, SIDE),
        attention=tuple(specs),
        rngs=nnx.Rngs(0),
    )


def refusal(family, name):
    """Why the family's last stage does not take a mixer, or None."""
    try:
        nnx.eval_shape(lambda: build(family, ("mhsa",), (name,)))
    except ValueError as error:
        return str(error)


def training_step(make):
    """A function of a batch: losses of STEPS training steps, and the momentum of every parameter
    after them.
    """
    config, tx = base.get_config(), optax.sgd(0.01, momentum=0.5)
    init, step = (
        make_init(make, tx, ema=False),
        make_train_step(views(make)[0], tx, config, seed=0),
    )

    def run(batch):
        state, metrics = jax.lax.scan(lambda s, _: step(s, batch), init(), length=STEPS)
        return metrics["loss"], flatten_names(state.opt_state[0].trace)

    image = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 1)).astype(np.uint8)
    return run, {"image": image, "label": np.arange(8, dtype=np.int32) % CLASSES}


def own_gradients(gradients, stage, names):
    """Name of the mixer -> its gradients by path."""
    prefixes = {
        name: f"stages/{stage}/blocks/{block}/attention/" for block, name in enumerate(names)
    }
    return {
        name: {path: g for path, g in gradients.items() if path.startswith(at)}
        for name, at in prefixes.items()
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", part(FAMILIES, ["swin"]))
def test_every_mixer_in_every_stage(family):
    taken = [name for name in MIXERS if refusal(family, name) is None]
    assert family == "pvt" or taken == MIXERS
    losses, gradients = jax.eval_shape(
        *training_step(functools.partial(build, family, MIXERS, taken))
    )
    assert losses.shape == (STEPS,)
    for stage, names in enumerate((MIXERS, taken)):
        assert all(own_gradients(gradients, stage, names).values())


@pytest.mark.parametrize("number", part(range(len(FAMILIES)), [5]))
def test_steps(number):
    family, mixers = list(FAMILIES)[number], MIXERS[number :: len(FAMILIES)]
    run, batch = training_step(functools.partial(build, family, mixers, ("mhsa",)))
    # It runs once: compiling is the cost.
    losses, gradients = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(batch)
    assert np.isfinite(losses).all() and losses[1] < losses[0]
    for name, own in own_gradients(gradients, 0, mixers).items():
        assert own and all(np.isfinite(gradient).all() for gradient in own.values())
        idle = [
            path
            for path, gradient in own.items()
            if path.endswith("kernel") and not np.any(gradient)
        ]
        assert not idle, f"{family} with {name}: {idle} got no gradient"


def test_the_class_token_refuses_what_needs_a_map():
    refused = {name: reason for name in MIXERS if (reason := refusal("pvt", name)) is not None}
    assert {"slide", "neighborhood", "window", "shifted_window", "cross_shaped_window"} <= set(
        refused
    )
    assert "mhsa" not in refused
    for name, reason in refused.items():
        assert "pool is 'cls'" in reason and "allowed: pool='mean'" in reason, name
        last = (dict(name=name, **OPTIONS.get(name, {})),)
        fixed = dict(attention=("mhsa", last), pool="mean", widths=(16, 16))
        assert nnx.eval_shape(
            lambda fixed=fixed: create_model("pvt_digits", **fixed, rngs=nnx.Rngs(0))
        )


@pytest.mark.parametrize("family", [*FAMILIES, "resnet"])
def test_carried_blocks_are_no_mixers(family):
    for name in list_attention(kind="carried"):
        with pytest.raises(
            ValueError, match=f"'{name}' hands state from layer to layer, as the models lavit_"
        ):
            nnx.eval_shape(
                lambda name=name: create_model(f"{family}_digits", attention=name, rngs=nnx.Rngs(0))
            )


def test_no_mixer_hands_logits_to_the_next_stage():
    with pytest.raises(
        ValueError,
        match=r"attention_residual\[1\] is True; allowed: False where attention\[0\] stands in",
    ):
        nnx.eval_shape(
            lambda: create_model("lavit_digits", attention=("mhsa", None), rngs=nnx.Rngs(0))
        )
