"""How sure an answer is: a calibrated probability from the score, its recent past and a sudden change of size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# shares of the past that a frame's means keep
SLOW_SCORE = 0.9
SLOW_SIZE = 0.98
EVIDENCE = ("1", "score", "mean score", "change of size")


@dataclass(frozen=True, eq=False)
class Trail:
    """What a session remembers of its targets' past answers, one number per target.

    Attributes:
        score (`np.ndarray`): slow mean of the model's scores, in log odds.
        size (`np.ndarray`): slow mean of the logarithm of the boxes' mean side.
    """

    score: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, boxes_xywh: np.ndarray) -> "Trail":
        """The trail of targets that have just been shown by their boxes `[targets, 4]`."""
        return cls(np.full(len(boxes_xywh), 2.0), log_size(boxes_xywh))

    def moved(self, scores: np.ndarray, boxes_xywh: np.ndarray) -> "Trail":
        """The trail after an answer: scores `[targets]` and boxes `[targets, 4]`."""
        return Trail(
            SLOW_SCORE * self.score + (1 - SLOW_SCORE) * log_odds(scores),
            SLOW_SIZE * self.size + (1 - SLOW_SIZE) * log_size(boxes_xywh),
        )

    def kept(self, old: "Trail", which: Sequence[bool]) -> "Trail":
        """This trail, with what an older one says of some targets."""
        return Trail(np.where(which, old.score, self.score), np.where(which, old.size, self.size))

    def evidence(self, scores: np.ndarray, boxes_xywh: np.ndarray) -> np.ndarray:
        """What speaks for an answer, `[targets, 4]` in the order of `EVIDENCE`."""
        change = np.abs(log_size(boxes_xywh) - self.size)
        return np.stack([np.ones(len(scores)), log_odds(scores), self.moved(scores, boxes_xywh).score, change], 1)


def log_size(boxes_xywh: np.ndarray) -> np.ndarray:
    """Logarithm of the mean side of boxes `[..., 4]`."""
    return 0.5 * np.log(np.maximum(np.asarray(boxes_xywh)[..., 2:].prod(-1), 1e-6))


def log_odds(scores: np.ndarray) -> np.ndarray:
    """Logarithm of the odds of scores, kept finite."""
    clipped = np.clip(np.asarray(scores, dtype=np.float64), 1e-3, 1 - 1e-3)
    return np.log(clipped / (1 - clipped))


def probability(evidence: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Probability that the boxes are right, `[targets]`: the logistic function of evidence `[targets, 4]`."""
    return 1 / (1 + np.exp(-evidence @ np.asarray(weights, dtype=np.float64)))
