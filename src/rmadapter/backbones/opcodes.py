"""Read a pickled checkpoint of torch without unpickling it.

A pickle is a program of a few dozen instructions. Here those that make tables, lists, numbers and
texts are followed, and the few functions that `torch.save` writes for tensors are known by name and
stand for descriptions of tensors. No function that a file names is looked up, imported or called;
any other name or instruction is refused.
"""

from __future__ import annotations

import io
import pickletools
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what the form before zip archives starts with
DTYPES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool",
}  # fmt: skip
STORAGES = {f"torch.{kind}Storage": dtype for kind, dtype in DTYPES.items()}
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
WRAPPED = (  # functions whose first argument is what counts
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.Size",
    "torch.jit._pickle.build_intlist", "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.build_doublelist", "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.restore_type_tag", "torch.serialization._get_layout",
)  # fmt: skip
EMPTY = ("collections.OrderedDict", "collections.Counter", "torch.device")
OTHER_TENSORS = ("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_qtensor")
KNOWN = {*STORAGES, *TENSORS, *WRAPPED, *EMPTY, *OTHER_TENSORS}
SCRIPT = "__torch__."  # classes of a TorchScript archive
MOST_PICKLE = 2**28  # bytes of instructions, which are few beside the weights
IGNORED = ("PROTO", "FRAME", "STOP")
VALUES = (
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING",
    "STRING", "BINBYTES", "SHORT_BINBYTES",
)  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(Exception):
    """The file is refused; the message says why."""


class Name(NamedTuple):
    """A function or class that the file names."""

    path: str


class Storage(NamedTuple):
    dtype: str
    key: str
    numbers: int


class Described(NamedTuple):
    """A tensor: numbers of a storage. plain: False for a sparse or quantised one."""

    storage: Storage | None
    offset: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    plain: bool = True


