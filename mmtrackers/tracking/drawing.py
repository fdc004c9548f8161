"""Boxes on frames for people to look at, and the plot of overlap and score over a video."""

import base64
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from mmtrackers.processing.alignment import Alignment, frame_matrix, warp
from mmtrackers.processing.thermal import ThermalRange, thermal_to_gray

from .session import Prediction

# Distinct on dark and bright pictures and for most color-blind people (after Okabe and Ito, 2008); RGB.
COLORS = ((255, 159, 0), (86, 200, 255), (0, 200, 130), (255, 110, 190), (240, 228, 66), (213, 94, 0))
GROUND_TRUTH = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GAP = 4  # white pixels between two streams


def visible(picture: np.ndarray, modality: str = "rgb") -> np.ndarray:
    """A stream's picture, `[H, W, 3]` or `[H, W]` (uint8; depth and thermal also uint16, thermal also float), as uint8
    `[H, W, 3]` RGB for people: depth colored by distance (near warm, unknown black), thermal stretched to gray."""
    picture = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    if modality == "depth":
        known = picture > 0
        low, high = np.percentile(picture[known], (2, 98)) if known.any() else (0.0, 1.0)
        near = 255 * (1 - np.clip((picture - low) / max(high - low, 1.0), 0, 1))
        colors = cv2.cvtColor(cv2.applyColorMap(near.astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
        colors[~known] = 0
        return colors
    if picture.dtype != np.uint8:
        picture = thermal_to_gray(picture, ThermalRange()(picture))
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture


def data_url(picture: np.ndarray, widest: int = 1280, quality: int = 88) -> str:
    """An RGB picture as the JPEG text that a page shows, at most `widest` pixels wide."""
    height, width = picture.shape[:2]
    if width > widest:
        picture = cv2.resize(picture, (widest, round(height * widest / width)), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def annotate(
    frame: Mapping[str, np.ndarray], predictions: Sequence[Prediction], index: int,
    ground_truth_xywh: np.ndarray | None = None, alignment: Mapping[str, Alignment] | None = None,
) -> np.ndarray:
    """One frame with its boxes and a line of text below each picture; the streams side by side, uint8 `[H', W', 3]`
    RGB.

    Args:
        frame (`dict[str, np.ndarray]`), index (`int`): modality -> picture; its number, to show.
        predictions (list of `Prediction`): one per target; the box of an absent target is drawn dashed.
        ground_truth_xywh (`np.ndarray` `[4]`, *optional*): drawn thin and white unless it holds NaN.
        alignment (`dict`, *optional*): a session's; what it maps is shown as it lies on RGB.
    """
    height, width = next(iter(frame.values())).shape[:2]
    unit = max(1.0, height / 480)
    truth = ground_truth_xywh is not None and np.isfinite(ground_truth_xywh).all()
    step = width + _GAP
    drawn = np.full((height + 2 * round(12 * unit), len(frame) * step - _GAP, 3), 255, np.uint8)
    for panel, (modality, picture) in enumerate(frame.items()):
        columns = drawn[:, panel * step : panel * step + width]
        canvas, strip = columns[:height], columns[height:]
        shown = visible(picture, modality)
        if alignment is not None and modality in alignment:
            matrix = frame_matrix(alignment[modality], shown.shape[:2], (height, width), modality)
            shown = warp(shown, matrix, (width, height), modality)
        canvas[:] = shown
        if truth:
            _rectangle(canvas, ground_truth_xywh, GROUND_TRUTH, max(1, round(unit)))
        for k, prediction in enumerate(predictions):
            _target(canvas, prediction, COLORS[k % len(COLORS)], unit)
        _caption(strip, unit, modality, predictions, index, truth)
    return drawn


def _target(canvas: np.ndarray, prediction: Prediction, color: tuple[int, int, int], unit: float) -> None:
    # Thin lines round small targets, which thick ones would hide.
    thick = int(np.clip(min(prediction.box[2:]) // 16, 1, max(2, round(2 * unit))))
    if prediction.present:
        _rectangle(canvas, prediction.box, (20, 20, 20), thick + 2)
        _rectangle(canvas, prediction.box, color, thick)
        return
    x1, y1, x2, y2 = _corners(canvas, prediction.box)
    for (ax, ay), (bx, by) in itertools.pairwise(((x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1))):
        pieces = max(1, round(max(abs(bx - ax), abs(by - ay)) / (8 * thick)))
        points = [(round(ax + (bx - ax) * t), round(ay + (by - ay) * t)) for t in np.linspace(0, 1, 2 * pieces + 1)]
        for start, end in zip(points[::2], points[1::2], strict=False):
            cv2.line(canvas, start, end, color, thick, cv2.LINE_AA)


def _corners(canvas: np.ndarray, box_xywh: np.ndarray) -> tuple[int, int, int, int]:
    """A box's corners; a side far outside the picture, where drawing takes long, is moved nearer and stays outside."""
    height, width = canvas.shape[:2]
    x, y, w, h = box_xywh
    far = max(height, width) + 100
    corners = np.clip((x, y, x + w, y + h), -far, (width + far, height + far) * 2)
    return tuple(round(value) for value in corners)


def _rectangle(canvas: np.ndarray, box_xywh: np.ndarray, color: tuple[int, int, int], thick: int) -> None:
    x1, y1, x2, y2 = _corners(canvas, box_xywh)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thick, cv2.LINE_AA)


def _caption(
    strip: np.ndarray, unit: float, modality: str, predictions: Sequence[Prediction], index: int, truth: bool
) -> None:
    """The dark strip below the picture: frame, modality, the scores in the colors of their boxes."""
    strip[:] = 24
    scale, baseline, x = 0.45 * unit, round(17 * unit), round(8 * unit)
    scores = [f"{p.score:.2f}" if p.present else f"absent ({p.score:.2f})" for p in predictions]
    words = [(f"{modality}  frame {index}", (230, 230, 230)), *zip(scores, itertools.cycle(COLORS), strict=False)]
    words += [("ground truth", GROUND_TRUTH)] if truth else []
    for text, color in words:
        cv2.putText(strip, text, (x, baseline), _FONT, scale, color, max(1, round(unit)), cv2.LINE_AA)
        x += cv2.getTextSize(text, _FONT, scale, 1)[0][0] + round(14 * unit)


def stretches(known: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Annotated frames `[K]` without the gaps that are longer than the usual step, and that step: where every tenth
    frame or so is annotated its points are joined, and a longer gap means that the target was away."""
    step = int(np.median(np.diff(known))) if len(known) > 1 else 1
    return np.split(known, np.flatnonzero(np.diff(known) > step) + 1), step


def plot_run(
    path: str | Path, overlaps: np.ndarray, scores: np.ndarray, title: str = "", absent_below: float | None = None,
    first: int = 0,
) -> None:
    """Draws overlap `[N]` with the ground truth (NaN where there is none) and scores `[targets, N]` or `[N]` into a
    PNG, with a line at `absent_below`. The mean leaves out `first`, the frame of the given box."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    colors = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8a200", "#56b4e9"]
    frames, known = np.arange(len(overlaps)), np.isfinite(overlaps)
    runs, step = stretches(frames[known])
    absent = frames[~known] if step == 1 else frames[:0]
    for run in runs:
        top.fill_between(run, overlaps[run], color=colors[0], alpha=0.15, linewidth=0)
        top.plot(run, overlaps[run], color=colors[0], linewidth=1.6, marker="o" if step > 1 or len(run) == 1 else None,
                 markersize=4)
    later = overlaps[first + 1 :]
    if np.isfinite(later).any():
        mean = float(np.nanmean(later))
        top.axhline(mean, color="0.35", linewidth=1, linestyle="--")
        title = f"{title}   mean overlap {mean:.3f}"
    for k, row in enumerate(np.atleast_2d(scores)):
        bottom.plot(frames[: len(row)], row, color=colors[(k + 1) % len(colors)], linewidth=1.4)
    if absent_below is not None:
        bottom.axhline(absent_below, color="0.35", linewidth=1, linestyle=":")
    for axes, label in ((top, "overlap with\nground truth"), (bottom, "score")):
        axes.set(ylabel=label, ylim=(0, 1.02))
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        for run in np.split(absent, np.flatnonzero(np.diff(absent) > 1) + 1) if absent.size else ():
            axes.axvspan(run[0] - 0.5, run[-1] + 0.5, color="0.94", linewidth=0, zorder=0)
    gray = "  (gray: the target is not there)" if absent.size else ""
    bottom.set(xlabel=f"frame{gray}", xlim=(0, max(len(frames) - 1, 1)))
    figure.suptitle(title, fontsize=11, parse_math=False)  # two dollars in a file's name are no formula
    figure.savefig(path, dpi=120)
