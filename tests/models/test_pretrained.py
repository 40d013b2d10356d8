"""The table of public weights, `create_model(pretrained=...)`, and what is said of files of other
models and classes.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from hub_helpers import serve, use

import eval as program_of_eval
import models
from configs import base, imagenet_eval
from lambdanet import tasks
from lambdanet.config import validate
from lambdanet.interop.names import NameMappingError
from lambdanet.interop.reading import WeightsFileError
from lambdanet.training.state import flatten_names, split_model
from models import __main__ as program
from models import pretrained

SMALL = dict(blocks=(1, 1), widths=(8, 8))


def torch_resnet(blocks, widths, classes, *, dtype=np.float32, seed=0):
    """Weights of a ResNet of basic blocks by torchvision's names."""
    draw, made = np.random.default_rng(seed), {}

    def conv(name, norm, into, out, side):
        made[f"{name}.weight"] = draw.standard_normal((out, into, side, side)) / (3 * side)
        made[f"{norm}.weight"] = draw.uniform(0.5, 1.5, out)
        made[f"{norm}.bias"] = 0.1 * draw.standard_normal(out)
        made[f"{norm}.running_mean"] = 0.1 * draw.standard_normal(out)
        made[f"{norm}.running_var"] = draw.uniform(0.5, 1.5, out)

    conv("conv1", "bn1", 3, widths[0], 7)
    into = widths[0]
    for stage, (count, out) in enumerate(zip(blocks, widths, strict=True), 1):
        for number in range(count):
            at = f"layer{stage}.{number}"
            conv(f"{at}.conv1", f"{at}.bn1", into, out, 3)
            conv(f"{at}.conv2", f"{at}.bn2", out, out, 3)
            if number == 0 and stage > 1:
                conv(f"{at}.downsample.0", f"{at}.downsample.1", into, out, 1)
            into = out
    made["fc.weight"] = draw.standard_normal((classes, into))
    made["fc.bias"] = draw.standard_normal(classes)
    return {name: array.astype(dtype) for name, array in made.items()}


@pytest.fixture
def small_file(tmp_path):
    path = tmp_path / "small" / "model.safetensors"
    path.parent.mkdir()
    safetensors.numpy.save_file(torch_resnet(**SMALL, classes=5), path)
    return path


def small(classes=5, **options):
    return models.create_model("resnet18", rngs=nnx.Rngs(1), num_classes=classes, **SMALL,
                               **options)  # fmt: skip


# ---- The table -----------------------------------------------------------------------------------


def test_the_table_holds_together():
    for name, found in pretrained.TABLE.items():
        assert name in models.list_models(), name
        assert re.fullmatch(r"hf:[\w.-]+/[\w.-]+|https://[\w./-]+", found.source), name
        assert (found.value is None) == (not found.cited), name
        assert found.value is None or 0.2 < found.value < 0.95, name
        assert any(found.metric in task.METRICS for task in tasks.TASKS.values()), name
    sources = [found.source for found in pretrained.TABLE.values()]
    assert len(sources) == len(set(sources))
    assert pretrained.preprocessing("resnet50") == dict(
        image_size=(288, 288), channels=3, mean=pretrained.MEAN, std=pretrained.STD, eval_crop=1.0,
        eval_keep_aspect=True, interpolation="bicubic",
    )  # fmt: skip


@pytest.mark.exhaustive
def test_every_model_of_the_table_reads_the_names_of_pytorch():
    assert [name for name in pretrained.TABLE if not models.closest._sizes(name, True)[1]] == []


@pytest.mark.parametrize("name", ["resnet_rs50", "pvt_v2_b2_li", "lambda_resnet26rpt_256"])
def test_the_recipe_of_evaluation_has_the_tables_values(name):
    config = imagenet_eval.get_config(name)
    validate(config, base.get_config(), models.registry, check_paths=False)
    for key, value in pretrained.preprocessing(name).items():
        assert config.data[key] == value, key
    assert config.data.eval_resize_first and not config.data.exif_orientation
    assert config.train.init_weights == pretrained.TABLE[name].source
    with pytest.raises(ValueError, match="'resnet_rs5'; allowed: .*Did you mean 'resnet_rs5"):
        imagenet_eval.get_config("resnet_rs5")


