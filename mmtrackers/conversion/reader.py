"""Reading of the files that official training code writes (`.pth`, `.pth.tar`), without running anything in them.

Such a file is a pickle, which may name any function and have it called, and holds objects of classes that only the
official repository has. Here no name is resolved to what it means: the few that make up tensors become descriptions,
every other one an inert placeholder. The numbers are read afterwards, for the wanted entry only.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# where training code puts the weights, and what wrappers of a model put before every name
ENTRIES = ("net", "model", "state_dict")
PREFIXES = ("module.", "_orig_mod.")
# tensors may share numbers, but all of them together not be so many times the file
_LARGEST = 4
_MOST_NAMES = 10_000


class CheckpointError(ValueError):
    """A file that is no readable checkpoint of the expected kind."""


class _StorageRef(NamedTuple):
    """Where a tensor's numbers lie: an entry of the archive and how many numbers of which kind it holds."""

    dtype: torch.dtype
    key: str
    length: int


class _TensorRef(NamedTuple):
    """A tensor as the file describes it."""

    storage: _StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Placeholder:
    """Stands for whatever the file names that is not part of a tensor; takes any use a pickle can make of it and does
    nothing. `origin` says which name the file gave."""

    origin = "?"

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        return object.__new__(cls)

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        return self

    __init__ = __setstate__ = __setitem__ = append = extend = _ignore

    def __repr__(self) -> str:
        return f"<{self.origin}, not loaded>"


