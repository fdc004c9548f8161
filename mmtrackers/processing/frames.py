"""Frames of one or several cameras: what they may be, and how each stream becomes a picture of three channels."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import cv2
import numpy as np
from PIL.Image import Image

from .thermal import ThermalRange, counts_up_to, thermal_to_gray

MODALITIES = ("rgb", "thermal", "depth", "event")
# The second stream of a tracker that serves every modality: what the video has
ANY = "any"

Frame = np.ndarray | Mapping[str, np.ndarray]

_FARTHEST_MM = 10000


def check_modality(modality: str) -> None:
    """Raises ValueError for a name that is no stream's."""
    if modality not in MODALITIES:
        raise ValueError(f"modality {modality!r}: expected one of {', '.join(MODALITIES)}")


def _checked(picture: Any, stream: str) -> np.ndarray:
    """A stream's picture as an array HW or HWC with 1 or 3 channels, else an error that says what to change."""
    if isinstance(picture, Image) and (mode := picture.mode) not in ("RGB", "L", "F") and mode[0] != "I":
        raise ValueError(f'the {stream} picture is a PIL image of mode {mode}: convert it, picture.convert("RGB")')
    picture = np.asarray(str(picture) if isinstance(picture, PurePath) else picture)
    shape = picture.shape
    if picture.size == 0 or picture.dtype == object:
        raise ValueError(f"the {stream} picture is empty (shape {shape}): the file or the camera gave no picture")
    if picture.ndim == 3 and shape[2] == 1:
        return picture[..., 0]
    if picture.ndim == 2 or (picture.ndim == 3 and shape[2] == 3):
        return picture
    hint = "give height x width x 3 in RGB order, or height x width if it is gray"
    if picture.ndim == 3 and shape[2] == 4:
        hint = "drop the fourth (alpha) channel: frame[..., :3]"
    elif picture.ndim == 3 and shape[0] in (1, 3):
        hint = "the channels come first; put them last: frame.transpose(1, 2, 0)"
    elif not shape:
        hint = "give the picture itself, or the folder of the files in the place of a list of them"
    elif picture.ndim == 4:
        hint = "give one frame at a time"
    raise ValueError(f"the {stream} picture has the shape {shape}: {hint}")


def _eight_bit(picture: np.ndarray, stream: str, thermal_range: ThermalRange | None) -> np.ndarray:
    if picture.dtype == np.uint8:
        return picture
    if stream == "thermal" and (picture.dtype == np.uint16 or (picture.dtype.kind == "f" and picture.ndim == 2)):
        return thermal_to_gray(picture, thermal_range(picture) if thermal_range is not None else None)
    hint = "convert it to 0..255 first"
    if picture.dtype.kind == "f":
        hint = "normalizing is the processor's work; (frame * 255).round().astype(np.uint8) if its values are 0..1"
    expected = "uint8, uint16, or float of one channel (degrees)" if stream == "thermal" else "uint8"
    raise ValueError(f"the {stream} picture has the type {picture.dtype}, expected {expected}: {hint}")


