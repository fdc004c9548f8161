"""Event recordings: files of several formats as events in order of time, and the pictures that trackers read.

The picture is the one that the scripts of VisEvent (wangxiao5791509/VisEvent_SOT_Benchmark) and COESOT
(Event-AHU/COESOT) make of the events within a frame's exposure.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

POSITIVE, NEGATIVE = (220, 30, 30), (30, 30, 200)

_CHUNK = 1_000_000  # events, or words of a file, that are read at a time
_NAMES = {"t": ("t", "ts", "timestamp", "timestamps", "time"), "x": ("x", "xs"), "y": ("y", "ys"),
          "p": ("p", "ps", "pol", "polarity", "polarities", "on")}  # fmt: skip


class Events(NamedTuple):
    """Events in order of time: microseconds (int64), column, row, and whether it became brighter; `[N]` each."""

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray


@dataclass(eq=False)
class EventFile:
    """An event recording, and a function that returns a fresh iterator over its [`Events`]; height and width of the
    sensor, where the file says it, and begin and end of the exposure of each RGB frame that the same camera took, in
    microseconds, int64 `[N, 2]`."""

    path: Path
    chunks: Callable[[], Iterator[Events]] = field(repr=False)
    size: tuple[int, int] | None = None
    exposures: np.ndarray | None = None

    def start(self) -> int:
        """Time stamp of the first event; ValueError where the recording is empty."""
        first = next((events for events in self.chunks() if len(events.t)), None)
        if first is None:
            raise ValueError(f"{self.path} holds no events")
        return int(first.t.min())


def open_events(path: str | Path) -> EventFile:
    """Opens an event recording.

    Args:
        path (`str` or `Path`): AEDAT4 (`.aedat4`); arrays t, x, y, p (`.npz`, `.h5`); lines `t x y p` (`.txt`,
            `.csv`); Prophesee's EVT2 (`.raw`) and DAT (`.dat`). Times are microseconds where they are whole numbers,
            seconds where they are not.

    Raises:
        ValueError: the file is missing, of another format, or has no time stamps, or a package that its format needs
            is not installed; says the way out.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "e.txt"
        >>> _ = file.write_text("0.001 5 7 1\\n0.002 6 7 0\\n")
        >>> next(open_events(file).chunks()).t.tolist()
        [1000, 2000]
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no event file {path}")
    if path.suffix.lower() not in _OPENERS:
        raise ValueError(f"{path}: events are read from {', '.join(EVENT_SUFFIXES)}")
    return _OPENERS[path.suffix.lower()](path)


def event_picture(events: Events, size: tuple[int, int]) -> np.ndarray:
    """Events of a frame as a picture of `size` (height, width): uint8 `[height, width, 3]` RGB, white ground, positive
    events red, negative ones blue and on top; ValueError for one outside.

    Example:
        >>> one = Events(np.array([0]), np.array([1]), np.array([0]), np.array([True]))
        >>> event_picture(one, (1, 2)).tolist()
        [[[255, 255, 255], [220, 30, 30]]]
    """
    height, width = size
    picture = np.full((height, width, 3), 255, np.uint8)
    x, y = np.asarray(events.x, np.intp), np.asarray(events.y, np.intp)
    if len(x) and (x.max() >= width or y.max() >= height or x.min() < 0 or y.min() < 0):
        raise ValueError(f"an event at x {x.max()}, y {y.max()} lies outside the picture of {width} x {height}: is "
                         "this the recording of that camera?")  # fmt: skip
    on = np.asarray(events.p, bool)
    picture[y[on], x[on]] = POSITIVE
    picture[y[~on], x[~on]] = NEGATIVE
    return picture


def in_windows(chunks: Iterable[Events], windows: Iterable[tuple[int, int]]) -> Iterator[Events]:
    """The events of each window `[begin, end)`; windows in order of time. Holds no more than a window and a chunk;
    ValueError where the recording's clock goes back by more than a second."""
    following = iter(chunks)
    held = Events(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.int64, bool)))
    for begin, end in windows:
        while (not len(held.t) or held.t[-1] < end) and (more := next(following, None)) is not None:
            if len(more.t) and len(held.t) and more.t[0] < held.t[0] - 1_000_000:
                raise ValueError(f"the time stamps go back from {held.t[-1]} to {more.t[0]} microseconds: cut the "
                                 "recording there")  # fmt: skip
            held = Events(*map(np.concatenate, zip(held, more, strict=True)))
            if (np.diff(held.t) < 0).any():
                order = np.argsort(held.t, kind="stable")
                held = Events(*(values[order] for values in held))
        first, last = np.searchsorted(held.t, (begin, end))
        yield Events(*(values[first:last] for values in held))
        held = Events(*(values[first:] for values in held))


