"""Reads pickles as data: nothing in them is ever called or imported, and a name that we do not expect is refused."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from ultramem_deploy.checkpoint.header import shown
from ultramem_deploy.errors import InputError

MAX_PICKLE_BYTES = 1 << 28
STATE_DICT_GLOBALS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch.Size",
        "torch.storage.UntypedStorage",
        "torch.device",
    }
)
"""What the pickle inside a state dict may name, beside torch's storages and dtypes."""


@dataclass(frozen=True, eq=False)
class Global:
    """A class or function that a pickle names; never looked up."""

    name: str


@dataclass(eq=False)
class Record:
    """What a pickle would have called `kind` with `args` for, and the state it would have given the result."""

    kind: str
    args: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, eq=False)
class Persistent:
    """A reference to something stored outside the pickle: torch's storages."""

    value: Any


def read_pickle(data: bytes, where: str, allowed: Collection[str]) -> Any:
    """The content of a pickle in plain Python types, `Record`, `Global` and `Persistent`.

    InputError where it is damaged or names anything but `allowed` and torch's dtypes and storages.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise InputError(f"{where}: its pickle has {len(data)} bytes, at most {MAX_PICKLE_BYTES} are read")
    try:
        return _Reader(io.BytesIO(data), where, allowed).load()
    except InputError:
        raise
    except (MemoryError, RecursionError, Exception) as error:  # a damaged pickle fails in every way there is
        reason = shown(f"{type(error).__name__}: {error}", 120)[1:-1]
        raise InputError(f"{where}: its pickle is damaged ({reason}); get the file again") from None


# The pure Python class, not the C one: its memo is a dict, so that a damaged index cannot allocate gigabytes, and
# every operation that would call something can be replaced.
class _Reader(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]

    def __init__(self, stream: io.BytesIO, where: str, allowed: Collection[str]) -> None:
        super().__init__(stream)
        self.where, self.allowed = where, allowed

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self.allowed or full in STORAGE_DTYPES or (module == "torch" and name in TORCH_DTYPES):
            return Global(full)
        return self.refuse(f"it names {shown(full)}")

    def persistent_load(self, pid: Any) -> Any:
        return Persistent(pid)

    def refuse(self, why: str) -> NoReturn:
        raise InputError(
            f"{self.where}: refused: a pickle that can run code ({why}, which no state dict needs);"
            " save the weights again as safetensors, or the bare state dict with torch.save"
        )

    def build_record(self, kind: Any, args: Any) -> None:
        if not isinstance(kind, Global) or not isinstance(args, tuple):
            self.refuse("it calls what is no class")
        if kind.name == "builtins.getattr" and [type(arg) for arg in args] != [Global, str]:
            self.refuse("it asks for an attribute of what is no class")
        self.append({} if kind.name == "collections.OrderedDict" and not args else Record(kind.name, args))

    def load_reduce(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.build_record(kind, args)

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):  # a state dict carries `_metadata`, which nobody needs
            self.refuse("it sets attributes")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.set_items(self.stack[-1], items)

    def set_items(self, target: Any, items: list[Any]) -> None:
        # Tuples that share their halves take for ever to hash.
        if not isinstance(target, dict) or len(items) % 2 or any(not _is_key(key) for key in items[::2]):
            self.refuse("it fills what is no dict of names")
        target.update(zip(items[::2], items[1::2], strict=True))

    def load_forbidden(self) -> None:
        self.refuse("it has an operation that only pickled objects use")

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems
    dispatch |= dict.fromkeys(
        (
            code[0]
            for code in (
                pickle.OBJ, pickle.INST, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8,
                pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS,
                pickle.FROZENSET,
            )
        ),
        load_forbidden,
    )  # fmt: skip


def _is_key(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, Record))


def brief(value: Any) -> str:
    """A value from a pickle for a message: names and numbers in full, of anything else the type alone."""
    if isinstance(value, (str, bool)) or (isinstance(value, int) and abs(value) < 2**64):
        return shown(value)
    if isinstance(value, (tuple, list)) and len(value) < 33 and all(isinstance(item, int) for item in value):
        return "[" + ", ".join(brief(item) for item in value) + "]"
    return type(value).__name__


TORCH_DTYPES = {
    "float32": "float32",
    "float64": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "bool": "bool",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
}
"""Dtypes that torch pickles by name -> ours."""

STORAGE_DTYPES = {
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
"""Storage classes -> dtype of what they hold."""
