"""The worst sequences of a set in pictures: frames with every tracker's box and the ground truth, and the overlaps."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmtrackers.data.annotations import read_boxes
from mmtrackers.data.sequence import Sequence as VideoSequence
from mmtrackers.evaluation.protocols import PROTOCOLS
from mmtrackers.processing.boxes import iou_xywh, xywh_to_xyxy, xyxy_to_xywh
from mmtrackers.tracking.drawing import data_url, stretches, visible

from .sets import SetReport

WORST = 4
FRAMES = 6
PICTURE_WIDTH = 380
JPEG_QUALITY = 78


def worst_sequences(part: SetReport, sequences: Iterable[VideoSequence]) -> list[dict[str, Any]]:
    """The sequences with the lowest headline score, as the mean over the trackers, in pictures: of those with images
    and raw results, and never of multi-start sets, which have many runs of each."""
    by_name = {sequence.name: sequence for sequence in sequences}
    scores: dict[str, dict[str, float]] = {}
    for result in part.results:
        for row in result.sequences:
            if part.headline in row.scores and row.name in by_name:
                scores.setdefault(row.name, {})[result.tracker] = row.scores[part.headline]
    strips = []
    for name in sorted(scores, key=lambda name: float(np.mean([*scores[name].values()]))):
        boxes = boxes_of(part, by_name[name])
        if boxes and len(strips) < WORST:
            shown = {result.tracker: scores[name].get(result.tracker) for result in part.results}
            strips.append({"scores": shown} | _strip(by_name[name], boxes))
    return strips


def boxes_of(part: SetReport, sequence: VideoSequence) -> dict[str, np.ndarray]:
    """Tracker -> boxes `[N, 4]`, NaN where its result has none; of the trackers whose result can be read."""
    files = PROTOCOLS[part.protocol].files if part.protocol in PROTOCOLS else "lines"
    found: dict[str, np.ndarray] = {}
    for result in part.results:
        file = next((row.file for row in result.sequences if row.name == sequence.name), None)
        if file is None or files == "anchors" or not Path(file).is_file():
            continue
        rows, boxes = read_boxes(file), np.full((len(sequence), 4), np.nan)
        if files != "vot" and len(rows) and sequence.present[0]:
            # a result does not say whether it has corners, but its first box does
            truth, corners = sequence.boxes_xywh[0], xyxy_to_xywh(rows)
            rows = corners if iou_xywh(rows[0], truth) < 0.5 and iou_xywh(corners[0], truth) > 0.9 else rows
        count = min(len(rows), len(boxes))
        # A result that begins with the first visible frame is shorter by the frames before it
        shift = int(np.argmax(sequence.present)) if 0 < len(boxes) - len(rows) == np.argmax(sequence.present) else 0
        boxes[shift : shift + count] = rows[:count]
        found[result.tracker] = boxes
    return found


def _strip(sequence: VideoSequence, boxes: dict[str, np.ndarray]) -> dict[str, Any]:
    """Frames spread evenly over the annotated ones, without the given first one where there are others."""
    known = np.flatnonzero(sequence.annotated)
    known = known[1:] if len(known) > 1 else np.arange(len(sequence))
    chosen = sorted({int(known[round(k)]) for k in np.linspace(0, len(known) - 1, FRAMES)})
    overlaps = {}
    for name, rows in boxes.items():
        overlaps[name] = np.full(len(sequence), np.nan)
        both = sequence.present & np.isfinite(rows).all(1)
        overlaps[name][both] = iou_xywh(rows[both], sequence.boxes_xywh[both])
    return {
        "name": sequence.name,
        "frames": [_pictures(sequence, index, boxes) for index in chosen],
        "captions": [f"frame {k}" + ("" if sequence.present[k] else " · target absent") for k in chosen],
        "timeline": _timeline(overlaps),
    }


def _pictures(sequence: VideoSequence, index: int, boxes: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The frame in each of its streams, cut to the part that holds the boxes, with the boxes over it."""
    frame, truth = sequence.read(index), [sequence.boxes_xywh[index]] if sequence.present[index] else []
    shown = {name: rows[index] for name, rows in boxes.items() if np.isfinite(rows[index]).all()}
    height, width = next(iter(frame.values())).shape[:2]
    left, top, width, height = window_round([*shown.values(), *truth], width, height)
    scale = PICTURE_WIDTH / width
    size = (PICTURE_WIDTH, max(1, round(scale * height)))
    pictures = []
    for modality, image in frame.items():
        part = cv2.resize(visible(image, modality)[top : top + height, left : left + width], size,
                          interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)  # fmt: skip
        own = sequence.second_boxes_xywh if modality != "rgb" else None
        known = [("", box) for box in (truth if own is None or not truth else [own[index]]) if np.isfinite(box).all()]
        rectangles = [(name, ((box - (left, top, 0, 0)) * scale).tolist()) for name, box in (*known, *shown.items())]
        pictures.append({"label": f"{modality}, frame {index}", "size": size, "rectangles": rectangles,
                         "image": data_url(part, quality=JPEG_QUALITY)})  # fmt: skip
    return pictures


def window_round(boxes: list[np.ndarray], width: int, height: int) -> tuple[int, int, int, int]:
    """The part of a picture, in its own shape, that shows all boxes with some room; small targets are enlarged."""
    if not boxes:
        return 0, 0, width, height
    corners = xywh_to_xyxy(np.array(boxes))
    x1, y1 = np.clip(corners[:, :2].min(0), 0, (width, height))
    x2, y2 = np.clip(corners[:, 2:].max(0), 0, (width, height))
    share = float(np.clip(1.6 * max((x2 - x1) / width, (y2 - y1) / height), 0.25, 1))
    w, h = round(share * width), round(share * height)
    left = int(np.clip(round((x1 + x2 - w) / 2), 0, width - w))
    top = int(np.clip(round((y1 + y2 - h) / 2), 0, height - h))
    return left, top, w, h


def line_points(x: np.ndarray, y: np.ndarray, field: tuple[int, int, int, int]) -> str:
    """The points of a line in an SVG: fractions `[N]`, y from below, of a field (left, top, width, height).

    Example:
        >>> line_points(np.array([0, 0.5]), np.array([0, 1]), (40, 10, 308, 220))
        '40.0,230.0 194.0,10.0'
    """
    left, top, width, height = field
    return " ".join(f"{left + width * a:.1f},{top + height * (1 - b):.1f}" for a, b in zip(x, y, strict=True))


def _timeline(overlaps: dict[str, np.ndarray]) -> dict[str, Any]:
    """Overlap over the frames; a line breaks off where the target is away longer than annotations are apart."""
    last = max(max(len(values) for values in overlaps.values()) - 1, 1)
    lines = []
    for tracker, values in overlaps.items():
        runs, _ = stretches(np.flatnonzero(np.isfinite(values)))
        lines += [(tracker, line_points(run / last, values[run], (0, 0, 1000, 100))) for run in runs if len(run)]
    # at most seven round frame numbers
    tick = next(s for k in range(9) for s in (10**k, 2 * 10**k, 5 * 10**k) if last / s <= 6)
    return {"lines": lines, "ticks": [(frame, 100 * frame / last) for frame in range(0, last + 1, tick)]}
