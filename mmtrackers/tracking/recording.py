"""What a run leaves while it goes on, written in a thread: boxes and scores line by line, the annotated video."""

import io
import json
import math
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from mmtrackers.processing.alignment import Alignment
from mmtrackers.processing.files import write_json

from .drawing import annotate
from .export import label_files
from .session import Prediction
from .sources import FrameSource
from .video import VideoWriter

_WRITER = "mmtrackers track"
_WAITING_BYTES = 8 << 20  # of pictures that wait for the video
_LARGE, _SHOWN = 1440, 720  # the shorter side, in pixels: videos of more than the one are shrunk to the other


class ResultFiles:
    """The files in `folder` of one run, named after its source: boxes (a line `x,y,w,h` per frame, a file per target),
    scores (a line per frame, a column per target), the record (boxes, scores, presence and settings), a plot of
    overlap and score, the video, and label files of the kinds asked for (ValueError for one that is not known).

    Example:
        >>> [path.name for path in ResultFiles(Path("out"), "clip", 2).boxes]
        ['clip_tracked.txt', 'clip_tracked_2.txt']
    """

    def __init__(self, folder: Path, name: str, targets: int = 1, label_kinds: Sequence[str] = ()) -> None:
        self.folder, self.name = folder, name
        endings = (".txt", *(f"_{k}.txt" for k in range(2, targets + 1)), "_scores.txt", ".json", ".png", ".mp4")
        paths = [folder / f"{name}_tracked{ending}" for ending in endings]
        *self.boxes, self.scores, self.record, self.plot, self.video = paths
        self.labels = label_files(folder, name, label_kinds)
        self.all = [*self.boxes, self.scores, self.record, self.plot, *self.labels.values(), self.video]

    def check(self, overwrite: bool = False) -> None:
        """Raises FileExistsError where a name is taken, by a file that no run wrote, or, without `overwrite`, by
        results."""
        there, earlier = [path for path in self.all if os.path.lexists(path)], self._earlier()
        if foreign := [path for path in there if path.name not in earlier]:
            raise FileExistsError(f"{foreign[0]} was not written by {_WRITER} and is kept: choose another --output")
        if there and not overwrite:
            raise FileExistsError(f"{self.folder} holds results of an earlier run on {self.name} ({there[0].name}): "
                                  "choose another --output, or --overwrite to replace them")  # fmt: skip

    def claim(self) -> None:
        """Takes the names for a run that has begun: what an earlier one left there goes."""
        for name in self._earlier():
            (self.folder / name).unlink(missing_ok=True)
        self.write_record({"stopped": "not finished: the process ended before its results were complete"})

    def _earlier(self) -> set[str]:
        """Names of the files of the run that left its record here."""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            files = record["files"] if record["written_by"] == _WRITER else []
            return {name for name in files if name.startswith(f"{self.name}_") and name == Path(name).name}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return set()

    def write_record(self, content: dict[str, Any]) -> None:
        """Writes the record, which also says which files are this run's."""
        write_json(self.record, {"written_by": _WRITER, "files": [path.name for path in self.all], **content})


class _Lines(io.FileIO):
    """A text file that grows by whole lines, each of which is with the system once it is written."""

    def add(self, line: str) -> None:
        data, before = line.encode() + b"\n", self.tell()
        try:
            if self.write(data) != len(data):
                raise OSError("no space left on the device")
        except OSError as error:
            self.truncate(before)
            raise OSError(f"cannot write {self.name}: {error.strerror or error}") from error


