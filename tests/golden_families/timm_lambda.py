"""timm's networks: whole-network logits and the complete list of state-dict keys, of the three
lambda networks also stage means.
"""

import json
import zlib

import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

import models
from lambdanet.training.state import flatten_names, split_model


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of the state dict by the rule that the fixtures' `config` states."""
    draw = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        value = 0.5 + draw.random_sample(shape)
    elif key.endswith(("running_mean", "bias", "pos_emb")):
        value = 0.1 * draw.standard_normal(shape)
    elif len(shape) == 1:
        value = 0.5 + 0.5 * draw.random_sample(shape)
    else:
        value = np.sqrt(1 / np.prod(shape[1:])) * draw.standard_normal(shape)
    return value.astype(np.float32)


def build(fixture: Fixture) -> Ours:
    """Every key of timm's state dict must find its place in our model and fill it: the conversion
    is strict.
    """
    config = dict(fixture.config["ctor"])
    options = {"image_size": (config.pop("img_size"),) * 2} if "img_size" in config else {}
    assert not config, f"constructor arguments without a counterpart here: {config}"

    def make():
        return models.create_model(fixture.config["arch"], **options, rngs=nnx.Rngs(0))

    model = nnx.eval_shape(make)
    count = sum(leaf.size for leaf in flatten_names(split_model(model)[1]).values())
    assert count == fixture.config["n_params"], (
        f"{count} parameters, the reference has {fixture.config['n_params']}"
    )
    keys = json.loads(str(fixture.arrays["meta/state_dict_keys"]))
    weights = {key: weight(key, tuple(shape)) for key, shape in keys}
    images = np.random.RandomState(fixture.config["input_seed"]).standard_normal(
        fixture.config["input_shape"]
    )
    images = images.astype(np.float32)

    def call(model, inputs):
        x = channels_last(jnp.asarray(images))
        if not any(key.startswith("feat_") for key in fixture.arrays):
            return {"out/logits": model(x)}
        maps = {"stem": model.stem(x)}
        maps |= {f"stage{number}": value for number, value in enumerate(model.features(x))}
        maps = {name: channels_first(value) for name, value in maps.items()}
        logits = model(x)
        outputs = {
            "out/logits": logits,
            "out/logits_f64": logits,
        }  # the second: the reference run in float64
        outputs |= {
            f"feat_spatial_mean/{name}": jnp.mean(value, (2, 3)) for name, value in maps.items()
        }
        return outputs | {
            f"feat_shape/{name}": jnp.asarray(value.shape) for name, value in maps.items()
        }

    checked = ("meta/state_dict_keys",)
    return module_case(
        fixture,
        make,
        # timm's plain ResNets have torchvision's names
        model.torch_names.get("timm") or model.torch_names["torchvision"],
        call,
        weights=weights,
        checked=checked,
        tolerance=1e-4,
    )


FAMILIES = {
    "timm_lambda_resnet26t_logits": build,
    "timm_lambda_resnet26rpt_logits": build,
    "timm_lambda_resnet50ts_logits": build,
    "timm_logits": build,
}
