"""PyTorch checkpoints: what is read, and that nothing in them is run.

PyTorch is not needed: the files are put together here byte for byte as `torch.save` does (zip,
  pickle protocol 2 with persistent
ids, raw storages).
"""

import collections
import io
import os
import pickle
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from lambdanet.interop.files import WeightsFileError, load_torch

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
}


class Storage:
    def __init__(self, array, kind="FloatStorage", claim=None):
        self.data, self.kind = np.ascontiguousarray(array).tobytes(), kind
        self.count = array.size if claim is None else claim


class Tensor:
    """Pickles as a torch tensor does; offset, size and stride count elements."""

    def __init__(self, storage, size, stride, offset=0):
        self.storage, self.size, self.stride, self.offset = storage, size, stride, offset

    def __reduce_ex__(self, protocol):
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (
            self.storage,
            self.offset,
            self.size,
            self.stride,
            False,
            collections.OrderedDict(),
        )


def tensor(array, kind="FloatStorage"):
    array = np.asarray(array, STORAGES[kind])
    stride = (
        tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
        if array.ndim
        else ()
    )
    return Tensor(Storage(array, kind), array.shape, stride)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Returns write(object) -> path of a checkpoint holding it."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in STORAGES:
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        raise AssertionError("only its name is pickled")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = (
        "torch._utils",
        "_rebuild_tensor_v2",
    )
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2

    def write(value, *, leave_out=(), compression=zipfile.ZIP_STORED, extra=()):
        storages = []

        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                if not isinstance(value, Storage):
                    return None
                if value not in storages:
                    storages.append(value)
                return (
                    "storage",
                    getattr(torch, value.kind),
                    str(storages.index(value)),
                    "cpu",
                    value.count,
                )

        buffer = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torch", torch)
            patch.setitem(sys.modules, "torch._utils", utils)
            Pickler(buffer, protocol=2).dump(value)
        entries = {
            "data.pkl": buffer.getvalue(),
            "byteorder": b"little",
            "version": b"3\n",
            **dict(extra),
        }
        entries |= {f"data/{index}": storage.data for index, storage in enumerate(storages)}
        path = tmp_path / "checkpoint.pth"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in entries.items():
                if name not in leave_out:
                    archive.writestr(f"checkpoint/{name}", data)
        return path

    return write


@pytest.mark.parametrize("kind", STORAGES)
def test_every_type(write, kind):
    values = np.array([[0, 1, 2], [3, 5, 120]]).astype(STORAGES[kind])
    loaded = load_torch(write({"w": tensor(values, kind)}))["w"]
    assert loaded.dtype == values.dtype
    np.testing.assert_array_equal(loaded, values)


def test_views_offsets_and_shared_storages(write):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    storage = Storage(base)
    state = {
        "transposed": Tensor(storage, (6, 4), (1, 6)),
        "slice": Tensor(storage, (3, 2), (6, 2), offset=8),
        "expanded": Tensor(storage, (5, 3), (0, 1), offset=3),
        "scalar": Tensor(storage, (), (), offset=23),
        "empty": Tensor(storage, (0, 4), (4, 1)),
    }
    loaded = load_torch(write(state))
    np.testing.assert_array_equal(loaded["transposed"], base.T)
    np.testing.assert_array_equal(loaded["slice"], base[1:, 2:5:2])
    np.testing.assert_array_equal(loaded["expanded"], np.broadcast_to([3, 4, 5], (5, 3)))
    assert loaded["scalar"].shape == () and loaded["scalar"] == 23
    assert loaded["empty"].shape == (0, 4)
    with pytest.raises(ValueError, match="read-only"):
        loaded["slice"][0, 0] = 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3, "best": None, "betas": (0.9, [True])},
        lambda state: {
            "state_dict": {f"module.{key}": value for key, value in state.items()},
            "names": {"a", "b"},
        },
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    ],
    ids=["plain", "model", "state_dict+module", "compiled"],
)
def test_wrappers(write, wrap):
    state = collections.OrderedDict(w=tensor([1, 2]), b=tensor([3]))
    state._metadata = collections.OrderedDict(version=1)  # torch's state dicts carry this attribute
    assert set(load_torch(write(wrap(state)))) == {"w", "b"}