def _median(depth: np.ndarray) -> float:
    low, high = np.searchsorted(counts_up_to(depth), [(depth.size + 1) // 2, depth.size // 2 + 1])
    return (low + high) / 2


def depth_to_colors(depth: np.ndarray, clip: bool = True) -> np.ndarray:
    """A depth picture (uint16 `[H, W]`, millimeters, 0 where unknown) as the uint8 `[H, W, 3]` that RGB-D trackers of
    the ViPT family were trained on.

    Values above `min(3 * median, 10000)` mm become that value (`clip`; RGBD1K's recipe does not), then the picture's
    own minimum and maximum become 0 and 255 (rounded), then OpenCV's JET map, blue first as the published models saw
    it (jiawen-zhu/ViPT, `depth_utils.py`). ValueError for another kind of picture.
    """
    depth = _checked(depth, "depth")
    if depth.ndim != 2:
        raise ValueError(f"the depth picture has the shape {depth.shape}: give the distances themselves, height x "
                         "width in millimeters, not a colored picture of them")  # fmt: skip
    if depth.dtype != np.uint16:
        hint = "frame.astype(np.uint16) if its values are millimeters already"
        if depth.dtype.kind == "f":
            hint = "(frame * 1000).round().clip(0, 65535).astype(np.uint16) if its values are meters"
        elif depth.dtype == np.uint8:
            hint = "read the file with cv2.IMREAD_UNCHANGED, which keeps its 16 bits"
        raise ValueError(f"the depth picture has the type {depth.dtype}, expected uint16 (millimeters): {hint}")
    depth = np.ascontiguousarray(depth)
    if clip:
        # where most pixels are unknown the median is 0, and clipping at it would leave nothing
        middle = _median(depth) or (_median(depth[depth > 0]) if depth.any() else 0)
        depth = np.minimum(depth, np.uint16(min(3 * middle, _FARTHEST_MM)))
    return cv2.applyColorMap(cv2.normalize(depth, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U), cv2.COLORMAP_JET)


def to_picture(
    picture: np.ndarray, stream: str, depth_clip: bool = True, thermal_range: ThermalRange | None = None
) -> np.ndarray:
    """One stream of a frame as a picture of three channels, uint8 `[H, W, 3]`, contiguous.

    Args:
        picture (`np.ndarray`): rgb and event: uint8 `[H, W, 3]` RGB or `[H, W]` gray; thermal: also uint16 counts,
            or float `[H, W]` (degrees), which are stretched; depth: uint16 `[H, W]`, millimeters. ValueError else.
        stream (`str`), depth_clip (`bool`): the modality; see `depth_to_colors`.
        thermal_range ([`ThermalRange`], *optional*): the video's; by default the picture's own minimum and maximum.
    """
    if stream == "depth":
        return depth_to_colors(picture, clip=depth_clip)
    picture = _eight_bit(_checked(picture, stream), stream, thermal_range)
    return np.ascontiguousarray(picture if picture.ndim == 3 else cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB))


def choose_streams(
    frame: Frame, modality: str, streams: int, allow_missing: bool = False
) -> dict[str, tuple[str, np.ndarray]]:
    """Which picture of a frame feeds which stream of a tracker: stream -> (modality that feeds it, picture), RGB
    first. Arguments and errors as of `TrackerImageProcessor.stack`; a picture that is None counts as missing."""
    frame = frame if isinstance(frame, Mapping) else {"rgb": frame}
    if modality == ANY and streams == 2:
        modality = second_stream(frame)
    check_modality(modality)
    if streams not in (1, 2):
        raise ValueError(f"a tracker has 1 or 2 streams, got {streams!r}")
    if streams == 2 and modality == "rgb":
        raise ValueError(f"a tracker of two streams needs a second modality: {', '.join(MODALITIES[1:])}")
    unknown = [str(key) for key in frame if key not in MODALITIES]
    if unknown:
        raise ValueError(f"the frame has an unknown stream {', '.join(unknown)}; known: {', '.join(MODALITIES)}")
    present = [key for key in MODALITIES if frame.get(key) is not None]
    chosen = {}
    for stream in (modality,) if streams == 1 else ("rgb", modality):
        replaceable = streams == 2 and stream != "rgb" and "rgb" in present
        if stream not in present and not (replaceable and allow_missing):
            raise _missing(stream, present, replaceable)
        source = stream if stream in present else "rgb"
        chosen[stream] = (source, frame[source])
    return chosen


def second_stream(frame: Frame) -> str:
    """The modality of a frame's only picture beside RGB; "thermal" where there is none, to be named as missing;
    ValueError where there are several."""
    frame = frame if isinstance(frame, Mapping) else {}
    others = [key for key in MODALITIES[1:] if frame.get(key) is not None]
    if len(others) > 1:
        raise ValueError(f"the frame has {' and '.join(others)} beside rgb: say which to read, with modality=")
    return others[0] if others else MODALITIES[1]


def _missing(stream: str, present: list[str], replaceable: bool) -> ValueError:
    found = f"it has {', '.join(present)}" if present else "it has no picture at all"
    out = f"add it: {{..., {stream!r}: picture}}"
    if replaceable:
        out += ", or pass allow_missing=True (--allow-missing) to feed the rgb picture in its place"
    others = [name for name in present if name != "rgb"]
    if stream != "rgb" and others:
        out += f", or load a tracker for {' or '.join(others)}"
    return ValueError(f"the frame has no {stream} stream ({found}), which this tracker reads: {out}")


def check_sizes(sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raises ValueError unless all streams (name -> height and width) have one size."""
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{stream} {w} x {h}" for stream, (h, w) in sizes.items())
        raise ValueError(f"the streams differ in size (width x height: {shown}): say how they lie on each other with "
                         f"alignment={{{list(sizes)[-1]!r}: matrix}} (--align FILE, as `mmtrackers align` writes it), "
                         "or with 'scale' in the matrix's place if only the scale differs")  # fmt: skip


def join_streams(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures `[H, W, 3]` of one size and type side by side on the channel axis, `[H, W, 3 * S]`."""
    if len(pictures) == 1:
        return pictures[0]
    channels = 3 * len(pictures)
    joined = np.empty((*pictures[0].shape[:2], channels), pictures[0].dtype)
    # NumPy's own concatenation on a last axis of three is several times slower.
    cv2.mixChannels(list(pictures), [joined], [k for channel in range(channels) for k in (channel, channel)])
    return joined
