"""Long-term and multi-start scores, as the VOT toolkit computes them (votchallenge/toolkit)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import metrics
from .results import Curve
from .scoring import Measured, Protocol, RawResult, Scores, Truth, needed, whole_boxes


@dataclass(frozen=True)
class LongTerm(Protocol):
    """Precision, recall and F over confidence thresholds; overlap in whole pixels inside the image. The first frame
    has no region and confidence 0, one without ground truth overlap 0. A polygon or mask counts by its upright bounds,
    where the VOT toolkit fills its pixels; the sets named here have rectangles.

    Args:
        resolution (`int`, *optional*): thresholds in all, +inf and -inf among them; `None` takes every confidence.
    """

    resolution: int | None = 100
    metric_names = ("Pr", "Re", "F")

    def measure(self, truths: Sequence[Truth], results: Sequence[RawResult]) -> "LongTermMeasured":
        overlaps, confidences, visible = [], [], []
        for truth, result in zip(truths, results, strict=True):
            overlaps.append(_overlaps(whole_boxes(truth, result), truth.boxes_xywh, truth))
            given = np.zeros(len(truth)) if result.confidence is None else result.confidence[: len(truth)]
            confidences.append(np.concatenate([[0.0], given[1:].astype(float)]))
            visible.append(int((~np.isnan(truth.boxes_xywh).any(1)).sum()))
        return LongTermMeasured(*metrics.long_term_curves(overlaps, confidences, visible, self.resolution))


@dataclass(eq=False)
class LongTermMeasured(Measured):
    """Precision and recall `[S, T]` of every sequence at the thresholds `[T]` of the set."""

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    def summary(self, chosen: np.ndarray) -> Scores:
        """At the threshold with the largest F over the chosen sequences."""
        return self._at(chosen, self.best(chosen))

    def of_sequence(self, index: int) -> Scores:
        """At the threshold that is best for the whole set, as one tracker has one threshold."""
        return self._at(np.array([index]), self.best())

    def best(self, chosen: np.ndarray | slice = slice(None)) -> int:
        """Index of the threshold with the largest F over the chosen sequences."""
        return int(np.argmax(metrics.f_score(self.precision[chosen].mean(0), self.recall[chosen].mean(0))))

    def _at(self, chosen: np.ndarray, threshold: int) -> Scores:
        precision, recall = self.precision[chosen, threshold].mean(), self.recall[chosen, threshold].mean()
        return {"Pr": float(precision), "Re": float(recall), "F": float(metrics.f_score(precision, recall))}

    def curves(self) -> dict[str, Curve]:
        precision, recall = self.precision.mean(0), self.recall.mean(0)
        return {"precision_recall": Curve(tuple(recall.tolist()), tuple(precision.tolist()), "recall", "precision")}


@dataclass(frozen=True)
class MultiStart(Protocol):
    """Runs from several anchors, forward and backward: expected average overlap, accuracy, robustness.

    Overlap as in [`LongTerm`]; the expected one is averaged over run lengths from `low` to `high` - 1.
    """

    low: int = 115
    high: int = 755
    metric_names = ("EAO", "A", "R")

    def measure(self, truths: Sequence[Truth], results: Sequence[RawResult]) -> "MultiStartMeasured":
        rows = []
        for truth, result in zip(truths, results, strict=True):
            seen = ~np.isnan(truth.boxes_xywh).any(1)
            runs, progress = [], []
            for anchor, frames in truth.runs.items():
                if anchor not in result.runs or len(result.runs[anchor]) < len(frames):
                    has = len(result.runs.get(anchor, ()))
                    raise ValueError(f"the run of {truth.name!r} from frame {anchor} has {has} boxes, not "
                                     f"{len(frames)}")  # fmt: skip
                runs.append(_overlaps(result.runs[anchor][: len(frames)], truth.boxes_xywh[frames], truth))
                progress.append(metrics.run_progress(runs[-1], seen[frames]))
            inside = sum(values[:last].sum() for values, last in zip(runs, progress, strict=True))
            expected = metrics.expected_overlap(runs, progress, self.high)
            rows.append((inside, sum(progress), sum(map(len, runs)), len(truth), *expected))
        return MultiStartMeasured(self, *(np.array(column) for column in zip(*rows, strict=True)))


@dataclass(eq=False)
class MultiStartMeasured(Measured):
    """What every sequence adds to the three figures; see `MultiStart`."""

    protocol: MultiStart
    accuracy: np.ndarray
    progress: np.ndarray
    run_frames: np.ndarray
    frames: np.ndarray
    expected: np.ndarray
    expected_number: np.ndarray

    def summary(self, chosen: np.ndarray) -> Scores:
        progress, run_frames, frames = self.progress[chosen], self.run_frames[chosen], self.frames[chosen]
        return {
            "EAO": float(self.phi(chosen)[self.protocol.low : self.protocol.high].mean()),
            "A": float(self.accuracy[chosen].sum() / max(progress.sum(), 1)),
            "R": float((progress / run_frames * frames).sum() / frames.sum()),
        }

    def phi(self, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The expected average overlap of runs of length 0 to `high` - 1."""
        total, number = self.expected[chosen].sum(0), self.expected_number[chosen].sum(0)
        return np.divide(total, number, out=np.zeros_like(total), where=number > 0)

    def curves(self) -> dict[str, Curve]:
        phi = self.phi()
        lengths = tuple(map(float, range(len(phi))))
        return {"expected_overlap": Curve(lengths, tuple(phi.tolist()), "frames of a run", "expected overlap")}


def _overlaps(boxes_xywh: np.ndarray, truth_xywh: np.ndarray, truth: Truth) -> np.ndarray:
    """Raster overlaps of a run; its first frame is the initialization and has no region."""
    boxes = np.array(boxes_xywh, dtype=np.float64)
    boxes[0] = np.nan
    return metrics.raster_overlaps(boxes, truth_xywh, needed(truth, "image_size"))