def test_averaged_weights_are_preferred_unless_told_otherwise(write):
    path = write({"state_dict": {"w": tensor([1])}, "state_dict_ema": {"w": tensor([2])}})
    assert load_torch(path)["w"] == 2
    assert load_torch(path, prefer_ema=False)["w"] == 1


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("place", ["instead", "beside", "nested"])
@pytest.mark.parametrize("how", ["os.system", "eval", "getattr"])
def test_code_in_a_checkpoint_is_not_run(write, tmp_path, how, place):
    marker = tmp_path / "ran"
    call = {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "getattr": Call(getattr, collections.OrderedDict, "fromkeys"),
    }[how]
    value = {
        "instead": call,
        "beside": {"w": tensor([1]), "x": call},
        "nested": {"model": {"w": Call(list, [call])}},
    }[place]
    name = {
        "os.system": f"{os.system.__module__}.system",
        "eval": "builtins.eval",
        "getattr": "builtins.getattr",
    }[how]
    with pytest.raises(
        WeightsFileError, match=f"(asks for {name}|asks for builtins.list).*Fix: .*safetensors"
    ):
        load_torch(write(value))
    assert not marker.exists()
    if how != "getattr":  # the file really is dangerous
        with zipfile.ZipFile(tmp_path / "checkpoint.pth") as archive:
            if place == "instead":
                pickle.loads(archive.read("checkpoint/data.pkl"))
                assert marker.exists()


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((4, 6), (6, 1), 1),
        ((25,), (1,), 0),
        ((2, 2), (30, 1), 0),
        ((2,), (-1,), 3),
        ((2,), (1,), -1),
        ((2, 2), (1,), 0),
        ((2**40,), (1,), 0),
    ],
)
def test_tensors_cannot_leave_their_storage(write, size, stride, offset):
    storage = Storage(np.zeros(24, np.float32))
    with pytest.raises(WeightsFileError, match="damaged.*(reads element|impossible layout)"):
        load_torch(write({"w": Tensor(storage, size, stride, offset)}))


def test_damaged_archives(write, tmp_path):
    state = {"w": tensor(np.arange(1000))}
    path = write(state)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsFileError, match="damaged or cut short"):
        load_torch(path)
    flipped = bytearray(whole)
    flipped[whole.index(np.float32(500).tobytes())] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(WeightsFileError, match="damaged or cut short .*CRC"):
        load_torch(path)
    with pytest.raises(WeightsFileError, match="entry checkpoint/data/0 is missing"):
        load_torch(write(state, leave_out=["data/0"]))
    with pytest.raises(WeightsFileError, match="storage 0 has 12 bytes, not 16"):
        load_torch(write({"w": Tensor(Storage(np.zeros(3, np.float32), claim=4), (3,), (1,))}))
    with pytest.raises(WeightsFileError, match="compressed"):
        load_torch(write(state, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(WeightsFileError, match="big-endian"):
        load_torch(write(state, extra=[("byteorder", b"big")]))
    with pytest.raises(WeightsFileError, match="damaged: its pickle cannot be read"):
        load_torch(write(state, extra=[("data.pkl", b"\x80\x02}q\x00X")]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"...", "old format"),
        (pickle.dumps({"w": 1}), "bare pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"\x00\x01rubbish", "no PyTorch zip checkpoint"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsFileError, match=message):
        load_torch(path)


def test_other_zip_files_missing_files_and_directories(write, tmp_path):
    with pytest.raises(WeightsFileError, match="TorchScript"):
        load_torch(write({"w": tensor([1])}, extra=[("constants.pkl", b"")]))
    with pytest.raises(WeightsFileError, match="no PyTorch checkpoint"):
        load_torch(write({"w": tensor([1])}, leave_out=["data.pkl"]))
    with pytest.raises(FileNotFoundError, match="no weights file .*there are: checkpoint.pth"):
        load_torch(tmp_path / "chekpoint.pth")
    with pytest.raises(WeightsFileError, match="is a directory"):
        load_torch(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, "no state dict found.*'epoch': int.*not tensors: epoch, lr"),
        ({"w": tensor([1]), "step": 3}, "not tensors: step"),
        (tensor([1]), "holds one ndarray, not a state dict"),
    ],
)
def test_checkpoints_without_a_state_dict(write, content, message):
    with pytest.raises(WeightsFileError, match=message):
        load_torch(write(content))
