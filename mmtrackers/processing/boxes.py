"""Boxes: forms, overlaps, and the checks at the public edge.

A variable's name says its form: `box_xywh` (left, top, width, height), `box_xyxy` (left, top, right, bottom),
`box_cxcywh` (center, width, height), on the last axis. Conversions and overlaps take NumPy arrays or torch tensors of
any unit and give the same kind back; ValueError where the last axis does not hold four numbers.
"""

import warnings
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)
BoxLike = Sequence[float] | np.ndarray | torch.Tensor

_TINY_AREA = 1e-12
_LARGEST = 3  # sides of the picture: no target is larger, and its crop would take gigabytes


def _parts(boxes: Array) -> tuple[Array, Array, Array, Array]:
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"boxes need 4 numbers on the last axis, got the shape {tuple(boxes.shape)}")
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _join(*parts: Array) -> Array:
    return torch.stack(parts, -1) if isinstance(parts[0], torch.Tensor) else np.stack(parts, -1)


def xywh_to_xyxy(boxes_xywh: Array) -> Array:
    """Left, top, width, height to left, top, right, bottom."""
    x, y, w, h = _parts(boxes_xywh)
    return _join(x, y, x + w, y + h)


def xyxy_to_xywh(boxes_xyxy: Array) -> Array:
    """Left, top, right, bottom to left, top, width, height."""
    x1, y1, x2, y2 = _parts(boxes_xyxy)
    return _join(x1, y1, x2 - x1, y2 - y1)


def cxcywh_to_xyxy(boxes_cxcywh: Array) -> Array:
    """Center, width, height to left, top, right, bottom."""
    cx, cy, w, h = _parts(boxes_cxcywh)
    return _join(cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h)


def _areas(a_xyxy: Array, b_xyxy: Array) -> tuple[Array, Array, Array]:
    """Intersection, union and the area of the smallest rectangle round both."""
    low, high = (torch.minimum, torch.maximum) if isinstance(a_xyxy, torch.Tensor) else (np.minimum, np.maximum)
    ax1, ay1, ax2, ay2 = _parts(a_xyxy)
    bx1, by1, bx2, by2 = _parts(b_xyxy)
    inter = (low(ax2, bx2) - high(ax1, bx1)).clip(min=0) * (low(ay2, by2) - high(ay1, by1)).clip(min=0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    hull = (high(ax2, bx2) - low(ax1, bx1)).clip(min=0) * (high(ay2, by2) - low(ay1, by1)).clip(min=0)
    return inter, union, hull


def iou_xyxy(a_xyxy: Array, b_xyxy: Array) -> Array:
    """Intersection over union, box by box: `[...]` in 0..1 of boxes `[..., 4]`, whose shapes broadcast; 0 where both
    boxes are empty."""
    inter, union, _ = _areas(a_xyxy, b_xyxy)
    return inter / union.clip(min=_TINY_AREA)


def giou_xyxy(a_xyxy: Array, b_xyxy: Array) -> tuple[Array, Array]:
    """Generalized intersection over union, -1..1 (Rezatofighi et al., CVPR 2019, algorithm 1), and the plain one; as
    `iou_xyxy`."""
    inter, union, hull = _areas(a_xyxy, b_xyxy)
    iou = inter / union.clip(min=_TINY_AREA)
    return iou - (hull - union) / hull.clip(min=_TINY_AREA), iou


def iou_xywh(a_xywh: Array, b_xywh: Array) -> Array:
    """Intersection over union of boxes given as left, top, width, height; otherwise as `iou_xyxy`."""
    return iou_xyxy(xywh_to_xyxy(a_xywh), xywh_to_xyxy(b_xywh))


def clip_box_xywh(box_xywh: BoxLike, height: int, width: int, margin: float = 10.0) -> np.ndarray:
    """Keeps tracked boxes `[..., 4]` on the picture, with at least `margin` pixels inside and on each side, or the
    whole of a smaller picture (botaoye/OSTrack, `clip_box`)."""
    x1, y1, x2, y2 = _parts(xywh_to_xyxy(np.asarray(box_xywh, dtype=np.float64)))
    margin_x, margin_y = min(margin, width), min(margin, height)
    x1, x2 = np.clip(x1, 0.0, width - margin_x), np.clip(x2, margin_x, width)
    y1, y2 = np.clip(y1, 0.0, height - margin_y), np.clip(y2, margin_y, height)
    return _join(x1, y1, np.maximum(margin_x, x2 - x1), np.maximum(margin_y, y2 - y1))


def check_box_xywh(box_xywh: BoxLike, height: int, width: int) -> np.ndarray:
    """Checks a box that a person gave, in pixels of a picture of `height` and `width`: float64 `[4]`.

    One that is possible but looks like something else (two corners, a target of less than two pixels) is warned of.

    Raises:
        ValueError: not four numbers, a number that is not finite, a side that is not positive, fractions of the
            picture, or a box that shares nothing with the picture or is several times as large.
    """
    form = "give x, y, width, height in pixels"
    try:
        box = np.asarray(box_xywh, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"the box {box_xywh!r} is not made of numbers: {form}") from None
    if box.shape != (4,):
        what = "is empty" if box.size == 0 else f"has the shape {box.shape}"
        raise ValueError(f"a box needs 4 numbers, but {box.tolist()} {what}: {form}")
    x, y, w, h = box.tolist()
    shown = f"the box x={x:g}, y={y:g}, width={w:g}, height={h:g}"
    size = f"{width} x {height} pixels (width x height)"
    outside = x >= width or y >= height or x + w <= 0 or y + h <= 0
    huge = w > _LARGEST * width or h > _LARGEST * height
    fractions = box.max() <= 1 and box.min() >= 0 and min(width, height) > 2
    for wrong, why in (
        (not np.isfinite(box).all(), f"holds a number that is not finite: {form}, of a frame that shows the target"),
        (w <= 0 or h <= 0, f"has no area: width and height must be positive; {form}, not two corners"),
        (outside, f"lies outside the picture of {size}: give a box that overlaps it, in pixels of this frame's size"),
        (huge, f"is more than {_LARGEST} times the picture of {size}: {form}, of this frame's size"),
        (fractions, f"holds fractions: multiply x and width by {width}, y and height by {height}; {form}"),
    ):
        if wrong:
            raise ValueError(f"{shown} {why}")
    if min(w, h) < 2:
        warnings.warn(f"{shown} is less than two pixels wide or high: is it in pixels of this frame?", stacklevel=2)
    elif (x + w > width or y + h > height) and x < w <= width and y < h <= height:
        warnings.warn(f"{shown} leaves the picture of {width} x {height} pixels, and would fit as two corners x1, y1, "
                      f"x2, y2: if it is that, give x={x:g}, y={y:g}, width={w - x:g}, height={h - y:g}", stacklevel=2)
    return box
