"""Reading of the files that official training code writes (`.pth`, `.pth.tar`), without running anything in them.

Such a file is a pickle of a dictionary with, beside the weights, optimiser state and objects of classes that only the
official repository has. A pickle may name any function and have it called. The reader below resolves no name to what
it means: the few that make up tensors become descriptions, and every other one an inert placeholder. The numbers are
read afterwards, for the wanted entry only.
"""

import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError
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
# what readers of archives and pickles raise on bytes that are not what they should be
_FAULTS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,
)


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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        return self

    def _ignore(self, *args: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore

    def __repr__(self) -> str:
        return f"<{self.origin}, not loaded>"


class _InertUnpickler(pickle._Unpickler):
    """Builds containers, numbers and text; resolves no global name to the thing it names.

    The Python form of the unpickler: the C one reserves gigabytes when a damaged byte asks for a far memo place.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, _StorageRef] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.cuda") and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        # bound methods, because a pickle can set attributes on what it is given, and a method takes none
        known = {
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
        }
        if (module, name) in known:
            return known[module, name]
        return type("Placeholder", (Placeholder,), {"origin": f"{module}.{name}"})

    def _tensor(self, storage: _StorageRef, offset: int, size: tuple, stride: tuple, *rest: Any) -> _TensorRef:
        return _TensorRef(storage, offset, tuple(size), tuple(stride))

    def _parameter(self, data: _TensorRef, *rest: Any) -> _TensorRef:
        return data

    def persistent_load(self, pid: Any) -> _StorageRef:
        kind, dtype, key, _, length = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or int(length) < 0:
            raise pickle.UnpicklingError(
                f"a reference to {kind!r} of {dtype!r}, where only storages of numbers may stand"
            )
        return self.storages.setdefault(str(key), _StorageRef(dtype, str(key), int(length)))


def load_official(path: str | Path, entry: str | None = "net") -> dict[str, Tensor]:
    """The weights of an official checkpoint file; nothing in the file is executed.

    Args:
        path: `.pth` or `.pth.tar` as `torch.save` writes it (archive or the older single stream), or `.safetensors`.
        entry: which entry of the file holds the weights; `None` for a file that is nothing but weights. A safetensors
            file is always that.

    Returns:
        Tensors by official name, on the CPU, each with its own memory.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError (a ValueError): the file is not such a checkpoint, is cut off or damaged, or has no such entry.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "tiny.pth.tar"
        >>> torch.save({"net": {"w": torch.ones(2)}, "epoch": 3}, path)
        >>> load_official(path)
        {'w': tensor([1., 1.])}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the checkpoint that the official code wrote (.pth, .pth.tar)")
    with path.open("rb") as file:
        head = file.read(9)
        file.seek(0)
        try:
            if path.suffix == ".safetensors" or head[8:] == b"{":
                return load_file(path)
            if head[:2] == b"PK":
                return _load_archive(path, entry)
            if head[:1] == b"\x80":
                return _load_legacy(path, file, entry)
        except CheckpointError:
            raise
        except _FAULTS as error:
            raise CheckpointError(
                f"{path} is cut off or damaged ({type(error).__name__}: {error}): fetch it again"
            ) from error
    raise CheckpointError(
        f"{path} is not a checkpoint: it begins with {head[:4]!r}, neither as an archive or stream of torch.save "
        "nor as safetensors. Was a page saved in its place?"
    )


def _load_archive(path: Path, entry: str | None) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in members:
            raise CheckpointError(f"{path} is an archive without data.pkl, so torch.save did not write it")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine: save it again on another")
        with archive.open(members["data.pkl"]) as stream:
            content = _InertUnpickler(stream).load()

        def storage(ref: _StorageRef) -> bytes:
            member = members.get(f"data/{ref.key}")
            if member is None or archive.getinfo(member).file_size != ref.length * ref.dtype.itemsize:
                what = f"{ref.length} numbers of {ref.dtype} in data/{ref.key}"
                raise CheckpointError(f"{path} is damaged: it should have {what}, and has not. Fetch it again")
            return archive.read(member)

        return _weights(path, content, entry, storage)


def _load_legacy(path: Path, file: IO[bytes], entry: str | None) -> dict[str, Tensor]:
    """The form of `torch.save` before 1.6: five pickles in a row, then the storages, each after its length."""
    if _InertUnpickler(file).load() != _LEGACY_MAGIC:
        raise CheckpointError(f"{path} is a bare pickle, not a checkpoint that torch.save wrote")
    _InertUnpickler(file).load()
    _InertUnpickler(file).load()
    unpickler = _InertUnpickler(file)
    content = unpickler.load()
    places: dict[str, int] = {}
    end = path.stat().st_size
    for key in _InertUnpickler(file).load():
        places[key] = file.tell() + 8
        file.seek(8 + unpickler.storages[key].length * unpickler.storages[key].dtype.itemsize, 1)

    def storage(ref: _StorageRef) -> bytes:
        count = ref.length * ref.dtype.itemsize
        if ref.key not in places or places[ref.key] + count > end:
            raise CheckpointError(
                f"{path} is cut off: {count} bytes of storage {ref.key} are not in it. Fetch it again"
            )
        file.seek(places[ref.key])
        return file.read(count)

    return _weights(path, content, entry, storage)


def _weights(
    path: Path, content: Any, entry: str | None, storage: Callable[[_StorageRef], bytes]
) -> dict[str, Tensor]:
    """The tensors of the wanted entry; only here are numbers read."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {_told(content)}, not a dictionary with an entry {entry!r}")
    if entry is not None:
        if entry not in content:
            raise CheckpointError(
                f"{path} has no entry {entry!r} with the weights; there are: {_listed(content)}. "
                "Is it the checkpoint of another tracker, or weights alone?"
            )
        content = content[entry]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: where the weights should be ({entry!r}) there is {_told(content)}")
    weights = {}
    for name, value in content.items():
        if not isinstance(value, _TensorRef):
            raise CheckpointError(
                f"{path}: the weights' entry {name!r} is {_told(value)}, not a plain tensor, and nothing else "
                "is read. Take the file from its authors' page, or save its weights alone as safetensors"
            )
        weights[str(name)] = _tensor(path, str(name), value, storage)
    return weights


def _tensor(path: Path, name: str, ref: _TensorRef, storage: Callable[[_StorageRef], bytes]) -> Tensor:
    if not isinstance(ref.storage, _StorageRef):
        raise CheckpointError(f"{path}: the weights' entry {name!r} has {_told(ref.storage)} for its numbers")
    data = storage(ref.storage)
    if not data:
        return torch.empty(ref.size, dtype=ref.storage.dtype)
    try:
        flat = torch.frombuffer(bytearray(data), dtype=ref.storage.dtype)
        return flat.as_strided(ref.size, ref.stride, ref.offset).contiguous().clone()
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{path}: the entry {name!r} does not fit its {ref.storage.length} numbers ({error})"
        ) from error


def _listed(content: dict) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"


def _told(value: Any) -> str:
    return repr(value) if isinstance(value, Placeholder) else f"a {type(value).__name__}"
