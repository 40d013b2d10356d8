"""Weights files that were made to harm: no code runs, memory stays bounded, one kind of error."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from lambdanet.interop import files

MEBIBYTE = 2**20


def npy_header(shape, descr="<f4"):
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def archive(path, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in entries.items():
            file.writestr(name, content)


def checkpoint(path, data, **more):
    archive(path, {"a/data.pkl": data, **{f"a/{k}": v for k, v in more.items()}})


def npz_of_terabytes(path):
    archive(path, {"a.npy": npy_header((10**12,)) + b"\0" * 16})


def npz_bomb(path):
    zeros = npy_header((100 * MEBIBYTE // 4,)) + bytes(100 * MEBIBYTE)
    archive(path, {"a.npy": zeros}, zipfile.ZIP_DEFLATED)


def npz_of_objects(path):
    np.savez(path, a=np.array([{}], object))
    os.replace(f"{path}.npz", path)


def npz_with_a_list_for_metadata(path):
    archive(path, {"__metadata__.npy": array_bytes("[1, 2]"), "a.npy": array_bytes(1.0)})


def npz_with_deep_metadata(path):
    archive(path, {"__metadata__.npy": array_bytes("[" * 100_000)})


def npz_of_another_version(path):
    archive(path, {"a.npy": b"\x93NUMPY\x09\x00" + bytes(64)})


def array_bytes(value):
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(value))
    return buffer.getvalue()


def torch_with_a_large_memo_index(path):
    checkpoint(path, b"\x80\x02}" + b"r" + struct.pack("<I", 2**32 - 2) + b".")


def torch_with_a_compressed_byteorder(path):
    checkpoint(path, pickle.dumps({}, protocol=2))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/byteorder", bytes(200 * MEBIBYTE))


def torch_that_calls_something(path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (f"{path}-was-run",)

    checkpoint(path, pickle.dumps({"w": Harm()}, protocol=2))


def torch_with_a_deep_pickle(path):
    checkpoint(path, b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".")


def safetensors_with_a_long_header(path):
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}" + bytes(100))


def tensors(path, header, data=bytes(8)):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def safetensors_beyond_the_file(path):
    tensors(path, {"w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}})


def safetensors_that_overlap(path):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    tensors(path, {"v": entry, "w": entry})


def safetensors_with_wrong_metadata(path):
    tensors(path, {"__metadata__": {"layout": ["a", "list"]}})


def safetensors_of_an_unknown_type(path):
    tensors(path, {"w": {"dtype": "F3", "shape": [2], "data_offsets": [0, 8]}})


def a_pipe(path):
    os.mkfifo(path)


HOSTILE = [value for name, value in list(globals().items()) if name.startswith(
    ("npz_", "torch_with", "torch_that", "safetensors_", "a_pipe"))]  # fmt: skip


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_clear_error_no_code_and_little_memory(make, tmp_path):
    path = tmp_path / "weights"
    make(path)
    tracemalloc.start()
    try:
        with pytest.raises(files.WeightsFileError, match="weights"):
            files.read_state(path)
        assert tracemalloc.get_traced_memory()[1] < 40 * MEBIBYTE
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "weights-was-run").exists()


@pytest.mark.parametrize(
    "model", ["[1]", "3", "{", "[" * 100_000], ids=["list", "3", "cut", "deep"]
)
def test_metadata_that_names_no_model(tmp_path, model):
    path = tmp_path / "weights"
    safetensors.numpy.save_file({"w": np.ones(2)}, path, metadata={"model": model})
    with pytest.raises(files.WeightsFileError, match="metadata 'model'"):
        files.model_of(files.read_metadata(path))


def test_zeros_that_compress_well_are_no_bomb(tmp_path):
    path = tmp_path / "weights"
    with open(path, "wb") as file:
        np.savez_compressed(file, w=np.zeros(MEBIBYTE, np.float32))
    assert not files.read_state(path)[0]["w"].any()


def test_a_damaged_file_is_called_so_for_a_model_without_names_of_pytorch(tmp_path):
    def no_names():
        raise AssertionError("asked for names before the file was read")

    (tmp_path / "weights").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(files.WeightsFileError, match="damaged or cut short"):
        files.load_weights_file(tmp_path / "weights", no_names, {})


# ---- Wrappers and settings, which are no harm ----------------------------------------------------

TORCH = {"0.weight": np.ones((2, 3), np.float32), "0.bias": np.zeros(2, np.float32)}


def found(loaded, **options):
    from lambdanet.interop import torch_file

    return torch_file.state_dict_of(loaded, "x.pth", **options)


def prefixed(prefix, value=1.0):
    return {prefix + key: array + value for key, array in TORCH.items()}


@pytest.mark.parametrize(
    "loaded",
    [
        {"ema": prefixed("")},
        {"ema_state_dict": prefixed("module.") | {"n_averaged": np.int64(3)[None]}},
        {"model_ema": prefixed("module.") | {"n_averaged": np.ones((), np.int64)}},
        {"checkpoint": 3, "model": {"state_dict": prefixed("")}},
        {"state_dict": prefixed("model."), "epoch": 3},
        {"state_dict": prefixed("model.backbone."), "hyper_parameters": {"lr": 0.1}},
        {"state_dict": {"model": prefixed("")}},
    ],
)
def test_state_dicts_are_found_under_their_wrappers(loaded):
    state = found(loaded)
    assert sorted(state) == ["0.bias", "0.weight"]
    np.testing.assert_array_equal(state["0.weight"], TORCH["0.weight"] + 1)


def test_live_or_averaged_weights_by_choice():
    loaded = {"model": prefixed("", 0.0), "model_ema": prefixed("module.", 5.0)}
    assert found(loaded)["0.weight"][0, 0] == 6.0
    assert found(loaded, prefer_ema=False)["0.weight"][0, 0] == 1.0


def test_settings_beside_the_weights_are_passed_over(tmp_path):
    import argparse
    from pathlib import PurePosixPath

    loaded = {"model": {}, "args": argparse.Namespace(lr=0.1, where=PurePosixPath("a").name)}
    path = tmp_path / "weights"
    checkpoint(path, pickle.dumps(loaded, protocol=2), byteorder=b"little")
    with pytest.raises(files.WeightsFileError, match="these are not tensors: model, args"):
        files.read_state(path)  # read to the end: only the weights are missing here
    checkpoint(path, pickle.dumps({"a": __import__("fractions").Fraction}, protocol=2))
    with pytest.raises(files.WeightsFileError, match="refused: it asks for fractions.Fraction"):
        files.read_state(path)


def test_eight_bit_floats_in_safetensors(tmp_path):
    import ml_dtypes

    values = np.array([1.0, -0.5], np.float32)
    for name, dtype in (("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)):
        raw = values.astype(dtype).tobytes() + values.tobytes()
        header = {
            "w": {"dtype": name, "shape": [2], "data_offsets": [0, 2]},
            "v": {"dtype": "F32", "shape": [2], "data_offsets": [2, 10]},
        }
        tensors(tmp_path / "weights", header, raw)
        state, _ = files.read_state(tmp_path / "weights")
        np.testing.assert_array_equal(state["w"].astype(np.float32), values)
        np.testing.assert_array_equal(state["v"], values)
