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
from .scoring import Measured, Protocol, RawResult, Scores, Truth, needed, whole_boxes

_LABELS = {
    "success": ("overlap threshold", "success rate"),
    "precision": ("center error threshold (pixels)", "precision"),
    "normalized_precision": ("normalized center error threshold", "normalized precision"),
}


@dataclass(frozen=True)
class Metric:
    """One figure of a table, by the name that the set's papers give it: an index into a curve, the mean of its values,
    or its area by trapezoids. "overlap" is the mean overlap of the frames, "breakout" COESOT's success weighted by
    each sequence's difficulty."""

    name: str
    curve: Literal["success", "precision", "normalized_precision", "overlap", "breakout"]
    take: int | Literal["mean", "area"] = "mean"


@dataclass(frozen=True)
class OnePass(Protocol):
    """One run from the first frame to the last: success, precision and normalized precision.

    Args:
        metrics (`tuple[Metric, ...]`): the figures.
        single_precision (`bool`): boxes are float32, which decides ties at a threshold as the toolkit does.
        rounding (`str`): which boxes are rounded to whole pixels (half to even).
        first_frame (`str`): "kept"; "truth" (the result's first box becomes the ground truth's, then bad rows are
            repaired); "truth after repair" (the other way round); "dropped" (the frame does not count);
            "given dropped" (nor does the first that counts, where the run begins).
        repair (`str`): which rows of a result take the box before them, but where the ground truth is NaN: "none"; "no
            area" (NaN, or a side of 0 or less); "zero side" (exactly 0; NaN and negative sides are errors).
        inclusive_edges (`bool`): overlap takes x + w - 1 as a box's right edge; see `metrics.overlaps`.
        clip (`bool`): both boxes are cut to the image.
        modalities (`str`): "first" (the visible boxes), or "nearer" (every frame takes the smaller error and the
            larger overlap of the two modalities, independently).
        hidden (`str`): frames that the set's flags call absent: "ignored" (the flags are not read); "removed";
            "missed" (a miss in every curve, whatever the boxes); "unusable" (as below).
        unannotated_removed, empty_removed (`bool`): frames without ground truth (no line, or NaN), or whose ground
            truth has no area, do not count.
        unusable (`str`): with "", every frame is measured. Otherwise a frame whose ground truth has a number that is
            not above 0 (also an x or y of 0, at the border) misses in success and hits in normalized precision; "hit"
            or "miss" says how its center error counts (toolkits write -1 or infinity).
        hidden_normalized (`str`): the same for the normalized error of hidden frames.
        divide_by_usable (`bool`): the denominator leaves out unusable frames.
        normalizer (`str`): the error is divided by the ground truth's "size", by "size + 1e-8" or by "max(1, size)".
        success_steps (`int`): thresholds from 0 to 1 in so many steps; a success lies above its threshold.
        precision_limit (`float`): thresholds from 0 to so many pixels in 50 steps; a precise frame lies at or below
            its threshold, or below it (`precision_strict`).
        pooled (`bool`): every frame weighs the same; otherwise every sequence.
        empty_left_out (`bool`): sequences that hit nothing in a curve do not count in that curve's mean.
        padded_in_front (`bool`): where the first frames are absent, a result may begin at the first visible one.
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
        frames, size, wanted = _Frames(self, truths, results), len(truths), {metric.curve for metric in self.metrics}
        owner, overlaps, thresholds, hits = frames.owner, frames.overlaps(), {}, {}
        if "success" in wanted:
            thresholds["success"] = np.linspace(0, 1, self.success_steps + 1)
            hits["success"] = metrics.count_above(overlaps, thresholds["success"], owner, size)
        for name, limit in (("precision", self.precision_limit), ("normalized_precision", 0.5)):
            if name in wanted:
                thresholds[name], errors = np.linspace(0, limit, 51), frames.errors(name == "normalized_precision")
                hits[name] = metrics.count_within(errors, thresholds[name], owner, size, self.precision_strict)
        overlap = np.bincount(owner, weights=np.maximum(overlaps, 0), minlength=size)
        divided = np.bincount(owner[frames.usable] if self.divide_by_usable else owner, minlength=size)
        return OnePassMeasured(self, [truth.name for truth in truths], thresholds, hits, overlap, divided)


@dataclass(eq=False)
class OnePassMeasured(Measured):
    """Hits of every sequence at every threshold, and how many frames they are out of."""

    protocol: OnePass
    names: list[str]
    thresholds: dict[str, np.ndarray]
    hits: dict[str, np.ndarray]
    overlap: np.ndarray
    frames: np.ndarray

    def summary(self, chosen: np.ndarray) -> Scores:
        scores = {}
        for metric in self.protocol.metrics:
            if metric.curve == "overlap":
                value = self._mean(self.overlap[chosen, None], self.frames[chosen])[0]
            elif metric.curve == "breakout":
                weights = [published_difficulty().get(self.names[i]) for i in chosen]
                if None in weights:
                    continue
                value = (self.hits["success"][chosen].mean(1) / np.maximum(self.frames[chosen], 1) * weights).mean()
            else:
                curve = self._curve(metric.curve, chosen)
                if metric.take == "area":
                    value = np.trapezoid(curve, self.thresholds[metric.curve])
                else:
                    value = curve.mean() if metric.take == "mean" else curve[metric.take]
            scores[metric.name] = float(value)
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


class _Frames:
    """The frames of all sequences one behind the other, prepared as a protocol says: `owner` `[F]` is the index of
    each counted frame's sequence, `usable` `[F]` whether it is measured."""

    def __init__(self, protocol: OnePass, truths: Sequence[Truth], results: Sequence[RawResult]) -> None:
        if not truths:
            raise ValueError("there is no sequence to score")
        self._protocol = protocol
        lengths = [len(truth) for truth in truths]
        self.owner = np.repeat(np.arange(len(truths)), lengths)
        first = np.zeros(len(self.owner), dtype=bool)
        first[np.cumsum([0, *lengths[:-1]])] = True
        streams = [[truth.boxes_xywh for truth in truths]]
        if protocol.modalities == "nearer":
            streams.append([needed(truth, "second_boxes_xywh") for truth in truths])
        self._truths = [self._typed(boxes, protocol.rounding == "both") for boxes in streams]
        found = [whole_boxes(*pair) for pair in zip(truths, results, strict=True)]
        self._result = self._repaired(self._typed(found, protocol.rounding != "none"), first, truths, results)
        if protocol.clip:
            sizes = np.array([needed(truth, "image_size") for truth in truths], dtype=np.float64)[self.owner]
            self._truths = [_clipped(rows, sizes) for rows in self._truths]
            self._result = _clipped(self._result, sizes)
        self._keep(first, truths)

    def _typed(self, boxes: list[np.ndarray], rounded: bool) -> np.ndarray:
        rows = np.concatenate(boxes).astype(np.float32 if self._protocol.single_precision else np.float64)
        return np.round(rows) if rounded else rows

    def _repaired(
        self, rows: np.ndarray, first: np.ndarray, truths: Sequence[Truth], results: Sequence[RawResult]
    ) -> np.ndarray:
        protocol, truth = self._protocol, self._truths[0]
        if protocol.first_frame == "truth":
            rows[first] = truth[first]
        with np.errstate(invalid="ignore"):
            if protocol.repair == "zero side":
                broken = np.isnan(rows).any(1) | (rows[:, 2:] < 0).any(1)
                if broken.any():
                    at = int(np.argmax(broken))
                    line, owner = at - int(np.flatnonzero(first[: at + 1])[-1]) + 1, self.owner[at]
                    file, name = results[owner].file, truths[owner].name
                    place = f"{file}, line {line}" if file else f"line {line} of the result of {name!r}"
                    raise ValueError(f"{place}: {rows[at].tolist()}; {protocol.title} takes no NaN and no negative "
                                     "side")  # fmt: skip
                bad = (rows[:, 2:] == 0).any(1)
            else:
                bad = ~(rows[:, 2:] > 0).all(1) | np.isnan(rows).any(1)
        if protocol.repair != "none":
            rows = metrics.carry_forward(rows, first | ~bad | np.isnan(truth).any(1))
        if protocol.first_frame == "truth after repair":
            rows[first] = truth[first]
        return rows

    def _keep(self, first: np.ndarray, truths: Sequence[Truth]) -> None:
        """Which frames count, and which of them are measured."""
        protocol, boxes = self._protocol, self._truths[0]
        counts, hidden, usable = np.ones_like(first), np.zeros_like(first), np.ones_like(first)
        if protocol.hidden != "ignored":
            hidden = np.concatenate([np.zeros(len(t), bool) if t.visible is None else ~t.visible for t in truths])
        if protocol.first_frame == "dropped":
            counts &= ~first
        if protocol.hidden == "removed":
            counts &= ~hidden
        if protocol.unannotated_removed:
            lines = [np.ones(len(t), bool) if t.annotated is None else t.annotated for t in truths]
            counts &= np.concatenate(lines) & ~np.isnan(boxes).any(1)
        with np.errstate(invalid="ignore"):
            if protocol.empty_removed:
                counts &= (boxes[:, 2:] > 0).all(1)
            if protocol.unusable:
                usable = (boxes > 0).all(1)
        if protocol.first_frame == "given dropped":
            counts[np.flatnonzero(counts)[np.unique(self.owner[counts], return_index=True)[1]]] = False
        if protocol.hidden == "unusable":
            usable &= ~hidden
        self.owner, self.usable, self._hidden = self.owner[counts], usable[counts], hidden[counts]
        self._result, self._truths = self._result[counts], [rows[counts] for rows in self._truths]

    def overlaps(self) -> np.ndarray:
        """`[F]`, -1 where a frame is not measured: below every threshold."""
        inclusive = self._protocol.inclusive_edges
        found = np.maximum.reduce([metrics.overlaps(self._result, rows, inclusive) for rows in self._truths])
        missed = ~self.usable | (self._hidden if self._protocol.hidden == "missed" else False)
        return np.where(missed, -1, found)

    def errors(self, normalized: bool) -> np.ndarray:
        """`[F]` center errors; -1 for a hit and infinity for a miss where a frame is not measured."""
        protocol = self._protocol
        scales = [self._scale(rows[:, 2:]) if normalized else None for rows in self._truths]
        pairs = zip(self._truths, scales, strict=True)
        found = np.minimum.reduce([metrics.center_errors(self._result, rows, scale) for rows, scale in pairs])
        unusable = np.inf if protocol.unusable == "miss" and not normalized else -1.0
        found = np.where(self.usable, found, unusable)
        missed = protocol.hidden == "missed" or (normalized and protocol.hidden_normalized == "miss")
        return np.where(self._hidden, np.inf, found) if missed else found

    def _scale(self, sides: np.ndarray) -> np.ndarray:
        if self._protocol.normalizer == "max(1, size)":
            return np.maximum(sides, 1)
        return sides + sides.dtype.type(1e-8) if self._protocol.normalizer == "size + 1e-8" else sides


def _clipped(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    corner = np.clip(rows[:, :2], 0, sizes)
    return np.concatenate([corner, np.clip(rows[:, 2:], 0, sizes - corner)], axis=1)


@lru_cache(maxsize=1)
def published_difficulty() -> dict[str, float]:
    """COESOT's difficulty of each test sequence: 1 minus the mean success of 15 trackers, as its toolkit publishes it
    (Event-AHU/COESOT, `aveSuccessRatePlot_15alg_overlap_OPE.mat`)."""
    return json.loads(Path(__file__).with_name("coesot_difficulty.json").read_text(encoding="utf-8"))["weights"]
