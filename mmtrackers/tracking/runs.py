"""One run of a tracker over one source: the loop, its results, and the files that it leaves."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmtrackers.processing.boxes import iou_xywh
from mmtrackers.processing.files import FolderLock

from .ahead import ReadAhead
from .clock import StageClock
from .export import export
from .recording import Recorder, ResultFiles
from .session import Prediction, TrackingSession
from .sources import Frame, FrameSource
from .threads import ThreadChoice
from .tracker import Tracker

KEPT = 10_000  # frames of a camera that a run holds in memory


@dataclass
class RunResult:
    """What a run found.

    Args:
        source (`FrameSource`): what was tracked in.
        first (`int`): index of the frame that the given boxes belong to.
        predictions (`list[list[Prediction]]`): per frame from `first` on, one per target, the given boxes first.
        seconds, elapsed (`float`): in the tracker, without reading and drawing; of the whole run.
        threads (`int`): on a CPU, with which the tracker ran at the end.
        stopped (`str`, *optional*): why it ended before the source did.
        interrupt (`KeyboardInterrupt`, *optional*): what ended it, if Ctrl-C or a signal did.
        clock ([`StageClock`], *optional*): where the time went, if that was asked for.
        recording (`dict[str, float]`): seconds of drawing and encoding, beside the tracker, and of waiting for it.
        files (`list[Path]`): what the run left.
        size (`tuple[int, int]`): height and width of the frames in pixels.
        dropped (`int`): of a camera, how many earlier frames are in the text files alone; `first` counts them.
    """

    source: FrameSource
    first: int
    predictions: list[list[Prediction]] = field(default_factory=list)
    seconds: float = 0.0
    elapsed: float = 0.0
    threads: int = 1
    stopped: str | None = None
    interrupt: KeyboardInterrupt | None = None
    clock: StageClock | None = field(default=None, repr=False)
    recording: dict[str, float] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    dropped: int = 0

    def __repr__(self) -> str:
        targets = len(self.predictions[0]) if self.predictions else 0
        return f"RunResult({self.source.name}, {len(self.predictions)} frames, {targets} targets)"

    @property
    def boxes_xywh(self) -> np.ndarray:
        """`[targets, frames, 4]`; frames before the first one hold zeros."""
        boxes = np.array([[p.box for p in found] for found in self.predictions]).transpose(1, 0, 2)
        return np.pad(boxes, ((0, 0), (self.first, 0), (0, 0)))

    @property
    def scores(self) -> np.ndarray:
        """`[targets, frames]`; NaN before the first frame."""
        scores = np.array([[p.score for p in found] for found in self.predictions]).T
        return np.pad(scores, ((0, 0), (self.first, 0)), constant_values=np.nan)

    @property
    def overlaps(self) -> np.ndarray | None:
        """Overlap of the first target with the ground truth per frame, NaN where it is absent or not annotated; None
        without ground truth beyond the first frame."""
        boxes, present = self.source.boxes_xywh, self.source.present
        if boxes is None or present is None or present[self.first + 1 :].sum() == 0:
            return None
        count = min(len(boxes), self.first + len(self.predictions))
        overlaps = np.full(count, np.nan)
        known = present[:count] & (np.arange(count) >= self.first)
        overlaps[known] = iou_xywh(self.boxes_xywh[0, :count][known], boxes[:count][known])
        return overlaps

    @property
    def mean_overlap(self) -> float | None:
        """Mean of `overlaps` over the frames where the target is present, without the one that was given."""
        overlaps = self.overlaps
        later = np.empty(0) if overlaps is None else overlaps[self.first + 1 :]
        return float(np.nanmean(later)) if np.isfinite(later).any() else None

    @property
    def count(self) -> int:
        """Frames that were tracked in, the given one among them."""
        return self.dropped + len(self.predictions)

    @property
    def frames_per_second(self) -> float:
        """Frames that the tracker itself does in a second (crop, forward pass, decoding)."""
        return (self.count - 1) / self.seconds if self.seconds > 0 else 0.0

    @property
    def whole_frames_per_second(self) -> float:
        """Frames per second of the whole run, with reading, drawing and encoding."""
        return (self.count - 1) / self.elapsed if self.elapsed > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Boxes, scores and presence per target as plain numbers, as JSON takes them."""
        targets = [
            {"boxes_xywh": [np.round(p.box, 4).tolist() for p in found],
             "scores": np.round([p.score for p in found], 6).tolist(),
             "present": [p.present for p in found]}
            for found in zip(*self.predictions, strict=True)
        ]  # fmt: skip
        return {
            "source": self.source.name,
            "first_frame": self.first,
            "frames": self.count,
            "targets": targets,
            "mean_overlap": self.mean_overlap,
            "frames_per_second": round(self.whole_frames_per_second, 2),
            "frames_per_second_in_tracker": round(self.frames_per_second, 2),
            "stopped": self.stopped,
        }


