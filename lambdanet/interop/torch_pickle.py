"""The pickle inside a PyTorch checkpoint, read without running code from it.

A pickle may name any importable function and have it called, so reading a stranger's file with the
ordinary unpickler can do anything. The one here imports nothing. It knows PyTorch's tensor rebuild
functions (replaced by our own, which make NumPy views), its storage and dtype names, and
`OrderedDict`. Every other name from a package gives an `Inert`, and so does whatever is made with
it: the settings that training programs save beside their weights. A name from Python's own library
is an error, but for those of plain data: a file that asks for one is made to harm.
"""

import _compat_pickle
import collections
import io
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from lambdanet.interop.reading import WeightsFileError, brief

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
# Plain data of Python's own library: module -> names, or None for all of them.
_PLAIN = {
    "argparse": {"Namespace"},
    "builtins": {"set", "frozenset", "complex", "bytearray", "slice", "range", "object"},
    "_codecs": {"encode"},
    "collections": None,
    "copyreg": {"_reconstructor"},
    "datetime": None,
    "decimal": None,
    "enum": None,
    "fractions": None,
    "pathlib": None,
    "pathlib._local": None,
    "types": {"SimpleNamespace"},
    "uuid": None,
}
_KEYS = (str, int, float, bool, bytes, type(None))
RESAVE = (
    "load it with PyTorch where you trust it and write the tensors alone: "
    'safetensors.torch.save_file(model.state_dict(), "x.safetensors") or '
    'torch.save(model.state_dict(), "x.pth")'
)


class Storage:
    """Raw little-endian bytes of one storage with its element type (None: untyped bytes)."""

    __slots__ = ("data", "dtype")

    def __init__(self, data: bytes, dtype: np.dtype | None):
        self.data, self.dtype = data, dtype


class Inert:
    """Stands for an object of a type that is not known, and keeps nothing of it.

    Args:
        name: of its type, for messages.
    """

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Named:
    """A name of PyTorch's that means something here: a function, or a dtype.

    A pickle may change what it is handed, and NumPy's dtypes are the whole process's: so it never
    gets one of these themselves.
    """

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: Any):
        self.name, self.value = name, value


