"""Networks of timm with random weights, imported by the program, give the same logits. Needs
PyTorch and timm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from lambdanet.interop import files
from lambdanet.training import state, weights
from models import import_weights

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed; requirements-dev.txt lists it"
)
timm = pytest.importorskip("timm", reason="timm is not installed; requirements-dev.txt lists it")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("swin_tiny_patch4_window7_224", "swin_tiny"), ("pvt_v2_b1", "pvt_v2_b1")],
    ids=["swin", "pvt_v2"],
)
def test_imported_networks_give_the_same_logits(theirs, ours, tmp_path, capsys):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    reference = timm.create_model(theirs, pretrained=False).eval()
    with torch.no_grad():  # what starts as zeros and ones would hide a mistake
        for name, parameter in reference.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "relative_position_bias_table" in name:
                parameter.normal_(std=0.5)
    save_file(reference.state_dict(), tmp_path / "timm.safetensors")
    torch.save({"state_dict_ema": reference.state_dict(), "epoch": 1}, tmp_path / "wrapped.pth")
    plain, wrapped = (
        files.read_state(tmp_path / name)[0] for name in ("timm.safetensors", "wrapped.pth")
    )
    assert plain.keys() == wrapped.keys() and all(
        np.array_equal(array, wrapped[key]) for key, array in plain.items()
    )
    out = tmp_path / "ours.safetensors"
    error = import_weights.main(
        [str(tmp_path / "timm.safetensors"), "--model", ours, "--out", str(out)]
    )
    assert error is None, error
    assert "(names: timm)" in capsys.readouterr().out

    def build():
        return models.create_model(ours, rngs=nnx.Rngs(0))

    params, stats = weights.read_weights(out, nnx.eval_shape(build), *state.abstract_weights(build))
    _, evaluation = state.views(build)
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)

    def forward(params, stats, x):
        with jax.default_matmul_precision("highest"):
            return nnx.merge(evaluation, params, stats)(x)

    with torch.no_grad():
        expected = reference(torch.from_numpy(images)).numpy()
    logits = np.asarray(jax.jit(forward)(params, stats, jnp.moveaxis(images, 1, -1)))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
