"""The index file that keeps what the listing of a large set found.

Listing TrackingNet means reading 30,000 folders and as many annotation files. Done once, the result lies in one Arrow
file below `$MMTRACKERS_CACHE` (default: `~/.cache/mmtrackers`), memory-mapped when it is opened again. It is made anew
when a folder or an annotation that it was made of has changed, or when its bytes do not fit the checksum in its name.
"""

import hashlib
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .sequence import Sequence
from .sets import SequenceSet, columns, row_of, sequence_of

logger = logging.getLogger(__name__)

# A set of fewer frames is listed as fast as its index would be opened.
INDEXED_FROM = 20_000
FRAMES_PER_BATCH = 100_000
_FORMAT = "5"


class FileStamps(dict[str, int]):
    """The state of every folder and file that a listing has read: path -> stamp (-1: it is not there)."""

    def add(self, path: str | Path) -> None:
        """To be called before the path is read, so that a change meanwhile is not missed."""
        if str(path) not in self:
            self[str(path)] = _stamp(str(path))


def _stamp(path: str | bytes) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return -1
    return (status.st_mtime_ns * 31 + status.st_size) & 0x7FFF_FFFF_FFFF_FFFF


class IndexedSet(SequenceSet):
    """Sequences that lie in an index file."""

    def __init__(self, path: str | Path) -> None:
        import pyarrow as pa

        self.path = Path(path)
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return IndexedSet, (self.path,)

    def __len__(self) -> int:
        return self._table.num_rows

    def column(self, name: str) -> list:
        return self._table.column(name).to_pylist()

    def _item(self, i: int) -> Sequence:
        return sequence_of(self._table.slice(i, 1))

    def is_current(self) -> bool:
        """Whether everything that the index was made of is as it was."""
        watched, before = (self._table.column(name)[-1].as_py() for name in ("watched", "stamps"))
        return all(_stamp(path) == stamp for path, stamp in zip(watched, before, strict=True))


def write_index(path: Path, sequences: Iterable[Sequence], stamps: FileStamps) -> Path:
    """Writes sequences, listed meanwhile, to an index file; its name is `path` and a checksum."""
    import pyarrow as pa

    schema = pa.schema({
        **columns(),
        **dict.fromkeys(("boxes", "boxes_x"), pa.list_(pa.float64())),  # flat, which is written several times as fast
        # names of folders and files are bytes; those of a stream's files end with a zero byte each
        **dict.fromkeys(("folder", "files", "folder_x", "files_x"), pa.binary()),
        # in the last row
        "watched": pa.list_(pa.binary()), "stamps": pa.list_(pa.int64()),
    })  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.part") as folder:
        file, rows = Path(folder, "index"), []
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for sequence in sequences:
                if sum(row["length"] for row in rows) >= FRAMES_PER_BATCH:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
                    rows = []
                rows.append(row_of(sequence))
                for name in ("boxes", "boxes_x"):
                    rows[-1][name] = None if rows[-1][name] is None else rows[-1][name].ravel()
                for modality, files in sequence.frames.items():
                    end = "" if modality == "rgb" else "_x"
                    rows[-1] |= {f"folder{end}": os.fsencode(files.folder), f"files{end}": bytes(files.blob)}
            rows[-1] |= {"watched": [*map(os.fsencode, stamps)], "stamps": [*stamps.values()]}
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
        final = path.with_name(f"{path.name}-{_checksum(file)}.arrow")
        os.replace(file, final)
    return final


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()[:8]


def index_path(*key: object) -> Path:
    """The index file of what `key` describes (root, set, split ... as anything with a `repr` that says it all)."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmtrackers"
    digest = hashlib.sha256(repr((_FORMAT, *key)).encode()).hexdigest()[:24]
    return Path(os.environ.get("MMTRACKERS_CACHE", default)) / "index" / digest


def _current(path: Path) -> IndexedSet | None:
    """The set in an index file that is whole and current; others are removed."""
    for file in path.parent.glob(f"{path.name}-*.arrow"):
        if file.stem != f"{path.name}-{_checksum(file)}":
            logger.warning("%s is damaged: listing anew", file)
        elif (found := IndexedSet(file)).is_current():
            return found
        else:
            logger.info("files have changed since they were listed: listing anew (%s)", file)
        file.unlink(missing_ok=True)
    return None


def listed(path: Path, make: Callable[[FileStamps], Iterator[Sequence]]) -> SequenceSet:
    """The sequences that `make` lists, from the index file at `path` if it is current; large sets get one. `make`
    reports every path that it reads to the [`FileStamps`]."""
    try:
        if (found := _current(path)) is not None:
            return found
    except OSError as error:
        logger.warning("%s: listing anew", error)
    stamps = FileStamps()
    sequences, few, frames = make(stamps), [], 0
    for sequence in sequences:
        few.append(sequence)
        frames += len(sequence)
        if frames >= INDEXED_FROM:
            break
    else:
        return SequenceSet(few)
    try:
        return IndexedSet(write_index(path, itertools.chain(few, sequences), stamps))
    except (OSError, UnicodeError) as error:
        logger.warning("no index is kept, so listing takes as long every time: %s. Set MMTRACKERS_CACHE to a folder "
                       "with room", error)
        return SequenceSet(make(FileStamps()))
