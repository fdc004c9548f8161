"""A converted tracker against its authors' published raw boxes, sequence by sequence."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtrackers.data import Sequence
from mmtrackers.data.annotations import read_boxes
from mmtrackers.processing.boxes import iou_xywh
from mmtrackers.tracking.tracker import Tracker


@dataclass(frozen=True)
class Agreement:
    """How far a tracker's boxes in a sequence are those of a file: frames compared (without the given one), the mean
    overlap of both, and the first frame, from 0, whose boxes overlap less than asked for."""

    sequence: str
    frames: int
    mean_iou: float
    first_different: int | None

    def __str__(self) -> str:
        where = "none differs" if self.first_different is None else f"the first that differs is {self.first_different}"
        return f"{self.sequence}: mean overlap {self.mean_iou:.4f} over {self.frames} frames, {where}"


def verify(
    tracker: Tracker, sequences: Iterable[Sequence], folder: str | Path, same: float = 0.95
) -> Iterator[Agreement]:
    """Tracks through the sequences that a folder of raw results (`<sequence>.txt` each, a line x,y,w,h per frame, as
    authors publish them) has a file of, and compares box by box; yields as each is done. From an overlap of `same` two
    boxes count as the same; published ones are rounded. ValueError where there is no file of any sequence, or one of
    another number of frames.

    Once a box differs, the crops of all later frames do: the first frame that differs says more than the mean.

    Example:
        ```python
        for agreement in verify(tracker, open_dataset("LasHeR", dataset="lasher", split="test"), "raw/lasher"):
            print(agreement)
        ```
    """
    compared = 0
    for sequence in sequences:
        file = Path(folder) / f"{sequence.name}.txt"
        if not file.is_file():
            continue
        first, rows = int(np.argmax(sequence.present)), read_boxes(file)
        if len(rows) not in (len(sequence), len(sequence) - first):
            raise ValueError(f"{file} has {len(rows)} boxes and sequence {sequence.name} {len(sequence)} frames")
        rows = rows[len(rows) - (len(sequence) - first) :]
        frames = (sequence.read(k) for k in range(first, len(sequence)))
        found = np.array([p.box for p in tracker.track(frames, sequence.boxes_xywh[first])])
        overlaps = np.nan_to_num(iou_xywh(found, rows))[1:]
        bad = np.flatnonzero(overlaps < same)
        compared += 1
        mean = float(overlaps.mean()) if len(overlaps) else 1.0
        yield Agreement(sequence.name, len(overlaps), mean, int(bad[0]) + first + 1 if len(bad) else None)
    if not compared:
        raise ValueError(f"{folder} has no <sequence>.txt of a sequence of this set: expected raw boxes, a file each")
