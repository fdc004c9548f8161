"""From frames of several cameras to the crops that a tracker reads, and boxes there and back."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
import torch
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .alignment import Alignment, View, as_views, cut_warped, frame_matrix
from .boxes import BoxLike, clip_box_xywh, xywh_to_xyxy
from .crops import AlignedCrop, Crop, aligned_crop, cut_aligned, cut_square, hann_window, mean_color, rasterized
from .frames import Frame, check_sizes, choose_streams, join_streams, to_picture
from .thermal import ThermalRange

__all__ = ["AlignedCrop", "Crop", "TrackerImageProcessor", "hann_window"]

Role = Literal["template", "search"]
Images = np.ndarray | Sequence[np.ndarray]
CROP_STYLES = ("ostrack", "lorat")
SMALLEST_SEARCHED = 10.0  # pixels: LoRAT looks round a box of at least this size

_SERVICE_KEYS = frozenset({"image_processor_type", "feature_extractor_type", "processor_class", "auto_map"})


class CropSettings:
    """Saved settings of `TrackerImageProcessor`, and their defaults."""

    crop_style: str = "ostrack"
    template_size: int = 128
    template_factor: float = 2.0
    search_size: int = 256
    search_factor: float = 4.0
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    depth_clip: bool = True
    size_momentum: float = 0.0
    absent_below: float | None = None
    calibration: list[float] | tuple[float, ...] | None = None


@lru_cache(maxsize=16)
def _normalization(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    # tensors made in inference mode could not serve a later training step
    with torch.inference_mode(False):
        shift = torch.tensor([255 * m for m in mean], device=device).view(3, 1, 1)
        return shift, torch.tensor([1 / (255 * s) for s in std], device=device).view(3, 1, 1)


def _cut_view(view: View, where: Crop | AlignedCrop, fill: np.ndarray | None) -> np.ndarray:
    if view.matrix is not None:
        return cut_warped(view, where, fill)
    return cut_square(view.picture, where) if isinstance(where, Crop) else cut_aligned(view.picture, where, fill)


class TrackerImageProcessor(CropSettings, BaseImageProcessor):
    """Frames to crops, crops to tensors, boxes between frame and crop; saved as `preprocessor_config.json`.

    Args:
        crop_style (`str`): "ostrack" (Ye et al., ECCV 2022; botaoye/OSTrack, `sample_target`): a square of side
            `ceil(sqrt(w h) factor)` round the box, black where it leaves the picture, resized bilinearly; or "lorat"
            (Lin et al., ECCV 2024; LitingLin/LoRAT, also SPMTrack's): the box and `(factor - 1) (w + h) / 2` more on
            each axis, whole pixels on whole pixels, the picture's mean color round it, in float32.
        template_size, search_size (`int`): sides of the two crops in pixels.
        template_factor, search_factor (`float`): side of the square in units of the box's mean side.
        image_mean, image_std (3 `float`): normalization of every stream, for values in 0..1.
        depth_clip (`bool`): whether far depth is clipped, see `mmtrackers.processing.frames.depth_to_colors`.
        size_momentum (`float`): share of the last size that a new box keeps; 0 in all published trackers.
        absent_below (`float`, *optional*): confidence below which a target counts as absent, where the tracker is
            not told otherwise.
        calibration (3 `float`, *optional*): weights that make a probability of a score, see
            `mmtrackers.tracking.confidence`; without them the confidence is the model's score.

    Raises:
        ValueError: for a setting that no crop can be made with, or one that does not exist.

    Example:
        >>> processor = TrackerImageProcessor(search_size=256)
        >>> image = processor.stack({"rgb": np.zeros((120, 160, 3), np.uint8)})
        >>> search, crops = processor.search([image], [[60, 40, 30, 24]])
        >>> tuple(search.shape), crops[0].side
        ((1, 1, 3, 256, 256), 108)
    """

    valid_kwargs = CropSettings
    model_input_names = ["search", "template"]

    def __init__(self, **kwargs: Any) -> None:
        names = tuple(self.valid_kwargs.__annotations__)
        unknown = sorted(k for k in kwargs if k not in names and k not in _SERVICE_KEYS and not k.startswith("_"))
        if unknown:
            raise ValueError(f"unknown image processor setting: {', '.join(unknown)}; known: {', '.join(names)}")
        kwargs = {key: value for key, value in kwargs.items() if key in names}
        super().__init__(**kwargs)
        for name in names:
            value = getattr(self, name) if kwargs.get(name) is None else kwargs[name]
            setattr(self, name, tuple(value) if isinstance(value, list) else value)
        self._check_settings()
        self._said_missing: set[str] = set()

    def _check_settings(self) -> None:
        def check(name: str, right: bool, expected: str) -> None:
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected}")

        def number(value: Any) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

        def three(value: Any) -> bool:
            return isinstance(value, tuple) and len(value) == 3 and all(map(number, value))

        if self.crop_style not in CROP_STYLES:
            raise ValueError(f"crop_style is {self.crop_style!r}, known: {', '.join(map(repr, CROP_STYLES))}")
        for role in ("template", "search"):
            size, factor = getattr(self, f"{role}_size"), getattr(self, f"{role}_factor")
            check(f"{role}_size", type(size) is int and size > 0, "a positive whole number of pixels")
            check(f"{role}_factor", number(factor) and factor > 0, "a positive number")
            holds = self.crop_style != "lorat" or factor >= 1
            check(f"{role}_factor", holds, "1 or more: a 'lorat' crop holds its box")
        for name in ("image_mean", "image_std"):
            check(name, three(getattr(self, name)), "3 numbers, one for each channel of a stream")
        check("image_std", min(self.image_std) > 0, "positive numbers")
        momentum, absent, weights = self.size_momentum, self.absent_below, self.calibration
        check("size_momentum", number(momentum) and 0 <= momentum < 1, "a number from 0 to below 1")
        check("absent_below", absent is None or (number(absent) and 0 <= absent <= 1), "a number from 0 to 1, or null")
        check("calibration", weights is None or three(weights), "3 finite numbers, or null")

    def to_dict(self) -> dict[str, Any]:
        """The saved settings and the class name."""
        names = (*self.valid_kwargs.__annotations__, "image_processor_type")
        return {key: value for key, value in super().to_dict().items() if key in names}

    def stack(self, frame: Frame, modality: str = "rgb", streams: int = 1, allow_missing: bool = False) -> np.ndarray:
        """Checks a frame and lays its streams side by side on the channel axis: uint8 `[H, W, 3 * streams]`, RGB
        first. ValueError for an unknown or missing stream, streams of different size, or a picture of no use.

        Args:
            frame (`dict[str, np.ndarray]` or `np.ndarray`): "rgb", "thermal", "depth", "event" -> picture, or one
                picture (then "rgb"); their forms as in `mmtrackers.processing.frames.to_picture`.
            modality (`str`): the second stream of a tracker with two, the only stream of a tracker with one; "any"
                takes the only picture beside RGB.
            streams (`int`): 1 or 2; other pictures in the frame are left alone.
            allow_missing (`bool`): feed RGB in the place of a second stream that is not there, and warn once.

        Example:
            >>> rgb, thermal = np.zeros((4, 6, 3), np.uint8), np.arange(24, dtype=np.uint16).reshape(4, 6) + 7000
            >>> image = TrackerImageProcessor().stack({"rgb": rgb, "thermal": thermal}, "thermal", streams=2)
            >>> image.shape, image[-1, -1].tolist()
            ((4, 6, 6), [0, 0, 0, 255, 255, 255])
        """
        views = self.views(frame, modality, streams, allow_missing)
        return join_streams([view.picture for view in views])

    def views(
        self, frame: Frame, modality: str = "rgb", streams: int = 1, allow_missing: bool = False,
        alignment: Mapping[str, Alignment] | None = None, thermal_range: ThermalRange | None = None,
    ) -> list[View]:
        """The streams of a frame, RGB first, each by itself, for `crop`: `stack` without joining whole pictures.

        Args:
            frame, modality, streams, allow_missing: as for `stack`, and so are the errors.
            alignment (`dict[str, np.ndarray or str]`, *optional*): modality -> what maps its pixels to RGB's, of
                `check_alignment`; the streams may then differ in size. ValueError where it does not fit the pictures.
            thermal_range ([`ThermalRange`], *optional*): of this video; by default every frame's own.
        """
        views: dict[str, View] = {}
        for stream, (source, picture) in choose_streams(frame, modality, streams, allow_missing).items():
            if source != stream and stream not in self._said_missing:
                self._said_missing.add(stream)
                warnings.warn(f"the frame has no {stream} stream: the {source} picture is fed in its place "
                              "(allow_missing); expect the accuracy of the RGB tracker at best", stacklevel=2)
            if source in views:
                views[stream] = views[source]
                continue
            view = View(to_picture(picture, source, self.depth_clip, thermal_range), source)
            given = (alignment or {}).get(source)
            if given is not None and views:
                size = views["rgb"].size
                view = View(view.picture, source, frame_matrix(given, view.size, size, source), size)
            views[stream] = view
        check_sizes({stream: view.size for stream, view in views.items()})
        return list(views.values())

    def crop(
        self, image: np.ndarray | Sequence[View], box_xywh: BoxLike, role: Role, fill: np.ndarray | None = None
    ) -> tuple[np.ndarray, Crop | AlignedCrop]:
        """Cuts round a box and resizes: `[s, s, C]` (uint8; "lorat" style float32, 0 to 255), and where it was taken.
        ValueError for another picture, a box that is not 4 finite numbers with positive sides, or an unknown role.

        Args:
            image (`np.ndarray` uint8 `[H, W, C]` or `list[View]`): as `stack` or `views` gives it.
            box_xywh (4 numbers): pixels of the frame; may lie partly or wholly outside.
            role (`str`): "template" or "search": which size and factor.
            fill (`np.ndarray` `[C]`, *optional*): "lorat" style: the color outside the picture, by default this
                picture's `padding`; a session pads all search crops with the first frame's.
        """
        views = as_views(image)
        where = self.locate(box_xywh, role, views[0].size)
        return self.cut(views, where, fill), where

    def cut(self, views: Sequence[View], where: Crop | AlignedCrop, fill: np.ndarray | None = None) -> np.ndarray:
        """The picture of `crop` at a place that is known, as `locate` gives it; arguments as there."""
        if fill is None:
            fill = self.padding(views)
        fills = [None] * len(views) if fill is None else np.split(fill, len(views))
        return join_streams([_cut_view(view, where, own) for view, own in zip(views, fills, strict=True)])

    def padding(self, image: np.ndarray | Sequence[View]) -> np.ndarray | None:
        """The color `[C]` that crops of this picture and its video are padded with; None for black."""
        if self.crop_style == "ostrack":
            return None
        return np.concatenate([mean_color(view.picture) for view in as_views(image)])

    def locate(self, box_xywh: BoxLike, role: Role, frame_size: tuple[int, int] | None = None) -> Crop | AlignedCrop:
        """Where `crop` would cut in a frame of this size (height, width; needed in the "lorat" style); errors as of
        `crop`."""
        if role not in ("template", "search"):
            raise ValueError(f"the role of a crop is 'template' or 'search', got {role!r}")
        size, factor = getattr(self, f"{role}_size"), getattr(self, f"{role}_factor")
        box = np.array(box_xywh, dtype=np.float64)
        if box.shape != (4,):
            raise ValueError(f"a crop needs one box of 4 numbers (x, y, width, height), got {box.tolist()}")
        x, y, w, h = box.tolist()
        if not all(map(math.isfinite, (x, y, w, h))) or w <= 0 or h <= 0:
            raise ValueError(f"no crop can be taken round the box x={x:g}, y={y:g}, width={w:g}, height={h:g}: "
                             "the numbers must be finite and the sides positive")  # fmt: skip
        if self.crop_style == "ostrack":
            side = math.ceil(math.sqrt(w * h) * factor)
            return Crop(round(x + 0.5 * w - 0.5 * side), round(y + 0.5 * h - 0.5 * side), side, size, box)
        if frame_size is None:
            raise ValueError("a crop of the 'lorat' style depends on the frame: give frame_size=(height, width)")
        if role == "search":
            extent = np.maximum(box[2:], SMALLEST_SEARCHED)
            box = np.concatenate((box[:2] + 0.5 * (box[2:] - extent), extent))
        return aligned_crop(box, factor, size, *frame_size)

    def template_mask(self, crops: Sequence[Crop | AlignedCrop], grid: int) -> torch.Tensor:
        """Which cells of template crops show the target, `grid` along a side: int64 `[B, grid, grid]`
        (LitingLin/LoRAT)."""
        mask = torch.zeros(len(crops), grid, grid, dtype=torch.int64)
        for row, crop in zip(mask, crops, strict=True):
            corners = xywh_to_xyxy(crop.box_to_crop(crop.box_xywh)) / (crop.size / grid)
            x1, y1, x2, y2 = rasterized(corners).clip(0, grid).tolist()
            row[y1:y2, x1:x2] = 1
        return mask

    def to_tensor(self, crops: Sequence[np.ndarray]) -> torch.Tensor:
        """Crops `[s, s, 3 * S]` as one tensor with the streams apart, `[B, S, 3, s, s]` of the same type; ValueError
        for no crops, crops of several sizes, or channels that are no multiple of 3."""
        shapes = {crop.shape for crop in crops}
        if len(shapes) != 1:
            raise ValueError(f"a batch needs crops of one shape, got {sorted(shapes) or 'no crops'}")
        height, width, channels = shapes.pop()
        if channels % 3:
            raise ValueError(f"a stream has 3 channels, so crops have 3 or 6, got {channels}")
        planes = np.empty((len(crops), channels, height, width), crops[0].dtype)
        for crop, into in zip(crops, planes, strict=True):
            cv2.split(crop, list(into))  # several times as fast as a transposed copy
        return torch.from_numpy(planes).view(len(crops), channels // 3, 3, height, width)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels `[..., 3, h, w]`, 0..255, to the values that a tracker reads, on their device: float32
        `(pixels / 255 - mean) / std`; ValueError for another shape."""
        if pixels.ndim < 3 or pixels.shape[-3] != 3:
            raise ValueError(f"pixels need the shape [..., 3, height, width], got {tuple(pixels.shape)}")
        mean, scale = _normalization(tuple(self.image_mean), tuple(self.image_std), pixels.device)
        return (pixels - mean).mul_(scale)

    def _crops(
        self, images: Images, boxes_xywh: BoxLike | Sequence[BoxLike], role: Role
    ) -> tuple[torch.Tensor, list[Crop | AlignedCrop]]:
        boxes = np.array(boxes_xywh, dtype=np.float64).reshape(-1, np.shape(boxes_xywh)[-1] if len(boxes_xywh) else 4)
        if isinstance(images, np.ndarray) and images.ndim == 3:
            images = [images] * len(boxes)
        if len(images) != len(boxes) or not len(boxes):
            raise ValueError(f"{len(images)} pictures and {len(boxes)} boxes: give one box for each picture")
        cut = [self.crop(image, box, role) for image, box in zip(images, boxes, strict=True)]
        return self.normalize(self.to_tensor([picture for picture, _ in cut])), [crop for _, crop in cut]

    def template(self, images: Images, boxes_xywh: BoxLike | Sequence[BoxLike]) -> torch.Tensor:
        """Templates as a tracker's `forward` takes them, float32 `[B, 1, S, 3, s, s]`, round boxes (`[B, 4]`, or 4
        numbers) of pictures `[H, W, 3 * S]` of `stack`, or of one for all. ValueError as of `crop`, and where the
        numbers of pictures and boxes differ."""
        return self._crops(images, boxes_xywh, "template")[0][:, None]

    def search(
        self, images: Images, boxes_xywh: BoxLike | Sequence[BoxLike]
    ) -> tuple[torch.Tensor, list[Crop | AlignedCrop]]:
        """Search regions as `forward` takes them, float32 `[B, S, 3, s, s]`, and where each was taken; arguments and
        errors as `template`."""
        return self._crops(images, boxes_xywh, "search")

    def preprocess(
        self, images: Images, boxes_xywh: BoxLike | Sequence[BoxLike], role: Role = "search"
    ) -> BatchFeature:
        """`template` or `search` in the form that `model(**inputs)` takes; also what calling the processor does."""
        tensor, _ = self._crops(images, boxes_xywh, role)
        return BatchFeature({role: tensor[:, None] if role == "template" else tensor})

    @staticmethod
    def box_to_crop(box_xywh: BoxLike, crop: Crop | AlignedCrop) -> np.ndarray:
        """Boxes `[..., 4]` of the frame, xywh in pixels, as fractions of a crop, as training labels need them.

        In the "ostrack" style the crop's center is taken as `(size - 1) / 2`, half a pixel from where `box_from_crop`
        puts it; published trackers were trained with the one and run with the other.
        """
        return crop.box_to_crop(np.asarray(box_xywh, dtype=np.float64)) / crop.size

    @staticmethod
    def box_from_crop(box_cxcywh: BoxLike, crop: Crop | AlignedCrop) -> np.ndarray:
        """Predicted boxes `[..., 4]` (center, width, height as fractions of the crop; CPU tensors too) in the frame:
        float64 xywh in pixels, not clipped."""
        box = np.asarray(box_cxcywh, dtype=np.float64) * crop.size
        return crop.box_from_crop(np.concatenate((box[..., :2] - 0.5 * box[..., 2:], box[..., 2:]), axis=-1))

    def clip_box(self, box_xywh: np.ndarray, height: int, width: int) -> np.ndarray | None:
        """A predicted box on its frame, by the rule of the crop style's tracking loop: "ostrack" keeps at least 10
        pixels of any box on the frame, "lorat" cuts off what lies outside; None where nothing is left."""
        if self.crop_style == "ostrack":
            return clip_box_xywh(box_xywh, height, width)
        first = np.clip(box_xywh[:2], 0, [width, height])
        extent = np.clip(box_xywh[:2] + box_xywh[2:], 0, [width, height]) - first
        return np.concatenate((first, extent)) if (extent > 0).all() else None
