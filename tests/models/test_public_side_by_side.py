"""Weights of timm's and torchvision's networks, random ones, served by a hub on this machine under
the names of the table, give the same logits. Needs PyTorch and timm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hub_helpers import serve, use

import models
from lambdanet.training.state import split_model
from models import pretrained

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed; requirements-dev.txt lists it"
)
timm = pytest.importorskip("timm", reason="timm is not installed; requirements-dev.txt lists it")
from torch_helpers import randomise  # noqa: E402

TIMM = [name for name, found in pretrained.TABLE.items() if found.source.startswith("hf:timm/")]
COMPARED = (
    *("lambda_resnet26t", "lambda_resnet26rpt_256", "lambda_resnet50ts"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet_rs50", "resnet_rs101"),
    *("se_resnet50", "swin_tiny", "swin_small", "pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2_li"),
)
"""Of each family the smaller ones; the larger have more blocks of the same kind."""


def theirs(name):
    """timm's name of a network, without and with its weights."""
    tagged = pretrained.TABLE[name].source.removeprefix("hf:timm/")
    return tagged.partition(".")[0], tagged


def logits_of(model, images):
    graphdef, *trees = split_model(
        nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    )

    @jax.jit
    def run(params, stats, x):
        with jax.default_matmul_precision("highest"):
            return nnx.merge(graphdef, params, stats)(x)

    return np.asarray(run(*trees, jnp.moveaxis(jnp.asarray(images), 1, -1)))


@pytest.mark.parametrize("name", COMPARED)
def test_logits_are_timms(name, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    reference = randomise(timm.create_model(theirs(name)[0], pretrained=False))
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    with serve() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        hub.add(pretrained.TABLE[name].source.removeprefix("hf:"), tmp_path / "model.safetensors")
        model = models.create_model(name, rngs=nnx.Rngs(0), pretrained=True)
    side = pretrained.TABLE[name].image_size[0]
    images = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(images)).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits_of(model, images), expected, atol=1e-4, rtol=0)
    # a second start, without the hub and told so
    use(hub, tmp_path / "cache", monkeypatch, offline=True)
    again = models.create_model(name, rngs=nnx.Rngs(0), pretrained=True)
    for first, second in zip(*(jax.tree.leaves(split_model(m)[1]) for m in (model, again)),
                             strict=True):  # fmt: skip
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", TIMM)
def test_the_tables_facts_are_timms(name):
    found, config = pretrained.TABLE[name], timm.get_pretrained_cfg(theirs(name)[1])
    assert f"hf:{config.hf_hub_id}" in (found.source, "hf:timm/")
    resolved = timm.data.resolve_data_config(
        pretrained_cfg=config.to_dict(), use_test_size=True, verbose=False
    )
    assert tuple(resolved["mean"]) == found.mean and tuple(resolved["std"]) == found.std
    assert resolved["input_size"][1:] == found.image_size
    assert resolved["crop_pct"] == found.crop and resolved["interpolation"] == found.interpolation
    assert resolved["crop_mode"] == "center"


def test_a_segmenter_of_the_hub_is_that_of_transformers(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    stages = [f"stage{number}" for number in range(1, 5)]
    config = transformers.UperNetConfig(
        backbone_config=transformers.SwinConfig(window_size=7, out_features=stages),
        num_labels=150,
        auxiliary_in_channels=384,
    )
    reference = randomise(transformers.UperNetForSemanticSegmentation(config))
    reference.save_pretrained(tmp_path / "saved")
    name = "upernet_swin_tiny"
    with serve() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        repository = pretrained.TABLE[name].source.removeprefix("hf:")
        hub.add(repository, *(tmp_path / "saved").iterdir())
        model = models.create_model(name, rngs=nnx.Rngs(0), pretrained=True)
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype(np.float32)
    with torch.no_grad():
        expected = np.moveaxis(reference(torch.from_numpy(images)).logits.numpy(), 1, -1)
    logits = logits_of(model, images)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("fcn_resnet50", "segmentation.FCN_ResNet50_Weights"),
        ("fcn_resnet101", "segmentation.FCN_ResNet101_Weights"),
        ("retinanet_resnet50_torchvision", "detection.RetinaNet_ResNet50_FPN_Weights"),
        ("faster_rcnn_resnet50_torchvision", "detection.FasterRCNN_ResNet50_FPN_Weights"),
        ("mask_rcnn_resnet50_torchvision", "detection.MaskRCNN_ResNet50_FPN_Weights"),
    ],
)
def test_the_tables_facts_are_torchvisions(name, weights):
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    package, _, kind = weights.partition(".")
    stated = getattr(getattr(torchvision.models, package), kind).DEFAULT
    (metrics,) = stated.meta["_metrics"].values()
    found, key = pretrained.TABLE[name], {"mean_iou": "miou", "box_ap": "box_map"}
    assert (found.source, 100 * found.value) == (
        stated.url,
        pytest.approx(metrics[key[found.metric]]),
    )
