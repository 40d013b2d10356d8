"""Export: the file alone, in a new process, gives the same logits for any batch size."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.analysis import export

IMAGE = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)


def forward_of(weights):
    return lambda images: (
        images.reshape(images.shape[0], -1).astype(jnp.float32) @ jnp.asarray(weights) / 255
    )


def test_new_process_gives_equal_logits(tmp_path, weights):
    """With jax alone: neither this library nor its dependencies are imported there."""
    path = export.export_model(
        forward_of(weights), tmp_path / "new" / "model.stablehlo", inputs=[IMAGE]
    )
    assert [p.name for p in path.parent.iterdir()] == ["model.stablehlo"]
    images = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    script = (
        "import sys, numpy, jax.export\n"
        "exported = jax.export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))\n"
        "images = numpy.load(sys.argv[2])\n"
        "numpy.savez(sys.argv[3], three=exported.call(images), one=exported.call(images[:1]))\n"
        "assert exported.platforms == ('cpu', 'cuda', 'tpu') and 'lambdanet' not in sys.modules\n"
    )
    arguments = [str(path), str(tmp_path / "images.npy"), str(tmp_path / "out.npz")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    here = np.asarray(export.load_exported(path)(images))
    there = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(there["three"], here)
    np.testing.assert_allclose(there["one"], here[:1], rtol=1e-6)
    assert export.check_exported(path, forward_of(weights), images) < 1e-6


def test_check_refuses_other_weights(tmp_path, weights):
    path = export.export_model(
        forward_of(weights), tmp_path / "a", inputs=[IMAGE], platforms=("cpu",)
    )
    images = np.full((2, 4, 4, 3), 7, np.uint8)
    with pytest.raises(ValueError, match="reloaded outputs differ"):
        export.check_exported(path, forward_of(weights * 1.001), images)
    with pytest.raises(ValueError, match="reloaded outputs differ"):
        export.check_exported(path, forward_of(weights * np.nan), images)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="--mode=export"):
        export.load_exported(tmp_path / "none")
