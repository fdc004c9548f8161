"""How sure an answer is: a calibrated probability from the score and a sudden change of size."""

from collections.abc import Sequence

import numpy as np

SLOW = 0.98  # share of the past that a target's usual size keeps in each frame


def evidence(scores: np.ndarray, boxes_xywh: np.ndarray, usual_size: np.ndarray) -> np.ndarray:
    """What speaks for answers, `[targets, 3]`: 1, the log odds of the model's score (`[targets]`, 0 to 1), and how
    much the size of the box `[targets, 4]` differs from the usual one (`[targets]`, logarithms as of `log_size`).

    Example:
        >>> box = np.array([[0.0, 0, 20, 20]])
        >>> evidence(np.array([0.5]), box, log_size(box))
        array([[1., 0., 0.]])
    """
    clipped = np.clip(np.asarray(scores, dtype=np.float64), 1e-3, 1 - 1e-3)
    change = np.abs(log_size(boxes_xywh) - usual_size)
    return np.stack([np.ones(len(clipped)), np.log(clipped / (1 - clipped)), change], 1)


def log_size(boxes_xywh: np.ndarray) -> np.ndarray:
    """Logarithm of the mean side of boxes `[..., 4]`."""
    return 0.5 * np.log(np.maximum(np.asarray(boxes_xywh)[..., 2:].prod(-1), 1e-6))


def usual_size_after(usual_size: np.ndarray, boxes_xywh: np.ndarray) -> np.ndarray:
    """The usual sizes `[targets]` after a frame whose answers are boxes `[targets, 4]`."""
    return SLOW * usual_size + (1 - SLOW) * log_size(boxes_xywh)


def probability(found: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Probability that the boxes are right, `[targets]`: the logistic function of evidence `[targets, 3]`."""
    return 1 / (1 + np.exp(-found @ np.asarray(weights, dtype=np.float64)))
