"""Fine-tuning: learning rates by depth, what is frozen and thawed, and what a run says of it."""

import io
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from covering import part
from flax import nnx
from run_helpers import quick_compilation, saved_state
from small_backbones import FAMILIES

import models
import train
from configs import base, digits, finetune, photos
from lambdanet.config import validate
from lambdanet.interop import files
from lambdanet.tasks import classification
from lambdanet.training import advice, compiling, layer_groups, mesh, optimizer, programs, schedule
from lambdanet.training import state as state_lib
from lambdanet.training.packing import Packing
from models import create_model, pretrained

OPTIONS = dict(blocks=(1, 2), widths=(4, 4), num_classes=3, image_size=(8, 8), zero_init_last=False)


def build():
    return create_model("resnet_digits", **OPTIONS, rngs=nnx.Rngs(0))


def params_of(make):
    return state_lib.split_model(nnx.eval_shape(make))[1]


# --------------------------------------------------------------------------------------------------
# Depth
# --------------------------------------------------------------------------------------------------
def small(name):
    return lambda: create_model(name, **FAMILIES[name], num_classes=3, rngs=nnx.Rngs(0))


def dense(name):
    head = dict(name="fcn", channels=4)
    spec = dict(name=name, **FAMILIES[name])
    return lambda: create_model(
        "segmenter", backbone=spec, head=head, num_classes=3, rngs=nnx.Rngs(0)
    )


def finding(name):
    spec = dict(name=name, **FAMILIES[name])
    levels = dict(channels=4, first_stage=1, num_levels=4, num_convs=1)
    pictures = dict(in_channels=1, image_size=(22, 35))
    return lambda: create_model(
        "retinanet", backbone=spec, **levels, **pictures, num_classes=3, rngs=nnx.Rngs(0)
    )


@pytest.mark.parametrize("name", part(FAMILIES, ["resnet_digits", "pvt_digits", "lavit_digits"]))
@pytest.mark.parametrize("make", [small, dense, finding])
def test_every_family_has_a_stem_its_blocks_in_order_and_a_head(name, make):
    params = state_lib.flatten_names(params_of(make(name)))
    where = layer_groups.places(params)
    blocks = {
        tuple(map(int, m.groups()))
        for path in params
        if (m := re.fullmatch(r"(?:backbone/)?stages/(\d+)/blocks/(\d+)/.*", path))
    }
    head = len(blocks) + 1
    assert {depth for depth, _ in where.values()} == set(range(head + 1))
    for path, (depth, words) in where.items():
        inside = re.fullmatch(r"(?:backbone/)?stages/(\d+)/blocks/(\d+)/.*", path)
        if inside:
            stage, block = map(int, inside.groups())
            assert depth == 1 + sorted(blocks).index((stage, block))
            assert words == f"stage {stage + 1}, block {block + 1}"
        elif path.removeprefix("backbone/").startswith(("stem/", "stages/0/embed")):
            assert (depth, words) == (0, "stem")
        elif "stages/" not in path:
            assert (depth, words) == (head, "head"), path


def test_an_embedding_counts_to_the_block_before_and_a_norm_to_the_last():
    names = [
        *("stages/0/embed/kernel", "stages/0/blocks/0/a", "stages/0/blocks/1/a"),
        *("stages/0/norm/scale", "stages/1/embed/kernel", "stages/1/position_embedding"),
        *("stages/1/blocks/0/a", "stages/1/norm/scale", "norm/scale", "head/fc/kernel"),
    ]
    found = [depth for depth, _ in layer_groups.places(names).values()]
    assert found == [0, 1, 2, 2, 2, 2, 3, 3, 4, 4]


def test_factors_fall_towards_the_stem():
    factors = layer_groups.decay_factors(0.5, state_lib.flatten_names(params_of(build)))
    assert factors["head/fc/kernel"] == 1
    blocks = {
        (s, b): {f for n, f in factors.items() if n.startswith(f"stages/{s}/blocks/{b}/")}
        for s, b in ((0, 0), (1, 0), (1, 1))
    }
    assert blocks == {(0, 0): {0.125}, (1, 0): {0.25}, (1, 1): {0.5}}
    assert {f for n, f in factors.items() if n.startswith("stem/")} == {0.0625}


