"""From ground truth and raw results to scores, under the rules of a protocol."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, singledispatch
from pathlib import Path
from typing import Any

import numpy as np

from . import metrics
from .protocols import Metric, OnePass, Protocol, get_protocol
from .results import AttributeScore, Curve, EvaluationResult, SequenceScore

Scores = dict[str, float]

_LABELS = {
    "success": ("overlap threshold", "success rate"),
    "precision": ("centre error threshold (pixels)", "precision"),
    "normalized_precision": ("normalised centre error threshold", "normalised precision"),
}


@dataclass
class Truth:
    """What a protocol needs to know of one sequence.

    Args:
        name (`str`): the sequence.
        boxes_xywh (`np.ndarray`): `[N, 4]` pixels, as in the set's file: rows of zeros or NaN stay as they are.
        visible (`np.ndarray`, *optional*): `[N]` bool, what the set's own flags say of the target; none: no flags.
        annotated (`np.ndarray`, *optional*): `[N]` bool, frames that have a line in the annotation; none: all.
        second_boxes_xywh (`np.ndarray`, *optional*): `[N, 4]`, the boxes in the second modality.
        image_size (`tuple[int, int]`, *optional*): width and height of its frames in pixels.
        anchors (`np.ndarray`, *optional*): `[N]`, > 0 where a forward run starts, < 0 where a backward one does.
        attributes (`tuple[str, ...]`): of the whole sequence.

    Example:
        >>> len(Truth("a", np.ones((3, 4))))
        3
    """

    name: str
    boxes_xywh: np.ndarray
    visible: np.ndarray | None = None
    annotated: np.ndarray | None = None
    second_boxes_xywh: np.ndarray | None = None
    image_size: tuple[int, int] | None = None
    anchors: np.ndarray | None = None
    attributes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes_xywh)

    @property
    def runs(self) -> dict[int, np.ndarray]:
        """First frame of each multi-start run -> the frames that it goes through, in its order."""
        if self.anchors is None or not np.any(self.anchors):
            raise ValueError(f"sequence {self.name!r} has no anchors (anchor.value), which multi-start runs need")
        last = len(self)
        return {int(a): np.arange(a, last) if self.anchors[a] > 0 else np.arange(a, -1, -1)
                for a in np.flatnonzero(self.anchors)}  # fmt: skip


@dataclass
class RawResult:
    """What a tracker found in one sequence.

    Args:
        boxes_xywh (`np.ndarray`): `[N, 4]` pixels, one row per frame.
        confidence (`np.ndarray`, *optional*): `[N]`, for long-term protocols; none counts as 0 everywhere.
        runs (`dict[int, np.ndarray]`): multi-start protocols: anchor -> `[L, 4]` in the order of the run.

    Example:
        >>> RawResult(np.zeros((3, 4))).boxes_xywh.shape
        (3, 4)
    """

    boxes_xywh: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    confidence: np.ndarray | None = None
    runs: dict[int, np.ndarray] = field(default_factory=dict)


class Measured:
    """Sequences as a protocol measured them: the scores of any part of them."""

    def summary(self, chosen: np.ndarray) -> Scores:
        """The set's scores over the sequences with these indices."""
        raise NotImplementedError

    def curves(self) -> dict[str, Curve]:
        """The set's curves over all sequences."""
        raise NotImplementedError

    def of_sequence(self, index: int) -> Scores:
        """The scores of one sequence."""
        return self.summary(np.array([index]))

    def counted(self, index: int) -> bool:
        """Whether the sequence takes part in the set's scores."""
        return True


@singledispatch
def measure(protocol: Protocol, truths: Sequence[Truth], results: Sequence[RawResult]) -> Measured:
    """Measures sequences under a protocol.

    Args:
        protocol (`Protocol`): the rules.
        truths (list of [`Truth`]), results (list of [`RawResult`]): `results[i]` belongs to `truths[i]`.

    Raises:
        ValueError: a result shorter than its sequence, a bad row where the protocol rejects it, or a sequence that
            lacks what the protocol needs (image size, second boxes, anchors). Names sequence and frame.

    Example:
        >>> truth = Truth("a", np.tile([10.0, 10, 20, 20], (4, 1)))
        >>> measured = measure(get_protocol("otb100"), [truth], [RawResult(truth.boxes_xywh + 1.0)])
        >>> round(measured.of_sequence(0)["AUC"], 4)
        0.8095
    """
    raise TypeError(f"no scoring for {type(protocol).__name__}")


# ---------------------------------------------------------------------------------------------------------- one pass


@dataclass
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


