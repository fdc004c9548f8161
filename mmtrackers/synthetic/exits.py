"""Composed video in which the camera turns away from the target and comes back to it."""

from dataclasses import dataclass, replace

import numpy as np

from .pairs import PictureLibrary, SyntheticSequence, synthetic_sequence

VIEW = (240, 320)  # height and width of what the camera sees
SMALLEST_PART = 0.1  # of the target inside the view, where it counts as present


@dataclass(eq=False)
class ExitingSequence:
    """A moving view into a wider composed video, read like any sequence.

    Attributes:
        source (`SyntheticSequence`): the wider video.
        corners (`np.ndarray` of shape `(length, 2)`, int): left and upper edge of the view in each frame.
    """

    source: SyntheticSequence
    corners: np.ndarray

    def __post_init__(self) -> None:
        x1, y1, w, h = self.source.boxes_xywh.T
        left, top = self.corners.T
        first = np.stack([np.clip(x1 - left, 0, VIEW[1]), np.clip(y1 - top, 0, VIEW[0])], 1)
        last = np.stack([np.clip(x1 + w - left, 0, VIEW[1]), np.clip(y1 + h - top, 0, VIEW[0])], 1)
        self.boxes_xywh = np.hstack([first, last - first])
        share = self.boxes_xywh[:, 2:].prod(1) / np.maximum(w * h, 1e-9)
        self.present = self.source.present & (share >= SMALLEST_PART) & (self.boxes_xywh[:, 2:].min(1) >= 1)
        self.annotated, self.name = np.ones(len(self), dtype=bool), f"exit-{self.source.name}"
        self.modality = self.source.modality

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Frame `index` of all streams, as far as the view goes."""
        left, top = self.corners[index]
        frame = self.source.read(index)
        return {name: picture[top : top + VIEW[0], left : left + VIEW[1]] for name, picture in frame.items()}

    def rgb_only(self) -> "ExitingSequence":
        """The same video without its second stream."""
        return replace(self, source=self.source.rgb_only())


def exiting_sequence(library: PictureLibrary, seed: int, modality: str = "rgb", length: int = 100) -> ExitingSequence:
    """A composed video whose target leaves the view for 10 to 25 frames and is somewhere else in it afterwards.

    Args:
        library (`PictureLibrary`): the pictures; of `split="heldout"` to measure.
        seed (`int`): chooses the video; the same for the same arguments.
        modality (`str`): the second stream, or "rgb" for none.
        length (`int`): number of frames, 60 at least.

    Raises:
        RuntimeError: no such video was found in 100 tries.
    """
    wide = (VIEW[0] + 80, 2 * VIEW[1])
    for attempt in range(100):
        rng = np.random.default_rng((seed, attempt, 11))
        source = synthetic_sequence(library, int(rng.integers(2**31)), modality, length, wide, blind="none")
        away, back = int(rng.integers(20, 30)), int(rng.integers(42, 52))
        centers = source.boxes_xywh[:, :2] + source.boxes_xywh[:, 2:] / 2
        keys = []
        for index, side in ((0, None), (away, None), (back, "away"), (min(back + 6, length - 1), None)):
            place = centers[index] - rng.uniform(0.3, 0.7, 2) * (VIEW[1], VIEW[0])
            if side == "away":
                place[0] = 0 if centers[index, 0] > VIEW[1] else wide[1] - VIEW[1]
            keys.append(np.clip(place, 0, (wide[1] - VIEW[1], wide[0] - VIEW[0])))
        times = [0, away, away + 6, back, min(back + 6, length - 1), length - 1]
        paths = [keys[0], keys[1], keys[2], keys[2], keys[3], keys[3]]
        corners = np.stack([np.interp(np.arange(length), times, np.array(paths)[:, axis]) for axis in (0, 1)], 1)
        found = ExitingSequence(source, np.rint(corners).astype(int))
        present = found.present
        gone = ~present[away + 6 : back]
        if present[: away - 2].all() and gone.sum() >= 10 and present[back + 8 :].mean() > 0.8:
            return found
    raise RuntimeError(f"no video with an exit and a return in 100 tries for seed {seed}")
