"""Weights files: safetensors, npz and PyTorch checkpoints in; safetensors and npz out.

Our own files say so in their metadata (`layout: lambdanet`) and hold '/'-paths; every other file is
taken as PyTorch's names and layouts and goes through a name table (`lambdanet.interop.names`).
"""

import dataclasses
import json
import logging
import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

import lambdanet
from lambdanet.atomic import write_file
from lambdanet.interop import grids as grids_lib
from lambdanet.interop.names import Rule, choose_table, convert
from lambdanet.interop.reading import (
    WeightsFileError,
    brief,
    check_archive,
    check_is_file,
    one_error,
)
from lambdanet.interop.torch_file import load_torch, state_dict_of

__all__ = [
    "OWN_NAMES",
    "WeightsFileError",
    "Stored",
    "export_metadata",
    "fit_state",
    "known_grids",
    "load_npz",
    "load_safetensors",
    "load_torch",
    "model_of",
    "normalisation_of",
    "read_metadata",
    "read_state",
    "save_npz",
    "save_safetensors",
]

_log = logging.getLogger(__name__)

LAYOUT = "lambdanet"
LAYOUT_VERSION = "1"
_NPZ_METADATA = "__metadata__"
OWN_NAMES = (Rule(r".+", r"\g<0>"),)
FitArray = Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray]
"""(our path, array in our layout, the model's shape) -> the array, of that shape where the model
knows how to make it so, else as it was."""
OWN_TABLE = "lambdanet"  # name of the table of such names among a model's tables for its parts


def export_metadata(
    model: Mapping[str, Any],
    grids: Mapping[str, grids_lib.Grid] | None = None,
    normalisation: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, str]:
    """Metadata of a file with our layout: the model's name and options as JSON, the maps and
    windows that its tables of positions are for (`grids.grids_of`), the `mean` and `std` that its
    pictures were normalised by, the layout, and who wrote it.
    """
    metadata = {
        "layout": LAYOUT,
        "layout_version": LAYOUT_VERSION,
        "version": lambdanet.__version__,
        "model": json.dumps(dict(model), sort_keys=True),
    }
    if normalisation:
        kept = {name: list(map(float, values)) for name, values in normalisation.items()}
        metadata["normalisation"] = json.dumps(kept)
    return metadata | ({"grids": grids_lib.to_metadata(grids)} if grids else {})


def model_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The model's name and options that `export_metadata` stored; {} where the file has none."""
    return _mapping(metadata.get("model", "{}"), "the file's metadata 'model'")


