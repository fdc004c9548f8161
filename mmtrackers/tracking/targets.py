"""Several targets of one video that come and go: each has a session of its own, all share one forward pass a frame."""

from typing import TYPE_CHECKING, Any

from mmtrackers.processing.frames import Frame

from .session import Box, Prediction, TrackingSession, update_together

if TYPE_CHECKING:
    from .tracker import Tracker


class Targets:
    """The targets of one video that are added, corrected or removed in mid-video, each under a number of its own.

    Args:
        tracker (`Tracker`), kwargs: what `Tracker.start` takes besides frame and box (`modality`, `adapter`).

    Attributes:
        sessions (`dict[int, TrackingSession]`): by target number, in the order of their coming.

    Example:
        >>> import numpy as np
        >>> from mmtrackers import OSTrackConfig, OSTrackForTracking, Tracker, TrackerImageProcessor
        >>> config = OSTrackConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, head_channels=16)
        >>> tracker = Tracker(OSTrackForTracking(config).eval(), TrackerImageProcessor())
        >>> frames = np.random.default_rng(0).integers(0, 255, (3, 120, 160, 3), dtype=np.uint8)
        >>> targets = Targets(tracker)
        >>> first = targets.add(frames[0], [60, 40, 30, 20])
        >>> sorted(targets.update(frames[1]))
        [1]
        >>> second = targets.add(frames[1], [10, 10, 30, 30])
        >>> targets.remove(first)
        >>> sorted(targets.update(frames[2]))
        [2]
    """

    def __init__(self, tracker: "Tracker", **kwargs: Any) -> None:
        self.tracker, self.options = tracker, kwargs
        self.sessions: dict[int, TrackingSession] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self.sessions)

    def add(self, frame: Frame, box_xywh: Box, number: int | None = None) -> int:
        """Begins to follow one more target, seen in `frame`, the last frame of the others; returns its `number`, by
        default the next that no target has had. ValueError where it is taken, or as of `Tracker.start`; the other
        targets are as before then."""
        number = self._next if number is None else number
        if number in self.sessions:
            raise ValueError(f"target {number} is followed already: remove it first, or leave the number out")
        self.sessions[number] = self.tracker.start(frame, box_xywh, **self.options)
        self._next = max(self._next, number + 1)
        return number

    def remove(self, number: int) -> None:
        """Follows a target no longer; ValueError where there is none of this number."""
        self._session(number)
        del self.sessions[number]

    def correct(self, number: int, box_xywh: Box) -> None:
        """Puts a target where it is in the last frame; what is known of its looks stays. ValueError as `remove`."""
        self._session(number).boxes_xywh = box_xywh

    def update(self, frame: Frame) -> dict[int, Prediction]:
        """Finds all targets in the next frame, by their numbers; empty without targets. After a ValueError, as of
        `TrackingSession.update`, no target has moved."""
        if not self.sessions:
            return {}
        found = update_together(list(self.sessions.values()), [frame] * len(self.sessions))
        return dict(zip(self.sessions, found, strict=True))

    def _session(self, number: int) -> TrackingSession:
        if number not in self.sessions:
            raise ValueError(f"there is no target {number}; followed are {sorted(self.sessions)}")
        return self.sessions[number]
