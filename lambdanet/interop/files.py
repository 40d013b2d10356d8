"""Weights files: safetensors, npz and PyTorch checkpoints in; safetensors and npz out.

Our own files say so in their metadata (`layout: lambdanet`) and hold '/'-paths; every other file is
taken as PyTorch's names and layouts and goes through a name table (`lambdanet.interop.names`).
"""

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import lambdanet
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
    return json.loads(metadata.get("model", "{}"))


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
    _write_whole(
        path,
        lambda temporary: safetensors.numpy.save_file(
            dense, temporary, metadata=dict(metadata or {})
        ),
    )


def load_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of a safetensors file; raises FileNotFoundError or WeightsFileError."""
    with _safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}


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

    _write_whole(path, write)


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
    tables: Mapping[str, Sequence[Rule]],
    target_shapes: Mapping[str, tuple[int, ...]],
    *,
    allow_head_mismatch: str | None = None,
    prefer_ema: bool = True,
) -> dict[str, np.ndarray]:
    """Reads weights for a model from a file of any supported kind, see `read_state`.

    Args:
      path: the file.
      tables: the model's name tables by grammar, for files with PyTorch names, see
          `names.choose_table`.
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
    grammar = None if ours else choose_table(tables, state, target_shapes)
    rules = OWN_NAMES if ours else tables[grammar]
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
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
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
    return arrays, {} if metadata is None else json.loads(str(metadata))


def _write_whole(path: str | os.PathLike, write: Callable[[str], None]) -> None:
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"cannot write {path}: the directory {folder} does not exist")
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(
            temporary, 0o666 & ~umask
        )  # mkstemp makes private files; a weights file gets the usual mode
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
