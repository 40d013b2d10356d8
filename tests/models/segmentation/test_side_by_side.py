"""torchvision's FCN and UPerNet of transformers, with random weights, give the logits that ours
give. Needs PyTorch; nothing is downloaded.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from lambdanet.training import state, weights
from models.hierarchical.swin import windows

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed; requirements-dev.txt lists it"
)
from torch_helpers import randomise  # noqa: E402

SIZES = [(224, 224), (160, 256)]


def loaded(build, path):
    """A function of images: logits of every pixel, and what `outputs` has."""
    params, stats = weights.read_weights(
        path, nnx.eval_shape(build), *state.abstract_weights(build)
    )
    _, evaluation = state.views(build)

    @jax.jit
    def run(images):
        with jax.default_matmul_precision("highest"):
            model = nnx.merge(evaluation, params, stats)
            return model(images), model.outputs(images)

    return lambda images: run(jnp.moveaxis(jnp.asarray(images), 1, -1))


def images_of(size, batch=1):
    draw = np.random.default_rng(0)
    return draw.standard_normal((batch, 3, *size)).astype(np.float32)


def compare(ours, theirs, least=0.05):
    expected = np.moveaxis(theirs.numpy(), 1, -1)
    assert np.abs(expected).max() > least
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_fcn_resnet50_is_torchvisions(tmp_path):
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    reference = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    reference = randomise(reference)
    torch.save(reference.state_dict(), tmp_path / "reference.pth")
    build = functools.partial(lambda: models.create_model("fcn_resnet50", rngs=nnx.Rngs(0)))
    run = loaded(build, tmp_path / "reference.pth")
    for size in SIZES:
        images = images_of(size)
        with torch.no_grad():
            theirs = reference(torch.from_numpy(images))
        logits, outputs = run(images)
        compare(logits, theirs["out"])
        with torch.no_grad():  # theirs are resized, ours come as the head has them
            low = reference.aux_classifier(reference.backbone(torch.from_numpy(images))["aux"])
        compare(outputs["auxiliary"], low)


@pytest.mark.parametrize("saved", ["file", "modules"])
def test_upernet_is_that_of_transformers(saved, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    backbone = transformers.SwinConfig(
        embed_dim=24,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        window_size=7,
        out_features=[f"stage{number}" for number in range(1, 5)],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=32,
        num_labels=9,
        auxiliary_in_channels=96,
        auxiliary_channels=16,
    )
    reference = randomise(transformers.UperNetForSemanticSegmentation(config))
    if saved == "file":
        reference.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:
        path = tmp_path / "reference.pth"
        torch.save(reference.state_dict(), path)

    def build():
        return models.create_model(
            "upernet_swin_tiny",
            backbone=dict(
                name="swin_tiny",
                blocks=(2, 2, 2, 2),
                widths=(24, 48, 96, 192),
                num_heads=(1, 2, 4, 8),
                attention=(windows(7, fit=False),) * 4,
                output_norm=True,
            ),
            head=dict(name="upernet", channels=32),
            auxiliary=dict(name="fcn", stage=3, channels=16),
            num_classes=9,
            rngs=nnx.Rngs(0),
        )

    run = loaded(build, path)
    for size in SIZES:
        images = images_of(size)
        with torch.no_grad():
            theirs = reference(torch.from_numpy(images)).logits
        compare(run(images)[0], theirs, least=0.01)
