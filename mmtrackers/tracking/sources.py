"""Where frames come from (files, folders, datasets, cameras), and how the frames of two streams go together."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from mmtrackers.data.datasets import LAYOUTS, image_names, open_sequence
from mmtrackers.data.events import EVENT_SUFFIXES
from mmtrackers.data.images import is_deep, read_image, read_pages
from mmtrackers.data.pairing import PAIRINGS, frame_times, nearest_in_time, paired
from mmtrackers.data.sequence import IMAGE_SUFFIXES, natural_names
from mmtrackers.processing.alignment import SCALE, Alignment, read_alignment
from mmtrackers.processing.frames import MODALITIES, check_modality
from mmtrackers.processing.thermal import ThermalRange

from .video import decoded, video_facts

Frame = dict[str, np.ndarray]

_PAGED = (".tif", ".tiff")


@dataclass
class FrameSource:
    """Frames to track in, and what is known about them beforehand.

    Args:
        name (`str`): for output files.
        frames (callable): returns a fresh iterator over `{modality: image}`.
        modality (`str`): the stream beside RGB, or "rgb" if there is none.
        length (`int`, *optional*): number of frames, where it is known; of a video, what its header says.
        fps (`float`): frames per second of the recording; 30 where nothing says.
        boxes_xywh, present (`np.ndarray`, *optional*): ground truth `[N, 4]` in pixels, NaN where there is none; and
            `[N]` bool, the frames where it counts.
        timed_frames (callable, *optional*): as `frames`, over `(seconds, frame)`; where the recording has times.
        files (list of `Path`, *optional*): where each frame is a file of one stream.
        live (`bool`): a camera: frames that come while one is looked at are left out.
        without_rgb (`bool`): the pictures of `modality` come without RGB.
        notes (`tuple[str, ...]`): what a person should know of how the frames were made.
        alignment, thermal_range (*optional*): of this recording, for `Tracker.start`.
    """

    name: str
    frames: Callable[[], Iterator[Frame]] = field(repr=False)
    modality: str = "rgb"
    length: int | None = None
    fps: float = 30.0
    boxes_xywh: np.ndarray | None = None
    present: np.ndarray | None = None
    timed_frames: Callable[[], Iterator[tuple[float, Frame]]] | None = field(default=None, repr=False)
    files: Sequence[Path] | None = field(default=None, repr=False)
    live: bool = False
    without_rgb: bool = False
    notes: tuple[str, ...] = ()
    alignment: Mapping[str, Alignment] | None = None
    thermal_range: Sequence[float] | str | None = None

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def start_options(self, streams: int) -> dict[str, Any]:
        """What `Tracker.start` has to know of this recording, for a tracker of so many streams."""
        known = {"alignment": self.alignment if streams == 2 else None, "thermal_range": self.thermal_range}
        return known | ({"modality": self.modality} if self.without_rgb else {})

    @property
    def first(self) -> int:
        """Index of the first frame whose ground truth shows the target: tracking starts there (0 without any)."""
        return int(np.argmax(self.present)) if self.present is not None and self.present.any() else 0


def open_source(
    source: str | Path, second: Mapping[str, str | Path] | None = None, modality: str | None = None,
    fps: float | None = None, pair_by: str | None = None, event_window: str | None = None,
    event_start: int | None = None,
) -> FrameSource:
    """Opens whatever holds frames.

    Args:
        source (`str` or `Path`): a video file, a folder of images, a TIFF file of many pages, a sequence folder of a
            dataset (see `mmtrackers.data.open_sequence`), a camera (`"0"`, `"/dev/video0"`) or the address of a stream
            (`"rtsp://..."`).
        second (`dict[str, path]`, *optional*): one modality -> the stream that goes with it: a folder, a TIFF file, an
            event recording, or (except for depth) a video.
        modality (`str`, *optional*): what the source itself shows where it is not RGB; by default files of one channel
            with 16 bits or more are thermal.
        fps (`float`, *optional*): frames per second of folders of images and pages, which do not say it.
        pair_by (`str`, *optional*): "number" (of files), "time" (the nearest) or "rank" (by order alone). By default
            files by order, if their numbers agree; videos, and whatever has times, by time.
        event_window, event_start (*optional*): of an event recording, see `event_source.with_events`.

    Raises:
        ValueError: there is no such source, it has no frames, it cannot be read, or the streams do not go together;
            a video that ends too early is reported after its last good frame.

    Example:
        ```python
        for frame in open_source("visible", {"thermal": "infrared"}):
            print(frame["rgb"].shape, frame["thermal"].shape)
        ```
    """
    if pair_by is not None and pair_by not in PAIRINGS:
        raise ValueError(f"streams are paired by {', '.join(PAIRINGS)}, not by {pair_by!r}")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"--fps {fps:g}: expected a positive number of frames per second")
    if modality is not None:
        check_modality(modality)
    text, path, second = str(source), Path(source), second or {}
    from .live import is_address, is_live, open_live

    recorded = Path(second.get("event", "")).suffix.lower() in EVENT_SUFFIXES
    if not recorded and not event_window is event_start is None:
        raise ValueError("--event-window and --event-start are of a recording of events, and none is given (--event)")
    places = [source, *second.values()]
    cameras = [is_live(str(p)) and not Path(p).is_file() and not Path(p).is_dir() for p in places]
    if len(set(cameras)) > 1:
        moving, still = places[cameras.index(True)], places[cameras.index(False)]
        raise ValueError(f"{moving} is live and {still} is not: a camera goes with a camera, a recording with one")
    if cameras[0]:
        return open_live(text, {stream: str(where) for stream, where in second.items()})
    if is_address(text):
        opened = _video(text, Path(urlsplit(text).path).stem, modality or "rgb")
    elif path.is_dir():
        opened = _folder(path, modality, bool(second), pair_by)
    elif path.is_file():
        opened = _file(path, modality)
    else:
        raise ValueError(f"there is no {source}: give a video, a folder of images or a sequence, a camera or address")
    timed = opened.timed_frames is not None
    opened = _with_rate(opened, fps)
    for stream, where in second.items():
        if recorded and stream == "event":
            from .event_source import with_events

            opened = with_events(opened, where, event_window, event_start)
        else:
            other = _second_stream(Path(where), stream)
            timed = timed and other.timed_frames is not None
            opened = pair(opened, _with_rate(other, fps), stream, pair_by)
    if fps is not None and timed:
        raise ValueError(f"--fps {fps:g} is for folders of images and pages: {source} has times of its own")
    return replace(opened, name=_sequence_of(path)) if path.is_dir() and opened.name == path.resolve().name else opened


def with_rig(
    source: FrameSource, align: str | Path | None = None, thermal_range: Sequence[float] | str | None = None
) -> FrameSource:
    """The same source, with what is known of the cameras that made it: `align` is a file of
    `mmtrackers.processing.alignment.read_alignment` or "scale", `thermal_range` as for `Tracker.start`. ValueError
    where the file cannot be used, or there is no stream that it could be for."""
    ThermalRange(thermal_range)
    if thermal_range is not None and source.modality != "thermal":
        raise ValueError(f"a thermal range was given, but {source.name} has no thermal pictures")
    if align is None:
        return replace(source, thermal_range=thermal_range)
    if source.modality == "rgb" or source.without_rgb:
        raise ValueError(f"--align {align}: {source.name} has no second stream beside RGB to be aligned")
    found = SCALE if str(align) == SCALE else read_alignment(align)
    return replace(source, alignment={source.modality: found}, thermal_range=thermal_range)


def as_source(video: Any, second: Mapping[str, Any] | None = None) -> FrameSource:
    """Whatever holds frames as a source: what `open_source` takes, an opened source, or frames; `second` likewise.
    ValueError as `open_source`, for more than one second stream, and later, where the frames of one stream run out
    before the other's."""
    streams = {name: stream for name, stream in (second or {}).items() if stream is not None}
    if len(streams) > 1:
        raise ValueError(f"{' and '.join(streams)} were given: a tracker reads one stream beside RGB, choose one")
    if isinstance(video, (str, Path)):
        return open_source(video, streams)
    source = _named(video, "rgb")
    for modality, other in streams.items():
        source = pair(source, _named(other, modality), modality)
    return source


