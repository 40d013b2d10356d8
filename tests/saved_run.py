"""A run as train.py leaves it, with weights that nobody has trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import models
from configs import base
from lambdanet import config as configs
from lambdanet import data
from lambdanet.training.checkpoint import Checkpoints
from lambdanet.training.state import make_init


def make_run(workdir, model, task="segmentation", *, classes=None, settings=None):
    """Writes the config and a checkpoint of step 3, and with `classes` their names; the data is
    nowhere.
    """
    config = base.get_config()
    config.task, config.train.keep_best = task, ""
    config.data.source, config.data.data_dir = "tfds", "no/where"
    config.data.channels, config.data.image_size = 3, model["image_size"]
    config.model = model
    for key, value in (settings or {}).items():
        section, name = key.split(".")
        config[section][name] = value

    def build():
        return models.create_from_config(config, rngs=nnx.Rngs(0))

    workdir.mkdir()
    configs.save(config, workdir)
    if classes is not None:
        data.keep_info(
            data.DataInfo({k: k for k in ("image", "masks")}, tuple(classes)), workdir, begins=True
        )
    state = jax.jit(make_init(build, optax.identity(), ema=False))()
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda a: jnp.asarray(np.asarray(a) + 0.3 * rng.standard_normal(a.shape, np.float32)),
        state.params,
    )
    checkpoints = Checkpoints(workdir, config.train.keep_last, config.train.keep_best)
    checkpoints.save(3, state.replace(params=moved), {"batches": 3}, configs.to_plain(config), {})
    checkpoints.close()
    return workdir
