"""Template memory: which frames of a video a tracker uses as templates, and the crops that it may still ask for."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Crops = tuple[Tensor | None, ...]

_BLOCK_BYTES = 48 << 20
_FIRST_REFERENCES = {1: (0, 0, 0), 2: (0, 1, 1), 3: (0, 1, 2)}


@dataclass(frozen=True)
class TemplatePolicy:
    """Which frames are the templates. This one: the first frame alone; a subclass says otherwise."""

    def indices(self, frame: int) -> tuple[int, ...]:
        """The past frames that serve as templates at frame `frame` (1, 2, ...), in the order of their tokens; one
        may come several times."""
        return (0,)

    def kept(self, frame: int) -> range:
        """The frames before `frame`, beside frame 0, that `frame` or a later one may ask for."""
        return range(0)


@dataclass(frozen=True)
class GrowingPolicy(TemplatePolicy):
    """Base of policies whose templates are spread over all of the video so far, with bounded memory.

    A subclass gives `chosen(frame)`: frames that never move back as the video goes on. Beyond `max_memory` frames they
    are rounded up to a multiple of a stride, the smallest power of two with which at most `max_memory` are kept: at
    frame 10,000 of 1,024 kept ones, templates are at most 15 frames later than the published rule's.

    Args:
        max_memory (`int`, *optional*), templates (`int`): most frames whose crops are kept, None for all; templates
            beside the first frame's, 2 or more. ValueError where the memory is too small for them.
    """

    max_memory: int | None = 1024
    templates: int = 3

    def __post_init__(self) -> None:
        if self.templates < 2:
            raise ValueError(f"templates is {self.templates}, expected 2 or more: TemplatePolicy keeps to one")
        if self.max_memory is not None and self.max_memory < 8 * self.templates:
            raise ValueError(f"max_memory is {self.max_memory}, expected at least {8 * self.templates} frames for "
                             f"{self.templates} templates, or None for no limit")  # fmt: skip

    def chosen(self, frame: int) -> tuple[int, ...]:
        """The exact templates at frame `frame`; frame 0 among them."""
        raise NotImplementedError

    def _stride(self, frame: int) -> int:
        if self.max_memory is None:
            return 1
        return 1 << (-(-frame // self.max_memory) - 1).bit_length()

    def indices(self, frame: int) -> tuple[int, ...]:
        stride = self._stride(frame)
        # up, not down: so the rounded frames never move back either, also when the stride doubles
        return tuple(-(-index // stride) * stride for index in self.chosen(frame))

    def kept(self, frame: int) -> range:
        first = min((index for index in self.indices(frame) if index), default=1)
        return range(first, frame, self._stride(frame))


@dataclass(frozen=True)
class SpreadTemplates(GrowingPolicy):
    """ODTrack's rule: the first frame, and the middles of `templates` equal parts of the video so far; all frames
    while there are no more of them (GXNU-ZhongLab/ODTrack, test-time `select_memory_frames`)."""

    def chosen(self, frame: int) -> tuple[int, ...]:
        if frame <= self.templates:
            return tuple(range(frame))
        part = frame // self.templates
        middles = (k * part + part // 2 for k in range(self.templates))
        return tuple(dict.fromkeys((0, *middles)))


@dataclass(frozen=True)
class QuarterReferences(GrowingPolicy):
    """SPMTrack's rule: the first frame, and two at about a quarter and three quarters of the video so far; always
    three, some of them the same at first (WenRuiCai/SPMTrack, evaluation pipeline)."""

    templates: int = 2

    def chosen(self, frame: int) -> tuple[int, ...]:
        half = frame // 2
        return _FIRST_REFERENCES.get(frame) or (0, half // 2, half + half // 2)


@dataclass(frozen=True)
class ThirdReferences(QuarterReferences):
    """The rule of SPMTrack-B's published result on LaSOT: the first frame, and two at a third and two thirds."""

    def chosen(self, frame: int) -> tuple[int, ...]:
        return _FIRST_REFERENCES.get(frame) or (0, frame // 3, 2 * frame // 3)


class _Shelf:
    """Tensors of one shape, in large blocks that are made beforehand: kept one by one they would lie between each
    frame's large tensors, whose memory could not be given back then."""

    def __init__(self, like: Tensor) -> None:
        # so large that the system gives pages of their own, which cost nothing until they are written
        self._rows = -(-_BLOCK_BYTES // max(1, like.nbytes))
        self._shape, self._dtype = like.shape, like.dtype
        self._blocks: list[Tensor] = []
        self._free: list[int] = []

    def __getitem__(self, slot: int) -> Tensor:
        return self._blocks[slot // self._rows][slot % self._rows]

    def put(self, tensor: Tensor) -> int:
        if not self._free:
            first = len(self._blocks) * self._rows
            self._blocks.append(torch.empty((self._rows, *self._shape), dtype=self._dtype))
            self._free = list(range(first + self._rows - 1, first - 1, -1))
        slot = self._free.pop()
        self[slot].copy_(tensor)
        return slot

    def drop(self, slot: int) -> None:
        self._free.append(slot)


class TemplateMemory:
    """The crops of one video that its policy may still ask for."""

    def __init__(self, policy: TemplatePolicy) -> None:
        self.policy = policy
        self._first: Crops = ()
        self._shelves: tuple[_Shelf | None, ...] = ()
        self._slots: dict[int, list[int]] = {}
        self._kept = range(0)

    def __len__(self) -> int:
        return len(self._slots) + 1

    def __iter__(self) -> Iterator[int]:
        """The frames whose crops are kept."""
        return iter((0, *self._slots))

    def __getitem__(self, frame: int) -> Crops:
        """The crops of frame `frame`, valid until the next `add`; `KeyError` if they were not added."""
        if frame == 0:
            return self._first
        slots = self._slots[frame]
        return tuple(shelf and shelf[slot] for shelf, slot in zip(self._shelves, slots, strict=True))

    def wants(self, frame: int) -> bool:
        """Whether the crops of frame `frame` can ever be asked for, so that they are worth cutting."""
        return frame == 0 or frame in self.policy.kept(frame + 1)

    def add(self, frame: int, crops: Crops) -> None:
        """Keeps a copy of the crops of the newest frame, of one form for all frames of a video; forgets those that no
        later frame can ask for."""
        if frame == 0:
            self._first = tuple(crops)
            self._shelves = tuple(None if one is None else _Shelf(one) for one in crops)
            return
        kept = self.policy.kept(frame + 1)
        if (kept.start, kept.step) != (self._kept.start, self._kept.step):
            for index in [index for index in self._slots if index not in kept]:
                for shelf, slot in zip(self._shelves, self._slots.pop(index), strict=True):
                    if shelf is not None:
                        shelf.drop(slot)
            self._kept = kept
        self._slots[frame] = [shelf.put(one) if shelf else 0 for shelf, one in zip(self._shelves, crops, strict=True)]
