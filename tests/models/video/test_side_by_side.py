"""C2D and I3D of pytorchvideo 0.1.5 with random weights, imported by the program, give the same
logits. Needs PyTorch and pytorchvideo.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from lambdanet.training import state, weights
from models import import_weights

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
hub = pytest.importorskip("pytorchvideo.models.hub", reason="pytorchvideo is not installed")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("c2d_r50", "c2d_resnet50_8x8"),
        ("i3d_r50", "i3d_resnet50_8x8"),
        ("slow_r50", "slow_resnet50"),
    ],
)
def test_imported_networks_give_the_same_logits(theirs, ours, tmp_path, capsys):
    torch.manual_seed(0)
    # Its head has a window; the frames are small, and so is the window.
    pool = dict(head_pool_kernel_size=(8 if theirs == "slow_r50" else 4, 2, 2))
    reference = (
        hub.slow_r50(False) if theirs == "slow_r50" else getattr(hub, theirs)(False, **pool)
    ).eval()
    if theirs == "slow_r50":  # which takes no such option
        reference.blocks[-1].pool = torch.nn.AvgPool3d(pool["head_pool_kernel_size"], stride=1)
    with torch.no_grad():  # what starts as zeros and ones would hide a mistake
        for name, tensor in (*reference.named_parameters(), *reference.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("norm_c.weight"):  # else the maps grow from block to block
                tensor.uniform_(0.1, 0.3)
            elif name.endswith("proj.weight"):
                tensor.normal_(std=0.05)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    source, out = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save({"model_state": reference.state_dict()}, source)
    error = import_weights.main([str(source), "--model", ours, "--out", str(out)])
    assert error is None, error
    assert "(names: pytorchvideo)" in capsys.readouterr().out

    def build():
        return models.create_model(ours, rngs=nnx.Rngs(0))

    params, stats = weights.read_weights(out, nnx.eval_shape(build), *state.abstract_weights(build))
    _, evaluation = state.views(build)
    clips = np.random.default_rng(0).standard_normal((1, 3, 8, 64, 64)).astype(np.float32)

    def forward(params, stats, x):
        with jax.default_matmul_precision("highest"):
            return nnx.merge(evaluation, params, stats)(x)

    with torch.no_grad():
        expected = reference(torch.from_numpy(clips)).numpy()
    logits = np.asarray(jax.jit(forward)(params, stats, jnp.moveaxis(clips, 1, -1)))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
