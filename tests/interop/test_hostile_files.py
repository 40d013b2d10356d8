"""Weights files that were made to harm: no code runs, memory stays bounded, one kind of error."""

import argparse
import collections
import datetime
import io
import json
import os
import pickle
import struct
import subprocess
import time
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
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
    zeros = npy_header((70 * MEBIBYTE // 4,)) + bytes(70 * MEBIBYTE)
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
        file.writestr("a/byteorder", bytes(50 * MEBIBYTE))


def torch_that_calls_something(path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (f"{path}-was-run",)

    checkpoint(path, pickle.dumps({"w": Harm()}, protocol=2))


def torch_with_a_deep_pickle(path):
    checkpoint(path, b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".")


def global_(name):
    module, _, name = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


STORAGE = (
    b"(X\x07\0\0\0storage" + global_("torch.HalfStorage") + b"X\x01\0\0\x000X\x01\0\0\0cK\x04tQ"
)


def rebuilt(size, stride):
    """The instructions for a tensor of float16 over a storage of 4 numbers."""
    numbers = [
        b"".join(b"\x8a\x06" + n.to_bytes(6, "little") for n in part) for part in (size, stride)
    ]
    parts = STORAGE + b"K\0(" + numbers[0] + b"t(" + numbers[1] + b"t\x89N"
    return global_("torch._utils._rebuild_tensor_v2") + b"(" + parts + b"tR"


def half(path, instructions):
    """A checkpoint {'w': ...} with one storage of 8 bytes."""
    data = b"\x80\x02}X\x01\0\0\0w" + instructions + b"s."
    checkpoint(path, data, **{"data/0": bytes(8)})


def torch_that_repeats_one_number(path):
    half(path, rebuilt((2**20, 2**20), (0, 0)))


def torch_with_a_long_array_of_bytes(path):
    checkpoint(path, b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b".")


DOUBLED = b"K\x01" + b"q\0h\0\x86" * 60  # (((1, 1), (1, 1)), ...): 2^60 numbers in 60 tuples


def torch_with_a_key_that_is_hashed_without_end(path):
    checkpoint(path, b"\x80\x02}" + DOUBLED + b"K\x01s.")


def torch_with_a_set_that_is_hashed_without_end(path):
    checkpoint(path, b"\x80\x02" + global_("builtins.set") + b"(]" + DOUBLED + b"atR.")


def torch_with_a_reference_that_is_printed_without_end(path):
    checkpoint(path, b"\x80\x02(" + DOUBLED + b"K\0" * 4 + b"tQ.")


def torch_with_a_key_deeper_than_the_stack(path):
    checkpoint(path, b"\x80\x02}K\x01" + b"\x85" * 400_000 + b"K\x01s.")


def torch_with_mappings_that_are_searched_without_end(path):
    layer = b"q\0}(" + b"".join(b"X%c\0\0\0%bh\0" % (len(k), k) for k in KEYS) + b"u"
    checkpoint(path, b"\x80\x02}" + layer * 40 + b"q\0}X\x05\0\0\0modelh\0s.")


KEYS = [f"k{i}".encode() for i in range(150)]


def torch_that_calls_through_other_instructions(path):
    """INST and OBJ, of the first protocols, and the registry of extensions."""
    checkpoint(path, b"(X\x01\0\0\0aios\nmkdir\n.")


def torch_that_is_packed_by_bzip2(path):
    archive(path, {"a/data.pkl": bytes(MEBIBYTE)}, zipfile.ZIP_BZIP2)


def torch_whose_entries_share_their_bytes(path):
    checkpoint(path, b"\x80\x02}.", **{f"data/{i}": bytes(MEBIBYTE) for i in range(1)})
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    first = whole.index(b"PK\x01\x02", start + 4)
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 200, 200, (end - first) * 200, start, 0)
    path.write_bytes(whole[:start] + whole[first:end] * 200 + tail)


def torch_that_is_encrypted(path):
    checkpoint(path, b"\x80\x02}.")
    whole = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.index(mark) + at] |= 1
    path.write_bytes(whole)


def npz_packed_by_lzma(path):
    archive(path, {"a.npy": npy_header((MEBIBYTE,)) + bytes(4 * MEBIBYTE)}, zipfile.ZIP_LZMA)


def npz_of_a_negative_shape(path):
    archive(path, {"a.npy": npy_header((-4,)) + bytes(16)})


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


def safetensors_with_deep_nesting(path):
    text = b'{"__metadata__":' + b"[" * 10**5
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def safetensors_of_four_bits(path):
    tensors(path, {"w": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}})


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
    began = time.process_time()
    try:
        with pytest.raises(files.WeightsFileError, match="weights") as caught:
            files.read_state(path)
        assert tracemalloc.get_traced_memory()[1] < 40 * MEBIBYTE
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 10 and len(str(caught.value)) < 2000
    assert not (tmp_path / "weights-was-run").exists()


