"""Square crops of a frame by two conventions, and the window that weighs a score map."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.nn import functional as F

_LARGEST = 16  # sides of the picture; what lies outside costs memory too
_SPILL = np.array([0, 0, 1 - 1e-4, 1 - 1e-4])


@dataclass(frozen=True, eq=False)
class Crop:
    """Where a square crop was taken: its left and top edge (may be negative), its side, and the box `[4]` it was taken
    round (float64), in pixels of the frame; `size` is its side after resizing."""

    x1: int
    y1: int
    side: int
    size: int
    box_xywh: np.ndarray

    @property
    def resize_factor(self) -> float:
        """Pixels of the crop per pixel of the frame."""
        return self.size / self.side

    @property
    def center(self) -> np.ndarray:
        """Center of the box it was taken round, `[2]`, pixels of the frame, not rounded."""
        return self.box_xywh[:2] + 0.5 * self.box_xywh[2:]

    def box_to_crop(self, box_xywh: np.ndarray) -> np.ndarray:
        """Boxes of the frame in pixels of the crop, xywh; the crop's center is `(size - 1) / 2` (botaoye/OSTrack,
        `transform_image_to_crop`)."""
        extent = box_xywh[..., 2:] * self.resize_factor
        center = (self.size - 1) / 2 + (box_xywh[..., :2] + 0.5 * box_xywh[..., 2:] - self.center) * self.resize_factor
        return np.concatenate((center - 0.5 * extent, extent), axis=-1)

    def box_from_crop(self, box_xywh: np.ndarray) -> np.ndarray:
        """Boxes in pixels of the crop in the frame, xywh; the crop's center is `size / 2` (botaoye/OSTrack,
        `map_box_back`)."""
        extent = box_xywh[..., 2:] / self.resize_factor
        center = (box_xywh[..., :2] + 0.5 * box_xywh[..., 2:]) / self.resize_factor + self.center - 0.5 * self.side
        return np.concatenate((center - 0.5 * extent, extent), axis=-1)


@dataclass(frozen=True, eq=False)
class AlignedCrop:
    """Where a crop of LoRAT's convention was taken: whole pixels of the frame on whole pixels of the crop.

    Args:
        source (4 `int`): x1, y1, x2, y2 of the part of the frame.
        target (4 `int`): where that part lies in the crop; empty where the crop misses the frame.
        size (`int`): side of the crop.
        scale, translation (`np.ndarray` float64 `[2]`): what really maps frame to crop, `in * scale + translation`.
        box_xywh (`np.ndarray` float64 `[4]`): the box it was taken round, in pixels of the frame.
    """

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]
    size: int
    scale: np.ndarray
    translation: np.ndarray
    box_xywh: np.ndarray

    def box_to_crop(self, box_xywh: np.ndarray) -> np.ndarray:
        """Boxes of the frame in pixels of the crop, xywh."""
        first = box_xywh[..., :2] * self.scale + self.translation
        second = (box_xywh[..., :2] + box_xywh[..., 2:]) * self.scale + self.translation
        return np.concatenate((first, second - first), axis=-1)

    def box_from_crop(self, box_xywh: np.ndarray) -> np.ndarray:
        """Boxes in pixels of the crop in the frame, xywh."""
        first = (box_xywh[..., :2] - self.translation) / self.scale
        return np.concatenate((first, box_xywh[..., 2:] / self.scale), axis=-1)


def rasterized(box_xyxy: np.ndarray) -> np.ndarray:
    """The cells that boxes touch, half-open, float64 `[..., 4]` to int64; a spill of less than a ten-thousandth does
    not count (LitingLin/LoRAT, `bbox_rasterize`)."""
    return np.floor(box_xyxy + _SPILL).astype(np.int64)


def aligned_scale(box_xywh: np.ndarray, factor: float, size: int) -> np.ndarray:
    """Pixels of a crop per pixel of the frame, x and y, for a box with its surroundings, which add `(factor - 1) (w +
    h) / 2` to each of its sides; the crop has their area (LitingLin/LoRAT)."""
    extent = box_xywh[2:] + (factor - 1) * (box_xywh[2:].sum() * 0.5)
    return np.sqrt(size * size / extent.prod()).repeat(2)


def aligned_crop(
    box_xywh: np.ndarray, factor: float, size: int, height: int, width: int, scale: np.ndarray | None = None,
    shift: np.ndarray | None = None,
) -> AlignedCrop:
    """Where LoRAT crops round a box `[4]` (pixels of a frame of `height` and `width`) a square of `size` pixels
    (LitingLin/LoRAT, `scale_and_translate`); training's jitter gives the `scale` `[2]`, and moves the crop by `shift`
    `[2]` of its pixels.

    What the crop shows of the frame is widened to whole pixels on both sides, and boxes are mapped by what that makes
    of scale and translation, in float32 as there: a template's cells depend on the last digit.
    """
    if scale is None:
        scale = aligned_scale(box_xywh, factor, size)
    translation = size / 2 - (box_xywh[:2] + 0.5 * box_xywh[2:]) * scale + (0 if shift is None else shift)
    frame = np.array([0, 0, width, height], dtype=np.float64)
    both, moved = np.tile(scale, 2), np.tile(translation, 2)
    target = rasterized((frame * both + moved).clip(0, size))
    source = rasterized(target * (1 / both) - moved / both).clip(0, [width, height, width, height])
    extent = source[2:] - source[:2]
    if (target[2:] > target[:2]).all() and (extent > 0).all():
        real = (target[2:] - target[:2]).astype(np.float32) / extent.astype(np.float32)
        translation = (target[:2].astype(np.float32) - source[:2].astype(np.float32) * real).astype(np.float64)
        scale = real.astype(np.float64)
    else:
        target = np.zeros(4, dtype=np.int64)
    return AlignedCrop(tuple(source.tolist()), tuple(target.tolist()), size, scale, translation, box_xywh)


def cut_aligned(image: np.ndarray, where: AlignedCrop, fill: np.ndarray) -> np.ndarray:
    """The part of a uint8 picture `[H, W, C]` that an aligned crop names, resized bilinearly: float32 `[size, size,
    C]`, 0 to 255, on a ground of one color, `fill` `[C]`."""
    picture = np.empty((where.size, where.size, image.shape[2]), np.float32)
    picture[:] = fill
    left, top, right, bottom = where.target
    if right > left:
        x1, y1, x2, y2 = where.source
        # not OpenCV, whose coarser weights differ by up to 0.002 of 255 from the official pixels; one channel each, as
        # torch's last digit depends on how many of them a picture has, and on the number of threads
        region = np.ascontiguousarray(image[y1:y2, x1:x2].transpose(2, 0, 1), dtype=np.float32)
        size = bottom - top, right - left
        resized = F.interpolate(torch.from_numpy(region)[:, None], size, mode="bilinear", align_corners=False)
        picture[top:bottom, left:right] = resized[:, 0].permute(1, 2, 0).numpy()
    return picture


def mean_color(image: np.ndarray) -> np.ndarray:
    """Mean of every channel of a picture `[H, W, C]`, float32 `[C]`."""
    # OpenCV's mean takes up to four channels, and a picture of one stream after the other
    streams = np.split(image, range(3, image.shape[2], 3), axis=2)
    means = [cv2.mean(np.ascontiguousarray(stream))[: stream.shape[2]] for stream in streams]
    return np.concatenate(means).astype(np.float32)


def hann_window(grid: int, zeros: bool = False) -> np.ndarray:
    """Weights that favor places near the last position: the outer product of two symmetric Hann windows, float32
    `[grid, grid]`, in 0..1; without zeros at the border in botaoye/OSTrack (`hann2d`), with them in LitingLin/LoRAT.
    ValueError where `grid` is not a positive integer."""
    if not isinstance(grid, (int, np.integer)) or grid < 1:
        raise ValueError(f"the window needs a positive whole number of cells per side, got {grid!r}")
    row = np.hanning(grid) if zeros else np.hanning(grid + 2)[1:-1]
    return np.outer(row, row).astype(np.float32)


def cut_square(image: np.ndarray, where: Crop) -> np.ndarray:
    """The part of a uint8 picture `[H, W, C]` that a crop names, resized bilinearly: `[size, size, C]`, black where it
    leaves the picture, whose last row and column count as outside once the square reaches them (botaoye/OSTrack,
    `sample_target`). ValueError for a square of more than 16 times the picture's longer side."""
    height, width, channels = image.shape
    x1, y1, side = where.x1, where.y1, where.side
    if side > _LARGEST * max(height, width):
        raise ValueError(f"a crop of {side} x {side} pixels cannot be cut from a picture of {width} x {height} (width "
                         "x height): the box is far larger than the picture")  # fmt: skip
    x2, y2 = x1 + side, y1 + side
    left, right = max(x1, 0), x2 if x2 < width else width - 1
    top, bottom = max(y1, 0), y2 if y2 < height else height - 1
    if left >= right or top >= bottom:
        return np.zeros((where.size, where.size, channels), np.uint8)
    region = image[top:bottom, left:right]
    if region.shape[:2] != (side, side):
        # np.zeros takes pages from the system untouched, so a square far larger than the picture costs little.
        padded = np.zeros((side, side, channels), np.uint8)
        padded[top - y1 : bottom - y1, left - x1 : right - x1] = region
        region = padded
    picture = cv2.resize(region, (where.size, where.size), interpolation=cv2.INTER_LINEAR)
    return picture.reshape(where.size, where.size, channels)
