"""Square crops of a frame, and the window that weighs a score map."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np


@dataclass(frozen=True)
class Crop:
    """Where a square crop was taken.

    Args:
        x1, y1 (`int`): its left and top edge in pixels of the frame; may be negative.
        side (`int`): its side in pixels of the frame.
        size (`int`): its side after resizing, in pixels.
        box_xywh (`np.ndarray` float64 `[4]`): the box it was taken round, in pixels of the frame.

    Example:
        >>> Crop(x1=10, y1=20, side=64, size=128, box_xywh=np.array([30.0, 40.0, 24.0, 24.0])).resize_factor
        2.0
    """

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
        """Centre of the box it was taken round, `[2]`, pixels of the frame, not rounded."""
        return self.box_xywh[:2] + 0.5 * self.box_xywh[2:]


@lru_cache(maxsize=16)
def _window(grid: int) -> np.ndarray:
    row = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, grid + 1) / (grid + 1)))
    return np.outer(row, row).astype(np.float32)


def hann_window(grid: int) -> np.ndarray:
    """Weights that favour places near the last position: the outer product of two Hann windows without their zeros.

    As in botaoye/OSTrack (`hann2d`). Computed once per size.

    Args:
        grid (`int`): cells per side of the score map.

    Returns:
        `np.ndarray` float32 `[grid, grid]`, in 0..1; yours to change.

    Raises:
        ValueError: if `grid` is not a positive integer.

    Example:
        >>> window = hann_window(3)
        >>> float(window[1, 1]), round(float(window[0, 1]), 3)
        (1.0, 0.5)
    """
    if isinstance(grid, bool) or not isinstance(grid, (int, np.integer)) or grid < 1:
        raise ValueError(f"the window needs a positive whole number of cells per side, got {grid!r}")
    return _window(int(grid)).copy()


def cut_square(image: np.ndarray, where: Crop) -> np.ndarray:
    """The part of a picture that a crop names, resized bilinearly; black where it leaves the picture.

    The picture's last row and column count as outside once the square reaches them, as in the official code
    (botaoye/OSTrack, `sample_target`). Only the part inside is copied, never the whole frame.

    Args:
        image (`np.ndarray` uint8 `[H, W, C]`).
        where (`Crop`): the square; may lie wholly outside.

    Returns:
        `np.ndarray` uint8 `[size, size, C]`.

    Raises:
        ValueError: a picture of another form.

    Example:
        >>> where = Crop(x1=-2, y1=-2, side=4, size=4, box_xywh=np.array([-1.0, -1.0, 2.0, 2.0]))
        >>> cut_square(np.full((9, 9, 1), 7, np.uint8), where)[..., 0].tolist()
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 7, 7], [0, 0, 7, 7]]
    """
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.dtype != np.uint8 or image.size == 0:
        shown = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"a crop needs a uint8 picture [H, W, C] as stack() gives it, got {shown}")
    height, width, channels = image.shape
    x1, y1, side = where.x1, where.y1, where.side
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
