"""Every recipe: its numbers hold together at full size, and its smoke version trains ten steps."""

import io

import jax
import numpy as np
import pytest
from flax import nnx

import models
import train
from configs import attention_zoo, base, cifar, cued_digits, digits, digits_semi, imagenet90, imagenet350
from lambdanet.config import validate
from lambdanet.training.metrics import read_records

RECIPES = {
    digits: list(digits.MODELS),
    cifar: list(cifar.ATTENTION),
    imagenet90: list(imagenet90.MODELS),
    imagenet350: list(imagenet350.ROWS),
    digits_semi: list(digits_semi.ROLES),
    cued_digits: ["none", "nonlocal", "lambda"],
    attention_zoo: ["digits,none", "digits,mhsa", "cued,se", "cued,interlaced"],
}
ALL = [(module, row) for module, rows in RECIPES.items() for row in rows]

# Every row of the 350-epoch table (rows with the same constants share a compiled program through the cache), and of the other
# recipes those with programs of their own; the remaining 90-epoch rows move the same blocks to other stages.
STEPPED = [
    (digits, "lambda"),
    (digits_semi, "student"),
    (cifar, "lambda"),
    (imagenet90, "llll"),
    (imagenet90, "cccc"),
    (cued_digits, "nonlocal"),
    *((imagenet350, row) for row in imagenet350.ROWS),
]


def name_of(case):
    return f"{case[0].__name__.rpartition('.')[2]}:{case[1]}"


@pytest.mark.parametrize("case", ALL, ids=name_of)
def test_every_row_is_valid_and_its_smoke_version_builds(case):
    module, row = case
    full, smoke = module.get_config(row), module.get_config(f"{row},smoke")

    def build():
        return nnx.eval_shape(lambda: models.create_from_config(smoke, num_classes=10, rngs=nnx.Rngs(0)))

    # Full-size models are built in tests/models; here it is the options that count.
    validate(full, base.get_config(), models.registry, check_paths=False)
    validate(smoke, base.get_config(), models.registry, build=build)
    assert full.data.source != "synthetic" and smoke.data.source == "synthetic"


@pytest.mark.parametrize("case", STEPPED, ids=name_of)
def test_smoke_runs_ten_steps(case, tmp_path):
    module, row = case
    config = module.get_config(f"{row},smoke")
    config.train.cache_dir = config.train.keep_best = config.data.eval_split = ""  # evaluation would be compiled too
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is all that this costs
    try:
        outcome = train.run(config, tmp_path, stream=io.StringIO(), devices=jax.devices()[:1])
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    losses = [r["loss"] for r in read_records(tmp_path) if r["split"] == "train"]
    assert outcome["step"] == 10 and len(losses) == 10 and np.isfinite(losses).all()


def test_the_papers_numbers():
    short, long = imagenet90.get_config("llll"), imagenet350.get_config("152@224")
    for config, epochs, decay in ((short, 90, 1e-4), (long, 350, 4e-5)):
        assert config.train.epochs == epochs and config.optim.weight_decay == decay
        assert config.optim.lr == pytest.approx(0.1 * 4096 / 256) and config.train.batch_size == 4096
        assert (config.optim.name, config.optim.momentum, config.optim.schedule) == ("sgd", 0.9, "cosine")
        assert (config.optim.warmup_epochs, config.train.label_smoothing, config.train.ema_decay) == (5.0, 0.1, 0.9999)
    assert long.data.rand_augment == (2, 15.0) and long.data.image_size == (224, 224)
    assert (long.model.name, long.model.dropout_rate, long.model.drop_path_rate) == ("lambda_resnet152", 0.3, 0.1)


@pytest.mark.parametrize("module", RECIPES, ids=lambda m: m.__name__)
def test_unknown_rows_list_the_known_ones(module):
    known = RECIPES[module][-1].split(",")[0]
    with pytest.raises(ValueError, match=f"'999'.*(allowed|Known): .*{known}"):
        module.get_config("999")