class Scripted:
    """A module of TorchScript, which holds its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[str, object] = {}


MARK = object()


class Machine:
    """Follows the instructions of one pickle. names: of the TorchScript classes in it."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.names: set[str] = set()

    def run(self, file: BinaryIO) -> object:
        """Return what the pickle at a file's position describes; the file then is behind it."""
        for instruction, argument, _ in pickletools.genops(file):
            self._step(instruction.name, argument)
        return self.stack[-1]

    def _step(self, name: str, argument: object) -> None:
        stack = self.stack
        if name in IGNORED:
            return
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_SET"):
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            stack.append(MARK)
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in TUPLES:
            count = TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"):
            self._fill(name)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.memo[argument if isinstance(argument, int) else len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            assert isinstance(argument, int)
            stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = str(argument).split(" ") if name == "GLOBAL" else self._popped(2)
            stack.append(self._named(words))
        elif name in ("REDUCE", "NEWOBJ"):
            stack.append(self._made(*self._popped(2)))
        elif name == "BUILD":
            (state,) = self._popped(1)
            if isinstance(stack[-1], Scripted) and isinstance(state, dict):
                stack[-1].attributes.update(state)
        elif name == "BINPERSID":
            stack.append(self._storage(*self._popped(1)))
        else:
            raise Refused(f"it holds things other than tensors (instruction {name})")

    def _popped(self, count: int) -> list[object]:
        if len(self.stack) < count:
            raise ValueError("too few values")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _marked(self) -> list[object]:
        place = len(self.stack) - 1
        while self.stack[place] is not MARK:  # an IndexError without one
            place -= 1
            if place < 0:
                raise ValueError("no mark")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def _fill(self, name: str) -> None:
        """Add values to the list or table below them."""
        count = {"APPEND": 1, "SETITEM": 2}.get(name)
        values = self._popped(count) if count else self._marked()
        target = self.stack[-1]
        if name in ("APPEND", "APPENDS") and isinstance(target, list):
            target += values
        elif name in ("SETITEM", "SETITEMS") and isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                if not isinstance(key, (str, int, float, bytes, type(None))):
                    raise Refused("it holds a table whose keys are neither texts nor numbers")
                target[key] = value
        elif name != "ADDITEMS":
            raise ValueError("values for what takes none")

    def _named(self, words: Sequence[object]) -> Name:
        path = ".".join(map(str, words))
        if path.startswith(SCRIPT):
            self.names.add(path)
        elif path not in KNOWN and not re.fullmatch(r"torch\.\w+", path):  # such as a dtype
            raise Refused(f"it asks for {path[:100]}, but only tensors are accepted")
        return Name(path)

    def _made(self, function: object, arguments: object) -> object:
        """Return what a known function would make."""
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no function")
        path = function.path
        if path in TENSORS:
            storage, offset, shape, stride = arguments[:4]
            sizes = [offset, *shape, *stride]
            if not isinstance(storage, Storage) or not all(type(one) is int for one in sizes):
                raise ValueError("a tensor of other parts")
            return Described(storage, offset, tuple(shape), tuple(stride))
        if path in OTHER_TENSORS:
            return Described(None, plain=False)
        if path in WRAPPED:
            return arguments[0]
        if path in EMPTY:
            return {}
        if path.startswith(SCRIPT):
            return Scripted()
        raise Refused(f"it asks for {path[:100]}, but only tensors are accepted")

    def _storage(self, identity: object) -> Storage:
        if not isinstance(identity, tuple):
            raise ValueError("a reference to no storage")
        kind, name, key, _, count, *view = identity
        if kind != "storage" or not isinstance(name, Name) or not isinstance(count, int):
            raise ValueError("a reference to no storage")
        if any(view):
            raise Refused("it holds views of storages, an old form; save it again")
        if name.path not in STORAGES:
            raise Refused(f"it holds numbers of the kind {name.path[:100]}")
        return Storage(STORAGES[name.path], str(key), count)


class Checkpoint(NamedTuple):
    """content: of tables, lists, numbers, texts, `Described` and `Scripted`. names: of TorchScript
    classes."""

    content: object
    storages: Mapping[str, bytes]
    names: set[str]


class Records(Mapping[str, bytes]):
    """The storages of an archive by their keys, each read when asked for."""

    def __init__(self, archive: zipfile.ZipFile, place: str) -> None:
        self.archive, self.place = archive, place

    def __getitem__(self, key: str) -> bytes:
        return self.archive.read(f"{self.place}{key}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.archive.namelist())

    def __len__(self) -> int:
        return len(self.archive.namelist())


def read_archive(archive: zipfile.ZipFile) -> Checkpoint:
    """Read an archive of `torch.save` or TorchScript."""
    (data,) = [name for name in archive.namelist() if name.partition("/")[2] == "data.pkl"]
    root = data.removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
        raise Refused("its numbers are in another byte order")
    if archive.getinfo(data).file_size > MOST_PICKLE:
        raise Refused(f"it holds more than {MOST_PICKLE:,} bytes of instructions")
    machine = Machine()
    content = machine.run(io.BytesIO(archive.read(data)))
    return Checkpoint(content, Records(archive, f"{root}data/"), machine.names)


def read_old(file: BinaryIO) -> Checkpoint:
    """Read a file as `torch.save` wrote it before version 1.6: five pickles, then the storages."""
    import torch

    magic, protocol, system = (Machine().run(file) for _ in range(3))
    if (magic, protocol) != (MAGIC, PROTOCOL) or not isinstance(system, dict):
        raise Refused("it is damaged or not a torch checkpoint")
    if not system.get("little_endian") or sys.byteorder != "little":
        raise Refused("its numbers are in another byte order")
    machine = Storages()
    content = machine.run(file)
    kinds = machine.kinds
    keys = Machine().run(file)
    if not isinstance(keys, list) or {*map(str, keys)} != kinds.keys():
        raise Refused("its storages are not those of its tensors")
    storages: dict[str, bytes] = {}
    for key in map(str, keys):
        count = int.from_bytes(file.read(8), "little", signed=True)
        size = getattr(torch, kinds[key].dtype).itemsize
        if count != kinds[key].numbers or count < 0:
            raise Refused("its storages are not those of its tensors")
        storages[key] = file.read(count * size)
    return Checkpoint(content, storages, set())


class Storages(Machine):
    """A machine that keeps the storages by their keys."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, Storage] = {}

    def _storage(self, identity: object) -> Storage:
        storage = super()._storage(identity)
        return self.kinds.setdefault(storage.key, storage)


def as_tensor(name: str, described: Described, storages: Mapping[str, bytes]) -> Tensor:
    """Return a tensor over the bytes of its storage. Raises Refused for one that is not plain, and
    RuntimeError for one that reaches beyond its storage."""
    import torch

    storage = described.storage
    if storage is None or not described.plain:
        raise Refused(f"{name[:100]!r} is not a plain tensor")
    data = storages[storage.key]
    dtype = getattr(torch, storage.dtype)
    if len(data) < storage.numbers * dtype.itemsize:
        raise ValueError("a storage is cut")
    numbers = (
        torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.zeros(0, dtype=dtype)
    )
    return numbers.as_strided(described.shape, described.stride, described.offset)
