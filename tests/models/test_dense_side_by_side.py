"""Dilated ResNets of torchvision and Swin of transformers, with random weights, give the maps that
ours give. Needs PyTorch; nothing is downloaded.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from lambdanet.interop import files
from lambdanet.interop.grids import grids_of
from lambdanet.training import state, weights

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed; requirements-dev.txt lists it"
)
from torch_helpers import randomise  # noqa: E402

SIZES = [(224, 224), (160, 256)]


def our_maps(build, path, images):
    """Maps of `features` with the weights of a file."""
    model = nnx.eval_shape(build)
    params, stats = weights.read_weights(path, model, *state.abstract_weights(build))
    _, evaluation = state.views(build)

    @jax.jit
    def run(params, stats, x):
        with jax.default_matmul_precision("highest"):
            return nnx.merge(evaluation, params, stats).features(x)

    return run(params, stats, jnp.moveaxis(jnp.asarray(images), 1, -1))


def compare(ours, theirs):
    assert len(ours) == len(theirs)
    for own, map_ in zip(ours, theirs, strict=True):
        expected = np.moveaxis(map_.numpy(), 1, -1)
        assert np.abs(expected).max() > 0.5
        np.testing.assert_allclose(own, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("replaced", "output_stride"), [((False, True, True), 8), ((False, False, True), 16)]
)
def test_dilated_resnets_are_torchvisions(replaced, output_stride, tmp_path):
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    reference = torchvision.models.resnet50(replace_stride_with_dilation=replaced)
    reference = randomise(reference)
    torch.save(reference.state_dict(), tmp_path / "reference.pth")
    build = functools.partial(
        lambda **o: models.create_model("resnet50", rngs=nnx.Rngs(0), **o),
        num_classes=0,
        output_stride=output_stride,
    )
    kept = []
    for stage in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
        stage.register_forward_hook(lambda module, inputs, output: kept.append(output))
    for size in (*SIZES, (75, 90)):
        images = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
        kept.clear()
        with torch.no_grad():
            reference(torch.from_numpy(images))
        ours = our_maps(build, tmp_path / "reference.pth", images)
        strides = [info["stride"] for info in nnx.eval_shape(build).feature_info]
        assert [-(-size[0] // s) for s in strides] == [map_.shape[2] for map_ in kept]
        compare(ours, kept)


@pytest.mark.parametrize("saved", ["file", "modules"])
def test_swin_backbones_are_those_of_transformers(saved, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from models.hierarchical.swin import windows

    stages = [f"stage{number}" for number in range(1, 5)]
    shape = dict(embed_dim=24, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=7)
    config = transformers.SwinConfig(**shape, image_size=224, out_features=stages)
    reference = randomise(transformers.SwinBackbone(config))
    if saved == "file":
        reference.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:
        path = tmp_path / "reference.pth"
        torch.save(reference.state_dict(), path)

    def build():
        return models.create_model(
            "swin_tiny",
            blocks=(2, 2, 2, 2),
            widths=(24, 48, 96, 192),
            num_heads=(1, 2, 4, 8),
            attention=(windows(7, fit=False),) * 4,
            num_classes=0,
            output_norm=True,
            rngs=nnx.Rngs(0),
        )

    assert {str(g) for g in grids_of(nnx.eval_shape(build)).values()}
    for size in (*SIZES, (75, 90)):
        images = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
        with torch.no_grad():
            maps = reference(torch.from_numpy(images)).feature_maps
        compare(our_maps(build, path, images), maps)


def test_swin_classifiers_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    shape = dict(embed_dim=24, depths=[2, 2], num_heads=[1, 2], window_size=7, image_size=56)
    reference = randomise(
        transformers.SwinForImageClassification(transformers.SwinConfig(**shape, num_labels=5))
    )
    reference.save_pretrained(tmp_path)

    def build():
        return models.create_model(
            "swin_tiny",
            blocks=(2, 2),
            widths=(24, 48),
            num_heads=(1, 2),
            mlp_ratios=(4, 4),
            attention=(models.hierarchical.swin.windows(7),) * 2,
            image_size=(56, 56),
            num_classes=5,
            rngs=nnx.Rngs(0),
        )

    path = tmp_path / "model.safetensors"
    abstract = state.abstract_weights(build)
    params, stats = weights.read_weights(path, nnx.eval_shape(build), *abstract)
    model = nnx.merge(state.views(build)[1], params, stats)
    images = np.random.default_rng(0).standard_normal((2, 3, 56, 56)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(images)).logits.numpy()
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda x: model(x))(jnp.moveaxis(jnp.asarray(images), 1, -1))
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert files.read_state(path)[0]