def test_updates_are_those_without_decay_times_the_factor_and_the_multiplier():
    params = jax.tree.map(lambda p: np.ones(p.shape, np.float32), params_of(build))
    grads = jax.tree.map(
        lambda p: 0.1 * np.cos(np.arange(p.size, dtype=np.float32).reshape(p.shape)), params
    )

    def updates(**values):
        optim = base.get_config().optim
        optim.update(values)
        tx = optimizer.make_optimizer(optim, optax.constant_schedule(0.1), params)
        run = jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params)[0])
        return state_lib.flatten_names(run(grads, params))

    plain = updates()
    scaled = updates(layer_decay=0.5, lr_multipliers=((r"stem/.*", 0.1),))
    factors = layer_groups.decay_factors(0.5, plain)
    for name, update in scaled.items():
        wanted = factors[name] * (0.1 if name.startswith("stem/") else 1)
        np.testing.assert_allclose(update, wanted * plain[name], rtol=1e-6)


def test_a_model_without_blocks_is_refused():
    optim = base.get_config().optim
    optim.layer_decay, optim.no_decay = 0.5, ()
    with pytest.raises(ValueError, match="model has none; set it to 1.0.*layer/kernel"):
        optimizer.check_rules(optim, {"layer": {"kernel": jnp.ones(3)}})


# --------------------------------------------------------------------------------------------------
# Frozen, then thawed
# --------------------------------------------------------------------------------------------------
THAW, STEPS = 2, 4


@pytest.fixture(scope="module")
def states():
    """The states after 0 to 4 steps, of which the backbone waits for two."""
    config = base.get_config()
    optim = config.optim
    optim.schedule, optim.warmup_epochs, optim.lr, optim.clip_norm = "cosine", 0.0, 0.01, 1.0
    optim.layer_decay = 0.5
    lr = schedule.make_schedule(optim, total_steps=STEPS, steps_per_epoch=1)
    held = programs.held_back(nnx.eval_shape(build), THAW)
    tx = optimizer.make_optimizer(optim, lr, *state_lib.abstract_weights(build), **held)
    devices = mesh.make_mesh(-1, 1, devices=jax.devices()[:1])
    init = state_lib.make_init(build, tx, ema=False)
    abstract = jax.eval_shape(init)
    shardings = mesh.state_shardings(abstract, devices, 2**30)
    packing = Packing(state_lib.with_shardings(abstract, shardings))
    own = dict(loss=classification.loss, mix=classification.mix, schedule=lr, mesh=devices)
    said = []
    with quick_compilation():
        step = programs.training_program(config, build, tx, packing, **own, **held, say=said.append)
        state = init()
        state = state.replace(stats=jax.tree.map(lambda s: s + 0.5, state.stats))
        found = [jax.device_get(state)]
        image = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
        batch = {"image": jnp.asarray(image), "label": jnp.arange(6) % 3}
        packed = packing.pack(state)
        for number in range(STEPS):
            packed, _ = step(number, packed, batch)
            found.append(jax.device_get(packing.unpack(packed)))
    return found


def moved(before, after):
    flat = state_lib.flatten_names(after)
    old = state_lib.flatten_names(before)
    return {name for name, value in old.items() if not np.array_equal(value, flat[name])}


@pytest.mark.exhaustive
def test_the_backbone_waits_with_its_statistics_while_the_head_learns(states):
    head = {"head/fc/kernel", "head/fc/bias"}
    for before, after in zip(states[:THAW], states[1 : THAW + 1], strict=True):
        assert moved(before.params, after.params) == head
        assert not moved(before.stats, after.stats)


@pytest.mark.exhaustive
def test_thawed_everything_learns(states):
    before, after = states[THAW : THAW + 2]
    assert moved(before.params, after.params) == set(state_lib.flatten_names(before.params))
    assert moved(before.stats, after.stats) == set(state_lib.flatten_names(before.stats))


