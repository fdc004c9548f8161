"""Sets of sequences, and the index file that keeps what their listing found.

Listing TrackingNet means reading 30,000 folders and as many annotation files. Done once, the result lies in one file
below `$MMTRACKERS_CACHE` (default: `~/.cache/mmtrackers`), memory-mapped when it is opened again. It is made anew when
a folder or an annotation that it was made of has changed.

The file: records of sequences (a JSON head, then arrays, all at multiples of 8 bytes), tables over all sequences, a
JSON directory of the tables, and the directory's place in the last 16 bytes.
"""

import collections.abc
import hashlib
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from .sequence import FrameFiles, Sequence

logger = logging.getLogger(__name__)

# A set of fewer frames is listed as fast as its index would be opened.
INDEXED_FROM = 20_000
_MAGIC = b"mmtidx02"
_ARRAYS = ("boxes_xywh", "present", "annotated", "second_boxes_xywh")
_PLAIN = ("name", "layout", "min_side", "dataset", "attributes")


class Watch:
    """Remembers the state of every folder and file that a listing has read: path -> stamp (-1: it is not there)."""

    def __init__(self) -> None:
        self.stamps: dict[str, int] = {}

    def add(self, path: str | Path) -> None:
        """To be called before the path is read, so that a change meanwhile is not missed."""
        key = str(path)
        if key not in self.stamps:
            self.stamps[key] = _stamp(key)


def _stamp(path: str) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return -1
    return (status.st_mtime_ns * 31 + status.st_size) & 0x7FFF_FFFF_FFFF_FFFF


class SequenceSet(collections.abc.Sequence):
    """Sequences of a set, as a list would hold them.

    `lengths` [N], `usable` [N] (frames whose box may be trained on), `names` and the `modalities` that occur are known
    without going through the sequences.

    Args:
        items (iterable of [`Sequence`]): in order.

    Example:
        >>> one = Sequence("a", {"rgb": [Path("1.jpg")]}, np.array([[1.0, 2, 3, 4]]), np.array([True]))
        >>> SequenceSet([one]).usable.tolist()
        [1]
    """

    def __init__(self, items: Iterable[Sequence]) -> None:
        self._items = list(items)

    @cached_property
    def names(self) -> list[str]:
        """Names of all sequences, in order."""
        return [sequence.name for sequence in self._items]

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(sequence) for sequence in self._items], dtype=np.int64)

    @cached_property
    def usable(self) -> np.ndarray:
        frames = (getattr(sequence, "trainable", sequence.present) for sequence in self._items)
        return np.array([np.count_nonzero(usable) for usable in frames], dtype=np.int64)

    @cached_property
    def modalities(self) -> set[str]:
        return {sequence.modality for sequence in self._items}

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Sequence: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sequence]: ...
    def __getitem__(self, index: int | slice) -> Sequence | list[Sequence]:
        if isinstance(index, slice):
            return [self._item(i) for i in range(*index.indices(len(self)))]
        i = int(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)}")
        return self._item(i % len(self))

    def __iter__(self) -> Iterator[Sequence]:
        return (self._item(i) for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} sequences, {int(self.lengths.sum())} frames)"

    def _item(self, i: int) -> Sequence:
        return self._items[i]


class JoinedSet(SequenceSet):
    """Several sets, one behind the other.

    Args:
        sets (list of [`SequenceSet`]): in order.
    """

    def __init__(self, sets: Iterable[SequenceSet]) -> None:
        self._sets = list(sets)
        self._ends = np.cumsum([len(one) for one in self._sets])

    @cached_property
    def names(self) -> list[str]:
        return [name for one in self._sets for name in one.names]

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.concatenate([one.lengths for one in self._sets])

    @cached_property
    def usable(self) -> np.ndarray:
        return np.concatenate([one.usable for one in self._sets])

    @cached_property
    def modalities(self) -> set[str]:
        return {modality for one in self._sets for modality in one.modalities}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _item(self, i: int) -> Sequence:
        which = int(np.searchsorted(self._ends, i, side="right"))
        return self._sets[which][i - int(self._ends[which])]  # negative: counted from that set's end