def _named(frames: Any, modality: str) -> FrameSource:
    if isinstance(frames, (str, Path)):
        return _second_stream(Path(frames), modality)
    if isinstance(frames, FrameSource):
        if frames.modality != modality and modality != "rgb":
            raise ValueError(f"{frames.name} shows {frames.modality}: open it with modality={modality!r}")
        return frames

    def named() -> Iterator[Frame]:
        return (frame if isinstance(frame, Mapping) else {modality: frame} for frame in frames)

    return FrameSource("the video", named, modality)


def paired_files(rgb: Path, other: Path, modality: str) -> list[tuple[Path, Path]]:
    """The pictures of two cameras that go together: of two files, or two folders; ValueError where they do not."""
    if rgb.is_dir() and other.is_dir():
        sides = _image_folder(rgb, "rgb"), _image_folder(other, modality)
        chosen = _pairs_of_files(*sides, modality, None)
        return [(sides[0].files[i], sides[1].files[j]) for i, j in zip(*chosen, strict=True)]
    for path in (rgb, other):
        if not path.is_file():
            what = "is a folder, but the other one is a file" if path.is_dir() else "is not there"
            raise ValueError(f"{path} {what}: give two pictures, or two folders of pictures")
    return [(rgb, other)]


def _sequence_of(folder: Path) -> str:
    """The name of a sequence's folder, also if one of its streams was given: of `boy1/visible` it is `boy1`."""
    streams = {name for layout in LAYOUTS for names in layout.streams.values() for name in names} | set(MODALITIES)
    folder = folder.resolve()
    others = (folder.parent / name for name in streams - {folder.name, ""})
    # GTOT's streams are called v and i, as other folders may be
    is_stream = folder.name in streams and (len(folder.name) > 1 or any(other.is_dir() for other in others))
    return (folder.parent.name if is_stream else folder.name) or "frames"


