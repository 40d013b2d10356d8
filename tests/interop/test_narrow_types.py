"""PyTorch's newer element types in .pth files, where bytes are untyped and the type stands beside
them; written byte for byte as `torch.save` does.
"""

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from lambdanet.interop.files import WeightsFileError, read_state

TYPES = {
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
}


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def save(path, raw, dtype, count):
    """{'w': a tensor of one axis}."""
    storage = b"(" + text("storage") + b"ctorch.storage\nUntypedStorage\n" + text("0") + text("cpu")
    storage += pickle.dumps(len(raw), protocol=2)[2:-1] + b"tQ"
    shape = b"K" + bytes([count]) + b"\x85K\x01\x85"  # (count,), (1,)
    hooks = b"\x89ccollections\nOrderedDict\n)R"  # no gradient, no hooks
    tensor = b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage + b"K\0" + shape + hooks
    tensor += b"ctorch\n" + dtype.encode() + b"\ntR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + text("w") + tensor + b"s.")
        archive.writestr("a/byteorder", b"little")
        archive.writestr("a/data/0", raw)


@pytest.mark.parametrize("name", TYPES)
def test_every_type(tmp_path, name):
    values = np.array([1, 2, 4]).astype(TYPES[name])
    save(tmp_path / "w.pth", values.tobytes(), name, 3)
    found = read_state(tmp_path / "w.pth").arrays["w"]
    np.testing.assert_array_equal(found.astype(np.float32), [1, 2, 4])
    save(tmp_path / "w.pth", values.tobytes(), name, 4)
    with pytest.raises(WeightsFileError, match="reads element 3 of a storage of 3"):
        read_state(tmp_path / "w.pth")


def test_a_type_that_is_not_known_is_refused(tmp_path):
    save(tmp_path / "w.pth", bytes(2), "float4_e2m1fn_x2", 2)
    with pytest.raises(WeightsFileError, match="unknown element type"):
        read_state(tmp_path / "w.pth")
