"""Fine-tuning of a segmenter and of a detector, whole runs: a file's backbone waits for the heads,
then learns.
"""

import io
import re

import jax
import numpy as np
import pytest
from flax import nnx
from run_helpers import quick_compilation, saved_state

import train
from configs import base, finetune
from lambdanet.interop import files
from lambdanet.training.state import flatten_names, split_model
from models import create_model

THAW, STEPS = 2, 4


def weights_of(spec, path):
    """Writes a classifier on this backbone, with statistics of its own; returns its arrays."""
    options = dict(spec)
    name = options.pop("name")
    model = create_model(name, **options, num_classes=5, rngs=nnx.Rngs(3))
    _, params, stats = split_model(model)
    flat = flatten_names(params) | {n: s + 0.25 for n, s in flatten_names(stats).items()}
    files.save_safetensors(path, flat, files.export_metadata({"name": name}))
    return flat


@pytest.mark.exhaustive
@pytest.mark.parametrize("arg", ["small_semantic_fpn,segmentation", "small_mask_rcnn,detection"])
def test_the_backbone_of_a_file_waits_and_then_learns(arg, tmp_path):
    config = base.apply_smoke(finetune.get_config(arg))
    data, optim, run = config.data, config.optim, config.train
    path = tmp_path / "weights.safetensors"
    file = weights_of(config.model.backbone.to_dict(), path)
    data.eval_split = run.keep_best = run.cache_dir = ""
    epoch = data.synthetic_records / run.batch_size
    optim.frozen_epochs, optim.warmup_epochs = THAW / epoch, 0.0
    run.init_weights, run.steps, run.save_every, run.keep_last = str(path), STEPS, 1 / epoch, STEPS
    stream = io.StringIO()
    with quick_compilation():
        train.run(config, tmp_path / "run", stream=stream, devices=jax.devices()[:1])

    def arrays(step):
        found = saved_state(tmp_path / "run", step)
        return {
            name.partition("/")[2]: array
            for name, array in found.items()
            if name.startswith(("params/", "stats/"))
        }

    first, waited, learnt = (arrays(step) for step in (1, THAW, THAW + 1))
    backbone = {name for name in waited if name.startswith("backbone/")}
    assert {name.removeprefix("backbone/") for name in backbone} <= set(file)
    for name in backbone:
        np.testing.assert_array_equal(waited[name], file[name.removeprefix("backbone/")], name)
    moved = {name for name in waited if not np.array_equal(waited[name], learnt[name])}
    kernels = {name for name in waited if name.endswith("/kernel")}
    assert kernels <= moved and {name for name in backbone if name.endswith("/mean")} <= moved
    heads = kernels - backbone
    assert heads and all(not np.array_equal(first[name], waited[name]) for name in heads)
    table = stream.getvalue()
    assert re.search(rf"\n  stem +[\d,]+ +[\d.]+ +until step {THAW}\n", table)
    assert re.search(r"\n  head +[\d,]+ +1 +no\n", table)
