"""PyTorch checkpoints read with NumPy alone, without running code from them.

A checkpoint of `torch.save` (PyTorch 1.6 and later) is a zip archive: `NAME/data.pkl` is a pickle
whose tensors point at raw storages `NAME/data/0`, `NAME/data/1`, .... A pickle may name any
importable function and have it called, so reading a stranger's file with the ordinary unpickler can
do anything. The one here knows a fixed list of names: PyTorch's tensor rebuild functions (replaced
by our own, which make NumPy views), its storage and dtype names, `OrderedDict` and `set`. Any other
name is an error.
"""

import collections
import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
    "ComplexFloatStorage": np.dtype("<c8"),
    "ComplexDoubleStorage": np.dtype("<c16"),
}
# Types newer than the storages above: torch.save writes untyped bytes and names the dtype beside
# them.
_DTYPES = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "module")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model")
_DEPTH = 4  # wrappers inside wrappers
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")  # DataParallel, compile, Lightning
_COUNTERS = ("n_averaged",)  # what averaging leaves beside the weights
WEIGHTS = ("ema", "live")
"""Which of a checkpoint's weights are meant."""
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_RESAVE = (
    "load it with PyTorch where you trust it and write the tensors alone: "
    'safetensors.torch.save_file(model.state_dict(), "x.safetensors") or '
    'torch.save(model.state_dict(), "x.pth")'
)


class WeightsFileError(ValueError):
    """A weights file is damaged, of a kind that is not read, or refused."""


class _Storage:
    """Raw little-endian bytes of one storage with its element type (None: untyped bytes)."""

    __slots__ = ("data", "dtype")

    def __init__(self, data: bytes, dtype: np.dtype | None):
        self.data, self.dtype = data, dtype


def load_torch(path: str | os.PathLike, *, prefer_ema: bool = True) -> dict[str, np.ndarray]:
    """Reads the state dict out of a PyTorch zip checkpoint.

    Finds it at the top level or under a usual key ('state_dict', 'model', 'model_state_dict',
    'net'; 'state_dict_ema', 'model_ema') and removes the prefixes of wrappers ('module.',
    '_orig_mod.') when every key has them.

    Args:
      path: the file.
      prefer_ema: with both averaged and live weights in the file, take the averaged ones (as timm
          does).

    Returns:
      PyTorch key -> array (views into the file's storages, not writeable; bfloat16 and float8 as
      `ml_dtypes`).

    Raises:
      FileNotFoundError: no such file.
      WeightsFileError: not a zip checkpoint, damaged, or holding anything but tensors and plain
          containers.
    """
    return state_dict_of(read_torch_zip(path), os.fspath(path), prefer_ema=prefer_ema)


def read_torch_zip(path: str | os.PathLike) -> Any:
    """Returns the whole object that `torch.save` wrote, tensors as NumPy arrays; raises as
    `load_torch`.
    """
    path = os.fspath(path)
    check_is_file(path)
    with open(path, "rb") as file:
        _refuse_other_kinds(file.read(512), path)
        try:
            with zipfile.ZipFile(file) as archive:
                return _load_archive(archive, path)
        except (zipfile.BadZipFile, EOFError) as error:
            raise WeightsFileError(
                f"{path} is damaged or cut short ({error}); fetch or copy it again"
            ) from error


