"""Models by name: presets, overrides, the smoke overrides on every model, configs, errors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

import models
from configs import base
from lambdanet import attention
from models.__main__ import main
from models.segmentation import Segmenter
from models.segmentation import registry as heads

ROOT = Path(__file__).resolve().parents[2]


def abstract(name, **overrides):
    return nnx.eval_shape(lambda: models.create_model(name, **overrides, rngs=nnx.Rngs(0)))


def placement(model):
    """1-based numbers of the attention blocks, per stage."""
    return [
        tuple(i + 1 for i, b in enumerate(stage.blocks) if b.attention is not None)
        for stage in model.stages
    ]


def test_names():
    assert models.list_models("lambda_resnet50_?l*") == [
        "lambda_resnet50_clll",
        "lambda_resnet50_llcc",
        "lambda_resnet50_lllc",
        "lambda_resnet50_llll",
        "lambda_resnet50_llll_u4",
    ]
    assert {"resnet50", "resnet_rs420_nose", "lambda_resnet26t", "lambda_resnet_digits"} <= set(
        models.list_models()
    )


def test_places_of_the_lambda_layers():
    last = tuple(range(1, 4))
    assert placement(abstract("lambda_resnet101")) == [(), (), (6, 12, 18), last]
    assert placement(abstract("lambda_resnet50_c4")) == [(), (), (1, 2, 3, 4, 5, 6), last]
    assert placement(abstract("lambda_resnet50ts")) == [(), (4,), (2, 4, 6), (2,)]
    assert placement(abstract("lambda_resnet50_lccc")) == [last, (), (), ()]
    squeeze = [
        [list(b.context) for b in stage.blocks] for stage in abstract("lambda_resnet50").stages
    ]
    assert squeeze == [[["standard"]] * 3, [["standard"]] * 4, [[]] * 6, [[]] * 3]


def test_other_depths_keep_the_preset_numbers_that_exist():
    assert placement(abstract("lambda_resnet101", blocks=(1, 1, 13, 2))) == [
        (),
        (),
        (6, 12),
        (1, 2),
    ]
    assert placement(abstract("lambda_resnet101", blocks=(1, 1, 2, 2))) == [(), (), (2,), (1, 2)]
    given = dict(blocks=(1, 1, 2, 2), attention_blocks=("all", (), (1,), ()))
    assert placement(abstract("lambda_resnet101", **given)) == [(1,), (), (1,), ()]
    with pytest.raises(
        ValueError, match=r"attention_blocks\[2\] is \(6, 12, 18\); allowed: .* from 1 to 2"
    ):
        abstract(
            "lambda_resnet101", blocks=(1, 1, 2, 2), attention_blocks=((), (), (6, 12, 18), ())
        )
    with pytest.raises(ValueError, match="3 stages"):
        abstract("lambda_resnet101", blocks=(1, 1, 2), widths=(8, 8, 8))
    with pytest.raises(ValueError, match=r"blocks is \[1, 1, 2, 2\]"):
        abstract("lambda_resnet101", blocks=[1, 1, 2, 2])


@pytest.mark.exhaustive
def test_smoke_overrides_run_every_model():
    seen = set()
    for name in models.list_models():
        factory = models.registry.lookup(name)[0]
        # Blocks and widths are a part's.
        if issubclass(factory, Segmenter) or hasattr(factory, "detect"):
            continue
        if hasattr(factory, "takes_clips"):  # tests/models/video
            continue
        config = base.get_config("smoke")
        config.model.name = name
        if name.startswith("cbam"):  # it reduces the channels to a sixteenth
            config.model.widths = (16, 16, 24, 32)
        _, preset = models.registry.lookup(name)
        if (
            "num_heads" in preset
        ):  # options per stage, so that the stages are as many as the preset has
            depth = len(preset["blocks"])
            config.model.blocks, config.model.widths = (
                config.model.blocks[:depth],
                config.model.widths[:depth],
            )
        kind = json.dumps({**preset, "blocks": None}, sort_keys=True, default=str)
        if kind in seen:
            continue
        seen.add(kind)
        model = nnx.eval_shape(
            lambda c=config: models.create_from_config(c, num_classes=10, rngs=nnx.Rngs(0))
        )
        view = nnx.view(
            model, deterministic=True, use_running_average=True, raise_if_not_found=False
        )
        graph, state = nnx.split(view)
        x = jax.ShapeDtypeStruct((2, 32, 32, 1), "float32")
        logits = jax.eval_shape(lambda s, x, g=graph: nnx.merge(g, s, copy=True)(x), state, x)
        assert logits.shape == (2, preset.get("num_classes", 10)), name
        if "lambda" in name:
            assert any(placement(model)), name
        if "context" in preset:
            assert any(len(block.context) for stage in model.stages for block in stage.blocks), name
    assert len(seen) > 25


def test_config_section_becomes_options():
    config = ConfigDict(
        dict(
            model=dict(
                name="lambda_resnet50",
                blocks=[1, 1, 2, 1],
                widths=[8, 8, 8, 8],
                attention=dict(name="lambda", key_depth=8, num_heads=2, scope=[3, 5]),
                attention_blocks=[[], [], [2], "all"],
                dropout_rate=0.1,
            ),
            data=dict(channels=1, image_size=(20, 24)),
        )
    )
    for section in (config, ConfigDict(json.loads(config.to_json()))):
        model = nnx.eval_shape(
            lambda c=section: models.create_from_config(c, num_classes=7, rngs=nnx.Rngs(0))
        )
        assert placement(model) == [(), (), (2,), (1,)]
        layer = model.stages[3].blocks[0].attention
        assert (layer.key_depth, layer.num_heads, layer.scope) == (8, 2, (3, 5))
        assert (model.in_channels, model.num_classes, model.head.dropout.rate) == (1, 7, 0.1)
    model = nnx.eval_shape(
        lambda: models.create_from_config(config, num_classes=7, in_channels=2, rngs=nnx.Rngs(0))
    )
    assert (model.in_channels, model.num_classes) == (2, 7)  # the task goes before config.data
    config.model.num_classes, config.model.in_channels = 3, 4
    model = nnx.eval_shape(
        lambda: models.create_from_config(config, num_classes=7, rngs=nnx.Rngs(0))
    )
    assert (model.in_channels, model.num_classes) == (4, 3)


def test_image_size_of_the_data_sizes_global_tables():
    config = base.get_config("smoke")
    config.model.name = "lambda_resnet26rpt_256"
    config.data.image_size = (64, 96)
    model = nnx.eval_shape(
        lambda: models.create_from_config(config, num_classes=10, rngs=nnx.Rngs(0))
    )
    assert model.stages[2].blocks[0].attention.size == (8, 12)


def test_tables_of_the_global_timm_network_have_the_published_sizes():
    stages = abstract("lambda_resnet26rpt_256").stages
    layers = [stages[2].blocks[1], stages[3].blocks[0], stages[3].blocks[1]]
    assert [b.attention.embedding.shape for b in layers] == [
        (31, 31, 1, 16),
        (31, 31, 1, 16),
        (15, 15, 1, 16),
    ]


def test_seed_decides_the_parameters():
    options = dict(
        blocks=(1,),
        widths=(4,),
        attention_blocks="all",
        attention=dict(name="lambda", num_heads=2, key_depth=2, scope=3),
    )
    a, b, c = (
        models.create_model("lambda_resnet_digits", **options, rngs=nnx.Rngs(seed))
        for seed in (0, 0, 1)
    )
    a, b, c = (
        [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(m, nnx.Param))] for m in (a, b, c)
    )
    assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
    drawn = [p for p in a if p.std() > 0]
    assert not any(np.array_equal(p, q) for p, q in zip(a, c, strict=True) if p.std() > 0)
    assert len({p.ravel()[:2].tobytes() for p in drawn}) == len(drawn)  # no key is used twice


def test_errors_name_the_nearest():
    with pytest.raises(
        ValueError, match="unknown model 'lambda_resnet5'. Did you mean 'lambda_resnet50'"
    ):
        abstract("lambda_resnet5")
    with pytest.raises(ValueError, match="no option 'width'. Did you mean 'widths'"):
        abstract("resnet50", width=(1, 2, 3, 4))
    config = ConfigDict(dict(model=dict(), data=dict(channels=1, image_size=(8, 8))))
    with pytest.raises(ValueError, match="config.model has no 'name'"):
        models.create_from_config(config, num_classes=2, rngs=nnx.Rngs(0))
    config.model.name = "resnet_digits"
    with pytest.raises(ValueError, match="no option 'num_clases'. Did you mean 'num_classes'"):
        models.create_from_config(config, num_clases=2, rngs=nnx.Rngs(0))


def test_describe_shows_presets_and_options():
    text = models.describe("lambda_resnet101")
    assert "preset blocks=(3, 4, 23, 3)" in text
    assert "share_embeddings: bool = False" in text and "Args:" in text


def test_options_are_checked_once_and_before_anything_is_built(monkeypatch):
    seen = []
    factory, _ = models.registry.lookup("resnet_digits")
    real = factory.option_problems
    monkeypatch.setattr(
        factory,
        "option_problems",
        staticmethod(lambda options: seen.append(options) or real(options)),
    )
    build = models.model_builder("resnet_digits")
    assert len(seen) == 1
    for _ in range(2):
        nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    assert len(seen) == 1
    with pytest.raises(ValueError, match="stem is 'x'.*pool is 'y'"):
        models.model_builder("resnet_digits", stem="x", pool="y")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet_digits", dict(blocks=(999, 2)), "allowed: 1000 in all, or less"),
        (
            "resnet_digits",
            dict(num_classes=10**11),
            "num_classes is 1.*; allowed: 10000000 or less",
        ),
        ("pvt_digits", dict(widths=(32, 10**9)), "widths is .*; allowed: 65536 or less"),
        ("pvt_digits", dict(image_size=(8, 10**7)), "image_size is .*; allowed: 65536 or less"),
        ("lavit_digits", dict(blocks=(10**9, 1)), "allowed: 1000 in all, or less"),
    ],
)
def test_sizes_have_upper_bounds(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.model_builder(name, **options)


@pytest.mark.parametrize("name", models.list_models("*_digits"))
def test_the_classifier_depends_on_the_classes_and_nothing_else_does(name):
    def shapes(classes):
        model = abstract(name, num_classes=classes)
        flat = nnx.to_flat_state(nnx.state(model))
        return {"/".join(map(str, path)): leaf.shape for path, leaf in flat}, model.classifier

    (three, (path,)), (four, _) = shapes(3), shapes(4)
    assert {n for n in three if three[n] != four[n]} == {f"{path}/kernel", f"{path}/bias"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none_*"], "no model matches 'none_\\*'; known: "),
        (["resnet5"], "no model matches 'resnet5'; .{,60}Did you mean 'resnet50'\\?$"),
        (["resnet_digits", "²"], "image side '²'; allowed: a number of pixels, at least 1"),
        (["resnet_digits", "0"], "image side '0'; allowed"),
        (["resnet_digits", "99999999"], "image side 99999999: image_size is .*allowed: 65536"),
    ],
)
def test_the_table_of_models_says_what_is_wrong(arguments, message):
    assert re.match(message, main(arguments))


def test_an_unknown_name_of_a_long_table_has_the_nearest_and_where_all_are():
    for name, near in (("resnet5", " Did you mean 'resnet50'?"), ("qqq", "")):
        count = len(models.registry.names())
        said = f"unknown model {name!r}.{near} `python -m models` lists all {count}"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            models.registry.lookup(name)
    known = "unknown attention 'lamda'. Did you mean 'lambda'.*Known: .*lambda.*window"
    with pytest.raises(ValueError, match=known):
        attention.registry.lookup("lamda")
    with pytest.raises(ValueError, match="unknown segmentation head 'fnc'. .*Known: .*upernet"):
        heads.lookup("fnc")


def test_the_table_of_models_refuses_more_arguments(capsys):
    with pytest.raises(SystemExit):
        main(["resnet_digits", "10", "20"])
    assert "unrecognized arguments: 20" in capsys.readouterr().err


def test_the_table_of_models_ends_with_its_reader():
    command = [sys.executable, "-m", "models", "*_digits"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "| model | parameters | GMACs | image |\n"
        process.stdout.close()
        assert not process.stderr.read()
        process.wait(60)
