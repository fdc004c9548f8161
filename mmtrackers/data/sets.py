"""Sets of sequences, and the rows of Arrow tables that large ones lie in."""

import collections.abc
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .sequence import EncodedImage, FrameFiles, LazySequence, Sequence

if TYPE_CHECKING:
    import pyarrow

_FACTS: dict[str, Callable[[Sequence], Any]] = {
    "name": lambda sequence: sequence.name,
    "modality": lambda sequence: sequence.modality,
    "length": len,
    "usable": lambda sequence: int(np.count_nonzero(getattr(sequence, "trainable", sequence.present))),
}


class SequenceSet(LazySequence[Sequence]):
    """Sequences of a set, as a list would hold them. `lengths` [N], `usable` [N] (frames whose box may be trained on),
    `names` and the `modalities` that occur are known without going through them, where they lie in a table."""

    _kind = "sequence"

    def __init__(self, items: Iterable[Sequence]) -> None:
        self._items = list(items)

    def column(self, name: str) -> list:
        """"name", "modality", "length" or "usable" of every sequence."""
        return [_FACTS[name](sequence) for sequence in self]

    @cached_property
    def names(self) -> list[str]:
        return self.column("name")

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array(self.column("length"), dtype=np.int64)

    @cached_property
    def usable(self) -> np.ndarray:
        return np.array(self.column("usable"), dtype=np.int64)

    @cached_property
    def modalities(self) -> set[str]:
        return set(self.column("modality"))

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} sequences, {int(self.lengths.sum())} frames)"

    def _item(self, i: int) -> Sequence:
        return self._items[i]


class JoinedSet(SequenceSet):
    """Several sets, one behind the other."""

    def __init__(self, sets: Iterable[SequenceSet]) -> None:
        self._sets = list(sets)
        self._ends = np.cumsum([len(one) for one in self._sets])

    def column(self, name: str) -> list:
        return [value for one in self._sets for value in one.column(name)]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _item(self, i: int) -> Sequence:
        which = int(np.searchsorted(self._ends, i, side="right"))
        return self._sets[which][i - int(self._ends[which])]  # negative: counted from that set's end


def columns() -> dict[str, "pyarrow.DataType"]:
    """What a row holds of a sequence beside its frames (see `row_of`): boxes, of the second modality `boxes_x`, are x,
    y, w, h in pixels; `usable` frames have a box that may be trained on; lists that do not apply are null."""
    import pyarrow as pa

    boxes, flags = pa.list_(pa.list_(pa.float64(), 4)), pa.list_(pa.bool_())
    return {
        **dict.fromkeys(("name", "dataset", "layout", "modality"), pa.string()),
        "length": pa.int32(), "usable": pa.int32(), "min_side": pa.float64(), "attributes": pa.list_(pa.string()),
        "boxes": boxes, "boxes_x": boxes, "present": flags, "annotated": flags,
        "extras": pa.list_(pa.struct({"name": pa.string(), "values": pa.list_(pa.float32())})),
    }  # fmt: skip


def row_of(sequence: Sequence) -> dict[str, Any]:
    """The columns of a sequence, lists of numbers as arrays; `sequence_of` is the inverse."""
    return {
        **{name: fact(sequence) for name, fact in _FACTS.items()},
        "dataset": sequence.dataset, "layout": sequence.layout, "min_side": sequence.min_side,
        "attributes": list(sequence.attributes), "boxes": sequence.boxes_xywh, "boxes_x": sequence.second_boxes_xywh,
        "present": sequence.present, "annotated": sequence.annotated,
        "extras": [{"name": name, "values": values} for name, values in sequence.extras.items()],
    }  # fmt: skip


def sequence_of(row: "pyarrow.Table | pyarrow.RecordBatch") -> Sequence:
    """The sequence of one row, whose frames are encoded images (`frames`) or names of files (`files`)."""

    def cell(name: str) -> Any:
        column = row.column(name) if name in row.schema.names else None
        return column[0] if column is not None and column[0].is_valid else None

    def plain(name: str, default: Any) -> Any:
        value = cell(name)
        return default if value is None else value.as_py()

    def array(name: str, width: int = 0) -> np.ndarray | None:
        value = cell(name)
        if value is None:
            return None
        values = value.values.flatten() if hasattr(value.values, "flatten") else value.values
        values = np.array(values.to_numpy(zero_copy_only=False))
        return values.astype(np.float64).reshape(-1, width) if width else values

    name, modality, boxes = plain("name", ""), plain("modality", "rgb"), array("boxes", 4)
    frames: dict[str, collections.abc.Sequence] = {}
    for stream, end in {"rgb": "", modality: "" if modality == "rgb" else "_x"}.items():
        if (files := cell(f"files{end}")) is not None:
            frames[stream] = FrameFiles(plain(f"folder{end}", b""), np.frombuffer(files.as_buffer(), np.uint8))
        elif (images := cell(f"frames{end}")) is not None:
            frames[stream] = _RowFrames(images.values, name)
    present = array("present")
    if present is None:
        present = np.isfinite(boxes).all(1) & (np.nan_to_num(boxes[:, 2:]) > 0).all(1)
    extras = {extra["name"]: np.array(extra["values"], np.float32) for extra in plain("extras", [])}
    return Sequence(
        name, frames, boxes, present, array("annotated"), array("boxes_x", 4), plain("layout", ""),
        plain("min_side", 0.0), plain("dataset", ""), tuple(plain("attributes", [])), extras,
    )  # fmt: skip


class _RowFrames(LazySequence[Path | EncodedImage]):
    """The encoded images of one row; each is taken out of the table's memory when it is asked for."""

    def __init__(self, images: "pyarrow.StructArray", name: str) -> None:
        self._bytes, self._paths, self._name = images.field("bytes"), images.field("path"), name

    def __len__(self) -> int:
        return len(self._bytes)

    def _item(self, i: int) -> Path | EncodedImage:
        path, data = self._paths[i].as_py(), self._bytes[i].as_buffer()
        if data is None:
            return Path(path)
        return EncodedImage(path or f"frame {i}", data, f"sequence {self._name!r}")