def test_the_recipe_says_where_weights_are_that_are_not_on_the_hub():
    with pytest.raises(WeightsFileError, match="https://.*/pvt_tiny.pth is an address.*Download"):
        program_of_eval.load_subject(imagenet_eval.get_config("pvt_tiny"), needs_data=False)


def test_models_without_public_weights_and_weights_without_a_hub():
    with pytest.raises(ValueError, match="no public weights are known of model 'cgnl_resnet50'"):
        pretrained.lookup("cgnl_resnet50")
    with pytest.raises(ValueError, match="unknown model 'resnet5'"):
        models.create_model("resnet5", rngs=nnx.Rngs(0), pretrained=True)
    elsewhere = [n for n, found in pretrained.TABLE.items() if not found.on_hub]
    with pytest.raises(ValueError, match="not on the hub; fetch https://.* name the file"):
        pretrained.source_of(elsewhere[0])


def test_the_table_is_printed(capsys):
    assert program.main(["--pretrained", "swin_*"]) is None
    header, rule, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("| model | weights |") and rule.count("|") == header.count("|")
    assert [row.split(" | ")[0] for row in rows] == ["| swin_tiny", "| swin_small", "| swin_base"]
    assert "hf:timm/swin_tiny_patch4_window7_224.ms_in1k" in rows[0] and "81.376 %" in rows[0]
    assert "not with --pretrained" in program.main(["--pretrained", "*", "64"])


# ---- create_model --------------------------------------------------------------------------------


def test_weights_of_the_hub_by_name(small_file, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)), jnp.float32)

    @jax.jit
    def run(params, stats):
        return nnx.merge(graphdef, params, stats)(images)

    def logits(model):
        return run(*split_model(model)[1:])

    views = dict(deterministic=True, use_running_average=True, raise_if_not_found=False)
    graphdef = split_model(nnx.view(nnx.eval_shape(small), **views))[0]
    with serve() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        hub.add("timm/resnet18.a1_in1k", small_file)
        expected = logits(small(pretrained=small_file))
        np.testing.assert_array_equal(logits(small(pretrained=True)), expected)
    # without the hub, from the cache
    np.testing.assert_array_equal(logits(small(pretrained=True)), expected)
    assert not np.allclose(logits(small()), expected)


def test_other_classes_name_what_takes_them(small_file):
    with pytest.raises(NameMappingError) as caught:
        small(7, pretrained=small_file)
    said = str(caught.value)
    assert "fc.weight (5, 8) -> head/fc/kernel: gives (8, 5), the model has (8, 7)" in said
    assert "fits with --config.train.init_head=new" in said and "pretrained_head='new'" in said
    mixed, fresh = small(7, pretrained=small_file, pretrained_head="new"), small(7)
    whole = small(pretrained=small_file)
    mixed, fresh, whole = (flatten_names(split_model(model)[1]) for model in (mixed, fresh, whole))
    for name, array in mixed.items():
        np.testing.assert_array_equal(array, (fresh if "head" in name else whole)[name])
    with pytest.raises(ValueError, match="pretrained_head='none'; allowed: load, new"):
        small(pretrained=small_file, pretrained_head="none")


def test_a_file_of_another_model_names_the_closest(tmp_path):
    path = tmp_path / "resnet18.safetensors"
    safetensors.numpy.save_file(
        torch_resnet((2, 2, 2, 2), (64, 128, 256, 512), 1000, dtype=np.float16), path
    )
    with pytest.raises(NameMappingError) as caught:
        models.create_model("resnet34", rngs=nnx.Rngs(0), pretrained=path)
    said = str(caught.value)
    assert "80 missing" in said and "stages/0/blocks/2/conv1/conv/kernel" in said
    assert "the closest model is 'resnet18': all 102 arrays" in said
