"""Every recipe: its numbers hold together at full size, and its smoke version trains ten steps."""

import io

import jax
import numpy as np
import pytest
from flax import nnx

import models
import train
from configs import (
    ade20k,
    attention_zoo,
    base,
    cifar,
    cityscapes,
    coco,
    cued_digits,
    digit_scenes,
    digits,
    digits_semi,
    imagenet90,
    imagenet300,
    imagenet350,
    imagenet_eval,
    kinetics,
    moving_digits,
    own_clips,
    own_masks,
    own_objects,
    own_videos,
    photos,
    study,
)
from lambdanet.config import validate
from lambdanet.data import geometry
from lambdanet.training.metrics import read_records
from lambdanet.training.optimizer import check_rules, match_mask
from lambdanet.training.schedule import make_schedule
from lambdanet.training.state import flatten_names, split_model

RECIPES = {
    digits: list(digits.MODELS),
    cifar: list(cifar.ATTENTION),
    imagenet90: list(imagenet90.MODELS),
    imagenet350: list(imagenet350.ROWS),
    imagenet_eval: ["resnet50", "swin_tiny"],
    imagenet300: [
        *(
            "pvt_tiny",
            "slide_pvt_medium",
            "pvt_v2_b2_li",
            "slide_pvt_v2_b1",
            "swin_tiny",
            "slide_swin_base",
            "cswin_base",
        ),
        *("slide_cswin_tiny", "nat_mini", "slide_nat_small", "lavit_base", "lavit_tiny_paper"),
    ],
    digits_semi: list(digits_semi.ROLES),
    cued_digits: ["none", "nonlocal", "lambda"],
    digit_scenes: [
        f"{task},{name}" for task, known in digit_scenes.TASKS.items() for name in known
    ],
    moving_digits: [
        *(f"clip,{block}" for block in moving_digits.BLOCKS),
        "frame",
        "reader",
        *(f"propagate,{name}" for name in moving_digits.PROPAGATIONS),
        *(f"detect,{name}" for name in moving_digits.PROPAGATIONS),
    ],
    own_videos: list(own_videos.PROPAGATIONS),
    own_clips: ["", "i3d_resnet50_8x8"],
    kinetics: [
        *("i3d_resnet50", "nl5_i3d_resnet50", "nl10_c2d_resnet50", "cgnl5_c2d_resnet101"),
        *("slow_resnet50", "a2_c2d_resnet50_8x8"),
    ],
    coco: ["mask_rcnn,lambda_resnet50", "retinanet,swin_tiny,3x", "mask_rcnn,pvt_v2_b2"],
    own_objects: ["small_mask_rcnn", ""],
    ade20k: ["upernet_swin_tiny", "semantic_fpn_pvt_small", "isanet_resnet50"],
    cityscapes: ["ccnet_resnet101", "danet_resnet101", "ocnet_base_resnet101"],
    own_masks: ["", "upernet_swin_tiny"],
    photos: ["", *photos.HARDWARE],
    attention_zoo: ["digits,none", "digits,mhsa", "cued,se", "cued,interlaced"],
    study: ["none", "swin"],
}
ALL = [(module, row) for module, rows in RECIPES.items() for row in rows]

# Recipes with programs of their own. The rows of the 350-epoch table differ in rates alone, the
# 90-epoch rows in the stages of the same blocks. Of the hierarchical networks one, since each takes
# long to compile: the others train in tests/models/test_matrix.py.
STEPPED = [
    (digits, "lambda"),
    (digits_semi, "student"),
    (cifar, "lambda"),
    (imagenet90, "llll"),
    (imagenet90, "cccc"),
    (cued_digits, "nonlocal"),
    (imagenet350, "50@128"),
    (imagenet350, "420@320"),
    (imagenet300, "slide_swin_tiny"),
    (ade20k, "semantic_fpn_pvt_small"),
    (cityscapes, "ccnet_resnet101"),
    (digit_scenes, "detect"),
    (moving_digits, "clip"),
    (moving_digits, "propagate,flow_guided_aggregation"),
    (moving_digits, "detect,neighborhood_propagation"),
    (own_videos, "deep_feature_flow"),
    (kinetics, "nl5_i3d_resnet50"),
    (coco, "mask_rcnn,lambda_resnet50"),
]


def name_of(value):
    return value if isinstance(value, str) else value.__name__.rpartition(".")[2]


