"""Radiometric thermal frames (16 bits, degrees) as gray pictures: one range for a whole video."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

PER_FRAME = "frame"
_TAIL = 0.001  # share of pixels at either end that does not set the range: hot and dead pixels
_MARGIN = 0.1  # of the range, left free at either end for what comes into view later
_PACE = 0.02  # by how much of the difference the range follows each frame


class ThermalRange:
    """The values that become black and white, kept for one video.

    By default it is taken from the first frame without its outermost thousandths, with a tenth of room at both ends,
    and then follows the scene slowly: a hot pixel does not move it, and template and search region have one scale.

    Args:
        limits (2 `float` or `str`, *optional*): values that become 0 and 255, in the frames' own unit, the lower one
            first (else ValueError); or "frame" for every frame's minimum and maximum, as published readers do.
    """

    def __init__(self, limits: Sequence[float] | str | None = None) -> None:
        self._limits: tuple[float, float] | None = None
        self._follows = limits is None
        if limits is None or (isinstance(limits, str) and limits == PER_FRAME):
            return
        try:
            low, high = map(float, limits)
        except (TypeError, ValueError):
            low = high = math.nan
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"the thermal range is {limits!r}: give the values that become black and white, the "
                             "lower one first (16-bit counts, or degrees for float pictures), or 'frame'")
        self._limits = low, high

    def __call__(self, picture: np.ndarray) -> tuple[float, float] | None:
        """Takes a frame (uint16 or float `[H, W]`) into account and returns `(low, high)` for it; None for its own
        minimum and maximum."""
        if not self._follows:
            return self._limits
        low, high = _robust_range(picture)
        room = _MARGIN * (high - low)
        new = low - room, high + room
        if self._limits is None:
            self._limits = new
        elif new[0] < new[1]:  # a frame of one value (a closed shutter) says nothing
            self._limits = tuple(old + _PACE * (now - old) for old, now in zip(self._limits, new, strict=True))
        return self._limits


def counts_up_to(picture: np.ndarray) -> np.ndarray:
    """How many pixels of a uint16 picture have at most each value, int64 `[65536]`: quantiles of it are an order
    faster than sorting at camera sizes."""
    flat = np.ascontiguousarray(picture).reshape(len(picture), -1)  # OpenCV would count the first channel alone
    return np.cumsum(cv2.calcHist([flat], [0], None, [65536], [0, 65536]).ravel().astype(np.int64))


def _robust_range(picture: np.ndarray) -> tuple[float, float]:
    if picture.dtype == np.uint16:
        spared = _TAIL * picture.size
        low, high = np.searchsorted(counts_up_to(picture), [spared, picture.size - spared], side="right")
        return float(low), float(min(high, 65535))
    values = picture[np.isfinite(picture)]
    if not values.size:
        return 0.0, 0.0
    return tuple(np.percentile(values, (100 * _TAIL, 100 - 100 * _TAIL)).tolist())


def thermal_to_gray(picture: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """A radiometric picture (uint16 or float `[H, W]` or `[H, W, 3]`; not finite counts as lowest) as gray levels,
    uint8 of the same shape: `limits` become 0 and 255, by default the picture's own minimum and maximum."""
    if picture.dtype.kind == "f":
        finite = np.isfinite(picture)
        if not finite.all():
            lowest = picture[finite].min() if finite.any() else 0.0
            picture = np.where(finite, picture, lowest)
        picture = picture.astype(np.float32, copy=False)
    if limits is None:
        return cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    low, high = limits
    scale = 255.0 / (high - low) if high > low else 0.0
    flat = picture.reshape(len(picture), -1)  # OpenCV would take a number for the first channel alone
    gray = cv2.multiply(cv2.subtract(flat, low, dtype=cv2.CV_32F), scale, dtype=cv2.CV_8U)
    return gray.reshape(picture.shape)