def state_dict_of(loaded: Any, path: str, *, prefer_ema: bool = True) -> dict[str, np.ndarray]:
    """Finds the state dict inside a loaded checkpoint; see `load_torch`."""
    wrappers = _EMA_WRAPPERS + _WRAPPERS if prefer_ema else _WRAPPERS + _EMA_WRAPPERS
    state = loaded
    for _ in range(_DEPTH):
        inner = None
        if isinstance(state, Mapping) and not _is_state_dict(state):
            inner = next((state[k] for k in wrappers if _holds_tensors(state.get(k), _DEPTH)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state:
        raise WeightsFileError(f"{path} holds {_outline(loaded)}, not a state dict; {_RESAVE}")
    state = {key: value for key, value in state.items() if key not in _COUNTERS}
    strangers = [
        str(key)
        for key, value in state.items()
        if not (isinstance(key, str) and isinstance(value, np.ndarray))
    ]
    if strangers or not state:
        raise WeightsFileError(
            f"{path}: no state dict found at the top level or under {', '.join(wrappers)}; the "
            f"file holds {_outline(loaded)}, and these are not tensors: {', '.join(strangers[:8])}"
        )
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _is_state_dict(value: Mapping) -> bool:
    """Whether everything in a mapping is a tensor with a name."""
    named = all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items())
    return bool(value) and named


def _holds_tensors(value: Any, depth: int) -> bool:
    """Whether there is a tensor in a mapping, or in one inside it."""
    if not isinstance(value, Mapping) or depth == 0:
        return False
    return any(isinstance(v, np.ndarray) or _holds_tensors(v, depth - 1) for v in value.values())


def check_is_file(path: str) -> None:
    """Raises FileNotFoundError with what stands beside the missing file."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise WeightsFileError(f"{path} is a pipe or a device; give a weights file")
    if os.path.isdir(path):
        raise WeightsFileError(
            f"{path} is a directory; give a weights file (.safetensors, .pth, .pt, .npz)"
        )
    if not os.path.exists(path):
        folder = os.path.dirname(path) or "."
        beside = sorted(os.listdir(folder))[:10] if os.path.isdir(folder) else None
        there = f"the directory {folder} does not exist"
        if beside is not None:
            there = f"in {folder} there are: {', '.join(beside) or 'no files'}"
        raise FileNotFoundError(f"no weights file {path}; {there}")


def _outline(loaded: Any) -> str:
    if isinstance(loaded, Mapping):
        items = [f"{key!r}: {type(value).__name__}" for key, value in list(loaded.items())[:8]]
        return "{" + ", ".join(items) + (", ..." if len(loaded) > 8 else "") + "}"
    return f"one {type(loaded).__name__}"


def _refuse_other_kinds(start: bytes, path: str) -> None:
    if start.startswith(b"PK"):
        return
    if not start:
        kind = "is empty; fetch or copy it again"
    elif start.startswith(_LEGACY_MAGIC):
        kind = (
            "was written in PyTorch's old format (before version 1.6), which is not read; "
            f"{_RESAVE}"
        )
    elif start.startswith(b"\x80"):
        kind = f"is a bare pickle, which is not read because it could run code; {_RESAVE}"
    elif start.startswith(b"version https://git-lfs"):
        kind = "is a Git LFS pointer, not the weights; run 'git lfs pull' where it came from"
    elif start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        kind = (
            "is an HTML page, probably an error page saved in place of the download; fetch it again"
        )
    else:
        kind = (
            "is no PyTorch zip checkpoint, safetensors or npz file (it starts with "
            f"{start[:8]!r}); fetch it again"
        )
    raise WeightsFileError(f"{path} {kind}")


def _load_archive(archive: zipfile.ZipFile, path: str) -> Any:
    names = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl" and name.count("/") <= 1]
    if len(pickles) != 1:
        raise WeightsFileError(
            f"{path} is a zip but no PyTorch checkpoint: it has {len(pickles)} entries data.pkl, "
            "not 1"
        )
    root = pickles[0][: -len("data.pkl")]
    if f"{root}constants.pkl" in names:
        raise WeightsFileError(f"{path} is a TorchScript archive, not a checkpoint; {_RESAVE}")

    def read(name: str) -> bytes:
        info = names.get(name)
        if info is None:
            raise WeightsFileError(
                f"{path} is damaged: the entry {name} is missing; fetch or copy it again"
            )
        # torch.save never compresses; refusing it bounds the memory by the size of the file.
        if info.compress_type != zipfile.ZIP_STORED:
            raise WeightsFileError(
                f"{path}: the entry {name} is compressed, which torch.save never does; {_RESAVE}"
            )
        return archive.read(name)

    if f"{root}byteorder" in names and read(f"{root}byteorder").strip() != b"little":
        raise WeightsFileError(
            f"{path} was written on a big-endian machine, which is not read; {_RESAVE}"
        )
    unpickler = _Unpickler(
        io.BytesIO(read(pickles[0])), path, lambda key: read(f"{root}data/{key}")
    )
    try:
        return unpickler.load()
    except (WeightsFileError, zipfile.BadZipFile):
        raise
    except (
        Exception
    ) as error:  # a broken pickle can fail in any way; nothing it does is ours to interpret
        what = f"{type(error).__name__}: {error}"
        raise WeightsFileError(f"{path} is damaged: its pickle cannot be read ({what})") from error


class _Inert:
    """Stands for a settings object beside the weights: takes everything, keeps nothing."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _state):
        pass

    def __setitem__(self, _key, _value):
        pass

    def append(self, _value):
        """Drops it."""


# Settings that training programs save beside their weights; what stands for them runs no code.
_SETTINGS = (
    ("argparse", "Namespace"),
    ("types", "SimpleNamespace"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("easydict", "EasyDict"),
    ("addict.addict", "Dict"),
    ("yacs.config", "CfgNode"),
    ("ml_collections.config_dict.config_dict", "ConfigDict"),
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
)


class _Unpickler(pickle._Unpickler):
    """Admits a fixed list of names and nothing else.

    Python's own form of the unpickler: the one in C makes room for the largest memo index that a
    pickle names, 4 GB for a file of 222 bytes.
    """

    def __init__(self, file: io.BytesIO, path: str, read_storage):
        super().__init__(file, encoding="utf-8")
        self._path, self._read_storage = path, read_storage
        self._storages: dict[str, _Storage] = {}

        # Made anew for every file: whatever a pickle might do to these objects ends with the load.
        def rebuild(storage, offset, size, stride, *_unused):
            return _tensor(storage, storage.dtype, offset, size, stride)

        def rebuild_with_dtype(
            storage, offset, size, stride, _requires_grad, _hooks, dtype, _metadata=None
        ):
            return _tensor(storage, dtype, offset, size, stride)

        def parameter(data, *_unused):
            return data

        self._known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("builtins", "set"): set,
            ("torch._utils", "_rebuild_tensor"): rebuild,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild,
            ("torch._utils", "_rebuild_tensor_v3"): rebuild_with_dtype,
            ("torch._utils", "_rebuild_parameter"): parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): parameter,
            ("torch.storage", "UntypedStorage"): "UntypedStorage",
        }
        self._known |= dict.fromkeys(_SETTINGS, _Inert)
        self._known |= {("torch", name): name for name in _STORAGES}
        self._known |= {("torch", name): dtype for name, dtype in _DTYPES.items()}

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        try:
            return self._known[module, name]
        except KeyError:
            raise WeightsFileError(
                f"{self._path} refused: it asks for {module}.{name}, but only tensors and plain "
                "containers are read, "
                f"because a checkpoint can run code through such names. Fix: {_RESAVE}"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _location, count = pid
        if kind != "storage" or not isinstance(key, str) or not isinstance(count, int):
            raise WeightsFileError(f"{self._path} is damaged: unknown reference {pid!r}")
        dtype = _STORAGES.get(storage_type)
        if dtype is None and storage_type != "UntypedStorage":
            raise WeightsFileError(
                f"{self._path}: storages of the type {storage_type!r} are not read; {_RESAVE}"
            )
        if key not in self._storages:
            data = self._read_storage(key)
            expected = count * (dtype.itemsize if dtype else 1)
            if len(data) != expected:
                raise WeightsFileError(
                    f"{self._path} is damaged: storage {key} has {len(data)} bytes, not {expected}"
                )
            self._storages[key] = _Storage(data, dtype)
        if self._storages[key].dtype != dtype:
            raise WeightsFileError(
                f"{self._path} is damaged: storage {key} is claimed under two element types"
            )
        return self._storages[key]


def _tensor(storage: _Storage, dtype: np.dtype | None, offset: int, size, stride) -> np.ndarray:
    """A strided view into a storage, refused where it would leave the storage."""
    if not isinstance(storage, _Storage) or not isinstance(dtype, np.dtype):
        raise ValueError("a tensor points at no storage or has an unknown element type")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(
        not isinstance(number, int) or number < 0 for number in numbers
    ):
        raise ValueError(
            f"a tensor has the impossible layout offset {offset}, size {size}, stride {stride}"
        )
    elements = len(storage.data) // dtype.itemsize
    if 0 in size:
        return np.zeros(size, dtype)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if last >= elements:
        raise ValueError(
            f"a tensor reads element {last} of a storage of {elements}: offset {offset}, size "
            f"{size}, stride {stride}"
        )
    steps = tuple(step * dtype.itemsize for step in stride)
    return np.ndarray(
        size, dtype, buffer=storage.data, offset=offset * dtype.itemsize, strides=steps
    )
