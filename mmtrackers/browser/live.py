"""A run that a person watches: it pauses, takes corrected boxes and targets that come and go, and leaves its files."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmtrackers.processing.frames import Frame
from mmtrackers.tracking.drawing import annotate
from mmtrackers.tracking.runs import RunResult, write_results
from mmtrackers.tracking.session import Prediction
from mmtrackers.tracking.sources import FrameSource
from mmtrackers.tracking.targets import Targets
from mmtrackers.tracking.tracker import Tracker
from mmtrackers.tracking.video import VideoWriter

# of a target in a frame where it is not followed
NOWHERE = Prediction(np.zeros(4), 0.0, False)


class LiveRun:
    """One run over a source, moved on by whoever iterates over it.

    Results go into `folder`; the first boxes belong to frame `first` (ValueError where there is none), and at most
    `most` frames are tracked. `found` are the targets of the last `frame` by their numbers. Another thread sets
    `pausing` or `stopping` to leave the loop; a run that has left it and waits is `paused`. `ended` says why no frame
    is left, and is empty before.
    """

    def __init__(self, tracker: Tracker, source: FrameSource, folder: Path, first: int = 0, most: int | None = None
                 ) -> None:  # fmt: skip
        self.tracker, self.source, self.folder = tracker, source, folder
        self.targets = Targets(tracker)
        self._frames = iter(source)
        self.first = self.index = first
        frame = next(itertools.islice(self._frames, first, None), None)
        if frame is None:
            raise ValueError(f"{source.name} has no frame {first}")
        self.frame: Frame = frame
        self.found: dict[int, Prediction] = {}
        self.predictions: list[dict[int, Prediction]] = [{}]
        self.end = None if most is None else first + most
        self.seconds, self.ended = 0.0, ""
        self.pausing = self.paused = self.stopping = False
        self._writer = VideoWriter(folder / "tracked.mp4", source.fps)
        self._drawn = False

    def place(self, boxes_xywh: Mapping[int, Sequence[float]]) -> None:
        """Says where the targets are in the last frame: those left out are removed, new numbers are added, and a box
        that a person has moved is corrected; ValueError at a box that cannot be used, when those before it are placed.
        """
        for number in set(self.targets.sessions) - set(boxes_xywh):
            self.targets.remove(number)
        for number, box in boxes_xywh.items():
            session = self.targets.sessions.get(number)
            if session is None:
                self.targets.add(self.frame, box, number)
            elif np.abs(session.boxes_xywh[0] - np.asarray(box, dtype=np.float64)).max() > 0.5:
                self.targets.correct(number, box)
            else:
                continue
            self.found[number] = Prediction(np.asarray(box, dtype=np.float64), 1.0)
        self.found = {number: p for number, p in self.found.items() if number in self.targets.sessions}
        self.predictions[-1] = dict(self.found)

    def __iter__(self) -> Iterator[int]:
        """Moves on frame by frame until the source ends, or `pausing` or `stopping` is set; yields the index. The last
        frame before a pause is drawn when the run goes on, with the boxes as a person left them."""
        self.pausing = False
        while not (self.stopping or self.pausing):
            self._draw()
            over = self.index + 1 == self.end
            try:
                frame = None if over else next(self._frames, None)
            except ValueError as error:
                frame, self.ended = None, str(error)
            if frame is None:
                self.ended = self.ended or ("the bound of this app" if over else "the end")
                return
            begin = time.perf_counter()
            self.found = self.targets.update(frame)
            self.seconds += time.perf_counter() - begin
            self.frame, self.index, self._drawn = frame, self.index + 1, False
            self.predictions.append(dict(self.found))
            yield self.index
        self.ended = "stopped" if self.stopping else ""

    def _draw(self) -> None:
        if not self._drawn:
            seen = {k: v for k, v in self.frame.items() if k in ("rgb", self.tracker.modality)}
            self._writer.write(annotate(seen, self._row(self.found), self.index))
            self._drawn = True

    @staticmethod
    def _row(found: Mapping[int, Prediction], count: int = 0) -> list[Prediction]:
        """By target number from 1, so that a target keeps its color and its file."""
        return [found.get(number, NOWHERE) for number in range(1, max([count, *found]) + 1)]

    @property
    def frames_per_second(self) -> float:
        """Frames that the tracker itself does in a second."""
        return (len(self.predictions) - 1) / self.seconds if self.seconds else 0.0

    def finish(self, settings: dict[str, Any]) -> list[Path]:
        """Ends the run and writes boxes and scores; returns the files, the video first."""
        self._draw()
        self.close()
        count = max(number for found in self.predictions for number in (0, *found))
        rows = [self._row(found, count) for found in self.predictions]
        result = RunResult(self.source, self.first, rows, self.seconds)
        return [self._writer.path, *write_results(result, self.folder, settings)]

    def close(self) -> None:
        """Lets go of the source and the video file."""
        getattr(self._frames, "close", lambda: None)()
        self._writer.close()
