"""Weights files: safetensors and npz round trips, one loader that tells them by content."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import lambdanet
from lambdanet.interop import files
from lambdanet.interop.names import LINEAR, NameMappingError, prefixed

RULES = {"torch": (*prefixed(LINEAR, r"body\.", "body"), *prefixed(LINEAR, r"fc\.", "head/fc"))}
KERNEL = np.arange(6, dtype=np.float32).reshape(3, 2)
OURS = {
    "body/kernel": KERNEL,
    "head/fc/kernel": np.ones((2, 5), np.float32),
    "head/fc/bias": np.arange(5, dtype=np.float32),
}
SHAPES = {path: array.shape for path, array in OURS.items()}
TORCH = {
    "body.weight": KERNEL.T,
    "fc.weight": np.ones((5, 2), np.float32),
    "fc.bias": np.arange(5, dtype=np.float32),
}
MODEL = {
    "name": "lambda_resnet_digits",
    "blocks": [1, 2],
    "attention": {"name": "lambda", "scope": 7},
}


def load_file(path, tables, shapes, **options):
    """Reads a file for a model with arrays of these shapes."""
    return files.fit_state(files.read_state(path), str(path), tables, shapes, **options)


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_export_round_trip(tmp_path, kind):
    path = tmp_path / f"model.{kind}"
    save, load = {
        "safetensors": (files.save_safetensors, files.load_safetensors),
        "npz": (files.save_npz, files.load_npz),
    }[kind]
    save(path, OURS, files.export_metadata(MODEL))
    metadata = files.read_metadata(path)
    assert metadata["layout"] == "lambdanet" and metadata["version"] == lambdanet.__version__
    assert files.model_of(metadata) == MODEL
    for loaded in (load(path), load_file(path, {}, SHAPES)):
        assert set(loaded) == set(OURS)
        for name, array in OURS.items():
            np.testing.assert_array_equal(loaded[name], array)
    assert os.listdir(tmp_path) == [path.name]  # no temporary file is left


def test_views_and_types_survive_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {
        "t": KERNEL.T,
        "strided": KERNEL[::2, ::-1],
        "scalar": np.float32(3),
        "bf": KERNEL.astype(ml_dtypes.bfloat16),
    }
    files.save_safetensors(path, arrays)
    for name, array in files.load_safetensors(path).items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])
    assert files.read_metadata(path) == {}


def test_npz_widens_bfloat16(tmp_path):
    files.save_npz(tmp_path / "x.npz", {"bf": KERNEL.astype(ml_dtypes.bfloat16)})
    loaded = files.load_npz(tmp_path / "x.npz")["bf"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, KERNEL)


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_names_in_safetensors_and_npz(tmp_path, kind, prefix):
    path = tmp_path / "weights"  # told by content, not by name
    state = {prefix + key: np.ascontiguousarray(array, np.float16) for key, array in TORCH.items()}
    if kind == "safetensors":
        safetensors.numpy.save_file(state, path, metadata={"format": "pt"})
    else:
        with open(path, "wb") as file:
            np.savez(file, **state)
    loaded = load_file(path, lambda: RULES, SHAPES)
    for name, array in OURS.items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], array)


def test_own_files_are_checked_against_the_model_too(tmp_path):
    path = tmp_path / "model.safetensors"
    files.save_safetensors(path, OURS, files.export_metadata(MODEL))
    with pytest.raises(
        NameMappingError,
        match=r"model.safetensors: .*\n.*1 missing.*\n.*body/bias(.*\n)*.*1 mis-shaped",
    ):
        load_file(path, lambda: RULES, {**SHAPES, "body/bias": (2,), "head/fc/bias": (7,)})
    other = {**SHAPES, "head/fc/kernel": (2, 7), "head/fc/bias": (7,)}
    assert set(load_file(path, lambda: RULES, other, allow_head_mismatch=("head/fc",))) == {
        "body/kernel"
    }


def test_file_of_a_later_layout_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    files.save_safetensors(
        path, OURS, {**files.export_metadata(MODEL), "layout_version": "2", "version": "9.0"}
    )
    with pytest.raises(
        files.WeightsFileError, match="layout version '2', written by lambdanet 9.0"
    ):
        load_file(path, lambda: RULES, SHAPES)


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "model.safetensors"
    files.save_safetensors(path, OURS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(files.WeightsFileError, match="no readable safetensors"):
        load_file(path, lambda: RULES, SHAPES)
    archive = tmp_path / "model.npz"
    files.save_npz(archive, OURS)
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(files.WeightsFileError, match="damaged or cut short"):
        load_file(archive, lambda: RULES, SHAPES)
    objects = tmp_path / "objects.npz"
    np.savez(objects, w=np.array([{}, None], dtype=object))
    with pytest.raises(files.WeightsFileError, match="npz file of plain arrays"):
        files.load_npz(objects)
    with pytest.raises(
        FileNotFoundError, match="no weights file .*there are: model.npz, model.safetensors"
    ):
        load_file(tmp_path / "modell.npz", lambda: RULES, SHAPES)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    files.save_safetensors(path, OURS)
    before = path.read_bytes()

    def fail(arrays, temporary, metadata):
        with open(temporary, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        files.save_safetensors(path, {"other": KERNEL})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    with pytest.raises(FileNotFoundError, match="the directory .*nowhere does not exist"):
        files.save_safetensors(tmp_path / "nowhere" / "x", OURS)


def test_metadata_is_json_of_plain_values():
    metadata = files.export_metadata({"name": "m", "blocks": (1, 2)})
    assert json.loads(metadata["model"]) == {"name": "m", "blocks": [1, 2]}
    assert all(isinstance(value, str) for value in metadata.values())
