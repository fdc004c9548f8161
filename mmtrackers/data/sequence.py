"""A tracking sequence on disk."""

import collections.abc
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TypeVar, overload

import numpy as np

from mmtrackers.processing.frames import MODALITIES

from .images import EncodedImage, read_image

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"))


def natural_names(names: Iterable[str]) -> list[str]:
    """Sort file names as a person would: names that are numbers throughout (also with a decimal part, as time stamps
    have) as numbers, others piece by piece with their digits as integers.

    Example:
        >>> natural_names(["10.jpg", "2.jpg"])
        ['2.jpg', '10.jpg']
    """
    names = list(names)
    stems = [name.rpartition(".")[0] or name for name in names]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        return [name for _, name in sorted(zip(map(int, stems), names, strict=True))]
    if all(re.fullmatch(r"[0-9]+(\.[0-9]+)?", stem) for stem in stems):
        return [name for _, name in sorted(zip(map(Decimal, stems), names, strict=True))]

    def pieces(name: str) -> tuple[list[str | int], str]:
        parts = re.split(r"([0-9]+)", name)
        return [int(part) if i % 2 else part for i, part in enumerate(parts)], name

    return sorted(names, key=pieces)


T = TypeVar("T")


class LazySequence(collections.abc.Sequence[T]):
    """A sequence whose items are made when they are asked for, by `_item`."""

    _kind = "item"

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._item(i) for i in range(*index.indices(len(self)))]
        i = int(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self._kind} {i} of {len(self)}")
        return self._item(i % len(self))

    def _item(self, i: int) -> T:
        raise NotImplementedError


class FrameFiles(LazySequence[Path]):
    """The image files of one stream, kept as one block of bytes (names in order, each followed by a zero byte): a
    `Path` is made where one is asked for.

    A list of 14 million `Path`s (TrackingNet) would take several gigabytes; the names alone are a tenth of one, and
    may lie in a memory-mapped index.

    Example:
        >>> files = FrameFiles.of("cat", ["1.jpg", "2.jpg"])
        >>> len(files), files[-1].name, files[0:1]
        (2, '2.jpg', [PosixPath('cat/1.jpg')])
    """

    _kind = "frame"

    def __init__(self, folder: str | bytes | Path, blob: bytes | np.ndarray) -> None:
        self.folder, self.blob = os.fsdecode(folder), blob

    @classmethod
    def of(cls, folder: str | Path, names: Iterable[str]) -> "FrameFiles":
        return cls(folder, b"".join(os.fsencode(name) + b"\0" for name in names))

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.flatnonzero(np.frombuffer(self.blob, np.uint8) == 0)

    def __len__(self) -> int:
        return len(self._ends)

    def _item(self, i: int) -> Path:
        name = bytes(self.blob[self._ends[i - 1] + 1 if i else 0 : self._ends[i]])
        return Path(self.folder, os.fsdecode(name))

    def __repr__(self) -> str:
        return f"FrameFiles({self.folder!r}, {len(self)} files)"


def check_file_name(name: str, what: str) -> None:
    """Raises ValueError at a name that would lead out of the folder in which files are named after it."""
    if name in ("", ".", "..") or any(c in "/\\" or c < " " or c == "\x7f" for c in name):
        raise ValueError(f"the {what} name {name!r} cannot name a file: it may hold no separators or control "
                         "characters")  # fmt: skip