class IndexedSet(SequenceSet):
    """Sequences that lie in an index file; each is made when it is asked for.

    Args:
        path (`str` or `Path`): the file.

    Raises:
        ValueError: it is no index file, or a cut one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Copy on write: arrays of a sequence behave like arrays of its own, and the file stays as it is.
        self._bytes = np.memmap(self.path, dtype=np.uint8, mode="c")
        size = len(self._bytes)
        if size < 24 or bytes(self._bytes[:8]) != _MAGIC:
            raise ValueError(f"{path} is no index file")
        start, length = self._bytes[-16:].view(np.int64).tolist()
        if not 8 <= start <= start + length == size - 16:
            raise ValueError(f"{path} is cut")
        self._tables = json.loads(bytes(self._bytes[start : start + length]))
        self.lengths, self.usable = self._table("lengths"), self._table("usable")
        self._at = self._table("at")

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return IndexedSet, (self.path,)

    def _table(self, name: str) -> np.ndarray:
        start, length = self._tables[name]
        return np.asarray(self._bytes[start : start + length]).view(np.int64)

    def _strings(self, name: str) -> list[str]:
        start, length = self._tables[name]
        return bytes(self._bytes[start : start + length]).decode(errors="surrogateescape").split("\0")[:-1]

    @cached_property
    def names(self) -> list[str]:
        return self._strings("names")

    @cached_property
    def modalities(self) -> set[str]:
        return set(self._strings("modalities"))

    def is_current(self) -> bool:
        """Whether everything that the index was made of is as it was."""
        stamps = np.fromiter(map(_stamp, self._strings("watched")), dtype=np.int64)
        return np.array_equal(stamps, self._table("stamps"))

    def __len__(self) -> int:
        return len(self.lengths)

    def _item(self, i: int) -> Sequence:
        start, end = int(self._at[i]), int(self._at[i + 1])
        record = np.asarray(self._bytes[start:end])
        head_size = int(record[:8].view(np.int64)[0])
        head = json.loads(record[8 : 8 + head_size].tobytes())
        at = 8 + _padded(head_size)
        arrays, frames = {}, {}
        for name, kind, shape in head["arrays"]:
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            arrays[name] = record[at : at + size].view(kind).reshape(shape)
            at += _padded(size)
        for modality, folder, size in head["streams"]:
            frames[modality] = FrameFiles(folder, record[at : at + size], int(self.lengths[i]))
            at += _padded(size)
        extras = {name: arrays.pop(name) for name in list(arrays) if name not in _ARRAYS}
        plain = {name: head[name] for name in _PLAIN}
        plain["attributes"] = tuple(plain["attributes"])
        return Sequence(frames=frames, extras=extras, **arrays, **plain)


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _put(file: BinaryIO, data: bytes | np.ndarray) -> tuple[int, int]:
    """Append data, padded to 8 bytes; returns its place and size."""
    start, size = file.tell(), data.nbytes if isinstance(data, np.ndarray) else len(data)
    file.write(data.data if isinstance(data, np.ndarray) else data)
    file.write(bytes(_padded(size) - size))
    return start, size


def _put_record(file: BinaryIO, sequence: Sequence) -> None:
    arrays = {name: getattr(sequence, name) for name in _ARRAYS if getattr(sequence, name) is not None}
    if sequence.annotated.all():
        del arrays["annotated"]
    arrays |= sequence.extras
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    blobs = {modality: np.frombuffer(files.blob, np.uint8) for modality, files in sequence.frames.items()}
    head = {name: getattr(sequence, name) for name in _PLAIN}
    head["arrays"] = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    head["streams"] = [(modality, sequence.frames[modality].folder, len(blob)) for modality, blob in blobs.items()]
    text = json.dumps(head).encode()
    file.write(len(text).to_bytes(8, "little"))
    for block in (text, *arrays.values(), *blobs.values()):
        _put(file, block)


def write_index(path: Path, sequences: Iterable[Sequence], watch: Watch) -> None:
    """Write sequences to an index file, one after the other, and put it in place when it is whole.

    Args:
        path (`Path`): the file; replaced if it exists.
        sequences (iterable of [`Sequence`]): listed while they are written.
        watch (`Watch`): what the listing has read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".part", delete=False) as file:
        try:
            file.write(_MAGIC)
            names, at, lengths, usable, modalities = [], [file.tell()], [], [], set()
            for sequence in sequences:
                _put_record(file, sequence)
                names.append(sequence.name)
                modalities.add(sequence.modality)
                at.append(file.tell())
                lengths.append(len(sequence))
                usable.append(np.count_nonzero(sequence.trainable))
            strings = {"names": names, "modalities": sorted(modalities), "watched": list(watch.stamps)}
            numbers = {"at": at, "lengths": lengths, "usable": usable, "stamps": list(watch.stamps.values())}
            tables = {key: _put(file, _joined(value)) for key, value in strings.items()}
            tables |= {key: _put(file, np.array(value, np.int64)) for key, value in numbers.items()}
            text = json.dumps(tables).encode()
            text += b" " * (_padded(len(text)) - len(text))
            file.write(text + np.array([file.tell(), len(text)], np.int64).tobytes())
            file.close()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _joined(strings: list[str]) -> bytes:
    return "".join(f"{string}\0" for string in strings).encode(errors="surrogateescape")


def index_path(*key: object) -> Path:
    """The index file of what `key` describes (root, set, split ... as anything with a `repr` that says it all)."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmtrackers"
    digest = hashlib.sha256(repr((_MAGIC, *key)).encode()).hexdigest()[:24]
    return Path(os.environ.get("MMTRACKERS_CACHE", default)) / "index" / f"{digest}.idx"


def listed(path: Path, make: Callable[[Watch], Iterator[Sequence]]) -> SequenceSet:
    """The sequences that `make` lists, from the index file if it is current; large sets get one.

    Args:
        path (`Path`): the index file, see `index_path`.
        make (`Callable`): lists the sequences and reports every path that it reads to the `Watch`.

    Returns:
        [`SequenceSet`]
    """
    if path.is_file():
        try:
            found = IndexedSet(path)
            if found.is_current():
                return found
            logger.info("files have changed since they were listed: listing anew (%s)", path)
        except ValueError as error:
            logger.warning("%s: listing anew", error)
    watch = Watch()
    sequences, few, frames = make(watch), [], 0
    for sequence in sequences:
        few.append(sequence)
        frames += len(sequence)
        if frames >= INDEXED_FROM:
            break
    else:
        return SequenceSet(few)
    try:
        write_index(path, itertools.chain(few, sequences), watch)
        return IndexedSet(path)
    except OSError as error:
        logger.warning("no index is kept, so listing takes as long every time: %s. Set MMTRACKERS_CACHE to a folder "
                       "with room", error)
        return SequenceSet(make(Watch()))
