"""Where frames come from (files, folders, datasets, cameras) and where annotated ones go (H.264 video)."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from mmtrackers.data.datasets import open_sequence
from mmtrackers.data.sequence import IMAGE_SUFFIXES, natural_order, read_image

Frame = dict[str, np.ndarray]


@dataclass
class FrameSource:
    """Frames to track in, and what is known about them beforehand.

    Args:
        name (`str`): for output files.
        frames (callable): returns a fresh iterator over `{modality: image}`.
        modality (`str`): the stream beside RGB, or "rgb" if there is none.
        length (`int`, *optional*): number of frames, where it is known beforehand; of a video, what its header says.
        fps (`float`): frames per second of the recording; 30 where nothing says.
        boxes_xywh (`np.ndarray`, *optional*): `[N, 4]` ground truth in pixels, NaN where there is none.
        present (`np.ndarray`, *optional*): `[N]` bool, the frames whose ground truth counts.
        counted (`bool`): `length` was counted in files, so it is certain.

    Example:
        >>> source = FrameSource("two", lambda: iter([{"rgb": np.zeros((4, 4, 3), np.uint8)}] * 2), length=2)
        >>> len(list(source))
        2
    """

    name: str
    frames: Callable[[], Iterator[Frame]] = field(repr=False)
    modality: str = "rgb"
    length: int | None = None
    fps: float = 30.0
    boxes_xywh: np.ndarray | None = None
    present: np.ndarray | None = None
    counted: bool = False

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    @property
    def first(self) -> int:
        """Index of the first frame whose ground truth shows the target: tracking starts there (0 without any)."""
        return int(np.argmax(self.present)) if self.present is not None and self.present.any() else 0


def open_source(source: str | Path, second: dict[str, str | Path] | None = None) -> FrameSource:
    """Opens whatever holds frames.

    Args:
        source (`str` or `Path`): a video file, a folder of images, a sequence folder of a dataset (see
            `mmtrackers.data.open_sequence`), or a camera's index such as `"0"`.
        second (`dict[str, path]`, *optional*): one modality -> the folder (or, except for depth, the video) of the
            stream that goes with it, frame by frame.

    Raises:
        ValueError: there is no such source, it has no frames, it cannot be read, or the streams differ in length;
            a video that ends too early is reported after its last good frame.

    Example:
        ```python
        for frame in open_source("visible", {"thermal": "infrared"}):
            print(frame["rgb"].shape, frame["thermal"].shape)
        ```
    """
    text, path = str(source), Path(source)
    if text.isdecimal() and not path.exists():
        opened = _camera(int(text))
    elif path.is_dir():
        opened = _image_folder(path) if second and _images_of(path) else _sequence(path, rgb_only=bool(second))
    elif path.is_file():
        opened = _video(path)
    else:
        raise ValueError(
            f"there is no {source}: give a video, a folder of images, a dataset's sequence folder or a camera index"
        )
    for modality, where in (second or {}).items():
        opened = _paired(opened, _second_stream(Path(where), modality), modality)
    return opened


def frames_of(
    video: Any, second: Mapping[str, Any] | None = None, annotated: bool = False
) -> tuple[Iterator[Frame], np.ndarray | None]:
    """An iterator over the frames of whatever holds some.

    Args:
        video (`str`, `Path`, `FrameSource` or iterable): what `open_source` takes, an opened source, or frames.
        second (`dict`, *optional*): one modality -> the second stream: a path, or frames beside frames.
        annotated (`bool`): begin at the first frame whose ground truth shows the target, and return its box.

    Returns:
        The iterator, and `np.ndarray` `[4]` (x, y, width, height in pixels) or None.

    Raises:
        ValueError: more than one second stream, or as `open_source`; later, where the frames of one stream run out
            before the other's.

    Example:
        >>> frames, box = frames_of([np.zeros((4, 4, 3), np.uint8)])
        >>> len(list(frames)), box
        (1, None)
    """
    streams = {name: stream for name, stream in (second or {}).items() if stream is not None}
    if len(streams) > 1:
        raise ValueError(f"{' and '.join(streams)} were given: a tracker reads one stream beside RGB, choose one")
    if isinstance(video, (str, Path)):
        video, streams = open_source(video, streams), {}
    for modality, other in streams.items():
        video = _paired(_named(video, "rgb"), _named(other, modality), modality)
    known = video.boxes_xywh if annotated and isinstance(video, FrameSource) else None
    if known is not None:
        return itertools.islice(video, video.first, None), known[video.first]
    return iter(video), None


def _named(frames: Any, modality: str) -> FrameSource:
    if isinstance(frames, (str, Path)):
        return _second_stream(Path(frames), modality)
    if isinstance(frames, FrameSource):
        return frames
    return FrameSource("the video", lambda: ({modality: frame} for frame in frames), modality)


def _images_of(folder: Path) -> list[Path]:
    return natural_order(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")


def _image_folder(folder: Path, modality: str = "rgb") -> FrameSource:
    files = _images_of(folder)
    if not files:
        raise ValueError(f"the folder {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    name = folder.resolve().name
    return FrameSource(
        name, lambda: ({modality: read_image(f, modality)} for f in files), modality, len(files), counted=True
    )


def _sequence(folder: Path, rgb_only: bool) -> FrameSource:
    sequence = open_sequence(folder, modality="rgb" if rgb_only else None)
    boxes = sequence.boxes_xywh if sequence.present.any() else None
    return FrameSource(
        sequence.name,
        lambda: (sequence.read(i) for i in range(len(sequence))),
        sequence.modality,
        len(sequence),
        boxes_xywh=boxes,
        present=sequence.present if boxes is not None else None,
        counted=True,
    )


def _second_stream(path: Path, modality: str) -> FrameSource:
    if path.is_dir():
        return _image_folder(path, modality)
    if not path.is_file():
        raise ValueError(f"there is no {path}: --{modality} takes the folder of the {modality} frames")
    if modality == "depth":
        raise ValueError(f"{path} is a file: depth comes as a folder of 16-bit images (millimetres), not as a video")
    video = _video(path)
    return FrameSource(video.name, lambda: ({modality: f["rgb"]} for f in video), modality, video.length, video.fps)


def _paired(rgb: FrameSource, other: FrameSource, modality: str) -> FrameSource:
    """Both streams, frame by frame; counts that differ are an error, at once where they are known beforehand."""

    def differ(a: object, b: object) -> ValueError:
        return ValueError(
            f"{rgb.name} has {a} rgb frames but {other.name} has {b} {modality} frames: the streams are paired frame "
            "by frame, so bring both to the same length"
        )

    if rgb.counted and other.counted and rgb.length != other.length:
        raise differ(rgb.length, other.length)

    def frames() -> Iterator[Frame]:
        second, count = iter(other), 0
        for frame in rgb:
            x = next(second, None)
            if x is None:
                raise differ(f"more than {count}", count)
            yield frame | x
            count += 1
        if next(second, None) is not None:
            raise differ(count, f"more than {count}")

    return FrameSource(rgb.name, frames, modality, rgb.length, rgb.fps, rgb.boxes_xywh, rgb.present, rgb.counted)


def _camera(index: int) -> FrameSource:
    def frames() -> Iterator[Frame]:
        camera = cv2.VideoCapture(index)
        try:
            if not camera.isOpened():
                raise ValueError(f"camera {index} cannot be opened: is it plugged in, and free?")
            while True:
                good, image = camera.read()
                if not good:
                    raise ValueError(f"camera {index} gives no more frames: was it unplugged?")
                yield {"rgb": cv2.cvtColor(image, cv2.COLOR_BGR2RGB)}
        finally:
            camera.release()

    return FrameSource(f"camera{index}", frames)


def _video(path: Path) -> FrameSource:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video stream")
            stream = container.streams.video[0]
            length, fps = stream.frames or None, float(stream.average_rate or 30)
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a video ({_reason(error)}): it is damaged, cut off or no video; copy it again"
        ) from error
    return FrameSource(path.stem, lambda: _decoded(path, length), length=length, fps=fps)


def _decoded(path: Path, expected: int | None) -> Iterator[Frame]:
    count, cause = 0, None
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        try:
            for picture in container.decode(video=0):
                image = picture.to_ndarray(format="rgb24")
                turns = round(getattr(picture, "rotation", 0) / 90) % 4
                yield {"rgb": np.ascontiguousarray(np.rot90(image, turns)) if turns else image}
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