class Unpickler(pickle._Unpickler):
    """Python's own form of the unpickler, whose instructions can be left out one by one.

    The one in C makes room for the largest memo index that a pickle names, 4 GB for 222 bytes.

    Args:
        data: the pickle.
        path: of the file, for messages.
        read_storage: key -> its bytes.
        most: bytes that all tensors together may stand for; views repeat what is stored once.
    """

    def __init__(self, data: bytes, path: str, read_storage: Callable[[str], bytes], most: int):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._path, self._read_storage, self._room = path, read_storage, most
        self._storages: dict[str, Storage] = {}

        def rebuild(storage, offset, size, stride, *_unused):
            return self._tensor(storage, storage.dtype, offset, size, stride)

        def rebuild_with_dtype(storage, offset, size, stride, _grad, _hooks, dtype, *_unused):
            dtype = dtype.value if isinstance(dtype, _Named) else dtype
            return self._tensor(storage, dtype, offset, size, stride)

        def parameter(data, *_unused):
            return data

        def ordered(*arguments):
            made = collections.OrderedDict()
            for key, value in arguments[0] if arguments else ():
                _put(made, key, value)
            return made

        known = {
            ("collections", "OrderedDict"): ordered,
            ("torch._utils", "_rebuild_tensor"): rebuild,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild,
            ("torch._utils", "_rebuild_tensor_v3"): rebuild_with_dtype,
            ("torch._utils", "_rebuild_parameter"): parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): parameter,
            ("torch.storage", "UntypedStorage"): None,
            **{("torch", name): dtype for name, dtype in (_STORAGES | _DTYPES).items()},
        }
        self._known = {
            (module, name): _Named(name, value) for (module, name), value in known.items()
        }

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name; imports nothing."""
        if self.proto < 3:  # written with the names of Python 2
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if (module, name) in self._known:
            return self._known[module, name]
        plain = _PLAIN.get(module, set())
        if module.split(".")[0] in sys.stdlib_module_names and plain is not None:
            if name not in plain:
                raise WeightsFileError(
                    f"{self._path} refused: it asks for {brief(f'{module}.{name}')}, but only "
                    "tensors, plain containers and settings are read, because a checkpoint can run "
                    f"code through such names. Fix: {RESAVE}"
                )
        return Inert(brief(f"{module}.{name}"))

    def persistent_load(self, pid: Any) -> Storage:
        """Returns the storage that a reference names."""
        try:
            kind, named, key, _location, count = pid
        except (TypeError, ValueError):
            kind = None
        if kind != "storage" or not isinstance(key, str) or not isinstance(count, int):
            raise WeightsFileError(f"{self._path} is damaged: a reference to no storage")
        if not isinstance(named, _Named) or not named.name.endswith("Storage"):
            what = named.name if isinstance(named, _Named | Inert) else type(named).__name__
            raise WeightsFileError(
                f"{self._path}: storages of the type {what!r} are not read; {RESAVE}"
            )
        dtype = named.value
        if key not in self._storages:
            data = self._read_storage(key)
            expected = count * (dtype.itemsize if dtype else 1)
            if len(data) != expected:
                raise WeightsFileError(
                    f"{self._path} is damaged: storage {key} has {len(data)} bytes, not {expected}"
                )
            self._storages[key] = Storage(data, dtype)
        if self._storages[key].dtype != dtype:
            raise WeightsFileError(
                f"{self._path} is damaged: storage {key} is claimed under two element types"
            )
        return self._storages[key]

    def _tensor(self, storage: Any, dtype: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
        """A strided view into a storage, refused where it would leave the storage."""
        if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
            raise ValueError("a tensor points at no storage or has an unknown element type")
        numbers = (offset, *size, *stride)
        sound = len(numbers) <= 129 and all(type(n) is int and -(2**63) <= n for n in numbers)
        layout = f"offset {offset}, size {size}, stride {stride}" if sound else "(no numbers)"
        if not sound or min(numbers) < 0 or max(numbers) >= 2**63 or len(size) != len(stride):
            raise ValueError(f"a tensor has the impossible layout {brief(layout)}")
        if 0 in size:
            return np.zeros(size, dtype)
        elements = len(storage.data) // dtype.itemsize
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if last >= elements:
            raise ValueError(f"a tensor reads element {last} of a storage of {elements}: {layout}")
        self._room -= math.prod(size) * dtype.itemsize
        if self._room < 0:
            raise ValueError(f"its tensors repeat what is stored far too often, the last: {layout}")
        steps = tuple(step * dtype.itemsize for step in stride)
        return np.ndarray(
            size, dtype, buffer=storage.data, offset=offset * dtype.itemsize, strides=steps
        )

    # ---- Instructions that do more than put plain values together --------------------------------

    def load_reduce(self):
        """Calls a function of ours; anything else called is inert."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        if isinstance(function, _Named) and callable(function.value):
            if not isinstance(arguments, tuple):
                raise ValueError("arguments that are no tuple")
            self.stack[-1] = function.value(*arguments)
        else:
            self.stack[-1] = Inert(getattr(function, "name", type(function).__name__))

    def load_newobj(self):
        """An object of any class is inert."""
        self.stack.pop()
        self.stack[-1] = Inert(getattr(self.stack[-1], "name", "object"))

    def load_newobj_ex(self):
        """As `load_newobj`, with one more argument."""
        self.stack.pop()
        self.load_newobj()

    def load_build(self):
        """Drops the attributes of an object: nothing here has any."""
        self.stack.pop()

    def load_setitem(self):
        """Puts one item into a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], key, value)

    def load_setitems(self):
        """Puts items into a dict."""
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(self.stack[-1], key, value)

    def load_dict(self):
        """Makes a dict of items."""
        items, made = self.pop_mark(), {}
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(made, key, value)
        self.append(made)

    def load_append(self):
        """Puts a value at the end of a list."""
        value = self.stack.pop()
        if isinstance(self.stack[-1], list):
            self.stack[-1].append(value)

    def load_appends(self):
        """Puts values at the end of a list."""
        values = self.pop_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def load_set(self):
        """A set is inert: nothing in it is a tensor with a name."""
        self.append(Inert("set"))

    def load_additems(self):
        """Drops the items of a set."""
        self.pop_mark()

    def load_frozenset(self):
        """As `load_set`."""
        self.pop_mark()
        self.load_set()

    dispatch = {
        **{
            code[0]: pickle._Unpickler.dispatch[code[0]]
            for code in (
                pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK,
                pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT,
                pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4,
                pickle.FLOAT, pickle.BINFLOAT, pickle.UNICODE, pickle.BINUNICODE,
                pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINSTRING,
                pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8,
                pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
                pickle.EMPTY_LIST, pickle.LIST, pickle.EMPTY_DICT, pickle.GLOBAL,
                pickle.STACK_GLOBAL, pickle.BINPERSID, pickle.PUT, pickle.BINPUT,
                pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET,
            )
        },
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.EMPTY_SET[0]: load_set,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }  # fmt: skip


def _put(container: Any, key: Any, value: Any) -> None:
    """Puts an item into a dict, unless its key is of a kind that no state dict has: hashing nested
    tuples takes time without end, or the process's stack.
    """
    if isinstance(container, dict) and isinstance(key, _KEYS):
        container[key] = value