def run(
    tracker: Tracker, source: FrameSource, boxes_xywh: Sequence[Sequence[float]] | None = None,
    output: str | Path | None = None, max_frames: int | None = None, progress: bool = False, profile: bool = False,
    video: bool = True, overwrite: bool = False, threads: int | str = "auto", labels: Sequence[str] = (),
    settings: dict[str, Any] | None = None, on_frame: Callable[[int, list[Prediction]], None] | None = None,
) -> RunResult:
    """Tracks through a source and writes what it finds as it goes.

    Frames are read ahead and the video is written in threads of their own. Ctrl-C, a full disk, and a source that
    breaks off in its middle end the run; what was found until then is kept and returned, with the reason in `stopped`.

    Args:
        tracker (`Tracker`), source (`FrameSource`): from `mmtrackers.tracking.sources.open_source`.
        boxes_xywh (list of 4 `float`, *optional*): one per target, in the first frame; by default the source's own
            first box.
        output (`str` or `Path`, *optional*): folder for the files of [`ResultFiles`], made if need be; without it
            none are written.
        max_frames (`int`, *optional*): stop after so many frames.
        progress (`bool`): show a progress bar, where a terminal shows it.
        profile (`bool`): time every stage (`RunResult.clock` and `recording`).
        video (`bool`): write the annotated video too.
        overwrite (`bool`): replace the results of an earlier run on this source.
        threads (`int` or `str`): of torch and OpenCV on a CPU; "auto" takes all or one, whichever turns out faster.
        labels (`str`s): label files to write too, see [`export`]: "coco", "mot", "cvat".
        settings (`dict`, *optional*): kept in the JSON.
        on_frame (callable, *optional*): called with the index of each frame and what was found in it, as it is found.

    Raises:
        ValueError: no box is known, a box or the first frame cannot be used, or there is no frame.
        OSError: another process writes into `output`, or it holds results of an earlier run, or files of others.

    Example:
        ```python
        result = run(tracker, open_source("clip.mp4"), [[60, 40, 30, 20]], output="tracked")
        ```
    """
    given, first = _initial_boxes(source, boxes_xywh)
    result = RunResult(source, first, clock=StageClock(tracker.device) if profile else None)
    with ExitStack() as stack:
        files = None
        if output is not None:
            stack.enter_context(FolderLock(output))
            files = ResultFiles(Path(output), source.name, len(given), tuple(labels))
            files.check(overwrite)
        choice = stack.enter_context(ThreadChoice(threads)) if tracker.device.type == "cpu" else None
        # a camera is read ahead by itself, and what waited in a queue would be old
        frames = stack.enter_context(closing(source.frames()) if source.live else ReadAhead(iter(source)))
        frames = islice(frames, first, None if max_frames is None else first + max_frames)
        bar = stack.enter_context(_bar(source, first, max_frames, progress))
        recorder: Recorder | None = None
        begin = last = time.perf_counter()
        try:
            # no enumerate, which would keep a frame while the next one is looked at: 25 MB at 4K
            for session, frame, found in _followed(tracker, given, frames, result):
                index = result.first + len(result.predictions)
                if files is not None and recorder is None:
                    files.claim()
                    shown = (session.modality,) if tracker.streams == 1 else None
                    recorder = Recorder(files, source, first, shown, session.alignment, video)
                result.predictions.append(found)
                if on_frame is not None:
                    on_frame(index, found)
                if recorder is not None:
                    recorder.put(index, frame, found)
                del frame
                if source.live:
                    _forget(result)
                bar.update()
                now = time.perf_counter()
                if choice is not None and index > first:
                    choice.step(now - last)
                last = now
        except KeyboardInterrupt as interrupt:
            result.stopped, result.interrupt = "interrupted", interrupt
        except (ValueError, OSError) as error:
            if not result.predictions:
                raise
            result.stopped = str(error)
        finally:
            if recorder is not None:
                _close(recorder, result)
        result.elapsed = time.perf_counter() - begin
        if not result.predictions:
            raise ValueError(f"{source.name}: {result.stopped or 'the source has no frame to start from'}")
        result.threads = choice.threads if choice is not None else 1
        if files is not None:
            result.files = _finish(result, files, settings or {})
    return result