def _columns(found: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The arrays t, x, y, p among named ones."""
    names = {name.lower(): name for name in found}
    chosen = {key: next((names[n] for n in known if n in names), None) for key, known in _NAMES.items()}
    if chosen["x"] and chosen["y"] and chosen["p"] and not chosen["t"]:
        raise ValueError(f"{path}: the events have no time stamps ({', '.join(found)}): they cannot go with frames")
    return {key: found[name] for key, name in chosen.items()} if all(chosen.values()) else None


def _in_seconds(t: np.ndarray) -> bool:
    """Whether the times at a recording's beginning are seconds: not all of them are whole numbers."""
    return bool((np.asarray(t) % 1).any())


def _events(
    t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray, offset: int = 0, seconds: bool = False
) -> Events:
    t = np.asarray(t)
    if seconds:
        t = np.round(t * 1e6)
    elif len(t) and abs(int(t[0])) > 10**17:  # nanoseconds since 1970
        t = t // 1000
    return Events(t.astype(np.int64) + offset, np.asarray(x, np.int64), np.asarray(y, np.int64), np.asarray(p) > 0)


def _open_npz(path: Path) -> EventFile:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from None
    if len(arrays) == 1 and (only := next(iter(arrays.values()))).dtype.names:
        arrays = {name: only[name] for name in only.dtype.names}
    columns = _columns(arrays, path)
    if columns is None or len({len(column) for column in columns.values()}) != 1:
        shown = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{path} holds {shown}: expected arrays t, x, y and p of one length")
    return EventFile(path, lambda: iter([_events(**columns, seconds=_in_seconds(columns["t"]))]))


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(f"this event format needs the package {package}: pip install 'mmtrackers[events]'") from None


def _open_h5(path: Path) -> EventFile:
    h5py = _needed("h5py")

    def chunks() -> Iterator[Events]:
        with h5py.File(path) as file:
            columns = _columns_of_h5(file, path)
            offset = int(file["t_offset"][()]) if "t_offset" in file else 0
            seconds = _in_seconds(columns["t"][:_CHUNK])
            for first in range(0, len(columns["t"]), _CHUNK):
                part = {name: values[first : first + _CHUNK] for name, values in columns.items()}
                yield _events(**part, offset=offset, seconds=seconds)

    try:
        with h5py.File(path) as file:
            _columns_of_h5(file, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as HDF5: {error}") from None
    return EventFile(path, chunks)


def _columns_of_h5(file: Any, path: Path) -> dict[str, Any]:
    places = [file]
    while places:
        group = places.pop(0)
        columns = _columns({name: item for name, item in group.items() if hasattr(item, "shape")}, path)
        if columns is not None:
            return columns
        places += [item for item in group.values() if hasattr(item, "items")]
    raise ValueError(f"{path} has no group with the datasets t, x, y and p")


def _open_text(path: Path) -> EventFile:
    def chunks() -> Iterator[Events]:
        seconds = None
        with path.open(encoding="utf-8-sig") as file:
            lines = (line.replace(",", " ") for line in file if line.strip() and line.lstrip()[0] not in "#%")
            head = next(lines, "").split()
            columns: Mapping[str, int] | None = {"t": 0, "x": 1, "y": 2, "p": 3}
            if head and head[0][0].isalpha():
                columns = _columns({name: i for i, name in enumerate(head)}, path)
                if columns is None:
                    raise ValueError(f"{path} has the columns {', '.join(head)}: expected t, x, y and p")
            elif len(head) != 2:  # two numbers are width and height
                lines = chain([" ".join(head)] if head else [], lines)
            while block := list(islice(lines, _CHUNK)):
                try:
                    rows = np.loadtxt(block, ndmin=2)
                except ValueError as error:
                    raise ValueError(f"{path} is no table of events: {error}") from None
                if rows.shape[1] < 4:
                    raise ValueError(f"{path} has {rows.shape[1]} numbers a line, expected four (t x y p): events "
                                     "without time stamps or polarity cannot go with frames")  # fmt: skip
                found = {name: rows[:, i] for name, i in columns.items()}
                seconds = _in_seconds(found["t"]) if seconds is None else seconds
                yield _events(**found, seconds=seconds)

    try:
        next(chunks(), None)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text") from None
    return EventFile(path, chunks)


def _header(path: Path) -> tuple[dict[str, str], int]:
    """The lines `% name value` at a Prophesee file's start, and where they end."""
    facts: dict[str, str] = {}
    with path.open("rb") as file:
        while file.peek(1)[:1] == b"%":
            words = file.readline().decode("latin-1").lstrip("% ").split(maxsplit=1)
            if words[:1] == ["end"]:
                break
            if words:
                facts[words[0].lower()] = words[1].strip() if len(words) > 1 else ""
        return facts, file.tell()


def _size_of(facts: Mapping[str, str]) -> tuple[int, int] | None:
    text = " ".join(f"{name} {value}" for name, value in facts.items()).lower()
    width, height = (re.search(rf"\b{side}[ =]+(\d+)", text) for side in ("width", "height"))
    if width and height:
        return int(height[1]), int(width[1])
    both = re.search(r"\bgeometry (\d+)x(\d+)", text)
    return (int(both[2]), int(both[1])) if both else None


def _open_evt2(path: Path) -> EventFile:
    facts, begin = _header(path)
    version = facts.get("evt") or (re.match(r"EVT([0-9.]+)", facts.get("format", "")) or ["", ""])[1]
    if version not in ("2", "2.0"):
        what = f"EVT {version}" if version else "a raw file without a header"
        raise ValueError(f"{path} is {what}: EVT 2.0 is read; convert it with Prophesee's metavision_file_to_dat or "
                         "_to_hdf5, or write arrays t, x, y, p with numpy.savez")  # fmt: skip

    def chunks() -> Iterator[Events]:
        high = -1
        for words in _words(path, begin, 1):
            kind, words = words >> 28, words.astype(np.int64)
            # the time's upper bits (8) hold for all words behind them; what comes before the first has no time
            at = np.maximum.accumulate(np.where(kind == 8, np.arange(len(words)), -1))
            upper = np.where(at >= 0, words[at] & 0xFFFFFFF, high)
            chosen = (kind <= 1) & (upper >= 0)
            w = words[chosen]
            yield Events((upper[chosen] << 6) | (w >> 22 & 63), w >> 11 & 2047, w & 2047, kind[chosen] == 1)
            high = int(upper[-1])

    return EventFile(path, chunks, _size_of(facts))


def _open_dat(path: Path) -> EventFile:
    facts, begin = _header(path)
    with path.open("rb") as file:
        file.seek(begin)
        kind = file.read(2)
    if len(kind) < 2 or kind[1] != 8 or kind[0] not in (0, 12):
        raise ValueError(f"{path} is no DAT file of change events (its type is {list(kind)}, expected 12 of 8 bytes)")

    def chunks() -> Iterator[Events]:
        wraps, last = 0, 0
        for words in _words(path, begin + 2, 2):
            t, data = words[::2].astype(np.int64), words[1::2].astype(np.int64)
            steps = np.diff(t, prepend=last)
            t_all = t + ((np.cumsum(steps < -(1 << 31)) + wraps) << 32)  # 32 bits of microseconds are 71 minutes
            wraps, last = int(t_all[-1] >> 32), int(t[-1])
            yield Events(t_all, data & 16383, data >> 14 & 16383, (data >> 28 & 15) > 0)

    return EventFile(path, chunks, _size_of(facts))


def _words(path: Path, begin: int, group: int) -> Iterator[np.ndarray]:
    """The 32-bit words of a file behind its header, a whole number of groups at a time."""
    with path.open("rb") as file:
        file.seek(begin)
        while len(words := np.fromfile(file, "<u4", group * _CHUNK)) >= group:
            yield words[: len(words) // group * group]


def _packets(path: Path, kind: str) -> Iterator[Any]:
    return (packet[kind] for packet in _needed("aedat").Decoder(str(path)) if kind in packet)


def _open_aedat4(path: Path) -> EventFile:
    aedat = _needed("aedat")
    try:
        streams = aedat.Decoder(str(path)).id_to_stream().values()
        sizes = [(s["height"], s["width"]) for s in streams if s["type"] == "events"]
        exposures = [(f["exposure_begin_t"], f["exposure_end_t"]) for f in _packets(path, "frame")]
    except Exception as error:  # the decoder raises its own kinds
        raise ValueError(f"{path} cannot be read as AEDAT4: {error}") from None
    if not sizes:
        raise ValueError(f"{path} has no stream of events")
    return EventFile(path, lambda: (_events(e["t"], e["x"], e["y"], e["on"]) for e in _packets(path, "events")),
                     sizes[0], np.array(exposures, np.int64) if exposures else None)


def aedat4_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames that a DAVIS camera took beside its events, `[H, W, 3]` RGB uint8."""
    for frame in _packets(path, "frame"):
        pixels = np.atleast_3d(frame["pixels"])[..., :3]
        yield np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


_OPENERS: dict[str, Callable[[Path], EventFile]] = {
    ".aedat4": _open_aedat4, ".npz": _open_npz, ".h5": _open_h5, ".hdf5": _open_h5, ".txt": _open_text,
    ".csv": _open_text, ".raw": _open_evt2, ".dat": _open_dat,
}  # fmt: skip
EVENT_SUFFIXES = tuple(_OPENERS)
