"""Weights files: safetensors, npz and PyTorch checkpoints in; safetensors and npz out.

Our own files say so in their metadata (`layout: lambdanet`) and hold '/'-paths; every other file is
taken as PyTorch's names and layouts and goes through a name table (`lambdanet.interop.names`).
"""

import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

import lambdanet
from lambdanet.atomic import write_file
from lambdanet.interop.names import Rule, choose_table, convert
from lambdanet.interop.torch_file import WeightsFileError, check_is_file, load_torch, state_dict_of

__all__ = [
    "OWN_NAMES",
    "WeightsFileError",
    "export_metadata",
    "load_npz",
    "load_safetensors",
    "load_torch",
    "load_weights_file",
    "model_of",
    "read_metadata",
    "read_state",
    "save_npz",
    "save_safetensors",
]

LAYOUT = "lambdanet"
LAYOUT_VERSION = "1"
_NPZ_METADATA = "__metadata__"
OWN_NAMES = (Rule(r".+", r"\g<0>"),)


def export_metadata(model: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a file with our layout: the model's name and options as JSON, the layout, and who
    wrote it.
    """
    return {
        "layout": LAYOUT,
        "layout_version": LAYOUT_VERSION,
        "version": lambdanet.__version__,
        "model": json.dumps(dict(model), sort_keys=True),
    }


def model_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The model's name and options that `export_metadata` stored; {} where the file has none."""
    try:
        found = json.loads(metadata.get("model", "{}"))
    except (ValueError, RecursionError) as error:
        raise WeightsFileError(f"the file's metadata 'model' is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise WeightsFileError(f"the file's metadata 'model' is no mapping: {str(found)[:100]}")
    return found


def image_size_of(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """(height, width) of the images that a file of ours was made for, if it says so."""
    size = model_of(metadata).get("image_size")
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        return None
    return tuple(size) if all(type(n) is int and n > 0 for n in size) else None


def grid_of(count: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (rows, columns) with `count` positions whose shape is nearest to the images'.

    Positions are stored as a list; 64 of them are 8 x 8 of a square image and 4 x 16 of one four
    times as wide as high.

    Args:
        count: positions, at least 1.
        image_size: (height, width).
    """
    wanted = math.log(image_size[0] / image_size[1])
    pairs = [(n, count // n) for n in range(1, count + 1) if count % n == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1]) - wanted))


def save_safetensors(
    path: str | os.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays to a safetensors file: complete or not at all (temporary file, then rename).

    Args:
      path: the file; its directory must exist.
      arrays: name -> array; our own files hold '/'-paths, see `export_metadata`.
      metadata: text stored in the file's header.
    """
    # safetensors writes the memory as it lies, so views (transposed, strided) have to be laid out
    # first.
    dense = {
        name: np.ascontiguousarray(np.asarray(array)).reshape(np.shape(array))
        for name, array in arrays.items()
    }
    write_file(
        path,
        lambda temporary: safetensors.numpy.save_file(
            dense, temporary, metadata=dict(metadata or {})
        ),
    )


def load_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of a safetensors file; raises FileNotFoundError or WeightsFileError."""
    with _safetensors(path) as file:
        names = list(file.keys())
        if not any(file.get_slice(name).get_dtype() in _EIGHT_BITS for name in names):
            return {name: file.get_tensor(name) for name in names}
    # NumPy has no such type, so the library does not hand these out as arrays.
    with open(path, "rb") as file:
        found = safetensors.deserialize(file.read())
    return {name: _from_bytes(entry) for name, entry in found}


_EIGHT_BITS = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_OTHERS = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype("?"),
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind, size in (
        ("F", 2), ("F", 4), ("F", 8), ("I", 1), ("I", 2), ("I", 4), ("I", 8),
        ("U", 1), ("U", 2), ("U", 4), ("U", 8),
    )},
}  # fmt: skip


def _from_bytes(entry: Mapping[str, Any]) -> np.ndarray:
    dtype = (_EIGHT_BITS | _OTHERS).get(entry["dtype"])
    if dtype is None:
        raise WeightsFileError(f"arrays of the type {entry['dtype']} are not read")
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def save_npz(
    path: str | os.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays to an npz file, as `save_safetensors` does; bfloat16, which npz lacks, is
    widened to float32.
    """
    dense = {name: np.asarray(array) for name, array in arrays.items()}
    dense = {
        name: array.astype(np.float32) if array.dtype.kind == "V" else array
        for name, array in dense.items()
    }
    if metadata:
        dense[_NPZ_METADATA] = np.asarray(json.dumps(dict(metadata)))

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **dense)

    write_file(path, write)


def load_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of an npz file (never pickled objects); raises FileNotFoundError or
    WeightsFileError.
    """
    arrays, _ = _read_npz(path)
    return arrays


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Metadata of a safetensors or npz file; {} for a PyTorch checkpoint or where there is none."""
    kind = _kind(path)
    if kind == "safetensors":
        with _safetensors(path) as file:
            return dict(file.metadata() or {})
    return _read_npz(path)[1] if kind == "npz" else {}


def read_state(
    path: str | os.PathLike, *, prefer_ema: bool = True
) -> tuple[dict[str, np.ndarray], bool]:
    """Reads the named arrays of a weights file of any supported kind, told by its content.

    Args:
      path: our safetensors or npz (metadata `layout: lambdanet`), or PyTorch names in safetensors,
        npz or a checkpoint.
      prefer_ema: PyTorch checkpoints with averaged and live weights: take the averaged ones.

    Returns:
      (name -> array as stored, whether the names and layouts are ours).

    Raises:
      FileNotFoundError: no such file.
      WeightsFileError: damaged or unknown file.
    """
    kind, metadata = _kind(path), read_metadata(path)
    if kind == "torch":
        return load_torch(path, prefer_ema=prefer_ema), False
    state = load_safetensors(path) if kind == "safetensors" else load_npz(path)
    if metadata.get("layout") != LAYOUT:
        return state_dict_of(state, os.fspath(path)), False
    if metadata.get("layout_version") != LAYOUT_VERSION:
        raise WeightsFileError(
            f"{os.fspath(path)} has layout version {metadata.get('layout_version')!r}, written by "
            "lambdanet "
            f"{metadata.get('version')}; this program reads {LAYOUT_VERSION!r}: use the release "
            "that wrote it"
        )
    return state, True


def load_weights_file(
    path: str | os.PathLike,
    tables: Callable[[], Mapping[str, Sequence[Rule]]],
    target_shapes: Mapping[str, tuple[int, ...]],
    *,
    allow_head_mismatch: str | None = None,
    prefer_ema: bool = True,
) -> dict[str, np.ndarray]:
    """Reads weights for a model from a file of any supported kind, see `read_state`.

    Args:
      path: the file.
      tables: gives the model's name tables by grammar, for files with PyTorch names, see
          `names.choose_table`; called only for such a file, once it has been read.
      target_shapes: our '/'-path -> shape of every parameter and running statistic.
      allow_head_mismatch: path prefix of a classifier that may differ, see `names.convert`.
      prefer_ema: PyTorch checkpoints with averaged and live weights: take the averaged ones.

    Returns:
      Our path -> float32 array. Paths under `allow_head_mismatch` that the file cannot fill are
      left out.

    Raises:
      FileNotFoundError: no such file.
      WeightsFileError: damaged or unknown file.
      names.NameMappingError: the weights do not fit the model; all problems at once.
    """
    state, ours = read_state(path, prefer_ema=prefer_ema)
    known = {} if ours else tables()
    grammar = None if ours else choose_table(known, state, target_shapes)
    rules = OWN_NAMES if ours else known[grammar]
    try:
        arrays = convert(state, rules, target_shapes, allow_head_mismatch=allow_head_mismatch)
    except ValueError as error:
        raise type(error)(
            f"{os.fspath(path)}{'' if ours else f' (names: {grammar})'}: {error}"
        ) from None
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def _kind(path: str | os.PathLike) -> str:
    path = os.fspath(path)
    check_is_file(path)
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise WeightsFileError(
                f"{path} is damaged or cut short ({error}); fetch or copy it again"
            ) from error
        return "npz" if names and all(name.endswith(".npy") for name in names) else "torch"
    # A safetensors file opens with the length of its JSON header (8 bytes, little endian) and the
    # header itself.
    return "safetensors" if len(start) == 9 and start[8:9] == b"{" else "torch"


def _safetensors(path: str | os.PathLike):
    path = os.fspath(path)
    check_is_file(path)
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise WeightsFileError(
            f"{path} is no readable safetensors file ({error}); fetch or copy it again"
        ) from error


def _read_npz(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    path = os.fspath(path)
    check_is_file(path)
    try:
        _check_npz(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise WeightsFileError(
            f"{path} is no readable npz file of plain arrays ({error})"
        ) from error
    metadata = arrays.pop(_NPZ_METADATA, None)
    raw = [name for name, array in arrays.items() if array.dtype.kind == "V"]
    if raw:
        raise WeightsFileError(
            f"{path} holds arrays of a type that npz cannot name (bfloat16?): "
            f"{', '.join(raw[:8])}; "
            "write them as float32 or as safetensors"
        )
    if metadata is None:
        return arrays, {}
    try:
        found = json.loads(str(metadata))
    except (ValueError, RecursionError) as error:
        raise WeightsFileError(f"{path}: its metadata is no JSON ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise WeightsFileError(f"{path}: its metadata is no mapping of texts")
    return arrays, found


_FREE = 64 * 2**20  # bytes that a compressed file may always unpack to
_RATIO = 20  # and times its size; weights compress by less than two, unless most of them are zero


def _check_npz(path: str) -> None:
    """Raises ValueError where an array claims more than its entry holds, or the file unpacks to
    many times its size.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        if total > max(_FREE, _RATIO * os.path.getsize(path)):
            raise ValueError(f"it would unpack to {total:,} bytes, far more than weights do")
        for entry in entries:
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}
                if version not in read:
                    raise ValueError(f"{entry.filename}: npy version {version}")
                shape, _, dtype = getattr(np.lib.format, read[version])(file)
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or size > entry.file_size:
                raise ValueError(
                    f"{entry.filename} claims {shape} of {dtype}, {size:,} bytes, in "
                    f"{entry.file_size:,}"
                )
