"""Coming back: where a lost target is looked for, and when it counts as found.

A lost target costs a second crop per frame. It is cut round a candidate, or else at the next place of a round through
the frame. What answers best becomes the candidate; one that stays plausible for `VOTES` frames is the target.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

VOTES = 3  # frames for which a candidate must stay plausible
PLAUSIBLE = 0.6  # its least confidence, as a share of what the target's has been, above the tracker's own limit
USUAL = 0.9  # share of the past that a target's usual confidence keeps in each frame
SCALES = (1.0, 1.5, 2.0, 2.5)  # of the crop, the smallest with which a round takes at most
PLACES = 12


@dataclass(frozen=True, eq=False)
class Lost:
    """A target that is not where it was: its last box `[4]`, the frame's height and width, the side of a search crop
    in mean sides of the box, the places looked at so far, the box that is being watched, and for how many frames that
    has been plausible."""

    box_xywh: np.ndarray
    size: tuple[int, int]
    factor: float
    step: int = 0
    candidate: np.ndarray | None = None
    votes: int = 0

    @property
    def found(self) -> bool:
        """Whether the candidate has proved itself."""
        return self.votes >= VOTES

    def place(self) -> np.ndarray:
        """The box round which the second crop of the next frame is cut."""
        if self.candidate is not None:
            return self.candidate
        places = round_trip(tuple(self.box_xywh), self.size, self.factor)
        return np.array(places[self.step % len(places)])

    def seen(self, box_xywh: np.ndarray | None) -> "Lost":
        """After a frame with a plausible box, or none."""
        if box_xywh is None:
            return replace(self, step=self.step + 1, candidate=None, votes=0)
        return replace(self, candidate=box_xywh, votes=self.votes + 1)


@lru_cache(maxsize=64)
def round_trip(
    box_xywh: tuple[float, float, float, float], size: tuple[int, int], factor: float
) -> tuple[tuple[float, float, float, float], ...]:
    """Boxes whose search crops cover a frame (height, width) with half a crop of overlap, the nearest to the last
    place first; of the last box's form, larger where a round would be too long."""
    x, y, w, h = box_xywh
    height, width = size
    for scale in SCALES:
        step = max(scale * factor * math.sqrt(w * h) / 2, 1.0)
        columns, rows = (max(1, math.ceil(extent / step) - 1) for extent in (width, height))
        if columns * rows <= PLACES:
            break
    centers = [
        (width * (column + 1) / (columns + 1), height * (row + 1) / (rows + 1))
        for row in range(rows) for column in range(columns)
    ]  # fmt: skip
    centers.sort(key=lambda center: (center[0] - x - w / 2) ** 2 + (center[1] - y - h / 2) ** 2)
    w, h = scale * w, scale * h
    return tuple((cx - w / 2, cy - h / 2, w, h) for cx, cy in centers)