def normalisation_of(metadata: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
    """The `mean` and `std` that `export_metadata` stored; {} where the file has none, or is not
    ours.

    Raises:
        WeightsFileError: they are not one or three numbers.
    """
    if metadata.get("layout") != LAYOUT or "normalisation" not in metadata:
        return {}
    what = "the file's metadata 'normalisation'"
    stored = _mapping(metadata["normalisation"], what)
    try:
        found = {name: tuple(map(float, stored[name])) for name in ("mean", "std")}
    except (KeyError, TypeError, ValueError):
        found = {}
    if not found or not all(len(values) in (1, 3) for values in found.values()):
        raise WeightsFileError(
            f"{what} is {brief(str(stored))}; it needs 'mean' and 'std', one or three numbers each"
        )
    return found


def known_grids(metadata: Mapping[str, str]) -> grids_lib.Known:
    """What the metadata of a file of ours say of the sizes of its tables of positions."""
    sizes = _mapping(metadata.get("grids", "{}"), "the file's metadata 'grids'")
    return grids_lib.from_metadata(sizes, model_of(metadata))


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
    return _read_safetensors(path)[0]


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


class Stored(NamedTuple):
    """What a weights file holds.

    Attributes:
        arrays: name -> array as stored.
        ours: whether names and layouts are ours.
        metadata: of safetensors and npz files, and of runs; {} where there is none.
    """

    arrays: dict[str, np.ndarray]
    ours: bool
    metadata: dict[str, str]


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Metadata of a safetensors or npz file; {} for a PyTorch checkpoint or where there is none."""
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path, header_only=True)[1]
    return _read_npz(path)[1] if kind == "npz" else {}


def read_state(
    path: str | os.PathLike, *, prefer_ema: bool = True, numbers: int | None = None
) -> Stored:
    """Reads the named arrays of a weights file of any supported kind, told by its content.

    Args:
      path: our safetensors or npz (metadata `layout: lambdanet`), or PyTorch names in safetensors,
        npz or a checkpoint.
      prefer_ema: PyTorch checkpoints with averaged and live weights: take the averaged ones.
      numbers: of the model that wants the weights; a file far larger is refused unread.

    Returns:
      What it holds.

    Raises:
      FileNotFoundError: no such file.
      WeightsFileError: damaged or unknown file.
    """
    check_is_file(os.fspath(path), numbers)
    kind = _kind(path)
    if kind == "torch":
        return Stored(load_torch(path, prefer_ema=prefer_ema), False, {})
    state, metadata = _read_safetensors(path) if kind == "safetensors" else _read_npz(path)
    if metadata.get("layout") != LAYOUT:
        return Stored(state_dict_of(state, os.fspath(path)), False, metadata)
    if metadata.get("layout_version") != LAYOUT_VERSION:
        version, writer = (
            brief(str(metadata.get(key)), 40) for key in ("layout_version", "version")
        )
        raise WeightsFileError(
            f"{os.fspath(path)} has layout version {version!r}, written by lambdanet {writer}; "
            f"this program reads {LAYOUT_VERSION!r}: use the release that wrote it"
        )
    return Stored(state, True, metadata)


def fit_state(
    stored: Stored,
    name: str,
    tables: Callable[[], Mapping[str, Sequence[Rule]]],
    target_shapes: Mapping[str, tuple[int, ...]],
    *,
    grids: Mapping[str, grids_lib.Grid] | None = None,
    allow_head_mismatch: Sequence[str] = (),
    part: str = "",
    holder: str = "",
    fit: FitArray | None = None,
) -> dict[str, np.ndarray]:
    """Returns the weights of a model from what a file or a run holds.

    Args:
      stored: of `read_state`.
      name: of the file, for messages.
      tables: gives the model's name tables by grammar, for files with PyTorch names, see
          `names.choose_table`; called only for such a file.
      target_shapes: our '/'-path -> shape of every parameter and running statistic.
      grids: of the model's tables of positions, see `grids.grids_of`; tables that are for another
        map or window are refused, also where they have as many rows.
      allow_head_mismatch: paths of a classifier that may differ, see `names.convert`.
      part: path of the part of the model that the file is of, which has all of `target_shapes`; a
        file with our names is then read by the table 'lambdanet' of `tables`, and of one that is of
        a whole model with such a part, the part alone. '' = the whole.
      holder: path of the part that the model may be in the network of a file with our names, of
        which that part alone is then read. '' = the file is of the model.
      fit: makes an array of a network of another form the model's; the model's `fit_array`.

    Returns:
      Our path -> float32 array. Paths under `allow_head_mismatch` that the file cannot fill are
      left out.

    Raises:
      WeightsFileError: metadata that are none.
      names.NameMappingError: the weights do not fit the model; all problems at once.
    """
    state, ours, metadata = stored
    known = {} if ours and not part else tables()
    foreign = {name: table for name, table in known.items() if name != OWN_TABLE}
    grammar = None if ours else choose_table(foreign, state, target_shapes)
    rules = known.get(OWN_TABLE, OWN_NAMES) if ours else foreign[grammar]
    sizes = known_grids(metadata) if ours else grids_lib.Known()
    if part:
        if ours:
            state = _part_of(state, part)
        inside = {f"{part}/{path}": s for path, s in _part_of(sizes.sizes, part).items()}
        sizes = dataclasses.replace(sizes, sizes=inside)
    elif ours and holder:
        state = _part_of(state, holder)
        sizes = dataclasses.replace(sizes, sizes=_part_of(sizes.sizes, holder))
    check = grids_lib.checker(sizes, grids or {})
    fitted = []

    def reshape(path: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        array = check(path, array, shape)
        made = array if fit is None else fit(path, array, shape)
        if made.shape != array.shape:
            fitted.append(path)
        return made

    try:
        arrays = convert(
            state, rules, target_shapes, allow_head_mismatch=allow_head_mismatch, reshape=reshape
        )
    except ValueError as error:
        raise type(error)(f"{name}{'' if ours else f' (names: {grammar})'}: {error}") from None
    if fitted:
        _log.info("%s: made to fit the model: %s", name, ", ".join(fitted))
    return {path: np.asarray(array, np.float32) for path, array in arrays.items()}


def _part_of(named: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Returns what lies below `part`, by the names there; all where nothing does."""
    start = f"{part}/"
    inside = {name.removeprefix(start): v for name, v in named.items() if name.startswith(start)}
    return inside or dict(named)


def _kind(path: str | os.PathLike) -> str:
    path = os.fspath(path)
    check_is_file(path)
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):
        with one_error(path), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return "npz" if names and all(name.endswith(".npy") for name in names) else "torch"
    # A safetensors file opens with the length of its JSON header (8 bytes, little endian) and the
    # header itself.
    return "safetensors" if len(start) == 9 and start[8:9] == b"{" else "torch"