class _Limited:
    """A stream that does not reserve memory for bytes which it does not have."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size, self.readline = file, size, file.readline

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, max(self.size - self.file.tell(), 0)))


class _InertUnpickler(pickle._Unpickler):
    """Builds containers, numbers and text; resolves no global name to the thing it names. In Python, as the C form
    reserves gigabytes when a damaged byte asks for a far memo place. Keys that are neither text nor numbers are not
    hashed, since tuples of tuples take forever; sets become lists."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(_Limited(file, size))
        self.storages: dict[str, _StorageRef] = {}
        self.named: dict[str, type[Placeholder]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.cuda") and name in _DTYPES:
            return _DTYPES[name]
        # bound methods, because a pickle can set attributes on what it is given, and a method takes none
        known = {
            ("collections", "OrderedDict"): self._ordered,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
        }
        if (module, name) in known:
            return known[module, name]
        origin = f"{module}.{name}"[:100]
        if origin not in self.named and len(self.named) >= _MOST_NAMES:
            raise pickle.UnpicklingError(f"more than {_MOST_NAMES} functions and classes are named")
        return self.named.setdefault(origin, type("Placeholder", (Placeholder,), {"origin": origin}))

    def _tensor(self, storage: _StorageRef, offset: int, size: tuple, stride: tuple, *rest: Any) -> _TensorRef:
        return _TensorRef(storage, offset, tuple(size), tuple(stride))

    def _parameter(self, data: _TensorRef, *rest: Any) -> _TensorRef:
        return data

    def _ordered(self, pairs: Any = ()) -> OrderedDict:
        return self._put(OrderedDict(), [part for pair in pairs for part in pair])

    def persistent_load(self, pid: Any) -> _StorageRef:
        kind, dtype, key, _, length = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str | int) or length < 0:
            raise pickle.UnpicklingError(
                f"a reference to a {type(kind).__name__} of a {type(dtype).__name__}, where only storages of numbers "
                "may stand"
            )
        return self.storages.setdefault(str(key), _StorageRef(dtype, str(key), int(length)))

    @staticmethod
    def _put(target: Any, items: list) -> Any:
        for key, value in zip(items[::2], items[1::2], strict=True):
            plain = key is None or isinstance(key, str | bytes | int | float)
            target[key if plain else Placeholder()] = value
        return target

    def load_dict(self) -> None:
        self.append(self._put({}, self.pop_mark()))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._put(self.stack[-1], items)

    def load_empty_set(self) -> None:
        self.append([])

    def load_additems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].extend(items)

    def load_frozenset(self) -> None:
        self.append(self.pop_mark())

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    dispatch = pickle._Unpickler.dispatch | {
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.EMPTY_SET[0]: load_empty_set,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def load_official(path: str | Path, facts: list[str] | None = None) -> dict[str, Tensor]:
    """The weights of an official checkpoint file, by official name, on the CPU, without a prefix of all names that a
    wrapper left (`module.`); nothing in the file is executed.

    Args:
        path: `.pth` or `.pth.tar` as `torch.save` writes it (archive or the older single stream), or `.safetensors`;
            the weights in one of `ENTRIES`, or nothing but weights.
        facts: takes up what was found and changed, in sentences.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError (a ValueError): no such checkpoint, cut off or damaged, or one that claims more than it holds.
    """
    path, facts = Path(path), [] if facts is None else facts
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the checkpoint that the official code wrote (.pth, .pth.tar)")
    with path.open("rb") as file:
        head = file.read(9)
        file.seek(0)
        try:
            if path.suffix == ".safetensors" or head[8:] == b"{":
                net = load_file(path)
            elif head[:2] == b"PK":
                with zipfile.ZipFile(path) as archive:
                    net = _weights(path, facts, *_in_archive(path, archive))
            elif head[:1] == b"\x80":
                net = _weights(path, facts, *_in_stream(path, file))
            else:
                raise CheckpointError(
                    f"{path} is not a checkpoint: it begins with {head[:4]!r}, neither as an archive or stream of "
                    "torch.save nor as safetensors. Was a page saved in its place?"
                )
        except CheckpointError:
            raise
        except Exception as error:  # whatever readers raise on bytes that are not what they should be
            why = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{path} is cut off or damaged ({why}): fetch it again") from error
    for prefix in (*PREFIXES, *PREFIXES):
        if net and all(name.startswith(prefix) for name in net):
            facts.append(f"all names began with {prefix!r}, which was left out")
            net = {name.removeprefix(prefix): tensor for name, tensor in net.items()}
    return net


def _in_archive(path: Path, archive: zipfile.ZipFile) -> tuple[Any, Callable[[_StorageRef], bytes]]:
    """What a file describes, and what reads the numbers of a storage."""
    members = {name.partition("/")[2]: name for name in archive.namelist()}
    if "data.pkl" not in members:
        raise CheckpointError(f"{path} is an archive without data.pkl, so torch.save did not write it")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise CheckpointError(f"{path} is a compressed archive, which torch.save does not write: unpack it first")
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
        raise CheckpointError(f"{path} was written on a big-endian machine: save it again on another")

    def storage(ref: _StorageRef) -> bytes:
        member = members.get(f"data/{ref.key}")
        if member is None or archive.getinfo(member).file_size != ref.length * ref.dtype.itemsize:
            what = f"{ref.length} numbers of {ref.dtype} in data/{ref.key}"
            raise CheckpointError(f"{path} is damaged: it should have {what}, and has not. Fetch it again")
        return archive.read(member)

    pickled = archive.read(members["data.pkl"])
    return _InertUnpickler(io.BytesIO(pickled), len(pickled)).load(), storage


def _in_stream(path: Path, file: IO[bytes]) -> tuple[Any, Callable[[_StorageRef], bytes]]:
    """The same of `torch.save` before 1.6: five pickles in a row, then the storages, each after its length."""
    end = path.stat().st_size
    if _InertUnpickler(file, end).load() != _LEGACY_MAGIC:
        raise CheckpointError(f"{path} is a bare pickle, not a checkpoint that torch.save wrote")
    _InertUnpickler(file, end).load()
    _InertUnpickler(file, end).load()
    unpickler = _InertUnpickler(file, end)
    content = unpickler.load()
    places: dict[str, int] = {}
    for key in _InertUnpickler(file, end).load():
        places[key] = file.tell() + 8
        file.seek(8 + unpickler.storages[key].length * unpickler.storages[key].dtype.itemsize, 1)

    def storage(ref: _StorageRef) -> bytes:
        count = ref.length * ref.dtype.itemsize
        if ref.key not in places or places[ref.key] + count > end:
            raise CheckpointError(f"{path} is cut off: it lacks {count} bytes of storage {ref.key}. Fetch it again")
        file.seek(places[ref.key])
        return file.read(count)

    return content, storage


def _weights(path: Path, facts: list[str], content: Any, storage: Callable[[_StorageRef], bytes]) -> dict[str, Tensor]:
    """The tensors of the wanted entry; only here are numbers read."""
    expected = " or ".join(map(repr, ENTRIES))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {_described(content)}, not a dictionary with an entry {expected}")
    entry = next((name for name in ENTRIES if name in content), None)
    if entry is not None:
        content = content[entry]
        if entry != ENTRIES[0]:
            facts.append(f"the weights were in the entry {entry!r}")
    elif content and all(isinstance(value, _TensorRef) for value in content.values()):
        facts.append("the file is nothing but weights")
    else:
        raise CheckpointError(
            f"{path} has no entry {expected} with the weights; there are: {_listed(content)}. "
            "Is it the checkpoint of another tracker? Save its weights alone as safetensors"
        )
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: where the weights should be ({entry!r}) there is {_described(content)}")
    weights, left = {}, _LARGEST * path.stat().st_size
    for name, value in content.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: one of the weights has {_described(name)} for a name, expected text")
        if not isinstance(value, _TensorRef):
            raise CheckpointError(
                f"{path}: the weights' entry {name!r} is {_described(value)}, not a plain tensor, and nothing else "
                "is read. Take the file from its authors' page, or save its weights alone as safetensors"
            )
        _check_form(path, name, value)
        left -= math.prod(value.size) * value.storage.dtype.itemsize
        if left < 0:
            raise CheckpointError(f"{path}: its tensors claim more than {_LARGEST} times the numbers in the file")
        weights[name] = torch.empty(value.size, dtype=value.storage.dtype)
        if all(value.size):
            flat = torch.frombuffer(bytearray(storage(value.storage)), dtype=value.storage.dtype)
            weights[name].copy_(flat.as_strided(value.size, value.stride, value.offset))
    return weights


def _check_form(path: Path, name: str, ref: _TensorRef) -> None:
    """Raises CheckpointError where a tensor's shape cannot lie in its numbers without some counting twice."""
    if not isinstance(ref.storage, _StorageRef):
        raise CheckpointError(f"{path}: the weights' entry {name!r} has {_described(ref.storage)} for its numbers")
    sizes = (ref.offset, *ref.size, *ref.stride)
    sound = len(ref.size) == len(ref.stride) and all(type(n) is int and n >= 0 for n in sizes)
    if sound and all(ref.size):
        steps = list(zip(ref.size, ref.stride, strict=True))
        last = ref.offset + sum((size - 1) * stride for size, stride in steps)
        sound = last < ref.storage.length and all(stride or size == 1 for size, stride in steps)
        sound = sound and math.prod(ref.size) <= ref.storage.length
    if not sound:
        shape, numbers = _described(ref.size), ref.storage.length
        raise CheckpointError(f"{path}: the entry {name!r} of shape {shape} does not fit its {numbers} numbers")


def _listed(content: dict) -> str:
    names = [str(name)[:60] for name in content]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"


def _described(value: Any) -> str:
    if isinstance(value, tuple) and all(type(part) is int for part in value):
        return str(list(value))
    return repr(value) if isinstance(value, Placeholder) else f"a {type(value).__name__}"