@pytest.mark.parametrize(("module", "row"), ALL, ids=name_of)
def test_every_row_is_valid(module, row):
    full, smoke = module.get_config(row), module.get_config(f"{row},smoke")
    # Full-size models are built in tests/models; here it is the options that count.
    for config in (full, smoke):
        validate(config, base.get_config(), models.registry, check_paths=False)
    assert full.data.source != "synthetic" and smoke.data.source == "synthetic"


@pytest.mark.exhaustive
@pytest.mark.parametrize(("module", "row"), ALL, ids=name_of)
def test_the_smoke_version_of_every_row_builds(module, row):
    smoke = module.get_config(f"{row},smoke")

    def build():
        return nnx.eval_shape(
            lambda: models.create_from_config(smoke, num_classes=10, rngs=nnx.Rngs(0))
        )

    validate(smoke, base.get_config(), models.registry, build=build)


# Recipes train in `make exhaustive`; the suite has whole runs in tests/training/test_*_runs.py and
# test_resume.py.
@pytest.mark.exhaustive
@pytest.mark.parametrize(("module", "row"), STEPPED, ids=name_of)
def test_smoke_runs_ten_steps(module, row, tmp_path):
    config = module.get_config(f"{row},smoke")
    config.train.cache_dir = config.train.keep_best = config.data.eval_split = (
        ""  # evaluation would be compiled too
    )
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
        assert (
            config.optim.lr == pytest.approx(0.1 * 4096 / 256) and config.train.batch_size == 4096
        )
        assert (config.optim.name, config.optim.momentum, config.optim.schedule) == (
            "sgd",
            0.9,
            "cosine",
        )
        assert (
            config.optim.warmup_epochs,
            config.classification.label_smoothing,
            config.train.ema_decay,
        ) == (5.0, 0.1, 0.9999)
    assert long.data.rand_augment == (2, 15.0) and long.data.image_size == (224, 224)
    assert (long.model.name, long.model.dropout_rate, long.model.drop_path_rate) == (
        "lambda_resnet152",
        0.3,
        0.1,
    )


# preset: frames, step between them, batch, steps; lr at the start, after two fifths, at the end
KINETICS = {
    "c2d_resnet50": (32, 2, 64, 400_000, 0.01, 0.001, 0.0001),
    "nl5_i3d_resnet101": (32, 2, 64, 400_000, 0.01, 0.001, 0.0001),
    "nl5_i3d_resnet50_8x8": (8, 8, 64, 400_000, 0.01, 0.001, 0.0001),
    "a2_c2d_resnet50_8x8": (8, 8, 512, 32_000, 0.04, 0.04, 0.0004),
    "slow_resnet50": (8, 8, 64, 735_000, 0.01, 0.0655, 0.0),
}


