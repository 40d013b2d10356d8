"""PyTorch checkpoints read with NumPy alone, without running code from them.

A checkpoint of `torch.save` (PyTorch 1.6 and later) is a zip archive: `NAME/data.pkl` is a pickle
(read by `torch_pickle`) whose tensors point at raw storages `NAME/data/0`, `NAME/data/1`, ....
"""

import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from lambdanet.interop.reading import (
    WeightsFileError,
    brief,
    check_archive,
    check_is_file,
    one_error,
    room,
)
from lambdanet.interop.torch_pickle import RESAVE, Inert, Unpickler

_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "module")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model")
_DEPTH = 4  # wrappers inside wrappers
# DataParallel and averages, torch.compile, Lightning
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_COUNTERS = ("n_averaged",)  # what averaging leaves beside the weights
_LARGEST_PICKLE = 16 * 2**20  # names and shapes; each of its bytes may become 100 in memory
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def load_torch(path: str | os.PathLike, *, prefer_ema: bool = True) -> dict[str, np.ndarray]:
    """Reads the state dict out of a PyTorch zip checkpoint.

    Finds it at the top level or under the usual keys, also one inside another ('state_dict',
    'model', 'ema', ...: `_WRAPPERS`, `_EMA_WRAPPERS`), removes the prefixes of wrappers ('module.',
    'model.', ...: `_PREFIXES`) when every key has them, and the counter of `AveragedModel`. What
    stands beside the weights is passed over.

    Args:
      path: the file.
      prefer_ema: with both averaged and live weights in the file, take the averaged ones (as timm
          does).

    Returns:
      PyTorch key -> array (views into the file's storages, not writeable; bfloat16 and float8 as
      `ml_dtypes`).

    Raises:
      FileNotFoundError: no such file.
      WeightsFileError: not a zip checkpoint, damaged, asking for functions of Python's library, or
          without a state dict.
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
        with one_error(path), zipfile.ZipFile(file) as archive:
            return _load_archive(archive, path)


def state_dict_of(loaded: Any, path: str, *, prefer_ema: bool = True) -> dict[str, np.ndarray]:
    """Finds the state dict inside a loaded checkpoint; see `load_torch`."""
    wrappers = _EMA_WRAPPERS + _WRAPPERS if prefer_ema else _WRAPPERS + _EMA_WRAPPERS
    state = loaded
    for _ in range(_DEPTH):
        inner = None
        if isinstance(state, Mapping) and not _is_state_dict(state):
            inner = next((state[k] for k in wrappers if _has_tensors(state.get(k), _DEPTH)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state:
        raise WeightsFileError(f"{path} holds {_outline(loaded)}, not a state dict; {RESAVE}")
    state = {key: value for key, value in state.items() if key not in _COUNTERS}
    strangers = [
        brief(str(key), 60)
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


def _has_tensors(value: Any, depth: int) -> bool:
    """Whether there is a tensor in a mapping, or under one of the wrappers in it."""
    if not isinstance(value, Mapping) or depth == 0:
        return False
    return any(isinstance(v, np.ndarray) for v in value.values()) or any(
        _has_tensors(value.get(key), depth - 1) for key in _WRAPPERS + _EMA_WRAPPERS
    )


def _outline(loaded: Any) -> str:
    if isinstance(loaded, Mapping):
        items = [f"{brief(repr(k), 60)}: {_kind(v)}" for k, v in list(loaded.items())[:8]]
        return "{" + ", ".join(items) + (", ..." if len(loaded) > 8 else "") + "}"
    return f"one {_kind(loaded)}"


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Inert) else type(value).__name__


def _refuse_other_kinds(start: bytes, path: str) -> None:
    if start.startswith(b"PK"):
        return
    if not start:
        kind = "is empty; fetch or copy it again"
    elif start.startswith(_LEGACY_MAGIC):
        kind = (
            f"was written in PyTorch's old format (before version 1.6), which is not read; {RESAVE}"
        )
    elif start.startswith(b"\x80"):
        kind = f"is a bare pickle, which is not read because it could run code; {RESAVE}"
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
    check_archive(archive, path)
    names = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl" and name.count("/") <= 1]
    if len(pickles) != 1:
        raise WeightsFileError(
            f"{path} is a zip but no PyTorch checkpoint: it has {len(pickles)} entries data.pkl, "
            "not 1"
        )
    root = pickles[0][: -len("data.pkl")]
    if f"{root}constants.pkl" in names:
        raise WeightsFileError(f"{path} is a TorchScript archive, not a checkpoint; {RESAVE}")

    def read(name: str) -> bytes:
        info = names.get(name)
        if info is None:
            raise WeightsFileError(
                f"{path} is damaged: the entry {brief(name)} is missing; fetch or copy it again"
            )
        # torch.save never compresses; refusing it bounds the memory by the size of the file.
        if info.compress_type != zipfile.ZIP_STORED:
            raise WeightsFileError(
                f"{path}: the entry {brief(name)} is compressed, which torch.save never does; "
                f"{RESAVE}"
            )
        return archive.read(name)

    if f"{root}byteorder" in names and read(f"{root}byteorder").strip() != b"little":
        raise WeightsFileError(
            f"{path} was written on a big-endian machine, which is not read; {RESAVE}"
        )
    data = read(pickles[0])
    if len(data) > _LARGEST_PICKLE:
        raise WeightsFileError(
            f"{path}: its names and settings take {len(data):,} bytes; allowed: "
            f"{_LARGEST_PICKLE:,}; {RESAVE}"
        )
    unpickler = Unpickler(data, path, lambda key: read(f"{root}data/{key}"), room(path))
    try:
        return unpickler.load()
    except (WeightsFileError, zipfile.BadZipFile):
        raise
    except Exception as error:  # a broken pickle can fail in any way
        what = brief(f"{type(error).__name__}: {error}")
        raise WeightsFileError(f"{path} is damaged: its pickle cannot be read ({what})") from error