def test_a_pickle_cannot_change_what_it_is_handed(tmp_path):
    """NumPy's dtypes are those of the whole process; a pickle may give any object a new state."""
    path, dtype = tmp_path / "weights", np.dtype(ml_dtypes.float8_e4m3fn)
    state = pickle.dumps((4, "<", None, None, None, 8, 8, 0), protocol=2)[2:-1]
    for name in ("torch.float8_e4m3fn", "torch.FloatStorage", "collections.OrderedDict"):
        half(path, global_(name) + state + b"b")
        with pytest.raises(files.WeightsFileError, match="not tensors: w"):
            files.read_state(path)
    assert dtype.itemsize == 1 and np.dtype(ml_dtypes.float8_e4m3fn).itemsize == 1
    state = pickle.dumps((1, (2,), None, False, b"abcd"), protocol=2)[2:-1]
    half(path, rebuilt((4,), (1,)) + state + b"b")
    np.testing.assert_array_equal(files.read_state(path).arrays["w"], np.zeros(4, np.float16))


def test_a_file_far_larger_than_the_model_is_not_read(tmp_path):
    path, size = tmp_path / "weights", 2**42
    tensors(path, {"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}, b"")
    os.truncate(path, path.stat().st_size + size)  # takes no room on the disk
    with pytest.raises(files.WeightsFileError, match="the model 4 numbers; it is refused unread"):
        files.read_state(path, numbers=4)


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


def load_file(path, tables, shapes, **options):
    """Reads a file for a model with arrays of these shapes."""
    return files.fit_state(files.read_state(path), str(path), tables, shapes, **options)


def test_a_damaged_file_is_called_so_for_a_model_without_names_of_pytorch(tmp_path):
    def no_names():
        raise AssertionError("asked for names before the file was read")

    (tmp_path / "weights").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(files.WeightsFileError, match="damaged or cut short"):
        load_file(tmp_path / "weights", no_names, {})


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


class Config(dict):
    """A settings class of the training program's own."""


def test_settings_beside_the_weights_are_passed_over(tmp_path):
    settings = {
        "args": argparse.Namespace(lr=0.1, where=Path("a"), seen={1, 2}),
        "config": Config(lr=0.1),
        "time": datetime.datetime(2020, 1, 1),
        "scalar": np.float64(0.5),
        "array": np.ones(3),
        "counts": collections.Counter("ab"),
        ("a", "tuple"): complex(1, 2),
    }
    for protocol in (2, 4):
        pickled = pickle.dumps({**settings, "model": "WEIGHTS"}, protocol=protocol)
        mark = pickle.dumps("WEIGHTS", protocol=protocol)
        mark = mark[mark.index(b"WEIGHTS") - 5 + 3 * (protocol == 4) : mark.index(b"WEIGHTS") + 7]
        weights = b"}X\x01\0\0\0w" + rebuilt((4,), (1,)) + b"s"
        assert pickled.count(mark) == 1
        pickled = pickled.replace(mark, weights)
        if protocol == 4:  # its frames count bytes
            pickled = pickled[:2] + pickled[11:]
        path = tmp_path / "weights"
        checkpoint(path, pickled, byteorder=b"little", **{"data/0": bytes(8)})
        assert list(files.read_state(path).arrays) == ["w"]
    checkpoint(path, pickle.dumps({"a": subprocess.Popen}, protocol=2))
    with pytest.raises(files.WeightsFileError, match="refused: it asks for subprocess.Popen"):
        files.read_state(path)
    checkpoint(path, pickle.dumps(Config(), protocol=2))
    with pytest.raises(files.WeightsFileError, match="holds one .*Config, not a state dict"):
        files.read_state(path)


def test_eight_bit_floats_in_safetensors(tmp_path):
    values = np.array([1.0, -0.5], np.float32)
    for name, dtype in (("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)):
        raw = values.astype(dtype).tobytes() + values.tobytes()
        header = {
            "w": {"dtype": name, "shape": [2], "data_offsets": [0, 2]},
            "v": {"dtype": "F32", "shape": [2], "data_offsets": [2, 10]},
        }
        tensors(tmp_path / "weights", header, raw)
        state, *_ = files.read_state(tmp_path / "weights")
        np.testing.assert_array_equal(state["w"].astype(np.float32), values)
        np.testing.assert_array_equal(state["v"], values)