def _of_files(files: Sequence[Path], modality: str, name: str) -> FrameSource:
    return FrameSource(name, lambda: ({modality: read_image(file, modality)} for file in files), modality, len(files),
                       files=files)  # fmt: skip


def _image_folder(folder: Path, modality: str) -> FrameSource:
    files = [folder / name for name in natural_names(image_names(folder))]
    if not files:
        raise ValueError(f"the folder {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return _of_files(files, modality, folder.resolve().name)


def _folder(folder: Path, modality: str | None, has_second: bool, pair_by: str | None) -> FrameSource:
    """A folder of images, or the folder of a sequence with whatever streams it has."""
    names = natural_names(image_names(folder))
    if modality is None and names and not has_second and is_deep(folder / names[0]):
        modality = "thermal"
    if not names or not (has_second or modality not in (None, "rgb")):
        return _sequence(folder, "rgb" if has_second else modality, pair_by)
    opened = _image_folder(folder, modality or "rgb")
    if modality in (None, "rgb"):
        return opened
    known = _sequence(folder, "rgb", None)
    return replace(opened, without_rgb=True, boxes_xywh=known.boxes_xywh, present=known.present)


def _sequence(folder: Path, modality: str | None, pair_by: str | None) -> FrameSource:
    sequence = open_sequence(folder, modality, None if pair_by == "time" else pair_by)
    known = {"boxes_xywh": sequence.boxes_xywh, "present": sequence.present} if sequence.present.any() else {}
    files = sequence.frames["rgb"] if sequence.modality == "rgb" else None
    return FrameSource(sequence.name, lambda: (sequence.read(i) for i in range(len(sequence))), sequence.modality,
                       len(sequence), files=files, **known)  # fmt: skip


def _file(path: Path, modality: str | None) -> FrameSource:
    """A video, or the pages of a TIFF file."""
    shown = modality or "rgb"
    if path.suffix.lower() == ".aedat4":
        from .event_source import davis_frames

        return davis_frames(path)
    if path.suffix.lower() in _PAGED:
        if modality is None and is_deep(path):
            shown = "thermal"
        return FrameSource(path.stem, lambda: ({shown: page} for page in read_pages(path, shown)), shown,
                           without_rgb=shown != "rgb")  # fmt: skip
    if shown == "depth":
        raise ValueError(f"{path} is a file: depth comes as a folder of 16-bit images (millimeters), not as a video")
    return _video(str(path), path.stem, shown)


def _video(place: str, name: str, shown: str) -> FrameSource:
    """A video file, here or at an address."""
    facts = video_facts(place)

    def timed() -> Iterator[tuple[float, Frame]]:
        return ((time, {shown: image}) for time, image in decoded(place, facts))

    length = facts.frames or (round(facts.seconds * facts.fps) if facts.seconds else None)
    return FrameSource(name, lambda: (frame for _, frame in timed()), shown, length, facts.fps, timed_frames=timed,
                       without_rgb=shown != "rgb")  # fmt: skip


def _second_stream(path: Path, modality: str) -> FrameSource:
    if path.is_dir():
        return _image_folder(path, modality)
    if not path.is_file():
        raise ValueError(f"there is no {path}: --{modality} takes the folder of the {modality} frames")
    return _file(path, modality)


def _with_rate(source: FrameSource, fps: float | None) -> FrameSource:
    """Gives a source times that has none, where somebody knows its rate."""
    if fps is None or source.timed_frames is not None:
        return source
    return replace(source, fps=fps, timed_frames=lambda: ((k / fps, frame) for k, frame in enumerate(source.frames())))


def pair(rgb: FrameSource, other: FrameSource, modality: str, by: str | None = None) -> FrameSource:
    """Two streams as one source; `by` as in `open_source`. ValueError where they do not go together, at once where
    that is known beforehand."""
    files = rgb.files is not None and other.files is not None
    if files and (chosen := _pairs_of_files(rgb, other, modality, by)) is not None:
        rgb, other = (_taken(side, rows) for side, rows in zip((rgb, other), chosen, strict=True))
        frames = _joined_by_rank(rgb, other, modality)
    elif by == "number":
        raise ValueError(f"{rgb.name} and {other.name} cannot be paired by number: both must be folders of images")
    elif by != "rank" and rgb.timed_frames is not None and other.timed_frames is not None:
        frames = _joined_by_time(rgb, other)
    elif by == "time":
        lacking = rgb.name if rgb.timed_frames is None else other.name
        raise ValueError(f"{lacking} does not say when its frames were taken: give --fps to pair it by time")
    else:
        frames = _joined_by_rank(rgb, other, modality)
    return replace(rgb, frames=frames, modality=modality, timed_frames=None, files=None)


def _taken(source: FrameSource, rows: np.ndarray) -> FrameSource:
    """A source of files with these of its frames."""
    known = {name: values[rows] for name in ("boxes_xywh", "present") if (values := getattr(source, name)) is not None}
    files = _of_files([source.files[row] for row in rows], source.modality, source.name)
    return replace(source, frames=files.frames, length=files.length, **known)


def _pairs_of_files(
    rgb: FrameSource, other: FrameSource, modality: str, by: str | None
) -> tuple[np.ndarray, np.ndarray] | None:
    names = [[file.name for file in source.files] for source in (rgb, other)]
    times = [frame_times(side) for side in names]
    if by in (None, "time") and all(side is not None and len(side) > 1 for side in times):
        tolerance = 0.5 * max(float(np.median(np.diff(side))) for side in times) + 1e-6
        a, b = (list(zip(side.tolist(), itertools.count(), strict=False)) for side in times)
        with _about(rgb, other):
            return tuple(np.array(list(nearest_in_time(a, b, tolerance))).T)
    if by == "time":
        return None
    with _about(rgb, other):
        return paired(*names, modality, by)


@contextmanager
def _about(rgb: FrameSource, other: FrameSource) -> Iterator[None]:
    """Puts the names of two sources before an error's words."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{rgb.name} and {other.name}: {error}") from None


def _joined_by_time(rgb: FrameSource, other: FrameSource) -> Callable[[], Iterator[Frame]]:
    tolerance = 0.5 / min(rgb.fps, other.fps) + 1e-3

    def frames() -> Iterator[Frame]:
        following = other.timed_frames()
        with _about(rgb, other):
            for a, b in nearest_in_time(rgb.timed_frames(), following, tolerance):
                yield a | b
        if next(itertools.islice(following, round(1 + other.fps), None), None) is not None:
            warnings.warn(f"{other.name} goes on for more than a second after the last rgb frame of {rgb.name}: do "
                          "the two begin at the same moment?", stacklevel=2)  # fmt: skip

    return frames


def _joined_by_rank(rgb: FrameSource, other: FrameSource, modality: str) -> Callable[[], Iterator[Frame]]:
    def frames() -> Iterator[Frame]:
        for count, (frame, second) in enumerate(itertools.zip_longest(rgb, other)):
            if frame is None or second is None:
                a, b = (count, f"more than {count}") if frame is None else (f"more than {count}", count)
                raise ValueError(f"{rgb.name} has {a} rgb frames but {other.name} has {b} {modality} frames: they are "
                                 "paired frame by frame, so bring both to the same length, or give --fps to pair them "
                                 "by time")  # fmt: skip
            yield frame | second

    return frames