class Recorder:
    """Takes what was found in each frame and writes it in a thread: lines of boxes and scores, then the video.

    Text and video hold the same frames, however the run ends. Videos of more than 1,440 lines are shrunk to 720.

    Args:
        files ([`ResultFiles`]), source (`FrameSource`): already claimed; whose ground truth is drawn.
        first (`int`): index of the given frame; lines of the frames before it hold zeros (scores: nan).
        shown (`tuple[str, ...]`, *optional*): the streams to draw; by default all of a frame.
        alignment (`dict`, *optional*), video (`bool`): the session's; write a video.

    Attributes:
        count (`int`): frames that are written.
        seconds (`dict[str, float]`): spent in "drawing" and "encoding", in the thread, and "waiting" for it.
    """

    def __init__(
        self, files: ResultFiles, source: FrameSource, first: int = 0, shown: tuple[str, ...] | None = None,
        alignment: Mapping[str, Alignment] | None = None, video: bool = True,
    ) -> None:
        self.files, self.source, self.shown, self.alignment, self.count = files, source, shown, alignment, 0
        self.seconds = dict.fromkeys(("drawing", "encoding", "waiting"), 0.0)
        self._video = VideoWriter(files.video, source.fps) if video else None
        self._boxes, self._scores = [_Lines(path, "w") for path in files.boxes], _Lines(files.scores, "w")
        for _ in range(first):
            self._add_lines([Prediction(np.zeros(4), math.nan)] * len(files.boxes))
        self._scale = 1.0
        self._queue: queue.Queue[Any] | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def _add_lines(self, found: Sequence[Prediction]) -> None:
        """A frame's boxes as the data sets' tools read them, and its scores."""
        for lines, prediction in zip(self._boxes, found, strict=True):
            lines.add(",".join(f"{value:.4f}" for value in prediction.box))
        self._scores.add(",".join(f"{prediction.score:.6f}" for prediction in found))

    def put(self, index: int, frame: dict[str, np.ndarray], found: Sequence[Prediction]) -> None:
        """Hands over a frame and what was found in it; waits where the video does not keep up. Here and in `close` an
        OSError or ValueError of an earlier frame is raised."""
        shown = None if self._video is None else self._shrunk({name: frame[name] for name in self.shown or frame})
        if self._queue is None:
            size = sum(picture.nbytes for picture in (shown or {}).values())
            self._queue = queue.Queue(max(1, min(16, _WAITING_BYTES // max(size, 1))))
            self._thread.start()
        if self._error is not None:
            raise self._error
        begin = time.perf_counter()
        self._queue.put((index, shown, found))
        self.seconds["waiting"] += time.perf_counter() - begin

    def _shrunk(self, frame: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Large pictures are shrunk at once: those that wait would take hundreds of megabytes."""
        side = min(next(iter(frame.values())).shape[:2])
        if side <= _LARGE or self.alignment:
            return frame
        self._scale = _SHOWN / side
        size = [round(length * self._scale) for length in next(iter(frame.values())).shape[1::-1]]
        return {name: cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for name, picture in frame.items()}

    def close(self) -> None:
        """Writes what was handed over and finishes the files."""
        if self._queue is not None:
            self._queue.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while (step := self._queue.get()) is not None:
                if self._error is None:
                    self._attempt(self._record, *step)
        finally:
            if self._video is not None:
                self._attempt(self._video.close)
            for lines in (*self._boxes, self._scores):
                lines.close()

    def _attempt(self, what: Any, *arguments: Any) -> None:
        try:
            what(*arguments)
        except av.FFmpegError as error:
            self._error = OSError(f"cannot write {self.files.video}: {error.strerror or error}")
        except Exception as error:
            self._error = error

    def _record(self, index: int, frame: dict[str, np.ndarray] | None, found: Sequence[Prediction]) -> None:
        self._add_lines(found)
        self.count += 1
        if frame is None:
            return
        begin = time.perf_counter()
        truth = self.source.boxes_xywh
        known = truth is not None and index < len(truth) and self.source.present[index]
        shown = [replace(prediction, box=self._scale * prediction.box) for prediction in found]
        drawn = annotate(frame, shown, index, self._scale * truth[index] if known else None, self.alignment)
        middle = time.perf_counter()
        self._video.write(drawn)
        self.seconds["drawing"] += middle - begin
        self.seconds["encoding"] += time.perf_counter() - middle
