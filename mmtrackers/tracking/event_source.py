"""Event recordings as the second stream of frames: which events belong to which frame."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import tee
from pathlib import Path

import numpy as np

from mmtrackers.data.events import EventFile, aedat4_frames, event_picture, in_windows, open_events

from .sources import Frame, FrameSource

WINDOWS = ("exposure", "interval")
_SILENT = 50  # frames without a single event after which something must be wrong


def with_events(
    rgb: FrameSource, path: str | Path, window: str | None = None, start: int | None = None
) -> FrameSource:
    """A source of RGB frames with the picture of the events of each beside it; ValueError where they cannot be brought
    together.

    Args:
        rgb (`FrameSource`): with times (a video, a folder with `fps`), or the frames of the same camera.
        path (`str` or `Path`): what `mmtrackers.data.events.open_events` reads.
        window (`str`, *optional*): "exposure" takes the events within a frame's exposure, as the scripts of VisEvent
            and COESOT do; "interval" those from a frame to the next. By default as the file allows, in this order.
        start (`int`, *optional*): the events' clock in microseconds at the first frame; by default the first event's.
    """
    file = open_events(path)
    if window is not None and window not in WINDOWS:
        raise ValueError(f"--event-window {window!r}: expected {' or '.join(WINDOWS)}")
    exposures = file.exposures
    # the scripts of VisEvent and COESOT leave the last frame out
    fits = exposures is not None and rgb.length in (len(exposures), len(exposures) - 1)
    if window == "exposure" and not fits:
        what = "no exposures" if exposures is None else f"the exposures of {len(exposures)} frames"
        raise ValueError(f"{path} has {what} and {rgb.name} {rgb.length} frames: use --event-window interval")
    if fits and window is None and start is None:
        window = "exposure"
    if window != "exposure" and rgb.timed_frames is None:
        raise ValueError(f"{rgb.name} does not say when its frames were taken: give --fps to lay events beside them")

    def frames() -> Iterator[Frame]:
        if window == "exposure":
            return _beside(rgb, rgb.frames(), file, iter(exposures.tolist()))
        origin, timed_frames = file.start() if start is None else start, rgb.timed_frames()
        if fits and start is None:  # when each frame was taken, on the events' clock
            origin, taken = int(exposures[0, 0]), exposures[:, 0] - exposures[0, 0]
            timed_frames = zip(taken / 1e6, rgb.frames(), strict=False)
        first, second = tee(timed_frames)
        return _beside(rgb, (frame for _, frame in first), file, _until_the_next(second, origin, rgb.fps))

    seen = "within the exposure of each frame" if window == "exposure" else "from each frame to the next"
    note = f"{Path(path).name}: the events {seen}, red brighter, blue darker, on white"
    return replace(rgb, frames=frames, modality="event", timed_frames=None, files=None, notes=(*rgb.notes, note))


def _until_the_next(timed_frames: Iterator[tuple[float, Frame]], origin: int, fps: float) -> Iterator[tuple[int, int]]:
    """From when to when each frame is the newest, in microseconds of the events' clock."""
    begin = None
    for seconds, _ in timed_frames:
        begin, last = origin + round(seconds * 1e6), begin
        if last is not None:
            yield last, begin
    if begin is not None:
        yield begin, begin + round(1e6 / fps)


def _beside(
    rgb: FrameSource, frames: Iterator[Frame], file: EventFile, windows: Iterator[tuple[int, int]]
) -> Iterator[Frame]:
    heard = False
    beside = zip(frames, in_windows(file.chunks(), windows), strict=False)
    for count, (frame, events) in enumerate(beside, start=1):
        heard = heard or len(events.t) > 0
        if count == _SILENT and not heard:
            warnings.warn(f"{file.path.name} has no event in the first {_SILENT} frames of {rgb.name}: do the two "
                          "begin at the same moment (--event-start)?", stacklevel=2)  # fmt: skip
        size = file.size or next(iter(frame.values())).shape[:2]
        yield frame | {"event": event_picture(events, size)}


def davis_frames(path: Path) -> FrameSource:
    """The RGB frames of an AEDAT4 recording; ValueError where it has none."""
    exposures = open_events(path).exposures
    if exposures is None:
        raise ValueError(f"{path} has events but no frames: give the RGB video or folder, and this as --event")
    times = (exposures[:, 0] - exposures[0, 0]) / 1e6
    fps = 1 / float(np.median(np.diff(times))) if len(times) > 1 else 30.0

    def timed() -> Iterator[tuple[float, Frame]]:
        return ((time, {"rgb": picture}) for time, picture in zip(times.tolist(), aedat4_frames(path), strict=True))

    return FrameSource(path.stem, lambda: (frame for _, frame in timed()), "rgb", len(times), fps, timed_frames=timed)