@measure.register
def _(protocol: OnePass, truths: Sequence[Truth], results: Sequence[RawResult]) -> OnePassMeasured:
    frames = OnePassFrames(protocol, truths, results)
    size, owner = len(truths), frames.owner
    thresholds = {
        "success": np.linspace(0, 1, protocol.success_steps + 1),
        "precision": np.linspace(0, protocol.precision_limit, 51),
        "normalized_precision": metrics.NORMALIZED_THRESHOLDS,
    }
    used = [name for name in thresholds if name in {metric.curve for metric in protocol.metrics}]
    overlaps = frames.overlaps()
    hits = {}
    for name in used:
        if name == "success":
            hits[name] = metrics.count_above(overlaps, thresholds[name], owner, size)
        else:
            errors = frames.errors(normalized=name == "normalized_precision")
            hits[name] = metrics.count_within(errors, thresholds[name], owner, size, protocol.precision_strict)
    divided = frames.usable if protocol.divide_by_usable else np.ones(len(owner), dtype=bool)
    total = np.bincount(owner, weights=np.maximum(overlaps, 0), minlength=size)
    breakout = any(metric.curve == "breakout" for metric in protocol.metrics)
    return OnePassMeasured(
        protocol, [truth.name for truth in truths], {name: thresholds[name] for name in used}, hits, total,
        np.bincount(owner[divided], minlength=size), published_difficulty() if breakout else {},
    )  # fmt: skip


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
        """`[F]` centre errors; -1 for a hit and infinity for a miss where a frame is not measured."""
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


def needed(truth: Truth, name: str) -> np.ndarray | tuple[int, int]:
    """A field of a truth that this protocol cannot do without."""
    value = getattr(truth, name)
    if value is None:
        what = {"second_boxes_xywh": "boxes of the second modality", "image_size": "the size of its frames"}[name]
        raise ValueError(f"sequence {truth.name!r} lacks {what}, which this protocol needs")
    return value


def too_short(truth: Truth, rows: int) -> str:
    """What to say of a result that ends before its sequence."""
    return f"the result of {truth.name!r} has {rows} boxes for {len(truth)} frames"


@lru_cache(maxsize=1)
def published_difficulty() -> dict[str, float]:
    """COESOT's difficulty of each test sequence: 1 minus the mean success of 15 trackers.

    As published with its toolkit (Event-AHU/COESOT, `aveSuccessRatePlot_15alg_overlap_OPE.mat`).
    """
    record = json.loads(Path(__file__).with_name("coesot_difficulty.json").read_text(encoding="utf-8"))
    return record["weights"]


def score(
    protocol: Protocol | str,
    truths: Sequence[Truth],
    results: Sequence[RawResult],
    tracker: str = "",
    **about: Any,
) -> EvaluationResult:
    """Scores one tracker on one set.

    Args:
        protocol (`Protocol` or `str`): the rules, or their name.
        truths (list of [`Truth`]), results (list of [`RawResult`]): `results[i]` belongs to `truths[i]`.
        tracker (`str`): its name, to show.
        about: further fields of the result (`notes`, `settings`, `speed`, `missing`, ...).

    Returns:
        [`EvaluationResult`]

    Raises:
        ValueError: as for `measure`.

    Example:
        >>> truth = Truth("a", np.tile([10.0, 10, 20, 20], (4, 1)), attributes=("FM",))
        >>> result = score("lasher", [truth], [RawResult(truth.boxes_xywh)], tracker="perfect")
        >>> {name: round(value, 4) for name, value in result.scores.items()}
        {'PR': 1.0, 'NPR': 1.0, 'SR': 0.9524}
        >>> result.attributes["FM"].sequences
        ('a',)
    """
    protocol = get_protocol(protocol)
    measured = measure(protocol, truths, results)
    sequences = tuple(
        SequenceScore(truth.name, len(truth), measured.of_sequence(i), measured.counted(i))
        for i, truth in enumerate(truths)
    )
    attributes = {}
    for attribute in dict.fromkeys(name for truth in truths for name in truth.attributes):
        chosen = np.array([i for i, truth in enumerate(truths) if attribute in truth.attributes])
        attributes[attribute] = AttributeScore(tuple(truths[i].name for i in chosen), measured.summary(chosen))
    return EvaluationResult(
        tracker, protocol.title, protocol.name, measured.summary(np.arange(len(truths))), protocol.headline,
        curves=measured.curves(), sequences=sequences, attributes=attributes, **about,
    )  # fmt: skip


def frame_overlaps(protocol: Protocol | str, truth: Truth, result: RawResult) -> np.ndarray:
    """Overlap of every frame under a protocol: for pictures and lists of failures.

    Returns:
        `np.ndarray`: `[N]`; NaN where the frame does not count or is not measured.

    Example:
        >>> truth = Truth("a", np.array([[1.0, 1, 4, 4], [1, 1, 4, 4], [0, 0, 0, 0]]))
        >>> frame_overlaps("otb100", truth, RawResult(truth.boxes_xywh)).tolist()
        [1.0, 1.0, nan]
    """
    protocol = get_protocol(protocol)
    found = np.full(len(truth), np.nan)
    if isinstance(protocol, OnePass):
        frames = OnePassFrames(protocol, [truth], [result])
        values = frames.overlaps()
        found[frames.index] = np.where(values < 0, np.nan, values)
    else:
        boxes = result.boxes_xywh[: len(truth)]
        values = metrics.raster_overlaps(boxes, truth.boxes_xywh, needed(truth, "image_size"))
        seen = ~np.isnan(truth.boxes_xywh).any(1)
        found[seen] = values[seen]
    return found
