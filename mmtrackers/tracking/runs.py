"""One run of a tracker over one source: the loop, its results, and the files that it leaves."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmtrackers.processing.boxes import iou_xywh

from .clock import StageClock
from .session import Prediction, TrackingSession
from .sources import Frame, FrameSource
from .tracker import Tracker
from .video import VideoWriter


@dataclass
class RunResult:
    """What a run found.

    Args:
        source (`FrameSource`): what was tracked in.
        first (`int`): index of the frame that the given boxes belong to.
        predictions (`list[list[Prediction]]`): per frame from `first` on, one per target; the first are the
            given boxes.
        seconds (`float`): spent in the tracker, without reading and drawing.
        stopped (`str`, *optional*): why it ended before the source did.
        interrupt (`KeyboardInterrupt`, *optional*): what ended it, if Ctrl-C or a signal did.
        clock ([`StageClock`], *optional*): where the time went, if that was asked for.
        size (`tuple[int, int]`): height and width of the frames in pixels.

    Example:
        >>> source = FrameSource("a", lambda: iter(()), boxes_xywh=np.array([[0.0, 0, 2, 2], [0, 0, 2, 2]]),
        ...                      present=np.array([True, True]))
        >>> found = [[Prediction(np.array([0.0, 0, 2, 2]), 1.0)], [Prediction(np.array([1.0, 0, 2, 2]), 0.7)]]
        >>> round(RunResult(source, 0, found).mean_overlap, 4)
        0.3333
    """

    source: FrameSource
    first: int
    predictions: list[list[Prediction]] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str | None = None
    interrupt: KeyboardInterrupt | None = None
    clock: StageClock | None = field(default=None, repr=False)
    size: tuple[int, int] = (0, 0)

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
        """Overlap of the first target with the ground truth per frame, NaN where it is absent or not annotated.

        None without ground truth beyond the first frame.
        """
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
    def frames_per_second(self) -> float:
        """Frames that the tracker itself does in a second (crop, forward pass, decoding)."""
        return (len(self.predictions) - 1) / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Boxes, scores and presence per target as plain numbers, as JSON takes them.

        Example:
            >>> found = [[Prediction(np.array([0.0, 0, 2, 2]), 1.0)]]
            >>> RunResult(FrameSource("a", lambda: iter(())), 0, found).to_dict()["targets"][0]["scores"]
            [1.0]
        """
        boxes, scores = self.boxes_xywh, self.scores
        targets = [
            {
                "boxes_xywh": np.round(boxes[k, self.first :], 4).tolist(),
                "scores": np.round(scores[k, self.first :], 6).tolist(),
                "present": [found[k].present for found in self.predictions],
            }
            for k in range(len(boxes))
        ]
        return {
            "source": self.source.name,
            "first_frame": self.first,
            "frames": len(self.predictions),
            "targets": targets,
            "mean_overlap": self.mean_overlap,
            "frames_per_second": round(self.frames_per_second, 2),
            "stopped": self.stopped,
        }

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` of a row per frame and target: frame, target, x, y, width, height, score, present.

        Raises:
            ImportError: pandas is not installed.
        """
        from .export import to_pandas

        return to_pandas(self)


def run(
    tracker: Tracker,
    source: FrameSource,
    boxes_xywh: Sequence[Sequence[float]] | None = None,
    output: str | Path | None = None,
    max_frames: int | None = None,
    progress: bool = False,
    profile: bool = False,
) -> RunResult:
    """Tracks through a source and writes the annotated video as it goes.

    Ctrl-C, and a source that breaks off in its middle, end the run; what was found until then is returned, with the
    reason in `stopped`.

    Args:
        tracker (`Tracker`): see there.
        source (`FrameSource`): from `mmtrackers.tracking.sources.open_source`.
        boxes_xywh (list of 4 `float`, *optional*): one per target, in the first frame; by default the source's own
            first box.
        output (`str` or `Path`, *optional*): folder of the annotated video `<name>.mp4`; none without it.
        max_frames (`int`, *optional*): stop after so many frames.
        progress (`bool`): show a progress bar, where a terminal shows it.
        profile (`bool`): time reading, crop, model and decoding of every frame (`RunResult.clock`).

    Raises:
        ValueError: no box is known, a box or the first frame cannot be used, or there is no frame.

    Example:
        ```python
        result = run(tracker, open_source("clip.mp4"), [[60, 40, 30, 20]], output="tracked")
        ```
    """
    given, first = _initial_boxes(source, boxes_xywh)
    result = RunResult(source, first, clock=StageClock(tracker.device) if profile else None)
    frames = iter(source)
    with ExitStack() as stack:
        stack.callback(getattr(frames, "close", lambda: None))
        bar = stack.enter_context(_bar(source, first, max_frames, progress))
        writer = None
        if output is not None:
            writer = stack.enter_context(VideoWriter(Path(output) / f"{source.name}.mp4", source.fps))
        try:
            _loop(tracker, given, frames, result, writer, bar, max_frames)
        except KeyboardInterrupt as interrupt:
            result.stopped, result.interrupt = "interrupted", interrupt
        except (ValueError, OSError) as error:
            if not result.predictions:
                raise
            result.stopped = str(error)
    if not result.predictions:
        raise ValueError(f"{source.name}: {result.stopped or 'the source has no frame to start from'}")
    return result


def _loop(
    tracker: Tracker,
    given: np.ndarray,
    frames: Any,
    result: RunResult,
    writer: VideoWriter | None,
    bar: Any,
    max_frames: int | None,
) -> None:
    from .drawing import annotate

    session, clock = None, result.clock
    for index, frame in enumerate(frames):
        if index < result.first:
            continue
        if max_frames is not None and index - result.first >= max_frames:
            break
        if session is None:
            session = _started(tracker, result.source, frame, given)
            result.size = next(iter(frame.values())).shape[:2]
            found = session.initial_prediction()
        else:
            if clock is not None:
                clock("read")
            begin = time.perf_counter()
            found = session.update(frame, clock)
            result.seconds += time.perf_counter() - begin
            if clock is not None:
                clock.end()
        result.predictions.append(found)
        if writer is not None:
            truth = result.source.boxes_xywh
            known = truth is not None and index < len(truth) and result.source.present[index]
            shown = {session.modality: frame[session.modality]} if tracker.streams == 1 else frame
            writer.write(annotate(shown, found, index, truth[index] if known else None, session.alignment))
        bar.update()
        if clock is not None:
            clock.begin()


def _started(tracker: Tracker, source: FrameSource, frame: Frame, given: np.ndarray) -> TrackingSession:
    alone = source.modality if source.alone else None
    alignment = source.alignment if tracker.streams == 2 else None
    return tracker.start(frame, given, alone, alignment=alignment, thermal_range=source.thermal_range)


def _bar(source: FrameSource, first: int, max_frames: int | None, progress: bool) -> Any:
    from tqdm import tqdm

    known = [n for n in (source.length and source.length - first, max_frames) if n]
    return tqdm(total=min(known, default=None), unit="frame", desc=source.name, disable=None if progress else True)


def _initial_boxes(source: FrameSource, boxes_xywh: Sequence[Sequence[float]] | None) -> tuple[np.ndarray, int]:
    """The boxes to start with (a list of them, even of one) and the frame that they belong to."""
    if boxes_xywh is not None and len(boxes_xywh):
        return np.atleast_2d(np.asarray(boxes_xywh, dtype=np.float64)), 0
    if source.boxes_xywh is None:
        raise ValueError(
            f"where is the target in the first frame of {source.name}? No annotation says it: give "
            "--box x,y,width,height in pixels (several times for several targets), or run the command at a terminal "
            "to draw it in a browser"
        )
    return source.boxes_xywh[source.first][None], source.first


def write_results(result: RunResult, output: str | Path, settings: dict[str, Any] | None = None) -> list[Path]:
    """Writes what a run found.

    `<name>.txt`: one line `x,y,w,h` per frame, the first being the given box, as the data sets' tools read it; further
    targets in `<name>_2.txt` and so on. `<name>.json`: boxes, scores, presence and settings. `<name>.png`: overlap and
    score over time, where there is ground truth.

    Args:
        result (`RunResult`): from `run`.
        output (`str` or `Path`): folder, made if need be.
        settings (`dict`, *optional*): kept in the JSON.

    Returns:
        `list[Path]`: the files.

    Example:
        ```python
        write_results(run(tracker, source), "tracked")
        ```
    """
    folder, name = Path(output), result.source.name
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    boxes, scores = result.boxes_xywh, result.scores
    for k, rows in enumerate(boxes):
        files.append(folder / (f"{name}.txt" if k == 0 else f"{name}_{k + 1}.txt"))
        files[-1].write_text("".join(",".join(f"{value:.4f}" for value in row) + "\n" for row in rows))
    files.append(folder / f"{name}.json")
    files[-1].write_text(json.dumps(result.to_dict() | {"settings": settings or {}}, indent=1) + "\n")
    overlaps = result.overlaps
    if overlaps is not None:
        from .drawing import plot_run

        files.append(folder / f"{name}.png")
        absent_below = (settings or {}).get("absent_below")
        plot_run(files[-1], overlaps, scores[:1], name, absent_below, result.first)
    return files