def test_thawed_parameters_begin_with_moments_of_their_own_and_the_rate_of_the_step(states):
    """The first step of Adam is the rate in size, wherever the gradient is no rounding error."""
    optim = base.get_config().optim
    optim.schedule, optim.warmup_epochs, optim.lr = "cosine", 0.0, 0.01
    rate = schedule.make_schedule(optim, total_steps=STEPS, steps_per_epoch=1)(THAW)
    before, after = (state_lib.flatten_names(s.params) for s in states[THAW : THAW + 2])
    name = next(n for n in before if n.startswith("stages/1/blocks/1/") and "scale" in n)
    size = np.abs(after[name] - before[name])  # scales are not decayed
    np.testing.assert_allclose(np.median(size), 0.5 * rate, rtol=1e-3)


def test_the_position_in_the_wait_is_part_of_the_state(states):
    counts = [
        [int(leaf) for leaf in jax.tree.leaves(s.opt_state) if np.shape(leaf) == ()] for s in states
    ]
    assert all(number in found for number, found in enumerate(counts))


def test_what_is_inserted_or_new_does_not_wait():
    class Net:
        classifier, inserted = ("head/fc",), ("stages/0/blocks/0/context",)

    class Dense(Net):
        backbone_names, inserted = {}, ()

    (rule,), (dense_rule,) = (layer_groups.pretrained_rules(m()) for m in (Net, Dense))
    waits = {n: bool(re.fullmatch(rule, n)) for n in ("stem/kernel", "norm/scale", "head/fc/bias")}
    assert waits == {"stem/kernel": True, "norm/scale": True, "head/fc/bias": False}
    assert not re.fullmatch(rule, "stages/0/blocks/0/context/post/0/kernel")
    assert re.fullmatch(dense_rule, "backbone/stem/a") and not re.fullmatch(dense_rule, "head/a")


def test_a_wait_as_long_as_the_run_is_refused():
    optim = base.get_config().optim
    optim.frozen_epochs = 5.0
    lengths = dict(total_steps=50, steps_per_epoch=10.0)
    (text,) = schedule.length_problems(optim, **lengths, cut_short=False)
    assert "optim.frozen_epochs = 5: 50 steps, all of them" in text
    optim.frozen_epochs = 4.9
    assert not schedule.length_problems(optim, **lengths, cut_short=False)


@pytest.mark.exhaustive
def test_a_run_killed_around_the_thaw_goes_on_bit_for_bit(tmp_path):
    """Three runs from the same file: straight, stopped before the thaw, stopped behind it."""
    config = digits.get_config()
    config.data.data_dir, config.data.eval_split = str(tmp_path / "data"), ""
    config.data.test_split = config.train.keep_best = config.train.cache_dir = ""
    config.model.blocks, config.model.widths = (1, 1), (8, 8)
    config.optim.schedule, config.optim.warmup_epochs = "constant", 0.0
    config.train.batch_size, config.train.steps, config.train.report = 32, 6, False
    config.train.eval_every = config.train.save_every = 0.0
    make = lambda: create_model(  # noqa: E731
        config.model.name, num_classes=5, blocks=(1, 1), widths=(8, 8), rngs=nnx.Rngs(3)
    )
    _, params, stats = state_lib.split_model(make())
    flat = state_lib.flatten_names(params) | state_lib.flatten_names(stats)
    path = tmp_path / "weights.safetensors"
    meta = files.export_metadata({"name": config.model.name})
    files.save_safetensors(path, flat, meta)
    config.train.init_weights, config.train.init_head = str(path), "new"
    config.optim.layer_decay, config.optim.frozen_epochs = 0.7, 3 * 32 / 1077
    stream, found = io.StringIO(), {}
    with quick_compilation():
        for name, stops in {"straight": (6,), "before": (2, 6), "behind": (4, 6)}.items():
            for steps in stops:
                config.train.steps = steps
                train.run(config, tmp_path / name, stream=stream, devices=jax.devices()[:1])
            found[name] = saved_state(tmp_path / name, 6)
    for name in ("before", "behind"):
        jax.tree.map(np.testing.assert_array_equal, found["straight"], found[name])
    assert "until step 3" in stream.getvalue() and "head" in stream.getvalue()


