"""Video files: their frames and times, and the writing of annotated ones (H.264)."""

import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np


class VideoFacts(NamedTuple):
    """What a video file's header says; None where it does not."""

    frames: int | None
    fps: float
    seconds: float | None


def video_facts(path: str | Path) -> VideoFacts:
    """What a video file's header says; ValueError where it cannot be read or holds no video."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video stream")
            stream = container.streams.video[0]
            return VideoFacts(stream.frames or None, float(stream.average_rate or 30), _seconds_of(container))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a video ({_reason(error)}): it is damaged, cut off or no video; "
                         "copy it again") from error  # fmt: skip


def _seconds_of(container: av.container.InputContainer) -> float | None:
    stream = container.streams.video[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if said := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
        hours, minutes, seconds = map(float, said.groups())
        return 3600 * hours + 60 * minutes + seconds
    # of all streams together: sound may go on longer
    return container.duration / av.time_base if container.duration and len(container.streams) == 1 else None


def decoded(path: str | Path, facts: VideoFacts | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of a video file or address: `(seconds since the first frame, [H, W, 3] uint8 RGB)`, turned as the
    video says. ValueError after the last good frame, where it ends long before what the `facts` promise."""
    expected, fps, seconds = facts or VideoFacts(None, 30.0, None)
    count, hidden, cause, start, time = 0, 0, None, None, 0.0
    damage = av.FFmpegError  # a name of its own: as Python ends, the module's go before a generator that is not done
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        # threads that decode several frames at a time hold as many: too much memory at 4K
        stream.thread_type = "AUTO" if stream.width * stream.height < 4_000_000 else "SLICE"
        try:
            for packet in container.demux(stream):
                hidden += packet.is_discard  # what an edit list cuts away, as in a trimmed clip
                for picture in packet.decode():
                    image = _pixels(picture)
                    turns = round(getattr(picture, "rotation", 0) / 90) % 4
                    time = picture.time if picture.time is not None else count / fps
                    start = time if start is None else start
                    del picture  # which would be kept, 12 MB at 4K, until the next one is asked for
                    yield time - start, np.ascontiguousarray(np.rot90(image, turns)) if turns else image
                    count += 1
        except damage as error:
            cause = error
    if count == 0:
        raise ValueError(f"the video {path} has no frames that can be decoded") from cause
    # Headers may count a few frames that players never show; many missing ones mean a file that was cut off.
    of, short = " frames", False
    if expected is not None:
        of, short = f" of {expected - hidden} frames", count < expected - hidden - max(2, expected // 50)
    elif seconds is not None and time - start + 3 / fps < seconds - seconds / 50:  # no count, but a length
        of, short = f" frames, after {time - start:.1f} of {seconds:.1f} seconds", True
    if cause is not None or short:
        why = f" ({_reason(cause)})" if cause is not None else ""
        raise ValueError(f"the video {path} is damaged or truncated: it ends after {count}{of}{why}") from cause


def _pixels(picture: av.VideoFrame) -> np.ndarray:
    """`[H, W, 3]` RGB; the frame's own memory where its rows lie without gaps, as `to_ndarray` would copy it."""
    picture = picture.reformat(format="rgb24")
    plane = picture.planes[0]
    if plane.line_size != 3 * picture.width:
        return picture.to_ndarray()
    return np.frombuffer(plane, np.uint8).reshape(picture.height, picture.width, 3)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class VideoWriter(AbstractContextManager):
    """Writes an H.264 video (`.mp4`, yuv420p) that browsers and players show, playable up to the last half second
    while it is written. Odd sides are made even by repeating the last row or column; a file of no frames is not left
    behind, and what is no rate (`fps`) counts as 30."""

    def __init__(self, path: str | Path, fps: float = 30.0) -> None:
        self.path = Path(path)
        self.fps = Fraction(fps if 0 < fps < math.inf else 30.0).limit_denominator(1001)
        self._container: av.container.OutputContainer | None = None
        self._shape: tuple[int, ...] = ()

    def write(self, image: np.ndarray) -> None:
        """Adds one frame, HWC uint8 RGB; ValueError where its size is not the first one's."""
        if self._container is None:
            self._open(image.shape)
        if image.shape != self._shape:
            raise ValueError(f"{self.path}: a frame of shape {image.shape} in a video of {self._shape}")
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), format="rgb24")
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _open(self, shape: tuple[int, ...]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._shape = shape
        # in fragments while it is written, and an ordinary file at its end
        fragments = {"movflags": "+hybrid_fragmented", "frag_duration": "500000", "flush_packets": "1"}
        self._container = av.open(str(self.path), "w", options=fragments)
        self._stream = self._container.add_stream("libx264", rate=self.fps)
        # no frames held back, which cost memory and would be lost with the process
        self._stream.options = {"crf": "20", "preset": "superfast", "tune": "zerolatency"}
        self._stream.height, self._stream.width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
        self._stream.pix_fmt = "yuv420p"

    def close(self) -> None:
        """Finishes the file; more calls do nothing."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            for packet in self._stream.encode():
                container.mux(packet)
        finally:
            container.close()

    def __exit__(self, *_: object) -> None:
        self.close()
