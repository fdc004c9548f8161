"""Coming back: where a lost target is looked for, and when it counts as found.

A target that is absent for more than `PATIENCE` frames is lost. In each further frame in which the crop round its
last place does not show it, a second one is cut, round a candidate or else at the next place of a round through the
frame, and no place in it counts for less. What answers there becomes the candidate; it is the target once it was
about as sure as the target usually was for `VOTES` frames.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from mmtrackers.processing.boxes import iou_xywh

PATIENCE = 5  # absent frames after which a target is lost
VOTES = 3  # frames for which a candidate must be sure
LEAST = 0.6  # a candidate's least confidence in a frame, as a share of what the target's has been
PROOF = 0.9  # and its mean over the votes
SAME = 0.3  # overlap of the candidate in one frame and the next
TRIED = 10  # frames after which a candidate without proof is left alone
USUAL = 0.96  # share of the past that a target's usual confidence keeps in each frame
SCALES = (1.0, 1.5, 2.0, 2.5)  # of the crop, the smallest with which a round takes at most
PLACES = 24
STEP = 0.5  # from place to place, in sides of a crop


@dataclass(frozen=True, eq=False)
class Lost:
    """A target that is not where it was: its last box `[4]`, the frame's height and width, the side of a search crop
    in mean sides of the box, the frames for which it has been absent, the places looked at so far, the box that is
    being watched, and how sure that was, frame by frame."""

    box_xywh: np.ndarray
    size: tuple[int, int]
    factor: float
    absent: int = 1
    step: int = 0
    candidate: np.ndarray | None = None
    sure: tuple[float, ...] = ()

    @property
    def sought(self) -> bool:
        """Whether it is looked for all over the frame."""
        return self.absent > PATIENCE

    def found(self, usual: float) -> bool:
        """Whether the candidate has proved itself, for a target that was `usual` sure."""
        return len(self.sure) >= VOTES and float(np.mean(self.sure[-VOTES:])) >= PROOF * usual

    def place(self) -> np.ndarray:
        """The box round which the second crop of the next frame is cut."""
        if self.candidate is not None:
            return self.candidate
        places = round_trip(tuple(self.box_xywh), self.size, self.factor)
        return np.array(places[self.step % len(places)])

    def seen(self, box_xywh: np.ndarray | None, sure: float) -> "Lost":
        """After a frame with a plausible box, or none."""
        if box_xywh is None or len(self.sure) == TRIED:
            return replace(self, step=self.step + 1, candidate=None, sure=())
        same = self.candidate is not None and iou_xywh(self.candidate, box_xywh) >= SAME
        sure_so_far = (*self.sure, sure) if same else (sure,)
        return replace(self, candidate=box_xywh, sure=sure_so_far)


@lru_cache(maxsize=64)
def round_trip(
    box_xywh: tuple[float, float, float, float], size: tuple[int, int], factor: float
) -> tuple[tuple[float, float, float, float], ...]:
    """Boxes whose search crops cover a frame (height, width) and overlap, the nearest to the last place first; of the
    last box's form, larger where a round would be too long."""
    x, y, w, h = box_xywh
    height, width = size
    for scale in SCALES:
        step = max(scale * factor * math.sqrt(w * h) * STEP, 1.0)
        columns, rows = (math.ceil(extent / step) for extent in (width, height))
        if columns * rows <= PLACES:
            break
    centers = [(width * (column + 0.5) / columns, height * (row + 0.5) / rows)
               for row in range(rows) for column in range(columns)]  # fmt: skip
    centers.sort(key=lambda center: (center[0] - x - w / 2) ** 2 + (center[1] - y - h / 2) ** 2)
    w, h = scale * w, scale * h
    return tuple((cx - w / 2, cy - h / 2, w, h) for cx, cy in centers)