# --------------------------------------------------------------------------------------------------
# What a run says
# --------------------------------------------------------------------------------------------------
def test_the_table_of_the_optimiser():
    optim = base.get_config().optim
    optim.layer_decay, optim.frozen = 0.5, (r"stem/.*",)
    params = params_of(build)
    factors = optimizer.rate_factors(optim, params)
    held = layer_groups.pretrained_rules(nnx.eval_shape(build))
    text = layer_groups.table(optim, params, factors, held=held, thaw=1234)
    lines = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    sizes = {}
    for name, leaf in state_lib.flatten_names(params).items():
        place = layer_groups.places(state_lib.flatten_names(params))[name][1]
        sizes[place] = sizes.get(place, 0) + int(np.prod(leaf.shape))
    assert lines[:2] == [
        ["adamw, lr 0.004, weight decay 0.05"],
        ["part", "parameters", "lr factor", "frozen"],
    ]
    assert lines[2:] == [
        ["stem", f"{sizes['stem']:,}", "0.0625", "always"],
        ["stage 1, block 1", f"{sizes['stage 1, block 1']:,}", "0.125", "until step 1,234"],
        ["stage 2, block 1", f"{sizes['stage 2, block 1']:,}", "0.25", "until step 1,234"],
        ["stage 2, block 2", f"{sizes['stage 2, block 2']:,}", "0.5", "until step 1,234"],
        ["head", f"{sizes['head']:,}", "1", "no"],
    ]
    optim.layer_decay, optim.frozen = 1.0, ()
    factors = optimizer.rate_factors(optim, params)
    short = layer_groups.table(optim, params, factors, held=held, thaw=2).splitlines()
    assert [re.split(r"  +", line.strip())[0] for line in short[2:]] == [
        "stem to stage 2, block 2",
        "head",
    ]


@pytest.mark.parametrize(
    ("momentum", "steps", "texts"),
    [
        (0.9999, 16_778, ["still 19%", "23,025 steps or more", "at most 0.9998 "]),
        (0.9999, 23_025, []),
        (0.99, 100, ["still 37%", "at most 0.9772 "]),
        (0.9, 5, []),  # a trial
    ],
)
def test_slow_running_statistics_are_warned_of(momentum, steps, texts):
    model = nnx.eval_shape(
        lambda: create_model("resnet_digits", **OPTIONS, norm_momentum=momentum, rngs=nnx.Rngs(0))
    )
    found = advice.norm_advice(model, steps)
    assert len(found) == bool(texts)
    for text in texts:
        assert f"momentum {momentum}" in found[0] and text in found[0]
    assert not advice.norm_advice(model, steps, frozen=(".*",))


@pytest.mark.parametrize("hardware", photos.HARDWARE)
def test_the_recipe_of_photos_is_not_warned_of(hardware):
    """With the momentum of ImageNet's recipes its networks were evaluated as good as untrained."""
    config = photos.get_config(hardware)
    model = nnx.eval_shape(
        lambda: models.create_from_config(config, num_classes=3, rngs=nnx.Rngs(0))
    )
    steps, _ = schedule.plan(config.train, steps_per_epoch=1)
    assert steps == config.train.min_steps
    assert not advice.norm_advice(model, steps)


def test_only_what_compiles_for_long_is_announced(monkeypatch):
    said = []
    with compiling.compiling("nothing", said.append):
        pass
    assert not said
    monkeypatch.setattr(compiling, "SILENT", 0.01)
    monkeypatch.setattr(compiling, "EVERY", 0.05)
    called = compiling.announced(lambda x: time.sleep(0.2) or x + 1, "the step", said.append)
    assert [called(1), called(2)] == [2, 3]
    assert said[0] == "compiling the step ..." and said[-1] == "compiled the step in 0 s"
    assert any(re.fullmatch(r"compiling the step \.\.\. 0 s", line) for line in said)
    assert sum(line.startswith("compiled") for line in said) == 1


