"""Video files: their frames and times, and the writing of annotated ones (H.264)."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def video_facts(path: Path) -> tuple[int | None, float]:
    """What a video file's header says: the number of frames (None where it does not) and frames per second.

    Raises:
        ValueError: it cannot be read, or holds no video.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video stream")
            stream = container.streams.video[0]
            return stream.frames or None, float(stream.average_rate or 30)
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a video ({_reason(error)}): it is damaged, cut off or no video; copy it again"
        ) from error


def decoded(path: Path, expected: int | None = None, fps: float = 30.0) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of a video file with their times.

    Args:
        path (`Path`): the file.
        expected (`int`, *optional*): how many frames it should have; far fewer are an error at the end.
        fps (`float`): for the time of a frame that has none of its own.

    Returns:
        An iterator over `(seconds since the first frame, [H, W, 3] uint8 RGB)`, turned as the video says.

    Raises:
        ValueError: after its last good frame, where it ends too early.
    """
    count, cause, start = 0, None, None
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        try:
            for picture in container.decode(video=0):
                image = picture.to_ndarray(format="rgb24")
                turns = round(getattr(picture, "rotation", 0) / 90) % 4
                time = picture.time if picture.time is not None else count / fps
                start = time if start is None else start
                yield time - start, np.ascontiguousarray(np.rot90(image, turns)) if turns else image
                count += 1
        except av.FFmpegError as error:
            cause = error
    if count == 0:
        raise ValueError(f"the video {path} has no frames that can be decoded") from cause
    # Headers may count a few frames that players never show; many missing ones mean a file that was cut off.
    if cause is not None or (expected is not None and count < expected - max(2, expected // 50)):
        of = f" of {expected}" if expected else ""
        why = f" ({_reason(cause)})" if cause is not None else ""
        raise ValueError(f"the video {path} is damaged or truncated: it ends after {count}{of} frames{why}") from cause


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class VideoWriter:
    """Writes an H.264 video (yuv420p, index at the front) that browsers and players show.

    Sides that are odd are made even by repeating the last row or column; a file of no frames is not left behind.

    Args:
        path (`str` or `Path`): the `.mp4` file.
        fps (`float`): frames per second.

    Example:
        >>> import tempfile
        >>> with VideoWriter(Path(tempfile.mkdtemp()) / "a.mp4", fps=25) as writer:
        ...     writer.write(np.zeros((33, 47, 3), np.uint8))
    """

    def __init__(self, path: str | Path, fps: float = 30.0) -> None:
        self.path = Path(path)
        self.fps = Fraction(fps if 0 < fps <= 240 else 30.0).limit_denominator(1001)
        self._container: av.container.OutputContainer | None = None
        self._shape: tuple[int, ...] = ()

    def write(self, image: np.ndarray) -> None:
        """Adds one frame, HWC uint8 RGB, of the same size as the first one.

        Raises:
            ValueError: the size differs from the first frame's.
        """
        if self._container is None:
            self._open(image.shape)
        if image.shape != self._shape:
            raise ValueError(f"{self.path}: a frame of shape {image.shape} in a video of {self._shape}")
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _open(self, shape: tuple[int, ...]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._shape = shape
        self._container = av.open(str(self.path), "w", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=self.fps)
        self._stream.options = {"crf": "20", "preset": "veryfast"}
        self._stream.height, self._stream.width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
        self._stream.pix_fmt = "yuv420p"

    def close(self) -> None:
        """Finishes the file; more calls do nothing."""
        if self._container is None:
            return
        container, self._container = self._container, None
        for packet in self._stream.encode():
            container.mux(packet)
        container.close()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