@dataclass(eq=False)
class Sequence:
    """One video with its annotation.

    Args:
        name (`str`): for messages and result files, so that it must do as the name of a file.
        frames (mapping of `str` to `list[Path]` or [`FrameFiles`]): modality -> image files in order;
            "rgb" must be there, at most one other.
        boxes_xywh (`np.ndarray`): [N, 4] float64 pixels, as in the file (absent rows too, no shift of the pixel base);
            NaN where a frame has no annotation.
        present (`np.ndarray`): [N] bool, the target is annotated and visible.
        annotated (`np.ndarray`, *optional*): [N] bool, the frame has a line in the annotation; by default all.
            Overlap is measured on these frames only.
        second_boxes_xywh (`np.ndarray`, *optional*): [N, 4], the boxes in the second modality, where a set has them.
        layout, dataset (`str`): the on-disk layout it was read from, and the set it was opened as, else empty.
        min_side (`float`): pixels; for training a box counts only if both of its sides are larger.
        attributes (`tuple[str, ...]`): the set's labels of the whole sequence, such as "LR" (low resolution).
        extras (`dict[str, np.ndarray]`): [N] float32 each, the set's own numbers per frame as they stand in the file
            of that name: "absent_label", "full_occlusion", "cover", "anchor" ...

    Raises:
        ValueError: no RGB frames, more than two modalities, counts that differ, or a name that leads elsewhere; names
            the sequence and both counts.
    """

    name: str
    frames: Mapping[str, collections.abc.Sequence[Path | EncodedImage]]
    boxes_xywh: np.ndarray
    present: np.ndarray
    annotated: np.ndarray | None = None
    second_boxes_xywh: np.ndarray | None = None
    layout: str = field(default="", compare=False)
    min_side: float = 0.0
    dataset: str = field(default="", compare=False)
    attributes: tuple[str, ...] = ()
    extras: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_file_name(self.name, "sequence")
        if not self.frames.get("rgb"):
            raise ValueError(f"sequence {self.name!r} has no RGB frames")
        for modality, files in self.frames.items():
            if modality not in MODALITIES:
                raise ValueError(f"sequence {self.name!r}: {modality!r} is none of {', '.join(MODALITIES)}")
            if len(files) != len(self):
                raise ValueError(f"sequence {self.name!r} has {len(self)} rgb frames but {len(files)} {modality} "
                                 "frames: the streams must be paired, one file each per frame")
        if len(self.frames) > 2:
            raise ValueError(f"sequence {self.name!r} has {', '.join(self.frames)}: choose one beside rgb with "
                             f"modality={self.modality!r}")
        if self.annotated is None:
            self.annotated = np.ones(len(self), dtype=bool)
        if self.boxes_xywh.shape != (len(self), 4) or len(self.present) != len(self):
            raise ValueError(f"sequence {self.name!r} has {len(self)} frames but boxes {self.boxes_xywh.shape} and "
                             f"{len(self.present)} presence flags")

    def __len__(self) -> int:
        return len(self.frames["rgb"])

    @property
    def modality(self) -> str:
        """The second modality, or "rgb" if there is none."""
        return next((modality for modality in self.frames if modality != "rgb"), "rgb")

    @property
    def trainable(self) -> np.ndarray:
        """[N] bool: frames whose box may be used for training (present, and both sides above `min_side`)."""
        with np.errstate(invalid="ignore"):
            return self.present & (self.boxes_xywh[:, 2:] > self.min_side).all(1)

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Frame `index` as {modality: image}; see `read_image` for forms and errors."""
        return {modality: read_image(files[index], modality) for modality, files in self.frames.items()}

    def rgb_only(self) -> "Sequence":
        """The same sequence without its second modality."""
        return replace(self, frames={"rgb": self.frames["rgb"]}, second_boxes_xywh=None)

    def second_as_rgb(self) -> "Sequence":
        """The second modality alone, in the place of RGB and with its own boxes where it has them; ValueError where
        there is none, or it is depth (which is no picture)."""
        if self.modality in ("rgb", "depth"):
            raise ValueError(f"sequence {self.name!r} has no thermal or event stream to show as RGB")
        boxes = self.boxes_xywh if self.second_boxes_xywh is None else self.second_boxes_xywh
        with np.errstate(invalid="ignore"):
            present = self.annotated & np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1)
        present &= self.present | (self.second_boxes_xywh is not None)
        return replace(self, frames={"rgb": self.frames[self.modality]}, boxes_xywh=boxes, present=present,
                       second_boxes_xywh=None)