@pytest.mark.parametrize("name", KINETICS)
def test_the_numbers_of_kinetics(name):
    frames, stride, batch, steps, *rates = KINETICS[name]
    config = kinetics.get_config(name)
    assert (config.clips.frames, config.clips.frame_stride) == (frames, stride)
    optim, train = config.optim, config.train
    assert (optim.name, optim.momentum, optim.nesterov, optim.weight_decay, train.batch_size) == (
        *("sgd", 0.9, True, 1e-4),
        batch,
    )
    steps_per_epoch = 240_000 / batch
    assert round(train.epochs * steps_per_epoch) == steps
    lr = make_schedule(optim, total_steps=steps, steps_per_epoch=steps_per_epoch)
    found = [lr(step) for step in (0, 2 * steps // 5, steps - 1)]
    np.testing.assert_allclose(found, rates, rtol=1e-3, atol=1e-8)
    rng, sizes = np.random.default_rng(0), []
    for _ in range(200):  # (width, height) of the part of a video that becomes 224 x 224
        left, top, right, bottom = geometry.draw((340, 320), config.data, rng).box
        sizes += [right - left, bottom - top]
    assert 224 * 320 / 320 - 1 <= min(sizes) < 230 and 274 < max(sizes) <= 224 * 320 / 256 + 1


# model: batch, lr after the warm-up, at its beginning, at the end; epochs of warm-up, in all; clip,
# weight decay, averaging
HIERARCHICAL = {
    "pvt_small": (1024, 1e-3, 1e-6, 1e-5, 5, 310, 0.0, 0.05, 0.0),
    "slide_pvt_medium": (1024, 1e-3, 1e-6, 1e-5, 5, 310, 1.0, 0.05, 0.0),
    "pvt_v2_b2": (1024, 1e-3, 1e-6, 1e-5, 5, 310, 0.0, 0.05, 0.0),
    "pvt_v2_b5": (1024, 1e-3, 1e-6, 1e-5, 5, 310, 1.0, 0.05, 0.0),
    "slide_swin_small": (1024, 1e-3, 1e-6, 1e-5, 20, 300, 5.0, 0.05, 0.0),
    "slide_swin_base": (512, 5e-4, 5e-7, 5e-6, 20, 300, 5.0, 0.05, 0.0),
    "cswin_small": (2048, 2e-3, 1e-6, 1e-5, 20, 300, 0.0, 0.05, 0.99984),
    "slide_cswin_base": (1024, 1e-3, 1e-6, 1e-5, 20, 300, 0.0, 0.1, 0.99992),
    "nat_base": (1024, 1e-3, 1e-6, 5e-6, 20, 310, 5.0, 0.05, 0.0),
    "lavit_small": (1024, 1e-3, 1e-6, 1e-5, 5, 300, 0.0, 0.05, 0.0),
}


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_the_numbers_of_the_hierarchical_families(name):
    batch, peak, first, last, warmup, epochs, clip, decay, averaging = HIERARCHICAL[name]
    config = imagenet300.get_config(name)
    assert (
        config.model.name == name
        and config.train.batch_size == batch
        and config.train.epochs == epochs
    )
    optim, train = config.optim, config.train
    assert (optim.clip_norm, optim.weight_decay, train.ema_decay, train.ema_warmup) == (
        clip,
        decay,
        averaging,
        False,
    )
    lr = make_schedule(optim, total_steps=10 * epochs, steps_per_epoch=10)
    past = [last + (peak - last) * (1 + np.cos(np.pi * epoch / 300)) / 2 for epoch in (warmup, 150)]
    steps = (0, 5 * warmup, 10 * warmup, 1500, 3000, 10 * epochs - 1)
    # without a cool-down the last step stands a tenth of an epoch before the end of the cosine
    expected = (first, (first + peak) / 2, *past, last, last)
    np.testing.assert_allclose([lr(t) for t in steps], expected, rtol=1e-4)
    assert len(train.auxiliary_losses) == 2 * name.startswith("lavit")
    assert (config.data.eval_keep_aspect, config.data.interpolation) == (
        not name.startswith("slide_swin"),
        "random" if name.startswith("nat") else "bicubic",
    )


def test_every_hierarchical_row_is_valid():
    assert len(imagenet300.MODELS) == len(set(imagenet300.MODELS)) == 47
    for name in imagenet300.MODELS:
        validate(
            imagenet300.get_config(name), base.get_config(), models.registry, check_paths=False
        )


@pytest.mark.parametrize(
    "name", ["slide_pvt_tiny", "slide_cswin_tiny", "slide_nat_small", "lavit_tiny"]
)
def test_weight_decay_spares_all_but_weights(name):
    config = imagenet300.get_config(f"{name},smoke")
    model = nnx.eval_shape(
        lambda: models.create_from_config(config, num_classes=10, rngs=nnx.Rngs(0))
    )
    params = split_model(model)[1]
    check_rules(config.optim, params)
    spared = flatten_names(match_mask(config.optim.no_decay, params))
    for path, leaf in flatten_names(params).items():
        weight = (
            len(leaf.shape) > 1
            and path.endswith("kernel")
            and "theta" not in path
            and "psi" not in path
        )
        table = path.endswith("position_embedding") or path.endswith("class_position")
        assert spared[path] != (weight or (table and not name.startswith("lavit"))), path


@pytest.mark.parametrize("module", RECIPES, ids=lambda m: m.__name__)
def test_unknown_rows_list_the_known_ones(module):
    known = RECIPES[module][-1].split(",")[0]
    with pytest.raises(ValueError, match=f"'999'.*(allowed|Known): .*{known}"):
        module.get_config("999")


def test_rules_hold_where_a_recipe_changes_its_model():
    changes = {
        "pvt_tiny": dict(pool="mean", attention=("neighborhood", "neighborhood", "mhsa", "mhsa")),
        "lavit_tiny": dict(transform="reuse", position_embedding=False),
    }
    for name, change in changes.items():
        config = imagenet300.get_config(name)
        model = nnx.eval_shape(
            lambda name=name, change=change: models.create_model(name, **change, rngs=nnx.Rngs(0))
        )
        check_rules(config.optim, split_model(model)[1])