# --------------------------------------------------------------------------------------------------
# Recipes
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arg", "task", "head"),
    [
        ("", "classification", "new"),
        ("swin_tiny", "classification", "new"),
        ("small_semantic_fpn,segmentation", "segmentation", "backbone"),
        ("small_retinanet,detection", "detection", "backbone"),
    ],
)
def test_the_recipe_of_each_task(arg, task, head):
    config = finetune.get_config(arg)
    assert (config.task, config.train.init_head) == (task, head)
    assert config.optim.layer_decay < 1 and config.optim.frozen_epochs > 0
    smoke = finetune.get_config(f"{arg},smoke")
    assert smoke.optim.frozen_epochs == 0 and smoke.train.init_head == "load"
    public = pretrained.TABLE.get(config.model.name)
    if task == "classification":
        assert config.train.init_weights == public.source and public.on_hub
        assert config.data.interpolation == public.interpolation
        config.train.init_weights = ""
    with pytest.raises(
        ValueError, match="2 problems\n.*init_head.*\n.*frozen_epochs holds"
    ) as caught:
        validate(config, base.get_config(), models.registry, check_paths=False)
    assert (
        str(caught.value).count("name some by --config.train.init_weights=SOURCE (a file, th") == 2
    )
    config.train.init_weights = "weights.safetensors"
    for whole in (config, smoke):
        validate(whole, base.get_config(), models.registry, check_paths=False)


@pytest.mark.parametrize(
    ("arg", "source"),
    [
        ("retinanet_resnet50_mmdet,detection", "hf:timm/resnet50.a1_in1k"),
        ("semantic_fpn_pvt_v2_b0,segmentation", "hf:timm/pvt_v2_b0.in1k"),
        ("small_retinanet,detection", ""),  # named as a public one, of another form
        ("upernet_swin_tiny,segmentation", ""),  # has norms that the public ones lack
    ],
)
def test_who_asks_for_weights_names_public_ones_that_fit(arg, source):
    config = finetune.get_config(arg)
    given = config, base.get_config(), models.registry
    with pytest.raises(ValueError, match="2 problems") as caught:
        validate(*given, check_paths=False, public=pretrained.for_backbone)
    named = f"hf:OWNER/NAME, such as {source} for its backbone)" if source else "hf:OWNER/NAME)"
    assert str(caught.value).count(named) == 2
    config.model.name = "no such"
    assert pretrained.for_backbone(config.model) == pretrained.for_backbone(None) == ""


NAMED = [name for name in models.list_models() if pretrained.for_backbone({"name": name})]


@pytest.mark.parametrize("name", part(NAMED, ["retinanet_resnet50_mmdet", "retinanet_pvt_v2_b0"]))
def test_public_weights_that_are_named_fit(name):
    own, public = (
        {
            path.removeprefix("backbone/"): leaf.shape
            for tree in state_lib.abstract_weights(
                lambda made=made: create_model(made, rngs=nnx.Rngs(0))
            )
            for path, leaf in state_lib.flatten_names(tree).items()
        }
        for made in (name, base.backbone_of(name))
    )
    behind = ("head/", "norm/")  # the backbone
    backbone = {path: shape for path, shape in public.items() if not path.startswith(behind)}
    assert backbone and backbone.items() <= own.items()


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("resnet5", "Did you mean 'resnet50'"),
        ("resnet50,segment", "allowed: classification, segmentation, detection"),
        ("resnet50,segmentation", "allowed: .*small_semantic_fpn"),
        ("small_retinanet", "allowed: "),
    ],
)
def test_recipes_that_do_not_exist(arg, message):
    with pytest.raises(ValueError, match=message):
        finetune.get_config(arg)
