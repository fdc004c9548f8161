"""One run from the first frame to the last: the rules of most benchmarks, and their scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from . import metrics
from .results import Curve
from .scoring import Measured, Protocol, RawResult, Scores, Truth, needed, too_short

_LABELS = {
    "success": ("overlap threshold", "success rate"),
    "precision": ("center error threshold (pixels)", "precision"),
    "normalized_precision": ("normalized center error threshold", "normalized precision"),
}


@dataclass(frozen=True)
class Metric:
    """One figure of a table.

    Args:
        name (`str`): as the set's papers write it.
        curve (`str`): where it is taken from: "success", "precision" or "normalized_precision"; "overlap" is the mean
            overlap of the frames, "breakout" COESOT's success weighted by each sequence's difficulty.
        take (`int` or `str`): index into the curve, "mean" of its values, or "area" by trapezoids.
    """

    name: str
    curve: Literal["success", "precision", "normalized_precision", "overlap", "breakout"]
    take: int | Literal["mean", "area"] = "mean"


@dataclass(frozen=True)
class OnePass(Protocol):
    """One run from the first frame to the last: success, precision and normalized precision.

    Args:
        metrics (`tuple[Metric, ...]`): the figures.
        single_precision (`bool`): boxes are float32, which decides ties at a threshold as the toolkit does.
        rounding (`str`): which boxes are rounded to whole pixels (half to even): "none", "result" or "both".
        first_frame (`str`): "kept"; "truth" (the result's first box becomes the ground truth's, then bad rows are
            repaired); "truth after repair" (the other way round); "dropped" (the frame does not count);
            "given dropped" (nor does the first that counts, where the run begins).
        repair (`str`): which rows of a result take the box before them: "none"; "no area" (NaN, or a side of 0 or
            less); "zero side" (a side of exactly 0, while NaN and negative sides are errors). Never where the ground
            truth is NaN.
        inclusive_edges (`bool`): overlap takes x + w - 1 as a box's right edge. The same area with another rounding:
            the given first box may overlap by a hair more than 1 and so lie above the last threshold.
        clip (`bool`): both boxes are cut to the image.
        modalities (`str`): "first" (the visible boxes), or "nearer" (every frame takes the smaller error and the
            larger overlap of the two modalities, independently).
        hidden (`str`): frames that the set's flags call absent: "ignored" (the flags are not read); "removed";
            "missed" (a miss in every curve, whatever the boxes); "unusable" (as below).
        unannotated_removed (`bool`): frames without ground truth (no line, or NaN) do not count.
        empty_removed (`bool`): nor do those whose ground truth has no area.
        unusable (`str`, *optional*): with "", every frame is measured. Otherwise a frame whose ground truth has a
            number that is not above 0 (also an x or y of 0, at the border) misses in success; and "hit" or "miss" says
            how its center error counts (toolkits write -1 or infinity).
        unusable_normalized (`str`): the same for its normalized error.
        hidden_normalized (`str`): the same for hidden frames.
        divide_by_usable (`bool`): the denominator leaves out unusable frames.
        normalizer (`str`): the error is divided by the ground truth's "size", by "size + 1e-8" or by "max(1, size)".
        success_steps (`int`): thresholds from 0 to 1 in so many steps; a success lies above its threshold.
        precision_limit (`float`): thresholds from 0 to so many pixels in 50 steps.
        precision_strict (`bool`): a precise frame lies below its threshold; otherwise at or below.
        pooled (`bool`): every frame weighs the same; otherwise every sequence.
        empty_left_out (`bool`): sequences that hit nothing in a curve do not count in that curve's mean.
        padded_in_front (`bool`): where the first frames are absent, a result may begin at the first visible one.

    Example:
        >>> from mmtrackers.evaluation import PROTOCOLS
        >>> PROTOCOLS["lasher"].rounding, PROTOCOLS["rgbt234"].rounding
        ('both', 'result')
    """

    metrics: tuple[Metric, ...] = ()
    single_precision: bool = False
    rounding: Literal["none", "result", "both"] = "none"
    first_frame: Literal["kept", "truth", "truth after repair", "dropped", "given dropped"] = "kept"
    repair: Literal["none", "no area", "zero side"] = "none"
    inclusive_edges: bool = True
    clip: bool = False
    modalities: Literal["first", "nearer"] = "first"
    hidden: Literal["ignored", "removed", "missed", "unusable"] = "ignored"
    unannotated_removed: bool = False
    empty_removed: bool = False
    unusable: Literal["", "hit", "miss"] = ""
    unusable_normalized: Literal["hit", "miss"] = "hit"
    hidden_normalized: Literal["hit", "miss"] = "hit"
    divide_by_usable: bool = False
    normalizer: Literal["size", "size + 1e-8", "max(1, size)"] = "size"
    success_steps: int = 20
    precision_limit: float = 50.0
    precision_strict: bool = False
    pooled: bool = False
    empty_left_out: bool = False
    padded_in_front: bool = False

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(metric.name for metric in self.metrics)

    def measure(self, truths: Sequence[Truth], results: Sequence[RawResult]) -> "OnePassMeasured":
        frames = OnePassFrames(self, truths, results)
        size, owner = len(truths), frames.owner
        thresholds = {
            "success": np.linspace(0, 1, self.success_steps + 1),
            "precision": np.linspace(0, self.precision_limit, 51),
            "normalized_precision": metrics.NORMALIZED_THRESHOLDS,
        }
        used = [name for name in thresholds if name in {metric.curve for metric in self.metrics}]
        overlaps = frames.overlaps()
        hits = {}
        for name in used:
            if name == "success":
                hits[name] = metrics.count_above(overlaps, thresholds[name], owner, size)
            else:
                errors = frames.errors(normalized=name == "normalized_precision")
                hits[name] = metrics.count_within(errors, thresholds[name], owner, size, self.precision_strict)
        divided = frames.usable if self.divide_by_usable else np.ones(len(owner), dtype=bool)
        total = np.bincount(owner, weights=np.maximum(overlaps, 0), minlength=size)
        breakout = any(metric.curve == "breakout" for metric in self.metrics)
        return OnePassMeasured(
            self, [truth.name for truth in truths], {name: thresholds[name] for name in used}, hits, total,
            np.bincount(owner[divided], minlength=size), published_difficulty() if breakout else {},
        )  # fmt: skip


@dataclass(eq=False)
class OnePassMeasured(Measured):
    """Hits of every sequence at every threshold, and how many frames they are out of."""

    protocol: OnePass
    names: list[str]
    thresholds: dict[str, np.ndarray]
    hits: dict[str, np.ndarray]
    overlap: np.ndarray
    frames: np.ndarray
    difficulty: dict[str, float]

    def summary(self, chosen: np.ndarray) -> Scores:
        curves = {name: self._curve(name, chosen) for name in self.hits}
        scores = {}
        for metric in self.protocol.metrics:
            if metric.curve == "overlap":
                scores[metric.name] = float(self._mean(self.overlap[chosen, None], self.frames[chosen])[0])
            elif metric.curve == "breakout":
                if all(self.names[i] in self.difficulty for i in chosen):
                    weights = np.array([self.difficulty[self.names[i]] for i in chosen])
                    success = self.hits["success"][chosen].mean(1) / np.maximum(self.frames[chosen], 1)
                    scores[metric.name] = float((success * weights).mean())
            else:
                scores[metric.name] = _take(metric, curves[metric.curve], self.thresholds[metric.curve])
        return scores

    def curves(self) -> dict[str, Curve]:
        everything = np.arange(len(self.names))
        return {name: Curve(tuple(self.thresholds[name].tolist()), tuple(self._curve(name, everything).tolist()),
                            *_LABELS[name]) for name in self.hits}  # fmt: skip

    def counted(self, index: int) -> bool:
        hit = not self.protocol.empty_left_out or self.hits["success"][index].any()
        return bool(hit and self.frames[index] > 0)

    def _curve(self, name: str, chosen: np.ndarray) -> np.ndarray:
        return self._mean(self.hits[name][chosen], self.frames[chosen])

    def _mean(self, hits: np.ndarray, frames: np.ndarray) -> np.ndarray:
        if self.protocol.pooled:
            return hits.sum(0) / max(frames.sum(), 1)
        kept = frames > 0
        if self.protocol.empty_left_out:
            kept &= hits.any(1)
        return (hits[kept] / frames[kept, None]).mean(0) if kept.any() else np.zeros(hits.shape[1])


def _take(metric: Metric, curve: np.ndarray, thresholds: np.ndarray) -> float:
    if metric.take == "area":
        return float(np.trapezoid(curve, thresholds))
    return float(curve.mean() if metric.take == "mean" else curve[metric.take])


class OnePassFrames:
    """The frames of all sequences one behind the other, prepared as a protocol says.

    Attributes:
        owner (`np.ndarray`): `[F]`, index of each counted frame's sequence.
        usable (`np.ndarray`): `[F]` bool, frames that are measured.
        index (`np.ndarray`): `[F]`, where each counted frame lies among all frames of all sequences.
    """

    def __init__(self, protocol: OnePass, truths: Sequence[Truth], results: Sequence[RawResult]) -> None:
        self.protocol = protocol
        if not truths:
            raise ValueError("there is no sequence to score")
        lengths = [len(truth) for truth in truths]
        for truth, result in zip(truths, results, strict=True):
            if len(result.boxes_xywh) < len(truth):
                raise ValueError(too_short(truth, len(result.boxes_xywh)))
        boxes = np.concatenate([truth.boxes_xywh for truth in truths])
        found = np.concatenate([result.boxes_xywh[: len(t)] for t, result in zip(truths, results, strict=True)])
        self.owner = np.repeat(np.arange(len(truths)), lengths)
        first = np.zeros(len(boxes), dtype=bool)
        first[np.cumsum([0, *lengths[:-1]])] = True

        self._truths = [self._typed(boxes, protocol.rounding == "both")]
        if protocol.modalities == "nearer":
            second = np.concatenate([needed(truth, "second_boxes_xywh") for truth in truths])
            self._truths.append(self._typed(second, protocol.rounding == "both"))
        self._result = self._repaired(self._typed(found, protocol.rounding != "none"), first, truths)
        if protocol.clip:
            sizes = np.array([needed(truth, "image_size") for truth in truths], dtype=np.float64)[self.owner]
            self._truths = [_clipped(rows, sizes) for rows in self._truths]
            self._result = _clipped(self._result, sizes)
        self._keep(first, truths)

    def _typed(self, rows: np.ndarray, rounded: bool) -> np.ndarray:
        rows = rows.astype(np.float32 if self.protocol.single_precision else np.float64)
        return np.round(rows) if rounded else rows

    def _repaired(self, rows: np.ndarray, first: np.ndarray, truths: Sequence[Truth]) -> np.ndarray:
        protocol, truth = self.protocol, self._truths[0]
        if protocol.first_frame == "truth":
            rows[first] = truth[first]
        with np.errstate(invalid="ignore"):
            if protocol.repair == "zero side":
                broken = np.isnan(rows).any(1) | (rows[:, 2:] < 0).any(1)
                if broken.any():
                    at = int(np.argmax(broken))
                    line = at - int(np.flatnonzero(first[: at + 1])[-1]) + 1
                    raise ValueError(
                        f"line {line} of the result of {truths[self.owner[at]].name!r} is {rows[at].tolist()}: "
                        f"{protocol.title} takes no NaN and no negative side"
                    )
            bad = (rows[:, 2:] == 0).any(1) if protocol.repair == "zero side" else ~(rows[:, 2:] > 0).all(1)
        if protocol.repair != "none":
            bad |= np.isnan(rows).any(1)
            rows = metrics.carry_forward(rows, first | ~bad | np.isnan(truth).any(1))
        if protocol.first_frame == "truth after repair":
            rows[first] = truth[first]
        return rows

    def _keep(self, first: np.ndarray, truths: Sequence[Truth]) -> None:
        """Which frames count, and which of them are measured."""
        protocol = self.protocol
        counts, hidden = np.ones(len(first), dtype=bool), np.zeros(len(first), dtype=bool)
        if protocol.first_frame == "dropped":
            counts &= ~first
        if protocol.hidden != "ignored":
            hidden = np.concatenate([np.zeros(len(t), bool) if t.visible is None else ~t.visible for t in truths])
        if protocol.hidden == "removed":
            counts &= ~hidden
        if protocol.unannotated_removed:
            lines = [np.ones(len(t), bool) if t.annotated is None else t.annotated for t in truths]
            counts &= np.concatenate(lines) & ~np.isnan(self._truths[0]).any(1)
        if protocol.empty_removed:
            with np.errstate(invalid="ignore"):
                counts &= (self._truths[0][:, 2:] > 0).all(1)
        if protocol.first_frame == "given dropped":
            counts[np.flatnonzero(counts)[np.unique(self.owner[counts], return_index=True)[1]]] = False
        usable = np.ones(len(first), dtype=bool)
        if protocol.unusable:
            with np.errstate(invalid="ignore"):
                usable = (self._truths[0] > 0).all(1)
        if protocol.hidden == "unusable":
            usable &= ~hidden
        self.index = np.flatnonzero(counts)
        self.owner, self.usable, self._hidden = self.owner[counts], usable[counts], hidden[counts]
        self._result, self._truths = self._result[counts], [rows[counts] for rows in self._truths]

    def overlaps(self) -> np.ndarray:
        """`[F]`, -1 where a frame is not measured: below every threshold."""
        inclusive = self.protocol.inclusive_edges
        found = np.maximum.reduce([metrics.overlaps(self._result, rows, inclusive) for rows in self._truths])
        missed = ~self.usable | (self._hidden if self.protocol.hidden == "missed" else False)
        return np.where(missed, -1, found)

    def errors(self, normalized: bool = False) -> np.ndarray:
        """`[F]` center errors; -1 for a hit and infinity for a miss where a frame is not measured."""
        protocol, values = self.protocol, {"hit": -1.0, "miss": np.inf, "": np.nan}
        scales = [self._scale(rows) if normalized else None for rows in self._truths]
        pairs = zip(self._truths, scales, strict=True)
        found = np.minimum.reduce([metrics.center_errors(self._result, rows, scale) for rows, scale in pairs])
        rule = protocol.unusable_normalized if normalized and protocol.unusable else protocol.unusable
        found = np.where(self.usable, found, values[rule])
        if protocol.hidden == "missed" or (
            protocol.hidden == "unusable" and normalized and protocol.hidden_normalized == "miss"
        ):
            found = np.where(self._hidden, np.inf, found)
        return found

    def _scale(self, rows: np.ndarray) -> np.ndarray:
        sides = rows[:, 2:]
        if self.protocol.normalizer == "max(1, size)":
            return np.maximum(sides, 1)
        return sides + sides.dtype.type(1e-8) if self.protocol.normalizer == "size + 1e-8" else sides


def _clipped(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    corner = np.clip(rows[:, :2], 0, sizes)
    return np.concatenate([corner, np.clip(rows[:, 2:], 0, sizes - corner)], axis=1)


@lru_cache(maxsize=1)
def published_difficulty() -> dict[str, float]:
    """COESOT's difficulty of each test sequence: 1 minus the mean success of 15 trackers.

    As published with its toolkit (Event-AHU/COESOT, `aveSuccessRatePlot_15alg_overlap_OPE.mat`).
    """
    record = json.loads(Path(__file__).with_name("coesot_difficulty.json").read_text(encoding="utf-8"))
    return record["weights"]