def _followed(
    tracker: Tracker, given: np.ndarray, frames: Iterator[Frame], result: RunResult
) -> Iterator[tuple[TrackingSession, Frame, list[Prediction]]]:
    """The session, each frame and what is found in it; `result` learns how long that took."""
    session, clock = None, result.clock
    for frame in frames:
        if session is None:
            session = tracker.start(frame, given, **result.source.start_options(tracker.streams))
            result.size = next(iter(frame.values())).shape[:2]
            yield session, frame, session.initial_prediction()
        else:
            if clock is not None:
                clock("read")
            begin = time.perf_counter()
            found = session.update(frame, clock)
            result.seconds += time.perf_counter() - begin
            if clock is not None:
                clock.end()
            yield session, frame, found
        if clock is not None:
            clock.begin()


def _forget(result: RunResult) -> None:
    """A camera runs for days: what is older than the last frames is in the files alone."""
    if len(result.predictions) > 2 * KEPT:
        count = len(result.predictions) - KEPT
        del result.predictions[:count]
        result.first += count
        result.dropped += count


def _close(recorder: Recorder, result: RunResult) -> None:
    """Waits until everything is written; what could not be written counts as not found."""
    try:
        recorder.close()
    except (ValueError, OSError) as error:
        result.stopped = str(error)
    del result.predictions[max(0, recorder.count - result.dropped) :]
    result.recording = recorder.seconds


def _bar(source: FrameSource, first: int, max_frames: int | None, progress: bool) -> Any:
    from tqdm import tqdm

    known = [n for n in (source.length and source.length - first, max_frames) if n]
    return tqdm(total=min(known, default=None), unit="frame", desc=source.name, disable=None if progress else True)


def _initial_boxes(source: FrameSource, boxes_xywh: Sequence[Sequence[float]] | None) -> tuple[np.ndarray, int]:
    """The boxes to start with (a list of them, even of one) and the frame that they belong to."""
    if boxes_xywh is not None and len(boxes_xywh):
        return np.atleast_2d(np.asarray(boxes_xywh, dtype=np.float64)), 0
    if source.boxes_xywh is None:
        raise ValueError(f"where is the target in the first frame of {source.name}? No annotation says it: give --box "
                         "x,y,width,height in pixels (several times for several targets), or run the command at a "
                         "terminal to draw it in a browser")  # fmt: skip
    return source.boxes_xywh[source.first][None], source.first


def write_results(result: RunResult, output: str | Path, settings: dict[str, Any] | None = None) -> list[Path]:
    """Writes the files of `run`, without a video, for a result found in another way; OSError where it cannot."""
    files = ResultFiles(Path(output), result.source.name, len(result.predictions[0]))
    files.check(overwrite=True)
    files.claim()
    recorder = Recorder(files, result.source, result.first, video=False)
    for index, found in enumerate(result.predictions, result.first):
        recorder.put(index, {}, found)
    recorder.close()
    return _finish(result, files, settings or {})


def _finish(result: RunResult, files: ResultFiles, settings: dict[str, Any]) -> list[Path]:
    """Writes what needs the whole run: the record, label files and the plot. All files of the run."""
    overlaps = result.overlaps
    if overlaps is not None:
        from .drawing import plot_run

        absent_below = settings.get("absent_below")
        plot_run(files.plot, overlaps, result.scores[:1], result.source.name, absent_below, result.first)
    export(result, files.folder, files.labels)
    files.write_record(result.to_dict() | {"settings": settings})
    return [path for path in files.all if path.exists()]
