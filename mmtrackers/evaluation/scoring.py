"""What every protocol scores, ground truth and raw results, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from mmtrackers.data.sequence import check_file_name

from .results import Curve

Scores = dict[str, float]


@dataclass(eq=False)
class Truth:
    """What a protocol needs to know of one sequence.

    Args:
        name (`str`), boxes_xywh (`np.ndarray`): `[N, 4]` pixels, as in the set's file: zeros or NaN stay as they are.
        visible (`np.ndarray`, *optional*): `[N]` bool, what the set's own flags say of the target; none: no flags.
        annotated, second_boxes_xywh (`np.ndarray`, *optional*): as of a `Sequence`.
        image_size (`tuple[int, int]`, *optional*): width and height of its frames in pixels.
        anchors (`np.ndarray`, *optional*): `[N]`, > 0 where a forward run starts, < 0 where a backward one does.
        attributes (`tuple[str, ...]`): of the whole sequence.
    """

    name: str
    boxes_xywh: np.ndarray
    visible: np.ndarray | None = None
    annotated: np.ndarray | None = None
    second_boxes_xywh: np.ndarray | None = None
    image_size: tuple[int, int] | None = None
    anchors: np.ndarray | None = None
    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_file_name(self.name, "sequence")

    def __len__(self) -> int:
        return len(self.boxes_xywh)

    @property
    def first_visible(self) -> int:
        """The first frame that the set's flags do not call absent; 0 without flags."""
        return 0 if self.visible is None else int(np.argmax(self.visible))

    @property
    def runs(self) -> dict[int, np.ndarray]:
        """First frame of each multi-start run -> the frames that it goes through, in its order."""
        if self.anchors is None or not np.any(self.anchors):
            raise ValueError(f"sequence {self.name!r} has no anchors (anchor.value), which multi-start runs need")
        last = len(self)
        return {int(a): np.arange(a, last) if self.anchors[a] > 0 else np.arange(a, -1, -1)
                for a in np.flatnonzero(self.anchors)}  # fmt: skip


@dataclass(eq=False)
class RawResult:
    """What a tracker found in one sequence.

    Args:
        boxes_xywh (`np.ndarray`): `[N, 4]` pixels, one row per frame.
        confidence (`np.ndarray`, *optional*): `[N]`, for long-term protocols; none counts as 0 everywhere.
        runs (`dict[int, np.ndarray]`): multi-start protocols: anchor -> `[L, 4]` in the order of the run.
        file (`Path`, *optional*), notes (`list[str]`), partial (`bool`): where it was read, what was noticed there,
            and whether it was too short, and filled with misses.
    """

    boxes_xywh: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    confidence: np.ndarray | None = None
    runs: dict[int, np.ndarray] = field(default_factory=dict)
    file: Path | None = None
    notes: list[str] = field(default_factory=list)
    partial: bool = False


class Measured:
    """Sequences as a protocol measured them: the scores of any part of them."""

    def summary(self, chosen: np.ndarray) -> Scores:
        """The set's scores over the sequences with these indices."""
        raise NotImplementedError

    def curves(self) -> dict[str, Curve]:
        """The set's curves over all sequences."""
        raise NotImplementedError

    def of_sequence(self, index: int) -> Scores:
        """The scores of one sequence."""
        return self.summary(np.array([index]))

    def counted(self, index: int) -> bool:
        """Whether the sequence takes part in the set's scores."""
        return True


@dataclass(frozen=True)
class Protocol:
    """What all protocols have: their key in `PROTOCOLS`, the data set to show, whose code or paper they follow, the
    metric to rank by, and how raw results lie in a folder: "lines" (`<name>.txt`), "got10k" (`<name>/<name>_001.txt`),
    "vot" (the same, with the code 1 in the first line and confidences beside), "anchors" (a VOT file per run)."""

    name: str
    title: str
    source: str
    headline: str
    files: Literal["lines", "got10k", "vot", "anchors"] = "lines"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The figures, in the order of the set's tables."""
        raise NotImplementedError

    def measure(self, truths: Sequence[Truth], results: Sequence[RawResult]) -> Measured:
        """Measures sequences; `results[i]` belongs to `truths[i]`. ValueError, with sequence and frame, for a result
        that is too short, a row that the protocol rejects, or a sequence that lacks what it needs (image size, second
        boxes, anchors)."""
        raise NotImplementedError


def whole_boxes(truth: Truth, result: RawResult) -> np.ndarray:
    """`[N, 4]`: a box of the result for each frame of the sequence."""
    if len(result.boxes_xywh) < len(truth):
        raise ValueError(f"the result of {truth.name!r} has {len(result.boxes_xywh)} boxes for {len(truth)} frames")
    return result.boxes_xywh[: len(truth)]


def needed(truth: Truth, name: str) -> np.ndarray | tuple[int, int]:
    """A field of a truth that this protocol cannot do without."""
    if getattr(truth, name) is None:
        what = {"second_boxes_xywh": "boxes of the second modality", "image_size": "the size of its frames"}[name]
        raise ValueError(f"sequence {truth.name!r} lacks {what}, which this protocol needs")
    return getattr(truth, name)