# NumPy has no such types, so the library does not hand these out as arrays.
_EIGHT_BITS = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


def _read_safetensors(
    path: str | os.PathLike, *, header_only: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    path = os.fspath(path)
    check_is_file(path)
    arrays: dict[str, np.ndarray] = {}
    with (
        one_error(path, "is no readable safetensors file"),
        safetensors.safe_open(path, framework="numpy") as file,
    ):
        metadata = dict(file.metadata() or {})
        names = [] if header_only else list(file.keys())
        eight = {name for name in names if file.get_slice(name).get_dtype() in _EIGHT_BITS}
        arrays |= {name: file.get_tensor(name) for name in names if name not in eight}
        if eight:
            with open(path, "rb") as raw:
                entries = safetensors.deserialize(raw.read())
            arrays |= {
                name: np.frombuffer(entry["data"], _EIGHT_BITS[entry["dtype"]]).reshape(
                    entry["shape"]
                )
                for name, entry in entries
                if name in eight
            }
    return arrays, metadata


def _read_npz(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    path = os.fspath(path)
    check_is_file(path)
    with one_error(path, "is no readable npz file of plain arrays"):
        with zipfile.ZipFile(path) as archive:
            _check_npz(archive, path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    metadata = arrays.pop(_NPZ_METADATA, None)
    raw = [name for name, array in arrays.items() if array.dtype.kind == "V"]
    if raw:
        raise WeightsFileError(
            f"{path} holds arrays of a type that npz cannot name (bfloat16?): "
            f"{brief(', '.join(raw[:8]))}; write them as float32 or as safetensors"
        )
    if metadata is None:
        return arrays, {}
    found = _mapping(str(metadata), f"{path}: its metadata")
    if not all(isinstance(value, str) for value in found.values()):
        raise WeightsFileError(f"{path}: its metadata is no mapping of texts")
    return arrays, found


def _check_npz(archive: zipfile.ZipFile, path: str) -> None:
    """Raises ValueError where an array claims more than its entry holds."""
    check_archive(archive, path)
    for entry in archive.infolist():
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}
            if version not in read:
                raise ValueError(f"{entry.filename}: npy version {version}")
            shape, _, dtype = getattr(np.lib.format, read[version])(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size > entry.file_size or min(shape, default=0) < 0:
            raise ValueError(
                f"{entry.filename} claims {brief(str(shape))} of {brief(str(dtype))} in "
                f"{entry.file_size:,} bytes"
            )


def _mapping(text: str, what: str) -> dict[str, Any]:
    """Returns a JSON mapping; WeightsFileError for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsFileError(f"{what} is no JSON ({brief(str(error))})") from error
    if not isinstance(found, dict):
        raise WeightsFileError(f"{what} is no mapping: {brief(text)}")
    return found
